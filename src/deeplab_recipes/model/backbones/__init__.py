"""The backbones by name."""

from collections.abc import Callable
from functools import partial

from deeplab_recipes.model.backbones.base import Backbone, Features
from deeplab_recipes.model.backbones.mobilenet import MobileNetV2Backbone
from deeplab_recipes.model.backbones.resnet import ResNetBackbone
from deeplab_recipes.model.choices import choose

__all__ = ["BACKBONES", "OUTPUT_STRIDES", "Backbone", "Features", "build_backbone"]

OUTPUT_STRIDES = (8, 16, 32)
BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet18": partial(ResNetBackbone, "resnet18"),
    "resnet34": partial(ResNetBackbone, "resnet34"),
    "resnet50": partial(ResNetBackbone, "resnet50"),
    "resnet101": partial(ResNetBackbone, "resnet101"),
    "resnet50_v1c": partial(ResNetBackbone, "resnet50", deep_stem=True),
    "resnet101_v1c": partial(ResNetBackbone, "resnet101", deep_stem=True),
    "mobilenet_v2": MobileNetV2Backbone,
}


def build_backbone(name: str, *, output_stride: int = 8, width_multiplier: float = 1.0) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: a key of ``BACKBONES``.
        output_stride: 8, 16 or 32, the input's size over that of the last feature map.
        width_multiplier: factor on the channels, for mobilenet_v2 only.

    Raises:
        ValueError: an unknown name, an output stride or width that this backbone does not have.
    """
    build = choose("backbone", name, BACKBONES)
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride must be one of {OUTPUT_STRIDES}, got {output_stride!r}")
    return build(output_stride=output_stride, width_multiplier=width_multiplier)
