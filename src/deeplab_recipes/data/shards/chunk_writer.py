"""Writing one file of shards: pairs become bytes, and litdata packs them.

An image stays the file that it was if it is a JPEG or PNG with three channels of 8 bits; others become such a PNG,
which decodes to the same pixels. JPEGs are tiled if asked for, see `tiled_jpeg`. Labels are stored as classes, see
`label_codec`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from PIL import Image

from deeplab_recipes.data.dataset import OnCorrupt
from deeplab_recipes.data.files import File
from deeplab_recipes.data.pictures import PNG_START, open_picture
from deeplab_recipes.data.reading import read_image
from deeplab_recipes.data.shards import label_codec
from deeplab_recipes.data.shards.manifest import Chunk, Sample
from deeplab_recipes.data.shards.source import UNFINISHED
from deeplab_recipes.data.shards.stores import open_store, unwritable
from deeplab_recipes.data.shards.tiled_jpeg import CannotTile, tile
from deeplab_recipes.data.sources.base import Pair, Source, read_pair

HOPELESS = 8  # pairs in a row that cannot be read: no accident


class Packet(NamedTuple):
    """A pair as it is stored."""

    name: bytes
    image: bytes
    label: bytes


@dataclass(frozen=True)
class Job:
    """A chunk to be written: a run of pairs of one part.

    Args:
        part: the part.
        number: of the chunk in its part.
        start: index of its first pair in the part.
        count: number of pairs.
        made_of: changes when a file or a setting does that it is made from.
    """

    part: str
    number: int
    start: int
    count: int
    made_of: str

    @property
    def file(self) -> str:
        """Name of the chunk; litdata's for a single writer."""
        return f"{self.part}/chunk-0-{self.number}.bin"

    @property
    def record(self) -> str:
        """Name of the note that it is finished."""
        return f"{UNFINISHED}/{self.part}-{self.number}.json"


@dataclass(frozen=True)
class Work:
    """What a process needs to write chunks.

    Args:
        source: the data.
        pairs: of each part.
        output: where the chunks go.
        folder: for passing files.
        on_corrupt: "raise", or "skip": an unusable pair keeps its place and is empty.
        tiles: tile JPEGs.
    """

    source: Source
    pairs: Mapping[str, Sequence[Pair]]
    output: str
    folder: Path
    on_corrupt: OnCorrupt
    tiles: bool = False


def stored_image(file: File, *, tiles: bool) -> bytes:
    """Return what a shard keeps of an image: the file as it is, or a PNG of the same pixels.

    Args:
        file: the image.
        tiles: of a JPEG that can have them, return the tiled one.

    Raises:
        ValueError: if it cannot be decoded.
    """
    content = file.read_bytes()
    with open_picture(file) as picture:
        as_it_is = picture.mode == "RGB" and picture.format in ("JPEG", "MPO", "PNG")  # MPO: a JPEG, and others behind
        is_jpeg = picture.format == "JPEG"
    if as_it_is:
        with suppress(CannotTile):
            return tile(content) if tiles and is_jpeg else content
        return content
    buffer = BytesIO()
    Image.fromarray(read_image(file)).save(buffer, "png")
    return buffer.getvalue()


def write_chunk(job: Job, work: Work) -> Chunk:
    """Write a chunk, and then the record that says so.

    Raises:
        ValueError: for a pair that cannot be read.
        OSError: if the chunk cannot be written.
    """
    store = open_store(work.output)
    pairs = work.pairs[job.part][job.start : job.start + job.count]
    packets = [_packet(pair, work) for pair in pairs]
    if len(packets) >= HOPELESS and not any(packet.image for packet in packets):
        read_pair(pairs[0], work.source)  # raises: the whole set does not fit, say for another label encoding
    content, _ = litdata_chunk(packets, work.folder / f"{job.part}-{job.number}")
    both = zip(packets, pairs, strict=True)
    as_png = sum(p.image.startswith(PNG_START) and p.image != pair.image.read_bytes() for p, pair in both)
    samples = [_sample(pair, p, at) for pair, p, at in zip(pairs, packets, _offsets(content, packets), strict=True)]
    chunk = Chunk(job.file, len(content), hashlib.sha256(content).hexdigest(), job.made_of, samples, as_png)
    store.write(job.file, content)
    store.write(job.record, json.dumps(vars(chunk)).encode())
    return chunk


def _packet(pair: Pair, work: Work) -> Packet:
    name = os.fsencode(pair.image.name)
    try:
        _, labels = read_pair(pair, work.source)  # decodes the image too: a broken one is found now, not in training
        return Packet(name, stored_image(pair.image, tiles=work.tiles), label_codec.pack(labels))
    except ValueError:
        if work.on_corrupt == "raise":
            raise
        return Packet(name, b"", b"")


def _sample(pair: Pair, packet: Packet, offset: int) -> Sample:
    lengths = (len(packet.image), len(packet.label))
    return Sample(pair.image.name, pair.label.name, offset, *lengths, crc32(packet.image), crc32(packet.label))


def litdata_writer() -> Callable[..., Any]:
    """Return litdata's writer of chunks; takes seconds the first time.

    Raises:
        ImportError: if litdata is not installed; says how to get it.
    """
    try:
        from litdata.streaming.writer import BinaryWriter
    except ImportError:
        raise ImportError(
            "litdata is not installed; it comes with an extra: pip install 'deeplab-recipes[shards]'"
        ) from None
    return BinaryWriter


def litdata_chunk(packets: Sequence[Packet], folder: Path) -> tuple[bytes, dict[str, Any]]:
    """Let litdata write a chunk; return its bytes and litdata's description of the format.

    Args:
        packets: the samples.
        folder: for litdata to write to; gone afterwards.

    Raises:
        OSError: if the folder cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        writer = litdata_writer()(str(folder), chunk_size=len(packets))
        for i, packet in enumerate(packets):
            writer[i] = tuple(packet)
        (file,) = writer.done()
        (index,) = folder.glob("*.index.json")
        return Path(file).read_bytes(), json.loads(index.read_text())["config"]
    except OSError as error:
        raise unwritable(folder, error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _offsets(content: bytes, packets: Sequence[Packet]) -> list[int]:
    """Find where each image begins: number of samples, their starts and the end, then each: lengths, then bytes.

    All numbers are uint32, little endian (litdata's chunk format; the writer describes it).

    Raises:
        RuntimeError: if that is not how litdata wrote it.
    """
    starts = np.frombuffer(content, "<u4", len(packets), offset=4).tolist()
    found = [start + 4 * len(packet) + len(packet.name) for start, packet in zip(starts, packets, strict=True)]
    for at, packet in zip(found, packets, strict=True):
        if not content.startswith(packet.image + packet.label, at):
            raise RuntimeError("this version of litdata writes chunks otherwise than 0.2.76, which is known to work")
    return found
