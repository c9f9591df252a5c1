"""Photographs and label pictures from files to arrays."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image

from deeplab_recipes.data.files import File, Piece
from deeplab_recipes.data.labels import decode_labels


@contextmanager
def open_picture(file: File) -> Iterator[Image.Image]:
    """Open a picture; what Pillow raises about a broken one becomes a ValueError that names the file."""
    try:
        with Image.open(BytesIO(file.read_bytes()) if isinstance(file, Piece) else file) as picture:
            yield picture
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = f"cannot be read as a picture ({error}); replace it or remove the pair"
        raise ValueError(f"{file}: {reason}") from None


def read_image(file: File) -> np.ndarray:
    """Decode a photograph to (H, W, 3) uint8 RGB.

    Raises:
        ValueError: if it cannot be decoded or has more than 8 bits a channel; names the file.
    """
    with open_picture(file) as image:
        if image.mode[0] in "IF":  # Pillow would clip their values to 255
            raise ValueError(f"{file}: an image must have 8 bits a channel, this one is {image.mode}")
        return np.asarray(image.convert("RGB"))


def read_labels(file: File, table: np.ndarray) -> np.ndarray:
    """Decode a label picture to (H, W) uint8 classes and 255.

    Args:
        file: a picture with one number a pixel.
        table: from number to class, see `data.labels`.

    Raises:
        ValueError: if it cannot be decoded or holds a value outside the classes; names file and value.
    """
    with open_picture(file) as picture:
        stored = np.asarray(picture)
    return decode_labels(stored, table, name=str(file))


def picture_size(file: File) -> tuple[int, int]:
    """Return (height, width) from the header alone.

    Raises:
        ValueError: if there is no such header; names the file.
    """
    with open_picture(file) as picture:
        return picture.size[::-1]
