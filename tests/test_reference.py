"""The NumPy reference against results derived by hand, and the library against the reference.

The comparisons cover the rules, the layers and the options of the rules.
"""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import composites, outputs, reference, rules
from lrp_jax.composites import kind
from lrp_jax.reference import AvgPool, Conv, Dense, Flatten, GlobalAvgPool, MaxPool, Relu, Residual


def close(found, expected):
    """Asserts that two arrays are equal to a relative tolerance of 1e-10, in float64."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


# z = [2 + 2 + 1, -2 + 3 - 2] = [5, -1]
A, W, B, R = np.array([[2.0, 1.0]]), np.array([[1.0, -1.0], [2.0, 3.0]]), np.array([1.0, -2.0]), np.array([[10.0, 3.0]])

BY_HAND = {
    "absorb": (reference.epsilon, {}, [2 * 10 / 5 + -2 * 3 / -1, 2 * 10 / 5 + 3 * 3 / -1]),
    "ignore": (reference.epsilon, {"bias": "ignore"}, [2 * 10 / 4 + -2 * 3 / 1, 2 * 10 / 4 + 3 * 3 / 1]),
    # the biases absorb 10 * 1/5 and 3 * -2/-1; each input receives half of both
    "share": (reference.epsilon, {"bias": "share"}, [4 + 6 + 1 + 3, 4 - 9 + 1 + 3]),
    # bias and stabilizer absorb 10 (1 + 1)/6 and 3 (-2 - 1)/-2; each input receives half: 5/3 + 9/4
    "share eps": (reference.epsilon, {"bias": "share", "eps": 1}, [19 / 3 + 47 / 12, 10 / 3 - 9 / 2 + 47 / 12]),
    # w + w+ = [[2, -1], [4, 6]], with b + b+ = [2, -2] or b = [1, -2]
    "gamma": (reference.gamma_simple, {"gamma": 1}, [4 * 10 / 10 + -2 * 3 / 2, 4 * 10 / 10 + 6 * 3 / 2]),
    "gamma keep": (reference.gamma_simple, {"gamma": 1, "bias": "keep"}, [40 / 9 - 2 * 3 / 2, 40 / 9 + 6 * 3 / 2]),
    # the second output is negative: its weights are w + w- = [-2, 3], with b + b- = -4 or b = -2
    "gamma any": (reference.gamma_generalized, {"gamma": 1}, [4 * 10 / 10 - 4 * 3 / -5, 4 + 3 * 3 / -5]),
    "gamma any keep": (reference.gamma_generalized, {"gamma": 1, "bias": "keep"}, [40 / 9 + 12 / 3, 40 / 9 - 9 / 3]),
    # positive sides [2 + 2 (+ 1), 3], negative sides [0, -2 (- 2)]
    "alpha-beta": (reference.alpha_beta, {}, [2 * 2 * 10 / 5 - -2 * 3 / -4, 2 * 2 * 10 / 5 + 2 * 3 * 3 / 3]),
    "alpha-beta conserve": (reference.alpha_beta, {"conserve": True}, [20 / 5 - -2 * 3 / -4, 20 / 5 + 2 * 3 * 3 / 3]),
    "alpha-beta keep": (reference.alpha_beta, {"bias": "keep"}, [8 - -2 * 3 / -4, 8 + 2 * 3 * 3 / 1]),
    "z+": (reference.zplus, {}, [2 * 10 / 5, 2 * 10 / 5 + 3 * 3 / 3]),
    "z^B": (reference.zbox, {"low": -1, "high": 3}, [3 * 10 / 7 + 1 * 3 / 7, 4 * 10 / 7 + 6 * 3 / 7]),
    "flat": (reference.flat, {}, [10 / 2 + 3 / 2, 10 / 2 + 3 / 2]),
    "w^2": (reference.wsquare, {}, [1 * 10 / 6 + 1 * 3 / 14, 4 * 10 / 6 + 9 * 3 / 14]),
    "w^2 keep": (reference.wsquare, {"bias": "keep"}, [1 * 10 / 6 + 1 * 3 / 8, 4 * 10 / 6 + 9 * 3 / 8]),
    "winner": (lambda *layer, eps: reference.winner_takes_all(*layer), {}, [13, 0]),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "options", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_reference_rules_equal_the_results_by_hand(rule, options, expected):
    close(rule(A, W, B, np.ones((2, 2)), R, **{"eps": 0.0, **options}), [expected])


def test_matrix_of_a_strided_convolution_by_hand():
    M, b, reach, shape = Conv(np.reshape([1.0, 2, 3], (3, 1, 1)), np.array([5.0]), strides=2).sums((4, 1))
    np.testing.assert_array_equal(M, [[1, 0], [2, 0], [3, 1], [0, 2]])  # SAME adds one position of padding, at the end
    np.testing.assert_array_equal(reach, M > 0)
    assert (list(b), shape) == ([5, 5], (2, 1))


def test_residual_block_by_hand():  # from the tests of captum
    network = (Residual((Dense(np.full((2, 2), 5.0)),)), Dense(np.full((2, 2), 5.0)))
    x, rule = np.array([[2.0, 3.0]]), reference.zero
    logits = reference.forward(network, x)[-1]
    block = 5 * np.array([2.0, 3.0]) + 2 * 5 * 5 * np.array([2.0, 3.0])
    close(logits, [[sum(block)] * 2])
    close(reference.explain(network, x, [[rule, rule], rule], reference.logit(logits, 1))[0], [block])


def test_relevance_of_the_outputs_by_hand():
    z = np.array([[1.0, 0.0, np.log(3)], [0.0, 0.0, 0.0]])
    # the softmax over the other classes is 1/4, 3/4
    close(reference.log_odds(z, 0), [[1, 0, -0.75 * np.log(3)], [0, 0, 0]])
    close(reference.pairwise(z, [0, 2], 1), [[1, 0, 0], [0, 0, 0]])
    others = np.array([0.25, 0.75])
    odds = np.log(np.e / 4)  # P(0) / (1 - P(0)) = e / (1 + 3)
    close(reference.log_odds(z, 0)[0].sum(), odds - (others * np.log(others)).sum())
    for name in ("logit", "one_hot", "probability", "log_odds"):
        close(getattr(outputs, name)(jnp.asarray(z), jnp.array([2, 1])), getattr(reference, name)(z, [2, 1]))
    close(outputs.pairwise(1)(jnp.asarray(z), jnp.array([0, 2])), reference.pairwise(z, [0, 2], 1))


def test_decompositions_and_their_properties_by_hand():
    network = (Dense(np.array([[3.0], [-1.0]]), np.array([-5.0])),)
    x, root = np.array([[1.0, -2.0]]), np.array([[2.0, 1.0]])  # both are roots of f(x) = 3 x_0 - x_1 - 5
    rows = reference.compare(network, x, 0, root)
    table = {method: (R[0].tolist(), *properties) for method, R, properties in rows}
    assert table["all on one input"] == ([0, 0], 0, 0, True)
    assert table["uniform"] == ([0, 0], 0, 0, True)
    assert table["gradient x input"] == ([3, 2], 5, 0, False)
    assert table["Taylor"] == ([-3, 3], 0, 0.5, False)
    assert table["LRP-0"] == ([0, 0], 0, 0, True)
    assert reference.properties(reference.uniform(np.zeros(4), -8.0), -8.0) == (0, 1, True)
    assert reference.all_on_one(x, 7.0, pixel=1).tolist() == [[0, 7]]


# The rules of the library and of the reference, and their common options except eps and bias
RULES = {
    "epsilon": (rules.Epsilon, reference.epsilon, {}),
    "norm": (rules.Norm, reference.norm, {}),
    "gamma simple": (partial(rules.Gamma, generalized=False), reference.gamma_simple, {"gamma": 0.5}),
    "gamma": (rules.Gamma, reference.gamma_generalized, {"gamma": 0.5}),
    "a2b1": (rules.AlphaBeta, reference.alpha_beta, {}),
    "conserve": (rules.AlphaBeta, reference.alpha_beta, {"alpha": 1.5, "beta": 0.5, "conserve": True}),
    "z+": (rules.ZPlus, reference.zplus, {}),
    "z+ conserve": (rules.ZPlus, reference.zplus, {"conserve": True}),
    "z^B": (rules.ZBox, reference.zbox, {"low": -3.0, "high": 3.5}),
    "flat": (rules.Flat, reference.flat, {}),
    "w^2": (rules.WSquare, reference.wsquare, {}),
}
STABILIZERS = [
    {"eps": 0.0},
    {"eps": 0.3},
    {"eps": 0.3, "mode": "unsigned"},
    {"eps": 0.8, "mode": "clip"},
    {"eps": 0.3, "mode": "at_zero"},
    {"eps": 0.25, "norm": "sample"},
    {"eps": 0.25, "norm": "tensor", "mode": "unsigned"},
    {"eps": 0.25, "norm": "tensor", "mode": "clip"},
    {"eps": 0.25, "norm": "sample", "mode": "at_zero"},
]
BIASES = ["absorb", "ignore", "keep", "share"]

rng = np.random.default_rng(0)


def normal(*shape):
    return np.round(rng.normal(size=shape), 2)


def conv(*shape, **options):
    return Conv(normal(*shape), normal(shape[-1]), **options)


KINDS = {  # a layer, and the shape of its input (n, ...)
    "dense": (Dense(normal(5, 4), normal(4)), (3, 5)),
    "1-d": (conv(3, 2, 2), (1, 5, 2)),
    "2-d": (conv(3, 2, 2, 3), (2, 4, 3, 2)),
    "3-d": (conv(2, 2, 2, 1, 2), (1, 3, 2, 2, 1)),
    "strided": (conv(3, 2, 2, 3, strides=(2, 1), padding="VALID"), (2, 5, 3, 2)),
    "padded": (conv(3, 2, 2, padding=[(2, 0)], strides=2), (3, 5, 2)),
    "grouped": (conv(2, 2, 2, 4, groups=2), (1, 3, 3, 4)),
    "depthwise": (conv(3, 2, 1, 6, groups=3), (2, 3, 3, 3)),
    "dilated": (conv(2, 2, 2, 2, dilation=(2, 1)), (1, 4, 4, 2)),
    "transposed": (conv(3, 2, 2, 2, input_dilation=2, padding=[(2, 1), (1, 1)]), (2, 3, 2, 2)),
    "transposed 1-d": (conv(2, 2, 2, input_dilation=3, padding=[(1, 1)]), (1, 3, 2)),  # one output has no inputs
    "average pool": (AvgPool((2, 2), (2, 1)), (1, 4, 3, 2)),
    "global pool": (GlobalAvgPool(), (2, 3, 2, 2)),
}


def in_jax(layer, params, a):
    """The outputs of a layer of the reference, computed in JAX."""
    w, b = params
    axes, window = tuple(range(1, a.ndim - 1)), (*getattr(layer, "window", ()), 1)
    match layer:
        case Dense():
            z = a @ w
        case Conv():
            spec = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}[len(axes)]
            steps = (layer.strides, layer.dilation, layer.input_dilation)
            strides, dilation, input_dilation = (tuple(np.broadcast_to(s, len(axes)).tolist()) for s in steps)
            z = jax.lax.conv_general_dilated(
                a, w, strides, layer.padding, input_dilation, dilation, spec, feature_group_count=layer.groups
            )
        case MaxPool():
            return jax.lax.reduce_window(a, -np.inf, jax.lax.max, (1, *window), (1, *layer.strides, 1), "VALID")
        case AvgPool():
            z = jax.lax.reduce_window(a, 0.0, jax.lax.add, (1, *window), (1, *layer.strides, 1), "VALID") * w
        case GlobalAvgPool():
            z = a.sum(axes) * w
        case Relu():
            return jax.nn.relu(a)
        case Flatten():
            return a.reshape(len(a), -1)
        case Residual():
            return a + run(layer.branch, a)
        case _:
            raise TypeError(layer)
    return z if b is None else z + b.reshape((1,) * (z.ndim - 1) + (-1,))


def parameters(layer, shape):
    """Weight and bias for `in_jax`; the weight of an average pool is 1 / window size."""
    if isinstance(layer, Dense | Conv):
        return layer.w, layer.b
    return 1 / np.prod(getattr(layer, "window", shape[:-1])), None


def run(network, x):
    """The outputs of a network of the reference, computed in JAX."""
    for layer in network:
        x = in_jax(layer, parameters(layer, x.shape[1:]), x)
    return x


def compare_layer(layer, a, rule, bias, stabilizer):
    """Asserts that the library and the reference compute the same relevance for one layer."""
    library, oracle, options = RULES[rule]
    z, (M, b, reach, _) = layer(a), layer.sums(a.shape[1:])
    R = np.random.default_rng(1).normal(size=z.shape)
    oracle = partial(oracle, eps=reference.Stabilizer(**stabilizer), bias=bias, **options)
    expected = oracle(a.reshape(len(a), -1), M, b, reach, R.reshape(len(a), -1))
    params = jax.tree.map(jnp.asarray, parameters(layer, a.shape[1:]))

    def fn(a, params):
        return in_jax(layer, params, a)

    close(fn(a, params), z)
    library = library(eps=rules.Stabilizer(**stabilizer), bias=bias, **options)
    close(library(fn, jnp.asarray(a), params, jnp.asarray(R)), expected.reshape(a.shape))


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("rule", RULES)
def test_dense_layer_with_every_stabilizer_and_bias(rule, bias):
    w, b = normal(6, 5), normal(5)
    w[:, 0], b[0] = 0, 0  # an output that is always zero
    w[:, 1], b[1] = np.abs(w[:, 1]), 0  # no negative contributions for positive inputs
    w[:, 2] = -np.abs(w[:, 2])
    a = normal(4, 6)
    a[0], a[1], a[2, ::2] = 0, np.abs(a[1]), 0
    for stabilizer in STABILIZERS:
        compare_layer(Dense(w, b), a, rule, bias, stabilizer)
    compare_layer(Dense(w), a, rule, bias, STABILIZERS[0])
    compare_layer(Dense(w, b), a[1:2], rule, bias, STABILIZERS[-2])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", KINDS)
def test_every_rule_on_every_layer(name, rule):
    layer, shape = KINDS[name]
    a = np.random.default_rng(2).normal(size=shape)
    a[..., ::3] = 0
    for bias, stabilizer in zip(BIASES, [*STABILIZERS[:2], *STABILIZERS[5:7]], strict=True):
        compare_layer(layer, a, rule, bias, stabilizer)


# Whole networks
PLANE = (
    conv(3, 3, 2, 3), Relu(), MaxPool((2, 2), (2, 2)), Residual((conv(2, 2, 3, 3), Relu())), AvgPool((2, 2), (1, 1)),
    Flatten(), Dense(normal(12, 4), normal(4)), Relu(), Dense(normal(4, 3), normal(3)),
)  # fmt: skip
NETWORKS = {  # layers, the shape of one input, the index of each named layer
    "2-d": (PLANE, (6, 6, 2), {"conv_0": 0, "max_pool_0": 2, "avg_pool_0": 4, "dense_0": 6, "dense_1": 8}),
    "1-d": ((conv(3, 2, 4, strides=2), Relu(), conv(2, 4, 3), Relu(), GlobalAvgPool()), (6, 2), {"conv_1": 2}),
    "3-d": ((conv(2, 2, 2, 1, 2), Relu(), Flatten(), Dense(normal(24, 3))), (3, 2, 2, 1), {"dense_0": 3}),
}


def compare_network(name, composite, chosen, start="logit"):
    """Asserts that `lrp` and the reference compute the same relevance at the input and at the named layers."""
    network, shape, named = NETWORKS[name]
    x, target = np.random.default_rng(3).normal(size=(2, *shape)), np.array([2, 0])
    x[0, ..., 0] = 0
    logits = reference.forward(network, x)[-1]
    explain = lrp_jax.lrp(partial(run, network), composite, output=getattr(outputs, start), layers=True)
    found, layers, _ = explain(x, target=target)
    expected = reference.explain(network, x, chosen, getattr(reference, start)(logits, target))
    close(found, expected[0])
    for layer, i in named.items():
        close(layers[layer], expected[i])


@pytest.mark.parametrize(
    ("name", "rule", "bias"),
    [
        ("2-d", "epsilon", "share"), ("2-d", "gamma", "absorb"), ("2-d", "z+", "keep"), ("2-d", "conserve", "absorb"),
        ("1-d", "gamma", "share"), ("1-d", "a2b1", "share"), ("1-d", "z^B", "ignore"), ("1-d", "norm", "keep"),
        ("3-d", "gamma simple", "absorb"), ("3-d", "z+ conserve", "ignore"), ("3-d", "w^2", "keep"),
        ("3-d", "flat", "share"),
    ],
)  # fmt: skip
def test_networks_with_one_rule(name, rule, bias):
    library, oracle, options = RULES[rule]
    chosen = reference.everywhere(NETWORKS[name][0], partial(oracle, eps=0.01, bias=bias, **options))
    compare_network(name, library(eps=0.01, bias=bias, **options), chosen)


@pytest.mark.parametrize("start", ["one_hot", "probability"])
def test_network_with_several_rules(start):
    stabilizer = {"eps": 0.25, "mode": "unsigned", "norm": "sample"}
    composite = composites.epsilon_gamma_box([-3.0, -2.0], [3.0, 3.5]) + [
        (kind("max_pool"), rules.AveragePool(rules.Stabilizer(**stabilizer))),
        (kind("dense"), rules.Epsilon(0.1)),
    ]
    chosen = reference.everywhere(
        PLANE,
        partial(reference.gamma_generalized, gamma=0.25),
        sums=reference.epsilon,
        max_pools=partial(reference.epsilon, eps=reference.Stabilizer(**stabilizer)),
    )
    chosen[0] = partial(reference.zbox, low=[-3.0, -2.0], high=[3.0, 3.5])
    chosen[6] = chosen[8] = partial(reference.epsilon, eps=0.1)
    compare_network("2-d", composite, chosen, start)


def test_gradient_of_the_reference_equals_that_of_jax():
    x = np.random.default_rng(4).normal(size=(2, 6, 6, 2))
    expected = jax.jit(jax.grad(lambda x: run(PLANE, x)[:, 1].sum()))(x)
    close(reference.gradient(PLANE, x, reference.one_hot(np.zeros((2, 3)), 1)), expected)


def test_reference_works_without_jax():
    code = f"""
import importlib.util, sys
sys.modules["jax"] = sys.modules["jaxlib"] = sys.modules["lrp_jax"] = None
spec = importlib.util.spec_from_file_location("reference", {reference.__file__!r})
reference = sys.modules["reference"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)
import numpy as np
network, x = (reference.Dense(np.eye(2)), reference.Relu()), np.array([[3.0, -1.0]])
print(reference.explain(network, x, reference.everywhere(network, reference.zero), x)[0].tolist())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[[3.0, -1.0]]"
