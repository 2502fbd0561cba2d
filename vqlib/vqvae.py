"""The VQ-VAE: encoder, vector quantizer and decoder, with the report's layers or deeper ones.

The encoder maps 256x256x3 pixels to an 8x8x256 feature map, the quantizer of `quantizer.py` turns
each of the 64 positions into four 9-bit codes (256 codes, 288 bytes for every image), and the
decoder maps codes back to pixels. `codes` and `pixelcnn` build on these codes.

There are three configurations:
- `VQVAE()`, the workbook's: pixels in [0, 1] as input and target, no ReLU before the quantizer,
  one codebook per slot that is initialized from data, and restarts of unused codes.
- `VQVAE.report()`, the report's, including its flaws: the target is normalized and therefore lies
  mostly outside the sigmoid's range [0, 1]; one randomly initialized codebook for all slots.
- `VQVAE.deep()`: the layers of `beyond.deep` around the same quantizer.

Paper: van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning" (2017),
arXiv:1711.00937.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import register_model
from .checks import check_tensor, check_whole
from .quantizer import VectorQuantizer, check_codes, check_finite, codebook_fingerprint

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHANNELS = (3, 32, 64, 128, 256, 256)
DOWNSCALE = 32  # five layers of stride 2
# Tolerance for pixels outside [0, 1]. Bicubic resizing overshoots at edges by at most about 0.2,
# which is harmless. Bytes (0..255), [-1, 1] and ImageNet's normalization are farther outside.
OVERSHOOT = 0.25


class Encoder(nn.Sequential):
    """Images (B, 3, H, W) to feature maps (B, 256, H/32, W/32).

    Five Conv2d 4x4, stride 2, padding 1; BatchNorm and ReLU after the first four. The report adds a
    ReLU after the fifth (`final_relu`). Then no component of a latent vector is negative, and all
    64-dimensional latent vectors lie in one of the 2^64 orthants of the space.
    """

    def __init__(self, final_relu: bool = False) -> None:
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(pairwise(CHANNELS)):
            layers.append(nn.Conv2d(c_in, c_out, kernel_size=4, stride=2, padding=1))
            if i < 4:
                layers += [nn.BatchNorm2d(c_out), nn.ReLU()]
        super().__init__(*layers, *([nn.ReLU()] if final_relu else []))


class Decoder(nn.Sequential):
    """Feature maps (B, 256, h, w) to outputs in [0, 1], (B, 3, 32h, 32w).

    Five ConvTranspose2d 4x4, stride 2, padding 1, each of which doubles height and width; BatchNorm
    and ReLU after the first four, sigmoid after the last.
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(pairwise(CHANNELS[::-1])):
            layers.append(nn.ConvTranspose2d(c_in, c_out, kernel_size=4, stride=2, padding=1))
            layers += [nn.BatchNorm2d(c_out), nn.ReLU()] if i < 4 else [nn.Sigmoid()]
        super().__init__(*layers)


class Network(NamedTuple):
    """The layers around a quantizer. Features are (B, CHANNELS[-1], H/32, W/32)."""

    encoder: Callable[[bool], nn.Module]  # called with `final_relu`
    decoder: Callable[[], nn.Module]
    # Called with (encoder, decoder, images, slots); None: the network starts from random weights.
    initialize: Callable[[nn.Module, nn.Module, Tensor, int], None] | None = None


# The choices for `VQVAE(network=...)`; `beyond.deep` adds "deep".
NETWORKS: dict[str, Network] = {"report": Network(Encoder, Decoder)}


class VQVAEOutput(NamedTuple):
    """Output of `VQVAE.forward`."""

    reconstruction: Tensor  # (B, 3, H, W), pixels in [0, 1]
    raw: Tensor  # (B, 3, H, W), output of the decoder, before it is mapped to pixels
    loss: Tensor  # scalar: reconstruction_loss / data_variance + vq_loss
    reconstruction_loss: Tensor  # scalar: MSE between raw and target, in the units of the target
    vq_loss: Tensor  # scalar: commitment loss (and codebook loss) of the quantizer
    codes: Tensor  # int64 (B, H/32, W/32, 4)
    perplexity: Tensor  # scalar, of this batch


@register_model
class VQVAE(nn.Module):
    """Encoder, vector quantizer, decoder.

    Args:
        num_embeddings, embedding_dim, commitment_cost: see `VectorQuantizer`.
        normalize: as in the report, (x - ImageNet mean) / std is the encoder's input *and* the
            target of a decoder that ends in a sigmoid.
        final_relu: see `Encoder`.
        data_variance: divisor of the reconstruction loss, applied before the quantizer's loss is
            added. Without it, an MSE of 0.002 is small compared with the commitment loss, which the
            encoder can also reduce by shrinking its outputs. 0.025 is about the variance of
            HAM10000 pixels in [0, 1], as the mean over the three channels; 1 suits the report's
            normalized pixels.
        ema_decay, codebooks, data_init, restart_after: see `VectorQuantizer`; `codebooks=None`
            means one codebook per slot.
        network: "report" for the report's layers, "deep" for those of `beyond.deep`.

    Raises:
        ValueError: `network` is not in NETWORKS.
    """

    # Patterns of parameter names in files of earlier versions, for `load_model`.
    renamed_parameters: ClassVar[dict[str, str]] = {
        r"^quantizer\.ema_count$": "quantizer.ema_cluster_size",
        r"^quantizer\.idle$": "quantizer.steps_unused",
    }

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
        network: str = "report",
    ) -> None:
        if network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}")
        check_whole(embedding_dim=embedding_dim)
        if codebooks is None:
            codebooks = CHANNELS[-1] // embedding_dim
        # The arguments are saved with the weights, so that `load_model` can build the model.
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        self.config: dict[str, Any] = config
        self.slots = CHANNELS[-1] // embedding_dim
        self.encoder = NETWORKS[network].encoder(final_relu)
        self.quantizer = VectorQuantizer(
            num_embeddings,
            embedding_dim,
            commitment_cost,
            ema_decay=ema_decay,
            codebooks=codebooks,
            data_init=data_init,
            restart_after=restart_after,
        )
        self.decoder = NETWORKS[network].decoder()
        self.normalize, self.data_variance = normalize, data_variance
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    @classmethod
    def report(cls, ema_decay: float | None = 0.99) -> VQVAE:
        """The report's model, with 3,545,155 parameters.

        65,536 of them are the codebook and its EMA accumulator (512 x 64 each). With
        `ema_decay=None` the codebook is trained by gradient descent. That is what the report's text
        describes, but it gives 3,512,387 parameters, which is not the report's count.
        """
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
        """The workbook's best model at 288 bytes; call `initialize_from_data` before training."""
        return cls(network="deep")

    @property
    def codebook_fingerprint(self) -> str:
        """Fingerprint of the codebook, 16 hex digits. Codes and priors belong to one codebook."""
        return codebook_fingerprint(self.quantizer.codebook)

    @torch.no_grad()
    def initialize_from_data(self, images: Tensor) -> None:
        """Initialize a deep model as a linear transform codec.

        The encoder becomes a projection to principal components, the decoder its inverse, and the
        codebooks are computed by k-means.

        Args:
            images: float32 (B, 3, H, W), pixels in [0, 1]; a few hundred of the training split.

        Raises:
            ValueError: the images are not valid, see `encode`, or the model has the report's
                layers.
        """
        initialize = NETWORKS[self.config["network"]].initialize
        if initialize is None:
            raise ValueError(
                f"the network {self.config['network']!r} can't be initialized from images: use "
                'network="deep", or train it from its random weights'
            )
        target = self._prepare_input(images, check_range=True)
        initialize(self.encoder, self.decoder, target, self.slots)
        latents = [self.encoder(batch) for batch in target.split(32)]
        self.quantizer.initialize_with_k_means(torch.cat(latents))

    def forward(self, images: Tensor) -> VQVAEOutput:
        """Encode, quantize and decode images, and compute the losses.

        Args:
            images: float32 (B, 3, H, W), pixels in [0, 1], H and W divisible by 32.

        Raises:
            ValueError: wrong shape or dtype, or an empty batch. In eval() mode also: pixels that
                are not finite or far outside [0, 1], and weights that make the loss NaN or
                infinite. In train() mode these are not checked here, because the training loop
                checks the loss of each step, and another check would synchronize with the GPU.
        """
        target = self._prepare_input(images, check_range=not self.training)
        quantized = self.quantizer(self.encoder(target))
        raw = self.decoder(quantized.quantized).float()
        reconstruction_loss = F.mse_loss(raw, target)
        if not self.training:
            check_finite(reconstruction_loss + quantized.loss, "the loss of these images")
        return VQVAEOutput(
            self._to_pixels(raw),
            raw,
            reconstruction_loss / self.data_variance + quantized.loss,
            reconstruction_loss,
            quantized.loss,
            quantized.encoding_indices,
            quantized.perplexity,
        )

    def encode(self, images: Tensor) -> Tensor:
        """Codes of images, always computed in eval() mode.

        The codes of an image do not depend on the other images of the batch, and no statistics are
        updated. The model stays in the mode it is in.

        Args:
            images: float32 (B, 3, H, W), pixels in [0, 1], H and W divisible by 32.

        Returns:
            int64 (B, H/32, W/32, 4).

        Raises:
            ValueError: wrong shape or dtype, an empty batch, pixels that are not finite or far
                outside [0, 1], or weights that make the features NaN or infinite.
        """
        with eval_mode(self):
            target = self._prepare_input(images, check_range=True)
            codes = self.quantizer.encode(self.encoder(target))
        return codes.clone()

    def decode(self, codes: Tensor) -> Tensor:
        """Images from codes, always computed in eval() mode; the model stays in the mode it is in.

        Args:
            codes: int64 (B, h, w, 4), values in 0..num_embeddings-1.

        Returns:
            float32 (B, 3, 32h, 32w), pixels in [0, 1].

        Raises:
            ValueError: wrong shape or dtype, a code outside 0..num_embeddings-1, or weights that
                make the pixels NaN or infinite.
        """
        # On the CPU, so that a GPU raises the same error.
        check_codes(codes.cpu(), self.config["num_embeddings"], self.slots)
        with eval_mode(self):
            raw = self.decoder(self.quantizer.look_up(codes)).float()
            check_finite(raw, "the decoder's output")
        return self._to_pixels(raw)

    def _prepare_input(self, images: Tensor, check_range: bool) -> Tensor:
        """Input and target of the model: the images, normalized if `normalize` is set.

        Args:
            check_range: also check the pixel values; on a GPU this forces a synchronization.
        """
        check_tensor("images", images, torch.float32, ("B", 3, "H", "W"))
        if any(side % DOWNSCALE for side in images.shape[2:]):
            size = tuple(images.shape[2:])
            raise ValueError(f"images: expected H and W divisible by {DOWNSCALE}, got {size}")
        if check_range:
            low, high = (float(value) for value in images.aminmax())  # NaN if any pixel is NaN
            if not -OVERSHOOT <= low <= high <= 1 + OVERSHOOT:
                raise ValueError(
                    f"images must have pixels in [0, 1], got {low:g}..{high:g}: divide values in "
                    "0..255 by 255, and do not normalize (the model does this if it is needed)"
                )
        return (images - self.mean) / self.std if self.normalize else images

    def _to_pixels(self, raw: Tensor) -> Tensor:
        return (raw * self.std + self.mean if self.normalize else raw).clamp(0, 1)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[torch.device]:
    """Context in which a model is in eval() mode and no gradients are recorded.

    At the end of the block, even after an error, each of its modules returns to its previous mode.

    Yields:
        The device of the model. Tensors that are created in the block are inference tensors: they
        can't be used by autograd or changed in place afterwards. A function that returns such a
        tensor must create it outside the block or clone it there.
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
