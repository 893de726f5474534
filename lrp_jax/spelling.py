"""The name that a user probably meant."""

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Returns the most similar known name. None if none is similar."""
    wanted = str(name).lower()

    def likeness(other: str) -> tuple[float, bool]:
        same_letters = sorted(wanted) == sorted(other.lower())  # two letters in the wrong order
        return difflib.SequenceMatcher(None, wanted, other.lower()).ratio(), same_letters

    found = max(known, key=likeness, default="")
    return found if found and likeness(found)[0] >= 0.5 else None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns a question that names the most similar known name, with a space in front. Empty if none is similar."""
    return f" Did you mean {found!r}?" if (found := nearest(name, known)) else ""
