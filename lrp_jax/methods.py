"""The methods that LRP is compared with, each called as `lrp` is: `method(fn)(params, x, target=3)`.

Every one takes a function `fn(*args) -> logits (..., K)`, and returns `explain(*args, target=None)`, compiled on its
first call for each set of shapes. `target` is as for `lrp`: an int, one for each example, or None for the highest logit
of each; several are explained at once if one more axis counts them in front. `argnum` says which argument is explained
(by default the last), `select` which output, as for `lrp`. The result has the shape of the explained argument, unless a
method says otherwise. Below, y is the target's logit as a function of the explained argument x.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import _plan, _trace, outputs, rules
from lrp_jax.composites import Composite, first, kind, zennit
from lrp_jax.removal import wide
from lrp_jax.transform import Static, check, check_range, check_rows, lrp, run, start

Score = Callable[[Any], jax.Array]
"""From the explained argument to the target's logit of each example (...)."""


def _explainer(
    fn: Callable, attribute: Callable[[Score, Any], Any], argnum: int | Sequence[int], select: Any
) -> Callable[..., Any]:
    """`explain(*args, target=None)` from what a method makes of the target's logit and the explained argument."""

    def of_args(chosen, args, argnum, seeds):
        def score(x, R):
            at = [x if i == argnum % len(args) else arg for i, arg in enumerate(args)]
            return (chosen(*at) * R).sum(-1)

        return jax.vmap(lambda R: attribute(lambda x: score(x, R), args[argnum]))(seeds)

    return _seeded(fn, of_args, argnum, select)


def _seeded(
    fn: Callable, attribute: Callable[..., Any], argnum: int | Sequence[int], select: Any
) -> Callable[..., Any]:
    """The same from `attribute(fn, args, argnum, seeds)`, seeds (T, ..., K) being 1 at each target, and 0 elsewhere."""
    fn, argnum, arrange = _trace.arranged(fn, argnum, select)

    def attributions(args, target):
        logits = fn(*args)
        check_rows(logits, args[argnum])
        R = start(outputs.one_hot, logits, target, None)
        several = R.ndim > logits.ndim
        found = attribute(fn, args, argnum, R if several else R[None])
        return found if several else jax.tree.map(lambda v: v[0], found), Static(logits.shape)

    compiled = jax.jit(attributions)

    def explain(*args, target=None):
        args = arrange(args)
        target = check(args, argnum, target, None)
        found, shape = compiled(args, target)
        check_range(target, shape.value)
        return found

    return explain


def _gradient(score: Score, x: Any) -> Any:
    return jax.grad(lambda x: score(x).sum())(x)


def gradient(fn: Callable, *, argnum: int | Sequence[int] = -1, select: Any = None) -> Callable[..., Any]:
    """The gradient, dy/dx.

    Baehrens et al. 2010, "How to Explain Individual Classification Decisions".
    """
    return _explainer(fn, _gradient, argnum, select)


def absolute_gradient(fn: Callable, *, argnum: int | Sequence[int] = -1, select: Any = None) -> Callable[..., Any]:
    """The absolute value of the gradient, |dy/dx|, called saliency.

    Simonyan et al. 2014, "Deep Inside Convolutional Networks", section 3.
    """
    return _explainer(fn, lambda score, x: jax.tree.map(jnp.abs, _gradient(score, x)), argnum, select)


def gradient_times_input(fn: Callable, *, argnum: int | Sequence[int] = -1, select: Any = None) -> Callable[..., Any]:
    """Gradient times input, x dy/dx.

    Shrikumar et al. 2016, "Not Just a Black Box".
    """
    return taylor(fn, 0.0, argnum=argnum, select=select)


def taylor(
    fn: Callable, root: Any, at_root: bool = False, *, argnum: int | Sequence[int] = -1, select: Any = None
) -> Callable[..., Any]:
    """The first terms of the Taylor expansion around a root point, (x - root) dy/dx, at x or at the root.

    Args:
        fn, argnum, select: see the module.
        root: where y is (nearly) 0: a number, an array like x, or a function of x.
        at_root: whether the gradient is taken at the root, as Taylor's formula says, or at x.

    Bach et al. 2015, section "Taylor-type decomposition".
    """

    def attribute(score, x):
        point = _point(root, x)
        slope = _gradient(score, point if at_root else x)
        return jax.tree.map(lambda v, p, g: (v - p) * g, x, point, slope)

    return _explainer(fn, attribute, argnum, select)


def integrated_gradients(
    fn: Callable, baseline: Any = 0.0, steps: int = 32, *, argnum: int | Sequence[int] = -1, select: Any = None
) -> Callable[..., Any]:
    """The gradient along the way from a baseline, (x - x') int_0^1 dy/dx(x' + t (x - x')) dt, by the midpoint rule.

    Its sum is y(x) - y(x'), but for the steps.

    Args:
        fn, argnum, select: see the module.
        baseline: x': a number, an array like x, or a function of x.
        steps: points on the way; one after the other, so memory does not grow with them.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", equations 1 and 3.
    """
    _whole("steps", steps)

    def attribute(score, x):
        far = jax.tree.map(jnp.subtract, _wide(x), _wide(_point(baseline, x)))

        def add(total, t):
            here = jax.tree.map(lambda v, w, d: (w - (1 - t).astype(d.dtype) * d).astype(v.dtype), x, _wide(x), far)
            return jax.tree.map(jnp.add, total, _wide(_gradient(score, here))), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, far), (np.arange(steps) + 0.5) / steps)
        return jax.tree.map(lambda v, d, g: (d * (g / steps)).astype(v.dtype), x, far, total)

    return _explainer(fn, attribute, argnum, select)


def smooth_grad(
    fn: Callable,
    noise: float = 0.15,
    samples: int = 32,
    seed: int = 0,
    *,
    argnum: int | Sequence[int] = -1,
    select: Any = None,
) -> Callable[..., Any]:
    """The mean of gradients at noisy inputs, 1/n sum dy/dx(x + e), e ~ N(0, s^2), s = noise (max x - min x).

    Args:
        fn, argnum, select: see the module.
        noise: standard deviation of the noise, as a share of the range of each example's values.
        samples: n; one after the other, so memory does not grow with them.
        seed: of the random numbers.

    Smilkov et al. 2017, "SmoothGrad", section 3.1.
    """
    _whole("samples", samples)

    def attribute(score, x):
        first = min(score(x).ndim, 1)  # examples lie along the first axis, if there are several

        def noisy(v, key):
            axes = tuple(range(first, v.ndim))
            spread = noise * (v.max(axes, keepdims=True) - v.min(axes, keepdims=True))
            return v + spread * jax.random.normal(key, v.shape, v.dtype)

        def add(total, key):
            keys = jax.tree.unflatten(jax.tree.structure(x), jax.random.split(key, len(jax.tree.leaves(x))))
            return jax.tree.map(jnp.add, total, _wide(_gradient(score, jax.tree.map(noisy, x, keys)))), None

        keys = jax.random.split(jax.random.key(seed), samples)
        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, _wide(x)), keys)
        return jax.tree.map(lambda v, g: (g / samples).astype(v.dtype), x, total)

    return _explainer(fn, attribute, argnum, select)


def occlusion(
    fn: Callable,
    window: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    fill: float = 0.0,
    *,
    argnum: int = -1,
    select: Any = None,
) -> Callable[..., Any]:
    """How much y falls where a window is covered: for each value, the mean of y(x) - y(covered x) over its windows.

    Args:
        fn, argnum, select: see the module; one argument is explained.
        window: its lengths along the last axes of x: (16, 16, 3) for images (N, H, W, 3).
        stride: steps between windows along these axes, by default the window's lengths; a last window ends where the
            axis does.
        fill: what covers.

    Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2.
    """
    window, stride = (tuple(np.atleast_1d(v).tolist()) for v in (window, window if stride is None else stride))
    if len(stride) != len(window) or not all(isinstance(n, int) and n > 0 for n in (*window, *stride)):
        raise ValueError(f"window {window} and stride {stride}: expected as many whole numbers of 1 or more in both.")

    def attribute(score, x):
        if not isinstance(x, jax.Array):
            raise ValueError("occlusion explains one array; argnum names several, or a tree.")
        sums = wide(x.dtype)
        sides = x.shape[x.ndim - len(window) :]
        if len(sides) != len(window) or any(w > n for w, n in zip(window, sides, strict=True)):
            raise ValueError(f"window {window} does not fit into the explained argument, of shape {x.shape}.")
        places = [
            sorted({*range(0, n - w, s), n - w}) for n, w, s in zip(sides, window, stride, strict=True)
        ]  # fmt: skip
        corners = jnp.asarray(np.array(list(itertools.product(*places)), np.int32))

        def mask(corner):  # one axis in front for each that is not covered
            inside = jnp.ones((1,) * (x.ndim - len(sides)) + sides, bool)
            for axis, w in enumerate(reversed(window), 1):
                place = jax.lax.broadcasted_iota(jnp.int32, inside.shape, x.ndim - axis)
                inside &= (place >= corner[-axis]) & (place < corner[-axis] + w)
            return inside

        def fall(corner):
            covered = jnp.where(jnp.broadcast_to(mask(corner), x.shape), jnp.asarray(fill, x.dtype), x)
            return whole - score(covered)

        def add(totals, place):
            corner, fall = place
            inside = mask(corner).astype(sums)
            fall = fall.astype(sums).reshape(*fall.shape, *(1,) * (x.ndim - fall.ndim))
            return (totals[0] + fall * inside, totals[1] + inside), None

        whole = score(x)
        none = jnp.zeros((1,) * (x.ndim - len(sides)) + sides, sums)
        falls = jax.lax.map(fall, corners)
        (total, count), _ = jax.lax.scan(add, (jnp.zeros_like(x, sums), none), (corners, falls))
        return (total / jnp.maximum(count, 1)).astype(x.dtype)  # a stride longer than the window leaves gaps

    return _explainer(fn, attribute, argnum, select)


def guided_backprop(fn: Callable, *, argnum: int | Sequence[int] = -1, select: Any = None) -> Callable[..., Any]:
    """The gradient, of which activations hand on what is positive: R_j = [a_j > 0] max(R_j, 0).

    Springenberg et al. 2015, "Striving for Simplicity", figure 1.
    """
    return _changed_gradient(fn, True, argnum, select)


def deconvnet(fn: Callable, *, argnum: int | Sequence[int] = -1, select: Any = None) -> Callable[..., Any]:
    """The gradient with max(R_j, 0) in place of each activation's derivative.

    Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 2.1.
    """
    return _changed_gradient(fn, False, argnum, select)


def _changed_gradient(fn: Callable, guided: bool, argnum: Any, select: Any) -> Callable[..., Any]:
    composite = _ANYWHERE + [(kind("activation"), zennit.PositivePart(guided))]

    def of_args(chosen, args, argnum, seeds):
        plan = _plan.make_plan(_trace.trace(chosen, args, argnum), composite)
        _, back = jax.vjp(lambda x: run(plan, args, argnum, x, hold=False), args[argnum])
        return jax.vmap(lambda R: back(R)[0])(seeds)

    return _seeded(fn, of_args, argnum, select)


def deep_taylor(
    fn: Callable, low: Any = None, high: Any = None, *, argnum: int | Sequence[int] = -1, select: Any = None
) -> Callable[..., Any]:
    """Deep Taylor decomposition: the z+ rule for all layers with weights, without biases, from max(y, 0).

    Args:
        fn, argnum, select: see the module.
        low, high: bounds of x, numbers or one for each channel; the first layer then has the z^B rule, else w^2.

    Montavon et al. 2017, "Explaining nonlinear classification decisions with deep Taylor decomposition", table 1.
    """
    if (low is None) != (high is None):
        raise ValueError("give both low and high, or neither.")
    below = rules.WSquare(bias="ignore") if low is None else rules.ZBox(low, high, bias="ignore")
    composite = Composite([(kind("conv", "dense"), rules.ZPlus(bias="ignore")), (first(), below)])
    positive = lambda logits, target: jnp.maximum(outputs.logit(logits, target), 0)
    return _as_method(lrp(fn, composite, argnum=argnum, select=select, output=positive))


def grad_cam(
    fn: Callable,
    layer: str | None = None,
    channel_axis: int | None = None,
    *,
    argnum: int | Sequence[int] = -1,
    select: Any = None,
) -> Callable[..., Any]:
    """Grad-CAM: max(0, sum_k w_k A_k), with w_k the mean over the positions of dy/dA_k, A_k channel k of a layer.

    Args:
        fn, argnum, select: see the module.
        layer: its name in the plan (`print(lrp_jax.plan(fn, composite)(*args))`); A is what comes out of it. By default
            the last layer or activation that has positions; for a transformer, name one.
        channel_axis: of A; by default that of the convolution before it, else the last.

    Returns:
        `explain`, whose result has the shape of A without its channels: (N, h, w) for images.

    Raises (on the first call):
        ValueError: no such layer, or what comes out of it has no positions.

    Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2.
    """

    def attribute(A, slope, positions):
        return jnp.maximum((slope.mean(positions, keepdims=True) * A).sum(-1), 0)

    return _at_layer(fn, attribute, layer, channel_axis, False, argnum, select)


def cam(
    fn: Callable, channel_axis: int | None = None, *, argnum: int | Sequence[int] = -1, select: Any = None
) -> Callable[..., Any]:
    """Class activation map sum_k w_k A_k of a network that ends in the mean over positions and a dense layer w.

    Its mean over the positions is y without its bias.

    Args:
        fn, argnum, select: see the module.
        channel_axis: as for `grad_cam`.

    Returns:
        `explain`, whose result has the shape of A, what the mean is taken of, without its channels: (N, h, w).

    Raises (on the first call):
        ValueError: the network does not end so; `grad_cam` suits any.

    Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", equation 2.
    """

    def attribute(A, slope, positions):
        return (slope * A).sum(-1) * math.prod(A.shape[axis] for axis in positions)

    return _at_layer(fn, attribute, None, channel_axis, True, argnum, select)


class _Chain(rules.Route):
    """The chain rule, for steps of any kind."""

    fits = None  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]


_ANYWHERE = Composite([(lambda step: True, _Chain())])


def _at_layer(
    fn: Callable, attribute: Callable, layer: str | None, axis: int | None, linear: bool, argnum: Any, select: Any
) -> Callable:
    """The explainer from `attribute(A, dy/dA, positions)`, A being what comes out of a layer, its channels last."""

    def of_args(chosen, args, argnum, seeds):
        plan = _plan.make_plan(_trace.trace(chosen, args, argnum), _ANYWHERE)
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

            return run(plan, args, argnum, args[argnum], carry=carry, hold=False), seen[0]

        _, back, A = jax.vjp(logits_of, jnp.zeros(step.out_shape, step.outputs[0].aval.dtype), has_aux=True)
        last = lambda v: jnp.moveaxis(v, channels, -1)
        return jax.vmap(lambda R: attribute(last(A), last(back(R)[0]), positions))(seeds)

    return _seeded(fn, of_args, argnum, select)


def _find(plan: _plan.Plan, name: str | None, batch: int, axis: int | None) -> tuple[Any, int]:
    """The step of this name, or the last one with positions beside its batch and channels; and the axis of these.

    The channels lie where the convolution before it has its features.
    """
    found, channels = [], -1
    for step in plan.steps:
        if step.kind == "conv" and (conv := next((op for op in step.ops if op.name == "conv_general_dilated"), None)):
            spec = conv.eqn.params["dimension_numbers"].out_spec
            channels = spec[1] - len(spec)  # from behind, as an axis of the batch may have been added
        here = channels if axis is None else axis
        if not step.name or len(step.outputs) > 1 or len(step.out_shape) < max(batch + 2, -here):
            continue
        if math.prod(step.out_shape[batch:]) > step.out_shape[here]:
            found.append((step, here))
    if name is None:
        found = [pair for pair in found if pair[0].kind not in ("max_pool", "avg_pool", "sum")]
        if not found:
            raise ValueError("no layer has positions, between the axes of the batch and of the channels.")
        return found[-1]
    for step, here in found:
        if step.name == name:
            return step, here
    known = ", ".join(step.name for step, _ in found) or "none"
    raise ValueError(f"no layer {name!r} that has positions; there are {known}.")


def _check_mean_and_dense_after(plan: _plan.Plan, step: Any, batch: int, channels: int) -> None:
    """Raises unless what follows is one sum over all positions, and then at most a dense layer, of this step alone."""
    known, means = set(step.outputs), 0
    each = math.prod(step.out_shape[:batch]) * step.out_shape[channels]
    for after in plan.steps[plan.steps.index(step) + 1 :]:
        size, mean = math.prod(after.out_shape), after.kind in ("sum", "avg_pool")
        means += mean
        fits = after.kind in rules.MOVES | {"scale", "shift"} or (mean and size == each and means == 1)
        fits = fits or (after.kind == "dense" and means == 1 and len(after.out_shape) == batch + 1)
        if not (fits and known.issuperset(after.inputs)):
            raise ValueError(
                f"a class activation map needs a network that ends in the mean over positions and a dense layer, but "
                f"{after.name or after.op!r} ({after.kind}) follows {step.name!r}; grad_cam suits any network."
            )
        known.update(after.outputs)


def _as_method(explain: Callable) -> Callable:
    return lambda *args, target=None: explain(*args, target=target)


def _wide(tree: Any) -> Any:
    """In at least float32, where many are added up."""
    return jax.tree.map(lambda v: v.astype(wide(v.dtype)), tree)


def _point(value: Any, x: Any) -> Any:
    """An array for each one of x: a function of x, such arrays, or a number for all."""
    value = value(x) if callable(value) else value
    if jax.tree.structure(value) != jax.tree.structure(x):
        value = jax.tree.map(lambda _: value, x)
    return jax.tree.map(lambda v, p: jnp.broadcast_to(jnp.asarray(p, v.dtype), v.shape), x, value)


def _whole(name: str, number: int) -> None:
    if not (isinstance(number, int) and number > 0):
        raise ValueError(f"{name}={number!r}: expected a whole number, 1 or more.")
