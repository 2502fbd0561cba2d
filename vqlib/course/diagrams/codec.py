"""Diagrams of notebook 06: the codec and what both sides share, and the nested intervals of
arithmetic coding."""

from __future__ import annotations

from fractions import Fraction

from matplotlib.patches import Rectangle

from . import COLORS, arrow, box, canvas


def codec_pipeline() -> None:
    """Image to bytes and back, and what the two sides must have in common."""
    axes = canvas(16, 6.4, "A learned codec: both sides share the models, only the bytes are sent")
    top, bottom = 4.6, 0.5
    stages = [
        ("image\n196,608 bytes", "data"),
        ("VQ-VAE\nencoder", "layer"),
        ("256 codes", "codes"),
        ("range coder:\nencode", "layer"),
    ]
    back = ["decoded\nimage", "VQ-VAE\ndecoder", "256 codes", "range coder:\ndecode"]
    for i, ((text, kind), text_back) in enumerate(zip(stages, back, strict=True)):
        x = 0.3 + 3.2 * i
        box(axes, x, top, 2.4, 1.3, text, kind)
        box(axes, x, bottom, 2.4, 1.3, text_back, kind)
        if i:
            arrow(axes, (x - 0.8, top + 0.65), (x, top + 0.65))
            arrow(axes, (x, bottom + 0.65), (x - 0.8, bottom + 0.65))
    box(axes, 13.3, 2.55, 2.3, 1.3, "file\nabout 240 bytes", "loss")
    arrow(axes, (12.3, top + 0.65), (14.4, 3.9), bend=-0.3)
    arrow(axes, (14.4, 2.5), (12.3, bottom + 0.65), bend=-0.3)
    for x, text in ((3.3, "VQ-VAE weights, codebook"), (8.1, "prior: p(code | earlier codes)")):
        box(axes, x, 2.55, 3.9, 1.3, f"shared\n{text}", "note")
    for x in (4.7, 11.1):
        arrow(axes, (x, 3.85), (x, top), dashed=True)
        arrow(axes, (x, 2.55), (x, bottom + 1.3), dashed=True)
    axes.text(1.5, 4.2, "sender", ha="center", fontsize=9, color="#111111")
    axes.text(1.5, 2.0, "receiver", ha="center", fontsize=9, color="#111111")


def nested_intervals() -> None:
    """Arithmetic coding of a short message: each symbol selects a part of the interval."""
    table = {"a": Fraction(1, 2), "b": Fraction(1, 4), "c": Fraction(1, 4)}
    message = "bac"
    axes = canvas(16, 6.2, f"Arithmetic coding of the message {message!r}")
    low, width = Fraction(0), Fraction(1)
    colors = [COLORS[name] for name in ("data", "layer", "codes")]
    for step, chosen in enumerate(message):
        y, before = 5.0 - 2.0 * step, Fraction(0)
        for color, (symbol, p) in zip(colors, table.items(), strict=True):
            x, wide = 1.5 + 13 * float(before), 13 * float(p)
            edge = {"ec": "#111111", "lw": 2.5 if symbol == chosen else 0.8}
            axes.add_patch(Rectangle((x, y), wide, 0.7, fc=color, **edge))
            axes.text(
                x + wide / 2, y + 0.35, f"{symbol}: p = {p}", ha="center", va="center", color="#111"
            )
            if symbol == chosen:
                ends = low + before * width, low + (before + p) * width
                for end, place in zip(ends, (x, x + wide), strict=True):
                    axes.text(place, y - 0.12, str(end), ha="center", va="top", fontsize=9)
                if step < len(message) - 1:
                    for place, target in ((x, 1.5), (x + wide, 14.5)):
                        line = ([place, target], [y - 0.5, y - 1.25])
                        axes.plot(*line, color="#888888", lw=0.8, ls="--")
            before += p
        low, width = ends[0], ends[1] - ends[0]
        axes.text(0.7, y + 0.35, f"step {step + 1}", ha="center", va="center", fontsize=9)
