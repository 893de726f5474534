"""Published files of weights, brought to a folder once: resumed where it broke off, and checked before it is used."""

import dataclasses
import errno
import hashlib
import shutil
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from lrp_jax.weights._files import WeightsError

_CHUNK = 2**20
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 5
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS}
_WAIT = 1.0  # seconds before the second attempt; doubled before each further one


@dataclasses.dataclass(frozen=True)
class Remote:
    """A published file.

    Attributes:
        url: where it is.
        digest: algorithm and digest that its publisher names, in full or as far as they do: "sha256:397923af".
    """

    url: str
    digest: str

    @property
    def filename(self) -> str:
        """Its name, without the address."""
        return self.url.rpartition("/")[2]


def download(remote: Remote, folder: str | Path) -> Path:
    """Brings a file to a folder, unless it is there already; two processes at once bring it once.

    What has arrived is kept in `NAME.part` when the connection or the process breaks off, and the next call goes on
    from there. Nothing gets its name before its digest is checked.

    Args:
        remote: the file.
        folder: where to put it; made if missing.

    Returns:
        The file.

    Raises:
        WeightsError: it cannot be reached, read, written, or is not what its publisher named; the message says what
            to do.
    """
    path = Path(folder) / remote.filename
    part = path.with_name(f"{path.name}.part")
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if not path.exists():  # another process may just have brought it
                    _complete(remote, part)
                    if not _is(remote, part):
                        part.unlink()
                        raise WeightsError(
                            f"{remote.url}: what arrived is not what was published ({remote.digest} does not fit); it "
                            "was deleted. Try again, or on another network."
                        )
                    return part.rename(path)
        if not _is(remote, path):
            raise WeightsError(f"{path}: not the file that was published as {remote.url}; move it away.")
        return path
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise WeightsError(f"{part}: the disk is full; make room and call again, it goes on from here.") from None
        raise WeightsError(f"{path}: cannot be written ({error.strerror or error}).") from None


def _is(remote: Remote, path: Path) -> bool:
    algorithm, _, published = remote.digest.partition(":")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(published)


def _complete(remote: Remote, part: Path) -> None:
    """Fetches what is missing of the file, trying again where the network fails."""
    reason: Any = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_WAIT * 2 ** (attempt - 1))
        try:
            return _fetch(remote, part)
        except (OSError, HTTPException) as error:
            if getattr(error, "errno", None) in _DISK:
                raise
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
            if refused:
                break
    raise WeightsError(
        f"{remote.url}: cannot be fetched ({reason}). Call again to go on where it stopped; or bring the file here by "
        f"other means, to {part.with_name(remote.filename)}, and call again."
    )


def _fetch(remote: Remote, part: Path) -> None:
    """Appends to the part what the server still has."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={start}-", "User-Agent": "lrp_jax"})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing after the part: it is whole, or not of this file
            return
        raise
    with response:
        if response.status != 206:  # a server that sends all of it
            start = 0
        length = response.headers["Content-Length"]
        total = None if length is None else start + int(length)
        if total is not None and shutil.disk_usage(part.parent).free < total - start:
            raise OSError(errno.ENOSPC, "no space left")
        with (
            open(part, "ab" if start else "wb") as file,
            tqdm(
                desc=remote.filename,
                initial=start,
                total=total,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                disable=None,
            ) as progress,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
            if total is not None and file.tell() < total:
                raise ConnectionError("the connection broke off")
