"""Models of other packages: stax, Penzai, Objax, NumPyro, distrax."""

import jax
import jax.numpy as jnp
import numpy as np

from public.common import Model, named, normal


def _stax(name: str) -> Model:
    """Networks of `jax.example_libraries.stax`."""
    from jax.example_libraries import stax

    if name == "ResNet block":
        main = stax.serial(stax.Conv(4, (3, 3), padding="SAME"), stax.Relu, stax.Conv(4, (3, 3), padding="SAME"))
        block = stax.serial(stax.FanOut(2), stax.parallel(main, stax.Identity), stax.FanInSum, stax.Relu)
        net = stax.serial(stax.Conv(4, (3, 3)), block, stax.MaxPool((2, 2)), stax.Flatten, stax.Dense(3))
        counts = {"conv": 3, "dense": 1}
    else:
        net = stax.serial(
            stax.Conv(4, (3, 3)), stax.Relu, stax.AvgPool((2, 2)), stax.Flatten, stax.Dense(8), stax.Gelu, stax.Dense(3)
        )
        counts = {"conv": 1, "dense": 2}
    init, apply = net
    _, params = init(jax.random.key(0), (1, 8, 8, 2))
    return Model(apply, params, normal(1, 8, 8, 2), expected=counts)


def _neural_tangents(name: str) -> Model:
    from neural_tangents import stax

    if name == "attention":
        net = stax.serial(
            stax.Dense(8), stax.GlobalSelfAttention(8, 4, 4, 2), stax.LayerNorm(), stax.GlobalAvgPool(), stax.Dense(3)
        )
        counts, shape = {"dense": 6, "normalization": 1, "softmax": 1}, (2, 5, 6)
    else:
        net = stax.serial(stax.Conv(4, (3, 3)), stax.Erf(), stax.AvgPool((2, 2)), stax.Flatten(), stax.Dense(3))
        counts, shape = {"conv": 1, "dense": 1}, (2, 8, 8, 2)
    init, apply, _ = net
    _, params = init(jax.random.PRNGKey(0), shape)
    return Model(apply, params, normal(*shape), expected=counts)


def _penzai(name: str) -> Model:
    from penzai import pz

    if name == "MLP":
        from penzai.models import simple_mlp

        model = simple_mlp.MLP.from_config(name="mlp", init_base_rng=jax.random.key(0), feature_sizes=[6, 8, 3])
        params, call = _penzai_split(model)
        fn = lambda p, x: call(p, pz.nx.wrap(x, "batch", "features")).unwrap("batch", "features")
        return Model(fn, params, normal(2, 6), expected={"dense": 2}, float64=False)
    if name == "GPT-NeoX":
        from penzai.models.transformer.variants import gpt_neox

        config = gpt_neox.GPTNeoXTransformerConfig(
            num_attention_heads=2,
            embedding_dim=8,
            projection_dim=4,
            mlp_hidden_dim=16,
            num_decoder_blocks=2,
            vocab_size=12,
            activation_fn="gelu_exact",
            rope_subset_size=2,
            rope_wavelength=10000.0,
            layernorm_epsilon=1e-5,
            parameter_dtype=jnp.float32,
            activation_dtype=jnp.float32,
        )
        model = gpt_neox.build_gpt_neox_transformer(config, jax.random.key(0))
        counts = {"dense": 13, "normalization": 5, "softmax": 2}
    else:
        from penzai.models.transformer.variants import llamalike_common as common

        config = common.LlamalikeTransformerConfig(
            num_kv_heads=1,
            query_head_multiplier=2,
            embedding_dim=8,
            projection_dim=4,
            mlp_hidden_dim=16,
            num_decoder_blocks=2,
            vocab_size=12,
            mlp_variant="swiglu",
            tie_embedder_and_logits=False,
            rope_wavelength=10000.0,
            rms_norm_eps=1e-6,
            attention_type=common.AttentionTypeGlobalCausal(),
            parameter_dtype=jnp.float32,
            activation_dtype=jnp.float32,
        )
        model = common.build_llamalike_transformer(config, jax.random.key(0))
        counts = {"dense": 15, "normalization": 5, "softmax": 2}
    given = _given()
    tokens = pz.nx.wrap(np.arange(5)[None], "batch", "seq")
    positions = pz.nx.wrap(np.arange(5), "seq")
    body = pz.select(model).at_instances_of(pz.nn.EmbeddingLookup).apply(lambda _: given())
    params, call = _penzai_split(body)

    def fn(params, x):
        given.rows = pz.nx.wrap(x, "batch", "seq", "embedding")
        return call(params, tokens, token_positions=positions).unwrap("batch", "seq", "vocabulary")[:, -1]

    return Model(fn, params, normal(1, 5, 8), expected=counts, float64=False)


def _given():
    from penzai import pz

    @pz.pytree_dataclass
    class Given(pz.nn.Layer):
        """A layer that returns the explained rows of the table of tokens."""

        def __call__(self, tokens, **_):
            return type(self).rows

    return Given


def _penzai_split(model):
    """The parameters of a Penzai model by name, and the function of them."""
    from penzai import pz

    unbound, variables = pz.unbind_params(model, freeze=True)
    values = {str(v.label): v.value for v in variables}
    labels = [v.label for v in variables]

    def call(params, *args, **kwargs):
        bound = [pz.ParameterValue(label=label, value=params[str(label)], metadata={}) for label in labels]
        return pz.bind_variables(unbound, bound)(*args, **kwargs)

    return values, call


def _distrax() -> Model:
    """The log-density of a RealNVP whose conditioners are Haiku MLPs, as in the examples of distrax."""
    import distrax
    import haiku as hk

    from public.haiku_models import haiku_model

    def network(x):
        mask = np.arange(4) % 2 == 0
        layers = []
        for i in range(2):

            def conditioner(h):
                return hk.Reshape((4, 2), preserve_dims=-1)(hk.nets.MLP([8, 8])(h))

            make = lambda p: distrax.ScalarAffine(shift=p[..., 0], log_scale=jnp.tanh(p[..., 1]))
            layers.append(distrax.MaskedCoupling(mask if i else ~mask, conditioner, make))
        base = distrax.MultivariateNormalDiag(np.zeros(4), np.ones(4))
        return distrax.Transformed(base, distrax.Inverse(distrax.Chain(layers))).log_prob(x)[:, None]

    return haiku_model(network, normal(2, 4))


def _numpyro(name: str) -> Model:
    from numpyro.nn import AutoregressiveNN, BlockNeuralAutoregressiveNN

    make = AutoregressiveNN if name == "AutoregressiveNN" else BlockNeuralAutoregressiveNN
    init, apply = make(4, [8, 8]) if name == "AutoregressiveNN" else make(4, (2, 2))
    _, params = init(jax.random.key(0), (4,))
    x = normal(2, 4)
    return Model(lambda p, x: apply(p, x)[0], params, x, expected={"dense": 3})


MODELS = (
    named("jax", _stax, "stax, CNN", "ResNet block")
    | named("neural-tangents", _neural_tangents, "CNN", "attention")
    | named("penzai", _penzai, "MLP", "GPT-NeoX", "Llama")
    | named("distrax", lambda name: _distrax(), "RealNVP")
    | named("numpyro", _numpyro, "AutoregressiveNN", "BlockNeuralAutoregressiveNN")
)
