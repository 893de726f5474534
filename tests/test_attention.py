"""Attention as a whole: kernels, and functions marked by `custom_attention`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import kind

RNG = np.random.default_rng(0)
T, WIDTH, HEADS = 8, 16, 2
SIZE = WIDTH // HEADS
P = {name: jnp.asarray(RNG.normal(size=(WIDTH, WIDTH)) / 4) for name in "qkvo"}
P["head"] = jnp.asarray(RNG.normal(size=(WIDTH, 5)))
X = jnp.asarray(RNG.normal(size=(T, WIDTH)))
CAUSAL = np.tril(np.ones((T, T), bool))
COMPOSITES = {"attn_lrp": composites.attn_lrp(), "cp_lrp": composites.cp_lrp()}


def plain(q, k, v):
    """Two matrix products and a softmax between them."""
    scores = jnp.einsum("qhd,khd->hqk", q, k) / np.sqrt(SIZE)
    return jnp.einsum("hqk,khd->qhd", jax.nn.softmax(jnp.where(CAUSAL[None], scores, -jnp.inf), -1), v)


def in_blocks(q, k, v, size=4):
    """The same, with the softmax in blocks of keys, as flash attention computes it."""

    def block(carry, row):
        high, total, out = carry
        keys, values, first = row
        scores = jnp.einsum("qhd,khd->hqk", q, keys) / np.sqrt(SIZE)
        scores = jnp.where(np.arange(T)[:, None] >= (first + np.arange(size))[None], scores, -1e30)
        higher = jnp.maximum(high, scores.max(-1))
        shares, scale = jnp.exp(scores - higher[..., None]), jnp.exp(high - higher)
        out = out * scale[..., None] + jnp.einsum("hqk,khd->hqd", shares, values)
        return (higher, total * scale + shares.sum(-1), out), None

    start = jnp.full((HEADS, T), -1e30), jnp.zeros((HEADS, T)), jnp.zeros((HEADS, T, SIZE))
    rows = *(a.reshape(T // size, size, HEADS, SIZE) for a in (k, v)), np.arange(0, T, size)
    (_, total, out), _ = jax.lax.scan(block, start, rows)
    return (out / total[..., None]).swapaxes(0, 1)


marked = lrp_jax.custom_attention()(in_blocks)


def network(attention, params, x):
    """One layer of attention with a residual connection, and a head at the last token."""
    q, k, v = ((x @ params[name]).reshape(T, HEADS, SIZE) for name in "qkv")
    x = x + attention(q, k, v).reshape(T, WIDTH) @ params["o"]
    return x[-1] @ params["head"]


def with_attention(attention):
    return lambda params, x: network(attention, params, x)


def closed_over(q, k, v):
    """The queries are no argument of the marked function."""
    return lrp_jax.custom_attention(values=1)(lambda k, v: in_blocks(q, k, v))(k, v)


def in_a_loop(q, k, v):
    """Each half of the keys' features scaled in a loop; the first iteration is the attention."""
    return jax.lax.scan(
        lambda out, scale: (out + marked(q, k, v) * scale, None), jnp.zeros_like(v), jnp.array([0.7, 0.3])
    )[0]


def by_example(q, k, v):
    return jax.vmap(marked)(q[None], k[None], v[None])[0]


def by_name(q, k, v):
    """The values come first, in a tree."""
    fn = lrp_jax.custom_attention(values=0, name="mine")(lambda v, qk: in_blocks(qk["q"], qk["k"], v["values"]))
    return fn({"values": v}, {"q": q, "k": k})


@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
@pytest.mark.parametrize("attention", [marked, closed_over, in_a_loop, by_example, by_name], ids=lambda f: f.__name__)
def test_a_marked_attention_has_the_relevance_of_the_plain_form(attention, composite):
    expected = lrp_jax.lrp(with_attention(plain), composite)(P, X, target=1)
    found = lrp_jax.lrp(with_attention(attention), composite)(P, X, target=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_a_marked_attention_is_unchanged_outside_lrp():
    np.testing.assert_allclose(network(marked, P, X), network(plain, P, X), rtol=1e-12)
    slopes = [jax.grad(lambda x, f=f: network(f, P, x)[1])(X) for f in (marked, plain)]
    np.testing.assert_allclose(*slopes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("live", ["q", "k", "v", "qk", "qv", "kv"])
def test_some_arguments_of_a_marked_attention_may_be_constant(live):
    def of(attention):
        def fn(params, x, other):
            q, k, v = (((x if name in live else other) @ params[name]).reshape(T, HEADS, SIZE) for name in "qkv")
            return attention(q, k, v).reshape(T, WIDTH)[-1] @ params["head"]

        return lrp_jax.lrp(fn, [(kind("dense", "constant_map"), rules.Epsilon(0.0))], argnums=1)

    other = jnp.asarray(RNG.normal(size=X.shape))
    expected = of(plain)(P, X, other, target=1)
    np.testing.assert_allclose(of(marked)(P, X, other, target=1), expected, rtol=1e-9, atol=1e-13)


def test_the_ledger_of_a_marked_attention_balances():
    fn = lambda params, x: jax.vmap(with_attention(marked), (None, 0))(params, x)
    ledger = lrp_jax.conservation(fn, COMPOSITES["attn_lrp"])(P, X[None], target=1)
    assert ledger.balanced, str(ledger)


def test_the_plan_names_a_marked_attention():
    (step,) = (s for s in lrp_jax.plan(with_attention(by_name), COMPOSITES["attn_lrp"])(P, X).steps if s.op == "mine")
    assert (step.kind, step.rule) == ("attention", rules.Uniform())
    assert len(step.inputs) == 3


def test_derivatives_of_relevance_pass_a_marked_attention():
    score = lambda fn: jax.grad(lambda x: (lrp_jax.lrp(fn, COMPOSITES["attn_lrp"])(P, x, target=1) ** 2).sum())(X)
    np.testing.assert_allclose(score(with_attention(marked)), score(with_attention(plain)), rtol=1e-7, atol=1e-9)


def test_an_unmarked_attention_in_blocks_is_refused_with_the_way_out():
    with pytest.raises(lrp_jax.UncoveredOpError, match=r"attention that is computed in blocks .*custom_attention"):
        lrp_jax.plan(with_attention(in_blocks), COMPOSITES["attn_lrp"])(P, X)


def test_faults_of_marks_are_named():
    with pytest.raises(TypeError, match=r"write @lrp_jax.custom_attention.. with parentheses"):
        lrp_jax.custom_attention()(None)
    with pytest.raises(TypeError, match="argument 2 contains the values; got 1"):
        marked(X)
    fn = lrp_jax.custom_attention(values=3)(lambda a, b, c, v: a * b * c * v)
    with pytest.raises(ValueError, match=r"do not depend on the explained input, but 3 other"):
        lrp_jax.plan(lambda x: fn(x, 2 * x, 3 * x, jnp.ones_like(x)), [])(X)


def kernel(interpret=True):
    attention = pytest.importorskip("jax.experimental.pallas.ops.gpu.attention")
    sizes = attention.BlockSizes(
        **dict.fromkeys(("block_q", "block_k", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), 16)
    )

    def fn(q, k, v):
        return attention.mha(
            q, k, v, None, sm_scale=1 / np.sqrt(16), causal=True, interpret=interpret, block_sizes=sizes
        )

    return fn


def cudnn(monkeypatch):
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)  # the function is traced, and does not run
    monkeypatch.setattr(fused, "check_compute_capability", lambda *_: True)
    return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation="cudnn", is_causal=True)


def flash(monkeypatch):
    attention = pytest.importorskip("jax.experimental.pallas.ops.tpu.flash_attention")
    return lambda *arrays: attention.flash_attention(*(a.swapaxes(1, 2) for a in arrays), causal=True).swapaxes(1, 2)


def splash(monkeypatch):
    package = "jax.experimental.pallas.ops.tpu.splash_attention"
    make = pytest.importorskip(f"{package}.splash_attention_kernel").make_splash_mha
    masks = pytest.importorskip(f"{package}.splash_attention_mask")
    kernel = make(masks.MultiHeadMask([masks.CausalMask((128, 128))] * 2), head_shards=1, q_seq_shards=1)
    return lambda *arrays: jax.vmap(kernel)(*(a.swapaxes(1, 2) for a in arrays)).swapaxes(1, 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [cudnn, flash, splash], ids=lambda f: f.__name__)
def test_kernels_for_accelerators_are_one_attention(make, monkeypatch):
    attention = make(monkeypatch)

    def fn(params, x):
        q, k, v = ((x @ params[name]).reshape(2, 128, 2, 128) for name in "qkv")
        return (attention(q, k, v).reshape(x.shape) @ params["o"])[:, -1]

    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.bfloat16)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        plan = lrp_jax.plan(fn, COMPOSITES["attn_lrp"])({name: shape(256, 256) for name in "qkvo"}, shape(2, 128, 256))
    (step,) = (step for step in plan.steps if step.kind == "attention")
    maker = {value: step for step in plan.steps for value in step.outputs}

    def layer_before(value):
        return maker[value].name or layer_before(maker[value].inputs[0])

    assert list(map(layer_before, step.inputs)) == ["v", "q", "k"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
def test_a_kernel_of_pallas_has_the_relevance_of_the_plain_form(composite):
    params = {name: jnp.asarray(RNG.normal(size=(32, 32)) / 6, jnp.float32) for name in "qkvo"}
    x = jnp.asarray(RNG.normal(size=(2, 16, 32)), jnp.float32)

    def of(attention):
        def fn(params, x):
            q, k, v = ((x @ params[name]).reshape(2, 16, 2, 16) for name in "qkv")
            return (attention(q, k, v).reshape(x.shape) @ params["o"])[:, -1]

        return lrp_jax.lrp(fn, composite)(params, x, target=1)

    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = of(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True))
        np.testing.assert_allclose(of(kernel()), expected, rtol=1e-3, atol=1e-5)
