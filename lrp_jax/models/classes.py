"""Names of classes, and the search for a class by name."""

import difflib
import functools
import heapq
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lrp_jax.spelling import did_you_mean

Classes = tuple[tuple[str, str], ...]
"""WordNet id and English name of each class, in the order of the logits."""


@functools.cache
def imagenet_classes() -> Classes:
    """Returns the 1000 classes of ImageNet in their usual order."""
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return tuple((wnid, english) for wnid, _, english in (line.partition(" ") for line in lines if line[0] != "#"))


def class_index(classes: Classes, name: Any, model: str) -> int:
    """Returns the index of the class with this index, name or WordNet id.

    Args:
        classes: the classes to search.
        name: index, English name or WordNet id. Upper and lower case are equal.
        model: the name of the network, for messages.

    Raises:
        ValueError: no class or several classes have this name. The message lists similar classes, or these classes.
    """
    wanted = str(name).strip().lower()
    names = [english.lower() for _, english in classes]
    found = [i for i, (wnid, _) in enumerate(classes) if wanted in (str(i), wnid, names[i])]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name!r} names several classes of {model}; give an index: {_listed(classes, found)}")
    if len(names) <= 10:
        near = did_you_mean(wanted, [english for _, english in classes])
        raise ValueError(
            f"{name!r} is not a class of {model}: {_listed(classes, range(len(names)))}{'.' * bool(near)}{near}"
        )
    similar = _most_similar(wanted, names)
    raise ValueError(
        f"{name!r} is not one of the {len(names)} classes of {model}; similar: {_listed(classes, similar)}"
    )


def _most_similar(wanted: str, names: list[str]) -> list[int]:
    """The five classes whose name, or one word of it, is most similar."""

    def likeness(i):
        return max(difflib.SequenceMatcher(None, wanted, part).ratio() for part in (names[i], *names[i].split()))

    return heapq.nlargest(5, range(len(names)), likeness)


def _listed(classes: Classes, indices: Iterable[int]) -> str:
    return ", ".join(f"{i} {classes[i][1]}" for i in indices)
