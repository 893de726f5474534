"""`conservation`: the ledger of a relevance pass, which verifies conservation numerically."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import outputs, targets
from lrp_jax.composites import Composite, as_composite
from lrp_jax.core import compat
from lrp_jax.core.function import Argnums, Function, Select
from lrp_jax.core.static import Static
from lrp_jax.core.trace import trace
from lrp_jax.execute import apply_rule, run
from lrp_jax.ledger import LOSSES, TERMS, Ledger, Row, tolerance_for
from lrp_jax.outputs import Output
from lrp_jax.planning import Plan, checks, make_plan
from lrp_jax.recognize import Step
from lrp_jax.rules.four_steps import recorded, total
from lrp_jax.rules.nonlinear import Route


def conservation(
    fn: Callable[..., Any],
    composite: Any,
    *,
    argnums: Argnums = -1,
    select: Select = None,
    output: Output = outputs.logit,
    batched: int | Sequence[int] = (),
) -> Callable[..., Ledger]:
    """Returns the ledger of `lrp(fn, composite)`: the record of where relevance went.

    For each step and example, received = passed + bias + stabilizer + zeros + constants + by rule; see
    `lrp_jax.ledger.LOSSES`. Each example is explained separately. The first axis of the explained argument counts
    examples.

    Args:
        fn, composite, argnums, select, output: as for `lrp`.
        batched: the positions of other arguments whose first axis counts examples, such as a mask. All others are the
            same for all examples.

    Returns:
        A function of the arguments of `fn`, with `target` and `relevance` as for `lrp`, one for each example. It
        returns a `Ledger`. It raises the errors of `lrp`, and ValueError if an argument does not fit the examples.

    Montavon et al. 2018, "Methods for Interpreting and Understanding Deep Neural Networks", section 5 (conservation,
    positivity, consistency).
    """
    function, composite, output = Function(fn, argnums, select), as_composite(composite), outputs.checked(output)
    compiled = jax.jit(functools.partial(of_examples, function, composite, output), static_argnums=0)

    def ledger(*args, target=None, relevance=None):
        x, others = function.split(args)
        axes = _axes((batched,) if isinstance(batched, int) else batched, function.positions(len(args)), len(args))
        target, relevance = targets.check_call(target, relevance)
        examples = _check_examples(x, others, axes, target, relevance)
        try:
            found = compiled(axes, x, others, target, relevance)
        except (TypeError, ValueError) as e:
            constant = [other for other, axis in zip(others, axes, strict=True) if axis is None]
            if any(np.shape(leaf)[:1] == (examples,) for leaf in jax.tree.leaves(constant)):
                e.add_note(
                    "conservation explains one example at a time; name the other arguments whose first axis counts"
                    " examples in `batched`."
                )
            raise
        sums, rows, known = found
        places, shape, resolution = known.value
        targets.check_range(target, shape)
        score, reached, mass, negative = np.asarray(sums, np.float64).T
        rows = [np.asarray(row, np.float64) for row in rows]
        rows = [Row(*step, *rows[i][(slice(None), *place)].T) for step, i, place in places]
        return Ledger(tuple(rows), score, reached, mass, negative, tolerance=tolerance_for(resolution))

    return ledger


def of_examples(
    function: Function,
    composite: Composite,
    output: Output,
    axes: Any,
    x: Any,
    others: Any,
    target: Any,
    relevance: Any,
) -> tuple[jax.Array, list[jax.Array], Static]:
    """The sums and the rows of each example, and what `_of_one` knows of the plan."""
    _check_logits_of_all(jax.eval_shape(function, x, *others), x)
    same_target = target is not None and target.ndim == 0

    def of_one(x, others, target, relevance):
        others = [other if axis is None else _alone(other) for other, axis in zip(others, axes, strict=True)]
        target = target if same_target else _alone(target)
        return _of_one(function, composite, output, _alone(x), others, target, _alone(relevance))

    in_axes = (0, axes, None if same_target else 0, 0)
    return jax.vmap(of_one, in_axes=in_axes)(x, others, target, relevance)


def _of_one(
    function: Function, composite: Composite, output: Output, x: Any, others: Any, target: Any, relevance: Any
) -> tuple[jax.Array, list[jax.Array], Static]:
    """For a batch of one example: the sums, the rows, and the steps, shape of the logits and resolution of the plan."""
    plan = make_plan(trace(function, x, others), composite)
    if relevance is None:
        checks.check_end(list(plan.nested), for_any_shift=output in outputs.FOR_ANY_SHIFT)
    dtype = np.promote_types(plan.graph.output.aval.dtype, jnp.float32)
    steps = list(plan.nested)
    blank = [jnp.zeros((*plan.lengths[step], len(TERMS)), dtype) for step in steps]

    def forward(x, rows):
        return run(plan, x, others, carry=_recording, extra=dict(zip(steps, rows, strict=True)))

    logits, back = jax.vjp(forward, x, blank)
    if logits.shape[:1] != (1,):
        raise ValueError(
            f"for one example the function returned logits of shape {logits.shape}; expected one row. If the function"
            " uses an array of all examples, such as a mask, make it an argument and name it in `batched`."
        )
    R = targets.relevance_at_output(output, logits, target, relevance)
    if R.shape != logits.shape:
        raise ValueError("conservation explains one target for each example; call it once for each target.")
    found, rows = back(R)
    sums = [total(R), *(_total(f, found) for f in (jnp.positive, jnp.abs, _negative_part))]
    number = {step: i for i, step in enumerate(steps)}
    places = tuple(((r.name, r.step.kind, str(r.step.rule)), number[r.step], r.rows) for r in plan.receivers)
    resolution = float(max(jnp.finfo(dtype).eps for dtype in _dtypes(plan)))
    return jnp.stack(sums), rows, Static((places, logits.shape, resolution))


def _check_examples(x: Any, others: Any, axes: Any, target: Any, relevance: Any) -> int:
    """The number of examples. Raises ValueError if an argument does not fit it."""
    if any(map(compat.is_explicit, jax.tree.leaves((x, others)))):
        raise ValueError(
            "conservation does not support arrays on a mesh with explicit axes; copy them to the host first, with "
            "jax.device_get."
        )
    if any(np.ndim(leaf) < 2 for leaf in jax.tree.leaves(x)):
        raise ValueError(
            "the explained argument needs a first axis that counts examples; for one example, pass x[None]."
        )
    examples = len(jax.tree.leaves(x)[0])
    for arg in [x, *(other for other, axis in zip(others, axes, strict=True) if axis == 0)]:
        if any(np.shape(leaf)[:1] != (examples,) for leaf in jax.tree.leaves(arg)):
            shapes = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(arg))
            raise ValueError(
                f"a batched argument has shape {shapes}; expected {examples} examples along the first axis, as in the"
                " explained argument."
            )
    for name, given in (("target", target), ("relevance", relevance)):
        if given is not None and np.ndim(given) and np.shape(given)[0] != examples:
            raise ValueError(f"{name} has shape {np.shape(given)}; expected one for each of {examples} examples.")
    return examples


def _check_logits_of_all(logits: jax.ShapeDtypeStruct, x: Any) -> None:
    """Raises ValueError if the function does not return one row of logits for each row of the explained argument."""
    targets.check_examples(logits, x)
    examples = len(jax.tree.leaves(x)[0])
    if logits.shape[:1] != (examples,):
        raise ValueError(
            f"the function returned logits of shape {logits.shape} for {examples} rows of the explained argument;"
            " expected one row of logits for each. If all rows are one example, add an axis of examples:"
            " lambda w, x: fn(w, x[0])[None], called with x[None]."
        )


def _axes(batched: Sequence[int], explained: Sequence[int], count: int) -> tuple[int | None, ...]:
    """For each argument that is not explained, 0 if its first axis counts examples, else None."""
    if not all(-count <= n < count for n in batched):
        raise IndexError(f"batched={tuple(batched)}, but the function was called with {count} arguments.")
    along = {n % count for n in batched}
    return tuple(0 if i in along else None for i in range(count) if i not in explained)


def _alone(tree: Any) -> Any:
    """One example as a batch of one."""
    return jax.tree.map(lambda v: v[None], tree)


def _dtypes(plan: Plan) -> set[Any]:
    """The dtypes of the values that relevance passes. The least precise one determines the tolerance."""
    passed = [v for step in plan.nested for v in (*step.inputs, *step.outputs) if v.live]
    return {v.aval.dtype for v in (plan.graph.output, *passed)}


def _recording(step: Step) -> Callable:
    """The function of a step, `(a, params, row) -> z`. The cotangent of `row` is the step's row in the ledger."""

    def backward(saved, R):
        a, params, z = saved
        with recorded() as calls:
            found = apply_rule(step, a, params, R, z)
        received, passed = _total(jnp.positive, R), _total(jnp.positive, found)
        losses = dict.fromkeys(LOSSES, jnp.zeros_like(passed))
        if calls:
            given, bias, stabilizer, dropped = (functools.reduce(jnp.add, term) for term in zip(*calls, strict=True))
            # the rule itself drops the relevance that it does not pass to the four steps
            losses |= {"bias": bias, "stabilizer": stabilizer, "zeros": dropped, "rule": received - given}
        elif isinstance(step.rule, Route):
            losses["constants"] = _to_constants(step, a, params, R)
        shape = _total(jnp.abs, found), _total(_negative_part, found)
        return found, None, jnp.stack([received, passed, *losses.values(), *shape])

    def forward(a, params, row):
        z = step.layer(a, params)
        return z, (a, params, z)

    wrapped = jax.custom_vjp(lambda a, params, row: step.layer(a, params))
    wrapped.defvjp(forward, backward)
    return wrapped


def _to_constants(step: Step, a: Any, params: Any, R: Any) -> jax.Array:
    """The relevance that a step hands to values that do not depend on the explained argument."""
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
    leaves = [x for x in jax.tree.leaves(tree) if x.dtype != jax.dtypes.float0]  # integers carry no relevance
    return functools.reduce(jnp.add, [total(f(x)) for x in leaves])
