"""Files as PyTorch writes them, in both of its formats, made without it."""

import pickle
import zipfile

import numpy as np

_STORAGES = {"f8": "DoubleStorage", "f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage"}


def write(path, state, old=False):
    """Saves arrays by their names, as `torch.save(state_dict)` does, or did when torchvision's VGGs were published."""
    storages = {str(i): np.ascontiguousarray(array) for i, array in enumerate(state.values())}
    tensors = {
        name: tensor(
            key, array.size, 0, array.shape, tuple(s // array.itemsize for s in array.strides),
            _STORAGES[array.dtype.str[1:]], old,
        )
        for name, (key, array) in zip(state, storages.items(), strict=True)
    }  # fmt: skip
    (in_a_row if old else in_zip)(path, named(tensors), storages)


def code(value):
    """The part of a pickle that puts a value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(key="0", size=8, offset=0, shape=(2, 3), strides=(1, 2), storage="FloatStorage", old=False):
    """The same for a tensor, as torch writes it, or wrote it until 2018."""
    pid = b"(" + code("storage") + f"ctorch\n{storage}\n".encode() + code(key) + code("cpu") + code(size) + b"tQ"
    rest = code(offset) + code(shape) + code(strides)
    if old:
        return b"ctorch._utils\n_rebuild_tensor\n(" + pid + rest + b"tR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + rest + code(False) + b"ccollections\nOrderedDict\n)RtR"


def in_zip(path, state, storages, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", state)
        archive.writestr("archive/byteorder", "little")
        for key, numbers in storages.items():
            archive.writestr(f"archive/data/{key}", numbers.tobytes())


def in_a_row(path, state, storages):
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    tail = [np.int64(n.size).tobytes() + n.tobytes() for n in storages.values()]
    path.write_bytes(b"".join([*head, state, pickle.dumps(list(storages), 2), *tail]))


def named(tensors):
    """The pickle of a dict of tensors."""
    return b"\x80\x02}(" + b"".join(code(name) + made for name, made in tensors.items()) + b"u."
