"""Encoding by search: codes whose decoded image is near the photograph and whose file is short.

A VQ-VAE encodes by a nearest-neighbor search in latent space. But what counts is the error of the
decoded image, and the length of the file under the prior, and the nearest codebook vector minimizes
neither of them. The encoder's side has the decoder and the prior, too, so it can improve the codes
of each image; models and file format stay as they are:

    minimize over the codes   ||x - decoder(codes)||^2 + rate_weight * (-log2 p(codes))

`choose_codes` does this code by code, in the order of the prior, which therefore provides the exact
probability of each possible code. The error of the decoded image is replaced by a quadratic
function of the latent vectors, whose curvature is the same everywhere (`decoder_metric`). With this
function `codes_within_budget` finds, for each image, the weight at which the file fills a budget
(an image codec does the same when it tunes its quality setting). It then improves the codes: it
linearizes the decoder at the current codes, visits every fourth position, keeps the changes that
make the image around their position better, and repeats this with the other positions.

Papers: improving the encoder's output for each image is semi-amortized inference (Kim et al. 2018,
arXiv:1802.02550), which Yang and Mandt, "Computationally-Efficient Neural Image Compression with
Shallow Decoders" (2023, arXiv:2304.06244), use in a codec; the sum of distortion and rate: Chou,
Lookabaugh and Gray, "Entropy-Constrained Vector Quantization" (1989).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..metrics import code_bits
from ..pixelcnn import PixelCNN
from ..sampling import CachedPixelCNN
from ..vqvae import DOWNSCALE, VQVAE
from .entropy_coding import max_bits

# Weights that are tried: increase of the squared error, summed over all values of an image with
# pixels in [0, 1], for which it is worth to save one bit.
RATE_WEIGHTS = (0.0, *(0.001 * 2 ** (n / 2) for n in range(30)))
# In the first step, files are this much shorter than the budget: the search makes them longer.
MARGIN = 0.99
WEIGHT_GAIN = 5.0
# Changes at neighboring positions overlap in the image. A larger curvature keeps them small.
DAMPING = 1.5
STRIDE = 2  # distance of the positions that are changed at the same time


def decoder_metric(vqvae: VQVAE, codes: Tensor, probes: int = 2) -> Tensor:
    """Matrix M such that a change d of the latent vector at one position changes the decoded image
    by the squared error d^T M d, on average over positions and images.

    M is the mean of J^T J for the Jacobian J of the decoder. With independent random signs u, one
    for each value of the image, E[u u^T] is the identity, so J^T J = E[g g^T] for g = J^T u
    (Hutchinson 1989). One backward pass computes g for all positions.

    Args:
        vqvae: in eval() mode.
        codes: int64 (B, h, w, slots) of a few images. 16 images of 8x8 positions and two probes
            give 2,048 vectors g.
        probes: number of backward passes.

    Returns:
        float (C, C) for C = slots * embedding_dim channels.
    """
    latents = vqvae.quantizer.quantize(codes).detach().requires_grad_()
    metric = torch.zeros(latents.shape[1], latents.shape[1], device=latents.device)
    for _ in range(probes):
        pixels = vqvae._to_pixels(vqvae.decoder(latents))
        signs = torch.randint_like(pixels, 2) * 2 - 1
        (gradient,) = torch.autograd.grad(pixels, latents, signs)
        gradient = gradient.movedim(1, -1).flatten(0, 2)
        metric += gradient.T @ gradient / (probes * len(gradient))
    return metric


@torch.inference_mode()
def choose_codes(
    vqvae: VQVAE,
    prior: PixelCNN,
    metric: Tensor,
    latents: Tensor,
    rate_weight: Tensor,
    labels: Tensor | None = None,
    *,
    gradient: Tensor | None = None,
    codes: Tensor | None = None,
    visited: Tensor | None = None,
) -> Tensor:
    """Codes that minimize g^T d + d^T M d + rate_weight * bits, one after another.

    d is the difference between the codebook vectors of a position and its latent vector, g the
    gradient there and M the metric. Of the codes that come later in the order of the prior, neither
    the rate nor the contribution to d is considered.

    Args:
        vqvae, prior: in eval() mode, with one codebook per slot.
        metric: float (C, C), see `decoder_metric`.
        latents: float (B, C, h, w), where the error was linearized: the encoder's output, or the
            vectors of the current codes.
        rate_weight: float (B,), see `RATE_WEIGHTS`.
        labels: int64 (B,) or None, see `PixelCNN.forward`.
        gradient: float (B, C, h, w); None for 0.
        codes, visited: current codes, int64 (B, h, w, slots), and the positions where they may
            change, bool (h, w); None: all.

    Returns:
        int64 (B, h, w, slots).
    """
    codebook, slots = vqvae.quantizer.codebook, vqvae.slots
    metric = metric.unflatten(0, (slots, -1)).unflatten(2, (slots, -1))
    quadratic = torch.einsum("skd,sdse,ske->sk", codebook, metric, codebook)
    latents = latents.movedim(1, -1).unflatten(-1, (slots, -1))
    linear = -2 * torch.einsum("bhwsd,sdse->bhwse", latents, metric)
    if gradient is not None:
        linear += gradient.movedim(1, -1).unflatten(-1, (slots, -1))
    n, height, width = latents.shape[:3]
    chosen = torch.empty(n, height, width, slots, dtype=torch.long)
    cache = CachedPixelCNN(prior, chosen.shape, labels)
    for row in range(height):
        for column in range(width):
            cache.start_position(row, column)
            change = torch.zeros_like(latents[:, row, column])  # of the slots so far
            for slot in range(slots):
                cache.compute_slot(slot)
                if visited is not None and not visited[row, column]:
                    code = codes[:, row, column, slot]
                else:
                    interaction = 2 * torch.einsum("bsd,sde->be", change, metric[:, :, slot])
                    cost = (linear[:, row, column, slot] + interaction) @ codebook[slot].T
                    bits = cache.logits(slot).log_softmax(-1) / -math.log(2)
                    code = (cost + quadratic[slot] + rate_weight[:, None] * bits).argmin(-1)
                    change[:, slot] = codebook[slot, code] - latents[:, row, column, slot]
                chosen[:, row, column, slot] = code
                cache.set_code(slot, code)
    return chosen


def codes_within_budget(
    vqvae: VQVAE,
    prior: PixelCNN,
    images: Tensor,
    labels: Tensor | None = None,
    budget: int = 288,
    *,
    metric: Tensor | None = None,
    sweeps: int = 2,
) -> Tensor:
    """Codes of which `compress` writes files of at most `budget` bytes, if there are such codes.

    Args:
        vqvae, prior: in eval() mode, with one codebook per slot.
        images: float32 (B, 3, H, W), pixels in [0, 1].
        labels: int64 (B,) or None, see `PixelCNN.forward`.
        budget: bytes of a file, with its header.
        metric: see `decoder_metric`; None: it is computed for these images.
        sweeps: how often each position is visited by the search; 0 for no search.

    Returns:
        int64 (B, H/32, W/32, slots). An image for which even the largest of the `RATE_WEIGHTS` is
        too small gets the codes of this weight.
    """
    if metric is None:
        metric = decoder_metric(vqvae, vqvae.encode(images[:16]))
    with torch.no_grad():
        latents = vqvae.encoder(images)

    def bits_of(codes: Tensor) -> Tensor:
        return code_bits(prior, codes, labels)

    # The smallest weight within the budget, by bisection for all images at once.
    weights, limit = torch.tensor(RATE_WEIGHTS), max_bits(budget)
    low, high = torch.full((len(images),), -1), torch.full((len(images),), len(weights) - 1)
    codes = choose_codes(vqvae, prior, metric, latents, weights[high], labels)
    while (high - low > 1).any():
        middle = ((low + high) // 2).clamp_min(0)
        candidates = choose_codes(vqvae, prior, metric, latents, weights[middle], labels)
        fits = bits_of(candidates).flatten(1).sum(1) <= limit * (MARGIN if sweeps else 1)
        codes = torch.where(fits[:, None, None, None], candidates, codes)
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    weight = weights[high]

    error, gradient = _error_of_positions(vqvae, codes, images)
    bits = bits_of(codes)
    for offset in sweeps * [(i, j) for i in range(STRIDE) for j in range(STRIDE)]:
        visited = torch.zeros(codes.shape[1:3], dtype=torch.bool)
        visited[offset[0] :: STRIDE, offset[1] :: STRIDE] = True
        # Files that are too short get a smaller weight.
        weight = weight * (WEIGHT_GAIN * (bits.flatten(1).sum(1) / limit - 1)).exp()
        changed = choose_codes(
            vqvae,
            prior,
            DAMPING * metric,
            vqvae.quantizer.look_up(codes),
            weight,
            labels,
            gradient=gradient,
            codes=codes,
            visited=visited,
        )
        # Keep the changes that make the image around their position better.
        new_error, _ = _error_of_positions(vqvae, changed, images)
        around = F.avg_pool2d(new_error - error, 3, 1, 1, divisor_override=1)
        around += weight[:, None, None] * (bits_of(changed) - bits).sum(-1)
        changed = torch.where((around < 0)[..., None], changed, codes)
        # Keep all of them only if the whole image is better, and the file within the budget.
        new_error, new_gradient = _error_of_positions(vqvae, changed, images)
        new_bits = bits_of(changed)
        cost_change = (new_error - error).flatten(1).sum(1)
        cost_change += weight * (new_bits - bits).flatten(1).sum(1)
        fits = new_bits.flatten(1).sum(1) <= bits.flatten(1).sum(1).clamp_min(limit)
        keep = ((cost_change < 0) & fits)[:, None, None]
        codes = torch.where(keep[..., None], changed, codes)
        error = torch.where(keep, new_error, error)
        bits = torch.where(keep[..., None], new_bits, bits)
        gradient = torch.where(keep[:, None], new_gradient, gradient)
    return codes


def _error_of_positions(vqvae: VQVAE, codes: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error summed over the pixels of each position, float (B, h, w), and the gradient of
    its sum with respect to the latent vectors, (B, C, h, w)."""
    with torch.enable_grad():
        latents = vqvae.quantizer.look_up(codes).detach().requires_grad_()
        error = (vqvae._to_pixels(vqvae.decoder(latents)) - images).square().sum(1)
        (gradient,) = torch.autograd.grad(error.sum(), latents)
    return F.avg_pool2d(error.detach(), DOWNSCALE, divisor_override=1), gradient
