"""Where shards lie: a folder, or a bucket of Amazon S3 or of a store that speaks its language."""

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

S3 = "s3://"
BLOCK = 1 << 20
CHECKSUM = "sha256"  # under which a bucket keeps it beside an object
ATTEMPTS = 3  # at a transfer that breaks off


class Store(Protocol):
    """Files by name; names have "/" between folders."""

    place: str

    def files(self) -> Iterator[tuple[str, int]]:
        """Give name and size in bytes of every file."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            FileNotFoundError: if there is none; of this name, or no such place.
        """
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        ...

    def intact(self, name: str, size: int, sha256: str) -> bool:
        """Whether a file is there and has this content."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; one that is not there is none."""
        ...


def is_bucket(place: str | Path) -> bool:
    """Whether it is s3://..., not a folder.

    Raises:
        ValueError: if it is an address of another kind.
    """
    if "://" in str(place) and not str(place).startswith(S3):
        raise ValueError(f"{place} is no place for data; valid are a folder and, for shards, s3://BUCKET/PREFIX")
    return str(place).startswith(S3)


def open_store(place: str | Path) -> Store:
    """Return the store at a folder or at s3://BUCKET/PREFIX."""
    return Bucket(str(place)) if is_bucket(place) else Folder(Path(place))


class Folder:
    """Files below a folder, which need not exist yet.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, str(path)

    def files(self) -> Iterator[tuple[str, int]]:
        """Give name and size in bytes of every file."""
        for path in self.path.rglob("*"):
            if path.is_file():
                yield path.relative_to(self.path).as_posix(), path.stat().st_size

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        try:
            return (self.path / name).read_bytes()
        except NotADirectoryError:
            raise FileNotFoundError(f"{self.path / name} does not exist") from None

    def write(self, name: str, content: bytes) -> None:
        """Write a file under another name, wait for the disk, and give it its own.

        Raises:
            OSError: if that is impossible; says why.
        """
        path = self.path / name
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise unwritable(path, error) from None

    def intact(self, name: str, size: int, sha256: str) -> bool:
        """Whether a file is there and has this content; reads all of it."""
        path = self.path / name
        if not path.is_file() or path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, and folders that they leave empty."""
        for name in names:
            path = self.path / name
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()


def unwritable(path: Path, error: OSError) -> OSError:
    """Return an error that says why a file could not be written, and what to do."""
    advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another place"
    return type(error)(f"{path} cannot be written ({error.strerror or error}); {advice}, and start again")


class Bucket:
    """Objects of a bucket whose names begin with a prefix. Needs boto3, which finds address and keys by itself.

    Args:
        place: s3://BUCKET/PREFIX, or s3://BUCKET.

    Raises:
        ValueError: if it names no bucket.
    """

    def __init__(self, place: str) -> None:
        self.bucket, _, prefix = place.removeprefix(S3).rstrip("/").partition("/")
        if not self.bucket:
            raise ValueError(f"{place} names no bucket; expected s3://BUCKET/PREFIX")
        self.place = place.rstrip("/")
        self.prefix = f"{prefix}/" if prefix else ""

    def files(self) -> Iterator[tuple[str, int]]:
        """Give name and size in bytes of every object."""
        with self._explained():
            pages = client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
            for page in pages:
                for entry in page.get("Contents", ()):
                    yield entry["Key"].removeprefix(self.prefix), entry["Size"]

    def read(self, name: str) -> bytes:
        """Return an object's bytes."""
        return b"".join(self.blocks(name))

    def blocks(self, name: str) -> Iterator[bytes]:
        """Give an object's bytes in blocks."""
        with self._explained(name):
            body = client().get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"]
            yield from body.iter_chunks(BLOCK)

    def fetch(self, name: str, path: Path, *, size: int, sha256: str) -> None:
        """Copy an object to a file, which is there afterwards only if it is whole.

        Raises:
            ValueError: if the object has another content.
            OSError: if the store cannot be reached, or the file not be written.
        """
        part = path.with_name(f"{path.name}.part")
        for attempt in range(ATTEMPTS):
            try:
                found, digest = self._copy(name, part)
                break
            except ConnectionError:
                if attempt == ATTEMPTS - 1:
                    raise
        if (found, digest) != (size, sha256):
            part.unlink()
            what = f"{found} bytes instead of {size}" if found != size else "another content than was written"
            raise ValueError(f"{self.place}/{name} is damaged: it has {what}")
        part.replace(path)

    def _copy(self, name: str, path: Path) -> tuple[int, str]:
        digest, count = hashlib.sha256(), 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for block in self.blocks(name):
                    digest.update(block)
                    count += file.write(block)
        except OSError as error:
            if error.errno is None:  # the store's, explained already
                raise
            raise _no_copy(path, error) from None
        return count, digest.hexdigest()

    def write(self, name: str, content: bytes) -> None:
        """Upload an object; a store shows it when it is whole."""
        checksum = {CHECKSUM: hashlib.sha256(content).hexdigest()}
        with self._explained(name):
            client().put_object(Bucket=self.bucket, Key=self.prefix + name, Body=content, Metadata=checksum)

    def intact(self, name: str, size: int, sha256: str) -> bool:
        """Whether an object is there with this size, and was this content when it was uploaded."""
        try:
            with self._explained(name):
                head = client().head_object(Bucket=self.bucket, Key=self.prefix + name)
        except FileNotFoundError:
            return False
        return head["ContentLength"] == size and head["Metadata"].get(CHECKSUM) == sha256

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects."""
        for name in names:
            with self._explained(name):
                client().delete_object(Bucket=self.bucket, Key=self.prefix + name)

    @contextmanager
    def _explained(self, name: str = "") -> Iterator[None]:
        """Turn what boto3 raises into an OSError that says what to do."""
        client()  # says how to get boto3 where it is missing
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            raise self._refused(error.response["Error"], name) from None
        except BotoCoreError as error:
            raise self._failed(error, name) from None

    def _refused(self, answer: dict[str, Any], name: str) -> OSError:
        code, reason = answer.get("Code", ""), answer.get("Message", "")
        if code == "NoSuchBucket":
            return FileNotFoundError(
                f"there is no bucket {self.bucket} at {_endpoint()}; make it, or correct {self.place}"
            )
        if code in ("NoSuchKey", "404"):
            return FileNotFoundError(f"{self.place}/{name} does not exist")
        if code in ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"):
            return PermissionError(f"{_endpoint()} refuses {self.place} ({code}: {reason}); check the AWS_ variables")
        return OSError(f"{self.place}/{name}: {_endpoint()} answers {code} ({reason})")

    def _failed(self, error: Exception, name: str) -> OSError | ValueError:
        kind = type(error).__name__
        if kind == "ParamValidationError":
            return ValueError(f"{self.place} can be no place in a store ({str(error).splitlines()[-1]})")
        if "Credentials" in kind:
            return PermissionError(
                f"no keys for {self.place} ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        return ConnectionError(f"{self.place}/{name} cannot be reached ({error}); check AWS_ENDPOINT_URL")


def _no_copy(path: Path, error: OSError) -> OSError:
    with suppress(OSError):
        path.unlink()
    free = ""
    with suppress(OSError):
        free = f", {shutil.disk_usage(path.parent).free / 1e6:,.0f} MB are free there"
    return type(error)(
        f"no copy of a chunk fits at {path} ({error.strerror or error}{free}); free some space or set data.cache=DIR"
    )


_clients: dict[int, Any] = {}
_making = threading.Lock()


def client() -> Any:
    """Return this process's S3 client: connections must not be shared with a forked process.

    Raises:
        ImportError: if boto3 is not installed; says how to get it.
    """
    with _making:
        if os.getpid() not in _clients:
            try:
                from boto3.session import Session
                from botocore.config import Config
            except ImportError:
                raise ImportError(
                    "boto3 is not installed; it comes with an extra: pip install 'deeplab-recipes[shards]'"
                ) from None
            settings = Config(retries={"mode": "standard", "max_attempts": ATTEMPTS}, connect_timeout=10)
            _clients[os.getpid()] = Session().client("s3", config=settings)
        return _clients[os.getpid()]


def _endpoint() -> str:
    return str(client().meta.endpoint_url)
