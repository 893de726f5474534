"""Receives the bytes of a published file. A faulty server can neither block the caller nor fill the memory."""

import contextlib
import dataclasses
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from typing import Any

_CHUNK = 2**18
_HANDLERS = (
    urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
    urllib.request.HTTPRedirectHandler, urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor,
    urllib.request.UnknownHandler,
)  # fmt: skip
"""Those of urllib, except for other protocols than HTTP. A server cannot redirect to a file or to FTP."""


class TransferError(Exception):
    """The server or the network failed.

    Attributes:
        status: the status of HTTP if the server refused the request.
    """

    def __init__(self, reason: Any, status: int | None = None):
        super().__init__(" ".join(str(reason).split())[:300] or type(reason).__name__)
        self.status = status


@dataclasses.dataclass
class Response:
    """The answer of a server.

    Attributes:
        start: position of the first byte in the file.
        total: number of bytes of the file, if the server states it.
        chunks: the bytes. It raises TransferError.
    """

    start: int
    total: int | None
    chunks: Generator[bytes, None, None]


def request(url: str, start: int, idle: float, deadline: float) -> Response:
    """Requests a file from a position.

    A thread waits for the network, and this one only for the thread, so that names, connections, headers and bytes
    are all subject to the limits.

    Args:
        url: the address.
        start: position of the first byte. The server may send the whole file instead.
        idle: seconds without data before the transfer fails.
        deadline: the time of `time.monotonic` at which the transfer fails in any case.

    Raises:
        TransferError: no answer, a refusal, or an answer that is not HTTP.
    """
    events: queue.Queue[Any] = queue.Queue(4)
    stopped = threading.Event()

    def put(event: Any) -> None:
        while not stopped.is_set():
            try:
                return events.put(event, timeout=1)
            except queue.Full:
                pass
        raise TransferError("stopped")

    def work() -> None:
        try:
            with _open(url, start, idle) as response:
                put((_content_range(response, start), response.length))
                buffer = bytearray(_CHUNK)  # a length that the server states is never allocated
                while count := response.readinto(buffer):
                    put(bytes(memoryview(buffer)[:count]))
                if response.length:  # the bytes that are missing
                    raise ConnectionError("the connection was interrupted")
            put(b"")
        except BaseException as error:  # a faulty answer can raise anything
            with contextlib.suppress(TransferError):  # nobody waits any more
                put(error)

    def get() -> Any:
        wait = min(deadline - time.monotonic(), 2 * idle)
        try:
            event = events.get(timeout=max(wait, 0))
        except queue.Empty:
            stopped.set()
            raise TransferError("the server is too slow") from None
        if isinstance(event, BaseException):
            stopped.set()
            raise event if isinstance(event, TransferError) else TransferError(getattr(event, "reason", event))
        return event

    def chunks() -> Generator[bytes, None, None]:
        try:
            while chunk := get():
                yield chunk
                if time.monotonic() > deadline:
                    raise TransferError("the server is too slow")
        finally:
            stopped.set()

    threading.Thread(target=work, daemon=True).start()
    try:
        begin, length = get()
    except BaseException:
        stopped.set()
        raise
    return Response(begin, None if length is None else begin + length, chunks())


def _open(url: str, start: int, idle: float) -> Any:
    """Sends the request, and follows redirections."""
    opener = urllib.request.OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    headers = {"Range": f"bytes={start}-", "User-Agent": "lrp_jax", "Accept-Encoding": "identity"}
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=idle)
    except urllib.error.HTTPError as error:
        error.close()
        raise TransferError(f"HTTP Error {error.code}: {error.reason}", error.code) from None
    if response is None:
        raise TransferError("redirected to an address that is not of HTTP")
    if response.status not in (200, 206):
        response.close()
        raise TransferError(f"the server answered with status {response.status}")
    return response


def _content_range(response: Any, start: int) -> int:
    """The position of the first byte of an answer: that of the request, or 0 if the server sends the whole file."""
    if response.status != 206:
        return 0
    stated = response.headers.get("Content-Range")
    if stated is not None and not stated.startswith(f"bytes {start}-"):
        raise TransferError(f"the server sent the bytes {stated!r:.100} instead of those from {start}")
    return start
