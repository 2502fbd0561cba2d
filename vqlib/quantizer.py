"""Vector quantization: every encoder output vector is replaced by its nearest codebook vector.

`VectorQuantizer` is the bottleneck of `vqvae.VQVAE`; `codes` stores the indices that it produces,
and `pixelcnn` models their distribution. A *codebook* holds K vectors (embeddings) of D numbers
each. The index of the nearest one is the *code* of a vector.

The functions come in the order of the questions that they answer: how to find the nearest vector
in little memory (`nearest_codes`), how many codes are in use (`count_codes`, `perplexity`), and how
to train through an argmin, which has no gradient (`VectorQuantizer`).

Papers: van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning" (2017),
arXiv:1711.00937, whose equation numbers are used below; product quantization: Jegou, Douze and
Schmid, "Product Quantization for Nearest Neighbor Search" (2011).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import fingerprint
from .checks import check_tensor, check_whole
from .distributed import concatenate, from_rank_0, reduce_sum


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor, max_scores: int = 2**18) -> Tensor:
    """Index of the nearest codebook vector for every input vector (eq. 1).

    ||x - e||^2 = ||x||^2 - 2 (x.e - ||e||^2 / 2), and ||x||^2 is the same for every codebook
    vector e. The nearest one therefore has the largest *score* x.e - ||e||^2 / 2, and all scores
    are one matrix product. The product is computed for one chunk of vectors at a time, so that the
    N x K matrix of scores never exists as a whole: the memory for scores is bounded by
    `max_scores` (or by S * K, if that is larger), and a chunk fits into the processor's cache.

    The computation is in float32 even under autocast: in half precision the scores overflow, and
    differences between near codebook vectors are rounded away.

    Args:
        vectors: float (S, N, D), N vectors for each of S codebooks.
        codebook: float (S, K, D).
        max_scores: number of scores that are held at one time (2**18 float32 values take 1 MB).

    Returns:
        int64 (S, N), values in 0..K-1. If several are equally near, the lowest index is returned.
    """
    num_codebooks, num_vectors, _ = vectors.shape
    num_embeddings = codebook.shape[1]
    half_norms = codebook.square().sum(-1).div(2).unsqueeze(1)  # (S, 1, K)
    transposed = codebook.transpose(1, 2)
    chunk_size = max(1, max_scores // (num_codebooks * num_embeddings))
    codes = torch.empty(num_codebooks, num_vectors, dtype=torch.long, device=vectors.device)
    with torch.autocast(vectors.device.type, enabled=False):
        for start in range(0, num_vectors, chunk_size):
            chunk = vectors[:, start : start + chunk_size]
            scores = torch.baddbmm(half_norms, chunk, transposed, beta=-1)
            codes[:, start : start + chunk_size] = scores.argmax(-1)
    return codes


def count_codes(codes: Tensor, num_embeddings: int) -> Tensor:
    """How often each code occurs in each slot: the sum of sonnet's one-hot `encodings`.

    Args:
        codes: int64 (..., slots), values in 0..num_embeddings-1.

    Returns:
        int64 (slots, num_embeddings). The counts of several batches may be added.
    """
    slots = codes.shape[-1]
    offsets = num_embeddings * torch.arange(slots, device=codes.device)
    table_indices = (codes.reshape(-1, slots) + offsets).flatten()
    # Not torch.bincount, which synchronizes with the GPU.
    counts = torch.zeros(slots * num_embeddings, dtype=torch.int64, device=codes.device)
    counts.index_add_(0, table_indices, torch.ones_like(table_indices))
    return counts.view(slots, num_embeddings)


def perplexity(counts: Tensor) -> Tensor:
    """Perplexity of each distribution of counts: exp of its entropy.

    It is the number of equally likely codes that would have the same entropy. The value 1 means
    that only one code is used (codebook collapse); K means that all codes are used equally often.
    A batch of n codes cannot have a perplexity above n, so measure a codebook on a whole split.

    Args:
        counts: int64 or float (..., K), not negative.

    Returns:
        float32 (...), in 1..K (1 if all counts are zero).
    """
    p = counts.float() / counts.sum(-1, keepdim=True).clamp_min(1)
    return torch.special.entr(p).sum(-1).exp()


@torch.no_grad()
def k_means(vectors: Tensor, num_embeddings: int, steps: int = 10) -> Tensor:
    """Codebook for a fixed set of vectors: Lloyd's algorithm, started at randomly chosen vectors.

    In each step every codebook vector becomes the mean of the vectors that are nearest to it. A
    codebook vector to which no vector is assigned is replaced by a random vector. During training,
    the EMA update of `VectorQuantizer` does the same with moving averages, while the encoder, and
    with it the vectors, changes.

    Args:
        vectors: float (S, N, D).
        num_embeddings: K, codebook vectors to compute for each of the S sets.
        steps: iterations of Lloyd's algorithm.

    Returns:
        float (S, num_embeddings, D).

    Raises:
        ValueError: there are no vectors, or a value is NaN or infinite.
    """
    if not vectors.numel():
        raise ValueError("k-means needs at least one vector for each codebook, got none")
    check_finite(vectors, "the vectors for k-means")
    codebook = _random_vectors(vectors, num_embeddings)
    for _ in range(steps):
        codes = nearest_codes(vectors, codebook)
        counts = count_codes(codes.T, num_embeddings)[..., None]
        means = _sum_by_code(vectors, codes, num_embeddings) / counts.clamp_min(1)
        codebook = torch.where(counts > 0, means, _random_vectors(vectors, num_embeddings))
    return codebook


def _sum_by_code(vectors: Tensor, codes: Tensor, num_embeddings: int) -> Tensor:
    """Sum of the vectors (S, N, D) of each code, int64 (S, N): float (S, num_embeddings, D)."""
    num_codebooks, _, dim = vectors.shape
    offsets = num_embeddings * torch.arange(num_codebooks, device=codes.device)
    sums = vectors.new_zeros(num_codebooks * num_embeddings, dim)
    sums.index_add_(0, (codes + offsets[:, None]).flatten(), vectors.flatten(0, 1))
    return sums.view(num_codebooks, num_embeddings, dim)


def _random_vectors(vectors: Tensor, num_embeddings: int) -> Tensor:
    """Random vectors out of (S, N, D): (S, num_embeddings, D).

    The choice is without replacement. If there are fewer vectors than `num_embeddings`, the number
    of times that each is chosen differs by at most one.
    """
    num_codebooks, num_vectors, dim = vectors.shape
    # On the CPU, so that every device gets the same indices.
    shuffled = torch.rand(num_codebooks, num_vectors).argsort(1)
    indices = shuffled[:, torch.arange(num_embeddings) % num_vectors].to(vectors.device)
    return vectors.gather(1, indices[..., None].expand(-1, -1, dim))


def check_finite(values: Tensor, name: str) -> None:
    """Raise an error for NaN and infinity, because the code of such a vector looks like any other.

    On a GPU this forces a synchronization, so it must not be called in a training step.

    Raises:
        ValueError: a value is not finite; the message contains `name`.
    """
    if not values.isfinite().all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity: check the input and the loaded weights"
        )


def check_codes(codes: Tensor, num_embeddings: int, slots: int | None) -> None:
    """Raise an error for codes that are not int64 (B, h, w, slots) in 0..num_embeddings-1; None
    allows any number of slots. All slots share one embedding table, so a code out of range would
    select an embedding of another slot.

    Raises:
        ValueError: wrong shape or dtype, or a code out of range. Codes on a GPU that are out of
            range trigger a device-side assert instead, because reading the result would force a
            synchronization in every training step.
    """
    check_tensor("codes", codes, torch.long, (None, "h", "w", slots))
    in_range = ((codes >= 0) & (codes < num_embeddings)).all()
    if codes.is_cuda:
        torch._assert_async(in_range, f"codes must lie in 0..{num_embeddings - 1}")
    elif not in_range:
        low, high = codes.aminmax()
        raise ValueError(f"codes must lie in 0..{num_embeddings - 1}, got {low}..{high}")


def codebook_fingerprint(codebook: Tensor) -> str:
    """Fingerprint of a codebook, 16 hex digits; the same in float32 and rounded to float16.

    Args:
        codebook: float (S, K, D).
    """
    return fingerprint(codebook.detach().half())


class QuantizerOutput(NamedTuple):
    """Output of `VectorQuantizer.forward`."""

    quantized: Tensor  # (B, C, H, W): codebook vectors; the gradient passes straight through
    encoding_indices: Tensor  # int64 (B, H, W, slots): the codes
    loss: Tensor  # scalar: commitment loss, plus the codebook loss if ema_decay is None
    perplexity: Tensor  # scalar, of this batch: geometric mean over the slots


class VectorQuantizer(nn.Module):
    """Nearest-neighbor quantizer with the straight-through gradient estimator.

    The quantizer splits each feature of C = slots x embedding_dim channels into `slots` sub-vectors
    and quantizes each of them separately (product quantization). We call the sub-vectors *slots*.
    With the report's 256 channels and 64-dimensional codebook vectors there are four slots, and so
    four codes, at each position.

    How the parts of a VQ-VAE are trained (eq. 3; sg is the stop-gradient, here `detach`):
    - The *decoder* is trained by the reconstruction loss.
    - The *encoder* is trained by the reconstruction loss and by the commitment loss. The
      straight-through estimator copies the gradient at the quantizer's output to its input. The
      commitment loss `commitment_cost * mean((z - sg[e])^2)` keeps the encoder's output z near the
      codebook vectors e that it was assigned to.
    - The *codebook* is trained in one of two ways. With `ema_decay`, each codebook vector is an
      exponential moving average (EMA) of the vectors that were assigned to it (appendix A.1). With
      `ema_decay=None` it is an ordinary parameter, which the codebook loss `mean((sg[z] - e)^2)`
      moves toward these vectors.

    The means are over elements, as in sonnet; eq. 3 has squared norms, which are `embedding_dim`
    times larger for each vector.

    Two measures prevent unused codes (codebook collapse):
    - `data_init`: the codebook is initialized with vectors of the first training batch.
    - `restart_after`: a code that has not been used for this many batches is replaced by a random
      vector of the current batch.

    In a training on several processes, the batch is that of all processes together: counts and sums
    are added over them, so that all of them hold the same codebook (see `distributed`).

    Args:
        num_embeddings: K, number of vectors in a codebook.
        embedding_dim: D, dimension of a codebook vector.
        commitment_cost: weight of the commitment loss; the paper and the report use 0.25.
        ema_decay: decay of the EMA, or None for a codebook that is trained by gradient descent.
        codebooks: 1 codebook shared by all slots, or one for each slot.
        data_init: initialize the codebook with the first training batch.
        restart_after: number of batches after which an unused code is replaced; None: never.

    The EMA accumulator is a Parameter without gradient, as in the most widely used PyTorch
    implementation, because the report counts it among its 3,545,155 parameters. A buffer would
    work as well.
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
        check_whole(num_embeddings=num_embeddings, codebooks=codebooks)
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.commitment_cost, self.ema_decay = commitment_cost, ema_decay
        self.codebooks, self.restart_after = codebooks, restart_after
        embeddings = torch.randn(codebooks, num_embeddings, embedding_dim)
        self.codebook = nn.Parameter(embeddings, requires_grad=ema_decay is None)
        if ema_decay is not None:
            # Cluster sizes start at 1 and sums at the codebook vectors, so that a codebook vector
            # without assigned vectors keeps its value. With cluster sizes that start at 0 it would
            # be divided by almost zero and diverge.
            self.ema_sum = nn.Parameter(embeddings.clone(), requires_grad=False)
            self.register_buffer("ema_cluster_size", torch.ones(codebooks, num_embeddings))
        self.register_buffer(
            "steps_unused", torch.zeros(codebooks, num_embeddings, dtype=torch.long)
        )
        self.register_buffer("initialized", torch.tensor(not data_init))
        self._initialized = False  # whether the buffer is known to be True, see `_initialize`

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantize a feature map.

        Args:
            z: float (B, slots * embedding_dim, H, W). It is quantized in the codebook's dtype,
                float32, even under autocast. In train() mode each process has the same shape.

        Raises:
            ValueError: the number of channels is not a multiple of embedding_dim; the number of
                codebooks is neither 1 nor the number of slots; or the batch that initializes the
                codebook contains NaN or infinity.
        """
        z = z.to(self.codebook.dtype)
        flat_inputs = self._flatten(z)  # (codebooks, N, D)
        if self.training and not self._initialized:
            self._initialize(flat_inputs)

        flat_indices = nearest_codes(flat_inputs, self.codebook)
        encoding_indices = self._unflatten_indices(flat_indices, z.shape)  # (B, H, W, slots)
        quantized = self.look_up(encoding_indices)  # like z

        commitment_loss = F.mse_loss(z, quantized.detach())
        loss = self.commitment_cost * commitment_loss
        if self.ema_decay is None:
            codebook_loss = F.mse_loss(quantized, z.detach())
            loss = loss + codebook_loss
        counts = count_codes(encoding_indices, self.num_embeddings)  # (slots, K)
        if self.training:
            counts = reduce_sum(counts)
            self._update_codebook(flat_inputs, flat_indices, counts)

        quantized = self.straight_through(z, quantized)
        batch_perplexity = perplexity(counts).log().mean().exp()
        return QuantizerOutput(quantized, encoding_indices, loss, batch_perplexity)

    def _initialize(self, flat_inputs: Tensor) -> None:
        """Initialize the codebook with vectors of this batch, unless that has been done. Called
        only once, because each read of the buffer synchronizes with the GPU."""
        if not self.initialized:
            check_finite(flat_inputs, "the features that initialize the codebook")
            self._set_all(self._random_inputs(flat_inputs))
        self._initialized = True

    def _random_inputs(self, flat_inputs: Tensor) -> Tensor:
        """Random vectors of the batch, float (codebooks, K, D), the same ones on all processes."""
        vectors = concatenate(flat_inputs, dim=1)
        return from_rank_0(_random_vectors(vectors, self.num_embeddings))

    def _set_all(self, vectors: Tensor) -> None:
        """Start again with this codebook, float (codebooks, K, D)."""
        self._reset_codes(torch.ones_like(self.steps_unused, dtype=torch.bool), vectors)
        self.initialized.fill_(True)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._initialized = False  # the buffer may have changed: read it again

    def straight_through(self, z: Tensor, quantized: Tensor) -> Tensor:
        """Straight-through estimator.

        In the forward pass the result equals `quantized`. In the backward pass the detached term
        has zero gradient, so the gradient of the result reaches z unchanged.

        Args:
            z, quantized: float32 (B, slots * embedding_dim, H, W).
        """
        return z + (quantized - z).detach()

    @torch.no_grad()
    def initialize_with_k_means(self, z: Tensor) -> None:
        """Initialize the codebooks by k-means on encoder outputs, float (B, slots * D, H, W).

        Raises:
            ValueError: the outputs contain NaN or infinity.
        """
        self._set_all(k_means(self._flatten(z), self.num_embeddings))

    def encode(self, z: Tensor) -> Tensor:
        """Codes int64 (B, H, W, slots) of a feature map, float (B, slots * embedding_dim, H, W).

        The codes are those of `forward`; the codebook is not updated, even in train() mode.

        Raises:
            ValueError: the features or the codebook contain NaN or infinity, or the number of
                channels is wrong, see `forward`.
        """
        check_finite(z, "the features to be encoded")
        check_finite(self.codebook, "the codebook")
        flat_indices = nearest_codes(self._flatten(z), self.codebook)
        return self._unflatten_indices(flat_indices, z.shape)

    def quantize(self, encoding_indices: Tensor) -> Tensor:
        """Codebook vectors of the given codes.

        Args:
            encoding_indices: int64 (B, H, W, slots), values in 0..num_embeddings-1.

        Returns:
            float32 (B, slots * embedding_dim, H, W).

        Raises:
            ValueError: wrong shape or dtype, or a code outside 0..num_embeddings-1.
        """
        # On the CPU, so that a GPU raises the same error.
        slots = None if self.codebooks == 1 else self.codebooks
        check_codes(encoding_indices.cpu(), self.num_embeddings, slots)
        return self.look_up(encoding_indices)

    def look_up(self, encoding_indices: Tensor) -> Tensor:
        """`quantize` for codes that are known to be valid, such as those of `nearest_codes`."""
        if self.codebooks > 1:
            slots = torch.arange(self.codebooks, device=encoding_indices.device)
            encoding_indices = encoding_indices + self.num_embeddings * slots
        embeddings = F.embedding(encoding_indices, self.codebook.flatten(0, 1))
        return embeddings.flatten(3).permute(0, 3, 1, 2)  # from (B, H, W, slots, D)

    def _flatten(self, z: Tensor) -> Tensor:
        """Reshape (B, slots * D, H, W) to (codebooks, N, D).

        Without the permute, a "vector" would be 64 neighboring pixels of one channel, and its code
        would not belong to a position of the grid (notebook 03 shows this).
        """
        batch, channels, height, width = z.shape
        slots, remainder = divmod(channels, self.embedding_dim)
        if remainder or self.codebooks not in (1, slots):
            raise ValueError(
                f"{channels} channels do not divide into vectors of {self.embedding_dim} for "
                f"{self.codebooks} codebook(s): expected slots * embedding_dim channels, and "
                "either one codebook for all slots or one codebook per slot"
            )
        channels_last = z.to(self.codebook.dtype).permute(0, 2, 3, 1)
        vectors = channels_last.reshape(batch * height * width, slots, self.embedding_dim)
        if self.codebooks == 1:
            return vectors.reshape(1, -1, self.embedding_dim)
        return vectors.transpose(0, 1).contiguous()

    def _unflatten_indices(self, flat_indices: Tensor, shape: torch.Size) -> Tensor:
        """Reshape (codebooks, N) to (B, H, W, slots): the inverse of `_flatten`, for indices."""
        batch, _, height, width = shape
        flat_indices = flat_indices.flatten() if self.codebooks == 1 else flat_indices.T
        return flat_indices.reshape(batch, height, width, -1)

    @torch.no_grad()
    def _update_codebook(self, flat_inputs: Tensor, flat_indices: Tensor, counts: Tensor) -> None:
        """Update the codebook by its EMA, then replace the codes that were unused for too long."""
        cluster_size = counts if self.codebooks > 1 else counts.sum(0, keepdim=True)
        if self.ema_decay is not None:
            vector_sum = reduce_sum(_sum_by_code(flat_inputs, flat_indices, self.num_embeddings))
            self.ema_cluster_size.lerp_(cluster_size.to(vector_sum), 1 - self.ema_decay)
            self.ema_sum.lerp_(vector_sum, 1 - self.ema_decay)
            # For a code that is unused for long, sum and cluster size both decay to 0. Keep its
            # codebook vector instead of dividing 0 by 0.
            mean = self.ema_sum / self.ema_cluster_size.clamp_min(1e-5)[..., None]
            is_used = (self.ema_cluster_size > 1e-5)[..., None]
            self.codebook.copy_(torch.where(is_used, mean, self.codebook))
        self.steps_unused.add_(1).masked_fill_(cluster_size > 0, 0)
        if self.restart_after is not None:
            expired = self.steps_unused >= self.restart_after
            if expired.is_cuda or expired.any():  # on a GPU, the check costs more than the reset
                self._reset_codes(expired, self._random_inputs(flat_inputs))

    @torch.no_grad()
    def _reset_codes(self, which: Tensor, new_vectors: Tensor) -> None:
        """Replace the codebook vectors selected by the mask `which` (codebooks, K) by those of
        `new_vectors` (codebooks, K, D), and forget their statistics."""
        self.codebook.copy_(torch.where(which[..., None], new_vectors, self.codebook))
        self.steps_unused.masked_fill_(which, 0)
        if self.ema_decay is not None:
            self.ema_cluster_size.masked_fill_(which, 1.0)
            self.ema_sum.copy_(torch.where(which[..., None], new_vectors, self.ema_sum))
