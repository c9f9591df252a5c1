"""What every backbone promises, and the one rule that turns a classifier's strides into dilation."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Features(NamedTuple):
    """A backbone's feature maps (B, channels, H / stride, W / stride), sizes rounded up.

    Attributes:
        low: at stride 4, for the decoder.
        middle: the end of the stage that reaches stride 16 in the classifier, for an auxiliary head.
        high: the last, at the output stride.
    """

    low: Tensor
    middle: Tensor
    high: Tensor


class Backbone(nn.Module):
    """A feature extractor: images (B, 3, H, W) in, `Features` out.

    Attributes:
        channels: of the three feature maps.
        classifier_keys: how the keys of layers that only the ImageNet classifier has begin in its weights.
    """

    channels: tuple[int, int, int]
    classifier_keys: tuple[str, ...] = ()

    def stages(self) -> list[list[nn.Module]]:
        """Return the modules that have weights in five stages, in the order of the forward pass.

        They are those that work at stride 2, 4, 8, 16 and 32 in the classifier; a ResNet's first is its stem, the
        others its layers 1 to 4.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its stages are")


def dilate(stages: Sequence[nn.Module], output_stride: int) -> None:
    """Replace every stride past ``output_stride`` by dilation, in place.

    The weights keep their meaning: at the positions that the strided network computes, the dilated one
    computes the same values (Chen et al., Rethinking Atrous Convolution, arXiv:1706.05587, section 3.1).
    The rule is that of torchvision's ``replace_stride_with_dilation``.

    Args:
        stages: the stage that reaches stride 16 and the one that reaches 32; each halves its input once.
        output_stride: 8, 16 or 32.
    """
    rate = 1
    for stage, stride in zip(stages, (16, 32), strict=True):
        if stride > output_stride:
            _dilate_stage(stage, rate)
            rate *= 2


def _dilate_stage(stage: nn.Module, rate: int) -> None:
    for convolution in (module for module in stage.modules() if isinstance(module, nn.Conv2d)):
        # The convolution that halved the map reads the map before the halving, where the neighbours that its
        # weights expect are `rate` apart. What follows it reads a map that stayed twice as dense.
        own_rate = rate if convolution.stride != (1, 1) else 2 * rate
        convolution.stride = (1, 1)
        if convolution.kernel_size != (1, 1):
            height, width = convolution.kernel_size
            convolution.dilation = (own_rate, own_rate)
            convolution.padding = (own_rate * (height // 2), own_rate * (width // 2))
