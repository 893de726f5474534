"""Compiles AttnLRP of a network with the shape of Llama-3.2-1B in bfloat16, and counts memory and operations.

    python benchmarks/llama_1b.py

Nothing runs, so no weights are needed: the compiler counts. XLA for CPUs computes most of bfloat16 in float32, so its
temporaries are an upper bound of those on a GPU.
"""

import time

import jax
import jax.numpy as jnp

import lrp_jax
from lrp_jax import composites
from lrp_jax.models._decoder import Attention, Config
from lrp_jax.models.llama import LanguageModel

TOKENS = 2048
FREQUENCIES = tuple(500_000.0 ** (-i / 32) for i in range(32))
CONFIG = Config(
    vocabulary=128_256, width=2048, layers=16, heads=32, groups=8, size=64, hidden=8192,
    attention=(Attention(FREQUENCIES),), pattern=(0,) * 16, eps=1e-5,
)  # fmt: skip


def main() -> None:
    """Prints a line for each function."""
    jax.config.update("jax_enable_compilation_cache", False)
    model = LanguageModel(CONFIG, {}, file=None)  # pyright: ignore[reportArgumentType]
    ids = jax.ShapeDtypeStruct((1, TOKENS), jnp.int32)
    shapes = jax.eval_shape(lambda ids: model.network.init(jax.random.key(0), ids), ids)["params"]
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), shapes)
    x = jax.ShapeDtypeStruct((1, TOKENS, CONFIG.width), jnp.bfloat16)
    explain, lean = (lrp_jax.lrp(model.logits, composites.attn_lrp(), argnums=1, remat=r) for r in (False, True))
    calls = {
        "forward": model.logits,
        "gradient": lambda params, x: jax.grad(lambda x: model.logits(params, x)[0, 3].astype(jnp.float32))(x),
        "LRP": lambda params, x: explain(params, x, target=3),
        "LRP, `remat=True`": lambda params, x: lean(params, x, target=3),
    }
    size = sum(a.size for a in jax.tree.leaves(params)) * 2 / 1e9
    print(f"weights {size:.2f} GB, {TOKENS:,} tokens, JAX {jax.__version__}\n")
    print("| | seconds to trace and compile (CPU seconds) | temporaries, GB |\n|---|---|---|")
    for name, call in calls.items():
        start, cpu = time.perf_counter(), time.process_time()
        compiled = jax.jit(call).lower(params, x).compile()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        memory = compiled.memory_analysis()
        assert memory is not None
        print(f"| {name} | {seconds:.1f} ({cpu:.1f}) | {memory.temp_size_in_bytes / 1e9:.2f} |", flush=True)


if __name__ == "__main__":
    main()
