"""Models written with Equinox: of its own layers, of Equimo, FlowJAX, Diffrax and others."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from public.common import Model, normal, with_package


def equinox_model(model: Any, x: Any, call: Callable | None = None, **more) -> Model:
    """An Equinox module as a function of its arrays. `call(model, x)` is by default the vmapped call."""
    import equinox as eqx

    model = eqx.nn.inference_mode(model)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    call = call or (lambda model, x: jax.vmap(model)(x))
    return Model(lambda arrays, x: call(eqx.combine(arrays, static), x), arrays, x, **more)


def _layers(name: str) -> Model:
    """Networks of the layers of Equinox, as its documentation writes them."""
    import equinox as eqx

    k = jax.random.split(jax.random.key(0), 8)
    nn = eqx.nn
    if name == "CNN":
        model = nn.Sequential(
            [
                nn.Conv2d(1, 3, 4, key=k[0]),
                nn.MaxPool2d(2),
                nn.Lambda(jax.nn.relu),
                nn.Lambda(jnp.ravel),
                nn.Linear(108, 8, key=k[1]),
                nn.Lambda(jax.nn.sigmoid),
                nn.Linear(8, 8, key=k[2]),
                nn.Lambda(jax.nn.relu),
                nn.Linear(8, 4, key=k[3]),
            ]
        )
        return equinox_model(model, normal(2, 1, 10, 10))
    if name == "norms and pools":
        model = nn.Sequential(
            [
                nn.Conv2d(2, 4, 3, padding=1, key=k[0]),
                nn.GroupNorm(2, 4),
                nn.Lambda(nn.PReLU(0.1)),
                nn.AdaptiveAvgPool2d(3),
                nn.ConvTranspose2d(4, 4, 2, 2, key=k[1]),
                nn.AvgPool2d(2, 2),
                nn.Lambda(jnp.ravel),
                nn.RMSNorm(36),
                nn.LayerNorm(36),
                nn.Linear(36, 3, key=k[2]),
            ]
        )
        return equinox_model(model, normal(2, 2, 8, 8))
    if name == "BatchNorm, SpectralNorm, WeightNorm":
        model, state = nn.make_with_state(_Stateful)(k)
        return equinox_model((model, state), normal(2, 2, 8, 8), _stateful_call)
    if name in ("GRU, scan", "LSTM, scan"):
        cell = nn.GRUCell(3, 4, key=k[0]) if "GRU" in name else nn.LSTMCell(3, 4, key=k[0])
        return equinox_model((cell, nn.Linear(4, 3, key=k[1])), normal(2, 4, 3), _rnn, more={"dense": 7})
    if name == "MultiheadAttention, rotary":
        model = nn.MultiheadAttention(2, 8, key=k[0]), nn.RotaryPositionalEmbedding(4), nn.Linear(8, 3, key=k[1])
        return equinox_model(model, normal(2, 5, 8), _attention)
    assert name == "MLP"
    return equinox_model(nn.MLP(6, 3, 8, 2, key=k[0]), normal(2, 6))


def _rnn(model, x):
    import equinox as eqx

    cell, linear = model
    is_lstm = isinstance(cell, eqx.nn.LSTMCell)

    def one(x):
        zeros = jnp.zeros(4, x.dtype)
        state, _ = jax.lax.scan(lambda h, x: (cell(x, h), None), (zeros, zeros) if is_lstm else zeros, x)
        return linear(state[0] if is_lstm else state)

    return jax.vmap(one)(x)


def _attention(model, x):
    attention, rotary, linear = model

    def heads(q, k, v):
        turn = jax.vmap(rotary, 1, 1)
        return turn(q), turn(k), v

    return jax.vmap(lambda x: linear(attention(x, x, x, process_heads=heads).mean(0)))(x)


def _stateful(k):
    import equinox as eqx

    nn = eqx.nn
    return nn.Sequential(
        [
            nn.Conv2d(2, 4, 3, key=k[0]),
            nn.BatchNorm(4, "batch", mode="ema"),
            nn.Lambda(jax.nn.relu),
            nn.Lambda(jnp.ravel),
            nn.WeightNorm(nn.Linear(144, 8, key=k[1])),
            nn.Lambda(jax.nn.relu),
            nn.SpectralNorm(nn.Linear(8, 3, key=k[2]), "weight", key=k[3]),
        ]
    )


_Stateful = _stateful


def _stateful_call(model_and_state, x):
    model, state = model_and_state
    return jax.vmap(lambda x: model(x, state)[0], axis_name="batch")(x)


def _equimo(name: str, size: int = 32, more=None, **options) -> Model:
    """An Equimo model; Equimo needs a key for each call, which inference does not use."""
    import equimo.vision.models as models

    key = jax.random.PRNGKey(0)
    model = getattr(models, name)(key=key, num_classes=3, **options)
    return equinox_model(
        model,
        normal(1, 3, size, size),
        lambda m, x: jax.vmap(lambda x: m(x, key=key))(x),
        more=more or {},
        float64=False,
    )


IMAGE = {"img_size": 32, "in_channels": 3}
# The blocks of Mlla drop the result of their attention. Two recurrences of VisionParcae are behind a stop_gradient. The
# attention of ReduceFormer divides by a sum of its own weights.
EQUIMO = {
    "VisionTransformer": IMAGE | {"dim": 8, "patch_size": 8, "num_heads": 2, "depths": [2]},
    "ConvNeXt": {"in_channels": 3, "depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8], "size": 64},
    "AttNet": {"in_channels": 3, "dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "size": 224},
    "mobilenetv3_small": {"in_channels": 3},
    "LowFormer": {
        "in_channels": 3,
        "widths": [4, 8, 8, 16, 16],
        "depths": [0, 1, 1, 1, 1],
        "att_strides": [2, 2, 1, 1, 1],
        "block_types": ["conv", "conv", "conv", "attention", "attention"],
        "attention_type": "softmax",
        "size": 64,
    },
    "ReduceFormer": {
        "in_channels": 3,
        "widths": [8, 8, 8, 16, 16],
        "depths": [1, 1, 1, 1, 1],
        "head_dim": 8,
        "block_types": ["conv", "conv", "conv", "attention", "attention"],
        "size": 64,
        "more": {"normalization": 2},
    },
    "SHViT": {
        "in_channels": 3,
        "dim": [16, 16, 16],
        "pdim": [8, 8, 8],
        "qk_dim": [4, 4, 4],
        "depths": [1, 1, 1],
        "block_type": ["s", "s", "s"],
        "size": 64,
    },
    "Mlla": IMAGE | {"dim": 8, "depths": [1, 1], "num_heads": [2, 2], "more": {"dense": -4, "conv": -4}},
    "Vssd": IMAGE
    | {"dim": 16, "depths": [1, 1], "num_heads": [2, 2], "attentions_layers": ("mamba2mixer", "attention")},
    "FasterViT": {
        "img_size": 64,
        "in_channels": 3,
        "dim": 8,
        "in_dim": 8,
        "num_heads": [1, 1, 2, 2],
        "hat": [False, False, True, False],
        "depths": [1, 1, 1, 1],
        "window_size": [7, 7, 2, 2],
        "ct_size": 1,
        "size": 64,
    },
    "iformer_t": {"in_channels": 3, "size": 64},
    "PartialFormer": {
        "img_size": 64,
        "in_channels": 3,
        "dim": 16,
        "num_heads": [2, 2],
        "depths": [1, 1],
        "foreground_ratios": (0.5, 0.5),
        "patch_size": 4,
        "size": 64,
    },
    "VisionParcae": IMAGE
    | {
        "dim": 8,
        "patch_size": 8,
        "num_heads": 2,
        "n_layers_in_prelude": 1,
        "n_layers_in_recurrent_block": 1,
        "n_layers_in_coda": 1,
        "mean_recurrence": 2,
        "more": {"dense": -3, "normalization": -2, "softmax": -1},
    },
}


def _flow(name: str) -> Model:
    """The log-density of each example by a normalizing flow."""
    from flowjax import flows
    from flowjax.distributions import Normal

    options = {} if "triangular" in name or "planar" in name else {"nn_depth": 1}
    if "block" in name:
        options |= {"nn_block_dim": 4}
    elif options:
        options |= {"nn_width": 8}
    flow = getattr(flows, name)(jax.random.key(0), base_dist=Normal(jnp.zeros(3)), flow_layers=2, **options)

    def call(flow, x):
        from paramax import unwrap

        return unwrap(flow).log_prob(x)[..., None]

    products = {"planar_flow": 4, "block_neural_autoregressive_flow": 8}  # with bare parameters
    expected = {"dense": products[name]} if name in products else {}
    return equinox_model(flow, normal(2, 3), call, expected=expected)


def _neural_ode(solver: str, adaptive: bool) -> Model:
    """The neural ODE of Diffrax's documentation, with a linear output."""
    import diffrax
    import equinox as eqx

    k = jax.random.split(jax.random.key(0))
    model = eqx.nn.MLP(3, 3, 8, 1, jnp.tanh, key=k[0]), eqx.nn.Linear(3, 2, key=k[1])

    def call(model, x):
        field, linear = model

        def one(x):
            control = diffrax.PIDController(1e-3, 1e-6) if adaptive else diffrax.ConstantStepSize()
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, y, args: field(y)),
                getattr(diffrax, solver)(),
                0.0,
                1.0,
                0.25,
                x,
                stepsize_controller=control,
            )
            return linear(solution.ys[-1])

        return jax.vmap(one)(x)

    stages = {"Euler": 4, "Heun": 8, "Tsit5": 24}[solver]  # the output does not need the last stage of Tsit5
    return equinox_model(model, normal(2, 3), call, expected={"dense": 2 * stages + 1})


def _norax() -> Model:
    from norax.models import FNO

    model = FNO(jax.random.key(0), 2, 3, (3,), width=4, depth=2)
    return equinox_model(model, normal(2, 8, 2))


def _palm() -> Model:
    import equinox as eqx
    from palm_jax.palm import PaLM

    model = PaLM(num_tokens=12, dim=8, dim_head=4, depth=2, heads=2, key=jax.random.PRNGKey(0))

    def call(model, x):
        """Explains the table of tokens, which is also the last layer."""
        return eqx.tree_at(lambda m: m.embedding, model, x)(jnp.arange(5))[None, -1]

    return equinox_model(
        model, normal(12, 8), call, expected={"dense": 6, "normalization": 3, "softmax": 2}, float64=False
    )


def _dit() -> Model:
    from diffusionlab.models.dit import DiT

    model = DiT(
        input_dim=3,
        output_dim=3,
        hidden_dim=8,
        num_layers=2,
        num_heads=2,
        head_dim=4,
        mlp_dim=16,
        max_seq_len=5,
        time_emb_dim=8,
        cond_dim=8,
        prediction_kind="x0",
        activation=jax.nn.gelu,
        max_period=100.0,
        key=jax.random.key(0),
    )

    def call(model, x):
        out = model(x, None, jnp.full(len(x), 0.3), None, None)
        return out.value[:, -1]

    return equinox_model(model, normal(2, 5, 3), call, more={"dense": -15})  # the time is constant


def _transformer_flow() -> Model:
    from transformer_flows import TransformerFlow

    model = TransformerFlow(
        n_channels=1,
        img_size=4,
        patch_size=2,
        channels=8,
        n_blocks=2,
        layers_per_block=1,
        head_dim=4,
        key=jax.random.key(0),
    )
    return equinox_model(
        model,
        normal(1, 1, 4, 4),
        lambda m, x: jax.vmap(lambda x: m.forward(x, None)[0][-1])(x),
        expected={"dense": 16, "normalization": 4, "softmax": 2},
    )  # the blocks are scanned


def _e1() -> Model:
    import e1jax
    import equinox as eqx

    model = e1jax.E1(8, 2, 16, 2, key=jax.random.key(0))
    tokens = jax.tree.map(np.asarray, e1jax.tokenize("MKTAY"))
    given = tokens.tokens, tokens.sequence_indexes, tokens.global_indexes, tokens.sequence_ids, tokens.mask_pad

    def call(model, x):
        """Explains the table of tokens."""
        model = eqx.tree_at(lambda m: m.token_embed.weight, model, x)
        return model(*given)[0][None, -1]

    return equinox_model(model, normal(*model.token_embed.weight.shape), call, float64=False)


def _rnn_jax(cell: str) -> Model:
    from rnn_jax import cells, layers

    k = jax.random.split(jax.random.PRNGKey(0))
    options = {
        "AntiSymmetricRNNCell": {"stepsize": 0.1, "diffusion": 0.01},
        "CoupledOscillatoryRNNCell": {"gamma": 1.0, "eps": 1.0, "dt": 0.1},
    }.get(cell, {})
    model = layers.RNN(getattr(cells, cell)(3, 4, key=k[0], **options), 3, key=k[1])
    counts = {"LongShortTermMemoryCell": 29, "CoupledOscillatoryRNNCell": 11}
    return equinox_model(
        model,
        normal(2, 4, 3),
        lambda m, x: jax.vmap(lambda x: m(x)[0])(x),
        float64=False,
        expected={"dense": counts.get(cell, 8)},
    )


MODELS = with_package(
    "equinox",
    {
        f"equinox: {name}": functools.partial(_layers, name)
        for name in (
            "MLP",
            "CNN",
            "norms and pools",
            "BatchNorm, SpectralNorm, WeightNorm",
            "GRU, scan",
            "LSTM, scan",
            "MultiheadAttention, rotary",
        )
    },
)
MODELS |= with_package("equimo", {f"equimo: {n}": functools.partial(_equimo, n, **o) for n, o in EQUIMO.items()})
MODELS |= with_package(
    "flowjax",
    {
        f"flowjax: {name}": functools.partial(_flow, name)
        for name in (
            "coupling_flow",
            "masked_autoregressive_flow",
            "planar_flow",
            "block_neural_autoregressive_flow",
            "triangular_spline_flow",
        )
    },
)
MODELS |= with_package(
    "diffrax",
    {
        f"diffrax: neural ODE, {solver}{', adaptive' if adaptive else ''}": functools.partial(
            _neural_ode, solver, adaptive
        )
        for solver, adaptive in (("Euler", False), ("Heun", False), ("Tsit5", False), ("Tsit5", True))
    },
)
MODELS |= with_package("norax", {"norax: FNO": functools.partial(_norax)})
MODELS |= with_package("palm-jax", {"palm-jax: PaLM": functools.partial(_palm)})
MODELS |= with_package("diffusionlab", {"diffusionlab: DiT": functools.partial(_dit)})
MODELS |= with_package("transformer-flows", {"transformer-flows: TarFlow": functools.partial(_transformer_flow)})
MODELS |= with_package("e1jax", {"e1jax: E1": functools.partial(_e1)})
MODELS |= with_package(
    "rnn-jax",
    {
        f"rnn-jax: {c}": functools.partial(_rnn_jax, c)
        for c in ("LongShortTermMemoryCell", "GatedRecurrentUnit", "AntiSymmetricRNNCell", "CoupledOscillatoryRNNCell")
    },
)
