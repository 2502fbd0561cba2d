"""Diagrams of notebook 03: the order of codes, and the missing permute."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from . import COLORS, arrow, box, canvas

FOUR = [COLORS[name] for name in ("data", "layer", "codes", "loss")]


def _cell(axes: Axes, x: float, y: float, side: float, color: str, text: str = "") -> None:
    axes.add_patch(Rectangle((x, y), side, side, fc=color, ec="#444444", lw=0.8))
    axes.text(x + side / 2, y + side / 2, text, ha="center", va="center", fontsize=8, color="#111")


def order_of_codes() -> None:
    """Positions in raster order, and the four slots of one position."""
    axes = canvas(16, 7.4, "Codes of one image, (8, 8, 4): row, column, slot")
    side, row, column = 0.75, 3, 7
    for r in range(8):
        for c in range(8):
            here = (r, c) == (row, column)
            text = str(4 * (8 * r + c))
            color = COLORS["layer" if here else "note"]
            _cell(axes, 0.6 + side * c, 6.3 - side * (r + 1), side, color, text)
    axes.text(3.6, 6.45, "8 x 8 positions of 32 x 32 pixels", ha="center", va="bottom", fontsize=9)
    caption = "number: index of the first of the four codes at this position"
    axes.text(3.6, 0.15, caption, ha="center", va="top", fontsize=8, color="#444444")
    x, y = 0.6 + side * (column + 1), 6.3 - side * (row + 0.5)
    arrow(axes, (x, y), (7.9, y), "")
    axes.text(8.9, 6.45, "256 channels", ha="center", va="bottom", fontsize=9)
    axes.text(14.2, 6.45, "four codes", ha="center", va="bottom", fontsize=9)
    for slot in range(4):
        low = 4.9 - 1.5 * slot
        box(axes, 8.0, low, 1.8, 1.3, f"{64 * slot}-{64 * slot + 63}", "layer")
        arrow(axes, (9.8, low + 0.65), (12.9, low + 0.65), f"nearest of 512 (codebook {slot})")
        number = 4 * (8 * row + column) + slot
        box(axes, 13.0, low, 2.4, 1.3, f"code of slot {slot}\nindex {number} of 0-255", "codes", 8)


def missing_permute() -> None:
    """Which numbers of a small feature map land in one vector, with and without the permute."""
    axes = canvas(16, 8.2, "A feature map of 4 channels and 2 x 2 positions, cut into vectors of 4")
    side = 0.85
    for top, title, code in (
        (7.1, "without the permute: a vector is one channel at all positions", "z.reshape(-1, 4)"),
        (
            3.1,
            "with the permute: a vector is one position in all channels",
            "z.permute(0, 2, 3, 1).reshape(-1, 4)",
        ),
    ):
        axes.text(0.4, top + 0.15, title, fontsize=10, color="#111111")
        axes.text(15.6, top + 0.15, code, fontsize=9, ha="right", family="monospace", color="#111")
        for channel in range(4):
            x0 = 0.4 + 2.1 * channel
            for position in range(4):
                r, c = divmod(position, 2)
                color = FOUR[channel if "without" in title else position]
                number = str(4 * channel + position)
                _cell(axes, x0 + side * c, top - 0.25 - side * (r + 1), side, color, number)
            label = f"channel {channel}"
            axes.text(x0 + side, top - 2.3, label, ha="center", fontsize=8, color="#111111")
        arrow(axes, (8.8, top - 1.1), (10.3, top - 1.1), "")
        for vector in range(4):
            for i in range(4):
                number = 4 * vector + i if "without" in title else 4 * i + vector
                y = top - 0.55 - 0.6 * vector
                axes.add_patch(
                    Rectangle((10.6 + 0.9 * i, y - 0.25), 0.9, 0.5, fc=FOUR[vector], ec="#444444")
                )
                axes.text(
                    11.05 + 0.9 * i,
                    y,
                    str(number),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="#111",
                )
            axes.text(14.4, y, f"vector {vector}", va="center", fontsize=8, color="#111111")
