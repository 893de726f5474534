"""The transformations `lrp` and `plan`, and the objects that they return."""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar, overload

import jax
import jax.numpy as jnp

from lrp_jax import outputs, targets
from lrp_jax.composites import Composite, as_composite
from lrp_jax.core import compat
from lrp_jax.core.function import Argnums, Function, Select
from lrp_jax.core.static import Static
from lrp_jax.core.trace import trace
from lrp_jax.execute import run, tapped
from lrp_jax.lowering import prepare
from lrp_jax.outputs import Output
from lrp_jax.planning import Plan, checks, make_plan
from lrp_jax.planning.names import OUTPUT
from lrp_jax.rules.kinds import CUSTOM

Result = TypeVar("Result")


class Explanation(NamedTuple):
    """What `lrp` returns with `layers=True` or `logits=True`.

    Attributes:
        relevance: relevance of the explained argument, with its shape and dtype; a tuple if `argnums` is one.
        layers: with `layers=True`, the relevance of the input of each layer, by name, in forward order. The last item
            is `output`, the relevance at the output. Without `layers=True`, an empty dictionary.
        logits: the logits (..., K).
    """

    relevance: Any
    layers: dict[str, jax.Array]
    logits: jax.Array


@overload
def lrp(
    fn: Callable[..., Any],
    composite: Any,
    *,
    argnums: Argnums = -1,
    select: Select = None,
    output: Output = outputs.logit,
    layers: Literal[False] = False,
    logits: Literal[False] = False,
    remat: bool = False,
    unroll: bool = False,
) -> "Explainer[Any]": ...


@overload
def lrp(
    fn: Callable[..., Any],
    composite: Any,
    *,
    argnums: Argnums = -1,
    select: Select = None,
    output: Output = outputs.logit,
    layers: bool = False,
    logits: bool = False,
    remat: bool = False,
    unroll: bool = False,
) -> "Explainer[Explanation]": ...


def lrp(
    fn: Callable[..., Any],
    composite: Any,
    *,
    argnums: Argnums = -1,
    select: Select = None,
    output: Output = outputs.logit,
    layers: bool = False,
    logits: bool = False,
    remat: bool = False,
    unroll: bool = False,
) -> "Explainer[Any]":
    """Transforms a function into one that returns the relevance of an argument, as `jax.grad` does for the gradient.

    The relevance pass starts at the output and ends at the explained argument. Each layer hands the relevance of its
    outputs to its inputs by its rule. The basic rule is `R_j = a_j sum_k w_jk R_k / z_k`.

    Args:
        fn: any JAX function `fn(*args) -> logits (..., K)`, for example `model.apply` of Flax.
        composite: a `Composite`, a list of `(selector, rule)`, or one rule for all layers with weights.
        argnums: the position of the explained argument, or a tuple of positions, as in `jax.grad`. The default is the
            last argument. All other arguments are constant to relevance.
        select: where the logits are in the result of `fn`, if it is not one array: a key, an index, or a function of
            the result.
        output: the relevance at the output, a function `(logits, target) -> R` such as those of `lrp_jax.outputs`.
        layers: whether to return also the relevance at each layer.
        logits: whether to return also the logits.
        remat: whether to keep only a part of the forward pass in memory, and to compute the rest again in the backward
            pass. This needs less memory and one more forward pass; see `jax.checkpoint`. Outside loops, XLA for CPUs
            removes the recomputation with JAX before 0.11, unless it is set to save memory (docs/speed.md).
        unroll: whether loops are replaced by the operations of all their iterations. By default `scan`, and `fori_loop`
            with fixed bounds, stay loops. The relevance is the same.

    Returns:
        An `Explainer`, called as `explain(*args, target=None, relevance=None)`. It returns the relevance, or, with
        `layers=True` or `logits=True`, an `Explanation`.

    Raises:
        TypeError: `composite` is not a composite, or `output` is not a function.

    Bach et al. 2015, "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
    Propagation"; Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview".
    """
    function = Function(fn, argnums, select)
    return Explainer(function, as_composite(composite), outputs.checked(output), layers, logits, remat, unroll)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Explainer(Generic[Result]):
    """What `lrp` returns: a function that returns relevance. It is compiled on its first call for each set of shapes.

    Attributes:
        function: the function to explain, with `argnums` and `select`.
        composite: the rule of each layer.
        output: the relevance at the output, a function of logits and target.
        layers, logits, remat, unroll: as for `lrp`.
    """

    function: Function
    composite: Composite
    output: Output
    layers: bool = False
    logits: bool = False
    remat: bool = False
    unroll: bool = False

    def __call__(self, *args: Any, target: Any = None, relevance: Any = None) -> Result:
        """The relevance of the explained argument.

        Args:
            args: the arguments of the function.
            target: the class to explain: an int, or an array of ints (...) for logits (..., K). None explains the
                highest logit of each example. To explain T classes with one forward pass, add an axis in front: shape
                (T, ...), for example `np.arange(10)[:, None]` for ten classes of each example. The result then has this
                axis.
            relevance: the relevance at the output, (..., K) or (T, ..., K). It replaces `output(logits, target)`.

        Returns:
            The relevance, with the shape and dtype of the explained argument; or an `Explanation`.

        Raises:
            IndexError: a target is out of range. The values of a `jax.Array` are not checked: for a target that is out
                of range, the relevance is NaN.
            UncoveredOpError: relevance has to pass an operation without a rule.
            ValueError, TypeError: the composite, target or relevance does not fit the function.
        """
        x, others = self.function.split(args)
        target, relevance = targets.check_call(target, relevance)
        found, known = self._compiled(x, others, target, relevance)
        shape, places = known.value
        targets.check_range(target, shape)
        return self._explanation(found, places)

    def prepare(self, *args: Any, target: Any = None, relevance: Any = None) -> "Prepared[Result]":
        """Computes the values that depend only on the other arguments, such as modified weights, once for all calls.

        On CPUs, wide 3x3 convolutions in float32 then use fewer multiplications and more memory, with rounding errors
        of the same size. Convolutions do not change if the rule of a convolution needs smaller rounding errors (see
        `Rule.rounds_well`; LRP-alpha-beta with beta > 0, for example), or under
        `jax.default_matmul_precision("highest")`.

        Args:
            args: the arguments of the function.
            target, relevance: as in later calls. Only needed if later calls give `relevance`, or several targets for
                each example.

        Returns:
            `ready(x, target=None, relevance=None)`, a `Prepared`, for calls with the same shapes.

        Raises:
            ValueError: the explainer has `remat=True`.
        """
        if self.remat:
            raise ValueError("prepare keeps values that remat=True computes again; use only one of them.")
        x, others = self.function.split(args)
        target, relevance = targets.check_call(target, relevance)
        aval = self._planned(x, others).graph.output.aval
        logits = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
        start = _start(target, relevance, logits)
        first, second = self._halves(others, x, *start)
        return Prepared(first(others), second, self._explanation, _signature(x, start), logits)

    def __repr__(self) -> str:
        function = self.function
        options = {"argnums": function.argnums, "select": function.select, "output": self.output, "layers": self.layers,
                   "logits": self.logits, "remat": self.remat, "unroll": self.unroll}  # fmt: skip
        defaults = {"argnums": -1, "select": None, "output": outputs.logit}
        shown = [f", {k}={_name(v)}" for k, v in options.items() if v != defaults.get(k, False)]
        rules = "; ".join(f"{selector} -> {rule}" for selector, rule in self.composite.entries)
        return f"lrp({_name(function.fn)}, [{rules}]{''.join(shown)})"

    @functools.cached_property
    def _compiled(self) -> Callable[..., tuple[Result, Static]]:
        def explain(x, others, target, relevance):
            return self._explain(_planned(self, x, others), x, others, target, relevance)

        return jax.jit(explain)

    @functools.cached_property
    def _planned(self) -> Callable[..., Plan]:
        return prepare.by_shapes(functools.partial(_planned, self))

    @functools.cached_property
    def _halves(self) -> Callable[..., tuple[Callable, Callable]]:
        @prepare.by_shapes
        def halves(others, x, *start):
            plan = self._planned(x, others)

            def explain(others, x, target, relevance):
                return self._explain(plan, x, others, target, relevance)

            return tuple(map(jax.jit, prepare.split(explain, others, x, *start, lighter=_rounds_well(plan))))

        return halves

    def _explain(self, plan: Plan, x: Any, others: Any, target: Any, relevance: Any) -> tuple[Any, Static]:
        """The relevance, or all parts of an `Explanation`; the shape of the logits, and the place of each layer."""
        checks.warn_of_batch_statistics(plan.graph, list(plan.nested))
        checks.warn_of_closed_over_matrices(plan.graph)
        reported = {r.step: None for r in plan.receivers if self.layers and r.step.is_reported}
        taps = [_zeros(step.inputs[0].aval, plan.lengths[step]) for step in reported]

        def forward(x, taps):
            extra = dict(zip(reported, taps, strict=True))
            return run(plan, x, others, carry=tapped, extra=extra, remat=self.remat)

        logits, back = jax.vjp(forward, x, taps)
        if relevance is None:
            checks.check_end(list(plan.nested), for_any_shift=self.output in outputs.FOR_ANY_SHIFT)
            targets.check_examples(logits, x)
        R = targets.relevance_at_output(self.output, logits, target, relevance)
        found, at_taps = back(R) if R.ndim == logits.ndim else _for_each(back, R, logits)
        if not (self.layers or self.logits):
            return found, Static((logits.shape, ()))
        number = {step: i for i, step in enumerate(reported)}
        targets_first = (slice(None),) * (R.ndim - logits.ndim)
        places = [(r.name, number[r.step], (*targets_first, *r.rows)) for r in plan.receivers if r.step in number]
        return (found, at_taps, R, logits), Static((logits.shape, tuple(places)))

    def _explanation(self, found: Any, places: Any) -> Any:
        """The result of a call from that of `_explain`. Here the relevance of layers in loops is taken from stacks."""
        if not (self.layers or self.logits):
            return found
        relevance, at_taps, R, logits = found
        at_layers = OrderedDict((name, at_taps[i][place]) for name, i, place in places)  # jit sorts the keys of a dict
        if self.layers:
            at_layers[OUTPUT] = R
        return Explanation(relevance, at_layers, logits)


def _zeros(aval: Any, lengths: Sequence[int]) -> jax.Array:
    return compat.varying(jnp.zeros((*lengths, *aval.shape), aval.dtype), aval)


def _planned(explainer: Explainer, x: Any, others: Any) -> Plan:
    return make_plan(trace(explainer.function, x, others, unroll=explainer.unroll), explainer.composite)


def _for_each(back: Callable, R: jax.Array, logits: jax.Array) -> Any:
    """`back` of each R along the first axis. Values that do not depend on R are computed once."""
    if compat.is_explicit(logits):  # JAX cannot vmap convolutions there
        return jax.lax.map(lambda R: back(compat.placed_like(R, logits)), R)
    return jax.vmap(back)(R)


def _rounds_well(plan: Plan) -> bool:
    """Whether `rounds_well` is true for the rules of all steps that are or may contain convolutions."""
    return all(step.rule is not None and step.rule.rounds_well for step in plan.nested if step.kind in ("conv", CUSTOM))


def _name(value: Any) -> str:
    return getattr(value, "__qualname__", None) or repr(value)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Prepared(Generic[Result]):
    """What `Explainer.prepare` returns: an explainer that needs only the explained argument, `ready(x, target=None)`.

    It is a pytree, so it can be an argument of a jitted function. All calls must have the shapes for which it was
    prepared. If several arguments are explained, x is the tuple of them.

    Attributes:
        values: the values that were computed once.
        second: the compiled function of these values and x.
        explanation: the result of a call from that of `second`.
        signature: the shapes and dtypes for which it was prepared.
        logits: shape and dtype of the logits.
    """

    values: Any
    second: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    explanation: Callable[..., Result] = dataclasses.field(metadata={"static": True})
    signature: tuple[Any, ...] = dataclasses.field(metadata={"static": True})
    logits: jax.ShapeDtypeStruct = dataclasses.field(metadata={"static": True})

    def __call__(self, x: Any, *, target: Any = None, relevance: Any = None) -> Result:
        """The relevance of x, with `target` and `relevance` as for `Explainer`."""
        Function(lambda x: x, 0).split((x,))
        target, relevance = targets.check_call(target, relevance)
        start = _start(target, relevance, self.logits)
        if (given := _signature(x, start)) != self.signature:
            expected, given = (
                ", ".join(f"{dtype}{list(shape)}" for _, shape, dtype, _ in s) for s in (self.signature, given)
            )
            raise ValueError(f"prepared for {expected}, but called with {given}; prepare for these shapes too.")
        found, known = self.second(self.values, x, *start)
        return self.explanation(found, known.value[1])


def _signature(x: Any, start: tuple[Any, Any]) -> tuple[Any, ...]:
    """Paths, shapes and dtypes of the arrays in the explained argument, and of the target or relevance."""
    leaves = jax.tree_util.tree_leaves_with_path((x, start))
    return tuple((path, *prepare.signature(v)) for path, v in leaves)


def _start(target: Any, relevance: Any, logits: jax.ShapeDtypeStruct) -> tuple[targets.ClassIndices | None, Any]:
    """The target and the relevance at the output, as arrays. One of them is None."""
    if relevance is not None:
        return None, jnp.asarray(relevance, logits.dtype)
    targets.check_logits(logits)
    targets.check_range(target, logits.shape)
    batch = logits.shape[:-1]
    if target is None:
        return targets.ClassIndices(jnp.full(batch, targets.HIGHEST, jnp.int32)), None
    return targets.ClassIndices(targets.per_example(jnp.asarray(target), batch)), None


def plan(
    fn: Callable, composite: Any, *, argnums: Argnums = -1, select: Select = None, unroll: bool = False
) -> Callable[..., Plan]:
    """Shows what `lrp` will do: `print(plan(fn, composite)(*args))` traces `fn` and prints a table of its steps.

    Args:
        fn, composite, argnums, select, unroll: as for `lrp`.

    Returns:
        A function of the arguments of `fn` (arrays or `jax.ShapeDtypeStruct`s) that returns the `Plan`.

    Raises:
        UncoveredOpError: relevance has to pass an operation without a rule.
        ValueError: the composite does not fit the function.
    """
    composite, function = as_composite(composite), Function(fn, argnums, select)

    def plan_of(*args):
        x, others = function.split(args)
        return make_plan(trace(function, x, others, unroll=unroll), composite)

    return plan_of
