"""Downloads from a local server that can interrupt the connection, return errors or send wrong bytes."""

import errno
import hashlib
import http.server
import multiprocessing
import os
import resource
import shutil
import threading
import time
from collections import Counter

import numpy as np
import pytest
from raw_server import FAULTS, SLOW_OR_ENDLESS, serving

from lrp_jax.weights import Remote, WeightsError, _download, download

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()


class Server(http.server.ThreadingHTTPServer):
    """A local server with its settings.

    Attributes:
        content: the bytes of the only file.
        ranges: whether it supports byte ranges.
        interruptions: how many further responses it breaks off.
        status: an HTTP error to return instead of the file.
        requests: number of requests for each range.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.interruptions = CONTENT, True, 0
        self.status: int | None = None
        self.requests = Counter()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the file according to the settings of the server."""

    def do_GET(self):
        server = self.server
        assert isinstance(server, Server)
        server.requests[self.headers["Range"]] += 1
        if server.status:
            return self.send_error(server.status)
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if server.ranges else 0
        if start >= len(server.content):
            return self.send_error(416)
        body = server.content[start:]
        self.send_response(206 if server.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.interruptions:
            server.interruptions -= 1
            body = body[:1_000_000]
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    """A running local server."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_delay(monkeypatch):
    monkeypatch.setattr(_download, "_WAIT", 0.0)


def remote(server, digest=None):
    digest = digest or f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    return Remote(f"http://127.0.0.1:{server.server_port}/folder/net-1234.pth", digest)


def test_a_file_is_downloaded_once(server, tmp_path):
    path = download(remote(server), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "net-1234.pth"
    assert path.read_bytes() == CONTENT
    assert download(remote(server), path.parent) == path
    assert server.requests.total() == 1
    assert sorted(p.name for p in path.parent.iterdir()) in (["net-1234.pth"], ["net-1234.pth", "net-1234.pth.lock"])


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_prefix_of_the_digest_is_checked(algorithm, server, tmp_path):
    digest = hashlib.new(algorithm, CONTENT).hexdigest()
    assert download(remote(server, f"{algorithm}:{digest[:8]}"), tmp_path).exists()
    with pytest.raises(WeightsError, match=r"net-1234.pth: not the file that was published .* move or delete it"):
        download(remote(server, f"{algorithm}:{digest[1:9]}"), tmp_path)


def test_an_interrupted_connection_is_resumed(server, tmp_path):
    server.interruptions = 2
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert list(server.requests) == ["bytes=0-", "bytes=1000000-", "bytes=2000000-"]


def test_an_interrupted_download_is_resumed(server, tmp_path):
    (tmp_path / "net-1234.pth.part").write_bytes(CONTENT[:2_500_000])
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert list(server.requests) == ["bytes=2500000-"]
    assert not (tmp_path / "net-1234.pth.part").exists()


def test_a_complete_partial_file_is_accepted(server, tmp_path):
    (tmp_path / "net-1234.pth.part").write_bytes(CONTENT)
    assert download(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_whole_file(server, tmp_path):
    server.ranges = False
    (tmp_path / "net-1234.pth.part").write_bytes(b"anything")
    assert download(remote(server), tmp_path).read_bytes() == CONTENT


def test_keyboard_interrupts_keep_the_received_bytes(server, tmp_path, monkeypatch):
    class Interrupted(_download.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(_download, "tqdm", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(remote(server), tmp_path)
    received = (tmp_path / "net-1234.pth.part").read_bytes()
    assert 0 < len(received) < len(CONTENT)
    assert CONTENT.startswith(received)
    monkeypatch.undo()
    assert download(remote(server), tmp_path).read_bytes() == CONTENT


def test_an_error_is_raised_after_repeated_interruptions(server, tmp_path):
    server.interruptions, server.ranges = 99, False
    with pytest.raises(
        WeightsError, match=r"cannot be fetched \(the connection was interrupted\)\. Call again to continue"
    ):
        download(remote(server), tmp_path)
    assert server.requests.total() == _download._ATTEMPTS


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (503, _download._ATTEMPTS)])
def test_http_errors_are_reported(status, attempts, server, tmp_path):
    server.status = status
    with pytest.raises(WeightsError, match=rf"cannot be fetched \(HTTP Error {status}"):
        download(remote(server), tmp_path)
    assert server.requests.total() == attempts


def test_without_network_the_error_says_where_to_save_the_file(tmp_path):
    with pytest.raises(WeightsError, match="cannot be fetched") as error:
        download(Remote("http://127.0.0.1:9/net.pth", "sha256:00"), tmp_path)
    assert f"download the file by other means, save it as {tmp_path / 'net.pth'}, and call again" in str(error.value)


def test_a_file_with_a_wrong_digest_is_deleted(server, tmp_path):
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(WeightsError, match="the received file does not have the published digest"):
        download(remote(server), tmp_path)
    assert not list(tmp_path.glob("net-1234.pth"))
    assert not list(tmp_path.glob("*.part"))
    server.content = CONTENT
    assert download(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_full_disk_is_detected_before_the_download(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(WeightsError, match="the disk is full; free some space and call again"):
        download(remote(server), tmp_path)


def test_a_disk_that_becomes_full_keeps_the_received_bytes(server, tmp_path, monkeypatch):
    class Full(_download.tqdm):
        def update(self, n=1):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_download, "tqdm", Full)
    with pytest.raises(WeightsError, match=r"net-1234.pth.part: the disk is full"):
        download(remote(server), tmp_path)
    assert server.requests.total() == 1
    monkeypatch.undo()
    assert download(remote(server), tmp_path).read_bytes() == CONTENT


def test_folders_that_cannot_be_written_are_reported(server, tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(WeightsError, match="cannot be written"):
        download(remote(server), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "text"


def test_two_processes_download_the_file_once(server, tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        paths = pool.starmap(download, [(remote(server), tmp_path)] * 2)
    assert paths == [tmp_path / "net-1234.pth"] * 2
    assert paths[0].read_bytes() == CONTENT
    assert server.requests.total() == 1


def remote_at(port):
    return Remote(f"http://127.0.0.1:{port}/net.pth", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sockets that urllib leaves open
@pytest.mark.parametrize("answer", FAULTS.values(), ids=FAULTS)
def test_faulty_answers_are_one_clear_error(answer, tmp_path):
    with serving(answer) as port, pytest.raises(WeightsError, match=r"net\.pth: ") as error:
        download(remote_at(port), tmp_path)
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)
    assert not (tmp_path / "net.pth").exists()


@pytest.mark.parametrize("fault", SLOW_OR_ENDLESS.values(), ids=SLOW_OR_ENDLESS)
def test_slow_and_endless_answers_end(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(_download, "_TIMEOUT", 0.3)
    monkeypatch.setattr(_download, "_TOTAL", 1.0)
    monkeypatch.setattr(_download, "_MAX_BYTES", 10**8)
    start, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with serving(**fault) as port, pytest.raises(WeightsError, match=r"cannot be fetched|not have the published"):
        download(remote_at(port), tmp_path)
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000


def test_a_file_that_is_not_regular_is_not_read_for_its_digest(tmp_path):
    os.mkfifo(tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="a pipe or a device"):
        download(Remote("http://127.0.0.1:9/net.pth", "sha256:00"), tmp_path)
