"""The table of primitives: for each row, a function that uses the primitive, and whether the row is true of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import sparse

import lrp_jax
from lrp_jax import rules
from lrp_jax.core import primitives
from lrp_jax.core.graph import reader, run
from lrp_jax.core.primitives import PRIMITIVES, Trait
from lrp_jax.core.trace import trace
from lrp_jax.recognize.bounds import bounds_of

W = np.eye(4)
SPARSE = sparse.BCOO.fromdense(jnp.asarray(W))
X = np.random.default_rng(0).uniform(0.1, 0.9, size=(2, 4))
POOL = {"window_dimensions": (1, 2), "window_strides": (1, 2), "padding": "VALID"}

# From the name of a primitive to a function of x (2, 4) in (0, 1) that uses it. 0.5 is subtracted from x where signs
# matter, so that operands have both signs.
FUNCTIONS = {
    "dot_general": lambda x: x @ W,
    "conv_general_dilated": lambda x: lax.conv(x[:, None], np.ones((1, 1, 2)), (1,), "VALID"),
    "bcoo_dot_general": lambda x: SPARSE @ x.T,
    "bcsr_dot_general": lambda x: sparse.BCSR.from_bcoo(SPARSE) @ x.T,
    "ragged_dot_general": lambda x: lax.ragged_dot(x, np.stack([W, W]), np.array([1, 1])),
    "reduce_sum": lambda x: x.sum(1),
    "cumsum": lambda x: lax.cumsum(x, 1),
    "reduce_window_sum": lambda x: lax.reduce_window(x, 0.0, lax.add, **POOL),
    "reduce_max": lambda x: x.max(1),
    "reduce_min": lambda x: x.min(1),
    "reduce_window_max": lambda x: lax.reduce_window(x, -np.inf, lax.max, **POOL),
    "reduce_window_min": lambda x: lax.reduce_window(x - 0.5, np.inf, lax.min, **POOL),
    "scatter-add": lambda x: jnp.zeros((2, 3)).at[:, np.array([0, 0, 2, 2])].add(x),
    "scatter-max": lambda x: jnp.zeros((2, 3)).at[:, np.array([0, 0, 2, 2])].max(x - 0.5),
    "scatter-min": lambda x: jnp.zeros((2, 3)).at[:, np.array([0, 0, 2, 2])].min(x - 0.5),
    "cummax": lambda x: lax.cummax(x - 0.5, 1),
    "cummin": lambda x: lax.cummin(x - 0.5, 1),
    "top_k": lambda x: lax.top_k(x - 0.5, 2)[0],
    "approx_top_k": lambda x: lax.approx_max_k(x - 0.5, 2)[0],
    "reshape": lambda x: lax.reshape(x, (8,)),
    "squeeze": lambda x: lax.squeeze(x[:1], (0,)),
    "transpose": lambda x: x.T,
    "convert_element_type": lambda x: lax.convert_element_type(x, jnp.float32),
    "broadcast_in_dim": lambda x: jnp.broadcast_to(x, (3, 2, 4)),
    "pad": lambda x: jnp.pad(x, 1),
    "concatenate": lambda x: jnp.concatenate([x, x]),
    "slice": lambda x: x[:, 1:3],
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (0, 1), (2, 2)),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice(x, x[:, :2], (0, 1)),
    "rev": lambda x: x[:, ::-1],
    "split": lambda x: jnp.split(x, 2, 1)[0],
    "gather": lambda x: x[:, np.array([2, 0])],
    "scatter": lambda x: x.at[:, np.array([2, 0])].set(x[:, :2]),
    "device_put": lambda x: jax.device_put(x),
    "optimization_barrier": lambda x: lax.optimization_barrier(x),
    "name": lambda x: checkpoint_name(x, "here"),
    "reduce_precision": lambda x: lax.reduce_precision(x, 8, 10),
    "select_n": lambda x: jnp.where(np.arange(4) > 1, x, 0.0),
    "max": lambda x: jnp.maximum(x - 0.5, x[:, ::-1] - 0.5),
    "min": lambda x: jnp.minimum(x - 0.5, x[:, ::-1] - 0.5),
    "clamp": lambda x: lax.clamp(0.2, x, 0.6),
    "add": lambda x: x + x[:, ::-1],
    "sub": lambda x: x - x[:, ::-1],
    "neg": lambda x: -x,
    "mul": lambda x: 2.0 * (x - 0.5),
    "div": lambda x: (x - 0.5) / 2.0,
    "abs": lambda x: jnp.abs(x - 0.5),
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "logistic": lambda x: jax.nn.sigmoid(x - 0.5),
    "tanh": lambda x: jnp.tanh(x - 0.5),
    "erf": lambda x: lax.erf(x - 0.5),
    "erfc": lambda x: lax.erfc(x - 0.5),
    "erf_inv": lambda x: lax.erf_inv(x - 0.5),
    "lgamma": lax.lgamma,
    "digamma": lax.digamma,
    "polygamma": lambda x: lax.polygamma(jnp.full_like(x, 2.0), x),
    "igamma": lambda x: lax.igamma(jnp.full_like(x, 2.0), x),
    "igammac": lambda x: lax.igammac(jnp.full_like(x, 2.0), x),
    "regularized_incomplete_beta": lambda x: lax.betainc(jnp.full_like(x, 2.0), jnp.full_like(x, 3.0), x),
    "zeta": lambda x: lax.zeta(2 + x, jnp.full_like(x, 2.0)),
    "bessel_i0e": lax.bessel_i0e,
    "bessel_i1e": lambda x: lax.bessel_i1e(x - 0.5),
    "atan2": lambda x: lax.atan2(x - 0.5, jnp.full_like(x, 0.3)),
    "rem": lambda x: lax.rem(x - 0.5, jnp.full_like(x, 0.3)),
    "nextafter": lambda x: lax.nextafter(x, jnp.full_like(x, 2.0)),
    "sin": lambda x: jnp.sin(9 * x),
    "cos": lambda x: jnp.cos(9 * x),
    "tan": jnp.tan,
    "asin": lax.asin,
    "acos": lax.acos,
    "atan": lax.atan,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "asinh": lax.asinh,
    "acosh": lambda x: lax.acosh(1 + x),
    "atanh": lax.atanh,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "cbrt": jnp.cbrt,
    "square": lambda x: lax.square(x - 0.5),
    "integer_pow": lambda x: lax.integer_pow(x - 0.5, 3),
    "pow": lambda x: x**1.5,
    "floor": lambda x: jnp.floor(4 * x),
    "ceil": lambda x: jnp.ceil(4 * x),
    "round": lambda x: jnp.round(4 * x),
    "sign": lambda x: jnp.sign(x - 0.5),
    "stop_gradient": lambda x: x * lax.stop_gradient(x),
    **{
        name: lambda x, f=f: x * f(x, 0.5)
        for name, f in {
            "gt": lax.gt, "lt": lax.lt, "ge": lax.ge, "le": lax.le, "eq": lax.eq, "ne": lax.ne,
        }.items()
    },
    "and": lambda x: x * ((x > 0.2) & (x < 0.6)),
    "or": lambda x: x * ((x < 0.2) | (x > 0.6)),
    "xor": lambda x: x * ((x > 0.2) ^ (x > 0.6)),
    "not": lambda x: x * ~(x > 0.5),
    "is_finite": lambda x: x * jnp.isfinite(x),
    "cond": lambda x: lax.cond(np.bool_(True), jnp.sin, jnp.cos, x),
    "jit": lambda x: jax.jit(lambda x: x @ W)(x),
    "remat2": lambda x: jax.checkpoint(lambda x: x @ W)(x),
    "custom_jvp_call": jax.nn.relu,
}  # fmt: skip

# Of other versions of JAX, or made by transformations only
ELSEWHERE = {
    "pjit", "closed_call", "core_call", "remat", "checkpoint", "custom_vjp_call", "copy_p", "expand_dims", "stack",
    "tile", "unstack", "select_if_vmap", "sharding_constraint", "pvary", "pcast", "add_any", "while", "copy",
}  # fmt: skip


def test_every_row_has_a_function():
    assert FUNCTIONS.keys() | ELSEWHERE == PRIMITIVES.keys()


def ops_of(name):
    graph = trace(lambda x: jnp.asarray(FUNCTIONS[name](x)), X, ())
    return graph, [op for op in graph.ops if op.name == name]


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("name", [n for n in FUNCTIONS if not PRIMITIVES[n].body and n != "cond"])
def test_rows_are_true(name):
    row = PRIMITIVES[name]
    graph, ops = ops_of(name)
    if name in ("device_put", "optimization_barrier") and not ops:
        pytest.skip(f"this JAX leaves {name} out")
    assert ops, f"the function does not use {name}: {[op.name for op in graph.ops]}"
    env = run(graph.ops, {graph.inputs[0]: X})
    for value, (low, high) in bounds_of(graph, ()).items():
        found = np.asarray(reader(env)(value))
        assert np.all((found >= low) & (found <= high)), f"{found} is not between {low} and {high}"
    op = ops[-1]
    if row.traits & Trait.DECISION:
        assert not op.live
    if row.traits & (Trait.CONTRACTION | Trait.SPARSE):
        assert graph.weights
    kinds = {step.kind for step in lrp_jax.plan(lambda x: jnp.asarray(FUNCTIONS[name](x)), rules.Zero())(X).steps}
    if row.traits & Trait.MOVE:
        assert name in kinds
    if row.traits & (Trait.PIECEWISE | Trait.SMOOTH) and not row.traits & Trait.CHOICE:
        assert kinds >= {"activation"}
    if op.live and op.is_linear:
        assert_linear(op, [reader(env)(v) for v in op.inputs])


def assert_linear(op, operands):
    """f(u + v) - f(u) = f(v) - f(0) in all live operands together."""
    live = [v.live for v in op.inputs]
    rng = np.random.default_rng(1)
    u, v = ([rng.normal(size=np.shape(x)).astype(x.dtype) if on else x for x, on in zip(operands, live, strict=True)]
            for _ in range(2))  # fmt: skip
    of = lambda f: np.asarray(op.of(*(f(a, b) if on else a for a, b, on in zip(u, v, live, strict=True))), np.float64)
    both, first, second, none = of(np.add), of(lambda a, b: a), of(lambda a, b: b), of(lambda a, b: 0 * a)
    tolerance = 1e-2 if op.name == "reduce_precision" else 1e-6
    np.testing.assert_allclose(both - first, second - none, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if PRIMITIVES[name].body])
def test_calls_are_replaced_by_their_body(name):
    names = [op.name for op in ops_of(name)[0].ops]
    assert name not in names
    assert names[-1] in ("dot_general", "max")


def test_a_primitive_without_a_row_is_an_error_where_relevance_passes():
    assert primitives.primitive("sort") == primitives.Primitive()
    with pytest.raises(lrp_jax.UncoveredOpError, match="`sort`"):
        lrp_jax.plan(lambda x: jnp.sort(x), rules.Zero())(X)
