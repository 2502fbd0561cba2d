"""Masked convolutions, and the autoregressive priors that are built from them.

A prior gives the joint probability of all codes of an image by the chain rule of probability:

    p(codes) = product over i of p(code_i | code_1 ... code_{i-1})

The order is the raster order of the positions (row by row, left to right), and within a position
the order of the slots, as PixelCNN orders the red, green and blue value of a pixel. A convolution
is *causal* with respect to this order if the weights that would read later codes are masked to
zero. `codes` provides the training data, `training` fits the prior, and `sampling` samples from it.

Papers: van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks" (2016),
arXiv:1601.06759, sections 3.4 (masks) and 3.5 (PixelCNN); van den Oord et al., "Conditional Image
Generation with PixelCNN Decoders" (2016), arXiv:1606.05328 (gated, two stacks).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import register_model
from .checks import check_tensor, check_whole
from .quantizer import check_codes


class MaskedConv2d(nn.Conv2d):
    """Causal convolution: its output at a position does not depend on later codes.

    The channels are divided into `slots` ordered groups of equal size. The output at a position, in
    group g, depends on:

    - all groups of the positions in the rows above and to the left in the same row;
    - at the position itself, the groups before g, and with mask "B" also group g;
    - no position to the right in the same row or in the rows below.

    The first layer reads the codes and needs mask "A", because a code must not be an input of its
    own prediction. Later layers read features that are already causal and use mask "B". With
    `slots=1` the mask is the report's, with `slots=3` it is PixelCNN's for R, G and B; `PixelCNN`
    below uses four slots by default.

    The mask is a buffer, so it moves to the module's device and is not trained. It is not saved
    either, because the constructor's arguments determine it.

    Raises:
        ValueError: mask_type is not "A" or "B", kernel_size is even, or the number of input or
            output channels is not divisible by `slots`.
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
                f"{in_channels} -> {out_channels} channels can't be divided into {slots} equal "
                "groups"
            )
        padding = kernel_size // 2 if padding is None else padding
        super().__init__(in_channels, out_channels, kernel_size, padding=padding)
        self.mask_type, self.slots = mask_type, slots

        mask = torch.zeros_like(self.weight)  # (out, in, row, column)
        center = kernel_size // 2
        mask[:, :, :center, :] = 1
        mask[:, :, center, :center] = 1
        out_slot = torch.arange(out_channels) * slots // out_channels
        in_slot = torch.arange(in_channels) * slots // in_channels
        is_earlier = torch.lt if mask_type == "A" else torch.le
        mask[:, :, center, center] = is_earlier(in_slot[None, :], out_slot[:, None]).float()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight, padding = self.weight * self.mask, list(self.padding)
        # Kernel weights that are farther from the center than the map is high or wide only ever
        # multiply padding. They are removed because PyTorch's bf16 gradient on a CPU is wrong for
        # them (infinite on maps of 2 x 2 and 2 x 8 positions).
        for axis, extent in enumerate(x.shape[-2:]):
            unused = self.kernel_size[axis] // 2 - extent + 1
            if unused > 0:
                weight = weight.narrow(2 + axis, unused, self.kernel_size[axis] - 2 * unused)
                padding[axis] -= unused
        return F.conv2d(x, weight, self.bias, padding=padding)

    def extra_repr(self) -> str:
        return f"{self.mask_type}, {super().extra_repr()}, slots={self.slots}"


class SlotLayerNorm(nn.Module):
    """Layer normalization over the channels of one slot at one position.

    It preserves causality, because it combines only values that the masks allow to be combined.
    BatchNorm in train() mode subtracts a mean over all positions, including later ones, and so
    passes information from later codes to earlier outputs. GroupNorm and InstanceNorm do the same
    in eval() mode, too.
    """

    def __init__(self, channels: int, slots: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.slots, self.eps = slots, eps
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)  # statistics in at least float32
        grouped = x.movedim(1, -1).unflatten(-1, (self.slots, -1)).to(dtype)
        normalized = F.layer_norm(grouped, grouped.shape[-1:], eps=self.eps)
        return normalized.flatten(-2).movedim(-1, 1).to(x.dtype) * self.weight + self.bias


class ResidualMaskedConv2d(nn.Module):
    """x + ReLU(norm(masked 3x3 convolution of x)), with mask "B".

    Args:
        norm: function from a number of channels to a normalization layer; the report uses
            nn.BatchNorm2d.
        dropout: dropout rate at the end of the residual branch.
    """

    def __init__(
        self, channels: int, norm: Any = nn.BatchNorm2d, slots: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.conv = MaskedConv2d("B", channels, channels, kernel_size=3, slots=slots)
        self.norm = norm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, conditional_bias: Tensor | float = 0.0) -> Tensor:
        """Features (B, C, h, w) to the same shape; `conditional_bias` (B, C, 1, 1) is added before
        the normalization."""
        return x + self.dropout(F.relu(self.norm(self.conv(x) + conditional_bias)))


@register_model
class PixelRCNN(nn.Module):
    """The report's prior, layer by layer: 256 input, 256 output and 120 hidden channels.

    Despite its name it has no recurrence. It is trained with MSE to predict quantized *vectors*, so
    its output approximates the conditional mean of the next vector and is not a distribution over
    codes. It is kept for comparison; use `PixelCNN` below for sampling.

    Args:
        no_channels: input channels.
        out_channels: output channels.
        conv_filters: hidden channels.
    """

    def __init__(
        self, no_channels: int = 256, out_channels: int = 256, conv_filters: int = 120
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        self.config: dict[str, Any] = config
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


def down_shift(x: Tensor, rows: int) -> Tensor:
    """Pad above and cut off the last row: (B, C, h, w) to (B, C, h + rows - 1, w).

    A convolution with `rows` kernel rows and no padding, applied to the result, reads at output row
    r the `rows` rows above row r of x.
    """
    return F.pad(x, (0, 0, rows, 0))[:, :, :-1]


def right_shift(x: Tensor, columns: int) -> Tensor:
    """`down_shift` for columns, (B, C, h, w) to (B, C, h, w + columns - 1): a kernel of `columns`
    columns reads the columns to the left of each position."""
    return F.pad(x, (columns, 0))[..., :-1]


def causal_row_mean(v: Tensor) -> Tensor:
    """Causal mean: for each row the mean over it and all rows above, (B, C, h, w) to (B, C, h, 1).

    Row r of the vertical stack depends on the codes above row r only, and so does this mean.
    """
    num_rows = torch.arange(1, v.shape[2] + 1, device=v.device, dtype=v.dtype)
    return (v.mean(3).cumsum(2) / num_rows).unsqueeze(3)


class GatedBlock(nn.Module):
    """One layer of the gated PixelCNN, with two stacks and residual connections.

    The *vertical* stack depends on all rows above the current one. The *horizontal* stack depends
    on the positions to the left in the current row and receives the vertical stack's output through
    a 1x1 convolution (`vertical_to_horizontal`). A single stack of masked convolutions has a *blind
    spot*: positions above and to the right that no number of layers brings into the receptive
    field. Two stacks have no blind spot, and need a mask over slots only, not over positions.

    Skin tone, illumination and grain are properties of the whole image. The vertical stack
    therefore also receives the causal mean of its features (see `causal_row_mean`), with weights
    that are initialized with zeros.

    Papers: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016),
    arXiv:1606.05328, section 2.2 and figure 2. The gate is a * sigmoid(b) (gated linear unit,
    Dauphin et al. 2017, arXiv:1612.08083, section 2) instead of their tanh(a) * sigmoid(b).
    """

    def __init__(self, channels: int, slots: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.slots = slots
        self.vertical = nn.Conv2d(channels, 2 * channels, (2, 3), padding=(0, 1))
        self.vertical_norm = SlotLayerNorm(2 * channels)
        self.causal_mean_weight = nn.Parameter(torch.zeros(2 * channels, channels, 1, 1))
        self.vertical_to_horizontal = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.horizontal = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.center = MaskedConv2d("B", channels, 2 * channels, 1, slots=slots)
        self.horizontal_norm = SlotLayerNorm(2 * channels, slots)
        self.horizontal_out = nn.Conv2d(channels, channels, 1, groups=slots, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, v_stack: Tensor, h_stack: Tensor, conditional_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Apply this layer to both stacks.

        Args:
            v_stack: float (B, C, h, w); row r depends on the rows of codes above r only.
            h_stack: float (B, C, h, w).
            conditional_bias: float (B, 2C, 1, 1), added before the normalization.

        Returns:
            New v_stack and h_stack, of the same shapes.
        """
        v_features = self.vertical(F.pad(v_stack, (0, 0, 1, 0))) + F.conv2d(
            causal_row_mean(v_stack), self.causal_mean_weight
        )
        v_out = F.glu(self.vertical_norm(v_features), dim=1)
        h_features = (
            self.vertical_to_horizontal(v_out)
            + self.horizontal(right_shift(h_stack, 1))
            + self.center(h_stack)
            + conditional_bias
        )
        h_features = self.horizontal_norm(h_features).unflatten(1, (self.slots, -1))
        h_out = self.horizontal_out(F.glu(h_features, dim=2).flatten(1, 2))
        return v_stack + self.dropout(v_out), h_stack + self.dropout(h_out)


def standardized_embeddings(codebook: Tensor, slots: int) -> Tensor:
    """Codebook vectors of all slots, each component standardized to mean 0 and variance 1 over the
    codes of a slot: float (1 or slots, K, D) -> (slots * K, D)."""
    std = codebook.std(1, keepdim=True).clamp_min(1e-6)  # some components are constant
    embeddings = (codebook - codebook.mean(1, keepdim=True)) / std
    return embeddings.expand(slots, -1, -1).flatten(0, 1)


@register_model
class PixelCNN(nn.Module):
    """Autoregressive prior over codes: the logits of each code, given all earlier codes.

    It differs from the report's prior in these points: an embedding of each code as input instead
    of the quantizer's vectors; four ordered slots per position; a categorical distribution over all
    codes as output; conditioning on the class; two stacks without a blind spot; and a normalization
    that preserves causality.

    Args:
        num_embeddings: K, number of codes in each slot.
        codes_per_position: number of slots; must divide conv_filters.
        conv_filters: C, number of hidden channels.
        num_classes: number of class labels. One further label, "no label", is learned by label
            dropout; its logits are the unconditional ones.
        embedding_dim: dimension of a code's embedding; must equal that of the codebook vectors if
            `initialize_embeddings` is called.
        blocks: number of gated blocks.
        dropout: dropout rate within the blocks.
        orientations: number of orientations in which the training grids are shown. The model is
            conditioned on the orientation as on the class. Otherwise it would generate lesions in
            random orientations, and with them the uneven illumination of the camera (Jun et al.,
            "Distribution Augmentation for Generative Modeling", ICML 2020).

    Attributes:
        trained_on_codebook: fingerprint of the codebook whose codes the prior was trained on, see
            `VQVAE.codebook_fingerprint`; None if unknown.
    """

    # Patterns of parameter names in files of earlier versions, for `load_model`.
    renamed_parameters: ClassVar[dict[str, str]] = {
        r"^labels\.": "label_embedding.",
        r"^orientations$": "orientation_embedding",
        r"^above\.": "vertical.",
        r"^left\.": "horizontal.",
        r"^here\.": "center.",
        r"^(blocks\.\d+\.)above\.": r"\1vertical_to_horizontal.",
        r"^(blocks\.\d+\.)left\.": r"\1horizontal.",
        r"^(blocks\.\d+\.)here\.": r"\1center.",
        r"^(blocks\.\d+\.)so_far$": r"\1causal_mean_weight",
        r"^(blocks\.\d+\.)norm\.": r"\1horizontal_norm.",
        r"^(blocks\.\d+\.)out\.": r"\1horizontal_out.",
    }

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
        # The arguments are saved with the weights, so that `load_model` can build the model.
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_whole(0, num_classes=num_classes)
        sizes = ("num_embeddings", "codes_per_position", "conv_filters", "embedding_dim", "blocks")
        check_whole(orientations=orientations, **{name: config[name] for name in sizes})
        super().__init__()
        self.config: dict[str, Any] = config
        slots = codes_per_position
        self.num_embeddings, self.slots, self.num_classes = num_embeddings, slots, num_classes
        self.trained_on_codebook: str | None = None
        channels = slots * embedding_dim
        self.embedding = nn.Embedding(slots * num_embeddings, embedding_dim)
        self.label_embedding = nn.Embedding(num_classes + 1, blocks * 2 * conv_filters)
        nn.init.zeros_(self.label_embedding.weight)
        self.orientation_embedding = nn.Parameter(
            torch.zeros(orientations, self.label_embedding.embedding_dim)
        )
        self.vertical = nn.Conv2d(channels, conv_filters, (3, 7), padding=(0, 3))
        self.horizontal = nn.Conv2d(channels, conv_filters, (1, 3), bias=False)
        self.center = MaskedConv2d("A", channels, conv_filters, 1, slots=slots)
        self.blocks = nn.ModuleList(GatedBlock(conv_filters, slots, dropout) for _ in range(blocks))
        self.head = MaskedConv2d("B", conv_filters, slots * num_embeddings, 1, slots=slots)
        with torch.no_grad():  # nearly uniform at first: about log2(K) bits per code
            self.head.weight.mul_(0.1)

    @torch.no_grad()
    def initialize_embeddings(self, codebook: Tensor) -> None:
        """Initialize the embedding of each code with its codebook vector.

        Every component is standardized to mean 0 and variance 1 over the codes of a slot. Codes
        that decode to similar content then have similar embeddings from the start; with random
        embeddings the prior would have to learn these similarities.

        Args:
            codebook: float (1 or slots, K, embedding_dim).
        """
        self.embedding.weight.copy_(standardized_embeddings(codebook, self.slots))

    def forward(
        self, codes: Tensor, labels: Tensor | None = None, orientations: Tensor | None = None
    ) -> Tensor:
        """Logits of each code, given all codes before it.

        Args:
            codes: int64 (B, h, w, slots), values in 0..num_embeddings-1. The logits of a code
                depend neither on this code nor on later ones. In a grid that is only partly filled,
                the rest may hold any valid codes.
            labels: int64 (B,), values in 0..num_classes-1, or num_classes for "no label"; None
                means "no label" for the whole batch.
            orientations: int64 (B,), indices of `vqlib.data.dihedral_transform`; None means 0 (as
                photographed) for the whole batch.

        Returns:
            float (B, h, w, slots, num_embeddings).

        Raises:
            ValueError: codes of the wrong shape or dtype, or outside 0..num_embeddings-1, see
                `quantizer.check_codes`.
        """
        return self.forward_embedded(self.embed(codes), labels, orientations)

    def embed(self, codes: Tensor) -> Tensor:
        """Embeddings, float (B, slots * embedding_dim, h, w), of codes, int64 (B, h, w, slots)."""
        check_codes(codes, self.num_embeddings, self.slots)
        offsets = self.num_embeddings * torch.arange(self.slots, device=codes.device)
        return self.embedding(codes + offsets).flatten(3).permute(0, 3, 1, 2)

    def conditional_bias(
        self, n: int, labels: Tensor | None = None, orientations: Tensor | None = None
    ) -> Tensor:
        """Class- and orientation-dependent bias of n grids, for all blocks: float
        (n, blocks * 2C)."""
        for name, values in (("labels", labels), ("orientations", orientations)):
            if values is not None:
                check_tensor(name, values, torch.long, (n,))
        if labels is None:
            labels = torch.full((n,), self.num_classes, device=self.label_embedding.weight.device)
        return (
            self.label_embedding(labels)
            + self.orientation_embedding[0 if orientations is None else orientations]
        )

    def forward_embedded(
        self, x: Tensor, labels: Tensor | None = None, orientations: Tensor | None = None
    ) -> Tensor:
        """Logits from embedded codes, float (B, slots * embedding_dim, h, w).

        This is `forward` without the embedding, which is not differentiable with respect to codes;
        `dependency_matrix` needs gradients with respect to the input.
        """
        biases = self.conditional_bias(len(x), labels, orientations)
        biases = biases[:, :, None, None].chunk(len(self.blocks), dim=1)
        v_stack = self.vertical(down_shift(x, 3))
        h_stack = self.horizontal(right_shift(x, 3)) + self.center(x)
        for block, bias in zip(self.blocks, biases, strict=True):
            v_stack, h_stack = block(v_stack, h_stack, bias)
        logits = self.head(h_stack).unflatten(1, (self.slots, self.num_embeddings))
        return logits.permute(0, 3, 4, 1, 2)


def dependency_matrix(outputs: Tensor, inputs: Tensor, slots: int) -> Tensor:
    """Which outputs depend on which inputs: a test of causality by gradients.

    Args:
        outputs: float (1, h, w, slots, K), computed from `inputs`.
        inputs: float (1, slots * D, h, w), requires grad.

    Returns:
        bool (h * w * slots, h * w * slots) on the CPU. Row i, column j is True if output i has a
        nonzero gradient with respect to any of the D values of input j. A causal prior has no True
        entry on or above the diagonal. The test holds for the given weights and inputs only: a
        gradient can vanish by chance.
    """
    # A random linear combination of the K logits: gradients of their plain sum might cancel.
    projection = torch.randn(outputs.shape[-1], device=outputs.device)
    projected = (outputs.float() @ projection).flatten()
    one_hot = torch.eye(len(projected), device=outputs.device)
    (gradient,) = torch.autograd.grad(
        projected, inputs, one_hot, is_grads_batched=True, retain_graph=True
    )
    depends = gradient[:, 0].unflatten(1, (slots, -1)).ne(0).any(2)  # (i, slots, h, w)
    return depends.permute(0, 2, 3, 1).flatten(1).cpu()
