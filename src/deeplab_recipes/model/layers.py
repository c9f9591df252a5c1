"""Layers of the TensorFlow family that backbones and heads share."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Pair = tuple[int, int]


class ConvBatchNorm(nn.Sequential):
    """A convolution without bias, a batch norm and perhaps a ReLU: ``conv``, ``bn`` and ``relu``.

    Odd kernels keep the size at stride 1; at stride 2 sizes are halved and rounded up, with the same padding at either
    side, whether the size is odd or even (``fixed_padding`` of TensorFlow DeepLab).

    Args:
        before: channels that come in.
        after: channels that go out.
        kernel: height and width, or one number for both; odd.
        stride: of both directions.
        rate: atrous rates of height and width, or one number for both.
        groups: as in torch.
        relu: end with a ReLU.
        std: standard deviation of the truncated normal distribution that the weights are drawn from; None: Glorot's
            uniform one, TensorFlow slim's default.
    """

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int | Pair = 1,
        *,
        stride: int = 1,
        rate: int | Pair = 1,
        groups: int = 1,
        relu: bool = True,
        std: float | None = None,
    ) -> None:
        super().__init__()
        kernel, rate = _pair(kernel), _pair(rate)
        padding = tuple(r * (k // 2) for k, r in zip(kernel, rate, strict=True))
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, rate, groups, bias=False)
        self.bn = nn.BatchNorm2d(after)
        if relu:
            self.relu = nn.ReLU(inplace=True)
        if std is None:
            nn.init.xavier_uniform_(self.conv.weight)
        else:
            _truncated_normal(self.conv.weight, std)


def separable(
    before: int, after: int, kernel: int | Pair = 3, *, rate: int | Pair = 1, depth_multiplier: int = 1
) -> nn.Sequential:
    """Return the heads' separable convolution: ``depthwise`` and ``pointwise``, batch norm and ReLU behind both."""
    layers = nn.Sequential()
    wide = before * depth_multiplier
    layers.depthwise = ConvBatchNorm(before, wide, kernel, rate=rate, groups=before, std=0.33)
    layers.pointwise = ConvBatchNorm(wide, after, std=0.06)
    return layers


class SameConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2 with TensorFlow's SAME padding.

    Where TensorFlow needs an even number of zeros (odd sizes) it puts the same at either side, as ``padding=1`` does.
    On even sizes it needs one, and puts it behind the last row or column.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the map (B, channels, H / 2, W / 2), sizes rounded up."""
        height, width = (1 - size % 2 for size in images.shape[-2:])
        # A row of zero weights above moves the kernel down by one. That costs next to nothing; a padded copy of the
        # images takes several times as long as the convolution itself.
        weight = F.pad(self.weight, (width, 0, height, 0)) if height or width else self.weight
        return self._conv_forward(images, weight, self.bias)


def pad_as_tensorflow(network: nn.Module) -> None:
    """Turn every 3x3 convolution of stride 2 into a `SameConv2d`, in place; parameters stay where they are."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.stride == (2, 2) and module.kernel_size == (3, 3):
            module.__class__ = SameConv2d


PADDINGS: dict[str, Callable[[nn.Module], None]] = {"symmetric": lambda network: None, "same": pad_as_tensorflow}


def set_batchnorm(network: nn.Module, *, epsilon: float | None, momentum: float = 0.1, scale: bool = True) -> None:
    """Set what batch norms add to the variance (None keeps theirs), and how much of a batch their averages take in.

    Without ``scale`` the factor stays 1 and is not trained.
    """
    for norm in (module for module in network.modules() if isinstance(module, _BatchNorm)):
        norm.momentum = momentum
        norm.eps = norm.eps if epsilon is None else epsilon
        if not scale:
            norm.weight.requires_grad_(False)


def resize(features: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Resize (B, C, H, W) bilinearly, in the precision that the features have."""
    if features.shape[-2:] == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=align_corners)


@torch.no_grad()
def _truncated_normal(weight: Tensor, std: float) -> None:
    """Draw from a normal distribution, in place, anew until nothing is further than 2 ``std`` from 0.

    torch's own function inverts the distribution, which takes seconds for an Xception.
    """
    weight.normal_(std=std)
    while not weight.is_meta and (outside := weight.abs() > 2 * std).any():
        weight[outside] = torch.empty(int(outside.sum())).normal_(std=std).to(weight)


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
