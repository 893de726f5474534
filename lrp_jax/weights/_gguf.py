"""Reads GGUF files: the tensors of language models, quantized or not, and the facts in the header.

The package gguf computes the values of quantized tensors. The header is read here, because numbers in a damaged header
must not decide how much memory or time is needed.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lrp_jax.weights._mapped import Tensor, map_file, mapped_tensor

MAGIC = b"GGUF"

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Format characters of the types of numbers in a header."""
_TEXT, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MAX_DEPTH = 4  # of arrays in arrays
_MAX_LENGTH = 2**24  # of an array; it becomes a list


def read(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors by name. Values are float32, except those that the file has in another floating-point type.

    Raises:
        Exception: of any type; a damaged file can cause any error.
    """
    return _tensors(_Header(map_file(path)))


def metadata(path: str | Path) -> dict[str, Any]:
    """Reads the facts in the header by their keys: numbers, texts, and lists of them.

    Raises:
        Exception: of any type; a damaged file can cause any error.
    """
    data = map_file(path)
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("it does not start with GGUF")
    return _Header(data).facts


class _Header:
    """The header of a file.

    Attributes:
        data: the bytes of the file.
        facts: the facts by their keys.
        tensors: the number of tensors.
    """

    def __init__(self, data: memoryview):
        self.data, self._at = data, len(MAGIC)
        if (version := self.number("I")) not in _VERSIONS:
            raise ValueError(f"its version is {version}; expected 2 or 3")
        self.tensors, count = self.number("Q"), self.number("Q")
        self.facts: dict[str, Any] = {}
        for _ in range(count):
            key = self.text()
            if key in self.facts:
                raise ValueError(f"it has two facts {key!r:.100}")
            self.facts[key] = self._value(self.number("I"))

    @property
    def position(self) -> int:
        """The position of the next byte."""
        return self._at

    def number(self, code: str) -> Any:
        """The next number. It raises an error at the end of the file."""
        (value,) = struct.unpack_from(f"<{code}", self.data, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        """The next text."""
        return bytes(self._bytes(self.number("Q"))).decode("utf-8", "replace")

    def _bytes(self, count: int) -> memoryview:
        if count > len(self.data) - self._at:
            raise ValueError("its header exceeds the file")
        self._at += count
        return self.data[self._at - count : self._at]

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY and depth < _MAX_DEPTH:
            inner, count = self.number("I"), self.number("Q")
            if count > _MAX_LENGTH:
                raise ValueError(f"its header has an array of {count} values")
            if code := _NUMBERS.get(inner):
                dtype = np.dtype(code).newbyteorder("<")
                return np.frombuffer(self._bytes(count * dtype.itemsize), dtype).tolist()
            return [self._value(inner, depth + 1) for _ in range(count)]  # each takes bytes of the file
        if kind not in _NUMBERS:
            raise ValueError(f"its header has a value of the unknown type {kind}")
        return self.number(_NUMBERS[kind])


def _tensors(header: _Header) -> dict[str, Tensor]:
    """The tensors whose descriptions follow the facts."""
    described = {}
    for _ in range(header.tensors):
        name, axes = header.text(), header.number("I")
        if axes > 4 or name in described:
            raise ValueError(f"tensor {name!r:.100} has {axes} axes, or is there twice")
        shape = tuple(header.number("Q") for _ in range(axes))[::-1]
        described[name] = shape, header.number("I"), header.number("Q")
    alignment = header.facts.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise ValueError(f"its alignment is {alignment!r:.50}")
    data = header.data[header.position + -header.position % alignment :]
    return {name: _tensor(data, name, *rest) for name, rest in described.items()}


def _tensor(data: memoryview, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Tensor:
    """A tensor of one of the types of the package gguf, as floating-point numbers."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(kind)
    block, size = GGML_QUANT_SIZES[kind]
    if plain := {"F16": np.float16, "F32": np.float32, "F64": np.float64}.get(kind.name):
        return mapped_tensor(data, np.dtype(plain).newbyteorder("<"), shape, offset)
    if not shape or shape[-1] % block:
        raise ValueError(f"tensor {name!r:.100} has shape {shape}; expected rows of a multiple of {block} numbers")
    stored = mapped_tensor(data, np.dtype(np.uint8), (*shape[:-1], shape[-1] // block * size), offset)
    values: Callable[[], np.ndarray] = lambda: dequantize(stored.values(), kind).reshape(shape)
    return Tensor(np.dtype(np.float32), shape, values)
