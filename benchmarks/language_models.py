"""Figures of a language model on the test split, as a whole and by source file."""

from pathlib import Path

import numpy as np
import torch
from datasets import load_from_disk
from torch import Tensor

from ted.config import Settings
from ted.data.preparation import Batch, collator, forward_batches, to_device, tokenize
from ted.evaluation import outputs_of
from ted.models.frozen import move, run_model
from ted.models.loading import load_trained
from ted.tasks import get_task

Figures = dict[str, dict[str, float]]


@torch.inference_mode()
def figures_by_source(settings: Settings, data: Path, model: Path) -> Figures:
    """Return the metrics on all rows of the test split, and on those of each file where there are several.

    Args:
        settings: sections `task`, `data` and `evaluation` (its batch size) are used.
        data: folder of validated data.
        model: folder of the model.
    """
    task, test, loaded = get_task(settings.task), load_from_disk(str(data))["test"], load_trained(model)

    def run(batch: Batch) -> Tensor:
        move(loaded.model, batch["input_ids"].device)
        return run_model(loaded.model, batch, ()).logits

    size = settings.evaluation.batch_size or task.forward_rows
    features = tokenize(test, loaded.tokenizer, task, settings.data)
    batches = forward_batches(features, collator(loaded.tokenizer, task), size)
    outputs, _ = outputs_of(run, task, test, features, to_device(batches))
    references_N, sources_N = task.references(test), np.asarray(test["source"])
    parts = {"all": np.ones(len(test), dtype=bool)}
    if len(names := np.unique(sources_N)) > 1:
        parts |= {str(name): sources_N == name for name in names}
    return {
        name: task.metrics({key: values[rows_N] for key, values in outputs.items()}, references_N[rows_N])
        for name, rows_N in parts.items()
    }
