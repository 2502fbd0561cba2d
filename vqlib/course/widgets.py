"""Interactive figures of the notebooks, all built from `Explorer`.

Each stands beside a static figure of the notebook, so none is needed to follow the text. A code is
colored by what it decodes to.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence

import ipywidgets
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import traitlets
from matplotlib.colors import to_hex
from torch import Tensor, nn
from torchvision.transforms.functional import InterpolationMode, rotate
from torchvision.utils import draw_bounding_boxes, make_grid

from ..data import to_float
from ..lesions import CLASSES
from ..metrics import psnr
from ..pixelcnn import MaskedConv2d, PixelCNN, dependency_matrix
from ..quantizer import VectorQuantizer, nearest_codes
from ..sampling import sample
from ..vqvae import VQVAE, eval_mode
from .diagrams.prior import field_legend, receptive_field
from .interactive import Explorer, chart, checkbox, choice, picture, side_by_side, slider
from .plots import codebook_map, mean_colors, principal_axes, voronoi_regions

MISSING = 3 * (0.5,)  # color of positions that are not kept

# --- 01: augmentation -----------------------------------------------------------------------------


def augmentation_explorer(image: Tensor) -> Explorer:
    """Rotate and mirror an image, and undo both.

    Args:
        image: uint8 (3, S, S).
    """
    modes = {"nearest pixel": InterpolationMode.NEAREST, "bilinear": InterpolationMode.BILINEAR}
    middle = (..., *2 * (slice(image.shape[-1] // 4, -image.shape[-1] // 4),))  # without corners

    def draw(angle: int, interpolation: str, mirror: bool) -> str:
        mode = modes[interpolation]
        turned = rotate(image, angle, mode)
        turned = turned.flip(-1) if mirror else turned
        undone = rotate(turned.flip(-1) if mirror else turned, -angle, mode)
        before, after = to_float(image), to_float(undone)
        quality = float(psnr(after[middle][None], before[middle][None]))  # inf if equal
        empty = (rotate(torch.ones_like(image), angle, mode) == 0).all(0).float().mean()
        undoing = f"PSNR {quality:.1f} dB" if quality < torch.inf else "identical"
        return side_by_side(
            picture("image", image),
            picture("augmented", turned),
            picture("undone", undone),
            picture("8 x |undone - image|", (8 * (after - before).abs()).clamp(0, 1)),
            caption=f"empty corners: {empty:.0%} of the pixels; middle after undoing: {undoing}",
        )

    return Explorer(
        "rotate a lesion by any angle, mirror it, and see what undoing it loses",
        draw,
        angle=slider("angle, degrees", -180, 180, 30, 15),
        interpolation=choice("interpolation", list(modes)),
        mirror=checkbox("mirror"),
    )


# --- 02: the quantizer in the plane ---------------------------------------------------------------


def plane_explorer(points: Tensor, quantizer: VectorQuantizer, steps: int = 200) -> Explorer:
    """Train the codebook of a quantizer in the plane, step by step.

    Args:
        points: float (N, 2), the sub-vectors, which do not change.
        quantizer: before the first step; a copy is trained.
        steps: largest number of steps.
    """
    start, span = copy.deepcopy(quantizer), float(points.abs().max()) + 0.2

    @functools.cache
    def codebooks(decay: float, restarts: bool) -> list[Tensor]:
        """The codebook after 0, 1, 2, ... steps."""
        trained = copy.deepcopy(start).train()
        trained.ema_decay, trained.restart_after = decay, 10 if restarts else None
        books = [trained.codebook[0].clone()]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for _ in range(steps):
                trained(points.T[None, :, None])
                books.append(trained.codebook[0].clone())
        return books

    def draw(step: int, decay: float, restarts: bool) -> str:
        book = codebooks(decay, restarts)[step]
        codes = nearest_codes(points[None], book[None])[0]
        used, error = len(codes.unique()), (points - book[codes]).square().mean()
        caption = f"{used} of {len(book)} codes used, mean squared error {error:.3f}"
        figure, axis = plt.subplots(figsize=(4, 4))
        voronoi_regions(axis, points, book, f"step {step}", span)
        axis.set(xlabel="first component", ylabel="second component")
        alt = f"Points, codebook vectors and their regions after step {step}"
        return side_by_side(chart(alt, figure), caption=caption)

    return Explorer(
        "the codebook after any number of training steps, with and without restarts",
        draw,
        step=slider("training steps", 0, steps, 50),
        decay=choice("EMA decay", [0.9, 0.5, 0.99]),
        restarts=checkbox("restarts"),
    )


# --- 03: codebook and codes -----------------------------------------------------------------------


def codebook_explorer(
    tiles: Sequence[tuple[Tensor, Tensor, int]], codebook: Tensor, counts: Tensor
) -> Explorer:
    """Choose a code, and see what it decodes to, where its vector lies, and which codes are near.

    Args:
        tiles: for each slot what its codes decode to, float (K, 3, h, w), the same with more
            contrast, and the factor of the contrast.
        codebook: float (slots, K, D).
        counts: int64 (slots, K), how often each code is used.
    """
    codebook = codebook.detach()

    def draw(slot: int, order: str, rank: int) -> str:
        vectors, (plain, strong, factor) = codebook[slot], tiles[slot]
        mean, axes, _ = principal_axes(vectors)
        places = (vectors - mean) @ axes.T
        sorted_by = places[:, 0] if order == "along axis 1" else -counts[slot]
        code = int(sorted_by.argsort(stable=True)[rank - 1])
        nearest = (vectors - vectors[code]).norm(dim=1).argsort()[1:5]
        four = make_grid(strong[nearest], nrow=2, padding=0)
        figure, axis = plt.subplots(figsize=(4, 4))
        codebook_map(axis, vectors, strong.mean((2, 3)), f"all codes of slot {slot}")
        axis.plot(*places[code], "o", ms=12, mew=2, mfc="none", mec="black")
        frequency = counts[slot, code] / counts[slot].sum()
        return side_by_side(
            chart(f"Codebook vectors of slot {slot} on two axes, code {code} marked", figure),
            picture("as decoded", plain[code], 160),
            picture(f"contrast x{factor}", strong[code], 160),
            picture(f"the four nearest codes, contrast x{factor}", four, 160),
            caption=f"code {code} (black ring), used at {frequency:.2%} of the positions",
        )

    slots, num_embeddings = counts.shape
    return Explorer(
        "what each code decodes to, and its neighbors in the codebook",
        draw,
        slot=choice("slot", list(range(slots))),
        order=choice("order", ["along axis 1", "by frequency"]),
        rank=slider("rank", 1, num_embeddings, 1),
    )


def decoded(vqvae: VQVAE, codes: Tensor) -> Tensor:
    """Images, float (n, 3, H, W) on the CPU, from int64 (n, h, w, slots)."""
    with eval_mode(vqvae) as device:
        return vqvae.decode(codes.to(device)).cpu()


def latent_editor(models: Mapping[str, VQVAE], codes: Mapping[str, Tensor]) -> Explorer:
    """Replace one code of an image, and see which pixels change.

    Args:
        models: name -> model.
        codes: name -> int64 (n, h, w, slots), the codes of some images by each model.
    """
    count, h, w, slots = next(iter(codes.values())).shape

    def draw(model: str, slot: int, image: int, y: int, x: int, code: int) -> str:
        before = codes[model][image - 1]
        vectors = models[model].quantizer.codebook[slot].detach()
        order = (vectors @ principal_axes(vectors)[1][0]).argsort()
        new = order[round((len(order) - 1) * code / 100)]
        after = before.clone()
        after[y, x, slot] = new
        whole, edited = decoded(models[model], torch.stack([before, after]))
        size = whole.shape[-1] // w
        top, left = y * size, x * size
        change = (edited - whole).abs()
        inside = change[:, top : top + size, left : left + size].sum()
        share = 1 - inside / change.sum() if change.any() else 0.0
        frame = torch.tensor([[left, top, left + size - 1, top + size - 1]])
        return side_by_side(
            picture("all codes as encoded", draw_bounding_boxes(whole, frame, colors="white")),
            picture("one code replaced", edited),
            picture("8 x |change|", 8 * change),
            caption=f"slot {slot} at row {y}, column {x}: code {int(before[y, x, slot])} becomes "
            f"{int(new)}. {share:.0%} of the change lies outside the tile.",
        )

    return Explorer(
        "replace one code of an image by any other, and see which pixels change",
        draw,
        model=choice("model", list(models)),
        slot=choice("slot", list(range(slots))),
        image=slider("image", 1, count, 1),
        y=slider("row", 0, h - 1, h // 2),
        x=slider("column", 0, w - 1, w // 2),
        code=slider("code, % along axis 1", 0, 100, 0),
    )


# --- 04: receptive fields -------------------------------------------------------------------------


def receptive_field_explorer() -> Explorer:
    """Which of 8 x 8 positions a prediction depends on, for one plain stack or two stacks."""
    side = 8
    stacks = [("plain, first mask A", "A"), ("plain, first mask B", "B"), ("two stacks", "two")]

    @functools.cache
    def dependencies(stack: str, kernel: int, layers: int) -> Tensor:
        """bool (positions, positions): which outputs depend on which inputs."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            x = torch.randn(1, 8, side, side, requires_grad=True)
            if stack == "two":
                prior = PixelCNN(8, 1, conv_filters=8, embedding_dim=8, blocks=layers).eval()
                outputs = prior.forward_embedded(x)
            else:
                further = [MaskedConv2d("B", 8, 8, 3) for _ in range(layers - 1)]
                net = nn.Sequential(MaskedConv2d(stack, 8, 8, kernel), *further)
                outputs = net(x).permute(0, 2, 3, 1).unsqueeze(3)
            return dependency_matrix(outputs, x, slots=1)

    def draw(stack: str, kernel: int, layers: int, y: int, x: int) -> str:
        output = y * side + x
        seen = dependencies(stack, kernel, layers)[output]
        title = f"{int((~seen[:output]).sum())} of {output} earlier positions not seen"
        figure, axis = plt.subplots(figsize=(7, 4.4))  # as wide as the legend
        receptive_field(axis, seen.view(side, side), y, x, title)
        field_legend(figure, leaks=True)
        return chart(f"Positions on which the prediction at row {y}, column {x} depends", figure)

    return Explorer(
        "what a prediction depends on, for any mask, kernel size, depth and position",
        draw,
        stack=choice("stack", stacks),
        kernel=choice("first kernel (plain)", [7, 5, 3]),
        layers=slider("layers", 1, 10, 3),
        y=slider("row", 0, side - 1, 5),
        x=slider("column", 0, side - 1, 1),
    )


# --- 05: samples and completions ------------------------------------------------------------------


def sampling_panel(vqvae: VQVAE, prior: PixelCNN, grid: tuple[int, int] = (8, 8)) -> Explorer:
    """Four samples of a class, at a temperature and with guidance.

    Args:
        vqvae: decodes the samples.
        prior: generates the samples, on its own device.
        grid: (h, w) of the codes.
    """

    n = prior.num_classes
    names = [*CLASSES] if n == len(CLASSES) else [f"class {i}" for i in range(n)]
    names.append("no class (w has no effect)")  # the label n

    def draw(label: str, temperature: float, guidance: float, seed: int) -> str:
        y, generator = names.index(label), torch.Generator().manual_seed(seed)
        codes = sample(prior, 4, y, temperature, guidance=guidance, grid=grid, generator=generator)
        titles = [f"sample {i}" for i in range(1, 5)]
        caption = f"{label}, T = {temperature:g}, w = {guidance:g}, seed {seed}"
        return side_by_side(*map(picture, titles, decoded(vqvae, codes)), caption=caption)

    return Explorer(
        "four samples of any class, temperature, guidance and seed",
        draw,
        label=choice("class", names),
        temperature=slider("temperature T", 0.4, 1.6, 1.0, 0.1, wait=True),
        guidance=slider("guidance w", 0.0, 3.0, 0.0, 0.5, wait=True),
        seed=slider("seed", 0, 99, 0, wait=True),
    )


class Mask(ipywidgets.VBox):
    """A grid of buttons; each switches one position between kept and missing."""

    value = traitlets.Tuple()  # of bool, row by row

    def __init__(self, h: int, w: int) -> None:
        square = ipywidgets.Layout(width="26px", height="26px", margin="1px", padding="0")
        self.buttons = [ipywidgets.Button(layout=square) for _ in range(h * w)]
        for i, button in enumerate(self.buttons):
            button.on_click(functools.partial(self.switch, i))
        super().__init__([ipywidgets.HBox(self.buttons[r * w : (r + 1) * w]) for r in range(h)])

    def switch(self, i: int, _: object) -> None:
        self.value = (*self.value[:i], not self.value[i], *self.value[i + 1 :])

    def paint(self, image: Tensor) -> None:
        """Show kept positions in the mean colors of the image, float (3, H, W), others as gray."""
        w = len(self.children[0].children)
        colors = mean_colors(image[None], (len(self.children), w)).flatten(0, 2).tolist()
        for i, (button, kept) in enumerate(zip(self.buttons, self.value, strict=True)):
            button.style.button_color = to_hex(colors[i] if kept else MISSING)
            button.tooltip = f"row {i // w}, column {i % w}: {'kept' if kept else 'missing'}"


def completion_painter(vqvae: VQVAE, prior: PixelCNN, codes: Tensor) -> Explorer:
    """Choose which positions of a lesion are kept; the others are sampled.

    Args:
        codes: int64 (n, h, w, slots), some lesions.
    """
    n, h, w, _ = codes.shape
    images = decoded(vqvae, codes)
    row, column = torch.arange(h).view(h, 1).expand(h, w), torch.arange(w).expand(h, w)
    middle = (row - (h - 1) / 2).abs().maximum((column - (w - 1) / 2).abs()) < h / 4
    presets = {
        "the lower half": row >= h // 2,
        "the left half": column < w // 2,
        "the border": ~middle,
        "nothing": row < 0,
    }
    mask, start = Mask(h, w), choice("keep", list(presets))

    def apply(*_: object) -> None:
        mask.value = tuple(presets[start.value].flatten().tolist())

    def draw(start: str, lesion: int, seed: int, kept: tuple[bool, ...]) -> str:
        image, keep = images[lesion - 1], torch.tensor(kept).view(h, w)
        mask.paint(image)
        given = codes[lesion - 1].expand(2, -1, -1, -1)
        generator = torch.Generator().manual_seed(seed)
        found = sample(prior, 2, given=given, keep=keep, generator=generator)
        shown = F.interpolate(keep[None, None].float(), image.shape[1:])[0]
        part = torch.where(shown > 0, image, torch.tensor(MISSING).view(3, 1, 1))
        titles = ["kept part", "completion 1", "completion 2"]
        caption = f"{int(keep.sum())} of {h * w} positions kept; sampled in raster order"
        return side_by_side(*map(picture, titles, [part, *decoded(vqvae, found)]), caption=caption)

    apply()
    start.observe(apply, names="value")
    return Explorer(
        "choose the positions of a lesion that are kept; the others are sampled",
        draw,
        start=start,
        lesion=slider("lesion", 1, n, 1, wait=True),
        seed=slider("seed", 0, 99, 0, wait=True),
        kept=mask,
    )
