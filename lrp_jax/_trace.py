"""Any JAX function as one flat graph of operations, each value marked live if relevance can reach it."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import _compat, _loops

HELD = frozenset({"stop_gradient", "gt", "lt", "ge", "le", "eq", "ne", "and", "or", "xor", "not", "is_finite"})
"""Operations whose result is a constant to relevance: comparisons only decide, stop_gradient says so."""

_COUNTING = frozenset({"add", "sub", "mul", "max", "min", "lt", "le", "gt", "ge", "eq", "ne", "select_n"})
_UNIFORM = frozenset({"convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "copy"})


@dataclasses.dataclass(eq=False)
class Value:
    """What an operation reads or writes.

    Attributes:
        aval: shape and dtype.
        array: the value itself, if it is a constant of the traced function.
        path: key path of the parameter it is, or is made of.
        uniform: the one number that fills it, if that is known.
        live: whether relevance can reach it: it depends on the explained input, and the output depends on it by
            more than comparisons and stop_gradient.
        decides: whether it depends on the explained input by comparisons, as a mask does.
    """

    aval: Any
    array: Any = None
    path: str = ""
    uniform: float | None = None
    live: bool = False
    decides: bool = False


@dataclasses.dataclass(eq=False)
class Call:
    """A function that the traced function called, such as `relu`."""

    name: str
    eqn: _compat.JaxprEqn


@dataclasses.dataclass(eq=False)
class Op:
    """One primitive operation, with the calls that it stands in, outermost first."""

    eqn: _compat.JaxprEqn
    inputs: list[Value]
    outputs: list[Value]
    calls: tuple[Call, ...]

    @property
    def name(self) -> str:
        return self.eqn.primitive.name

    @property
    def live(self) -> bool:
        return any(v.live for v in self.outputs)

    @property
    def live_inputs(self) -> list[Value]:
        return [v for v in self.inputs if v.live]

    @property
    def dead_inputs(self) -> list[Value]:
        return [v for v in self.inputs if not v.live]

    @property
    def output(self) -> Value:
        return self.outputs[0]

    @property
    def line(self) -> str:
        """The user's source line that made this operation."""
        return _compat.source_line([self.eqn, *(call.eqn for call in reversed(self.calls))])

    def of(self, *inputs: Any) -> Any:
        """The first output for these inputs."""
        return _compat.bind(self.eqn, *inputs)[0]

    def __call__(self, read: Callable[[Value], Any]) -> list[Any]:
        """The outputs, given how to read the inputs."""
        return _compat.bind(self.eqn, *map(read, self.inputs))


@dataclasses.dataclass(eq=False)
class Graph:
    """A traced function: operations in the order in which they ran.

    Attributes:
        inputs: a value for each leaf of the arguments.
        explained: the range of `inputs` that are explained.
        ops: all operations that the output needs.
        output: the function's result.
        users: for each value, the operations that read it.
        blind: operations that make of live values what cannot carry relevance: an `argmax`, a conversion to integers.
        decided: loops and branches whose course depends on the explained input.
    """

    inputs: list[Value]
    explained: slice
    ops: list[Op]
    output: Value
    users: dict[Value, list[Op]]
    blind: list[Op]
    decided: list[Op]

    def sole_user(self, value: Value) -> Op | None:
        """The one operation that reads the value, if there is just one, it is live, and the value is not the result."""
        users = self.users.get(value, [])
        return users[0] if len(users) == 1 and users[0].live and value is not self.output else None


def arranged(
    fn: Callable, argnum: int | Sequence[int], select: Callable | str | int | None
) -> tuple[Callable, int, Callable[[tuple], tuple]]:
    """A function of one explained argument and one output: `fn`, which argument, and how to arrange the arguments."""
    pick = select if callable(select) else lambda result: result if select is None else result[select]
    chosen = lambda *args: pick(fn(*args))
    if not isinstance(argnum, Sequence):
        return chosen, argnum, lambda args: args

    def positions(count):
        if not all(isinstance(n, int) and -count <= n < count for n in argnum):
            raise IndexError(f"argnum={tuple(argnum)}, but the function was called with {count} arguments.")
        where = [n % count for n in argnum]
        if len(set(where)) < len(where):
            raise ValueError(f"argnum={tuple(argnum)} names an argument twice.")
        return where

    def arrange(args):  # the explained ones last, as one tuple
        where = positions(len(args))
        return (*(arg for i, arg in enumerate(args) if i not in where), tuple(args[i] for i in where))

    def merged(*args):
        *others, explained = args
        count = len(others) + len(explained)
        rest, found = iter(others), dict(zip(positions(count), explained, strict=True))
        return chosen(*(found[i] if i in found else next(rest) for i in range(count)))

    return merged, -1, arrange


def trace(fn: Callable, args: Sequence[Any], argnum: int) -> Graph:
    """The flat graph of `fn(*args)`, its live values those between argument `argnum` and the result.

    Raises:
        TypeError: an argument that is no array, an explained one that is not floating point, or a result that is not
            one floating-point array.
        IndexError: no such argument.
    """
    argnum = check(args, argnum)
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    leaves = jax.tree.leaves(args)
    if not (isinstance(shape, jax.ShapeDtypeStruct) and jnp.issubdtype(shape.dtype, jnp.floating)):
        raise TypeError(
            f"the function to explain must return one floating-point array of logits, but returned {_describe(shape)}; "
            "select them, for example with select='logits', or with a function of the result."
        )
    paths = [_paths(arg) for arg in args]
    start = sum(map(len, paths[:argnum]))
    explained = slice(start, start + len(paths[argnum]))
    while True:
        graph = _graph(closed, list(itertools.chain(*paths)), explained)
        loops = [op.eqn for op in graph.ops if op.live and op not in graph.decided and _loops.can_open(op.eqn)]
        if not loops:
            return graph
        closed = jax.make_jaxpr(_loops.opened(closed, loops))(*leaves)


def _graph(closed: _compat.ClosedJaxpr, paths: Sequence[str], explained: slice) -> Graph:
    values = [Value(aval, path=path) for aval, path in zip(closed.in_avals, paths, strict=True)]
    ops: list[Op] = []
    (output,) = flatten(closed.jaxpr, closed.consts, values, ops)
    graph = Graph(values, explained, ops, output, users={}, blind=[], decided=[])
    _mark_live(graph)
    for op in graph.ops:
        for value in dict.fromkeys(op.inputs):
            graph.users.setdefault(value, []).append(op)
    return graph


def check(args: Sequence[Any], argnum: int) -> int:
    """The explained argument, counted from 0; raises as `trace` does where the arguments cannot be explained."""
    if not isinstance(argnum, int):
        raise TypeError(f"argnum must be an int or a tuple of ints; got {argnum!r}.")
    if not -len(args) <= argnum < len(args):
        raise IndexError(f"argnum={argnum}, but the function was called with {len(args)} arguments.")
    argnum %= len(args)
    for i, arg in enumerate(args):
        for leaf in jax.tree.leaves(arg):
            if not hasattr(leaf, "dtype") and (isinstance(leaf, bool) or not isinstance(leaf, int | float | complex)):
                raise TypeError(
                    f"argument {i} holds {leaf!r}, which is not an array; fix such arguments beforehand, "
                    "for example with functools.partial."
                )
            if i == argnum and not jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.floating):
                raise TypeError(
                    f"the explained argument {i} has dtype {dtype}; relevance is shared among floating-point numbers, "
                    "so convert it first, or explain what it is turned into (an embedding, say)."
                )
    return argnum


def _describe(shape):
    if isinstance(shape, jax.ShapeDtypeStruct):
        return f"an array of {shape.dtype}"
    return f"a {type(shape).__name__} of {len(jax.tree.leaves(shape))} arrays"


def _paths(arg) -> list[str]:
    """The key path of each leaf; nnx's variables are named without the attribute that holds their array."""
    keys = [path for path, _ in jax.tree_util.tree_leaves_with_path(arg)]
    keys = [path[:-1] if path[-1:] == (jax.tree_util.GetAttrKey("value"),) else path for path in keys]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in keys]


def operations(fn: Callable, *args: Any) -> tuple[list[Value], list[Op], list[Value], Any]:
    """A function's inputs, operations and results for arguments like these, and the structure of what it returns."""
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    inputs, ops = [Value(aval) for aval in closed.in_avals], []
    results = flatten(closed.jaxpr, closed.consts, inputs, ops)
    return inputs, ops, results, jax.tree.structure(shape)


def append(ops: list[Op], fn: Callable, inputs: list[Value], place: Op) -> list[Value]:
    """Appends the operations of a function of these values, in the place of one operation; returns its results."""
    closed = jax.make_jaxpr(fn)(*(v.aval for v in inputs))
    return flatten(closed.jaxpr, closed.consts, inputs, ops, place.calls)


def substitute(ops: list[Op], fn: Callable, inputs: list[Value], op: Op) -> None:
    """Appends the operations of a function of these values that makes what the given operation makes."""
    append(ops, fn, inputs, op)
    ops[-1] = dataclasses.replace(ops[-1], outputs=op.outputs)


def flatten(jaxpr, consts, inputs: list[Value], ops: list[Op], calls: tuple[Call, ...] = ()) -> list[Value]:
    """Appends the operations of a jaxpr and of all it calls to `ops`; returns its results."""
    env = dict(zip(jaxpr.invars, inputs, strict=True))
    env |= {var: _constant(var.aval, const) for var, const in zip(jaxpr.constvars, consts, strict=True)}

    def read(atom):
        return _constant(atom.aval, atom.val) if isinstance(atom, _compat.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        if body := _compat.called(eqn):
            inner, inner_consts, name = body
            results = flatten(inner, inner_consts, operands, ops, (*calls, Call(name, eqn)))
        else:
            results = [Value(v.aval) for v in eqn.outvars]
            ops.append(Op(eqn, operands, results, calls))
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _constant(aval, array) -> Value:
    real = (
        aval.shape == ()
        and jnp.issubdtype(aval.dtype, jnp.number)
        and not jnp.issubdtype(aval.dtype, jnp.complexfloating)
    )
    known = real and isinstance(array, np.ndarray | np.generic | int | float)
    return Value(aval, array=array, uniform=float(np.asarray(array)) if known else None)


def _mark_live(graph: Graph) -> None:
    """Marks live values, hands key paths on along dead ones, and drops operations that the output does not need."""
    explained = graph.inputs[graph.explained]
    reached, touched = set(explained), set(explained)
    for op in graph.ops:
        if op.name != "stop_gradient" and not touched.isdisjoint(op.inputs):
            touched.update(op.outputs)
        if op.name not in HELD and not reached.isdisjoint(op.inputs):
            reached.update(v for v in op.outputs if jnp.issubdtype(v.aval.dtype, jnp.inexact))
        elif reached.isdisjoint(op.inputs):
            for out in op.outputs:
                out.path = next((v.path for v in op.inputs if v.path), "") + _row(op)
                out.uniform = _number(op)
    needed, relevant, kept = {graph.output}, {graph.output}, []
    for op in reversed(graph.ops):
        if not needed.isdisjoint(op.outputs):
            needed.update(op.inputs)
            kept.append(op)
        if not relevant.isdisjoint(reached.intersection(op.outputs)):
            relevant.update(op.inputs)
    for value in relevant & reached:
        value.live = True
    for value in touched - reached:
        value.decides = True
    graph.ops = kept[::-1]
    for op in graph.ops:
        if op.name not in HELD and not reached.isdisjoint(op.inputs) and not needed.intersection(op.outputs) <= reached:
            graph.blind.append(op)
        deciding = op.inputs[:1] if op.name == "cond" else op.inputs if op.name == "while" else []
        if not touched.isdisjoint(deciding):
            graph.decided.append(op)


def _number(op: Op) -> float | None:
    """The number that fills the result of an operation on known numbers, such as the count of a loop."""
    if op.name in _UNIFORM:
        return op.inputs[0].uniform
    scalars = all(v.aval.shape == () for v in (*op.inputs, *op.outputs))
    if op.name not in _COUNTING or not scalars or any(v.uniform is None for v in op.inputs):
        return None
    with jax.ensure_compile_time_eval():
        (number,) = op(lambda v: np.asarray(v.uniform, v.aval.dtype))
    return float(number)


def _row(op: Op) -> str:
    """`[i]`, if an operation takes row i of several out of an array."""
    taken = op.eqn.params
    if op.name == "slice" and set(taken["strides"] or (1,)) == {1}:
        starts, sizes = taken["start_indices"], op.output.aval.shape
    elif op.name == "dynamic_slice" and all(v.uniform is not None for v in op.inputs[1:]):
        starts, sizes = [int(v.uniform or 0) for v in op.inputs[1:]], taken["slice_sizes"]
    else:
        return ""
    rows, *others = op.inputs[0].aval.shape
    return f"[{starts[0]}]" if rows > sizes[0] == 1 and list(sizes[1:]) == others else ""


def reader(env: dict[Value, Any]) -> Callable[[Value], Any]:
    """How to read a value: a constant, or what `env` holds for it."""
    return lambda value: env.get(value, value.array)


def evaluate(ops: Sequence[Op], env: dict[Value, Any]) -> Any:
    """Runs the operations in order on the values in `env`; returns the last one's output, or outputs."""
    after = run(ops, env)
    results = [after[v] for v in ops[-1].outputs]
    return results[0] if len(results) == 1 else results


def run(ops: Sequence[Op], env: dict[Value, Any]) -> dict[Value, Any]:
    """The values in `env`, and those that the operations make of them in order."""
    env = dict(env)
    for op in ops:
        env.update(zip(op.outputs, op(reader(env)), strict=True))
    return env
