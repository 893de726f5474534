"""Compiles LRP on VGG-16 for an NVIDIA H100 and counts operations, kernels and bytes. No GPU is needed.

    pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt      # the same version as JAX
    JAX_PLATFORMS=cpu python benchmarks/ahead.py
    JAX_PLATFORMS=cpu python benchmarks/ahead.py --write docs/gpu.md

Nothing runs on a GPU. Operations, kernels and bytes are exact; times are bounds, not measurements.
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
from run import functions, markdown

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
"""The SXM5 card, according to the data sheet of NVIDIA and the device query of CUDA."""

PEAK = {"bfloat16": 989e12, "float32": 495e12}
"""Operations per second of the tensor cores in bfloat16 and TF32, from the data sheet."""

BANDWIDTH = 3.35e12
"""Bytes per second of the memory, from the data sheet."""

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]")
KERNEL = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) (?:fusion|custom-call|copy)\((.*?)\)", re.MULTILINE)
RESULT = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) [\w-]+\(", re.MULTILINE)


class Program(NamedTuple):
    """Counts of a compiled program.

    Attributes:
        operations: operations of the convolutions.
        convolutions: number of convolutions.
        others: number of other kernels.
        convolution_bytes: bytes that the convolutions read and write.
        other_bytes: bytes that the other kernels read and write.
        temporary_bytes: bytes of temporary memory.
    """

    operations: float
    convolutions: int
    others: int
    convolution_bytes: float
    other_bytes: float
    temporary_bytes: int


def arrays(shape: str) -> list[tuple[int, list[int]]]:
    """Bytes and axes of each array in a shape that XLA printed."""
    found = [(BYTES[dtype], [int(n) for n in axes.split(",") if n]) for dtype, axes in ARRAY.findall(shape)]
    return [(size * math.prod(axes), axes) for size, axes in found]


def count(compiled: jax.stages.Compiled) -> Program:
    """Counts the kernels of a program that was compiled for a GPU."""
    text = compiled.as_text() or ""
    entry = text[text.index("\nENTRY") :]
    shapes = dict(RESULT.findall(entry))
    work = {"conv": [], "other": []}
    operations = 0.0
    for name, shape, operands in KERNEL.findall(entry):
        inputs = [shapes[operand] for operand in re.findall(r"%([\w.-]+)", operands)]
        moved = sum(size for part in (shape, *inputs) for size, _ in arrays(part))
        if is_convolution := name.startswith("cudnn-conv"):
            (_, kernel), (_, result) = arrays(inputs[1])[0], arrays(shape)[0]  # the result precedes the workspace
            operations += 2 * math.prod(kernel) * math.prod(result[:-1])
        work["conv" if is_convolution else "other"].append(moved)
    memory = compiled.memory_analysis()
    return Program(
        operations, len(work["conv"]), len(work["other"]), sum(work["conv"]), sum(work["other"]),
        memory.temp_size_in_bytes if memory else 0,
    )  # fmt: skip


def programs(batch: int, pixels: int, dtype: str) -> dict[str, Program]:
    """Compiles each function of `run.py` and counts its kernels."""
    try:
        topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=H100)
    except NotImplementedError:
        raise SystemExit(
            "The XLA compiler for GPUs is not installed; run "
            f"pip install --no-deps jax-cuda12-plugin=={jax.__version__} jax-cuda12-pjrt=={jax.__version__}"
        ) from None
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
    network = VGG(classes=10, hidden=(256, 256))
    x = jnp.zeros((batch, pixels, pixels, 3), dtype)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    params = jax.tree.map(lambda w: jnp.zeros(w.shape, dtype), shapes)
    with mock.patch.object(
        jax, "default_backend", return_value="gpu"
    ):  # `prepare` chooses the layouts for this backend
        compared = functions(network, params, x)
    found = {}
    for name, (function, args) in compared.items():
        args = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), args)
        found[name] = count(jax.jit(function).lower(*args).compile())
    return found


def rows(batch: int, pixels: int, dtype: str) -> list[list[str]]:
    """A table row for each function."""
    found = programs(batch, pixels, dtype)
    table = []
    for name, p in found.items():
        seconds = p.operations / PEAK[dtype] + p.other_bytes / BANDWIDTH
        table.append([
            f"{batch}x{pixels}", dtype, name, f"{p.operations / batch / 1e9:.1f}", str(p.convolutions),
            f"{p.convolution_bytes / batch / 1e6:.0f}", str(p.others), f"{p.other_bytes / batch / 1e6:.0f}",
            f"{p.other_bytes / found['gradient'].other_bytes:.2f}", f"{p.temporary_bytes / batch / 1e6:.1f}",
            f"{batch / seconds:,.0f}",
        ])  # fmt: skip
        print("  ".join(table[-1]), flush=True)
    return table


HEADER = [
    "images", "dtype", "function", "GFLOP", "convolutions", "MB of these", "other kernels", "MB of these",
    "MB / gradient", "temporary MB", "images/s at most",
]  # fmt: skip


def main() -> None:
    """Compiles all sizes and types, prints the rows, and writes the table with `--write`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ["1x224", "64x224", "512x224"]
    parser.add_argument("--sizes", nargs="+", default=sizes, metavar="IMAGESxPIXELS", help="(default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=PEAK)
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the table as Markdown")
    options = parser.parse_args()
    table = []
    for size in options.sizes:
        for dtype in options.dtypes:
            batch, pixels = map(int, size.split("x"))
            table += rows(batch, pixels, dtype)
    if options.write:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "jax-cuda12-pjrt"))
        text = TEXT.format(versions=versions, table=markdown(HEADER, table))
        options.write.write_text(text, encoding="utf-8")


TEXT = """# On GPUs

XLA compiles LRP on VGG-16 with ten classes for an NVIDIA H100. The compiler needs no GPU, so the table counts
operations and bytes and contains no times. Operations, megabytes and temporary memory are per image. Convolutions are
those of cuDNN. Megabytes are all that the kernels read and write. **Images/s at most** is an upper limit from the data
sheet: the operations at 989 TFLOP/s (bfloat16; TF32 495) and then the bytes of the other kernels at 3.35 TB/s.

{table}

Results:

- The compiled program contains the convolutions that the rules need, none twice: LRP-ε 2 forward passes, γ and z+ 3.
- XLA fuses biases into the convolutions, and also ReLUs whose input no rule needs. It fuses all other operations into
  the kernels between the convolutions. The gradient moves more bytes, because the backward pass of its max-pools uses
  indices and a scatter.
- Preparation removes all changes of kernel layout, including the last transposes.

{versions}. Written by
`JAX_PLATFORMS=cpu python benchmarks/ahead.py --write docs/gpu.md`; do not edit. To measure times on a GPU:
`python benchmarks/run.py --dtype bfloat16 --sizes 1x224 8x224 64x224 512x224`.
"""


if __name__ == "__main__":
    main()
