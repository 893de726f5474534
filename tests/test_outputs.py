"""Relevance at the output: values derived by hand, and log-odds compared with an explicit layer of differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import cnn, cnn_params, dense, images

import lrp_jax
from lrp_jax import outputs, rules

Z, TARGET = jnp.array([[1.0, 2.0, 0.0], [-3.0, 0.5, 1.0]]), jnp.array([1, 0])
SOFT = np.exp(Z) / np.exp(Z).sum(-1, keepdims=True)

VALUES = {
    "logit": (outputs.logit, [[0, 2, 0], [-3, 0, 0]]),
    "one_hot": (outputs.one_hot, [[0, 1, 0], [1, 0, 0]]),
    "probability": (outputs.probability, [[0, SOFT[0, 1], 0], [SOFT[1, 0], 0, 0]]),
    "sigmoid": (outputs.sigmoid, [[0, 1 / (1 + np.exp(-2)), 0], [1 / (1 + np.exp(3)), 0, 0]]),
    "pairwise": (outputs.pairwise(2), [[0, 2, 0], [-3, 0, -1]]),
    "pairwise with the target": (outputs.pairwise(0), [[-1, 2, 0], [0, 0, 0]]),
    "contrast with two classes": (
        outputs.contrast(0, 2),
        [[-np.e / (np.e + 1), 2, 0], [-3 + 3 / (1 + np.exp(4)), 0, -1 / (1 + np.exp(-4))]],
    ),
    "log_odds": (
        outputs.log_odds,
        [[-np.e / (np.e + 1), 2, 0], [-3, -0.5 / (1 + np.exp(0.5)), -1 / (1 + np.exp(-0.5))]],
    ),
    "several": (outputs.several(0, 2), [[1, 0, 0], [-3, 0, 1]]),
    "regression": (outputs.regression(0.5), [[0, 1.5, 0], [-3.5, 0, 0]]),
    "masked": (outputs.masked([True, False]), [[0, 2, 0], [0, 0, 0]]),
    "masked, weighted": (outputs.masked([0.5, 2], outputs.one_hot), [[0, 0.5, 0], [2, 0, 0]]),
    "any function": (lambda z, target: z**2, Z**2),
}


@pytest.mark.parametrize(("output", "expected"), VALUES.values(), ids=VALUES)
def test_relevance_at_the_output_equals_values_derived_by_hand(output, expected):
    np.testing.assert_allclose(output(Z, TARGET), expected, rtol=1e-14, atol=1e-15)
    R, layers, _ = lrp_jax.lrp(lambda z: z, [], output=output, layers=True)(Z, target=TARGET)
    np.testing.assert_allclose(R, expected, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(layers["output"], expected, rtol=1e-14, atol=1e-15)


def test_sigmoid_logit_is_the_logit_of_a_sigmoid():
    found = outputs.sigmoid_logit(jax.nn.sigmoid(Z), TARGET)
    np.testing.assert_allclose(found, outputs.logit(Z, TARGET), rtol=1e-12)


def test_masks_select_pixels_of_a_segmentation():
    logits, target = jnp.ones((2, 4, 4, 3)), jnp.zeros((2, 4, 4), int)
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    R = outputs.masked(mask)(logits, target)
    assert R.sum() == 2
    assert R[1, 1, 2, 0] == 1


def test_log_odds_sums_to_log_odds_plus_entropy_of_the_other_classes():
    others = jax.nn.softmax(jnp.where(jnp.arange(3)[None] == TARGET[:, None], -jnp.inf, Z))
    entropy = -jnp.where(others > 0, others * jnp.log(jnp.where(others > 0, others, 1)), 0).sum(-1)
    probability = SOFT[np.arange(2), TARGET]
    eta = np.log(probability / (1 - probability))
    np.testing.assert_allclose(outputs.log_odds(Z, TARGET).sum(-1), eta + entropy, rtol=1e-12)


@pytest.mark.parametrize("target", [0, 1, 2])
def test_log_odds_equals_lrp_0_of_an_explicit_layer_of_differences(target):
    """The layer computes z_{c,c'} = z_c - z_c' and has the relevance R_{c,c'}."""
    params, x = cnn_params(), images()
    found = lrp_jax.lrp(cnn, rules.Zero(), output=outputs.log_odds)(params, x, target=target)

    top, others = params["fc2"], [c for c in range(3) if c != target]
    differences = {"kernel": top["kernel"][:, [target]] - top["kernel"][:, others],
                   "bias": top["bias"][[target]] - top["bias"][others]}  # fmt: skip
    identity = {"kernel": np.eye(8), "bias": np.zeros(8)}

    def below(params, x):  # the input of fc2, which is non-negative, so that ReLU does not change it
        return jax.nn.relu(cnn({**params, "fc2": identity}, x))

    def fn(params, x):
        return dense(params["difference"], below(params, x))

    z = np.asarray(fn({**params, "difference": differences}, x))
    R = z * np.exp(-z) / np.exp(-z).sum(-1, keepdims=True)
    expected = lrp_jax.lrp(fn, rules.Zero())({**params, "difference": differences}, x, relevance=R)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_wrong_outputs_are_errors():
    for output, error, message in (
        (outputs.contrast, TypeError, r"write outputs.contrast\(...\)"),
        ("logit", TypeError, "output must be a function"),
        (outputs.pairwise(77), ValueError, "class 77 is out of range; expected 0 to 2"),
        (outputs.several(-1), ValueError, "class -1 is out of range"),
    ):
        with pytest.raises(error, match=message):
            lrp_jax.lrp(lambda z: z, [], output=output)(Z)
