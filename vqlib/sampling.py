"""Chapter 6: drawing new codes, one after another.

The prior gives p(code_i | earlier codes). Draw the first code from p(code_1), put it into the grid,
draw the second given the first, and so on: 256 draws make an image's codes. Nothing may be drawn
at once or "independently", and nothing is rounded: a code is a name, not a quantity.

The plain way runs the whole prior for each of the 256 codes and throws 255/256 of the work away.
`CachedPixelCNN`, in `cached.py`, computes every position once and remembers it; the codes are the
same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .cached import CachedPixelCNN
from .metrics import code_bits
from .pixelcnn import PixelCNN
from .vqvae import evaluating


def filter_logits(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Reshape a distribution before drawing from it.

    Args:
        logits: float (..., K), finite.
        temperature: below 1 sharpens, above 1 flattens; logits are divided by it.
        top_k: keep only the k likeliest codes (all that tie with the k-th).
        top_p: keep the smallest set of likeliest codes whose probability reaches p (nucleus
            sampling, Holtzman et al. 2019, arXiv:1904.09751).

    Returns:
        float (..., K); codes that are out have -inf.

    Raises:
        ValueError: temperature not above 0 or infinite, top_k below 1, top_p not in (0, 1].
    """
    if temperature != 1:
        tiny = torch.finfo(logits.dtype).tiny  # division may take anything smaller for 0
        if not tiny <= temperature < math.inf:
            raise ValueError(f"temperature must be finite and above 0, got {temperature}")
        # The largest becomes 0: it would overflow at a low temperature.
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k is not None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None:
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        p = ordered.softmax(-1)
        out = p.cumsum(-1) - p >= top_p  # what stands before it is enough already
        logits = logits.masked_fill(out.gather(-1, order.argsort(-1)), -torch.inf)
    return logits


def draw(p: Tensor, points: Tensor) -> Tensor:
    """One code from each distribution: float (..., K), sums to 1, to int64 (...).

    The codes lie side by side on a line of length 1, each as long as it is likely; a point drawn
    evenly from that line falls into code k with probability p_k. `torch.multinomial` does the same
    with a random number for each of the K codes, instead of one.

    Args:
        p: finite; nothing is checked, as this is called for every code.
        points: float (...), in [0, 1), as `torch.rand` gives them.
    """
    ends = p.cumsum(-1)
    # A point below 1, times the sum as rounded, stays below that sum: no code without p is drawn.
    points = points.unsqueeze(-1) * ends.narrow(-1, -1, 1)
    return torch.searchsorted(ends, points, right=True).squeeze(-1)


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
    method: str = "cached",
    *,
    guidance: float = 0.0,
    grid: tuple[int, int] = (8, 8),
    progress: bool = False,
) -> Tensor:
    """Draw n grids of codes from a prior.

    Args:
        prior: used in eval(), and left in the mode it was in.
        n: how many.
        labels: one class for all, or int64 (n,); None draws without a class.
        temperature, top_k, top_p: see `filter_logits`.
        given: int64 (n, h, w, slots), codes to start from; needs `keep`. Where `keep` is False it
            may hold anything.
        keep: bool (h, w), True where `given` stays. Codes are drawn in raster order and cannot see
            kept ones that come later.
        generator: of the prior's device; makes the draw repeatable.
        method: "naive" runs the whole prior once for every single code; "cached" computes each
            position once. Both draw the same codes.
        guidance: w above 0 goes w times further than the class asks for, away from what the prior
            would say without it: its logits and 1 + w times the difference. Needs labels
            (classifier-free guidance, Ho and Salimans 2022, arXiv:2207.12598, equation 6).
        grid: (h, w) when nothing is given; 8 x 8 is a 256-pixel image.
        progress: show a bar.

    Returns:
        int64 (n, h, w, slots).

    Raises:
        ValueError: arguments of the wrong shape, dtype or range, an unknown method, a label or a
            kept code that does not exist, guidance without labels, weights of the prior that are
            not finite.
    """
    if method not in ("naive", "cached"):
        raise ValueError(f'method must be "naive" or "cached", got {method!r}')
    if not 0 <= guidance < math.inf:
        raise ValueError(f"guidance must be finite and at least 0, got {guidance}")
    with evaluating(prior) as device:
        # Sums, as these are NaN or infinite too, and quicker than a look at each weight.
        if not torch.stack([weight.sum() for weight in prior.parameters()]).isfinite().all():
            raise ValueError(
                "the prior's weights hold NaN or infinity: load another file of weights, or train "
                "again with a lower learning rate"
            )
        codes, kept = _start(prior, n, given, keep, grid, device)
        fixed, to_draw = kept.tolist(), prior.slots * int((~kept).sum())
        evenly = {"dtype": prior.head.weight.dtype, "device": device, "generator": generator}
        points = iter(torch.rand(to_draw, n, **evenly).unbind())
        labels = _told(prior, n, labels, device)
        if guidance:
            if labels is None:
                raise ValueError("guidance leads towards a class, and needs labels")
            labels = torch.cat([labels, torch.full_like(labels, prior.num_classes)])
            codes = torch.cat([codes, codes])  # the same grids, told the class and not told it
        # Views of all codes, in the order of drawing: what is written there must reach `codes`.
        cells = iter(codes.view(len(codes), -1).unbind(1))
        cache = CachedPixelCNN(prior, codes.shape, labels) if method == "cached" else None
        rows, columns = map(range, codes.shape[1:3])
        places = [(row, column) for row in rows for column in columns]
        for row, column in tqdm(places, "sampling", leave=False, disable=not progress):
            if cache is not None:
                cache.move_to(row, column)
            for slot in range(prior.slots):
                cell = next(cells)
                if cache is not None:
                    cache.advance(slot)
                if not fixed[row][column]:
                    if cache is not None:
                        logits = cache.logits(slot)
                    else:
                        logits = prior(codes, labels)[:, row, column, slot]
                    if guidance:
                        told, untold = logits.chunk(2)
                        logits = untold + (1 + guidance) * (told - untold)
                    p = filter_logits(logits, temperature, top_k, top_p).softmax(-1)
                    drawn = draw(p, next(points))
                    cell.copy_(torch.cat([drawn, drawn]) if guidance else drawn)
                if cache is not None:
                    cache.put(slot, cell)
    return codes[:n].clone()


def complete(
    prior: PixelCNN,
    given: Tensor,
    keep: Tensor,
    candidates: int = 64,
    labels: Tensor | int | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """Fill a grid so that what is drawn fits what is kept, wherever that stands.

    `sample` draws each code given the earlier ones: it can't see kept codes that come later. Here
    it draws many candidates; each is weighted by the likelihood of the kept codes in its company,
    and one of them is drawn by these weights (sampling, importance, resampling: Rubin 1988). With
    ever more candidates that is a draw from the prior given all that is kept; options that draw
    from anything but the prior itself (temperature, top-k, top-p, guidance) make it a compromise.
    Where nothing that is kept comes later, all weights are equal and one candidate does.

    Args:
        given, keep: see `sample`; int64 (n, h, w, slots) and bool (h, w).
        candidates: for each of the n.
        labels: one class for all, or int64 (n,), or None.
        options: for `sample`.

    Returns:
        int64 (n, h, w, slots).

    Raises:
        ValueError: as `sample`; candidates below 1.
    """
    n = len(given)
    if min(n, candidates) < 1:
        raise ValueError(f"needs at least one grid and one candidate, got {n} and {candidates}")
    labels = _told(prior, n, labels, given.device)
    if labels is not None:
        labels = labels.repeat_interleave(candidates)
    many = given.repeat_interleave(candidates, 0)
    drawn = sample(prior, len(many), labels, given=many, keep=keep, generator=generator, **options)
    bits = code_bits(prior, drawn, labels)[:, keep.cpu()].flatten(1).sum(1)
    weights = (-bits.double() * math.log(2)).view(n, candidates).softmax(1)
    # Drawn where the generator is; MPS has no float64.
    points = torch.rand(n, device=drawn.device, generator=generator).cpu().double()
    chosen = torch.arange(n) * candidates + draw(weights, points)
    return drawn[chosen.to(drawn.device)]


def _start(
    prior: PixelCNN,
    n: int,
    given: Tensor | None,
    keep: Tensor | None,
    grid: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The grid to fill, (n, h, w, slots), and where it is filled already, bool (h, w)."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if (given is None) != (keep is None):
        raise ValueError("given and keep go together: the codes, and which of them stay")
    if given is None or keep is None:
        if len(grid) != 2 or min(grid) < 1:
            raise ValueError(f"grid must be (h, w), each at least 1, got {grid}")
        empty = torch.zeros(n, *grid, prior.slots, dtype=torch.long, device=device)
        return empty, torch.zeros(grid, dtype=torch.bool)
    fits = given.ndim == 4 and given.shape[::3] == (n, prior.slots) and given.numel()
    if not fits or keep.shape != given.shape[1:3]:
        raise ValueError(
            f"given must be ({n}, h, w, {prior.slots}) and keep (h, w), got "
            f"{tuple(given.shape)} and {tuple(keep.shape)}"
        )
    if given.dtype != torch.long or keep.dtype != torch.bool:
        raise ValueError(f"given must be int64 and keep bool, got {given.dtype} and {keep.dtype}")
    kept = given[:, keep.to(given.device)]
    if kept.numel() and not 0 <= kept.min() <= kept.max() < prior.num_embeddings:
        raise ValueError(f"the codes that are kept must lie in 0..{prior.num_embeddings - 1}")
    codes = torch.zeros(given.shape, dtype=torch.long, device=device)
    codes[:, keep.to(device)] = kept.to(device)
    return codes, keep.cpu()


def _told(
    prior: PixelCNN, n: int, labels: Tensor | int | None, device: torch.device
) -> Tensor | None:
    """The class of each of the n, int64 (n,); None if none is told."""
    if labels is None:
        return None
    labels = torch.as_tensor(labels, device=device)
    whole = labels.dtype != torch.bool and torch.can_cast(labels.dtype, torch.long)
    if not whole or labels.shape not in ((), (1,), (n,)):
        raise ValueError(
            f"labels must be one class or int64 ({n},), got {labels.dtype} {tuple(labels.shape)}"
        )
    labels = labels.long().expand(n)
    if not 0 <= labels.min() <= labels.max() <= prior.num_classes:
        raise ValueError(
            f"labels must lie in 0..{prior.num_classes - 1}, or be {prior.num_classes} for no class"
        )
    return labels
