"""torchvision's MobileNetV2 at output stride 8, 16 or 32."""

from itertools import pairwise

import torchvision
from torch import Tensor, nn

from deeplab_recipes.model.backbones.base import Backbone, Features, dilate

STRIDE_4, STRIDE_8 = 2, 4  # the blocks that halve to these strides
LOW_LEVEL = 3  # the last block at stride 4: 24 channels at width 1.0
STRIDE_16, STRIDE_32, LAST = 7, 14, 17  # the blocks that halve to these strides; the last inverted residual


class MobileNetV2Backbone(Backbone):
    """torchvision's MobileNetV2 up to its last inverted residual; parameters keep torchvision's names.

    Features are those of ``features.3`` (24 channels, stride 4), ``features.13`` (96) and ``features.17`` (320), as in
    TensorFlow DeepLab and mmsegmentation; the 1x1 convolution to 1280 channels behind it (``features.18``) serves the
    classifier and is left out.
    """

    classifier_keys = ("features.18.", "classifier.")

    def __init__(self, *, output_stride: int, width_multiplier: float = 1.0) -> None:
        super().__init__()
        if not width_multiplier > 0:
            raise ValueError(f"width_multiplier must be positive, such as 0.5, got {width_multiplier!r}")
        network = torchvision.models.mobilenet_v2(width_mult=width_multiplier)
        self.features = network.features[: LAST + 1]
        dilate([self.features[STRIDE_16:STRIDE_32], self.features[STRIDE_32:]], output_stride)
        ends = (LOW_LEVEL, STRIDE_32 - 1, LAST)
        self.channels = tuple(self.features[end].out_channels for end in ends)

    def forward(self, images: Tensor) -> Features:
        """Return the features."""
        low = self.features[: LOW_LEVEL + 1](images)
        middle = self.features[LOW_LEVEL + 1 : STRIDE_32](low)
        return Features(low, middle, self.features[STRIDE_32:](middle))

    def stages(self) -> list[list[nn.Module]]:
        """Return the blocks by the stride at which they work in the classifier."""
        starts = (0, STRIDE_4, STRIDE_8, STRIDE_16, STRIDE_32, LAST + 1)
        return [list(self.features[start:end]) for start, end in pairwise(starts)]
