"""A server that sends any bytes, whether or not they are HTTP."""

import contextlib
import socket
import threading
import time


@contextlib.contextmanager
def serving(answer, pause=0.0, endless=b""):
    """Yields the port. Each connection receives `answer`, then `endless` until it is closed.

    Args:
        answer: the bytes.
        pause: seconds after each byte.
        endless: bytes to repeat.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def send(connection):
        with contextlib.suppress(OSError), connection:
            connection.settimeout(2)
            connection.recv(65536)
            for start in range(0, len(answer), 1 if pause else max(len(answer), 1)):
                connection.sendall(answer[start : start + 1] if pause else answer)
                time.sleep(pause)
            while endless and not stopped.is_set():
                connection.sendall(endless)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=send, args=[listener.accept()[0]], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        stopped.set()
        listener.close()


OK = b"HTTP/1.1 200 OK\r\n"

FAULTS = {
    "nothing": b"",
    "not HTTP": b"\x16\x03\x01\x02" * 20,
    "a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "a status without meaning": b"HTTP/1.1 999 ?\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "a length that is no number": OK + b"Content-Length: abc\r\n\r\nx",
    "a negative length": OK + b"Content-Length: -5\r\n\r\nx",
    "an enormous length": OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\nx",
    "a length of too many digits": OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nx",
    "two lengths": OK + b"Content-Length: 1\r\nContent-Length: 9\r\n\r\nx",
    "a truncated body": OK + b"Content-Length: 100\r\n\r\nx",
    "a header of many bytes": OK + b"X: " + b"a" * 10**5 + b"\r\n\r\n",
    "many headers": OK + b"X: a\r\n" * 10**4 + b"\r\n",
    "headers that are no text": OK + b"\xff\xfe: \x00\r\n:\r\n \r\n\r\nx",
    "a chunk size that is no number": OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a negative chunk size": OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc",
    "an enormous chunk size": OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc",
    "a truncated chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n10\r\nabc",
    "another range": b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 7-9/10\r\nContent-Length: 3\r\n\r\nabc",
    "a redirection to a file": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
    "a redirection to FTP": b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1:9/a\r\n\r\n",
    "a redirection to data": b"HTTP/1.1 302 Found\r\nLocation: data:text/plain,a\r\n\r\n",
    "a redirection to a port that is no number": b"HTTP/1.1 302 Found\r\nLocation: http://a:b/\r\n\r\n",
    "a redirection to an invalid address": b"HTTP/1.1 302 Found\r\nLocation: http://[::1/\r\n\r\n",
    "a redirection to a long name": b"HTTP/1.1 302 Found\r\nLocation: http://" + b"a" * 300 + b".com/\r\n\r\n",
    "a redirection to control characters": b"HTTP/1.1 302 Found\r\nLocation: http://a\x01b/\x7f\r\n\r\n",
    "a redirection to nothing": b"HTTP/1.1 302 Found\r\nLocation: \r\n\r\n",
    "a redirection without an address": b"HTTP/1.1 302 Found\r\n\r\n",
    "a redirection to itself": b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n",
    "another body": OK + b"Content-Length: 3\r\n\r\nabc",
}

SLOW_OR_ENDLESS = {
    "slow headers": {"answer": OK + b"X: a\r\n" * 1000, "pause": 0.05},
    "a slow body": {"answer": OK + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000, "pause": 0.05},
    "interim answers without end": {"answer": b"", "endless": b"HTTP/1.1 100 Continue\r\n\r\n" * 1000},
    "a body without end": {"answer": OK + b"\r\n", "endless": b"x" * 2**16},
    "a negative chunk without end": {
        "answer": OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n", "endless": b"x" * 2**16,
    },
    "chunks without end": {"answer": OK + b"Transfer-Encoding: chunked\r\n\r\n", "endless": b"1\r\na\r\n" * 1000},
    "a header without end": {"answer": OK, "endless": b"a" * 2**16},
}  # fmt: skip
