"""Numerical verification of conservation: where each unit of relevance went, step by step.

Every term is computed from what it is, none as the rest of the others, so that their sum is a check: the residual is
zero to rounding if, and only if, the books are right.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import _compat, _plan, _trace, outputs, rules
from lrp_jax._steps import Step
from lrp_jax.composites import as_composite
from lrp_jax.transform import Static, apply_rule, check, check_range, run, start

LOSSES = ("bias", "stabilizer", "zeros", "constants", "rule")
"""Where relevance can stay: kept by the bias; kept by the stabilizer; lost at outputs that are exactly zero; gone to
constants, such as padding and masked values; dropped (or, if negative, created) by the rule itself."""

_TERMS = ("received", "passed", *LOSSES, "mass", "negative")


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One step in the ledger; all amounts are sums over the step, one for each example, shape (examples,).

    Attributes:
        name, kind, rule: the step's, as in the plan.
        received: relevance of its outputs.
        passed: relevance of its inputs.
        bias, stabilizer, zeros, constants, rule_loss: relevance that stayed, see `LOSSES`.
        mass: absolute relevance of its inputs.
        negative: absolute value of the negative relevance of its inputs.
    """

    name: str
    kind: str
    rule: str
    received: np.ndarray
    passed: np.ndarray
    bias: np.ndarray
    stabilizer: np.ndarray
    zeros: np.ndarray
    constants: np.ndarray
    rule_loss: np.ndarray
    mass: np.ndarray
    negative: np.ndarray

    @property
    def losses(self) -> tuple[np.ndarray, ...]:
        """What stayed, in the order of `LOSSES`."""
        return self.bias, self.stabilizer, self.zeros, self.constants, self.rule_loss

    @property
    def lost(self) -> np.ndarray:
        """All relevance that stayed in the step."""
        return np.sum(self.losses, axis=0)

    @property
    def residual(self) -> np.ndarray:
        """Received - passed - lost: zero to rounding, or the step is wrong."""
        return self.received - self.passed - self.lost


@dataclasses.dataclass(frozen=True, eq=False)
class Ledger:
    """The books of one relevance pass; `print(ledger)` shows them as a table with a verdict.

    Attributes:
        entries: one for each step that relevance passed, in forward order.
        score: relevance at the output, by example.
        relevance: relevance of the explained argument, summed, by example.
        mass: its absolute values, summed.
        negative: the absolute value of its negative part, summed.
        tolerance: the largest residual, as a share of the relevance that moves, that counts as rounding.
    """

    entries: tuple[Entry, ...]
    score: np.ndarray
    relevance: np.ndarray
    mass: np.ndarray
    negative: np.ndarray
    tolerance: float

    def relative_residual(self, entry: Entry) -> float:
        """An entry's largest residual over the examples, as a share of the absolute relevance that moves."""
        return float(np.max(np.abs(entry.residual) / self._scale(entry), initial=0.0))

    def _scale(self, entry: Entry) -> np.ndarray:
        return np.maximum.reduce(
            [entry.mass, np.abs(entry.received), np.abs(self.score), np.full_like(self.score, 1e-300)]
        )

    @property
    def faults(self) -> tuple[Entry, ...]:
        """The steps whose books do not close."""
        return tuple(e for e in self.entries if not self.relative_residual(e) <= self.tolerance)

    @property
    def closes(self) -> bool:
        """Whether every step's books close, and the steps together account for the whole score."""
        lost = sum((e.lost for e in self.entries), np.zeros_like(self.score))
        scale = np.maximum.reduce([np.abs(self.score), *map(self._scale, self.entries)])
        return not self.faults and bool(np.all(np.abs(self.score - self.relevance - lost) <= self.tolerance * scale))

    @property
    def positivity(self) -> np.ndarray:
        """Share of the absolute relevance of the input that is positive, by example; 1 where there is none."""
        return 1 - np.divide(self.negative, self.mass, out=np.zeros_like(self.mass), where=self.mass > 0)

    @property
    def consistent(self) -> np.ndarray:
        """Whether a score of zero came with no relevance at all, by example."""
        return (self.score != 0) | (self.mass == 0)

    @property
    def verdict(self) -> str:
        """One sentence: whether the books close, and how much of the score arrived."""
        if self.faults:
            names = ", ".join(f"{e.name} ({e.rule}: {self.relative_residual(e):.1e})" for e in self.faults)
            return f"The books do NOT close; relevance is unaccounted for in {names}."
        if not self.closes:
            return "The books do NOT close: relevance was lost between steps."
        share = self.relevance.sum() / self.score.sum() if self.score.sum() else 1.0
        worst = max(map(self.relative_residual, self.entries), default=0.0)
        close = f"The books close: largest residual {worst:.1e}; {share:.2%} of the score reached the input."
        meddling = [e for e in self.entries if np.any(np.abs(e.rule_loss) > self.tolerance * self._scale(e))]
        totals = [(e.name, e.rule_loss.sum()) for e in meddling]
        amounts = [f"{abs(total):.3g} {'dropped' if total > 0 else 'added'} at {name}" for name, total in totals]
        return f"{close} By the rules themselves: {', '.join(amounts)}." if amounts else close

    def __str__(self) -> str:
        """All amounts over all examples, from output to input; steps that only move relevance are left out."""
        header = ("name", "received", "passed", *LOSSES[:-1], "by rule", "residual", "negative", "rule")
        rows: list[tuple[str, ...]] = [header]
        for e in reversed(self.entries):
            least = self.tolerance * self._scale(e).sum()
            losses = [f"{t.sum():.4g}" if np.abs(t).sum() > least else "0" for t in e.losses]
            amounts = [f"{e.received.sum():.4g}", f"{e.passed.sum():.4g}", *losses]
            if e.kind in rules.LINEAR | {"max_pool"} or set(losses) != {"0"} or e in self.faults:
                share = e.negative.sum() / e.mass.sum() if e.mass.sum() else 0.0
                last = f"{self.relative_residual(e):.1e}", f"{share:.1%}", e.rule
                rows.append((e.name or e.kind, *amounts, *last))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        justify = [str.ljust, *[str.rjust] * (len(header) - 2), str.ljust]
        lines = ["  ".join(j(c, w) for j, c, w in zip(justify, row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, self.verdict])


def conservation(
    fn: Callable[..., jax.Array],
    composite: Any,
    *,
    argnum: int | Sequence[int] = -1,
    select: Callable[[Any], jax.Array] | str | int | None = None,
    output: Callable[[jax.Array, jax.Array], jax.Array] = outputs.logit,
    batched: int | Sequence[int] = (),
) -> Callable[..., Ledger]:
    """Keeps the books of `lrp(fn, composite)`.

    For each step and example, received = passed + bias + stabilizer + zeros + constants + by rule, see `LOSSES`. Each
    example is explained by itself, along the first axis of the explained argument.

    Args:
        fn, composite, argnum, select, output: as for `lrp`.
        batched: which other arguments count examples along their first axis, too, such as a mask; the rest are the same
            for all examples.

    Returns:
        A function of `fn`'s arguments, with `target` and `relevance` as for `lrp`, one for each example, that returns a
        `Ledger`.

    Raises:
        As `lrp`.

    Montavon et al. 2018, "Methods for Interpreting and Understanding Deep Neural Networks", section 5 (conservation,
    positivity, consistency).
    """
    composite, output = as_composite(composite), outputs.checked(output)
    fn, argnum, arrange = _trace.arranged(fn, argnum, select)

    @functools.partial(jax.jit, static_argnums=0)
    def compiled(axes, args, target, relevance):
        one_for_all = target is not None and target.ndim == 0

        def of_one(args, target, relevance):
            args = [arg if axis is None else _alone(arg) for arg, axis in zip(args, axes, strict=True)]
            target, relevance = target if one_for_all else _alone(target), _alone(relevance)
            plan = _plan.make_plan(_trace.trace(fn, args, argnum), composite)
            if relevance is None:
                _plan.check_end(plan)
            steps = tuple((step.name, step.kind, rules.name(step.rule)) for step in plan.steps)
            line = jnp.zeros(len(_TERMS), np.promote_types(plan.graph.output.aval.dtype, jnp.float32))
            blank = dict.fromkeys(range(len(steps)), line)
            number = {id(step): i for i, step in enumerate(plan.steps)}

            def forward(x, entries):
                def carry(step):
                    return lambda a, params: _with_books(step)(a, params, entries[number[id(step)]])

                return run(plan, args, argnum, x, carry=carry)

            logits, back = jax.vjp(forward, args[argnum], blank)
            if logits.shape[:1] != (1,):
                raise ValueError(
                    f"for one example the function returned logits of shape {logits.shape}; expected one row. What"
                    " it closes over for all examples, such as a mask, has to be an argument, named in `batched`."
                )
            R = start(output, logits, target, relevance)
            if R.shape != logits.shape:
                raise ValueError("conservation explains one target of each example; call it for each of several.")
            found, entries = back(R)
            sums = [rules.amount(R), *(_total(f, found) for f in (jnp.positive, jnp.abs, _negative_part))]
            resolution = max(jnp.finfo(dtype).eps for dtype in _dtypes(plan))
            return jnp.stack(sums), list(entries.values()), Static((steps, logits.shape, float(resolution)))

        return jax.vmap(of_one, in_axes=(axes, None if one_for_all else 0, 0))(args, target, relevance)

    def books(*args, target=None, relevance=None):
        along = arrange(_axes((batched,) if isinstance(batched, int) else batched, len(args)))
        args = arrange(args)
        target = check(args, argnum, target, relevance)
        if any(map(_compat.is_explicit, jax.tree.leaves(args))):
            raise ValueError(
                "conservation takes no arrays on a mesh with explicit axes; bring them to the host beforehand, with "
                "jax.device_get."
            )
        if any(np.ndim(leaf) < 2 for leaf in jax.tree.leaves(args[argnum])):
            raise ValueError("conservation explains examples along the first axis; for a single one pass x[None].")
        examples = len(jax.tree.leaves(args[argnum])[0])
        axes = tuple(0 if i == argnum % len(args) else axis for i, axis in enumerate(along))
        for arg, axis in zip(args, axes, strict=True):
            if axis == 0 and any(np.shape(leaf)[:1] != (examples,) for leaf in jax.tree.leaves(arg)):
                shapes = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(arg))
                raise ValueError(
                    f"a batched argument has shape {shapes}; expected {examples} examples first, as explained."
                )
        for name, given in (("target", target), ("relevance", relevance)):
            if given is not None and np.ndim(given) and np.shape(given)[0] != examples:
                raise ValueError(f"{name} has shape {np.shape(given)}; expected one for each of {examples} examples.")
        try:
            found = compiled(axes, args, target, relevance)
        except (TypeError, ValueError) as e:
            others = [arg for arg, axis in zip(args, axes, strict=True) if axis is None]
            if any(np.shape(leaf)[:1] == (examples,) for leaf in jax.tree.leaves(others)):
                e.add_note("conservation takes examples one by one; name other arguments that count them in `batched`.")
            raise
        (score, reached, mass, negative), entries, known = _as_float64(found)
        steps, shape, resolution = known.value
        check_range(target, shape)
        entries = [Entry(*step, *terms) for step, terms in zip(steps, entries, strict=True)]
        return Ledger(tuple(entries), score, reached, mass, negative, tolerance=min(64 * resolution, 0.02))

    return books


def _axes(batched: Sequence[int], count: int) -> tuple[int | None, ...]:
    """For each of `count` arguments, 0 if it counts examples, else None."""
    if not all(-count <= n < count for n in batched):
        raise IndexError(f"batched={tuple(batched)}, but the function was called with {count} arguments.")
    return tuple(0 if i in {n % count for n in batched} else None for i in range(count))


def _alone(tree: Any) -> Any:
    """One example as a batch of one."""
    return jax.tree.map(lambda v: v[None], tree)


def _dtypes(plan: _plan.Plan) -> set[Any]:
    """The types of the numbers that relevance passes: the coarsest one says what is rounding."""
    passed = [v for step in plan.steps for v in (*step.inputs, *step.outputs) if v.live]
    return {v.aval.dtype for v in (plan.graph.output, *passed)}


def _as_float64(found):
    """Amounts with the examples last, so that each unpacks into one array for each term."""
    sums, entries, known = found
    return np.asarray(sums, np.float64).T, [np.asarray(e, np.float64).T for e in entries], known


def _with_books(step: Step) -> Callable:
    """The step as a function `(a, params, entry) -> z`; the cotangent of `entry` is its line in the ledger."""

    def backward(saved, R):
        a, params = saved
        with rules.accounts() as calls:
            found = apply_rule(step, a, params, R)
        received, passed = _total(jnp.positive, R), _total(jnp.positive, found)
        losses = [jnp.zeros_like(passed)] * len(LOSSES)
        if calls:  # the rule keeps back what it does not hand to the four steps
            handed, *kept = (sum(term) for term in zip(*calls, strict=True))
            losses = [*kept, losses[0], received - handed]
        elif isinstance(step.rule, rules.Route):
            losses[LOSSES.index("constants")] = _to_constants(step, a, params, R)
        shape = _total(jnp.abs, found), _total(_negative_part, found)
        return found, None, jnp.stack([received, passed, *losses, *shape])

    wrapped = jax.custom_vjp(lambda a, params, entry: step.layer(a, params))
    wrapped.defvjp(lambda a, params, entry: (step.layer(a, params), (a, params)), backward)
    return wrapped


def _to_constants(step: Step, a: Any, params: Any, R: Any) -> jax.Array:
    """The relevance that follows values which do not depend on the explained argument."""
    leaves, tree = jax.tree.flatten(params)
    moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not moving:
        return _total(jnp.zeros_like, R)

    def of(a, constants):
        merged = dict(enumerate(leaves)) | dict(zip(moving, constants, strict=True))
        return step.layer(a, jax.tree.unflatten(tree, list(merged.values())))

    return _total(jnp.positive, jax.vjp(of, a, [leaves[i] for i in moving])[1](R)[1])


def _negative_part(x):
    return jnp.maximum(-x, jnp.zeros((), x.dtype))


def _total(f, tree):
    """The sum of f over all numbers of a tree."""
    return functools.reduce(jnp.add, [rules.amount(f(x)) for x in jax.tree.leaves(tree)])
