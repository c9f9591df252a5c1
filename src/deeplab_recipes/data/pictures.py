"""Pictures: opening any, and decoding photographs as far as they are needed."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Protocol

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from deeplab_recipes.data.files import File, Piece

PNG_START = b"\x89PNG\r\n\x1a\n"
GREY_STEPS = {"L;2": 85, "L;4": 17}  # by which Pillow multiplies grey of few bits
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


def picture_size(file: File) -> tuple[int, int]:
    """Return (height, width) from the header alone.

    Raises:
        ValueError: if there is no such header; names the file.
    """
    with open_picture(file) as picture:
        return picture.size[::-1]


def stored_numbers(picture: Image.Image) -> np.ndarray:
    """Return what a label picture (opened, but not loaded) stores, (H, W) of one channel; of a palette the indices."""
    packed = picture.tile[0][3] if picture.format == "PNG" and picture.tile else None
    return np.asarray(picture) // np.uint8(GREY_STEPS[packed]) if packed in GREY_STEPS else np.asarray(picture)


def decode_by_pillow(content: bytes, file: File) -> np.ndarray:
    """Decode a picture of any format and colours to (H, W, 3) uint8 RGB.

    Raises:
        ValueError: if it cannot be decoded or has more than 8 bits a channel; names the file.
    """
    with open_picture(file, content) as image:
        if image.mode[0] in "IF":  # Pillow would clip their values to 255
            raise ValueError(f"{file}: an image must have 8 bits a channel, this one is {image.mode}")
        return np.asarray(image.convert("RGB"))


def decode_jpeg(content: bytes | bytearray, file: File) -> np.ndarray:
    """Decode a JPEG to (H, W, 3) uint8 RGB.

    Raises:
        ValueError: if it cannot be decoded; names the file.
    """
    try:
        return simplejpeg.decode_jpeg(content)
    except ValueError:  # it is strict; what Pillow takes, everybody takes
        return decode_by_pillow(bytes(content), file)


def is_too_large(height: int, width: int) -> bool:
    """Whether Pillow refuses a picture of this size as a decompression bomb."""
    return height * width > 2 * (Image.MAX_IMAGE_PIXELS or math.inf)


def unreadable(file: File, error: Exception) -> ValueError:
    """Return the error that names a file which is no picture, and why."""
    return ValueError(f"{file}: cannot be read as a picture ({error}); replace it or remove the pair")


class Photograph(Protocol):
    """A photograph whose size is known, and whose pixels are decoded when they are asked for.

    Attributes:
        shape: (height, width) in pixels.
        extent: the same, but exact where it was decoded at a part of its size and the last pixels are not whole.
    """

    shape: tuple[int, int]
    extent: tuple[float, float]

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
        self.shape = self.extent = pixels.shape[:2]
        self._pixels = pixels

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
        if is_too_large(height, width):
            raise unreadable(file, ValueError("decompression bomb"))
        self.shape = -(-height // reduction), -(-width // reduction)
        self.extent = height / reduction, width / reduction

    def pixels(self) -> np.ndarray:
        """Return (H, W, 3) uint8 RGB."""
        if self.reduction == 1:
            return decode_jpeg(self.content, self.file)[:, : self.shape[1]]  # a tiled one is filled up to the right
        height, width = self.shape
        try:
            pixels = simplejpeg.decode_jpeg(self.content, min_height=height, min_width=width, min_factor=self.reduction)
            return pixels[:, :width]
        except ValueError:
            pixels = decode_by_pillow(self.content, self.file)
            return cv2.resize(pixels, self.shape[::-1], interpolation=cv2.INTER_AREA)

    def region(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Return a view of all pixels."""
        return self.pixels()[top:bottom, left:right]

    def reduced(self, factor: int) -> "Jpeg":
        """Return it at 1 / `factor` of its size, for a factor of 2, 4 or 8."""
        return Jpeg(self.content, self.file, factor)
