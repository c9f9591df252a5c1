"""Whether a fetched archive, and what was in it, are what was published."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from deeplab_recipes.data.download.sets import Archive, DataSet
from deeplab_recipes.fetching.progress import Meter

CHUNK = 1 << 20
Say = Callable[[str], None]


def check_archive(archive: Archive, path: Path, *, verify: bool, say: Say) -> None:
    """Compare size and checksum with the published ones, as far as they are known, and say what was compared.

    Raises:
        ValueError: if one differs.
    """
    size = path.stat().st_size
    if not verify:
        say(f"{archive.filename}: {size:,} bytes, not compared with the published file (verify=false)")
        return
    if archive.size is not None and size != archive.size:
        raise ValueError(f"{path} has {size:,} bytes, the published file {archive.size:,}. {_remedy(path)}")
    if archive.checksum is None:
        trees = "; the folders in it are compared with git's hashes" if archive.trees else ""
        say(f"{archive.filename}: {size:,} bytes; its published checksum is unknown{trees}")
        return
    kind, _, wanted = archive.checksum.partition(":")
    found = _digest(path, kind)
    if found != wanted:
        raise ValueError(f"{path}: its {kind} is {found}, the published file's {wanted}. {_remedy(path)}")
    say(f"{archive.filename}: {size:,} bytes, {kind} as published")


def _remedy(path: Path) -> str:
    if path.name.endswith(".part"):
        return "It is removed; run the same command again, name another address=..., or take what comes: verify=false"
    return "Put the right file there, or take this one as it is: verify=false"


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file, Meter(f"check {path.name}", path.stat().st_size) as meter:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            meter.add(len(chunk))
    return digest.hexdigest()


def check_content(chosen: DataSet, archive: Archive, path: Path, staging: Path, *, say: Say) -> None:
    """Compare what was unpacked with the published number of files and, where they are known, git's hashes.

    Raises:
        ValueError: if there are fewer files, or others.
    """
    require_counts(chosen, [archive], staging, source=path)
    for place, wanted in archive.trees.items():
        if git_tree(staging / place) != wanted:
            raise ValueError(f"{path}: the files of {place}/ are not the published ones; verify=false takes them so")
    if archive.trees:
        say(f"{archive.filename}: the files are the published ones (git's hashes of {', '.join(archive.trees)})")


def git_tree(folder: Path) -> str:
    """Return git's hash (SHA-1) of a folder of plain files."""
    entries = b""
    for path in sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name) + b"/" * path.is_dir()):
        mode, found = (
            (b"40000", git_tree(path)) if path.is_dir() else (b"100644", _git_hash(b"blob", path.read_bytes()))
        )
        entries += mode + b" " + os.fsencode(path.name) + b"\0" + bytes.fromhex(found)
    return _git_hash(b"tree", entries)


def _git_hash(kind: bytes, content: bytes) -> str:
    return hashlib.sha1(b"%s %d\0" % (kind, len(content)) + content, usedforsecurity=False).hexdigest()


def require_counts(chosen: DataSet, archives: Sequence[Archive], folder: Path, *, source: Path | None = None) -> None:
    """Count the files that these archives add.

    Args:
        chosen: the set.
        archives: of it.
        folder: the root, or what was just unpacked.
        source: the archive, if they were just unpacked.

    Raises:
        ValueError: if there are fewer than published.
    """
    for pattern, count in chosen.counts.items():
        if _owner(chosen, pattern) not in archives:
            continue
        found = sum(1 for _ in folder.glob(pattern))
        if found < count:
            place = f"{source or folder} holds {found:,} files {pattern}, the published {chosen.name} has {count:,}"
            remedy = "give another file" if source else "move away what is there and run the same command"
            raise ValueError(f"{place}; {remedy}, or take it as it is: verify=false")


def _owner(chosen: DataSet, pattern: str) -> Archive:
    """Return the archive whose place is the closest to a pattern: one set may lie within another's folder."""
    places = {place: archive for archive in chosen.archives for place in archive.places()}
    return places[max((place for place in places if f"{pattern}/".startswith(f"{place}/")), key=len)]
