"""Chapter 6: drawing new codes, one after another.

The prior gives p(code_i | earlier codes). Draw the first code from p(code_1), put it into the grid,
draw the second given the first, and so on: 256 draws make an image's codes. Nothing may be drawn
at once or "independently", and nothing is rounded: a code is a name, not a quantity.

The plain way runs the whole prior for each of the 256 codes and throws 255/256 of the work away.
`CachedPixelCNN` computes every position once and remembers it; the codes are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
    if temperature != 1:
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


def draw(p: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One code from each distribution: float (..., K), sums to 1, to int64 (...).

    An exponential race: code k arrives after a time E / p_k, with E exponentially distributed, and
    the first to arrive is code k with probability p_k. `torch.multinomial` does the same after
    checks that take longer than the race.
    """
    return (p / torch.empty_like(p).exponential_(generator=generator)).argmax(-1)


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
    method: str = "cached",
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
        method: "naive" runs the whole prior once for every single code; "cached" computes each
            position once. Both draw the same codes.
        grid: (h, w) when nothing is given; 8 x 8 is a 256-pixel image.
        progress: show a bar.

    Returns:
        int64 (n, h, w, slots).

    Raises:
        ValueError: arguments of the wrong shape, an unknown method, a label that does not exist.
    """
    if method not in ("naive", "cached"):
        raise ValueError(f'method must be "naive" or "cached", got {method!r}')
    device = next(prior.parameters()).device
    codes, fixed = _start(prior, n, given, keep, grid, device)
    if labels is not None:
        labels = torch.as_tensor(labels, device=device).expand(n)
        if n and not 0 <= labels.min() <= labels.max() <= prior.num_classes:
            raise ValueError(f"labels must lie in 0..{prior.num_classes - 1}")
    was_training = prior.training
    prior.eval()
    cache = CachedPixelCNN(prior, codes.shape, labels) if method == "cached" else None
    places = [(row, column) for row in range(codes.shape[1]) for column in range(codes.shape[2])]
    for row, column in tqdm(places, "sampling", leave=False, disable=not progress):
        if cache is not None:
            cache.move_to(row, column)
        for slot in range(prior.slots):
            if cache is not None:
                cache.advance(slot)
            if not fixed[row, column]:
                if cache is not None:
                    logits = cache.logits(slot)
                else:
                    logits = prior(codes, labels)[:, row, column, slot]
                p = filter_logits(logits, temperature, top_k, top_p).softmax(-1)
                codes[:, row, column, slot] = draw(p, generator)
            if cache is not None:
                cache.put(slot, codes[:, row, column, slot])
    prior.train(was_training)
    return codes


class CachedPixelCNN:
    """A PixelCNN that computes each position once, and remembers it.

    What its masked convolutions give at a position has three sources:

    - the positions above and to the left, which are known and the same for all slots: one product
      for the first layer and one for all blocks together, when the position is reached;
    - the earlier slots of this position: small products, one slot after another;
    - the label and the bias.

    For each position in raster order call `move_to`; then for each slot `advance`, `logits` if they
    are wanted, and `put` with the code that was drawn.

    Args:
        shape: (n, h, w, slots) of the codes.
        labels: int64 (n,), or None for "no label".
    """

    def __init__(self, prior: PixelCNN, shape: Sequence[int], labels: Tensor | None) -> None:
        n, height, width, slots = shape
        first = prior.first.weight * prior.first.mask  # (out, in, row, column)
        blocks = torch.stack([block.conv.weight * block.conv.mask for block in prior.blocks])
        head = (prior.head.weight * prior.head.mask)[:, :, 0, 0]
        self.prior, self.margin = prior, first.shape[-1] // 2
        self.wide, self.deep = first.shape[1] // slots, first.shape[0] // slots  # of one slot

        # Weights of earlier positions, one row for each of their channels.
        above = _before(first.permute(2, 3, 1, 0), self.margin, self.margin, self.margin)
        self.first_before = above.flatten(0, 1)
        above = _before(blocks.permute(3, 4, 0, 2, 1), 1, 1, 1)  # (places, blocks, in, out)
        self.blocks_before = above.transpose(0, 1).flatten(1, 2)
        # Weights within the position: a matrix for each slot, from the channels that it may see.
        middle = first[:, :, self.margin, self.margin].chunk(slots)
        middles = [weight.chunk(slots) for weight in blocks[:, :, :, 1, 1]]
        norms = [prior.first_norm, *(block.norm for block in prior.blocks)]
        self.eps = prior.first_norm.eps
        self.of_slot = []
        for s, (weight, bias) in enumerate(
            zip(head.chunk(slots), prior.head.bias.chunk(slots), strict=True)
        ):
            seen = (s + 1) * self.deep
            self.of_slot.append(
                (
                    middle[s][:, : s * self.wide].T.contiguous(),
                    [layer[s][:, :seen].T.contiguous() for layer in middles],
                    [
                        (m.weight.flatten().chunk(slots)[s], m.bias.flatten().chunk(slots)[s])
                        for m in norms
                    ],
                    weight[:, :seen].T.contiguous(),
                    bias,
                )
            )

        if labels is None:
            labels = torch.full((n,), prior.num_classes, device=first.device)
        biases = torch.stack([prior.first.bias, *(block.conv.bias for block in prior.blocks)])
        told = prior.labels(labels).unflatten(1, biases.shape)  # (n, layers, filters)
        self.constant = (told + biases).transpose(0, 1).contiguous()
        # Everything computed so far, with the margin of zeros that the convolutions pad with.
        m = self.margin
        self.embedded = first.new_zeros(height + m, width + 2 * m, n, first.shape[1])
        self.features = first.new_zeros(height + 1, width + 2, len(blocks) + 1, n, first.shape[0])

    def move_to(self, row: int, column: int) -> None:
        """Sum up what earlier positions contribute to this one, in all layers."""
        m = self.margin
        seen = _before(self.embedded, row + m, column + m, m).transpose(0, 1).flatten(1)
        first = torch.addmm(self.constant[0], seen, self.first_before)
        seen = _before(self.features[:, :, :-1], row + 1, column + 1, 1)
        seen = seen.permute(1, 2, 0, 3).flatten(2)  # (blocks, n, places * filters)
        rest = torch.baddbmm(self.constant[1:], seen, self.blocks_before)
        self.sums = [total.split(self.deep, 1) for total in (first, *rest)]
        self.embedding_here = self.embedded[row + m, column + m]
        self.features_here = self.features[row + 1, column + 1].unbind()

    def advance(self, slot: int) -> None:
        """Compute this slot's features in all layers, from those of the slots before it."""
        of_first, of_blocks, norms, _, _ = self.of_slot[slot]
        start, end = slot * self.deep, (slot + 1) * self.deep
        x = self.sums[0][slot]
        if slot:
            x = torch.addmm(x, self.embedding_here[:, : slot * self.wide], of_first)
        x = F.layer_norm(x, (self.deep,), *norms[0], self.eps).relu_()
        into, *others = self.features_here
        into[:, start:end] = x
        for here, out, sums, weight, norm in zip(
            self.features_here, others, self.sums[1:], of_blocks, norms[1:], strict=False
        ):
            y = torch.addmm(sums[slot], here[:, :end], weight)
            y = F.layer_norm(y, (self.deep,), *norm, self.eps).relu_()
            torch.add(here[:, start:end], y, out=out[:, start:end])

    def logits(self, slot: int) -> Tensor:
        """(n, K), after `advance`."""
        _, _, _, weight, bias = self.of_slot[slot]
        return torch.addmm(bias, self.features_here[-1][:, : len(weight)], weight)

    def put(self, slot: int, codes: Tensor) -> None:
        """From now on this slot's codes are int64 (n,)."""
        drawn = self.prior.embedding(codes + slot * self.prior.num_embeddings)
        self.embedding_here[:, slot * self.wide : (slot + 1) * self.wide] = drawn


def _before(map_: Tensor, row: int, column: int, reach: int) -> Tensor:
    """The places of `map_` (rows, columns, ...) within `reach` that come before this one in raster
    order, (places, ...)."""
    above = map_[row - reach : row, column - reach : column + reach + 1].flatten(0, 1)
    return torch.cat([above, map_[row, column - reach : column]])


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
