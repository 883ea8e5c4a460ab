"""A forecast counts what a run would do, is kept beside it, and is made anew when anything it read has changed."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.tiny import new_settings, write_backbone
from ted import forecast as module
from ted.config import Settings
from ted.errors import DataError, ModelError
from ted.forecast import forecast
from ted.models.frozen import store_bytes
from ted.models.loading import find_model, load_config


def changed(settings: Settings, section: str, **values: Any) -> Settings:
    """Return settings with values of a section changed."""
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    write_backbone(tmp_path / "backbone")
    rows = [{"text": f"a film {'good' if row % 2 else 'bad'} {row}", "label": str(row % 2)} for row in range(60)]
    for name, part in {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}.items():
        (tmp_path / "table").mkdir(exist_ok=True)
        lines = "\n".join(json.dumps(row) for row in part)
        (tmp_path / "table" / f"{name}.jsonl").write_text(lines)
    data = {"source": str(tmp_path / "table"), "max_length": 32, "labelled_rows": 16}
    return new_settings(tmp_path, data=data)


def test_rows_updates_and_sizes_are_counted(settings: Settings) -> None:
    result = forecast(settings)
    assert (result.labelled_rows, result.unlabelled_rows) == (16, 24)
    stages = {stage.step: stage for stage in result.stages}
    training = settings.distillation.training
    expected = training.max_steps or -(-40 // training.per_device_train_batch_size) * int(training.num_train_epochs)
    assert stages["distill_student"].updates == stages["finetune_control"].updates == expected
    assert result.student_parameters < result.teacher_parameters
    assert result.memory_mib >= module.LIBRARIES_MIB
    assert result.seconds is not None
    assert result.seconds > 0


def stages_of(settings: Settings) -> dict[str, module.StageForecast]:
    return {stage.step: stage for stage in forecast(settings).stages}


def test_each_side_that_learns_its_filters_has_a_step(settings: Settings) -> None:
    assert "learn_student_filters" not in stages_of(settings)
    both = changed(settings, "distillation", student_filter_init="stage_one")
    found = stages_of(both)
    for side in ("teacher", "student"):
        assert found[f"learn_{side}_filters"].updates == settings.filters.training.max_steps
        assert found[f"learn_{side}_filters"].seconds


def test_a_method_without_teacher_does_not_pay_for_it(settings: Settings) -> None:
    alone = Settings.model_validate({**settings.model_dump(), "method": "finetune"})
    found = stages_of(alone)
    assert "learn_teacher_filters" not in found
    assert found["distill_student"].memory_mib == found["finetune_control"].memory_mib


def test_a_larger_batch_takes_memory_that_gradient_checkpointing_gives_back(settings: Settings) -> None:
    training = settings.distillation.training
    wide = training.model_copy(update={"per_device_train_batch_size": 4096})
    spare = wide.model_copy(update={"gradient_checkpointing": True})
    sizes = [
        stages_of(changed(settings, "distillation", training=each))["distill_student"].memory_mib
        for each in (training, spare, wide)
    ]
    assert sizes == sorted(set(sizes))


def test_a_step_that_does_not_train_takes_no_time(settings: Settings) -> None:
    found = stages_of(changed(settings, "teacher", finetune=False))["finetune_teacher"]
    assert (found.updates, found.seconds) == (0, 0.0)


def test_a_model_that_is_too_large_to_be_tried_has_no_time(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_TIMED", 1)
    result = forecast(settings)
    assert result.seconds is None
    assert {stage.step: stage.seconds for stage in result.stages}["export_onnx"] == module.EXPORT_SECONDS
    assert {stage.step: stage.seconds for stage in result.stages}["distill_student"] is None


def test_a_forecast_is_kept(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    first = forecast(settings)
    monkeypatch.setattr(module, "_forecast", None)
    assert forecast(settings) == first


def test_changed_data_are_read_again(settings: Settings) -> None:
    forecast(settings)
    path = Path(settings.data.source) / "train.jsonl"
    path.write_text(path.read_text() + "\n" + json.dumps({"text": "one more", "label": "1"}))
    assert forecast(settings).unlabelled_rows == 25


def test_nothing_is_kept_where_padding_counts(settings: Settings) -> None:
    assert forecast(settings).keeps_teacher_outputs
    options = settings.distillation.model_copy(update={"mask_padding": False})
    assert not forecast(settings.model_copy(update={"distillation": options})).keeps_teacher_outputs


def test_the_table_names_every_step(settings: Settings) -> None:
    result = forecast(settings)
    screen = io.StringIO()
    Console(file=screen, width=120).print(result.table())
    assert all(stage.step in screen.getvalue() for stage in result.stages)


def test_the_table_remarks_a_student_that_is_no_smaller(settings: Settings) -> None:
    assert "no smaller" not in str(forecast(settings).table().caption)
    assert "M, which is no smaller;" in str(forecast(changed(settings, "student", num_layers=4)).table().caption)


def test_what_a_run_would_refuse_is_refused(settings: Settings) -> None:
    data = settings.data.model_copy(update={"source": "nowhere.csv"})
    with pytest.raises(DataError, match="no such file"):
        forecast(settings.model_copy(update={"data": data}))
    data = settings.data.model_copy(update={"max_length": 4096})
    with pytest.raises(ModelError, match=r"data\.max_length is 4096"):
        forecast(settings.model_copy(update={"data": data}))


def test_a_shape_that_makes_no_model_is_named(settings: Settings) -> None:
    with pytest.raises(ModelError, match=r"the student of student\.config makes no model: .*30.*; change its c"):
        forecast(changed(settings, "student", config={"hidden_size": 30, "num_attention_heads": 4}))
    with pytest.raises(ModelError, match=r"the student of student\.config makes no model: .*; change its config"):
        forecast(changed(settings, "student", config={"num_attention_heads": 0}))


def test_kept_bytes_count_states_and_logits(settings: Settings) -> None:
    width = load_config(find_model(settings.teacher.model)).hidden_size
    assert store_bytes(20, 100, 3, width) == 4 * (10 * 2 + 100 * 3 * width)
