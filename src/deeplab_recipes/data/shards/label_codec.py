"""How shards keep labels: a short header, and the classes compressed without loss."""

import struct

import lz4.block
import numpy as np

HEADER = struct.Struct("<3sBII")  # magic, format, height, width
HEADER_BYTES = HEADER.size
MAGIC = b"DLL"
FORMAT = 1
EFFORT = 12  # of the encoder; it makes labels as small as PNG does, and decoding takes a tenth of the time


def pack(labels: np.ndarray) -> bytes:
    """Compress labels (H, W) uint8.

    Raises:
        ValueError: for another shape or type.
    """
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"labels are (H, W) uint8, these are {labels.shape} {labels.dtype}")
    pixels = np.ascontiguousarray(labels)
    body = lz4.block.compress(pixels, mode="high_compression", compression=EFFORT, store_size=False)
    return HEADER.pack(MAGIC, FORMAT, *labels.shape) + body


def unpack(packed: bytes) -> np.ndarray:
    """Return the labels (H, W) uint8 that `pack` was given.

    Raises:
        ValueError: if these bytes are no such labels, or cut short.
    """
    height, width = size(packed)
    try:
        pixels = lz4.block.decompress(packed[HEADER_BYTES:], uncompressed_size=height * width, return_bytearray=True)
    except lz4.block.LZ4BlockError as error:
        raise ValueError(f"packed labels are damaged ({error})") from None
    if len(pixels) != height * width:
        raise ValueError(f"packed labels hold {len(pixels)} pixels instead of {height} x {width}")
    return np.frombuffer(pixels, np.uint8).reshape(height, width)


def size(packed: bytes) -> tuple[int, int]:
    """Return (height, width) from the first `HEADER_BYTES`.

    Raises:
        ValueError: if these bytes do not begin as packed labels do.
    """
    if len(packed) < HEADER_BYTES or packed[:3] != MAGIC:
        raise ValueError("these bytes are no packed labels")
    _, version, height, width = HEADER.unpack_from(packed)
    if version != FORMAT:
        raise ValueError(f"packed labels have format {version}, this program reads {FORMAT}")
    return height, width
