"""Task-aware layer-wise distillation."""

__version__ = "0.1.0"
