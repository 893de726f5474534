"""Reads PyTorch files without PyTorch and without executing code from them."""

import pickletools
import zipfile
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrp_jax.weights._mapped import DTYPES, Tensor, map_file, map_members, mapped_tensor
from lrp_jax.weights._names import without_wrappers


def read(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a state dict by name: a zip archive, or a series of pickles (PyTorch before 1.6).

    Raises:
        Exception: of any type; a damaged file can cause any error.
    """
    data = map_file(path)
    state, storages = (_read_zip if data[:2] == b"PK" else _read_pickles)(data)
    return {name: tensor.in_storages(storages) for name, tensor in state.items()}


_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
_REBUILD = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")  # the first was used until 2018
_PARAMETER, _DICT = "torch._utils._rebuild_parameter", "collections.OrderedDict"


class _Name(NamedTuple):
    """A name of Python in the pickle. It is never looked up."""

    text: str


class _Foreign:
    """Stands for an object that weights do not need, such as a hyperparameter. It keeps only the name of its class."""

    __slots__ = ("text",)

    def __init__(self, function: Any):
        self.text = function.text if isinstance(function, _Name | _Foreign) else "an object"


class _Storage(NamedTuple):
    """A buffer of values that tensors share."""

    dtype: np.dtype
    key: str
    size: int


class _Tensor(NamedTuple):
    """A tensor as described in the pickle."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def in_storages(self, storages: Mapping[str, memoryview]) -> Tensor:
        """The tensor as a view of its storage."""
        dtype, key, size = self.storage
        data = storages.get(key, memoryview(b""))
        if len(data) != size * dtype.itemsize or min(self.offset, *self.shape, *self.strides, 0) < 0:
            raise ValueError(f"storage {key} is incomplete")
        try:
            return mapped_tensor(data, dtype, self.shape, self.offset * dtype.itemsize, self.strides)
        except ValueError:
            raise ValueError(f"a tensor exceeds storage {key}") from None


class _Unpickler:
    """Interprets the part of the pickle format that state dicts use.

    Values are numbers, texts, tuples, lists, dicts, storages and tensors. Nothing is imported or called, so a pickle
    cannot execute code, and it cannot reach an object of this process. An object of any other class becomes a
    `_Foreign`, and its attributes and elements are ignored.
    """

    def __init__(self, file: Any):
        """`file` is at the start of the pickle, and afterwards at its end."""
        self.file = file
        self.storages: dict[str, _Storage] = {}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The value of the pickle."""
        for opcode, argument, _ in pickletools.genops(self.file):
            if opcode.name in _PLAIN:
                self.stack.append(argument)
            elif opcode.name in _EMPTY:
                self.stack.append(_EMPTY[opcode.name]())
            elif opcode.name in _PUT:
                self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
            elif opcode.name in _GET and argument is not None:
                self.stack.append(self.memo[argument])
            elif opcode.name == "STOP":
                return self.stack.pop()
            elif opcode.name not in ("PROTO", "FRAME"):
                self.step(opcode.name, argument)

    def step(self, opcode: str, argument: Any) -> None:
        """Executes an opcode that combines values."""
        stack = self.stack
        match opcode:
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE" | "LIST" | "DICT":
                values = self.since_mark()
                stack.append(tuple(values) if opcode == "TUPLE" else [] if opcode == "LIST" else {})
                self.extend(stack[-1], values if opcode != "TUPLE" else [])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                values = tuple(stack[-count:])
                del stack[-count:]
                stack.append(values)
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                values = self.since_mark()
                self.extend(stack[-1], values)
            case "APPEND":
                self.extend(stack[-2], [stack.pop()])
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.extend(stack[-1], [key, value])
            case "GLOBAL":
                stack.append(_Name(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_Name(f"{module:.200}.{name:.200}"))
            case "BINPERSID":
                stack.append(self.storage(*stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.call(function, *arguments))
            case "NEWOBJ" | "NEWOBJ_EX":
                del stack[-1 if opcode == "NEWOBJ" else -2 :]  # the arguments
                stack.append(_Foreign(stack.pop()))
            case "FROZENSET":
                self.since_mark()
                stack.append(_Foreign(_Name("builtins.frozenset")))
            case "POP":  # of a tuple that contains itself
                stack.pop()
            case "POP_MARK":
                self.since_mark()
            case "BUILD":  # attributes of a dict, such as the versions of its modules
                stack.pop()
                if not isinstance(stack[-1], dict | _Foreign):
                    raise ValueError("it changes an object other than a dict")
            case _:
                raise ValueError(f"it has the opcode {opcode}, which weights do not need")

    def since_mark(self) -> list[Any]:
        """Removes the values since the last mark from the stack."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def extend(self, container: Any, values: list[Any]) -> None:
        """Adds elements to a list, or keys and values to a dict."""
        if isinstance(container, list):
            container.extend(values)
        elif isinstance(container, dict):
            # hashing nested tuples can take for ever
            keys = [key if isinstance(key, str | int) else _Foreign(key) for key in values[::2]]
            container.update(zip(keys, values[1::2], strict=True))
        elif values and not isinstance(container, _Foreign):
            raise ValueError("it adds elements to an object other than a list or a dict")

    def storage(self, kind: Any, dtype: Any, key: Any, _: Any, size: Any, *view: Any) -> _Storage | _Foreign:
        """A storage from its description."""
        if kind != "storage" or not isinstance(dtype, _Name) or not isinstance(key, str) or type(size) is not int:
            raise ValueError("a storage has an unknown description")
        if (name := dtype.text.removeprefix("torch.")) not in _STORAGES or any(view):
            return _Foreign(dtype)
        self.storages[key] = _Storage(DTYPES[_STORAGES[name]], key, size)
        return self.storages[key]

    def call(self, function: Any, *arguments: Any) -> Any:
        """What a function of torch would return: a tensor or a dict. Other functions return a `_Foreign`."""
        name = function.text if isinstance(function, _Name) else ""
        if name in _REBUILD:
            storage, offset, shape, strides, *_ = arguments
            if isinstance(storage, _Foreign):
                return storage
            if not isinstance(storage, _Storage):
                raise ValueError("a tensor has no storage")
            return _Tensor(storage, offset, shape, strides)
        if name == _PARAMETER and isinstance(arguments[0], _Tensor):
            return arguments[0]
        if name == _DICT:
            found: dict[Any, Any] = {}
            for pair in arguments[0] if arguments else ():  # Python 2 wrote a list of pairs
                self.extend(found, pair)
            return found
        return _Foreign(function)


_PLAIN = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_EMPTY = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: _Foreign(_Name("builtins.set")),
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
}  # fmt: skip
_PUT, _GET = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}


_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
"""Names under which training scripts keep the state dict."""


def _state(file: Any) -> tuple[dict[str, _Tensor], dict[str, _Storage]]:
    """Tensors by name, and all storages in the pickle, also those that no tensor uses."""
    unpickler = _Unpickler(file)
    state = unpickler.load()
    for _ in _NESTED:
        nested = [state[key] for key in _NESTED if isinstance(state, dict) and isinstance(state.get(key), dict)]
        state = nested[0] if nested else state
    for value in [state, *(chain(*state.items()) if isinstance(state, dict) else ())]:
        if isinstance(value, _Name | _Foreign):
            raise ValueError(f"it refers to {value.text}, which weights do not need; no code was executed")
    if not (state and isinstance(state, dict) and all(isinstance(tensor, _Tensor) for tensor in state.values())):
        raise ValueError("expected a dict of tensors by name; save model.state_dict()")
    return without_wrappers({str(name): tensor for name, tensor in state.items()}), unpickler.storages


def _read_zip(data: memoryview) -> tuple[dict[str, _Tensor], dict[str, memoryview]]:
    """Tensors by name, and the bytes of each storage, in a zip archive."""
    file: Any = data.obj
    with zipfile.ZipFile(file) as archive:
        found = {name.partition("/")[2]: member for name, (_, member) in map_members(archive, data).items()}
    if found.get("byteorder", b"little") != b"little":
        raise ValueError("its numbers are big-endian; expected little-endian")
    if "data.pkl" not in found:
        raise ValueError("it is an archive without data.pkl")
    storages = {name.removeprefix("data/"): member for name, member in found.items()}
    return _state(bytes(found["data.pkl"]))[0], storages


def _read_pickles(data: memoryview) -> tuple[dict[str, _Tensor], dict[str, memoryview]]:
    """The same in the older format: magic number, version, machine, state, keys, and each storage after its length."""
    file: Any = data.obj
    if _Unpickler(file).load() != _MAGIC:
        raise ValueError("it is a pickle of another program")
    _, machine = _Unpickler(file).load(), _Unpickler(file).load()
    (state, described), keys = _state(file), _Unpickler(file).load()
    if not machine["little_endian"]:
        raise ValueError("its numbers are big-endian; expected little-endian")
    storages, start = {}, file.tell()
    for key in keys:
        if key not in described:
            raise ValueError("a storage has an unknown description")
        end = start + 8 + int.from_bytes(data[start : start + 8], "little") * described[key].dtype.itemsize
        storages[key], start = data[start + 8 : end], end
    return state, storages
