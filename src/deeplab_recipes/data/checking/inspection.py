"""Reading every pair of a data set once, in several processes, into counters and findings."""

import hashlib
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from simplejpeg import decode_jpeg

from deeplab_recipes.data.checking.guesses import Stored, guess_sizes, look_at_labels
from deeplab_recipes.data.files import File
from deeplab_recipes.data.labels import IGNORE
from deeplab_recipes.data.packed import Packed
from deeplab_recipes.data.pictures import Photograph, open_picture
from deeplab_recipes.data.reading import open_photograph, read_image
from deeplab_recipes.data.sources.base import Pair, Source, require_same_size
from deeplab_recipes.fetching.progress import Meter
from deeplab_recipes.notices import end_with_parent

CHUNK = 32  # pairs that a process reads before it answers
PLAIN = (("JPEG", "RGB"), ("JPEG", "L"))  # what libjpeg-turbo turns into RGB as Pillow does
JPEGS = {".jpg", ".jpeg"}
ORIENTATION = 0x0112  # EXIF's tag: 1 is upright
EXACT = 1 << 24  # OpenCV counts in float32, which is exact up to here
Place = tuple[str, int]  # part and index of a pair


@dataclass(frozen=True)
class Finding:
    """Something about one file; what kinds there are and what they mean is in `data.checking.report`."""

    kind: str
    file: str
    message: str


@dataclass
class Tally:
    """What was counted over pairs; `pixels` and `images` hold usable ones only.

    Args:
        pairs: how many were read.
        pixels: (256,) pixels by class; 255 is not labelled.
        images: (256,) images in which a class has any pixel.
        empty: images without any labelled pixel.
        sizes: images by (height, width).
        findings: see `Finding`.
        unusable: indices of pairs that training could not use.
        digests: of each image by index; equal for equal pixels, and seldom for others.
        stored: what those label pictures hold that do not fit.
    """

    pairs: int = 0
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    empty: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    unusable: list[int] = field(default_factory=list)
    digests: dict[int, bytes] = field(default_factory=dict)
    stored: Stored = field(default_factory=Stored)

    def add(self, other: "Tally") -> None:
        """Take over the counts of other pairs."""
        self.pairs += other.pairs
        self.pixels += other.pixels
        self.images += other.images
        self.empty += other.empty
        self.sizes += other.sizes
        self.findings += other.findings
        self.unusable += other.unusable
        self.digests.update(other.digests)
        self.stored.add(other.stored)

    def note(self, kind: str, file: File, message: object) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, str(file), str(message)))


@dataclass(frozen=True)
class Twins:
    """Images of the same pixels: their places, and whether their labels are the same too."""

    places: tuple[Place, ...]
    same_labels: bool


@dataclass(frozen=True)
class Inspection:
    """What reading a data set gave: a tally for each part, and the images that occur twice."""

    parts: Mapping[str, Tally]
    twins: Sequence[Twins]


def inspect(parts: Mapping[str, Sequence[Pair]], source: Source, *, processes: int) -> Inspection:
    """Read every pair of every part.

    Args:
        parts: the pairs by part.
        source: what reads their labels.
        processes: how many read; 0 reads in this one.

    Raises:
        OSError: if a reading process is ended from outside.
    """
    packed = {part: Packed(pairs) for part, pairs in parts.items()}
    tallies = {part: Tally() for part in parts}
    pieces = [(part, start) for part, pairs in packed.items() for start in range(0, len(pairs), CHUNK)]
    total = sum(map(len, packed.values()))
    with (
        _readers(_Task(packed, source, _one_format(parts)), processes) as spread,
        Meter("check", total, unit="pairs") as meter,
    ):
        for (part, _), tally in zip(pieces, spread(_inspect_piece, pieces), strict=True):
            tallies[part].add(tally)
            meter.add(tally.pairs)
        candidates = _alike(tallies)
        places = [place for group in candidates for place in group]
        meter.expect(len(places))  # images that may be the same are read once more
        digests = _counted(spread(_exact, places), meter)
        twins = [twin for group in candidates for twin in _equal(group, digests)]
    return Inspection(tallies, twins)


def _one_format(parts: Mapping[str, Sequence[Pair]]) -> bool:
    """Whether all images are JPEGs, or none is."""
    jpegs = {Path(pair.image.name).suffix.lower() in JPEGS for pairs in parts.values() for pair in pairs}
    return len(jpegs) < 2


def _counted(results: Iterable[tuple[bytes, bytes]], meter: Meter) -> Iterator[tuple[bytes, bytes]]:
    for result in results:
        meter.add(1)
        yield result


def inspect_pair(index: int, pair: Pair, source: Source, tally: Tally, *, small: bool = True) -> None:
    """Read a pair as training would, and count it.

    Args:
        index: of the pair in its part.
        pair: what to read.
        source: what reads its labels.
        tally: where it is counted.
        small: take the digest of a JPEG that is decoded small; it is none that the same image has in another format.
    """
    tally.pairs += 1
    size, labels = _look_at_image(index, pair, tally, small=small), _read_labels(pair, source, tally)
    if size is not None and labels is not None:
        try:
            require_same_size(pair, size, labels.shape)
        except ValueError as error:
            tally.note("size", pair.image, f"{error}{guess_sizes(size, labels.shape)}")
        else:
            _count(pair, size, labels, tally)
            return
    tally.unusable.append(index)


def _look_at_image(index: int, pair: Pair, tally: Tally, *, small: bool) -> tuple[int, int] | None:
    """Return an image's size, or None if it cannot be read."""
    try:
        with open_picture(pair.image) as picture:
            mode, kind = picture.mode, picture.format
            turned = "exif" in picture.info and picture.getexif().get(ORIENTATION, 1) not in (0, 1)
        photograph = open_photograph(pair.image)
        plain = (kind, mode) in PLAIN
        pixels = _decode(pair.image, photograph, tally, small=small) if plain else photograph.pixels()
    except (ValueError, OSError) as error:
        tally.note("unreadable", pair.image, error)
        return None
    if mode != "RGB":
        tally.note(f"mode {mode}", pair.image, f"{pair.image} is {mode}")
    if turned:
        tally.note("turned", pair.image, f"{pair.image} is stored turned or mirrored")
    tally.digests[index] = _digest(pixels, photograph.shape)
    return photograph.shape


def _decode(file: File, photograph: Photograph, tally: Tally, *, small: bool) -> np.ndarray:
    """Decode a JPEG; at the smallest scale that still reads every byte, and takes half the time."""
    least = int(small)  # 0: as it is
    try:
        pixels = decode_jpeg(file.read_bytes(), "RGB", min_height=least, min_width=least)
    except ValueError as error:
        pixels = photograph.pixels()  # what training uses has the last word
        tally.note("damaged", file, f"{file} has damaged places ({error})")
    return pixels[:, : photograph.shape[1]]  # a tiled one is filled up to the right


def _read_labels(pair: Pair, source: Source, tally: Tally) -> np.ndarray | None:
    try:
        return source.labels(pair)
    except (ValueError, OSError) as error:
        stored = look_at_labels(pair.label)
        picture = stored is None and Path(pair.label.name).suffix.lower() in Image.registered_extensions()
        tally.note("unreadable" if picture else "labels", pair.label, error)
        tally.stored.add(stored or Stored())
        return None


def _count(pair: Pair, size: tuple[int, int], labels: np.ndarray, tally: Tally) -> None:
    if labels.size < EXACT:
        counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    else:
        counts = np.bincount(labels.ravel(), minlength=256)
    tally.pixels += counts
    tally.images += counts > 0
    tally.sizes[size] += 1
    if counts[IGNORE] == labels.size:
        tally.empty += 1
        tally.note("empty", pair.label, f"{pair.label} has no labelled pixel")


def _digest(pixels: np.ndarray, shape: tuple[int, ...]) -> bytes:
    digest = hashlib.blake2b(repr(shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels))
    return digest.digest()


def _alike(tallies: Mapping[str, Tally]) -> list[list[Place]]:
    """Return the places of images that share a digest."""
    groups: dict[bytes, list[Place]] = {}
    for part, tally in tallies.items():
        for index, digest in tally.digests.items():
            groups.setdefault(digest, []).append((part, index))
    return [group for group in groups.values() if len(group) > 1]


def _equal(group: list[Place], digests: Iterator[tuple[bytes, bytes]]) -> list[Twins]:
    """Tell by all pixels which of a group are the same."""
    found: dict[bytes, list[tuple[Place, bytes]]] = {}
    for place, (image, labels) in zip(group, digests, strict=False):
        found.setdefault(image, []).append((place, labels))
    same = [twins for twins in found.values() if len(twins) > 1]
    return [Twins(tuple(place for place, _ in t), same_labels=len({labels for _, labels in t}) == 1) for t in same]


@dataclass(frozen=True)
class _Task:
    """What a reading process works on; see `inspect` and `inspect_pair`."""

    packed: Mapping[str, Packed[Pair]]
    source: Source
    small: bool


_task: _Task  # of this process


def _start(task: _Task) -> None:
    global _task
    _task = task


def _inspect_piece(piece: Place) -> Tally:
    part, start = piece
    tally, pairs = Tally(), _task.packed[part]
    for index in range(start, min(start + CHUNK, len(pairs))):
        inspect_pair(index, pairs[index], _task.source, tally, small=_task.small)
    return tally


def _exact(place: Place) -> tuple[bytes, bytes]:
    """Return a digest of all pixels of an image, and one of its labels."""
    pair = _task.packed[place[0]][place[1]]
    image = read_image(pair.image)
    try:
        stored = _task.source.labels(pair)
        labels = _digest(stored, stored.shape)
    except (ValueError, OSError):
        labels = b""
    return _digest(image, image.shape), labels


@contextmanager
def _readers(task: _Task, processes: int) -> Iterator:
    """Give a `map` that spreads work over processes; its results come in order."""
    if processes == 0:
        _start(task)
        yield map
        return
    pool = ProcessPoolExecutor(processes, initializer=_start_own, initargs=(task,))
    try:
        yield pool.map
    except BrokenProcessPool:
        raise OSError(
            "a reading process was ended from outside, perhaps for want of memory; data.workers=1 needs the least"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_own(task: _Task) -> None:
    """Prepare a process: Ctrl-C is its parent's affair, and with its parent it ends."""
    _start(task)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
