"""A decoder for realistic images: it samples the detail that the codes do not contain.

`VQVAE.decode` returns roughly the mean of all photographs with the same codes. The mean has the
lowest squared error, but it is smooth: hairs and pigment network, whose position the codes do
not determine, are averaged away. `RealisticDecoder` samples the residual r = photograph - decoded
image from an approximation of p(r | decoded image). The detail is plausible and *invented*: it is
not evidence of anything, and two samples differ in it. If the decoded image is the mean, the
expected squared error of a perfect sample is exactly twice that of the mean, which costs 3 dB (Blau
and Michaeli 2018).

How much detail is missing differs between photographs: the root mean square (rms) of the residual
of sharp images is several times that of smooth ones. It is a single number, which the network
cannot read from noise, because averages over many values of noise are all equal. It is therefore
sampled first, from a log-normal distribution that depends on the roughness of the decoded image,
the rms difference of neighboring pixels. The flow is conditioned on it:

    log rms ~ Normal(a + b * log(roughness(decoded)), std^2)        r / rms ~ flow(decoded, rms)

A network v learns the velocity that moves noise to normalized residuals along straight lines, and
sampling integrates dx/dt = v(x, t, decoded, rms) from t = 0 (noise) to t = 1 (residual):

    x_t = (1 - t) * noise + t * r / rms
    loss = E |v(x_t, t, decoded, rms) - (r / rms - noise)|^2

Here r / rms and x are the principal components of patches of 4x4 pixels. Each is scaled to a
variance of about 1, and the weakest ones to less. In pixels, fine detail and color have much less
energy than coarse brightness; white noise would dominate them, and a small amount of remaining
noise would be visible. White noise in these components has roughly the covariance of residuals, so
that an untrained network already adds noise of about the right strength in each component.

Except for the rms, the network reads a neighborhood of each pixel only, so it is trained on crops
and applied to images of any size.

Papers: flow matching: Lipman et al. (2023), arXiv:2210.02747; rectified flow: Liu et al. (2023),
arXiv:2209.03003; t from a logit-normal distribution: Esser et al. (2024), arXiv:2403.03206, section
3.1; scaling of input and output: Karras et al. (2022), arXiv:2206.00364, section 5; perception and
distortion: Blau and Michaeli (2018), arXiv:1711.06077.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import register_model
from ..metrics import to_8_bit
from ..training import Precision
from ..vqvae import eval_mode

PATCH = 4  # pixels of a side that one position of the network's first level represents
COMPONENTS = 3 * PATCH**2
LEAST_RMS = 0.5 / 255  # half a gray level, so that logarithms and quotients are finite
LEAST_STD = 0.2  # of normalized residuals, whose rms over all pixels of an image is 1
TIME_FREQUENCIES = 32


def root_mean_square(images: Tensor) -> Tensor:
    """Root mean square of each image, (B, C, H, W) to (B,)."""
    return images.square().mean((1, 2, 3)).sqrt()


def roughness(images: Tensor) -> Tensor:
    """Rms difference of horizontally and vertically neighboring pixels, (B, C, H, W) to (B,).

    Images are rounded to 8 bits first, because rounding makes smooth images rougher, and decoded
    images are stored in 8 bits for the training.
    """
    pixels = to_8_bit(images)
    across, down = (root_mean_square(pixels.diff(dim=dim)) for dim in (-1, -2))
    return (across.square() + down.square()).sqrt()


class TimedBlock(nn.Module):
    """x + f(x, t), where f consists of two 3x3 convolutions; (B, C, h, w) to the same shape.

    The embedding of the time t scales and shifts the features between the convolutions (FiLM, Perez
    et al. 2018, arXiv:1709.07871). Features are normalized over the channels of each position: a
    mean over the whole map would differ between a crop and an image.
    """

    def __init__(self, channels: int, time_channels: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = ChannelNorm(channels), ChannelNorm(channels)
        self.first = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.second = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.scale_and_shift = nn.Linear(time_channels, 2 * channels)
        for layer in (self.second, self.scale_and_shift):  # each block is the identity at first
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`time`: (B, time_channels)."""
        scale, shift = self.scale_and_shift(time)[:, :, None, None].chunk(2, dim=1)
        y = self.first(F.silu(self.first_norm(x)))
        y = self.second_norm(y) * (1 + scale) + shift
        return x + self.second(F.silu(y))


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of each position of a map (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@register_model
class RealisticDecoder(nn.Module):
    """Conditional flow from noise to residuals.

    Call `fit_statistics` before training.

    Args:
        channels: channels of the two levels, whose positions are patches of 4x4 and 8x8 pixels.
        blocks: residual blocks before, on and after the lower level.
        time_channels: dimension of the embedding of t.
    """

    def __init__(
        self,
        channels: tuple[int, int] = (80, 112),
        blocks: tuple[int, int, int] = (3, 3, 3),
        time_channels: int = 96,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "channels": list(channels),
            "blocks": list(blocks),
            "time_channels": time_channels,
        }
        upper, lower = channels

        def make_blocks(level_channels: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(TimedBlock(level_channels, time_channels) for _ in range(count))

        self.register_buffer("basis", torch.eye(COMPONENTS))  # rows: orthonormal directions
        self.register_buffer("component_std", torch.ones(COMPONENTS))
        # log rms = [0] + [1] * log roughness, with an error of standard deviation [2]
        self.register_buffer("rms_model", torch.tensor([-4.0, 0.0, 0.3]))
        self.time_embedding = nn.Sequential(
            nn.Linear(2 * TIME_FREQUENCIES + 1, time_channels),
            nn.SiLU(),
            nn.Linear(time_channels, time_channels),
            nn.SiLU(),
        )
        self.first = nn.Conv2d(2 * COMPONENTS, upper, kernel_size=3, padding=1)
        self.blocks_before = make_blocks(upper, blocks[0])
        self.down = nn.Conv2d(upper, lower, kernel_size=2, stride=2)
        self.blocks_below = make_blocks(lower, blocks[1])
        self.up = nn.ConvTranspose2d(lower, upper, kernel_size=2, stride=2)
        self.blocks_after = make_blocks(upper, blocks[2])
        self.last_norm = ChannelNorm(upper)
        self.last = nn.Conv2d(upper, COMPONENTS, kernel_size=3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @torch.no_grad()
    def fit_statistics(self, photographs: Tensor, decoded: Tensor) -> None:
        """Fit the distribution of the rms, and the principal components of normalized residuals.

        Components with a standard deviation below `LEAST_STD` are hardly visible. They are divided
        by at least `LEAST_STD`, so that they count less in the loss.

        Args:
            photographs, decoded: float (B, 3, H, W), pixels in [0, 1], of the training split.
        """
        residuals = photographs - decoded
        rms = root_mean_square(residuals).clamp_min(LEAST_RMS)
        x, y = (z.log().double() for z in (roughness(decoded).clamp_min(LEAST_RMS), rms))
        centered = x - x.mean()
        slope = (centered * y).mean() / centered.square().mean().clamp_min(1e-12)
        intercept = y.mean() - slope * x.mean()
        error = (y - intercept - slope * x).std(correction=0)
        self.rms_model.copy_(torch.stack([intercept, slope, error]))
        normalized = residuals / rms[:, None, None, None]
        patches = F.pixel_unshuffle(normalized, PATCH).movedim(1, -1).flatten(0, 2).double()
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        self.basis.copy_(directions.T)
        self.component_std.copy_(variances.clamp_min(0).add(LEAST_STD**2).sqrt())

    def sample_rms(self, decoded: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Sample the rms of the residual of each decoded image, float (B,), of pixels in [0, 1]."""
        intercept, slope, std = self.rms_model.tolist()
        source = decoded.device if generator is None else generator.device
        noise = torch.randn(len(decoded), generator=generator, device=source).to(decoded.device)
        log_roughness = roughness(decoded).clamp_min(LEAST_RMS).log()
        return (intercept + slope * log_roughness + std * noise).exp()

    def to_components(self, residuals: Tensor) -> Tensor:
        """Normalized residuals, float32 (B, 3, H, W), to (B, COMPONENTS, H/4, W/4); in float32,
        because weak components are small differences of pixels."""
        with torch.autocast(residuals.device.type, enabled=False):
            patches = F.pixel_unshuffle(residuals.float(), PATCH)
            weight = (self.basis / self.component_std[:, None])[:, :, None, None]
            return F.conv2d(patches, weight)

    def to_residuals(self, components: Tensor) -> Tensor:
        """Inverse of `to_components`."""
        with torch.autocast(components.device.type, enabled=False):
            weight = (self.basis.T * self.component_std)[:, :, None, None]
            return F.pixel_shuffle(F.conv2d(components.float(), weight), PATCH)

    def forward(self, x: Tensor, time: Tensor, decoded: Tensor, rms: Tensor) -> Tensor:
        """Velocity at the point x and the time t.

        Args:
            x: float (B, COMPONENTS, H/4, W/4), between noise (t = 0) and the components of a
                normalized residual (t = 1).
            time: float (B,), in [0, 1].
            decoded: float (B, 3, H, W), pixels in [0, 1], result of `VQVAE.decode`; H and W
                divisible by 8.
            rms: float (B,), root mean square of the residual of the whole image. Values below
                `LEAST_RMS` have the effect of `LEAST_RMS`.

        Returns:
            float, the shape of x.
        """
        t = time[:, None, None, None]
        scale = (t.square() + (1 - t).square()).rsqrt()  # 1 / standard deviation of x_t
        frequencies = torch.logspace(0, 2, TIME_FREQUENCIES, device=x.device)
        angles = time[:, None] * frequencies
        level = (rms.clamp_min(LEAST_RMS).log() + 4)[:, None] / 0.3  # about 0 +- 1 for lesions
        embedded = self.time_embedding(torch.cat([angles.sin(), angles.cos(), level], dim=1))
        # Pixels of skin have a mean of about 0.6 and a standard deviation of about 0.2.
        patches = F.pixel_unshuffle(4 * (decoded - 0.6), PATCH)
        y = self.first(torch.cat([scale * x, patches], dim=1))
        for block in self.blocks_before:
            y = block(y, embedded)
        z = self.down(y)
        for block in self.blocks_below:
            z = block(z, embedded)
        y = y + self.up(z)
        for block in self.blocks_after:
            y = block(y, embedded)
        output = self.last(F.silu(self.last_norm(y)))
        # If the components were independent Gaussian noise of variance 1, the best prediction of
        # the velocity would be the first term, with an error of standard deviation `scale`. The
        # layers predict this error, in units of its standard deviation (Karras et al. 2022).
        return (2 * t - 1) * scale.square() * x + scale * output

    def loss(
        self, photographs: Tensor, decoded: Tensor, rms: Tensor, time: Tensor | None = None
    ) -> Tensor:
        """Flow-matching loss of each image, (B,): mean squared error of the velocity.

        Noise is sampled from PyTorch's default generator, and so is the time if it is None: from a
        logit-normal distribution, which emphasizes the middle.

        Args:
            photographs, decoded: float (B, 3, H, W), pixels in [0, 1]; whole images or crops.
            rms: float (B,), root mean square of the residuals of the whole images.
            time: float (B,), in [0, 1].
        """
        divisor = rms.clamp_min(LEAST_RMS)[:, None, None, None]
        residual = self.to_components((photographs - decoded) / divisor)
        noise = torch.randn_like(residual)
        if time is None:
            time = torch.randn(len(residual), device=residual.device).sigmoid()
        t = time[:, None, None, None]
        velocity = self((1 - t) * noise + t * residual, time, decoded, rms).float()
        return (velocity - (residual - noise)).square().mean((1, 2, 3))

    def sample(
        self,
        decoded: Tensor,
        steps: int = 10,
        noise_scale: float = 1.0,
        generator: torch.Generator | None = None,
        *,
        rms: Tensor | None = None,
        solver: str = "multistep",
    ) -> Tensor:
        """Decoded images with sampled detail, computed in eval() mode.

        Args:
            decoded: float32 (B, 3, H, W), pixels in [0, 1], H and W divisible by 8.
            steps: equal steps from t = 0 to t = 1. A single Euler step from noise returns
                approximately the mean, that is the decoded image.
            noise_scale: factor of the initial noise. Below 1, detail is weaker and the squared
                error smaller.
            generator: random generator on any device, for reproducible samples.
            rms: float (B,), root mean square of the residuals, at least 0; None: sampled with
                `sample_rms`.
            solver: "euler" (first order), or "multistep": the Adams-Bashforth method of second
                order, which extrapolates the velocity to the middle of the step from this and the
                previous point. Both evaluate the network once per step, and "multistep" once more
                for its first step (Heun's method), since there is no previous point.

        Returns:
            float32 (B, 3, H, W), pixels in [0, 1].

        Raises:
            ValueError: an argument has the wrong shape, dtype or range.
        """
        shape = decoded.shape
        fits = len(shape) == 4 and shape[1] == 3 and not (shape[2] % 8 or shape[3] % 8)
        if not fits or decoded.dtype != torch.float32 or not decoded.numel():
            raise ValueError(
                "decoded must be float32 (B, 3, H, W), H and W divisible by 8, as VQVAE.decode "
                f"returns it, got {decoded.dtype} {tuple(shape)}"
            )
        if not 0 <= float(decoded.min()) <= float(decoded.max()) <= 1:
            raise ValueError("decoded must have pixels in [0, 1], as VQVAE.decode returns them")
        if steps < 1 or not 0 <= noise_scale < math.inf:
            raise ValueError(
                f"expected at least 1 step and a finite noise_scale >= 0, got {steps} and "
                f"{noise_scale}"
            )
        if rms is not None and (rms.shape != shape[:1] or not 0 <= rms.min() <= rms.max() <= 1):
            raise ValueError(f"rms must be float ({shape[0]},) with values in [0, 1], got {rms}")
        if solver not in ("euler", "multistep"):
            raise ValueError(f'solver must be "euler" or "multistep", got {solver!r}')
        with eval_mode(self) as device:
            source = device if generator is None else generator.device
            if rms is None:
                rms = self.sample_rms(decoded, generator)
            rms = rms.to(device)
            noise = torch.randn(
                shape[0],
                COMPONENTS,
                shape[2] // PATCH,
                shape[3] // PATCH,
                generator=generator,
                device=source,
            )
            layout = {"device": device, "memory_format": torch.channels_last}
            images, x = decoded.to(**layout), (noise_scale * noise).to(**layout)
            times = torch.linspace(0, 1, steps + 1, device=device).unsqueeze(1).expand(-1, len(x))
            with Precision.choose(device).autocast(device):
                previous = None
                for start, end in pairwise(times):
                    velocity = slope = self(x, start, images, rms).float()
                    if solver == "multistep":
                        if previous is None:
                            next_velocity = self(x + velocity / steps, end, images, rms).float()
                            slope = (velocity + next_velocity) / 2
                        else:
                            slope = velocity + (velocity - previous) / 2
                        previous = velocity
                    x = x + slope / steps
            out = (images + rms[:, None, None, None] * self.to_residuals(x)).clamp(0, 1)
        return out.clone(memory_format=torch.contiguous_format)
