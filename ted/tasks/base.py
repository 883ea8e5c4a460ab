"""What a task must say about labels, features, losses, filter heads, answers and metrics.

Letters in names: B rows of a batch, N rows of a split, C model outputs, K scores, L positions, D features.

Data has *rows*; the model reads *features*, of which a row may have several (windows of a long text). A label that is
not known is `unlabelled` in the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ted.config import DataSettings, FilterSettings, TaskSettings
from ted.heads import SequenceHead

FloatArray = npt.NDArray[np.floating]
Array = npt.NDArray[Any]
Batch = Mapping[str, Tensor]
Columns = dict[str, list[Any]]
Outputs = dict[str, Array]
"""What is kept of a model's outputs, an entry per row or feature."""
PredictionLoss = Literal["kl", "bce", "mse"]


class Task(ABC):
    """A task; one subclass per kind, in a file of its own."""

    kind: ClassVar[str]
    auto_class: ClassVar[str]
    """Class of transformers that has a model for the task."""
    pipeline_tag: ClassVar[str]
    """What the hub calls a model that answers the task."""
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    """Fields of the model's output that make up its logits."""
    primary_metric: str
    higher_is_better: ClassVar[bool] = True
    quality_name: ClassVar[str] = ""
    """What :meth:`row_quality` is, where a reader sees it in place of an answer."""
    prediction_loss: ClassVar[PredictionLoss]
    """How the student's predictions are compared with the teacher's."""
    has_labels: ClassVar[bool] = True
    """Whether rows carry a label; a language model makes its own."""
    several_labels: ClassVar[bool] = False
    """Whether a row has a list of labels; they may be rare outside the training rows."""
    problem_type: ClassVar[str | None] = None
    """What transformers calls the task, where one auto class has several."""
    kept_together: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    """Columns of text; rows that are equal in them stay in one split when splits are cut."""
    cased: ClassVar[bool] = False
    """Whether texts that differ in case only are different ones."""
    every_split_has_all: ClassVar[bool] = True
    """Whether validation and test need rows of each label too, not the training split alone."""
    forward_rows: ClassVar[int] = 64
    """Features of a pass without gradients; fewer where the logits of one are large."""
    latency_batch_sizes: ClassVar[tuple[int, ...]] = (1, 32)
    """Texts of the passes that are timed, unless settings say otherwise."""
    special_tokens: ClassVar[tuple[str, ...]] = ()
    """Attributes of the tokenizer that serving has to know beside :meth:`serving`, such as `eos_token`."""

    def __init__(self, settings: TaskSettings, label_names: tuple[str, ...] = ()) -> None:
        self.settings = settings
        self.label_names = label_names

    @property
    def output_labels(self) -> tuple[str, ...] | None:
        """Names of the model's outputs, as its configuration lists them; None where outputs are tokens."""
        return self.label_names

    # Labels: from a source to validated rows.

    def read_text(self, table: Dataset, name: str) -> Dataset:
        """Return the table of a source with text in a column where the task also takes something else for it."""
        return table

    @abstractmethod
    def read_labels(self, table: Dataset, place: str) -> pa.ChunkedArray:
        """Return the column `label` of a source in the type that the task uses.

        Raises:
            DataError: it holds something else; the message begins with `place`.
        """

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """Return the names of the classes: as declared, else those of the training rows; none for other tasks."""
        return ()

    @abstractmethod
    def label_numbers(self, frame: pd.DataFrame, names: Sequence[str]) -> "pd.Series[float]":
        """Return a number per row, equal for equal labels, NaN where the label is not one of the task's.

        Args:
            frame: columns `label`, `text` and, for pairs, `text_pair`.
            names: of the classes.
        """

    def right_label(self, names: Sequence[str]) -> str:
        """Return what a message says that a label must be."""
        return ", ".join(map(repr, names)) or "a finite number"

    def wrong_label(self, label: Any, text: str, names: Sequence[str]) -> str:  # noqa: ANN401 - a label of any type
        """Return what a message says of a label that is not one of the task's."""
        return f"label {label!r}"

    def too_few(self, numbers_N: FloatArray, column: Any, names: Sequence[str], least: int) -> str:  # noqa: ANN401 - a column of any type
        """Return what a split lacks to be learnt from or measured on; nothing if it will do."""
        return ""

    @abstractmethod
    def clean_labels(
        self, numbers_N: FloatArray, column: pa.ChunkedArray, names: Sequence[str]
    ) -> tuple[pa.Array, Any]:
        """Return the labels of validated rows and their type as a feature of `datasets`."""

    def strata(self, column: pa.ChunkedArray) -> Array:
        """Return a number per row; a draw of rows keeps the share of each."""
        return np.zeros(len(column), dtype=np.int64)

    # Features: what the model reads.

    @abstractmethod
    def encode(self, rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> Columns:
        """Return features of some rows: the tokenizer's inputs, `labels`, and `example`, the place of each one's row.

        Args:
            rows: columns of validated rows; without `label`, labels are `unlabelled`.
            tokenizer: of the model.
            data: gives the lengths.
        """

    def encode_training(
        self, rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, data: DataSettings
    ) -> Columns:
        """Return features of some rows to train on, where they are others than those of :meth:`encode`."""
        return self.encode(rows, tokenizer, data)

    def encode_served(self, rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> Columns:
        """Return features of some rows as serving makes them of raw text, where they are others than :meth:`encode`."""
        return self.encode(rows, tokenizer, data)

    def truncation(self, data: DataSettings) -> dict[str, Any]:
        """Return how the stored tokenizer cuts beside the length: stride and strategy of windows."""
        return {}

    @abstractmethod
    def stack_labels(self, rows: Sequence[Any], length: int) -> Tensor:
        """Return the labels of a batch whose features are padded to a length."""

    @abstractmethod
    def num_logits(self, num_rows: int, num_tokens: int, vocabulary: int) -> int:
        """Return how many numbers a model puts out for so many features and tokens in all."""

    # Losses.

    @abstractmethod
    def num_labelled(self, batch: Batch, mask_BL: Tensor) -> Tensor:
        """Return how many entries of a batch the task loss averages over."""

    @abstractmethod
    def task_loss(self, logits: Tensor, batch: Batch, mask_BL: Tensor, *, num_items: Tensor) -> Tensor:
        """Return the loss on hard labels.

        Args:
            logits: of the model or of a filter head.
            batch: of the collator.
            mask_BL: positions that count.
            num_items: entries with a label in the whole batch of an update.
        """

    @abstractmethod
    def prediction_mask(self, batch: Batch, mask_BL: Tensor) -> Tensor:
        """Return a mask of the predictions on which student and teacher are compared."""

    def prediction_logits(self, logits: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the logits of each prediction: the shape of :meth:`prediction_mask`, then the classes."""
        return logits

    @abstractmethod
    def filter_head(self, dim: int, filters: FilterSettings, model: PreTrainedModel) -> nn.Module:
        """Return a fresh stage-I head for filtered states of width `dim`: called with states and mask, it gives logits.

        Args:
            dim: width of the filtered states.
            filters: gives pooling and dropout.
            model: the frozen model.
        """

    def filter_heads(self, count: int, dim: int, filters: FilterSettings, model: PreTrainedModel) -> nn.ModuleList:
        """Return a fresh stage-I head for each of so many filters."""
        return nn.ModuleList(self.filter_head(dim, filters, model) for _ in range(count))

    # Answers and metrics.

    @abstractmethod
    def reduce(self, logits: Array, batch: Mapping[str, Array]) -> Outputs:
        """Return what of a batch's logits the answers need, an entry per feature."""

    @abstractmethod
    def join(self, reduced: Outputs, features: Dataset, rows: Dataset) -> Outputs:
        """Return what is known of each row from its features, in order."""

    @abstractmethod
    def references(self, rows: Dataset) -> Array:
        """Return the label of each row, in the form that :meth:`scores` reads."""

    @abstractmethod
    def scores(self, outputs: Outputs, references_N: Array) -> FloatArray:
        """Return an array (N, K) of numbers per row from which the primary metric follows."""

    @abstractmethod
    def primary(self, scores_NK: FloatArray) -> float:
        """Return the primary metric of some rows, fast enough for a bootstrap."""

    @abstractmethod
    def metrics(self, outputs: Outputs, references_N: Array) -> dict[str, float]:
        """Return every metric of the task by name."""

    @abstractmethod
    def predictions(self, outputs: Outputs) -> Array | None:
        """Return the answer per row in the form of a reference; None where one model's answer cannot judge another."""

    @abstractmethod
    def row_quality(self, outputs: Outputs, references_N: Array) -> FloatArray:
        """Return how good each answer is, more is better, so that single rows can be compared."""

    def named(self, references_N: Array) -> Array:
        """Return labels or answers as a reader wants to see them."""
        return references_N

    def confidences(self, outputs: Outputs) -> FloatArray | None:
        """Return how sure each answer is, where the task tells."""
        return None

    def slices(self, references_N: Array) -> dict[str, tuple[str, npt.NDArray[np.bool_]]]:
        """Return parts of a split that are also measured apart: a title and a mask of rows per name."""
        return {}

    def label_rows(self, outputs: Outputs, references_N: Array) -> list[dict[str, Any]]:
        """Return a row per label, or other part of the task, for a table of the report: its name, then figures."""
        return []

    def serving(self) -> dict[str, Any]:
        """Return what serving has to know beside the kind and the names of the labels."""
        return {}


class SequenceTask(Task):
    """A task whose model maps a text or a pair to one vector of outputs; the text is cut to the length."""

    auto_class = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    unlabelled: ClassVar[float]
    """Value of a label that is not known."""

    @property
    def num_outputs(self) -> int:
        """Number of values the model puts out for a text."""
        return len(self.output_labels or ())

    @abstractmethod
    def labelled(self, labels: Tensor) -> Tensor:
        """Return a mask of the rows whose label is known."""

    def encode(self, rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> Columns:
        """Return a feature per row."""
        encoded = dict(tokenizer(rows["text"], rows.get("text_pair"), truncation=True, max_length=data.max_length))
        count = len(encoded["input_ids"])
        return {**encoded, "labels": self.encode_labels(rows.get("label"), count), "example": list(range(count))}

    def encode_labels(self, values: list[Any] | None, count: int) -> list[Any]:
        """Return the labels of some rows as the model is trained on them."""
        return [self.unlabelled] * count if values is None else list(values)

    def stack_labels(self, rows: Sequence[Any], length: int) -> Tensor:
        """Return the labels (B) or (B, C)."""
        return torch.tensor(list(rows))

    def num_logits(self, num_rows: int, num_tokens: int, vocabulary: int) -> int:
        """Return the outputs of all features."""
        return num_rows * self.num_outputs

    def num_labelled(self, batch: Batch, mask_BL: Tensor) -> Tensor:
        """Return the number of rows whose label is known."""
        return self.labelled(batch["labels"]).sum()

    def prediction_mask(self, batch: Batch, mask_BL: Tensor) -> Tensor:
        """Return (B): every row counts."""
        return batch["attention_mask"].new_ones(len(batch["attention_mask"]))

    def filter_head(self, dim: int, filters: FilterSettings, model: PreTrainedModel) -> nn.Module:
        """Return a head that pools positions."""
        return SequenceHead(dim, self.num_outputs, pooling=filters.head_pooling, dropout=filters.head_dropout)

    def reduce(self, logits: Array, batch: Mapping[str, Array]) -> Outputs:
        """Return the logits (B, C)."""
        return {"logits": logits}

    def join(self, reduced: Outputs, features: Dataset, rows: Dataset) -> Outputs:
        """Return the logits as they are: a row has one feature."""
        return reduced

    def references(self, rows: Dataset) -> Array:
        """Return the label column."""
        return np.asarray(rows["label"][:])
