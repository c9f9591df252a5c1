"""Files, and files inside files: what a data source points to."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Piece:
    """A file inside a larger one (a record file, a shard); reads like a Path.

    Args:
        path: the larger file.
        offset, length: where its bytes are.
        name: what it was called before it was packed, for messages and for the pictures drawn of it.
    """

    path: Path
    offset: int
    length: int
    name: str

    def read_bytes(self) -> bytes:
        """Return its bytes.

        Raises:
            ValueError: if the larger file ends before.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.length)
        if len(content) < self.length:
            raise ValueError(f"{self.path} is cut short: {self.name} was to end at byte {self.offset + self.length}")
        return content

    @property
    def stem(self) -> str:
        """The name without folders and suffix."""
        return PurePosixPath(self.name).stem

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"


File = Path | Piece


def size_of(file: File) -> int:
    """Return how many bytes it has."""
    return file.length if isinstance(file, Piece) else file.stat().st_size


def shown(text: object) -> str:
    """Return `text` on one line that any terminal takes: names may hold newlines, or bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def guess_names(images: Sequence[File], labels: Sequence[File]) -> str | None:
    """Return why images and labels that have no partner may have been meant for each other, or None."""
    stems, others = ({file.stem for file in files} for files in (images, labels))
    if {_folded(stem) for stem in stems} & {_folded(stem) for stem in others}:
        return "some names differ only in capitals or in how an umlaut is spelled in Unicode"
    endings = _endings(stems, others)
    if len(endings) == 1:
        return f"the labels' names have an ending {endings.pop()!r} that the images' lack: rename them"
    return None


def _endings(stems: set[str], others: set[str]) -> set[str]:
    """Return what follows the names of `stems` in those of `others`."""
    return {other[cut:] for other in others for cut in range(1, len(other)) if other[:cut] in stems}


def _folded(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()
