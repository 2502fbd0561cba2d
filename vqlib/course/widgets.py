"""Interactive figures of the notebooks, all built from `Explorer`.

Each stands beside a static figure of the notebook, so none is needed to follow the text. A code is
colored by what it decodes to.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import torch
import traitlets
from matplotlib.colors import to_hex, to_rgb
from torch import Tensor, nn
from torchvision.transforms.functional import InterpolationMode, rotate
from torchvision.utils import make_grid

from ..data import to_float
from ..lesions import CLASSES
from ..metrics import psnr
from ..pixelcnn import MaskedConv2d, PixelCNN
from ..quantizer import VectorQuantizer, nearest_codes
from ..sampling import sample
from ..vqvae import VQVAE, eval_mode
from .diagrams.prior import LATER, NOT_SEEN, OUTPUT, SEEN
from .interactive import Explorer, checkbox, choice, dot, picture, side_by_side, slider, svg
from .plots import mean_colors, plane_colors, principal_axes

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
    span, cells = 4.2, 200
    line = torch.linspace(-span, span, cells)
    start = copy.deepcopy(quantizer)
    mesh = torch.stack([line.repeat(cells), line.flip(0).repeat_interleave(cells)], 1)

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
        regions = nearest_codes(mesh[None], book[None])[0]
        background = plane_colors(book, span)[regions].T.reshape(3, cells, cells)
        codes = nearest_codes(points[None], book[None])[0]
        to_svg = torch.tensor([0.5, -0.5]) * cells / span
        shapes = [dot(x, y, 1, "#333") for x, y in (points * to_svg + cells / 2).tolist()]
        for code, (x, y) in enumerate((book * to_svg + cells / 2).tolist()):
            shapes.append(dot(x, y, 5.5, "white" if (codes == code).any() else "#aaa"))
            text = f'font-size="8" text-anchor="middle">{code}</text>'
            shapes.append(f'<text x="{x:.1f}" y="{y + 3:.1f}" {text}')
        used, error = len(codes.unique()), (points - book[codes]).square().mean()
        title = f"step {step}: {used} of {len(book)} codes used, mean squared error {error:.3f}"
        caption = f"axes: the two components of the vectors, from -{span} to {span}"
        return side_by_side(svg(title, cells, shapes, background, 288), caption=caption)

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
    frequency = counts / counts.sum(1, keepdim=True)

    @functools.cache
    def of_slot(slot: int) -> tuple[Tensor, list[str], dict[str, Tensor]]:
        """Places of the vectors in a map of 100 x 100, their dots, and orders of the codes."""
        mean, axes, _ = principal_axes(codebook[slot])
        projected = (codebook[slot] - mean) @ axes.T
        low, high = projected.amin(0), projected.amax(0)
        places = 4 + 92 * (projected - low) / (high - low)
        colors = map(to_hex, tiles[slot][1].mean((2, 3)).tolist())
        dots = [dot(x, y, 1.2, color) for (x, y), color in zip(places.tolist(), colors)]
        orders = {
            "along axis 1": projected[:, 0].argsort(),
            "by frequency": counts[slot].argsort(descending=True),
        }
        return places, dots, orders

    def draw(slot: int, order: str, rank: int) -> str:
        places, dots, orders = of_slot(slot)
        code = int(orders[order][rank - 1])
        plain, strong, factor = tiles[slot]
        distances = (codebook[slot] - codebook[slot, code]).norm(dim=1)
        nearest = distances.argsort()[1:5]
        x, y = places[code].tolist()
        ring = f'<circle cx="{x}" cy="{y}" r="3" fill="none" stroke="#0057e7" stroke-width="1"/>'
        four = make_grid(strong[nearest], nrow=2, padding=0)
        title = f"all codes of slot {slot} on the principal axes 1 and 2"
        return side_by_side(
            svg(title, 100, [*dots, ring], None, 288),
            picture("as decoded", plain[code]),
            picture(f"contrast x{factor}", strong[code]),
            picture(f"the four nearest codes, contrast x{factor}", four),
            caption=f"code {code}, used at {frequency[slot, code]:.2%} of the positions",
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

    @functools.cache
    def order(name: str, slot: int) -> Tensor:
        """All codes of a slot, sorted along the first principal axis of their vectors."""
        vectors = models[name].quantizer.codebook[slot].detach()
        return (vectors @ principal_axes(vectors)[1][0]).argsort()

    def draw(model: str, slot: int, image: int, y: int, x: int, code: int) -> str:
        before = codes[model][image - 1]
        after = before.clone()
        ordered = order(model, slot)
        new = ordered[round((len(ordered) - 1) * code / 100)]
        after[y, x, slot] = new
        whole, edited = decoded(models[model], torch.stack([before, after]))
        change = (edited - whole).abs()
        total, side = change.sum(), whole.shape[-1]
        size = side // w
        top, left = y * size, x * size
        inside = change[:, top : top + size, left : left + size].sum()
        share = (total - inside) / total.clamp_min(1e-9)
        frame = f'<rect x="{left}" y="{top}" width="{size}" height="{size}" '
        frame += 'fill="none" stroke="white" stroke-width="2"/>'
        return side_by_side(
            svg("all codes as encoded", side, [frame], whole, 176),
            picture("one code replaced", edited, 176),
            picture("8 x |change|", (8 * change).clamp(0, 1), 176),
            caption=f"slot {slot} at row {y}, column {x}: code "
            f"{int(before[y, x, slot])} becomes {int(new)}. "
            f"{share:.0%} of the change lies outside the tile.",
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


def receptive_field_explorer(side: int = 8) -> Explorer:
    """Which positions a prediction depends on, for one plain stack or two stacks of any depth.

    Args:
        side: height and width of the grid.
    """
    names = ("later", "earlier, seen", "earlier, not seen", "predicted", "seen, not allowed")
    colors = torch.tensor([to_rgb(c) for c in (LATER, SEEN, NOT_SEEN, OUTPUT, "#c51b8a")])
    position = torch.arange(side * side).view(side, side)
    stacks = [("plain, first mask A", "A"), ("plain, first mask B", "B"), ("two stacks", "two")]

    @functools.cache
    def model(stack: str, kernel: int, layers: int) -> Callable[[Tensor], Tensor]:
        """Maps float (1, 8, h, w) to (1, h, w, C)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if stack == "two":
                prior = PixelCNN(8, 1, conv_filters=8, embedding_dim=8, blocks=layers).eval()
                return lambda x: prior.forward_embedded(x)[..., 0, :]
            further = [MaskedConv2d("B", 8, 8, 3) for _ in range(layers)]
            net = nn.Sequential(MaskedConv2d(stack, 8, 8, kernel), *further)
            return lambda x: net(x).permute(0, 2, 3, 1)

    def field(title: str, net: Callable[[Tensor], Tensor], output: int) -> str:
        x = torch.ones(1, 8, side, side, requires_grad=True)
        (gradient,) = torch.autograd.grad(net(x).flatten(0, 2)[output].sum(), x)
        seen, earlier = gradient[0].ne(0).any(0), position < output
        category = torch.where(earlier, torch.where(seen, 1, 2), torch.where(seen, 4, 0))
        if not seen.flatten()[output]:
            category[position == output] = 3
        cells = colors[category].permute(2, 0, 1)
        cells = cells.repeat_interleave(32, 1).repeat_interleave(32, 2)
        cells[:, ::32] = cells[:, :, ::32] = 1.0
        missed = int((earlier & ~seen).sum())
        return picture(f"{title}: {missed} of {output} earlier positions not seen", cells, 256)

    def draw(stack: str, kernel: int, layers: int, y: int, x: int) -> str:
        output = y * side + x
        pictures = [field("with all layers", model(stack, kernel, layers), output)]
        if stack != "two":
            pictures.insert(0, field("first layer", model(stack, kernel, 0), output))
        squares = [
            f'<span style="color:{to_hex(color)}">&#9632;</span> {name} &nbsp;'
            for color, name in zip(colors.tolist(), names)
        ]
        return side_by_side(*pictures) + "".join(squares)

    return Explorer(
        "what a prediction depends on, for any mask, kernel size, depth and position",
        draw,
        stack=choice("stack", stacks),
        kernel=choice("first kernel of a plain stack", [7, 5, 3]),
        layers=slider("further layers", 1, 10, 2),
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

    def draw(label: int, temperature: float, guidance: float, seed: int) -> str:
        y = None if label == prior.num_classes else label
        w = 0.0 if y is None else guidance
        generator = torch.Generator().manual_seed(seed)
        codes = sample(prior, 4, y, temperature, guidance=w, grid=grid, generator=generator)
        name = "no class: guidance has no effect" if y is None else CLASSES[y]
        titles = [f"sample {i}" for i in range(1, 5)]
        caption = f"{name}, T = {temperature:g}, w = {w:g}, seed {seed}"
        return side_by_side(*map(picture, titles, decoded(vqvae, codes)), caption=caption)

    # Not None for "no class", because None would be "nothing is chosen".
    choices = [("no class", prior.num_classes), *((name, i) for i, name in enumerate(CLASSES))]
    return Explorer(
        "four samples of any class, temperature, guidance and seed",
        draw,
        label=choice("class", choices),
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
        rows = [ipywidgets.HBox(self.buttons[r * w : (r + 1) * w]) for r in range(h)]
        super().__init__(rows)

    def switch(self, i: int, _: object) -> None:
        self.value = (*self.value[:i], not self.value[i], *self.value[i + 1 :])

    def paint(self, colors: Tensor) -> None:
        """Show kept positions in their colors, float (h, w, 3), and missing ones as gray."""
        places = itertools.product(*map(range, colors.shape[:2]))
        for button, kept, (y, x) in zip(self.buttons, self.value, places, strict=True):
            button.style.button_color = to_hex(colors[y, x].tolist() if kept else MISSING)
            button.tooltip = f"row {y}, column {x}: {'kept' if kept else 'missing'}"


def completion_painter(vqvae: VQVAE, prior: PixelCNN, codes: Tensor) -> Explorer:
    """Choose which positions of a lesion are kept; the others are sampled.

    Args:
        codes: int64 (n, h, w, slots), some lesions.
    """
    n, h, w, _ = codes.shape
    images = decoded(vqvae, codes)
    colors = mean_colors(images, (h, w))
    rows, columns = torch.arange(h).view(h, 1), torch.arange(w)
    presets = {
        "the upper half": (rows < h // 2).expand(h, w),
        "the lower half": (rows >= h // 2).expand(h, w),
        "the left half": (columns < w // 2).expand(h, w),
        "the border": ((rows - (h - 1) / 2).abs() > h / 4)
        | ((columns - (w - 1) / 2).abs() > w / 4),
        "nothing": torch.zeros(h, w, dtype=torch.bool),
    }
    mask, start = Mask(h, w), choice("keep", list(presets))

    def apply(*_: object) -> None:
        mask.value = tuple(presets[start.value].flatten().tolist())

    def draw(start: str, lesion: int, seed: int, kept: tuple[bool, ...]) -> str:
        mask.paint(colors[lesion - 1])
        keep = torch.tensor(kept).view(h, w)
        given = codes[lesion - 1].expand(2, -1, -1, -1)
        generator = torch.Generator().manual_seed(seed)
        found = sample(prior, 2, given=given, keep=keep, generator=generator)
        size = images.shape[-1] // w
        shown = keep.repeat_interleave(size, 0).repeat_interleave(size, 1)
        part = torch.where(shown, images[lesion - 1], torch.tensor(MISSING).view(3, 1, 1))
        titles = ["kept part", "completion 1", "completion 2"]
        pictures = map(picture, titles, [part, *decoded(vqvae, found)], 3 * [176])
        caption = f"{int(keep.sum())} of {h * w} positions kept; sampled in raster order"
        return side_by_side(*pictures, caption=caption)

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
