"""TFRecord files and the tf.train.Example messages in them: where their parts lie, and whether they are whole."""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from deeplab_recipes.crc32c import masked_crc

HEADER, FOOTER = 12, 4  # bytes around a record: its length and the checksum of that, and its own checksum


class DamagedRecord(ValueError):
    """A record file that ends too early or fails its checksums."""


def records(content: mmap.mmap | bytes, path: Path, *, verify: bool) -> Iterator[tuple[int, int]]:
    """Give (start, length) of the content of each record of a TFRecord file.

    Raises:
        DamagedRecord: if the file ends too early or a checksum fails; names file and byte.
    """
    place, number = 0, 0
    while place < len(content):
        header = content[place : place + HEADER]
        if len(header) == HEADER:
            length, checksum = struct.unpack("<QI", header)
            if masked_crc(header[:8]) != checksum:
                compressed = "; it is compressed: unpack it with gunzip" if header[:2] == b"\x1f\x8b" else ""
                raise damaged(path, number, place, f"has a length that fails its checksum{compressed}")
            end = place + HEADER + length + FOOTER
        if len(header) < HEADER or end > len(content):
            raise damaged(path, number, place, f"goes beyond the end of the file at byte {len(content)}: cut short")
        start = place + HEADER
        if verify:
            (checksum,) = struct.unpack("<I", content[end - FOOTER : end])
            if masked_crc(content[start : start + length]) != checksum:
                raise damaged(path, number, place, "fails its checksum")
        yield start, length
        place, number = end, number + 1


def damaged(path: Path, number: int, place: int, reason: str) -> DamagedRecord:
    """Return the error about a record, to be raised."""
    return DamagedRecord(f"{path}: record {number + 1} at byte {place} {reason}; copy or make the file anew")


def features(content: mmap.mmap | bytes, start: int, end: int) -> dict[str, tuple[int, int]]:
    """Return (start, length) of the first bytes value of each key of a serialised tf.train.Example.

    Its messages, with their field numbers: Example {1: Features}, Features {1: map from string to Feature, as entries
    {1: key, 2: value}}, Feature {1: BytesList, 2: FloatList, 3: Int64List}, BytesList {1: bytes}.
    """
    found: dict[str, tuple[int, int]] = {}
    for _, *within in _fields(content, start, end, wanted=1):
        for _, *entry in _fields(content, *within, wanted=1):
            parts = {field: (first, last) for field, first, last in _fields(content, *entry)}
            if 1 not in parts or 2 not in parts:
                raise DamagedRecord
            key = content[slice(*parts[1])].decode(errors="replace")
            for _, *values in _fields(content, *parts[2], wanted=1):
                for _, first, last in _fields(content, *values, wanted=1):
                    found.setdefault(key, (first, last - first))
    return found


def _fields(
    content: mmap.mmap | bytes, start: int, end: int, *, wanted: int | None = None
) -> Iterator[tuple[int, int, int]]:
    """Give (field number, start, end) of the fields of a protocol buffer message that have a length."""
    place = start
    while place < end:
        tag, place = _varint(content, place)
        if tag & 7 == 2:
            length, place = _varint(content, place)
            if place + length > end:
                raise DamagedRecord
            if wanted in (None, tag >> 3):
                yield tag >> 3, place, place + length
            place += length
        elif tag & 7 == 0:
            _, place = _varint(content, place)
        elif tag & 7 in (1, 5):
            place += 8 if tag & 7 == 1 else 4
        else:
            raise DamagedRecord
    if place != end:
        raise DamagedRecord


def _varint(content: mmap.mmap | bytes, place: int) -> tuple[int, int]:
    value = 0
    for step in range(10):
        byte = content[place + step]
        value |= (byte & 127) << 7 * step
        if byte < 128:
            return value, place + step + 1
    raise DamagedRecord
