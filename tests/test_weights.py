"""Files of weights: every format that is read, and what is said of those that cannot be."""

import pickle
import tracemalloc
import zipfile

import flax.serialization
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_files import code, in_a_row, in_zip, named, tensor, write

from lrp_jax import weights
from lrp_jax.weights import FLAX, TORCH, TORCH_KERNELS, Layout, WeightsError

TREE = {
    "conv": {"kernel": np.ones((2, 3), np.float16), "bias": np.zeros(3, np.float32)},
    "steps": np.arange(3),
    "turned": np.ones((2, 3)).T,
}


def test_weights_come_back_as_they_were(tmp_path):
    weights.save(tmp_path / "w.safetensors", TREE, {"licence": "none"})
    back = weights.load(tmp_path / "w.safetensors")
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    jax.tree.map(np.testing.assert_array_equal, back, TREE)
    assert back["conv"]["kernel"].dtype == np.float32
    assert back["steps"].dtype == np.int64
    assert weights.load(tmp_path / "w.safetensors", np.float64)["conv"]["bias"].dtype == np.float64
    assert weights.about(tmp_path / "w.safetensors") == {"licence": "none"}


def test_unusable_weights_are_named_with_the_reason(tmp_path):
    def fails(reason):
        with pytest.raises(WeightsError, match=rf"w\.safetensors: {reason}"):
            weights.load(tmp_path / "w.safetensors")

    fails("no such file")
    (tmp_path / "w.safetensors").write_bytes(b"torch")
    fails("not a readable file of weights; it can be safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"")
    fails("not a readable file of weights")
    weights.save(tmp_path / "w.safetensors", TREE)
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-4])
    fails("not a readable safetensors file")
    weights.save(tmp_path / "w.safetensors", {"a": {"b": np.array([1.0, np.nan])}})
    fails("tensor 'a/b' holds numbers that are not finite")


def test_numbers_are_as_precise_as_asked(tmp_path):
    exact = {"w": np.linspace(-3, 3, 7), "n": np.arange(3), "one": np.float32(2.5)}
    for dtype in ("float16", jnp.bfloat16, "float32"):
        weights.save(tmp_path / "w.safetensors", {**exact, "w": exact["w"].astype(dtype)})
        for wanted, expected in ((np.float32, np.float32), (np.float64, np.float64), (None, dtype)):
            back = weights.load(tmp_path / "w.safetensors", wanted)
            np.testing.assert_array_equal(back["w"], exact["w"].astype(dtype).astype(expected), strict=True)
            np.testing.assert_array_equal(back["n"], exact["n"], strict=True)
            assert back["one"] == 2.5
    weights.save(tmp_path / "w.safetensors", {"big": np.float32([1e5])})
    with pytest.raises(WeightsError, match="big holds numbers too large for float16; keep them as float32"):
        weights.load(tmp_path / "w.safetensors", np.float16)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise weights.SafetensorError("No space left on device")

    weights.save(tmp_path / "w.safetensors", TREE)
    before = (tmp_path / "w.safetensors").read_bytes()
    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        weights.save(tmp_path / "w.safetensors", TREE)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    assert (tmp_path / "w.safetensors").read_bytes() == before


NUMBERS = {"0": np.arange(8, dtype=np.float32), "1": np.array([7]), "2": np.array([1, 2, 3], jnp.bfloat16)}
BOTH = pytest.mark.parametrize("write", [in_zip, in_a_row])


@BOTH
def test_torch_files_are_read_without_torch(write, tmp_path):
    turned = tensor(offset=2)
    count = tensor("1", 1, shape=(), strides=(), storage="LongStorage")
    empty = tensor(shape=(4, 0), strides=(1, 1))
    half = tensor("2", 3, shape=(3,), strides=(1,), storage="BFloat16Storage")
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + half + code(True) + b"ccollections\nOrderedDict\n)RtR"
    state = {"turned": turned, "count": count, "module.empty": empty, "half": half, "parameter": parameter}
    write(tmp_path / "w.pth", named(state), NUMBERS)
    back = weights.read(tmp_path / "w.pth")
    np.testing.assert_array_equal(back["turned"], np.float32([[2, 4, 6], [3, 5, 7]]), strict=True)
    np.testing.assert_array_equal(back["count"], np.array(7), strict=True)
    np.testing.assert_array_equal(back["half"], NUMBERS["2"], strict=True)
    np.testing.assert_array_equal(back["parameter"], NUMBERS["2"], strict=True)
    assert back["empty"].shape == (4, 0)
    del state["half"], state["parameter"]  # so that only the momentum speaks of their numbers
    for key in ("state_dict", "model"):
        momentum = code("momentum") + tensor("2", 3, shape=(3,), strides=(1,), storage="BFloat16Storage")
        write(tmp_path / "w.pth", b"\x80\x02}(" + momentum + code(key) + named(state)[2:-1] + b"u.", NUMBERS)
        assert list(weights.read(tmp_path / "w.pth")) == ["turned", "count", "empty"]


@BOTH
@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (b"\x80\x02cos\nmkdir\n" + code(("HERE",)) + b"R.", "it asks for os.mkdir, .* nothing was run"),
        (named({"w": b"cbuiltins\neval\n" + code(("1",)) + b"R"}), "it asks for builtins.eval"),
        (named({"w": b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n"}), "it asks for"),
        (named({"w": code(1.0)}), "something else than tensors by their names"),
        (b"\x80\x02" + code([1]) + b".", "something else than tensors by their names"),
        (named({"w": tensor(offset=3)}), "a tensor reaches out of storage 0"),
        (named({"w": tensor(offset=-1)}), "storage 0 is incomplete"),
        (named({"w": tensor(strides=(-1, 2))}), "storage 0 is incomplete"),
        (named({"w": tensor(shape=(9, 9), strides=(0, 0))}), "a tensor reaches out of storage 0"),
        (named({"w": tensor(size=9)}), "storage 0 is incomplete"),
        (named({"w": tensor()})[:-9], ""),
    ],
)
def test_a_tampered_torch_file_is_refused_and_runs_nothing(write, state, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "w.pth", state, {"0": NUMBERS["0"]})
    with pytest.raises(WeightsError, match=rf"w\.pth: not a readable .*PyTorch.* file \(.*{reason}"):
        weights.read(tmp_path / "w.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


@BOTH
def test_a_damaged_torch_file_is_refused(write, tmp_path):
    path = tmp_path / "w.pth"
    write(path, named({"w": tensor()}), {"0": NUMBERS["0"]})
    whole = path.read_bytes()
    for end in (0, 1, 2, 5, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:end])
        with pytest.raises(WeightsError, match=r"w\.pth: not a readable"):
            weights.read(path)


def test_a_foreign_file_is_no_torch_file(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(WeightsError, match=r"w\.pth: no such file of weights"):
        weights.read(path)
    with pytest.raises(WeightsError, match="Is a directory"):
        weights.read(tmp_path)
    path.write_bytes(pickle.dumps({"w": 1}, 2))
    with pytest.raises(WeightsError, match="it is another kind of pickle"):
        weights.read(path)
    in_zip(path, named({"w": tensor()}), NUMBERS, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="its archive is compressed"):
        weights.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/readme", "")
    with pytest.raises(WeightsError, match="it is another kind of archive"):
        weights.read(path)


def test_a_changed_number_in_a_torch_archive_is_noticed(tmp_path):
    write(tmp_path / "w.pth", {"w": np.arange(8.0)})
    data = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(data.replace(np.float64(5).tobytes(), np.float64(6).tobytes()))
    with pytest.raises(WeightsError, match="data/0 is damaged"):
        weights.read(tmp_path / "w.pth")


KERNEL, BIAS = np.arange(6.0).reshape(2, 3), np.arange(3.0)


def as_safetensors(path):
    weights.save(path, {"a": {"kernel": KERNEL, "bias": BIAS}})


def as_torch(path):
    write(path, {"a/kernel": KERNEL, "a/bias": BIAS})


def as_torch_once(path):
    write(path, {"a/kernel": KERNEL, "a/bias": BIAS}, old=True)


def as_msgpack(path):
    path.write_bytes(flax.serialization.to_bytes({"params": {"a": {"kernel": KERNEL, "bias": BIAS}}}))


def as_keras_of_2016(path):
    with h5py.File(path, "w") as file:
        file["a/a_W_1:0"], file["a/a_b_1:0"] = KERNEL, BIAS


def as_keras_model(path):
    with h5py.File(path, "w") as file:
        file["model_weights/a/a/kernel:0"], file["model_weights/a/a/bias:0"] = KERNEL, BIAS
        file["optimizer_weights/momentum"] = KERNEL


def as_keras_weights(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/a/vars/0", data=KERNEL, chunks=(1, 3), compression="gzip")
        file["layers/a/vars/1"] = BIAS


def as_keras_archive(path):
    as_keras_weights(path.with_suffix(".h5"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_suffix(".h5"), "model.weights.h5")


FORMATS = pytest.mark.parametrize(
    "write",
    [as_safetensors, as_torch, as_torch_once, as_msgpack, as_keras_of_2016, as_keras_model, as_keras_weights,
     as_keras_archive],
)  # fmt: skip


@FORMATS
def test_every_format_is_read_by_its_content(write, tmp_path):
    write(tmp_path / "weights")
    back = weights.read(tmp_path / "weights")
    assert sorted(back) == ["a/bias", "a/kernel"]
    np.testing.assert_array_equal(back["a/kernel"], KERNEL, strict=True)
    np.testing.assert_array_equal(back["a/bias"], BIAS, strict=True)


@FORMATS
def test_numbers_that_are_not_finite_are_refused_in_every_format(write, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "BIAS", np.array([0, np.inf, 1]))
    write(tmp_path / "weights")
    with pytest.raises(WeightsError, match="weights: tensor 'a/bias' holds numbers that are not finite"):
        weights.read(tmp_path / "weights")


@FORMATS
def test_cut_files_are_refused_in_every_format(write, tmp_path):
    write(tmp_path / "weights")
    whole = (tmp_path / "weights").read_bytes()
    for end in (0, 3, 9, len(whole) // 2, len(whole) - 1):
        (tmp_path / "weights").write_bytes(whole[:end])
        with pytest.raises(WeightsError, match="weights: not a readable"):
            weights.read(tmp_path / "weights")


def test_keras_layers_of_other_kinds_are_refused(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for i in range(4):
            file[f"norm/{i}"] = BIAS
    with pytest.raises(WeightsError, match="layer 'norm' holds other tensors than one kernel and one bias"):
        weights.read(tmp_path / "w.h5")
    (tmp_path / "w.msgpack").write_bytes(flax.serialization.to_bytes({"step": 3}))
    with pytest.raises(WeightsError, match="step is a int, no tensor"):
        weights.read(tmp_path / "w.msgpack")


def vlen(file):
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


def nothing(file):
    file["a/kernel"] = h5py.Empty("f8")


def text(file):
    file["a/bias"] = np.array([b"one", b"two"])


def imaginary(file):
    file["a/bias"] = BIAS * 1j


@pytest.mark.parametrize("fill", [vlen, reference, external, virtual, nothing, text, imaginary])
def test_keras_files_may_hold_nothing_but_numbers_of_their_own(fill, tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        fill(file)
    with pytest.raises(WeightsError, match=r"no real numbers|does not hold its numbers itself"):
        weights.read(tmp_path / "w.h5")


@pytest.mark.parametrize("dtype", [">f4", "<f2", ">f2", jnp.bfloat16])
def test_keras_numbers_of_all_kinds(dtype, tmp_path):
    values = np.arange(6).reshape(2, 3).astype(dtype)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["a/kernel"] = values.view("V2") if dtype == jnp.bfloat16 else values
    np.testing.assert_array_equal(weights.read(tmp_path / "w.h5")["a/kernel"], values)
    back = weights.load(tmp_path / "w.h5", None)["a"]["kernel"]
    assert back.dtype.isnative
    np.testing.assert_array_equal(back, values)


def test_foreign_kinds_of_float_are_not_taken_as_they_lie(tmp_path):
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
    as_keras_model(tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "a") as file:
        file.attrs["model_config"] = '{"data_format": "channels_first"}'
    with pytest.raises(WeightsError, match="its model has channels first; expected channels last"):
        weights.read(tmp_path / "w.h5")


@pytest.mark.parametrize("length", [640, 0x4B50])
def test_a_header_of_any_length_is_a_safetensors_header(length, tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save(path, {"a": BIAS}, {"x": ""})
    filled = length - int.from_bytes(path.read_bytes()[:8], "little")
    for more in range(8):
        weights.save(path, {"a": BIAS}, {"x": "y" * (filled - more)})
        if int.from_bytes(path.read_bytes()[:8], "little") == length:
            break
    assert path.read_bytes()[:2] in (b"\x80\x02", b"PK")
    np.testing.assert_array_equal(weights.read(path)["a"], BIAS)


@pytest.mark.parametrize(("source", "wanted"), [(jnp.bfloat16, "float16"), ("f4", "bfloat16"), ("f8", "float32")])
def test_what_becomes_infinite_is_refused(source, wanted, tmp_path):
    large = {"float16": 1e5, "bfloat16": 3.4e38, "float32": 1e39}[wanted]
    weights.save(tmp_path / "w", {"a": {"b": np.array([1, large]).astype(source)}})
    with pytest.raises(WeightsError, match=f"a/b holds numbers too large for {wanted}; keep them as"):
        weights.load(tmp_path / "w", wanted)


def test_a_name_is_no_tensor_and_layer_at_once(tmp_path):
    weights.save(tmp_path / "w", {"a": BIAS, "a/b": BIAS})
    with pytest.raises(WeightsError, match="'a' is both a tensor and what 'a/b' belongs to"):
        weights.load(tmp_path / "w")


def test_flax_arrays_that_look_alike_are_told_apart(tmp_path):
    rng = np.random.default_rng(0)
    same = rng.normal(size=300)
    tree = {
        "a": {"kernel": same, "bias": same.copy()},
        "b": {"kernel": np.concatenate([same[:299], [9.0]]), "bias": np.zeros(0), "scale": np.float32(3)},
        "c": {"kernel": rng.normal(size=(3, 2)).astype(jnp.bfloat16), "bias": np.arange(3)},
    }
    (tmp_path / "w").write_bytes(flax.serialization.to_bytes(tree))
    back = weights.load(tmp_path / "w", None)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b), strict=True), back, tree)


def test_without_h5py_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    as_keras_model(tmp_path / "w.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(WeightsError, match=r"pip install 'lrp_jax\[keras\]'"):
        weights.read(tmp_path / "w.h5")


SHAPES = {"conv/kernel": (3, 5, 2, 4), "norm/scale": (4,), "batch_stats/norm/mean": (4,), "fc/kernel": (12, 6)}
LAYOUT = Layout(
    {"conv": "c.0", "norm": "c.1", "fc": "head"}, TORCH, TORCH_KERNELS, {"fc": "o (c h w) -> (h w c) o"},
    {"h": 2, "w": 2}, ignored="c.1.count",
)  # fmt: skip
THEIRS = {"c.0.weight": (4, 2, 3, 5), "c.1.weight": (4,), "c.1.running_mean": (4,), "head.weight": (6, 12)}


def random(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def test_the_tensors_of_others_come_to_lie_as_ours(tmp_path):
    theirs = random(THEIRS | {"c.1.count": (1,)})
    write(tmp_path / "w.pth", theirs)
    ours = weights.load(tmp_path / "w.pth", np.float64, SHAPES, [LAYOUT])
    assert ours["conv"]["kernel"][2, 4, 1, 3] == theirs["c.0.weight"][3, 1, 2, 4]
    np.testing.assert_array_equal(ours["batch_stats"]["norm"]["mean"], theirs["c.1.running_mean"])
    for h, w, c, o in np.ndindex(2, 2, 3, 6):
        assert ours["fc"]["kernel"][(h * 2 + w) * 3 + c, o] == theirs["head.weight"][o, (c * 2 + h) * 2 + w]
    for leaf in jax.tree.leaves(ours):
        assert leaf.flags.writeable
        assert leaf.flags.c_contiguous
        assert leaf.ctypes.data % 64 == 0  # so that JAX can take it over on a CPU
    weights.save(tmp_path / "own.safetensors", ours)
    jax.tree.map(
        np.testing.assert_array_equal, weights.load(tmp_path / "own.safetensors", np.float64, SHAPES, [LAYOUT]), ours
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.weight": (6, 11)}, r"its tensor 'head.weight' has shape \(6, 11\), expected \(6, 12\)"),
        ({"head.weight": (12, 6)}, r"its tensor 'head.weight' has shape \(12, 6\), expected \(6, 12\)"),
        ({"c.0.weight": (4, 2, 3)}, r"'c.0.weight' has shape \(4, 2, 3\), expected \(4, 2, 3, 5\)"),
        ({"c.1.weight": None}, r"holds no tensor 'c.1.weight', expected with shape \(4,\)"),
        ({"c.3.weight": (4,)}, "its tensor 'c.3.weight' has no place in this one"),
    ],
)
def test_other_networks_are_refused_with_the_tensor_and_both_shapes(change, message, tmp_path):
    shapes = {name: shape for name, shape in (THEIRS | change).items() if shape is not None}
    write(tmp_path / "w.pth", random(shapes))
    with pytest.raises(WeightsError, match=rf"w\.pth: .*{message}"):
        weights.load(tmp_path / "w.pth", shapes=SHAPES, layouts=[LAYOUT])


def test_a_file_of_something_else_is_shown_beside_what_was_expected(tmp_path):
    write(tmp_path / "w.pth", {"blocks.0.weight": BIAS})
    with pytest.raises(WeightsError, match=r"such as 'conv/kernel' or 'c.0.weight', found 'blocks.0.weight' \.\.\."):
        weights.load(tmp_path / "w.pth", shapes=SHAPES, layouts=[LAYOUT])


def test_layers_may_be_left_out(tmp_path):
    for shapes in (THEIRS, {name: shape for name, shape in THEIRS.items() if name != "head.weight"}):
        write(tmp_path / "w.pth", random(shapes))
        ours = weights.load(tmp_path / "w.pth", shapes=SHAPES, layouts=[LAYOUT], without=["fc"])
        assert sorted(ours) == ["batch_stats", "conv", "norm"]


@pytest.mark.parametrize("kind", ["zip", "row", "safetensors", "msgpack"])
def test_loading_holds_the_tensors_once(kind, tmp_path):
    shapes, path = {"fc/kernel": (12, 250_000), "conv/kernel": (3, 3, 100, 100)}, tmp_path / "w"
    theirs = random({"head.weight": (250_000, 12), "c.0.weight": (100, 100, 3, 3)})
    if kind == "safetensors":
        weights.save(path, theirs)
    elif kind == "msgpack":
        own = {name: {"kernel": np.ones(shapes[f"{name}/kernel"])} for name in ("fc", "conv")}
        path.write_bytes(flax.serialization.to_bytes(own))
    else:
        write(path, theirs, kind == "row")
    weights.load(path, np.float64, shapes, [LAYOUT])  # what it imports does not count
    tracemalloc.start()
    try:
        weights.load(path, np.float64, shapes, [LAYOUT])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * path.stat().st_size


def test_flax_names_are_ours():
    assert Layout().name("batch_stats/conv1_1_norm/var") == "batch_stats/conv1_1_norm/var"
    assert Layout({"a": "A_0"}).name("a/kernel") == FLAX["kernel"].format("A_0") == "A_0/kernel"
