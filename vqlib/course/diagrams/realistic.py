"""Figures of notebook 08: blur as a mean, the two decoders, flows, perception and distortion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from ..training_curves import WIDTH
from . import arrow, box, canvas


def hairs(n: int, size: int = 64) -> Tensor:
    """Skin with one hair at a random position and in a random direction, float (n, 3, size, size),
    with fixed random numbers. The skin is the same in all images."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    skin = torch.tensor([0.80, 0.62, 0.55])[:, None, None] - 0.06 * (x + y)
    angle = 0.6 + 0.5 * torch.randn(n, 1, 1, generator=generator)
    offset = 0.35 * torch.randn(n, 1, 1, generator=generator)
    bend = 0.2 * torch.randn(n, 1, 1, generator=generator)
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    distance = across - offset - bend * along.square()
    hair = (-(distance / 0.045).square()).exp()[:, None]
    return skin * (1 - 0.75 * hair)


def two_decoders() -> None:
    """From the codes to the faithful image, and from there to the realistic one."""
    axes = canvas(12, 4.3, "Two decoders for the same 288 bytes")
    box(axes, 0.1, 2.9, 1.5, 1.1, "codes", "codes")
    box(axes, 2.4, 2.9, 1.9, 1.1, "VQVAE.decode")
    box(axes, 5.1, 2.9, 2.3, 1.1, "decoded image\n(about the mean)", "data")
    box(axes, 0.1, 0.3, 1.5, 1.1, "noise x at\nt = 0", "note")
    box(axes, 2.4, 0.3, 1.9, 1.1, "flow: a few\nsteps to t = 1")
    box(axes, 5.1, 0.3, 2.3, 1.1, "residual / rms,\nfrom components", "data")
    box(axes, 5.1, 1.75, 2.3, 0.75, "sampled rms", "note")
    box(axes, 8.2, 0.3, 1.0, 1.1, "times\nrms", "layer")
    box(axes, 10.0, 2.9, 1.9, 1.1, "realistic image\n(detail invented)", "loss")
    arrow(axes, (1.6, 3.45), (2.4, 3.45))
    arrow(axes, (4.3, 3.45), (5.1, 3.45))
    arrow(axes, (7.4, 3.45), (10.0, 3.45), "plus detail")
    arrow(axes, (1.6, 0.85), (2.4, 0.85))
    arrow(axes, (4.3, 0.85), (5.1, 0.85))
    arrow(axes, (7.4, 0.85), (8.2, 0.85))
    arrow(axes, (9.2, 0.85), (10.6, 2.9))
    arrow(axes, (6.25, 2.9), (6.25, 2.5))
    arrow(axes, (7.4, 2.1), (8.7, 1.4))
    arrow(axes, (5.1, 3.1), (3.7, 1.4), color="C0")
    arrow(axes, (5.1, 2.1), (4.1, 1.4), color="C0")
    axes.text(3.2, 2.15, "conditions", color="C0", fontsize=8, ha="center")


def paths(data: Tensor, trajectories: Tensor) -> Figure:
    """Straight lines from noise to data (left), and the trajectories of the learned flow (right).

    Args:
        data: (n,), where the lines end. They start where the trajectories do.
        trajectories: (steps + 1, n), positions at equal steps of time from 0 to 1.
    """
    noise, times = trajectories[0], torch.linspace(0, 1, len(trajectories))
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.4), sharey=True)
    axes[0].plot([0, 1], torch.stack([noise, data]).numpy(), color="C0", lw=0.7, alpha=0.5)
    axes[0].set_title("Training: lines from noise to independent data")
    axes[1].plot(times.numpy(), trajectories.numpy(), color="C1", lw=0.7, alpha=0.6)
    axes[1].set_title("Sampling: trajectories of the learned flow")
    axes[0].set_ylabel("x")
    for axis in axes:
        axis.set_xlabel("time t (0: noise, 1: data)")
    return figure


def strongest_components(basis: Tensor, std: Tensor, count: int = 12) -> Figure:
    """The directions with the largest standard deviations, as patches of 4x4 pixels.

    Args:
        basis: (48, 48), one direction in each row. std: (48,).
    """
    order = std.argsort(descending=True)[:count]
    patches = F.pixel_shuffle(basis[order][:, :, None, None], 4)  # (count, 3, 4, 4)
    patches = 0.5 + 0.45 * patches / patches.abs().amax((1, 2, 3), keepdim=True)
    figure, axes = plt.subplots(2, count // 2, figsize=(WIDTH, 3.3))
    for axis, patch, value in zip(axes.flat, patches, std[order].tolist(), strict=True):
        axis.imshow(patch.permute(1, 2, 0).numpy())
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.set_title(f"std {value:.2f}", fontsize=9)
    figure.suptitle(f"The {count} strongest components of residuals (4x4 pixels)", fontsize=11)
    return figure


def perception_distortion(rows: Mapping[str, Any], names: Sequence[str], extractor: str) -> Figure:
    """Kernel distance to photographs (perception) against the squared error (distortion).

    Args:
        rows: "rows" of data/results/perception.json.
        names: of the rows on the curve from the faithful to the realistic decoder.
        extractor: name of the features.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 4.4))

    def point(name: str) -> tuple[float, float]:
        row = rows[name]
        return row["relative_error"], 1000 * row["features"][extractor]["kernel_distance"]

    axis.plot(*zip(*map(point, names), strict=True), "o-", color="C0", label="interpolations")
    for name in (*names, "matched noise"):
        x, y = point(name)
        if name == "matched noise":
            axis.plot(x, y, "s", color="C3")
        axis.annotate(name, (x, y), xytext=(7, 5), textcoords="offset points", fontsize=9)
    real = 1000 * rows["photographs"]["features"][extractor]["kernel_distance"]
    axis.axhline(real, color="C2", ls="--", label=f"another set of photographs ({real:.1f})")
    axis.axvline(2, color="0.5", ls=":", label="a perfect sample of the posterior")
    axis.set(
        xlabel="squared error, relative to the faithful decoder (distortion)",
        ylabel="KID x 1000 (perception)",
        title=f"Perception against distortion, features: {extractor} (lower left is better)",
        xlim=(0.95, None),
    )
    axis.legend(fontsize=8)
    return figure
