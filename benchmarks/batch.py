"""Measures images per second of `lrp-jax batch` against loops over arrays in memory, of relevance and of the gradient.

    python benchmarks/batch.py                          # prints the tables
    python benchmarks/batch.py --write docs/batch.md    # also writes them between the marks of the page, and the figure

All three run alternately in one process, on the same images in batches of the same size. The first batch, which is
compiled, does not count. One process for each number of devices; on CPUs, devices are simulated and share the cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pages import write_between

SIZES = (1, 4, 16, 64, 256)
PHOTOGRAPHS = (("vgg16_imagenette", 2, 16), ("mobilenet_v2", 4, 24))
"""Network, items that a device explains at a time, items."""

EXAMPLES = Path(__file__).parents[1] / "examples"


def in_memory(call: Callable, batches: list) -> float:
    """Images per second of a function of batches in memory, with results on the host."""
    import jax

    np.asarray(call(batches[0]))
    start, before = time.perf_counter(), None
    for x in batches[1:]:
        now = call(jax.device_put(x))  # starts before the result of the batch before is read
        if before is not None:
            np.asarray(before)
        before = now
    np.asarray(before)
    return sum(map(len, batches[1:])) / (time.perf_counter() - start)


def measure(name: str, items: Any, size: int, count: int, workers: int, repeat: int) -> dict:
    """Images per second of the three functions: medians over the rounds."""
    import jax
    import jax.numpy as jnp

    import lrp_jax
    from lrp_jax import batch, models

    model = models.load(name)
    params = model.params()
    explain = lrp_jax.lrp(model.apply, model.composites[model.presets[0]]())
    source = batch.open_input(items, model.preprocessing) if isinstance(items, Path) else items[:count]
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, spec = size * jax.device_count(), jax.NamedSharding(mesh, jax.P("batch"))
    arrays = np.stack([source[i] for i in range(rows)])
    batches = [arrays] * max(len(source) // rows, 3)
    ready = explain.prepare(params, arrays)
    placed = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.max(model.apply(placed, x), -1))))
    on_devices = lambda f: lambda x: f(jax.device_put(x, spec))
    found: dict[str, list[float]] = {"memory": [], "gradient": [], "store": [], "waiting": []}
    for _ in range(repeat):
        found["memory"].append(in_memory(on_devices(ready), batches))
        found["gradient"].append(in_memory(on_devices(gradient), batches))
        with tempfile.TemporaryDirectory() as folder:
            done = batch.explain_dataset(
                explain, params, source, Path(folder) / "store", batch_size=size, workers=workers, progress=False
            )
        found["store"].append(done.per_second)
        found["waiting"].append(done.waiting)
    share = float(np.median(np.array(found["store"]) / np.array(found["memory"])))
    return {"network": name, "devices": jax.device_count(), "size": size, "workers": workers, "share": share,
            "shares": np.sort(np.array(found["store"]) / np.array(found["memory"])).tolist(),
            **{key: float(np.median(values)) for key, values in found.items()}}  # fmt: skip


def photographs(folder: Path, count: int) -> Path:
    """A list of image files: the examples of the repository, repeated."""
    names = [str(EXAMPLES / f"{('castle', 'china')[i % 2]}.jpg") for i in range(count)]
    (folder / "list.txt").write_text("\n".join(names))
    return folder / "list.txt"


def rows(repeat: int) -> list[dict]:
    """All measurements with the devices of this process."""
    import jax

    from lrp_jax.data import digits

    found, images = [], np.concatenate([digits.shipped().images] * 16)
    for size in SIZES:
        count = min(len(images), 500 * size)
        found.append(measure("mnist_cnn", images, size, count, 0, repeat))
        print(found[-1], file=sys.stderr, flush=True)
    if jax.device_count() == 1:
        with tempfile.TemporaryDirectory() as folder:
            for name, size, count in PHOTOGRAPHS:
                for workers in (0, 1):
                    found.append(measure(name, photographs(Path(folder), count), size, count, workers, repeat))
                    print(found[-1], file=sys.stderr, flush=True)
    return found


def table(found: list[dict]):
    """The lines of the table."""
    yield "| network | input | devices | images of a device | relevance in memory | gradient in memory | `batch` | "\
        "share of memory (range) | device waits at most |"  # fmt: skip
    yield "|---|---|---|---|---|---|---|---|---|"
    for r in found:
        kind = (
            "array" if r["network"].startswith("mnist") else f"JPEG, {'worker process' if r['workers'] else 'thread'}"
        )
        rates = " | ".join(
            f"{r[key]:,.1f}" if r[key] < 100 else f"{r[key]:,.0f}" for key in ("memory", "gradient", "store")
        )
        spread = f"{r['share']:.2f} ({r['shares'][0]:.2f} to {r['shares'][-1]:.2f})"
        yield f"| {r['network']} | {kind} | {r['devices']} | {r['size']} | {rates} | {spread} | {r['waiting']:.0%} |"


def draw(found: list[dict], file: Path) -> None:
    """Images per second against the batch size, for each number of devices."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, devices in zip(axes, (1, 2), strict=True):
        shown = [r for r in found if r["devices"] == devices and r["network"] == "mnist_cnn"]
        for key, label, style in (("store", "lrp-jax batch", "o-"), ("memory", "relevance, in memory", "s--"),
                                  ("gradient", "gradient, in memory", "^:")):  # fmt: skip
            ax.plot([r["size"] for r in shown], [r[key] for r in shown], style, label=label, markersize=4)
        ax.set(xscale="log", xlabel="images that a device explains at a time")
        ax.set_xticks(SIZES, SIZES)
        ax.minorticks_off()
        ax.set_title(f"{devices} device{'s' * (devices > 1)}", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("images per second")
    axes[0].set_ylim(0)
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle("mnist_cnn on two CPU cores; two simulated devices share them", fontsize=10)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Prints or writes the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="the page that gets the table, beside the figure")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return print(json.dumps(rows(options.repeat)))
    found = []
    for devices in (1, 2):
        flags = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
        command = [sys.executable, __file__, "--child", "--repeat", str(options.repeat)]
        done = subprocess.run(command, check=True, env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE)
        found += json.loads(done.stdout)
    lines = list(table(found))
    print("\n".join(lines))
    if options.write:
        write_between(options.write, "batch.py", lines)
        draw(found, options.write.with_suffix(".png"))


if __name__ == "__main__":
    main()
