"""Figures of relevance, on matplotlib axes and figures. No function opens a window."""

from lrp_jax.plot.charts import LOSS_COLOURS, bars, comparison, ledger, ledger_rows, removals
from lrp_jax.plot.figures import CAPTION, Cell, Picture, channels, explanation, layers, readable, save, table, wrap
from lrp_jax.plot.heatmaps import heatmap, light_grey, montage, transparent
from lrp_jax.plot.scales import COLOURS, PARTS, SCALES, limit, pixels

__all__ = [
    "CAPTION",
    "COLOURS",
    "LOSS_COLOURS",
    "PARTS",
    "SCALES",
    "Cell",
    "Picture",
    "bars",
    "channels",
    "comparison",
    "explanation",
    "heatmap",
    "layers",
    "ledger",
    "ledger_rows",
    "light_grey",
    "limit",
    "montage",
    "pixels",
    "readable",
    "removals",
    "save",
    "table",
    "transparent",
    "wrap",
]
