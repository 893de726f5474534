"""Settings of all tests: float64, strict promotion of dtypes and ranks, four simulated devices, quick compilation."""

import os
from collections import defaultdict
from pathlib import Path

import jaxlib.version

# Tests compile many small programs and run each of them a few times, so most of their time is compilation. LLVM without
# optimization takes half of that time, and the older code generator of XLA a third less again. JAX 0.12 does not have
# it. One module of code for each program takes a tenth less with JAX 0.10.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join([
    "--xla_force_host_platform_device_count=4", "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if jaxlib.version.__version_info__ < (0, 11) else "",
    os.environ.get("XLA_FLAGS", ""),
])  # fmt: skip

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
if cache := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_addoption(parser):
    """`--cases N` is for other versions of packages: they change which functions exist, and no parameters of tests."""
    parser.addoption("--cases", type=int, help="run at most this number of cases of each parametrized test")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    """Keeps evenly spaced cases of each parametrized test, from those that have a value that no earlier case has."""
    if (count := config.getoption("--cases")) is None:
        return
    cases, seen = defaultdict(list), defaultdict(set)
    for item in items:
        test = item.nodeid.partition("[")[0]
        values = set(enumerate(item.callspec._idlist)) if hasattr(item, "callspec") else set()
        if len(values) < 2 or not values <= seen[test]:
            cases[test].append(item)
        seen[test] |= values
    kept = {found[i * len(found) // count] for found in cases.values() for i in range(count)}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder that LRP_JAX_DATA names: real weights, images, cases of other libraries. Skips the test without it."""
    if not (folder := os.environ.get("LRP_JAX_DATA")):
        pytest.skip("LRP_JAX_DATA is not set: there is no real data for this test")
    return Path(folder)


@pytest.fixture
def lenient():
    """JAX's default promotion of types and ranks, for networks that need it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
