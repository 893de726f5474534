"""Methods that use the gradient, or the mean of several gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.dtypes import at_least_float32
from lrp_jax.core.function import Argnums, Select
from lrp_jax.core.numbers import check_count, check_number
from lrp_jax.methods.method import Score, of_score


def _gradient(score: Score, x: Any) -> Any:
    return jax.grad(lambda x: score(x).sum())(x)


def gradient(fn: Callable, *, argnums: Argnums = -1, select: Select = None) -> Callable[..., Any]:
    """The gradient, dy/dx.

    Baehrens et al. 2010, "How to Explain Individual Classification Decisions".
    """
    return of_score(fn, _gradient, argnums, select)


def absolute_gradient(fn: Callable, *, argnums: Argnums = -1, select: Select = None) -> Callable[..., Any]:
    """The absolute value of the gradient, |dy/dx|, also called saliency.

    Simonyan et al. 2014, "Deep Inside Convolutional Networks", section 3.
    """
    return of_score(fn, lambda score, x: jax.tree.map(jnp.abs, _gradient(score, x)), argnums, select)


def gradient_times_input(fn: Callable, *, argnums: Argnums = -1, select: Select = None) -> Callable[..., Any]:
    """Gradient times input, x dy/dx.

    Shrikumar et al. 2016, "Not Just a Black Box".
    """
    return taylor(fn, 0.0, argnums=argnums, select=select)


def taylor(
    fn: Callable, root: Any, at_root: bool = False, *, argnums: Argnums = -1, select: Select = None
) -> Callable[..., Any]:
    """The first-order terms of the Taylor expansion around a root point, (x - root) dy/dx, at x or at the root.

    Args:
        fn, argnums, select: see the module.
        root: a point where y is about 0: a number, an array with the shape of x, or a function of x.
        at_root: True computes the gradient at the root, as in Taylor's formula; False at x.

    Bach et al. 2015, section "Taylor-type decomposition".
    """

    def attribute(score, x):
        point = _point(root, x)
        slope = _gradient(score, point if at_root else x)
        return jax.tree.map(lambda v, p, g: (v - p) * g, x, point, slope)

    return of_score(fn, attribute, argnums, select)


def integrated_gradients(
    fn: Callable, baseline: Any = 0.0, steps: int = 32, *, argnums: Argnums = -1, select: Select = None
) -> Callable[..., Any]:
    """The mean gradient between a baseline and x, (x - x') int_0^1 dy/dx(x' + t (x - x')) dt, by the midpoint rule.

    Its sum is y(x) - y(x'), except for the error of the midpoint rule.

    Args:
        fn, argnums, select: see the module.
        baseline: x': a number, an array with the shape of x, or a function of x.
        steps: number of points. They are computed one after another, so memory does not depend on their number.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", equations 1 and 3.
    """
    check_count("steps", steps)
    jax.tree.map(lambda part: check_number("baseline", part, negative=True), baseline)

    def attribute(score, x):
        far = jax.tree.map(jnp.subtract, _wide(x), _wide(_point(baseline, x)))

        def add(total, t):
            here = jax.tree.map(lambda v, w, d: (w - (1 - t).astype(d.dtype) * d).astype(v.dtype), x, _wide(x), far)
            return jax.tree.map(jnp.add, total, _wide(_gradient(score, here))), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, far), (np.arange(steps) + 0.5) / steps)
        return jax.tree.map(lambda v, d, g: (d * (g / steps)).astype(v.dtype), x, far, total)

    return of_score(fn, attribute, argnums, select)


def smooth_grad(
    fn: Callable,
    noise: float = 0.15,
    samples: int = 32,
    seed: int = 0,
    *,
    argnums: Argnums = -1,
    select: Select = None,
) -> Callable[..., Any]:
    """The mean of gradients at noisy inputs, 1/n sum dy/dx(x + e), e ~ N(0, s^2), s = noise (max x - min x).

    Args:
        fn, argnums, select: see the module.
        noise: standard deviation of the noise, as a share of the range of the values of an example.
        samples: n. They are computed one after another, so memory does not depend on their number.
        seed: seed of the random numbers.

    Smilkov et al. 2017, "SmoothGrad", section 3.1.
    """
    check_count("samples", samples)
    check_number("noise", noise)
    check_count("seed", seed, 0)

    def attribute(score, x):
        first = min(score(x).ndim, 1)  # the first axis has the examples, if there is one

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

    return of_score(fn, attribute, argnums, select)


def _wide(tree: Any) -> Any:
    """The arrays in at least float32, for sums of many terms."""
    return jax.tree.map(lambda v: v.astype(at_least_float32(v.dtype)), tree)


def _point(value: Any, x: Any) -> Any:
    """An array for each array of x. `value` is a function of x, a tree of arrays, or one number."""
    value = value(x) if callable(value) else value
    if jax.tree.structure(value) != jax.tree.structure(x):
        value = jax.tree.map(lambda _: value, x)
    return jax.tree.map(lambda v, p: jnp.broadcast_to(jnp.asarray(p, v.dtype), v.shape), x, value)
