"""Each rule equals fractions derived by hand, and explicit sums over the matrix of any linear layer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import rules
from lrp_jax.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Identity,
    Norm,
    Pass,
    Stabilizer,
    WSquare,
    ZBox,
    Zero,
    ZPlus,
    four_steps,
)


def dense(a, params):
    w, b = params
    z = a @ w
    return z if b is None else z + b[None]


# z = [2 + 2 + 1, -2 + 3 - 2] = [5, -1]
A, W, B, R = np.array([[2.0, 1.0]]), np.array([[1.0, -1.0], [2.0, 3.0]]), np.array([1.0, -2.0]), np.array([[10.0, 3.0]])

BY_HAND = {
    "zero": (Zero(), [2 * 10 / 5 + -2 * 3 / -1, 2 * 10 / 5 + 3 * 3 / -1]),
    "epsilon": (Epsilon(1.0), [2 * 10 / 6 + -2 * 3 / -2, 2 * 10 / 6 + 3 * 3 / -2]),
    "epsilon without bias": (Epsilon(0, bias="ignore"), [2 * 10 / 4 + -2 * 3 / 1, 2 * 10 / 4 + 3 * 3 / 1]),
    # w + w+ = [[2, -1], [4, 6]], b + b+ = [2, -2]: z = [10, 2]
    "gamma": (Gamma(1.0, generalized=False, eps=0), [4 * 10 / 10 + -2 * 3 / 2, 4 * 10 / 10 + 6 * 3 / 2]),
    # the second output is negative: w + w- = [., [-2, 3]], b + b- = -4: z = -5
    "gamma, generalized": (Gamma(1.0, eps=0), [4 * 10 / 10 + -4 * 3 / -5, 4 * 10 / 10 + 3 * 3 / -5]),
    # positive parts [2 + 2 + 1, 3], negative parts [0, -2 - 2]
    "alpha-beta": (AlphaBeta(2, 1, eps=0), [2 * 2 * 10 / 5 - -2 * 3 / -4, 2 * 2 * 10 / 5 + 2 * 3 * 3 / 3]),
    "z+": (ZPlus(eps=0), [2 * 10 / 5, 2 * 10 / 5 + 3 * 3 / 3]),
    "z+ without bias": (ZPlus(eps=0, bias="ignore"), [2 * 10 / 4, 2 * 10 / 4 + 3 * 3 / 3]),
    # a w - l w+ - h w-: [[3, 1], [4, 6]]
    "z^B": (ZBox(-1.0, 3.0, eps=0), [3 * 10 / 7 + 1 * 3 / 7, 4 * 10 / 7 + 6 * 3 / 7]),
    "flat": (Flat(eps=0), [10 / 2 + 3 / 2, 10 / 2 + 3 / 2]),
    # w^2 = [[1, 1], [4, 9]], b^2 = [1, 4]
    "w^2": (WSquare(eps=0), [1 * 10 / 6 + 1 * 3 / 14, 4 * 10 / 6 + 9 * 3 / 14]),
    "norm": (Norm(), [2 * 10 / 5 + -2 * 3 / -1, 2 * 10 / 5 + 3 * 3 / -1]),
    "pass": (Pass(), [10, 3]),
    "identity": (Identity(1.0), [2 * 10 / 3, 1 * 3 / 2]),
}


@pytest.mark.parametrize(("rule", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_rules_equal_fractions_derived_by_hand(rule, expected):
    np.testing.assert_allclose(rule(dense, A, (W, B), R), [expected], rtol=1e-14)


def test_generalized_gamma_of_a_negative_input_equals_fractions_derived_by_hand():
    a = np.array([[2.0, -1.0]])  # z = [2 - 2 + 1, -2 - 3 - 2] = [1, -7]
    # first output, z > 0: 2 (w + w+) = 4, -1 (w + w-) = -2, bias 2
    # second output, z < 0: 2 (w + w-) = -4, -1 (w + w+) = -6, bias -4
    expected = [4 * 10 / 4 + -4 * 3 / -14, -2 * 10 / 4 + -6 * 3 / -14]
    np.testing.assert_allclose(Gamma(1.0, eps=0)(dense, a, (W, B), R), [expected], rtol=1e-14)


STABILIZED = {  # of z = [-2, 0, 1], whose root mean square is sqrt(5 / 3)
    "signed": (Stabilizer(0.5), [-2.5, 0.5, 1.5]),
    "unsigned": (Stabilizer(0.5, mode="unsigned"), [-1.5, 0.5, 1.5]),
    "clip": (Stabilizer(1.5, mode="clip"), [-2, 1.5, 1.5]),
    "at zero": (Stabilizer(0.5, mode="at_zero"), [-2, 0.5, 1]),
    "none": (Stabilizer(0.0), [-2, 0, 1]),
    "rms": (Stabilizer(3.0, norm="sample"), [-2 - 15**0.5, 15**0.5, 1 + 15**0.5]),
}


@pytest.mark.parametrize(("stabilizer", "expected"), STABILIZED.values(), ids=STABILIZED)
def test_stabilizers_equal_values_derived_by_hand(stabilizer, expected):
    np.testing.assert_allclose(stabilizer(jnp.array([[-2.0, 0.0, 1.0]])), [expected], rtol=1e-14)


def test_a_stabilizer_can_be_any_function_of_z():
    a, R = np.array([[1.0, -1.0]]), np.array([[3.0]])
    layer = lambda a, params: a @ params[0]
    shifted = Epsilon(lambda z: z + 1)
    np.testing.assert_allclose(shifted(layer, a, (np.ones((2, 1)), None), R), [[3.0, -3.0]])
    assert str(Epsilon(abs)) == "Epsilon(eps=abs)"


def test_root_mean_square_over_the_sample_or_the_tensor():
    z = np.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(Stabilizer(2.0, norm="sample")(z), z + 2 * np.sqrt([[12.5], [0.0]]))
    np.testing.assert_allclose(Stabilizer(2.0, norm="tensor")(z), z + 2 * np.sqrt(6.25))


# Layers, compared with explicit sums over their matrix M (in, out) and their constant b (out)
def conv(dims=2, **options):
    spec = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}[dims]

    def layer(a, params):
        w, b = params
        settings = {"window_strides": (1,) * dims, "padding": "SAME"} | options
        z = jax.lax.conv_general_dilated(a, w, dimension_numbers=spec, **settings)
        return z if b is None else z + b.reshape((1,) * (dims + 1) + (-1,))

    return layer


LAYERS = {  # layer, input, kernel, bias
    "dense": (dense, (2, 5), (5, 3), 3),
    "conv": (conv(), (2, 4, 4, 3), (3, 3, 3, 2), 2),
    "strided": (conv(window_strides=(2, 2), padding="VALID"), (2, 5, 5, 2), (3, 3, 2, 3), 3),
    "dilated": (conv(rhs_dilation=(2, 2)), (1, 5, 5, 2), (2, 2, 2, 2), 2),
    "transposed": (conv(lhs_dilation=(2, 2), padding=[(1, 1), (1, 1)]), (1, 3, 3, 2), (2, 2, 2, 2), 2),
    "depthwise": (conv(feature_group_count=3), (2, 4, 4, 3), (3, 3, 1, 3), 3),
    "grouped": (conv(feature_group_count=2), (1, 4, 4, 4), (3, 3, 2, 4), 4),
    "1-d": (conv(1), (2, 6, 2), (3, 2, 2), 2),
    "3-d": (conv(3), (1, 3, 3, 3, 1), (2, 2, 2, 1, 2), 2),
}


def plus(x):
    return np.maximum(x, 0)


def minus(x):
    return np.minimum(x, 0)


def share(contributions, bias, R, eps):
    """R_j = sum_k c_jk R_k / (z_k + eps sign z_k), with z_k = sum_j c_jk + bias_k."""
    z = contributions.sum(0) + bias
    z = z + np.where(z < 0, -eps, eps)
    return (contributions * np.where(z == 0, 0, R / np.where(z == 0, 1, z))).sum(1)


def explicit(rule, a, M, b, reach, R):
    """The rule's formula, for one example, on flat arrays."""
    a, eps = a[:, None], rule.eps
    if isinstance(rule, Gamma):
        up, down = M + rule.gamma * plus(M), M + rule.gamma * minus(M)
        z = (a * M).sum(0) + b
        above = share(plus(a) * up + minus(a) * down, b + rule.gamma * plus(b), np.where(z > 0, R, 0), eps)
        return above + share(plus(a) * down + minus(a) * up, b + rule.gamma * minus(b), np.where(z < 0, R, 0), eps)
    if isinstance(rule, AlphaBeta):
        positive = share(plus(a * M), plus(b), R, eps)
        return rule.alpha * positive - rule.beta * share(minus(a * M), minus(b), R, eps)
    if isinstance(rule, ZBox):
        return share(a * M - rule.low * plus(M) - rule.high * minus(M), 0 * b, R, eps)
    if isinstance(rule, Flat):
        return share(reach, 0 * b, R, eps)
    if isinstance(rule, WSquare):
        return share(M**2, b**2, R, eps)
    return share(a * M, b, R, eps)


RULES = [
    Zero(),
    Epsilon(0.3),
    Gamma(0.5),
    AlphaBeta(2, 1),
    AlphaBeta(1.5, 0.5),
    ZPlus(),
    ZBox(-3.0, 3.5),
    Flat(),
    WSquare(),
    Norm(),
]


@functools.cache
def matrices(name):
    """Input, kernel and bias of a layer; its matrix M, and the same for a kernel of ones."""
    layer, in_shape, w_shape, width = LAYERS[name]
    rng = np.random.default_rng(0)
    a, w, b = (np.round(rng.normal(size=s), 2) for s in (in_shape, w_shape, width))
    a.flat[::4] = 0

    @jax.jit
    def matrix(w):  # d z_k / d a_j of one example
        jacobian = jax.jacobian(lambda x: layer(x[None], (w, None))[0])(a[0])
        return jacobian.reshape(-1, a[0].size).T

    return a, w, b, np.asarray(matrix(w)), np.asarray(matrix(np.ones_like(w)))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_rules_on_linear_layers_equal_explicit_sums(rule, name, biased):
    layer = LAYERS[name][0]
    a, w, b, M, reach = matrices(name)
    b = b if biased else None
    z = np.asarray(layer(a, (w, b)))
    R = np.random.default_rng(1).normal(size=z.shape)
    found = np.asarray(rule(layer, a, (w, b), R))
    constant = np.asarray(layer(np.zeros_like(a[:1]), (w, b))).ravel()
    for i in range(len(a)):
        expected = explicit(rule, a[i].ravel(), M, constant, reach, R[i].ravel())
        np.testing.assert_allclose(found[i].ravel(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", [Gamma(0.5), AlphaBeta(2, 1), ZPlus()], ids=str)
def test_cheaper_forms_are_equal_where_their_assumption_holds(rule):
    layer, in_shape, w_shape, width = LAYERS["conv"]
    rng = np.random.default_rng(1)
    a, params = np.abs(rng.normal(size=in_shape)), (rng.normal(size=w_shape), rng.normal(size=width))
    z = np.asarray(layer(a, params))
    R = rng.normal(size=z.shape) * (z > 0)
    general = rule(layer, a, params, R)
    for assumption in (
        {"nonnegative": True, "relevant_above_zero": False},
        {"nonnegative": True, "relevant_above_zero": True},
    ):
        np.testing.assert_allclose(rule.assuming(**assumption)(layer, a, params, R), general, rtol=1e-12, atol=1e-14)


def test_a_rule_can_be_written_with_four_steps():
    @dataclasses.dataclass(frozen=True)
    class Absolute:
        """Gives relevance in proportion to |a_j w_jk|."""

        eps: float = 1e-9

        def __call__(self, layer, a, params, R):
            w, _ = params
            return four_steps(layer, [(jnp.abs(a), (jnp.abs(w), None))], R, self.eps)

    x, w = np.array([[1.0, -3.0]]), np.array([[2.0, 1.0], [2.0, -1.0]])
    found = lrp_jax.lrp(lambda w, x: x @ w, Absolute())(w, x, relevance=np.array([[8.0, 4.0]]))
    np.testing.assert_allclose(found, [[8 * 2 / 8 + 4 * 1 / 4, 8 * 6 / 8 + 4 * 3 / 4]], rtol=1e-8)


def test_str_and_repr_of_rules():
    assert str(Gamma(0.25)) == "Gamma(gamma=0.25)"
    assert str(Zero()) == "Zero()"
    assert str(ZBox([-2.1179, -2.0357], 2.5)) == "ZBox(low=(-2.118 -2.036), high=2.5)"
    assert str(Epsilon(Stabilizer(0.25, norm="sample"))) == "Epsilon(eps=0.25 rms)"
    assert repr(Norm()) == "Norm(eps=0.0, bias='absorb')"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AlphaBeta(2, 0.5), "alpha - beta must be 1"),
        (lambda: Gamma(-1), "Gamma gamma must not be negative; got -1"),
        (lambda: ZBox(1, 0), "low must not exceed high"),
        (lambda: Epsilon(bias="drop"), "expected 'absorb', 'keep', 'ignore' or 'share'"),
        (lambda: Stabilizer(mode="plus"), "mode 'plus': expected"),
        (lambda: Stabilizer(norm="batch"), "norm 'batch': expected"),
        (
            lambda: Pass()(dense, A, (np.ones((2, 3)), None), np.ones((1, 3))),
            "Pass needs one input with the shape",
        ),
    ],
)
def test_wrong_parameters_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_low_precision_is_kept_and_finite(rule, dtype):
    a, w, b = (jnp.asarray(x, dtype) for x in (A, W, B))
    for x in (a, 0 * a, a.at[0, 0].set(0)):
        found = rule(dense, x, (w, b), jnp.asarray(R, dtype))
        assert found.dtype == dtype
        assert jnp.isfinite(found).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("shape", "window"), [((2, 4, 6, 3), (1, 2, 2, 1)), ((2, 7, 5), (1, 3, 2)), ((5, 4), (1, 4))])
def test_max_pool_without_scatter_equals_the_vjp(shape, window, dtype):
    """With equal maxima, with elements outside all windows, and where all elements are zero."""
    rng = np.random.default_rng(0)
    x = jnp.maximum(jnp.asarray(rng.integers(-3, 3, size=shape), dtype), 0)

    def pool(x):
        return jax.lax.reduce_window(x, np.asarray(-np.inf, dtype), jax.lax.max, window, window, "VALID")

    R = jnp.asarray(rng.normal(size=pool(x).shape), dtype)
    assert "select_and_scatter" not in str(jax.make_jaxpr(lambda x: lrp_jax.lrp(pool, [])(x, relevance=R))(x))
    np.testing.assert_array_equal(lrp_jax.lrp(pool, [])(x, relevance=R), jax.vjp(pool, x)[1](R)[0])


def test_max_pool_with_winner_takes_all_and_with_average_pool():
    x = np.arange(16.0).reshape(1, 4, 4, 1)

    def pool(x):
        return jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").reshape(1, 4)

    R = np.array([[1.0, 2.0, 3.0, 4.0]])
    winner = np.zeros((4, 4))
    winner[1::2, 1::2] = [[1, 2], [3, 4]]
    explain = lrp_jax.lrp(pool, [])
    np.testing.assert_allclose(np.reshape(explain(x, relevance=R), (4, 4)), winner)
    sums = np.kron([[0 + 1 + 4 + 5, 2 + 3 + 6 + 7], [8 + 9 + 12 + 13, 10 + 11 + 14 + 15]], np.ones((2, 2)))
    shared = x.reshape(4, 4) / sums * np.kron([[1, 2], [3, 4]], np.ones((2, 2)))
    explain = lrp_jax.lrp(pool, [("max_pool_0", rules.AveragePool())])
    np.testing.assert_allclose(np.reshape(explain(x, relevance=R), (4, 4)), shared)
