"""VGG networks: layers, files of other libraries, and larger images."""

import functools

import flax.serialization
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files
from small_vgg import small, torch_state, write_torch

import lrp_jax
from lrp_jax import composites, models, weights
from lrp_jax.models.vgg import STAGES, VGG
from lrp_jax.weights import WeightsError

COMPOSITE = composites.epsilon_plus_flat()


def torch_network(stages, batch_norm, state, x):
    """torchvision's network, channels first, without Flax: logits of images (N, 3, H, W)."""
    per_channel = functools.partial(jnp.reshape, shape=(1, -1, 1, 1))
    position = 0
    for widths in stages:
        for _ in widths:
            name = f"features.{position}"
            x = jax.lax.conv_general_dilated(x, state[f"{name}.weight"], (1, 1), [(1, 1)] * 2)
            x = x + per_channel(state[f"{name}.bias"])
            if batch_norm:
                position += 1
                name = f"features.{position}"
                scale = state[f"{name}.weight"] / jnp.sqrt(state[f"{name}.running_var"] + 1e-5)
                x = (x - per_channel(state[f"{name}.running_mean"])) * per_channel(scale)
                x = x + per_channel(state[f"{name}.bias"])
            x, position = jax.nn.relu(x), position + 2
        x = jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        position += 1
    x = x.reshape(len(x), -1)
    for k in (0, 3, 6):
        x = x @ state[f"classifier.{k}.weight"].T + state[f"classifier.{k}.bias"].reshape(1, -1)
        x = x if k == 6 else jax.nn.relu(x)
    return x


def timm(state, window):
    """The same tensors in the layout of timm."""
    names = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    found = {names.get(name.rpartition(".")[0], name.rpartition(".")[0]) + "." + name.rpartition(".")[2]: tensor
             for name, tensor in state.items()}  # fmt: skip
    for name, positions in (("pre_logits.fc1.weight", window), ("pre_logits.fc2.weight", (1, 1))):
        found[name] = found[name].reshape(len(found[name]), -1, *positions)
    return found


def unbatched(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith("tracked")}


def flax_names(params):
    """The same tensors with Flax's automatic names."""
    kinds, found = {"Conv": 0, "BatchNorm": 0, "Dense": 0}, {}
    learned = {name: node for name, node in params.items() if name != "batch_stats"}
    for name, node in learned.items():
        kind = "Dense" if name.startswith("fc") else "BatchNorm" if name.endswith("_norm") else "Conv"
        found[f"{kind}_{kinds[kind]}"] = node
        if kind == "BatchNorm":
            found.setdefault("stats", {})[f"{kind}_{kinds[kind]}"] = params["batch_stats"][name]
        kinds[kind] += 1
    stats = found.pop("stats", {})
    return {"params": found, "batch_stats": stats}


@pytest.mark.parametrize("batch_norm", [False, True])
def test_all_file_formats_give_the_logits_and_relevance_of_torch(batch_norm, tmp_path):
    model = small(batch_norm)
    stages, window = model.network.stages, model.network.window
    state = torch_state(stages, (7, 6, 5), window, batch_norm)
    torch_files.write(tmp_path / "new.pth", state)
    torch_files.write(tmp_path / "old.pth", state, old=True)
    weights.save(tmp_path / "torchvision.safetensors", unbatched(state))
    weights.save(tmp_path / "timm.safetensors", timm(state, window))
    model.convert(tmp_path / "new.pth", tmp_path / "own.safetensors")
    params = model.params(tmp_path / "own.safetensors", np.float64)
    (tmp_path / "own.msgpack").write_bytes(flax.serialization.to_bytes(params))
    (tmp_path / "flax.msgpack").write_bytes(flax.serialization.to_bytes(flax_names(params)))
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3))
    reference = functools.partial(torch_network, stages, batch_norm)
    logits = reference(state, x.transpose(0, 3, 1, 2))
    relevance = lrp_jax.lrp(reference, COMPOSITE)(state, x.transpose(0, 3, 1, 2), target=3).transpose(0, 2, 3, 1)
    assert float(np.abs(relevance).max()) > 0
    files = sorted(tmp_path.iterdir())
    assert len(files) == 7
    for file in files:
        params = model.params(file, np.float64)
        np.testing.assert_allclose(model.apply(params, x), logits, rtol=0, atol=1e-13)
        R = lrp_jax.lrp(model.apply, COMPOSITE)(params, x, target=3)
        np.testing.assert_allclose(R, relevance, rtol=0, atol=1e-13)


def test_all_keras_formats_are_read(tmp_path):
    model = small(keras=True)
    rng = np.random.default_rng(0)
    tensors = {key: rng.normal(size=shape) for key, shape in model.shapes.items()}
    blocks = {"conv1_1": "block1_conv1", "conv2_1": "block2_conv1", "conv2_2": "block2_conv2"}
    blocks |= {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}
    counted = dict(zip(blocks, ("conv2d", "conv2d_1", "conv2d_2", "dense", "dense_1", "dense_2"), strict=True))
    for names, file, path in (
        (blocks, "old.h5", "{0}/{0}_W_1:0 {0}/{0}_b_1:0"),
        (blocks, "model.h5", "model_weights/{0}/{0}/kernel model_weights/{0}/{0}/bias"),
        (counted, "new.weights.h5", "layers/{0}/vars/0 layers/{0}/vars/1"),
    ):
        for top in (True, False):
            with h5py.File(tmp_path / file, "w") as opened:
                for name, keras in names.items():
                    if top or not name.startswith("fc"):
                        kernel, bias = path.format(keras).split()
                        opened[kernel], opened[bias] = tensors[f"{name}/kernel"], tensors[f"{name}/bias"]
            params = model.params(tmp_path / file, np.float64, top=top)
            for layer, node in params.items():
                np.testing.assert_array_equal(node["kernel"], tensors[f"{layer}/kernel"])
                np.testing.assert_array_equal(node["bias"], tensors[f"{layer}/bias"])
            assert len(params) == (6 if top else 3)
            if not top:
                with pytest.raises(
                    WeightsError, match=r"holds no tensor '(fc1|dense)/bias', expected with shape \(7,\)"
                ):
                    model.params(tmp_path / file)
                x = rng.normal(size=(1, 8, 8, 3))
                assert model.network.apply({"params": params}, x, method="features").shape == (1, 2, 2, 4)


def test_weights_of_another_model_are_rejected(tmp_path):
    model = small()
    model.convert(write_torch(tmp_path / "w.pth", model), tmp_path / "own.safetensors")
    assert weights.about(tmp_path / "own.safetensors") == {
        "what": "a test", "licence": "none", "model": "small", "converted from": "w.pth"
    }  # fmt: skip
    with pytest.raises(WeightsError, match="holds the weights of small, not of vgg16"):
        models.load("vgg16").params(tmp_path / "own.safetensors")
    with pytest.raises(WeightsError, match=r"'features.0.bias' has shape \(3,\), expected \(64,\)"):
        models.load("vgg16").params(tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"holds no tensor|has shape"):
        models.load("vgg11").params(write_torch(tmp_path / "w.pth", small(batch_norm=True)))


def test_convert_writes_the_given_dtype(tmp_path):
    model = small()
    source = write_torch(tmp_path / "w.pth", model)
    for dtype in ("float16", "bfloat16", "float32", None):
        model.convert(source, tmp_path / "own.safetensors", dtype)
        kept = weights.load(tmp_path / "own.safetensors", None)["fc6"]["kernel"]
        assert kept.dtype == np.dtype(dtype or np.float64)
        assert model.params(tmp_path / "own.safetensors")["fc6"]["kernel"].dtype == np.float32


COUNTS = {  # numbers of parameters, as published by torchvision
    "vgg11": 132_863_336, "vgg13": 133_047_848, "vgg16": 138_357_544, "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840, "vgg13_bn": 133_053_736, "vgg16_bn": 138_365_992, "vgg19_bn": 143_678_248,
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_networks_have_the_weights_of_torchvision(name):
    model = models.load(name)
    learned = [shape for key, shape in model.shapes.items() if not key.startswith("batch_stats")]
    assert sum(np.prod(shape) for shape in learned) == COUNTS[name]
    depth, _, norm = name.removeprefix("vgg").partition("_")
    state = {f"classifier.{k}.{leaf}" for k in (0, 3, 6) for leaf in ("weight", "bias")}
    position = 0
    for widths in STAGES[int(depth)]:
        for _ in widths:
            state |= {f"features.{position}.weight", f"features.{position}.bias"}
            if norm:
                position += 1
                state |= {f"features.{position}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")}
            position += 2
        position += 1
    assert {model.layouts[0].name(key) for key in model.shapes} == state


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "vgg19_bn"])
def test_full_size_networks_give_the_logits_and_relevance_of_torch(name, tmp_path):
    model = models.load(name)
    network = model.network
    state = torch_state(network.stages, (4096, 4096, 1000), (7, 7), network.batch_norm, np.float32)
    torch_files.write(tmp_path / "w.pth", state, old=name == "vgg16")
    reference = jax.jit(functools.partial(torch_network, network.stages, network.batch_norm))
    explain = functools.partial(jax.jit(lrp_jax.lrp(model.apply, COMPOSITE)), target=3)
    expected = functools.partial(jax.jit(lrp_jax.lrp(reference, COMPOSITE)), target=3)
    x = np.random.default_rng(1).normal(size=(1, 64, 64, 3))
    x = np.kron(x, np.ones((1, 4, 4, 1)))[:, :224, :224]
    for dtype, bound in ((np.float32, 1e-4), (np.float64, 1e-9)):
        params, image = model.params(tmp_path / "w.pth", dtype), x.astype(dtype)
        torch_params, torch_x = {k: v.astype(dtype) for k, v in unbatched(state).items()}, image.transpose(0, 3, 1, 2)
        logits = reference(torch_params, torch_x)
        np.testing.assert_allclose(jax.jit(model.apply)(params, image), logits, rtol=0, atol=bound * abs(logits).max())
        R, other = explain(params, image), expected(torch_params, torch_x).transpose(0, 2, 3, 1)
        assert np.linalg.norm(R - other) <= bound * np.linalg.norm(other)
        if dtype == np.float64:
            np.testing.assert_allclose(R, other, rtol=0, atol=bound * np.abs(other).max())


@pytest.fixture
def params():
    """Random weights of the small network."""
    model = small()
    rng = np.random.default_rng(0)
    params = {}
    for key, shape in model.shapes.items():
        layer, leaf = key.split("/")
        params.setdefault(layer, {})[leaf] = rng.normal(size=shape)
    return params


def test_a_window_of_the_size_of_the_image_changes_nothing(params):
    x = np.random.default_rng(1).normal(size=(3, 8, 8, 3))
    model, dense = small(), VGG(classes=5, hidden=(7, 6), stages=((3,), (4, 4)))
    apply = lambda params, x: dense.apply({"params": params}, x)
    np.testing.assert_array_equal(model.apply(params, x), apply(params, x))
    np.testing.assert_allclose(model.class_map(params, x)[:, 0, 0], apply(params, x), rtol=1e-12)
    np.testing.assert_allclose(model.class_map(params, x).shape, (3, 1, 1, 5))
    through_map = lambda params, x: model.class_map(params, x).mean((-3, -2))
    for composite in (COMPOSITE, composites.epsilon_gamma_box(-3.0, 3.0)):
        R = lrp_jax.lrp(apply, composite)(params, x)
        np.testing.assert_array_equal(lrp_jax.lrp(model.apply, composite)(params, x), R)
        np.testing.assert_allclose(
            lrp_jax.lrp(through_map, composite)(params, x), R, rtol=0, atol=1e-6 * np.abs(R).max()
        )


def test_larger_images_average_the_logits_of_all_windows(params):
    x = np.random.default_rng(1).normal(size=(2, 16, 12, 3))
    model = small()
    features = model.network.apply({"params": params}, x, method="features")
    assert features.shape == (2, 4, 3, 4)
    positions = model.class_map(params, x)
    assert positions.shape == (2, 3, 2, 5)
    for row in range(3):
        for column in range(2):
            z = features[:, row : row + 2, column : column + 2].reshape(2, -1)
            for layer in ("fc6", "fc7", "fc8"):
                z = z @ params[layer]["kernel"] + params[layer]["bias"].reshape(1, -1)
                z = z if layer == "fc8" else np.maximum(z, 0)
            np.testing.assert_allclose(positions[:, row, column], z, rtol=1e-12)
    np.testing.assert_allclose(model.apply(params, x), positions.mean((1, 2)), rtol=1e-12)
    assert model.apply(params, x[0]).shape == (5,)


def test_relevance_of_larger_images_is_conserved(params):
    x = np.random.default_rng(1).normal(size=(2, 16, 12, 3))
    model = small()
    without = {name: {"kernel": p["kernel"], "bias": np.zeros_like(p["bias"])} for name, p in params.items()}
    R = lrp_jax.lrp(model.apply, composites.epsilon_plus(eps=1e-12))(without, x)
    np.testing.assert_allclose(R.sum((1, 2, 3)), np.max(model.apply(without, x), -1), rtol=1e-6)
    assert lrp_jax.conservation(model.apply, COMPOSITE)(params, x).balanced
    kinds = [step.kind for step in lrp_jax.plan(model.apply, COMPOSITE)(params, x).steps]
    assert kinds.count("conv") == 3
    assert kinds.count("dense") == 3


def test_images_smaller_than_the_window_are_rejected(params):
    with pytest.raises(
        ValueError, match="too small: 2x1 positions at the last max-pool, but the dense layers need 2x2"
    ):
        small().apply(params, np.zeros((1, 8, 4, 3)))


def test_networks_that_average_features_have_no_class_map():
    model = models.load("mobilenet_v2")
    assert not model.has_class_map
    with pytest.raises(ValueError, match="mobilenet_v2 has no class map"):
        model.class_map({}, np.zeros((1, 224, 224, 3)))
