"""The dense prediction cell: an encoder that is a list of branches (Chen et al., arXiv:1809.04184)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from deeplab_recipes.model.choices import choose, did_you_mean, is_positive
from deeplab_recipes.model.layers import ConvBatchNorm, Pair, resize, separable

CellSpec = str | Sequence[Mapping[str, Any]] | Mapping[str, Any] | None

PUBLISHED = (
    {"op": "conv", "kernel": 3, "rate": [1, 6], "input": -1},
    {"op": "conv", "kernel": 3, "rate": [18, 15], "input": 0},
    {"op": "conv", "kernel": 3, "rate": [6, 3], "input": 1},
    {"op": "conv", "kernel": 3, "rate": [1, 1], "input": 0},
    {"op": "conv", "kernel": 3, "rate": [6, 21], "input": 0},
)
KEYS = {"conv": ("kernel", "rate"), "pyramid_pooling": ("grid_size",)}  # of an op, beside op and input
LEGACY = "encoder_middle_conf"  # what tonandr/deeplabv3plus_keras calls the branches
RATES_FOR = 16  # the output stride that published rates are meant for


@dataclass(frozen=True)
class Branch:
    """One operation, its result in ``reduction_size`` channels.

    Attributes:
        op: ``conv`` (1x1, or separable) or ``pyramid_pooling``.
        input: the branch that it reads, or -1 for the backbone's features.
        kernel: of a conv.
        rate: atrous rates of its height and width.
        grid_size: into how many parts pyramid_pooling divides height and width.
    """

    op: str
    input: int
    kernel: Pair = (1, 1)
    rate: Pair = (1, 1)
    grid_size: Pair = (1, 1)


@dataclass(frozen=True)
class Cell:
    """A checked cell.

    Attributes:
        branches: in the order in which they are computed.
        reduction_size: channels of each; None: aspp_channels.
        concat_channels: to which all together are reduced; None: aspp_channels.
        conv_rate_multiplier: factor on the rates; None: 2 at output stride 8, otherwise 1.
        depth_multiplier: channels that a depthwise convolution makes of each that comes in.
    """

    branches: tuple[Branch, ...]
    reduction_size: int | None = None
    concat_channels: int | None = None
    conv_rate_multiplier: int | None = None
    depth_multiplier: int = 1

    def filled(self, channels: int, output_stride: int) -> "Cell":
        """Return the cell with what was left to the rest of the model."""
        return replace(
            self,
            reduction_size=self.reduction_size or channels,
            concat_channels=self.concat_channels or channels,
            conv_rate_multiplier=self.conv_rate_multiplier or max(1, RATES_FOR // output_stride),
        )

    def described(self) -> dict[str, Any]:
        """Return what `parse_cell` makes this cell of: builtins."""
        branches = []
        for branch in self.branches:
            values = {key: list(getattr(branch, key)) for key in KEYS[branch.op]}
            branches.append({"op": branch.op, "input": branch.input, **values})
        return {**asdict(self), "branches": branches}


NUMBERS = tuple(field for field in Cell.__dataclass_fields__ if field != "branches")


class DensePredictionCell(nn.Module):
    """A cell's branches, each on the features or an earlier branch, and the projection of all of them together.

    Args:
        before: channels that come in.
        cell: filled.
        dropout: probability of dropping a value of the concatenated branches.
        align_corners: how pooled maps are resized.
    """

    def __init__(self, before: int, cell: Cell, *, dropout: float, align_corners: bool) -> None:
        super().__init__()
        self.cell, self.align_corners = cell, align_corners
        self.branches = nn.ModuleList(
            _operation(before if branch.input < 0 else cell.reduction_size, branch, cell) for branch in cell.branches
        )
        self.dropout = nn.Dropout(dropout)
        self.concat_projection = ConvBatchNorm(len(cell.branches) * cell.reduction_size, cell.concat_channels)

    @property
    def image_pool(self) -> nn.Module:
        """The branches that normalise pooled 1 x 1 maps."""
        whole = [pools_everything(branch) for branch in self.cell.branches]
        return nn.ModuleList(layers for layers, pools in zip(self.branches, whole, strict=True) if pools)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, concat_channels, H, W)."""
        results: list[Tensor] = []
        for branch, layers in zip(self.cell.branches, self.branches, strict=True):
            source = features if branch.input < 0 else results[branch.input]
            if branch.op == "pyramid_pooling":
                pooled = layers(_pool(source, branch.grid_size))
                results.append(resize(pooled, features.shape[-2:], align_corners=self.align_corners))
            else:
                results.append(layers(source))
        return self.concat_projection(self.dropout(torch.cat(results, dim=1)))


def pools_everything(branch: Branch) -> bool:
    """Return whether a branch reduces an image to one value a channel."""
    return branch.op == "pyramid_pooling" and branch.grid_size == (1, 1)


def _operation(before: int, branch: Branch, cell: Cell) -> nn.Module:
    if branch.op == "pyramid_pooling" or branch.kernel == (1, 1):
        return ConvBatchNorm(before, cell.reduction_size)
    rate = tuple(cell.conv_rate_multiplier * part for part in branch.rate)
    multiplier = cell.depth_multiplier
    return separable(before, cell.reduction_size, branch.kernel, rate=rate, depth_multiplier=multiplier)


def _pool(features: Tensor, grid: Pair) -> Tensor:
    """Average windows of a part of the map's size, at every position inside."""
    kernel = [(size - 1) // parts + 1 for size, parts in zip(features.shape[-2:], grid, strict=True)]
    return avg_pool2d(features, kernel, stride=1)


def parse_cell(spec: CellSpec) -> Cell:
    """Check a cell and fill in what it leaves out.

    Args:
        spec: None or ``published``, for the published cell; a list of branches, each as
            ``{op: conv, kernel: 3, rate: [1, 6], input: -1}`` or
            ``{op: pyramid_pooling, grid_size: [1, 1], input: -1}``; a mapping of ``branches`` (one of these; also
            called ``encoder_middle_conf``) and the numbers of `Cell`; or a JSON file that holds one of all these.

    Raises:
        ValueError: names the entry, what would be valid, and where a word is misspelt the closest one.
    """
    content, numbers = _read(spec), {}
    if isinstance(content, Mapping):
        numbers = {key: value for key, value in content.items() if key not in ("branches", LEGACY)}
        _check_numbers(numbers, content)
        content = _read(content.get("branches", content.get(LEGACY)))
    branches = PUBLISHED if content in (None, "published") else content
    if isinstance(branches, str) or not isinstance(branches, Sequence) or not branches:
        raise ValueError(f"dense_prediction_cell: its branches must be a list, published or a file, got {branches!r}")
    return Cell(tuple(_branch(i, entry) for i, entry in enumerate(branches)), **numbers)


def _read(spec: Any) -> Any:
    """Return what a file's name stands for; anything else as it is."""
    if not isinstance(spec, str) or spec == "published":
        return spec
    path = Path(spec).expanduser()
    if not path.is_file():
        raise ValueError(f"dense_prediction_cell={spec} is no file; valid: published, a JSON file, a list of branches")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"dense_prediction_cell: {spec} is no JSON ({error})") from error


def _check_numbers(numbers: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    if "branches" in content and LEGACY in content:
        raise ValueError(f"dense_prediction_cell: branches and {LEGACY} mean the same; give one of them")
    for key, value in numbers.items():
        if key not in NUMBERS:
            valid = ("branches", LEGACY, *NUMBERS)
            hint = did_you_mean(key, valid)
            raise ValueError(f"dense_prediction_cell: unknown key {key!r}; valid: {', '.join(valid)}{hint}")
        if not is_positive(value) and (value is not None or key == "depth_multiplier"):
            raise ValueError(f"dense_prediction_cell: {key} must be a positive integer, got {value!r}")


def _branch(number: int, entry: Any) -> Branch:
    where = f"dense_prediction_cell, branch {number}"
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be a mapping with op, input and so on, got {entry!r}")
    for key in ("op", "input"):
        _require(entry, key, where)
    op = entry["op"]
    keys = choose(f"op in {where}:", op, KEYS)
    if unknown := [key for key in entry if key not in ("op", "input", *keys)]:
        raise ValueError(f"{where}: {op} has no {unknown[0]!r}; valid: op, input, {', '.join(keys)}")
    source = entry["input"]
    if not isinstance(source, int) or isinstance(source, bool) or not -1 <= source < number:
        earlier = f" or an earlier branch, 0 to {number - 1}" if number else ""
        raise ValueError(f"{where}: input is {source!r}; valid: -1 (the backbone's features){earlier}")
    values = _conv(entry, where) if op == "conv" else {"grid_size": _pair(entry, "grid_size", where)}
    return Branch(op, source, **values)


def _conv(entry: Mapping[str, Any], where: str) -> dict[str, Pair]:
    kernel = _pair(entry, "kernel", where)
    if any(size % 2 == 0 for size in kernel):
        raise ValueError(f"{where}: kernel must be odd, such as 3, got {entry['kernel']!r}")
    if kernel == (1, 1) and "rate" not in entry:
        return {"kernel": kernel}
    rate = _pair(entry, "rate", where)
    if kernel == (1, 1) and rate != (1, 1):
        raise ValueError(f"{where}: rate {entry['rate']!r} has no meaning for a 1x1 kernel; leave it out")
    return {"kernel": kernel, "rate": rate}


def _pair(entry: Mapping[str, Any], key: str, where: str) -> Pair:
    _require(entry, key, where)
    value = entry[key]
    pair = (value, value) if isinstance(value, int) else value
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(is_positive, pair)):
        raise ValueError(f"{where}: {key} must be a positive integer or two, [height, width], got {value!r}")
    return (pair[0], pair[1])


def _require(entry: Mapping[str, Any], key: str, where: str) -> None:
    if key not in entry:
        raise ValueError(f"{where} lacks {key!r}: {dict(entry)}")
