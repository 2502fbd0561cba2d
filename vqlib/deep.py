"""Chapter 3, second half: a better picture from the same 288 bytes.

The report's layers learn to copy an image from a random start, and most of a training goes into
that. This network starts as a codec that needs no training. Its three convolutions with strides 8,
2 and 2 begin as a *linear* transform, the principal components of patches (JPEG does the same with
a fixed cosine basis), and its decoder begins as the inverse. The codebooks begin with k-means.
`VQVAE.start_from` sets both up, and is worth about 33 dB before the first step.

Everything non-linear is added to that path by residual blocks whose last layer starts at zero:
they change nothing at first, and learn what a linear transform can't do. Attention lets the codes
of one place depend on what the others have already said.

Sources: the residual path, He et al. (2015), arXiv:1512.03385, and its zero start, Goyal et al.
(2017), arXiv:1706.02677, section 5.1; attention between convolutions, Esser et al. (2020),
arXiv:2012.09841; learning a residual around a space-to-channel path, Chen et al. (2024),
arXiv:2410.10733.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (8, 2, 2)
CHANNELS = (96, 160, 192)  # after each stride: maps of 32, 16 and 8 pixels for an image of 256
ENCODER_BLOCKS = (1, 2, 1)
DECODER_BLOCKS = (2, 3, 2)  # the decoder has more to guess
GROUPS, HEAD = 8, 32


class ResidualBlock(nn.Module):
    """x + f(x), with f of two 3x3 convolutions: (B, C, h, w) to the same shape.

    Args:
        hidden: channels between the two convolutions.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(GROUPS, channels),
            nn.SiLU(),
            nn.Conv2d(channels, hidden, kernel_size=3, padding=1),
            nn.GroupNorm(GROUPS, hidden),
            nn.SiLU(),
            _zero(nn.Conv2d(hidden, channels, kernel_size=3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class AttentionBlock(nn.Module):
    """x + attention over all places of the map: (B, C, h, w) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.out = _zero(nn.Conv2d(channels, channels, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.query_key_value(self.norm(x)).unflatten(1, (3, -1, HEAD)).flatten(4)
        query, key, value = heads.transpose(-1, -2).unbind(1)  # (B, heads, h * w, HEAD)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.transpose(-1, -2).flatten(1, 2).view_as(x))


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _blocks(level: int, count: int) -> nn.Sequential:
    """`count` residual blocks, each followed by attention where the map is small enough."""
    channels, layers = CHANNELS[level], []
    for _ in range(count):
        layers.append(ResidualBlock(channels, channels if level == 0 else channels // 2))
        if level > 0:
            layers.append(AttentionBlock(channels))
    return nn.Sequential(*layers)


class DeepEncoder(nn.Sequential):
    """Images (B, 3, H, W), pixels in [0, 1], to feature maps (B, latents, H/32, W/32)."""

    def __init__(self, latents: int) -> None:
        layers: list[nn.Module] = []
        for level, stride in enumerate(STRIDES):
            into, out = (3, *CHANNELS)[level : level + 2]
            # Patches overlap in the first layer, or their borders would show.
            kernel = 16 if level == 0 else 2
            padding = (kernel - stride) // 2
            layers += [nn.Conv2d(into, out, kernel, stride, padding)]
            layers += [_blocks(level, ENCODER_BLOCKS[level])]
        super().__init__(*layers, nn.Conv2d(CHANNELS[-1], latents, kernel_size=1))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - 0.5)


class DeepDecoder(nn.Sequential):
    """Feature maps (B, latents, h, w) to pixels, mostly in [0, 1], (B, 3, 32h, 32w)."""

    def __init__(self, latents: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(latents, CHANNELS[-1], kernel_size=1)]
        for level, stride in reversed(list(enumerate(STRIDES))):
            out, into = (3, *CHANNELS)[level : level + 2]
            kernel = 16 if level == 0 else 2
            padding = (kernel - stride) // 2
            layers += [_blocks(level, DECODER_BLOCKS[level])]
            layers += [nn.ConvTranspose2d(into, out, kernel, stride, padding)]
        super().__init__(*layers)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) + 0.5


@torch.no_grad()
def start_as_linear_codec(
    encoder: DeepEncoder, decoder: DeepDecoder, images: Tensor, slots: int
) -> None:
    """Make the encoder a transform to principal components, and the decoder its inverse.

    Each convolution gets the main directions of the patches that it sees, as orthonormal rows; the
    transposed convolution opposite gets the same weights, which undo it. Components go to the slots
    in turn, so that each slot has large and small ones, and are scaled to a mean square of 1.

    Args:
        images: float (B, 3, H, W), pixels in [0, 1]; some hundreds.
    """
    x = images - 0.5
    forwards = [layer for layer in encoder if isinstance(layer, nn.Conv2d)]
    backwards = [layer for layer in decoder if isinstance(layer, nn.ConvTranspose2d)]
    for conv, inverse in zip(forwards, reversed(backwards), strict=False):
        stride = conv.stride[0]
        patches = F.unfold(x, stride, stride=stride).transpose(1, 2).flatten(0, 1)
        moments = patches.T @ patches / len(patches)  # of pixels that are not centred
        _, directions = torch.linalg.eigh(moments.cpu())  # MPS has no eigh
        main = (
            directions.to(x.device)
            .flip(1)[:, : conv.out_channels]
            .T.unflatten(1, (-1, stride, stride))
        )
        edge = conv.padding[0]
        for layer in (conv, inverse):  # zero where patches overlap
            nn.init.zeros_(layer.bias)
            layer.weight.copy_(F.pad(main, (edge,) * 4))
        x = F.conv2d(x, main, stride=stride)
    component = torch.arange(CHANNELS[-1])
    place = component % slots * (forwards[-1].out_channels // slots) + component // slots
    spread = x.square().mean().sqrt()
    for layer, there, here, scale in (
        (forwards[-1], place, component, 1 / spread),
        (decoder[0], component, place, spread),
    ):
        _zero(layer).weight[there, here] = scale
