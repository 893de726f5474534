"""Handwritten digits: MNIST (LeCun, Cortes & Burges, CC BY-SA 3.0), read from its own files; some come along."""

import gzip
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrp_jax.weights import Remote, WeightsError, download

_SHIPPED = (Path(__file__).parent / "_data", Path(__file__).parents[1] / "weights")  # installed, or a checkout
_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FILES = {
    "train": (
        Remote(f"{_URL}train-images-idx3-ubyte.gz",
               "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        Remote(f"{_URL}train-labels-idx1-ubyte.gz",
               "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    ),
    "test": (
        Remote(f"{_URL}t10k-images-idx3-ubyte.gz",
               "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        Remote(f"{_URL}t10k-labels-idx1-ubyte.gz",
               "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
}  # fmt: skip
"""The images and the labels of each part."""


class Digits(NamedTuple):
    """Images and what they show.

    Attributes:
        images: (N, 28, 28, 1), float32 in [0, 1], white on black.
        labels: (N,), 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


def shipped() -> Digits:
    """The first 500 digits of the test part, which come with the package."""
    paths = [folder / "mnist_test_500.npz" for folder in _SHIPPED]
    with np.load(next((path for path in paths if path.exists()), paths[0])) as arrays:
        return _digits(arrays["images"], arrays["labels"])


def read(folder: str | Path, part: str = "test") -> Digits:
    """The `train` part (60,000 digits) or the `test` part (10,000) from the original files in a folder.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    images, labels = (_idx(Path(folder) / file.filename) for file in FILES[part])
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise WeightsError(f"{folder}: {len(images)} images and {len(labels)} labels do not make MNIST.")
    return _digits(images, labels)


def fetch(folder: str | Path, part: str = "test") -> Digits:
    """The same, the files being downloaded and checked first unless they are there.

    Raises:
        WeightsError: they cannot be downloaded; the message says what to do.
    """
    for file in FILES[part]:
        download(file, folder)
    return read(folder, part)


def _digits(images: np.ndarray, labels: np.ndarray) -> Digits:
    return Digits(images[..., None].astype(np.float32) / 255, labels.astype(np.int32))


def _idx(path: Path) -> np.ndarray:
    """An array of bytes in the format of MNIST: two zeros, the type, the number of axes, their lengths, the bytes."""
    try:
        with gzip.open(path) as file:
            data = file.read()
        zeros, kind, axes = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
        if (zeros, kind) != (0, 8):
            raise ValueError("no array of bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file; it is one of MNIST's.") from None
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise WeightsError(f"{path}: not a readable file of MNIST ({error}).") from None
