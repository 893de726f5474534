"""Measures of explanations: feature removal, class shares and similarity; and the choice of a composite by them."""

from lrp_jax.evaluation.batches import padded_batches
from lrp_jax.evaluation.class_shares import ClassShares, class_shares
from lrp_jax.evaluation.removal import Removal, compare_orders, remove
from lrp_jax.evaluation.similarity import cosine_similarity
from lrp_jax.evaluation.tuning import Trial, Tuning, tune

__all__ = [
    "ClassShares",
    "Removal",
    "Trial",
    "Tuning",
    "class_shares",
    "compare_orders",
    "cosine_similarity",
    "padded_batches",
    "remove",
    "tune",
]
