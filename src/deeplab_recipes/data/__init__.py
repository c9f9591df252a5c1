"""Data sources, transforms and loaders.

The data module is imported on first use: a check of a data set needs no torch.
"""

from typing import Any

__all__ = ["SegmentationDataModule"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from deeplab_recipes.data.module import SegmentationDataModule

    return SegmentationDataModule
