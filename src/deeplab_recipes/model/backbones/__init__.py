"""The backbones by name."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from deeplab_recipes.model.backbones.base import Backbone, Features
from deeplab_recipes.model.backbones.mobilenet import MobileNetV2Backbone
from deeplab_recipes.model.backbones.resnet import ResNetBackbone
from deeplab_recipes.model.backbones.xception import XceptionBackbone
from deeplab_recipes.model.choices import acting, choose
from deeplab_recipes.model.layers import ease_atrous_depthwise

__all__ = ["BACKBONES", "OPTIONS", "OUTPUT_STRIDES", "XCEPTIONS", "Backbone", "Features", "build_backbone"]

OUTPUT_STRIDES = (8, 16, 32)
BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet18": partial(ResNetBackbone, "resnet18"),
    "resnet34": partial(ResNetBackbone, "resnet34"),
    "resnet50": partial(ResNetBackbone, "resnet50"),
    "resnet101": partial(ResNetBackbone, "resnet101"),
    "resnet50_v1c": partial(ResNetBackbone, "resnet50", deep_stem=True),
    "resnet101_v1c": partial(ResNetBackbone, "resnet101", deep_stem=True),
    "mobilenet_v2": MobileNetV2Backbone,
    "xception41": partial(XceptionBackbone, "xception41"),
    "xception65": partial(XceptionBackbone, "xception65"),
    "xception71": partial(XceptionBackbone, "xception71"),
}
XCEPTIONS = ("xception41", "xception65", "xception71")
# What only some backbones have: the value that stands for none, and which have it.
OPTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "width_multiplier": (1.0, ("mobilenet_v2",)),
    "width_divisor": (8, ("mobilenet_v2",)),
    "padding": ("symmetric", ("mobilenet_v2", *XCEPTIONS)),
    "low_level_features": ("block", ("mobilenet_v2",)),
    "multi_grid": (None, XCEPTIONS),
}


def build_backbone(
    name: str,
    *,
    output_stride: int = 8,
    width_multiplier: float = 1.0,
    width_divisor: int = 8,
    padding: str = "symmetric",
    low_level_features: str = "block",
    multi_grid: Sequence[int] | None = None,
) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: a key of ``BACKBONES``.
        output_stride: 8, 16 or 32, the input's size over that of the last feature map.
        width_multiplier, width_divisor, low_level_features: of mobilenet_v2 only, see there.
        multi_grid: of the Xceptions only, see there.
        padding: of both, see there.

    Raises:
        ValueError: an unknown name, an output stride that this backbone does not have, or an option that it would
            ignore.
    """
    build = choose("backbone", name, BACKBONES)
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride must be one of {OUTPUT_STRIDES}, got {output_stride!r}")
    options = {"width_multiplier": width_multiplier, "width_divisor": width_divisor, "padding": padding}
    options |= {"low_level_features": low_level_features, "multi_grid": multi_grid}
    backbone = build(output_stride=output_stride, **acting("backbone", name, options, OPTIONS))
    ease_atrous_depthwise(backbone)
    return backbone
