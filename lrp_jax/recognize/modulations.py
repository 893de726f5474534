"""Products of a signal and a factor that is computed from it, such as the selective scan of Mamba."""

import dataclasses
from typing import NamedTuple

from lrp_jax.core.graph import Graph, Loop, Op, Value
from lrp_jax.core.primitives import Trait


class _Origin(NamedTuple):
    """Where a value comes from.

    Attributes:
        source: the number of the value from which it is made by sums, moves, and products with other factors. None if
            it is not known, as in the first iteration of a loop; -1 if there are several.
        before: the sources from which the source is computed, as bits.
    """

    source: int | None = None
    before: int = 0

    def joined(self, other: "_Origin") -> "_Origin":
        """The origin of a value that has one or the other."""
        if self.source is None or other.source is None or self.source == other.source:
            return _Origin(self.source if other.source is None else other.source, self.before | other.before)
        return _Origin(-1, self.before | other.before)

    def is_before(self, other: "_Origin") -> bool:
        """Whether the source of the other one is computed from this source."""
        return self.source is not None and self.source >= 0 and bool(other.before >> self.source & 1)


def modulations(graph: Graph) -> dict[Op, Value]:
    """The products of two live values one of which is computed from the source of the other: this other is the signal.

    In the selective scan `h = exp(dt A) h + dt B u`, `y = C h`, the source of h and u is u, and the values dt, B and C
    are computed from u. So h and u are the signals of all products.
    """
    search = _Search({}, {})
    search.through(graph, {v: search.new(v, []) for v in graph.inputs if v.live})
    return search.found


@dataclasses.dataclass(frozen=True)
class _Search:
    """What is found: the signal of each product, and the number of each source."""

    found: dict[Op, Value]
    numbers: dict[Value, int]

    def through(self, graph: Graph, known: dict[Value, _Origin]) -> list[_Origin]:
        """The origins of the results. `known` gets those of all live values."""
        for op in graph.ops:
            if not op.live:
                continue
            if op.loop:
                results = self.through_loop(op.loop, [known.get(v, _Origin()) for v in op.inputs])
                known.update(zip(op.outputs, results, strict=True))
            else:
                origins = [known.get(v, _Origin()) for v in op.live_inputs]
                known.update((v, self.origin(op, v, origins)) for v in op.outputs)
        return [known.get(v, _Origin()) for v in graph.results]

    def through_loop(self, loop: Loop, operands: list[_Origin]) -> list[_Origin]:
        """The origins of the results of a loop.

        A carried value that comes from the iteration before is a source of its own, because the values of the body are
        other ones there.
        """
        body = loop.body
        inner = {v for graph in body.nested for v in (*graph.inputs, *(v for op in graph.ops for v in op.outputs))}

        def iteration(origins):
            numbers = {self.numbers[v] for v in inner & self.numbers.keys()} | {-1}
            for i in range(loop.constants, loop.constants + loop.carried):
                if origins[i].source in numbers:
                    origins[i] = self.new(body.inputs[i], [])
            return self.through(body, dict(zip(body.inputs, origins, strict=True)))

        return loop.forward(operands, iteration, _Origin.joined)[1]

    def origin(self, op: Op, result: Value, origins: list[_Origin]) -> _Origin:
        """The origin of a result, from those of the live operands."""
        if len(origins) == 2 and (op.name == "mul" or op.has(Trait.CONTRACTION)):
            return self.of_product(op, result, origins)
        if any(v.number == 0 for v in op.constant_inputs) and op.has(Trait.FACTOR | Trait.CONTRACTION):
            return _Origin()  # such as the initial state of a recurrence
        if not op.is_linear or _takes_features(op):
            return self.new(result, origins)
        sources = {origin for origin in origins if origin.source is not None}
        return sources.pop() if len(sources) == 1 else self.new(result, origins) if sources else _Origin()

    def of_product(self, op: Op, result: Value, origins: list[_Origin]) -> _Origin:
        """The origin of a product: that of its signal, if it has one."""
        self.found.pop(op, None)
        if any(origin.source is None for origin in origins):
            return _Origin()
        for value, own, other in zip(op.live_inputs, origins, origins[::-1], strict=True):
            if own.is_before(other):
                self.found[op] = value
                return own
        return self.new(result, origins)

    def new(self, value: Value, origins: list[_Origin]) -> _Origin:
        """The origin of a value that is a source itself."""
        before = 0
        for origin in origins:
            before |= origin.before
            if origin.source is not None and origin.source >= 0:
                before |= 1 << origin.source
        return _Origin(self.numbers.setdefault(value, len(self.numbers)), before)


def _takes_features(op: Op) -> bool:
    """Whether an operation takes some features of a value, such as half of the outputs of a layer."""
    if op.name == "split":
        return True
    taken = op.name in ("slice", "dynamic_slice") and op.inputs[0].aval.shape
    return bool(taken) and op.inputs[0].aval.shape[-1] != op.output.aval.shape[-1]
