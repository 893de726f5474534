"""Reads msgpack files of Flax: nested maps of arrays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrp_jax.weights._mapped import DTYPES, Tensor, map_file, mapped_tensor

_ARRAYS = (1, 3)
"""Extension codes of Flax for arrays and NumPy scalars."""

_WINDOW = 2**12
"""Number of bytes that contain any key, or the shape and dtype of an array."""

_DEPTH = 100

_FIXED = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_SIZED = {0xC7: 1, 0xC8: 2, 0xC9: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}
"""Extensions of fixed length; extensions and byte strings whose length follows in so many bytes."""

_TRAINING = {"step", "opt_state", "tx", "apply_fn", "rng", "epoch"}
"""Fields of a training state beside `params`."""


def read(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a nested dict by key path, without an outermost level `params`.

    Raises:
        Exception: of any type; a damaged file can cause any error.
    """
    data = map_file(path)
    tree, end = _value(data, 0)
    if end != len(data):
        raise ValueError("bytes follow its content")
    for key in ("state", "train_state", "model", "target"):  # names that training scripts use
        if isinstance(tree, dict) and isinstance(tree.get(key), dict) and "params" in tree[key]:
            tree = tree[key]
    tensors: dict[str, Tensor] = {}

    def visit(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, Mapping):
            for name, child in node.items():
                if path or "params" not in node or name not in _TRAINING:
                    visit(child, path if (path, name) == ((), "params") else (*path, str(name)))
        elif not isinstance(node, Tensor):
            raise ValueError(f"{'/'.join(path) or 'the content'} has type {type(node).__name__}; expected a tensor")
        elif (key := "/".join(path)) in tensors:
            raise ValueError(f"it has several tensors {key!r}")
        else:
            tensors[key] = node

    visit(tree, ())
    return tensors


def _value(data: memoryview, start: int, depth: int = 0) -> tuple[Any, int]:
    """The value that starts at a position, and the position of its end: a dict, a tensor, or any other value."""
    import msgpack

    if depth > _DEPTH:
        raise ValueError("it is nested too deeply")
    code = data[start]
    if code in _FIXED or code in (0xC7, 0xC8, 0xC9):
        begin, end = _content(data, start)
        kind = data[begin - 1]
        if kind not in _ARRAYS:
            raise ValueError("it contains objects other than arrays")
        return _array(data[begin:end]), end
    unpacker = msgpack.Unpacker(max_buffer_size=_WINDOW)
    unpacker.feed(data[start : start + _WINDOW])
    if not (0x80 <= code < 0x90 or code in (0xDE, 0xDF)):  # not a map
        return unpacker.unpack(), start + unpacker.tell()
    count = unpacker.read_map_header()
    found: dict[str, Any] = {}
    end = start + unpacker.tell()
    for _ in range(count):
        key, end = _value(data, end, depth + 1)
        if not isinstance(key, str) or key in found:
            raise ValueError("a key of a map is not a text, or occurs twice")
        found[key], end = _value(data, end, depth + 1)
    return found, end


def _content(data: memoryview, start: int) -> tuple[int, int]:
    """Start and end of the bytes of an extension or a byte string."""
    code = data[start]
    extension = code in _FIXED or code in (0xC7, 0xC8, 0xC9)
    width = _SIZED.get(code, 0)
    begin = start + 1 + width + extension  # an extension has its type in one byte
    end = begin + (_FIXED.get(code) or int.from_bytes(data[start + 1 : start + 1 + width], "big"))
    if not (code in _FIXED or code in _SIZED) or end > len(data):
        raise ValueError("an array exceeds the file")
    return begin, end


def _array(data: memoryview) -> Tensor:
    """The tensor in an extension: a list of shape, name of the dtype, and bytes."""
    import msgpack

    unpacker = msgpack.Unpacker(max_buffer_size=_WINDOW)
    unpacker.feed(data[:_WINDOW])
    count, shape, dtype = unpacker.read_array_header(), unpacker.unpack(), unpacker.unpack()
    begin, end = _content(data, unpacker.tell())
    if count != 3 or not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError("an array has an unknown description or dtype")
    tensor = mapped_tensor(data[begin:end], DTYPES[dtype], shape)
    if end != len(data) or tensor.nbytes != end - begin:
        raise ValueError(f"an array of shape {tensor.shape} and dtype {dtype} has {end - begin} bytes")
    return tensor
