"""The checksum in TensorFlow's files, records and checkpoints alike."""

from functools import lru_cache

import numpy as np

LANE = 128  # bytes of a lane of `crc32c`


def masked_crc(data: bytes) -> int:
    """Return the checksum that TensorFlow stores: CRC-32C, rotated right by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of `data`.

    Long data are cut into lanes whose remainders are computed side by side and then joined in pairs: joining needs
    the remainder of the left one after as many zero bytes as the right one is long, which is a linear map.
    """
    table = _crc_table()
    if len(data) < 4 * LANE:
        crc = 0xFFFFFFFF
        for byte in data:
            crc = int(table[(crc ^ byte) & 255]) ^ crc >> 8
        return crc ^ 0xFFFFFFFF
    lanes = -(-len(data) // LANE)
    padded = np.zeros(lanes * LANE, np.uint8)  # zeros in front change nothing
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[-len(data) : -len(data) + 4] ^= 255  # the same as to begin with a remainder of ones
    remainders = np.zeros(lanes, np.uint32)
    for column in np.ascontiguousarray(padded.reshape(lanes, LANE).T):
        remainders = table[(remainders ^ column) & 255] ^ remainders >> 8
    level = 0
    while len(remainders) > 1:
        if len(remainders) % 2:
            remainders = np.concatenate([np.zeros(1, np.uint32), remainders])
        remainders = _apply(_zeros_map(level), remainders[0::2]) ^ remainders[1::2]
        level += 1
    return int(remainders[0]) ^ 0xFFFFFFFF


@lru_cache
def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    return table


@lru_cache(maxsize=64)
def _zeros_map(level: int) -> np.ndarray:
    """Return what LANE * 2^level zero bytes do to a remainder, as (4, 256) uint32: a part for each of its bytes."""
    if level:
        half = _zeros_map(level - 1)
        return _apply(half, half)
    parts = np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)
    for _ in range(LANE):
        parts = _crc_table()[parts & 255] ^ parts >> 8
    return parts


def _apply(parts: np.ndarray, remainders: np.ndarray) -> np.ndarray:
    bytes_ = [remainders >> shift & 255 for shift in (0, 8, 16, 24)]
    return parts[0][bytes_[0]] ^ parts[1][bytes_[1]] ^ parts[2][bytes_[2]] ^ parts[3][bytes_[3]]
