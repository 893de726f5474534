"""What all commands share: how they say that something is wrong."""

import os
import sys
from pathlib import Path


class CommandError(Exception):
    """What went wrong with one photograph or with the call, in one sentence."""


def complain(error: Exception) -> int:
    """Says what is wrong; returns the exit code."""
    print(f"lrp-jax: {error}", file=sys.stderr)
    return 2


def cache_folder() -> Path:
    """Where compiled code is kept from one call to the next: JAX's own setting, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or platformdirs.user_cache_path("lrp_jax") / "compiled")


def keep_compiled() -> None:
    """Keeps compiled code in the cache folder, and takes it from there."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
