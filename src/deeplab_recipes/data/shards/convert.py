"""`deeplab convert`: any data source to shards, in parallel, and from where it stopped if it did.

OUTPUT/manifest.json           what is in it, see `data.shards.manifest`; written last
OUTPUT/PART/chunk-0-N.bin      pairs in litdata's format; each is a tuple of bytes: name, image, labels
OUTPUT/PART/index.json         litdata's, for its own StreamingDataset
OUTPUT/.convert/               while it is not finished: the plan, and a record of each finished chunk
"""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from filelock import Timeout

from deeplab_recipes.data.dataset import OnCorrupt
from deeplab_recipes.data.files import File, Piece, size_of
from deeplab_recipes.data.packed import Packed
from deeplab_recipes.data.shards import label_codec
from deeplab_recipes.data.shards.chunk_writer import Job, Packet, Work, litdata_chunk, litdata_writer, write_chunk
from deeplab_recipes.data.shards.manifest import (
    FORMAT_VERSION,
    NAME,
    Chunk,
    Manifest,
    Origin,
    describe_source,
    is_manifest,
    origin_from_json,
)
from deeplab_recipes.data.shards.source import PLAN, UNFINISHED, Shards, StoredPiece, cache_folder, lock, open_source
from deeplab_recipes.data.shards.stores import Folder, Store, open_store, unwritable
from deeplab_recipes.data.sources.base import Pair, Source
from deeplab_recipes.fetching.progress import Meter
from deeplab_recipes.machine import cores
from deeplab_recipes.notices import end_with_parent

WITHDRAWN = f"{UNFINISHED}/{NAME}"  # a manifest whose chunks are being redone
LOCK_SECONDS = 10  # in which the processes of a killed conversion end
MAX_CHUNK_MB = 256  # litdata's offsets have 32 bits, and an image that becomes PNG may grow tenfold
LOCK = "lock"


@dataclass
class Summary:
    """What a conversion did.

    Args:
        place: where the shards are.
        manifest: what they hold.
        kept: chunks that were there already.
        seconds: how long it took.
    """

    place: str
    manifest: Manifest
    kept: int
    seconds: float

    def __str__(self) -> str:
        counts = " and ".join(f"{count:,} {part}" for part, count in self.manifest.counts().items())
        chunks = self.manifest.all_chunks()
        size = sum(chunk.size for chunk in chunks)
        were = "was" if self.kept == 1 else "were"
        kept = f" ({self.kept} of them {were} there already)" if self.kept else ""
        lines = [
            f"{counts} pairs of {self.manifest.origin.source['name']} in {len(chunks)} chunks{kept}, "
            f"{size / 1e6:,.1f} MB, in {self.seconds:,.1f} s"
        ]
        as_png = sum(chunk.as_png for chunk in chunks)
        if as_png:
            lines.append(f"{as_png} images were no RGB JPEG or PNG and are stored as PNG, pixel for pixel")
        unusable = self.manifest.unusable()
        if unusable:
            more = ", ..." if len(unusable) > 3 else ""
            lines.append(f"{len(unusable)} unusable pairs are empty: {', '.join(unusable[:3])}{more}")
        return "\n".join([*lines, f"train from them with data.root={self.place}"])


def convert(
    source: Callable[[str], Source],
    root: str | Path,
    output: str | Path,
    *,
    splits: Sequence[str] = ("train", "validation"),
    chunk_mb: float = 16,
    workers: int | str = "auto",
    tiles: bool = True,
    on_corrupt: OnCorrupt = "raise",
    progress: bool = True,
) -> Summary:
    """Write a data set as shards. The same call again does what is missing, damaged or out of date, and no more.

    Args:
        source: called with `root`, gives the data set; a class or a `functools.partial` of one.
        root: where the data are.
        output: a folder, which need not exist, or s3://BUCKET/PREFIX.
        splits: the parts to convert.
        chunk_mb: about the size of a chunk in MB.
        tiles: put restart markers into JPEGs, which changes no coefficient: training then decodes what a crop shows.
        workers: processes, or "auto": as many as there are cores; 0 or 1 convert in this one.
        on_corrupt: what to do about a pair that cannot be read, see `Work`.
        progress: show it.

    Raises:
        ValueError: for data that cannot be read, wrong settings, or an output of other settings; says which.
        FileExistsError: if `output` holds something else.
        OSError: if it cannot be written.
    """
    began = time.perf_counter()
    _require_settings(splits, chunk_mb, workers)
    data, store = open_source(source, root), open_store(output)
    origin = Origin(describe_source(source), tuple(data.classes), tuple(data.palette), tuple(splits), chunk_mb, tiles)
    _require_other_place(data, store)
    _require_ours(store, origin)
    pairs = {part: Packed(data.pairs(part)) for part in splits}
    jobs = [job for part in splits for job in _plan(part, pairs[part], _made_from(data, origin), chunk_mb)]
    work = Work(data, pairs, str(output), _work_folder(store), on_corrupt, tiles)
    with _alone(work.folder, store.place):
        _require_ours(store, origin)
        kept = _finished(store, jobs, on_corrupt, threads=max(8, _processes(workers)))
        chunks = dict(kept)
        if len(kept) < len(jobs) or not _is_closed(store, _manifest(origin, jobs, kept)):
            litdata_writer()  # imported here, forked processes need not
            _open(store, origin)
            missing = [job for job in jobs if job not in kept]
            count = sum(job.count for job in jobs)
            chunks.update(_write_all(missing, work, _processes(workers), count, progress))
            _close(store, _manifest(origin, jobs, chunks), work.folder)
        manifest = _manifest(origin, jobs, chunks)
        _clean(store, manifest, work.folder)
    return Summary(store.place, manifest, len(kept), time.perf_counter() - began)


def _made_from(data: Source, origin: Origin) -> list[Any]:
    """Return what all chunks are made from beside their pairs; of some sources a file says what labels mean."""
    meaning = getattr(data, "meaning", None)
    settings = [FORMAT_VERSION, label_codec.FORMAT, origin.source, origin.classes, origin.tiles]
    return settings if meaning is None else [*settings, meaning]


def _plan(part: str, pairs: Sequence[Pair], made_from: list[Any], chunk_mb: float) -> list[Job]:
    """Divide a part into chunks of about the same number of pairs: a changed file changes no other chunk."""
    stamps = [(_stamp(pair.image), _stamp(pair.label)) for pair in pairs]
    size = sum(size_of(pair.image) + size_of(pair.label) for pair in pairs)
    count = min(len(pairs), max(1, math.ceil(size / (chunk_mb * 1e6))))
    ends = [len(pairs) * (i + 1) // count for i in range(count)]
    jobs = []
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        made_of = hashlib.sha256(json.dumps([made_from, stamps[start:end]]).encode()).hexdigest()
        jobs.append(Job(part, number, start, end - start, made_of))
    return jobs


def _stamp(file: File) -> list[Any]:
    """Return what changes when a file does."""
    if isinstance(file, StoredPiece):
        return [file.name, file.length, file.crc32]
    state = (file.path if isinstance(file, Piece) else file).stat()
    where = [file.offset, file.length] if isinstance(file, Piece) else []
    return [file.name, state.st_size, state.st_mtime_ns, *where]


def _require_settings(splits: Sequence[str], chunk_mb: float, workers: int | str) -> None:
    if not splits or len(set(splits)) < len(splits):
        raise ValueError(f"splits is {list(splits)}; it takes one or more parts, each once, like [train,validation]")
    if not 0 < chunk_mb <= MAX_CHUNK_MB:
        raise ValueError(f"chunk_mb is {chunk_mb}; it must be above 0 and at most {MAX_CHUNK_MB}")
    if workers != "auto" and (not isinstance(workers, int) or workers < 0):
        raise ValueError(f'data.workers is {workers!r}; it takes a whole number of at least 0 or "auto"')


def _require_other_place(data: Source, store: Store) -> None:
    """Raise FileExistsError for shards that would be overwritten while they are read."""
    if isinstance(data, Shards) and os.path.realpath(data.root) == os.path.realpath(store.place):
        raise FileExistsError(f"output={store.place} is data.root itself, which holds shards; choose another place")


def _require_ours(store: Store, origin: Origin) -> None:
    """Raise FileExistsError for an output that holds something else, or shards made otherwise."""
    if isinstance(store, Folder) and store.path.exists() and not store.path.is_dir():
        raise FileExistsError(f"output={store.place} is a file; choose a folder, or s3://BUCKET/PREFIX")
    found = _found_origin(store)
    if found is None:
        with suppress(FileNotFoundError):
            if is_manifest(store.read(NAME)):  # damaged: everything is made again
                return
        stranger = next((name for name, _ in store.files() if not _is_ours(name)), None)
        if stranger is not None:
            raise FileExistsError(f"output={store.place} holds something else ({stranger}); choose an empty place")
        return
    for name, then in vars(found).items():
        now = vars(origin)[name]
        if json.dumps(then) != json.dumps(now):
            raise FileExistsError(
                f"output={store.place} holds shards with another {name}: {_short(then)}, now {_short(now)}; choose "
                "another output, or the settings that they were made with"
            )


def _is_ours(name: str) -> bool:
    return name.startswith(f"{UNFINISHED}/") or name == f"{NAME}.part"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 120 else f"{text[:60]} ... {text[-40:]}"


def _found_origin(store: Store) -> Origin | None:
    """Return where the shards at an output come from, finished or not; a damaged manifest says nothing."""
    for manifest in _manifests(store):
        return manifest.origin
    try:
        return origin_from_json(json.loads(store.read(PLAN)))
    except FileNotFoundError:
        return None


def _manifests(store: Store) -> Iterator[Manifest]:
    """Give the manifest of finished shards, and the one that was withdrawn when some had to be made again."""
    for name in (NAME, WITHDRAWN):
        try:
            yield Manifest.from_bytes(store.read(name), place=store.place)
        except (FileNotFoundError, ValueError):
            continue


def _finished(store: Store, jobs: Sequence[Job], on_corrupt: OnCorrupt, *, threads: int) -> dict[Job, Chunk]:
    """Return the chunks that are written, whole and up to date."""
    known = {chunk.file: chunk for manifest in _manifests(store) for chunk in manifest.all_chunks()}
    files = dict(store.files())

    def look(job: Job) -> Chunk | None:
        chunk = known.get(job.file)
        with suppress(ValueError):  # a record that cannot be read records nothing
            chunk = Chunk.from_json(json.loads(store.read(job.record))) if job.record in files else chunk
        if chunk is None or chunk.made_of != job.made_of or files.get(job.file) != chunk.size:
            return None
        if on_corrupt == "raise" and not all(sample.image_bytes for sample in chunk.samples):
            return None
        return chunk if store.intact(job.file, chunk.size, chunk.sha256) else None

    with ThreadPoolExecutor(threads) as pool:
        return {job: chunk for job, chunk in zip(jobs, pool.map(look, jobs), strict=True) if chunk is not None}


def _manifest(origin: Origin, jobs: Sequence[Job], chunks: Mapping[Job, Chunk]) -> Manifest:
    parts = {part: [chunks[job] for job in jobs if job.part == part and job in chunks] for part in origin.splits}
    return Manifest(origin, parts)


def _is_closed(store: Store, manifest: Manifest) -> bool:
    try:
        same = store.read(NAME) == manifest.to_bytes()
    except FileNotFoundError:
        return False
    files = dict(store.files())
    return same and all(f"{part}/index.json" in files for part in manifest.chunks)


def _open(store: Store, origin: Origin) -> None:
    """Mark an output as unfinished."""
    store.write(PLAN, json.dumps(vars(origin)).encode())
    for manifest in _manifests(store):
        store.write(WITHDRAWN, manifest.to_bytes())
        break
    store.remove([NAME])


def _close(store: Store, manifest: Manifest, folder: Path) -> None:
    """Write litdata's index of each part, and at last the manifest."""
    _, config = litdata_chunk([Packet(b"", b"", b"")], folder / "format")
    config = {**config, "chunk_size": None, "chunk_bytes": int(manifest.origin.chunk_mb * 1e6)}
    for part, chunks in manifest.chunks.items():
        entries = [
            {"filename": Path(c.file).name, "chunk_bytes": c.size, "chunk_size": len(c.samples), "dim": None}
            for c in chunks
        ]
        # litdata drops its copies of a set when this changes, elsewhere the time of writing.
        stamp = int(hashlib.sha256("".join(c.sha256 for c in chunks).encode()).hexdigest()[:15], 16)
        index = {"chunks": entries, "config": config, "updated_at": str(stamp)}
        store.write(f"{part}/index.json", json.dumps(index, sort_keys=True).encode())
    store.write(NAME, manifest.to_bytes())


def _clean(store: Store, manifest: Manifest, folder: Path) -> None:
    """Remove the notes of an unfinished conversion, and chunks that a smaller set has no more."""
    wanted = {chunk.file for chunk in manifest.all_chunks()}
    files = [name for name, _ in store.files()]
    chunks = [name for name in files if re.fullmatch(r"[^/]+/chunk-0-\d+\.bin(\.part)?", name)]
    store.remove([name for name in files if _is_ours(name) and name != f"{UNFINISHED}/{LOCK}"])
    store.remove([name for name in chunks if name not in wanted])
    shutil.rmtree(folder, ignore_errors=True)


def _work_folder(store: Store) -> Path:
    if isinstance(store, Folder):
        return store.path / UNFINISHED
    return cache_folder(None).parent / "convert" / hashlib.sha256(store.place.encode()).hexdigest()[:16]


@contextmanager
def _alone(folder: Path, place: str) -> Iterator[None]:
    """Keep a second conversion away."""
    held = lock(folder / LOCK)
    try:
        held.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise BlockingIOError(f"another conversion into {place} is running; wait until it ends, or stop it") from None
    except OSError as error:
        raise unwritable(folder, error) from None
    try:
        yield
    finally:
        held.release()


def _processes(workers: int | str) -> int:
    return cores() if workers == "auto" else int(workers)


def _write_all(
    jobs: Sequence[Job], work: Work, processes: int, pairs: int, progress: bool
) -> Iterator[tuple[Job, Chunk]]:
    """Write chunks and give them as they are finished."""
    done = pairs - sum(job.count for job in jobs)
    with Meter("convert", pairs, done=done, unit="pairs", visible=progress) as meter:
        alone = processes < 2 or len(jobs) < 2
        made = ((job, write_chunk(job, work)) for job in jobs) if alone else _in_parallel(jobs, work, processes)
        for job, chunk in made:
            meter.add(job.count)
            yield job, chunk


def _in_parallel(jobs: Sequence[Job], work: Work, processes: int) -> Iterator[tuple[Job, Chunk]]:
    pool = ProcessPoolExecutor(min(processes, len(jobs)), initializer=_start, initargs=(work,))
    try:
        futures = {pool.submit(_write, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise ChildProcessError(
            "a process of the conversion was killed (for want of memory?); try data.workers=1, and the same command "
            "goes on where this one stopped"
        ) from None
    finally:  # chunks under way are ended, and so kept
        pool.shutdown(cancel_futures=True)


_work: list[Work] = []  # of this process


def _start(work: Work) -> None:
    """Prepare a process: Ctrl-C is its parent's affair, and with its parent it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    _work[:] = [work]
    end_with_parent()


def _write(job: Job) -> Chunk:
    return write_chunk(job, _work[0])
