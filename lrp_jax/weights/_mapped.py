"""Maps files into memory, and describes tensors in them. Bytes are read from disk when they are used."""

import math
import mmap
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_MAX_AXES = 32
DTYPES = {
    name: np.dtype(name)
    for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16",
                 "uint8", "bool")
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}  # fmt: skip
"""The types that tensors of a file can have, by name."""


class Tensor(NamedTuple):
    """The description of a tensor in a file. Its size is known before memory is allocated.

    Attributes:
        dtype: one of `DTYPES`, in any byte order.
        shape: the shape.
        values: returns the array.
        nbytes: number of bytes in memory.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def mapped_tensor(
    data: memoryview, dtype: np.dtype, shape: Any, offset: Any = 0, strides: Sequence[int] | None = None
) -> Tensor:
    """A tensor whose values are mapped bytes, as a read-only view.

    Args:
        data: the bytes.
        dtype: dtype of the values.
        shape: the shape, as the file states it: anything.
        offset: position of the first value in `data`, in bytes.
        strides: distances between neighbours on each axis, in values. By default those of an array in C order.

    Raises:
        ValueError: the values are not within `data`.
    """
    shape = whole_numbers(shape, "shape")
    if strides is None:
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    steps = whole_numbers(strides, "strides")
    (start,) = whole_numbers([offset], "offset")
    used = dtype.itemsize * (1 + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))) if math.prod(shape) else 0
    if start + used > len(data):
        raise ValueError(f"a tensor of shape {shape} exceeds its {len(data)} bytes")
    flat = np.frombuffer(data[start : start + used], dtype)
    steps = [s * dtype.itemsize for s in steps] if used else np.zeros(shape, dtype).strides
    return Tensor(dtype, shape, lambda: np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False))


def whole_numbers(values: Any, what: str) -> tuple[int, ...]:
    """Checks numbers that a file states: whole, not negative, less than 2**63, and not more than 32."""
    if not isinstance(values, Sequence) or len(values) > _MAX_AXES:
        raise ValueError(f"a tensor has an invalid {what}")
    if any(type(value) is not int or not 0 <= value < 2**63 for value in values):
        raise ValueError(f"a tensor has an invalid {what}")
    return tuple(values)


def map_file(path: str | Path) -> memoryview:
    """Maps a file into memory, read-only."""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def map_members(archive: zipfile.ZipFile, data: memoryview) -> dict[str, tuple[int, memoryview]]:
    """Finds position and bytes of each member of an uncompressed zip archive; `data` is the mapped archive."""
    found, end = {}, 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError("the archive is compressed; expected an uncompressed one")
        header = data[info.header_offset : info.header_offset + 30]
        lengths = np.frombuffer(header[26:], "<u2")  # of the name and of the extra field
        start = info.header_offset + 30 + sum(lengths.tolist())
        member = data[start : start + info.file_size]
        if info.header_offset < end or len(member) < info.file_size or info.filename in found:
            raise ValueError(f"{info.filename} overlaps another member or exceeds the archive")
        end = start + info.file_size
        if zlib.crc32(member) != info.CRC:
            raise ValueError(f"{info.filename} is damaged")
        found[info.filename] = start, member
    return found
