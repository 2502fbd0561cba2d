"""Diagrams of notebook 10: what three priors read, causal attention, its cache, parallel passes."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from . import COLORS, arrow, box, canvas


def _cell(axes: Axes, x: float, y: float, kind: str, text: str = "") -> None:
    axes.add_patch(Rectangle((x, y), 1, 1, fc=COLORS[kind], ec="white", lw=1.5))
    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=9, color="#111111")


def three_priors() -> Axes:
    """What each prior reads to predict one position, and how many passes a grid takes."""
    axes = canvas(21, 7.6, "What is read for one prediction (center of each grid)")
    texts = (
        "PixelCNN\nearlier codes, through\nmany layers: 256 steps",
        "causal transformer\nearlier codes, each one\ndirectly: 256 steps",
        "masked transformer\nvisible codes, wherever\nthey are: a few passes",
    )
    visible = {(0, 3), (1, 1), (1, 4), (2, 0), (3, 2), (3, 4), (4, 0), (4, 3), (0, 0)}
    for panel, text in enumerate(texts):
        left = 0.5 + 7 * panel
        for row in range(5):
            for column in range(5):
                earlier = (row, column) < (2, 2)
                known = (row, column) in visible if panel == 2 else earlier
                now = (row, column) == (2, 2)
                kind = "layer" if now else "codes" if known else "note"
                _cell(axes, left + column, 6.4 - row, kind, "?" if now else "")
        starts = (((0, 0), (0, 2), (0, 4)), ((0, 0), (1, 3), (2, 0)), ((0, 3), (2, 0), (4, 3)))
        for row, column in starts[panel]:
            dx, dy = 2 - column, 2 - row
            x, y = left + column + 0.5, 6.9 - row
            shorter = 1 - 0.5 / max(abs(dx), abs(dy))  # up to the edge of the center
            if panel == 0:  # from neighbor to neighbor
                arrow(axes, (x, y), (x + dx / 2, y - dy / 2))
                x, y, dx, dy, shorter = x + dx / 2, y - dy / 2, dx / 2, dy / 2, 0.5
            arrow(axes, (x, y), (x + shorter * dx, y - shorter * dy))
        axes.text(left + 2.5, 2.1, text, ha="center", va="top", fontsize=9)
    axes.text(
        10.5,
        0.0,
        "green: read    gray: not read    orange: predicted",
        ha="center",
        fontsize=8.5,
        color="#444444",
    )
    return axes


def causal_tokens() -> Axes:
    """The shift by one token, and which tokens each output reads."""
    axes = canvas(18, 6.6, "A causal transformer: the input is shifted, later tokens are masked")
    for i in range(5):
        x = 0.6 + 1.9 * i
        box(axes, x, 0.4, 1.5, 0.9, "start" if i == 0 else f"code {i - 1}", "codes", 8.5)
        box(axes, x, 2.6, 1.5, 0.9, f"token {i}", "layer", 8.5)
        box(axes, x, 4.8, 1.5, 0.9, f"p(code {i})", "data", 8.5)
        arrow(axes, (x + 0.75, 3.5), (x + 0.75, 4.8))
        for j in range(i + 1):
            arrow(axes, (0.6 + 1.9 * j + 0.75, 1.3), (x + 0.75, 2.6))
    for i in range(5):
        for j in range(5):
            _cell(axes, 12.2 + j, 5.2 - i, "layer" if j <= i else "note")
    axes.text(14.7, 0.55, "token j that is read", ha="center", fontsize=9)
    axes.text(11.9, 3.7, "token i", ha="center", va="center", rotation=90, fontsize=9)
    return axes


def cache() -> Axes:
    """One step with a cache of keys and values."""
    axes = canvas(16, 5.6, "One step with a cache, in one block")
    box(axes, 0.2, 2.1, 2.5, 1.3, "newest token\n(n, 1, C)", "codes")
    for y, name in ((4.1, "query"), (2.3, "key"), (0.5, "value")):
        box(axes, 3.9, y, 2.0, 0.9, name, "layer")
        arrow(axes, (2.7, 2.75), (3.9, y + 0.45))
    for y, name in ((2.3, "keys"), (0.5, "values")):
        for j in range(4):
            kind = "data" if j < 3 else "layer"
            _cell(axes, 7.1 + 0.95 * j, y - 0.05, kind)
        axes.text(8.5, y + 1.05, f"cached {name}, and the new one", fontsize=8.5, ha="center")
        arrow(axes, (5.9, y + 0.45), (7.1, y + 0.45))
    box(axes, 12.4, 2.1, 3.3, 1.3, "attention, no mask:\nsoftmax of t + 1 scores", "loss")
    arrow(axes, (5.9, 4.55), (12.6, 3.4))
    arrow(axes, (11.0, 2.75), (12.4, 2.75))
    arrow(axes, (11.0, 0.95), (12.6, 2.1))
    return axes


def one_pass() -> Axes:
    """A pass of the parallel sampler."""
    axes = canvas(17, 4.4, "One parallel pass: repeat S times, with fewer masked codes each time")
    steps = (
        ("codes so far\nand the mask", "codes"),
        ("prior: logits of\nall masked codes", "layer"),
        ("sample all\nmasked codes", "data"),
        ("keep the most\nconfident ones", "loss"),
    )
    for i, (text, kind) in enumerate(steps):
        box(axes, 0.3 + 4.25 * i, 2.0, 3.5, 1.4, text, kind)
        if i:
            arrow(axes, (0.3 + 4.25 * i - 0.75, 2.7), (0.3 + 4.25 * i, 2.7))
    arrow(axes, (14.8, 2.0), (2.0, 2.0), bend=-0.16)
    axes.text(8.4, 0.2, "the others are masked again", ha="center", fontsize=9)
    return axes
