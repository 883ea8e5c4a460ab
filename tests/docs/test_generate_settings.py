import sys
from pathlib import Path

import pytest

from docs import generate_settings
from ted.config import OFFICIAL_VALUES, Settings


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "settings.md"
    monkeypatch.setattr(generate_settings, "PAGE", path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["generate_settings", *arguments])
    return generate_settings.main()


def test_every_setting_stands_once_in_the_page() -> None:
    page = generate_settings.page()
    for name, field in Settings.model_fields.items():
        fields = getattr(field.annotation, "model_fields", None)
        for key in [f"{name}.{inner}" for inner in fields] if fields else [name]:
            assert page.count(f"\n| `{key}` | ") == 1 + (key in OFFICIAL_VALUES), key


@pytest.mark.parametrize(
    "row",
    [
        "| `task.labels` | list of (text), 2 or more, or `null` | `null` | ",
        "| `data.max_length` | whole number, at least 8, at most 8192 | `128` | ",
        "| `learning_rate` | number, above 0, at most 1 | `0.00005` | `0.0001` | `0.001` | `0.0001` | ",
        "| `export.name` | text, like `^[a-z0-9][a-z0-9_-]*$` | `ted-student` | ",
        "| `data.label_separator` | text, not empty | `\\|` | ",
        "| `teacher.finetune` | true or false | `true` | ",
        "| `distillation.training` | a block | see [training](#training) | ",
        "| `filters.backbone_dropout` | `true` |\n",
        "| `filters.student_training` | a block as in [training](#training), or `null` | `null` | ",
        "| `teacher.dropout` | block of values, 1 or more, or `null` | `null` | ",
    ],
)
def test_rows_say_type_bounds_and_value(row: str) -> None:
    assert row in generate_settings.page()


def test_check_fails_until_the_page_is_written(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page.write_text("# Settings\n")
    assert run(monkeypatch, "--check") == 1
    assert "out of date; run python -m docs.generate_settings" in capsys.readouterr().err
    assert run(monkeypatch) == 0
    assert run(monkeypatch, "--check") == 0
