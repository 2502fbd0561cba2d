"""The deep model is initialized as a linear codec, and its blocks as the identity."""

import pytest
import torch
import torch.nn.functional as F

from vqlib import VQVAE
from vqlib.beyond.deep import AttentionBlock, ResidualBlock
from vqlib.data import to_float
from vqlib.lesions.synthetic import catalog, render
from vqlib.metrics import psnr


@pytest.fixture(scope="module")
def images():
    columns = catalog(lesions=40)
    rendered = torch.from_numpy(render(*(column[:40] for column in columns), size=64))
    return to_float(rendered.permute(0, 3, 1, 2))


@pytest.fixture(scope="module")
def initialized(images):
    torch.manual_seed(0)
    model = VQVAE.deep()
    model.initialize_from_data(images[:32])
    return model.eval()


@torch.no_grad()
def test_without_quantizer_the_initial_model_is_an_orthogonal_projection(initialized, images):
    """Encoding and decoding a projected image again changes nothing, and it is near the image."""
    held_out = images[32:]
    projected = initialized.decoder(initialized.encoder(held_out))
    again = initialized.decoder(initialized.encoder(projected))
    assert torch.allclose(again, projected, atol=1e-4)
    inner_product = ((held_out - projected) * (projected - 0.5)).flatten(1).sum(1)
    assert inner_product.abs().max() < 1e-2 * (projected - 0.5).square().flatten(1).sum(1).min()
    assert psnr(projected.clamp(0, 1), held_out).mean() > 32
    latents = initialized.encoder(images[:32])
    assert float(latents.square().mean()) == pytest.approx(192 / 256, rel=0.01)


@torch.no_grad()
def test_a_normalizing_model_is_initialized_from_normalized_pixels(initialized, images):
    model = VQVAE(network="deep", normalize=True)
    model.initialize_from_data(images[:32])
    outputs = (net.eval()(images[32:]).reconstruction for net in (model, initialized))
    with_normalization, without = (psnr(output, images[32:]).mean() for output in outputs)
    assert with_normalization > without - 1
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\]"):
        model.initialize_from_data(255 * images)


@torch.no_grad()
def test_the_initial_model_is_a_working_codec(initialized, images):
    held_out = images[32:]
    random = VQVAE.deep().eval()
    mean_colors = F.interpolate(F.avg_pool2d(held_out, 32), scale_factor=32)
    initial = psnr(initialized(held_out).reconstruction, held_out).mean()
    assert initial > psnr(mean_colors, held_out).mean() + 1
    assert initial > psnr(random(held_out).reconstruction, held_out).mean() + 8


@pytest.mark.parametrize("block", [ResidualBlock(96, 48), AttentionBlock(96)])
def test_blocks_are_initialized_as_the_identity_and_can_be_trained(block):
    x = torch.randn(2, 96, 4, 6)
    assert torch.equal(block(x), x)
    block(x).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


def test_attention_reaches_every_position_of_the_same_image_only():
    block = AttentionBlock(64)
    torch.nn.init.normal_(block.out.weight)
    x = torch.randn(2, 64, 3, 4, requires_grad=True)
    block(x)[0, :, 0, 0].sum().backward()
    dependence = x.grad.abs().sum(1)
    assert (dependence[0] > 0).all() and (dependence[1] == 0).all()


def test_number_of_parameters_and_other_image_sizes():
    model = VQVAE.deep().eval()
    assert sum(p.numel() for p in model.parameters()) < 5_000_000
    with torch.no_grad():
        out = model(torch.rand(1, 3, 96, 160))
    assert out.codes.shape == (1, 3, 5, 4) and out.reconstruction.shape == (1, 3, 96, 160)
    assert 0 <= out.reconstruction.min() and out.reconstruction.max() <= 1
