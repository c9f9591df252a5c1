"""TensorFlow checkpoints (NAME.index and NAME.data-00000-of-00001), read without TensorFlow.

The index is a LevelDB table: blocks of sorted entries, each key without what it shares with the one before. The key ""
holds the header, every other key names a tensor, whose entry says where its raw values lie in the data files.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplab_recipes.crc32c import masked_crc

MAGIC = 0xDB4775248B80FB57
FOOTER, TRAILER = 48, 5  # bytes at the end of a table, and behind each of its blocks
# Numbers of TensorFlow's types, of which a variable can be imported.
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 9: "<i8", 10: "?", 19: "<f2"}


class Entry(NamedTuple):
    """Where a tensor lies."""

    dtype: int = 0
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    crc: int | None = None
    sliced: bool = False


class Checkpoint:
    """A TensorFlow checkpoint.

    Args:
        file: its prefix (model.ckpt-30000), its .index or one of its .data files.

    Raises:
        FileNotFoundError: the index or a data file is missing.
        ValueError: the index is damaged or none.
    """

    def __init__(self, file: str | Path) -> None:
        self.prefix = Path(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", str(file)))
        index = self.prefix.with_name(f"{self.prefix.name}.index")
        if not index.is_file():
            raise FileNotFoundError(
                f"there is no {index}; a checkpoint is {self.prefix.name}.index and .data-*: keep both"
            )
        try:
            content = dict(_table(index.read_bytes()))
            header = dict(_fields(content.pop(b"")))
            self.entries = {name.decode(): _entry(value) for name, value in content.items()}
        except (ValueError, KeyError, IndexError, struct.error) as error:
            reason = str(error) or "it ends too early"
            raise ValueError(f"{index} is no index of a TensorFlow checkpoint, or is damaged ({reason})") from None
        self.shards = int(header.get(1, 1))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self.entries[name].shape

    def tensor(self, name: str) -> np.ndarray:
        """Read a tensor.

        Raises:
            FileNotFoundError: its data file is missing.
            ValueError: its type is none of the imported ones, or the file is damaged.
        """
        entry = self.entries[name]
        if entry.dtype not in DTYPES or entry.sliced:
            kind = "saved in slices" if entry.sliced else f"of TensorFlow's type {entry.dtype}"
            raise ValueError(f"{self.prefix}: the tensor {name} is {kind}, which is not read; save it anew as float32")
        path = self.prefix.with_name(f"{self.prefix.name}.data-{entry.shard:05d}-of-{self.shards:05d}")
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}, which holds {name}; keep it beside the index")
        with path.open("rb") as file:
            file.seek(entry.offset)
            raw = file.read(entry.size)
        values = np.frombuffer(raw, DTYPES[entry.dtype]) if len(raw) == entry.size else np.empty(0)
        if values.size != np.prod(entry.shape) or (entry.crc is not None and masked_crc(raw) != entry.crc):
            raise ValueError(f"{path} is damaged or cut short: the tensor {name} fails its checksum; copy it anew")
        return values.reshape(entry.shape)


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a LevelDB table."""
    if len(content) < FOOTER or struct.unpack("<Q", content[-8:])[0] != MAGIC:
        raise ValueError("it has no table's footer")
    place = len(content) - FOOTER
    for _ in range(2):
        _, place = _varint(content, place)  # the block of meta entries, of which there are none
    for _, handle in _block(content, place):
        yield from _block(handle, 0, content)


def _block(handle: bytes, place: int, content: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of the block whose (offset, size) stands at `place` of `handle`."""
    content = handle if content is None else content
    offset, place = _varint(handle, place)
    size, _ = _varint(handle, place)
    block = content[offset : offset + size]
    kind, crc = struct.unpack("<BI", content[offset + size : offset + size + TRAILER])
    if kind or masked_crc(block + bytes([kind])) != crc:
        raise ValueError("it is compressed" if kind else "a block fails its checksum")
    (restarts,) = struct.unpack("<I", block[-4:])
    place, end, key = 0, size - 4 * (restarts + 1), b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + length]
        place += own + length


def _entry(message: bytes) -> Entry:
    """Read a BundleEntryProto: its field numbers are those of `Entry`, from 1; of the shape, `_shape` tells."""
    values = dict(_fields(message))
    shape = _shape(values.get(2, b""))
    return Entry(values.get(1, 0), shape, *(values.get(i, 0) for i in (3, 4, 5)), values.get(6), 7 in values)


def _shape(message: bytes) -> tuple[int, ...]:
    """Read a TensorShapeProto: field 2 repeats, a message with the size in its field 1."""
    return tuple(int(dict(_fields(size)).get(1, 0)) for field, size in _fields(message) if field == 2)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a protocol buffer message."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(message, place)
        elif kind == 2:
            length, place = _varint(message, place)
            value, place = message[place : place + length], place + length
        elif kind == 5:
            value, place = struct.unpack("<I", message[place : place + 4])[0], place + 4
        else:
            raise ValueError("an entry cannot be read")
        yield tag >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value, place, shift = value | (byte & 127) << shift, place + 1, shift + 7
        if byte < 128:
            return value, place
