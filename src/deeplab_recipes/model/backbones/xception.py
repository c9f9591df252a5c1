"""Xception-41, -65 and -71 as TensorFlow DeepLab changed them, at output stride 8, 16 or 32.

Chollet, arXiv:1610.02357, with the changes of Chen et al., arXiv:1802.02611, section 3.2: more layers, every pooling a
separable convolution of stride 2, batch norm behind each depthwise convolution. Parameters are called as the scopes of
research/deeplab are.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import relu

from deeplab_recipes.model.backbones.base import Backbone, Features
from deeplab_recipes.model.choices import choose
from deeplab_recipes.model.layers import PADDINGS, ConvBatchNorm, set_batchnorm

EPSILON = 1e-3  # of the batch norms
STD = 0.09  # of the weights at the start


class Block(NamedTuple):
    """Units of one kind in a row.

    Attributes:
        flow: entry, middle or exit.
        number: within its flow, from 1.
        depths: channels of the three separable convolutions.
        stride: of the last convolution of the last unit.
        units: how many.
        skip: what is added to them: a 1x1 ``convolution`` of the input, the input itself (``identity``), or ``none``.
    """

    flow: str
    number: int
    depths: tuple[int, int, int]
    stride: int = 1
    units: int = 1
    skip: str = "convolution"


def _blocks(entry: Sequence[tuple[int, int]], middle: int) -> tuple[Block, ...]:
    """Return a network of entry blocks (channels, stride) and this many units in the middle flow."""
    return (
        *(Block("entry", i, (depth,) * 3, stride) for i, (depth, stride) in enumerate(entry, 1)),
        Block("middle", 1, (728,) * 3, units=middle, skip="identity"),
        Block("exit", 1, (728, 1024, 1024), stride=2),
        Block("exit", 2, (1536, 1536, 2048), skip="none"),
    )


ENTRY = ((128, 2), (256, 2), (728, 2))
LONG_ENTRY = ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))
BLOCKS = {
    "xception41": _blocks(ENTRY, middle=8),
    "xception65": _blocks(ENTRY, middle=16),
    "xception71": _blocks(LONG_ENTRY, middle=16),
}


class XceptionUnit(nn.Module):
    """Three separable convolutions and what is added to them.

    Args:
        before: channels that come in.
        depths: channels of the three.
        stride: of the third.
        rates: atrous rates of the three.
        skip: see `Block`.
        tapped: the second one's output is wanted, so the ReLU behind it must not write over it.

    ReLUs stand before each separable convolution; where nothing is added (``none``), behind each depthwise and
    pointwise convolution instead.
    """

    def __init__(
        self, before: int, depths: Sequence[int], *, stride: int, rates: Sequence[int], skip: str, tapped: bool
    ) -> None:
        super().__init__()
        self.activates = skip == "none"
        self.adds_input, self.tapped = skip == "identity", tapped
        channels = before
        for i, (depth, rate) in enumerate(zip(depths, rates, strict=True), 1):
            settings = {"relu": self.activates, "std": STD}
            halving = stride if i == 3 else 1
            depthwise = ConvBatchNorm(channels, channels, 3, stride=halving, rate=rate, groups=channels, **settings)
            setattr(self, f"separable_conv{i}_depthwise", depthwise)
            setattr(self, f"separable_conv{i}_pointwise", ConvBatchNorm(channels, depth, **settings))
            channels = depth
        if skip == "convolution":
            self.shortcut = ConvBatchNorm(before, depths[-1], stride=stride, relu=False, std=STD)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, channels, H / stride, W / stride), sizes rounded up."""
        return self.end(features, self.begin(features))

    def begin(self, features: Tensor) -> Tensor:
        """Return the output of the second separable convolution."""
        first = self._separable(1, features if self.activates else relu(features))
        return self._separable(2, first if self.activates else relu(first, inplace=True))

    def end(self, features: Tensor, second: Tensor) -> Tensor:
        """Return the unit's output, from its input and what `begin` made of that."""
        third = self._separable(3, second if self.activates else relu(second, inplace=not self.tapped))
        if self.adds_input:
            third += features
        elif hasattr(self, "shortcut"):
            third += self.shortcut(features)
        return third

    def _separable(self, number: int, features: Tensor) -> Tensor:
        depthwise = getattr(self, f"separable_conv{number}_depthwise")
        return getattr(self, f"separable_conv{number}_pointwise")(depthwise(features))


class XceptionBackbone(Backbone):
    """A DeepLab Xception without its classifier.

    Features are the second separable convolution of the entry block that halves to stride 8 (256 channels, stride 4,
    before its ReLU), the end of the middle flow (728) and that of the exit flow (2048).

    Args:
        architecture: xception41, xception65 or xception71.
        output_stride: 8, 16 or 32. What would halve further is dilated, so that the weights keep their meaning: the
            rule of the original's ``stack_blocks_dense``.
        multi_grid: factors on the atrous rates of the last block's three convolutions.
        padding: ``symmetric``; or ``same``, where the first convolution alone has TensorFlow's, as in bonlime's Keras
            model.
    """

    channels = (256, 728, 2048)

    def __init__(
        self,
        architecture: str,
        *,
        output_stride: int,
        multi_grid: Sequence[int] | None = None,
        padding: str = "symmetric",
    ) -> None:
        super().__init__()
        pad = choose("padding", padding, PADDINGS)
        self._architecture = architecture
        flows = {flow: nn.Sequential() for flow in ("entry", "middle", "exit")}
        self.entry_flow, self.middle_flow, self.exit_flow = flows.values()
        self.entry_flow.conv1_1 = ConvBatchNorm(3, 32, 3, stride=2, std=STD)
        pad(self.entry_flow.conv1_1)
        self.entry_flow.conv1_2 = ConvBatchNorm(32, 64, 3, std=STD)
        for block, units in _units(BLOCKS[architecture], output_stride, _grid(multi_grid)):
            flows[block.flow].add_module(f"block{block.number}", units)
            if units.unit_1.tapped:
                self._low = 1 + block.number  # its place in the entry flow
        set_batchnorm(self, epsilon=EPSILON)

    def forward(self, images: Tensor) -> Features:
        """Return the features."""
        features = self.entry_flow[: self._low](images)
        unit = self.entry_flow[self._low].unit_1
        low = unit.begin(features)
        middle = self.middle_flow(self.entry_flow[self._low + 1 :](unit.end(features, low)))
        return Features(low, middle, self.exit_flow(middle))

    def stages(self) -> list[list[nn.Module]]:
        """Return the first convolutions, and the blocks from each that halves to the next; the middle flow is at 16."""
        found: list[list[nn.Module]] = [[self.entry_flow.conv1_1, self.entry_flow.conv1_2]]
        for block in BLOCKS[self._architecture]:
            if block.stride == 2:
                found.append([])
            found[-1].append(self.get_submodule(f"{block.flow}_flow.block{block.number}"))
        return found


def _units(blocks: Sequence[Block], output_stride: int, grid: Sequence[int]) -> Iterator[tuple[Block, nn.Sequential]]:
    """Yield each block with its units, called unit_1 and so on."""
    reached, rate, channels = 2, 1, 64
    for block in blocks:
        units = nn.Sequential()
        dense = reached == output_stride  # from here on dilation stands for strides
        stride = 1 if dense else block.stride
        tapped = (reached, stride) == (4, 2)
        rates = [rate * factor for factor in (grid if block.skip == "none" else (1, 1, 1))]
        for i in range(1, block.units + 1):
            last = XceptionUnit(channels, block.depths, stride=stride, rates=rates, skip=block.skip, tapped=tapped)
            units.add_module(f"unit_{i}", last)
            channels = block.depths[-1]
        if dense:
            rate *= block.stride
        else:
            reached *= block.stride
        yield block, units


def _grid(multi_grid: Sequence[int] | None) -> Sequence[int]:
    if multi_grid is None:
        return (1, 1, 1)
    factors = multi_grid if isinstance(multi_grid, Sequence) else ()
    if len(factors) != 3 or not all(isinstance(factor, int) and factor > 0 for factor in factors):
        raise ValueError(f"multi_grid must be three positive integers, as [1, 2, 4], got {multi_grid!r}")
    return multi_grid
