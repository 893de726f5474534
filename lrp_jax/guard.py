"""Reading files that may be damaged or hostile: one error for every failure, and a limit of the bytes of work."""

import contextlib
import errno
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path


def byte_limit(path: str | Path, base: int = 256 * 2**20) -> int:
    """The number of bytes to which a file may expand in memory: `base`, and 16 bytes for each byte of the file."""
    return base + 16 * os.stat(path).st_size


@contextlib.contextmanager
def reading(
    path: str | Path,
    problem: str,
    error: type[ValueError],
    *,
    missing: str = "no such file",
    folder: str = "Is a directory",
    end: str = "",
) -> Iterator[None]:
    """Reads a regular file. Every exception of the reader becomes one error that names the file.

    Args:
        path: the file.
        problem: the message for a damaged file; the reason follows it.
        error: the type of the error. An `error` that the reader raises is not changed.
        missing, folder: the messages for a file that does not exist, and for a folder.
        end: the end of each message.
    """
    try:
        _check_regular(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file causes an error or is usable
            yield
    except error:
        raise
    except FileNotFoundError:
        raise error(f"{path}: {missing}{end}") from None
    except IsADirectoryError:
        raise error(f"{path}: {folder}{end}") from None
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as caught:  # a panic of a library in Rust is not an Exception
        if isinstance(caught, OSError) and caught.errno:  # of the operating system, not of the reader
            problem = "cannot be read"
        raise error(f"{path}: {problem} ({_reason(caught)}){end}") from None


def _check_regular(path: str | Path) -> None:
    """Raises OSError for folders, pipes and devices: a pipe can block for ever, a device can be endless."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe or a device; expected a regular file")


def _reason(error: BaseException) -> str:
    """The text of an exception, in one line of limited length."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return " ".join(text.split())[:300] or type(error).__name__
