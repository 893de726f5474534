"""Parameters, relevance and selectors that would give a wrong number are errors."""

import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import composites, evaluation, methods, outputs, rules
from lrp_jax.data.images import Preprocessing

W, X = np.ones((4, 3)), np.ones((2, 4))
linear = lambda w, x: x @ w

INVALID = {
    "a negative NumPy number": (lambda: rules.Epsilon(np.float32(-1)), ValueError, "must not be negative"),
    "a negative array": (lambda: rules.Epsilon(np.array([1.0, -1.0])), ValueError, "must not be negative"),
    "no number": (lambda: rules.Gamma(float("nan")), ValueError, "must be finite"),
    "infinity": (lambda: rules.Epsilon(np.inf), ValueError, "must be finite"),
    "a text": (lambda: rules.Epsilon("1"), TypeError, "must be a number; got '1'"),
    "a complex number": (lambda: rules.Gamma(1j), TypeError, "must be a number"),
    "a truth value": (lambda: rules.Epsilon(True), TypeError, "must be a number; got True"),
    "a stabilizer of a text": (lambda: rules.Stabilizer("x"), TypeError, "must be a number"),
    "NumPy integers": (lambda: rules.AlphaBeta(np.int64(3), np.int64(1)), ValueError, "alpha - beta must be 1"),
    "a negative beta": (lambda: rules.AlphaBeta(0.5, -0.5), ValueError, "must not be negative"),
    "infinite bounds": (lambda: rules.ZBox(-np.inf, np.inf), ValueError, "must be finite"),
    "no class": (lambda: outputs.several(), TypeError, "at least one class"),
    "an empty name": (lambda: lrp_jax.Composite([("", rules.Zero())]), ValueError, "must not be an empty name"),
    "complex relevance": (
        lambda: lrp_jax.lrp(linear, rules.Zero())(W, X, relevance=np.ones((2, 3), complex)), TypeError, "real numbers",
    ),
    "relevance of truth values": (
        lambda: lrp_jax.lrp(linear, rules.Zero())(W, X, relevance=jnp.ones((2, 3), bool)), TypeError, "real numbers",
    ),
    "a class that is a truth value": (lambda: outputs.several(True), TypeError, "a class is given by its index"),
    "a class that is a fraction": (lambda: outputs.pairwise(1.5), TypeError, "a class is given by its index"),
    "a reference that is no number": (lambda: outputs.regression(np.nan), ValueError, "reference must be finite"),
    "a complex reference": (lambda: outputs.regression(1j), TypeError, "reference must be a number"),
    "a mask of no numbers": (lambda: outputs.masked(np.nan), ValueError, "mask must be finite"),
    "a complex mask": (lambda: outputs.masked(1j), TypeError, "mask must be a number"),
    "no kind": (lambda: composites.kind(), TypeError, "at least one kind"),
    "an empty kind": (lambda: composites.kind(""), TypeError, "a kind of layers is a name"),
    "a count that is a truth value": (lambda: composites.first(count=True), ValueError, "count must be 1 or more"),
    "a count that is a fraction": (lambda: composites.last(count=1.5), ValueError, "count must be 1 or more"),
    "depths that are truth values": (lambda: composites.depth(False, True), TypeError, "depth must be a number"),
    "a truth value as steps": (lambda: methods.integrated_gradients(linear, steps=True), ValueError, "steps=True"),
    "a baseline that is no number": (
        lambda: methods.integrated_gradients(linear, np.nan), ValueError, "baseline must be finite",
    ),
    "negative noise": (lambda: methods.smooth_grad(linear, -1), ValueError, "noise must not be negative"),
    "noise that is no number": (lambda: methods.smooth_grad(linear, np.nan), ValueError, "noise must be finite"),
    "a seed that is a fraction": (lambda: methods.smooth_grad(linear, seed=1.5), ValueError, "seed=1.5"),
    "a window that is a truth value": (lambda: methods.occlusion(linear, True), ValueError, "whole numbers"),
    "a fill that is no number": (lambda: methods.occlusion(linear, 2, fill=np.nan), ValueError, "fill must be finite"),
    "removed fractions": (lambda: evaluation.remove(linear, removed=[1.5]), ValueError, "expected whole numbers"),
    "a removal by no numbers": (
        lambda: evaluation.remove(linear, removed=[1], pixels=False)(W, X, relevance=X * np.nan), ValueError,
        "relevance must be finite",
    ),
    "similarity of complex maps": (
        lambda: evaluation.cosine_similarity({"a": X * 1j}), TypeError, "must be a number",
    ),
    "similarity of maps of different examples": (
        lambda: evaluation.cosine_similarity({"a": X, "b": X[:1]}), ValueError, "different shapes",
    ),
    "batches of no examples": (lambda: list(evaluation.padded_batches(X, 0)), ValueError, "size=0"),
    "a tolerance that is no number": (
        lambda: evaluation.tune(linear, candidates={"a": rules.Zero()}, removed=[1], tolerance=np.nan), ValueError,
        "tolerance must be finite",
    ),
    "a crop that is a fraction": (lambda: Preprocessing(crop=22.5), ValueError, "crop=22.5"),
    "a standard deviation of 0": (lambda: Preprocessing(std=(0, 1, 1)), ValueError, "std above 0"),
    "a mean of fewer channels": (lambda: Preprocessing(mean=(0.5,)), ValueError, "equally many numbers"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), INVALID.values(), ids=INVALID)
def test_invalid_numbers_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.usefixtures("lenient")
def test_numbers_of_any_type_are_numbers():
    expected = lrp_jax.lrp(linear, rules.AlphaBeta(2, 1))(W, X, target=1)
    for alpha, beta in ((np.float32(2), np.float32(1)), (np.int64(2), np.int64(1)), (jnp.float64(2), jnp.float64(1))):
        np.testing.assert_allclose(lrp_jax.lrp(linear, rules.AlphaBeta(alpha, beta))(W, X, target=1), expected)


def test_conservation_of_functions_of_one_example_is_refused():
    x, w = np.random.default_rng(0).normal(size=(5, 4)), np.ones((4, 1))
    of_one = lambda w, x: jnp.tanh(x.mean(0) @ w)
    with pytest.raises(ValueError, match=r"logits of shape \(1,\) for 5 rows .* expected one row of logits for each"):
        lrp_jax.conservation(of_one, rules.Zero())(w, x, target=0)
    with pytest.raises(ValueError, match=r"returned shape \(5,\), and the explained argument has 5 rows"):
        lrp_jax.conservation(lambda w, x: x.mean(0) @ w, rules.Zero())(np.ones((4, 5)), x, target=0)
    ledger = lrp_jax.conservation(lambda w, x: of_one(w, x[0])[None], rules.Zero())(w, x[None], target=0)
    np.testing.assert_allclose(ledger.score, of_one(w, x), rtol=1e-12)
    found = lrp_jax.lrp(of_one, rules.Zero())(w, x, target=0)
    np.testing.assert_allclose(ledger.relevance, np.sum(found), rtol=1e-12)
