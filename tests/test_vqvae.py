import pytest
import torch

from vqlib import VQVAE
from vqlib.vqvae import IMAGENET_MEAN, IMAGENET_STD


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_the_report_counts_3_545_155_parameters():
    model = VQVAE.report()
    assert parameters(model) == 3_545_155
    assert parameters(model.encoder) == 1_739_936
    assert parameters(model.decoder) == 1_739_683
    assert parameters(model.quantizer) == 2 * 512 * 64
    assert parameters(VQVAE.report(ema_decay=None)) == 3_545_155 - 512 * 64


def test_shapes_and_ranges_for_any_size_divisible_by_32():
    model = VQVAE().eval()
    for height, width in ((256, 256), (64, 96)):
        images = torch.rand(2, 3, height, width)
        out = model(images)
        assert out.reconstruction.shape == images.shape
        assert 0 <= out.reconstruction.min() <= out.reconstruction.max() <= 1
        assert out.codes.shape == (2, height // 32, width // 32, 4)
        assert out.codes.dtype == torch.long
        assert torch.equal(model.encode(images), out.codes)
        assert torch.allclose(model.decode(out.codes), out.reconstruction, atol=1e-5)


def test_report_loss_is_in_normalised_units_and_its_pixels_are_mapped_back():
    model = VQVAE.report().eval()
    images = torch.rand(2, 3, 64, 64)
    out = model(images)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    target = (images - mean) / std
    assert out.reconstruction_loss.item() == pytest.approx(
        (out.raw - target).square().mean().item()
    )
    assert torch.allclose(out.reconstruction, (out.raw * std + mean).clamp(0, 1))
    assert 0 <= out.raw.min() and out.raw.max() <= 1


@pytest.mark.parametrize("ema_decay", [0.99, None])
def test_every_part_learns(ema_decay):
    """The encoder through the quantizer too, which a straight-through without copy would cut."""
    torch.manual_seed(0)
    model = VQVAE(ema_decay=ema_decay).train()
    model(torch.rand(2, 3, 64, 64))  # the codebook starts from this batch
    before = model.quantizer.codebook.detach().clone()
    out = model(torch.rand(2, 3, 64, 64))
    out.reconstruction_loss.backward(retain_graph=True)
    assert all(p.grad.abs().sum() > 0 for p in model.encoder.parameters() if p.ndim == 4)
    out.vq_loss.backward()
    moved = not torch.equal(before, model.quantizer.codebook)
    assert moved if ema_decay else model.quantizer.codebook.grad.abs().sum() > 0


def test_bad_input_is_named():
    model = VQVAE()
    with pytest.raises(ValueError, match="divisible by 32"):
        model(torch.rand(1, 3, 100, 100))
    with pytest.raises(ValueError, match="uint8"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"0\.\.511"):
        model.decode(torch.full((1, 2, 2, 4), 512))
