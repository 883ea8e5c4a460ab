"""From a source of labelled text to a verified student with a version: the order of the steps."""

from pipelines.configured import configured_pipeline
from steps._folders import outside_digest
from steps._settings import part
from steps.build_report import build_report
from steps.check_gates import check_gates
from steps.distill_student import distill_student
from steps.evaluate_models import evaluate_models
from steps.export_onnx import export_onnx
from steps.finetune_control import finetune_control
from steps.finetune_teacher import finetune_teacher
from steps.learn_student_filters import learn_student_filters
from steps.learn_teacher_filters import learn_teacher_filters
from steps.load_data import load_data
from steps.prepare_student import prepare_student
from steps.promote_model import promote_model
from steps.validate_data import validate_data
from ted.config import (
    Compatibility,
    DataSettings,
    DistillationSettings,
    EvaluationSettings,
    ExportSettings,
    FilterSettings,
    GateSettings,
    MethodName,
    PromotionSettings,
    QualitySettings,
    ReportSettings,
    RunSettings,
    Settings,
    StudentSettings,
    TaskSettings,
    TeacherSettings,
)


@configured_pipeline
def ted_pipeline(  # noqa: PLR0913, PLR0917 - one argument per section of the configuration file
    method: MethodName,
    compatibility: Compatibility,
    seed: int,
    task: TaskSettings,
    data: DataSettings,
    quality: QualitySettings,
    teacher: TeacherSettings,
    student: StudentSettings,
    filters: FilterSettings,
    distillation: DistillationSettings,
    evaluation: EvaluationSettings,
    gates: GateSettings,
    export: ExportSettings,
    promotion: PromotionSettings,
    run: RunSettings,
    report: ReportSettings,
) -> None:
    """Distil a fine-tuned teacher into a small student, judge it, export it and give it a version.

    Each step gets the sections that it uses, so that it is not run again when others change.
    """
    s = Settings(
        method=method,
        compatibility=compatibility,
        seed=seed,
        task=task,
        data=data,
        quality=quality,
        teacher=teacher,
        student=student,
        filters=filters,
        distillation=distillation,
        evaluation=evaluation,
        gates=gates,
        export=export,
        promotion=promotion,
        run=run,
        report=report,
    ).resolved()

    raw = load_data(part(s, "data", "task"), outside_digest(data.source, data.unlabelled))
    rows, _, findings = validate_data(part(s, "data", "quality", "task"), raw)

    learning = ("data", "task", "run")
    big, big_metrics = finetune_teacher(part(s, *learning, "teacher"), rows, outside_digest(teacher.model))
    start, start_metrics = prepare_student(
        part(s, *learning, "teacher", "student"), rows, outside_digest(teacher.model, student.model)
    )
    matching = (*learning, "method", "teacher", "student", "filters", "distillation")
    big_filters, big_filter_metrics = learn_teacher_filters(part(s, *matching), rows, big)
    small_filters, small_filter_metrics = learn_student_filters(part(s, *matching), rows, start)
    small, small_metrics = distill_student(
        part(s, *matching, "compatibility"), rows, big, big_filters, start, small_filters
    )
    control, control_metrics = None, []
    if evaluation.control:
        control, metrics = finetune_control(part(s, *learning, "student", "distillation"), rows, start)
        control_metrics = [metrics]

    measured, figures = evaluate_models(
        part(s, "data", "task", "evaluation", "export"), rows, big, start, control, small
    )
    judged = check_gates(part(s, "gates"), figures)
    bundle, manifest = export_onnx(part(s, "data", "quality", "task", "evaluation", "export"), rows, small, judged)
    page = build_report(
        part(s, *Settings.model_fields),
        findings,
        [big_metrics, start_metrics, big_filter_metrics, small_filter_metrics, *control_metrics, small_metrics],
        measured,
        judged,
        manifest,
    )
    # Last, so that a run that fails has promoted nothing.
    promote_model(
        part(s, "export", "promotion"), manifest, rows, big, big_filters, small, small_filters, bundle, after=page
    )
