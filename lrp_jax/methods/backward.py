"""Methods that change the backward pass of activations or layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax import outputs, rules
from lrp_jax.api import lrp
from lrp_jax.composites import Composite, first, kind, zennit
from lrp_jax.core.function import Argnums, Select
from lrp_jax.core.trace import trace
from lrp_jax.execute import run
from lrp_jax.methods.method import of_seeds_at_output
from lrp_jax.planning import make_plan

GRADIENT = Composite([(lambda step: True, zennit.ChainRule())])
"""The chain rule for steps of any kind."""


def guided_backprop(fn: Callable, *, argnums: Argnums = -1, select: Select = None) -> Callable[..., Any]:
    """The gradient, but each activation hands on only its positive part: [a_j > 0] max(R_j, 0).

    Springenberg et al. 2015, "Striving for Simplicity", figure 1.
    """
    return _changed_gradient(fn, True, argnums, select)


def deconvnet(fn: Callable, *, argnums: Argnums = -1, select: Select = None) -> Callable[..., Any]:
    """The gradient with max(R_j, 0) instead of the derivative of each activation.

    Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 2.1.
    """
    return _changed_gradient(fn, False, argnums, select)


def _changed_gradient(fn: Callable, guided: bool, argnums: Argnums, select: Select) -> Callable[..., Any]:
    composite = GRADIENT + [(kind("activation"), zennit.PositivePart(guided))]

    def of_seeds(function, x, others, seeds):
        plan = make_plan(trace(function, x, others), composite)
        _, back = jax.vjp(lambda x: run(plan, x, others, constants=False), x)
        return jax.vmap(lambda R: back(R)[0])(seeds)

    return of_seeds_at_output(fn, of_seeds, argnums, select)


def deep_taylor(
    fn: Callable, low: Any = None, high: Any = None, *, argnums: Argnums = -1, select: Select = None
) -> Callable[..., Any]:
    """Deep Taylor decomposition: the z+ rule without biases for all layers with weights. Relevance starts at max(y, 0).

    Args:
        fn, argnums, select: see the module.
        low, high: bounds of x: one number, or one for each channel. With them, the first layer has the z^B rule,
            otherwise the w^2 rule.

    Montavon et al. 2017, "Explaining nonlinear classification decisions with deep Taylor decomposition", table 1.
    """
    if (low is None) != (high is None):
        raise ValueError("low and high must both be given, or neither.")
    below = rules.WSquare(bias="ignore") if low is None else rules.ZBox(low, high, bias="ignore")
    composite = Composite([(kind("conv", "dense"), rules.ZPlus(bias="ignore")), (first(), below)])
    positive = lambda logits, target: jnp.maximum(outputs.logit(logits, target), 0)
    explain = lrp(fn, composite, argnums=argnums, select=select, output=positive)
    return lambda *args, target=None: explain(*args, target=target)
