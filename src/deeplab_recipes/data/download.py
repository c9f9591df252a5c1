"""`deeplab download`: fetch a data set, check it, unpack it, and put it in place whole or not at all."""

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from deeplab_recipes.data.download_sets import SBD, SETS, VOC, Archive, DataSet
from deeplab_recipes.data.progress import Meter
from deeplab_recipes.data.sbd import convert_sbd
from deeplab_recipes.data.transfer import fetch, note_of, part_of
from deeplab_recipes.data.unpack import unpack

DOWNLOADS = "downloads"  # under the root: archives, and what was fetched of them so far
STAGING = ".unpacking"  # under the root: what is not whole yet
CHUNK = 1 << 20
Say = Callable[[str], None]


def download(
    chosen: DataSet,
    root: Path,
    *,
    address: str | None = None,
    verify: bool = True,
    keep_archives: bool = False,
    say: Say = print,
) -> None:
    """Put a data set under `root`, in the layout that its source reads. What is there already stays.

    A transfer that broke off goes on; after a kill the same call again leads to the same result.

    Args:
        chosen: one of `download_sets.SETS`.
        root: made if it is not there.
        address: where to take the archive from instead: an http, https or file address, or a file; a folder (with a
            slash at its end, if it is an address) that holds all archives by their published names.
        verify: compare with the published size, checksum and number of files. False takes what is there.
        keep_archives: leave fetched archives in ROOT/downloads. Those that were put there by hand always stay.
        say: takes lines for the user.

    Raises:
        ConnectionError: an archive cannot be fetched.
        FileNotFoundError: one that has to be fetched by hand is not there; says where to get it and where to put it.
        ValueError: one is not what was published, damaged, or would leave the folder.
        OSError: `root` cannot be written, or the disk is full.
    """
    missing = _missing(chosen, root)
    if not missing:
        _require_counts(chosen, root, _patterns(chosen, chosen.archives), verify)
        say(f"{chosen.name} is already there: {root}")
        return
    say(f"{chosen.title}\nterms of use: {chosen.terms}")
    sources = _sources(chosen, root, missing, address)
    with _alone_in(root):
        for archive in missing:
            _add(chosen, archive, sources[archive.filename], root, verify=verify, keep=keep_archives, say=say)
        with suppress(OSError):  # not empty where archives are kept
            (root / DOWNLOADS).rmdir()
    say(f"{chosen.name} is complete: {root}")


def find_set(name: str) -> DataSet:
    """Return the entry of the table.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in SETS:
        raise ValueError(f"set is {name!r}; valid are {', '.join(SETS)}")
    return SETS[name]


def _missing(chosen: DataSet, root: Path) -> list[Archive]:
    return [a for a in chosen.archives if not all((root / place).exists() for place in a.places())]


def _add(
    chosen: DataSet, archive: Archive, source: str | Path, root: Path, *, verify: bool, keep: bool, say: Say
) -> None:
    """Fetch, check and unpack one archive; rename its folders into place at the end."""
    path = source if isinstance(source, Path) else _obtain(archive, source, root, verify=verify, say=say)
    if isinstance(source, Path):
        _check(archive, path, verify=verify, say=say)
    staging = root / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        unpack(path, staging, archive.unpack)
        if archive.convert == "sbd":
            convert_sbd(staging / SBD, root / VOC, staging / VOC)
        _check_content(chosen, archive, path, staging, verify=verify, say=say)
        for place in archive.places():
            _put(staging / place, root / place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if path.parent == root / DOWNLOADS:
        _tidy(path, keep=keep)


def _tidy(path: Path, *, keep: bool) -> None:
    """Remove what was fetched; what was put there by hand stays, and only an unfinished transfer of it goes."""
    fetched = note_of(path).exists() and not part_of(path).exists()
    if fetched and not keep:
        path.unlink()
    part_of(path).unlink(missing_ok=True)
    note_of(path).unlink(missing_ok=True)


def _put(staged: Path, place: Path) -> None:
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(place)


def _obtain(archive: Archive, address: str, root: Path, *, verify: bool, say: Say) -> Path:
    """Fetch an archive into ROOT/downloads; it has its name there only once it was checked."""
    path = root / DOWNLOADS / archive.filename
    advice = (
        f"Fetch that file in another way, put it at {path}, and run the same command again; or name another address: "
        "address=..."
    )
    say(f"fetching {address} ({_known_size(archive)})")
    part = fetch(address, path, size=archive.size if verify else None, advice=advice, say=say)
    try:
        _check(archive, part, verify=verify, say=say)
    except ValueError:
        part.unlink()
        note_of(path).unlink()
        raise
    os.replace(part, path)
    return path


def _check(archive: Archive, path: Path, *, verify: bool, say: Say) -> None:
    """Compare size and checksum with the published ones, as far as they are known."""
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
        return "It is removed: the same command fetches it again, or takes another address (address=...)"
    return "Put the right file there, or take this one as it is: verify=false"


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file, Meter(f"check {path.name}", path.stat().st_size) as meter:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            meter.add(len(chunk))
    return digest.hexdigest()


def _check_content(chosen: DataSet, archive: Archive, path: Path, staging: Path, *, verify: bool, say: Say) -> None:
    _require_counts(chosen, staging, _patterns(chosen, [archive]), verify, source=path)
    for place, wanted in archive.trees.items() if verify else ():
        if git_tree(staging / place) != wanted:
            raise ValueError(f"{path}: the files of {place}/ are not the published ones. verify=false takes them so")
    if archive.trees and verify:
        say(f"{archive.filename}: the files are the published ones (git's hashes of {', '.join(archive.trees)})")


def git_tree(folder: Path) -> str:
    """Return git's hash (SHA-1) of a folder of plain files."""
    entries = b""
    for path in sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name)):
        content = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        entries += b"100644 " + os.fsencode(path.name) + b"\0" + blob.digest()
    return hashlib.sha1(b"tree %d\0" % len(entries) + entries, usedforsecurity=False).hexdigest()


def _patterns(chosen: DataSet, archives: Sequence[Archive]) -> dict[str, int]:
    """Return those counts that are about what these archives add."""
    return {pattern: count for pattern, count in chosen.counts.items() if _owner(chosen, pattern) in archives}


def _owner(chosen: DataSet, pattern: str) -> Archive:
    """Return the archive whose place is the closest to a pattern: one set may lie within another's folder."""
    places = {place: archive for archive in chosen.archives for place in archive.places()}
    return places[max((place for place in places if f"{pattern}/".startswith(f"{place}/")), key=len)]


def _require_counts(
    chosen: DataSet, folder: Path, counts: dict[str, int], verify: bool, *, source: Path | None = None
) -> None:
    for pattern, count in counts.items() if verify else ():
        found = sum(1 for _ in folder.glob(pattern))
        if found < count:
            place = f"{source or folder} holds {found:,} files {pattern}, the published {chosen.name} has {count:,}"
            remedy = "Give another file" if source else "Move away what is there and run the same command"
            raise ValueError(f"{place}. {remedy}, or take it as it is: verify=false")


def _known_size(archive: Archive) -> str:
    return f"{archive.size:,} bytes" if archive.size else archive.about


def _sources(chosen: DataSet, root: Path, missing: list[Archive], address: str | None) -> dict[str, str | Path]:
    """Return where to take each archive from: a file on this machine, or an address.

    Raises:
        FileNotFoundError, ValueError: where there is none, or what was given cannot serve.
    """
    given = _given(chosen, missing, address)
    found: dict[str, str | Path] = {}
    for archive in missing:
        by_hand = root / DOWNLOADS / archive.filename
        source = given.get(archive.filename) or (by_hand if by_hand.is_file() else archive.address)
        if isinstance(source, Path) and not source.is_file():
            raise FileNotFoundError(f"address={address}: there is no file {source}")
        if source is not None:
            found[archive.filename] = source
    absent = [a for a in missing if a.filename not in found]
    if absent:
        names = " and ".join(f"{a.filename} ({a.about})" for a in absent)
        raise FileNotFoundError(
            f"{chosen.name} needs an account, so its files are fetched by hand: log in at {chosen.login}, fetch {names}, "
            f"put them into {root / DOWNLOADS}/ and run the same command again; address=FOLDER/ takes them from "
            "elsewhere"
        )
    return found


def _given(chosen: DataSet, missing: list[Archive], address: str | None) -> dict[str, str | Path]:
    """Return what `address` means for each archive that it is about."""
    if address is None:
        return {}
    base = _local(address)
    if address.endswith("/") or (isinstance(base, Path) and base.is_dir()):
        return {a.filename: base / a.filename if isinstance(base, Path) else base + a.filename for a in missing}
    name = base.name if isinstance(base, Path) else unquote(urlsplit(base).path.rpartition("/")[2])
    named = [a.filename for a in chosen.archives if a.filename == name]
    if not named and len(missing) > 1:
        files = ", ".join(a.filename for a in missing)
        raise ValueError(f"{chosen.name} has several files ({files}): address={address} must be a folder that holds them")
    return {(named or [missing[0].filename])[0]: base}


def _local(address: str) -> str | Path:
    """Tell an address on the network from a file or folder of this machine."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", address)
    if scheme is None:
        return Path(address).expanduser()
    if scheme[1].lower() == "file":
        return Path(unquote(urlsplit(address).path))
    if scheme[1].lower() not in ("http", "https"):
        raise ValueError(f"address={address}: valid are http, https and file addresses, a file, or a folder")
    return address


@contextmanager
def _alone_in(root: Path) -> Iterator[None]:
    """Make sure that `root` can be written and that no other download works there."""
    handle = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root, os.O_RDONLY)
        _lock(handle, root)
        (root / DOWNLOADS).mkdir(exist_ok=True)
        shutil.rmtree(root / STAGING, ignore_errors=True)
        (root / STAGING).mkdir()
        (root / STAGING).rmdir()
    except OSError as error:
        if handle is not None:
            os.close(handle)
        if error.errno is None:
            raise
        problem = f"root={root} cannot be written ({error.strerror})"
        raise OSError(f"{problem}; choose another folder, or change its permissions") from error
    try:
        yield
    finally:
        os.close(handle)


def _lock(handle: int, root: Path) -> None:
    """Lock the folder; a kill gives it free again. Some network disks cannot lock, and go without."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(f"another download works in {root}; wait for it to end, or choose another root=DIR") from None
    except OSError:
        return
