"""Grad-CAM and class activation maps."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.core.function import Argnums, Select
from lrp_jax.core.trace import trace
from lrp_jax.execute import run
from lrp_jax.methods.backward import GRADIENT
from lrp_jax.methods.method import of_seeds_at_output
from lrp_jax.planning import Plan, make_plan
from lrp_jax.rules.base import POOLS, SUMS
from lrp_jax.rules.kinds import is_move, kind_of


def grad_cam(
    fn: Callable,
    layer: str | None = None,
    channel_axis: int | None = None,
    *,
    argnums: Argnums = -1,
    select: Select = None,
) -> Callable[..., Any]:
    """Grad-CAM: max(0, sum_k w_k A_k). A_k is channel k of a layer, w_k is the mean of dy/dA_k over the positions.

    Args:
        fn, argnums, select: see the module.
        layer: the name of the layer in the plan (`print(lrp_jax.plan(fn, composite)(*args))`). A is its output. The
            default is the last layer or activation with positions. For a transformer, name a layer.
        channel_axis: the axis of channels in A. The default is that of the convolution before it, else the last axis.

    Returns:
        `explain`, whose result has the shape of A without its channels: (N, h, w) for images.

    Raises (on the first call):
        ValueError: the layer does not exist, or its output has no positions.

    Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2.
    """

    def attribute(A, slope, positions):
        return jnp.maximum((slope.mean(positions, keepdims=True) * A).sum(-1), 0)

    return _at_layer(fn, attribute, layer, channel_axis, False, argnums, select)


def cam(
    fn: Callable, channel_axis: int | None = None, *, argnums: Argnums = -1, select: Select = None
) -> Callable[..., Any]:
    """Class activation map sum_k w_k A_k of a network that ends in the mean over positions and a dense layer w.

    The mean of the map over the positions is y without its bias.

    Args:
        fn, argnums, select: see the module.
        channel_axis: as for `grad_cam`.

    Returns:
        `explain`, whose result has the shape of A, the input of the mean, without its channels: (N, h, w).

    Raises (on the first call):
        ValueError: the network does not end in this way. `grad_cam` works for any network.

    Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", equation 2.
    """

    def attribute(A, slope, positions):
        return (slope * A).sum(-1) * math.prod(A.shape[axis] for axis in positions)

    return _at_layer(fn, attribute, None, channel_axis, True, argnums, select)


def _at_layer(
    fn: Callable,
    attribute: Callable,
    layer: str | None,
    axis: int | None,
    linear: bool,
    argnums: Argnums,
    select: Select,
) -> Callable[..., Any]:
    """Makes the explainer from `attribute(A, dy/dA, positions)`. A is the output of a layer, with channels last."""

    def of_seeds(function, x, others, seeds):
        plan = make_plan(trace(function, x, others, unroll=True), GRADIENT)
        batch = seeds.ndim - 2
        step, channels = _find(plan, layer, batch, axis)
        if linear:
            _check_mean_and_dense_after(plan, step, batch, channels)
        positions = tuple(range(batch, len(step.out_shape) - 1))

        def logits_of(tap):
            seen = []

            def carry(other):
                def tapped(a, params):
                    seen.append(other.layer(a, params))
                    return seen[-1] + tap

                return tapped if other is step else other.layer

            return run(plan, x, others, carry=carry, constants=False), seen[0]

        _, back, A = jax.vjp(logits_of, jnp.zeros(step.out_shape, step.outputs[0].aval.dtype), has_aux=True)
        last = lambda v: jnp.moveaxis(v, channels, -1)
        return jax.vmap(lambda R: attribute(last(A), last(back(R)[0]), positions))(seeds)

    return of_seeds_at_output(fn, of_seeds, argnums, select)


def _find(plan: Plan, name: str | None, batch: int, axis: int | None) -> tuple[Any, int]:
    """The step of this name, or the last one with positions; and the axis of its channels.

    Positions are the axes that are neither batch nor channels. Channels are the features of the convolution before it.
    """
    found, channels = [], -1
    for step in plan.steps:
        if step.kind == "conv" and (conv := next((op for op in step.ops if op.name == "conv_general_dilated"), None)):
            spec = conv.eqn.params["dimension_numbers"].out_spec
            channels = spec[1] - len(spec)  # from the end, as an axis of the batch may have been added
        here = channels if axis is None else axis
        if not step.name or len(step.outputs) > 1 or len(step.out_shape) < max(batch + 2, -here, here + 1):
            continue
        if math.prod(step.out_shape[batch:]) > step.out_shape[here]:
            found.append((step, here))
    if name is None:
        found = [pair for pair in found if POOLS not in kind_of(pair[0].kind).families]
        if not found:
            raise ValueError("no layer has positions, which are axes other than batch and channels.")
        return found[-1]
    for step, here in found:
        if step.name == name:
            return step, here
    known = ", ".join(step.name for step, _ in found) or "none"
    raise ValueError(f"no layer {name!r} with positions; the layers with positions are {known}.")


def _check_mean_and_dense_after(plan: Plan, step: Any, batch: int, channels: int) -> None:
    """Raises ValueError unless a sum over all positions of this step follows, and then at most a dense layer."""
    known, means = set(step.outputs), 0
    each = math.prod(step.out_shape[:batch]) * step.out_shape[channels]
    for after in plan.steps[plan.steps.index(step) + 1 :]:
        size, mean = math.prod(after.out_shape), {SUMS, POOLS} <= {*kind_of(after.kind).families}
        means += mean
        fits = is_move(after.kind) or after.kind in ("scale", "shift") or (mean and size == each and means == 1)
        fits = fits or (after.kind == "dense" and means == 1 and len(after.out_shape) == batch + 1)
        if not (fits and known.issuperset(after.inputs)):
            raise ValueError(
                f"a class activation map needs a network that ends in the mean over positions and a dense layer, but "
                f"{after.name or after.op!r} ({after.kind}) follows {step.name!r}; grad_cam works for any network."
            )
        known.update(after.outputs)
