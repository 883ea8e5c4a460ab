"""Compare losses and gradients with the figures of the published reference implementation.

    python -m benchmarks.oracle DIR

DIR holds, per case, `<case>.json` (configurations, hyper-parameters, numbers) and `<case>.safetensors` (weights,
batches, tensors). A case has up to three blocks: `expected_nopad` (a batch without padding), `expected` (the reference
as it is, padding in the layer loss), `expected_real_only` (padding left out). A JSON line per case and block names the
quantity with the worst error: relative for numbers, to the largest entry for tensors. Exit status 1 above 1e-5.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ted.config import FilterSettings, Settings, TaskKind, parse_settings
from ted.filters import FilterKind, TaskAwareFilters
from ted.methods import build_terms
from ted.models.frozen import FrozenModel
from ted.objectives import DistillationObjective, FilteredTeacher, FilterObjective
from ted.tasks import Task, get_task

TOLERANCE = 1e-5
ROUNDING_NOISE = 1e-6
# Task of a case -> kind of the settings, and the class that has its weights.
TASKS: dict[str, tuple[TaskKind, str]] = {
    "classification": ("classification", "DebertaV2ForSequenceClassification"),
    "regression": ("regression", "DebertaV2ForSequenceClassification"),
    "qa": ("question_answering", "DebertaV2ForQuestionAnswering"),
}
BLOCKS = ("expected_nopad", "expected_real_only", "expected")
LOSSES = {"task_loss": "task_loss", "prediction_loss": "kl", "layer_loss": "layer_loss", "loss": "total"}

Tensors = dict[str, Tensor]
Errors = dict[str, float]


@dataclass(frozen=True)
class Case:
    """One case: its description, and all its tensors."""

    spec: Mapping[str, Any]
    tensors: Tensors

    @classmethod
    def load(cls, path: Path) -> "Case":
        """Return the case that a JSON file describes, weights in float32."""
        spec = json.loads(path.read_text(encoding="utf-8"))
        tensors: Tensors = {}
        for name in spec["weights_files"]:
            tensors |= load_file(path.parent / name)
        return cls(
            spec, {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        )

    @property
    def settings(self) -> Settings:
        """Settings that give the published arithmetic for this case."""
        hyper = self.spec["hyper"]
        distillation = {"kl_alpha": hyper["kl_alpha"], "mse_alpha": hyper["mse_alpha"]}
        method = "ted" if self.spec["teacher_has_filters"] else "lwd"
        values = {"task": {"kind": self.kind}, "method": method, "distillation": distillation}
        if self.kind == "question_answering":
            values["data"] = {"text_pair_column": "context"}
        return parse_settings({**values, "compatibility": "official"}).resolved()

    @property
    def kind(self) -> TaskKind:
        """Kind of task."""
        return TASKS[self.spec["task_kind"]][0]

    @property
    def task(self) -> Task:
        """Task with as many classes as the case has labels."""
        settings = self.settings.task
        names = tuple(map(str, range(self.spec["num_labels"]))) if settings.kind == "classification" else ()
        return get_task(settings, names)

    def below(self, prefix: str) -> Tensors:
        """Return the tensors whose names start with a prefix, by the rest of their names."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def model(self, side: str) -> PreTrainedModel:
        """Return teacher or student with its weights."""
        config = transformers.DebertaV2Config(**self.spec[f"{side}_config"])
        config.num_labels = self.spec["num_labels"]
        model: PreTrainedModel = getattr(transformers, TASKS[self.spec["task_kind"]][1])(config)
        model.load_state_dict(self.below(f"{side}."))
        model.train(False)
        return model

    def filters(self, side: str) -> TaskAwareFilters:
        """Return one side's filters with their weights."""
        layers = self.spec[f"{side}_filter_layers"]
        width = self.spec[f"{side}_config"]["hidden_size"]
        weights = self.below(f"{side}_filters.")
        if not weights:
            return TaskAwareFilters(layers, width, width, "identity")
        kind: FilterKind = "nonlinear" if self.spec["hyper"]["filter_nonlinear"] else "linear"
        filters = TaskAwareFilters(layers, width, self.spec["hyper"]["filter_output_dim"], kind)
        filters.load_state_dict({f"filters.{name}": value for name, value in weights.items()})
        return filters

    def heads(self, side: str) -> nn.ModuleList:
        """Return the private stage-I heads of one side with their weights."""
        dim, model = self.spec["hyper"]["filter_output_dim"], self.model(side)
        filters = FilterSettings(head_pooling="first_token", head_dropout=0.0)
        heads = nn.ModuleList(self.task.filter_head(dim, filters, model) for _ in self.spec[f"{side}_filter_layers"])
        poolers, outputs = self.below(f"stage1_{side}_poolers."), self.below(f"stage1_{side}_heads.")
        for index, head in enumerate(heads):
            weights = {name: poolers[f"{index}.{name}"] for name in ("dense.weight", "dense.bias") if poolers}
            head.load_state_dict(weights | {f"out.{name}": outputs[f"{index}.{name}"] for name in ("weight", "bias")})
        return heads

    def batch(self, block: str) -> Tensors:
        """Return the batch that a block is about; `index` is the place of a row."""
        prefix = "nopad." if block == "expected_nopad" else ""
        names = ("input_ids", "attention_mask", "token_type_ids")
        batch = {name: self.tensors[prefix + name] for name in names}
        if self.kind == "question_answering":
            places = [self.tensors[f"{prefix}{side}_positions"] for side in ("start", "end")]
            batch["labels"] = torch.stack(places, dim=1)
        else:
            batch["labels"] = self.tensors[f"{prefix}labels"]
        return {**batch, "index": torch.arange(len(batch["labels"]))}


def silence_padded_queries(model: PreTrainedModel, mask_BL: Tensor) -> None:
    """Make attention outputs zero at padded positions, as transformers 4.28 does and later versions do not."""
    for layer in model.deberta.encoder.layer:  # type: ignore[union-attr]
        layer.attention.self.register_forward_hook(
            lambda _module, _inputs, out: (out[0] * mask_BL[..., None], *out[1:])
        )


def check_block(case: Case, block: str) -> Errors:
    """Return the error of every quantity of a block."""
    expected = case.spec[block]
    objective, batch = _objective(case, block), case.batch(block)
    values = objective(batch, objective.count([batch]))
    values["loss"].backward()
    errors = {name: _relative(values[ours], expected[name]) for ours, name in LOSSES.items()}
    pairs = enumerate(expected["layer_loss_per_pair"])
    errors |= {f"layer_loss_per_pair.{pair}": _relative(values[f"layer_loss_{pair}"], value) for pair, value in pairs}
    errors |= _gradient_errors(case, block, objective)
    errors |= _output_errors(case, block, objective, batch)
    for side in ("teacher", "student"):
        errors |= _stage_one_errors(case, block, side, batch)
    return errors


def _objective(case: Case, block: str) -> DistillationObjective:
    teacher, student = case.model("teacher"), case.model("student")
    if block == "expected":
        mask_BL = case.batch(block)["attention_mask"]
        silence_padded_queries(teacher, mask_BL)
        silence_padded_queries(student, mask_BL)
    filters = case.filters("teacher")
    source = FilteredTeacher(FrozenModel(teacher, filters.layers), filters)
    terms = build_terms(case.settings, None)
    objective = DistillationObjective(student, case.filters("student"), source, terms, case.task)
    objective.mask_padding = block == "expected_real_only"
    return objective


def _gradient_errors(case: Case, block: str, objective: DistillationObjective) -> Errors:
    gradients = {f"student.{name}": value.grad for name, value in objective.student.named_parameters()}
    assert objective.filters is not None
    gradients |= {f"student_{name}": value.grad for name, value in objective.filters.named_parameters()}
    known = {name: value for name, value in gradients.items() if value is not None}
    expected = case.below(f"{block}.grad.")
    errors = {f"grad.{name}": _to_maximum(known[name], value) for name, value in expected.items()}
    if "grad_norm_student_other" in case.spec[block]:
        others = [value for name, value in known.items() if name.startswith("student.")]
        errors["grad_norm_student_other"] = _norm_error(others, case.spec[block]["grad_norm_student_other"])
    for name, norm in case.spec[block].get("grad_norm_student_by_parameter", {}).items():
        errors[f"grad_norm.{name}"] = _norm_error([known[f"student.{name}"]], norm)
    return errors


def _output_errors(case: Case, block: str, objective: DistillationObjective, batch: Tensors) -> Errors:
    with torch.no_grad():
        matched, _ = objective.match(batch)
    ours = {
        **_logits("student", matched.student_logits),
        **_logits("teacher", matched.teacher_logits),
        "student_filter_out": torch.stack(list(matched.student_states)),
        "teacher_filter_out": torch.stack(list(matched.teacher_states)),
    }
    expected = case.below(f"{block}.")
    shared = [name for name in ours if name in expected]
    return {name: _to_maximum(ours[name].reshape(expected[name].shape), expected[name]) for name in shared}


def _logits(side: str, logits: Tensor) -> Tensors:
    """Return the logits of predictions (B, C), or of start and end (B, 2, L), under the names of a case."""
    if logits.dim() == 2:  # noqa: PLR2004 - rows and outputs
        return {f"{side}_logits": logits}
    return {f"{side}_start_logits": logits[:, 0], f"{side}_end_logits": logits[:, 1]}


def _stage_one_errors(case: Case, block: str, side: str, batch: Tensors) -> Errors:
    expected = case.spec[block]
    if f"stage1_{side}_loss" not in expected:
        return {}
    model, filters = case.model(side), case.filters(side)
    if block == "expected":
        silence_padded_queries(model, batch["attention_mask"])
    objective = FilterObjective(filters, case.heads(side), FrozenModel(model, filters.layers), case.task)
    objective.mask_padding = block == "expected_real_only"
    loss = objective(batch, objective.count([batch]))["loss"]
    loss.backward()
    errors = {f"stage1_{side}_loss": _relative(loss, expected[f"stage1_{side}_loss"])}
    gradients = _stage_one_gradients(objective)
    for name, norm in expected.get(f"stage1_{side}_grad_norm", {}).items():
        errors[f"stage1_{side}_grad_norm.{name}"] = _norm_error([gradients[name]], norm)
    return errors


def _stage_one_gradients(objective: FilterObjective) -> Tensors:
    """Return the gradients of filters and heads under the names of the reference implementation."""
    gradients: Tensors = {}
    for name, parameter in [*objective.filters.named_parameters(), *objective.heads.named_parameters(prefix="heads")]:
        assert parameter.grad is not None
        parts = name.split(".")
        if "dense" in parts:
            parts[0] = "poolers"
        gradients[".".join(part for part in parts if part != "out")] = parameter.grad
    return gradients


def _relative(ours: Tensor, expected: float) -> float:
    return abs(ours.item() - expected) / abs(expected)


def _to_maximum(ours: Tensor, expected: Tensor) -> float:
    return ((ours - expected).abs().max() / expected.abs().max()).item()


def _norm_error(gradients: list[Tensor], expected: float) -> float:
    norm = torch.nn.utils.get_total_norm(gradients)
    return 0.0 if max(norm.item(), expected) < ROUNDING_NOISE else _relative(norm, expected)


def check_folder(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row per case and block with its worst error; a case of an unsupported task has no error."""
    for path in sorted(folder.glob("*.json")):
        case = Case.load(path)
        if case.spec["task_kind"] not in TASKS:
            reason = f"{path.stem}: task {case.spec['task_kind']} is not supported yet; left out\n"
            sys.stderr.write(reason)
            continue
        for block in (name for name in BLOCKS if name in case.spec):
            errors = check_block(case, block)
            worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
            row = {"case": case.spec["case"], "block": block, "worst_relative_error": errors[worst], "quantity": worst}
            yield {**row, "quantities": len(errors)}


def main() -> int:
    """Print a JSON line per case and block; return 1 if an error is above the tolerance or there is no case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with <case>.json and <case>.safetensors")
    folder = parser.parse_args().folder
    rows = list(check_folder(folder)) if folder.is_dir() else []
    for row in rows:
        sys.stdout.write(json.dumps(row) + "\n")
    if not rows:
        sys.stderr.write(f"{folder} holds no case to check; give a folder with <case>.json files\n")
        return 1
    return int(any(not row["worst_relative_error"] <= TOLERANCE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
