"""The realistic decoder: a flow from noise to residuals, conditioned on the decoded image."""

import pytest
import torch

from vqlib import load_model, save_model
from vqlib.beyond.realistic import RealisticDecoder


def small_decoder(residual_std=0.1, seed=0):
    torch.manual_seed(seed)
    return RealisticDecoder(residual_std, (16, 16), (1, 1, 1), 16)


def lively_decoder():
    """Without the zero initialization, so that every layer contributes."""
    model = small_decoder()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def test_residuals_that_depend_on_the_decoded_image_are_recovered():
    """Residuals are Gaussian; their mean and standard deviation depend on the decoded image."""
    model, std = small_decoder(), 0.1
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def batch(n):
        bright = torch.rand(n, 1, 1, 1) < 0.5
        decoded = torch.where(bright, 0.6, 0.4).expand(-1, 3, 8, 8).contiguous()
        noise = torch.randn(decoded.shape)
        return decoded, torch.where(bright, 0.1 + 0.02 * noise, -0.05 + 0.08 * noise)

    for _ in range(300):
        decoded, residuals = batch(64)
        loss = model.loss(decoded + residuals, decoded).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    generator = torch.Generator().manual_seed(0)
    for pixel, mean, spread in ((0.6, 0.1, 0.02), (0.4, -0.05, 0.08)):
        decoded = torch.full((64, 3, 8, 8), pixel)
        sampled = model.sample(decoded, 16, generator=generator, solver="heun") - decoded
        assert float(sampled.mean()) == pytest.approx(mean, abs=0.015), pixel
        assert float(sampled.std()) == pytest.approx(spread, abs=0.015), pixel
        one_step = model.sample(decoded, 1, generator=generator) - decoded
        assert float(one_step.mean()) == pytest.approx(mean, abs=0.015)
        assert float(one_step.std()) < 0.3 * std  # the mean, nearly without noise


def test_an_untrained_decoder_adds_white_noise_of_the_right_strength():
    """This is the exact flow for residuals that are white Gaussian noise; Heun's error is small."""
    decoded = torch.full((4, 3, 32, 32), 0.5)
    sampled = small_decoder(0.05).sample(decoded, 20, generator=torch.Generator(), solver="heun")
    assert float((sampled - decoded).std()) == pytest.approx(0.05, rel=0.03)
    half = small_decoder(0.05).sample(decoded, 20, 0.5, generator=torch.Generator(), solver="heun")
    assert float((half - decoded).std()) == pytest.approx(0.025, rel=0.03)


def test_samples_are_reproducible_different_and_images():
    model = lively_decoder().train()
    decoded = torch.rand(2, 3, 16, 24)
    first, again, other = (
        model.sample(decoded, 3, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert model.training
    assert first.shape == decoded.shape and first.dtype == torch.float32
    assert 0 <= first.min() and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(model.sample(decoded, 2, 0.0), model.sample(decoded, 2, 0.0))


@torch.no_grad()
def test_a_crop_and_the_whole_image_have_the_same_velocity():
    """The reason why the network may be trained on crops: it reads a neighbourhood only."""
    model = lively_decoder()
    x, decoded, time = torch.randn(1, 3, 160, 160), torch.rand(1, 3, 160, 160), torch.tensor([0.3])
    whole = model(x, time, decoded)[..., 72:88, 72:88]
    part = model(x[..., 16:144, 16:144], time, decoded[..., 16:144, 16:144])[..., 56:72, 56:72]
    assert torch.allclose(whole, part, atol=1e-5)
    x[..., 80, 80] += 1
    assert not torch.allclose(model(x, time, decoded)[..., 72:88, 72:88], whole, atol=1e-3)


def test_the_decoded_image_and_the_time_are_used():
    model = lively_decoder()
    x, decoded = torch.randn(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        reference = model(x, torch.tensor([0.5]), decoded)
        # At t and 1 - t the scale of the output is the same; only the embedding differs.
        assert not torch.allclose(model(x, torch.tensor([0.5]), 1 - decoded), reference, atol=1e-3)
        drift = model(0 * x, torch.tensor([0.2]), decoded)
        assert not torch.allclose(model(0 * x, torch.tensor([0.8]), decoded), drift, atol=1e-4)


def test_save_and_load(tmp_path):
    model = lively_decoder()
    path = save_model(model, tmp_path / "realistic.safetensors")
    loaded, decoded = load_model(path, RealisticDecoder), torch.rand(1, 3, 16, 16)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    samples = [m.sample(decoded, 2, generator=g) for m, g in zip((model, loaded), generators)]
    assert torch.equal(*samples) and loaded.residual_std == 0.1


def test_size_of_the_default_network():
    assert sum(p.numel() for p in RealisticDecoder(0.02).parameters()) < 2_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoded": torch.rand(3, 16, 16)}, "float32"),
        ({"decoded": torch.rand(1, 3, 16, 20)}, "divisible by 8"),
        ({"decoded": torch.rand(1, 3, 16, 16).double()}, "float32"),
        ({"decoded": 2 + torch.rand(1, 3, 16, 16)}, r"\[0, 1\]"),
        ({"decoded": torch.full((1, 3, 16, 16), torch.nan)}, r"\[0, 1\]"),
        ({"steps": 0}, "1 step"),
        ({"noise_scale": -1.0}, "noise_scale"),
        ({"solver": "midpoint"}, "solver"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_decoder().sample(**({"decoded": torch.rand(1, 3, 16, 16)} | arguments))
