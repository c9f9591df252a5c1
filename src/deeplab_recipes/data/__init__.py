"""Data sources, transforms and loaders. Names are imported on first use: a download needs no torch."""

from importlib import import_module
from typing import Any

__all__ = ["SegmentationDataModule"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("deeplab_recipes.data.module"), name)
