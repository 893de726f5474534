"""Downloads: from a local server that breaks off, lies, or is not there."""

import errno
import hashlib
import http.server
import multiprocessing
import shutil
import threading
from collections import Counter

import numpy as np
import pytest

from lrp_jax.weights import Remote, WeightsError, _download, download

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, byte ranges too; how it fails is up to the server's settings."""

    def do_GET(self):
        server = self.server
        server.requests[self.headers["Range"]] += 1
        if server.status:
            return self.send_error(server.status)
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if server.ranges else 0
        if start >= len(server.content):
            return self.send_error(416)
        body = server.content[start:]
        self.send_response(206 if server.ranges else 200)
        self.send_header("Content-Length", len(body))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            body = body[:1_000_000]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server on this machine, which fails as it is told."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.ranges, server.breaks, server.status, server.requests = CONTENT, True, 0, None, Counter()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(_download, "_WAIT", 0.0)


def remote(server, digest=None):
    digest = digest or f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    return Remote(f"http://127.0.0.1:{server.server_port}/folder/net-1234.pth", digest)


def test_a_file_is_brought_once(server, tmp_path):
    path = download(remote(server), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "net-1234.pth"
    assert path.read_bytes() == CONTENT
    assert download(remote(server), path.parent) == path
    assert server.requests.total() == 1
    assert sorted(p.name for p in path.parent.iterdir()) in (["net-1234.pth"], ["net-1234.pth", "net-1234.pth.lock"])


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_digests_count_as_far_as_they_are_published(algorithm, server, tmp_path):
    digest = hashlib.new(algorithm, CONTENT).hexdigest()
    assert download(remote(server, f"{algorithm}:{digest[:8]}"), tmp_path).exists()
    with pytest.raises(WeightsError, match=r"net-1234.pth: not the file that was published .* move it away"):
        download(remote(server, f"{algorithm}:{digest[1:9]}"), tmp_path)


def test_a_connection_that_breaks_off_is_taken_up_again(server, tmp_path):
    server.breaks = 2
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert list(server.requests) == ["bytes=0-", "bytes=1000000-", "bytes=2000000-"]


def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path):
    (tmp_path / "net-1234.pth.part").write_bytes(CONTENT[:2_500_000])
    assert download(remote(server), tmp_path).read_bytes() == CONTENT
    assert list(server.requests) == ["bytes=2500000-"]
    assert not (tmp_path / "net-1234.pth.part").exists()


def test_a_download_that_was_interrupted_at_its_very_end(server, tmp_path):
    (tmp_path / "net-1234.pth.part").write_bytes(CONTENT)
    assert download(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_of_it(server, tmp_path):
    server.ranges = False
    (tmp_path / "net-1234.pth.part").write_bytes(b"anything")
    assert download(remote(server), tmp_path).read_bytes() == CONTENT


def test_keyboard_interrupts_keep_what_has_arrived(server, tmp_path, monkeypatch):
    class Impatient(_download.tqdm):
        def update(self, n):
            raise KeyboardInterrupt

    monkeypatch.setattr(_download, "tqdm", Impatient)
    with pytest.raises(KeyboardInterrupt):
        download(remote(server), tmp_path)
    arrived = (tmp_path / "net-1234.pth.part").read_bytes()
    assert 0 < len(arrived) < len(CONTENT)
    assert CONTENT.startswith(arrived)
    monkeypatch.undo()
    assert download(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_server_that_keeps_breaking_off_is_named(server, tmp_path):
    server.breaks, server.ranges = 99, False
    with pytest.raises(WeightsError, match=r"cannot be fetched \(the connection broke off\)\. Call again to go on"):
        download(remote(server), tmp_path)
    assert server.requests.total() == _download._ATTEMPTS


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (503, _download._ATTEMPTS)])
def test_refusals_are_named(status, attempts, server, tmp_path):
    server.status = status
    with pytest.raises(WeightsError, match=rf"cannot be fetched \(HTTP Error {status}"):
        download(remote(server), tmp_path)
    assert server.requests.total() == attempts


def test_offline_it_is_said_which_file_to_put_where(tmp_path):
    with pytest.raises(WeightsError, match="cannot be fetched") as error:
        download(Remote("http://127.0.0.1:9/net.pth", "sha256:00"), tmp_path)
    assert f"bring the file here by other means, to {tmp_path / 'net.pth'}, and call again" in str(error.value)


def test_what_is_not_what_was_published_is_deleted(server, tmp_path):
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(WeightsError, match="what arrived is not what was published"):
        download(remote(server), tmp_path)
    assert not list(tmp_path.glob("net-1234.pth"))
    assert not list(tmp_path.glob("*.part"))
    server.content = CONTENT
    assert download(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_full_disk_is_noticed_before(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(WeightsError, match="the disk is full; make room and call again"):
        download(remote(server), tmp_path)


def test_a_disk_that_fills_up_meanwhile_keeps_what_has_arrived(server, tmp_path, monkeypatch):
    class Full(_download.tqdm):
        def update(self, n):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_download, "tqdm", Full)
    with pytest.raises(WeightsError, match=r"net-1234.pth.part: the disk is full"):
        download(remote(server), tmp_path)
    assert server.requests.total() == 1
    monkeypatch.undo()
    assert download(remote(server), tmp_path).read_bytes() == CONTENT


def test_folders_that_cannot_be_written_are_named(server, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WeightsError, match="cannot be written"):
        download(remote(server), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_two_processes_at_once_bring_it_once(server, tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        paths = pool.starmap(download, [(remote(server), tmp_path)] * 2)
    assert paths == [tmp_path / "net-1234.pth"] * 2
    assert paths[0].read_bytes() == CONTENT
    assert server.requests.total() == 1
