"""One file over HTTP: goes on where it broke off (RFC 9110: Range, If-Range), and tries again a few times."""

import errno
import json
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from deeplab_recipes.fetching.progress import Meter

ATTEMPTS = 5  # in a row that bring nothing new
FIRST_WAIT = 1.0  # seconds before the second attempt; doubled for each further one
LONGEST_WAIT = 60.0
SILENCE = 30.0  # seconds without a byte after which a connection counts as lost
CHUNK = 1 << 20
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be another one in a while


@dataclass(frozen=True)
class Version:
    """Which file a part belongs to, as the server names it."""

    address: str
    size: int | None
    etag: str | None
    modified: str | None

    def same_file(self, other: "Version") -> bool:
        """Tell whether two answers are about the same bytes; the later one may leave out what If-Range settled."""
        pairs = ((self.size, other.size), (self.etag, other.etag), (self.modified, other.modified))
        return all(mine == theirs for mine, theirs in pairs if None not in (mine, theirs))

    def validator(self) -> str | None:
        """Return what If-Range takes; a weak ETag does not promise the same bytes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class Passing(Exception):
    """A failure that another attempt may mend.

    Args:
        reason: for the user.
        wait: seconds that the server asks for.
        stale: the part that is here is of no use.
    """

    def __init__(self, reason: str, *, wait: float | None = None, stale: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.stale = wait, stale


class NoRoom(OSError):
    """The disk is full, or would be."""


def note_of(path: Path) -> Path:
    """Return the file that says where a fetched file came from."""
    return path.with_name(f"{path.name}.json")


def part_of(path: Path) -> Path:
    """Return the file that grows until it is whole."""
    return path.with_name(f"{path.name}.part")


def came_from(path: Path) -> str | None:
    """Return the address that a file was fetched from, or None for one that was put there by other means."""
    version = _noted(path)
    return None if version is None or part_of(path).exists() else version.address


def fetch(
    address: str,
    path: Path,
    *,
    size: int | None,
    advice: str,
    say: Callable[[str], None],
    elsewhere: str = "root=DIR",
) -> Path:
    """Fetch a file into `part_of(path)`, going on with what is there; `note_of(path)` says which file it is.

    Args:
        address: http, https or file.
        path: where the caller will put it once it is checked.
        size: in bytes, if it is known beforehand.
        advice: what to do where it cannot be fetched.
        say: takes a line for the user.
        elsewhere: the setting that names another disk.

    Returns:
        the whole file, not yet checked but for its size.

    Raises:
        ConnectionError: the server cannot be reached, refuses, or breaks off again and again.
        ValueError: the file has another size than expected.
        OSError: it cannot be written; says how much room it needs.
    """
    part, failures, best = part_of(path), 0, _size(part_of(path))
    while True:
        try:
            _attempt(address, path, size, say)
            return part
        except Passing as failure:
            failures = 1 if _size(part) >= best + CHUNK else failures + 1
            best = max(best, _size(part))
            if failures >= ATTEMPTS:
                raise ConnectionError(f"cannot fetch {address} ({failure}). {advice}") from failure
            if failure.stale:
                part.unlink(missing_ok=True)
            wait = min(failure.wait or FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT)
            say(f"{failure}; again in {wait:.3g} s ({failures} of {ATTEMPTS - 1})")
            time.sleep(wait)
        except (URLError, ssl.SSLCertVerificationError) as refusal:
            raise ConnectionError(f"cannot fetch {address} ({_refusal(refusal)}). {advice}") from refusal
        except NoRoom as full:
            raise OSError(f"{full}, or choose another disk with {elsewhere}") from full


def _refusal(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"{error.code} {error.reason}"
    return str(error.reason) if isinstance(error, URLError) else f"its certificate is not valid: {error}"


def _attempt(address: str, path: Path, size: int | None, say: Callable[[str], None]) -> None:
    part = part_of(path)
    known = _known(path, address)
    if known is None:
        part.unlink(missing_ok=True)
    done = _size(part)
    if known is not None and done and done == known.size:
        return
    with _open(address, done, known) as response:
        version = _version(address, response)
        if response.status == 206 and not _continues(response, done, version, known):
            raise Passing(f"{path.name} is no longer the file that the part here is of", stale=True)
        if response.status != 206 and done:
            changed = known is not None and not version.same_file(known)
            why = "the file has changed there" if changed else "the server cannot go on in mid-file"
            say(f"{path.name} starts again from its first byte: {why}")
            part.unlink()
            done = 0
        elif done:
            say(f"{path.name} goes on at byte {done:,}")
        _refuse_size(address, version.size, size)
        _require_room(part, version.size, done)
        if not done:
            _write_note(path, version)
        _copy(response, part, version.size, done, path.name)


def _open(address: str, done: int, known: Version | None) -> HTTPResponse:
    headers = {"User-Agent": "deeplab-recipes", "Accept-Encoding": "identity"}
    if done and known is not None and known.validator():
        headers |= {"Range": f"bytes={done}-", "If-Range": str(known.validator())}
    try:
        return urlopen(Request(address, headers=headers), timeout=SILENCE)
    except HTTPError as error:
        if error.code == 416 and done:  # the part is longer than the file
            raise Passing(f"the part here is longer than the file ({error.code})", stale=True) from error
        if error.code in PASSING:
            raise Passing(f"{error.code} {error.reason}", wait=_asked_wait(error)) from error
        raise
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise error.reason from error
        if address.startswith("file:"):  # which is not there, and will not be in a second
            raise
        raise Passing(str(error.reason)) from error
    except (HTTPException, OSError) as error:
        raise Passing(_reason(error)) from error


def _continues(response: HTTPResponse, done: int, version: Version, known: Version | None) -> bool:
    first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return first is not None and int(first[1]) == done and known is not None and version.same_file(known)


def _copy(response: HTTPResponse, part: Path, total: int | None, done: int, name: str) -> None:
    try:
        with part.open("ab") as file, Meter(name, total, done=done) as meter:
            while chunk := _read(response):
                file.write(chunk)
                done += len(chunk)
                meter.add(len(chunk))
    except OSError as error:  # of the disk: the network's are Passing
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(part, f"the disk is full after {_size(part):,} bytes") from error
        raise
    if total is not None and done < total:
        raise Passing(f"the connection broke off at {done:,} of {total:,} bytes")


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK)
    except (HTTPException, OSError) as error:
        raise Passing(_reason(error)) from error


def _no_room(part: Path, problem: str) -> NoRoom:
    return NoRoom(f"{part.parent}: {problem}; make room and run the same command again, it goes on from there")


def _require_room(part: Path, total: int | None, done: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - done > free:
        raise _no_room(part, f"{total - done:,} bytes are still to come but only {free:,} are free")


def _refuse_size(address: str, found: int | None, wanted: int | None) -> None:
    if found is not None and wanted is not None and found != wanted:
        raise ValueError(
            f"{address} has {found:,} bytes, the published file {wanted:,}: it is another file. Name another address "
            "(address=...), or take it as it is: verify=false"
        )


def _version(address: str, response: HTTPResponse) -> Version:
    headers = response.headers
    if response.status == 206:
        total = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
        size = int(total[1]) if total else None
    else:
        length = headers.get("Content-Length", "")
        size = int(length) if length.isdigit() else None
    return Version(address, size, headers.get("ETag"), headers.get("Last-Modified"))


def _known(path: Path, address: str) -> Version | None:
    """Return which file the part is of, if that is written down and it can be gone on with."""
    version = _noted(path)
    return version if version is not None and version.address == address and version.validator() else None


def _noted(path: Path) -> Version | None:
    try:
        return Version(**json.loads(note_of(path).read_text()))
    except (OSError, ValueError, TypeError):  # none, or one that is damaged
        return None


def _write_note(path: Path, version: Version) -> None:
    note, fresh = note_of(path), path.with_name(f"{path.name}.json.new")
    fresh.write_text(json.dumps(asdict(version)))
    os.replace(fresh, note)


def _asked_wait(error: HTTPError) -> float | None:
    headers: Mapping[str, str] = error.headers or {}
    asked = headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else None


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no byte came for {SILENCE:.0f} s"
    return str(error) or type(error).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
