"""`Program`: relevance and the ledger of several items at a time, compiled once for all devices of this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lrp_jax.api import Explainer
from lrp_jax.batch.store import SCALE, BatchError, Column
from lrp_jax.conservation import of_examples
from lrp_jax.ledger import TERMS, tolerance_for
from lrp_jax.spelling import did_you_mean

AXIS = "batch"
"""The axis of the mesh over which items are distributed."""

ENDS = ("score", "reached", "mass", "negative")
"""The sums of the relevance at the output, and of the relevance of the item: all, absolute, and negative."""

RELEVANCE_DTYPES = ("float32", "float16")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is computed for each item.

    Attributes:
        sum_channels: whether relevance is summed over the last axis of an item.
        dtype: dtype of the stored relevance.
        layers: the layers whose relevance is stored.
        ledger: whether the rows of the ledger are stored.
        compute: the dtype in which items are explained; None means their own.
    """

    sum_channels: bool = False
    dtype: str = "float32"
    layers: tuple[str, ...] = ()
    ledger: bool = False
    compute: str | None = None


class Program:
    """A compiled function of a batch of items. Each device explains `size` items of it by the same code.

    The code does not depend on the number of devices, so the results do not depend on it either, not even in the last
    bit.

    Attributes:
        size: the number of items that a device explains at a time.
        devices: the number of shards of a batch.
        columns: the arrays of results.
        coordinates: names along axes of the results.
        classes: the number of classes.
    """

    def __init__(self, explain: Explainer, params: Any, item: jax.ShapeDtypeStruct, size: int, wanted: Wanted):
        self.explain, self.params, self.size, self.wanted = explain, params, size, wanted
        self.item = jax.ShapeDtypeStruct(item.shape, wanted.compute or item.dtype)
        self.mesh, sharded = mesh_of(params)
        self.devices = self.mesh.shape[AXIS]
        self._check_logits()
        full: Any = dataclasses.replace(explain, logits=True, layers=bool(wanted.layers))
        if full.remat or sharded:  # a prepared function keeps the placement with which it was traced
            ready, self._of = params, full
        else:
            ready = full.prepare(params, jnp.zeros((size, *item.shape), self.item.dtype))
            self._of = lambda ready, x, **options: ready(x, **options)
        self.known = _placed((ready, params if wanted.ledger else None), self.mesh)
        self.columns, self.coordinates = self._describe()
        self.classes: int = self.columns["logits"].shape[0]
        split, same = PartitionSpec(AXIS), PartitionSpec()
        self._compiled = jax.jit(
            jax.shard_map(
                self._results, mesh=self.mesh, in_specs=(same, split, split), out_specs=split, axis_names={AXIS},
                check_vma=False,
            )
        )  # fmt: skip

    def __call__(self, x: np.ndarray, target: np.ndarray | None) -> dict[str, jax.Array]:
        """Starts to compute the results for `devices * size` items, and returns arrays that are not complete yet."""
        split = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return self._compiled(self.known, *jax.device_put((x, target), split))

    def with_size(self, size: int) -> Program:
        """The program for another number of items."""
        return Program(self.explain, self.params, self.item, size, self.wanted)

    def _results(self, known: Any, x: Any, target: Any) -> dict[str, Any]:
        """The results of one shard. Without a target, the class with the highest logit is explained."""
        ready, params = known
        x = x.astype(self.item.dtype)
        found = self._of(ready, x, target=target)
        precise, logits = (R.astype(np.promote_types(R.dtype, np.float32)) for R in (found.relevance, found.logits))
        kept = _stored("relevance", precise.sum(-1) if self.wanted.sum_channels else precise, self.wanted.dtype)
        prediction = jnp.argmax(logits, -1).astype(jnp.int32)
        target = prediction if target is None else target
        results = {
            **kept, "relevance_sum": precise.sum(tuple(range(1, x.ndim))), "logits": logits,
            "prediction": prediction, "target": target,
            "finite": jnp.isfinite(precise).reshape(len(x), -1).all(-1) & jnp.isfinite(logits).all(-1),
        }  # fmt: skip
        for name in self.wanted.layers:
            results |= _stored(_column_of(name), found.layers[name], self.wanted.dtype)
        if self.wanted.ledger:
            sums, rows, steps = self._ledger(params, x, target)
            table = [rows[i][(slice(None), *place)] for _, i, place in steps.value[0]]
            results |= {"ledger": jnp.stack(table, 1), "ledger_ends": sums}
        return results

    def _check_logits(self) -> None:
        """Raises BatchError if the function does not return one row of logits for each item."""
        x = jax.ShapeDtypeStruct((self.size, *self.item.shape), self.item.dtype)
        x, others = self.explain.function.split((self.params, x))
        logits = jax.eval_shape(self.explain.function, x, *others)
        if len(logits.shape) != 2 or logits.shape[0] != self.size:
            raise BatchError(
                f"the function returned logits of shape {logits.shape} for {self.size} items; expected one row of"
                " logits for each item."
            )

    def _ledger(self, params: Any, x: Any, target: Any) -> Any:
        """The sums and the rows of the ledger, and what is known of its steps."""
        x, others = self.explain.function.split((params, x))
        return of_examples(self.explain.function, self.explain.composite, self.explain.output, (None,), x, others,
                           target, None)  # fmt: skip

    def _describe(self) -> tuple[dict[str, Column], dict[str, tuple[str, list[str]]]]:
        """The arrays of results, and names along their axes."""
        x = jax.ShapeDtypeStruct((self.size, *self.item.shape), self.item.dtype)
        target = jax.ShapeDtypeStruct((self.size,), jnp.int32)
        ready, params = self.known
        if self.wanted.layers:
            found = jax.eval_shape(lambda ready, x: self._of(ready, x).layers, ready, x)
            _check_layers(self.wanted.layers, {name: layer.shape for name, layer in found.items()}, self.size)
        shapes = jax.eval_shape(self._results, self.known, x, target)
        kinds = _axes(self.item.shape, self.wanted)
        columns = {}
        for name, found in shapes.items():
            shape = found.shape[1:]
            axes = kinds.get(name) or tuple(f"{name.rpartition('/')[2]}_{i}" for i in range(len(shape)))
            columns[name] = Column(shape, np.dtype(found.dtype), axes, compressed=name != "relevance")
        coordinates: dict[str, tuple[str, list[str]]] = {}
        if self.wanted.ledger:
            places, _, resolution = jax.eval_shape(self._ledger, params, x, target)[2].value
            rows = [[name, kind, rule] for (name, kind, rule), *_ in places]
            about = {"rows": rows, "tolerance": tolerance_for(resolution)}
            columns["ledger"] = dataclasses.replace(columns["ledger"], attributes=about)
            coordinates = {
                "ledger_row": ("ledger_row", [name or kind for name, kind, _ in rows]),
                "ledger_term": ("ledger_term", list(TERMS)),
                "ledger_end": ("ledger_end", list(ENDS)),
            }
        columns.pop("finite")
        return columns, coordinates


def mesh_of(params: Any) -> tuple[Mesh, bool]:
    """The mesh over which params are sharded, and whether they are. Otherwise a mesh of all devices of this process.

    Raises:
        BatchError: the mesh has no axis for items, or devices of other processes.
    """
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params)]
    meshes = {s.mesh for s in shardings if isinstance(s, NamedSharding) and s.mesh.size > 1}
    if not meshes:
        devices = jax.local_devices()
        auto = (jax.sharding.AxisType.Auto,)
        return jax.make_mesh((len(devices),), (AXIS,), axis_types=auto, devices=devices), False
    if len(meshes) > 1:
        raise BatchError("the arrays in params are on different meshes; put them on one mesh.")
    mesh: Any = next(iter(meshes))
    if AXIS not in mesh.axis_names:
        raise BatchError(
            f"params are on a mesh with the axes {', '.join(mesh.axis_names)}; items are distributed over an axis named"
            f" {AXIS!r}, which may have length 1."
        )
    if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise BatchError("params are sharded over several processes; shard them over jax.local_devices().")
    return mesh, True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device has too little memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _placed(tree: Any, mesh: Mesh) -> Any:
    """The arrays on the mesh: those that are not on it are copied to all its devices."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(leaf):
        sharding = getattr(leaf, "sharding", None)
        here = isinstance(sharding, NamedSharding) and sharding.mesh == mesh
        return leaf if here else jax.device_put(leaf, everywhere)

    return jax.tree.map(place, tree)


def _stored(name: str, R: jax.Array, dtype: str) -> dict[str, jax.Array]:
    """Relevance as it is stored. As float16, each item is divided by a power of 2 that brings its maximum to 0.5 to 1.

    The numbers of float16 end at 6e-8, which is more than the relevance of many pixels.
    """
    if dtype != "float16":
        return {name: R.astype(dtype)}
    R = R.astype(np.promote_types(R.dtype, np.float32))
    top = jnp.abs(R).reshape(len(R), -1).max(-1)
    scale = jnp.ldexp(
        jnp.ones_like(top), jnp.frexp(jnp.where(jnp.isfinite(top) & (top > 0), top, jnp.ones_like(top)))[1]
    )
    scaled = R / scale.reshape(-1, *[1] * (R.ndim - 1))
    return {name: scaled.astype(dtype), name + SCALE: scale.astype(jnp.float32)}


def _axes(item: Sequence[int], wanted: Wanted) -> dict[str, tuple[str, ...]]:
    """The names of the axes of the results. Items with three axes are images."""
    names = ("y", "x", "channel") if len(item) == 3 else tuple(f"axis_{i}" for i in range(len(item)))
    return {
        "relevance": names[:-1] if wanted.sum_channels else names, "logits": ("class",),
        "ledger": ("ledger_row", "ledger_term"), "ledger_ends": ("ledger_end",),
    }  # fmt: skip


def _check_layers(wanted: Sequence[str], shapes: dict[str, tuple[int, ...]], size: int) -> None:
    for name in wanted:
        if name not in shapes:
            raise BatchError(f"no layer {name!r}; the layers are {', '.join(shapes)}.{did_you_mean(name, shapes)}")
        if shapes[name][:1] != (size,):
            raise BatchError(f"the layer {name} has shape {shapes[name]} for {size} items; expected one row for each.")


def _column_of(layer: str) -> str:
    return f"layers/{layer.replace('/', '.')}"
