"""Describes the datasets of an HDF5 file as JSON. It runs in a process of its own, and imports nothing of this package.

Arguments: the file, and the start and the number of bytes of the HDF5 data in it. The native library can crash or run
for ever on a damaged file. Here, only this process ends.
"""

import base64
import contextlib
import io
import json
import sys
from typing import Any

import h5py

resource: Any = None
with contextlib.suppress(ImportError):  # Windows does not have it
    import resource

_SECONDS, _BYTES = 4, 2**31


class _Part(io.RawIOBase):
    """A part of a file."""

    def __init__(self, file, start, size):
        self.file, self.start, self.size, self.position = file, start, size, 0

    def seek(self, offset, whence=0):
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def tell(self):
        return self.position

    def readinto(self, buffer):
        self.file.seek(self.start + self.position)
        count = self.file.readinto(memoryview(buffer)[: max(self.size - self.position, 0)])
        self.position += count
        return count


def main(path, start, size):
    """Prints the description."""
    for name, limit in (("CPU", _SECONDS), ("AS", _BYTES), ("CORE", 0)) if resource else ():
        with contextlib.suppress(ValueError, OSError, AttributeError):  # not every system has every limit
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    datasets = {}

    def visit(name, node):
        if isinstance(node, h5py.Dataset):
            datasets[name] = _describe(node)

    try:
        with open(path, "rb", 0) as file, h5py.File(_Part(file, int(start), int(size)), "r") as opened:
            config = str(opened.attrs.get("model_config"))
            opened.visititems(visit)
        found = {"datasets": datasets, "channels_first": "channels_first" in config}
    except Exception as error:
        found = {"error": str(error)[:300] or type(error).__name__}
    json.dump(found, sys.stdout)


def _describe(node):
    """Type, shape and place of the values of a dataset."""
    properties = node.id.get_create_plist()
    stored = node.shape is not None and not node.external and not node.is_virtual
    found = {
        "dtype": _dtype(node.id.get_type()), "kind": str(node.id.get_type().get_class()), "shape": node.shape,
        "stored": stored, "offset": None, "chunk": node.chunks,
    }  # fmt: skip
    if not stored or found["dtype"] is None:
        return found
    if properties.get_layout() == h5py.h5d.COMPACT:
        found["values"] = base64.b64encode(node[()].tobytes()).decode()
    elif node.chunks:
        found["filters"] = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        chunks = found["chunks"] = []
        node.id.chunk_iter(lambda c: chunks.append((c.chunk_offset, c.filter_mask, c.byte_offset, c.size)))
    else:
        found["offset"] = node.id.get_offset()
    return found


def _dtype(kind):
    """NumPy's description of a type, or None if it is not a type of real numbers that NumPy has."""
    size = kind.get_size()
    if isinstance(kind, h5py.h5t.TypeOpaqueID):
        return "bfloat16" if size == 2 else None
    if not isinstance(kind, h5py.h5t.TypeFloatID | h5py.h5t.TypeIntegerID) or kind.get_precision() != 8 * size:
        return None
    order = ">" if kind.get_order() == h5py.h5t.ORDER_BE else "<"
    if isinstance(kind, h5py.h5t.TypeIntegerID):
        letter = "u" if kind.get_sign() == h5py.h5t.SGN_NONE else "i"
        return f"{order}{letter}{size}" if size in (1, 2, 4, 8) else None
    fields = {
        (2, 15, 10, 5, 0, 10, 15): "f2", (4, 31, 23, 8, 0, 23, 127): "f4", (8, 63, 52, 11, 0, 52, 1023): "f8",
        (2, 15, 7, 8, 0, 7, 127): "bfloat16",
    }  # fmt: skip
    name = fields.get((size, *kind.get_fields(), kind.get_ebias()))
    return name if name in (None, "bfloat16") else f"{order}{name}"


if __name__ == "__main__":
    main(*sys.argv[1:])
