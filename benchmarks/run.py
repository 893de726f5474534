"""Times LRP on VGG-16 against its own gradient, zennit and captum, alternating in one process; counts what can be.

    python benchmarks/run.py                                  # two cores: some minutes
    python benchmarks/run.py --write docs/benchmarks.md       # the table of the docs
    python benchmarks/run.py --dtype bfloat16 --sizes 1x224 8x224 64x224 512x224   # a GPU

Weights are random, nothing is downloaded. zennit and captum are rivals where they and torch are installed:
pip install torch captum zennit.
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
import rivals

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


def contestants(network: VGG, params, x: jax.Array) -> dict[str, tuple[Callable, tuple]]:
    """Our contestants by name, each a function and its arguments."""

    def gradient(params, x):
        return jax.grad(lambda x: network.apply(params, x)[:, TARGET].astype(jnp.float32).sum())(x)

    found: dict[str, tuple[Callable, tuple]] = {
        "forward": (network.apply, (params, x)),
        "gradient": (gradient, (params, x)),
    }
    for name, composite in OURS.items():
        explain = lrp_jax.lrp(network.apply, composite, output=outputs.one_hot)
        found[name] = functools.partial(explain, target=TARGET), (params, x)
        ready = explain.prepare(params, x)  # pyright: ignore[reportFunctionMemberAccess]
        found[f"{name}, prepared"] = (lambda ready, x: ready(x, target=TARGET)), (ready, x)
    return found


def alternate(calls: dict[str, Callable], repeat: int) -> dict[str, np.ndarray]:
    """Seconds of each call, all taking turns; the first round warms up and does not count."""
    seconds = {name: [] for name in calls}
    for i in range(repeat + 1):
        for name, call in calls.items():
            time.sleep(0.05)  # for the threads of the one before to come to rest
            start = time.perf_counter()
            jax.block_until_ready(call())
            if i:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(s) for name, s in seconds.items()}


def ceiling(dtype: str) -> float:
    """FLOP/s of the fastest of some matrix products."""
    best = 0.0
    for n in (1024, 2048, 4096, 8192)[: 2 if jax.default_backend() == "cpu" else None]:
        a = jnp.ones((n, n), dtype)
        product = jax.jit(lambda a: a @ a)
        seconds = alternate({"product": lambda a=a, product=product: product(a)}, 10)["product"]
        best = max(best, 2 * n**3 / seconds.min())
    return best


def measure(batch: int, pixels: int, dtype: str, repeat: int, peak: float) -> list[list[str]]:
    """A row for each contestant: operations, time, times as fast as its rivals."""
    network = VGG(classes=10, hidden=(256, 256))
    x = jax.random.normal(jax.random.key(1), (batch, pixels, pixels, 3), jnp.float32)
    params = jax.tree.map(lambda w: w * 2**0.5, jax.jit(network.init)(jax.random.key(0), x))  # as ReLU halves variance
    cast = lambda tree: jax.tree.map(lambda v: v.astype(dtype), tree)
    counts, ours = {}, {}
    for name, (function, args) in contestants(network, cast(params), cast(x)).items():
        compiled = jax.jit(function).lower(*args).compile()
        counts[name], ours[name] = compiled.cost_analysis() or {}, functools.partial(compiled, *args)
    theirs = rivals.explainers(params, np.asarray(x), TARGET, LOW, HIGH, dtype) if rivals.available() else {}
    check(ours, theirs, dtype)
    seconds = alternate(ours | theirs, repeat)
    rows = []
    for name, taken in seconds.items():
        same = [rival for rival in theirs if rival.split(": ")[1] == name.split(",")[0]]
        faster = ", ".join(f"{rival.split(': ')[0]} {spread(seconds[rival] / taken)}" for rival in same)
        counted = units = share = ""
        if costs := counts.get(name):  # which not every device counts
            units = f"{costs['flops'] / counts['gradient']['flops']:.2f}"
            counted = f"{costs['bytes accessed'] / 1e9:.2f}"
            share = f"{np.median(costs['flops'] / taken) / peak:.0%}"
        time_, rate = f"{np.median(taken) * 1e3:.1f}", f"{batch / np.median(taken):.3g}"
        ratio = spread(taken / seconds["gradient"])
        rows.append([str(batch), str(pixels), name, units, counted, time_, rate, ratio, share, faster])
        print("  ".join(rows[-1]), flush=True)
    return rows


def spread(ratios: np.ndarray) -> str:
    """The median of ratios, and their quartiles."""
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def check(ours: dict[str, Callable], theirs: dict[str, Callable], dtype: str) -> None:
    """Raises where a rival's numbers are others than ours: what is not equal is not compared.

    Medians, because a denominator near zero amplifies the rounding of single relevances as much as it likes.
    """
    bound = 0.01 if dtype == "float32" else 0.3
    for name, call in theirs.items():
        library, method = name.split(": ")
        if library == "torch" or method not in ours:
            continue
        mine, other = np.asarray(ours[method](), np.float32), rivals.array(call())
        if library == "captum":  # it starts from the logit, ours from 1
            other = other * (mine.sum((1, 2, 3), keepdims=True) / other.sum((1, 2, 3), keepdims=True))
        off = np.median(np.abs(mine - other)) / np.median(np.abs(other))
        if not off < bound:
            raise SystemExit(f"{name} differs from {method} by {off:.2g} of what is usual; nothing to compare.")
        ready = np.asarray(ours[f"{method}, prepared"](), np.float32)
        if not np.median(np.abs(ready - mine)) / np.median(np.abs(mine)) < bound:
            raise SystemExit(f"{method} differs from what is prepared; nothing to compare.")


HEADER = [
    "batch", "pixels", "", "operations", "GB", "ms", "images/s", "time / gradient", "of ceiling", "times as fast as",
]  # fmt: skip


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """The rows as a table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def machine(peak: float, dtype: str) -> str:
    """What it was measured on, and with."""
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
    """Parses the command, measures, prints, and writes the table if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ["1x64", "8x64", "32x64", "1x224", "8x224", "1x448"]
    parser.add_argument("--sizes", nargs="+", default=sizes, metavar="IMAGESxPIXELS", help="(default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeat", type=int, default=7, help="rounds; medians are taken over them")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as Markdown, too")
    options = parser.parse_args()
    missing = {"zennit", "captum"} - set(rivals.available())
    if missing:
        print(f"not installed, so not compared: {', '.join(sorted(missing))}")
    peak = ceiling(options.dtype)
    print(machine(peak, options.dtype))
    rows = []
    for size in options.sizes:
        batch, pixels = map(int, size.split("x"))
        rows += measure(batch, pixels, options.dtype, options.repeat, peak)
    if options.write:
        text = TEXT.format(machine=machine(peak, options.dtype), table=markdown(HEADER, rows))
        options.write.write_text(text, encoding="utf-8")


TEXT = """# Benchmarks

VGG-16 with ten classes. All contestants take turns in one process; times are medians, ratios medians of ratios with
their quartiles. **Operations**, as counted by the compiler, are in input gradients (half of one is a forward pass),
**GB** what it counts as read and written. **Of ceiling**: operations per second, as a share of what the fastest matrix
product reaches on the machine. **Prepared**: `explain.prepare`, what depends on weights alone done before; on CPUs wide
convolutions then take fewer multiplications. Rivals give the same relevance, which is checked first: the median of the
differences is below 1 % of the median relevance (30 % in half precision).

{machine}

{table}

Written by `python benchmarks/run.py --write docs/benchmarks.md`; do not edit.

How cost grows, and where LRP lies under the machine's roof, the lower of what its matrix products and its memory reach
(`python benchmarks/figures.py docs/benchmarks.png`). LRP is prepared; of several classes, the gradient is a vmap over
the classes behind one forward pass.

![Time against batch, pixels, depth and classes, and the roofline](benchmarks.png)
"""


if __name__ == "__main__":
    main()
