"""Diagrams of notebook 04: the order of the codes, masks, receptive fields, the gated block."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from ...pixelcnn import MaskedConv2d, PixelCNN, PixelRCNN, dependency_matrix
from ..training_curves import WIDTH
from . import arrow, box, canvas

SEEN, NOT_SEEN, LATER, OUTPUT = "#6baed6", "#fdae6b", "#ececec", "#cb181d"


def raster_order(row: int = 1, column: int = 2, slot: int = 1, side: int = 4) -> Axes:
    """The order of the codes of a small grid: earlier codes, the current one, later codes."""
    axes = canvas(13, 4.9, f"Raster order: a grid of {side} x {side} positions with 4 slots each")
    current = (row * side + column) * 4 + slot
    for position in range(side * side):
        r, c = divmod(position, side)
        for s in range(4):
            index, x, y = position * 4 + s, 0.4 + 1.0 * c + 0.25 * s, 3.4 - r
            color = SEEN if index < current else LATER if index > current else OUTPUT
            axes.add_patch(Rectangle((x, y), 0.25, 0.9, fc=color, ec="white", lw=0.5))
        axes.add_patch(Rectangle((0.4 + c, 3.4 - r), 1, 0.9, fill=False, ec="#444444", lw=1.2))
    for s in range(4):
        color = SEEN if s < slot else LATER if s > slot else OUTPUT
        text = "white" if s == slot else "#111111"
        axes.add_patch(Rectangle((6.3 + 1.6 * s, 1.7), 1.5, 1.5, fc=color, ec="#444444"))
        axes.text(7.05 + 1.6 * s, 2.45, f"slot {s}\ncode {current - slot + s}", color=text,
                  ha="center", va="center", fontsize=10)  # fmt: skip
        for earlier in range(s):  # each slot depends on all earlier ones
            start, end = (7.2 + 1.6 * earlier, 1.65), (6.75 + 1.6 * s + 0.2 * (s - earlier), 1.65)
            arrow(axes, start, end, bend=0.3)
    arcs = "(arc: the code is used to predict a later one)"
    title = f"the position in row {row}, column {column}\n{arcs}"
    axes.text(9.5, 3.4, title, ha="center", va="bottom", fontsize=10)
    arrow(axes, (1.4 + column, 3.85 - row), (6.2, 2.45))
    for x, color, name in (
        (6.3, SEEN, "earlier"),
        (8.4, OUTPUT, "current"),
        (10.5, LATER, "later"),
    ):
        axes.add_patch(Rectangle((x, 0.05), 0.35, 0.35, fc=color, ec="#444444"))
        axes.text(x + 0.5, 0.22, name, va="center", fontsize=10)
    return axes


def masks() -> Figure:
    """Masks A and B: of a 5 x 5 kernel with one slot, and at the center of one with four slots."""
    figure, all_axes = plt.subplots(1, 4, figsize=(WIDTH, 2.9))
    figure.get_layout_engine().set(wspace=0.08)
    colors = ListedColormap([LATER, SEEN])
    for axes, (kind, slots) in zip(all_axes, (("A", 1), ("B", 1), ("A", 4), ("B", 4)), strict=True):
        mask = MaskedConv2d(kind, slots, slots, kernel_size=5, slots=slots).mask
        shown = mask[0, 0] if slots == 1 else mask[:, :, 2, 2]
        axes.imshow(shown, cmap=colors, vmin=0, vmax=1)
        n = len(shown)
        for i in range(n * n):
            row, column = divmod(i, n)
            text = f"{shown[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", color="#111111")
        axes.grid(False)
        where = "5 x 5 kernel, one slot" if slots == 1 else "center, four slots"
        axes.set_title(f"Mask {kind}\n{where}", fontsize=10)
        if slots == 1:
            axes.add_patch(Rectangle((1.5, 1.5), 1, 1, fill=False, ec=OUTPUT, lw=2))
            axes.set(xticks=range(5), yticks=range(5), xlabel="kernel column", ylabel="kernel row")
        else:
            axes.set(xticks=range(4), yticks=range(4), xlabel="from slot", ylabel="to slot")
    return figure


def receptive_field(axes: Axes, seen: Tensor, row: int, column: int, title: str) -> None:
    """What one output sees: blue if it is earlier, red with a cross if it comes later.

    Args:
        seen: bool (h, w), positions on which the output at (row, column) depends.
    """
    h, w = seen.shape
    order = torch.arange(h * w).view(h, w)
    output = row * w + column
    category = torch.where(order < output, torch.where(seen, 1, 2), 0)
    category[row, column] = 3
    axes.imshow(category, cmap=ListedColormap([LATER, SEEN, NOT_SEEN, OUTPUT]), vmin=0, vmax=3)
    for r, c in (seen & (order >= output)).nonzero().tolist():
        color = "white" if (r, c) == (row, column) else OUTPUT
        axes.text(c, r, "x", ha="center", va="center", color=color, weight="bold")
    for line in range(max(h, w)):
        axes.axhline(line - 0.5, color="white", lw=1.5)
        axes.axvline(line - 0.5, color="white", lw=1.5)
    axes.grid(False)
    axes.set(title=title, xlabel="column", ylabel="row")


def field_legend(figure: Figure, leaks: bool) -> None:
    """A legend for `receptive_field` below the figure."""
    names = {OUTPUT: "predicted", SEEN: "earlier, seen", NOT_SEEN: "earlier, not seen"}
    patches = [Rectangle((0, 0), 1, 1, fc=color, ec="#444444") for color in (*names, LATER)]
    labels = [*names.values(), "later"]
    if leaks:
        patches.append(Line2D([], [], marker="x", color=OUTPUT, ls="", mew=2))
        labels.append("seen, although not allowed")
    figure.legend(patches, labels, ncols=5, loc="outside lower center", fontsize=8)


def vertical_field(
    layer: Callable[[Tensor, Tensor], Tensor], row: int = 4, column: int = 3
) -> Figure:
    """Which positions the output of a vertical layer at one position depends on, by gradients.

    Args:
        layer: maps x, float (B, D, 8, 8), and weight, float (C, D, 3, 7), to (B, C, 8, 8).
    """
    x = torch.zeros(1, 1, 8, 8, requires_grad=True)
    layer(x, torch.ones(1, 1, 3, 7))[0, 0, row, column].backward()
    figure, axes = plt.subplots(figsize=(WIDTH, WIDTH / 2))
    title = f"Input of the prediction at row {row}, column {column}"
    receptive_field(axes, x.grad[0, 0] != 0, row, column, title)
    field_legend(figure, leaks=True)
    return figure


def blind_spot(row: int = 5, column: int = 1, side: int = 8) -> Figure:
    """The receptive field of one position in one plain stack and in two stacks, by gradients."""
    torch.manual_seed(0)
    x = torch.randn(1, 8, side, side, requires_grad=True)
    plain = PixelRCNN(no_channels=8, out_channels=8, conv_filters=12).eval()
    one = dependency_matrix(plain(x).permute(0, 2, 3, 1).unsqueeze(3), x, slots=1)
    stacks = PixelCNN(8, 1, conv_filters=12, embedding_dim=8, blocks=8).eval()
    two = dependency_matrix(stacks.forward_embedded(x), x, slots=1)
    figure, both = plt.subplots(1, 2, figsize=(WIDTH, 4.7))
    for axes, seen, name in zip(both, (one, two), ("One plain stack", "Two stacks"), strict=True):
        earlier = torch.ones_like(seen).tril(-1)
        missing, pairs = int((earlier & ~seen).sum()), int(earlier.sum())
        title = f"{name}: {missing} of {pairs:,} pairs not seen"
        receptive_field(axes, seen[row * side + column].view(side, side), row, column, title)
    field_legend(figure, leaks=False)
    return figure


def gated_block() -> Axes:
    """One gated block with both stacks, after Figure 2 of van den Oord et al. (2016)."""
    axes = canvas(16, 8.6, "One block: vertical stack (left) and horizontal stack (right)")
    for x, name in ((1.2, "v_stack"), (8.8, "h_stack")):
        box(axes, x, 0.3, 2.6, 0.8, f"{name}: p", "data")
    box(axes, 0.7, 1.9, 3.6, 0.8, "vertical, 2 x 3\np -> 2p")
    box(axes, 6.9, 1.9, 2.9, 0.8, "horizontal (left)\np -> 2p")
    box(axes, 10.4, 1.9, 2.9, 0.8, "center, mask B\np -> 2p")
    box(axes, 13.7, 1.9, 2.2, 0.8, "conditional\nbias: 2p", "note")
    box(axes, 4.3, 3.2, 3.5, 0.8, "vertical_to_horizontal\n2p -> 2p")
    box(axes, 9.6, 3.2, 1.0, 0.8, "+", "note", 14)
    for center in (2.5, 10.1):
        box(axes, center - 1.7, 4.6, 1.6, 0.7, "tanh, p", "codes")
        box(axes, center + 0.1, 4.6, 1.6, 0.7, "sigmoid, p", "codes")
        box(axes, center - 0.5, 5.8, 1.0, 0.7, "x", "note", 14)
        arrow(axes, (center - 0.9, 5.3), (center - 0.2, 5.8))
        arrow(axes, (center + 0.9, 5.3), (center + 0.2, 5.8))
    box(axes, 8.5, 7.0, 3.2, 0.6, "horizontal_out, p -> p")
    box(axes, 12.6, 7.0, 1.0, 0.6, "+", "note", 14)
    arrow(axes, (2.5, 1.1), (2.5, 1.9))
    arrow(axes, (9.6, 1.1), (8.4, 1.9))
    arrow(axes, (10.6, 1.1), (11.8, 1.9))
    arrow(axes, (2.5, 2.7), (1.6, 4.6))
    arrow(axes, (2.5, 2.7), (3.4, 4.6))
    arrow(axes, (3.4, 2.7), (4.3, 3.5))
    arrow(axes, (7.8, 3.6), (9.6, 3.6))
    arrow(axes, (8.4, 2.7), (9.7, 3.2))
    arrow(axes, (11.8, 2.7), (10.5, 3.2))
    arrow(axes, (14.8, 2.7), (10.6, 3.6))
    arrow(axes, (9.9, 4.0), (9.2, 4.6))
    arrow(axes, (10.3, 4.0), (11.0, 4.6))
    arrow(axes, (10.1, 6.5), (10.1, 7.0))
    arrow(axes, (11.7, 7.3), (12.6, 7.3))
    axes.plot([11.4, 13.5, 13.5, 13.2], [0.7, 0.7, 6.5, 6.95], color="#444444", lw=1.4)
    axes.text(13.65, 5.2, "residual\nconnection", fontsize=9, color="#444444")
    arrow(axes, (2.5, 6.5), (2.5, 7.7))
    arrow(axes, (13.1, 7.6), (13.1, 8.2))
    axes.text(2.5, 7.85, "new v_stack", ha="center", fontsize=10)
    axes.text(13.3, 7.85, "new h_stack", ha="left", fontsize=10)
    return axes
