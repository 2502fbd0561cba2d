"""Diagrams of notebook 01: from files to batches, the leak between splits, the eight transforms."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle

from ...data import dihedral_transform
from ..training_curves import WIDTH
from . import COLORS, arrow, box, canvas


def files_to_batches() -> None:
    """Image files, cache and batches, with their shapes, dtypes and how often each step runs."""
    axes = canvas(16, 4.2, "From image files to batches")
    stages = (
        (0.2, "image files", "JPEG, 600 x 450\nabout 0.3 MB each", "data"),
        (5.9, "cache on disk", "uint8 (N, S, S, 3)\n0..255, memory-mapped", "codes"),
        (11.6, "batch", "float32 (B, 3, S, S)\n0..1, augmented", "layer"),
    )
    for x, name, text, kind in stages:
        box(axes, x, 1.5, 4.2, 1.9, f"{name}\n\n{text}", kind)
    for x in (4.4, 10.1):
        arrow(axes, (x, 2.45), (x + 1.5, 2.45))
    for x, text, when in (
        (5.15, "decode, crop to a square, resize", "once, always the same result"),
        (10.85, "shuffle, augment, divide by 255", "in every epoch, random"),
    ):
        axes.text(x, 3.75, text, ha="center", fontsize=9, color="#111111")
        axes.text(x, 0.85, when, ha="center", fontsize=9, color="#444444", style="italic")


def leak() -> None:
    """Photographs of six lesions, divided by image and by lesion."""
    axes = canvas(16, 6.2, "A split by image divides lesions, a split by lesion does not")
    views = (3, 1, 2, 1, 3, 2)
    columns = [0.9 * i + 0.35 * lesion for lesion, i in _photographs(views)]
    for top, name, test in (
        (4.1, "by image", {1, 3, 10}),
        (1.5, "by lesion", {3, 10, 11}),
    ):
        axes.text(0.2, top + 0.4, f"split\n{name}", va="center", fontsize=9, color="#111111")
        for (lesion, number), column in zip(_photographs(views), columns):
            color = COLORS["loss" if number in test else "data"]
            x = 2.2 + column
            axes.add_patch(Rectangle((x, top), 0.75, 0.8, fc=color, ec="#444444"))
            text = "ABCDEF"[lesion]
            axes.text(x + 0.37, top + 0.4, text, ha="center", va="center", color="#111111")
        for lesion, count in enumerate(views):
            numbers = [n for other, n in _photographs(views) if other == lesion]
            leaks = 0 < len(test & set(numbers)) < count
            left, right = 2.2 + columns[numbers[0]], 2.95 + columns[numbers[-1]]
            axes.plot([left, right], [top - 0.2] * 2, color="#cb181d" if leaks else "#444444", lw=2)
            if leaks:
                middle = (left + right) / 2
                axes.text(middle, top - 0.55, "leak", ha="center", fontsize=9, color="#cb181d")
    for x, text, kind in ((3.2, "training image", "data"), (7.0, "test image", "loss")):
        axes.add_patch(Rectangle((x, 0.2), 0.5, 0.5, fc=COLORS[kind], ec="#444444"))
        axes.text(x + 0.7, 0.45, text, va="center", fontsize=9, color="#111111")
    axes.text(10.2, 0.45, "letter: lesion", va="center", fontsize=9, color="#111111")


def _photographs(views: tuple[int, ...]) -> list[tuple[int, int]]:
    """(lesion, number) of each photograph, numbered in order."""
    lesions = [lesion for lesion, count in enumerate(views) for _ in range(count)]
    return [(lesion, number) for number, lesion in enumerate(lesions)]


def eight_transforms() -> None:
    """The eight dihedral transforms of a letter F, as `dihedral_transform` makes them."""
    letter = torch.zeros(9, 9)
    letter[1:8, 2:4] = letter[1:3, 2:7] = letter[4:6, 2:6] = 1
    size, gap = (WIDTH, WIDTH / 2 + 1), {"hspace": 0.12}
    _figure, axes = plt.subplots(2, 4, figsize=size, gridspec_kw=gap)
    for index, axis in enumerate(axes.flat):
        axis.imshow(dihedral_transform(letter, index), cmap="Blues", vmin=0, vmax=1.4)
        turns = ("no turn", "1 quarter turn", "2 quarter turns", "3 quarter turns")[index % 4]
        axis.set(title=f"{index}: {turns}{', flip' if index >= 4 else ''}", xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
    _figure.suptitle("The eight transforms of a square (turns are counter-clockwise)")
