"""Chapter 6: drawing new codes, one after another.

The prior gives p(code_i | earlier codes). Draw the first code from p(code_1), put it into the grid,
draw the second given the first, and so on: 256 draws make an image's codes. Nothing may be drawn
at once or "independently", and nothing is rounded: a code is a name, not a quantity.

The plain way runs the whole prior for each of the 256 codes and throws 255/256 of the work away.
`CachedPixelCNN` computes every position once and remembers it; the codes are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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

    The codes lie side by side on a line of length 1, each as long as it is likely; a point u, drawn
    evenly from that line, falls into code k with probability p_k. `torch.multinomial` does the same
    with a random number for each of the K codes, instead of one.
    """
    ends = p.cumsum(-1)
    u = torch.rand(*p.shape[:-1], 1, dtype=p.dtype, device=p.device, generator=generator)
    # u < 1, and times the sum as rounded it stays below that sum: no code without p is drawn.
    return torch.searchsorted(ends, u * ends[..., -1:], right=True)[..., 0]


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

    What its masked convolutions sum up at a position comes from

    - the rows above: known for a whole row before its first code is drawn, so one product for the
      first layer and one for all blocks serve all its positions (`enter_row`);
    - the positions to the left: two more products at each position (`move_to`);
    - the earlier slots of the position itself: two more for each slot, and then, layer after layer,
      a small one from the slot to itself (`advance`);
    - the label and the bias.

    For each position in raster order call `move_to`; then for each slot `advance`, `logits` if they
    are wanted, and `put` with the code that was drawn.

    Args:
        shape: (n, h, w, slots) of the codes.
        labels: int64 (n,), or None for "no label".
    """

    def __init__(self, prior: PixelCNN, shape: Sequence[int], labels: Tensor | None) -> None:
        n, height, self.width, slots = shape
        first, blocks = prior.first, [block.conv for block in prior.blocks]
        m = self.margin = first.kernel_size[0] // 2
        filters, wide = first.out_channels, first.in_channels // slots
        deep = filters // slots  # features of one slot, as `wide` is the length of an embedding

        # Everything computed so far, with the margin of zeros that the convolutions pad with ...
        new = first.weight.new_zeros
        self.embedded = new(height + m, self.width + 2 * m, n, first.in_channels)
        self.features = new(len(blocks), height + 1, self.width + 2, n, filters)
        # ... and what belongs to the present position: its codes, their sums, its features.
        self.place: tuple[int, int] | None = None
        self.embedded_here = new(n, first.in_channels)
        self.sums, self.features_here = new(2, len(blocks) + 1, n, filters)

        if labels is None:
            labels = torch.full((n,), prior.num_classes, device=first.weight.device)
        biases = torch.stack([conv.bias for conv in (first, *blocks)])
        told = prior.labels(labels).unflatten(1, biases.shape)  # (n, layers, filters)
        self.constant = (told + biases).transpose(0, 1)[:, None]  # (layers, 1, n, filters)

        # Weights (out, in, row, column) as matrices, a row for each channel of each place. Only
        # the middle is masked by slot: whatever stands above or to the left is seen in full.
        kernels = torch.stack([conv.weight for conv in blocks])
        self.first_above = first.weight[:, :, :m].permute(2, 3, 1, 0).flatten(0, 2)
        self.first_left = first.weight[:, :, m, :m].permute(2, 1, 0).flatten(0, 1)
        self.blocks_above = kernels[:, :, :, 0].permute(0, 3, 2, 1).flatten(1, 2)
        self.blocks_left = kernels[:, :, :, 1, 0].transpose(1, 2).contiguous()
        first_middle = first.weight[:, :, m, m].T.contiguous()
        blocks_middle = kernels[:, :, :, 1, 1].transpose(1, 2).contiguous()
        norms = [prior.first_norm, *(block.norm for block in prior.blocks)]
        self.eps = prior.first_norm.eps
        self.slots = []
        for s in range(slots):
            before, own, codes = slice(s * deep), slice(s * deep, s * deep + deep), slice(s * wide)
            here, sums = self.features_here, self.sums
            self.slots.append(
                _Slot(
                    (sums[0, :, own], self.embedded_here[:, codes], first_middle[codes, own]),
                    (
                        sums[1:, :, own],
                        here[:-1, :, before],
                        blocks_middle[:, before, own].contiguous(),
                    ),
                    sums[:, :, own].unbind(),
                    here[:, :, own].unbind(),
                    blocks_middle[:, own, own].contiguous().unbind(),
                    [(norm.weight.flatten()[own], norm.bias.flatten()[own]) for norm in norms],
                    here[-1, :, : own.stop],
                    prior.head.weight.chunk(slots)[s][:, : own.stop, 0, 0].T.contiguous(),
                    prior.head.bias.chunk(slots)[s],
                    prior.embedding.weight.chunk(slots)[s],
                    self.embedded_here[:, s * wide : s * wide + wide],
                )
            )

    def enter_row(self, row: int) -> None:
        """Sum up what the rows above contribute to every position of this one, in all layers."""
        m = self.margin
        seen = self.embedded[row : row + m].unfold(1, 2 * m + 1, 1)  # (m, w, n, channels, 2m + 1)
        seen = seen.permute(1, 2, 0, 4, 3).flatten(2)
        self.first_row = seen @ self.first_above + self.constant[0]  # (w, n, filters)
        seen = self.features[:, row].unfold(1, 3, 1)  # (blocks, w, n, filters, 3)
        seen = seen.transpose(3, 4).flatten(3).flatten(1, 2)
        above = torch.bmm(seen, self.blocks_above).unflatten(1, (self.width, -1))
        self.blocks_row = above + self.constant[1:]  # (blocks, w, n, filters)

    def move_to(self, row: int, column: int) -> None:
        """Leave the last position for this one; add what stands to the left."""
        m = self.margin
        if self.place is not None:
            self.embedded[self.place[0] + m, self.place[1] + m] = self.embedded_here
            self.features[:, self.place[0] + 1, self.place[1] + 1] = self.features_here[:-1]
        self.place = row, column
        if column == 0:
            self.enter_row(row)
        left = self.embedded[row + m, column : column + m].transpose(0, 1).flatten(1)
        torch.addmm(self.first_row[column], left, self.first_left, out=self.sums[0])
        left = self.features[:, row + 1, column]
        torch.baddbmm(self.blocks_row[:, column], left, self.blocks_left, out=self.sums[1:])

    def advance(self, slot: int) -> None:
        """Compute this slot's features in all layers, from those of the slots before it."""
        this = self.slots[slot]
        if slot:
            sums, seen, weight = this.from_codes
            sums.addmm_(seen, weight)
            sums, seen, weight = this.from_features
            sums.baddbmm_(seen, weight)
        x = this.features[0]
        y = torch.layer_norm(this.sums[0], x.shape[1:], *this.norms[0], self.eps)
        torch.clamp_min(y, 0, out=x)
        for sums, weight, norm, out in zip(
            this.sums[1:], this.weights, this.norms[1:], this.features[1:], strict=True
        ):
            y = torch.layer_norm(torch.addmm(sums, x, weight), x.shape[1:], *norm, self.eps)
            x = torch.add(x, y.relu_(), out=out)

    def logits(self, slot: int) -> Tensor:
        """(n, K), after `advance`."""
        this = self.slots[slot]
        return torch.addmm(this.bias, this.seen_by_head, this.head)

    def put(self, slot: int, codes: Tensor) -> None:
        """From now on this slot's codes are int64 (n,)."""
        this = self.slots[slot]
        this.embedded.copy_(F.embedding(codes, this.embedding))


class _Slot(NamedTuple):
    """What `CachedPixelCNN` needs for one slot: weights, and views of the present position."""

    from_codes: tuple[Tensor, Tensor, Tensor]  # sums, embeddings of earlier slots, weights
    from_features: tuple[Tensor, Tensor, Tensor]  # the same in the blocks, all at once
    sums: Sequence[Tensor]  # (n, deep) for each layer
    features: Sequence[Tensor]  # (n, deep) for each layer
    weights: Sequence[Tensor]  # (deep, deep) for each block, from the slot to itself
    norms: Sequence[tuple[Tensor, Tensor]]  # weight and bias for each layer
    seen_by_head: Tensor  # (n, up to deep * slots), features of the last layer
    head: Tensor
    bias: Tensor
    embedding: Tensor  # (K, wide)
    embedded: Tensor  # (n, wide)


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
