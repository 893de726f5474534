"""Counts the operations and the memory of relevance through a loop, and the time to compile it.

    python benchmarks/loops.py                            # prints a table for all depths and numbers of tokens
    python benchmarks/loops.py --write docs/loops.md      # writes it between the marks of the page

The network is a decoder (width 128, four heads, gated MLP of 512, float32) whose layers are a scan. Nothing runs: the
compiler counts.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from pages import write_between

import lrp_jax
from lrp_jax import composites

WIDTH, HEADS, HIDDEN, CLASSES = 128, 4, 512, 50
DEPTHS, TOKENS = (2, 5, 10, 20, 40, 80), (128, 512, 1024, 2048, 4096)


def norm(x, scale):
    """Root mean square normalization."""
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def block(x, w):
    """One layer of the decoder."""
    split = lambda a: a.reshape(*a.shape[:-1], HEADS, WIDTH // HEADS)
    h = norm(x, w["norm_1"])
    q, k, v = (split(h @ w[name]) for name in "qkv")
    scores = jnp.einsum("...qhd,...khd->...hqk", q, k) / np.sqrt(WIDTH // HEADS)
    causal = np.tril(np.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9), -1)
    x = x + jnp.einsum("...hqk,...khd->...qhd", weights, v).reshape(x.shape) @ w["o"]
    h = norm(x, w["norm_2"])
    return x + (jax.nn.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"]


def decoder(params, x, *, checkpoint: bool = False):
    """The logits of the last token."""
    one = jax.checkpoint(block) if checkpoint else block
    x, _ = jax.lax.scan(lambda x, w: (one(x, w), None), x, params["layers"])
    return x[..., -1, :] @ params["head"]


def shapes(depth: int) -> dict:
    """The shapes of the parameters."""
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    square = {name: shape(depth, WIDTH, WIDTH) for name in "qkvo"}
    scales = {name: shape(depth, WIDTH) for name in ("norm_1", "norm_2")}
    wide = {name: shape(depth, WIDTH, HIDDEN) for name in ("gate", "up")}
    return {
        "layers": square | scales | wide | {"down": shape(depth, HIDDEN, WIDTH)},
        "head": shape(WIDTH, CLASSES),
    }


def functions() -> dict:
    """The compared functions of parameters and tokens."""

    def lrp(remat):
        explain = lrp_jax.lrp(decoder, composites.attn_lrp(), remat=remat)
        return lambda params, x: explain(params, x, target=3)

    def gradient(checkpoint):
        return lambda params, x: jax.grad(lambda x: decoder(params, x, checkpoint=checkpoint)[0, 3])(x)

    return {
        "LRP": lrp(remat=False),
        "LRP, `remat=True`": lrp(remat=True),
        "gradient": gradient(checkpoint=False),
        "gradient, `jax.checkpoint`": gradient(checkpoint=True),
    }


def measured(function, depth: int, tokens: int) -> tuple[float, float, float]:
    """CPU seconds to trace and compile, temporaries in MB, and operations in GFLOP of one iteration."""
    start = time.process_time()
    x = jax.ShapeDtypeStruct((1, tokens, WIDTH), jnp.float32)
    compiled = jax.jit(function).lower(shapes(depth), x).compile()
    seconds = round(time.process_time() - start, 1)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    assert memory is not None
    assert cost is not None
    return seconds, memory.temp_size_in_bytes / 1e6, cost["flops"] / 1e9


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def row(depth: int, tokens: int) -> str:
    """A row of the table: the four functions in each cell."""
    found = [measured(function, depth, tokens) for function in functions().values()]
    cells = [" / ".join(map(_short, numbers)) for numbers in zip(*found, strict=True)]
    return f"| {depth} x {tokens:,} | " + " | ".join(cells) + " |"


def table():
    """The lines of the table."""
    order = " / ".join(functions())
    yield f"In each cell: {order}. JAX {jax.__version__}."
    yield ""
    yield "| layers x tokens | CPU s to trace and compile | temporaries, MB | operations of one iteration, GFLOP |"
    yield "|---|---|---|---|"
    measured(functions()["LRP"], 2, 16)  # what only the first compilation needs
    for tokens in TOKENS:
        for depth in DEPTHS:
            yield row(depth, tokens)


def main() -> None:
    """Prints or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="the page that gets the table")
    file = parser.parse_args().write
    jax.config.update("jax_enable_compilation_cache", False)
    lines = []
    for line in table():
        print(line, flush=True)
        lines.append(line)
    if file:
        write_between(file, "loops.py", lines)


if __name__ == "__main__":
    main()
