"""The deep model starts as a linear codec, and its blocks start as nothing at all."""

import pytest
import torch
import torch.nn.functional as F

from vqlib import VQVAE
from vqlib.data import to_float
from vqlib.deep import AttentionBlock, ResidualBlock
from vqlib.metrics import psnr
from vqlib.synthetic import catalogue, render


@pytest.fixture(scope="module")
def images():
    rows = catalogue(lesions=40)
    drawn = torch.from_numpy(render(*(column[:40] for column in rows), size=64))
    return to_float(drawn.permute(0, 3, 1, 2))


@pytest.fixture(scope="module")
def started(images):
    torch.manual_seed(0)
    model = VQVAE.deep()
    model.start_from(images[:32])
    return model.eval()


@torch.no_grad()
def test_without_quantizer_the_start_is_an_orthogonal_projection(started, images):
    """What the decoder gives, the encoder and decoder give back unchanged; and it is near."""
    held_out = images[32:]
    near = started.decoder(started.encoder(held_out))
    again = started.decoder(started.encoder(near))
    assert torch.allclose(again, near, atol=1e-4)
    left_over = ((held_out - near) * (near - 0.5)).flatten(1).sum(1)
    assert left_over.abs().max() < 1e-2 * (near - 0.5).square().flatten(1).sum(1).min()
    assert psnr(near.clamp(0, 1), held_out).mean() > 32
    latents = started.encoder(images[:32])
    assert float(latents.square().mean()) == pytest.approx(192 / 256, rel=0.01)


@torch.no_grad()
def test_the_start_is_of_the_pixels_that_the_model_sees(started, images):
    model = VQVAE(network="deep", normalize=True)
    model.start_from(images[:32])
    rebuilt = model.eval()(images[32:]).reconstruction
    ours, plain = (psnr(x, images[32:]).mean() for x in (rebuilt, started(images[32:])[0]))
    assert ours > plain - 1
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\]"):
        model.start_from(255 * images)


@torch.no_grad()
def test_k_means_start_is_a_codec_before_the_first_step(started, images):
    held_out = images[32:]
    random = VQVAE.deep().eval()
    flat = F.interpolate(F.avg_pool2d(held_out, 32), scale_factor=32)
    ours = psnr(started(held_out).reconstruction, held_out).mean()
    assert ours > psnr(flat, held_out).mean() + 1
    assert ours > psnr(random(held_out).reconstruction, held_out).mean() + 8


@pytest.mark.parametrize("block", [ResidualBlock(96, 48), AttentionBlock(96)])
def test_blocks_start_as_the_identity_and_learn(block):
    x = torch.randn(2, 96, 4, 6)
    assert torch.equal(block(x), x)
    block(x).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


def test_attention_reaches_every_place_and_mixes_nothing_else():
    block = AttentionBlock(64)
    torch.nn.init.normal_(block.out.weight)
    x = torch.randn(2, 64, 3, 4, requires_grad=True)
    block(x)[0, :, 0, 0].sum().backward()
    reached = x.grad.abs().sum(1)
    assert (reached[0] > 0).all() and (reached[1] == 0).all()


def test_small_enough_to_ship_and_any_size():
    model = VQVAE.deep().eval()
    assert sum(p.numel() for p in model.parameters()) < 5_000_000
    with torch.no_grad():
        out = model(torch.rand(1, 3, 96, 160))
    assert out.codes.shape == (1, 3, 5, 4) and out.reconstruction.shape == (1, 3, 96, 160)
    assert 0 <= out.reconstruction.min() and out.reconstruction.max() <= 1
