"""Plans: kinds of steps, and names of layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from networks import cnn, cnn_params, images

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import first, kind

W = np.eye(4)
X = np.array([[-2.0, -0.5, 0.3, 4.0], [1.5, -7.0, 0.1, 0.9]])


def kinds(fn, *args):
    return [step.kind for step in lrp_jax.plan(fn, rules.Zero())(*args).steps]


# Activations
ACTIVATIONS = {
    name: getattr(jax.nn, name)
    for name in [
        "relu",
        "relu6",
        "gelu",
        "silu",
        "softplus",
        "tanh",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "sigmoid",
        "hard_swish",
        "hard_sigmoid",
        "hard_tanh",
        "mish",
        "log_sigmoid",
        "soft_sign",
        "sparse_plus",
        "squareplus",
    ]
} | {
    "erf gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "sigmoid by hand": lambda x: 1 / (1 + jnp.exp(-x)),
    "where": lambda x: jnp.where(x > 0, x, 0.0),
    "softplus by hand": lambda x: jnp.log1p(jnp.exp(-jnp.abs(x))) + jnp.maximum(x, 0.0),
    "square": lambda x: x * x,
    "clip": lambda x: jnp.clip(x, 0.0, 6.0),
}


@pytest.mark.parametrize("f", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations_pass_relevance_unchanged(f):
    def fn(w, x):
        return f(x @ w) @ w

    assert [kind for kind in kinds(fn, W, X) if kind != "scale"] == ["dense", "activation", "dense"]
    R, layers, _ = lrp_jax.lrp(fn, rules.Zero(), layers=True)(W, X, target=1)
    expected = np.where([False, True, False, False], jax.jit(f)(X), 0)  # the weights are the identity
    np.testing.assert_allclose(R, expected, rtol=1e-12)
    np.testing.assert_allclose(layers["output"], expected, rtol=1e-12)


def test_kinds_of_other_steps():
    assert kinds(lambda w, x: (jnp.where(jnp.arange(4) > 1, x, 0.0) / 2.0) @ w, W, X) == ["select_n", "dense"]
    assert kinds(lambda w, x: (x / 2.0)[:, ::-1] @ w, W, X) == ["scale", "rev", "dense"]
    assert kinds(lambda w, x: jnp.tanh(1.0 - (x - w[:1]) * w[1:2] / 2.0), W, X[:1]) == [
        "scale",
        "activation",
    ]
    assert kinds(lambda w, x: 3.0 - x @ w, W, X) == ["dense"]
    assert kinds(lambda w, x: jnp.cumsum(x, 0) + 3.0, W, X) == ["sum", "shift"]
    assert kinds(lambda w, x: -(x - x[::-1]), W, X) == ["rev", "add", "scale"]
    assert kinds(lambda w, x: x.mean(1, keepdims=True) + x.max(1, keepdims=True), W, X)[-1] == "add"
    assert kinds(lambda w, x: jnp.tanh(x) + jnp.tanh(x) @ w, W, X) == ["activation", "activation", "dense", "add"]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda c, x: 2 * x - c, 2 * X * 1 / (2 * X - 1)),
        (lambda c, x: c - x, -X / (1 - X)),
        (lambda c, x: x / (2 * c), np.ones_like(X)),
        (lambda c, x: c - (c - x) / (2 * c), X / (X + 1)),
        (lambda c, x: x - x[::-1] * c, X / (X - X[::-1]) - X / (X[::-1] - X)),
    ],
)
def test_scales_shifts_and_differences_give_relevance_in_proportion_to_contributions(fn, expected):
    np.testing.assert_allclose(lrp_jax.lrp(fn, [])(np.ones_like(X), X, relevance=np.ones_like(X)), expected, rtol=1e-12)


# Names
def test_names_are_key_paths_of_weights_in_linen_nnx_equinox_and_plain_functions():
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.relu(nn.Dense(3, name="hidden")(x)))

    x = jnp.ones((1, 4), jnp.float32)
    variables = Linen().init(jax.random.key(0), x)
    assert named(Linen().apply, variables, x) == ["params/hidden", "params/Dense_0"]

    graph, state = nnx.split(
        nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jax.nn.relu, nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
    )
    assert named(lambda state, x: nnx.merge(graph, state)(x), state, x) == ["layers/0", "layers/2"]

    key = jax.random.key(0)
    model = eqx.nn.Sequential([eqx.nn.Linear(4, 3, key=key), eqx.nn.Lambda(jax.nn.relu), eqx.nn.Linear(3, 2, key=key)])
    arrays, static = eqx.partition(model, eqx.is_array)
    assert named(lambda m, x: jax.vmap(eqx.combine(m, static))(x), arrays, X) == ["layers/0", "layers/2"]

    assert named(lambda p, x: x @ p[0] @ p[1], [jnp.ones((4, 3), x.dtype), jnp.ones((3, 2), x.dtype)], x) == ["0", "1"]
    assert named(lambda p, x: x @ p["a"]["w1"] @ p["a"]["w2"], {"a": {"w1": W, "w2": W}}, X) == ["a/w1", "a/w2"]
    assert named(lambda x: x @ W @ W, X) == ["dense_0", "dense_1"]


def named(fn, *args):
    return [step.name for step in lrp_jax.plan(fn, rules.Zero())(*args).steps if step.kind == "dense"]


def test_plan_of_shapes_prints_a_table():
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), (cnn_params(), images()))
    table = str(lrp_jax.plan(cnn, composites.epsilon_gamma_box(-3.0, 3.0))(*shapes))
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["name", "kind", "op", "input", "output", "rule"]
    assert lines[1] == ["0", "conv1", "conv", "conv_general_dilated", "3x8x8x2", "3x8x8x4", "ZBox(low=-3,", "high=3)"]
    assert lines[2] == ["1", "activation_0", "activation", "relu", "3x8x8x4", "3x8x8x4", "Pass()"]
    assert lines[3][:3] == ["2", "max_pool_0", "max_pool"]
    assert lines[6][1:] == ["add_0", "add", "add", "3x4x4x4", "3x4x4x4", "3x4x4x4", "Norm(eps=1e-06)"]


SEPARATE = {
    "two trees": (lambda p, q, x: jax.nn.relu(x @ p["w"]) @ q["w"], ({"w": W}, {"w": W + 1})),
    "one vector": (
        lambda p, x: jax.nn.relu(x @ p["v"][:16].reshape(4, 4)) @ p["v"][16:].reshape(4, 4),
        ({"v": np.arange(32.0)},),
    ),
    "a stack of stacks": (lambda p, x: jax.nn.relu(x @ p["w"][0, 1]) @ p["w"][1, 0], ({"w": np.ones((2, 2, 4, 4))},)),
    "columns": (lambda p, x: jax.nn.relu(x @ p["w"][:, :4]) @ p["w"][:, 4:], ({"w": np.ones((4, 8))},)),
    "changed signs": (lambda p, x: jax.nn.relu(-x @ p["w"]) @ p["v"], ({"w": W, "v": W},)),
    "a common factor": (
        lambda p, x: jax.nn.relu(x @ (p["s"] * p["v"])) @ (p["s"] * p["w"]),
        ({"s": 2.0, "v": W, "w": W},),
    ),
}


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize(("fn", "params"), SEPARATE.values(), ids=SEPARATE)
def test_layers_with_different_weights_are_different_layers(fn, params):
    plan = lrp_jax.plan(fn, [(kind("dense"), rules.Zero()), (first(), rules.Flat())])(*params, X)
    assert [step.rule for step in plan.steps if step.kind == "dense"] == [rules.Flat(), rules.Zero()]
