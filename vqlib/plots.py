"""What the notebooks draw. Nothing here computes a result; every figure has a title and labels."""

from __future__ import annotations

import base64
import inspect
import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from .curves import WIDTH, LiveTraining, as_picture, bits_by_epoch, losses, read_log
from .quantizer import nearest_codes

__all__ = [
    "LiveTraining",
    "bits_by_epoch",
    "bits_maps",
    "code_grids",
    "dependency",
    "images",
    "losses",
    "mask",
    "pipeline",
    "plane",
    "raster_stages",
    "read_log",
    "seen_from",
    "show_source",
    "usage",
    "use_style",
]


def use_style() -> None:
    """Figures as JPEG (a fifth of PNG's size for photographs), one look for all notebooks."""
    plt.rcParams.update(
        {
            "figure.dpi": 90,
            "figure.figsize": (WIDTH, 3.2),
            "figure.constrained_layout.use": True,
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
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # not in a notebook
        return
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 75, "optimize": True})


def show_source(*things: Any) -> None:
    """Show the source of functions, classes or methods as it stands in the library right now."""
    from IPython.display import Markdown, display

    text = "\n\n".join(inspect.cleandoc("\n" + inspect.getsource(thing)) for thing in things)
    module = inspect.getmodule(things[0])
    display(Markdown(f"`{module.__name__ if module else ''}`\n\n```python\n{text}\n```"))


def images(
    pictures: Tensor | Sequence[Tensor],
    titles: Sequence[str] | None = None,
    *,
    columns: int = 8,
    title: str = "",
    rows: Sequence[str] | None = None,
) -> Figure:
    """A grid of pictures.

    Args:
        pictures: (N, 3, H, W) or a sequence of (3, H, W); float in [0, 1] or uint8.
        titles: one for each picture, or only for the first ones.
        rows: a label for each row of the grid.
    """
    count = len(pictures)
    height = -(-count // columns)
    side, titles = WIDTH / columns, titles or ()
    tall = height * side + 0.25 * -(-len(titles) // columns) + (0.35 if title else 0)
    figure, axes = plt.subplots(height, columns, figsize=(WIDTH, tall), squeeze=False)
    for i, axis in enumerate(axes.flat):
        axis.grid(False)
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
        if i < count:
            axis.imshow(as_picture(pictures[i]), interpolation="antialiased")
            if i < len(titles):
                axis.set_title(titles[i], fontsize=9)
    for axis, label in zip(axes[:, 0], rows or [], strict=False):
        axis.set_ylabel(label, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def code_grids(codes: Tensor, num_embeddings: int = 512, title: str = "") -> Figure:
    """Codes as pictures: a row for each image, a column for each slot.

    Args:
        codes: int64 (n, h, w, slots). A colour is a code's number; near colours mean nothing.
    """
    n, _, _, slots = codes.shape
    figure, axes = plt.subplots(n, slots, figsize=(WIDTH, WIDTH / slots * n * 0.8), squeeze=False)
    for i in range(n):
        for slot in range(slots):
            axis = axes[i, slot]
            axis.imshow(codes[i, :, :, slot], cmap="nipy_spectral", vmin=0, vmax=num_embeddings)
            axis.set(xticks=[], yticks=[], title=f"slot {slot}" if i == 0 else "")
            axis.grid(False)
    figure.suptitle(title)
    return figure


def usage(counts: Tensor, title: str = "How often each code is used") -> Figure:
    """Codes of each slot in the order of their frequency.

    Args:
        counts: int64 (slots, K), over a whole split; see `count_codes`.
    """
    figure, axis = plt.subplots()
    for slot, row in enumerate(counts):
        share = (row.sort(descending=True).values / row.sum()).numpy()
        used = int((row > 0).sum())
        axis.plot(np.arange(1, used + 1), share[:used], label=f"slot {slot}: {used} used")
    axis.axhline(1 / counts.shape[1], color="grey", ls=":", label="all alike")
    axis.set(yscale="log", xlabel="code, by rank", ylabel="share of the positions", title=title)
    axis.legend(fontsize=8)
    return figure


def mask(axis: Axes, weights: Tensor, title: str) -> None:
    """A kernel's mask: 1 where the convolution looks, 0 where it must not.

    Args:
        weights: (rows, columns) of 0 and 1.
    """
    axis.imshow(weights, cmap="Blues", vmin=0, vmax=1.4)
    for (row, column), value in np.ndenumerate(weights.numpy()):
        axis.text(column, row, int(value), ha="center", va="center", fontsize=8)
    axis.set(title=title, xticks=[], yticks=[])
    axis.grid(False)


def dependency(axis: Axes, seen: Tensor, title: str) -> None:
    """The matrix of `dependencies`; everything on or above the red diagonal is a leak."""
    n = len(seen)
    axis.imshow(seen.float(), cmap="Blues", vmin=0, vmax=1.4, interpolation="nearest")
    leak = torch.full((n, n, 4), 0.0)
    leak[seen.triu()] = torch.tensor([0.84, 0.15, 0.16, 1.0])
    axis.imshow(leak, interpolation="nearest")
    axis.plot([-0.5, n - 0.5], [-0.5, n - 0.5], color="C3", lw=0.6)
    axis.set(title=title, xlabel="input code", ylabel="output code")
    axis.grid(False)


def seen_from(
    axis: Axes, seen: Tensor, place: tuple[int, int, int], slots: int, title: str
) -> None:
    """What one output code depends on: a row of the matrix of `dependencies`, laid out as the grid.

    Args:
        seen: bool (h * w * slots, h * w * slots), of a square grid.
        place: row, column and slot of the output code.
    """
    side = math.isqrt(len(seen) // slots)
    row, column, slot = place
    number = (row * side + column) * slots + slot
    state = torch.zeros(len(seen), dtype=torch.long)  # 0: itself or later
    state[:number] = 2  # earlier, but not seen
    state[seen[number].cpu()] = 1
    state[number] = 3
    colours = ListedColormap(["#ececec", "#6baed6", "#fdae6b", "#cb181d"])
    axis.imshow(state.view(side, side * slots), cmap=colours, vmin=0, vmax=3, aspect=slots)
    for line in range(side):
        axis.axhline(line - 0.5, color="white", lw=2)
        axis.axvline(line * slots - 0.5, color="white", lw=2)
    middle = (slots - 1) / 2
    axis.set_xticks([i * slots + middle for i in range(side)], range(side))
    each = f", {slots} slots each" if slots > 1 else ""
    axis.set(title=title, xlabel=f"column{each}", ylabel="row")
    axis.grid(False)


def bits_maps(bits: Tensor, title: str = "") -> Figure:
    """Bits of each place, a picture for each slot with one scale.

    Args:
        bits: float (h, w, slots), such as the mean of `code_bits` over images.
    """
    slots = bits.shape[-1]
    figure, axes = plt.subplots(1, slots, figsize=(WIDTH, 2.7), squeeze=False)
    for slot, axis in enumerate(axes.flat):
        low, high = float(bits.min()), float(bits.max())
        shown = axis.imshow(bits[..., slot], vmin=low, vmax=high, cmap="magma")
        axis.set(title=f"slot {slot}: {bits[..., slot].mean():.2f} bits", xticks=[], yticks=[])
        axis.grid(False)
    figure.colorbar(shown, ax=axes, label="bits per code", shrink=0.8)
    figure.suptitle(title, fontsize=11)
    return figure


def pipeline(
    image: Tensor, features: Tensor, codes: Tensor, decoded: Tensor, num_embeddings: int = 512
) -> Figure:
    """An image on its way through a VQ-VAE: pixels, feature maps, codes, pixels.

    Args:
        image, decoded: float (3, H, W) in [0, 1].
        features: float (C, h, w); the first 64 channels are shown.
        codes: int64 (h, w, slots); a colour is a code's number.
    """
    maps = make_grid(features[:64, None].cpu(), nrow=8, padding=1, normalize=True, pad_value=1.0)
    shades = codes.movedim(-1, 0)[:, None] / num_embeddings  # as_picture clamps to [0, 1]
    grids = make_grid(shades, nrow=2, padding=1, pad_value=torch.nan)
    channels, slots = len(features), codes.shape[-1]
    titles = [
        f"image\n{tuple(image.shape)}",
        f"encoder: {tuple(features.shape)}\n{min(64, channels)} of {channels} channels",
        f"quantizer: {tuple(codes.shape)}\n{codes.numel()} codes in {slots} slots",
        f"decoder\n{tuple(decoded.shape)}",
    ]
    figure, axes = plt.subplots(1, 4, figsize=(WIDTH, 2.8))
    for axis, picture, title in zip(axes, (image, maps, grids[0], decoded), titles):
        axis.imshow(as_picture(picture), cmap="nipy_spectral", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    return figure


def plane(axis: Axes, points: Tensor, codebook: Tensor, title: str, span: float = 3.0) -> None:
    """2-D vectors, the rows of a codebook, and the region in which each row is the nearest.

    Args:
        points: float (N, 2).
        codebook: float (K, 2); the regions of 12 rows have colours of their own.
    """
    line = torch.linspace(-span, span, 200)
    mesh = torch.cartesian_prod(line, line)  # x runs slowest
    regions = nearest_codes(mesh[None], codebook.detach()[None]).view(200, 200).T
    extent = (-span, span, -span, span)
    axis.imshow(regions, origin="lower", extent=extent, cmap="Set3", alpha=0.7, vmin=0, vmax=11)
    axis.plot(*points.T, ".", ms=2, color="0.35")
    for number, (x, y) in enumerate(codebook.tolist()):
        axis.text(x, y, str(number), ha="center", va="center", weight="bold", clip_on=True)
    axis.set(title=title, xlim=(-span, span), ylim=(-span, span), aspect="equal")
    axis.grid(False)


def _code_blocks(codes: Tensor, done: Sequence[int]) -> Tensor:
    """Grids (n, h, w, 4) as pictures (n, 2h, 2w) of their numbers, a position as a block of 2 x 2
    cells; NaN from the `done`-th code on."""
    n, h, w, _ = codes.shape
    order = torch.arange(codes[0].numel()).view(1, h, w, 4)
    drawn = codes.float().masked_fill(order >= torch.tensor(done).view(n, 1, 1, 1), torch.nan)
    return drawn.view(n, h, w, 2, 2).transpose(2, 3).reshape(n, 2 * h, 2 * w)


def raster_stages(
    codes: Tensor, done: Sequence[int], pictures: Tensor, num_embeddings: int = 512
) -> Figure:
    """A grid of codes while it is being drawn, above what the decoder makes of it.

    Args:
        codes: int64 (n, h, w, 4), one grid for each stage. A position is a block of 2 x 2 cells.
        done: how many codes have been drawn at each stage; the others are left white.
        pictures: (n, 3, H, W), the stages decoded.
    """
    n, blocks = len(codes), _code_blocks(codes, done)
    figure, axes = plt.subplots(2, n, figsize=(WIDTH, 2 * WIDTH / n + 0.6), squeeze=False)
    for i in range(n):
        axes[0, i].imshow(blocks[i], cmap="nipy_spectral", vmin=0, vmax=num_embeddings)
        axes[1, i].imshow(as_picture(pictures[i]), interpolation="antialiased")
        axes[0, i].set_title(f"{done[i]} codes", fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(True)
    axes[0, 0].set_ylabel("codes", fontsize=9)
    axes[1, 0].set_ylabel("decoded", fontsize=9)
    figure.suptitle("One image, drawn in raster order")
    return figure


def raster_animation(
    codes: Tensor, done: Sequence[int], pictures: Tensor, num_embeddings: int = 512, ms: int = 150
) -> bytes:
    """The same stages one after another, codes beside the decoded picture: an animated WebP.

    Args:
        codes, done, pictures: see `raster_stages`.
        ms: milliseconds that each stage is shown; the last one stays longer.
    """
    height = pictures.shape[-2]
    blocks = _code_blocks(codes, done).numpy()
    painted = colormaps["nipy_spectral"](blocks / num_embeddings)
    painted[np.isnan(blocks)] = 1.0  # not drawn yet: white
    painted = painted[..., :3].repeat(height // painted.shape[1], 1)
    painted = painted.repeat(painted.shape[1] // painted.shape[2], 2)
    gap = np.ones((len(codes), height, 16, 3))
    decoded = pictures.detach().cpu().movedim(1, -1).numpy()
    frames = (255 * np.concatenate([painted, gap, decoded], 2)).round().astype(np.uint8)
    first, *others = map(Image.fromarray, frames)
    file = io.BytesIO()
    shown = [ms] * len(others) + [20 * ms]
    options = {"duration": shown, "loop": 0, "quality": 50, "method": 6, "minimize_size": True}
    first.save(file, "WEBP", save_all=True, append_images=others, **options)
    return file.getvalue()


def animated(webp: bytes, text: str) -> Any:
    """Such a picture in a notebook, with a text for those who can't see it."""
    from IPython.display import HTML

    data = base64.b64encode(webp).decode()
    return HTML(f'<img alt="{text}" src="data:image/webp;base64,{data}">')
