"""Every setting of a run, with its bounds and its only default.

A file such as ``zenml_config.yaml`` gives values under ``parameters:``; one block per section below, one scalar per
field of :class:`Settings` that is not a section. Sections are frozen, unknown keys are refused, and
:class:`Settings` refuses settings that cannot act on the run they are given for.
"""

import difflib
import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ted.errors import SettingsError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

TaskKind = Literal[
    "classification",
    "multi_label",
    "regression",
    "question_answering",
    "token_classification",
    "causal_lm",
    "masked_lm",
]
MethodName = Literal["finetune", "kd", "lwd", "random_filter", "ted"]
Compatibility = Literal["none", "official"]
Policy = Literal["stop", "exclude"]
Attention = Literal["eager", "sdpa", "flash_attention_2"]
SplitName = Literal["train", "validation", "test"]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
LayerIndex = Annotated[int, Field(ge=0, strict=True)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0, strict=True)]


class Section(BaseModel):
    """A frozen block of settings that refuses unknown keys; the string under a field is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false where they would count as 1 and 0, or stand for a word that YAML took for them."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        values = value if isinstance(value, list | tuple) else (value,)
        kinds = {annotation, *get_args(annotation)}
        if bool not in kinds and any(isinstance(item, bool) for item in values):
            remedy = "; null switches it off" if type(None) in kinds else ""
            raise PydanticCustomError(
                "truth_value",
                "true or false cannot stand here, and YAML reads on, off, yes and no without quotes as these" + remedy,
            )
        return value


class TaskSettings(Section):
    """What the model has to do."""

    kind: TaskKind = "classification"
    """Kind of task: one label out of a set, any number of them, one number, the span of a text that answers a
    question, a tag per word, or, of a language model, the next or a masked token."""
    labels: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """Names of the classes or tags, in the order of the model's outputs; a data row with another label breaks a rule.
    None takes the sorted labels of the training split. Classification, multi-label and token classification only."""
    threshold: PositiveFraction = 0.5
    """Probability above which a label belongs to the answer. Multi-label only."""
    max_answer_tokens: Count = 30
    """Tokens of the longest answer that is given. Question answering only."""
    null_threshold: float | None = 0.0
    """Most by which the score of no answer may exceed that of the best one before the answer is empty; None always
    answers. Question answering only."""
    mask_probability: PositiveFraction = 0.15
    """Share of a text's tokens that a masked language model has to guess. Masked language models only."""
    max_new_tokens: Count = 64
    """Most tokens that a served causal language model adds to a text. Causal language models only."""

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"task.labels repeats a name: {list(self.labels)}; name each class once")
        if self.labels is not None and not all(name.strip() for name in self.labels):
            raise ValueError(f"task.labels holds an empty name: {list(self.labels)}; give each class a name")
        return self


class DataSettings(Section):
    """Where the rows come from and which of them are used."""

    source: Annotated[str, Field(min_length=1)] = "examples/movie_sentiment/data"
    """A CSV, JSONL or Parquet file, a folder of them (one per split, or all of one split), or a hub data set id."""
    revision: str | None = None
    """Commit or tag of a hub data set; None takes the newest. Hub sources only."""
    config_name: Annotated[str, Field(min_length=1)] | None = None
    """Configuration of a hub data set that has several, such as one task of a benchmark. Hub sources only."""
    splits: dict[SplitName, str] | None = None
    """Which split of a hub data set is `train`, `validation` and `test`; the splits that are not named are left out.
    None takes them by their names. Hub sources only."""
    text_column: str = "text"
    """Column that holds the text; for token classification, text or lists of words."""
    text_pair_column: str | None = None
    """Column that holds the second text of a pair, or the context of a question; None for single texts."""
    label_column: str = "label"
    """Column that holds the class name, class number or target number; of several labels, a list or a text; the
    answers of a question; the list of a text's tags."""
    label_separator: Annotated[str, Field(min_length=1)] = "|"
    """What stands between the labels where the label column holds text, as in CSV. Multi-label only."""
    unlabelled: str | None = None
    """Source of text without labels, in the same forms as `source`; the teacher labels it during distillation."""
    train_rows: Count | None = None
    """Training rows to use, drawn with the seed, of a classification stratified by class; None uses all."""
    labelled_rows: Count | None = None
    """Training rows that keep their label; the other training rows become unlabelled text. None keeps all labels."""
    validation_fraction: PositiveFraction = 0.1
    """Share of the rows cut off as validation split where the source has none."""
    test_fraction: PositiveFraction = 0.1
    """Share of the rows cut off as test split where the source has none."""
    max_length: Annotated[int, Field(ge=8, le=8192)] = 128
    """Tokens a text is cut to, special tokens included; where long texts have windows, the tokens of a window."""
    stride: Annotated[int, Field(ge=0)] = 64
    """Tokens that neighbouring windows of a long text share. Question answering and token classification only."""
    group_by_length: bool = True
    """Batch training texts of similar length together."""

    @model_validator(mode="after")
    def _splits_are_apart(self) -> Self:
        if self.splits is not None and "train" not in self.splits:
            raise ValueError("data.splits names no train; say which split has the training rows")
        if self.splits is not None and len(set(self.splits.values())) < len(self.splits):
            raise ValueError(
                f"data.splits names a split twice: {self.splits}; a split that is left out is cut from train"
            )
        return self

    @model_validator(mode="after")
    def _splits_leave_rows(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError("data.validation_fraction and data.test_fraction leave no training rows; lower one")
        if self.train_rows is not None and self.labelled_rows is not None and self.labelled_rows > self.train_rows:
            raise ValueError("data.labelled_rows is larger than data.train_rows; lower it")
        return self


class QualitySettings(Section):
    """What makes a row or a split unfit, and whether that ends the run (`stop`) or drops the rows (`exclude`)."""

    missing: Policy = "exclude"
    """Policy for rows whose text or label is null."""
    empty_text: Policy = "exclude"
    """Policy for rows whose text holds nothing but white space."""
    broken_text: Policy = "exclude"
    """Policy for rows with U+FFFD or control characters other than tabs, line and page breaks."""
    text_length: Policy = "exclude"
    """Policy for rows whose text is shorter or longer than the bounds below."""
    unknown_label: Policy = "stop"
    """Policy for rows whose label is outside the declared classes, is not a finite number or not a tag per word, or
    names an answer that does not stand where it says."""
    duplicates: Policy = "exclude"
    """Policy for rows that repeat text and label of an earlier row of the split; the first row stays."""
    conflicting_labels: Policy = "exclude"
    """Policy for rows whose text also stands in the split with another label; all of them go."""
    leakage: Policy = "exclude"
    """Policy for training, unlabelled and validation rows whose text also stands in a later split (test last)."""
    min_characters: Count = 1
    """Fewest characters of a text."""
    max_characters: Count = 100_000
    """Most characters of a text. A served text is cut there too, or refused where long texts are read in windows."""
    min_rows_per_class: Count = 5
    """Fewest rows of each class in each split, after exclusion; fewer end the run. Of several labels, of types of
    entities and of tags, only the training rows are counted. Tasks with classes or tags only."""
    max_excluded_fraction: Fraction = 0.05
    """Share of a split's rows that may be excluded; more end the run."""

    @model_validator(mode="after")
    def _length_bounds(self) -> Self:
        if self.min_characters > self.max_characters:
            raise ValueError("quality.min_characters is above quality.max_characters; no text could pass")
        return self


class TrainingSettings(Section):
    """One training loop; the names are those of `transformers.TrainingArguments`."""

    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    """Peak step size of AdamW."""
    num_train_epochs: Positive
    """Passes over the training rows."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser updates; overrides the epochs. None trains for the epochs."""
    per_device_train_batch_size: Count = 16
    """Rows per forward pass."""
    gradient_accumulation_steps: Count = 1
    """Forward passes per optimiser update."""
    warmup_steps: NonNegative = 0.1
    """Updates over which the step size grows from zero; below 1, their share of all updates."""
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Course of the step size after the warm-up."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of AdamW."""
    adam_beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay of AdamW's first moment."""
    adam_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay of AdamW's second moment."""
    adam_epsilon: Positive = 1e-8
    """Term added to AdamW's denominator."""
    max_grad_norm: NonNegative = 1.0
    """Norm the gradient is clipped to; 0 does not clip."""
    checkpoint_steps: Count = 100
    """Updates between checkpoints; a killed run goes on from the last one."""
    bf16: bool = False
    """Compute in bfloat16 where autocast allows."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and compute the rest again for the gradient: less memory, more time."""


class TeacherTraining(TrainingSettings):
    """Fine-tuning of the teacher."""

    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 5e-5
    """Peak step size of AdamW."""
    num_train_epochs: Positive = 3.0
    """Passes over the training rows."""


class StudentTraining(TrainingSettings):
    """Fine-tuning of the student before distillation."""

    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-4
    """Peak step size of AdamW."""
    num_train_epochs: Positive = 3.0
    """Passes over the training rows."""


class FilterTraining(TrainingSettings):
    """Stage I."""

    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-3
    """Peak step size of AdamW."""
    num_train_epochs: Positive = 3.0
    """Passes over the training rows."""


class DistillationTraining(TrainingSettings):
    """Stage II."""

    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-4
    """Peak step size of AdamW."""
    num_train_epochs: Positive = 4.0
    """Passes over the training rows."""


class TeacherSettings(Section):
    """The large model."""

    model: Annotated[str, Field(min_length=1)] = "sentence-transformers/all-MiniLM-L6-v2"
    """Hub id or local folder of the pre-trained (or already fine-tuned) model."""
    revision: str | None = None
    """Commit or tag of a hub model; None takes the newest. Hub models only."""
    finetune: bool = True
    """Fine-tune the model on the labelled rows; false takes it as it is."""
    attn_implementation: Attention | None = None
    """Implementation of attention while the teacher trains and teaches; None takes what its class prefers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights of the frozen teacher in stages I and II; fine-tuning and evaluation use float32."""
    dropout: Annotated[dict[str, Probability], Field(min_length=1)] | None = None
    """Dropout by its name in the model's configuration, such as `hidden_dropout_prob`; what is not named stays."""
    training: TeacherTraining = TeacherTraining()
    """How the teacher is fine-tuned."""


class StudentSettings(Section):
    """The small model."""

    model: str | None = None
    """Hub id or local folder of a small pre-trained model; None builds the student from teacher layers."""
    layers: Annotated[tuple[LayerIndex, ...], Field(min_length=1)] | None = None
    """Layers of the pre-trained teacher that make up the student (0-based, rising); None takes every second one."""
    num_layers: Count | None = None
    """Number of teacher layers that make up the student, instead of their names in `layers`."""
    layer_choice: Literal["evenly", "first", "last"] = "evenly"
    """Which `num_layers` layers are taken: spread evenly from the first on, the first or the last ones."""
    config: Annotated[dict[str, JsonValue], Field(min_length=1)] | None = None
    """Values of the teacher's configuration to change; the student then starts with random weights from the seed."""
    attn_implementation: Attention | None = None
    """Implementation of attention while the student trains; None takes what its class prefers."""
    dropout: Annotated[dict[str, Probability], Field(min_length=1)] | None = None
    """As `teacher.dropout`, for `student.model`; a student made from the teacher has the teacher's dropout."""
    finetune: bool = True
    """Fine-tune the student before distillation; false starts from it as it was built or loaded."""
    training: StudentTraining = StudentTraining()
    """How the student is fine-tuned before distillation."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        origins = [name for name in ("model", "config", "layers", "num_layers") if getattr(self, name) is not None]
        if len(origins) > 1:
            raise ValueError(f"student.{origins[1]} cannot act beside student.{origins[0]}; remove one of the two")
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"student.layers must rise without repeats, not {list(self.layers)}")
        return self


class FilterSettings(Section):
    """Task-aware filters and stage I."""

    filter_output_dim: Count | None = None
    """Width of the filtered states; None takes the teacher's hidden size."""
    filter_nonlinear: bool = False
    """Linear, GELU, Linear instead of one affine map."""
    filter_interval: Count = 1
    """Match the last of every so many student layers."""
    layer_pairs: Annotated[tuple[tuple[LayerIndex, LayerIndex], ...], Field(min_length=1)] | None = None
    """Pairs (student layer, teacher layer), 0-based; None derives them from `filter_interval` and `layer_map`."""
    layer_map: Literal["last_of_group", "first_then_last", "all_to_one"] = "last_of_group"
    """Which layer of each group of teacher layers is matched; `first_then_last` is the older published rule, and
    `all_to_one` matches every one of these student layers to the teacher's last layer."""
    match_embeddings: bool = False
    """Also match the two models' embeddings, as a pair before all others."""
    head_pooling: Literal["mean", "first_token", "last_token"] = "mean"
    """How a stage-I head reads a sequence of filtered states; to a causal model's first token no other is known."""
    backbone_dropout: bool = False
    """Leave the frozen backbone's dropout on during stage I."""
    head_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Dropout in a stage-I head."""
    init_std: Positive = 0.02
    """Standard deviation of a new filter's weights."""
    training: FilterTraining = FilterTraining()
    """How the filters are trained in stage I."""
    student_training: FilterTraining | None = None
    """How the student's filters are trained in stage I; None trains them like the teacher's."""

    def training_of(self, side: Literal["teacher", "student"]) -> FilterTraining:
        """Return how one side's filters are trained in stage I."""
        return self.student_training if side == "student" and self.student_training is not None else self.training


class DistillationSettings(Section):
    """Stage II: `task + kl_alpha * T^2 * KL + mse_alpha * layer loss`."""

    kl_alpha: NonNegative = 5.0
    """Weight of the divergence between teacher and student predictions. Not for regression."""
    prediction_mse_alpha: NonNegative = 1.0
    """Weight of the squared difference between teacher and student predictions. Regression only."""
    mse_alpha: NonNegative = 10.0
    """Weight of the layer loss."""
    temperature: Positive = 2.0
    """Temperature of the softmax, or of the sigmoid of each label, in the prediction loss. Not for regression."""
    layer_loss_units: Literal["variance", "raw"] = "variance"
    """Divide each layer's squared error by the variance of its target, or leave it as it is."""
    layer_reduction: Literal["mean", "sum"] = "mean"
    """How the layers' losses are joined."""
    mask_padding: bool = True
    """Leave padded positions out of the layer loss, and out of predictions that a model makes per token."""
    student_filter_init: Literal["ridge", "stage_one", "random"] = "ridge"
    """Start the student's filters by ridge regression on the teacher's, as stage I left them, or at random."""
    ridge_penalty: Positive = 1e-3
    """Ridge penalty relative to the mean variance of the student's states."""
    alignment_rows: Count = 10_000
    """Most training rows that the alignment and the variances of the targets are measured on."""
    filter_learning_rate_multiplier: Positive = 1.0
    """Step size of the student's filters relative to the student's."""
    batch_softmax_kl: bool = False
    """On a one-output task, use the published code's divergence over the rows of a batch."""
    teacher_cache: Literal["auto", "on", "off"] = "auto"
    """Keep the teacher's outputs after computing them once; `auto` does so where they fit."""
    teacher_cache_mib: Count = 4096
    """Disk that `auto` may use for the teacher's outputs, in MiB."""
    training: DistillationTraining = DistillationTraining()
    """How the student is trained in stage II."""


class EvaluationSettings(Section):
    """How models are measured on the test split."""

    batch_size: Count | None = None
    """Texts of a forward pass; None takes 64, or 4 of a language model, whose answers are large."""
    control: bool = True
    """Also train the student start on for the same steps without a teacher, as the control that gates compare with."""
    latency_batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Batch sizes at which latency is measured; None takes 1 and 32, or 1 and 4 of a language model."""
    latency_repeats: Annotated[int, Field(ge=3)] = 15
    """Timed passes per batch size and model; the median counts."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 1000
    """Resamples of the paired bootstrap."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence of the bootstrap intervals."""
    extra_metrics: tuple[str, ...] = ()
    """Further metrics to report, each a path or hub id that `evaluate.load` takes; loading one runs its code.
    Classification and regression only."""


class GateSettings(Section):
    """Rules a student must pass before it is exported and promoted; None switches a rule off."""

    min_teacher_share: Fraction | None = 0.9
    """Least share of the teacher's primary metric; where less is better, the teacher's share of the student's."""
    min_gain_over_start: float | None = 0.0
    """Gain in the primary metric over the student start that the student must exceed."""
    min_gain_over_control: float | None = 0.0
    """Gain in the primary metric over the start trained on without a teacher that the student must exceed."""
    champion_tolerance: NonNegative | None = 0.01
    """Most by which the primary metric may lie below the champion's; a paired bootstrap tells how sure that is."""
    max_slice_drop: NonNegative | None = 0.1
    """Most by which any slice may lie below the same slice of the student start."""
    min_slice_rows: Count = 50
    """Slices with fewer rows are reported but not judged."""
    max_latency_ratio: Positive | None = 0.9
    """Most of the teacher's latency at the largest measured batch."""
    max_size_ratio: Positive | None = 0.9
    """Most of the teacher's file size."""


class ExportSettings(Section):
    """The ONNX bundle."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")] = "ted-student"
    """Name of the bundle, and of the model for Open Inference Protocol clients."""
    opset: Annotated[int, Field(ge=18, le=20)] = 20
    """ONNX operator set."""
    atol: Positive = 1e-4
    """Absolute tolerance of parity with the trained model."""
    rtol: Positive = 1e-3
    """Relative tolerance of parity with the trained model."""
    int8: bool = True
    """Also build an 8-bit model and keep it if it passes the bounds below."""
    int8_max_metric_drop: NonNegative = 0.01
    """Most the 8-bit model may lose in the primary metric on the validation split. Gates judge the 32-bit model."""
    int8_max_latency_ratio: Positive = 1.0
    """Most of the 32-bit model's latency."""
    int8_max_size_ratio: Positive = 0.5
    """Most of the 32-bit model's file size."""


class PromotionSettings(Section):
    """What happens to a model version whose gates pass."""

    model_stage: Literal["staging", "production"] = "staging"
    """Model stage that the version is put into."""


class RunSettings(Section):
    """Where a run leaves its files, and which of its steps compute on a GPU."""

    output_dir: Annotated[str, Field(min_length=1)] = "runs"
    """Folder for reports, bundles, checkpoints and kept teacher outputs."""
    gpu_steps: tuple[str, ...] | None = None
    """Steps whose pods get the GPU that the pods of a Kubernetes stack ask for; None gives one to each step."""


class ReportSettings(Section):
    """What the report of a run says beside its results."""

    price_per_hour: NonNegative | None = None
    """Price of an hour of the machine, in any currency, for the report's cost per step; None shows times only."""


# Language models make their own labels and read one text.
LANGUAGE_MODELS: frozenset[TaskKind] = frozenset({"causal_lm", "masked_lm"})

# The blocks that hold a training.
TRAININGS = (
    "teacher.training",
    "student.training",
    "filters.training",
    "filters.student_training",
    "distillation.training",
)

# Settings that give the arithmetic of the published code at commit 1cd33d0, in every training and elsewhere.
OFFICIAL_TRAINING: dict[str, Any] = {"max_grad_norm": 0.0, "weight_decay": 0.0, "lr_scheduler_type": "linear"}
OFFICIAL_VALUES: dict[str, Any] = {
    "filters.head_pooling": "first_token",
    "filters.backbone_dropout": True,
    "filters.init_std": 0.02,
    "filters.layer_map": "last_of_group",
    "filters.match_embeddings": False,
    "distillation.temperature": 2.0,
    "distillation.layer_loss_units": "raw",
    "distillation.layer_reduction": "mean",
    "distillation.mask_padding": False,
    "distillation.student_filter_init": "stage_one",
    "distillation.filter_learning_rate_multiplier": 1.0,
    "distillation.batch_softmax_kl": True,
    "data.group_by_length": False,
    **{f"{block}.{name}": value for block in TRAININGS for name, value in OFFICIAL_TRAINING.items()},
}


class Settings(Section):
    """All settings of a run."""

    method: MethodName = "ted"
    """How the student learns from the teacher."""
    compatibility: Compatibility = "none"
    """`official` switches to the arithmetic of the published code."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    """Seed of sampling, initialisation, dropout and order."""
    task: TaskSettings = TaskSettings()
    """What the model has to do."""
    data: DataSettings = DataSettings()
    """Where the rows come from."""
    quality: QualitySettings = QualitySettings()
    """What makes a row unfit."""
    teacher: TeacherSettings = TeacherSettings()
    """The large model."""
    student: StudentSettings = StudentSettings()
    """The small model."""
    filters: FilterSettings = FilterSettings()
    """Task-aware filters and stage I."""
    distillation: DistillationSettings = DistillationSettings()
    """Stage II."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How models are measured."""
    gates: GateSettings = GateSettings()
    """Rules a student must pass."""
    export: ExportSettings = ExportSettings()
    """The ONNX bundle."""
    promotion: PromotionSettings = PromotionSettings()
    """What happens to a version that passes."""
    run: RunSettings = RunSettings()
    """Where a run leaves its files, and which of its steps compute on a GPU."""
    report: ReportSettings = ReportSettings()
    """What the report says beside the results."""

    def check(self) -> None:
        """Refuse settings that were given but cannot act beside the others.

        Raises:
            SettingsError: a line per problem with the dotted key.
        """
        from ted.settings_rules import problems

        if found := problems(self):
            raise SettingsError("\n".join(found))

    def value(self, key: str) -> Any:  # noqa: ANN401 - a setting may have any type
        """Return the setting at a dotted key."""
        return functools.reduce(getattr, key.split("."), self)

    def given(self, key: str) -> bool:
        """Return whether the block or setting at a dotted key was given, or has its default."""
        block: Any = self
        for name in key.split("."):
            if block is None or name not in block.model_fields_set:
                return False
            block = getattr(block, name)
        return True

    def resolved(self) -> "Settings":
        """Return the settings that a run acts on: with `compatibility: official`, the published values filled in."""
        if self.compatibility == "none":
            return self
        return functools.reduce(_with_value, OFFICIAL_VALUES.items(), self)


Block = TypeVar("Block", bound=Section)


def _with_value(block: Block, item: tuple[str, Any]) -> Block:
    """Return a copy in which the setting at a dotted key has a value; a block that is not given stays so."""
    key, value = item
    name, _, rest = key.partition(".")
    inner = getattr(block, name)
    if rest and inner is None:
        return block
    return block.model_copy(update={name: _with_value(inner, (rest, value)) if rest else value})


def parse_settings(values: Mapping[str, Any]) -> Settings:
    """Return the settings that a mapping of sections gives.

    Raises:
        SettingsError: a line per problem, each with the dotted key, what is allowed and the nearest name.
    """
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        # A value that is refused is also left out of its list, which then is said to be too short.
        inner = {problem["loc"][:end] for problem in problems for end in range(len(problem["loc"]))}
        raise SettingsError("\n".join(_explain(item) for item in problems if item["loc"] not in inner)) from None
    settings.check()
    return settings


def _explain(problem: "ErrorDetails") -> str:
    # The name of a mapping's entry that is not one of those allowed is followed by a mark.
    path = [str(part) for part in problem["loc"] if part != "[key]"]
    key = ".".join(path)
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] != "extra_forbidden":
        return f"{key}: {problem['msg']}; got {problem['input']!r}{_advice(problem)}"
    allowed = sorted(_fields_at(path[:-1]))
    near = difflib.get_close_matches(path[-1], allowed, n=1)
    hint = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"allowed: {', '.join(allowed)}"
    return f"{key}: unknown setting; {hint}"


def _advice(problem: "ErrorDetails") -> str:
    """Return what was probably meant by a value that is refused, where that can be told."""
    given = problem["input"]
    if problem["type"] == "string_type" and isinstance(given, int | float):
        return ", which is what YAML reads without quotes; quote it"
    if problem["type"] == "literal_error":
        allowed = re.findall("'([^']+)'", problem["ctx"]["expected"])
        if near := difflib.get_close_matches(str(given), allowed, n=1):
            return f"; did you mean {near[0]}?"
    return ""


def _fields_at(path: list[str]) -> list[str]:
    """Return the field names of the section at a path that validation has already walked."""
    section: type[BaseModel] = Settings
    for name in path:
        annotation = section.model_fields[name].annotation
        # A block that may be left out is one of two types.
        section = next(kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields"))
    return list(section.model_fields)
