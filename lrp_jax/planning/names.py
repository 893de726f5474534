"""Names of steps."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from lrp_jax.recognize import Step
from lrp_jax.rules.kinds import is_move

OUTPUT = "output"
"""The name under which the relevance of the output is returned."""


def named(steps: Sequence[Step]) -> list[Step]:
    """The steps with names. Each name is unique.

    The name of a layer is the key path of its weight, or the parent of this path (`conv1`) if no other weight has the
    same parent. The name of another step is its kind and a number. Steps that only move values have no name.
    """
    paths = [str(step.path) for step in steps]
    parents = Counter(_parent(path) for path in {path for path in paths if path})
    used, numbers = Counter([OUTPUT]), Counter()
    names = []
    for step, path in zip(steps, paths, strict=True):
        parent = _parent(path)
        name = step.name or (parent if parent and parents[parent] == 1 and parent != OUTPUT else path)
        if name:
            used[name] += 1
            name = name if used[name] == 1 else f"{name}#{used[name]}"
        names.append(name)
    for i, step in enumerate(steps):
        if not names[i] and not is_move(step.kind):
            while not names[i] or names[i] in used:
                names[i] = f"{step.kind}_{numbers[step.kind]}"
                numbers[step.kind] += 1
            used[names[i]] += 1
    return [dataclasses.replace(step, name=name) for step, name in zip(steps, names, strict=True)]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
