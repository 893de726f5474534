"""MobileNetV2: the logits of torch, and the relevance with BatchNorm and with merged BatchNorm."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import weights
from lrp_jax.data import images
from lrp_jax.models.mobilenet_v2 import MODEL, STAGES

EXAMPLES = Path(__file__).parents[1] / "examples"

LOGITS = {  # by torch in float64 for the same crops: the three most probable classes
    "castle.jpg": {"castle": 14.55408, "monastery": 14.10046, "palace": 13.77130},
    "china.jpg": {"palace": 15.00527, "monastery": 13.59206, "stupa": 11.85981},
    "chelsea.png": {"Egyptian cat": 18.84955, "tiger cat": 17.26603, "tabby": 17.13825},
    "coffee.png": {"espresso": 21.08019, "consomme": 15.64380, "cup": 14.52029},
}


@pytest.fixture(scope="module")
def params():
    return MODEL.params()


@pytest.mark.parametrize("name", LOGITS)
def test_logits_equal_those_of_torch(name, params, request):
    path = EXAMPLES / name
    if not path.exists():
        path = request.getfixturevalue("data") / "images" / name
    x = MODEL.preprocessing.normalize(MODEL.preprocessing.cut(images.read(path)))
    logits = np.asarray(jax.jit(MODEL.apply)(params, x[None])[0])
    found = {MODEL.classes[i][1]: logits[i] for i in np.argsort(-logits)[:3]}
    assert list(found) == list(LOGITS[name])
    np.testing.assert_allclose(list(found.values()), list(LOGITS[name].values()), atol=1e-4)


def test_weights_equal_those_of_torchvision(params, data):
    file = data / "weights" / "mobilenet_v2-b0353104.pth"
    torch = weights.read(file)
    learned = sum(tensor.size for name, tensor in torch.items() if not name.endswith("num_batches_tracked"))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == learned == 3_538_984
    np.testing.assert_array_equal(params["classifier"]["kernel"], torch["classifier.1.weight"].T)
    np.testing.assert_array_equal(
        params["block7_1"]["depthwise"]["kernel"], torch["features.17.conv.1.0.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        params["batch_stats"]["block2_1"]["project_norm"]["var"], torch["features.2.conv.3.running_var"]
    )
    jax.tree.map(np.testing.assert_array_equal, MODEL.params(file), params)


def merged(params, stats):
    """Kernels multiplied by their BatchNorm's scale, and the remaining bias."""
    found = {}
    for name, node in params.items():
        if name.startswith("block"):
            found[name] = merged(node, stats[name])
        elif norm := params.get(f"{name}_norm"):
            stat = stats[f"{name}_norm"]
            scale = norm["scale"] / np.sqrt(stat["var"] + 1e-5)
            found[name] = {"kernel": node["kernel"] * scale, "bias": norm["bias"] - stat["mean"] * scale}
        elif not name.endswith("_norm"):
            found[name] = node
    return found


def plain(params, x):
    """The network without BatchNorm."""

    def conv(p, x, stride=1):
        groups, pad = x.shape[-1] // p["kernel"].shape[2], [(p["kernel"].shape[0] // 2,) * 2] * 2
        z = jax.lax.conv_general_dilated(
            x,
            p["kernel"],
            (stride, stride),
            pad,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return z + p["bias"].reshape(1, 1, 1, -1)

    x = jax.nn.relu6(conv(params["conv_first"], x, 2))
    for i, (_, _, blocks, stride) in enumerate(STAGES, 1):
        for j in range(1, blocks + 1):
            block = params[f"block{i}_{j}"]
            y = jax.nn.relu6(conv(block["expand"], x)) if "expand" in block else x
            y = jax.nn.relu6(conv(block["depthwise"], y, stride if j == 1 else 1))
            y = conv(block["project"], y)
            x = x + y if j > 1 else y
    x = jax.nn.relu6(conv(params["conv_last"], x)).mean((1, 2))
    return x @ params["classifier"]["kernel"] + params["classifier"]["bias"].reshape(1, -1)


@pytest.fixture(scope="module")
def small():
    """Weights in float64, and a small image."""
    return weights.load(MODEL.file, np.float64), np.random.default_rng(0).normal(size=(1, 32, 32, 3))


@pytest.mark.slow
@pytest.mark.parametrize("composite", MODEL.presets[:2])
def test_merged_batchnorm_gives_the_same_relevance(composite, small):
    params, x = small
    rules = MODEL.composites[composite]()
    R, layers, _ = lrp_jax.lrp(MODEL.apply, rules, layers=True)(params, x, target=285)
    by_hand = merged({name: node for name, node in params.items() if name != "batch_stats"}, params["batch_stats"])
    expected, layers_by_hand, _ = lrp_jax.lrp(plain, rules, layers=True)(by_hand, x, target=285)
    np.testing.assert_allclose(R, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    for name in ("classifier", "conv_last", "block4_2/project", "block2_1/depthwise", "conv_first"):
        np.testing.assert_allclose(
            layers[name], layers_by_hand[name], rtol=0, atol=1e-10 * np.abs(layers_by_hand[name]).max()
        )


@pytest.mark.slow
def test_the_ledger_balances(small):
    ledger = lrp_jax.conservation(MODEL.apply, MODEL.composites[MODEL.presets[0]]())(*small)
    assert ledger.balanced
    assert max(np.abs(e.residual).max() for e in ledger.rows) < 1e-10 * np.abs(ledger.score).max()


def test_layers_are_named_by_their_function(params):
    plan = lrp_jax.plan(MODEL.apply, MODEL.composites[MODEL.presets[0]]())(
        params, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    )
    names = [s.name for s in plan.steps if s.kind in ("conv", "dense")]
    assert len(names) == 53
    assert names[:4] == ["conv_first", "block1_1/depthwise", "block1_1/project", "block2_1/expand"]
    assert names[-3:] == ["block7_1/project", "conv_last", "classifier"]


def test_classes_by_name():
    assert len(MODEL.classes) == 1000
    assert MODEL.class_index("Egyptian Cat") == MODEL.class_index("n02124075") == 285
    with pytest.raises(ValueError, match=r"several classes of mobilenet_v2; .* index: 264 Cardigan, 474 cardigan$"):
        MODEL.class_index("cardigan")
    with pytest.raises(ValueError, match=r"'cat' is not one of the 1000 classes.* similar: .*28\d \w+ cat") as error:
        MODEL.class_index("cat")
    assert len(str(error.value)) < 300
