"""Measures the start-up time of imports and commands, and the compilation time of LRP relative to the gradient.

    python benchmarks/start.py PHOTO

Each command runs in a new process, all of them alternately. The first round fills the caches and is not measured.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from run import alternate

import lrp_jax
from lrp_jax import models


def processes(photo: str, out: str) -> dict[str, Callable]:
    """Functions that start a process, by name."""
    explain = ["-m", "lrp_jax", "explain", photo, "--out", out, "--overwrite"]
    arguments = {
        "import jax": ["-c", "import jax"],
        "import lrp_jax": ["-c", "import lrp_jax"],
        "lrp-jax models": ["-m", "lrp_jax", "models"],
        "lrp-jax explain": explain,
    }
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": os.path.join(out, "compiled")}

    def run(arguments):
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)

    return {name: lambda a=a: run(a) for name, a in arguments.items()}


def compilations(model) -> dict[str, Callable]:
    """Functions that trace, lower and compile the gradient and each preset with empty caches, by name."""
    side = model.preprocessing.crop
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    params = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), model.params())

    def gradient(params, x):
        return jax.grad(lambda x: model.apply(params, x).max(-1).sum())(x)

    def compile(make):
        jax.clear_caches()
        jax.jit(make()).lower(params, x).compile()

    found = {"gradient": lambda: compile(lambda: lambda params, x: gradient(params, x))}
    for name, preset in model.composites.items():
        found[name] = lambda preset=preset: compile(lambda: lrp_jax.lrp(model.apply, preset()))
    return found


def main() -> None:
    """Measures and prints medians: seconds in addition to `import jax`, and ratios to the gradient."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", metavar="PHOTO")
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    with tempfile.TemporaryDirectory() as out:
        seconds = alternate(processes(options.photo, out), options.repeat)
    for name, taken in seconds.items():
        beyond = np.median(taken - seconds["import jax"])
        print(f"{name}: {np.median(taken):.2f} s, {beyond:.2f} s more than import jax")
    model = models.load(models.DEFAULT)
    params, x = model.params(), np.zeros((1, *[model.preprocessing.crop] * 2, 3), np.float32)
    explain = lrp_jax.lrp(model.apply, model.composites[model.presets[0]]())
    once = alternate({"": lambda: jax.block_until_ready(explain(params, x))}, options.repeat)[""]
    print(f"the explanation alone, {model.presets[0]}: {np.median(once):.2f} s")
    seconds = alternate(compilations(model), max(options.repeat // 3, 1))
    for name, taken in seconds.items():
        ratio = np.median(taken / seconds["gradient"])
        print(f"compiling {name}: {np.median(taken):.2f} s, {ratio:.2f} times the gradient")


if __name__ == "__main__":
    main()
