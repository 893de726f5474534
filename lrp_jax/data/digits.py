"""Handwritten digits: the MNIST data set (LeCun, Cortes & Burges, CC BY-SA 3.0); 500 are included in the package."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lrp_jax.guard import reading
from lrp_jax.weights import Remote, WeightsError, download

if TYPE_CHECKING:
    from jaxtyping import Float32, Int32, UInt8

_INCLUDED = (Path(__file__).parents[1] / "_data", Path(__file__).parents[2] / "weights")  # installed, or a checkout
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
"""The published file of images and the published file of labels, for each part of the data set."""


class Digits(NamedTuple):
    """Images of digits and their labels.

    Attributes:
        images: (N, 28, 28, 1), float32 in [0, 1], white digits on black.
        labels: (N,), int32, 0 to 9.
    """

    images: Float32[np.ndarray, "N 28 28 1"]
    labels: Int32[np.ndarray, " N"]


def shipped() -> Digits:
    """The digits included in the package: the first 500 of the test part."""
    paths = [folder / "mnist_test_500.npz" for folder in _INCLUDED]
    path = next((path for path in paths if path.exists()), paths[0])
    with reading(path, "damaged file of the package", WeightsError, end="."), np.load(path) as arrays:
        return _scaled(arrays["images"], arrays["labels"])


def read(folder: str | Path, part: str = "test") -> Digits:
    """Reads one part of MNIST from its published files.

    Args:
        folder: the folder of the files.
        part: train (60,000 digits) or test (10,000 digits).

    Raises:
        WeightsError: a file is missing or damaged.
    """
    images, labels = (_read_idx(Path(folder) / file.filename) for file in FILES[part])
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise WeightsError(
            f"{folder}: the images have shape {images.shape} and the labels {labels.shape}; "
            "MNIST has (N, 28, 28) and (N,)."
        )
    if labels.size and labels.max() > 9:
        raise WeightsError(f"{folder}: the labels reach {labels.max()}; expected 0 to 9.")
    return _scaled(images, labels)


def fetch(folder: str | Path, part: str = "test") -> Digits:
    """Downloads the missing files of one part of MNIST, checks all its files and reads them.

    Args:
        folder: the folder of the files.
        part: as for `read`.

    Raises:
        WeightsError: a file cannot be downloaded, is damaged, or is not the published file.
    """
    for file in FILES[part]:
        download(file, folder)
    return read(folder, part)


def _scaled(images: UInt8[np.ndarray, "N 28 28"], labels: UInt8[np.ndarray, " N"]) -> Digits:
    """Digits from arrays of bytes."""
    return Digits(images[..., None].astype(np.float32) / 255, labels.astype(np.int32))


def _read_idx(path: Path) -> UInt8[np.ndarray, "*shape"]:
    """An array in the IDX format: two zero bytes, data type, number of axes, their lengths, the values."""
    problem = "not a readable file of MNIST"
    with (
        reading(path, problem, WeightsError, missing="no such file; expected a file of MNIST", end="."),
        gzip.open(path) as file,
    ):
        zeros, kind, axes = struct.unpack(">HBB", file.read(4))
        if (zeros, kind) != (0, 8) or axes > 3:
            raise ValueError("not an array of unsigned bytes with at most three axes")
        shape = struct.unpack(f">{axes}I", file.read(4 * axes))
        if (size := math.prod(shape)) > _MAX_BYTES:
            raise ValueError(f"it has {axes} axes and {size:.3g} values; MNIST has at most 60,000 digits")
        data = file.read(size + 1)  # not more than stated: a small file can expand to any length
        if len(data) != size:
            raise ValueError(f"its shape is {shape}, but it has another number of values")
        return np.frombuffer(data, np.uint8).reshape(shape)


_MAX_BYTES = 60_000 * 28 * 28
