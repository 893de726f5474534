"""Writes files completely or not at all: each file gets its name only after its last byte is on the disk."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

_ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def writing(*files: str | Path, overwrite: bool = True, make_folders: bool = False) -> Iterator[list[Path]]:
    """Files that appear together when the block ends without an error.

    The block writes temporary files. They are in the same folders, have hidden names and the same suffixes. At the end
    they are renamed. After an error, Ctrl-C or SIGTERM they are removed, and existing files are unchanged. If a file is
    a device or a pipe, it receives the bytes at the end.

    Args:
        files: the files to write.
        overwrite: whether existing files are replaced.
        make_folders: whether missing folders are made. They are removed again if nothing is written.

    Yields:
        The temporary files, in the same order. They exist and are empty.

    Raises:
        OSError: a file cannot be written. FileExistsError: it exists and `overwrite` is false.
    """
    # a link stays a link: the file to which it points is written
    targets = [Path(os.path.realpath(file)) if _is_plain(Path(file)) else Path(file) for file in files]
    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(_ended_by_exceptions())
        if make_folders:
            for target in targets:
                _make_folder(target.parent, cleanup)
        parts = [_temporary(target, cleanup) for target in targets]
        modes = [part.stat().st_mode for part in parts]
        yield parts
        for part, target, mode in zip(parts, targets, modes, strict=True):
            _finish(part, target, mode)
        for part, target in zip(parts, targets, strict=True):
            _rename(part, target, overwrite)


def check_folder(folder: Path) -> None:
    """Checks that a folder exists or can be made, and makes nothing.

    Raises:
        OSError: there is a file of this name, or no permission to write.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(nearest))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(13, "Permission denied", str(nearest))


def _is_plain(file: Path) -> bool:
    """Whether this is a file of bytes, or will be one. Otherwise it is a folder, a device or a pipe."""
    return file.is_file() or not file.exists()


def _temporary(target: Path, cleanup: contextlib.ExitStack) -> Path:
    """A new empty file beside the target. `cleanup` removes it if it still has this name."""
    folder = target.parent if _is_plain(target) else Path(tempfile.gettempdir())
    part = folder / f".lrp_jax-{secrets.token_hex(6)}.part{target.suffix}"
    cleanup.callback(part.unlink, missing_ok=True)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # the user's default permissions
    if target.is_file():
        with contextlib.suppress(OSError):
            shutil.copymode(target, part)
    return part


def _make_folder(folder: Path, cleanup: contextlib.ExitStack) -> None:
    """Makes a folder and its missing parents. `cleanup` removes those that are empty then."""
    for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        cleanup.callback(_remove_if_empty, path)
        path.mkdir(exist_ok=True)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _finish(part: Path, target: Path, mode: int) -> None:
    """Writes the temporary file to the disk; its permissions are restored. A device or a pipe receives the bytes."""
    part.chmod(mode)  # some libraries make the files that they write private
    with open(part, "rb") as file:
        os.fsync(file.fileno())
        if not _is_plain(target):
            with open(target, "wb") as device:
                shutil.copyfileobj(file, device)


def _rename(part: Path, target: Path, overwrite: bool) -> None:
    """Gives the temporary file its name. Without `overwrite`, no file is replaced, also if it has just been made."""
    if not _is_plain(target):
        return
    if not overwrite:
        try:
            return os.link(part, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(target):
                raise FileExistsError(17, "File exists", str(target)) from None
    os.replace(part, target)


@contextlib.contextmanager
def _ended_by_exceptions() -> Iterator[None]:
    """Signals that would end the process at once raise SystemExit in this block, so that `finally` is executed."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {s: signal.getsignal(s) for s in _ENDING_SIGNALS if signal.getsignal(s) is signal.SIG_DFL}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
