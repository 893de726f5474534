"""The explainers that the commands offer, by name."""

from collections.abc import Callable, Sequence
from typing import Any

from lrp_jax import methods, rules
from lrp_jax.api import lrp
from lrp_jax.cli._common import CommandError
from lrp_jax.spelling import did_you_mean

RULES: dict[str, rules.Rule] = {
    "LRP-0": rules.Zero(),
    "LRP-epsilon": rules.Epsilon(rules.Stabilizer(0.25, norm="sample")),
    "LRP-gamma": rules.Gamma(0.25),
    "LRP-alpha2beta1": rules.AlphaBeta(2, 1),
}
"""One rule for all layers with weights. The stabilizer of LRP-epsilon is 0.25 times the root mean square of z over an
example."""


def explainers(model: Any) -> dict[str, Callable[[], Callable[..., Any]]]:
    """Returns constructors of explainers of a network by name: composites, single rules, and other methods.

    Each constructor returns `explain(params, x, target=None)`, for images (N, H, W, channels).
    """
    low, high = model.preprocessing.low, model.preprocessing.high
    side = max(model.preprocessing.crop // 7, 1)
    composites: dict[str, Callable[[], Any]] = {
        **model.composites,
        "lrp_0": lambda: RULES["LRP-0"],
        "lrp_epsilon": lambda: RULES["LRP-epsilon"],
        "lrp_gamma": lambda: RULES["LRP-gamma"],
    }
    others: dict[str, Callable[..., Any]] = {
        "gradient": methods.gradient,
        "absolute_gradient": methods.absolute_gradient,
        "gradient_times_input": methods.gradient_times_input,
        "integrated_gradients": methods.integrated_gradients,
        "smooth_grad": methods.smooth_grad,
        "guided_backprop": methods.guided_backprop,
        "deconvnet": methods.deconvnet,
        "deep_taylor": lambda fn: methods.deep_taylor(fn, low, high),
        "occlusion": lambda fn: methods.occlusion(fn, (side, side, model.channels)),
        "grad_cam": methods.grad_cam,
        "cam": methods.cam,
    }
    found = {name: lambda make=make: lrp(model.apply, make()) for name, make in composites.items()}
    return found | {name: lambda make=make: make(model.apply) for name, make in others.items()}


def make_explainers(model: Any, names: Sequence[str]) -> dict[str, Any]:
    """The explainers of these names."""
    known = explainers(model)
    if unknown := [name for name in names if name not in known]:
        near = did_you_mean(unknown[0], known)
        raise CommandError(f"no explainer {unknown[0]!r}; the explainers are {', '.join(known)}.{near}")
    return {name: known[name]() for name in names}
