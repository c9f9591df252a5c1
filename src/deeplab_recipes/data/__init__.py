"""Data sources, transforms and loaders."""

from deeplab_recipes.data.module import SegmentationDataModule

__all__ = ["SegmentationDataModule"]
