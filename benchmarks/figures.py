"""Draws the time of LRP against batch, pixels, depth and classes, and a roofline plot.

python benchmarks/figures.py docs/benchmarks.png
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from run import OURS, alternate, machine, peak_rate

import lrp_jax
from lrp_jax import outputs
from lrp_jax.models.vgg import STAGES, VGG

SHOWN = ("forward", "gradient", "epsilon", "epsilon_gamma_box")


def compiled(name: str, batch: int = 1, pixels: int = 96, depth: int = 16, classes: int = 1):
    """Compiles one function; returns a call, its number of operations and its number of bytes read and written."""
    network = VGG(classes=10, hidden=(256, 256), stages=STAGES[depth])
    apply: Callable[..., jax.Array] = network.apply  # pyright: ignore[reportAssignmentType]
    x = jax.random.normal(jax.random.key(1), (batch, pixels, pixels, 3), jnp.float32)
    params = jax.jit(network.init)(jax.random.key(0), x)
    function: Callable
    if name == "forward":
        function, args = apply, (params, x)
    elif name == "gradient":
        rows = jnp.eye(10)[:classes]

        def gradient(params, x):
            _, back = jax.vjp(lambda x: apply(params, x), x)
            return jax.vmap(lambda row: back(jnp.broadcast_to(row, (batch, 10)))[0])(rows)

        function, args = gradient, (params, x)
    else:
        target = np.arange(classes)[:, None]
        explain = lrp_jax.lrp(apply, OURS[name], output=outputs.one_hot)
        ready = explain.prepare(params, x, target=target)  # pyright: ignore[reportFunctionMemberAccess]
        function, args = (lambda ready, x: ready(x, target=target)), (ready, x)
    program = jax.jit(function).lower(*args).compile()
    cost = program.cost_analysis() or {}
    return functools.partial(program, *args), cost["flops"], cost["bytes accessed"]


def bandwidth() -> float:
    """Bytes per second while two large arrays are added."""
    a = jnp.ones(2**26, jnp.float32)
    add = jax.jit(lambda a, b: a + b)
    return 3 * a.nbytes / alternate({"add": lambda: add(a, a)}, 10)["add"].min()


def main() -> None:
    """Measures and draws all panels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    axes = {
        "batch": ("images", [1, 2, 4, 8]),
        "pixels": ("pixels on a side", [64, 128, 224]),
        "depth": ("layers with weights", [11, 16, 19]),
        "classes": ("classes explained", [1, 4, 10]),
    }
    figure, panels = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    *curves, roof, key = panels.ravel()
    for panel, (axis, (label, values)) in zip(curves, axes.items(), strict=True):
        times = {name: [] for name in SHOWN}
        for value in values:
            calls = {name: compiled(name, **{axis: value})[0] for name in SHOWN}
            for name, seconds in alternate(calls, options.repeat).items():
                times[name].append(np.median(seconds) * 1e3)
        for name, found in times.items():
            panel.plot(values, found, "o-", label=name)
        panel.set(xlabel=label, ylabel="ms", ylim=0, title=", ".join(constant_settings(axis)))

    peak, moved = peak_rate("float32"), bandwidth()
    intensity = np.logspace(0, 3, 100)
    roof.loglog(intensity, np.minimum(peak, moved * intensity) / 1e9, "k-", label="roof")
    for name in (*SHOWN, "epsilon_plus_flat"):
        call, flops, size = compiled(name, pixels=224)
        seconds = np.median(alternate({name: call}, options.repeat)[name])
        roof.loglog(flops / size, flops / seconds / 1e9, "o", label=name)
    roof.set(xlabel="operations per byte, by the compiler's count", ylabel="GFLOP/s", ylim=10, xlim=1)
    roof.set_title("roofline: 1 image, 224 pixels, VGG-16")
    key.legend(*roof.get_legend_handles_labels(), loc="center", frameon=False)
    key.set_axis_off()
    figure.suptitle(machine(peak, "float32"), fontsize=9)
    figure.savefig(options.file, dpi=110)


def constant_settings(axis: str) -> list[str]:
    """The settings that are constant in a panel."""
    settings = {"batch": "1 image", "pixels": "96 pixels", "depth": "VGG-16", "classes": "1 class"}
    return [text for name, text in settings.items() if name != axis]


if __name__ == "__main__":
    main()
