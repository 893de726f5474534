"""What all commands share: how they say that something is wrong."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RULES = ("LRP-0", "LRP-epsilon", "LRP-gamma", "LRP-alpha2beta1")
"""Names in `experiments.RULES`, at hand before JAX is imported."""


class CommandError(Exception):
    """What went wrong with one photograph or with the call, in one sentence."""


def complain(error: Exception) -> int:
    """Says what is wrong; returns the exit code."""
    print(f"lrp-jax: {error}", file=sys.stderr)
    return 2


def cache_folder() -> str:
    """Where compiled code is kept from one call to the next: JAX's own setting, or the user's cache folder."""
    import platformdirs

    own = os.path.join(platformdirs.user_cache_dir("lrp_jax"), "compiled")
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or own


def keep_compiled() -> None:
    """Keeps compiled code in the cache folder, and takes it from there."""
    import jax

    jax.config.update("jax_compilation_cache_dir", cache_folder())
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def refuse_existing(files: Iterable[Path], overwrite: bool) -> None:
    """Raises where a file to write is there already."""
    for file in files:
        if file.exists() and not overwrite:
            raise CommandError(f"{file} exists; use --overwrite to replace it, or --out for another folder.")


def make_folder(folder: Path) -> None:
    """Makes a folder for results."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"the folder {folder} cannot be made ({error.strerror}).") from None


def save_figure(figure: Any, file: Path) -> None:
    """Writes a picture, and says where."""
    from lrp_jax import plot

    try:
        plot.save(figure, file)
    except OSError as error:
        raise CommandError(f"{file}: cannot be written ({error.strerror or error}).") from None
    print(f"  -> {file}")


def model_of(name: str) -> Any:
    """The network of this name."""
    from lrp_jax import models

    try:
        return models.load(name)
    except ValueError as error:
        raise CommandError(error) from None


def suits(path: str | Path, wanted: Any) -> str:
    """Which other networks' weights the file holds, as the end of a sentence; nothing where there is no more to say."""
    from lrp_jax import models, weights
    from lrp_jax.models.pretrained import model_in

    def fits(model):
        try:
            return weights.arrange(tensors, model.shapes, model.layouts, path)
        except weights.WeightsError:
            return None

    try:
        tensors = weights.read(path)
    except weights.WeightsError:
        return ""
    if model_in(path):  # which says so itself
        return ""
    others = [model for model in models.registry().values() if model is not wanted]
    names = [f"--model {model.name}" for model in others if fits(model)]
    return f" It suits {' or '.join(names)}." if names else ""
