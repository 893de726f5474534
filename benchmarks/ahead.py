"""What XLA makes of LRP on VGG-16 for an NVIDIA H100, counted on a machine that has none.

    pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt      # in JAX's own version
    JAX_PLATFORMS=cpu python benchmarks/ahead.py
    JAX_PLATFORMS=cpu python benchmarks/ahead.py --write docs/gpu.md

The compiler alone runs, so that operations, kernels and bytes are exact, and times are bounds, not measurements.
"""

import argparse
import math
import re
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from run import contestants, markdown

from lrp_jax.models.vgg import VGG

H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  l2_cache_size: 52428800 device_memory_size: 84978434048 memory_bandwidth: 3352320000000
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""The SXM5 card, as NVIDIA's data sheet and CUDA's device query have it."""

PEAK = {"bfloat16": 989e12, "float32": 495e12}
"""Operations per second of its tensor cores, by the data sheet, in bfloat16 and TF32."""

BANDWIDTH = 3.35e12
"""Bytes per second of its memory, by the data sheet."""

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]")
KERNEL = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) (?:fusion|custom-call|copy)\((.*?)\)", re.MULTILINE)
RESULT = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) [\w-]+\(", re.MULTILINE)


class Program(NamedTuple):
    """What a compiled program runs.

    Attributes:
        operations: of its convolutions.
        convolutions: how many.
        others: how many other kernels.
        convolved, moved: bytes that convolutions, and others, read and write.
        temporary: bytes of temporaries.
    """

    operations: float
    convolutions: int
    others: int
    convolved: float
    moved: float
    temporary: int


def arrays(shape: str) -> list[tuple[int, list[int]]]:
    """Bytes and axes of each array in a shape as XLA prints it."""
    found = [(BYTES[dtype], [int(n) for n in axes.split(",") if n]) for dtype, axes in ARRAY.findall(shape)]
    return [(size * math.prod(axes), axes) for size, axes in found]


def counted(compiled: jax.stages.Compiled) -> Program:
    """Counts what a program for a GPU runs."""
    text = compiled.as_text() or ""
    entry = text[text.index("\nENTRY") :]
    shapes = dict(RESULT.findall(entry))
    work = {"conv": [], "other": []}
    operations = 0.0
    for name, shape, operands in KERNEL.findall(entry):
        inputs = [shapes[operand] for operand in re.findall(r"%([\w.-]+)", operands)]
        moved = sum(size for part in (shape, *inputs) for size, _ in arrays(part))
        if is_convolution := name.startswith("cudnn-conv"):
            (_, kernel), (_, result) = arrays(inputs[1])[0], arrays(shape)[0]  # the workspace stands behind the result
            operations += 2 * math.prod(kernel) * math.prod(result[:-1])
        work["conv" if is_convolution else "other"].append(moved)
    memory = compiled.memory_analysis()
    return Program(
        operations, len(work["conv"]), len(work["other"]), sum(work["conv"]), sum(work["other"]),
        memory.temp_size_in_bytes if memory else 0,
    )  # fmt: skip


def programs(batch: int, pixels: int, dtype: str) -> dict[str, Program]:
    """What each contestant of `run.py` is compiled to."""
    try:
        topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=H100)
    except NotImplementedError:
        raise SystemExit(
            "XLA's compiler for GPUs is not installed: "
            f"pip install --no-deps jax-cuda12-plugin=={jax.__version__} jax-cuda12-pjrt=={jax.__version__}"
        ) from None
    there = jax.sharding.SingleDeviceSharding(topology.devices[0])
    network = VGG(classes=10, hidden=(256, 256))
    x = jnp.zeros((batch, pixels, pixels, 3), dtype)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    params = jax.tree.map(lambda w: jnp.zeros(w.shape, dtype), shapes)
    with mock.patch.object(jax, "default_backend", return_value="gpu"):  # what is prepared is laid out for it
        given = contestants(network, params, x)
    found = {}
    for name, (function, args) in given.items():
        args = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=there), args)
        found[name] = counted(jax.jit(function).lower(*args).compile())
    return found


def rows(batch: int, pixels: int, dtype: str) -> list[list[str]]:
    """A row for each contestant."""
    found = programs(batch, pixels, dtype)
    made = []
    for name, p in found.items():
        seconds = p.operations / PEAK[dtype] + p.moved / BANDWIDTH
        made.append([
            f"{batch}x{pixels}", dtype, name, f"{p.operations / batch / 1e9:.1f}", str(p.convolutions),
            f"{p.convolved / batch / 1e6:.0f}", str(p.others), f"{p.moved / batch / 1e6:.0f}",
            f"{p.moved / found['gradient'].moved:.2f}", f"{p.temporary / batch / 1e6:.1f}", f"{batch / seconds:,.0f}",
        ])  # fmt: skip
        print("  ".join(made[-1]), flush=True)
    return made


HEADER = [
    "images", "", "", "GFLOP", "convolutions", "their MB", "other kernels", "their MB", "/ gradient's", "temporary MB",
    "images/s at most",
]  # fmt: skip


def main() -> None:
    """Parses the command, compiles, prints, and writes the table if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ["1x224", "64x224", "512x224"]
    parser.add_argument("--sizes", nargs="+", default=sizes, metavar="IMAGESxPIXELS", help="(default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=PEAK)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as Markdown, too")
    options = parser.parse_args()
    made = []
    for size in options.sizes:
        for dtype in options.dtypes:
            batch, pixels = map(int, size.split("x"))
            made += rows(batch, pixels, dtype)
    if options.write:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "jax-cuda12-pjrt"))
        text = TEXT.format(versions=versions, table=markdown(HEADER, made))
        options.write.write_text(text, encoding="utf-8")


TEXT = """# On GPUs

LRP on VGG-16 with ten classes as XLA compiles it for an NVIDIA H100, counted, not timed: the compiler needs no GPU.
Operations, megabytes and temporaries are per image. Convolutions are cuDNN's; of bytes, all that kernels read and
write. **Images/s at most**: operations at the 989 TFLOP/s (bfloat16; TF32 495) and the other kernels' bytes at the
3.35 TB/s of the data sheet, one after the other.

{table}

What to see in it:

- Convolutions are the operations that the rules need, none computed twice: LRP-ε 2 forward passes, γ and z+ 3.
- All else is fused into the kernels between convolutions; biases, and ReLUs where no rule needs what comes before,
  into the convolutions. The gradient moves more, as its max-pools go backward by index and scatter.
- Prepared, no kernel is laid out anew; the last transposes are gone.

{versions}. Written by `JAX_PLATFORMS=cpu python benchmarks/ahead.py --write docs/gpu.md`; do not edit. Times:
`python benchmarks/run.py --dtype bfloat16 --sizes 1x224 8x224 64x224 512x224` on a GPU.
"""


if __name__ == "__main__":
    main()
