"""First and last layers and depths follow from the data flow. Matrices without parameters are no layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import sparse

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import depth, first, kind, last
from lrp_jax.core.trace import trace
from lrp_jax.execute import run
from lrp_jax.planning import make_plan

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(2, 6))
P = {name: RNG.normal(size=(6, 6)) / 3 for name in "abcdef"}
ADJACENCY = np.diag([1.0, 1, 1, 1, 0, 0])
relu = jax.nn.relu

pytestmark = pytest.mark.usefixtures("lenient")


def marked(selector, fn, *args, argnums=-1):
    """The names of the layers that a selector selects."""
    composite = [(kind("dense", "conv"), rules.Epsilon()), (selector, rules.WSquare())]
    steps = lrp_jax.plan(fn, composite, argnums=argnums)(*args).steps
    return [s.name for s in steps if isinstance(s.rule, rules.WSquare)]


def kinds(fn, *args):
    return [
        s.kind for s in lrp_jax.plan(fn, rules.Epsilon())(*args).steps if s.kind in ("dense", "conv", "constant_map")
    ]


# Positions


def inception(p, x, order="ab"):
    branches = {"a": lambda: relu(x @ p["a"]), "b": lambda: relu(relu(x @ p["b"]) @ p["c"])}
    found = {name: branches[name]() for name in order}
    return (found["a"] + found["b"]) @ p["d"]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_every_layer_that_reads_the_input_is_a_first_one(order):
    fn = lambda p, x: inception(p, x, order)
    assert sorted(marked(first(), fn, P, X)) == ["a", "b"]
    assert sorted(marked(first(count=2), fn, P, X)) == ["a", "b", "c"]
    assert marked(last(), fn, P, X) == ["d"]
    assert sorted(marked(last(count=2), fn, P, X)) == ["a", "c", "d"]
    assert sorted(marked(depth(0, 0.5), fn, P, X)) == ["a", "b", "c"]


def test_two_writings_of_two_branches_have_the_same_relevance():
    for composite in (composites.epsilon_plus_flat(), composites.overview_vgg16(-1, 1)):
        found = [lrp_jax.lrp(lambda p, x, o=o: inception(p, x, o), composite)(P, X, target=1) for o in ("ab", "ba")]
        np.testing.assert_allclose(*found, rtol=1e-12, atol=1e-14)


def test_each_explained_argument_has_its_own_first_layers():
    fn = lambda p, image, table: jnp.concatenate([relu(image @ p["a"]) @ p["b"], table], 1)[:, 3:9] @ p["c"]
    assert marked(first(), fn, P, X, X, argnums=(1, 2)) == ["a", "c"]
    assert marked(first(), fn, P, X, X, argnums=1) == ["a"]
    assert marked(first(), lambda p, x: fn(p, **x), P, {"image": X, "table": X}) == ["a", "c"]


def test_a_layer_after_a_residual_connection_is_not_a_first_one():
    fn = lambda p, x: (x + relu(x @ p["a"]) @ p["b"]) @ p["c"]
    assert marked(first(), fn, P, X) == ["a"]
    assert marked(depth(0.5, 0.5), fn, P, X) == ["b"]


def test_depth_counts_layers_after_one_whose_rule_stops_relevance():
    class Stop(rules.Rule):
        constant = (0,)

        def __call__(self, layer, a, params, R):
            return jnp.zeros_like(a)

    fn = lambda p, x: relu(relu(x @ p["a"]) @ p["b"]) @ p["c"]
    composite = [(kind("dense"), rules.Epsilon()), (depth(0, 0.5), rules.WSquare()), ("b", Stop())]
    steps = lrp_jax.plan(fn, composite)(P, X).steps
    assert [s.name for s in steps if s.kind == "dense"] == ["b", "c"]
    assert steps[-1].rule == rules.WSquare()


def test_all_uses_of_one_weight_have_the_position_of_the_use_next_to_the_input():
    fn = lambda p, x: relu(relu(x @ p["a"]) @ p["b"]) @ p["a"]
    assert marked(first(), fn, P, X) == ["a", "a#2"]
    assert marked(first(), lambda w, x: relu(relu(x @ w) @ P["b"]) @ w, P["a"], X) == ["dense_0", "dense_1"]


def test_presets_of_zennit_select_the_layer_that_is_executed_first():
    plan = lrp_jax.plan(inception, composites.zennit.epsilon_plus_flat())(P, X)
    assert [s.name for s in plan.steps if isinstance(s.rule, rules.Flat)] == ["a"]


def shuffled(graph, rng):
    """The graph with its operations in another order that fits the data flow."""
    ready, waiting, known = [], list(graph.ops), set(graph.inputs)
    while waiting:
        possible = [op for op in waiting if all(v in known or v not in graph.maker for v in op.inputs)]
        op = possible[rng.integers(len(possible))]
        waiting.remove(op)
        known.update(op.outputs)
        ready.append(op)
    return dataclasses.replace(graph, ops=ready)


COMPOSITES = {
    "flat": composites.epsilon_plus_flat(),
    "box": composites.epsilon_gamma_box(-3, 3),
    "attn": composites.attn_lrp(),
    "depth": composites.overview_vgg16(-3, 3),
}


NETWORKS = ("ResNet-18", "DenseNet", "U-Net", "ViT", "GRU", "MLP with LayerNorm")
FAST = {("flat", "U-Net"), ("flat", "DenseNet"), ("box", "ResNet-18"), ("attn", "ViT"), ("depth", "MLP with LayerNorm")}
PAIRS = [
    pytest.param(composite, name, marks=[] if (composite, name) in FAST else pytest.mark.slow)
    for composite in COMPOSITES
    for name in NETWORKS
]


@pytest.mark.parametrize(("composite", "name"), PAIRS)
def test_relevance_does_not_depend_on_the_order_of_independent_operations(composite, name):
    network = zoo.NETWORKS[name]()
    params, x = jax.tree.map(lambda a: jnp.asarray(a, float), (network.params, network.x))
    rng = np.random.default_rng(1)

    def relevance(order):
        def explain(params, x):
            graph = order(trace(lambda x, params: network.fn(params, x), x, (params,)))
            z, back = jax.vjp(lambda x: run(make_plan(graph, COMPOSITES[composite]), x, (params,)), x)
            return back(z)[0]

        return jax.jit(explain)(params, x)

    plain = relevance(lambda graph: graph)
    scale = np.abs(plain).max()
    np.testing.assert_allclose(relevance(lambda g: shuffled(g, rng)) / scale, plain / scale, rtol=0, atol=1e-9)


# Matrices without parameters


def test_a_resizing_is_no_layer():
    up = lambda x: jax.image.resize(x, (2, 12), "linear")
    core = lambda p, x: relu(x @ jnp.concatenate([p["a"], p["b"]])) @ p["c"]
    fn = lambda p, x: core(p, up(x))
    flat = composites.epsilon_plus_flat()
    assert kinds(fn, P, X) == ["constant_map", "dense", "dense"]
    assert marked(first(), fn, P, X) == ["a"]
    R = lrp_jax.lrp(core, flat)(P, up(X), target=0)
    matrix = np.asarray(jax.jacobian(up)(X))[0, :, 0]  # (12, 6)
    shares = X[:, None] * matrix / (X @ matrix.T + 1e-6)[..., None]
    np.testing.assert_allclose(lrp_jax.lrp(fn, flat)(P, X, target=0), np.einsum("bk,bkj->bj", R, shares), rtol=1e-9)


def grey(x):
    return x @ np.full((6, 6), 1 / 6)


def blurred(x):
    return lax.conv(x[:, None], jnp.ones((1, 1, 3)) / 3, (1,), "SAME")[:, 0]


@pytest.mark.parametrize("fixed", [lambda x: ADJACENCY @ x.T, grey, blurred, lambda x: x @ jnp.eye(6)])
def test_constant_matrices_are_no_layers_if_weights_are_arguments(fixed):
    with_arguments = lambda p, x: fixed(x).reshape(-1, 6) @ p["a"] @ p["b"]
    x = X.repeat(3, 0)
    assert kinds(with_arguments, P, x) == ["constant_map", "dense", "dense"]
    assert marked(first(), with_arguments, P, x) == ["a"]


def test_closed_over_weights_are_layers():
    assert kinds(lambda x: relu(x @ P["a"]) @ P["b"], X) == ["dense", "dense"]
    assert kinds(jax.jit(lambda x: relu(x @ jnp.asarray(P["a"])) @ P["b"]), X) == ["dense", "dense"]
    graph_network = lambda adjacency, x: adjacency @ relu(adjacency @ (x @ P["a"])) @ P["b"]
    assert kinds(graph_network, np.eye(2), X) == ["dense"] * 4


def test_a_computed_matrix_is_no_layer_where_weights_are_closed_over():
    assert kinds(lambda x: jax.image.resize(x, (2, 3), "linear") @ P["a"][:3], X) == ["constant_map", "dense"]
    near = lambda points: (jnp.abs(points[:, None] - points) < 1).astype(float)
    assert kinds(lambda points, x: near(points) @ (x @ P["a"]), np.arange(2.0), X) == ["dense", "constant_map"]


def test_many_closed_over_matrices_beside_weights_that_are_arguments_are_warned_of():
    fn = lambda head, x: relu(relu(x @ P["a"]) @ P["b"]) @ head["c"]
    with pytest.warns(UserWarning, match="2 matrices are taken as constant, not as layers with weights"):
        lrp_jax.lrp(fn, rules.Epsilon())(P, X, target=0)


def test_a_name_makes_a_constant_a_layer():
    fn = lambda p, x: x @ checkpoint_name(jnp.asarray(P["b"]), "frozen") @ p["a"]
    assert kinds(fn, P, X) == ["dense", "dense"]
    assert marked(first(), fn, P, X) == ["frozen"]


def test_quantized_weights_are_layers():
    fn = lambda p, x: x @ (p["q"].astype(float) * 0.1)
    assert kinds(fn, {"q": np.ones((6, 6), np.int8)}, X) == ["dense"]


@pytest.mark.parametrize(
    "written",
    [
        lambda s, x: jnp.einsum("bi,i->bi", x, s),
        lambda s, x: jnp.einsum("i,bi->bi", s, x),
        lambda s, x: jax.vmap(lambda r: jnp.einsum("i,i->i", r, s))(x),
        lambda s, x: jnp.einsum("bi,bi->bi", x, jnp.broadcast_to(s, x.shape)),
    ],
)
def test_an_einsum_that_sums_nothing_is_an_elementwise_product(written):
    fn = lambda p, x: written(p["s"], x) @ p["a"]
    params = P | {"s": np.arange(1.0, 7)}
    assert marked(first(), fn, params, X) == ["a"]
    plain = lambda p, x: (x * p["s"]) @ p["a"]
    for composite in (rules.Gamma(0.3), composites.epsilon_plus_flat()):
        expected = lrp_jax.lrp(plain, composite)(params, X, target=0)
        np.testing.assert_allclose(lrp_jax.lrp(fn, composite)(params, X, target=0), expected, rtol=1e-12)


def test_a_product_that_copies_its_input_along_an_axis_is_not_merged_into_the_layer_after_it():
    params = P | {"s": np.arange(1.0, 7)}
    column = lambda x: x.sum(1, keepdims=True)
    for fn in (
        lambda p, x: (column(x) * p["s"]) @ p["a"],
        lambda p, x: jnp.einsum("bi,j->bj", column(x), p["s"]) @ p["a"],
        lambda p, x: (column(x) @ p["s"][None]) @ p["a"],
    ):
        found = lrp_jax.lrp(fn, rules.Zero())(params, X, target=1)
        expected = X / X.sum(1, keepdims=True) * (X.sum(1, keepdims=True) * (params["s"] @ P["a"][:, 1]))
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_an_einsum_of_two_live_values_that_sums_nothing_is_a_product():
    fn = lambda p, x: jnp.einsum("bi,bi->bi", x @ p["a"], jax.nn.sigmoid(x @ p["b"]))
    assert [s.kind for s in lrp_jax.plan(fn, composites.attn_lrp())(P, X).steps][-1] == "gate"
    outer = lambda p, x: jnp.einsum("bi,bj->bij", x @ p["a"], x).reshape(len(x), -1)
    plain = lambda p, x: ((x @ p["a"])[:, :, None] * x[:, None]).reshape(len(x), -1)
    found, expected = (lrp_jax.lrp(fn, composites.attn_lrp())(P, X, target=3) for fn in (outer, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_sparse_adjacency_is_no_layer():
    adjacency = sparse.BCOO.fromdense(ADJACENCY)
    fn = lambda p, x: relu((adjacency @ x.T).T @ p["a"]) @ p["b"]
    assert kinds(fn, P, X) == ["constant_map", "dense", "dense"]
    assert marked(first(), fn, P, X) == ["a"]
    dense = lambda p, x: relu((ADJACENCY @ x.T).T @ p["a"]) @ p["b"]
    found, expected = (lrp_jax.lrp(f, composites.epsilon_plus_flat())(P, X, target=1) for f in (fn, dense))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
