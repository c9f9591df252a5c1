import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image


class Draws:
    """A random generator that remembers what it gave, so that a test can give the same to the original."""

    def __init__(self, seed: int):
        self.generator = np.random.default_rng(seed)
        self.uniforms, self.integer, self.randoms = [], [], []

    def uniform(self, *args, **options):
        self.uniforms.append(self.generator.uniform(*args, **options))
        return self.uniforms[-1]

    def integers(self, *args):
        self.integer.append(int(self.generator.integers(*args)))
        return self.integer[-1]

    def random(self, *args):
        self.randoms.append(self.generator.random(*args))
        return self.randoms[-1]


def photograph(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth picture with some noise (H, W, 3) uint8: neither flat nor white noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


def patches(seed: int, height: int, width: int, *, values: int = 6, first: int = 0) -> np.ndarray:
    """Labels in blobs (H, W) uint8 with the values first .. first + values - 1."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(first, first + values, (4, 5), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


@pytest.fixture(scope="session")
def draws() -> type[Draws]:
    return Draws


@pytest.fixture(scope="session")
def make_photograph() -> Callable[..., np.ndarray]:
    return photograph


@pytest.fixture(scope="session")
def make_patches() -> Callable[..., np.ndarray]:
    return patches


@pytest.fixture
def make_ade20k(tmp_path: Path) -> Callable[..., Path]:
    """Write a small set in ADE20k's layout; stored labels are 0 (unlabelled) .. 5. Gives its folder."""

    def make(train: int, validation: int, *, sizes: tuple[tuple[int, int], ...] = ((40, 52),)) -> Path:
        root = tmp_path / "ADEChallengeData2016"
        for folder, tag, count in (("training", "train", train), ("validation", "val", validation)):
            images, labels = root / "images" / folder, root / "annotations" / folder
            images.mkdir(parents=True)
            labels.mkdir(parents=True)
            for i in range(count):
                size, name = sizes[i % len(sizes)], f"ADE_{tag}_{i + 1:08d}"
                Image.fromarray(photograph(i, *size)).save(images / f"{name}.jpg", quality=95)
                Image.fromarray(patches(i, *size)).save(labels / f"{name}.png")
        return root

    return make


@pytest.fixture(scope="session")
def few_bits() -> Callable[[Path, np.ndarray, int], None]:
    """Write (H, W) uint8 as a grey PNG of 1, 2 or 4 bits a pixel, which Pillow cannot."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def write(path: Path, numbers: np.ndarray, bits: int) -> None:
        height, width = numbers.shape
        pixels = np.unpackbits(numbers[..., None], axis=-1)[..., -bits:].reshape(height, -1)
        rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(pixels, axis=-1))
        header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
        parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))

    return write


@pytest.fixture
def truncate() -> Callable[[Path], Path]:
    """Cut a file off in the middle."""

    def cut(path: Path) -> Path:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        return path

    return cut
