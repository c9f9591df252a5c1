"""A server on loopback that serves one file from memory, as badly as a test wants it."""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Loopback:
    """What it serves and how.

    Args:
        content: of the file, at every path.
        ranges: answer Range with 206.
        etag: None sends none.
        modified: Last-Modified, likewise.
        breaks: bytes after which the n-th answer ends, None for a whole one.
        claims: bytes added to Content-Length.
        statuses: codes that the first answers have instead.
        pause: seconds after every 16 KiB.
        heeds_if_range: send the whole file where If-Range does not match.
    """

    content: bytes
    ranges: bool = True
    etag: str | None = '"1"'
    modified: str | None = None
    breaks: list[int | None] = field(default_factory=list)
    claims: int = 0
    statuses: list[int] = field(default_factory=list)
    pause: float = 0.0
    heeds_if_range: bool = True
    address: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range

    def ranges_asked(self) -> Sequence[str | None]:
        return [asked for _, asked in self.requests]


@contextmanager
def serving(loopback: Loopback) -> Iterator[Loopback]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self, loopback)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    loopback.address = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield loopback
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(handler: BaseHTTPRequestHandler, served: Loopback) -> None:
    served.requests.append((handler.path, handler.headers.get("Range")))
    handler.close_connection = True
    if served.statuses:
        code = served.statuses.pop(0)
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.send_header("Retry-After", "0")
        handler.end_headers()
        return
    first = start(handler, served)
    if first is not None and first >= len(served.content):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(served.content)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    send(handler, served, first)


def start(handler: BaseHTTPRequestHandler, served: Loopback) -> int | None:
    """Return the first byte wanted, or None for the whole file."""
    asked = re.match(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    condition = handler.headers.get("If-Range")
    if not served.ranges or asked is None:
        return None
    if served.heeds_if_range and condition not in (None, served.etag, served.modified):
        return None
    return int(asked[1])


def send(handler: BaseHTTPRequestHandler, served: Loopback, first: int | None) -> None:
    whole = len(served.content)
    body = served.content[first or 0 :]
    handler.send_response(200 if first is None else 206)
    handler.send_header("Content-Length", str(len(body) + served.claims))
    if first is not None:
        handler.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
    if served.etag is not None:
        handler.send_header("ETag", served.etag)
    if served.modified is not None:
        handler.send_header("Last-Modified", served.modified)
    handler.end_headers()
    until = served.breaks.pop(0) if served.breaks else None
    try:
        for offset in range(0, len(body[:until]), 1 << 14):
            handler.wfile.write(body[:until][offset : offset + (1 << 14)])
            time.sleep(served.pause)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the test killed the one that asked
