"""Files of weights that state something false: no crash, no large allocation, no wrong number, one clear error."""

import json
import os
import resource
import struct
import zipfile

import flax.serialization
import h5py
import msgpack
import numpy as np
import pytest
from torch_files import opcodes, pickle_dict, pickle_tensor, write, write_pickles, write_zip

from lrp_jax import weights
from lrp_jax.weights import Layout, WeightsError, arrange

VALUES = {"0": np.arange(8, dtype=np.float32)}


def refused(path, reason=""):
    with pytest.raises(WeightsError, match=rf"{path.name}: .*{reason}"):
        weights.read(path)


def flax_array(shape, dtype, data, code=1):
    return msgpack.packb({"a": msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))})


@pytest.mark.parametrize(
    ("shape", "dtype", "data"),
    [
        ((1000,), "float32", b"1234"),
        ((3,), "float32", bytes(16)),
        ((2**62, 4), "float32", b""),
        ((-4,), "float32", b""),
        ((2.0,), "float32", bytes(8)),
        ((True,), "float32", bytes(4)),
        ([1] * 100, "float32", bytes(4)),
        ((2,), "object", bytes(16)),
        ((1,), "V8", bytes(8)),
        ((1,), "f4,f4", bytes(8)),
        ("ab", "float32", bytes(8)),
        ((1,), 4, bytes(4)),
    ],
)
def test_flax_arrays_whose_description_differs_from_their_bytes_are_refused(shape, dtype, data, tmp_path):
    (tmp_path / "w").write_bytes(flax_array(shape, dtype, data))
    refused(tmp_path / "w", "not a readable Flax msgpack file")


def test_bytes_that_look_like_flax_arrays_are_not_taken_for_one(tmp_path):
    array = np.arange(4, dtype=np.float32)
    inner = flax_array(array.shape, "float32", array.tobytes())
    (tmp_path / "w").write_bytes(flax.serialization.to_bytes({"a": np.frombuffer(inner, np.uint8), "b": array}))
    loaded = weights.read(tmp_path / "w")
    np.testing.assert_array_equal(loaded["a"], np.frombuffer(inner, np.uint8))
    np.testing.assert_array_equal(loaded["b"], array)


@pytest.mark.parametrize("data", [b"\x81\xa1a" * 10**5, b"\xdf\xff\xff\xff\xff", b"\xdf\0\0\0\1\xc6\xff\xff\xff\xff"])
def test_flax_maps_that_are_deep_or_incomplete_are_refused(data, tmp_path):
    (tmp_path / "w").write_bytes(data)
    refused(tmp_path / "w", "not a readable Flax msgpack file")


def test_params_of_flax_training_states_are_read(tmp_path):
    state = {"step": 3, "params": {"a": {"kernel": np.ones((2, 2))}}, "opt_state": {"0": {"mu": np.zeros(2)}}}
    for tree in (state, {"model": state}):
        (tmp_path / "w").write_bytes(flax.serialization.to_bytes(tree))
        assert list(weights.read(tmp_path / "w")) == ["a/kernel"]


def chunked(file, **options):
    file.create_dataset("a/kernel", data=np.zeros((40, 40)), chunks=(7, 40), **options)


@pytest.mark.parametrize(
    "fill",
    [
        lambda file: chunked(file, compression="lzf"),
        lambda file: chunked(file, compression="gzip", fletcher32=True),
        lambda file: chunked(file, scaleoffset=3),
    ],
    ids=["lzf", "fletcher32", "scaleoffset"],
)
def test_hdf5_filters_that_keras_does_not_write_are_refused(fill, tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        fill(file)
    refused(tmp_path / "w.h5", "filters other than gzip and shuffle|another type")


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True}])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2"])
def test_hdf5_blocks_are_joined(options, dtype, tmp_path):
    values = np.random.default_rng(0).normal(size=(13, 5, 4)).astype("f4").astype(dtype)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("a/kernel", data=values, chunks=(4, 3, 4), **options)
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((5,))
        h5py.h5d.create(file["a"].id, b"bias", h5py.h5t.py_create(np.dtype(dtype)), space, compact).write(
            h5py.h5s.ALL, h5py.h5s.ALL, values[0, :, 0].copy()
        )
    loaded = weights.read(tmp_path / "w.h5")
    np.testing.assert_array_equal(loaded["a/kernel"], values)
    np.testing.assert_array_equal(loaded["a/bias"], values[0, :, 0])


@pytest.mark.parametrize("options", [{}, {"chunks": (2**20,)}, {"chunks": (2**20,), "compression": "gzip"}])
def test_hdf5_datasets_without_values_are_refused(options, tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("a/bias", shape=(2**28,), dtype="f8", **options)
    assert (tmp_path / "w.h5").stat().st_size < 10_000
    refused(tmp_path / "w.h5", "has no values in this file")


def test_hdf5_blocks_that_expand_too_much_are_refused_before_memory_is_allocated(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        zeros = np.zeros(2**23, "f4")
        dataset = file.create_dataset("a/bias", shape=(20 * 2**23,), dtype="f4", chunks=(2**23,), compression="gzip")
        dataset[: 2**23] = zeros
        block = dataset.id.read_direct_chunk((0,))[1]
        for i in range(20):
            dataset.id.write_direct_chunk((i * 2**23,), block)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "w.h5", "its tensors have 671088640 bytes")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_crash_of_the_hdf5_library_is_an_error(tmp_path, monkeypatch):
    program = tmp_path / "crash.py"
    program.write_text("import os; os.abort()")
    monkeypatch.setattr(weights._keras.Path, "with_name", lambda *_: program)
    (tmp_path / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    refused(tmp_path / "w.h5", "the HDF5 library cannot process it")


def test_files_that_crash_native_libraries_are_refused(data):
    with pytest.raises(WeightsError, match="not a readable PyTorch or Keras file"):
        weights.read(data / "faults" / "crash_a.h5")


TORCH_FORMATS = pytest.mark.parametrize("write", [write_zip, write_pickles])

HOSTILE_PICKLES = {
    "a large memo": b"\x80\x02Nr\xff\xff\xff\xff.",
    "a large memo at the maximum": b"\x80\x02}r\xfe\xff\xff\x7f.",
    "a long text": b"\x80\x02\x8d" + struct.pack("<Q", 2**62) + b"a.",
    "long bytes": b"\x80\x02\x8e" + struct.pack("<Q", 2**40) + b"a.",
    "a long number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a frame": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",
    "attributes of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}(X\x01\x00\x00\x00aNub.",
    "attributes of a type": b"\x80\x02ccollections\nOrderedDict\n}(X\x06\x00\x00\x00updateNub.",
    "attributes of a storage": b"\x80\x02ctorch\nFloatStorage\n}(X\x01\x00\x00\x00aNub.",
    "an object of another type": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "nested tuples as a key": b"\x80\x02})" + b"q\0h\0\x86" * 60 + b"Ns.",
    "itself": b"\x80\x02}q\0X\x05\0\0\0modelh\0s.",
    "nothing": b"\x80\x02.",
    "a mark that is missing": b"\x80\x02u.",
}


@TORCH_FORMATS
@pytest.mark.parametrize("state", HOSTILE_PICKLES.values(), ids=HOSTILE_PICKLES)
def test_hostile_pickles_are_refused(write, state, tmp_path):
    write(tmp_path / "w.pth", state, VALUES)
    refused(tmp_path / "w.pth", "not a readable .*PyTorch")


def test_tensors_with_invalid_descriptions_are_refused(tmp_path):
    for changed in (
        {"shape": (2**62, 2**62), "strides": (0, 0)}, {"shape": (2**40,), "strides": (0,)},
        {"shape": (1,) * 100, "strides": (1,) * 100}, {"shape": (2, 3.5)}, {"shape": ("2", 3)}, {"strides": (1,)},
        {"offset": 2**70}, {"size": 2**64}, {"shape": (True, 3)}, {"shape": None},
    ):  # fmt: skip
        write_zip(tmp_path / "w.pth", pickle_dict({"w": pickle_tensor(**changed)}), VALUES)
        refused(tmp_path / "w.pth")


@TORCH_FORMATS
def test_views_of_shared_storages_are_read(write, tmp_path):
    state = {
        "expanded": pickle_tensor(offset=1, shape=(5, 2), strides=(0, 1)),
        "scalar": pickle_tensor(offset=3, shape=(4, 4), strides=(0, 0)),
        "diagonal": pickle_tensor(shape=(3,), strides=(3,)),
        "overlapping": pickle_tensor(shape=(4, 3), strides=(1, 1)),
        "all": pickle_tensor(shape=(8,), strides=(1,)),
    }
    write(tmp_path / "w.pth", pickle_dict(state), VALUES)
    loaded, v = weights.load(tmp_path / "w.pth"), VALUES["0"]
    expected = {
        "expanded": np.tile([[1.0, 2.0]], (5, 1)), "scalar": np.full((4, 4), 3.0), "diagonal": v[::3],
        "overlapping": [v[i : i + 3] for i in range(4)], "all": v,
    }  # fmt: skip
    for name, values in expected.items():
        np.testing.assert_array_equal(loaded[name], np.asarray(values, np.float32), strict=True)


def test_archives_with_overlapping_members_are_refused(tmp_path):
    write_zip(tmp_path / "w.pth", pickle_dict({"w": pickle_tensor()}), VALUES)
    data = (tmp_path / "w.pth").read_bytes()
    start = data.index(b"PK\1\2")
    entry = data[start : data.index(b"PK\1\2", start + 1)]
    end = bytearray(data[data.index(b"PK\5\6") :])
    struct.pack_into("<HHI", end, 8, 5, 5, len(data[start:]) - len(end) + 2 * len(entry))
    (tmp_path / "w.pth").write_bytes(data[: data.index(b"PK\5\6")] + entry * 2 + end)
    refused(tmp_path / "w.pth", "overlaps another member")


WRAPPERS = ("_orig_mod.", "module.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.", "model.net._orig_mod.")


@pytest.mark.parametrize("prefix", WRAPPERS)
@pytest.mark.parametrize("kind", ["torch", "old torch", "safetensors", "lightning", "flax"])
def test_names_of_wrappers_are_removed_in_every_format(prefix, kind, tmp_path):
    path, kernel, bias = tmp_path / "w", np.arange(6.0).reshape(2, 3), np.arange(3.0)
    names, layout = {f"{prefix}fc.weight": kernel, f"{prefix}fc.bias": bias}, Layout(leaves=weights.TORCH)
    if kind == "safetensors":
        weights.save(path, names)
    elif kind == "flax":
        tree = {"fc": {"weight": kernel, "bias": bias}}
        for part in reversed(prefix.strip(".").split(".")):
            tree = {part: tree}
        path.write_bytes(flax.serialization.to_bytes({"params": tree}))
        layout = Layout(leaves={"kernel": "{}/weight", "bias": "{}/bias"})
    elif kind == "lightning":
        write(path, names)
        with zipfile.ZipFile(path) as archive:
            contents = {info.filename: archive.read(info) for info in archive.infolist()}
        state = contents["archive/data.pkl"]
        rest = opcodes("epoch") + opcodes(3) + opcodes("loss") + opcodes(0.5) + opcodes("done") + opcodes(True)
        contents["archive/data.pkl"] = b"\x80\x02}(" + opcodes("state_dict") + state[2:-1] + rest + b"u."
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        write(path, names, old=kind == "old torch")
    arranged = arrange(weights.read(path), {"fc/kernel": (2, 3), "fc/bias": (3,)}, [layout], path)
    np.testing.assert_array_equal(arranged["fc/kernel"], kernel)
    np.testing.assert_array_equal(arranged["fc/bias"], bias)


def test_wrappers_inside_a_network_are_removed_and_names_stay_unique(tmp_path):
    write(tmp_path / "w", {"features.module.0.weight": np.ones((2, 2)), "classifier.weight": np.ones((2, 2))})
    assert list(weights.read(tmp_path / "w")) == ["features.0.weight", "classifier.weight"]
    write(tmp_path / "w", {"module.a": np.ones(2), "a": np.zeros(2)})
    refused(tmp_path / "w", "several tensors 'a'")
    weights.save(tmp_path / "w.safetensors", {"model": {"module": {"a": np.ones(2)}}})
    assert weights.load(tmp_path / "w.safetensors")["model"]["module"]["a"].tolist() == [1, 1]


def safetensors(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors({"a": {"dtype": "F32", "shape": [2**62, 2], "data_offsets": [0, 0]}}),
        safetensors({"a": {"dtype": "F32", "shape": [2**64], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors(
            {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}, bytes(8)
        ),
        safetensors({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors(b'{"a":' * 10_000),
        struct.pack("<Q", 2**39) + b"{",
    ],
)  # fmt: skip
def test_safetensors_headers_that_do_not_fit_are_refused(content, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(content)
    refused(tmp_path / "w.safetensors", "not a readable")


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "a pipe or a device; expected a regular file")
    with pytest.raises(WeightsError, match="a pipe or a device"):
        weights.read("/dev/zero")
    with pytest.raises(WeightsError, match="File name too long"):
        weights.read(tmp_path / ("a" * 300))


def test_reading_does_not_change_the_objects_of_the_library(tmp_path):
    """What a pickle finds has no attributes to change, so a second file is read as if it were the first."""
    write(tmp_path / "good", {"w": np.arange(3.0)})
    for state in HOSTILE_PICKLES.values():
        write_zip(tmp_path / "bad", state, VALUES)
        refused(tmp_path / "bad")
    np.testing.assert_array_equal(weights.read(tmp_path / "good")["w"], np.arange(3.0))
