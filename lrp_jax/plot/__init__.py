"""Figures of relevance, on matplotlib axes and figures. No function opens a window."""

from lrp_jax.plot.charts import bars, ledger, removals
from lrp_jax.plot.figures import CAPTION, Cell, Picture, channels, explanation, layers, save, table
from lrp_jax.plot.heatmaps import heatmap, montage, transparent
from lrp_jax.plot.scales import COLOURS, PARTS, SCALES, limit, pixels

__all__ = [
    "CAPTION",
    "COLOURS",
    "PARTS",
    "SCALES",
    "Cell",
    "Picture",
    "bars",
    "channels",
    "explanation",
    "heatmap",
    "layers",
    "ledger",
    "limit",
    "montage",
    "pixels",
    "removals",
    "save",
    "table",
    "transparent",
]
