"""Figures of notebook 07: calibration, precision and recall as neighborhoods, responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from ..training_curves import WIDTH
from . import arrow, box, canvas


def _neighborhoods(
    axis: Axes, centers: Tensor, points: Tensor, k: int, colors: tuple[str, str]
) -> int:
    """Neighborhoods of `centers`, and the points inside (filled) and outside (hollow); returns how
    many are inside."""
    radius = torch.cdist(centers, centers).kthvalue(k + 1).values
    for center, r in zip(centers.tolist(), radius.tolist(), strict=True):
        axis.add_patch(Circle(center, r, fc=colors[0], ec=colors[0], alpha=0.12))
    inside = (torch.cdist(points, centers) <= radius).any(1)
    axis.plot(*centers.T, "^", color=colors[0], ms=6)
    axis.plot(*points[inside].T, "o", color=colors[1], ms=6)
    axis.plot(*points[~inside].T, "o", mfc="none", mec=colors[1], mew=1.5, ms=6)
    axis.set(aspect="equal", xlim=(-3.4, 4.6), ylim=(-3.2, 3.4), xticks=[], yticks=[])
    axis.set(xlabel="feature 1", ylabel="feature 2")
    axis.grid(False)
    return int(inside.sum())


def precision_and_recall(k: int = 3) -> Figure:
    """Two sets of points in the plane: a wide real set with one outlier, and a narrower generated
    set; left the neighborhoods of the real points (precision), right those of the generated ones
    (recall)."""
    generator = torch.Generator().manual_seed(5)
    real = torch.randn(24, 2, generator=generator) * torch.tensor([1.0, 0.8]) - 0.7
    real = torch.cat([real, torch.tensor([[2.6, 1.6]])])
    generated = torch.randn(20, 2, generator=generator) * 0.45 - torch.tensor([1.0, 0.7])
    generated = torch.cat([generated, torch.tensor([[3.6, 2.4], [1.6, 0.6], [3.2, -2.4]])])
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.3))
    inside = _neighborhoods(axes[0], real, generated, k, ("C0", "C1"))
    axes[0].set_title(
        f"Precision: {inside} of {len(generated)} generated\nin neighborhoods of real"
    )
    inside = _neighborhoods(axes[1], generated, real, k, ("C1", "C0"))
    axes[1].set_title(f"Recall: {inside} of {len(real)} real\nin neighborhoods of generated")
    figure.supxlabel(
        "blue: real, orange: generated; triangle: center of a neighborhood; "
        f"hollow: in no neighborhood; k = {k}",
        fontsize=10,
    )
    return figure


def calibration() -> None:
    """From known defects to the choice of measures, and from there to the samples."""
    axes = canvas(12, 4.6, "Calibrate the measure before you judge the model")
    box(axes, 0.1, 3.1, 2.7, 1.1, "two sets of\nreal lesions", "data")
    box(axes, 0.1, 1.6, 2.7, 1.1, "real lesions with\na known defect", "data")
    box(axes, 0.1, 0.1, 2.7, 1.1, "samples of\nthe model", "data")
    box(axes, 3.9, 0.1, 2.1, 4.1, "features,\nthen a measure")
    box(axes, 7.1, 3.1, 2.1, 1.1, "range of its value\nwithout a defect", "note")
    box(axes, 7.1, 1.6, 2.1, 1.1, "does it leave\nthis range?", "note")
    box(axes, 10.2, 1.6, 1.7, 2.6, "measures\nthat respond", "codes")
    box(axes, 7.1, 0.1, 4.8, 1.1, "verdict on the samples,\nwith these measures only", "loss")
    arrow(axes, (2.8, 3.65), (3.9, 3.65), "1.")
    arrow(axes, (2.8, 2.15), (3.9, 2.15), "2.")
    arrow(axes, (6.0, 3.65), (7.1, 3.65))
    arrow(axes, (6.0, 2.15), (7.1, 2.15))
    arrow(axes, (8.15, 3.1), (8.15, 2.7))
    arrow(axes, (9.2, 2.15), (10.2, 2.15))
    arrow(axes, (11.05, 1.6), (11.05, 1.2))
    arrow(axes, (2.8, 0.65), (3.9, 0.65), "3.")
    arrow(axes, (6.0, 0.65), (7.1, 0.65))


def responses(
    rows: Mapping[str, Sequence[float]], measures: Sequence[str], groups: Sequence[str], title: str
) -> Figure:
    """A table of responses, in standard deviations of the value for two sets of real images.

    Args:
        rows: name of a set -> responses, one for each group and each of its measures.
        measures: names of the measures, the same in each group.
        groups: names of the feature extractors.
        title: of the figure.
    """
    values = torch.tensor(list(rows.values()), dtype=torch.float64)
    n, width = len(rows), len(measures)
    figure, axis = plt.subplots(figsize=(WIDTH, 0.24 * n + 1.6))
    colors = ListedColormap(["#f2f2f2", "#fdd9a8", "#fdae6b", "#e6783c"])
    norm = BoundaryNorm([0, 3, 10, 30, 1e9], 4)
    axis.imshow(values.abs(), cmap=colors, norm=norm, aspect="auto")
    for (i, j), value in zip(
        torch.cartesian_prod(torch.arange(n), torch.arange(values.shape[1])).tolist(),
        values.flatten().tolist(),
        strict=True,
    ):
        # More digits near 3, so that the number agrees with its color.
        digits = 2 if 2.95 <= abs(value) < 3.05 else int(2.5 <= abs(value) < 3.5)
        text = f"{value:.{digits}f}" if abs(value) < 100 else ("> 99" if value > 0 else "< -99")
        text = "0" if text == "-0" else text
        seen = abs(value) >= 3
        axis.text(j, i, text, ha="center", va="center", fontsize=9, color="k" if seen else "0.4")
    for j in range(width, values.shape[1], width):
        axis.axvline(j - 0.5, color="k", lw=2)
    axis.set_xticks(range(values.shape[1]), [*measures] * len(groups), rotation=60, ha="right")
    axis.set_yticks(range(n), list(rows))
    axis.tick_params(labelsize=8.5, length=0)
    axis.grid(False)
    for g, group in enumerate(groups):
        axis.text((g + 0.5) * width - 0.5, -0.8, group, ha="center", va="bottom", fontsize=9.5)
    axis.set_title(
        f"{title}\n(0 to 3, gray: no response; 3 to 10, 10 to 30, above 30: response)",
        fontsize=10,
        pad=22,
    )
    return figure
