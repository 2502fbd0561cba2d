"""Chapter 6, the fast way: a prior that computes each position once, and remembers it.

256 codes take 256 passes through the prior, and each pass computes all 256 places again. But what a
PixelCNN computes at a place depends on earlier codes only, and those do not change any more. So it
is kept, and of the 256 passes one is left, cut into small steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .pixelcnn import PixelCNN


class CachedPixelCNN:
    """A PixelCNN that computes each position once, and remembers it.

    - The vertical stack of a row needs only the rows above: it is computed for the whole row, in
      all layers, before the row's first code is drawn (`enter_row`).
    - What the positions to the left contribute to one is known when it is reached: one product for
      all blocks together (`move_to`).
    - What the earlier slots of the position contribute is another one for each slot; then come,
      layer after layer, two small ones from the slot to itself (`advance`).

    It computes into memory of its own, and so without gradients only: use it within
    `torch.no_grad()` or `torch.inference_mode()`.

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

        # What is known so far: all codes, with the margin of zeros that the convolutions pad with,
        # and of each block's vertical stack the last two rows and the mean so far, and weights ...
        self.embedded = new(height + 3, width + 2 * 3, n, channels)
        self.above = prior.above.weight.flatten(1), prior.above.bias
        self.left = prior.left.weight.flatten(1), prior.here.bias
        self.vertical = []
        for block in blocks:
            first, second = rows = new(2, width + 2, n, filters)
            kernel = block.vertical.weight.flatten(1), block.vertical.bias
            norm = block.vertical_norm.weight.flatten(), block.vertical_norm.bias.flatten()
            mean, so_far = new(n, filters), block.so_far[:, :, 0, 0]
            self.vertical.append(
                (first, second, second[1:-1], windows(rows, 3), kernel, mean, so_far, norm)
            )
        # ... and of the present position its codes, and in each layer sums and features.
        self.place: tuple[int, int] | None = None
        self.embedded_here = new(n, channels)
        self.sums = new(len(blocks), n, 2 * filters)
        self.features = new(len(blocks) + 1, n, filters)

        biases = torch.stack([block.here.bias for block in blocks])
        told = prior.conditions(n, labels).unflatten(1, biases.shape)  # (n, blocks, 2 filters)
        self.constant = (told + biases).transpose(0, 1)[:, None]  # (blocks, 1, n, 2 filters)

        # Weights (out, in, 1, 1) as matrices (in, out). Only those of a slot's own position are
        # masked; and of these, the slots before it are seen in full.
        self.from_above = torch.stack([block.above.weight[:, :, 0, 0].T for block in blocks])
        self.from_left = torch.stack([block.left.weight[:, :, 0, 0].T for block in blocks])
        here = torch.stack([block.here.weight[:, :, 0, 0].T for block in blocks])
        out = torch.stack([block.out.weight[:, :, 0, 0] for block in blocks])
        scale = torch.stack([block.norm.weight.flatten() for block in blocks])
        shift = torch.stack([block.norm.bias.flatten() for block in blocks])
        first = prior.here.weight[:, :, 0, 0].T
        self.eps, self.width = blocks[0].norm.eps, (2 * deep,)
        self.slots = []
        for s in range(slots):
            own, gates = (slice(s * d, (s + 1) * d) for d in (deep, 2 * deep))
            told = self.sums[:, :, gates]
            sums = new(told.shape) if s else told  # products go faster into memory of their own
            self.slots.append(
                _Slot(
                    self.features[0, :, own],
                    self.embedded_here[:, : s * wide],
                    first[: s * wide, own],
                    told,
                    sums,
                    self.features[:-1, :, : s * deep],
                    here[:, : s * deep, gates],
                    list(
                        zip(
                            sums.unbind(),
                            here[:, own, gates].unbind(),
                            scale[:, gates].unbind(),
                            shift[:, gates].unbind(),
                            out[:, own].transpose(1, 2).unbind(),
                            self.features[1:, :, own].unbind(),
                            strict=True,
                        )
                    ),
                    self.features[-1, :, : own.stop],
                    prior.head.weight.chunk(slots)[s][:, : own.stop, 0, 0].T,
                    prior.head.bias.chunk(slots)[s],
                    prior.embedding.weight.chunk(slots)[s],
                    self.embedded_here[:, s * wide : (s + 1) * wide],
                )
            )

    def enter_row(self, row: int) -> None:
        """The vertical stack of this row, and what it tells the horizontal one."""
        v = F.linear(windows(self.embedded[row : row + 3], 7).flatten(2), *self.above)
        told = []  # of each block (w, n, filters), as v
        for first, second, inside, seen, kernel, mean, so_far, norm in self.vertical:
            first.copy_(second)
            inside.copy_(v)
            mean.lerp_(v.mean(0), 1 / (row + 1))
            y = F.linear(seen.flatten(2), *kernel) + F.linear(mean, so_far)
            told.append(F.glu(torch.layer_norm(y, norm[0].shape, *norm, self.eps)))
            v = v + told[-1]
        below = torch.stack(told).flatten(1, 2) @ self.from_above
        told = below.unflatten(1, v.shape[:2]) + self.constant
        self.told = told.unbind(1)  # at each column (blocks, n, 2 filters)

    def move_to(self, row: int, column: int) -> None:
        """Leave the last position for this one; add what stands to the left."""
        if self.place is not None:
            self.embedded[self.place] = self.embedded_here
        self.place = row + 3, column + 3
        if column == 0:
            self.enter_row(row)
            self.sums.copy_(self.told[0])
        else:  # the features are still those of the position to the left
            torch.baddbmm(self.told[column], self.features[:-1], self.from_left, out=self.sums)
        left = self.embedded[row + 3, column : column + 3].permute(1, 2, 0).flatten(1)
        kernel, bias = self.left
        torch.addmm(bias, left, kernel.T, out=self.features[0])

    def advance(self, slot: int) -> None:
        """Compute this slot's features in all layers, from those of the slots before it."""
        this = self.slots[slot]
        if slot:
            this.first.addmm_(this.codes_before, this.from_codes)
            torch.baddbmm(this.told, this.features_before, this.from_features, out=this.sums)
        x = this.first
        for sums, here, scale, shift, weight, out in this.layers:
            y = torch.addmm(sums, x, here)
            y = torch.layer_norm(y, self.width, scale, shift, self.eps)
            x = torch.addmm(x, F.glu(y), weight, out=out)

    def logits(self, slot: int) -> Tensor:
        """(n, K), after `advance`."""
        this = self.slots[slot]
        return torch.addmm(this.bias, this.last, this.head)

    def put(self, slot: int, codes: Tensor) -> None:
        """From now on this slot's codes are int64 (n,)."""
        this = self.slots[slot]
        torch.index_select(this.embedding, 0, codes, out=this.embedded)


def windows(rows: Tensor, width: int) -> Tensor:
    """What a kernel over all these rows sees at each column: a view of (h, columns, n, in) as
    (columns - width + 1, n, in, h, width)."""
    return rows.unfold(1, width, 1).permute(1, 2, 3, 0, 4)


class _Slot(NamedTuple):
    """What `CachedPixelCNN` needs for one slot: weights, and views of the present position."""

    first: Tensor  # (n, deep), features that enter the first block
    codes_before: Tensor  # (n, wide * slot), embeddings
    from_codes: Tensor  # weights
    told: Tensor  # (blocks, n, 2 deep), by what stands above and to the left
    sums: Tensor  # (blocks, n, 2 deep), with the slots before
    features_before: Tensor  # (blocks, n, deep * slot)
    from_features: Tensor  # weights
    layers: Sequence[tuple[Tensor, ...]]  # of each block: sums, weights, its features
    last: Tensor  # (n, deep * (slot + 1)), features that leave the last one
    head: Tensor
    bias: Tensor
    embedding: Tensor  # (K, wide)
    embedded: Tensor  # (n, wide)
