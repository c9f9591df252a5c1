"""Files, and files inside files: what a data source points to."""

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
