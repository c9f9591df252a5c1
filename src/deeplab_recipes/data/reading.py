"""Photographs and label pictures from files to arrays."""

from contextlib import suppress

import kornia_rs
import numpy as np

from deeplab_recipes.data.files import File
from deeplab_recipes.data.labels import decode_labels
from deeplab_recipes.data.pictures import (
    PNG_START,
    Decoded,
    Jpeg,
    Photograph,
    decode_by_pillow,
    is_too_large,
    open_picture,
    stored_numbers,
    unreadable,
)
from deeplab_recipes.data.shards.tiled_jpeg import Tiled, is_tiled

JPEG_START = b"\xff\xd8"


def read_image(file: File) -> np.ndarray:
    """Decode a photograph to (H, W, 3) uint8 RGB.

    Raises:
        ValueError: if it cannot be decoded or has more than 8 bits a channel; names the file.
    """
    return open_photograph(file).pixels()


def open_photograph(file: File) -> Photograph:
    """Open a photograph.

    Raises:
        ValueError: if it cannot be decoded (a JPEG: if its header cannot) or has more than 8 bits a channel; names the
            file.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from None
    if content.startswith(JPEG_START):
        with suppress(ValueError):
            return Tiled(content, file) if is_tiled(content) else Jpeg(content, file)
    return Decoded(decode_by_pillow(content, file))


def read_labels(file: File, table: np.ndarray) -> np.ndarray:
    """Decode a label picture to (H, W) uint8 classes and 255.

    Args:
        file: a picture with one number a pixel.
        table: from number to class, see `data.labels`.

    Raises:
        ValueError: if it cannot be decoded or holds a value outside the classes; names file and value.
    """
    return decode_labels(read_numbers(file), table, name=str(file))


def read_numbers(file: File) -> np.ndarray:
    """Decode a label picture to what it stores: (H, W) uint8 numbers (of a palette picture the indices) as a rule.

    Raises:
        ValueError: if it cannot be decoded; names the file.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from None
    size = _plain_png_size(content)
    if size and not is_too_large(*size):
        with suppress(Exception):  # a plain Exception is what it raises; Pillow then says what is wrong
            # It checks every checksum, and takes less than half the time of libpng.
            return kornia_rs.io.decode_image_png_u8(content, size, "mono")[..., 0]
    with open_picture(file, content) as picture:
        return stored_numbers(picture)


def _plain_png_size(content: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a PNG of one byte a pixel, grey or with a palette, that is not interlaced."""
    if (
        len(content) > 28
        and content[:8] == PNG_START
        and content[24] == 8
        and content[25] in (0, 3)
        and not content[28]
    ):
        return int.from_bytes(content[20:24], "big"), int.from_bytes(content[16:20], "big")
    return None
