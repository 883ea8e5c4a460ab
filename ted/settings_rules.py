"""Rules between settings: what cannot act beside the others, and what does not go together.

A setting that is given and has no effect is refused: somebody believes in it.
"""

from typing import get_args

from ted.config import LANGUAGE_MODELS, OFFICIAL_VALUES, TRAININGS, MethodName, Settings, TaskKind

# What each method makes of the layers: none of them, raw teacher states, or filtered ones learned in stage I.
LAYER_METHODS: frozenset[MethodName] = frozenset({"lwd", "random_filter", "ted"})
STAGE_ONE_METHODS: frozenset[MethodName] = frozenset({"ted"})

LABELLED: frozenset[TaskKind] = frozenset(get_args(TaskKind)) - LANGUAGE_MODELS

# Settings that act on some kinds of task only.
OF_TASKS: dict[str, frozenset[TaskKind]] = {
    "task.labels": frozenset({"classification", "multi_label", "token_classification"}),
    "task.threshold": frozenset({"multi_label"}),
    "task.max_answer_tokens": frozenset({"question_answering"}),
    "task.null_threshold": frozenset({"question_answering"}),
    "task.mask_probability": frozenset({"masked_lm"}),
    "task.max_new_tokens": frozenset({"causal_lm"}),
    "data.text_pair_column": frozenset({"classification", "multi_label", "regression", "question_answering"}),
    "data.label_column": LABELLED,
    "data.label_separator": frozenset({"multi_label"}),
    "data.unlabelled": LABELLED,
    "data.labelled_rows": LABELLED,
    "data.stride": frozenset({"question_answering", "token_classification"}),
    "quality.unknown_label": LABELLED,
    "quality.conflicting_labels": LABELLED,
    "quality.min_rows_per_class": frozenset({"classification", "multi_label", "token_classification"}),
    "filters.head_pooling": frozenset({"classification", "multi_label", "regression"}),
    "filters.head_dropout": LABELLED,
    # Metrics of the library take one class or one number per row.
    "evaluation.extra_metrics": frozenset({"classification", "regression"}),
    "distillation.prediction_mse_alpha": frozenset({"regression"}),
    "distillation.batch_softmax_kl": frozenset({"regression"}),
}

# Kinds of task whose model makes a prediction per token: padded ones among them count or not.
PER_TOKEN: frozenset[TaskKind] = frozenset({"question_answering", "token_classification", "causal_lm"})

# Kinds of task that read a long text in windows. A window must hold more new tokens than special and shared ones.
WINDOWED: frozenset[TaskKind] = frozenset({"question_answering", "token_classification"})
MIN_WINDOW = 16

# Settings that act on matched layers, in stage I and on what the teacher predicts.
OF_LAYERS = (
    "mse_alpha",
    "layer_loss_units",
    "layer_reduction",
    "mask_padding",
    "student_filter_init",
    "ridge_penalty",
    "alignment_rows",
    "filter_learning_rate_multiplier",
)
OF_STAGE_ONE = ("training", "student_training", "head_pooling", "head_dropout", "backbone_dropout")
OF_PREDICTIONS = (
    "kl_alpha",
    "prediction_mse_alpha",
    "temperature",
    "batch_softmax_kl",
    "teacher_cache",
    "teacher_cache_mib",
)


def problems(settings: Settings) -> list[str]:
    """Return a line per problem, each with the dotted key and what to do."""
    found = [*_window_problems(settings)]
    if settings.task.kind == "question_answering" and settings.data.text_pair_column is None:
        found.append(
            "data.text_pair_column is missing: with task.kind question_answering it names the column of the context; "
            "in the layout of SQuAD that is context, beside data.text_column: question and data.label_column: answers"
        )
    found += [f"{key} cannot act: {reason}; remove it" for key, reason in _idle(settings) if settings.given(key)]
    if settings.filters.filter_nonlinear and settings.resolved().distillation.student_filter_init == "ridge":
        found.append(
            "distillation.student_filter_init is ridge, which aligns linear filters only; with "
            "filters.filter_nonlinear set it to stage_one or random"
        )
    given = settings.given("distillation.student_filter_init") and settings.distillation.student_filter_init
    if given == "stage_one" and settings.method in LAYER_METHODS - STAGE_ONE_METHODS:
        found.append(
            f"distillation.student_filter_init is stage_one, but method {settings.method} learns no filters there; "
            "set it to ridge or random"
        )
    found += _without_teacher(settings)
    found += _without_half_precision(settings)
    if settings.compatibility == "official":
        found += [
            f"{key} must be {value!r} with compatibility: official, not {settings.value(key)!r}; remove one of the two"
            for key, value in OFFICIAL_VALUES.items()
            if settings.given(key) and settings.value(key) != value
        ]
    return found


def _without_teacher(settings: Settings) -> list[str]:
    """Return that nothing of the teacher acts on a method that should learn from it."""
    mean_square = settings.task.kind == "regression" and not settings.resolved().distillation.batch_softmax_kl
    weights = ["prediction_mse_alpha" if mean_square else "kl_alpha"]
    if settings.method in LAYER_METHODS:
        weights.append("mse_alpha")
    if settings.method == "finetune" or any(getattr(settings.distillation, weight) > 0 for weight in weights):
        return []
    zero = " and ".join(f"distillation.{weight}" for weight in weights)
    verb, what = ("is", "it") if len(weights) == 1 else ("are", "one of them")
    return [
        f"{zero} {verb} 0, so method {settings.method} learns nothing from the teacher; raise {what}, or set finetune"
    ]


def _without_half_precision(settings: Settings) -> list[str]:
    """Return a line per setting that has a model compute in float32 with an attention that does not."""
    needed: dict[str, bool] = {}
    if settings.teacher.attn_implementation == "flash_attention_2":
        needed["teacher.dtype: bfloat16"] = settings.teacher.dtype == "bfloat16" or settings.method == "finetune"
        needed["teacher.training.bf16: true"] = settings.teacher.training.bf16 or not settings.teacher.finetune
    if settings.student.attn_implementation == "flash_attention_2":
        for name in ("student", "distillation"):
            idle = name == "student" and not settings.student.finetune
            needed[f"{name}.training.bf16: true"] = idle or getattr(settings, name).training.bf16
    return [
        f"{key.partition('.')[0].replace('distillation', 'student')}.attn_implementation is flash_attention_2, "
        f"which computes in bfloat16 only; set {key}, or take sdpa"
        for key, met in needed.items()
        if not met
    ]


def _window_problems(settings: Settings) -> list[str]:
    length, stride = settings.data.max_length, settings.data.stride
    if settings.task.kind not in WINDOWED:
        return []
    if settings.task.kind == "question_answering" and length < MIN_WINDOW:
        return [f"data.max_length is {length}, but windows with a question need {MIN_WINDOW} tokens; raise it"]
    if 2 * stride > length:
        return [
            f"data.stride is {stride}, more than half of data.max_length ({length}): windows would hardly move on; "
            f"lower it to at most {length // 2} or raise data.max_length"
        ]
    return []


def _idle(settings: Settings) -> list[tuple[str, str]]:
    """Return (dotted key, reason) of every setting that the other settings leave without effect."""
    by_input = (*_idle_by_data(settings), *_idle_by_model(settings))
    return [*_idle_by_task(settings), *_idle_by_method(settings), *by_input, *_idle_by_switch(settings)]


def _idle_by_task(settings: Settings) -> list[tuple[str, str]]:
    kind = settings.task.kind
    idle = [(key, f"task.kind is {kind}") for key, kinds in OF_TASKS.items() if kind not in kinds]
    if kind == "regression":
        batch_softmax = settings.distillation.batch_softmax_kl or settings.compatibility == "official"
        keys = ("prediction_mse_alpha",) if batch_softmax else ("kl_alpha", "temperature")
        idle += [(f"distillation.{key}", "a regression task has one output and no classes") for key in keys]
    return idle


def _idle_by_method(settings: Settings) -> list[tuple[str, str]]:
    reason = f"method {settings.method} does not use it"
    keys: list[str] = []
    if settings.method not in LAYER_METHODS:
        acts = settings.method == "kd" and settings.task.kind in PER_TOKEN
        layers = [name for name in OF_LAYERS if not (acts and name == "mask_padding")]
        keys += ["filters", *(f"distillation.{name}" for name in layers)]
    elif settings.method not in STAGE_ONE_METHODS:
        keys += [f"filters.{name}" for name in OF_STAGE_ONE]
    if settings.method == "lwd":
        keys += ["filters.filter_output_dim"]
    if settings.method == "finetune":
        keys += [f"distillation.{name}" for name in OF_PREDICTIONS]
        keys += ["data.unlabelled", "teacher.dtype"]
    return [(key, reason) for key in keys]


def _idle_by_data(settings: Settings) -> list[tuple[str, str]]:
    named = [name for name in ("validation", "test") if name in (settings.data.splits or {})]
    return [(f"data.{name}_fraction", f"data.splits names the {name} split") for name in named]


def _idle_by_model(settings: Settings) -> list[tuple[str, str]]:
    idle: list[tuple[str, str]] = []
    if not settings.teacher.finetune:
        idle.append(("teacher.training", "teacher.finetune is false"))
        if settings.student.model is not None and not settings.resolved().filters.backbone_dropout:
            idle.append(("teacher.dropout", "the teacher does not train, and student.model has its own"))
        if settings.method == "finetune":
            idle.append(("teacher.attn_implementation", "the teacher neither trains nor teaches"))
    if settings.student.num_layers is None:
        idle.append(("student.layer_choice", "student.num_layers is not given"))
    stage_one = [f"{block}.gradient_checkpointing" for block in ("filters.training", "filters.student_training")]
    idle += [(key, "a filter has no layers") for key in stage_one if settings.given(key) and settings.value(key)]
    if settings.student.model is None:
        idle.append(("student.dropout", "student.model is not given, and other students have teacher.dropout"))
    if not settings.student.finetune:
        idle.append(("student.training", "student.finetune is false"))
    return idle


def _idle_by_switch(settings: Settings) -> list[tuple[str, str]]:
    idle: list[tuple[str, str]] = []
    if settings.distillation.teacher_cache != "auto":
        idle.append(("distillation.teacher_cache_mib", "distillation.teacher_cache is not auto"))
    if not settings.distillation.mask_padding or settings.compatibility == "official":
        idle.append(("distillation.teacher_cache", "padded positions enter the layer loss, so nothing can be kept"))
    if settings.distillation.student_filter_init != "ridge" or settings.compatibility == "official":
        idle.append(("distillation.ridge_penalty", "the student's filters do not start by ridge regression"))
    learned = settings.distillation.student_filter_init == "stage_one" or settings.compatibility == "official"
    if settings.method in STAGE_ONE_METHODS and not learned:
        idle.append(("filters.student_training", "the student's filters do not start as stage I leaves them"))
    if not settings.evaluation.control and settings.gates.min_gain_over_control is not None:
        idle.append(("gates.min_gain_over_control", "evaluation.control is false"))
    if settings.filters.layer_pairs is not None:
        idle += [(f"filters.{key}", "filters.layer_pairs is given") for key in ("filter_interval", "layer_map")]
    idle += _idle_by_weight(settings)
    if settings.gates.max_slice_drop is None:
        idle.append(("gates.min_slice_rows", "gates.max_slice_drop is null"))
    if not settings.export.int8:
        keys = ("int8_max_metric_drop", "int8_max_latency_ratio", "int8_max_size_ratio")
        idle += [(f"export.{key}", "export.int8 is false") for key in keys]
    return idle


def _idle_by_weight(settings: Settings) -> list[tuple[str, str]]:
    """Return what has no effect because a weight is 0 or another setting overrides it."""
    idle: list[tuple[str, str]] = []
    options = settings.distillation
    if options.kl_alpha == 0:
        idle.append(("distillation.temperature", "distillation.kl_alpha is 0"))
    if options.mse_alpha == 0:
        keys = ("filters", *(f"distillation.{name}" for name in OF_LAYERS if name != "mse_alpha"))
        idle += [(key, "distillation.mse_alpha is 0") for key in keys]
    if not options.mask_padding or settings.compatibility == "official":
        idle.append(("distillation.teacher_cache_mib", "padded positions enter the layer loss"))
    if settings.method == "lwd" and options.student_filter_init == "ridge":
        idle.append(("filters.init_std", "the student's filters start by ridge regression"))
    idle += [
        (block, f"{block}.max_steps overrides its num_train_epochs")
        for block in TRAININGS
        if settings.given(f"{block}.num_train_epochs") and settings.value(f"{block}.max_steps") is not None
    ]
    return idle
