"""The prediction of a network for images, with the names of the classes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.models.classes import Classes


class Prediction(NamedTuple):
    """The logits of images, with the names of the classes.

    Attributes:
        known: WordNet id and English name of each class.
        logits: (N, K).
    """

    known: Classes
    logits: jax.Array

    @property
    def probabilities(self) -> jax.Array:
        """(N, K): the softmax of the logits."""
        return jax.nn.softmax(self.logits)

    @property
    def classes(self) -> jax.Array:
        """(N,): the most probable class of each image."""
        return jnp.argmax(self.logits, axis=-1)

    @property
    def names(self) -> list[str]:
        """The English name of the most probable class of each image."""
        return [self.known[c][1] for c in np.asarray(self.classes).ravel().tolist()]
