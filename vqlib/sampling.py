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

    - The vertical stack of a row needs only the rows above: it is computed for the whole row, in
      all layers, before the row's first code is drawn (`enter_row`).
    - What the positions to the left contribute to one is known when it is reached: one product for
      all blocks together (`move_to`).
    - What the earlier slots of the position contribute is another one for each slot; then come,
      layer after layer, two small ones from the slot to itself (`advance`).

    For each position in raster order call `move_to`; then for each slot `advance`, `logits` if they
    are wanted, and `put` with the code that was drawn.

    Args:
        shape: (n, h, w, slots) of the codes.
        labels: int64 (n,), or None for "no label".
    """

    def __init__(self, prior: PixelCNN, shape: Sequence[int], labels: Tensor | None) -> None:
        n, height, width, slots = shape
        blocks, new = list(prior.blocks), prior.head.weight.new_zeros
        filters, channels = prior.left.out_channels, prior.left.in_channels
        deep, wide = filters // slots, channels // slots  # features and embedding of one slot
        self.prior, (self.rows, _), (_, self.columns) = (
            prior, prior.above.kernel_size, prior.left.kernel_size,
        )  # fmt: skip

        # What is known so far: all codes, with the margin of zeros that the convolutions pad with,
        # and of each block's vertical stack the last two rows, beside its weights ...
        self.embedded = new(n, channels, height + self.rows, width + self.columns)
        self.vertical = [
            (
                new(2, width + 2, n, filters),
                block.vertical.weight.permute(2, 3, 1, 0).flatten(0, 2),
                block.vertical.bias,
                (block.vertical_norm.weight.flatten(), block.vertical_norm.bias.flatten()),
                block.above.weight[:, :, 0, 0].T.contiguous(),
            )
            for block in blocks
        ]
        # ... and of the present position its codes, and in each layer sums and features.
        self.place: tuple[int, int] | None = None
        self.embedded_here, self.first_sums = new(n, channels), new(n, filters)
        self.sums = new(len(blocks), n, 2 * filters)
        self.features = new(len(blocks) + 1, n, filters)

        if labels is None:
            labels = torch.full((n,), prior.num_classes, device=self.sums.device)
        biases = torch.stack([block.here.bias for block in blocks])
        told = prior.labels(labels).unflatten(1, biases.shape)  # (n, blocks, 2 filters)
        self.constant = (told + biases).transpose(0, 1)

        # Weights (out, in, 1, 1) as matrices (in, out). Only those of a slot's own position are
        # masked; and of these, the slots before it are seen in full.
        self.from_left = torch.stack([block.left.weight[:, :, 0, 0].T for block in blocks])
        here = torch.stack([block.here.weight[:, :, 0, 0].T for block in blocks])
        first = prior.here.weight[:, :, 0, 0].T
        self.eps = blocks[0].norm.eps
        self.slots = []
        for s in range(slots):
            own, gates = (slice(s * d, (s + 1) * d) for d in (deep, 2 * deep))
            sums = self.sums[:, :, gates]
            self.slots.append(
                _Slot(
                    self.first_sums[:, own],
                    self.embedded_here[:, : s * wide],
                    first[: s * wide, own].contiguous(),
                    sums,
                    self.features[:-1, :, : s * deep],
                    here[:, : s * deep, gates].contiguous(),
                    [
                        (
                            sums[i],
                            self.features[i + 1, :, own],
                            here[i, own, gates].contiguous(),
                            block.norm.weight[gates].flatten(),
                            block.norm.bias[gates].flatten(),
                            block.out.weight[own, :, 0, 0].T.contiguous(),
                        )
                        for i, block in enumerate(blocks)
                    ],
                    self.features[0, :, own],
                    self.features[-1, :, : own.stop],
                    prior.head.weight.chunk(slots)[s][:, : own.stop, 0, 0].T.contiguous(),
                    prior.head.bias.chunk(slots)[s],
                    prior.embedding.weight.chunk(slots)[s],
                    self.embedded_here[:, s * wide : (s + 1) * wide],
                )
            )

    def enter_row(self, row: int) -> None:
        """The vertical stack of this row, and what it tells the horizontal one."""
        v = self.prior.above(self.embedded[:, :, row : row + self.rows, self.columns :])
        v = v[:, :, 0].permute(2, 0, 1)  # (w, n, filters)
        told = []
        for rows, kernel, bias, norm, above in self.vertical:
            rows[0] = rows[1]
            rows[1, 1:-1] = v
            seen = rows.unfold(1, 3, 1).permute(1, 2, 0, 4, 3).flatten(2)
            y = F.glu(torch.layer_norm(seen @ kernel + bias, bias.shape, *norm, self.eps))
            told.append(y @ above)
            v = v + y
        self.told = torch.stack(told, 1) + self.constant  # (w, blocks, n, 2 filters)

    def move_to(self, row: int, column: int) -> None:
        """Leave the last position for this one; add what stands to the left."""
        if self.place is not None:
            self.embedded[:, :, self.place[0], self.place[1]] = self.embedded_here
        self.place = row + self.rows, column + self.columns
        if column == 0:
            self.enter_row(row)
            self.sums.copy_(self.told[0])
        else:  # the features are still those of the position to the left
            torch.baddbmm(self.told[column], self.features[:-1], self.from_left, out=self.sums)
        left = self.embedded[:, :, self.place[0], column : column + self.columns].flatten(1)
        weight = self.prior.left.weight.flatten(1).T
        torch.addmm(self.prior.here.bias, left, weight, out=self.first_sums)

    def advance(self, slot: int) -> None:
        """Compute this slot's features in all layers, from those of the slots before it."""
        this = self.slots[slot]
        if slot:
            this.first_sums.addmm_(this.codes_before, this.from_codes)
            this.sums.baddbmm_(this.features_before, this.from_features)
        x = this.first.copy_(this.first_sums)
        for sums, out, here, scale, shift, weight in this.layers:
            y = torch.addmm(sums, x, here)
            y = torch.layer_norm(y, scale.shape, scale, shift, self.eps)
            x = torch.addmm(x, F.glu(y), weight, out=out)

    def logits(self, slot: int) -> Tensor:
        """(n, K), after `advance`."""
        this = self.slots[slot]
        return torch.addmm(this.bias, this.last, this.head)

    def put(self, slot: int, codes: Tensor) -> None:
        """From now on this slot's codes are int64 (n,)."""
        this = self.slots[slot]
        this.embedded.copy_(F.embedding(codes, this.embedding))


class _Slot(NamedTuple):
    """What `CachedPixelCNN` needs for one slot: weights, and views of the present position."""

    first_sums: Tensor  # (n, deep)
    codes_before: Tensor  # (n, wide * slot), embeddings
    from_codes: Tensor  # weights
    sums: Tensor  # (blocks, n, 2 deep)
    features_before: Tensor  # (blocks, n, deep * slot)
    from_features: Tensor  # weights
    layers: Sequence[tuple[Tensor, ...]]  # of each block: sums, its features, weights
    first: Tensor  # (n, deep), features that enter the first block
    last: Tensor  # (n, deep * (slot + 1)), features that leave the last one
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
