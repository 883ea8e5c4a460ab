"""The short examples of the README and the how-tos are carried out on a small bundle and a small table."""

import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from ted.cli import app
from ted.files import sha256_file, write_json

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN_DATA = (ROOT / "docs" / "how-to" / "own-data.md").read_text(encoding="utf-8")
VOCABULARY = ["[UNK]", "warm", "funny", "four"]


def block(document: str, language: str, containing: str) -> str:
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    return next(code for code in blocks if containing in code)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bundle(folder: Path) -> Path:
    """A bundle as `make run` leaves it, whose model adds a score per word."""
    version = folder / "runs" / "latest" / "bundle" / "ted-student" / "1"
    version.mkdir(parents=True)
    onnx.save(_graph(), version / "model.onnx")
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of the vocabulary
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(pad_token="[UNK]")  # noqa: S106 - likewise
    tokenizer.save(str(version / "tokenizer.json"))
    files = {path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in version.iterdir()}
    manifest = {
        "format": 1,
        "name": "ted-student",
        "version": 1,
        "task": {"kind": "classification", "labels": ["negative", "positive"]},
        "max_length": 8,
        "max_characters": 1000,
        "pair": False,
        "inputs": ["input_ids"],
        "outputs": ["logits"],
        "model": "model.onnx",
        "self_test": {"text": "warm", "answer": {}},
        "files": files,
    }
    write_json(version / "bundle.json", manifest)
    return version


def _graph() -> onnx.ModelProto:
    scores_VC = np.array([[0, 0], [0, 2], [0, 2], [2, 0]], dtype=np.float32)
    nodes = [
        helper.make_node("Gather", ["scores", "input_ids"], ["per_token"]),
        helper.make_node("ReduceSum", ["per_token", "axis"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", 2])],
        [numpy_helper.from_array(scores_VC, "scores"), numpy_helper.from_array(np.array([1]), "axis")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.usefixtures("bundle")
def test_prediction_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    exec(block(README, "python", "open_predictor"), {})  # noqa: S102 - our own document
    answers = capsys.readouterr().out.splitlines()
    assert [answer.split()[0] for answer in answers] == ["positive", "negative"]


@pytest.mark.usefixtures("bundle")
def test_prediction_from_the_command_line() -> None:
    line = block(README, "bash", "ted predict").strip()
    done = CliRunner().invoke(app, shlex.split(line)[1:])
    assert done.exit_code == 0
    assert re.findall(r'"label": "(\w+)"', done.stdout) == ["positive", "negative"]


@pytest.mark.parametrize("document", [README, OWN_DATA], ids=["README", "own-data"])
def test_own_data_are_checked(document: str, folder: Path) -> None:
    (folder / "reviews.yaml").write_text(block(document, "yaml", "reviews.csv"))
    rows = [f"film number {number},{('good', 'bad')[number % 2]}" for number in range(200)]
    (folder / "reviews.csv").write_text("\n".join(["review,sentiment", *rows, ",good"]) + "\n")
    commands = block(document, "bash", "check-data").splitlines()
    line = next(command for command in commands if command.startswith("ted check-data"))
    done = CliRunner().invoke(app, shlex.split(line)[1:])
    assert done.exit_code == 0, done.output
    assert '"rule": "missing"' in done.stdout
