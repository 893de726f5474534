"""Public JAX models with small random weights, in groups. Each group has a list of requirements, `GROUP.txt`."""

import importlib

GROUPS = ("keras", "transformers", "jax")
"""The groups: models of one group run in one environment."""

MODULES = {
    "keras": ("keras_applications", "keras_hub_models"),
    "transformers": ("transformers_models",),
    "jax": ("equinox_models", "flax_models", "haiku_models", "other_models"),
}
"""The modules of each group."""


def models(group: str) -> dict:
    """The functions that make the models of a group, by name."""
    found = {}
    for module in MODULES[group]:
        found |= importlib.import_module(f"public.{module}").MODELS
    return found
