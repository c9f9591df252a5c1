"""What a folder of shards holds: the manifest that a conversion writes last and training reads first."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from deeplab_recipes.data.sources.base import Colour

NAME = "manifest.json"
FORMAT = "deeplab-recipes shards"
FORMAT_VERSION = 1
SEAL = b',"sha256":"'  # what comes before the checksum of everything in front of it
MEND = "run the deeplab convert command that made it again: it redoes what is damaged and keeps the rest"


class Sample(NamedTuple):
    """Where a pair lies in its chunk: the labels follow the image. Both lengths are 0 for a pair that was unusable."""

    image_name: str
    label_name: str
    offset: int
    image_bytes: int
    label_bytes: int
    image_crc32: int
    label_crc32: int


@dataclass(frozen=True)
class Chunk:
    """A file of shards.

    Args:
        file: its name, PART/chunk-0-NUMBER.bin.
        size: in bytes.
        sha256: of its content.
        made_of: changes when the files that it was made of do.
        samples: what is in it, in order.
        as_png: how many images became PNG since they were no RGB file.
    """

    file: str
    size: int
    sha256: str
    made_of: str
    samples: Sequence[Sample]
    as_png: int = 0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Chunk":
        """Return what was written as a JSON object."""
        return cls(**{**values, "samples": [Sample(*row) for row in values["samples"]]})


@dataclass(frozen=True)
class Origin:
    """What shards were made from, and how.

    Args:
        source: class and settings of the data source, see `describe_source`.
        classes, palette: the source's.
        splits: the parts.
        chunk_mb: about the size of a chunk in MB.
        tiles: whether JPEGs are tiled.
    """

    source: Mapping[str, Any]
    classes: Sequence[str]
    palette: Sequence[Colour]
    splits: Sequence[str]
    chunk_mb: float
    tiles: bool = False


@dataclass(frozen=True)
class Manifest:
    """Finished shards.

    Args:
        origin: where they come from.
        chunks: of each part, in order.
        seal: checksum of the rest.
    """

    origin: Origin
    chunks: Mapping[str, Sequence[Chunk]]
    seal: str = field(default="", compare=False)

    def all_chunks(self) -> list[Chunk]:
        """Return the chunks of all parts."""
        return [chunk for chunks in self.chunks.values() for chunk in chunks]

    def counts(self) -> dict[str, int]:
        """Return the number of samples of each part."""
        return {part: sum(len(chunk.samples) for chunk in chunks) for part, chunks in self.chunks.items()}

    def unusable(self) -> list[str]:
        """Return the names of images that a conversion could not read."""
        return [s.image_name for chunk in self.all_chunks() for s in chunk.samples if not s.image_bytes]

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        values = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "counts": self.counts(),
            **vars(self.origin),
            "chunks": {part: [vars(chunk) for chunk in chunks] for part, chunks in self.chunks.items()},
        }
        content = json.dumps(values, separators=(",", ":")).encode()[:-1]
        return content + SEAL + hashlib.sha256(content).hexdigest().encode() + b'"}'

    @classmethod
    def from_bytes(cls, content: bytes, *, place: str) -> "Manifest":
        """Read the file's content.

        Args:
            content: what `to_bytes` gave.
            place: where it lies, for messages.

        Raises:
            ValueError: if it is no such file, of another version, or damaged.
        """
        body, _, end = content.rpartition(SEAL)
        seal = hashlib.sha256(body).hexdigest()
        if end != seal.encode() + b'"}':
            raise ValueError(f"{place}/{NAME} is damaged, or no manifest of shards; {MEND}")
        values = json.loads(content)
        if (values["format"], values["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(
                f"{place} holds {values['format']} of version {values['format_version']}, this program reads version "
                f"{FORMAT_VERSION}; convert the data again, into another folder"
            )
        chunks = {part: [Chunk.from_json(c) for c in chunks] for part, chunks in values["chunks"].items()}
        return cls(origin_from_json({key: values[key] for key in Origin.__dataclass_fields__}), chunks, seal)


def is_manifest(content: bytes) -> bool:
    """Whether bytes begin as a manifest does, damaged or not; other programs write a manifest.json too."""
    return FORMAT.encode() in content[:100]


def origin_from_json(values: Mapping[str, Any]) -> Origin:
    """Return the origin that was written as a JSON object."""
    palette = tuple(tuple(colour) for colour in values["palette"])
    return Origin(
        source=values["source"],
        classes=tuple(values["classes"]),
        palette=palette,
        splits=tuple(values["splits"]),
        chunk_mb=values["chunk_mb"],
        tiles=values["tiles"],
    )


def describe_source(source: Callable[..., Any]) -> dict[str, Any]:
    """Return the name of a source's class and its settings but `root`, defaults included.

    Args:
        source: the class, or a `functools.partial` of it.
    """
    function, given = (source.func, source.keywords) if isinstance(source, partial) else (source, {})
    defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    settings = {name: given.get(name, default) for name, default in defaults.items() if name != "root"}
    return {"name": function.__name__, "settings": json.loads(json.dumps(settings, default=str))}
