"""Models written with Haiku: its own networks, and graph networks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from public.common import Model, named, normal


def haiku_model(network: Callable, x: Any, init: Callable | None = None, **more) -> Model:
    """A function that uses Haiku modules, as a function of its parameters and state. `init(x)` makes these."""
    import haiku as hk

    model = hk.transform_with_state(network)
    variables = jax.jit(hk.transform_with_state(init or network).init)(jax.random.key(0), x)
    return Model(lambda v, x: model.apply(*v, jax.random.key(0), x)[0], variables, x, **more)


def _nets(name: str) -> Model:
    import haiku as hk

    image = normal(1, 32, 32, 3)
    if name.startswith("ResNet"):
        sizes = {"blocks_per_group": (1, 1, 1, 1), "channels_per_group": (8, 8, 8, 8), "use_projection": (True,) * 4}
        make = lambda: hk.nets.ResNet(num_classes=3, resnet_v2="V2" in name, bottleneck="50" in name, **sizes)
        return haiku_model(lambda x: make()(x, is_training=False), image, lambda x: make()(x, is_training=True))
    if name == "MobileNetV1":
        make = lambda: hk.nets.MobileNetV1(channels=(8, 8, 16), strides=(1, 2, 1), num_classes=3)
        return haiku_model(lambda x: make()(x, is_training=False), image, lambda x: make()(x, is_training=True))
    if name == "MLP":
        return haiku_model(lambda x: hk.nets.MLP([8, 8, 3], activation=jnp.tanh)(x), normal(2, 6))
    if name == "VectorQuantizer":
        network = lambda x: hk.Linear(3)(hk.nets.VectorQuantizer(4, 5, 0.25)(hk.Linear(4)(x), False)["quantize"])
        return haiku_model(network, normal(2, 6))
    if name == "LSTM":
        return haiku_model(
            lambda x: hk.dynamic_unroll(core := hk.LSTM(4), x.swapaxes(0, 1), core.initial_state(len(x)))[0][-1],
            normal(2, 4, 3),
            expected={"dense": 4},
        )
    if name == "GRU":
        return haiku_model(
            lambda x: hk.dynamic_unroll(core := hk.GRU(4), x.swapaxes(0, 1), core.initial_state(len(x)))[0][-1],
            normal(2, 4, 3),
            expected={"dense": 4 + 3 + 4},
        )
    if name == "Conv2DLSTM":
        core = lambda: hk.Conv2DLSTM((5, 5), 2, 3)
        return haiku_model(
            lambda x: hk.static_unroll(c := core(), x, c.initial_state(1))[0][-1].mean((1, 2)),
            normal(2, 1, 5, 5, 2),
            expected={"conv": 3},  # the first convolution of the state reads zeros
        )
    assert name == "MultiHeadAttention, RMSNorm, GroupNorm"

    def attention(x):
        x = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling())(x, x, x)
        return hk.GroupNorm(2)(hk.RMSNorm(-1)(x)).mean(1)

    return haiku_model(attention, normal(1, 5, 8))


def _transformer() -> Model:
    """The transformer of Haiku's examples."""
    import haiku as hk

    def block(x):
        init = hk.initializers.VarianceScaling(2 / 2)
        mask = np.tril(np.ones((1, 1, x.shape[1], x.shape[1])))
        h = hk.LayerNorm(-1, True, True)(x)
        x = x + hk.MultiHeadAttention(2, 4, model_size=8, w_init=init)(h, h, h, mask=mask)
        h = hk.LayerNorm(-1, True, True)(x)
        return x + hk.Sequential([hk.Linear(16, w_init=init), jax.nn.gelu, hk.Linear(8, w_init=init)])(h)

    def network(x):
        x = x + hk.get_parameter("positions", [5, 8], init=hk.initializers.TruncatedNormal(0.02))
        for _ in range(2):
            x = block(x)
        return hk.Linear(20)(hk.LayerNorm(-1, True, True)(x))[:, -1]

    return haiku_model(network, normal(1, 5, 8))


EDGES = np.array([0, 1, 2, 3, 1]), np.array([1, 2, 3, 0, 3])


def _graph(nodes: Any):
    import jraph

    senders, receivers = EDGES
    return jraph.GraphsTuple(
        nodes=nodes,
        edges=np.ones((5, 2)),
        senders=senders,
        receivers=receivers,
        n_node=np.array([4]),
        n_edge=np.array([5]),
        globals=np.ones((1, 2)),
    )


def _jraph(name: str) -> Model:
    import haiku as hk
    import jraph

    def update(width=8):
        return jraph.concatenated_args(lambda x: jax.nn.relu(hk.Linear(width)(x)))

    def network(x):
        graph = _graph(x)
        if name == "GraphConvolution":
            net = jraph.GraphConvolution(
                lambda n: jax.nn.relu(hk.Linear(8)(n)), add_self_edges=True, symmetric_normalization=True
            )
        elif name == "GAT":
            net = jraph.GAT(
                lambda n: hk.Linear(8)(n), lambda s, r, e: jax.nn.leaky_relu(hk.Linear(1)(jnp.concatenate([s, r], 1)))
            )
        elif name == "InteractionNetwork":
            net = jraph.InteractionNetwork(update(), update())
        elif name == "DeepSets":
            net = jraph.DeepSets(update(), update())
        elif name == "RelationNetwork":
            net = jraph.RelationNetwork(update(), update())
        elif name == "GraphNetwork, maximum":
            net = jraph.GraphNetwork(
                update(), update(), update(), jraph.segment_max, jraph.segment_mean, jraph.segment_min_or_constant
            )
        else:
            net = jraph.GraphNetwork(update(), update(), update())
        out = net(graph)
        if name in ("GraphConvolution", "GAT", "InteractionNetwork"):
            return hk.Linear(3)(out.nodes.mean(0, keepdims=True))
        return hk.Linear(3)(out.globals)

    softmax = {"softmax": 1} if name == "GAT" else {}
    return haiku_model(network, normal(4, 3), more=softmax)


def _e3nn(name: str) -> Model:
    """Layers of e3nn: steerable tensor products of vectors of atoms."""
    import e3nn_jax as e3nn

    senders, receivers = EDGES

    def network(x):
        vectors = e3nn.IrrepsArray("1o", x[receivers] - x[senders])
        if name == "spherical harmonics, tensor product":
            features = e3nn.spherical_harmonics("0e + 1o + 2e", vectors, True)
            features = e3nn.tensor_product(features, features, filter_ir_out=["0e", "1o"])
        else:
            features = e3nn.concatenate([vectors, e3nn.norm(vectors)])
        features = e3nn.haiku.Linear("8x0e + 4x0e + 4x1o")(features)
        features = e3nn.gate(features)
        nodes = e3nn.scatter_sum(features, dst=receivers, output_size=4)
        return e3nn.haiku.Linear("3x0e")(nodes).array.mean(0, keepdims=True)

    return haiku_model(network, normal(4, 3), expected={"dense": 3, "normalization": int("tensor" in name)})


def _egnn() -> Model:
    import jraph
    from egnn_jax import EGNN

    senders, receivers = EDGES
    positions = normal(4, 3, seed=2)

    def network(x):
        graph = jraph.GraphsTuple(
            nodes=x,
            edges=None,
            senders=senders,
            receivers=receivers,
            n_node=np.array([4]),
            n_edge=np.array([5]),
            globals=None,
        )
        return EGNN(8, 3, num_layers=2, attention=True)(graph, positions)[0].mean(0, keepdims=True)

    return haiku_model(network, normal(4, 3), more={"dense": -2})  # the last positions are not used


def _x_mlps(name: str) -> Model:
    import x_mlps

    factory = getattr(x_mlps, f"{name}_block_factory")

    shift = {"block_sublayer1_ff_shift": x_mlps.create_shift1d_op()} if name == "s2mlp" else {}

    def network(x):
        return x_mlps.XMLP(
            num_patches=4, dim=8, depth=2, block=factory, normalization=x_mlps.layernorm_factory, num_classes=3, **shift
        )(x, is_training=False)

    return haiku_model(network, normal(1, 4, 6))


def _mlp_gpt() -> Model:
    from mlp_gpt_jax import MLPGpt

    ids = np.arange(1, 6)
    import haiku as hk

    def network(x):
        def rows(next_fun, args, kwargs, context):
            if type(context.module).__name__ == "Embed" and context.method_name == "__call__":
                return x
            return next_fun(*args, **kwargs)

        with hk.intercept_methods(rows):
            return MLPGpt(num_tokens=12, dim=8, seq_len=5, depth=2)(ids)[None, -1]

    return haiku_model(network, normal(5, 8), more={"dense": 2})


MODELS = (
    named(
        "dm-haiku",
        _nets,
        "MLP",
        "ResNet, basic",
        "ResNet50",
        "ResNet50 V2",
        "MobileNetV1",
        "VectorQuantizer",
        "LSTM",
        "GRU",
        "Conv2DLSTM",
        "MultiHeadAttention, RMSNorm, GroupNorm",
    )
    | named("dm-haiku", lambda name: _transformer(), "transformer of the examples")
    | named(
        "jraph",
        _jraph,
        "GraphConvolution",
        "GAT",
        "InteractionNetwork",
        "DeepSets",
        "RelationNetwork",
        "GraphNetwork",
        "GraphNetwork, maximum",
    )
    | named("e3nn-jax", _e3nn, "spherical harmonics, tensor product", "norms, gate")
    | named("egnn-jax", lambda name: _egnn(), "EGNN with attention")
    | named("x-mlps", _x_mlps, "mlpmixer", "resmlp", "gmlp", "s2mlp", "fft", "fftlinear")
    | named("mlp-gpt-jax", lambda name: _mlp_gpt(), "MLPGpt")
)
