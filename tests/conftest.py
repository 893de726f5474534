"""Tests run in float64, with JAX's strict promotion of dtypes and ranks, on four pretended devices.

Most of their time goes into compiling, which takes half as long where LLVM does not optimize.
"""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join([
    "--xla_force_host_platform_device_count=4", "--xla_backend_optimization_level=0", os.environ.get("XLA_FLAGS", ""),
])  # fmt: skip

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
if cache := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real weights, photographs and peers' cases that LRP_JAX_DATA names; skips without it."""
    if not (folder := os.environ.get("LRP_JAX_DATA")):
        pytest.skip("LRP_JAX_DATA is not set: no real data to test with")
    return Path(folder)


@pytest.fixture
def lenient():
    """For networks as others write them: JAX's usual promotion of types and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
