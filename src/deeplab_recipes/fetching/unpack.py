"""Zip and tar archives from strangers: nothing leaves the folder, and nothing swells beyond bounds."""

import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO
from zipfile import BadZipFile, ZipFile, ZipInfo

from deeplab_recipes.fetching.progress import Meter

# The published sets grow by at most about five: a bomb grows by a thousand.
MOST_GROWTH = 20
ALWAYS_ALLOWED = 64 << 20  # bytes, since small archives of plain labels may shrink more
MOST_ENTRIES = 2_000_000
LONGEST_HEADER = 16 << 20  # bytes of one extended tar header, which tarfile reads whole
CHUNK = 1 << 20
RESOURCE_FORK = "__MACOSX"
DAMAGE = (BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


@dataclass(frozen=True)
class Entry:
    """One entry of an archive; `end` is how many of the archive's bytes are done after it."""

    name: str
    kind: str  # file, folder, or what it is else
    size: int
    open: Callable[[], IO[bytes]]
    end: Callable[[], int]


def unpack(archive: Path, into: Path, places: Mapping[str, str]) -> None:
    """Unpack parts of an archive.

    Args:
        archive: a zip, or a tar, plain or packed with gzip, bzip2 or xz.
        into: an empty folder.
        places: folder or file in the archive -> where it goes, relative to `into`. It may lie below further folders
            in the archive; other parts are left out.

    Raises:
        ValueError: for an archive that is damaged, encrypted, swells beyond bounds, or has an entry with an absolute
            path, with "..", or (in the parts that are wanted) a link or a device; or that lacks a part. Nothing is
            written outside `into`.
        OSError: the disk has not enough room.
    """
    taken: dict[str, tuple[str, ...]] = {}
    budget = max(MOST_GROWTH * archive.stat().st_size, ALWAYS_ALLOWED)
    with _explained(archive, into), Meter(f"unpack {archive.name}", archive.stat().st_size) as meter:
        for count, entry in enumerate(_entries(archive, into, budget), 1):
            if count > MOST_ENTRIES:
                raise ValueError(f"{archive} has more than {MOST_ENTRIES:,} entries; it is refused as a bomb")
            target = _target(archive, entry, places, taken)
            if target is not None and entry.kind != "folder":
                budget -= _write(archive, entry, into / target, budget)
            meter.reach(entry.end())
    missing = [part for part in places if part not in taken]
    if missing:
        raise ValueError(f"{archive} holds no {', '.join(missing)}; is it the right file?")


@contextmanager
def _explained(archive: Path, into: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{archive} is damaged or cut short ({reason}); remove it and run the same command") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"{into}: the disk is full; make room and run the same command, or set root=DIR") from error
        raise


def _entries(archive: Path, into: Path, budget: int) -> Iterator[Entry]:
    with archive.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        if start.startswith(b"PK"):
            yield from _zip_entries(archive, file, into, budget)
        elif start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or start[257:262] == b"ustar":
            yield from _tar_entries(archive, file, budget)
        else:
            page = " but a web page" if re.match(rb"\s*<(!doctype|html)", start, re.IGNORECASE) else ""
            raise ValueError(f"{archive} is no zip or tar archive{page}; remove it and check the address")


def _zip_entries(archive: Path, file: BinaryIO, into: Path, budget: int) -> Iterator[Entry]:
    with ZipFile(file) as packed:
        infos = packed.infolist()
        claimed = sum(info.file_size for info in infos)
        if claimed > budget:
            raise _bomb(archive)
        _require_room(into, claimed)
        done = 0
        for info in infos:
            done += info.compress_size
            if info.flag_bits & 1:
                raise ValueError(f"{archive} is encrypted; give one that is not: address=FILE")
            yield Entry(info.filename, _zip_kind(info), info.file_size, _opener(packed, info), lambda done=done: done)


def _opener(packed: ZipFile, info: ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: packed.open(info)


def _zip_kind(info: ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir():
        return "folder"
    return {0: "file", stat.S_IFREG: "file", stat.S_IFLNK: "link"}.get(kind, "device")


def _tar_entries(archive: Path, file: BinaryIO, budget: int) -> Iterator[Entry]:
    stream = _Bounded(_decompressed(file), archive, budget)
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep every one
            kind = "file" if member.isreg() else "folder" if member.isdir() else _tar_kind(member)
            yield Entry(member.name, kind, member.size, _tar_opener(tar, member), file.tell)
    if stream.last != bytes(tarfile.BLOCKSIZE):  # a tar ends with empty blocks; tarfile takes it without
        raise tarfile.ReadError("unexpected end of data")


def _tar_kind(member: tarfile.TarInfo) -> str:
    return "link" if member.issym() or member.islnk() else "device"


def _tar_opener(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    return lambda: tar.extractfile(member)  # type: ignore[return-value]


def _decompressed(file: BinaryIO) -> Any:
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if start.startswith(b"\xfd7zXZ"):
        return lzma.LZMAFile(file)
    if start.startswith(b"BZh"):
        import bz2

        return bz2.BZ2File(file)
    return file


class _Bounded:
    """A stream that tarfile cannot be led to read without end: neither in all nor at once."""

    def __init__(self, stream: Any, archive: Path, budget: int) -> None:
        self.stream, self.archive = stream, archive
        self.limit = budget + (budget >> 2)  # headers and padding come on top of the files
        self.last = b""  # what was read last

    def read(self, size: int) -> bytes:
        if size > LONGEST_HEADER:
            raise ValueError(f"{self.archive} has a header of {size:,} bytes; it is refused as a bomb")
        self._require(self.stream.tell() + size)
        self.last = self.stream.read(size)
        return self.last

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:
            self._require(position)
        return self.stream.seek(position, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def _require(self, position: int) -> None:
        if position > self.limit:
            raise _bomb(self.archive)


def _target(
    archive: Path, entry: Entry, places: Mapping[str, str], taken: dict[str, tuple[str, ...]]
) -> PurePosixPath | None:
    """Return where an entry goes, or None if it is not wanted; note in `taken` below which folders a part lay."""
    parts = _safe_parts(archive, entry.name)
    if RESOURCE_FORK in parts:
        return None
    for part, place in places.items():
        wanted = PurePosixPath(part).parts
        for depth in range(len(parts) - len(wanted) + 1):
            if parts[depth : depth + len(wanted)] != wanted:
                continue
            if taken.setdefault(part, parts[:depth]) != parts[:depth]:
                raise ValueError(f"{archive} holds {part} twice: {'/'.join(taken[part])} and {'/'.join(parts[:depth])}")
            if entry.kind not in ("file", "folder"):
                raise ValueError(f"{archive}: {entry.name!r} is a {entry.kind}; only files and folders are unpacked")
            return PurePosixPath(place, *parts[depth + len(wanted) :])
    return None


def _safe_parts(archive: Path, name: str) -> tuple[str, ...]:
    pieces = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) or ".." in pieces or "\0" in name:
        raise ValueError(f"{archive}: {name!r} would leave the folder; nothing of this archive is used")
    return tuple(piece for piece in pieces if piece not in ("", "."))


def _write(archive: Path, entry: Entry, path: Path, budget: int) -> int:
    """Write one file and return its size."""
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file, entry.open() as source:
            while chunk := source.read(CHUNK):
                written += len(chunk)
                if written > budget:
                    raise _bomb(archive)
                file.write(chunk)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{archive} holds {entry.name!r} twice") from None
    return written


def _bomb(archive: Path) -> ValueError:
    return ValueError(
        f"{archive} ({archive.stat().st_size:,} bytes) would unpack to more than {MOST_GROWTH} times its size; it is "
        "refused as a bomb"
    )


def _require_room(into: Path, needed: int) -> None:
    free = shutil.disk_usage(into).free
    if needed > free:
        raise OSError(f"{into} has {free:,} bytes free, {needed:,} are needed to unpack; make room, or set root=DIR")
