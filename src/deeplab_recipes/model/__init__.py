"""DeepLab models: backbones, heads and the factory that joins them."""

from deeplab_recipes.model.factory import DeepLab, build_deeplab

__all__ = ["DeepLab", "build_deeplab"]
