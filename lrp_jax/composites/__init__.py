"""Composites: which layer gets which rule; presets in general use, and those of other libraries with their conventions.

`composites.zennit`, `.captum`, `.innvestigate`, `.relevancepropagation_jl`, `.lrp_toolbox` and `.montavon` hold presets
and rules under the names that these libraries gave them, with their stabilizers and their treatment of biases, so that
their numbers can be reproduced.
"""

from lrp_jax.composites import captum, innvestigate, lrp_toolbox, montavon, relevancepropagation_jl, zennit
from lrp_jax.composites._composite import (
    WEIGHTED,
    Composite,
    End,
    Position,
    Selector,
    as_composite,
    depth,
    first,
    kind,
    last,
)
from lrp_jax.composites.presets import (
    attn_lrp,
    cp_lrp,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    overview_vgg16,
)

__all__ = [
    "WEIGHTED",
    "Composite",
    "End",
    "Position",
    "Selector",
    "as_composite",
    "attn_lrp",
    "captum",
    "cp_lrp",
    "depth",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "first",
    "innvestigate",
    "kind",
    "last",
    "lrp_toolbox",
    "montavon",
    "overview_vgg16",
    "relevancepropagation_jl",
    "zennit",
]
