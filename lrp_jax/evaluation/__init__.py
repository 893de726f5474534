"""Measures of explanations: removal, complexity, localisation, randomisation, robustness; and choice by them."""

from lrp_jax.evaluation.axioms import completeness_error, non_sensitivity
from lrp_jax.evaluation.batches import padded_batches
from lrp_jax.evaluation.case import MEASURES, Case
from lrp_jax.evaluation.class_shares import ClassShares, class_shares
from lrp_jax.evaluation.comparison import Comparison, Row, Summary, compare
from lrp_jax.evaluation.complexity import effective_complexity, entropy, gini
from lrp_jax.evaluation.faithfulness import (
    Rationale,
    ScoreFalls,
    faithfulness_correlation,
    infidelity,
    random_masks,
    rationale,
    score_falls,
    sensitivity_n,
)
from lrp_jax.evaluation.localisation import Mosaics, mass_inside, mosaics, pointing_game, top_k_intersection
from lrp_jax.evaluation.masking import blur_fill, mean_fill, noise_fill
from lrp_jax.evaluation.randomisation import (
    Randomisation,
    class_sensitivity,
    random_logit,
    random_parameters,
    randomize_parameters,
)
from lrp_jax.evaluation.removal import Removal, compare_orders, remove
from lrp_jax.evaluation.robustness import Robustness, robustness
from lrp_jax.evaluation.similarity import cosine_similarity, similarity
from lrp_jax.evaluation.tuning import Trial, Tuning, tune

__all__ = [
    "MEASURES",
    "Case",
    "ClassShares",
    "Comparison",
    "Mosaics",
    "Randomisation",
    "Rationale",
    "Removal",
    "Robustness",
    "Row",
    "ScoreFalls",
    "Summary",
    "Trial",
    "Tuning",
    "blur_fill",
    "class_sensitivity",
    "class_shares",
    "compare",
    "compare_orders",
    "completeness_error",
    "cosine_similarity",
    "effective_complexity",
    "entropy",
    "faithfulness_correlation",
    "gini",
    "infidelity",
    "mass_inside",
    "mean_fill",
    "mosaics",
    "noise_fill",
    "non_sensitivity",
    "padded_batches",
    "pointing_game",
    "random_logit",
    "random_masks",
    "random_parameters",
    "randomize_parameters",
    "rationale",
    "remove",
    "robustness",
    "score_falls",
    "sensitivity_n",
    "similarity",
    "top_k_intersection",
    "tune",
]
