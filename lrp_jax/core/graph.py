"""The flat graph of a traced function: values and operations."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from lrp_jax.core import compat
from lrp_jax.core.primitives import Primitive, Trait, primitive


@dataclasses.dataclass(eq=False)
class Value:
    """An input, an intermediate result or the output of a traced function.

    Attributes:
        aval: shape and dtype.
        array: the array itself, if it is a constant of the traced function.
        path: key path of the parameter from which it is computed.
        number: if all its elements are equal to one known number, this number.
        given: whether it is computed from a floating-point argument that is not explained, or has a name
            (`jax.ad_checkpoint.checkpoint_name`).
        closed_over: whether it is computed from a floating-point array that the traced function closes over.
        explained: whether it is an array of the explained argument.
        influenced: whether it depends on the explained input. Dependence through `stop_gradient` does not count.
        reached: whether it depends on the explained input. Dependence through decisions does not count.
        live: whether relevance can reach it: it is reached, and the output depends on it. Dependence through decisions
            does not count.
    """

    aval: Any
    array: Any = None
    path: str = ""
    number: float | None = None
    given: bool = False
    closed_over: bool = False
    explained: bool = False
    influenced: bool = False
    reached: bool = False
    live: bool = False

    @property
    def is_decision(self) -> bool:
        """Whether it depends on the explained input only through decisions, such as comparisons. Masks do."""
        return self.influenced and not self.reached


@dataclasses.dataclass(eq=False)
class Call:
    """A function that the traced function called, such as `relu`."""

    name: str
    eqn: compat.JaxprEqn


@dataclasses.dataclass(eq=False)
class Op:
    """One primitive operation, and the calls that contain it, outermost first."""

    eqn: compat.JaxprEqn
    inputs: list[Value]
    outputs: list[Value]
    calls: tuple[Call, ...]

    @property
    def name(self) -> str:
        return self.eqn.primitive.name

    @property
    def row(self) -> Primitive:
        """What the primitive is: its row in the table."""
        return primitive(self.name)

    def has(self, traits: Trait) -> bool:
        """Whether the primitive has one of these traits."""
        return bool(self.row.traits & traits)

    @property
    def live(self) -> bool:
        return any(v.live for v in self.outputs)

    @property
    def live_inputs(self) -> list[Value]:
        return [v for v in self.inputs if v.live]

    @property
    def constant_inputs(self) -> list[Value]:
        return [v for v in self.inputs if not v.live]

    @property
    def output(self) -> Value:
        return self.outputs[0]

    @property
    def divides_by_live(self) -> bool:
        return self.name == "div" and self.inputs[1].live

    @property
    def is_linear(self) -> bool:
        """Whether it is linear, up to a constant, as a function of all its live operands."""
        return self.row.linear(self)

    @property
    def course_depends_on_input(self) -> bool:
        """Whether the explained input decides which branch is taken, or how often a loop runs."""
        deciding = self.inputs if self.has(Trait.WHILE) else self.inputs[:1] if self.has(Trait.BRANCH) else []
        return any(v.influenced for v in deciding)

    @property
    def line(self) -> str:
        """The user's source line that made this operation."""
        return compat.source_line([self.eqn, *(call.eqn for call in reversed(self.calls))])

    def of(self, *inputs: Any) -> Any:
        """The first output for these inputs."""
        return compat.bind(self.eqn, *inputs)[0]

    def __call__(self, read: Callable[[Value], Any]) -> list[Any]:
        """The outputs. `read` gives the array of each input."""
        return compat.bind(self.eqn, *map(read, self.inputs))


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A traced function: its operations in the order in which they run.

    Attributes:
        inputs: a value for each leaf of the arguments, those of the explained argument first.
        explained: the values of the explained argument.
        ops: all operations that the output needs.
        output: the result of the function.
    """

    inputs: list[Value]
    explained: list[Value]
    ops: list[Op]
    output: Value

    @functools.cached_property
    def maker(self) -> dict[Value, Op]:
        """The operation that writes each value."""
        return {value: op for op in self.ops for value in op.outputs}

    @functools.cached_property
    def position(self) -> dict[Op, int]:
        """The index of each operation in `ops`."""
        return {op: i for i, op in enumerate(self.ops)}

    @functools.cached_property
    def users(self) -> dict[Value, list[Op]]:
        """The operations that read each value."""
        users: dict[Value, list[Op]] = {}
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                users.setdefault(value, []).append(op)
        return users

    def sole_user(self, value: Value) -> Op | None:
        """The only operation that reads the value. None if there are several or it is constant, and for the output."""
        users = self.users.get(value, [])
        return users[0] if len(users) == 1 and users[0].live and value is not self.output else None

    def origin(self, value: Value) -> Hashable:
        """A key that is equal for all constant values that the same operations compute from the same parameters."""
        return self._origins.get(value, _identity(value))

    @functools.cached_property
    def weights(self) -> set[Value]:
        """The operands of contractions that are weights of layers. Every other constant operand is a fixed matrix.

        Values computed from arguments are weights, and values with a name. Values computed from arrays that the
        function closes over are weights if the function has no other weights, or only fewer, none of which is inside a
        pytree.
        """
        given, closed_over = self._operands
        few = not any(v.path for v in given) and self.distinct(given) < self.distinct(closed_over)
        return given | closed_over if few else given

    @property
    def closed_over(self) -> set[Value]:
        """The operands of contractions that are closed over and are not weights of layers."""
        return self._operands[1] - self.weights

    @functools.cached_property
    def _operands(self) -> tuple[set[Value], set[Value]]:
        """The constant operands of contractions that are computed from arguments, and those that are closed over."""
        contractions = [op for op in self.ops if op.live and op.has(Trait.CONTRACTION | Trait.SPARSE)]
        operands = {v for op in contractions for v in op.constant_inputs}
        given = {v for v in operands if v.given}
        return given, {v for v in operands if v.closed_over} - given

    def distinct(self, values: Iterable[Value]) -> int:
        """How many of these constant values are computed in different ways."""
        return len(set(map(self.origin, values)))

    @functools.cached_property
    def _origins(self) -> dict[Value, Hashable]:
        origins: dict[Value, Hashable] = {}
        made: dict[Hashable, Value] = {}
        for op in self.ops:
            if not op.live:
                key = op.name, repr(op.eqn.params), *(origins.get(v, _identity(v)) for v in op.inputs)
                origins |= {v: made.setdefault((*key, i), v) for i, v in enumerate(op.outputs)}
        return origins


def _identity(value: Value) -> Hashable:
    """A key that is equal for all reads of one array of the traced function, and for equal numbers."""
    if value.array is None:
        return value
    return id(value.array) if value.aval.shape else (value.aval.dtype, value.number)


def reader(env: dict[Value, Any]) -> Callable[[Value], Any]:
    """A function from a value to its array, which is in `env` or, for a constant, in the value."""
    return lambda value: env.get(value, value.array)


def run(ops: Sequence[Op], env: dict[Value, Any]) -> dict[Value, Any]:
    """`env` with the results of the operations, which run in order."""
    env = dict(env)
    for op in ops:
        env.update(zip(op.outputs, op(reader(env)), strict=True))
    return env


def evaluate(ops: Sequence[Op], env: dict[Value, Any]) -> Any:
    """Runs the operations on the values in `env`; returns the output of the last one, or the list of its outputs."""
    after = run(ops, env)
    results = [after[v] for v in ops[-1].outputs]
    return results[0] if len(results) == 1 else results
