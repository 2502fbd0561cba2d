"""Encoding by search: codes whose decoded image is near the photograph and whose file is short.

A VQ-VAE encodes by a nearest-neighbor search in latent space. But what counts is the error of the
decoded image, and the length of the file under the prior, and the nearest codebook vector minimizes
neither of them. The encoder's side has the decoder and the prior, too, so it can improve the codes
of each image; models and file format stay as they are:

    minimize over the codes   ||x - decoder(codes)||^2 + rate_weight * (-log2 p(codes))

`search_codes` does this by coordinate descent, one code at a time. A linearized decoder ranks all
codes that could replace one (`decoder_metric`), and the best candidates are decoded exactly. A code
changes the image almost only within the 3x3 positions around its own. Therefore positions that are
three apart are changed at the same time, and each change is judged by the error near it.

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

from ..pixelcnn import PixelCNN
from ..vqvae import DOWNSCALE, VQVAE

STRIDE = 3  # distance of the positions that are changed at the same time


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


@torch.no_grad()
def search_codes(
    vqvae: VQVAE,
    images: Tensor,
    metric: Tensor,
    prior: PixelCNN | None = None,
    labels: Tensor | None = None,
    *,
    rate_weight: float = 0.0,
    sweeps: int = 2,
    candidates: int = 4,
) -> Tensor:
    """Codes with a smaller weighted sum of squared error and rate than those of `vqvae.encode`.

    Args:
        vqvae: in eval() mode.
        images: float32 (B, 3, H, W), pixels in [0, 1].
        metric: see `decoder_metric`. It only ranks the changes that may be tried.
        prior, labels: see `PixelCNN.forward`; in eval() mode, needed if `rate_weight` is not 0.
        rate_weight: the increase of the squared error, summed over all values of an image with
            pixels in [0, 1], for which it is worth to save one bit.
        sweeps: number of visits of each position. Another sweep gains less than the one before.
        candidates: number of changes that are decoded in each visit.

    Returns:
        int64 (B, H/32, W/32, slots). The sum is never larger than that of `vqvae.encode`.

    Raises:
        ValueError: a model is in train() mode, `rate_weight` is negative, or the prior is missing.
    """
    if vqvae.training or (prior is not None and prior.training):
        raise ValueError("the models must be in eval() mode: call their method eval()")
    if rate_weight < 0 or (rate_weight and prior is None):
        raise ValueError(
            f"rate_weight must be at least 0, and needs a prior if it is not 0, got {rate_weight}"
        )

    def measure(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Error of each position, rate of each possible code, and weighted sum of each image."""
        error = _error_of_positions(vqvae, codes, images)
        rate = torch.zeros(*codes.shape, vqvae.quantizer.num_embeddings, device=codes.device)
        if rate_weight:
            rate = prior(codes, labels).float().log_softmax(-1) * (-rate_weight / math.log(2))
        total = error.flatten(1).sum(1) + rate.gather(-1, codes[..., None]).flatten(1).sum(1)
        return error, rate, total

    codes = vqvae.encode(images)
    error, rate, total = measure(codes)
    for row, column in sweeps * [(i, j) for i in range(STRIDE) for j in range(STRIDE)]:
        visited = torch.zeros_like(codes[..., 0], dtype=torch.bool)
        visited[:, row::STRIDE, column::STRIDE] = True
        rate_change = rate - rate.gather(-1, codes[..., None])
        costs = _linearized_costs(vqvae, codes, images, metric) + rate_change
        costs.scatter_(-1, codes[..., None], math.inf)  # no change
        # A candidate replaces the code of one slot.
        best, chosen = torch.zeros_like(error), codes
        for candidate in costs.flatten(3).topk(candidates, largest=False).indices.split(1, -1):
            slot, code = candidate // costs.shape[-1], candidate % costs.shape[-1]
            changed = torch.where(visited[..., None], codes.scatter(-1, slot, code), codes)
            error_change = _error_of_positions(vqvae, changed, images) - error
            change = F.avg_pool2d(error_change, STRIDE, 1, STRIDE // 2, divisor_override=1)
            change = change + rate_change.flatten(3).gather(-1, candidate)[..., 0]
            better = visited & (change < best)
            best = torch.where(better, change, best)
            chosen = torch.where(better[..., None], changed, chosen)
        # The changes were judged separately, and without the rate of later codes, which they also
        # change. Images whose exact sum has increased keep their codes.
        new_error, new_rate, new_total = measure(chosen)
        is_less = new_total < total
        codes = torch.where(is_less[:, None, None, None], chosen, codes)
        error = torch.where(is_less[:, None, None], new_error, error)
        rate = torch.where(is_less[:, None, None, None, None], new_rate, rate)
        total = torch.where(is_less, new_total, total)
    return codes


def _error_of_positions(vqvae: VQVAE, codes: Tensor, images: Tensor) -> Tensor:
    """Squared error summed over the pixels of each position, float (B, h, w)."""
    error = (vqvae.decode(codes) - images).square().sum(1)
    return F.avg_pool2d(error, DOWNSCALE, divisor_override=1)


def _linearized_costs(vqvae: VQVAE, codes: Tensor, images: Tensor, metric: Tensor) -> Tensor:
    """Increase of the squared error if one code is replaced, for each code that may replace it.

    With the linearized decoder it is g.d + d^T M d, for the gradient g of the error and the
    difference d of the two codebook vectors.

    Returns:
        float (B, h, w, slots, K).
    """
    quantizer, slots = vqvae.quantizer, vqvae.slots
    codebook = quantizer.codebook.expand(slots, -1, -1)
    with torch.enable_grad():
        latents = quantizer.quantize(codes).detach().requires_grad_()
        error = (vqvae._to_pixels(vqvae.decoder(latents)) - images).square().sum()
        (gradient,) = torch.autograd.grad(error, latents)
    vectors, gradient = (
        x.movedim(1, -1).unflatten(-1, (slots, -1)) for x in (latents.detach(), gradient)
    )
    blocks = metric.unflatten(0, (slots, -1)).unflatten(2, (slots, -1))
    blocks = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)  # (slots, D, D)
    linear = gradient - 2 * torch.einsum("bhwsd,sde->bhwse", vectors, blocks)
    quadratic = torch.einsum("skd,sde,ske->sk", codebook, blocks, codebook)
    costs = torch.einsum("bhwsd,skd->bhwsk", linear, codebook) + quadratic
    return costs - costs.gather(-1, codes[..., None])
