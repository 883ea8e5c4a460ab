"""What a run tells people: an HTML page and a model card."""

from ted.report.html import ReportInputs, build_report
from ted.report.model_card import render

__all__ = ["ReportInputs", "build_report", "render"]
