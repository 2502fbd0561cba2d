"""Diagram of notebook 07: precision and recall as balls around images."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from ..training_curves import WIDTH


def _balls(axis: Axes, centers: Tensor, points: Tensor, k: int, colors: tuple[str, str]) -> int:
    """Balls of `centers`, and the points inside (filled) and outside (hollow); returns how many
    are inside."""
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
    set; left the balls of the real points (precision), right those of the generated ones
    (recall)."""
    generator = torch.Generator().manual_seed(5)
    real = torch.randn(24, 2, generator=generator) * torch.tensor([1.0, 0.8]) - 0.7
    real = torch.cat([real, torch.tensor([[2.6, 1.6]])])
    generated = torch.randn(20, 2, generator=generator) * 0.45 - torch.tensor([1.0, 0.7])
    generated = torch.cat([generated, torch.tensor([[3.6, 2.4], [1.6, 0.6], [3.2, -2.4]])])
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.1))
    inside = _balls(axes[0], real, generated, k, ("C0", "C1"))
    axes[0].set_title(f"Precision: {inside} of {len(generated)} generated in balls of real")
    inside = _balls(axes[1], generated, real, k, ("C1", "C0"))
    axes[1].set_title(f"Recall: {inside} of {len(real)} real in balls of generated")
    figure.supxlabel(
        f"blue: real, orange: generated; triangle: center of a ball; hollow: in no ball; k = {k}",
        fontsize=10,
    )
    return figure
