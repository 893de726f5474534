"""The flat graph of a traced function: values and operations."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax

from lrp_jax.core import compat
from lrp_jax.core.by_iteration import ByIteration
from lrp_jax.core.primitives import Primitive, Trait, primitive

T = TypeVar("T")


@dataclasses.dataclass(eq=False)
class Value:
    """An input, an intermediate result or the output of a traced function.

    Attributes:
        aval: shape and dtype.
        array: the array itself, if it is a constant of the traced function.
        path: key path of the parameter from which it is computed.
        first_row: the row of this parameter with which it starts, if it is a slice of its rows.
        number: if all its elements are equal to one known number, this number.
        numbers: the number of each iteration, for a value in a loop, such as its counter.
        weight: whether it is the weight of a layer, an operand of a contraction. Every other constant operand is a
            fixed matrix.
        origin: a key that is equal for all constant values that the same operations compute from the same parameters.
        levels: the loops between whose iterations a constant value differs, 0 for the outermost.
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
    path: str | ByIteration = ""
    first_row: int = 0
    number: float | None = None
    numbers: ByIteration | None = None
    weight: bool = False
    origin: Hashable = None
    levels: frozenset[int] = frozenset()
    given: bool = False
    closed_over: bool = False
    explained: bool = False
    influenced: bool = False
    reached: bool = False
    live: bool = False

    @property
    def identity(self) -> tuple[Hashable, frozenset[int]]:
        """`origin` and `levels`. In one iteration of the loops around it, these determine a constant value."""
        return self.origin, self.levels

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
    """One primitive operation, and the calls that contain it, outermost first.

    Attributes:
        eqn: its equation in the jaxpr.
        inputs, outputs: its operands and results.
        calls: the calls that contain it.
        loop: if it is a loop that relevance can pass, the operations inside.
    """

    eqn: compat.JaxprEqn
    inputs: list[Value]
    outputs: list[Value]
    calls: tuple[Call, ...]
    loop: "Loop | None" = None

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
        if self.loop:
            return all(op.is_linear for op in self.loop.body.ops if op.live)
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
        values = list(map(read, self.inputs))
        return self.loop(values) if self.loop else compat.bind(self.eqn, *values)


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """The body of a loop as a graph, which runs for each iteration.

    The inputs of the body, and the operands of the loop, are constants, then carried values, then rows. The results
    are carried values, then rows.

    Attributes:
        body: the graph of one iteration.
        constants, carried: how many of the inputs are constants, and how many are carried.
        length: the number of iterations.
        reverse: whether the first iteration takes the last row.
        cuts: iterations at which the loop has to be cut, because relevance passes those before in another way.
    """

    body: "Graph"
    constants: int
    carried: int
    length: int
    reverse: bool
    cuts: tuple[int, ...] = ()

    @classmethod
    def of_scan(cls, params: dict[str, Any]) -> "Loop":
        """The loop of a `scan` with these parameters, whose body is still empty."""
        return cls(Graph([], [], [], []), *compat.scan_arguments(params), params["length"], params["reverse"])

    def __call__(self, operands: Sequence[Any]) -> list[Any]:
        """The results of the loop."""
        body = self.body

        def iteration(values):
            return list(map(reader(run(body.ops, dict(zip(body.inputs, values, strict=True)))), body.results))

        return self.scan(lambda values, _: iteration(values), operands)

    def scan(self, iteration: Callable[[list[Any], Any], list[Any]], operands: Sequence[Any], extra: Any = None) -> Any:
        """The results of the loop, with `iteration(inputs, row of extra) -> results` instead of the body."""
        constants, carry, rows = self.parts(operands)

        def step(carry, row):
            results = iteration([*constants, *carry, *row[0]], row[1])
            return list(results[: self.carried]), list(results[self.carried :])

        return [
            each
            for part in jax.lax.scan(step, carry, (rows, extra), length=self.length, reverse=self.reverse)
            for each in part
        ]

    def parts(self, values: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
        """The constants, the carried values and the rows among operands, or among what is known of each operand."""
        after = self.constants + self.carried
        return list(values[: self.constants]), list(values[self.constants : after]), list(values[after:])

    def forward(
        self, given: Sequence[T], through: Callable[[list[T]], Sequence[T]], join: Callable[[T, T], T]
    ) -> tuple[list[T], list[T]]:
        """What is known of the inputs and results of the body, in all iterations.

        Args:
            given: what is known of the operands of the loop.
            through: from the inputs to the results, for one iteration.
            join: what is known of a value that is one or the other. Repeated joins must come to an end.
        """
        constants, carry, rows = self.parts(given)
        while True:
            results = list(through([*constants, *carry, *rows]))
            joined = list(map(join, carry, results[: self.carried]))
            if joined == carry:
                return [*constants, *carry, *rows], results
            carry = joined

    def backward(
        self, wanted: Sequence[bool], through: Callable[[list[bool]], Sequence[bool]]
    ) -> tuple[list[bool], list[bool]]:
        """Which inputs of the body, and which results, are wanted in any iteration.

        Args:
            wanted: the results of the loop that are wanted.
            through: from the results to the inputs, for one iteration.
        """
        carry, rows = list(wanted[: self.carried]), list(wanted[self.carried :])
        while True:
            inputs = list(through([*carry, *rows]))
            joined = [a or b for a, b in zip(carry, self.parts(inputs)[1], strict=True)]
            if joined == carry:
                return inputs, [*carry, *rows]
            carry = joined


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A traced function, or the body of a loop: its operations in the order in which they run.

    Attributes:
        inputs: a value for each leaf of the arguments, those of the explained argument first; or the inputs of a body.
        explained: the values of the explained argument.
        ops: all operations that the results need.
        results: the result of the function, or the results of the body.
        closed: the jaxpr of the function.
    """

    inputs: list[Value]
    explained: list[Value]
    ops: list[Op]
    results: list[Value]
    closed: compat.ClosedJaxpr | None = None

    @property
    def output(self) -> Value:
        """The result of the function."""
        return self.results[0]

    @property
    def nested(self) -> "Iterator[Graph]":
        """This graph, and those of the bodies of all loops."""
        yield self
        for op in self.ops:
            if op.loop:
                yield from op.loop.body.nested

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
        """The only operation that reads the value. None if there are several or it is constant, and for results."""
        users = self.users.get(value, [])
        return users[0] if len(users) == 1 and users[0].live and value not in self.results else None

    @functools.cached_property
    def weights(self) -> set[Value]:
        """The operands of contractions that are weights of layers, in bodies of loops too.

        Values computed from arguments are weights, and values with a name. Values computed from arrays that the
        function closes over are weights if the function has no other weights, or only fewer, none of which is inside a
        pytree.
        """
        given, closed_over = self._operands
        few = not any(v.path for v in given) and distinct(given) < distinct(closed_over)
        return given | closed_over if few else given

    @property
    def closed_over(self) -> set[Value]:
        """The operands of contractions that are closed over and are not weights of layers."""
        return self._operands[1] - self.weights

    @functools.cached_property
    def _operands(self) -> tuple[set[Value], set[Value]]:
        """The constant operands of contractions that are computed from arguments, and those that are closed over."""
        ops = [op for graph in self.nested for op in graph.ops]
        contractions = [op for op in ops if op.live and op.has(Trait.CONTRACTION | Trait.SPARSE)]
        operands = {v for op in contractions for v in op.constant_inputs}
        given = {v for v in operands if v.given}
        return given, {v for v in operands if v.closed_over} - given


def chosen(values: Iterable[Value], flags: Iterable[bool]) -> list[Value]:
    """The values whose flag is true."""
    return [v for v, flag in zip(values, flags, strict=True) if flag]


def distinct(values: Iterable[Value]) -> int:
    """How many of these constant values are computed in different ways."""
    return len({v.identity for v in values})


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
