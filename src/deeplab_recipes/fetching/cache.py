"""Weights of others in torch.hub's cache: fetched once, checked, and put there whole or not at all."""

import errno
import os
import sys
from pathlib import Path

import torch
from filelock import FileLock

from deeplab_recipes.fetching.transfer import fetch, note_of
from deeplab_recipes.record import sha256


def cache_folder() -> Path:
    """Return torch.hub's folder of checkpoints; TORCH_HOME moves it."""
    return Path(torch.hub.get_dir(), "checkpoints")


def fetch_into_cache(address: str, filename: str, *, digits: str, advice: str) -> Path:
    """Return a file in torch.hub's cache, fetched where it is not there yet. A transfer that broke off goes on.

    Args:
        address: http, https or file.
        filename: what it is called there.
        digits: with which its sha256 begins; empty where that was not published.
        advice: what to do once the file was put there by hand, or instead.

    Raises:
        ConnectionError: it cannot be fetched; says where to put it by hand.
        ValueError: it has another sha256. What was fetched is removed; what a user put there stays.
        OSError: it cannot be written.
    """
    path = cache_folder() / filename
    if not path.exists():
        _require_writable(path.parent)
        with FileLock(path.with_name(f".{filename}.lock")):  # the processes of a training all ask for it
            if not path.exists():
                _put(address, path, digits, f"Put that file at {path}, {advice}")
                return path
    problem = _mismatch(path, digits)
    if problem:
        raise ValueError(f"{path}: {problem} of {address}; remove it and fetch it again")
    return path


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error.strerror}); choose another: TORCH_HOME=DIR") from error


def _put(address: str, path: Path, digits: str, advice: str) -> None:
    part = fetch(
        address,
        path,
        size=None,
        advice=advice,
        elsewhere="TORCH_HOME=DIR",
        say=lambda line: print(line, file=sys.stderr),
    )
    problem = _mismatch(part, digits)
    if problem:
        part.unlink()
        note_of(path).unlink(missing_ok=True)
        raise ValueError(f"{path} from {address}: {problem}; the file is removed")
    os.replace(part, path)
    note_of(path).unlink(missing_ok=True)


def _mismatch(path: Path, digits: str) -> str:
    """Say which hash a file has where it does not begin with `digits`."""
    found = sha256(path) if digits else ""
    return "" if found.startswith(digits) else f"its sha256 is {found}, not {digits}"
