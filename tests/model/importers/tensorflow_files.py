"""Small files as TensorFlow writes them: frozen graphs, and checkpoints of the second format."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.graph_pb2 import GraphDef

from deeplab_recipes.crc32c import masked_crc

DTYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}
TABLE_MAGIC = 0xDB4775248B80FB57


class GraphWriter:
    """A graph that grows node by node."""

    def __init__(self) -> None:
        self.graph = GraphDef()

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        node = self.graph.node.add(name=name, op=op, input=inputs)
        for key, value in attributes.items():
            if isinstance(value, (list, tuple)):
                node.attr[key].list.i.extend(value)
            elif isinstance(value, bool):
                node.attr[key].b = value
            elif isinstance(value, float):
                node.attr[key].f = value
            else:
                node.attr[key].s = value.encode()
        return name

    def constant(self, name: str, value: Any, dtype: str = "float32") -> str:
        values = np.asarray(value, dtype)
        message = self.graph.node.add(name=name, op="Const").attr["value"].tensor
        message.dtype = DTYPES[dtype]
        for size in values.shape:
            message.tensor_shape.dim.add(size=size)
        message.tensor_content = values.tobytes()
        return name

    def variable(self, name: str, value: Any, dtype: str = "float32") -> str:
        """Return the name from which operations read a frozen variable."""
        return self.node("Identity", f"{name}/read", self.constant(name, value, dtype))

    def convolution(self, scope: str, source: str, weights: np.ndarray, **attributes: Any) -> str:
        """Add a convolution with its batch norm and ReLU; a rate above 1 as TensorFlow 1 does it."""
        rate = attributes.pop("rate", (1, 1))
        depthwise = attributes.pop("depthwise", False)
        epsilon = attributes.pop("epsilon", 1e-3)
        kind = "DepthwiseConv2dNative" if depthwise else "Conv2D"
        name = f"{scope}/{'depthwise' if depthwise else 'Conv2D'}"
        kernel = self.variable(f"{scope}/{'depthwise_weights' if depthwise else 'weights'}", weights)
        if tuple(rate) != (1, 1):
            block = self.constant(f"{name}/block_shape", rate, "int32")
            source = self.node("SpaceToBatchND", f"{name}/SpaceToBatchND", source, block, block)
        attributes = {"strides": (1, 1, 1, 1), "dilations": (1, 1, 1, 1), "padding": "SAME", **attributes}
        result = self.node(kind, name, source, kernel, **attributes)
        if tuple(rate) != (1, 1):
            result = self.node("BatchToSpaceND", f"{name}/BatchToSpaceND", result, f"{name}/block_shape")
        channels = weights.shape[2] * weights.shape[3] if depthwise else weights.shape[3]
        statistics = [self.variable(f"{scope}/BatchNorm/{part}", np.ones(channels)) for part in NORM]
        norm = self.node("FusedBatchNormV3", f"{scope}/BatchNorm/Fused", result, *statistics, epsilon=epsilon)
        return self.node("Relu", f"{scope}/Relu", norm)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.graph.SerializeToString())
        return path


NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def write_checkpoint(prefix: Path, tensors: Mapping[str, np.ndarray], *, block_entries: int = 3) -> Path:
    """Write NAME.index and NAME.data-00000-of-00001; keys share prefixes, blocks are short."""
    data, entries = b"", {b"": _field(1, 1)}
    for name in sorted(tensors):
        values = np.asarray(tensors[name])
        raw = values.tobytes()
        shape = b"".join(_field(2, _field(1, size)) for size in values.shape)
        entry = _field(1, DTYPES[values.dtype.name]) + _field(2, shape)
        entry += _field(4, len(data)) + _field(5, len(raw)) + b"\x35" + struct.pack("<I", masked_crc(raw))
        entries[name.encode()] = entry
        data += raw
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)
    prefix.with_name(f"{prefix.name}.index").write_bytes(_table(list(entries.items()), block_entries))
    return prefix


def _table(entries: list[tuple[bytes, bytes]], block_entries: int) -> bytes:
    content, handles = b"", []
    for start in range(0, len(entries), block_entries):
        part = entries[start : start + block_entries]
        block = _block(part)
        handles.append((part[-1][0], _varint(len(content)) + _varint(len(block) - 5)))
        content += block
    places = []
    for block in (_block([]), _block(handles)):
        places.append(_varint(len(content)) + _varint(len(block) - 5))
        content += block
    return content + b"".join(places).ljust(40, b"\0") + struct.pack("<Q", TABLE_MAGIC)


def _block(entries: list[tuple[bytes, bytes]]) -> bytes:
    block, before = b"", b""
    for key, value in entries:
        shared = next(
            (i for i, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), min(len(key), len(before))
        )
        block += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        before = key
    block += struct.pack("<II", 0, 1)  # the one place where a key is whole
    return block + b"\0" + struct.pack("<I", masked_crc(block + b"\0"))


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
