"""Photographs and label pictures from files to arrays."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Protocol

import cv2
import kornia_rs
import numpy as np
import simplejpeg
from PIL import Image

from deeplab_recipes.data.files import File, Piece
from deeplab_recipes.data.labels import decode_labels

JPEG_START = b"\xff\xd8"
PNG_START = b"\x89PNG\r\n\x1a\n"
DIRECT = ("YCbCr", "Gray", "RGB")  # colours of a JPEG that libjpeg turns into RGB itself


@contextmanager
def open_picture(file: File, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open a picture; what Pillow raises about a broken one becomes a ValueError that names the file.

    Args:
        file: the picture.
        content: its bytes, where they were read already.
    """
    try:
        if content is None and isinstance(file, Piece):
            content = file.read_bytes()
        with Image.open(file if content is None else BytesIO(content)) as picture:
            yield picture
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise unreadable(file, error) from None


def read_image(file: File) -> np.ndarray:
    """Decode a photograph to (H, W, 3) uint8 RGB.

    Raises:
        ValueError: if it cannot be decoded or has more than 8 bits a channel; names the file.
    """
    return open_photograph(file).pixels()


class Photograph(Protocol):
    """A photograph whose size is known, and whose pixels are decoded when they are asked for."""

    shape: tuple[int, int]

    def pixels(self) -> np.ndarray:
        """Return all pixels, (H, W, 3) uint8 RGB."""
        ...

    def region(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Return the pixels of rows [top, bottom) and columns [left, right)."""
        ...

    def reduced(self, factor: int) -> "Photograph":
        """Return it at 1 / `factor` of its size if it can be decoded so, else itself."""
        ...


class Decoded:
    """A photograph that is decoded already.

    Args:
        pixels: (H, W, 3) uint8 RGB.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.shape, self._pixels = pixels.shape[:2], pixels

    def pixels(self) -> np.ndarray:
        """Return (H, W, 3) uint8."""
        return self._pixels

    def region(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Return a view."""
        return self._pixels[top:bottom, left:right]

    def reduced(self, factor: int) -> "Decoded":
        """Return itself."""
        return self


class Jpeg:
    """A JPEG photograph, decoded by libjpeg-turbo (as Pillow decodes it, to the bit, in less time).

    Args:
        content: the file's bytes.
        file: where they are from, for messages.
        reduction: decode at 1/1, 1/2, 1/4 or 1/8 of the size, in the frequency domain.

    Raises:
        ValueError: here, if libjpeg-turbo does not take it; when pixels are asked for, if they are damaged. Names the
            file.
    """

    def __init__(self, content: bytes, file: File, reduction: int = 1) -> None:
        self.content, self.file, self.reduction = content, file, reduction
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        except ValueError as error:
            raise unreadable(file, error) from None
        if colours not in DIRECT:  # printers' colours
            raise unreadable(file, ValueError(f"{colours} JPEG"))
        if height * width > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
            raise unreadable(file, ValueError("decompression bomb"))
        self.shape = -(-height // reduction), -(-width // reduction)

    def pixels(self) -> np.ndarray:
        """Return (H, W, 3) uint8 RGB."""
        height, width = self.shape if self.reduction > 1 else (0, 0)
        try:
            return simplejpeg.decode_jpeg(self.content, min_height=height, min_width=width, min_factor=self.reduction)
        except ValueError:  # it is strict; what Pillow takes, everybody takes
            pixels = _by_pillow(self.content, self.file)
            return cv2.resize(pixels, self.shape[::-1], interpolation=cv2.INTER_AREA) if self.reduction > 1 else pixels

    def region(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Return a view of all pixels."""
        return self.pixels()[top:bottom, left:right]

    def reduced(self, factor: int) -> "Jpeg":
        """Return it at 1 / `factor` of its size, for a factor of 2, 4 or 8."""
        return Jpeg(self.content, self.file, factor)


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
            return Jpeg(content, file)
    return Decoded(_by_pillow(content, file))


def _by_pillow(content: bytes, file: File) -> np.ndarray:
    with open_picture(file, content) as image:
        if image.mode[0] in "IF":  # Pillow would clip their values to 255
            raise ValueError(f"{file}: an image must have 8 bits a channel, this one is {image.mode}")
        return np.asarray(image.convert("RGB"))


def unreadable(file: File, error: Exception) -> ValueError:
    """Return the error that names a file which is no picture, and why."""
    return ValueError(f"{file}: cannot be read as a picture ({error}); replace it or remove the pair")


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
    if _is_plain_png(content):
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        with suppress(Exception):  # a plain Exception is what it raises; then Pillow says what is wrong
            # It checks every checksum, and takes less than half the time of libpng.
            return kornia_rs.io.decode_image_png_u8(content, (height, width), "mono")[..., 0]
    with open_picture(file, content) as picture:
        return np.asarray(picture)


def _is_plain_png(content: bytes) -> bool:
    """Whether it is a PNG of one byte a pixel, grey or with a palette, that is not interlaced."""
    header = len(content) > 28 and content[:8] == PNG_START
    return header and content[24] == 8 and content[25] in (0, 3) and content[28] == 0


def picture_size(file: File) -> tuple[int, int]:
    """Return (height, width) from the header alone.

    Raises:
        ValueError: if there is no such header; names the file.
    """
    with open_picture(file) as picture:
        return picture.size[::-1]
