"""Figures of the notebooks. These functions only plot; the results are computed elsewhere."""

from __future__ import annotations

import base64
import html
import inspect
import io
import math
import re
from collections.abc import Sequence
from itertools import zip_longest
from textwrap import shorten
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor

from ..checkpoints import read_log  # noqa: F401
from ..quantizer import nearest_codes

# The notebooks import all figures from this module.
from .training_curves import (  # noqa: F401
    WIDTH,
    LiveTraining,
    plot_log,
    to_image_array,
)


def use_style() -> None:
    """Set the style of all figures. They are embedded as JPEG, a fifth of the size of PNG, with an
    alternative text in the metadata of the output (the key `alt` of nbconvert)."""
    plt.rcParams.update(
        {
            "figure.dpi": 90,
            "figure.figsize": (WIDTH, 3.2),
            "figure.constrained_layout.use": True,
            "axes.formatter.useoffset": False,  # 9.00331, not 9.0033 beside 1e-5
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "font.size": 10,
            "image.cmap": "viridis",
        }
    )
    try:
        from IPython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    if (shell := get_ipython()) is None:  # not in a notebook
        return
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 75, "optimize": True})
    formatter = shell.display_formatter.formatters["image/jpeg"]
    to_jpeg = formatter.lookup_by_type(Figure)

    def with_alt_text(figure: Figure) -> tuple[str, dict[str, str]] | None:
        jpeg = to_jpeg(figure)  # None for a figure without axes
        return (jpeg, {"alt": alt_text(figure)}) if jpeg else None

    formatter.for_type(Figure, with_alt_text)


def alt_text(figure: Figure) -> str:
    """The titles of a figure and its axes, then what is plotted against what."""
    labels = ((axis.get_ylabel(), axis.get_xlabel()) for axis in figure.axes)
    parts = [
        figure.get_suptitle(),
        *(axis.get_title() for axis in figure.axes),
        *(" against ".join(filter(None, pair)) for pair in labels),
    ]
    parts = dict.fromkeys(" ".join(part.split()) for part in parts)  # each once, on one line
    sentences = (part if part[-1] in ".?!" else f"{part}." for part in parts if part)
    return shorten(" ".join(sentences), 300, placeholder=" ...") or "Figure."


def show_source(*objects: Any) -> None:
    """Show the current source code of functions, classes or methods of the library."""
    from IPython.display import Markdown, display

    text = "\n\n".join(inspect.cleandoc("\n" + inspect.getsource(item)) for item in objects)
    module = inspect.getmodule(objects[0])
    # A fence longer than those in the text, which would end the block.
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    display(Markdown(f"`{module.__name__ if module else ''}`\n\n{fence}python\n{text}\n{fence}"))


def _show(axis: Axes, image: Any, title: str = "", **options: Any) -> AxesImage:
    """`imshow` without ticks and grid."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.set_title(title, fontsize=9, parse_math=False)  # names of files may contain a $
    return axis.imshow(image, **options)


def image_grid(
    images: Tensor | Sequence[Tensor],
    titles: Sequence[str] | None = None,
    *,
    columns: int = 8,
    title: str = "",
    rows: Sequence[str] | None = None,
) -> Figure:
    """A grid of images.

    Args:
        images: (N, 3, H, W) or a sequence of (3, H, W); float in [0, 1] or uint8.
        titles: for all images, or only for the first ones.
        columns: images per row.
        title: of the figure.
        rows: a label for each row of the grid.
    """
    count, titles = len(images), [*(titles or ())]
    grid_rows, image_width = -(-count // columns), WIDTH / columns
    figure_height = grid_rows * image_width + 0.25 * -(-len(titles) // columns)
    figure_height += 0.35 if title else 0
    figure, axes = plt.subplots(grid_rows, columns, figsize=(WIDTH, figure_height), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
    for axis, image, name in zip_longest(axes.flat[:count], images, titles[:count], fillvalue=""):
        _show(axis, to_image_array(image), name, interpolation="antialiased")
    for axis, label in zip(axes[:, 0], rows or [], strict=False):
        axis.set_ylabel(label, fontsize=9, parse_math=False)
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def code_usage(counts: Tensor, title: str = "Relative frequency of the codes") -> Figure:
    """Relative frequency of each code, sorted, for each slot.

    Args:
        counts: int64 (slots, K), over a whole split; see `count_codes`.
    """
    figure, axis = plt.subplots()
    for slot, slot_counts in enumerate(counts):
        frequency = (slot_counts.sort(descending=True).values / slot_counts.sum()).numpy()
        used = int((slot_counts > 0).sum())
        axis.plot(np.arange(1, used + 1), frequency[:used], label=f"slot {slot}: {used} codes used")
    axis.axhline(1 / counts.shape[1], color="gray", ls=":", label="uniform")
    axis.set(yscale="log", xlabel="rank of the code", ylabel="relative frequency", title=title)
    axis.legend(fontsize=8)
    return figure


def principal_axes(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of vectors, float (N, D), their first two principal axes, (2, D), and the shares of
    the variance along these, (2,)."""
    mean = vectors.mean(0)
    _, singular_values, directions = torch.linalg.svd(vectors - mean, full_matrices=False)
    variances = singular_values.square()
    return mean, directions[:2], variances[:2] / variances.sum()


def codebook_map(axis: Axes, vectors: Tensor, colors: Tensor, title: str) -> None:
    """Codebook vectors on their two principal axes.

    Args:
        vectors: float (K, D).
        colors: float (K, 3) in [0, 1], such as the mean colors of what the codes decode to.
    """
    vectors = vectors.detach()
    mean, axes, share = principal_axes(vectors)
    axis.scatter(*((vectors - mean) @ axes.T).T, s=14, c=colors.numpy(), ec="gray", lw=0.4)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(f"axis 1 ({share[0]:.0%} of the variance)", fontsize=8)
    axis.set_ylabel(f"axis 2 ({share[1]:.0%})", fontsize=8)


def codebook_among_features(
    axis: Axes, features: Tensor, codebook: Tensor, used: Tensor, title: str
) -> None:
    """Codebook vectors, used and unused, among features, on the features' two principal axes.
    The zero vector is marked, because the axes are centered on the mean of the features.

    Args:
        features: float (N, D).
        codebook: float (K, D).
        used: bool (K,).
    """
    mean, axes, share = principal_axes(features)
    for points, color, size, label in (
        (features, "lightgray", 3, "features"),
        (codebook[~used], "C3", 22, f"codebook vectors, unused: {int((~used).sum())}"),
        (codebook[used], "C2", 22, f"codebook vectors, in use: {int(used.sum())}"),
    ):
        axis.scatter(*((points - mean) @ axes.T).T, s=size, color=color, label=label)
    zero = -mean @ axes.T
    axis.plot(*zero, "k+", ms=14, ls="", label="zero vector")
    axis.set(title=title, xlabel=f"principal axis 1 ({share[0]:.1%} of the features' variance)")
    axis.set_ylabel(f"principal axis 2 ({share[1]:.1%})")
    axis.legend(fontsize=8)


def influence_map(axis: Axes, change: Tensor, center: int, title: str) -> AxesImage:
    """Mean change of each pixel after the codes of one position were replaced, on a log scale, with
    frames of 32 pixels (the position) and 94 pixels (reach of the conventional decoder).

    Args:
        change: float (H, W).
        center: row and column of the position's center, in pixels.
    """
    shown = axis.imshow(change.clamp_min(1e-5), cmap="magma", norm=LogNorm(1e-5, 0.3))
    for side, color in ((32, "white"), (94, "deepskyblue")):
        corner = center - side / 2 - 0.5
        axis.add_patch(Rectangle((corner, corner), side, side, fill=False, color=color))
    axis.set(title=title, xlabel="pixels", ylabel="pixels")
    axis.grid(False)
    return shown


def bits_per_position(bits: Tensor, title: str = "", low: float | None = None) -> Figure:
    """Bits per code at each position: one image for each slot, with a common color scale.

    Args:
        bits: float (h, w, slots), such as the mean of `code_bits` over images.
        low: lower end of the color scale; None for the smallest value.
    """
    slots = bits.shape[-1]
    figure, axes = plt.subplots(1, slots, figsize=(WIDTH, 2.7), squeeze=False)
    low = float(bits.min()) if low is None else low
    for slot, axis in enumerate(axes.flat):
        text = f"slot {slot}: {bits[..., slot].mean():.2f} bits"
        heatmap = _show(axis, bits[..., slot], text, vmin=low, vmax=float(bits.max()), cmap="magma")
    figure.colorbar(heatmap, ax=axes, label="bits per code", shrink=0.8)
    figure.suptitle(title, fontsize=11)
    return figure


def plane_colors(vectors: Tensor, span: float) -> Tensor:
    """Light colors of vectors in the plane, float (N, 2) to (N, 3): the hue is the direction, and
    the saturation grows with the distance from the center, up to `span`."""
    x, y = vectors.detach().T
    hue = torch.atan2(y, x) / math.tau % 1
    saturation = 0.75 * (vectors.detach().norm(dim=1) / span).clamp(0, 1)
    hsv = torch.stack([hue, saturation, torch.full_like(hue, 0.95)], 1)
    return torch.from_numpy(hsv_to_rgb(hsv.numpy()))


def voronoi_regions(
    axis: Axes, points: Tensor, codebook: Tensor, title: str, span: float = 3.0
) -> None:
    """2-D vectors, codebook vectors, and the Voronoi region of each codebook vector, in the color
    of its place in the plane.

    Args:
        points: float (N, 2).
        codebook: float (K, 2).
        title: of the axis.
        span: the axes show -span to span.
    """
    line = torch.linspace(-span, span, 200)
    mesh = torch.cartesian_prod(line, line)  # x changes slowest
    regions = nearest_codes(mesh[None], codebook.detach()[None]).view(200, 200).T
    extent = (-span, span, -span, span)
    axis.imshow(plane_colors(codebook, span)[regions], origin="lower", extent=extent)
    axis.plot(*points.T, ".", ms=2, color="0.35")
    outline = [withStroke(linewidth=3, foreground="white")]  # readable on top of the points
    for code, (x, y) in enumerate(codebook.tolist()):
        text = axis.text(x, y, str(code), ha="center", va="center", weight="bold", clip_on=True)
        text.set_path_effects(outline)
    axis.set(title=title, xlim=(-span, span), ylim=(-span, span), aspect="equal")
    axis.grid(False)


def mean_colors(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean color of each position: images, float (n, 3, H, W), to float (n, h, w, 3)."""
    return F.adaptive_avg_pool2d(images.detach().cpu(), grid).permute(0, 2, 3, 1)


def code_colors(codes: Tensor, images: Tensor, num_embeddings: int = 512) -> Tensor:
    """A color for each code: the mean color of the positions at which it occurs.

    Args:
        codes: int64 (n, h, w, slots).
        images: float (n, 3, H, W) in [0, 1], the decoded grids.

    Returns:
        float (slots, num_embeddings, 3) in [0, 1]; gray for codes that do not occur.
    """
    h, w, slots = codes.shape[1:]
    means = mean_colors(images, (h, w)).flatten(0, 2)
    sums = torch.zeros(slots, num_embeddings, 3)
    counts = torch.zeros(slots, num_embeddings, 1)
    for slot in range(slots):
        index = codes[..., slot].flatten()
        sums[slot].index_add_(0, index, means)
        counts[slot].index_add_(0, index, torch.ones(len(index), 1))
    return torch.where(counts > 0, sums / counts.clamp_min(1), 0.5)


def _codes_as_blocks(codes: Tensor, done: Sequence[int], colors: Tensor) -> np.ndarray:
    """Grids (n, h, w, 4) as images (n, 2h, 2w, 3): each position is a block of 2 x 2 cells; white
    from code number `done` on."""
    n, h, w, slots = codes.shape
    order = torch.arange(codes[0].numel()).view(1, h, w, slots)
    cells = colors[torch.arange(slots), codes]
    cells[order >= torch.tensor(done).view(n, 1, 1, 1)] = 1.0
    return cells.view(n, h, w, 2, 2, 3).transpose(2, 3).reshape(n, 2 * h, 2 * w, 3).numpy()


def sampling_animation(
    codes: Tensor, done: Sequence[int], images: Tensor, colors: Tensor, ms: int = 150
) -> bytes:
    """Stages of sampling as an animation, codes on the left, decoded image on the right.

    Args:
        codes: int64 (n, h, w, 4), one grid for each stage. A position is a block of 2 x 2 cells.
        done: number of codes that are sampled at each stage; the others are white.
        images: float (n, 3, H, W) in [0, 1], the decoded grids.
        colors: float (4, K, 3), see `code_colors`.
        ms: milliseconds per stage; the last one is shown 20 times as long.

    Returns:
        An animated WebP file.
    """
    height = images.shape[-2]
    blocks = _codes_as_blocks(codes, done, colors)
    blocks = blocks.repeat(height // blocks.shape[1], 1)
    blocks = blocks.repeat(blocks.shape[1] // blocks.shape[2], 2)
    gap = np.ones((len(codes), height, 16, 3))
    decoded = images.detach().cpu().movedim(1, -1).numpy()
    frames = (255 * np.concatenate([blocks, gap, decoded], 2)).round().astype(np.uint8)
    first, *others = map(Image.fromarray, frames)
    file = io.BytesIO()
    durations = [ms] * len(others) + [20 * ms]
    options = {"duration": durations, "loop": 0, "quality": 50, "method": 6, "minimize_size": True}
    first.save(file, "WEBP", save_all=True, append_images=others, **options)
    return file.getvalue()


def show_animation(webp: bytes, text: str) -> Any:
    """Show an animated WebP in a notebook, with an alternative text."""
    from IPython.display import HTML

    data = base64.b64encode(webp).decode()
    return HTML(f'<img alt="{html.escape(text)}" src="data:image/webp;base64,{data}">')
