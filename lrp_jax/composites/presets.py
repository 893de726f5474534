"""Composites in general use. Each is a value, to be printed, compared and added to."""

from typing import Any

from lrp_jax import rules
from lrp_jax.composites._composite import Composite, depth, first, kind

_SHARES = (kind("sum", "avg_pool", "add"), rules.Norm(1e-6))


def epsilon_plus(eps: float | rules.Stabilizer = 1e-6) -> Composite:
    """LRP-epsilon for dense layers, z+ for convolutions (Kohlbrenner et al. 2020, "Towards Best Practice")."""
    return Composite([_SHARES, (kind("dense"), rules.Epsilon(eps)), (kind("conv"), rules.ZPlus())])


def epsilon_plus_flat(eps: float | rules.Stabilizer = 1e-6) -> Composite:
    """LRP-epsilon for dense layers, z+ for convolutions, the flat rule first (Lapuschkin et al. 2019)."""
    return epsilon_plus(eps) + [(first(), rules.Flat())]


def epsilon_gamma_box(low: Any, high: Any, eps: float | rules.Stabilizer = 1e-6, gamma: float = 0.25) -> Composite:
    """LRP-epsilon for dense layers, LRP-gamma for convolutions, z^B for pixels in [low, high].

    Args:
        low, high: the values of a black and a white pixel as the network sees them: numbers, or one for each channel.
        eps, gamma: parameters of the rules.

    Montavon et al. 2019, section 10.3, in the simpler form usual for ImageNet networks.
    """
    return Composite([
        _SHARES,
        (kind("dense"), rules.Epsilon(eps)),
        (kind("conv"), rules.Gamma(gamma)),
        (first(), rules.ZBox(low, high)),
    ])  # fmt: skip


def overview_vgg16(low: Any, high: Any, *, norm: str = "sample") -> Composite:
    """The composite for VGG-16 of the overview chapter: LRP-0 on top, epsilon above, gamma below, z^B for pixels.

    Dense layers get LRP-0; the upper half of the convolutions epsilon = 0.25 times the root mean square of z, the
    lower half gamma = 0.25; max-pools count as average pools, stabilized as the convolutions around them.

    Args:
        low, high: the values of a black and a white pixel as the network sees them: numbers, or one for each channel.
        norm: whether the root mean square is that of each `sample`, or of the whole `tensor`, batch included.

    Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview", section 10.3 and its tutorial code.
    """
    spread, tiny = rules.Stabilizer(0.25, mode="unsigned", norm=norm), rules.Stabilizer(1e-9, mode="unsigned")
    return Composite([
        (kind("sum", "avg_pool", "add"), rules.Norm(tiny)),
        (kind("dense"), rules.Epsilon(tiny)),
        (kind("conv"), rules.Epsilon(spread)),
        (depth(0, 0.5, "conv"), rules.Gamma(0.25, generalized=False, eps=tiny)),
        (kind("max_pool"), rules.AveragePool(spread)),
        (depth(0, 0.5, "max_pool"), rules.AveragePool(tiny)),
        (first(), rules.ZBox(low, high, eps=tiny)),
    ])  # fmt: skip


def attn_lrp(eps: float | rules.Stabilizer = 1e-6) -> Composite:
    """AttnLRP for transformers: LRP-epsilon for layers with weights, half to each factor of a product.

    Softmax is linearized where it stands, normalizations hold their statistics constant, activations pass relevance on.

    Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", section 3.
    """
    return Composite([
        (kind("dense", "conv"), rules.Epsilon(eps)),
        (kind("product", "gate", "matmul", "attention"), rules.Uniform()),
        (kind("softmax"), rules.Softmax()),
    ])  # fmt: skip


def cp_lrp(eps: float | rules.Stabilizer = 1e-6) -> Composite:
    """CP-LRP for transformers: LRP-epsilon for layers with weights; gates and attention are held constant.

    So no relevance goes through queries and keys, and relevance is conserved where biases are absent.

    Ali et al. 2022, "XAI for Transformers: Better Explanations through Conservative Propagation", section 3.
    """
    return Composite([
        (kind("dense", "conv"), rules.Epsilon(eps)),
        (kind("gate", "attention"), rules.SignalTakesAll()),
    ])  # fmt: skip
