"""Layers of the TensorFlow family that backbones and heads share."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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


class AtrousDepthwise(nn.Conv2d):
    """A depthwise 3x3 convolution with an atrous rate, whose gradients on a CPU are worked out without one.

    torch's kernels for the gradients of an atrous depthwise convolution take several times as long as those without
    a rate. A map's rows and columns that lie a rate apart only meet each other, so the gradients are those of
    an ordinary convolution over each of these smaller maps, put side by side as a batch.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        learns = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
        if not (learns and input.device.type == "cpu" and self._is_worth_it(input)):
            return super()._conv_forward(input, weight, bias)
        if torch.is_autocast_enabled("cpu"):
            kind = torch.get_autocast_dtype("cpu")
            input, weight = input.to(kind), weight.to(kind)
        return _AtrousDepthwise.apply(input, weight, self.dilation)

    def _is_worth_it(self, input: Tensor) -> bool:
        """Whether the smaller maps would not be mostly padding."""
        return all(side >= 2 * rate for side, rate in zip(input.shape[-2:], self.dilation, strict=True))


class _AtrousDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, rate: Pair) -> Tensor:
        """Return the convolution, with as much padding as the rate."""
        ctx.save_for_backward(maps, weight)
        ctx.rate = rate
        return F.conv2d(maps, weight, None, 1, rate, rate, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of maps and weights."""
        maps, weight = ctx.saved_tensors
        parts = [_apart(values, ctx.rate) for values in (gradient, maps)]
        wanted = [*ctx.needs_input_grad[:2], False]
        settings = ([1, 1], [1, 1], [1, 1], False, [0, 0], len(weight))
        of_maps, of_weight, _ = torch.ops.aten.convolution_backward(*parts, weight, None, *settings, wanted)
        return None if of_maps is None else _together(of_maps, ctx.rate, maps.shape), of_weight, None


def _apart(maps: Tensor, rate: Pair) -> Tensor:
    """Return the maps (B, C, H, W) as rate x rate smaller ones each, of pixels a rate apart; zeros fill them up."""
    (batch, channels, height, width), (down, across) = maps.shape, rate
    rows, columns = -(-height // down), -(-width // across)
    filled = F.pad(maps, (0, columns * across - width, 0, rows * down - height)).permute(0, 2, 3, 1)
    cells = filled.reshape(batch, rows, down, columns, across, channels).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)


def _together(parts: Tensor, rate: Pair, size: torch.Size) -> Tensor:
    """Undo `_apart` for maps that had this size."""
    (_, channels, rows, columns), (down, across) = parts.shape, rate
    cells = parts.permute(0, 2, 3, 1).reshape(-1, down, across, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
    whole = cells.reshape(-1, rows * down, columns * across, channels).permute(0, 3, 1, 2)
    return whole[:, :, : size[2], : size[3]]


def ease_atrous_depthwise(network: nn.Module) -> None:
    """Turn every depthwise 3x3 convolution with a rate into an `AtrousDepthwise`, in place; parameters stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_atrous_depthwise(module):
            module.__class__ = AtrousDepthwise


def _is_atrous_depthwise(module: nn.Conv2d) -> bool:
    depthwise = module.groups == module.in_channels == module.out_channels and module.bias is None
    plain = module.kernel_size == (3, 3) and module.stride == (1, 1) and module.padding_mode == "zeros"
    return depthwise and plain and module.padding == module.dilation and max(module.dilation) > 1


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
