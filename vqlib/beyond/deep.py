"""A deeper encoder and decoder for the VQ-VAE, initialized as a linear transform codec.

`VQVAE.deep()` uses these layers around the same quantizer, so that an image still takes 288 bytes.
The report's layers start from random weights and first have to learn to copy an image. This network
starts as a working codec: its three strided convolutions (strides 8, 2, 2) begin as a *linear*
transform to the principal components of image patches (JPEG uses a fixed cosine basis for the same
purpose), its decoder begins as the inverse transform, and the codebooks begin as the result of
k-means. `VQVAE.initialize_from_data` computes this start. Before the first training step and
without the quantizer, it reaches more than 32 dB on the synthetic lesions of tests/test_deep.py.

The nonlinear part is added by residual blocks whose last layer is initialized with zeros. They
leave the linear codec unchanged at first and then learn what a linear transform can't represent.
Attention lets the codes at one position depend on the content of all other positions.

Papers: residual connections: He et al. (2015), arXiv:1512.03385; their zero initialization: Goyal
et al. (2017), arXiv:1706.02677, section 5.1; attention between convolutions: Esser et al. (2020),
arXiv:2012.09841; learning a residual around a space-to-channel shortcut: Chen et al. (2024),
arXiv:2410.10733.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..training import RECIPES, WORKBOOK, Schedule
from ..vqvae import CHANNELS as REPORT_CHANNELS
from ..vqvae import NETWORKS, VQVAE, Network

STRIDES = (8, 2, 2)
CHANNELS = (96, 160, 192)  # 32x32, 16x16 and 8x8 maps of a 256x256 image
ENCODER_BLOCKS = (1, 2, 1)
DECODER_BLOCKS = (2, 3, 2)  # more: the decoder restores detail that the codes do not contain
NORM_GROUPS, HEAD_DIM = 8, 32


class ResidualBlock(nn.Module):
    """x + f(x), where f consists of two 3x3 convolutions; (B, C, h, w) to the same shape.

    Args:
        channels: C, a multiple of NORM_GROUPS.
        hidden: channels between the two convolutions; a multiple of NORM_GROUPS.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, channels),
            nn.SiLU(),
            nn.Conv2d(channels, hidden, kernel_size=3, padding=1),
            nn.GroupNorm(NORM_GROUPS, hidden),
            nn.SiLU(),
            _zero_init(nn.Conv2d(hidden, channels, kernel_size=3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class AttentionBlock(nn.Module):
    """x + self-attention over all positions of the map; (B, C, h, w) to the same shape.

    C must be a multiple of NORM_GROUPS and of HEAD_DIM.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NORM_GROUPS, channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.out = _zero_init(nn.Conv2d(channels, channels, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.query_key_value(self.norm(x)).unflatten(1, (3, -1, HEAD_DIM)).flatten(4)
        query, key, value = qkv.transpose(-1, -2).unbind(1)  # (B, heads, h * w, HEAD_DIM)
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(attended.transpose(-1, -2).flatten(1, 2).view_as(x))


def _zero_init(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _make_blocks(level: int, count: int) -> nn.Sequential:
    """`count` residual blocks. From level 1 on (16x16 and 8x8 maps of a 256x256 image) each is
    followed by attention, whose cost grows with the square of the number of positions."""
    channels, layers = CHANNELS[level], []
    for _ in range(count):
        layers.append(ResidualBlock(channels, channels if level == 0 else channels // 2))
        if level > 0:
            layers.append(AttentionBlock(channels))
    return nn.Sequential(*layers)


class DeepEncoder(nn.Sequential):
    """Images (B, 3, H, W), pixels in [0, 1], to feature maps (B, latent_channels, H/32, W/32)."""

    def __init__(self, latent_channels: int) -> None:
        layers: list[nn.Module] = []
        for level, stride in enumerate(STRIDES):
            in_channels, out_channels = (3, *CHANNELS)[level : level + 2]
            # In the first layer, patches overlap. Otherwise their borders would be visible.
            kernel = 16 if level == 0 else 2
            padding = (kernel - stride) // 2
            layers += [nn.Conv2d(in_channels, out_channels, kernel, stride, padding)]
            layers += [_make_blocks(level, ENCODER_BLOCKS[level])]
        super().__init__(*layers, nn.Conv2d(CHANNELS[-1], latent_channels, kernel_size=1))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - 0.5)  # roughly centered, for the linear transform


class DeepDecoder(nn.Sequential):
    """Feature maps (B, latent_channels, h, w) to pixels, (B, 3, 32h, 32w).

    There is no final sigmoid, so that a few values may lie outside [0, 1]; `VQVAE` clamps them.
    """

    def __init__(self, latent_channels: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(latent_channels, CHANNELS[-1], kernel_size=1)]
        for level, stride in reversed(list(enumerate(STRIDES))):
            out_channels, in_channels = (3, *CHANNELS)[level : level + 2]
            kernel = 16 if level == 0 else 2
            padding = (kernel - stride) // 2
            layers += [_make_blocks(level, DECODER_BLOCKS[level])]
            layers += [nn.ConvTranspose2d(in_channels, out_channels, kernel, stride, padding)]
        super().__init__(*layers)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) + 0.5


@torch.no_grad()
def initialize_as_linear_transform(
    encoder: DeepEncoder, decoder: DeepDecoder, images: Tensor, slots: int
) -> None:
    """Set the encoder to a transform to principal components, and the decoder to its inverse.

    The weights of each strided convolution become the leading eigenvectors of the second-moment
    matrix of its input patches; they are orthonormal. The matching transposed convolution gets the
    same weights and thus the transpose, which inverts the transform on the retained components.
    Components are assigned to the slots in turn, so that every slot gets components of large and of
    small variance. One common factor scales the components to a mean square of 1. There are 192 of
    them for 256 latent channels: 16 of the 64 channels of each slot start at 0.

    Args:
        images: float (B, 3, H, W), the encoder's input; a few hundred of the training split.
        slots: sub-vectors of a position.
    """
    x = images - 0.5
    encoder_convs = [layer for layer in encoder if isinstance(layer, nn.Conv2d)]
    decoder_convs = [layer for layer in decoder if isinstance(layer, nn.ConvTranspose2d)]
    for conv, transposed_conv in zip(encoder_convs, reversed(decoder_convs), strict=False):
        stride = conv.stride[0]
        patches = F.unfold(x, stride, stride=stride).transpose(1, 2).flatten(0, 1)
        moments = patches.T @ patches / len(patches)  # 0.5 was subtracted, but not the mean
        _, directions = torch.linalg.eigh(moments.cpu())  # MPS has no eigh
        basis = (
            directions.to(x.device)
            .flip(1)[:, : conv.out_channels]
            .T.unflatten(1, (-1, stride, stride))
        )
        margin = conv.padding[0]
        for layer in (conv, transposed_conv):
            nn.init.zeros_(layer.bias)
            layer.weight.copy_(F.pad(basis, (margin,) * 4))  # zero where kernels overlap
        x = F.conv2d(x, basis, stride=stride)
    component = torch.arange(CHANNELS[-1])
    channel = component % slots * (encoder_convs[-1].out_channels // slots) + component // slots
    rms = x.square().mean().sqrt()
    for layer, out_index, in_index, scale in (
        (encoder_convs[-1], channel, component, 1 / rms),
        (decoder[0], component, channel, rms),
    ):
        _zero_init(layer).weight[out_index, in_index] = scale


def _encoder(final_relu: bool) -> DeepEncoder:
    if final_relu:
        raise ValueError("final_relu must be False: the deep network has no such layer")
    return DeepEncoder(REPORT_CHANNELS[-1])


NETWORKS["deep"] = Network(
    _encoder, partial(DeepDecoder, REPORT_CHANNELS[-1]), initialize_as_linear_transform
)

# The workbook's recipe for the deep model. The learning rate is small, because the model is
# initialized as a working codec.
DEEP = replace(
    WORKBOOK,
    name="deep",
    vqvae=VQVAE.deep,
    vqvae_epochs=24,
    schedule=Schedule(lr=4e-4, warmup_steps=100, cosine_decay=True, grad_clip=1.0, ema_decay=0.999),
    init_images=512,
)
RECIPES["deep"] = DEEP
