"""A masked transformer as prior: some codes are hidden, and all of them are predicted at once.

The network is trained like BERT: a random set of codes is masked, and each masked code is predicted
from all visible codes, before and after it. Sampling starts with all codes masked. In each
pass, all masked codes are sampled in parallel, the most confident ones are kept, and the others are
masked again; 8 to 16 passes replace the 256 steps of an autoregressive prior. Because no order is
fixed, any region can be completed from its surroundings. The disadvantage is that codes that are
sampled in the same pass are independent of each other. A token is a position with all of its slots,
each of which may be masked, so that there are 64 tokens instead of 256.

Papers: MaskGIT: Chang et al. (2022), arXiv:2202.04200; the bound: Uria et al. (2014),
arXiv:1310.1757 (all orders at once), Austin et al. (2021), arXiv:2107.03006, appendix A.3 (masking
as diffusion), Hoogeboom et al. (2022), arXiv:2110.02037.
"""

from __future__ import annotations

import math
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
from .transformer import CodeTransformer


@register_model
class MaskedTransformer(CodeTransformer):
    """Prior that predicts masked codes from visible ones; see `CodeTransformer` for arguments."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        width, embedding_dim = self.norm.normalized_shape[0], self.embedding.embedding_dim
        self.mask_embedding = nn.Parameter(0.02 * torch.randn(self.slots, embedding_dim))
        self.input = nn.Linear(self.slots * embedding_dim, width, bias=False)
        self.head = nn.Linear(width, self.slots * embedding_dim, bias=False)
        self.initialize_linear_layers()

    def forward(
        self,
        codes: Tensor,
        masked: Tensor,
        labels: Tensor | None = None,
        orientations: Tensor | None = None,
    ) -> Tensor:
        """Logits of each code, given all visible codes.

        Args:
            codes: int64 (B, h, w, slots). Where `masked` is True, any valid codes.
            masked: bool (B, h, w, slots), True where a code is hidden from the network.
            labels, orientations: int64 (B,) or None, see `CodeTransformer.context`.

        Returns:
            float (B, h, w, slots, num_embeddings). Only those of masked codes are trained.
        """
        is_masked = masked.flatten(1, 2)[..., None]
        embedded = torch.where(is_masked, self.mask_embedding, self.embed(codes))
        x = self.input(embedded.flatten(2)) + self.context(len(codes), labels, orientations)
        rotation = self.cos, self.sin
        for block in self.blocks:
            x = block(x, rotation, rotation, causal=False)
        return self.logits(self.head(self.norm(x)).unflatten(2, (self.slots, -1)))

    def masked_nats(
        self,
        codes: Tensor,
        masked: Tensor,
        labels: Tensor | None = None,
        orientations: Tensor | None = None,
    ) -> Tensor:
        """Negative log-likelihood of each masked code, given the visible ones; 0 at visible codes.

        Returns:
            float (B, h, w, slots), nats.
        """
        logits = self(codes, masked, labels, orientations).float()
        nats = F.cross_entropy(logits.flatten(0, 3), codes.flatten(), reduction="none")
        return nats.view(codes.shape) * masked

    def training_loss(
        self, codes: Tensor, labels: Tensor | None, orientations: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean negative log-likelihood of the masked codes of a batch, in nats, with random masks.

        The number m of masked codes of a grid is uniform in 1..T, as in `bits_bound`, but here a
        grid with more masked codes has more weight. (MaskGIT takes m from its cosine schedule at a
        random time, so that large m are more frequent.)

        Args:
            codes: int64 (B, h, w, slots).
            labels, orientations: int64 (B,) or None, see `CodeTransformer.context`.

        Returns:
            The loss and what `train_prior` logs.
        """
        # One value in each of B equal parts of [0, 1): the mean of a batch varies less.
        u = (torch.arange(len(codes)) + torch.rand(len(codes))) / len(codes)
        masked = random_masks(codes.shape, u).to(codes.device)
        loss = self.masked_nats(codes, masked, labels, orientations).sum() / masked.sum()
        return loss, {"bits_per_masked_code": loss / math.log(2)}

    def bits_bound(
        self,
        codes: Tensor,
        labels: Tensor | None = None,
        repeats: int = 4,
        seed: int = 0,
        batch_size: int = 64,
    ) -> Tensor:
        """Upper bound on the bits per code of each grid, estimated from random masks.

        In any order of the T codes, the chain rule gives an exact code length, and by Jensen's
        inequality its mean over all orders is at least the code length under the mixture of all
        orders. In a random order, the code that is coded when m codes are left is a random one of m
        random masked codes. The mean code length per code is therefore

            mean over m = 1..T of the expected mean NLL over m masked codes.

        Args:
            codes: int64 (N, h, w, slots).
            labels: int64 (N,), or None for the unconditional distribution.
            repeats: masks for each grid. Their m lie in `repeats` equal parts of 1..T, which lowers
                the variance of the estimate; it is unbiased for any number.
            seed: of the masks.
            batch_size: grids per batch.

        Returns:
            float (N,), bits per code.
        """
        bits, generator = [], torch.Generator().manual_seed(seed)
        with eval_mode(self) as device:
            for start in range(0, len(codes), batch_size):
                batch = codes[start : start + batch_size].to(device)
                batch_labels = None if labels is None else labels[start : start + batch_size]
                nats = torch.zeros(len(batch), device=device)
                for part in range(repeats):
                    u = (part + torch.rand(len(batch), generator=generator)) / repeats
                    masked = random_masks(batch.shape, u, generator).to(device)
                    loss = self.masked_nats(
                        batch, masked, None if batch_labels is None else batch_labels.to(device)
                    )
                    nats += loss.flatten(1).sum(1) / masked.flatten(1).sum(1)
                bits.append((nats / (repeats * math.log(2))).cpu())
        return torch.cat(bits)

    def sample(
        self,
        n: int,
        labels: Tensor | int | None = None,
        passes: int = 12,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        given: Tensor | None = None,
        keep: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        choice_temperature: float = 4.5,
        guidance: float = 0.0,
    ) -> Tensor:
        """Sample n grids of codes, or complete partly given ones, in a few parallel passes.

        After pass s of S, a fraction cos(pi/2 * s/S) of the codes is still masked (the cosine
        schedule of Chang et al. 2022, section 3.3): only few codes are kept at first, when little
        is known.

        Args:
            n, labels, temperature, top_k, top_p, generator, guidance: see `vqlib.sample`.
            passes: S, evaluations of the network.
            given: int64 (n, h, w, slots), codes that are partly kept; needs `keep`.
            keep: bool (h, w), True at positions where the codes of `given` stay. Sampled codes
                depend on all of them, wherever they are.
            choice_temperature: factor of the Gumbel noise that is added to the confidence, the log
                probability of a sampled code. It decreases linearly to 0 in the last pass. With 0,
                the most probable codes are always kept, and samples lack diversity; with a very
                large value, the order is random.

        Returns:
            int64 (n, h, w, slots).

        Raises:
            ValueError: see `vqlib.sample`, or `passes` is below 1.
        """
        if passes < 1:
            raise ValueError(f"passes must be at least 1, got {passes}")
        check_guidance(guidance, labels)
        with eval_mode(self) as device:
            codes, keep_mask = initial_grid(self, n, given, keep, self.grid, device)
            labels = check_labels(self, n, labels, device)
            masked = ~keep_mask.to(device)[None, :, :, None].expand(codes.shape)
            to_sample = int(masked[0].sum())
            source = device if generator is None else generator.device
            for done in (step / passes for step in range(1, passes + 1)):
                uniforms, choice_uniforms = torch.rand(
                    2, *codes.shape, device=source, generator=generator
                ).to(device)
                logits = self(codes, masked, labels)
                if guidance:
                    logits = guided_logits(logits, self(codes, masked), guidance)
                p = filter_logits(logits, temperature, top_k, top_p).softmax(-1)
                codes = torch.where(masked, sample_categorical(p, uniforms), codes)
                gumbel = -(-choice_uniforms.clamp_min(1e-20).log()).log()
                confidence = p.gather(-1, codes[..., None])[..., 0].log()
                confidence = confidence + choice_temperature * (1 - done) * gumbel
                # Codes that are given or were kept in an earlier pass stay.
                confidence = confidence.masked_fill(~masked, torch.inf)
                remaining = math.floor(to_sample * math.cos(math.pi / 2 * done))
                still_masked = confidence.flatten(1).topk(remaining, largest=False).indices
                masked = torch.zeros_like(masked).flatten(1).scatter_(1, still_masked, True)
                masked = masked.view(codes.shape)
        return codes.clone()


def random_masks(
    shape: tuple[int, ...], u: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """A random mask for each grid: m of its T codes are masked, m = 1 + floor(u * T).

    Args:
        shape: of the codes, (B, h, w, slots).
        u: float (B,), in [0, 1).

    Returns:
        bool (B, h, w, slots).
    """
    scores = torch.rand(shape, generator=generator).flatten(1)
    rank = scores.argsort(1).argsort(1)  # a random order of the codes
    number = 1 + (u[:, None] * rank.shape[1]).floor()
    return (rank < number).view(shape)
