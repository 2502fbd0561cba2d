"""Chapter 3: an image becomes 256 codes, and 256 codes become an image.

The layers are the report's: five convolutions that halve the image take 256x256x3 to 8x8x256, a
quantizer turns each of the 64 positions into four codes of 9 bits, and five transposed convolutions
(which make small maps *larger*) lead back. 256 codes x 9 bits = 288 bytes, whatever was in the
image.

Two readings of the same layers, by name:
- `VQVAE()` is the workbook's: pixels in [0, 1] in and out, no ReLU before the quantizer, a codebook
  for each slot that starts from data and restarts idle codes.
- `VQVAE.report()` is the report's, flaws included: the target is normalised and so lies mostly
  outside the sigmoid's [0, 1], one randomly started codebook is shared by all slots.

`VQVAE.deep()` has other layers around the same quantizer; `deep.py` tells of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deep import DeepDecoder, DeepEncoder, start_as_linear_codec
from .quantizer import VectorQuantizer, check_finite, codebook_fingerprint

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHANNELS = (3, 32, 64, 128, 256, 256)
DOWNSCALE = 32  # five layers of stride 2
# How far pixels may lie outside [0, 1]. Bicubic scaling overshoots at edges, by about 0.2 at most,
# and does no harm; bytes (0..255), [-1, 1] and ImageNet's normalisation lie further outside.
OVERSHOOT = 0.25


class Encoder(nn.Sequential):
    """Images (B, 3, H, W) to feature maps (B, 256, H/32, W/32).

    Five Conv2d 4x4, stride 2, padding 1; BatchNorm and ReLU after the first four. The report has a
    ReLU after the fifth too (`final_relu`): then no latent is ever negative, and a 64-dimensional
    code has one of the space's 2^64 orthants to live in.
    """

    def __init__(self, final_relu: bool = False) -> None:
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(pairwise(CHANNELS)):
            layers.append(nn.Conv2d(c_in, c_out, kernel_size=4, stride=2, padding=1))
            if i < 4:
                layers += [nn.BatchNorm2d(c_out), nn.ReLU()]
        super().__init__(*layers, *([nn.ReLU()] if final_relu else []))


class Decoder(nn.Sequential):
    """Feature maps (B, 256, h, w) to values in [0, 1], (B, 3, 32h, 32w).

    Five ConvTranspose2d 4x4, stride 2, padding 1; BatchNorm and ReLU after the first four, sigmoid
    after the last.
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(pairwise(CHANNELS[::-1])):
            layers.append(nn.ConvTranspose2d(c_in, c_out, kernel_size=4, stride=2, padding=1))
            layers += [nn.BatchNorm2d(c_out), nn.ReLU()] if i < 4 else [nn.Sigmoid()]
        super().__init__(*layers)


class VQVAEOutput(NamedTuple):
    """What `VQVAE.forward` returns."""

    reconstruction: Tensor  # (B, 3, H, W), pixels in [0, 1]
    raw: Tensor  # (B, 3, H, W), the decoder's own output, before it is made pixels
    loss: Tensor  # scalar: reconstruction_loss / data_variance + vq_loss
    reconstruction_loss: Tensor  # scalar; MSE in the units of the target
    vq_loss: Tensor  # scalar
    codes: Tensor  # int64 (B, H/32, W/32, 4)
    perplexity: Tensor  # scalar, of this batch


class VQVAE(nn.Module):
    """Encoder, vector quantizer, decoder.

    Args:
        num_embeddings, embedding_dim, commitment_cost: see `VectorQuantizer`.
        normalize: the report's input: (x - ImageNet mean) / std goes into the encoder *and* is the
            target of a decoder that ends in a sigmoid.
        final_relu: see `Encoder`.
        data_variance: what the reconstruction loss is divided by before the quantizer's loss is
            added. Without it, an MSE of 0.002 is nothing beside the commitment loss, and the
            encoder shrinks its latents instead of describing the image. 0.025 is the variance of
            HAM10000 pixels in [0, 1]; 1 suits the report's normalised ones.
        ema_decay, codebooks, data_init, restart_after: see `VectorQuantizer`; `codebooks=None`
            makes one for each slot.
        network: whose layers, the report's or those of `deep.py`.

    Raises:
        ValueError: another `network`.
    """

    def __init__(
        self,
        num_embeddings: int = 512,
        embedding_dim: int = 64,
        commitment_cost: float = 0.25,
        *,
        normalize: bool = False,
        final_relu: bool = False,
        data_variance: float = 0.025,
        ema_decay: float | None = 0.99,
        codebooks: int | None = None,
        data_init: bool = True,
        restart_after: int | None = 20,
        network: Literal["report", "deep"] = "report",
    ) -> None:
        super().__init__()
        if network not in ("report", "deep"):
            raise ValueError(f'network must be "report" or "deep", got {network!r}')
        self.slots = CHANNELS[-1] // embedding_dim
        codebooks = self.slots if codebooks is None else codebooks
        # Kept so that a file of weights can say how to build the model they fit.
        self.config: dict[str, Any] = {
            "num_embeddings": num_embeddings,
            "embedding_dim": embedding_dim,
            "commitment_cost": commitment_cost,
            "normalize": normalize,
            "final_relu": final_relu,
            "data_variance": data_variance,
            "ema_decay": ema_decay,
            "codebooks": codebooks,
            "data_init": data_init,
            "restart_after": restart_after,
            "network": network,
        }
        deep = network == "deep"
        self.encoder = DeepEncoder(CHANNELS[-1]) if deep else Encoder(final_relu)
        self.quantizer = VectorQuantizer(
            num_embeddings,
            embedding_dim,
            commitment_cost,
            ema_decay=ema_decay,
            codebooks=codebooks,
            data_init=data_init,
            restart_after=restart_after,
        )
        self.decoder = DeepDecoder(CHANNELS[-1]) if deep else Decoder()
        self.normalize, self.data_variance = normalize, data_variance
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    @classmethod
    def report(cls, ema_decay: float | None = 0.99) -> VQVAE:
        """The report's model: 3,545,155 parameters, of which 65,536 are the codebook and its EMA
        accumulator (512 x 64 each). With `ema_decay=None`, the gradient codebook that the report's
        text describes but its count contradicts (3,512,387 parameters)."""
        return cls(
            normalize=True,
            final_relu=True,
            data_variance=1.0,
            ema_decay=ema_decay,
            codebooks=1,
            data_init=False,
            restart_after=None,
        )

    @classmethod
    def deep(cls) -> VQVAE:
        """The workbook's best model at 288 bytes; call `start_from` before training it."""
        return cls(network="deep")

    @property
    def codebook_fingerprint(self) -> str:
        """16 hex digits by which to know the codebook; codes and priors fit one codebook only."""
        return codebook_fingerprint(self.quantizer.codebook)

    @torch.no_grad()
    def start_from(self, images: Tensor) -> None:
        """Start a deep model as a linear codec: principal components, and k-means codebooks.

        Args:
            images: float32 (B, 3, H, W), pixels in [0, 1]; some hundreds, of the training split.

        Raises:
            ValueError: images that `encode` would refuse, or a model with the report's layers.
        """
        if self.config["network"] != "deep":
            raise ValueError('only network="deep" can start as a linear codec')
        target = self._target(images, check_range=True)
        start_as_linear_codec(self.encoder, self.decoder, target, self.slots)
        latents = [self.encoder(part) for part in target.split(32)]
        self.quantizer.start_from(torch.cat(latents))

    def forward(self, images: Tensor) -> VQVAEOutput:
        """Encode, quantize, decode, and say how far off the result is.

        Args:
            images: float32 (B, 3, H, W), pixels in [0, 1], H and W divisible by 32.

        Raises:
            ValueError: wrong shape or dtype, or no image. In eval() also: pixels that are not
                finite or far outside [0, 1], and weights that make the loss NaN or infinite. In
                train() these are left to the training loop, which looks at the loss of each step:
                another look would make a GPU wait.
        """
        target = self._target(images, check_range=not self.training)
        quantized = self.quantizer(self.encoder(target))
        raw = self.decoder(quantized.vectors).float()
        reconstruction_loss = F.mse_loss(raw, target)
        if not self.training:
            check_finite(reconstruction_loss + quantized.loss, "the loss of these images")
        return VQVAEOutput(
            self._to_pixels(raw),
            raw,
            reconstruction_loss / self.data_variance + quantized.loss,
            reconstruction_loss,
            quantized.loss,
            quantized.codes,
            quantized.perplexity,
        )

    def encode(self, images: Tensor) -> Tensor:
        """Images to codes, always as in eval(): an image's codes do not depend on its neighbours
        in the batch, and no statistics are updated. The model stays in the mode it is in.

        Args:
            images: float32 (B, 3, H, W), pixels in [0, 1], H and W divisible by 32.

        Returns:
            int64 (B, H/32, W/32, 4).

        Raises:
            ValueError: wrong shape or dtype, no image, pixels that are not finite or far outside
                [0, 1], or weights that make the features NaN or infinite.
        """
        with evaluating(self):
            target = self._target(images, check_range=True)
            codes = self.quantizer.encode(self.encoder(target))
        return codes.clone()

    def decode(self, codes: Tensor) -> Tensor:
        """Codes to images, always as in eval(). The model stays in the mode it is in.

        Args:
            codes: int64 (B, h, w, 4), values in 0..num_embeddings-1.

        Returns:
            float32 (B, 3, 32h, 32w), pixels in [0, 1].

        Raises:
            ValueError: wrong shape or dtype, a code outside 0..num_embeddings-1, or weights that
                make the pixels NaN or infinite.
        """
        if codes.ndim != 4 or codes.shape[-1] != self.slots or codes.dtype != torch.long:
            raise ValueError(
                f"codes must be int64 (B, h, w, {self.slots}), got {codes.dtype} "
                f"{tuple(codes.shape)}"
            )
        # Waits for the answer on a GPU too, where `lookup` would stop the device.
        if codes.numel() and not 0 <= codes.min() <= codes.max() < self.config["num_embeddings"]:
            raise ValueError(
                f"codes must lie in 0..{self.config['num_embeddings'] - 1}, got "
                f"{int(codes.min())}..{int(codes.max())}"
            )
        with evaluating(self):
            raw = self.decoder(self.quantizer.lookup(codes)).float()
            check_finite(raw, "the decoder's output")
        return self._to_pixels(raw)

    def _target(self, images: Tensor, check_range: bool) -> Tensor:
        """What the model encodes and rebuilds: the images, normalised if the model is the report's.

        Args:
            check_range: look at the pixels too, for which a GPU has to be waited for.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.float32:
            raise ValueError(
                f"images must be float32 (B, 3, H, W) with pixels in [0, 1], got {images.dtype} "
                f"{tuple(images.shape)}"
            )
        if images.shape[2] % DOWNSCALE or images.shape[3] % DOWNSCALE or not images.numel():
            raise ValueError(
                f"there must be at least one image, with a height and width divisible by "
                f"{DOWNSCALE}, got {tuple(images.shape)}"
            )
        if check_range:
            low, high = (float(end) for end in images.aminmax())  # NaN if any pixel is
            if not -OVERSHOOT <= low <= high <= 1 + OVERSHOOT:
                raise ValueError(
                    f"images must have pixels in [0, 1], got {low:g}..{high:g}: divide values in "
                    "0..255 by 255, and do not normalise (the model does so itself if need be)"
                )
        return (images - self.mean) / self.std if self.normalize else images

    def _to_pixels(self, raw: Tensor) -> Tensor:
        return (raw * self.std + self.mean if self.normalize else raw).clamp(0, 1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """A block in which a model is in eval() and keeps nothing for gradients. At its end, be that an
    error, each of its modules is back in the mode it was in.

    Gives the device that the model is on. Tensors made inside are read-only for autograd and for
    changes in place: what leaves a function is made outside, or cloned there.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        for module in training:
            module.training = True
