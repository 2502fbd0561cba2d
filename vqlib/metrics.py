"""Numbers to judge by: PSNR and SSIM of images, bits of codes, and tables to beat.

Everything here is measured on a whole split, never on a batch, and says on how many images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from .data import Pixels, batches
from .pixelcnn import PixelCNN
from .quantizer import count_codes, perplexity
from .vqvae import VQVAE, evaluating

MAX_PSNR = 100.0  # dB; equal images would have an infinite PSNR, and so would every mean over them


def to_8_bit(images: Tensor) -> Tensor:
    """Round pixels to the 256 levels of an 8-bit image file.

    Image codecs return 8-bit pixels, so a model that is compared with them is measured on 8-bit
    pixels too. Rounding adds an error of variance 1 / (12 * 255^2) to each value.

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
        float (B,). The mean of these is *not* the PSNR of the mean MSE.
    """
    found = peak_signal_noise_ratio(
        images, targets, data_range=1.0, dim=(1, 2, 3), reduction="none"
    )
    return found.clamp_max(MAX_PSNR)


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of each image, Gaussian window 11, sigma 1.5 (Wang et al. 2004).

    SSIM is the mean over all windows of a luminance factor times a factor for contrast and
    structure. Its zero is not where the information ends: on 50 validation lesions at 256 px, one
    flat colour (the mean of each image) has an SSIM of 0.77, and mid-grey for all images has 0.74.
    For a flat image the second factor is C2 / (variance of the window + C2) with C2 = 0.03^2, and
    skin is smooth: 91 % of the windows have a variance below C2 (a standard deviation below 7.7 of
    255 levels), so this factor is 0.79 on average. The luminance factor is 0.97, although the means
    of the windows differ by 22 levels. Compare SSIM with that of a flat colour, not with 0.

    Args:
        images, targets: float (B, 3, H, W), pixels in [0, 1].

    Returns:
        float (B,), at most 1.
    """
    return structural_similarity_index_measure(images, targets, data_range=1.0, reduction="none")


@dataclass
class Quality:
    """How well n images are given back. NaN where a codec could not do it at all."""

    psnr: Tensor  # (n,) dB
    ssim: Tensor  # (n,)
    bytes: Tensor  # (n,) that each image takes

    def summary(self) -> dict[str, float | int]:
        """Means over the images that could be coded, and how many these are ("n")."""
        return {
            "n": int((~self.psnr.isnan()).sum()),
            "psnr_db": float(self.psnr.nanmean()),
            "ssim": float(self.ssim.nanmean()),
        }


@dataclass
class Reconstruction(Quality):
    """The same of a VQ-VAE, and how its codes were used."""

    counts: Tensor  # int64 (slots, K), how often each code was used

    @property
    def used(self) -> Tensor:
        """(slots,) number of codes used at least once in each slot."""
        return (self.counts > 0).sum(-1)

    @property
    def perplexity(self) -> float:
        """Over the whole split; geometric mean of the slots."""
        return float(perplexity(self.counts).log().mean().exp())

    def summary(self) -> dict[str, float | int]:
        return super().summary() | {
            "codes_used": int(self.used.min()),  # in the slot that uses fewest
            "perplexity": self.perplexity,
        }


def evaluate_vqvae(
    vqvae: VQVAE, pixels: Pixels, indices: Tensor, batch_size: int = 32
) -> Reconstruction:
    """PSNR, SSIM and code usage of a model in eval(), on 8-bit pixels as image codecs return them.

    Args:
        vqvae: its reconstructions are rounded by `to_8_bit` before they are measured.
        pixels: uint8 images, (3, H, W) each; see `LesionDataset.pixels`.
        indices: int64 (n,), the images to measure, such as a split.

    Returns:
        PSNR (dB), SSIM and bytes of each image, and how often each code was used over all of them.

    Raises:
        ValueError: `indices` is empty.
    """
    if not len(indices):
        raise ValueError("no images to evaluate: the split is empty")
    quality, likeness, counts = [], [], []
    with evaluating(vqvae) as device:
        for images, _ in batches(pixels, indices, batch_size, shuffle=False):
            images = images.to(device)
            out = vqvae(images)
            reconstruction = to_8_bit(out.reconstruction)
            quality.append(psnr(reconstruction, images).cpu())
            likeness.append(ssim(reconstruction, images).reshape(-1).cpu())
            counts.append(count_codes(out.codes, vqvae.quantizer.num_embeddings).cpu())
    codes_each = out.codes[0].numel()
    size = torch.full((len(indices),), codes_each * math.log2(vqvae.quantizer.num_embeddings) / 8)
    return Reconstruction(torch.cat(quality), torch.cat(likeness), size, torch.stack(counts).sum(0))


def paired_interval(
    ours: Tensor, theirs: Tensor, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference over the same images, and where 95 % of its bootstrap means lie.

    Images differ far more from each other than methods do on one image; taking the difference
    image by image removes the first.

    Args:
        ours, theirs: float (n,), of the same images in the same order.

    Returns:
        (mean, lower end, upper end) of ours - theirs.
    """
    difference = (ours - theirs).double()
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack(
        [
            difference[torch.randint(len(difference), difference.shape, generator=generator)].mean()
            for _ in range(draws)
        ]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(difference.mean()), float(low), float(high)


def code_bits(
    prior: PixelCNN, codes: Tensor, labels: Tensor | None = None, batch_size: int = 64
) -> Tensor:
    """-log2 p of every code under the prior, in eval().

    Args:
        codes: int64 (N, h, w, slots).
        labels: int64 (N,), or None for the unconditional path.

    Returns:
        float (N, h, w, slots), bits. Its sum over an image is the length of that image's codes in
        a file written with the prior; its mean is the bits per code.
    """
    bits = []
    with evaluating(prior) as device:
        for start in range(0, len(codes), batch_size):
            part = codes[start : start + batch_size].to(device)
            label = None if labels is None else labels[start : start + batch_size].to(device)
            logits = prior(part, label).float()
            nats = F.cross_entropy(logits.flatten(0, 3), part.flatten(), reduction="none")
            bits.append((nats / math.log(2)).view(part.shape).cpu())
    return torch.cat(bits)


def table_bits(train: Tensor, held_out: Tensor, num_embeddings: int) -> dict[str, float]:
    """Bits per code of priors that are only tables: what a learned prior has to beat.

    Args:
        train, held_out: int64 (N, h, w, slots). Tables are counted on `train` and paid for on
            `held_out`.

    Returns:
        bits per code on `held_out`: "uniform" over all codes; "unigram", one table for each slot;
        "unigram per position", one for each slot of each position; "bigram", one for each slot and
        each code that may stand to the left in that slot. The smoothing constant of each is the
        best of a few by leaving a tenth of `train` out.
    """
    cut = max(1, len(train) // 10)
    results = {"uniform": math.log2(num_embeddings)}
    for name, bits in (
        ("unigram", partial(_unigram_bits, places=False)),
        ("unigram per position", partial(_unigram_bits, places=True)),
        ("bigram", _bigram_bits),
    ):
        alphas = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
        best = min(alphas, key=lambda a: bits(train[cut:], train[:cut], num_embeddings, a))
        results[name] = bits(train, held_out, num_embeddings, best)
    return results


def _unigram_bits(counted: Tensor, paid: Tensor, k: int, alpha: float, places: bool) -> float:
    """`alpha` is added to each count."""
    # Columns have a table of their own: slots, or slots of positions.
    counted, paid = (x.flatten(1) if places else x.flatten(0, 2) for x in (counted, paid))
    counts = count_codes(counted, k).float() + alpha
    log_p = (counts / counts.sum(-1, keepdim=True)).log2()
    return float(-log_p.gather(1, paid.T).mean())


def _bigram_bits(counted: Tensor, paid: Tensor, k: int, alpha: float) -> float:
    """The table of each left neighbour counts as if `alpha` codes had been seen before, distributed
    as the slot's codes are."""

    def pairs(codes: Tensor) -> tuple[Tensor, Tensor]:
        """Left neighbours, k in the first column, and codes: (places, slots)."""
        left = F.pad(codes[:, :, :-1], (0, 0, 1, 0), value=k)
        return left.flatten(0, 2), codes.flatten(0, 2)

    slots = counted.shape[-1]
    alone = count_codes(counted.flatten(0, 2), k).float() + 1  # (slots, K)
    alone = alone / alone.sum(-1, keepdim=True)
    left, code = pairs(counted)
    index = (torch.arange(slots) * (k + 1) + left) * k + code
    counts = torch.bincount(index.flatten(), minlength=slots * (k + 1) * k).float()
    counts = counts.view(slots, k + 1, k) + alpha * alone[:, None]
    log_p = (counts / counts.sum(-1, keepdim=True)).log2()
    left, code = pairs(paid)
    return float(-log_p[torch.arange(slots), left, code].mean())
