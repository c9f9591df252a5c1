"""`deeplab download`: fetch a data set, check it, unpack it, and put it in place whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deeplab_recipes.data.download.checks import check_archive, check_content, require_counts
from deeplab_recipes.data.download.origin import DOWNLOADS, find_sources
from deeplab_recipes.data.download.sbd import convert_sbd
from deeplab_recipes.data.download.sets import SBD, SETS, VOC, Archive, DataSet
from deeplab_recipes.fetching.transfer import came_from, fetch, note_of, part_of
from deeplab_recipes.fetching.unpack import unpack

STAGING = ".unpacking"  # under the root: what is not whole yet
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
        if verify:
            require_counts(chosen, chosen.archives, root)
        say(f"{chosen.name} is already there: {root}")
        return
    say(f"{chosen.title}\nterms of use: {chosen.terms}")
    with _alone_in(root):
        sources = find_sources(chosen, root, missing, address)
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
        check_archive(archive, path, verify=verify, say=say)
    staging = root / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        unpack(path, staging, archive.unpack)
        if archive.convert == "sbd":
            convert_sbd(staging / SBD, root / VOC, staging / VOC)
        if verify:
            check_content(chosen, archive, path, staging, say=say)
        for place in archive.places():
            _put(staging / place, root / place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if path.parent == root / DOWNLOADS:
        _tidy(path, keep=keep)


def _tidy(path: Path, *, keep: bool) -> None:
    """Remove what was fetched; what was put there by hand stays, and only an unfinished transfer of it goes."""
    if came_from(path) is not None and not keep:
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
    say(f"fetching {address} ({f'{archive.size:,} bytes' if archive.size else archive.about})")
    part = fetch(address, path, size=archive.size if verify else None, advice=advice, say=say)
    try:
        check_archive(archive, part, verify=verify, say=say)
    except ValueError:
        part.unlink()
        note_of(path).unlink()
        raise
    os.replace(part, path)
    return path


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
