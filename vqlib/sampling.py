"""Chapter 6: drawing new codes, one after another.

The prior gives p(code_i | earlier codes). Draw the first code from p(code_1), put it into the grid,
draw the second given the first, and so on: 256 draws make an image's codes. Nothing may be drawn
at once or "independently", and nothing is rounded: a code is a name, not a quantity.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .pixelcnn import PixelCNN


def filter_logits(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Reshape a distribution before drawing from it.

    Args:
        logits: float (..., K).
        temperature: below 1 sharpens, above 1 flattens; logits are divided by it.
        top_k: keep only the k likeliest codes (all that tie with the k-th).
        top_p: keep the smallest set of likeliest codes whose probability reaches p (nucleus
            sampling, Holtzman et al. 2019, arXiv:1904.09751).

    Returns:
        float (..., K); codes that are out have -inf.

    Raises:
        ValueError: temperature not above 0, top_k below 1, top_p not in (0, 1].
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    logits = logits / temperature
    if top_k is not None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None:
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
        ordered, order = logits.sort(dim=-1, descending=True)
        p = ordered.softmax(-1)
        out = p.cumsum(-1) - p >= top_p  # what stands before it is enough already
        logits = logits.masked_fill(out.gather(-1, order.argsort(-1)), -torch.inf)
    return logits


@torch.inference_mode()
def sample(
    prior: PixelCNN,
    n: int,
    labels: Tensor | int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    given: Tensor | None = None,
    keep: Tensor | None = None,
    generator: torch.Generator | None = None,
    method: str = "naive",
    *,
    grid: tuple[int, int] = (8, 8),
    progress: bool = False,
) -> Tensor:
    """Draw n grids of codes from a prior.

    Args:
        prior: used in eval(), and left in the mode it was in.
        n: how many.
        labels: one class for all, or int64 (n,); None draws without a class.
        temperature, top_k, top_p: see `filter_logits`.
        given: int64 (n, h, w, slots), codes to start from; needs `keep`.
        keep: bool (h, w), True where `given` stays. Codes are drawn in raster order and cannot see
            kept ones that come later.
        generator: of the prior's device; makes the draw repeatable.
        method: "naive" runs the whole prior once for every single code.
        grid: (h, w) when nothing is given; 8 x 8 is a 256-pixel image.
        progress: show a bar.

    Returns:
        int64 (n, h, w, slots).

    Raises:
        ValueError: arguments of the wrong shape, an unknown method, a label that does not exist.
    """
    if method != "naive":
        raise ValueError(f'method must be "naive", got {method!r}')
    device = next(prior.parameters()).device
    codes, fixed = _start(prior, n, given, keep, grid, device)
    if labels is not None:
        labels = torch.as_tensor(labels, device=device).expand(n)
        if n and not 0 <= labels.min() <= labels.max() <= prior.num_classes:
            raise ValueError(f"labels must lie in 0..{prior.num_classes - 1}")
    was_training = prior.training
    prior.eval()
    places = [
        (row, column, slot)
        for row in range(codes.shape[1])
        for column in range(codes.shape[2])
        for slot in range(prior.slots)
    ]
    for row, column, slot in tqdm(places, "sampling", leave=False, disable=not progress):
        logits = prior(codes, labels)[:, row, column, slot].float()
        p = filter_logits(logits, temperature, top_k, top_p).softmax(-1)
        drawn = torch.multinomial(p, 1, generator=generator)[:, 0]
        if not fixed[row, column]:
            codes[:, row, column, slot] = drawn
    prior.train(was_training)
    return codes


def _start(
    prior: PixelCNN,
    n: int,
    given: Tensor | None,
    keep: Tensor | None,
    grid: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The grid to fill, (n, h, w, slots), and where it is filled already, bool (h, w)."""
    if (given is None) != (keep is None):
        raise ValueError("given and keep go together: the codes, and which of them stay")
    if given is None or keep is None:
        empty = torch.zeros(n, *grid, prior.slots, dtype=torch.long, device=device)
        return empty, torch.zeros(grid, dtype=torch.bool)
    if given.shape[0] != n or given.ndim != 4 or keep.shape != given.shape[1:3]:
        raise ValueError(
            f"given must be ({n}, h, w, {prior.slots}) and keep (h, w), got "
            f"{tuple(given.shape)} and {tuple(keep.shape)}"
        )
    return given.to(device, torch.long, copy=True), keep.bool().cpu()
