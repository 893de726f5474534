"""Products of a value and a factor that is computed from it; MambaLRP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import composites
from lrp_jax.composites import kind

RNG = np.random.default_rng(0)
LENGTH, WIDTH, INNER, STATE, RANK, WINDOW = 5, 6, 8, 3, 2, 3


def weight(*shape):
    return jnp.asarray(RNG.normal(size=shape) / np.sqrt(shape[0]))


P = {
    "scale": weight(WIDTH), "in": weight(WIDTH, 2 * INNER), "conv": weight(WINDOW, 1, INNER),
    "conv_bias": weight(INNER),
    "from_u": weight(INNER, RANK + 2 * STATE), "dt": weight(RANK, INNER), "dt_bias": weight(INNER),
    "A_log": jnp.log(jnp.tile(jnp.arange(1.0, STATE + 1)[None], (INNER, 1))), "D": weight(INNER),
    "out": weight(INNER, WIDTH), "head": weight(WIDTH, 4),
}  # fmt: skip
X = jnp.asarray(RNG.normal(size=(2, LENGTH, WIDTH)))


def zero_state(u):
    return jnp.zeros((u.shape[0], INNER, STATE))


def by_time(*arrays):
    return tuple(a.swapaxes(0, 1) for a in arrays)


def products_before_the_scan(dt, A, B, C, u):
    decay = jnp.exp(dt[..., None] * A[None, None])
    added = jnp.einsum("bld,bln,bld->bldn", dt, B, u)

    def step(h, row):
        decay, added, C = row
        h = decay * h + added
        return h, jnp.einsum("bdn,bn->bd", h, C)

    return jax.lax.scan(step, zero_state(u), by_time(decay, added, C))[1].swapaxes(0, 1)


def products_in_the_scan(dt, A, B, C, u):
    def step(h, row):
        dt, B, C, u = row
        h = jnp.exp(dt[..., None] * A[None]) * h + (dt * u)[..., None] * B[:, None]
        return h, (C[:, None] * h).sum(-1)

    return jax.lax.scan(step, zero_state(u), by_time(dt, B, C, u))[1].swapaxes(0, 1)


def associative_scan(dt, A, B, C, u):
    decay, added = jnp.exp(dt[..., None] * A[None, None]), B[:, :, None] * (u * dt)[..., None]
    combine = lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1])
    h = jax.lax.associative_scan(combine, (decay, added), axis=1)[1]
    return jnp.einsum("bldn,bln->bld", h, C)


def python_loop(dt, A, B, C, u):
    h, found = zero_state(u), []
    for t in range(u.shape[1]):
        h = h * jnp.exp(dt[:, t, :, None] * A[None]) + B[:, t, None] * dt[:, t, :, None] * u[:, t, :, None]
        found.append((h @ C[:, t, :, None])[..., 0])
    return jnp.stack(found, 1)


def one_example(*arrays):
    """The scan of one example, under a vmap."""

    def of_one(dt, A, B, C, u):
        return products_in_the_scan(dt[None], A, B[None], C[None], u[None])[0]

    return jax.vmap(of_one, (0, None, 0, 0, 0))(*arrays)


marked = lrp_jax.custom_attention(values=4)(products_before_the_scan)
SCANS = [products_before_the_scan, products_in_the_scan, associative_scan, python_loop, one_example, marked]


def mamba(scan, *, constant=lambda x: x, product=jnp.multiply, silu=jax.nn.silu):
    """Two blocks of Mamba and a head. With the other functions, gradient x input is MambaLRP."""

    def block(p, x):
        n = x / constant(jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)) * p["scale"]
        u, z = jnp.split(n @ p["in"], 2, -1)
        u = jnp.pad(u, ((0, 0), (WINDOW - 1, 0), (0, 0)))
        layout = ("NWC", "WIO", "NWC")
        u = jax.lax.conv_general_dilated(
            u, p["conv"], (1,), "VALID", dimension_numbers=layout, feature_group_count=INNER
        )
        u = silu(u + p["conv_bias"])
        dt, B, C = jnp.split(u @ p["from_u"], [RANK, RANK + STATE], -1)
        dt = jax.nn.softplus(dt @ p["dt"] + p["dt_bias"])
        y = scan(constant(dt), -jnp.exp(p["A_log"]), constant(B), constant(C), u) + u * p["D"]
        return x + product(y, silu(z)) @ p["out"]

    return lambda p, x: block(p, block(p, x))[:, -1] @ p["head"]


@pytest.fixture(scope="module", autouse=True)
def rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def gradient_times_input(rank_promotion):
    """MambaLRP as its paper writes it: gradient x input of a network with the same values, parts of it detached."""
    detached = jax.lax.stop_gradient
    paper = mamba(
        products_before_the_scan,
        constant=detached,
        product=lambda a, b: 0.5 * a * b + detached(0.5 * a * b),
        silu=lambda x: x * detached(jax.nn.sigmoid(x)),
    )
    return X * jax.grad(lambda x: paper(P, x)[:, 1].sum())(X)


@pytest.mark.parametrize("scan", SCANS, ids=lambda f: getattr(f, "__name__", "marked"))
def test_mamba_lrp_is_that_of_its_paper(scan, gradient_times_input):
    found = lrp_jax.lrp(mamba(scan), composites.mamba_lrp())(P, X, target=1)
    np.testing.assert_allclose(found, gradient_times_input, rtol=1e-10, atol=1e-13)


def test_mamba_lrp_conserves_relevance_without_biases():
    params = P | {"conv_bias": jnp.zeros(INNER), "dt_bias": jnp.zeros(INNER)}
    fn = mamba(products_in_the_scan)
    R = lrp_jax.lrp(fn, composites.mamba_lrp())(params, X, target=1)
    np.testing.assert_allclose(R.sum((1, 2)), fn(params, X)[:, 1], rtol=1e-9)


def kinds(fn, *shapes):
    ones = [jnp.ones(s) for s in shapes]
    plan = lrp_jax.plan(fn, composites.attn_lrp())({"w": jnp.ones((4, 4)), "v": jnp.ones((4, 4))}, *ones)
    return [step.kind for step in plan.nested if step.kind in ("modulation", "product", "matmul", "gate")]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda p, x: x * jnp.tanh(x @ p["w"]), "modulation"),
        (lambda p, x: (x @ p["w"]).reshape(2, 2, 2) * (2 * x.reshape(2, 2, 2)), "modulation"),
        (lambda p, x: (lambda h: (h @ p["v"]) * h)(x @ p["w"]), "modulation"),
        (lambda p, x: (x @ p["w"]) * (x @ p["v"]), "product"),
        (lambda p, x: jax.nn.silu(x @ p["w"]) * (x @ p["v"]), "product"),
        (lambda p, x: (lambda a, b: a * jax.nn.silu(b))(*jnp.split(x @ p["w"], 2, -1)), "product"),
        (lambda p, x: x * jax.nn.sigmoid(x @ p["w"]), "gate"),
    ],
)  # fmt: skip
def test_modulations_are_products_of_a_value_and_what_is_computed_from_it(fn, expected):
    assert kinds(fn, (2, 4)) == [expected]


def test_rules_of_the_signal_fit_a_modulation():
    rule = lrp_jax.rules.SignalTakesAll()
    fn = lambda p, x: (x * (x @ p["w"])).sum(-1, keepdims=True)
    x = jnp.asarray(RNG.normal(size=(2, WIDTH)))
    p = {"w": weight(WIDTH, WIDTH)}
    np.testing.assert_allclose(lrp_jax.lrp(fn, [(kind("modulation"), rule)])(p, x, target=0), x * (x @ p["w"]))
