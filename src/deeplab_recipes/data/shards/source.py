"""Training from shards: a few large files in a folder or a bucket instead of many small ones."""

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from deeplab_recipes.data.files import Piece
from deeplab_recipes.data.shards import label_codec
from deeplab_recipes.data.shards.manifest import MEND, NAME, Chunk, Manifest, describe_source, is_manifest
from deeplab_recipes.data.shards.stores import Bucket, is_bucket, open_store, unwritable
from deeplab_recipes.data.sources.base import Colour, Pair, Source, require_split

UNFINISHED = ".convert"  # the folder in which a conversion keeps what is finished of it
PLAN = f"{UNFINISHED}/plan.json"


@dataclass(frozen=True)
class Remote:
    """A chunk in a bucket.

    Args:
        place: s3://BUCKET/PREFIX.
        name, size, sha256: see `manifest.Chunk`.
    """

    place: str
    name: str
    size: int
    sha256: str

    def bring(self, path: Path) -> None:
        """Copy it to `path` unless that is done already; whoever comes second waits for the first.

        Raises:
            ValueError: if the bucket holds other bytes.
            OSError: if it cannot be reached, or there is no room here.
        """
        if path.is_file():
            return
        with lock(path.with_name(f"{path.name}.lock")):
            if not path.is_file():
                try:
                    _bucket(self.place).fetch(self.name, path, size=self.size, sha256=self.sha256)
                except ValueError as error:
                    raise ValueError(f"{error}; {MEND}") from None


@dataclass(frozen=True)
class StoredPiece(Piece):
    """An image or labels in a chunk.

    Args:
        crc32: of its bytes, compared whenever they are read.
        remote: where the chunk is to be had if it is not at `path` yet, or None.
    """

    crc32: int
    remote: Remote | None

    def read_bytes(self) -> bytes:
        """Return its bytes.

        Raises:
            ValueError: if the chunk is damaged or cut short, or the conversion found the pair to be unusable; names
                the chunk, and how to mend it.
        """
        if self.length == 0:
            raise ValueError(f"{self} could not be read when it was converted; mend it there and convert again")
        content = self.start(self.length)
        if zlib.crc32(content) != self.crc32:
            raise ValueError(
                f"{self.path} is damaged: the bytes of {self.name} from {self.offset} on are not those that were "
                f"written; {self._mend()}"
            )
        return content

    def start(self, count: int) -> bytes:
        """Return the first `count` bytes, unchecked."""
        if self.remote is not None:
            self.remote.bring(self.path)
        count = min(count, self.length)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            content = file.read(count)
        if len(content) < count:
            raise ValueError(f"{self.path} is cut short: {self.name} begins at byte {self.offset}; {self._mend()}")
        return content

    def _mend(self) -> str:
        return MEND if self.remote is None else "delete that file, a copy: it is fetched again"


class Shards:
    """A data set that `deeplab convert` made; see `data.shards.convert`.

    Args:
        root: the folder, or s3://BUCKET/PREFIX.
        cache: where copies of a bucket's chunks are kept; None: ~/.cache/deeplab-recipes/shards.

    Raises:
        FileNotFoundError: if it is not there, unfinished, or lacks a chunk.
        ValueError: if the manifest is damaged, or a chunk has another size; names it, and how to mend it.
    """

    def __init__(self, root: str | Path, *, cache: str | Path | None = None) -> None:
        self.root = str(root).rstrip("/")
        store = open_store(root)
        # Kept as bytes: loader processes would get a copy of each object of it, see `Packed`.
        self._manifest = read_manifest(root)
        manifest = self.manifest()
        self.classes: tuple[str, ...] = tuple(manifest.origin.classes)
        self.palette: tuple[Colour, ...] = tuple(manifest.origin.palette)
        self.folder = cache_folder(cache) / manifest.seal[:16] if isinstance(store, Bucket) else Path(root)
        _require_chunks(dict(store.files()), manifest, self.root)

    def manifest(self) -> Manifest:
        """Return what it holds."""
        return Manifest.from_bytes(self._manifest, place=self.root)

    def pairs(self, split: str) -> list[Pair]:
        """Return the pairs of a part in the order of the source that it was made from."""
        chunks = self.manifest().chunks
        require_split(split, {part: part for part in chunks})
        return [pair for chunk in chunks[split] for pair in self._pairs(chunk)]

    def labels(self, pair: Pair) -> np.ndarray:
        """Return a pair's labels (H, W) uint8: classes and 255."""
        content = pair.label.read_bytes()
        try:
            return label_codec.unpack(content)
        except ValueError as error:
            raise ValueError(f"{pair.label}: {error}") from None

    def label_size(self, pair: Pair) -> tuple[int, int]:
        """Return (height, width) of a pair's labels; reads their header only."""
        label = pair.label
        content = label.start(label_codec.HEADER_BYTES) if isinstance(label, StoredPiece) else label.read_bytes()
        return label_codec.size(content)

    def _pairs(self, chunk: Chunk) -> Iterator[Pair]:
        remote = Remote(self.root, chunk.file, chunk.size, chunk.sha256) if is_bucket(self.root) else None
        path = self.folder / chunk.file
        for s in chunk.samples:
            behind = s.offset + s.image_bytes
            yield Pair(
                StoredPiece(path, s.offset, s.image_bytes, s.image_name, s.image_crc32, remote),
                StoredPiece(path, behind, s.label_bytes, s.label_name, s.label_crc32, remote),
            )


def open_source(source: Callable[[str], Source], root: str | Path, *, cache: str | Path | None = None) -> Source:
    """Open a data set: shards where there are some at `root`, else what the source reads.

    Args:
        source: called with `root`, gives the data set; a class or a `functools.partial` of one.
        root: a folder, or s3://BUCKET/PREFIX.
        cache: see `Shards`.

    Raises:
        ValueError: if the shards were made from another source or with other settings of it.
        FileNotFoundError: if the conversion was not finished.
    """
    if not is_bucket(root):
        if cache is not None:
            raise ValueError(
                f"data.cache={cache} is for shards on s3://...; data.root={root} is a folder: leave it out"
            )
        if not holds_shards(Path(root)):
            return source(str(root))
    shards = Shards(root, cache=cache)
    require_same_source(shards, source)
    return shards


def holds_shards(folder: Path) -> bool:
    """Whether a folder has finished or unfinished shards."""
    if (folder / PLAN).is_file():
        return True
    path = folder / NAME
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return is_manifest(file.read(100))


def require_same_source(shards: Shards, source: Callable[..., Any]) -> None:
    """Raise ValueError if shards were made from another source, or with other classes or settings."""
    made, asked = shards.manifest().origin.source, describe_source(source)
    if made["name"] != asked["name"]:
        raise ValueError(
            f"data.root={shards.root} holds shards of {made['name']} ({len(shards.classes)} classes), but the recipe's "
            f"data are {asked['name']}; choose other shards, or the recipe or data=NAME that they were made with"
        )
    for name in {**made["settings"], **asked["settings"]}:
        then, now = made["settings"].get(name), asked["settings"].get(name)
        if then != now:
            raise ValueError(
                f"the shards in {shards.root} were made with data.source.{name}={_shown(then)}, this run has "
                f"{_shown(now)}; set data.source.{name}={_shown(then)}, or convert again into another folder"
            )
    classes = getattr(getattr(source, "func", source), "classes", None)
    if isinstance(classes, tuple | list) and tuple(classes) != shards.classes:
        where = _first_difference(shards.classes, classes)
        raise ValueError(f"the shards in {shards.root} have other classes ({where}); convert again into another folder")


def read_manifest(root: str | Path) -> bytes:
    """Return the manifest's bytes.

    Raises:
        FileNotFoundError: if there is none; says whether a conversion was begun.
    """
    store = open_store(root)
    try:
        return store.read(NAME)
    except FileNotFoundError as error:
        if "no bucket" in str(error):
            raise
    try:
        store.read(PLAN)
    except FileNotFoundError:
        raise FileNotFoundError(f"data.root={root} holds no shards (no {NAME}); make them: deeplab convert") from None
    raise FileNotFoundError(
        f"the conversion into {root} is not finished; run its deeplab convert command again, which goes on"
    )


def cache_folder(given: str | Path | None) -> Path:
    """Return where copies of remote chunks go."""
    if given is not None:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deeplab-recipes/shards"


def lock(path: Path) -> FileLock:
    """Return a lock between processes, in a folder that is made for it; one that a killed process held is free.

    Raises:
        OSError: if the folder cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path.parent, error) from None
    return FileLock(path)


@lru_cache(maxsize=4)
def _bucket(place: str) -> Bucket:
    return Bucket(place)


def _require_chunks(sizes: dict[str, int], manifest: Manifest, root: str) -> None:
    wrong = [chunk for chunk in manifest.all_chunks() if sizes.get(chunk.file) != chunk.size]
    if not wrong:
        return
    first, others = wrong[0], f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    if first.file not in sizes:
        raise FileNotFoundError(f"{root}/{first.file} is missing{others}; {MEND}")
    raise ValueError(
        f"{root}/{first.file} is damaged{others}: it has {sizes[first.file]} bytes instead of {first.size}; {MEND}"
    )


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _first_difference(made: tuple[str, ...], asked: tuple[str, ...] | list[str]) -> str:
    index = next((i for i, (a, b) in enumerate(zip(made, asked, strict=False)) if a != b), min(len(made), len(asked)))
    names = [f"{classes[index]!r}" if index < len(classes) else "none" for classes in (made, asked)]
    return f"class {index} is {names[0]} there and {names[1]} in the recipe"
