"""What a user must know beside an answer: the classes that a network knows, and how far a heatmap can be trusted."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lrp_jax.ledger import LITTLE

SAME = 0.95
"""If the cosine between the heatmaps of two classes is larger, the output says that they do not depend on the class."""

LARGEST_COMPARED = 8 * 224**2
"""The largest number of pixels for which the heatmap of another class is computed too; it needs more memory."""

CONSIDERED = 5
"""A class is confirmed if it is among so many most probable classes of the network that knows more classes."""


class SecondOpinion(NamedTuple):
    """The most probable classes of a network that knows more classes.

    Attributes:
        model: the name of this network.
        known: the number of its classes.
        classes: WordNet id, name and probability of its most probable classes.
        confirmed: whether the answer is among them.
    """

    model: str
    known: int
    classes: list[tuple[str, str, float]]
    confirmed: bool

    @property
    def sentence(self) -> str:
        """What this network sees, for a line below the answer."""
        seen = ", ".join(f"{name} {probability:.1%}" for _, name, probability in self.classes[:3])
        verb = "agrees" if self.confirmed else "sees something else"
        return f"{self.model}, which knows {self.known} classes, {verb}: {seen}."

    @property
    def short(self) -> str:
        """The same for the title of a heatmap."""
        _, name, probability = self.classes[0]
        return f"{self.model}{'' if self.confirmed else ' disagrees'}: {name} {probability:.0%}"


def second_opinions(model: Any) -> Callable[[Any, int], SecondOpinion | None]:
    """Returns a function from an image and the index of its class to the opinion of `model.wider`, if there is one."""
    from lrp_jax.weights import WeightsError

    if model.wider is None:
        return lambda crop, answer: None
    import jax
    import numpy as np

    from lrp_jax import models
    from lrp_jax.cli._inputs import softmax

    other = models.load(model.wider)
    try:
        params, apply = other.params(), jax.jit(other.apply)
    except WeightsError:  # an installation without these weights
        return lambda crop, answer: None

    def opinion(crop: Any, answer: int) -> SecondOpinion:
        side = other.preprocessing.crop
        seen = crop if crop.size == (side, side) else other.preprocessing.cut(crop)
        probabilities = softmax(np.asarray(apply(params, other.preprocessing.normalize(seen)[None])[0]))
        best = np.argsort(-probabilities)[:CONSIDERED].tolist()
        classes = [(*other.classes[c], float(probabilities[c])) for c in best]
        return SecondOpinion(
            other.name, len(other.classes), classes, model.classes[answer][0] in [wnid for wnid, *_ in classes]
        )

    return opinion


def known_classes(model: Any) -> str:
    """A sentence that says which classes a network knows, if there is a network that knows more. Otherwise empty."""
    if model.wider is None:
        return ""
    names = ", ".join(name for _, name in model.classes)
    return f"{model.name} knows only {len(model.classes)} classes: {names}. For 1000 classes: --model {model.wider}."


def notes_on_map(share: float | None, cosine: float | None, other: str) -> list[str]:
    """Sentences on a heatmap that is easily misread.

    Args:
        share: the sum of the relevance of the pixels, divided by the logit. None: not known.
        cosine: the cosine between the heatmaps of this and another class. None: not known.
        other: the name of the other class.
    """
    notes = []
    if share is not None and abs(share) < LITTLE:
        notes.append(
            f"Only {share:.2%} of the logit reached the pixels: compare the pixels with each other, not with the logit."
        )
    if cosine is not None and cosine > SAME:
        notes.append(
            f"The heatmap hardly depends on the class: its cosine with the heatmap of {other!r} is {cosine:.2f}."
        )
    return notes


def short_notes(share: float | None, cosine: float | None, other: str) -> list[str]:
    """The same for the title of a heatmap."""
    little = [f"only {share:.2%} of the logit arrived"] if share is not None and abs(share) < LITTLE else []
    same = [f"nearly the map of {other!r} (cosine {cosine:.2f})"] if cosine is not None and cosine > SAME else []
    return little + same


def cosine(first: Any, second: Any) -> float:
    """The cosine between the heatmaps of two classes: relevance (H, W, channels), summed over channels."""
    import numpy as np

    a, b = (np.asarray(R, np.float64).sum(-1).ravel() for R in (first, second))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0


def ranked(target: int | None) -> Callable[[Any, Any], Any]:
    """An output function of `lrp` for which targets are ranks: 0 is the most probable class, 1 the second.

    All classes of interest then share one forward pass. A given target has rank 0.
    """
    import jax.numpy as jnp

    from lrp_jax import outputs

    def output(logits: Any, rank: Any) -> Any:
        key = logits if target is None else logits.at[..., target].set(jnp.inf)
        order = jnp.argsort(-key, axis=-1)
        return outputs.logit(logits, jnp.take_along_axis(order, rank[..., None], axis=-1)[..., 0])

    return output


def order_of(logits: Any, target: int | None, count: int) -> Any:
    """The classes with the ranks 0 to count - 1, as in `ranked`. logits (..., classes) -> (..., count)."""
    import numpy as np

    key = np.array(logits)
    if target is not None:
        key[..., target] = np.inf
    return np.argsort(-key, axis=-1, kind="stable")[..., :count]


def joined(notes: Sequence[str], indent: str) -> str:
    """Notes as lines for the terminal."""
    return "".join(f"\n{indent}! {note}" for note in notes)
