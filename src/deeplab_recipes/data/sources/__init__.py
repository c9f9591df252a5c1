"""Data sets on disk."""

from deeplab_recipes.data.sources.ade20k import ADE20k
from deeplab_recipes.data.sources.camvid import CamVid
from deeplab_recipes.data.sources.drawn import DrawnScenes

__all__ = ["ADE20k", "CamVid", "DrawnScenes"]
