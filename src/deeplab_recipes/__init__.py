"""DeepLab trainings as recipes: a model factory, a Lightning module, a data module and the YAMLs that combine them.

Names are imported on first use, so that the command line can print its help without loading torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "build_deeplab": "deeplab_recipes.model",
    "SegmentationModule": "deeplab_recipes.module",
    "SegmentationDataModule": "deeplab_recipes.data",
    "load_predictor": "deeplab_recipes.inference",
}
__all__ = ["SegmentationDataModule", "SegmentationModule", "__version__", "build_deeplab", "load_predictor"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
