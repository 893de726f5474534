"""Composites: which layer gets which rule.

The presets here are in general use. `composites.zennit`, `.captum`, `.innvestigate`, `.relevancepropagation_jl`,
`.lrp_toolbox`, `.lxt` and `.montavon` contain the presets and rules of these libraries, under their names there. They
reproduce the numbers of these libraries, so they have the same stabilizers and the same treatment of biases.
"""

from lrp_jax.composites import captum, innvestigate, lrp_toolbox, lxt, montavon, relevancepropagation_jl, zennit
from lrp_jax.composites.composite import Composite, as_composite
from lrp_jax.composites.presets import (
    attn_lrp,
    cp_lrp,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    mamba_lrp,
    overview,
    overview_vgg16,
)
from lrp_jax.composites.selectors import Selector, depth, first, gated, kind, last

__all__ = [
    "Composite",
    "Selector",
    "as_composite",
    "attn_lrp",
    "captum",
    "cp_lrp",
    "mamba_lrp",
    "depth",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "first",
    "gated",
    "innvestigate",
    "kind",
    "last",
    "lrp_toolbox",
    "lxt",
    "montavon",
    "overview",
    "overview_vgg16",
    "relevancepropagation_jl",
    "zennit",
]
