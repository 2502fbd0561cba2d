"""Layers, losses, encoding and decoding of the VQ-VAE, and the checks of its inputs."""

import copy

import pytest
import torch

from vqlib import VQVAE, PixelCNN
from vqlib.vqvae import IMAGENET_MEAN, IMAGENET_STD


def count_parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_the_reports_model_has_3_545_155_parameters():
    model = VQVAE.report()
    assert count_parameters(model) == 3_545_155
    assert count_parameters(model.encoder) == 1_739_936
    assert count_parameters(model.decoder) == 1_739_683
    assert count_parameters(model.quantizer) == 2 * 512 * 64
    assert count_parameters(VQVAE.report(ema_decay=None)) == 3_545_155 - 512 * 64


def test_layers_and_the_reports_extra_relu():
    """Convolution, BatchNorm, ReLU; only the report has a ReLU before the quantizer."""
    conv, norm_relu = ["Conv2d"], ["BatchNorm2d", "ReLU"]
    layers = lambda module: [type(layer).__name__ for layer in module]  # noqa: E731
    assert layers(VQVAE.report().encoder) == 4 * (conv + norm_relu) + conv + ["ReLU"]
    assert layers(VQVAE().encoder) == 4 * (conv + norm_relu) + conv
    transposed = ["ConvTranspose2d"]
    assert layers(VQVAE().decoder) == 4 * (transposed + norm_relu) + transposed + ["Sigmoid"]


def test_the_reports_configuration_differs_as_documented():
    report, ours = VQVAE.report().config, VQVAE().config
    assert {k: (v, ours[k]) for k, v in report.items() if v != ours[k]} == {
        "normalize": (True, False),
        "final_relu": (True, False),
        "data_variance": (1.0, 0.025),
        "codebooks": (1, 4),
        "data_init": (False, True),
        "restart_after": (None, 20),
    }


def test_loss_and_the_options_of_the_quantizer():
    model = VQVAE(
        32, 128, 0.7, data_variance=0.5, ema_decay=0.8, data_init=False, restart_after=3
    ).eval()
    quantizer = model.quantizer
    assert quantizer.codebook.shape == (2, 32, 128)
    assert (quantizer.ema_decay, quantizer.restart_after) == (0.8, 3)
    assert quantizer.initialized and not VQVAE().quantizer.initialized
    images = torch.rand(2, 3, 64, 64)
    out = model(images)
    features = model.encoder(images)
    distance = (features - quantizer.quantize(out.codes)).square().mean()
    assert out.vq_loss.item() == pytest.approx(0.7 * distance.item())
    error = (out.raw - images).square().mean()
    assert out.loss.item() == pytest.approx((error / 0.5 + 0.7 * distance).item())


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


def test_report_loss_is_in_normalized_units_and_its_pixels_are_mapped_back():
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
def test_every_part_is_trained(ema_decay):
    """The encoder as well, because the gradient passes straight through the quantizer."""
    torch.manual_seed(0)
    model = VQVAE(ema_decay=ema_decay).train()
    model(torch.rand(2, 3, 64, 64))  # initializes the codebook
    before = model.quantizer.codebook.detach().clone()
    out = model(torch.rand(2, 3, 64, 64))
    out.reconstruction_loss.backward(retain_graph=True)
    assert all(p.grad.abs().sum() > 0 for p in model.encoder.parameters() if p.ndim == 4)
    out.vq_loss.backward()
    changed = not torch.equal(before, model.quantizer.codebook)
    assert changed if ema_decay else model.quantizer.codebook.grad.abs().sum() > 0


@pytest.mark.parametrize("method", ["encode", "forward"])
def test_pixels_out_of_range_raise(method):
    model = VQVAE(data_init=False).eval()
    call = getattr(model, method)
    good = torch.rand(2, 3, 64, 64)
    for bad in (255 * good, 2 * good - 1, (good - 0.45) / 0.225):
        with pytest.raises(ValueError, match=r"pixels in \[0, 1\], got -?[\d.]+\.\..*255"):
            call(bad)
    for bad in (torch.nan, torch.inf, -torch.inf):
        broken = good.clone()
        broken[1, 2, 3, 4] = bad
        with pytest.raises(ValueError, match=r"pixels in \[0, 1\]"):
            call(broken)
    call(1.2 * good - 0.1)  # within the tolerance for bicubic resizing


@pytest.mark.parametrize("part", ["encoder", "quantizer", "decoder"])
def test_weights_that_are_not_finite_raise(part):
    model = VQVAE(data_init=False).eval()
    images, codes = torch.rand(1, 3, 64, 64), torch.zeros(1, 2, 2, 4, dtype=torch.long)
    with torch.no_grad():
        next(getattr(model, part).parameters()).view(-1)[:64] = torch.nan
    methods = {"encoder": ["encode"], "quantizer": ["encode", "decode"], "decoder": ["decode"]}
    for method in ["forward", *methods[part]]:
        with pytest.raises(ValueError, match="NaN or infinity"):
            getattr(model, method)(codes if method == "decode" else images)


def test_encode_and_decode_use_eval_mode_and_change_nothing():
    torch.manual_seed(0)
    model = VQVAE().train()
    for _ in range(3):  # running statistics that differ from those of a batch
        model(torch.rand(4, 3, 64, 64))
    images = torch.rand(4, 3, 64, 64) * torch.tensor([0.1, 0.4, 0.7, 1.0]).view(4, 1, 1, 1)
    expected = copy.deepcopy(model).eval()
    model.quantizer.eval()
    model.decoder[1].eval()  # one layer in another mode
    before = copy.deepcopy(model)
    codes = model.encode(images)
    pixels = model.decode(codes)
    assert torch.equal(codes, expected.encode(images))
    assert torch.equal(codes[1:2], model.encode(images[1:2]))  # alone in the batch
    assert torch.equal(pixels, expected.decode(codes))
    with pytest.raises(ValueError, match="pixels"):
        model.encode(255 * images)
    state = zip(model.state_dict().items(), before.state_dict().items(), strict=True)
    assert all(name == old and torch.equal(x, y) for (name, x), (old, y) in state)
    modes = [[m.training for m in net.modules()] for net in (model, before)]
    assert modes[0] == modes[1] and len(set(modes[0])) == 2
    assert not codes.is_inference() and not pixels.is_inference()  # may be changed in place


def test_the_fingerprint_depends_on_the_codebook_only():
    model = VQVAE()
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.encoder[0].weight)
    assert other.codebook_fingerprint == model.codebook_fingerprint
    with torch.no_grad():
        other.quantizer.codebook[3, 511, 63] += 1e-3
    assert other.codebook_fingerprint != model.codebook_fingerprint
    prior = PixelCNN(conv_filters=8, blocks=1)
    assert prior.trained_on_codebook is None  # until it is trained
    prior.trained_on_codebook = model.codebook_fingerprint
    assert copy.deepcopy(prior).trained_on_codebook == model.codebook_fingerprint
