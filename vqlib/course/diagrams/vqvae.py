"""Diagrams of notebook 02: the pipeline, the layers, the straight-through estimator, the losses."""

from __future__ import annotations

from matplotlib.axes import Axes
from torch import Tensor

from . import arrow, box, canvas

FORWARD, BACKWARD = "#444444", "#c0392b"


def pipeline(size: int = 256) -> Axes:
    """A VQ-VAE from image to reconstruction, with the shape at each stage and its size in bytes.

    Args:
        size: pixels of a side, divisible by 32.
    """
    side = size // 32
    codes = side * side * 4
    axes = canvas(18, 7.4, f"A VQ-VAE for images of {size} x {size} pixels")
    top, bottom = 4.6, 0.9
    box(axes, 0.1, top, 3.1, 1.7, f"image\n3 x {size} x {size}", "data")
    box(axes, 4.4, top + 0.2, 2.6, 1.3, "encoder", "layer")
    box(axes, 8.1, top, 3.2, 1.7, f"features z\n256 x {side} x {side}", "data")
    box(axes, 12.4, top + 0.2, 5.4, 1.3, "4 slots: nearest of 512\ncodebook vectors", "codes")
    box(axes, 13.0, bottom + 0.1, 4.2, 1.7, f"codes\n{side} x {side} x 4, 0..511", "codes")
    box(axes, 8.1, bottom, 3.2, 1.9, f"quantized\nfeatures\n256 x {side} x {side}", "data")
    box(axes, 4.4, bottom + 0.3, 2.6, 1.3, "decoder", "layer")
    box(axes, 0.1, bottom + 0.1, 3.1, 1.7, f"reconstruction\n3 x {size} x {size}", "data")
    for start, end in ((3.2, 4.4), (7.0, 8.1), (11.3, 12.4)):
        arrow(axes, (start, top + 0.85), (end, top + 0.85))
    arrow(axes, (15.1, top + 0.2), (15.1, bottom + 1.8))
    arrow(axes, (13.0, bottom + 0.95), (11.3, bottom + 0.95), "look up")
    for start, end in ((8.1, 7.0), (4.4, 3.2)):
        arrow(axes, (start, bottom + 0.95), (end, bottom + 0.95))
    notes = (
        (1.65, top + 2.0, f"{3 * size * size:,} bytes"),
        (9.7, top + 2.0, f"{256 * side * side:,} numbers"),
        (15.1, 0.3, f"{codes} codes of 9 bits = {codes * 9 // 8} bytes"),
    )
    for x, y, text in notes:
        axes.text(x, y, text, ha="center", va="center", fontsize=9, color="#111111")
    return axes


def encoder_and_decoder(size: int = 256) -> Axes:
    """The layers of both networks: channels and height of each feature map.

    Args:
        size: pixels of a side, divisible by 32.
    """
    channels = (3, 32, 64, 128, 256, 256)
    axes = canvas(20, 7.6, "Encoder and decoder: each layer halves or doubles height and width")
    x, middle, ends = 0.2, 3.9, []
    for stage in range(12):
        down = stage < 6
        level = stage if down else 11 - stage
        height = 5.4 * 0.72**level
        width = 0.8 + 0.09 * level
        label = f"{channels[level]}"
        kind = "data" if level in (0, 5) else "layer"
        box(axes, x, middle - height / 2, width, height, label, kind, 9)
        side = size // 2**level
        axes.text(x + width / 2, middle - height / 2 - 0.3, f"{side}", ha="center", fontsize=8)
        ends.append((x, x + width))
        x += width + (1.5 if stage == 5 else 0.55)
    for i in range(11):
        arrow(axes, (ends[i][1], middle), (ends[i + 1][0], middle), "VQ" if i == 5 else "")
    for x, text in ((4.0, "encoder: Conv2d"), (15.6, "decoder: ConvTranspose2d")):
        axes.text(x, 7.15, f"{text} 4 x 4, stride 2", ha="center", fontsize=9)
    axes.text(
        10,
        0.25,
        "in the boxes: channels; below them: height = width",
        ha="center",
        fontsize=9,
    )
    return axes


def straight_through() -> Axes:
    """The forward value and the backward gradient of the straight-through estimator."""
    axes = canvas(16, 6.2, "The straight-through estimator")
    y = 2.4
    box(axes, 0.3, y, 2.3, 1.3, "encoder", "layer")
    box(axes, 4.2, y, 1.5, 1.3, "z", "data")
    box(axes, 6.9, y, 2.6, 1.3, "nearest\ncodebook vector", "codes")
    box(axes, 10.7, y, 1.5, 1.3, "e", "data")
    box(axes, 13.4, y, 2.3, 1.3, "decoder", "layer")
    for start, end in ((2.6, 4.2), (5.7, 6.9), (9.5, 10.7), (12.2, 13.4)):
        arrow(axes, (start, y + 0.65), (end, y + 0.65), color=FORWARD)
    path = {"color": BACKWARD, "dashed": True}
    arrow(axes, (14.5, y), (11.5, y), bend=-0.5, **path)
    arrow(axes, (11.4, y), (4.9, y), bend=-0.26, **path)
    arrow(axes, (4.7, y), (1.5, y), bend=-0.5, **path)
    axes.text(8, 5.0, "forward: the decoder gets the value of e", ha="center", color=FORWARD)
    text = "backward: the gradient at e is copied to z; the nearest-vector step is skipped"
    axes.text(8, 0.25, text, ha="center", color=BACKWARD)
    return axes


def loss_terms() -> Axes:
    """Which part of the model each term of the loss trains."""
    axes = canvas(16, 7.2, "Which part of the model each term of the loss trains")
    parts = (("encoder", 5.1, "layer"), ("codebook", 8.9, "codes"), ("decoder", 12.7, "layer"))
    for text, x, kind in parts:
        box(axes, x, 5.3, 2.9, 1.2, text, kind)
    terms = (
        ("reconstruction loss", 3.7, (5.1, 12.7), "MSE / data variance"),
        ("commitment loss", 2.2, (5.1,), "β · mean (z - sg[e])²"),
        ("codebook loss or EMA", 0.7, (8.9,), "mean (sg[z] - e)²"),
    )
    for text, y, trained, formula in terms:
        box(axes, 0.1, y - 0.5, 4.3, 1.1, f"{text}\n{formula}", "loss")
        for _, x, _ in parts:
            if x in trained:
                box(axes, x + 0.55, y - 0.35, 1.8, 0.8, "trains", "loss", 9)
            else:
                axes.text(x + 1.45, y + 0.05, "no gradient", ha="center", va="center", fontsize=9)
    return axes


def loss_gradients(axes: Axes, z: Tensor, e: Tensor, moves: list[Tensor], title: str) -> None:
    """On a plane: sub-vectors, their codebook vectors, and the direction in which each is moved.

    Args:
        z: float (N, 2), sub-vectors, with one codebook vector each.
        e: float (N, 2).
        moves: the negative gradients at z and at e, float (N, 2) each.
        title: of the axes.
    """
    axes.plot(*z.detach().T, "o", color="#1f77b4", ms=5, label="sub-vectors z")
    axes.plot(*e.detach().T, "s", color="#2ca02c", ms=9, alpha=0.6, label="codebook vectors e")
    arrows = {"angles": "xy", "scale_units": "xy", "scale": 1, "color": BACKWARD, "zorder": 3}
    for points, move in zip((z.detach(), e.detach()), moves, strict=True):
        if move.any():
            axes.quiver(*points.T, *move.T, width=0.007, **arrows)
    axes.set(title=title, aspect="equal", xlim=(-2.2, 2.2), ylim=(-1.6, 1.6))
    axes.set(xlabel="first component", ylabel="second component")
