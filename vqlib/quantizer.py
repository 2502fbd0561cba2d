"""Chapter 2: vectors become codes.

A vector quantizer holds a *codebook*: K vectors of D numbers. It replaces every vector that the
encoder produces by the nearest row of the codebook, and the row's number is the *code*. Three
questions decide whether that works, and this chapter answers them in this order:

1. How is the nearest row found without filling the memory?        `nearest_codes`
2. How many codes are really in use?                               `count_codes`, `perplexity`
3. How does anything learn, when "nearest" has no gradient?        `VectorQuantizer`

Source: van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning" (2017),
arXiv:1711.00937; equation numbers below are that paper's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import fingerprint


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor, max_scores: int = 2**18) -> Tensor:
    """Number of the nearest codebook row for every vector (eq. 1).

    ||x - e||^2 = ||x||^2 - 2 (x.e - ||e||^2 / 2), and ||x||^2 is the same for every row e: the
    nearest row is the one with the largest *score* x.e - ||e||^2 / 2. That is one matrix product.
    It runs over a chunk of vectors at a time, so the N x K scores are never held at once: the
    memory needed does not grow with N or K, and a chunk's scores stay in the processor's cache.

    Computed in float32 even under autocast: in half precision the scores overflow, and codebook
    vectors that are near to each other cannot be told apart.

    Args:
        vectors: float (S, N, D), N vectors for each of S codebooks.
        codebook: float (S, K, D).
        max_scores: how many scores may exist at one time (2**18 float32 are 1 MB).

    Returns:
        int64 (S, N), values in 0..K-1. The lowest number wins a tie.
    """
    sets, count, _ = vectors.shape
    rows = codebook.shape[1]
    half_norms = codebook.square().sum(-1).div(2).unsqueeze(1)  # (S, 1, K)
    transposed = codebook.transpose(1, 2)
    chunk = max(1, max_scores // (sets * rows))
    codes = torch.empty(sets, count, dtype=torch.long, device=vectors.device)
    with torch.autocast(vectors.device.type, enabled=False):
        for start in range(0, count, chunk):
            part = vectors[:, start : start + chunk]
            scores = torch.baddbmm(half_norms, part, transposed, beta=-1)
            codes[:, start : start + chunk] = scores.argmax(-1)
    return codes


def count_codes(codes: Tensor, num_embeddings: int) -> Tensor:
    """How often each code occurs in each slot.

    Args:
        codes: int64 (..., slots), values in 0..num_embeddings-1.

    Returns:
        int64 (slots, num_embeddings). Counts of several batches may be added.
    """
    slots = codes.shape[-1]
    numbered = codes.reshape(-1, slots) + num_embeddings * torch.arange(slots, device=codes.device)
    counts = torch.bincount(numbered.flatten(), minlength=slots * num_embeddings)
    return counts.view(slots, num_embeddings)


def perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) of each row of counts: the number of equally likely codes that would be as hard
    to guess. 1 means collapse to a single code, K means that all are used alike.

    A batch of n codes cannot show a perplexity above n: judge a codebook on a whole split.

    Args:
        counts: int64 or float (..., K), not negative.

    Returns:
        float32 (...), in 1..K (1 for an empty row).
    """
    p = counts.float() / counts.sum(-1, keepdim=True).clamp_min(1)
    return torch.special.entr(p).sum(-1).exp()


@torch.no_grad()
def k_means(vectors: Tensor, rows: int, steps: int = 10) -> Tensor:
    """A codebook for vectors that stand still: Lloyd's algorithm from randomly drawn vectors.

    Every row moves to the mean of the vectors that are nearest to it; a row that nobody chooses
    moves to a random vector. A quantizer in training does the same with running means, on vectors
    that move.

    Args:
        vectors: float (S, N, D).

    Returns:
        float (S, rows, D).

    Raises:
        ValueError: no vectors, or some that hold NaN or infinity.
    """
    if not vectors.numel():
        raise ValueError("k-means needs at least one vector for each codebook, got none")
    check_finite(vectors, "the vectors for k-means")

    def drawn() -> Tensor:
        return vectors.gather(1, _picks(vectors, rows))

    codebook = drawn()
    for _ in range(steps):
        codes = nearest_codes(vectors, codebook)
        counts = count_codes(codes.T, rows)[..., None]
        places = codes[..., None].expand_as(vectors)
        sums = torch.zeros_like(codebook).scatter_add_(1, places, vectors)
        codebook = torch.where(counts > 0, sums / counts.clamp_min(1), drawn())
    return codebook


def _picks(vectors: Tensor, rows: int) -> Tensor:
    """Which vectors (S, N, D) to draw at random: int64 (S, rows, D), to `gather` along N. Each
    once, or as often as others if there are fewer than rows."""
    sets, count, width = vectors.shape
    shuffled = torch.rand(sets, count).argsort(1)  # on the CPU: the same draw on every device
    picks = shuffled[:, torch.arange(rows) % count].to(vectors.device)
    return picks[..., None].expand(-1, -1, width)


def check_finite(values: Tensor, name: str) -> None:
    """Refuse NaN and infinity: the nearest code to such a vector is a code like any other.

    On a GPU the answer has to be waited for, so this has no place in a training step.

    Raises:
        ValueError: a value is not finite; names `name`.
    """
    if not values.isfinite().all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity: look for it in the input, and in the "
            "weights that were loaded"
        )


def check_codes(codes: Tensor, num_embeddings: int) -> None:
    """Refuse codes outside 0..num_embeddings-1. In a table that holds the embeddings of all slots,
    one behind the other, they would stand for an embedding of another slot.

    Raises:
        ValueError: there is such a code. On a GPU it stops the device instead (a device-side
            assert): to read the answer would make each training step wait.
    """
    legal = ((codes >= 0) & (codes < num_embeddings)).all()
    if codes.is_cuda:
        torch._assert_async(legal, f"codes must lie in 0..{num_embeddings - 1}")
    elif not legal:
        raise ValueError(
            f"codes must lie in 0..{num_embeddings - 1}, got {int(codes.min())}..{int(codes.max())}"
        )


def codebook_fingerprint(codebook: Tensor) -> str:
    """16 hex digits by which to know a codebook, the same for float32 and rounded to float16.

    Args:
        codebook: float (S, K, D).
    """
    return fingerprint(codebook.detach().half())


class Quantized(NamedTuple):
    """What the quantizer returns."""

    vectors: Tensor  # (B, C, H, W): codebook rows forwards, the identity backwards
    codes: Tensor  # int64 (B, H, W, slots)
    loss: Tensor  # scalar: commitment (and codebook) loss
    perplexity: Tensor  # scalar, of this batch: geometric mean over the slots


class VectorQuantizer(nn.Module):
    """Nearest-neighbour quantizer with a straight-through gradient.

    A position's C = slots x embedding_dim channels are cut into `slots` vectors: with the report's
    256 channels and 64-dimensional codes, four codes a position.

    Three things learn:
    - the *decoder* as usual, from the reconstruction loss;
    - the *encoder* from the same loss: the gradient at the quantizer's output is copied to its
      input as if nothing had happened between (straight-through), plus the commitment loss
      `commitment_cost * ||z - sg[e]||^2`, which keeps it near the rows it has chosen (eq. 3);
    - the *codebook* in one of two ways. With `ema_decay` each row is the running mean of the
      vectors that chose it (appendix A.1). With `ema_decay=None` it is an ordinary parameter that
      the codebook loss `||sg[z] - e||^2` pulls towards them.

    Two cures against codes that nobody chooses:
    - `data_init`: the first training batch supplies the rows, so all start where the data is;
    - `restart_after`: a code not chosen for this many batches is moved onto a vector of the
      current batch.

    Args:
        num_embeddings: K, rows of a codebook.
        embedding_dim: D, length of a row.
        commitment_cost: weight of the commitment loss; the paper's and the report's is 0.25.
        ema_decay: decay of the running means, or None for a codebook that learns by gradient.
        codebooks: 1 shared by all slots, or one for each slot.
        data_init: start the codebook from the first training batch.
        restart_after: batches of idleness after which a code is moved, or None for never.

    The EMA accumulator is a Parameter without gradient, as in the best-known PyTorch version,
    because the report counts it among its 3,545,155 parameters. A buffer would do as well.
    """

    def __init__(
        self,
        num_embeddings: int = 512,
        embedding_dim: int = 64,
        commitment_cost: float = 0.25,
        *,
        ema_decay: float | None = 0.99,
        codebooks: int = 1,
        data_init: bool = False,
        restart_after: int | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.commitment_cost, self.ema_decay = commitment_cost, ema_decay
        self.codebooks, self.restart_after = codebooks, restart_after
        rows = torch.randn(codebooks, num_embeddings, embedding_dim)
        self.codebook = nn.Parameter(rows, requires_grad=ema_decay is None)
        if ema_decay is not None:
            # Counts start at 1 and sums at the rows themselves, so a row that nobody chooses stays
            # where it is. Starting the counts at 0 divides it by almost nothing: it flies off.
            self.ema_sum = nn.Parameter(rows.clone(), requires_grad=False)
            self.register_buffer("ema_count", torch.ones(codebooks, num_embeddings))
        self.register_buffer("idle", torch.zeros(codebooks, num_embeddings, dtype=torch.long))
        self.register_buffer("initialized", torch.tensor(not data_init))

    def forward(self, z: Tensor) -> Quantized:
        """Quantize a feature map.

        Args:
            z: float (B, slots * embedding_dim, H, W). Quantized in float32, even under autocast.

        Raises:
            ValueError: the channels can't be cut into whole vectors, or the number of codebooks is
                neither 1 nor the number of slots; or the batch that the codebook would start from
                holds NaN or infinity.
        """
        z = z.float()
        latents = self._to_vectors(z)
        if self.training and not self.initialized:
            check_finite(latents, "the features that the codebook starts from")
            self._move(torch.ones_like(self.idle, dtype=torch.bool), latents.detach())
            self.initialized.fill_(True)
        found = nearest_codes(latents, self.codebook)
        codes = self._to_map(found, z.shape)
        quantized = self.lookup(codes)

        loss = self.commitment_cost * F.mse_loss(z, quantized.detach())
        if self.ema_decay is None:
            loss = loss + F.mse_loss(quantized, z.detach())
        counts = count_codes(codes, self.num_embeddings)
        if self.training:
            self._learn(latents.detach(), found)
        vectors = self.straight_through(z, quantized)
        return Quantized(vectors, codes, loss, perplexity(counts).log().mean().exp())

    def straight_through(self, z: Tensor, quantized: Tensor) -> Tensor:
        """Forwards the codebook rows; backwards, their gradient arrives at z unchanged.

        Args:
            z, quantized: float32 (B, slots * embedding_dim, H, W).
        """
        return z + (quantized - z).detach()

    @torch.no_grad()
    def start_from(self, z: Tensor) -> None:
        """Start the codebooks with k-means over many latents, float (B, slots * D, H, W).

        Raises:
            ValueError: the latents hold NaN or infinity.
        """
        rows = k_means(self._to_vectors(z.float()), self.num_embeddings)
        self.codebook.copy_(rows)
        if self.ema_decay is not None:
            self.ema_sum.copy_(rows)
            self.ema_count.fill_(1.0)
        self.initialized.fill_(True)

    def encode(self, z: Tensor) -> Tensor:
        """Feature map, float (B, slots * embedding_dim, H, W), to codes, int64 (B, H, W, slots).
        Learns nothing, in train() either; the codes are those of `forward`.

        Raises:
            ValueError: NaN or infinity in the features or in the codebook, or channels as in
                `forward`.
        """
        check_finite(z, "the features to be encoded")
        check_finite(self.codebook, "the codebook")
        return self._to_map(nearest_codes(self._to_vectors(z.float()), self.codebook), z.shape)

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes back to vectors.

        Args:
            codes: int64 (B, H, W, slots), values in 0..num_embeddings-1.

        Returns:
            float32 (B, slots * embedding_dim, H, W).

        Raises:
            ValueError: a code outside 0..num_embeddings-1 (see `check_codes`).
        """
        check_codes(codes, self.num_embeddings)
        if self.codebooks > 1:
            codes = codes + self.num_embeddings * torch.arange(self.codebooks, device=codes.device)
        rows = F.embedding(codes, self.codebook.flatten(0, 1))  # (B, H, W, slots, D)
        return rows.flatten(3).permute(0, 3, 1, 2)

    def _to_vectors(self, z: Tensor) -> Tensor:
        """(B, slots * D, H, W) -> (codebooks, N, D). Without the permute, a "vector" would be 64
        neighbouring pixels of one channel: a code without a place (notebook 03 shows it)."""
        batch, channels, height, width = z.shape
        slots, rest = divmod(channels, self.embedding_dim)
        if rest or self.codebooks not in (1, slots):
            raise ValueError(
                f"{channels} channels do not divide into vectors of {self.embedding_dim} for "
                f"{self.codebooks} codebook(s): give slots * embedding_dim channels, and one "
                "codebook for all slots or one for each"
            )
        vectors = z.permute(0, 2, 3, 1).reshape(batch * height * width, slots, self.embedding_dim)
        if self.codebooks == 1:
            return vectors.reshape(1, -1, self.embedding_dim)
        return vectors.transpose(0, 1).contiguous()

    def _to_map(self, found: Tensor, shape: torch.Size) -> Tensor:
        """(codebooks, N) -> (B, H, W, slots), the inverse of `_to_vectors` for codes."""
        batch, _, height, width = shape
        found = found.flatten() if self.codebooks == 1 else found.T
        return found.reshape(batch, height, width, -1)

    @torch.no_grad()
    def _learn(self, vectors: Tensor, found: Tensor) -> None:
        """Update the running means, then move the codes that have been idle for too long."""
        offsets = self.num_embeddings * torch.arange(self.codebooks, device=found.device)
        numbered = (found + offsets[:, None]).flatten()
        count = torch.bincount(numbered, minlength=self.idle.numel()).view_as(self.idle)
        if self.ema_decay is not None:
            total = torch.zeros_like(self.codebook).flatten(0, 1)
            total.index_add_(0, numbered, vectors.flatten(0, 1))
            self.ema_count.lerp_(count.float(), 1 - self.ema_decay)
            self.ema_sum.lerp_(total.view_as(self.ema_sum), 1 - self.ema_decay)
            # A code long unused fades to 0 / 0: leave its row alone before that.
            mean = self.ema_sum / self.ema_count.clamp_min(1e-5)[..., None]
            alive = (self.ema_count > 1e-5)[..., None]
            self.codebook.copy_(torch.where(alive, mean, self.codebook))
        self.idle.add_(1).masked_fill_(count > 0, 0)
        if self.restart_after is not None:
            dead = self.idle >= self.restart_after
            if dead.any():
                self._move(dead, vectors)

    @torch.no_grad()
    def _move(self, which: Tensor, vectors: Tensor) -> None:
        """Put the codes marked in `which` (codebooks, K) onto vectors drawn from the batch."""
        fresh = vectors.gather(1, _picks(vectors, self.num_embeddings))
        self.codebook.copy_(torch.where(which[..., None], fresh, self.codebook))
        self.idle.masked_fill_(which, 0)
        if self.ema_decay is not None:
            self.ema_count.masked_fill_(which, 1.0)
            self.ema_sum.copy_(torch.where(which[..., None], fresh, self.ema_sum))

    def extra_repr(self) -> str:
        rule = "gradient" if self.ema_decay is None else f"EMA {self.ema_decay}"
        return (
            f"{self.codebooks} codebook(s) of {self.num_embeddings} x {self.embedding_dim}, "
            f"commitment {self.commitment_cost}, {rule}, restart after {self.restart_after}"
        )
