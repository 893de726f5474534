"""Functions that return the composites in general use."""

from typing import Any

from lrp_jax import rules
from lrp_jax.composites.composite import Composite
from lrp_jax.composites.selectors import depth, first, gated, kind
from lrp_jax.rules.base import PRODUCTS, SUMS
from lrp_jax.rules.kinds import kinds_in
from lrp_jax.rules.stabilizer import NormAxes

_SHARES = (kind(*kinds_in(SUMS)), rules.Norm(1e-6))
"""Each input of a sum gets its share of the sum."""


def epsilon_plus(eps: float | rules.Stabilizer = 1e-6) -> Composite:
    """LRP-epsilon for dense layers, z+ for convolutions.

    Args:
        eps: the stabilizer of LRP-epsilon.

    Kohlbrenner et al. 2020, "Towards Best Practice in Explaining Neural Network Decisions with LRP".
    """
    return Composite([_SHARES, (kind("dense"), rules.Epsilon(eps)), (kind("conv"), rules.ZPlus())])


def epsilon_plus_flat(eps: float | rules.Stabilizer = 1e-6) -> Composite:
    """LRP-epsilon for dense layers, z+ for convolutions, the flat rule for the first layer.

    Args:
        eps: the stabilizer of LRP-epsilon.

    Lapuschkin et al. 2019, "Unmasking Clever Hans Predictors", methods.
    """
    return epsilon_plus(eps) + [(first(), rules.Flat())]


def epsilon_gamma_box(low: Any, high: Any, eps: float | rules.Stabilizer = 1e-6, gamma: float = 0.25) -> Composite:
    """LRP-epsilon for dense layers, LRP-gamma for convolutions, the z^B rule for the first layer.

    Args:
        low, high: the values of a black and a white pixel after preprocessing: one number, or one for each channel.
        eps: the stabilizer of LRP-epsilon.
        gamma: the parameter of LRP-gamma.

    Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview", section 10.3. This is the simpler form that
    is usual for networks trained on ImageNet.
    """
    return Composite([
        _SHARES,
        (kind("dense"), rules.Epsilon(eps)),
        (kind("conv"), rules.Gamma(gamma)),
        (first(), rules.ZBox(low, high)),
    ])  # fmt: skip


def overview_vgg16(low: Any, high: Any, *, norm: NormAxes = "sample") -> Composite:
    """The composite of the overview chapter for VGG-16.

    - Dense layers have LRP-0.
    - The convolutions of the second half (nearer to the output) have LRP-epsilon, with epsilon = 0.25 times the root
      mean square of z.
    - The convolutions of the first half (nearer to the input) have LRP-gamma with gamma = 0.25.
    - Max-pools are treated as average pools, with the stabilizer of the convolutions of the same half.
    - The first layer has the z^B rule.

    Args:
        low, high: the values of a black and a white pixel after preprocessing: one number, or one for each channel.
        norm: `sample` takes the root mean square over each example, `tensor` over the whole batch.

    Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview", section 10.3 and its tutorial code.
    """
    relative, tiny = rules.Stabilizer(0.25, mode="unsigned", norm=norm), rules.Stabilizer(1e-9, mode="unsigned")
    return Composite([
        (kind(*kinds_in(SUMS)), rules.Norm(tiny)),
        (kind("dense"), rules.Epsilon(tiny)),
        (kind("conv"), rules.Epsilon(relative)),
        (depth(0, 0.5, "conv"), rules.Gamma(0.25, generalized=False, eps=tiny)),
        (kind("max_pool"), rules.AveragePool(relative)),
        (depth(0, 0.5, "max_pool"), rules.AveragePool(tiny)),
        (first(), rules.ZBox(low, high, eps=tiny)),
    ])  # fmt: skip


def overview(low: Any, high: Any) -> Composite:
    """The idea of the overview chapter, for convolutional networks of any kind, with BatchNorm and residuals.

    - Dense layers have LRP-epsilon.
    - The convolutions of the second half (nearer to the output) have LRP-epsilon, with epsilon = 0.25 times the root
      mean square of z over an example.
    - The convolutions of the first half have LRP-gamma with gamma = 0.25.
    - The first layer has the z^B rule.

    `overview_vgg16` follows the chapter literally. Its stabilizers ignore the sign of z, so it needs layers whose
    outputs are positive.

    Args:
        low, high: the values of a black and a white pixel after preprocessing: one number, or one for each channel.

    Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview", section 10.3.
    """
    return Composite([
        _SHARES,
        (kind("dense"), rules.Epsilon(1e-6)),
        (kind("conv"), rules.Epsilon(rules.Stabilizer(0.25, norm="sample"))),
        (depth(0, 0.5, "conv"), rules.Gamma(0.25)),
        (first(), rules.ZBox(low, high)),
    ])  # fmt: skip


def attn_lrp(eps: float | rules.Stabilizer = 1e-6) -> Composite:
    """AttnLRP for transformers: LRP-epsilon for layers with weights, half of the relevance to each factor of a product.

    The softmax is linearized at its input. The statistics of normalizations are constant. Activations hand relevance on
    unchanged.

    Args:
        eps: the stabilizer of LRP-epsilon.

    Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", section 3.
    """
    return Composite([
        (kind("dense", "conv"), rules.Epsilon(eps)),
        (kind(*kinds_in(PRODUCTS)), rules.Uniform()),
        (kind("softmax"), rules.Softmax()),
    ])  # fmt: skip


def cp_lrp(eps: float | rules.Stabilizer = 1e-6) -> Composite:
    """CP-LRP for transformers: LRP-epsilon for layers with weights; gates and attention weights are constant.

    In a gated MLP, such as `silu(x @ w1) * (x @ w2)`, the output of the activation is the gate. Queries and keys
    receive no relevance. Relevance is conserved if there are no biases.

    Args:
        eps: the stabilizer of LRP-epsilon.

    Ali et al. 2022, "XAI for Transformers: Better Explanations through Conservative Propagation", section 3.
    """
    return Composite([
        (kind("dense", "conv"), rules.Epsilon(eps)),
        (gated(), rules.SignalTakesAll()),
    ])  # fmt: skip


def mamba_lrp(eps: float | rules.Stabilizer = 0.0) -> Composite:
    """MambaLRP for selective state space models.

    - Layers with weights have LRP-epsilon, by default LRP-0.
    - In the selective scan h_t = A_t h_{t-1} + B_t u_t, y_t = C_t h_t, the factors A_t, B_t and C_t are constant.
    - Each factor of the product y silu(z) gets half of the relevance.
    - Activations hand relevance on unchanged. The statistics of normalizations are constant.

    A, B, and C are found by what they are computed from: from u (kind `modulation`), or they lie between 0 and 1 (kind
    `gate`). A scan that is a kernel needs `custom_attention(values=...)`, with the position of u.

    Args:
        eps: the stabilizer of LRP-epsilon.

    Rezaei Jafari et al. 2024, "MambaLRP: Explaining Selective State Space Sequence Models", section 4.
    """
    return Composite([
        (kind("dense", "conv"), rules.Epsilon(eps)),
        (kind("product", "matmul"), rules.Uniform()),
        (kind("gate", "modulation", "attention"), rules.SignalTakesAll()),
    ])  # fmt: skip
