"""Reading weights in every supported format."""

import argparse
import collections
import datetime
import functools
import os
import pathlib
import pickle
import signal
import zipfile

import flax.serialization
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_files import opcodes, pickle_dict, pickle_tensor, write, write_pickles, write_zip

from lrp_jax import weights
from lrp_jax.weights import WeightsError

STORAGES = {"0": np.arange(8, dtype=np.float32), "1": np.array([7]), "2": np.array([1, 2, 3], jnp.bfloat16)}
TORCH_FORMATS = pytest.mark.parametrize("write", [write_zip, write_pickles])


@TORCH_FORMATS
def test_torch_files_are_read_without_torch(write, tmp_path):
    transposed = pickle_tensor(offset=2)
    count = pickle_tensor("1", 1, shape=(), strides=(), storage="LongStorage")
    empty = pickle_tensor(shape=(4, 0), strides=(1, 1))
    half = pickle_tensor("2", 3, shape=(3,), strides=(1,), storage="BFloat16Storage")
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + half + opcodes(True) + b"ccollections\nOrderedDict\n)RtR"
    state = {"transposed": transposed, "count": count, "module.empty": empty, "half": half, "parameter": parameter}
    write(tmp_path / "w.pth", pickle_dict(state), STORAGES)
    loaded = weights.read(tmp_path / "w.pth")
    np.testing.assert_array_equal(loaded["transposed"], np.array([[2, 4, 6], [3, 5, 7]], np.float32), strict=True)
    np.testing.assert_array_equal(loaded["count"], np.array(7), strict=True)
    np.testing.assert_array_equal(loaded["half"], STORAGES["2"], strict=True)
    np.testing.assert_array_equal(loaded["parameter"], STORAGES["2"], strict=True)
    assert loaded["empty"].shape == (4, 0)
    del state["half"], state["parameter"]  # so that only the momentum uses their storage
    for key in ("state_dict", "model"):
        momentum = opcodes("momentum") + pickle_tensor("2", 3, shape=(3,), strides=(1,), storage="BFloat16Storage")
        checkpoint = b"\x80\x02}(" + momentum + opcodes(key) + pickle_dict(state)[2:-1] + b"u."
        write(tmp_path / "w.pth", checkpoint, STORAGES)
        assert list(weights.read(tmp_path / "w.pth")) == ["transposed", "count", "empty"]


@TORCH_FORMATS
@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (b"\x80\x02cos\nmkdir\n" + opcodes(("HERE",)) + b"R.", "it refers to os.mkdir, .* no code was executed"),
        (pickle_dict({"w": b"cbuiltins\neval\n" + opcodes(("1",)) + b"R"}), "it refers to builtins.eval"),
        (pickle_dict({"w": b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n"}), "it refers to"),
        (pickle_dict({"w": opcodes(1.0)}), "expected a dict of tensors by name"),
        (b"\x80\x02" + opcodes([1]) + b".", "expected a dict of tensors by name"),
        (pickle_dict({"w": pickle_tensor(offset=3)}), "a tensor exceeds storage 0"),
        (pickle_dict({"w": pickle_tensor(offset=-1)}), "storage 0 is incomplete"),
        (pickle_dict({"w": pickle_tensor(strides=(-1, 2))}), "storage 0 is incomplete"),
        (pickle_dict({"w": pickle_tensor(shape=(9, 9), strides=(0, 1))}), "a tensor exceeds storage 0"),
        (pickle_dict({"w": pickle_tensor(size=9)}), "storage 0 is incomplete"),
        (pickle_dict({"w": pickle_tensor()})[:-9], ""),
    ],
)
def test_a_manipulated_torch_file_is_refused_and_executes_no_code(write, state, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "w.pth", state, {"0": STORAGES["0"]})
    with pytest.raises(WeightsError, match=rf"w\.pth: not a readable .*PyTorch.* file \(.*{reason}"):
        weights.read(tmp_path / "w.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


class Settings(dict):
    """A dict with attributes, as Lightning keeps hyperparameters."""


class Callback:
    def __init__(self):
        self.best, self.seen = pathlib.Path("a.ckpt"), {3, 4}
        self.itself = (self,)

    def __reduce_ex__(self, protocol):
        return (Callback, (), self.__dict__, iter([1, 2]), iter([("a", 1)]))


class Runs:
    def __reduce__(self):
        return os.mkdir, ("HERE",)


def hyperparameters():
    named = Settings(rate=0.1)
    named.extra = argparse.Namespace(width=3, layers=[1, 2], nested=argparse.Namespace(deep=True))
    recursive: list = []
    recursive.append((recursive,))
    return {
        "namespace": named.extra, "settings": named, "default": collections.defaultdict(list, a=[1]), "set": {1, 2},
        "frozen": frozenset({1}), "path": pathlib.PurePosixPath("a/b"), "scalar": np.float32(3), "array": np.arange(3),
        "type": Settings, "function": os.mkdir, "callback": Callback(), "runs": Runs(), "recursive": recursive,
        "complex": 1j, "bytes": b"a", "bytearray": bytearray(b"a"), "date": datetime.date(2020, 1, 1), "none": None,
        "counts": collections.Counter("aab"), "ordered": collections.OrderedDict(a=1), "huge": 2**80,
        "partial": functools.partial(os.mkdir, "HERE"), "dtype": np.dtype("f4"), "enum": signal.SIGINT,
        Settings: 1, (1, (2, 3)): 2, None: 3, 0.5: 4, frozenset({1}): 5,
    }  # fmt: skip


@TORCH_FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_of_any_class_beside_the_weights_are_ignored(write, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = pickle_dict({"fc.weight": pickle_tensor()})[2:-1]
    foreign = pickle.dumps(hyperparameters(), protocol)[2:-1]
    checkpoint = b"\x80\x02}(K\0" + foreign + opcodes("state_dict") + state + b"u."
    write(tmp_path / "w.ckpt", checkpoint, {"0": STORAGES["0"]})
    np.testing.assert_array_equal(weights.read(tmp_path / "w.ckpt")["fc.weight"], [[0, 2, 4], [1, 3, 5]])
    assert [p.name for p in tmp_path.iterdir()] == ["w.ckpt"]


@TORCH_FORMATS
@pytest.mark.parametrize("name", hyperparameters())
def test_an_object_of_another_class_among_the_weights_is_refused(write, name, tmp_path):
    value = opcodes(hyperparameters()[name])
    for state in (b"\x80\x02" + value + b".", pickle_dict({"fc.weight": pickle_tensor(), "x": value})):
        write(tmp_path / "w.ckpt", state, {"0": STORAGES["0"]})
        with pytest.raises(WeightsError, match=r"it refers to .*; no code was executed|expected a dict of tensors"):
            weights.read(tmp_path / "w.ckpt")
    key = pickle_dict({"fc.weight": pickle_tensor()})[:-2] + opcodes((1, 2)) + pickle_tensor() + b"u."
    write(tmp_path / "w.ckpt", key, {"0": STORAGES["0"]})
    with pytest.raises(WeightsError, match="it refers to an object, which weights do not need"):
        weights.read(tmp_path / "w.ckpt")


def test_a_tensor_of_a_type_without_a_reader_matters_only_among_the_weights(tmp_path):
    other = pickle_tensor("1", 1, shape=(), strides=(), storage="ComplexFloatStorage")
    moments = opcodes("optimizer") + b"}(" + opcodes("m") + other + b"u"
    checkpoint = b"\x80\x02}(" + moments + opcodes("state_dict") + pickle_dict({"w": pickle_tensor()})[2:-1] + b"u."
    write_zip(tmp_path / "w.ckpt", checkpoint, STORAGES)
    assert list(weights.read(tmp_path / "w.ckpt")) == ["w"]
    write_zip(tmp_path / "w.ckpt", pickle_dict({"w": other}), STORAGES)
    with pytest.raises(WeightsError, match=r"it refers to torch\.ComplexFloatStorage"):
        weights.read(tmp_path / "w.ckpt")


@TORCH_FORMATS
def test_a_damaged_torch_file_is_refused(write, tmp_path):
    path = tmp_path / "w.pth"
    write(path, pickle_dict({"w": pickle_tensor()}), {"0": STORAGES["0"]})
    whole = path.read_bytes()
    for end in (0, 1, 2, 5, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:end])
        with pytest.raises(WeightsError, match=r"w\.pth: not a readable"):
            weights.read(path)


def test_files_that_torch_did_not_write_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(WeightsError, match=r"w\.pth: no such file of weights"):
        weights.read(path)
    with pytest.raises(WeightsError, match="Is a directory"):
        weights.read(tmp_path)
    path.write_bytes(pickle.dumps({"w": 1}, 2))
    with pytest.raises(WeightsError, match="it is a pickle of another program"):
        weights.read(path)
    write_zip(path, pickle_dict({"w": pickle_tensor()}), STORAGES, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="the archive is compressed"):
        weights.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/readme", "")
    with pytest.raises(WeightsError, match=r"it is an archive without data\.pkl"):
        weights.read(path)


def test_a_changed_value_in_a_torch_archive_is_detected(tmp_path):
    write(tmp_path / "w.pth", {"w": np.arange(8.0)})
    data = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(data.replace(np.float64(5).tobytes(), np.float64(6).tobytes()))
    with pytest.raises(WeightsError, match="data/0 is damaged"):
        weights.read(tmp_path / "w.pth")


KERNEL, BIAS = np.arange(6.0).reshape(2, 3), np.arange(3.0)


def write_safetensors(path):
    weights.save(path, {"a": {"kernel": KERNEL, "bias": BIAS}})


def write_torch(path):
    write(path, {"a/kernel": KERNEL, "a/bias": BIAS})


def write_old_torch(path):
    write(path, {"a/kernel": KERNEL, "a/bias": BIAS}, old=True)


def write_msgpack(path):
    path.write_bytes(flax.serialization.to_bytes({"params": {"a": {"kernel": KERNEL, "bias": BIAS}}}))


def write_keras_2016(path):
    with h5py.File(path, "w") as file:
        file["a/a_W_1:0"], file["a/a_b_1:0"] = KERNEL, BIAS


def write_keras_model(path):
    with h5py.File(path, "w") as file:
        file["model_weights/a/a/kernel:0"], file["model_weights/a/a/bias:0"] = KERNEL, BIAS
        file["optimizer_weights/momentum"] = KERNEL


def write_keras_weights(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/a/vars/0", data=KERNEL, chunks=(1, 3), compression="gzip")
        file["layers/a/vars/1"] = BIAS


def write_keras_archive(path):
    write_keras_weights(path.with_suffix(".h5"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_suffix(".h5"), "model.weights.h5")


FORMATS = pytest.mark.parametrize(
    "write",
    [write_safetensors, write_torch, write_old_torch, write_msgpack, write_keras_2016, write_keras_model,
     write_keras_weights, write_keras_archive],
)  # fmt: skip


@FORMATS
def test_every_format_is_recognized_by_its_content(write, tmp_path):
    write(tmp_path / "weights")
    loaded = weights.read(tmp_path / "weights")
    assert sorted(loaded) == ["a/bias", "a/kernel"]
    np.testing.assert_array_equal(loaded["a/kernel"], KERNEL, strict=True)
    np.testing.assert_array_equal(loaded["a/bias"], BIAS, strict=True)


@FORMATS
def test_values_that_are_not_finite_are_refused_in_every_format(write, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "BIAS", np.array([0, np.inf, 1]))
    write(tmp_path / "weights")
    with pytest.raises(WeightsError, match="weights: tensor 'a/bias' has values that are not finite"):
        weights.read(tmp_path / "weights")


@FORMATS
def test_truncated_files_are_refused_in_every_format(write, tmp_path):
    write(tmp_path / "weights")
    whole = (tmp_path / "weights").read_bytes()
    for end in (0, 3, 9, len(whole) // 2, len(whole) - 1):
        (tmp_path / "weights").write_bytes(whole[:end])
        with pytest.raises(WeightsError, match="weights: not a readable"):
            weights.read(tmp_path / "weights")


def test_entries_other_than_one_kernel_and_one_bias_are_refused(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for i in range(4):
            file[f"norm/{i}"] = BIAS
    with pytest.raises(WeightsError, match="layer 'norm' is a nested model or has more than one kernel and one bias"):
        weights.read(tmp_path / "w.h5")
    (tmp_path / "w.msgpack").write_bytes(flax.serialization.to_bytes({"step": 3}))
    with pytest.raises(WeightsError, match="step has type int; expected a tensor"):
        weights.read(tmp_path / "w.msgpack")


def variable_length(file):
    file.create_dataset("a/bias", data=np.array(["x"] * 3, object), dtype=h5py.string_dtype())


def reference(file):
    file["b"] = KERNEL
    file.create_dataset("a/bias", data=np.array([file["b"].ref] * 3, object), dtype=h5py.ref_dtype)


def external(file):
    file.create_dataset("a/kernel", shape=(2, 3), dtype="f8", external=[("other.bin", 0, 48)])


def virtual(file):
    layout = h5py.VirtualLayout((2, 3), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "d", shape=(2, 3))
    file.create_virtual_dataset("a/kernel", layout)


def empty(file):
    file["a/kernel"] = h5py.Empty("f8")


def text(file):
    file["a/bias"] = np.array([b"one", b"two"])


def complex_numbers(file):
    file["a/bias"] = BIAS * 1j


@pytest.mark.parametrize("fill", [variable_length, reference, external, virtual, empty, text, complex_numbers])
def test_keras_datasets_must_contain_real_numbers_in_the_file_itself(fill, tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        fill(file)
    with pytest.raises(WeightsError, match=r"expected real numbers|has no values in this file"):
        weights.read(tmp_path / "w.h5")


@pytest.mark.parametrize("dtype", [">f4", "<f2", ">f2", jnp.bfloat16])
def test_keras_dtypes_and_byte_orders(dtype, tmp_path):
    values = np.arange(6).reshape(2, 3).astype(dtype)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["a/kernel"] = values.view("V2") if dtype == jnp.bfloat16 else values
    np.testing.assert_array_equal(weights.read(tmp_path / "w.h5")["a/kernel"], values)
    loaded = weights.load(tmp_path / "w.h5", None)["a"]["kernel"]
    assert loaded.dtype.isnative
    np.testing.assert_array_equal(loaded, values)


def test_custom_float_formats_are_converted(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        kind = h5py.h5t.IEEE_F32LE.copy()
        kind.set_fields(15, 7, 8, 0, 7)
        kind.set_size(2)
        kind.set_ebias(127)
        space = h5py.h5s.create_simple((8,))
        dataset = h5py.h5d.create(file.id, b"bias", kind, space)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(8, dtype="f4"))
    np.testing.assert_array_equal(weights.read(tmp_path / "w.h5")["bias/bias"], np.arange(8))


def test_keras_models_with_channels_first_are_refused(tmp_path):
    write_keras_model(tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "a") as file:
        file.attrs["model_config"] = '{"data_format": "channels_first"}'
    with pytest.raises(WeightsError, match="the model has channels first; expected channels last"):
        weights.read(tmp_path / "w.h5")


@pytest.mark.parametrize("length", [640, 0x4B50])
def test_safetensors_headers_of_any_length_are_recognized(length, tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save(path, {"a": BIAS}, {"x": ""})
    padding = length - int.from_bytes(path.read_bytes()[:8], "little")
    for excess in range(8):
        weights.save(path, {"a": BIAS}, {"x": "y" * (padding - excess)})
        if int.from_bytes(path.read_bytes()[:8], "little") == length:
            break
    assert path.read_bytes()[:2] in (b"\x80\x02", b"PK")
    np.testing.assert_array_equal(weights.read(path)["a"], BIAS)


def test_similar_flax_arrays_are_distinguished(tmp_path):
    rng = np.random.default_rng(0)
    same = rng.normal(size=300)
    tree = {
        "a": {"kernel": same, "bias": same.copy()},
        "b": {"kernel": np.concatenate([same[:299], [9.0]]), "bias": np.zeros(0), "scale": np.float32(3)},
        "c": {"kernel": rng.normal(size=(3, 2)).astype(jnp.bfloat16), "bias": np.arange(3)},
    }
    (tmp_path / "w").write_bytes(flax.serialization.to_bytes(tree))
    loaded = weights.load(tmp_path / "w", None)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b), strict=True), loaded, tree)


def test_without_h5py_the_error_names_the_extra(tmp_path, monkeypatch):
    write_keras_model(tmp_path / "w.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(WeightsError, match=r"pip install 'lrp_jax\[keras\]'"):
        weights.read(tmp_path / "w.h5")
