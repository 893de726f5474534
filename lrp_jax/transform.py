"""`lrp`: the relevance of a function's input, as a transformation of the function.

The plan's steps run forward, each wrapped so that its cotangent is relevance; `jax.vjp` of that is the backward pass.
Where relevance only follows values (reshapes, max-pools, a value read twice), its own derivative is already right.
"""

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import _compat, _plan, _prepare, _trace, outputs, rules
from lrp_jax._steps import MARKED, Step
from lrp_jax._trace import Op
from lrp_jax.composites import as_composite


def lrp(
    fn: Callable[..., jax.Array],
    composite: Any,
    *,
    argnum: int | Sequence[int] = -1,
    select: Callable[[Any], jax.Array] | str | int | None = None,
    output: Callable[[jax.Array, jax.Array], jax.Array] = outputs.logit,
    layers: bool = False,
    value: bool = False,
    remat: bool = False,
) -> Callable[..., Any]:
    """Turns a function into one that returns the relevance of an argument: what `jax.grad` is for gradients.

    Each layer hands the relevance of its outputs to its inputs by its rule, in the basic case
    `R_j = a_j sum_k w_jk R_k / z_k`, from the output down to the explained argument.

    Args:
        fn: any JAX function `fn(*args) -> logits (..., K)`; Flax's `model.apply`, for example.
        composite: a `Composite`, a list of `(selector, rule)`, or one rule for all layers with weights.
        argnum: which argument is explained, by default the last, or a tuple of several; all others are constants to
            relevance.
        select: the logits among what `fn` returns, where that is more than one array: a key, or a function of it.
        output: where relevance starts, a function `(logits, target) -> R` such as those of `lrp_jax.outputs`.
        layers: whether to return the relevance at each layer too.
        value: whether to return the logits, too, before relevance, as `jax.value_and_grad` does.
        remat: whether to keep only some of the forward pass, and to compute the rest again when relevance comes by:
            another forward pass for less memory, see `jax.checkpoint`. XLA for CPUs undoes it before JAX 0.11, unless
            it is told to spare memory (docs/speed.md).

    Returns:
        `explain(*args, target=None, relevance=None)`, compiled on its first call for each set of shapes.
        `target` is an int, or an array of ints of the logits' leading shape (...); None explains the highest logit of
        each example. `relevance`, shaped as the logits, takes the place of `output(logits, target)`. The result has the
        explained argument's shape and dtype; it is a tuple if `argnum` is one. With `layers=True` it is a pair: that,
        and a dict in forward order from the name of each layer to the relevance at its input, and from `output` to
        where relevance started.
        Several classes are explained at once, the forward pass shared, if one more axis counts them in front: `target`
        of shape (T, ...), as `np.arange(10)[:, None]` for each example's first ten, or `relevance` (T, ..., K). So has
        the result.
        A `target` that is out of range raises IndexError; one in a `jax.Array`, which is not looked into, makes the
        relevance NaN.

        `explain.prepare(*args)` computes once what depends on the other arguments alone, such as modified weights, and
        returns `ready(x, target=None, relevance=None)`, a pytree, for calls of the same shapes; if `target` counts
        several, or `relevance` is given, `prepare` takes such a one, too. On CPUs wide convolutions by 3x3 in float32
        then take fewer multiplications and more memory, with rounding errors as small; they stay as they are where a
        rule needs it (LRP-alpha-beta with beta > 0, for one), where rules of your own see convolutions, and under
        `jax.default_matmul_precision("highest")`.

    Raises (on the first call for each set of shapes):
        UncoveredOpError: relevance would have to pass an operation without a rule.
        ValueError, TypeError: the composite, target or relevance does not fit the function.

    Bach et al. 2015, "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
    Propagation"; Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview".
    """
    composite, output = as_composite(composite), outputs.checked(output)
    fn, argnum, arrange = _trace.arranged(fn, argnum, select)

    def relevances(args, target, relevance):
        plan = _plan.make_plan(_trace.trace(fn, args, argnum), composite)
        _plan.warn_of_shared(plan)
        named = [step for step in plan.steps if layers and step.named]
        avals = ((step.name, step.inputs[0].aval) for step in named)
        taps = OrderedDict((name, _compat.varying(jnp.zeros(a.shape, a.dtype), a)) for name, a in avals)
        logits, back = jax.vjp(lambda x, taps: run(plan, args, argnum, x, taps=taps, remat=remat), args[argnum], taps)
        if relevance is None:
            _plan.check_end(plan)
            check_rows(logits, args[argnum])
        R = start(output, logits, target, relevance)
        found, at_layers = back(R) if R.ndim == logits.ndim else _several(back, R, logits)
        at_layers[_plan.OUTPUT] = R
        found = (found, at_layers) if layers else found
        return (logits, found) if value else found, Static(logits.shape)

    compiled = jax.jit(relevances)

    def explain(*args, target=None, relevance=None):
        args = arrange(args)
        target = check(args, argnum, target, relevance)
        found, shape = compiled(args, target, relevance)
        check_range(target, shape.value)
        return found

    def whole(known, x, target, relevance):
        args = list(known)
        args.insert(argnum % (len(known) + 1), x)
        return relevances(args, target, relevance)[0]

    @_prepare.by_shapes
    def outline(*args):
        plan = _plan.make_plan(_trace.trace(fn, args, argnum), composite)
        aval = plan.graph.output.aval
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype), _rounds_well(plan)

    @_prepare.by_shapes
    def halves(lighter, known, *others):
        return tuple(map(jax.jit, _prepare.split(whole, known, *others, lighter=lighter.value)))

    def prepare(*args, target=None, relevance=None):
        if remat:
            raise ValueError("prepare would undo what remat=True does; use the one or the other.")
        args = list(arrange(args))
        target = check(args, argnum, target, relevance)
        logits, lighter = outline(*args)
        begin = _begin(target, relevance, logits)
        x = args.pop(argnum % len(args))
        first, second = halves(Static(lighter), args, x, *begin)
        return Prepared(first(args), second, _signature(x, begin), logits)

    explain.prepare = prepare  # pyright: ignore[reportFunctionMemberAccess]
    return explain


def _several(back: Callable, R: jax.Array, logits: jax.Array) -> Any:
    """`back` of each R along the first axis; what does not need R is shared."""
    if _compat.is_explicit(logits):  # where JAX cannot vmap convolutions
        return jax.lax.map(lambda R: back(_compat.placed(R, logits)), R)
    return jax.vmap(back)(R)


def _rounds_well(plan: _plan.Plan) -> bool:
    """Whether the rules of all convolutions do; of rules and layers that users wrote, it is not known."""
    return all(getattr(step.rule, "rounds_well", False) for step in plan.steps if step.kind in ("conv", MARKED))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """`explain` with its other arguments at hand, and what depends on them alone computed.

    A pytree, so that it can be an argument of jitted code. Only for the shapes that it was prepared for. Where several
    arguments are explained, it takes them as one tuple.
    """

    values: Any
    second: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    signature: tuple[Any, ...] = dataclasses.field(metadata={"static": True})
    logits: jax.ShapeDtypeStruct = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Any, *, target: Any = None, relevance: Any = None) -> Any:
        """Relevance of `x`, with `target` and `relevance` as for `explain`."""
        target = check((x,), 0, target, relevance)
        begin = _begin(target, relevance, self.logits)
        if (given := _signature(x, begin)) != self.signature:
            expected, given = (
                ", ".join(f"{dtype}{list(shape)}" for _, shape, dtype, _ in s) for s in (self.signature, given)
            )
            raise ValueError(f"prepared for {expected}, but called with {given}; prepare for such arguments, too.")
        return self.second(self.values, x, *begin)


class Chosen(NamedTuple):
    """Targets in the one type and shape that is prepared for; `HIGHEST` stands for the class with the highest logit."""

    target: jax.Array


HIGHEST = -2
"""As one of the chosen targets: the class with the highest logit."""


def _signature(x: Any, begin: tuple[Any, Any]) -> tuple[Any, ...]:
    """Paths, shapes and types of the explained argument, and of targets or relevance."""
    leaves = jax.tree_util.tree_leaves_with_path((x, begin))
    return tuple((path, *_prepare.signature(v)) for path, v in leaves)


def _begin(target: Any, relevance: Any, logits: Any) -> tuple[Chosen | None, Any]:
    """The target of each example, or relevance, whichever it is that relevance starts from."""
    if relevance is not None:
        return None, jnp.asarray(relevance, logits.dtype)
    _check_classes(logits)
    check_range(target, logits.shape)
    batch = logits.shape[:-1]
    return Chosen(jnp.full(batch, HIGHEST, jnp.int32) if target is None else each(jnp.asarray(target), batch)), None


def run(
    plan: _plan.Plan,
    args: Sequence[Any],
    argnum: int,
    x: Any,
    *,
    taps: Mapping[str, Any] | None = None,
    carry: Any = None,
    remat: bool = False,
    hold: bool = True,
) -> jax.Array:
    """The planned function with `x` for its explained argument, its cotangents replaced by relevance.

    Args:
        plan: the plan of the function for such arguments.
        args: its arguments.
        argnum: which of them is explained.
        x: the explained argument.
        taps: zeros, by the name of a step, added to that step's input; their cotangent is the relevance there.
        carry: from a step to a function `(a, params) -> z` whose cotangent is relevance.
        remat: whether to keep only what passes between segments of the forward pass.
        hold: whether what relevance does not pass, such as statistics of a normalization, is constant to the cotangent;
            else cotangents that are gradients take these ways, too.
    """
    taps = taps or {}
    carried: Callable[[Step], Callable] = carry or carry_relevance
    args = [x if i == argnum % len(args) else arg for i, arg in enumerate(args)]
    ends = {step.ops[-1]: step for step in plan.steps}
    constants = _plan.constants(plan)

    def advance(ops, env):
        read = _trace.reader(env)
        for op in ops:
            if step := ends.get(op):
                a = [read(v) for v in step.inputs]
                if step.name in taps:
                    a = [a[0] + taps[step.name]]
                results = carried(step)(a if len(a) > 1 else a[0], step.params(read))
                results = [results] if len(step.outputs) == 1 else results
            elif op in constants:
                results = op((lambda v: _constant(read(v)) if v.live else read(v)) if hold else read)
            else:  # part of a step
                continue
            env.update(zip(op.outputs, results, strict=True))
        return env

    env = dict(zip(plan.graph.inputs, jax.tree.leaves(args), strict=True))
    for ops in _segments(plan.graph.ops) if remat else ():
        known, made = list(env), []

        def segment(values, ops=ops, known=known, made=made):
            after = advance(ops, dict(zip(known, values, strict=True)))
            made[:] = list(after)[len(known) :]
            return [after[v] for v in made]

        env.update(zip(made, jax.checkpoint(segment)([env[v] for v in known]), strict=True))
    return _trace.reader(env if remat else advance(plan.graph.ops, env))(plan.graph.output)


def _segments(ops: Sequence[Op]) -> list[list[Op]]:
    """The operations in runs that write about the same number of bytes, as many as the root of the layers' number."""
    if not ops:
        return []
    sizes = np.cumsum([sum(v.aval.size * v.aval.dtype.itemsize for v in op.outputs if v.live) for op in ops])
    count = math.isqrt(sum(op.name in ("dot_general", "conv_general_dilated") for op in ops)) + 1
    number = np.minimum(sizes * count // max(sizes[-1], 1), count - 1)
    return [[op for op, n in zip(ops, number, strict=True) if n == i] for i in range(count)]


@jax.custom_vjp
def _constant(x: Any) -> Any:
    """The value, constant to relevance, but not to derivatives of relevance."""
    return x


_constant.defvjp(lambda x: (x, None), lambda _, R: (None,))


def carry_relevance(step: Step) -> Callable[[Any, Any], Any]:
    """The step as a function `(a, params) -> z` whose cotangent is relevance."""
    if isinstance(step.rule, rules.Route):
        return step.layer

    def backward(saved, R):
        a, params = saved
        return apply_rule(step, a, params, R), None

    wrapped = jax.custom_vjp(step.layer)
    wrapped.defvjp(lambda a, params: (step.layer(a, params), (a, params)), backward)
    return wrapped


def apply_rule(step: Step, a: Any, params: Any, R: Any) -> Any:
    """The relevance of a step's inputs by its rule, checked to have their shape and given their dtype."""
    found = step.rule(step.layer, a, params, R)
    if (given := jax.tree.map(jnp.shape, found)) != (expected := jax.tree.map(jnp.shape, a)):
        where = step.name or step.op
        raise ValueError(f"{step.rule} returned relevance of shape {given} for {where}; expected {expected}.")
    return jax.tree.map(lambda r, x: r.astype(x.dtype), found, a)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """Something known while tracing, handed out of a compiled function beside its arrays."""

    value: Any


def start(output: Callable, logits: jax.Array, target: Any, relevance: Any) -> jax.Array:
    """Where relevance starts: what was given, or the output function of the target; NaN where that is no class.

    It is shaped as the logits, or has one more axis in front where several targets are explained.
    """
    if relevance is not None:
        relevance = jnp.asarray(relevance)
        if logits.shape not in (relevance.shape, relevance.shape[1:]):
            raise ValueError(
                f"relevance has shape {relevance.shape}; expected the logits' {logits.shape}, with an axis in front to"
                " explain several at once."
            )
        return _compat.placed(relevance.astype(logits.dtype), logits)
    _check_classes(logits)
    highest, batch = jnp.argmax(logits, axis=-1).astype(jnp.int32), logits.shape[:-1]
    if isinstance(target, Chosen):
        chosen = _compat.placed(target.target, highest)
        target = jnp.where(chosen == HIGHEST, highest, chosen)
    target = _compat.placed(each(highest if target is None else jnp.asarray(target), batch), highest)
    if target.ndim > len(batch):
        return jax.vmap(lambda target: start(output, logits, target, None))(target)
    R = output(logits, target)
    if jnp.shape(R) != logits.shape:
        raise ValueError(f"output returned relevance of shape {jnp.shape(R)}; expected the logits' {logits.shape}.")
    known = (target >= 0) & (target < logits.shape[-1])
    R = jnp.where(known[..., None], _compat.placed(R, logits), jnp.nan)
    return R.astype(logits.dtype)


def _check_classes(logits: Any) -> None:
    if logits.ndim == 0:
        raise ValueError(
            "the function returned a scalar, but a target counts along an axis of classes; return shape (1,)."
        )


def check_rows(logits: Any, x: Any) -> None:
    """Raises where one output for each example would be taken for the classes of a single one."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
    if logits.ndim == 1 and logits.size > 1 and all(len(s) > 1 and s[0] == logits.size for s in shapes):
        n = logits.size
        raise ValueError(
            f"the function returned shape ({n},), and the explained argument has as many rows. If that is one output"
            f" for each of {n} examples, return shape ({n}, 1); if it is {n} classes of one example, shape (1, {n})."
        )


def each(target: jax.Array, batch: tuple[int, ...]) -> jax.Array:
    """A target for each example, int32, -1 where it can be no class; several if one more axis counts them in front."""
    if not jnp.issubdtype(target.dtype, jnp.integer):
        raise TypeError(f"target must be an int or an array of ints, one for each example; got dtype {target.dtype}.")
    several = target.ndim == len(batch) + 1 and all(n in (1, m) for n, m in zip(target.shape[1:], batch, strict=True))
    if not several and target.shape not in ((), batch):
        raise ValueError(
            f"target has shape {target.shape}; expected () or {batch}, one class for each example, with an axis"
            " in front to explain several for each."
        )
    wrong = target < 0
    if jnp.iinfo(target.dtype).max > (most := np.iinfo(np.int32).max):
        wrong |= target > most
    target = jnp.where(wrong, -1, target.astype(jnp.int32))  # whose narrow type could not count all classes
    return jnp.broadcast_to(target, (*target.shape[:1], *batch) if several else batch)


def check(args: Sequence[Any], argnum: int, target: Any, relevance: Any) -> Any:
    """The target as an array or int; raises where a call cannot be explained, before anything is traced."""
    _trace.check(args, argnum)
    if target is not None and relevance is not None:
        raise TypeError("give either target or relevance; relevance already says where to start.")
    if relevance is not None and not hasattr(relevance, "dtype"):
        relevance = np.asarray(relevance)
        if relevance.dtype.kind not in "fiu":
            raise TypeError("relevance must be an array of numbers, shaped as the logits.")
    if target is None or isinstance(target, jax.Array):
        return target
    target = np.asarray(target)
    if target.dtype.kind not in "iu":
        raise TypeError(f"target must be an int or an array of ints, one for each example; got {target.tolist()!r}.")
    return target


def check_range(target: Any, shape: tuple[int, ...]) -> None:
    """Raises IndexError if a target whose value is at hand is no class of logits of this shape."""
    if isinstance(target, np.ndarray):
        wrong = target[(target < 0) | (target >= shape[-1])]
        if wrong.size:
            raise IndexError(f"target {wrong.flat[0]} is out of range; expected 0 to {shape[-1] - 1}.")
