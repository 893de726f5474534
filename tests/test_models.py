"""Weights on disk, and the network that comes with the package."""

import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrp_jax import images, models, weights
from lrp_jax.models.vgg16_imagenette import MODEL
from lrp_jax.weights import WeightsError

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
    fails("not a readable safetensors file")
    weights.save(tmp_path / "w.safetensors", TREE)
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-4])
    fails("not a readable safetensors file")
    weights.save(tmp_path / "w.safetensors", {"a": {"b": np.array([1.0, np.nan])}})
    fails("tensor 'a/b' holds numbers that are not finite")


def code(value):
    """The part of a pickle that puts a value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(key="0", size=8, offset=0, shape=(2, 3), strides=(1, 2), storage="FloatStorage"):
    """The same for a tensor, as torch writes it."""
    pid = b"(" + code("storage") + f"ctorch\n{storage}\n".encode() + code(key) + code("cpu") + code(size) + b"tQ"
    rest = code(offset) + code(shape) + code(strides) + code(False) + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + rest + b"tR"


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


def named(**tensors):
    return b"\x80\x02}(" + b"".join(code(name) + made for name, made in tensors.items()) + b"u."


NUMBERS = {"0": np.arange(8, dtype=np.float32), "1": np.array([7])}
BOTH = pytest.mark.parametrize("write", [in_zip, in_a_row])


@BOTH
def test_torch_files_are_read_without_torch(write, tmp_path):
    turned = tensor(offset=2)
    count = tensor("1", 1, shape=(), strides=(), storage="LongStorage")
    empty = tensor(shape=(4, 0), strides=(1, 1))
    write(tmp_path / "w.pth", named(turned=turned, count=count, empty=empty), NUMBERS)
    back = weights.read_torch(tmp_path / "w.pth")
    np.testing.assert_array_equal(back["turned"], np.float32([[2, 4, 6], [3, 5, 7]]), strict=True)
    np.testing.assert_array_equal(back["count"], np.array(7), strict=True)
    assert back["empty"].shape == (4, 0)


@BOTH
@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (b"\x80\x02cos\nmkdir\n" + code(("HERE",)) + b"R.", "it asks for os.mkdir, .* nothing was run"),
        (named(w=b"cbuiltins\neval\n" + code(("1",)) + b"R"), "it asks for builtins.eval"),
        (named(w=b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n"), "it asks for"),
        (named(w=code(1.0)), "something else than tensors by their names"),
        (b"\x80\x02" + code([1]) + b".", "something else than tensors by their names"),
        (named(w=tensor(offset=3)), "a tensor reaches out of storage 0"),
        (named(w=tensor(offset=-1)), "storage 0 is incomplete"),
        (named(w=tensor(strides=(-1, 2))), "storage 0 is incomplete"),
        (named(w=tensor(shape=(9, 9), strides=(0, 0))), "a tensor reaches out of storage 0"),
        (named(w=tensor(size=9)), "storage 0 is incomplete"),
        (named(w=tensor())[:-9], ""),
    ],
)
def test_a_tampered_torch_file_is_refused_and_runs_nothing(write, state, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "w.pth", state, {"0": NUMBERS["0"]})
    with pytest.raises(WeightsError, match=rf"w\.pth: not a readable PyTorch file \(.*{reason}"):
        weights.read_torch(tmp_path / "w.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


@BOTH
def test_a_damaged_torch_file_is_refused(write, tmp_path):
    path = tmp_path / "w.pth"
    write(path, named(w=tensor()), {"0": NUMBERS["0"]})
    whole = path.read_bytes()
    for end in (0, 1, 2, 5, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:end])
        with pytest.raises(WeightsError, match=r"w\.pth: not a readable PyTorch file"):
            weights.read_torch(path)


def test_a_foreign_file_is_no_torch_file(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(WeightsError, match=r"w\.pth: no such file of weights"):
        weights.read_torch(path)
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(WeightsError, match="it is another kind of pickle"):
        weights.read_torch(path)
    in_zip(path, named(w=tensor()), NUMBERS, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="its archive is compressed"):
        weights.read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/readme", "")
    with pytest.raises(WeightsError, match="it is another kind of archive"):
        weights.read_torch(path)


def test_the_shipped_network_has_the_layers_of_vgg16():
    params = MODEL.params()
    shapes = jax.eval_shape(MODEL.network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))[
        "params"
    ]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda p: p.shape, shapes)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert "ten" in weights.about(MODEL.file)["what"]


def test_its_convolutions_are_torchvisions(data):
    params = MODEL.params()
    names = [name for name in params if name.startswith("conv")]
    with np.load(data / "weights" / "vgg16_conv_torchvision_f32.npz") as original:
        for i, name in enumerate(sorted(names)):
            for leaf in ("kernel", "bias"):
                np.testing.assert_allclose(params[name][leaf], original[f"Conv_{i}/{leaf}"], rtol=1e-3, atol=1e-7)


def test_classes_by_index_name_or_wordnet_id():
    assert (
        MODEL.class_index(8)
        == MODEL.class_index("8")
        == MODEL.class_index(" Golf Ball")
        == MODEL.class_index("n03445777")
        == 8
    )
    with pytest.raises(
        ValueError, match=r"'cat' is none of the classes of vgg16_imagenette: 0 tench, 1 English springer"
    ):
        MODEL.class_index("cat")


def test_models_by_name():
    assert [models.load(name).name for name in models.MODELS] == list(models.MODELS)
    with pytest.raises(ValueError, match="no model 'resnet'; there are vgg16_imagenette, mobilenet_v2"):
        models.load("resnet")


@pytest.mark.slow
def test_accuracy_on_held_out_photographs(data):
    """At least 19 of 20, on every fifth photograph of Imagenette's validation set."""
    files = [
        (p, i) for i, (wnid, _) in enumerate(MODEL.classes) for p in sorted((data / "imagenette/val" / wnid).iterdir())
    ][::5]
    params, apply = MODEL.params(), jax.jit(MODEL.apply)
    found = []
    for start in range(0, len(files), 16):
        crops = [MODEL.preprocessing.cut(images.read(path)) for path, _ in files[start : start + 16]]
        x = np.stack([MODEL.preprocessing.normalize(crop) for crop in crops])
        found += np.asarray(apply(params, x)).argmax(-1).tolist()
    assert len(found) == 160
    assert np.mean([f == label for f, (_, label) in zip(found, files, strict=True)]) >= 0.95
