"""Reads safetensors files."""

from pathlib import Path

from safetensors import safe_open

from lrp_jax.weights._mapped import DTYPES, Tensor, map_file, mapped_tensor

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def read(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors by name. The library checks that they lie one after the other, in the order of their offsets.

    Raises:
        Exception: of any type; a damaged file can cause any error.
    """
    tensors, data = {}, map_file(path)
    offset = 8 + int.from_bytes(data[:8], "little")
    with safe_open(path, framework="numpy") as file:
        for name in file.offset_keys():
            described = file.get_slice(name)
            dtype = described.get_dtype()
            if dtype not in _DTYPES:
                raise ValueError(f"tensor {name!r} has dtype {dtype}; expected real numbers")
            tensors[name] = tensor = mapped_tensor(data, DTYPES[_DTYPES[dtype]], described.get_shape(), offset)
            offset += tensor.nbytes
    return tensors
