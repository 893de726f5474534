"""Compares heatmaps in float32, TF32 and bfloat16 with heatmaps in float64.

    python benchmarks/precision.py PHOTO...

Uses the included VGG-16 and its presets. In TF32, GPUs round the factors of products to eleven bits and sum in float32.
This script rounds explicitly, so that it runs on any machine.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lrp_jax
from lrp_jax import models
from lrp_jax.core import flatten, graph
from lrp_jax.data import images

PRECISIONS = {"float32": "float32", "float32, prepared": "float32", "TF32": "float32", "bfloat16": "bfloat16"}


def tf32(fn: Callable) -> Callable:
    """The function with the factors of its products and convolutions rounded to TF32, except inside loops."""

    @jax.jit
    def rounded(*args, **options):
        inputs, ops, (result,), _ = flatten.operations(functools.partial(fn, **options), *args)
        env = dict(zip(inputs, jax.tree.leaves(args), strict=True))
        for op in ops:
            read = graph.reader(env)
            if op.name in ("dot_general", "conv_general_dilated"):
                results = op(lambda v, read=read: jax.lax.reduce_precision(read(v), exponent_bits=8, mantissa_bits=10))
            else:
                results = op(read)
            env.update(zip(op.outputs, results, strict=True))
        return env[result]

    return rounded


def main() -> None:
    """Measures each preset in each precision and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", metavar="PHOTO")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")  # GPUs may compute float32 products in TF32
    model = models.load(models.DEFAULT)
    cuts = [model.preprocessing.cut(images.read(photo)) for photo in options.photos]
    photos = [model.preprocessing.normalize(cut)[None].astype(np.float64) for cut in cuts]
    params = jax.tree.map(lambda w: w.astype(np.float64), model.params())
    targets = [int(jnp.argmax(model.apply(params, jnp.asarray(x)))) for x in photos]
    print("| | in | median | worst | correlation | sum |\n|---|---|---|---|---|---|")
    for preset in model.presets:
        explain = lrp_jax.lrp(model.apply, model.composites[preset]())
        exact = [explain(params, x, target=target) for x, target in zip(photos, targets, strict=True)]
        for name, dtype in PRECISIONS.items():
            weights, first = cast((params, photos[0]), dtype)
            if name == "float32, prepared":
                call = explain.prepare(weights, first)  # pyright: ignore[reportFunctionMemberAccess]
            else:
                call = functools.partial(tf32(explain) if name == "TF32" else explain, weights)
            found = [call(cast(x, dtype), target=target) for x, target in zip(photos, targets, strict=True)]
            print(f"| `{preset}` | {name} | {' | '.join(errors(found, exact))} |", flush=True)


def cast(tree: Any, dtype: Any) -> Any:
    """Converts all arrays of a tree to another dtype."""
    return jax.tree.map(lambda v: jnp.asarray(v, dtype), tree)


def errors(found: list[jax.Array], exact: list[jax.Array]) -> list[str]:
    """Relative norm of the difference (median, worst), lowest correlation, and largest relative error of the sum."""
    pairs = [(np.float64(a).ravel(), np.float64(b).ravel()) for a, b in zip(found, exact, strict=True)]
    distances = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]
    correlation = min(np.corrcoef(a, b)[0, 1] for a, b in pairs)
    total = max(abs(a.sum() / b.sum() - 1) for a, b in pairs)
    return [f"{np.median(distances):.1e}", f"{max(distances):.1e}", f"{correlation:.5f}", f"{total:.1e}"]


if __name__ == "__main__":
    main()
