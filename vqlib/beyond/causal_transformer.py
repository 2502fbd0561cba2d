"""A causal transformer as prior: each code is predicted from all codes before it.

The factorization of the probability is that of `PixelCNN`, so its code lengths are exact and the
two can be compared by bits per code. A convolution reaches far codes only through many layers;
attention reaches all of them in each layer. `sample` keeps the keys and values of earlier tokens (a
KV cache), so that each new code needs one token's computation instead of a full pass.

Papers: Radford et al. (2019), GPT-2; Esser et al. (2020), arXiv:2012.09841, who train such a prior
on the codes of a VQGAN.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import register_model
from ..sampling import (
    check_guidance,
    check_labels,
    filter_logits,
    guided_logits,
    initial_grid,
    sample_categorical,
)
from ..vqvae import eval_mode
from .transformer import CodeTransformer, Rotation


@register_model
class CausalTransformer(CodeTransformer):
    """Autoregressive prior with the interface of `PixelCNN`; see `CodeTransformer` for arguments.

    The input of token i is code i - 1, and its output is the logits of code i.
    `metrics.code_bits` and `training.train_prior` accept it in place of a `PixelCNN`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        width, embedding_dim = self.norm.normalized_shape[0], self.embedding.embedding_dim
        self.start = nn.Parameter(0.02 * torch.randn(width))  # input of the first token
        self.slot_embedding = nn.Parameter(0.02 * torch.randn(self.slots, width))
        self.input = nn.Linear(embedding_dim, width, bias=False)
        self.head = nn.Linear(width, embedding_dim, bias=False)
        self.initialize_linear_layers()

    def forward(
        self, codes: Tensor, labels: Tensor | None = None, orientations: Tensor | None = None
    ) -> Tensor:
        """Logits of each code, given all codes before it.

        Args:
            codes: int64 (B, h, w, slots). The logits of a code depend neither on this code nor on
                later ones.
            labels, orientations: int64 (B,) or None, see `CodeTransformer.context`.

        Returns:
            float (B, h, w, slots, num_embeddings).
        """
        embedded = self.input(self.embed(codes)).flatten(1, 2)
        start = self.start.to(embedded.dtype).expand(len(codes), 1, -1)
        x = torch.cat([start, embedded[:, :-1]], dim=1)
        x = x + self.token_context(len(codes), labels, orientations)
        query_rotation, key_rotation = self.rotations()
        for block in self.blocks:
            x = block(x, query_rotation, key_rotation, causal=True)
        return self.logits(self.head(self.norm(x)).unflatten(1, (-1, self.slots)))

    def token_context(
        self, n: int, labels: Tensor | None = None, orientations: Tensor | None = None
    ) -> Tensor:
        """Embeddings of position, slot, label and orientation of each token, float (n, T, C)."""
        context = self.context(n, labels, orientations)
        return (context[:, :, None] + self.slot_embedding).flatten(1, 2)

    def rotations(self) -> tuple[Rotation, Rotation]:
        """Rotations of queries and keys. A query has the coordinates of the code to be predicted,
        a key those of the code that it was computed from, the one before."""
        cos, sin = (x.repeat_interleave(self.slots, dim=0) for x in (self.cos, self.sin))
        return (cos, sin), (torch.cat([cos[:1], cos[:-1]]), torch.cat([sin[:1], sin[:-1]]))

    def sample(
        self,
        n: int,
        labels: Tensor | int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        given: Tensor | None = None,
        keep: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        guidance: float = 0.0,
    ) -> Tensor:
        """Sample n grids of codes with a KV cache.

        `vqlib.sample(prior, ..., method="naive")` returns the same codes for the same generator (up
        to ties within rounding errors).

        Args:
            n, labels, temperature, top_k, top_p, given, keep, generator, guidance: see
                `vqlib.sample`.

        Returns:
            int64 (n, h, w, slots).

        Raises:
            ValueError: see `vqlib.sample`.
        """
        check_guidance(guidance, labels)
        with eval_mode(self) as device:
            codes, keep_mask = initial_grid(self, n, given, keep, self.grid, device)
            is_kept = keep_mask.repeat_interleave(self.slots).tolist()
            labels = check_labels(self, n, labels, device)
            source = device if generator is None else generator.device
            count = len(is_kept) - sum(is_kept)
            like = {"dtype": self.head.weight.dtype, "device": source, "generator": generator}
            uniforms = iter(torch.rand(count, n, **like).to(device))
            if guidance:  # each grid with its class and with "no label"
                labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])
            rows = 2 * n if guidance else n
            context = self.token_context(rows, labels)
            (query_cos, query_sin), (key_cos, key_sin) = self.rotations()
            shape = (2, rows, self.config["heads"], len(query_cos), 2 * query_cos.shape[1])
            cache = [context.new_zeros(shape) for _ in self.blocks]
            inputs = self.input(self.embedding.weight).unflatten(0, self.head_bias.shape)
            views = codes.view(n, -1).unbind(1)  # writing to a view changes `codes`
            previous = self.start.expand(rows, -1)
            for i, code in enumerate(views):
                x = (previous + context[:, i])[:, None]
                now = slice(i, i + 1)
                for block, (keys, values) in zip(self.blocks, cache, strict=True):
                    query, keys[:, :, now], values[:, :, now] = block.attention_inputs(
                        x, (query_cos[now], query_sin[now]), (key_cos[now], key_sin[now])
                    )
                    attended = F.scaled_dot_product_attention(
                        query, keys[:, :, : i + 1], values[:, :, : i + 1]
                    )
                    x = block.finish(x, attended)
                slot = i % self.slots
                if not is_kept[i]:
                    weight = self.embedding.weight.chunk(self.slots)[slot]
                    logits = F.linear(self.head(self.norm(x[:, 0])), weight, self.head_bias[slot])
                    if guidance:
                        logits = guided_logits(*logits.chunk(2), guidance)
                    p = filter_logits(logits, temperature, top_k, top_p).softmax(-1)
                    code.copy_(sample_categorical(p, next(uniforms)))
                previous = inputs[slot][code].repeat(rows // n, 1)
        return codes.clone()
