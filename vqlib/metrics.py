"""Metrics: PSNR and SSIM of images, bits per code of priors, and counting baselines.

`training` uses them on the validation split, and `evaluation.results` for the results table. All of
them are computed over a whole split, never over one batch, and are reported with the number of
images.

Paper: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity"
(2004).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from .checks import check_tensor
from .data import Pixels, batches, to_float
from .pixelcnn import PixelCNN
from .quantizer import count_codes, perplexity
from .vqvae import VQVAE, eval_mode

MAX_PSNR = 100.0  # dB; without this limit two equal images would make every mean infinite


def to_8_bit(images: Tensor) -> Tensor:
    """Round pixels to the 256 levels of an 8-bit image file.

    Image codecs return 8-bit pixels, so models that are compared with them are evaluated on 8-bit
    pixels, too. Rounding adds an error of variance 1 / (12 * 255^2) to each value.

    Args:
        images: float, pixels in [0, 1], any shape.

    Returns:
        float, same shape, multiples of 1/255.
    """
    return images.mul(255).round() / 255


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB: 10 log10(1 / MSE), at most `MAX_PSNR`.

    Args:
        images, targets: float (B, 3, H, W), pixels in [0, 1].

    Returns:
        float (B,). Without the limit, the mean of these values is at least the PSNR of the mean MSE
        (Jensen's inequality).
    """
    _check_images(images, targets)
    options = {"data_range": 1.0, "dim": (1, 2, 3), "reduction": "none"}
    return peak_signal_noise_ratio(images, targets, **options).clamp_max(MAX_PSNR)


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of each image; Gaussian window 11, sigma 1.5 (Wang et al. 2004).

    SSIM is the mean over all windows of a luminance factor times a factor for contrast and
    structure. An image without content does not have an SSIM of 0: on 50 validation lesions at
    256 px, one flat color (the mean of each image) has an SSIM of 0.77, and mid-gray for all
    images has 0.74. For a flat image the second factor is C2 / (variance of the window + C2) with
    C2 = 0.03^2, and skin is smooth: 91 % of the windows have a variance below C2 (a standard
    deviation below 7.7 of 255 levels), so this factor is 0.79 on average. The luminance factor is
    0.97, although the means of the windows differ by 22 levels. Compare an SSIM with that of a flat
    color, not with 0.

    Args:
        images, targets: float (B, 3, H, W), pixels in [0, 1].

    Returns:
        float (B,), at most 1.
    """
    _check_images(images, targets)
    return structural_similarity_index_measure(images, targets, data_range=1.0, reduction="none")


def _check_images(images: Tensor, targets: Tensor) -> None:
    """Bytes in 0..255 and images of different shapes would give numbers, too, but wrong ones."""
    check_tensor("images", images, torch.float32, ("B", 3, "H", "W"))
    check_tensor("targets", targets, torch.float32, images.shape)


@dataclass
class ImageMetrics:
    """PSNR, SSIM and size of n reconstructed images; NaN if no file is within the budget."""

    psnr: Tensor  # (n,) dB
    ssim: Tensor  # (n,)
    bytes: Tensor  # (n,) size of each compressed image

    def summary(self) -> dict[str, float | int]:
        """Means over the images with a result, and their number "n"."""
        return {
            "n": int((~self.psnr.isnan()).sum()),
            "psnr_db": float(self.psnr.nanmean()),
            "ssim": float(self.ssim.nanmean()),
        }


@dataclass
class ReconstructionMetrics(ImageMetrics):
    """The same for a VQ-VAE, with its code counts."""

    counts: Tensor  # int64 (slots, K), how often each code was used

    @classmethod
    def join(cls, parts: list[ReconstructionMetrics]) -> ReconstructionMetrics:
        """Metrics of all images, from those of parts of them."""
        columns = ([getattr(part, field.name) for part in parts] for field in fields(cls))
        *of_images, counts = columns
        return cls(*map(torch.cat, of_images), torch.stack(counts).sum(0))

    @property
    def used(self) -> Tensor:
        """Number of codes that are used at least once, for each slot: int64 (slots,)."""
        return (self.counts > 0).sum(-1)

    @property
    def perplexity(self) -> float:
        """Perplexity over the whole split; geometric mean over the slots."""
        return float(perplexity(self.counts).log().mean().exp())

    def summary(self) -> dict[str, float | int]:
        return super().summary() | {
            "codes_used": int(self.used.min()),  # minimum over the slots
            "perplexity": self.perplexity,
        }


def evaluate_vqvae(
    vqvae: VQVAE, pixels: Pixels, indices: Tensor, batch_size: int = 32
) -> ReconstructionMetrics:
    """PSNR, SSIM and code usage of a model in eval() mode.

    Args:
        vqvae: its reconstructions are rounded to 8-bit pixels (`to_8_bit`), like the output of
            image codecs, before they are compared.
        pixels: uint8 images, (3, H, W) each; see `ImageDataset.pixels`.
        indices: int64 (n,), image numbers, such as `split.val`.
        batch_size: images per batch.

    Returns:
        PSNR (dB), SSIM and bytes of each image, and how often each code was used over all of them.

    Raises:
        ValueError: `indices` is empty.
    """
    if not len(indices):
        raise ValueError("no images to evaluate: the split is empty")
    psnr_values, ssim_values, counts = [], [], []
    with eval_mode(vqvae) as device:
        for images, _ in batches(pixels, indices, batch_size, shuffle=False):
            images = images.to(device)
            out = vqvae(images)
            reconstruction = to_8_bit(out.reconstruction)
            psnr_values.append(psnr(reconstruction, images).cpu())
            ssim_values.append(ssim(reconstruction, images).reshape(-1).cpu())
            counts.append(count_codes(out.codes, vqvae.quantizer.num_embeddings).cpu())
    bits_per_image = out.codes[0].numel() * math.log2(vqvae.quantizer.num_embeddings)
    num_bytes = torch.full((len(indices),), bits_per_image / 8)
    return ReconstructionMetrics(
        torch.cat(psnr_values), torch.cat(ssim_values), num_bytes, torch.stack(counts).sum(0)
    )


def paired_bootstrap_interval(
    ours: Tensor, theirs: Tensor, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference between two methods on the same images, with a 95 % bootstrap interval.

    Images differ much more from each other than two methods differ on one image. Taking the
    difference for each image removes the variance between images from the interval.

    Args:
        ours, theirs: float (n,), results on the same images in the same order.
        resamples: number of bootstrap samples.
        seed: of the bootstrap.

    Returns:
        (mean, 2.5 % quantile, 97.5 % quantile) of the mean of ours - theirs.
    """
    difference = (ours - theirs).double()
    generator = torch.Generator().manual_seed(seed)
    n, means = len(difference), []
    for _ in range(resamples):
        means.append(difference[torch.randint(n, (n,), generator=generator)].mean())
    low, high = torch.stack(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(difference.mean()), float(low), float(high)


def code_bits(
    prior: PixelCNN, codes: Tensor, labels: Tensor | None = None, batch_size: int = 64
) -> Tensor:
    """Code length of every code under the prior, -log2 p(code | earlier codes), in eval() mode.

    Args:
        codes: int64 (N, h, w, slots).
        labels: int64 (N,), or None for the unconditional distribution.
        batch_size: grids per batch.

    Returns:
        float (N, h, w, slots), bits. The sum over an image is its negative log-likelihood, which is
        the ideal length of a file of its codes (see `evaluation.entropy_coding`); the mean is the
        number of bits per code.
    """
    bits = []
    if labels is not None:
        check_tensor("labels", labels, torch.long, (len(codes),))
    with eval_mode(prior) as device:
        for start in range(0, len(codes), batch_size):
            batch = codes[start : start + batch_size].to(device)
            batch_labels = None if labels is None else labels[start : start + batch_size].to(device)
            logits = prior(batch, batch_labels).float()
            nats = F.cross_entropy(logits.flatten(0, 3), batch.flatten(), reduction="none")
            bits.append((nats / math.log(2)).view(batch.shape).cpu())
    return torch.cat(bits)


def baseline_bits(train: Tensor, held_out: Tensor, num_embeddings: int) -> dict[str, float]:
    """Bits per code of counting baselines, which a learned prior has to beat.

    The baselines are tables of code frequencies with additive smoothing. They are counted on
    `train` and evaluated on `held_out`. Each smoothing constant is the best of nine values when the
    first tenth of `train` is held out.

    Args:
        train, held_out: int64 (N, h, w, slots).
        num_embeddings: K.

    Returns:
        Bits per code on `held_out`, for: "uniform", the uniform distribution over all codes;
        "unigram", one table for each slot; "unigram per position", one table for each slot of each
        position; "bigram", one table for each slot and each code to the left in the same slot.
    """
    tuning, counted = train.tensor_split([max(1, len(train) // 10)])
    results = {"uniform": math.log2(num_embeddings)}
    for name, bits in (
        ("unigram", partial(_unigram_bits, per_position=False)),
        ("unigram per position", partial(_unigram_bits, per_position=True)),
        ("bigram", _bigram_bits),
    ):
        alphas = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
        best = min(alphas, key=lambda a: bits(counted, tuning, num_embeddings, a))
        results[name] = bits(train, held_out, num_embeddings, best)
    return results


def _unigram_bits(
    train: Tensor, held_out: Tensor, k: int, alpha: float, per_position: bool
) -> float:
    """Mean code length on `held_out`; `alpha` is added to each count."""
    # One table for each column: a slot, or a slot of a position.
    train, held_out = (x.flatten(1) if per_position else x.flatten(0, 2) for x in (train, held_out))
    counts = count_codes(train, k).float() + alpha
    log_p = (counts / counts.sum(-1, keepdim=True)).log2()
    return float(-log_p.gather(1, held_out.T).mean())


def _bigram_bits(train: Tensor, held_out: Tensor, k: int, alpha: float) -> float:
    """Mean code length on `held_out`. Each conditional table is smoothed toward the unigram
    distribution of its slot, which is added with the weight of `alpha` observations."""

    def pairs(codes: Tensor) -> tuple[Tensor, Tensor]:
        """Left neighbors (k in the first column) and codes, both int64 (positions, slots)."""
        left = F.pad(codes[:, :, :-1], (0, 0, 1, 0), value=k)
        return left.flatten(0, 2), codes.flatten(0, 2)

    slots = train.shape[-1]
    unigram = count_codes(train.flatten(0, 2), k).float() + 1  # (slots, K)
    unigram = unigram / unigram.sum(-1, keepdim=True)
    left, code = pairs(train)
    index = (torch.arange(slots) * (k + 1) + left) * k + code
    counts = torch.bincount(index.flatten(), minlength=slots * (k + 1) * k).float()
    counts = counts.view(slots, k + 1, k) + alpha * unigram[:, None]
    log_p = (counts / counts.sum(-1, keepdim=True)).log2()
    left, code = pairs(held_out)
    return float(-log_p[torch.arange(slots), left, code].mean())


class FeatureExtractor(Protocol):
    """Model that maps images to the feature vectors by which sets of images are compared."""

    def extract_features(self, images: Tensor) -> Tensor:
        """float32 (B, 3, S, S), pixels in [0, 1], to float (B, D)."""


def predict_images(
    model: nn.Module, images: Pixels | Tensor, return_features: bool = False, batch_size: int = 64
) -> Tensor:
    """Outputs of a model in eval() mode for many images.

    Args:
        model: takes float32 (B, 3, S, S), pixels in [0, 1].
        images: uint8 (N, 3, S, S).
        return_features: call the model's `extract_features` instead of the model.
        batch_size: images per batch.

    Returns:
        float32 (N, ...) on the CPU.
    """
    function = model.extract_features if return_features else model
    with eval_mode(model) as device:
        outputs = [
            function(to_float(images[i : i + batch_size]).to(device)).float().cpu()
            for i in range(0, len(images), batch_size)
        ]
    return torch.cat(outputs)
