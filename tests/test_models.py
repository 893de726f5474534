"""The default network, and the search for models and classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrp_jax import models, weights
from lrp_jax.data import images
from lrp_jax.models.vgg16_imagenette import MODEL


def test_the_included_weights_match_the_network():
    params = MODEL.params()
    shapes = jax.eval_shape(MODEL.network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))[
        "params"
    ]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda p: p.shape, shapes)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert "ten" in weights.about(MODEL.file)["what"]


def test_the_convolutions_are_those_of_torchvision(data):
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
    with pytest.raises(ValueError, match=r"'cat' is not a class of vgg16_imagenette: 0 tench, 1 English springer"):
        MODEL.class_index("cat")


def test_models_by_name():
    assert models.load("mobilenet_v2").name == "mobilenet_v2"
    assert next(iter(models.registry())) == models.DEFAULT == MODEL.name
    with pytest.raises(ValueError, match="no model 'resnet'; the models are vgg16_imagenette, mnist_dnn, "):
        models.load("resnet")


@pytest.mark.slow
def test_accuracy_on_validation_images(data):
    """At least 19 of 20 are correct, on every fifth image of the test's part of Imagenette's validation set."""
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
