"""Weights on disk, and the network that comes with the package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrp_jax import images, weights
from lrp_jax.models.vgg16_imagenette import MODEL
from lrp_jax.weights import WeightsError

TREE = {"conv": {"kernel": np.ones((2, 3), np.float16), "bias": np.zeros(3, np.float32)}, "steps": np.arange(3)}


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
