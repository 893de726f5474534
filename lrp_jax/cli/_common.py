"""Errors, the compilation cache, networks and files, for all commands."""

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class CommandError(Exception):
    """The command, or one image, cannot be processed. The message is one sentence."""


def print_error(error: Exception) -> int:
    """Prints the message, and returns the exit code."""
    if sys.stderr:
        with contextlib.suppress(OSError):  # standard error may be closed or full
            print(f"lrp-jax: {error}".encode("utf-8", "backslashreplace").decode(), file=sys.stderr, flush=True)
    return 2


def print_write_error(path: Any, error: OSError) -> int:
    """Prints that the result for an image cannot be written, and returns the exit code."""
    if isinstance(error, BrokenPipeError):  # of standard output
        raise error
    return print_error(CommandError(f"{path}: the result cannot be written ({error.strerror or error})."))


def cache_folder() -> str:
    """The folder of compiled code: JAX's own setting, or the user's cache folder."""
    import platformdirs

    default = os.path.join(platformdirs.user_cache_dir("lrp_jax"), "compiled")
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or default


def enable_compilation_cache() -> None:
    """Makes JAX keep compiled code in the cache folder."""
    import jax

    jax.config.update("jax_compilation_cache_dir", cache_folder())
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def check_not_existing(files: Iterable[Path], overwrite: bool, path: str | None = None) -> None:
    """Raises CommandError if a file to write exists.

    Args:
        files: the files to write.
        overwrite: whether existing files are replaced.
        path: the image that the files belong to, for the message.
    """
    for file in files:
        if os.path.exists(file) and not overwrite:  # False, not an error, if the name is too long
            prefix = f"{path}: " if path else ""
            raise CommandError(f"{prefix}{file} exists; use --overwrite to replace it, or --out for another folder.")


def check_folder(folder: Path) -> None:
    """Raises CommandError if results cannot be written to a folder. It is made when the first result is written."""
    from lrp_jax import files

    try:
        files.check_folder(folder)
    except OSError as error:
        raise CommandError(f"the folder {folder} cannot be made ({error.strerror}).") from None


def save_figures(figures: Mapping[Path, Any], overwrite: bool) -> None:
    """Writes figures by the names of their files, all or none, and prints the names."""
    from lrp_jax import plot
    from lrp_jax.files import writing

    try:
        with writing(*figures, overwrite=overwrite, make_folders=True) as parts:
            for figure, part in zip(figures.values(), parts, strict=True):
                plot.save(figure, part)
    except OSError as error:
        raise CommandError(
            f"{' and '.join(map(str, figures))}: cannot be written ({error.strerror or error})."
        ) from None
    for file in figures:
        print(f"  -> {file}")


def load_model(name: str) -> Any:
    """The network of this name."""
    from lrp_jax import models

    try:
        return models.load(name)
    except ValueError as error:
        raise CommandError(error) from None


def load_params(model: Any, path: Path | None = None) -> Any:
    """The network's weights on the device. The copy on the host is released array by array."""
    import jax

    from lrp_jax.weights import WeightsError

    try:
        leaves, tree = jax.tree.flatten(model.params(path))
    except WeightsError as error:
        raise CommandError(f"{error}{matching_models(path, model) if path else ''}") from None
    for i, leaf in enumerate(leaves):
        leaves[i] = jax.device_put(leaf)
    return jax.tree.unflatten(tree, leaves)


def matching_models(path: str | Path, rejected: Any) -> str:
    """A sentence that names the other networks whose weights are in the file. Empty if there is nothing to add."""
    from lrp_jax import models, weights
    from lrp_jax.models.weight_files import model_named_in

    def matches(model):
        try:
            return weights.arrange(tensors, model.shapes, model.layouts, path)
        except weights.WeightsError:
            return None

    try:
        tensors = weights.read(path)
    except weights.WeightsError:
        return ""
    if model_named_in(path):  # the error names the model already
        return ""
    others = [model for model in models.registry().values() if model is not rejected]
    names = [f"--model {model.name}" for model in others if matches(model)]
    return f" The file matches {' or '.join(names)}." if names else ""
