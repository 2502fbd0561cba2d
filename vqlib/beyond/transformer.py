"""The transformer that the causal and the masked prior share: embeddings, blocks and logits.

`causal_transformer` has one token for each code and `masked_transformer` one for each position of
the grid. These modules define what a token may depend on, the loss, and how codes are sampled.

Papers: Vaswani et al. (2017), arXiv:1706.03762; GPT-2: Radford et al. (2019), as in Karpathy's
nanoGPT; rotary position embedding: Su et al. (2021), arXiv:2104.09864; output layer that reuses the
embeddings: Press and Wolf (2017), arXiv:1608.05859.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_tensor
from ..pixelcnn import standardized_embeddings
from ..quantizer import check_codes

Rotation = tuple[Tensor, Tensor]  # cosines and sines, (tokens, head_dim / 2) each


class TransformerBlock(nn.Module):
    """Self-attention, then a two-layer perceptron, each added to its input; (B, T, C) to the same.

    `attention_inputs` and `finish` are separate, because a cache of keys and values replaces what
    `forward` does between them.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(
        self, x: Tensor, query_rotation: Rotation, key_rotation: Rotation, causal: bool
    ) -> Tensor:
        """Rotations as returned by `_axial_rotation`; `causal`: a token depends on itself and on
        earlier tokens only."""
        inputs = self.attention_inputs(x, query_rotation, key_rotation)
        # No dropout of attention weights: it would rule out PyTorch's fused implementation.
        return self.finish(x, F.scaled_dot_product_attention(*inputs, is_causal=causal))

    def attention_inputs(
        self, x: Tensor, query_rotation: Rotation, key_rotation: Rotation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, heads, T, head_dim) each."""
        qkv = self.query_key_value(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return rotate(query, query_rotation), rotate(key, key_rotation), value

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the block, given the result of attention, (B, heads, T, head_dim)."""
        out = self.attention_out(attended.transpose(1, 2).flatten(2))
        x = x + F.dropout(out, self.dropout, self.training)
        out = self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))
        return x + F.dropout(out, self.dropout, self.training)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate pairs of features, (B, heads, T, head_dim), by angles that depend on the token. The
    product of a query and a key then depends on the difference of their angles."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class CodeTransformer(nn.Module):
    """Embeddings and blocks for grids of codes; subclasses add the layers before and after them.

    Args:
        num_embeddings: K, number of codes in each slot.
        codes_per_position: number of slots.
        width: C, features of a token, a multiple of 4 * heads.
        num_classes: number of class labels. One further label, "no label", is learned by label
            dropout; its logits are the unconditional ones.
        embedding_dim: D, dimension of a code's embedding, by which it is read and predicted; must
            equal that of the codebook vectors if `initialize_embeddings` is called.
        blocks: number of transformer blocks.
        heads: attention heads in each block.
        dropout: dropout rate.
        orientations: see `PixelCNN`.
        grid: (h, w), rows and columns of positions, the same for all grids of codes.

    Attributes:
        trained_on_codebook: see `PixelCNN`.

    Raises:
        ValueError: `width` is not a multiple of 4 * heads.
    """

    def __init__(
        self,
        num_embeddings: int = 512,
        codes_per_position: int = 4,
        width: int = 192,
        num_classes: int = 7,
        *,
        embedding_dim: int = 64,
        blocks: int = 5,
        heads: int = 3,
        dropout: float = 0.1,
        orientations: int = 1,
        grid: tuple[int, int] = (8, 8),
    ) -> None:
        # The arguments are saved with the weights, so that `load_model` can build the model.
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if width % (4 * heads):  # pairs of features, half of them for rows, half for columns
            raise ValueError(f"width {width} is not a multiple of {4 * heads}, 4 * heads")
        super().__init__()
        slots = codes_per_position
        self.num_embeddings, self.slots, self.num_classes = num_embeddings, slots, num_classes
        self.grid = (int(grid[0]), int(grid[1]))
        self.config: dict[str, Any] = config | {"grid": list(self.grid)}
        self.trained_on_codebook: str | None = None
        self.embedding = nn.Embedding(slots * num_embeddings, embedding_dim)
        positions = self.grid[0] * self.grid[1]
        self.position_embedding = nn.Parameter(0.02 * torch.randn(positions, width))
        self.label_embedding = nn.Parameter(torch.zeros(num_classes + 1, width))
        self.orientation_embedding = nn.Parameter(torch.zeros(orientations, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head_bias = nn.Parameter(torch.zeros(slots, num_embeddings))
        cos, sin = _axial_rotation(self.grid, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def initialize_linear_layers(self) -> None:
        """GPT-2's initialization."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        for block in self.blocks:
            for layer in (block.attention_out, block.mlp_out):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * len(self.blocks)))

    @torch.no_grad()
    def initialize_embeddings(self, codebook: Tensor) -> None:
        """Initialize the embedding of each code with its codebook vector, standardized over the
        codes of a slot, as in `PixelCNN.initialize_embeddings`.

        Args:
            codebook: float (1 or slots, K, D).
        """
        self.embedding.weight.copy_(standardized_embeddings(codebook, self.slots))

    def embed(self, codes: Tensor) -> Tensor:
        """Embeddings, float (B, h * w, slots, D), of codes, int64 (B, h, w, slots).

        Raises:
            ValueError: codes of the wrong shape or dtype, or outside 0..num_embeddings-1.
        """
        check_tensor("codes", codes, torch.long, (None, *self.grid, self.slots))
        check_codes(codes, self.num_embeddings, self.slots)
        offsets = self.num_embeddings * torch.arange(self.slots, device=codes.device)
        return self.embedding(codes + offsets).flatten(1, 2)

    def context(
        self, n: int, labels: Tensor | None = None, orientations: Tensor | None = None
    ) -> Tensor:
        """Sum of the embeddings of position, label and orientation, float (n, h * w, C).

        Args:
            n: number of grids.
            labels: int64 (n,), in 0..num_classes-1, or num_classes for "no label"; None means "no
                label" for all.
            orientations: int64 (n,); None means 0 (as photographed) for all.
        """
        label = self.label_embedding[self.num_classes if labels is None else labels]
        orientation = self.orientation_embedding[0 if orientations is None else orientations]
        return self.position_embedding + (label + orientation).expand(n, -1)[:, None]

    def logits(self, predicted: Tensor) -> Tensor:
        """Logits, float (B, h, w, slots, K), from predicted embeddings, (B, h * w, slots, D): the
        products with the embeddings of all codes of the slot, plus a bias."""
        embeddings = self.embedding.weight.unflatten(0, self.head_bias.shape)
        logits = torch.einsum("bpsd,skd->bpsk", predicted, embeddings) + self.head_bias
        return logits.unflatten(1, self.grid)


def _axial_rotation(grid: tuple[int, int], head_dim: int) -> Rotation:
    """Angles of each position: half of the pairs of features are rotated by its row, half by its
    column. The highest frequency is a quarter turn per position, the lowest a tenth of it."""
    frequencies = torch.logspace(0, -1, head_dim // 4) * (math.pi / 2)
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    coordinates = torch.stack([rows, columns], dim=-1).flatten(0, 1)
    angles = (coordinates[:, :, None] * frequencies).flatten(1)
    return angles.cos(), angles.sin()
