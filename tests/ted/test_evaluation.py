import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from safetensors.torch import load_file, save_file
from scipy.stats import pearsonr
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

import ted.evaluation
from benchmarks.tiny import new_data, write_decoder
from ted.config import DataSettings, EvaluationSettings, Settings, TaskSettings
from ted.errors import ModelError, SettingsError
from ted.evaluation import evaluate_models, latency_batch_sizes
from ted.files import read_json
from ted.tasks import get_task

WORDS = ("good", "bad", "film", "plot", "long", "a", "the", "and")
LABELS = ("negative", "positive")
ROWS = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


def save_model(folder: Path, labels: tuple[str, ...], seed: int, layers: int = 1, positions: int = 32) -> Path:
    vocabulary = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=positions,
        initializer_range=0.5,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


def save_data(folder: Path, *, regression: bool, pair: bool = False) -> Path:
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, generator.integers(1, 20))) for _ in range(ROWS)]
    labels = generator.normal(size=ROWS).tolist() if regression else generator.integers(0, 2, ROWS).tolist()
    kind = Value("float32") if regression else ClassLabel(names=list(LABELS))
    columns = {"text": texts, "label": labels, "row": list(range(1, ROWS + 1)), "source": ["rows.csv"] * ROWS}
    features = {"text": Value("string"), "label": kind, "row": Value("int64"), "source": Value("string")}
    if pair:
        columns["text_pair"], features["text_pair"] = texts[::-1], Value("string")
    split = Dataset.from_dict(columns, features=Features(features))
    DatasetDict(train=split, validation=split, test=split).save_to_disk(str(folder))
    return folder


def settings(kind: str = "classification", **evaluation: Any) -> Settings:
    quick = {"batch_size": 7, "latency_batch_sizes": (1, 4), "latency_repeats": 3, "bootstrap_samples": 200}
    return Settings(
        task=TaskSettings.model_validate({"kind": kind}),
        data=DataSettings(max_length=16),
        evaluation=EvaluationSettings.model_validate(quick | evaluation),
    )


@pytest.fixture(scope="module")
def data(root: Path) -> Path:
    return save_data(root / "data", regression=False)


@pytest.fixture(scope="module")
def models(root: Path) -> dict[str, Path]:
    seeds = {"teacher": 0, "student_start": 1, "student": 2}
    return {name: save_model(root / name, LABELS, seed, layers=1 + (seed == 0)) for name, seed in seeds.items()}


@pytest.fixture(scope="module")
def evaluated(root: Path, data: Path, models: dict[str, Path]) -> dict[str, Any]:
    return evaluate_models(settings(), data, models, root / "out")


@pytest.fixture(scope="module")
def answers(root: Path, evaluated: dict[str, Any]) -> pd.DataFrame:
    assert evaluated
    return pd.read_parquet(root / "out" / "predictions.parquet")


def test_the_files_hold_what_is_returned(root: Path, evaluated: dict[str, Any]) -> None:
    assert read_json(root / "out" / "evaluation.json") == evaluated
    assert {path.name for path in (root / "out").iterdir()} == {"evaluation.json", "predictions.parquet"}


def test_the_header_names_task_metric_and_models(evaluated: dict[str, Any]) -> None:
    assert (evaluated["task"], evaluated["primary_metric"], evaluated["higher_is_better"]) == (
        "classification",
        "accuracy",
        True,
    )
    assert evaluated["labels"] == list(LABELS)
    assert evaluated["rows"] == ROWS
    assert list(evaluated["models"]) == ["teacher", "student_start", "student"]


def test_metrics_follow_from_the_predictions(evaluated: dict[str, Any], answers: pd.DataFrame) -> None:
    assert list(answers["row"]) == list(range(1, ROWS + 1))
    for name, model in evaluated["models"].items():
        right = answers[f"{name}_prediction"] == answers["label"]
        assert model["primary"] == pytest.approx(right.mean())
        assert model["agreement"] == pytest.approx(
            (answers[f"{name}_prediction"] == answers["teacher_prediction"]).mean()
        )
        likelihood = np.where(right, answers[f"{name}_probability"], 1 - answers[f"{name}_probability"])
        assert model["metrics"]["negative_log_likelihood"] == pytest.approx(-np.log(likelihood).mean(), rel=1e-5)
        assert {"accuracy", "macro_f1", "matthews", "f1"} <= model["metrics"].keys()


def test_batches_do_not_change_the_predictions(
    tmp_path: Path, data: Path, models: dict[str, Path], answers: pd.DataFrame
) -> None:
    evaluate_models(settings(batch_size=1), data, models, tmp_path / "out")
    again = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    pd.testing.assert_frame_equal(again, answers, rtol=1e-5)


def test_predictions_are_those_of_the_model_alone(models: dict[str, Path], answers: pd.DataFrame) -> None:
    model = BertForSequenceClassification.from_pretrained(models["student"])
    tokenizer = BertTokenizer.from_pretrained(models["student"])
    for _, row in answers.head(5).iterrows():
        with torch.inference_mode():
            inputs = tokenizer(row["text"], truncation=True, max_length=16, return_tensors="pt")
            probabilities = model(**inputs).logits.softmax(-1)[0]
        assert row["student_prediction"] == LABELS[int(probabilities.argmax())]
        assert row["student_probability"] == pytest.approx(float(probabilities.max()), rel=1e-5)


def test_slices_cover_every_row_once_by_length_and_once_by_label(
    evaluated: dict[str, Any], answers: pd.DataFrame
) -> None:
    slices = evaluated["models"]["student"]["slices"]
    right = answers["student_prediction"] == answers["label"]
    for prefix in ("length_", "label="):
        parts = [part for name, part in slices.items() if name.startswith(prefix)]
        assert sum(part["rows"] for part in parts) == ROWS
        assert sum(part["rows"] * part["primary"] for part in parts) == pytest.approx(right.sum())
    assert [name for name in slices if name.startswith("length_")] == [f"length_q{group}" for group in (1, 2, 3, 4)]
    shortest = answers["text"].str.len().min()
    assert evaluated["slice_titles"]["length_q1"].startswith(f"{shortest} to ")
    assert slices["label=negative"]["primary"] == pytest.approx(right[answers["label"] == "negative"].mean())


def test_size_and_parameters(models: dict[str, Path], evaluated: dict[str, Any]) -> None:
    for name, folder in models.items():
        measured = evaluated["models"][name]
        assert measured["size_bytes"] == (folder / "model.safetensors").stat().st_size
        weights = load_file(folder / "model.safetensors")
        assert measured["parameters"] == sum(tensor.numel() for tensor in weights.values())


def test_models_take_turns_and_the_median_counts(
    tmp_path: Path, data: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def timed(model: BertForSequenceClassification, inputs: dict[str, torch.Tensor]) -> float:
        passes.append(len(inputs["input_ids"]))
        return 10.0 if model.config.num_hidden_layers == 2 else [500.0, 4.0, 5.0, 90.0][(len(passes) - 1) // 3 % 4]

    monkeypatch.setattr(ted.evaluation, "_timed", timed)
    measured = evaluate_models(settings(), data, models, tmp_path / "out")["models"]
    assert passes == [1] * 12 + [4] * 12
    assert measured["teacher"]["latency_ms"] == {"1": 10.0, "4": 10.0}
    assert measured["student"]["latency_ms"] == {"1": 5.0, "4": 5.0}
    assert measured["student"]["latency_ratio"] == {"1": 0.5, "4": 0.5}


def test_latency_is_measured(evaluated: dict[str, Any]) -> None:
    for model in evaluated["models"].values():
        assert model["latency_ms"].keys() == {"1", "4"}
        assert min(model["latency_ms"].values()) > 0
    assert evaluated["models"]["teacher"]["latency_ratio"] == {"1": 1.0, "4": 1.0}


def test_a_batch_may_be_larger_than_the_split(tmp_path: Path, data: Path, models: dict[str, Path]) -> None:
    measured = evaluate_models(settings(latency_batch_sizes=(100,)), data, models, tmp_path / "out")
    assert measured["models"]["student"]["latency_ms"].keys() == {"100"}


def test_the_student_is_compared_with_every_other_model(evaluated: dict[str, Any], answers: pd.DataFrame) -> None:
    assert evaluated["comparisons"].keys() == {"student_vs_teacher", "student_vs_student_start"}
    right = {name: (answers[f"{name}_prediction"] == answers["label"]).to_numpy() for name in ("student", "teacher")}
    found = evaluated["comparisons"]["student_vs_teacher"]
    assert found["difference"] == pytest.approx(right["student"].mean() - right["teacher"].mean())
    # The normal approximation of a paired difference is an independent reference for the interval.
    pairs = right["student"].astype(float) - right["teacher"]
    margin = 1.96 * pairs.std(ddof=1) / np.sqrt(ROWS)
    assert found["low"] == pytest.approx(found["difference"] - margin, abs=0.05)
    assert found["high"] == pytest.approx(found["difference"] + margin, abs=0.05)


def test_intervals_are_the_same_in_a_second_run_and_wider_with_more_confidence(
    tmp_path: Path, data: Path, models: dict[str, Path], evaluated: dict[str, Any]
) -> None:
    again = evaluate_models(settings(), data, models, tmp_path / "again")
    assert again["comparisons"] == evaluated["comparisons"]
    wide = evaluate_models(settings(confidence=0.999), data, models, tmp_path / "wide")
    assert wide["comparisons"]["student_vs_teacher"]["low"] < evaluated["comparisons"]["student_vs_teacher"]["low"]


def test_without_a_student_nothing_is_compared(tmp_path: Path, data: Path, models: dict[str, Path]) -> None:
    measured = evaluate_models(settings(), data, {"teacher": models["teacher"]}, tmp_path / "out")
    assert measured["comparisons"] == {}


def test_regression_with_pairs(tmp_path: Path) -> None:
    data = save_data(tmp_path / "data", regression=True, pair=True)
    models = {name: save_model(tmp_path / name, ("value",), seed) for seed, name in enumerate(("teacher", "student"))}
    measured = evaluate_models(settings("regression"), data, models, tmp_path / "out")
    answers = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    student = measured["models"]["student"]
    assert student["primary"] == pytest.approx(
        pearsonr(answers["student_prediction"], answers["label"]).statistic, rel=1e-5
    )
    agreement = pearsonr(answers["student_prediction"], answers["teacher_prediction"]).statistic
    assert student["agreement"] == pytest.approx(agreement, rel=1e-5)
    assert student["metrics"].keys() == {"pearson", "spearman", "rmse"}
    assert set(student["slices"]) == {f"length_q{group}" for group in (1, 2, 3, 4)}
    assert measured["labels"] == []
    assert {"text_pair", "student_prediction"} <= set(answers.columns)
    assert "student_probability" not in answers.columns
    low, high = (measured["comparisons"]["student_vs_teacher"][end] for end in ("low", "high"))
    assert low < measured["comparisons"]["student_vs_teacher"]["difference"] < high


METRIC = """
import datasets
import evaluate


class Count(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"ones": RESULT}
"""


def write_metric(folder: Path, result: str) -> str:
    folder.mkdir()
    path = folder / f"{folder.name}.py"
    path.write_text(METRIC.replace("RESULT", result), encoding="utf-8")
    return str(path)


def test_extra_metrics(
    tmp_path: Path, data: Path, models: dict[str, Path], answers: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    location = write_metric(tmp_path / "count", "float(sum(predictions))")
    measured = evaluate_models(settings(extra_metrics=(location,)), data, models, tmp_path / "out")["models"]
    assert measured["student"]["metrics"]["count.ones"] == (answers["student_prediction"] == "positive").sum()


@pytest.mark.parametrize("result", ["[1, 2]", "float('nan')"])
def test_an_extra_metric_must_give_numbers(tmp_path: Path, data: Path, models: dict[str, Path], result: str) -> None:
    location = write_metric(tmp_path / "list", result)
    with pytest.raises(SettingsError, match=r"evaluation\.extra_metrics: .*list\.py gives ones = .* on teacher"):
        evaluate_models(settings(extra_metrics=(location,)), data, models, tmp_path / "out")


def test_an_extra_metric_that_cannot_read_the_answers_is_named(
    tmp_path: Path, data: Path, models: dict[str, Path]
) -> None:
    location = write_metric(tmp_path / "words", "int('two labels were expected')")
    with pytest.raises(
        SettingsError, match=r"words\.py cannot read the answers to classification \(.*two labels.*name"
    ):
        evaluate_models(settings(extra_metrics=(location,)), data, models, tmp_path / "out")


@pytest.mark.parametrize("content", [None, "", "import a_library_that_is_not_there"])
def test_an_extra_metric_that_cannot_be_loaded_is_refused_before_any_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    location = "accuracyy"
    if content is not None:
        location = str(tmp_path / "metric.py")
        Path(location).write_text(content, encoding="utf-8")
    nothing = {"teacher": tmp_path / "nothing"}
    with pytest.raises(SettingsError, match=rf"evaluation\.extra_metrics: {location} cannot be loaded \(.+\); give"):
        evaluate_models(settings(extra_metrics=(location,)), tmp_path, nothing, tmp_path / "out")


def test_a_teacher_is_needed(tmp_path: Path, data: Path, models: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="models to evaluate: student; name one of them teacher"):
        evaluate_models(settings(), data, {"student": models["student"]}, tmp_path / "out")


@pytest.mark.parametrize("labels", [("positive", "negative"), ("LABEL_0", "LABEL_1")])
def test_other_labels_are_refused(tmp_path: Path, data: Path, models: dict[str, Path], labels: tuple[str, ...]) -> None:
    other = save_model(tmp_path / "control", labels, seed=3)
    with pytest.raises(ModelError, match=r"control in .* answers with the labels .*the same labels in the same order"):
        evaluate_models(settings(), data, {**models, "control": other}, tmp_path / "out")


def test_another_number_of_outputs_is_refused(tmp_path: Path, data: Path, models: dict[str, Path]) -> None:
    other = save_model(tmp_path / "control", ("a", "b", "c"), seed=3)
    with pytest.raises(ModelError, match=r"control in .* has 3 outputs, the task 2; train it on this data"):
        evaluate_models(settings(), data, {**models, "control": other}, tmp_path / "out")


@pytest.mark.parametrize(
    ("labels", "answers"),
    [
        (("positive", "negative"), r"\['positive', 'negative'\]"),
        (("a", "b", "c"), r"\['a', 'b', 'c'\]"),
        (("x",), "one number"),
    ],
)
def test_a_champion_of_another_task_tells_how_to_go_on(
    tmp_path: Path, data: Path, models: dict[str, Path], labels: tuple[str, ...], answers: str
) -> None:
    champion = save_model(tmp_path / "champion", labels, seed=3)
    message = (
        rf"the model in production under the name ted-student answers with {answers}, the run with "
        rf"\['negative', 'positive'\].* give export\.name another name, or archive that version: "
        rf"zenml model version update ted-student production --stage archived --force"
    )
    with pytest.raises(ModelError, match=message):
        evaluate_models(settings(), data, {**models, "champion": champion}, tmp_path / "out")


def test_a_champion_with_too_few_positions_is_refused(tmp_path: Path, data: Path, models: dict[str, Path]) -> None:
    champion = save_model(tmp_path / "champion", LABELS, seed=3, positions=8)
    with pytest.raises(
        ModelError, match=r"max_length is 16, but the model in production under the name ted-student ha"
    ):
        evaluate_models(settings(), data, {**models, "champion": champion}, tmp_path / "out")


def test_perplexities_of_other_tokens_are_not_compared(tmp_path: Path) -> None:
    """A vocabulary of larger pieces has more bits per token: such a champion would be beaten by any student."""
    new_data("causal_lm").save_to_disk(str(tmp_path / "data"))
    models = {name: write_decoder(tmp_path / name) for name in ("teacher", "student", "champion")}
    causal = settings("causal_lm")
    evaluate_models(causal, tmp_path / "data", models, tmp_path / "out")
    tokenizer = json.loads((models["champion"] / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    (models["champion"] / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = (
        r"^the perplexity of the model in production under the name ted-student is one of other tokens than the "
        r"teacher's, so they cannot be compared; give export\.name another name, .* 2 tokens differ"
    )
    with pytest.raises(ModelError, match=message):
        evaluate_models(causal, tmp_path / "data", models, tmp_path / "out")


def test_batch_sizes_follow_the_task_unless_they_are_given() -> None:
    language, classes = get_task(TaskSettings(kind="causal_lm")), get_task(TaskSettings(), LABELS)
    assert latency_batch_sizes(EvaluationSettings(), language) == (1, 4)
    assert latency_batch_sizes(EvaluationSettings(), classes) == (1, 32)
    assert latency_batch_sizes(EvaluationSettings(latency_batch_sizes=(2,)), language) == (2,)


def test_answers_that_are_not_finite_are_refused(tmp_path: Path, data: Path, models: dict[str, Path]) -> None:
    student = save_model(tmp_path / "student", LABELS, seed=3)
    weights = load_file(student / "model.safetensors")
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, student / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match=f"student in .* answers {ROWS} of {ROWS} test rows with a value that is not finite"
    ):
        evaluate_models(settings(), data, {**models, "student": student}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_must_be_safetensors(tmp_path: Path, data: Path, models: dict[str, Path]) -> None:
    student = save_model(tmp_path / "student", LABELS, seed=3)
    torch.save(load_file(student / "model.safetensors"), student / "pytorch_model.bin")
    (student / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"student in .* has no \*\.safetensors file; save the model as safetensors"):
        evaluate_models(settings(), data, {**models, "student": student}, tmp_path / "out")
