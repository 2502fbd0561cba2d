"""Diagrams of notebook 05: the sampling loop, the sampler's cache, and completion."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from . import COLORS, arrow, box, canvas


def sampling_loop() -> Axes:
    """Ancestral sampling: the four steps that are repeated for each code."""
    axes = canvas(12, 3.9, "Ancestral sampling: repeat for each code, in raster order")
    box(axes, 0.1, 1.5, 2.2, 1.2, "codes so far\n(n, h, w, 4)", "codes")
    box(axes, 3.2, 1.5, 2.2, 1.2, "prior\n(one forward pass)", "layer")
    box(axes, 6.3, 1.5, 2.4, 1.2, "logits of code i\n(n, 512)", "data")
    box(axes, 9.6, 1.5, 2.3, 1.2, "sampled code i\n(n,)", "codes")
    arrow(axes, (2.3, 2.1), (3.2, 2.1))
    arrow(axes, (5.4, 2.1), (6.3, 2.1))
    arrow(axes, (8.7, 2.1), (9.6, 2.1))
    axes.text(9.15, 2.95, "softmax, then sample", ha="center", fontsize=9)
    axes.text(5.85, 2.95, "keep position i only", ha="center", fontsize=9)
    arrow(axes, (10.75, 1.5), (1.2, 1.5), bend=-0.22)
    axes.text(6, 0.12, "write code i into the grid: later codes depend on it", ha="center")
    return axes


def _cell(axes: Axes, x: float, y: float, kind: str, text: str = "") -> None:
    axes.add_patch(Rectangle((x, y), 1, 1, fc=COLORS[kind], ec="white", lw=2))
    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=9, color="#111111")


def sampler_cache() -> Axes:
    """What the cached sampler keeps, and what it computes at one position."""
    axes = canvas(15, 6.4, "The cached sampler at one position")
    for row in range(5):
        for column in range(5):
            y = 4.6 - row
            if row < 2:
                _cell(axes, column + 0.2, y, "data")
            elif row == 2 and column < 2:
                _cell(axes, column + 0.2, y, "codes")
            elif row == 2 and column == 2:
                _cell(axes, column + 0.2, y, "layer", "now")
            else:
                _cell(axes, column + 0.2, y, "note")
    axes.text(2.7, 0.15, "grid of positions", ha="center", fontsize=9)
    texts = {
        "data": "start_row, once per row\nvertical stack of the whole row, all layers;\n"
        "cached: two rows of features per layer, causal mean",
        "codes": "start_position, once per position\none product with the position to the left;\n"
        "cached: its features, all layers",
        "layer": "compute_slot, once per code\nearlier slots of this position, then this slot\n"
        "layer after layer; gives 512 logits",
        "note": "not sampled yet: never computed",
    }
    heights = {"data": 1.5, "codes": 1.5, "layer": 1.5, "note": 0.8}
    top = 6.1
    for kind, text in texts.items():
        top -= heights[kind] + 0.12
        box(axes, 6.3, top, 8.5, heights[kind], text, kind)
    return axes


def completion_order(kept: str) -> Axes:
    """Why the lower half is simple to complete and the upper half is not.

    Args:
        kept: "upper" or "lower", the half that is given.
    """
    axes = canvas(15, 4.6, f"Completion with the {kept} half kept")
    for row in range(4):
        for column in range(6):
            is_kept = (row < 2) == (kept == "upper")
            kind = "codes" if is_kept else "layer"
            _cell(axes, 0.8 + column, 3.3 - row, kind, "" if is_kept else "?")
    if kept == "upper":
        arrow(axes, (3.8, 2.8), (3.8, 1.8))
        text = "All kept codes come before the sampled ones:\neach sampled code depends on them."
    else:
        arrow(axes, (3.8, 1.8), (3.8, 2.8), color="#cb181d", dashed=True)
        text = "The kept codes come after the sampled ones:\nno sampled code depends on them."
    axes.text(7.6, 2.3, text, va="center")
    return axes
