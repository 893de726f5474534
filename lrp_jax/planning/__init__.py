"""From a graph and a composite to a plan: the steps that receive relevance, with names and rules."""

from lrp_jax.planning.checks import UncoveredOpError
from lrp_jax.planning.plan import Plan, make_plan

__all__ = ["Plan", "UncoveredOpError", "make_plan"]
