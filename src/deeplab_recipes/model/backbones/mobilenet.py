"""MobileNetV2 at output stride 8, 16 or 32, of torchvision's or TensorFlow's make."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models._utils import _make_divisible
from torchvision.models.mobilenetv2 import InvertedResidual

from deeplab_recipes.model.backbones.base import Backbone, Features, dilate
from deeplab_recipes.model.choices import choose
from deeplab_recipes.model.layers import PADDINGS

STRIDE_4, STRIDE_8 = 2, 4  # the blocks that halve to these strides
LOW_LEVEL = 3  # the last block at stride 4: 24 channels at width 1.0
STRIDE_16, STRIDE_32, LAST = 7, 14, 17  # the blocks that halve to these strides; the last inverted residual


class MobileNetV2Backbone(Backbone):
    """MobileNetV2 up to its last inverted residual; parameters keep torchvision's names.

    Features are those of ``features.3`` (24 channels, stride 4), ``features.13`` (96) and ``features.17`` (320); the
    1x1 convolution to 1280 channels behind it (``features.18``) serves the classifier and is left out.

    Args:
        output_stride: 8, 16 or 32.
        width_multiplier: factor on the channels.
        width_divisor: channels are rounded to a multiple of this. torchvision and TensorFlow slim have 8; TensorFlow
            DeepLab has 1 at any width but 1.0.
        padding: ``symmetric``, or ``same``: TensorFlow's, where an even size is halved.
        low_level_features: ``block``, or ``depthwise``: the depthwise convolution inside of ``features.3`` (144
            channels), which TensorFlow DeepLab's decoder takes.
    """

    classifier_keys = ("features.18.", "classifier.")

    def __init__(
        self,
        *,
        output_stride: int,
        width_multiplier: float = 1.0,
        width_divisor: int = 8,
        padding: str = "symmetric",
        low_level_features: str = "block",
    ) -> None:
        super().__init__()
        if not width_multiplier > 0:
            raise ValueError(f"width_multiplier must be positive, such as 0.5, got {width_multiplier!r}")
        if not isinstance(width_divisor, int) or isinstance(width_divisor, bool) or width_divisor < 1:
            raise ValueError(f"width_divisor must be a positive integer, such as 8, got {width_divisor!r}")
        pad = choose("padding", padding, PADDINGS)
        self._low_level = choose("low_level_features", low_level_features, LOW_LEVELS)
        network = torchvision.models.MobileNetV2(
            width_mult=width_multiplier, round_nearest=width_divisor, block=_inverted_residual
        )
        self.features = network.features[: LAST + 1]
        dilate([self.features[STRIDE_16:STRIDE_32], self.features[STRIDE_32:]], output_stride)
        pad(self.features)
        low = self.features[LOW_LEVEL]
        widths = {"block": low.out_channels, "depthwise": low.conv[1][0].out_channels}
        ends = (STRIDE_32 - 1, LAST)
        self.channels = (widths[low_level_features], *(self.features[end].out_channels for end in ends))

    def forward(self, images: Tensor) -> Features:
        """Return the features."""
        low, after = self._low_level(self.features[LOW_LEVEL], self.features[:LOW_LEVEL](images))
        middle = self.features[LOW_LEVEL + 1 : STRIDE_32](after)
        return Features(low, middle, self.features[STRIDE_32:](middle))

    def stages(self) -> list[list[nn.Module]]:
        """Return the blocks by the stride at which they work in the classifier."""
        starts = (0, STRIDE_4, STRIDE_8, STRIDE_16, STRIDE_32, LAST + 1)
        return [list(self.features[start:end]) for start, end in pairwise(starts)]


def _inverted_residual(before: int, after: int, stride: int, expand_ratio: int, **settings: Any) -> InvertedResidual:
    """Build torchvision's block; where the channels are no multiple of 4, expanded to a multiple of 8 as slim does."""
    expanded = _make_divisible(before * expand_ratio, 8) if expand_ratio > 1 else before
    ratio = expand_ratio if expanded == before * expand_ratio else expanded / before
    return InvertedResidual(before, after, stride, ratio, **settings)


def _block(block: nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
    after = block(features)
    return after, after


def _depthwise(block: nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
    depthwise = block.conv[:2](features)
    after = block.conv[2:](depthwise)
    return depthwise, features + after if block.use_res_connect else after


LOW_LEVELS: dict[str, Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]] = {
    "block": _block,
    "depthwise": _depthwise,
}
