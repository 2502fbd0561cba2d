"""Diagrams of the notebooks, drawn by code; this module has the shapes that they are built from."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from ..training_curves import WIDTH

# Mid tones: dark text on them is readable, and they stand out from white and from black.
COLORS = {
    "data": "#9ecae1",
    "layer": "#fdae6b",
    "codes": "#a1d99b",
    "loss": "#fc9272",
    "note": "#d9d9d9",
}


def canvas(columns: float, rows: float, title: str) -> Axes:
    """Axes without ticks, `columns` x `rows` units, as wide as a notebook, on a light ground that
    is kept in a dark theme."""
    _figure, axes = plt.subplots(figsize=(WIDTH, WIDTH * rows / columns + 0.3))
    axes.set(xlim=(0, columns), ylim=(0, rows), title=title)
    axes.set_aspect("equal")
    axes.axis("off")
    return axes


def box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str,
    kind: str = "layer",
    size: float = 9,
) -> None:
    """A rounded box with its lower left corner at (x, y) and its text in the middle."""
    shape = "round,pad=0,rounding_size=0.08"
    patch = FancyBboxPatch((x, y), width, height, boxstyle=shape, fc=COLORS[kind], ec="#444444")
    axes.add_patch(patch)
    axes.text(
        x + width / 2,
        y + height / 2,
        text,
        ha="center",
        va="center",
        fontsize=size,
        color="#111111",
    )


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    *,
    color: str = "#444444",
    dashed: bool = False,
    bend: float = 0.0,
) -> None:
    """An arrow, with a text above its middle. `dashed` is for gradients, `bend` curves it."""
    style = {"arrowstyle": "-|>", "color": color, "lw": 1.4, "shrinkA": 2, "shrinkB": 2}
    style |= {"linestyle": "--" if dashed else "-", "connectionstyle": f"arc3,rad={bend}"}
    axes.annotate("", end, start, arrowprops=style)
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axes.text(x, y + 0.08, text, ha="center", va="bottom", fontsize=8, color=color)
