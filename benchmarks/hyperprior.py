"""A learned baseline for the codec: a mean-scale hyperprior with a context model.

    python benchmarks/hyperprior.py --data PATH     # hours on a CPU; call again to resume

This is the standard method of learned image compression: latent values are rounded to integers
(scalar quantization) and coded with Gaussians, whose means and scales are predicted from the values
that are already decoded (context) and from a few values that are sent first (hyperprior). It has
the encoder and decoder of `ham10000`, starts from their weights like the codec of `codec.py`, and
is trained on the same images with the same objective: the mean PSNR at a given number of bytes.

The quantization step is chosen for each image, as in JPEG: the smallest of `STEPS` with at most 288
bytes. In training it is random. Number of bytes: the ideal code length and the header and padding
of the files of `vqlib.compress`. `codec_results.py` measures it.

Papers: Balle et al. (2018), "Variational image compression with a scale hyperprior",
arXiv:1802.01436; Minnen, Balle and Toderici (2018), "Joint autoregressive and hierarchical priors",
arXiv:1809.02736.
"""

from __future__ import annotations

import argparse
import math
from functools import partial

import torch
from torch import Tensor, nn

from vqlib import DEEP, load_pretrained, open_dataset
from vqlib.beyond.deep import DeepDecoder, DeepEncoder
from vqlib.checkpoints import fingerprint
from vqlib.data import ImageDataset, Pixels, batches
from vqlib.evaluation.entropy_coding import HEADER, WORD
from vqlib.metrics import ImageMetrics, psnr, ssim, to_8_bit
from vqlib.pixelcnn import MaskedConv2d
from vqlib.training import Schedule, fit, to_device
from vqlib.vqvae import eval_mode

CHANNELS, HYPER_CHANNELS = 192, 32
BUDGET = 288
RUN = "hyperprior"
TARGET_BITS = 8 * (BUDGET - HEADER - WORD / 2)  # of an image, in training, at step 1
STEPS = [2 ** (n / 8) for n in range(-12, 25)]  # quantization steps that a file may have
EPOCHS = 2
SCHEDULE = Schedule(lr=3e-4, warmup_steps=100, cosine_decay=True, grad_clip=1.0, ema_decay=0.998)


class Hyperprior(nn.Module):
    """Encoder, decoder, and the distribution of the rounded latent values."""

    def __init__(self) -> None:
        super().__init__()
        m, n = CHANNELS, HYPER_CHANNELS
        self.encoder, self.decoder = DeepEncoder(m), DeepDecoder(m)
        self.hyper_encoder = nn.Sequential(
            nn.Conv2d(m, 96, 3, padding=1), nn.SiLU(), nn.Conv2d(96, n, 4, stride=2, padding=1)
        )
        self.hyper_decoder = nn.Sequential(
            nn.ConvTranspose2d(n, 96, 4, stride=2, padding=1), nn.SiLU(), nn.Conv2d(96, m, 3, 1, 1)
        )
        self.context = MaskedConv2d("A", m, 2 * m, kernel_size=5)
        self.parameters_of_gaussians = nn.Sequential(
            nn.Conv2d(3 * m, 3 * m, 1), nn.SiLU(), nn.Conv2d(3 * m, 2 * m, 1)
        )
        self.hyper_mean = nn.Parameter(torch.zeros(1, n, 1, 1))
        self.hyper_log_scale = nn.Parameter(torch.zeros(1, n, 1, 1))
        # The weight of the rate is adjusted until the mean rate is TARGET_BITS.
        self.register_buffer("log_rate_weight", torch.tensor(math.log(2e-4)))

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """Start from the weights of `ham10000`, with latent values rotated to their principal
        components: scalar quantization assumes that they are uncorrelated."""
        vqvae, _ = load_pretrained("ham10000")
        for new, old, last in ((self.encoder, vqvae.encoder, -1), (self.decoder, vqvae.decoder, 0)):
            for index, (new_layer, old_layer) in enumerate(zip(new, old, strict=True)):
                if index != last % len(new):
                    new_layer.load_state_dict(old_layer.state_dict())
        latents = torch.cat([vqvae.encoder(batch) for batch in images.split(32)])
        vectors = latents.movedim(1, -1).flatten(0, 2)
        mean = vectors.mean(0)
        variances, directions = torch.linalg.eigh((vectors - mean).T.cov())
        basis = directions.flip(1)[:, :CHANNELS]  # (256, CHANNELS)
        old_out, old_in = vqvae.encoder[-1], vqvae.decoder[0]
        # With a step of 1 an image then has about 300 bytes.
        scale = 0.5
        rotation = basis.T * scale
        self.encoder[-1].weight.copy_((rotation @ old_out.weight.flatten(1))[..., None, None])
        self.encoder[-1].bias.copy_(rotation @ (old_out.bias - mean))
        weight = old_in.weight.flatten(1)
        self.decoder[0].weight.copy_((weight @ basis / scale)[..., None, None])
        self.decoder[0].bias.copy_(old_in.bias + weight @ mean)
        # The Gaussians start with the variances of the components.
        log_scales = (variances.flip(0)[:CHANNELS].clamp_min(1e-4).sqrt() * scale).log()
        last = self.parameters_of_gaussians[-1]
        last.weight.mul_(0.1)
        last.bias.copy_(torch.cat([torch.zeros(CHANNELS), log_scales]))

    def forward(self, images: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions and bits of each image.

        In train() mode, uniform noise replaces rounding in the rate, and the straight-through
        estimator passes the gradient through rounding in the reconstruction.

        Args:
            images: float32 (B, 3, H, W).
            step: float32 (B, 1, 1, 1), quantization steps.

        Returns:
            float32 (B, 3, H, W), not clamped; float32 (B,).
        """
        latents = self.encoder(images).float()
        hyper = self.hyper_encoder(latents).float()
        if self.training:
            hyper = hyper + torch.rand_like(hyper) - 0.5
        else:
            hyper = hyper.round()
        hyper_mean, hyper_scale = self.hyper_mean, self.hyper_log_scale.exp()
        bits = gaussian_bits(hyper - hyper_mean, hyper_scale, 1.0).flatten(1).sum(1)
        side = self.hyper_decoder(hyper).float()
        if not self.training:
            decoded, more_bits = self._quantize_in_order(latents, side, step)
            return self.decoder(decoded).float(), bits + more_bits
        noisy = latents + (torch.rand_like(latents) - 0.5) * step
        means, scales = self._gaussians(noisy, side)
        bits = bits + gaussian_bits(noisy - means, scales, step).flatten(1).sum(1)
        residual = (latents - means) / step
        rounded = means + (residual + (residual.round() - residual).detach()) * step
        return self.decoder(rounded).float(), bits

    def _gaussians(self, context: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations, each (B, CHANNELS, h, w)."""
        features = torch.cat([self.context(context), side], 1)
        means, log_scales = self.parameters_of_gaussians(features).float().chunk(2, 1)
        return means, log_scales.clamp(-7, 7).exp()

    def _quantize_in_order(
        self, latents: Tensor, side: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rounded latent values and their bits, position by position, as a decoder gets them."""
        decoded, bits = torch.zeros_like(latents), 0.0
        for row in range(latents.shape[2]):
            for column in range(latents.shape[3]):
                # The context reaches two rows and columns.
                rows, columns = (
                    slice(max(0, row - 2), row + 1),
                    slice(max(0, column - 2), column + 3),
                )
                at = row - rows.start, column - columns.start
                window = decoded[:, :, rows, columns], side[:, :, rows, columns]
                means, scales = (x[:, :, at[0], at[1]] for x in self._gaussians(*window))
                flat_step = step[:, :, 0, 0]
                residual = ((latents[:, :, row, column] - means) / flat_step).round() * flat_step
                decoded[:, :, row, column] = means + residual
                bits = bits + gaussian_bits(residual, scales, flat_step).sum(1)
        return decoded, bits

    def loss(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and values to log."""
        step = torch.exp2(torch.rand(len(images), 1, 1, 1) * 2 - 1)  # 0.5 to 2
        decoded, bits = self(images, step)
        log_mse = (decoded - images).square().flatten(1).mean(1).log()
        rate = bits.mean()
        with torch.no_grad():
            self.log_rate_weight += 0.02 * (rate / TARGET_BITS - 1).clamp(-1, 1)
        loss = 0.02 * (log_mse.mean() + self.log_rate_weight.exp().detach() * rate)
        logged = {"psnr_db": log_mse.mean() * -10 / math.log(10), "bytes": rate / 8}
        return loss, logged | {"log_rate_weight": self.log_rate_weight.clone()}


def gaussian_bits(difference: Tensor, scale: Tensor, step: Tensor | float) -> Tensor:
    """-log2 of the probability of the interval of length `step` around a value that differs from
    the mean by `difference`; at most 40 bits, because a decoder has an escape code."""
    upper = (difference.abs() + step / 2) / scale
    lower = (difference.abs() - step / 2) / scale
    p = torch.special.ndtr(-lower) - torch.special.ndtr(-upper)
    return -p.clamp_min(2.0**-40).log2()


def train_hyperprior(data: ImageDataset, run: str = RUN) -> Hyperprior:
    """Train the model, continue its training, or load it if its training is finished."""
    split, pixels = DEEP.split(data), data.pixels(256)
    model = Hyperprior()

    def initialize() -> None:
        images, _ = next(batches(pixels, split.train, 512, DEEP.augment))
        model.initialize(images)

    fit(
        model,
        run=run,
        config={"kind": "hyperprior", "pixels": pixels.fingerprint, "split": fingerprint(*split)},
        schedule=SCHEDULE,
        epochs=EPOCHS,
        steps_per_epoch=-(-len(split.train) // DEEP.batch_size),
        initialize=initialize,
        get_batches=partial(batches, pixels, split.train, DEEP.batch_size, DEEP.augment, 0),
        compute_loss=lambda batch: model.loss(to_device(batch[0], model)),
        evaluate=lambda folder, epoch: (evaluate_at_step(model, pixels, split.val[:50]), None),
        device="cpu",
        save_every=120,
    )
    return model.eval()


def evaluate_at_step(model: Hyperprior, pixels: Pixels, indices: Tensor) -> dict[str, float]:
    """Mean PSNR and bytes of images with quantization step 1."""
    values = []
    with eval_mode(model):
        for images, _ in batches(pixels, indices, 25, shuffle=False):
            decoded, bits = model(images, torch.ones(len(images), 1, 1, 1))
            values.append(torch.stack([psnr(to_8_bit(decoded.clamp(0, 1)), images), bits / 8]))
    return dict(zip(("psnr_db", "bytes"), torch.cat(values, 1).mean(1).tolist(), strict=True))


def evaluate_within_budget(model: Hyperprior, pixels: Pixels, indices: Tensor) -> ImageMetrics:
    """PSNR and SSIM of 8-bit pixels and bytes of each image with the smallest of the `STEPS` whose
    file is within the budget, found by bisection; NaN if there is none."""
    parts, steps = [], torch.tensor(STEPS)
    with eval_mode(model):
        for images, _ in batches(pixels, indices, 32, shuffle=False):
            best = torch.full((3, len(images)), math.nan)
            low, high = torch.full((len(images),), -1), torch.full((len(images),), len(steps))
            while (high - low > 1).any():
                middle = (low + high).clamp(0, 2 * len(steps) - 2) // 2
                decoded, bits = model(images, steps[middle][:, None, None, None])
                decoded = to_8_bit(decoded.clamp(0, 1))
                num_bytes = HEADER + WORD * (bits / (8 * WORD)).ceil()
                found = torch.stack([psnr(decoded, images), ssim(decoded, images), num_bytes])
                fits = (num_bytes <= BUDGET) & (middle < high)
                best = torch.where(fits, found, best)
                low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
            parts.append(best)
    return ImageMetrics(*torch.cat(parts, 1).clone())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    train_hyperprior(open_dataset(options.data))


if __name__ == "__main__":
    main()
