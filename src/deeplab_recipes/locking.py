"""One process at a time: a lock that the system gives back when its holder is gone, however it went."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HELD = (errno.EACCES, errno.EAGAIN)  # by which POSIX says so; anything else is a file system without locks


@contextmanager
def only_process(path: str | Path, refusal: str) -> Iterator[None]:
    """Hold a lock on a file, made where there is none, in which its holder says who it is.

    Where the file system has no locks nothing is held. Forked children do not inherit the lock.

    Args:
        path: of the file.
        refusal: message for when another process holds it; {holder} in it becomes what that one said.

    Raises:
        ValueError: if another process holds it.
    """
    with Path(path).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise ValueError(refusal.replace("{holder}", holder)) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
