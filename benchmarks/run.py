"""Compares the time of LRP on VGG-16 with that of the gradient, zennit and captum.

    python benchmarks/run.py                                  # some minutes on two cores
    python benchmarks/run.py --write docs/benchmarks.md       # writes the table of the documentation
    python benchmarks/run.py --dtype bfloat16 --sizes 1x224 8x224 64x224 512x224   # for a GPU

Weights are random and nothing is downloaded. All functions run alternately in one process. zennit and captum are
compared if they are installed: pip install torch captum zennit.
"""

import argparse
import functools
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import other_libraries

import lrp_jax
from lrp_jax import composites, outputs
from lrp_jax.composites import kind
from lrp_jax.models.vgg import VGG

TARGET, LOW, HIGH = 3, -3.0, 3.0
OURS = {
    "epsilon": composites.captum.lrp(),
    "gamma": [(kind("conv", "dense"), composites.captum.gamma_rule())],
    "epsilon_gamma_box": composites.zennit.epsilon_gamma_box(LOW, HIGH),
    "epsilon_plus_flat": composites.zennit.epsilon_plus_flat(),
}


def functions(network: VGG, params, x: jax.Array) -> dict[str, tuple[Callable, tuple]]:
    """The compared functions of this package by name, each with its arguments."""
    apply: Callable[..., jax.Array] = network.apply  # pyright: ignore[reportAssignmentType]

    def gradient(params, x):
        return jax.grad(lambda x: apply(params, x)[:, TARGET].astype(jnp.float32).sum())(x)

    found: dict[str, tuple[Callable, tuple]] = {
        "forward": (apply, (params, x)),
        "gradient": (gradient, (params, x)),
    }
    for name, composite in OURS.items():
        explain = lrp_jax.lrp(apply, composite, output=outputs.one_hot)
        found[name] = functools.partial(explain, target=TARGET), (params, x)
        ready = explain.prepare(params, x)  # pyright: ignore[reportFunctionMemberAccess]
        found[f"{name}, prepared"] = (lambda ready, x: ready(x, target=TARGET)), (ready, x)
    return found


def alternate(calls: dict[str, Callable], repeat: int) -> dict[str, np.ndarray]:
    """Seconds of each call. All calls run alternately; the first round is a warm-up and is not measured."""
    seconds = {name: [] for name in calls}
    for i in range(repeat + 1):
        for name, call in calls.items():
            time.sleep(0.05)  # lets the threads of the previous call finish
            start = time.perf_counter()
            jax.block_until_ready(call())
            if i:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(s) for name, s in seconds.items()}


def peak_rate(dtype: str) -> float:
    """FLOP/s of the fastest among matrix products of several sizes."""
    best = 0.0
    for n in (1024, 2048, 4096, 8192)[: 2 if jax.default_backend() == "cpu" else None]:
        a = jnp.ones((n, n), dtype)
        product = jax.jit(lambda a: a @ a)
        seconds = alternate({"product": lambda a=a, product=product: product(a)}, 10)["product"]
        best = max(best, 2 * n**3 / seconds.min())
    return best


def measure(batch: int, pixels: int, dtype: str, repeat: int, peak: float) -> list[list[str]]:
    """A row for each function: operations, bytes, time, and speedup over the other libraries."""
    network = VGG(classes=10, hidden=(256, 256))
    x = jax.random.normal(jax.random.key(1), (batch, pixels, pixels, 3), jnp.float32)
    params = jax.tree.map(lambda w: w * 2**0.5, jax.jit(network.init)(jax.random.key(0), x))  # ReLU halves the variance
    cast = lambda tree: jax.tree.map(lambda v: v.astype(dtype), tree)
    counts, ours = {}, {}
    for name, (function, args) in functions(network, cast(params), cast(x)).items():
        compiled = jax.jit(function).lower(*args).compile()
        counts[name], ours[name] = compiled.cost_analysis() or {}, functools.partial(compiled, *args)
    theirs: dict[str, Callable] = {}
    if other_libraries.available():
        theirs = other_libraries.functions(params, np.asarray(x), TARGET, LOW, HIGH, dtype)
    check(ours, theirs, dtype)
    seconds = alternate(ours | theirs, repeat)
    rows = []
    for name, taken in seconds.items():
        same = [other for other in theirs if other.split(": ")[1] == name.split(",")[0]]
        faster = ", ".join(f"{other.split(': ')[0]} {spread(seconds[other] / taken)}" for other in same)
        counted = units = share = ""
        if costs := counts.get(name):  # some devices report no costs
            units = f"{costs['flops'] / counts['gradient']['flops']:.2f}"
            counted = f"{costs['bytes accessed'] / 1e9:.2f}"
            share = f"{np.median(costs['flops'] / taken) / peak:.0%}"
        time_, rate = f"{np.median(taken) * 1e3:.1f}", f"{batch / np.median(taken):.3g}"
        ratio = spread(taken / seconds["gradient"])
        rows.append([str(batch), str(pixels), name, units, counted, time_, rate, ratio, share, faster])
        print("  ".join(rows[-1]), flush=True)
    return rows


def spread(ratios: np.ndarray) -> str:
    """The median and the quartiles of ratios."""
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def check(ours: dict[str, Callable], theirs: dict[str, Callable], dtype: str) -> None:
    """Exits if another library gives a different relevance, because times of different results cannot be compared.

    The check uses medians, because denominators near zero amplify the rounding error of single pixels without bound.
    """
    bound = 0.01 if dtype == "float32" else 0.3
    for name, call in theirs.items():
        library, method = name.split(": ")
        if library == "torch" or method not in ours:
            continue
        mine, other = np.asarray(ours[method](), np.float32), other_libraries.array(call())
        if library == "captum":  # captum starts from the logit, lrp_jax from 1
            other = other * (mine.sum((1, 2, 3), keepdims=True) / other.sum((1, 2, 3), keepdims=True))
        off = np.median(np.abs(mine - other)) / np.median(np.abs(other))
        if not off < bound:
            raise SystemExit(
                f"{name} differs from {method} by {off:.2g} of the median relevance; the times cannot be compared."
            )
        ready = np.asarray(ours[f"{method}, prepared"](), np.float32)
        if not np.median(np.abs(ready - mine)) / np.median(np.abs(mine)) < bound:
            raise SystemExit(f"{method} differs from its prepared form; the times cannot be compared.")


HEADER = [
    "batch", "pixels", "function", "operations", "GB", "ms", "images/s", "time / gradient", "of peak", "speedup over",
]  # fmt: skip


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def machine(peak: float, dtype: str) -> str:
    """Describes the device, the peak rate and the versions of the packages."""
    names = ("jax", "jaxlib", "flax", "torch", "zennit", "captum")
    versions = [f"{n} {metadata.version(n)}" for n in names if any(d.name == n for d in metadata.distributions())]
    device = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
        device = f"{len(os.sched_getaffinity(0))} cores of {model}"
    return (
        f"{device}; {dtype}; matrix products reach {peak / 1e9:,.0f} GFLOP/s. Python {platform.python_version()}, "
        + ", ".join(versions)
        + "."
    )


def main() -> None:
    """Measures all sizes, prints the rows, and writes the table with `--write`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ["1x64", "8x64", "32x64", "1x224", "8x224", "1x448"]
    parser.add_argument("--sizes", nargs="+", default=sizes, metavar="IMAGESxPIXELS", help="(default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeat", type=int, default=7, help="number of measured rounds")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the table as Markdown")
    options = parser.parse_args()
    missing = {"zennit", "captum"} - set(other_libraries.available())
    if missing:
        print(f"not compared because not installed: {', '.join(sorted(missing))}")
    peak = peak_rate(options.dtype)
    print(machine(peak, options.dtype))
    rows = []
    for size in options.sizes:
        batch, pixels = map(int, size.split("x"))
        rows += measure(batch, pixels, options.dtype, options.repeat, peak)
    if options.write:
        text = TEXT.format(machine=machine(peak, options.dtype), table=markdown(HEADER, rows))
        options.write.write_text(text, encoding="utf-8")


TEXT = """# Benchmarks

VGG-16 with ten classes. All functions run alternately in one process. Times are medians. Ratios are medians with
quartiles.

- **Operations**: as counted by the compiler, relative to one input gradient. A forward pass is half of that.
- **GB**: bytes read and written, as counted by the compiler.
- **Of peak**: operations per second, relative to the fastest matrix product on the same machine.
- **Speedup over**: time of the same method in the other library, divided by this time.
- **Prepared**: `explain.prepare` has computed all values that depend only on the weights. On CPUs, wide convolutions
  then need fewer multiplications.

The benchmark first checks that the other libraries give the same relevance: the median difference is below 1 % of the
median relevance (30 % in half precision).

{machine}

{table}

Written by `python benchmarks/run.py --write docs/benchmarks.md`; do not edit.

The figure shows how the time depends on batch size, image size, depth and number of classes, and a roofline plot. The
roof is the lower of two limits: the rate of matrix products and the memory bandwidth. LRP is prepared. For several
classes, the gradient is one forward pass and a vmap of the backward pass over the classes.
`python benchmarks/figures.py docs/benchmarks.png` draws the figure.

![Time against batch, pixels, depth and classes, and the roofline](benchmarks.png)
"""


if __name__ == "__main__":
    main()
