"""Chapter 5: masked convolutions, and the priors built of them.

A prior says how likely each code is, given the codes before it:

    p(codes) = product over i of p(code_i | code_1 ... code_{i-1})

"Before" needs an order: rows from top to bottom, positions from left to right, and at each position
the four codes (slots) one after another, as PixelCNN takes a pixel's red before its green. A
convolution respects that order if the weights that would look ahead are masked to zero.

Source: van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks" (2016),
arXiv:1601.06759, sections 3.4 (masks) and 3.5 (PixelCNN).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .quantizer import check_codes


class MaskedConv2d(nn.Conv2d):
    """A convolution that cannot look ahead.

    Its channels are `slots` ordered groups of equal size. For the output at some position, group g:

    - all rows above, and all positions to the left in the same row: every group is seen;
    - the position itself: groups before g, and g itself only with mask "B";
    - everything to the right and below: nothing.

    The first layer reads the codes and needs mask "A": a code must not see itself. Later layers
    read features that already obey the order, and take "B". With `slots=1` this is the mask of the
    report; with 3, PixelCNN's R, G, B; here 4.

    The mask is a buffer: it moves with the module and is not trained. It is not saved either, since
    its arguments say all of it.

    Raises:
        ValueError: mask type other than "A" or "B", even kernel, channels not divisible by slots.
    """

    def __init__(
        self,
        mask_type: str,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        padding: int | None = None,
        slots: int = 1,
    ) -> None:
        if mask_type not in ("A", "B"):
            raise ValueError(f'mask_type must be "A" or "B", got {mask_type!r}')
        if kernel_size % 2 == 0:
            raise ValueError(f"a masked convolution needs an odd kernel, got {kernel_size}")
        if in_channels % slots or out_channels % slots:
            raise ValueError(
                f"{in_channels} -> {out_channels} channels can't be cut into {slots} equal groups"
            )
        padding = kernel_size // 2 if padding is None else padding
        super().__init__(in_channels, out_channels, kernel_size, padding=padding)
        self.mask_type, self.slots = mask_type, slots

        mask = torch.zeros_like(self.weight)  # (out, in, row, column)
        middle = kernel_size // 2
        mask[:, :, :middle, :] = 1
        mask[:, :, middle, :middle] = 1
        group_out = torch.arange(out_channels) * slots // out_channels
        group_in = torch.arange(in_channels) * slots // in_channels
        earlier = torch.lt if mask_type == "A" else torch.le
        mask[:, :, middle, middle] = earlier(group_in[None, :], group_out[:, None]).float()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight, padding = self.weight * self.mask, list(self.padding)
        # Weights for positions further off than the map is high or wide meet only padding. They
        # are left out because PyTorch's bf16 gradient on a CPU is wrong for them (infinite, on
        # maps of 2 x 2 and 2 x 8 positions).
        for axis, extent in enumerate(x.shape[-2:]):
            excess = self.kernel_size[axis] // 2 - extent + 1
            if excess > 0:
                weight = weight.narrow(2 + axis, excess, self.kernel_size[axis] - 2 * excess)
                padding[axis] -= excess
        return F.conv2d(x, weight, self.bias, padding=padding)

    def extra_repr(self) -> str:
        return f"{self.mask_type}, {super().extra_repr()}, slots={self.slots}"


class SlotNorm(nn.Module):
    """Layer normalisation within one slot's channels at one position.

    A BatchNorm in train() subtracts a mean taken over all positions, later ones included: the
    future leaks into the past. So do GroupNorm and InstanceNorm, in eval() too. Here nothing is
    mixed that the masks keep apart.
    """

    def __init__(self, channels: int, slots: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.slots, self.eps = slots, eps
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)  # not in half precision
        grouped = x.movedim(1, -1).unflatten(-1, (self.slots, -1)).to(exact)
        normalized = F.layer_norm(grouped, grouped.shape[-1:], eps=self.eps)
        return normalized.flatten(-2).movedim(-1, 1).to(x.dtype) * self.weight + self.bias


class ResidualMaskedConv2d(nn.Module):
    """x + ReLU(norm(masked 3x3 convolution of x)), mask "B".

    Args:
        norm: makes the normalisation for that many channels; the report's is nn.BatchNorm2d.
        dropout: rate at the branch's end.
    """

    def __init__(
        self, channels: int, norm: Any = nn.BatchNorm2d, slots: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.conv = MaskedConv2d("B", channels, channels, kernel_size=3, slots=slots)
        self.norm = norm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor | float = 0.0) -> Tensor:
        """Features (B, C, h, w); `condition` (B, C, 1, 1) is added before the normalisation."""
        return x + self.dropout(F.relu(self.norm(self.conv(x) + condition)))


class PixelRCNN(nn.Module):
    """The report's prior, layer by layer: 256 channels in, 256 out, 120 within.

    It has no recurrence, in spite of its name, and it predicts *vectors*: trained with MSE, its
    output is the mean of what could come next. It stands here to be taken apart in notebook 04;
    `PixelCNN` below is the one to sample from.
    """

    def __init__(
        self, no_channels: int = 256, out_channels: int = 256, conv_filters: int = 120
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "no_channels": no_channels,
            "out_channels": out_channels,
            "conv_filters": conv_filters,
        }
        self.net = nn.Sequential(
            MaskedConv2d("A", no_channels, conv_filters, kernel_size=7, padding=3),
            nn.BatchNorm2d(conv_filters),
            nn.ReLU(),
            *(ResidualMaskedConv2d(conv_filters) for _ in range(8)),
            MaskedConv2d("B", conv_filters, out_channels, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Quantized vectors (B, 256, 8, 8) to predicted vectors of the same shape."""
        return self.net(x)


def rows_above(x: Tensor, rows: int) -> Tensor:
    """(B, C, h, w) to (B, C, h + rows - 1, w): a kernel of that many rows, laid over row r of the
    result, covers the `rows` rows above row r of x."""
    return F.pad(x, (0, 0, rows, 0))[:, :, :-1]


def columns_left(x: Tensor, columns: int) -> Tensor:
    """(B, C, h, w) to (B, C, h, w + columns - 1): the same to the left."""
    return F.pad(x, (columns, 0))[..., :-1]


def mean_so_far(v: Tensor) -> Tensor:
    """The mean of each row and all rows above it, (B, C, h, w) to (B, C, h, 1)."""
    rows = torch.arange(1, v.shape[2] + 1, device=v.device, dtype=v.dtype)
    return (v.mean(3).cumsum(2) / rows).unsqueeze(3)


class GatedBlock(nn.Module):
    """One layer of two stacks: the *vertical* one sees the rows above, all of them; the
    *horizontal* one sees what lies to the left in the row, and is told by the other. Skin tone,
    light and grain belong to a whole image: the vertical stack is told its mean over all rows so
    far, as well, with weights that start at 0.

    A masked convolution can't look up and to the right far enough: its right half stays dark row
    after row, and that blind spot grows with depth. Two stacks need no spatial mask at all.

    Source: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016),
    arXiv:1606.05328, section 2.2 and figure 2. The gate is a * sigmoid(b) (Dauphin et al. 2017,
    arXiv:1612.08083, section 2); theirs is tanh(a) * sigmoid(b).
    """

    def __init__(self, channels: int, slots: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.slots = slots
        self.vertical = nn.Conv2d(channels, 2 * channels, (2, 3), padding=(0, 1))
        self.vertical_norm = SlotNorm(2 * channels)
        self.so_far = nn.Parameter(torch.zeros(2 * channels, channels, 1, 1))
        self.above = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.left = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.here = MaskedConv2d("B", channels, 2 * channels, 1, slots=slots)
        self.norm = SlotNorm(2 * channels, slots)
        self.out = nn.Conv2d(channels, channels, 1, groups=slots, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, v: Tensor, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Both stacks' features (B, C, h, w); `condition` (B, 2C, 1, 1) is added before the
        normalisation. A row of `v` holds nothing of that row or of rows below."""
        rows = self.vertical(F.pad(v, (0, 0, 1, 0))) + F.conv2d(mean_so_far(v), self.so_far)
        above = F.glu(self.vertical_norm(rows), dim=1)
        mixed = self.above(above) + self.left(columns_left(x, 1)) + self.here(x) + condition
        gated = F.glu(self.norm(mixed).unflatten(1, (self.slots, -1)), dim=2).flatten(1, 2)
        return v + self.dropout(above), x + self.dropout(self.out(gated))


class PixelCNN(nn.Module):
    """Autoregressive prior over codes: logits for every code, given all earlier ones.

    What the report's prior lacks: an embedding for each code instead of the quantizer's vectors,
    four ordered slots a position, a categorical distribution over all codes, classes, two stacks
    without a blind spot, and a normalisation that does not leak.

    Args:
        num_embeddings: K, size of the alphabet.
        codes_per_position: slots; must divide conv_filters.
        conv_filters: channels within.
        num_classes: number of labels; one more, "no label", is learnt by label dropout.
        embedding_dim: length of a code's embedding; that of the codebook's rows if it is to start
            from them.
        blocks: number of gated blocks.
        dropout: rate within the blocks.
        orientations: how many the grids it learns from are shown in. Each is told, as the class is,
            or what is drawn would be turned and mirrored at random, the light of the camera with it
            (Jun et al., "Distribution Augmentation for Generative Modeling", ICML 2020).

    Attributes:
        codebook_fingerprint: fingerprint of the codebook whose codes it was trained on (see
            `VQVAE.codebook_fingerprint`); None if unknown.
    """

    def __init__(
        self,
        num_embeddings: int = 512,
        codes_per_position: int = 4,
        conv_filters: int = 120,
        num_classes: int = 7,
        *,
        embedding_dim: int = 32,
        blocks: int = 8,
        dropout: float = 0.1,
        orientations: int = 1,
    ) -> None:
        super().__init__()
        slots = codes_per_position
        self.num_embeddings, self.slots, self.num_classes = num_embeddings, slots, num_classes
        self.config: dict[str, Any] = {
            "num_embeddings": num_embeddings,
            "codes_per_position": codes_per_position,
            "conv_filters": conv_filters,
            "num_classes": num_classes,
            "embedding_dim": embedding_dim,
            "blocks": blocks,
            "dropout": dropout,
            "orientations": orientations,
        }
        self.codebook_fingerprint: str | None = None
        channels = slots * embedding_dim
        self.embedding = nn.Embedding(slots * num_embeddings, embedding_dim)
        self.labels = nn.Embedding(num_classes + 1, blocks * 2 * conv_filters)
        nn.init.zeros_(self.labels.weight)
        self.orientations = nn.Parameter(torch.zeros(orientations, self.labels.embedding_dim))
        self.above = nn.Conv2d(channels, conv_filters, (3, 7), padding=(0, 3))
        self.left = nn.Conv2d(channels, conv_filters, (1, 3), bias=False)
        self.here = MaskedConv2d("A", channels, conv_filters, 1, slots=slots)
        self.blocks = nn.ModuleList(GatedBlock(conv_filters, slots, dropout) for _ in range(blocks))
        self.head = MaskedConv2d("B", conv_filters, slots * num_embeddings, 1, slots=slots)
        with torch.no_grad():  # the first guess is nearly uniform: log2(K) bits a code
            self.head.weight.mul_(0.1)

    @torch.no_grad()
    def start_from(self, codebook: Tensor) -> None:
        """Make each code's embedding its vector, every feature with mean 0 and variance 1. Codes of
        like looks are neighbours then; from names alone that would have to be found out.

        Args:
            codebook: float (1 or slots, K, embedding_dim).
        """
        spread = codebook.std(1, keepdim=True).clamp_min(1e-6)  # some features no code uses
        rows = (codebook - codebook.mean(1, keepdim=True)) / spread
        self.embedding.weight.copy_(rows.expand(self.slots, -1, -1).flatten(0, 1))

    def forward(
        self, codes: Tensor, labels: Tensor | None = None, orientations: Tensor | None = None
    ) -> Tensor:
        """Logits of every code, given all the codes before it.

        Args:
            codes: int64 (B, h, w, slots), values in 0..num_embeddings-1. The logits of a code do
                not depend on it, nor on later ones, so a grid that is only begun may hold any
                codes there.
            labels: int64 (B,) in 0..num_classes-1, or num_classes for "no label"; None is "no
                label" for all.
            orientations: int64 (B,), in the order of `vqlib.augment.moved`; None is 0, as
                photographed, for all.

        Returns:
            float (B, h, w, slots, num_embeddings).

        Raises:
            ValueError: codes of the wrong shape or dtype, or outside 0..num_embeddings-1 (see
                `quantizer.check_codes`).
        """
        return self.predict(self.embed(codes), labels, orientations)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w, slots) to float (B, slots * embedding_dim, h, w)."""
        if codes.ndim != 4 or codes.shape[-1] != self.slots or codes.dtype != torch.long:
            raise ValueError(
                f"codes must be int64 (B, h, w, {self.slots}), got {codes.dtype} "
                f"{tuple(codes.shape)}"
            )
        check_codes(codes, self.num_embeddings)
        offsets = self.num_embeddings * torch.arange(self.slots, device=codes.device)
        return self.embedding(codes + offsets).flatten(3).permute(0, 3, 1, 2)

    def conditions(
        self, n: int, labels: Tensor | None = None, orientations: Tensor | None = None
    ) -> Tensor:
        """What n grids' labels and orientations add in all blocks, float (n, blocks * 2C)."""
        if labels is None:
            labels = torch.full((n,), self.num_classes, device=self.labels.weight.device)
        return self.labels(labels) + self.orientations[0 if orientations is None else orientations]

    def predict(
        self, x: Tensor, labels: Tensor | None = None, orientations: Tensor | None = None
    ) -> Tensor:
        """Embedded codes to logits; the half of `forward` through which gradients can be taken."""
        conditions = self.conditions(len(x), labels, orientations)
        conditions = conditions[:, :, None, None].chunk(len(self.blocks), dim=1)
        v = self.above(rows_above(x, 3))
        x = self.left(columns_left(x, 3)) + self.here(x)
        for block, condition in zip(self.blocks, conditions, strict=True):
            v, x = block(v, x, condition)
        logits = self.head(x).unflatten(1, (self.slots, self.num_embeddings))
        return logits.permute(0, 3, 4, 1, 2)


def dependencies(outputs: Tensor, inputs: Tensor, slots: int) -> Tensor:
    """Which outputs depend on which inputs: the proof of causality, by gradient.

    Args:
        outputs: float (1, h, w, slots, K), computed from `inputs`.
        inputs: float (1, slots * D, h, w), requires grad.

    Returns:
        bool (h * w * slots, h * w * slots) on the CPU; row i, column j is True if the i-th output
        has a gradient with respect to the j-th input. A causal prior has nothing on the diagonal
        and nothing above it.
    """
    # A random direction in K: the plain sum of a softmax's logits might cancel.
    direction = torch.randn(outputs.shape[-1], device=outputs.device)
    flat = (outputs.float() @ direction).flatten()
    one_at_a_time = torch.eye(len(flat), device=outputs.device)
    (gradient,) = torch.autograd.grad(
        flat, inputs, one_at_a_time, is_grads_batched=True, retain_graph=True
    )
    seen = gradient[:, 0].unflatten(1, (slots, -1)).ne(0).any(2)  # (i, slots, h, w)
    return seen.permute(0, 2, 3, 1).flatten(1).cpu()
