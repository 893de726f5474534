"""Explains whole data sets into Zarr stores: on all devices and several hosts, and again after an interruption."""

from lrp_jax.batch.dataset import NAMES, explain_dataset, names_sha256
from lrp_jax.batch.reading import read_item
from lrp_jax.batch.report import Totals, draw, ledger, totals
from lrp_jax.batch.run import Summary
from lrp_jax.batch.sources import open_input
from lrp_jax.batch.store import STATUS, BatchError, Store, is_store, open_store

__all__ = [
    "NAMES",
    "STATUS",
    "BatchError",
    "Store",
    "Summary",
    "Totals",
    "draw",
    "explain_dataset",
    "is_store",
    "ledger",
    "names_sha256",
    "open_input",
    "open_store",
    "read_item",
    "totals",
]
