"""Models written with Flax: linen and nnx."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from public.common import Model, named, normal, with_package


def linen_model(module: Any, x: Any, call: Callable | None = None, init: dict | None = None, **more) -> Model:
    """A linen module as a function of its variables. `call(module, variables, x)` is by default `apply`."""
    variables = jax.jit(functools.partial(module.init, **(init or {})))(jax.random.key(0), x)
    return Model(functools.partial(call or (lambda m, v, x: m.apply(v, x)), module), variables, x, **more)


def nnx_model(make: Callable, x: Any, call: Callable | None = None, **more) -> Model:
    """An nnx module as a function of its floating-point state; `make(rngs)` makes it."""
    from flax import nnx

    module = make(nnx.Rngs(0))
    module.eval()
    graph, params, others = nnx.split(module, lambda path, v: jnp.issubdtype(v.dtype, jnp.floating), ...)
    call = call or (lambda module, x: module(x))
    return Model(lambda params, x: call(nnx.merge(graph, params, others), x), params, x, **more)


def _jax_resnet(name: str) -> Model:
    import jax_resnet

    blocks = {
        "ResNet18": ("ResNetBlock", "ResNetStem"),
        "ResNet50": ("ResNetBottleneckBlock", "ResNetStem"),
        "ResNetD50": ("ResNetDBottleneckBlock", "ResNetDStem"),
        "ResNeSt50": ("ResNeStBottleneckBlock", "ResNetDStem"),
    }
    block, stem = (getattr(jax_resnet, n) for n in blocks[name])
    options = {"stem_cls": stem} if "D" in name or "St5" in name else {}
    module = jax_resnet.ResNet(block, stage_sizes=[1, 1], n_classes=3, hidden_sizes=(8, 16), **options)
    return linen_model(module, normal(1, 32, 32, 3), lambda m, v, x: m.apply(v, x, mutable=False))


def _botnet() -> Model:
    from bottleneck_transformer_flax import BoTNet, BoTNetConfig

    config = BoTNetConfig(stage_sizes=[1, 1, 1, 1], num_classes=3, num_heads=2, head_dim=8, initial_filters=8)
    return linen_model(
        BoTNet(config),
        normal(1, 32, 32, 3),
        lambda m, v, x: m.apply(v, x, train=False),
        {"train": False},
        more={"dense": 2},
        float64=False,
    )


def _tnt() -> Model:
    from transformer_in_transformer_flax import TNTConfig, TransformerInTransformer

    config = TNTConfig(
        num_classes=3,
        depth=2,
        image_size=16,
        patch_size=8,
        transformed_patch_size=2,
        inner_dim=4,
        inner_heads=2,
        inner_dim_head=4,
        outer_dim=8,
        outer_heads=2,
        outer_dim_head=4,
    )
    return linen_model(TransformerInTransformer(config), normal(1, 16, 16, 3))


def _perceiver() -> Model:
    from perceiver_jax import Perceiver

    module = Perceiver(n_latents=4, latent_n_heads=2, latent_head_features=4, cross_head_features=4)

    def call(module, variables, x):
        return module.apply(variables, x, rngs={"dropout": jax.random.key(0)}).mean(1)

    x = normal(1, 4, 4, 2)
    variables = module.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)
    return Model(functools.partial(call, module), variables, x)


def _i3d() -> Model:
    from i3d_jax import InceptionI3d

    module = InceptionI3d(num_classes=3, final_endpoint="Mixed_3b")
    return linen_model(module, normal(1, 4, 16, 16, 3), lambda m, v, x: _first(m.apply(v, x)).mean((1, 2, 3)))


def _first(out):
    return out[0] if isinstance(out, tuple) else out


def _brax(name: str) -> Model:
    from brax.training import networks

    if name == "CNN":
        module = networks.CNN([4, 4], [(3, 3), (3, 3)], [(1, 1), (1, 1)])
        return linen_model(module, normal(1, 8, 8, 2), lambda m, v, x: m.apply(v, x).mean((1, 2)))
    if name == "VisionMLP":
        module = networks.VisionMLP([8, 3], policy_head=True)
        pixels = {"pixels/view": normal(1, 16, 16, 3)}
        return linen_model(module, pixels)
    if name == "MLP with LayerNorm":
        return linen_model(networks.MLP([8, 8, 3], layer_norm=True), normal(2, 6))
    if name == "SNMLP":
        module = networks.SNMLP([8, 3])
        x, keys = normal(2, 6), {"params": jax.random.key(0), "sing_vec": jax.random.key(1)}
        variables = module.init(keys, x)
        return Model(
            lambda v, x: module.apply(v, x, mutable=["sing_vec"], rngs=keys)[0], variables, x, more={"dense": 2}
        )
    network = networks.make_policy_network(3, 6) if name == "policy" else networks.make_value_network(6)
    params = network.init(jax.random.key(0))
    fn = lambda p, x: network.apply(None, p, x).reshape(len(x), -1)
    return Model(fn, params, normal(2, 6))


def _nanodl(name: str) -> Model:
    import nanodl

    common = {"num_heads": 2, "dropout": 0.0, "feedforward_dim": 16}
    if name == "ViT":
        module = nanodl.ViT((8, 8), 2, 16, 2, 16, 0.0, 3)
        call = lambda m, v, x: _first(m.apply(v, x, training=False))
        return linen_model(module, normal(1, 16, 16, 3), call, {"training": False})
    if name == "KAN":
        module = nanodl.ChebyKANLinear(6, 3, 3)
        return linen_model(module, normal(2, 6), more={"dense": 1})
    if name == "FourierKAN":
        return linen_model(nanodl.FourierKANLinear(6, 3, 3), normal(2, 6), more={"dense": 2})
    assert name == "EncoderBlock"
    module = nanodl.ViTBlock(hidden_dim=8, **common)
    call = lambda m, v, x: _first(m.apply(v, x, training=False))[:, 0]
    return linen_model(module, normal(1, 5, 8), call, {"training": False})


def _embedded(apply: Callable, width: int, tokens: int = 5):
    """A function `fn(variables, x)` of a linen language model, whose first table of tokens returns x."""
    from flax import linen

    ids = np.arange(1, tokens + 1, dtype=np.int32)[None]

    def fn(variables, x):
        first = []

        def rows(next_fun, args, kwargs, context):
            is_table = isinstance(context.module, linen.Embed) and context.method_name == "__call__"
            if is_table and not first:
                first.append(context.module)
                return x
            return next_fun(*args, **kwargs)

        with linen.intercept_methods(rows):
            return apply(variables, ids)

    return fn, ids, normal(1, tokens, width)


def _nano_moe() -> Model:
    from nano_moe import NanoMoE, NanoMoEConfig

    module = NanoMoE(NanoMoEConfig(vocab_size=20, n_layers=2, n_heads=2, d_model=8, d_ff=16, n_experts=3, block_size=8))
    fn, ids, x = _embedded(lambda v, ids: module.apply(v, ids)[0][:, -1], 8)
    return Model(fn, module.init(jax.random.key(0), ids), x, more={"softmax": -2}, float64=False)  # of a training loss


def _flax_layers(name: str) -> Model:
    """Modules of Flax that need no code around them."""
    from flax import linen as nn
    from flax import nnx

    if name == "linen: Sequential of Conv, GroupNorm, InstanceNorm":
        module = nn.Sequential(
            [
                nn.Conv(4, (3, 3)),
                nn.GroupNorm(2),
                nn.silu,
                nn.Conv(4, (3, 3), kernel_dilation=2),
                nn.InstanceNorm(),
                nn.gelu,
                nn.ConvTranspose(4, (2, 2), (2, 2)),
                lambda x: x.mean((1, 2)),
                nn.Dense(3),
            ]
        )
        return linen_model(module, normal(1, 8, 8, 2))
    if name == "linen: WeightNorm, SpectralNorm":
        module = _Normed()
        return linen_model(module, normal(2, 6))
    if name == "linen: RNN of ConvLSTM":
        module = nn.RNN(nn.ConvLSTMCell(2, (3, 3), param_dtype=jnp.float64))
        return linen_model(
            module, normal(1, 2, 5, 5, 2), lambda m, v, x: m.apply(v, x)[:, -1].mean((1, 2)), expected={"conv": 3}
        )
    if name == "linen: Einsum, DenseGeneral":
        module = nn.Sequential([nn.Einsum((4, 6, 5), "bti,tij->btj"), jnp.tanh, nn.DenseGeneral(3, axis=(-2, -1))])
        return linen_model(module, normal(2, 4, 6))
    if name == "linen: MultiHeadDotProductAttention, normalized":
        module = nn.MultiHeadDotProductAttention(2, normalize_qk=True)
        return linen_model(module, normal(1, 5, 8), lambda m, v, x: m.apply(v, x).mean(1))
    if name == "nnx: RNN of SimpleCell":
        return nnx_model(
            lambda r: nnx.RNN(nnx.SimpleCell(3, 4, rngs=r), rngs=r),
            normal(2, 4, 3),
            lambda m, x: m(x)[:, -1],
            float64=False,
            expected={"dense": 4 + 3},
        )
    if name == "nnx: LoRA, Einsum, RMSNorm":
        return nnx_model(
            lambda r: nnx.Sequential(
                nnx.LoRALinear(6, 8, lora_rank=2, rngs=r),
                nnx.relu,
                nnx.RMSNorm(8, rngs=r),
                nnx.Einsum("bi,ij->bj", (8, 3), (3,), rngs=r),
            ),
            normal(2, 6),
            more={"dense": 3},
        )
    assert name == "nnx: MultiHeadAttention, Embed"
    return nnx_model(
        lambda r: nnx.MultiHeadAttention(2, 8, decode=False, rngs=r), normal(1, 5, 8), lambda m, x: m(x).mean(1)
    )


def _Normed():
    from flax import linen as nn

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.WeightNorm(nn.Dense(8))(x))
            return nn.SpectralNorm(nn.Dense(3))(x, update_stats=False)

    return Normed()


def _attnax(attention: str) -> Model:
    import attnax

    config = attnax.VisionTransformerConfig(
        image_size=16,
        patch_size=8,
        num_classes=3,
        d_model=8,
        num_heads=2,
        num_layers=2,
        d_ff=16,
        attention_type=attnax.AttentionType[attention],
        attention_block_size=8,
        linear_attention_chunk_size=5,
    )
    more = {"normalization": 2} if attention == "LINEAR" else {}
    return nnx_model(lambda r: attnax.VisionTransformer(r, config), normal(1, 16, 16, 3), more=more, float64=False)


def _heal_swin(name: str) -> Model:
    import heal_swin_nnx as hs

    if name == "SwinUnet":
        params = hs.SwinParams(32, 3, 3, embed_dim=8, depths=(2, 2), num_heads=(2, 2), dtype="float32")
        return nnx_model(
            lambda r: hs.SwinUnet(params, rngs=r),
            normal(1, 32, 32, 3),
            lambda m, x: m(x).mean((1, 2)),
            more={"normalization": 12},
            float64=False,
        )
    if name == "HealConv":
        params = hs.HealConvParams(8, 3, 3, embed_dim=8, depths=(1, 1), dtype="float32")
        model = hs.HealConv
    else:
        params = hs.HealSwinParams(8, 3, 3, embed_dim=8, depths=(1, 1), num_heads=(2, 2), dtype="float32")
        model = hs.HealSwin
    return nnx_model(
        lambda r: model(params, rngs=r),
        normal(1, 768, 3),
        lambda m, x: m(x).mean(1),
        float64=False,
        more={"normalization": 0 if name == "HealConv" else 6},
    )  # queries and keys


def _jimmy(name: str) -> Model:
    if name == "DinoV2":
        from jimmy.models.vit import DinoV2

        return nnx_model(
            lambda r: DinoV2(img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2, rngs=r),
            normal(1, 16, 16, 3),
            lambda m, x: m(x),
            float64=False,
        )
    if name == "MambaVision":
        from jimmy.models.mamba import MambaVision

        return nnx_model(
            lambda r: MambaVision(3, 8, 8, [1, 1, 2, 2], [8, 8, 2, 1], [8, 8, 2, 1], [1, 1, 2, 2], rngs=r),
            normal(1, 32, 32, 3),
            float64=False,
        )
    from jimmy.models.mlla import Mlla

    return nnx_model(lambda r: Mlla([1, 1], 4, 3, 8, [2, 2], [8, 4], rngs=r), normal(1, 32, 32, 3), float64=False)


def _jraphx(name: str) -> Model:
    from jraphx import nn

    edges = jnp.array([[0, 1, 2, 3, 1], [1, 2, 3, 0, 3]])
    return nnx_model(
        lambda r: getattr(nn, name)(3, 8, 2, 3, rngs=r),
        normal(4, 3),
        lambda m, x: m(x, edges).mean(0, keepdims=True),
        float64=False,
        more={"softmax": 2} if name == "GAT" else {},
    )


def _jaxkan(layer: str) -> Model:
    from jaxkan.KAN import KAN

    options = {
        "base": {"k": 3, "G": 3},
        "spline": {"k": 3, "G": 3},
        "chebyshev": {"D": 3},
        "fourier": {"D": 3},
        "rbf": {"D": 4},
        "sine": {"D": 4},
        "legendre": {"D": 3},
    }[layer]
    from flax import nnx

    model = KAN([4, 3, 2], layer, options)
    graph, params, others = nnx.split(model, nnx.Param, ...)
    return Model(lambda p, x: nnx.merge(graph, p, others)(x), params, 0.5 * np.tanh(normal(2, 4)), float64=False)


def _mamba(version: int) -> Model:
    import importlib

    package = importlib.import_module(f"mamba{version}_jax")
    config = getattr(package, f"Mamba{version}Config")
    options = {
        "vocab_size": 8,
        "hidden_size": 8,
        "state_size": 4,
        "head_dim": 4,
        "chunk_size": 4,
        "num_hidden_layers": 2,
    }
    model = getattr(package, f"Mamba{version}Model")

    def call(module, x):
        return module(input_ids=None, inputs_embeds=x)["last_hidden_state"][:, -1]

    return nnx_model(lambda r: model(config(**options), rngs=r), normal(1, 6, 8), call, float64=False)


MODELS = (
    named(
        "flax",
        _flax_layers,
        "linen: Sequential of Conv, GroupNorm, InstanceNorm",
        "linen: WeightNorm, SpectralNorm",
        "linen: RNN of ConvLSTM",
        "linen: Einsum, DenseGeneral",
        "linen: MultiHeadDotProductAttention, normalized",
        "nnx: RNN of SimpleCell",
        "nnx: LoRA, Einsum, RMSNorm",
        "nnx: MultiHeadAttention, Embed",
    )
    | named("jax-resnet", _jax_resnet, "ResNet18", "ResNet50", "ResNetD50", "ResNeSt50")
    | with_package("bottleneck-transformer-flax", {"bottleneck-transformer-flax: BoTNet": functools.partial(_botnet)})
    | with_package("transformer-in-transformer-flax", {"transformer-in-transformer-flax: TNT": functools.partial(_tnt)})
    | with_package("perceiver-jax", {"perceiver-jax: Perceiver": functools.partial(_perceiver)})
    | with_package("i3d-jax", {"i3d-jax: InceptionI3d": functools.partial(_i3d)})
    | named("brax", _brax, "policy", "value", "MLP with LayerNorm", "SNMLP", "CNN", "VisionMLP")
    | named("nanodl", _nanodl, "ViT", "KAN", "FourierKAN", "EncoderBlock")
    | with_package("nano-moe-jax", {"nano-moe-jax: NanoMoE": functools.partial(_nano_moe)})
    | named("attnax", _attnax, "STANDARD", "LINEAR", "FLASH", "MEMORY_EFFICIENT", prefix="ViT, ")
    | named("heal-swin-nnx", _heal_swin, "SwinUnet", "HealConv", "HealSwin")
    | named("jimmy-vision", _jimmy, "DinoV2", "MambaVision", "Mlla")
    | named("jraphx", _jraphx, "GCN", "GAT", "GIN", "GraphSAGE")
    | named("jaxkan", _jaxkan, "base", "spline", "chebyshev", "fourier", "rbf", "sine", prefix="KAN, ")
    | with_package("mamba2-jax", {"mamba2-jax: Mamba2": functools.partial(_mamba, 2)})
    | with_package("mamba3-jax", {"mamba3-jax: Mamba3": functools.partial(_mamba, 3)})
)
