"""Compare heads of stage I for language models: `python -m benchmarks.stage_one_heads --work FOLDER`.

`shared` reads every filter's states through the model's own output embedding, which stays as it is; `private` gives
each filter an output layer of its own, which is trained along. A GPT-2 of six layers is trained on the texts of the
packaged sample and distilled by TED into every second layer of itself, with either head, from one student start per
seed.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.language_models import figures_by_source
from benchmarks.own_process import in_own_process, peak_mib
from benchmarks.results import write_result
from ted import stages
from ted.config import FilterSettings, Settings, TaskSettings, parse_settings
from ted.data.quality import validate
from ted.data.sources import load_dataset
from ted.tasks import registry
from ted.tasks.language_modeling import CausalLM

SAMPLE = "examples/movie_sentiment/data"
END = "<|end|>"
ADAMW_BYTES = 16


class PrivateHead(nn.Module):
    """An output layer of one filter."""

    def __init__(self, dim: int, vocabulary: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, vocabulary)

    def forward(self, states_BLF: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the logits (B, L, V)."""
        del mask_BL
        logits_BLV: Tensor = self.out(states_BLF)
        return logits_BLV


class PrivateHeads(CausalLM):
    """The task with an output layer per filter."""

    def filter_heads(self, count: int, dim: int, filters: FilterSettings, model: PreTrainedModel) -> nn.ModuleList:
        """Return heads that share nothing."""
        del filters
        return nn.ModuleList(PrivateHead(dim, model.config.vocab_size) for _ in range(count))


WAYS: dict[str, type[CausalLM]] = {"shared": CausalLM, "private": PrivateHeads}


def write_model(folder: Path, vocabulary: int, width: int) -> None:
    """Write an untrained GPT-2 of six layers with a tokenizer that is learnt from the sample's training texts."""
    texts = pq.read_table(f"{SAMPLE}/train.parquet")["text"].to_pylist()
    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator(texts, vocab_size=vocabulary, special_tokens=[END], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call] # by transformers
        tokenizer_object=backend._tokenizer,
        eos_token=END,
        pad_token=END,
        model_input_names=["input_ids", "attention_mask"],
    )
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=width,
        n_layer=6,
        n_head=4,
        n_positions=128,
        bos_token_id=end,
        eos_token_id=end,
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def new_settings(arguments: argparse.Namespace, seed: int) -> Settings:
    """Return the settings of a seed."""

    def training(steps: int, **options: float) -> dict[str, Any]:
        return {"max_steps": steps, "per_device_train_batch_size": 16, "checkpoint_steps": 10_000, **options}

    steps, work = arguments.steps, arguments.work
    return parse_settings(
        {
            "seed": seed,
            "task": {"kind": "causal_lm"},
            "data": {"source": SAMPLE, "max_length": 64},
            "teacher": {"model": str(work / "model"), "training": training(5 * steps, learning_rate=1e-3)},
            "student": {"training": training(steps, learning_rate=1e-3)},
            "filters": {"training": training(steps)},
            "distillation": {
                "temperature": 1.0,
                # Kept outputs are read through mapped memory, which would count as the heads' own.
                "teacher_cache": "off",
                "alignment_rows": 512,
                "training": training(2 * steps, learning_rate=5e-4),
            },
            "run": {"output_dir": str(work / "runs")},
        }
    )


def prepare(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Write data, teacher and student start of a seed."""
    settings, folder = new_settings(arguments, seed), arguments.work / str(seed)
    dataset = load_dataset(settings.data, settings.task, settings.seed)
    validate(dataset, settings.data, settings.quality, settings.task).dataset.save_to_disk(str(folder / "data"))
    write_model(arguments.work / "model", arguments.vocabulary, arguments.width)
    stages.finetune_teacher(settings, folder / "data", folder / "teacher")
    # The student holds layers of the trained teacher: the untrained one has nothing to give.
    trained = settings.teacher.model_copy(update={"model": str(folder / "teacher"), "finetune": False})
    settings = settings.model_copy(update={"teacher": trained})
    stages.prepare_student(settings, folder / "data", folder / "student_start")
    names = ("teacher", "student_start")
    return {name: figures_by_source(settings, folder / "data", folder / name)["all"]["perplexity"] for name in names}


def measure(arguments: argparse.Namespace, seed: int, way: str) -> dict[str, Any]:
    """Return what stage I with one kind of head takes and gives, and the student's perplexity."""
    registry.TASKS["causal_lm"] = WAYS[way]
    settings, folder = new_settings(arguments, seed), arguments.work / str(seed)
    filters = {side: folder / f"{way}_{side}_filters" for side in ("teacher", "student")}
    first = stages.learn_filters(settings, folder / "data", folder / "teacher", "teacher", filters["teacher"])
    peak = peak_mib()
    stages.learn_filters(settings, folder / "data", folder / "student_start", "student", filters["student"])
    inputs = stages.DistillationInputs(
        folder / "data", folder / "teacher", filters["teacher"], folder / "student_start", filters["student"]
    )
    stages.distill_student(settings, inputs, folder / way)
    return {
        "probes": first["probes"],
        "stage_one_loss": first["log_history"][-1]["task_loss"],
        "stage_one_seconds": round(first["seconds"], 1),
        "stage_one_peak_mib": round(peak),
        "student": figures_by_source(settings, folder / "data", folder / way)["all"]["perplexity"],
    }


def head_parameters(way: str, count: int, vocabulary: int, width: int) -> int:
    """Return how many weights of so many heads are trained."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=width, n_layer=0, n_head=1, n_positions=8))
    with torch.device("meta"):
        heads = WAYS[way](TaskSettings(kind="causal_lm")).filter_heads(count, width, FilterSettings(), model)
    return sum(parameter.numel() for parameter in heads.parameters())


def main() -> int:
    """Measure both heads on every seed, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models and checkpoints")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="updates of stage I; others are multiples of it")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()
    seeds: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        start = in_own_process(prepare, arguments, seed)
        ways = {way: in_own_process(measure, arguments, seed, way) for way in WAYS}
        seeds.append({"seed": seed, **start, **ways})
    keys = ("stage_one_loss", "stage_one_seconds", "stage_one_peak_mib", "student")
    means = {way: {key: statistics.fmean(row[way][key] for row in seeds) for key in keys} for way in WAYS}
    trained = {way: head_parameters(way, 3, arguments.vocabulary, arguments.width) for way in WAYS}
    large = {way: head_parameters(way, 15, 49152, 576) for way in WAYS}
    costs = {way: {"trained": trained[way], "smollm2_mib": ADAMW_BYTES * large[way] / 2**20} for way in WAYS}
    sizes = {"steps": arguments.steps, "vocabulary": arguments.vocabulary, "width": arguments.width}
    write_result("stage-one-heads", {**sizes, "heads": costs, "mean": means, "seeds": seeds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
