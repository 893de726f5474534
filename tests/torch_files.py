"""Writes files in both formats of PyTorch, without PyTorch."""

import pickle
import zipfile

import numpy as np

_STORAGES = {"f8": "DoubleStorage", "f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage"}


def write(path, state, old=False):
    """Saves arrays by name as `torch.save(state_dict)` does; `old` selects the format before PyTorch 1.6."""
    storages = {str(i): np.ascontiguousarray(array) for i, array in enumerate(state.values())}
    tensors = {
        name: pickle_tensor(
            key, array.size, 0, array.shape, tuple(s // array.itemsize for s in array.strides),
            _STORAGES[array.dtype.str[1:]], old,
        )
        for name, (key, array) in zip(state, storages.items(), strict=True)
    }  # fmt: skip
    (write_pickles if old else write_zip)(path, pickle_dict(tensors), storages)


def opcodes(value):
    """The opcodes of a pickle that put a value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


def pickle_tensor(key="0", size=8, offset=0, shape=(2, 3), strides=(1, 2), storage="FloatStorage", old=False):
    """The same for a tensor; `old` selects the function name that PyTorch used until 2018."""
    kind = opcodes("storage") + f"ctorch\n{storage}\n".encode()
    pid = b"(" + kind + opcodes(key) + opcodes("cpu") + opcodes(size) + b"tQ"
    rest = opcodes(offset) + opcodes(shape) + opcodes(strides)
    if old:
        return b"ctorch._utils\n_rebuild_tensor\n(" + pid + rest + b"tR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + rest + opcodes(False) + b"ccollections\nOrderedDict\n)RtR"


def write_zip(path, state, storages, compression=zipfile.ZIP_STORED):
    """Writes the zip archive of a pickled state and its storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", state)
        archive.writestr("archive/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())


def write_pickles(path, state, storages):
    """Writes the older format, a series of pickles and storages."""
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    tail = [np.int64(n.size).tobytes() + n.tobytes() for n in storages.values()]
    path.write_bytes(b"".join([*head, state, pickle.dumps(list(storages), 2), *tail]))


def pickle_dict(tensors):
    """The pickle of a dict of tensors."""
    return b"\x80\x02}(" + b"".join(opcodes(name) + tensor for name, tensor in tensors.items()) + b"u."
