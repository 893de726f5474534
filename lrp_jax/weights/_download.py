"""Downloads published files. Resumes interrupted downloads and checks the digest of each file."""

import contextlib
import dataclasses
import errno
import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from lrp_jax.weights._files import WeightsError, reading_weights
from lrp_jax.weights._transfer import TransferError, request

_TIMEOUT = 30.0  # seconds without data
_TOTAL = 3600.0  # seconds for all attempts of one call
_MAX_BYTES = 4 * 2**30
_ATTEMPTS = 5
_WAIT = 1.0  # seconds before the second attempt; doubles before each further attempt


@dataclasses.dataclass(frozen=True)
class Remote:
    """A published file.

    Attributes:
        url: address of the file.
        digest: algorithm and hexadecimal digest. A prefix is enough if the publisher gives no more: "sha256:397923af".
    """

    url: str
    digest: str

    @property
    def filename(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]


def download(remote: Remote, folder: str | Path) -> Path:
    """Downloads a file to a folder, unless the folder has it. Several processes at once download it only once.

    If the connection or the process stops, the received bytes stay in `NAME.part` and the next call continues from
    there. The file gets its final name only after the digest is checked.

    Args:
        remote: the file to download.
        folder: the destination folder; created if missing.

    Returns:
        The path of the file.

    Raises:
        WeightsError: the file cannot be downloaded, read or written, or its digest is wrong. The message says what to
            do.
    """
    path = Path(folder) / remote.filename
    part = path.with_name(f"{path.name}.part")
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock", timeout=_TOTAL):
                if not path.exists():  # another process may have downloaded it meanwhile
                    _download_with_retries(remote, part)
                    if not _has_digest(remote, part):
                        part.unlink()
                        raise WeightsError(
                            f"{remote.url}: the received file does not have the published digest {remote.digest} and "
                            "was deleted. Try again, or use another network."
                        )
                    return part.rename(path)
        if not _has_digest(remote, path):
            raise WeightsError(f"{path}: not the file that was published as {remote.url}; move or delete it.")
        return path
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise WeightsError(f"{part}: the disk is full; free some space and call again to continue.") from None
        raise WeightsError(f"{path}: cannot be written ({error.strerror or error}).") from None


def _has_digest(remote: Remote, path: Path) -> bool:
    """Whether the file has the published digest."""
    algorithm, _, published = remote.digest.partition(":")
    with reading_weights(path, "file"), open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(published)


def _download_with_retries(remote: Remote, part: Path) -> None:
    """Downloads the rest of the file and retries after network errors."""
    reason: Any = None
    deadline = time.monotonic() + _TOTAL
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_WAIT * 2 ** (attempt - 1))
        try:
            return _append_rest(remote, part, deadline)
        except TransferError as error:
            reason = error
            if (error.status or 500) < 500 or time.monotonic() > deadline:
                break
    raise WeightsError(
        f"{remote.url}: cannot be fetched ({reason}). Call again to continue the download, or download the file "
        f"by other means, save it as {part.with_name(remote.filename)}, and call again."
    )


def _append_rest(remote: Remote, part: Path, deadline: float) -> None:
    """Requests the missing bytes and appends them to the partial file."""
    start = part.stat().st_size if part.exists() else 0
    try:
        response = request(remote.url, start, _TIMEOUT, deadline)
    except TransferError as error:
        if error.status == 416 and start:  # no bytes are missing; the digest is checked later
            return
        raise
    start, total = response.start, response.total
    if (total or 0) > _MAX_BYTES:
        raise TransferError(f"the server announces {total} bytes", 400)
    if total is not None and shutil.disk_usage(part.parent).free < total - start:
        raise OSError(errno.ENOSPC, "no space left")
    with (
        contextlib.closing(response.chunks) as chunks,
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
        for chunk in chunks:
            file.write(chunk)
            progress.update(len(chunk))
            if file.tell() > _MAX_BYTES:
                raise TransferError(f"the server sends more than {_MAX_BYTES} bytes", 400)
