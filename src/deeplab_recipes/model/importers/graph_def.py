"""Frozen TensorFlow graphs, read without TensorFlow: their weights, and what their operations tell of the model.

The message format (GraphDef) comes with tensorboard, which this package needs anyway.
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

VARIABLES = ("weights", "depthwise_weights", "biases", "gamma", "beta", "moving_mean", "moving_variance")
CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")
POOLINGS = ("AvgPool", "Mean")
MAX_STEPS = 64  # between a layer and the layer that it reads from


class FrozenGraph:
    """A frozen graph.

    Args:
        file: a .pb, or a .tar.gz that holds one, as TensorFlow's model zoo gives them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no frozen graph, is cut short, or has quantised weights.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self.nodes = {node.name: node for node in _parse(self.file)}
        quantised = next((node.op for node in self.nodes.values() if "Quant" in node.op), None)
        if quantised:
            raise ValueError(
                f"{file} has quantised weights (operation {quantised}); import the float model that it was made from"
            )

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """The weights by name: convolutions' (kernel height, width, channels in, out), batch norms' and biases'."""
        names = [name for name, node in self.nodes.items() if node.op == "Const" and _last(name) in VARIABLES]
        return {name: self.constant(name) for name in names}

    @cached_property
    def constants(self) -> int:
        """How many constants there are besides: sizes, axes, paddings."""
        return sum(node.op == "Const" for node in self.nodes.values()) - len(self.tensors)

    def constant(self, name: str) -> np.ndarray:
        """Return the value of a constant, looking through what only passes it on.

        Raises:
            ValueError: it is no constant.
        """
        from tensorboard.util.tensor_util import make_ndarray  # takes most of a second to import

        node = self._source(name)
        if node is None or node.op != "Const":
            raise ValueError(f"{self.file}: {name} is no constant; freeze the graph first (freeze_graph.py)")
        try:
            return make_ndarray(node.attr["value"].tensor)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.file}: the tensor {node.name} cannot be read ({error}); copy it anew") from None

    def layer(self, scope: str) -> Any:
        """Return the convolution of a scope, or None."""
        return next((n for n in self._within(scope) if n.op in CONVOLUTIONS), None)

    def strides(self, scope: str) -> tuple[int, int]:
        """Return the strides (height, width) of the convolution of a scope."""
        return self._pair(self.layer(scope), "strides")

    def rates(self, scope: str) -> tuple[int, int]:
        """Return the atrous rates (height, width) of the convolution of a scope.

        TensorFlow writes them into the operation, or rearranges what goes in (SpaceToBatchND) and what comes out.
        """
        layer = self.layer(scope)
        before = self._source(layer.input[0])
        if before is not None and before.op == "SpaceToBatchND":
            return _two(self.constant(before.input[1]))
        return self._pair(layer, "dilations")

    def epsilon(self, scope: str) -> float | None:
        """Return what the batch norm of a scope adds to the variance, or None where the graph has none."""
        for node in self._within(f"{scope}/BatchNorm"):
            if node.op.startswith("FusedBatchNorm"):
                return float(node.attr["epsilon"].f)
            if node.op.startswith("Add") and _last(node.name) == "add":
                return float(self.constant(node.input[1]))
        return None

    def pooling(self, scope: str) -> tuple[int, int] | None:
        """Return the (height, width) that the layer of a scope averages over: (0, 0) for all, None if it does not."""
        before = self._source(self.layer(scope).input[0])
        if before is None or before.op not in POOLINGS:
            return None
        return self._pair(before, "ksize") if before.op == "AvgPool" else (0, 0)

    def reads_from(self, scope: str, candidates: Sequence[str]) -> str | None:
        """Return which of the scopes `candidates` the layer of a scope reads from, or None."""
        node = self.layer(scope)
        for _ in range(MAX_STEPS):
            node = None if node is None or not node.input else self._source(node.input[0])
            found = next((c for c in candidates if node is not None and node.name.startswith(f"{c}/")), None)
            if node is None or found:
                return found
        return None

    def crop_size(self) -> tuple[int, int] | None:
        """Return the (height, width) that an image is padded to, or None where the graph does not pad."""
        found = []
        for node in self.nodes.values():
            inner = self._source(node.input[0]) if node.op == "Maximum" else None
            if inner is not None and inner.op == "Sub":
                size = self._source(inner.input[0])
                if size is not None and size.op == "Const" and self.constant(size.name).dtype == np.int32:
                    found.append(int(self.constant(size.name)))
        return (found[0], found[1]) if len(found) >= 2 else None

    def padding_pixel(self) -> tuple[float, float, float] | None:
        """Return the pixel that images are padded with, or None where the graph does not pad."""
        for node in self.nodes.values():
            if node.op == "Reshape":
                source = self._source(node.input[0])
                if source is not None and source.op == "Const":
                    value = self.constant(source.name)
                    if value.dtype == np.float32 and value.shape == (3,):
                        return tuple(map(float, value))
        return None

    def scaling(self, scope: str) -> tuple[float, float] | None:
        """Return (factor, offset) where the first layer, of this scope, reads factor * image - offset, else None."""
        less = self._source(self.layer(scope).input[0])
        product = self._source(less.input[0]) if less is not None and less.op == "Sub" else None
        factor = self._source(product.input[0]) if product is not None and product.op == "Mul" else None
        if factor is None or factor.op != "Const":
            return None
        return float(self.constant(factor.name)), float(self.constant(less.input[1]))

    def aligns_corners(self) -> bool:
        """Whether every bilinear resizing aligns corners."""
        return all(node.attr["align_corners"].b for node in self.nodes.values() if node.op == "ResizeBilinear")

    def operations(self, scope: str) -> set[str]:
        """Return the kinds of operations of a scope."""
        return {node.op for node in self._within(scope)}

    def uses(self, name: str) -> int:
        """Return how many convolutions read a tensor: in a graph for several scales, one each."""
        layers = (node for node in self.nodes.values() if node.op in CONVOLUTIONS)
        return sum(re.sub(r"/read$", "", _node(node.input[1])) == name for node in layers)

    def input_range(self) -> dict[str, int] | None:
        """Return min, max and factor to which the graph itself resizes an image (``resize_to_range``), where it does.

        The factors on its sides are min / the smaller side and max / the larger one.
        """
        found: dict[str, int] = {}
        for node in self._within("resize_to_range"):
            operands = [self._source(name) for name in node.input[:2]]
            if node.op == "RealDiv" and operands[1].op in ("Minimum", "Maximum"):
                found[operands[1].op[:3].lower()] = int(self._first_constant(operands[0]))
            elif node.op == "FloorMod" and operands[1].op == "Const" and operands[0].op == "Sub":
                found["factor"] = int(self.constant(operands[1].name))
        return found or None

    def _first_constant(self, node: Any) -> np.ndarray:
        """Follow first inputs up to a constant."""
        for _ in range(MAX_STEPS):
            if node is None or node.op == "Const" or not node.input:
                break
            node = self._source(node.input[0])
        return self.constant("" if node is None else node.name)

    def _within(self, scope: str) -> Iterator[Any]:
        return (node for name, node in self.nodes.items() if name.startswith(f"{scope}/"))

    def _source(self, name: str) -> Any:
        """Return the node of an input, looking through what only passes it on."""
        node = self.nodes.get(_node(name))
        while node is not None and node.op == "Identity":
            node = self.nodes.get(_node(node.input[0]))
        return node

    def _pair(self, node: Any, attribute: str) -> tuple[int, int]:
        """Return height and width of an attribute for all four axes, in the order (batch, height, width, channels)."""
        values = list(node.attr[attribute].list.i) if node is not None and attribute in node.attr else []
        return _two(values[1:3]) if len(values) == 4 else (1, 1)


def _two(values: Sequence[int] | np.ndarray) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _node(name: str) -> str:
    """Return the node that an input names: without the output's number or the mark of a mere order."""
    return re.sub(r"^\^|:\d+$", "", name)


def _parse(file: Path) -> list[Any]:
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    try:
        nodes = list(GraphDef.FromString(_content(file)).node)
    except (DecodeError, tarfile.TarError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file} is no frozen TensorFlow graph, or is cut short ({reason}); copy it anew") from None
    if not any(node.op for node in nodes):
        raise ValueError(f"{file} is no frozen TensorFlow graph: it has no operations")
    return nodes


def _content(file: Path) -> bytes:
    if not tarfile.is_tarfile(file):
        return file.read_bytes()
    with tarfile.open(file) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".pb"):
                return archive.extractfile(member).read()
    raise ValueError(f"{file} holds no .pb file; give a frozen graph, or the archive that it came in")
