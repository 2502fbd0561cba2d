"""The realistic decoder: a flow from noise to residuals, conditioned on the decoded image."""

import pytest
import torch

from vqlib import load_model, save_model
from vqlib.beyond.realistic import LEAST_RMS, RealisticDecoder, root_mean_square, roughness
from vqlib.metrics import to_8_bit


def small_decoder(channels=(16, 16), blocks=(1, 1, 1)):
    torch.manual_seed(0)
    return RealisticDecoder(channels, blocks, 16)


def smooth_residuals(n, size=32):
    """Residuals that are coarse in brightness and fine in color, with less energy."""
    coarse = torch.nn.functional.interpolate(
        0.06 * torch.randn(n, 1, size // 8, size // 8), size=size
    )
    return coarse + 0.06 * torch.randn(n, 3, size, size)


def lively_decoder():
    """A decoder without the zero initialization, so that every layer contributes."""
    model = small_decoder()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def test_residuals_that_depend_on_the_decoded_image_are_recovered():
    """Residuals are Gaussian; their mean and standard deviation depend on the decoded image."""
    model = small_decoder((64, 16), (0, 0, 0))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def batch(n):
        bright = torch.rand(n, 1, 1, 1) < 0.5
        decoded = torch.where(bright, 0.6, 0.4).expand(-1, 3, 8, 8).contiguous()
        noise = torch.randn(decoded.shape)
        return decoded, torch.where(bright, 0.1 + 0.02 * noise, -0.05 + 0.08 * noise)

    decoded, residuals = batch(500)
    model.fit_statistics(decoded + residuals, decoded)
    for _ in range(300):
        decoded, residuals = batch(32)
        loss = model.loss(decoded + residuals, decoded, root_mean_square(residuals)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    generator = torch.Generator().manual_seed(0)
    spreads = []
    for pixel, mean in ((0.6, 0.1), (0.4, -0.05)):
        decoded = torch.full((64, 3, 8, 8), pixel)
        sampled = model.sample(decoded, 16, generator=generator) - decoded
        one_step = model.sample(decoded, 1, generator=generator) - decoded
        spreads.append(float(sampled.std()))
        assert float(sampled.mean()) == pytest.approx(mean, abs=0.025), pixel
        assert float(one_step.mean()) == pytest.approx(mean, abs=0.025)
    assert spreads[0] < 0.055 and 0.06 < spreads[1] < 0.11, spreads


def test_an_untrained_decoder_adds_noise_with_the_covariance_of_residuals():
    """For Gaussian patches this flow is exact; the solver's error is small."""
    model, decoded = small_decoder(), torch.full((64, 3, 32, 32), 0.5)
    residuals = smooth_residuals(64)
    model.fit_statistics(decoded + residuals, decoded)
    options = {"rms": root_mean_square(residuals)}
    sampled, weak = (
        model.sample(decoded, 12, scale, torch.Generator(), **options) - decoded
        for scale in (1.0, 0.5)
    )
    for statistic in (
        lambda x: x.std(),
        lambda x: (x[:, 0] - x[:, 1]).std(),  # color
        lambda x: x[..., 0::4].sub(x[..., 1::4]).std(),  # fine detail
        lambda x: torch.nn.functional.avg_pool2d(x, 4).std(),  # coarse detail
    ):
        expected = float(statistic(residuals))
        assert float(statistic(sampled)) == pytest.approx(expected, rel=0.07)
        assert float(statistic(weak)) == pytest.approx(expected / 2, rel=0.07)


def test_components_are_uncorrelated_have_variance_1_and_can_be_inverted():
    model, residuals = small_decoder(), smooth_residuals(64)
    model.fit_statistics(0.5 + residuals, torch.full_like(residuals, 0.5))
    normalized = residuals / root_mean_square(residuals)[:, None, None, None]
    components = model.to_components(normalized)
    covariance = components.movedim(1, -1).flatten(0, 2).T.cov()
    assert (covariance - covariance.diag().diag()).abs().max() < 0.05
    assert ((covariance.diag() > 0.9) & (covariance.diag() < 1.1))[-10:].all()
    assert 0.5 < covariance.diag().min() and covariance.diag().max() < 1.1
    assert torch.allclose(model.to_residuals(components), normalized, atol=1e-4)


def test_the_rms_is_sampled_given_the_roughness_and_scales_the_residual():
    """log rms = -1 + 0.5 log roughness + error, whose standard deviation is 0.3."""
    model, noise = small_decoder(), torch.randn(2000, 3, 8, 8)
    decoded = 0.5 + noise * torch.logspace(-3, -1, 2000)[:, None, None, None]
    log_rms = -1 + 0.5 * roughness(decoded).log() + 0.3 * torch.randn(2000)
    unit = noise.flip(0) / root_mean_square(noise.flip(0))[:, None, None, None]
    model.fit_statistics(decoded + log_rms.exp()[:, None, None, None] * unit, decoded)
    sampled = model.sample_rms(decoded, torch.Generator()).log()
    error = sampled - (-1 + 0.5 * roughness(decoded).log())
    assert torch.equal(sampled, model.sample_rms(to_8_bit(decoded), torch.Generator()).log())
    for part in (error[:1000], error[1000:]):  # smooth images, rough images
        assert float(part.mean()) == pytest.approx(0, abs=0.05)
        assert float(part.std()) == pytest.approx(0.3, abs=0.03)

    flat = torch.full((2, 3, 8, 8), 0.5)
    model.component_std.fill_(1)
    weak, strong = (
        model.sample(flat, 8, generator=torch.Generator(), rms=torch.tensor(rms))
        for rms in ([0.01, 0.01], [0.05, 0.05])
    )
    assert torch.allclose(5 * (weak - 0.5), strong - 0.5, atol=1e-5)
    assert float((strong - 0.5).square().mean().sqrt()) == pytest.approx(0.05, rel=0.2)


def test_uniform_and_identical_images_give_finite_numbers():
    model, flat = lively_decoder(), torch.full((2, 3, 16, 16), 0.5)
    model.fit_statistics(flat, flat)
    assert torch.isfinite(model.sample(flat, 2)).all()
    assert torch.isfinite(model.sample(flat, 2, rms=torch.zeros(2))).all()
    assert torch.isfinite(model.loss(flat, flat, torch.zeros(2))).all()
    assert torch.allclose(model.sample_rms(flat), torch.tensor(LEAST_RMS), rtol=0.01)


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
    without_noise = [model.sample(decoded, 2, 0.0, rms=torch.full((2,), 0.02)) for _ in range(2)]
    assert torch.equal(*without_noise)


@torch.no_grad()
def test_a_crop_and_the_whole_image_have_the_same_velocity():
    """The reason why the network may be trained on crops: it reads a neighborhood only."""
    model = lively_decoder()
    x, decoded = torch.randn(1, 48, 40, 40), torch.rand(1, 3, 160, 160)
    time, rms = torch.tensor([0.3]), torch.tensor([0.02])
    whole = model(x, time, decoded, rms)[..., 18:22, 18:22]
    part = model(x[..., 4:36, 4:36], time, decoded[..., 16:144, 16:144], rms)[..., 14:18, 14:18]
    assert torch.allclose(whole, part, atol=1e-5)
    x[..., 20, 20] += 1
    assert not torch.allclose(model(x, time, decoded, rms)[..., 18:22, 18:22], whole, atol=1e-3)


@torch.no_grad()
def test_the_decoded_image_the_time_and_the_rms_are_used():
    model = lively_decoder()
    x, decoded, half = torch.randn(1, 48, 4, 4), torch.rand(1, 3, 16, 16), torch.tensor([0.5])
    weak, strong = torch.tensor([0.01]), torch.tensor([0.03])
    reference = model(x, half, decoded, weak)
    assert not torch.allclose(model(x, half, 1 - decoded, weak), reference, atol=1e-3)
    assert not torch.allclose(model(x, half, decoded, strong), reference, atol=1e-3)
    # At t and 1 - t the scale of the output is the same; only the embedding differs.
    early, late = (model(0 * x, torch.tensor([t]), decoded, weak) for t in (0.2, 0.8))
    assert not torch.allclose(early, late, atol=1e-4)


def test_save_and_load(tmp_path):
    model = lively_decoder()
    residuals = smooth_residuals(16)
    model.fit_statistics(0.5 + residuals, torch.full_like(residuals, 0.5))
    path = save_model(model, tmp_path / "realistic.safetensors")
    loaded, decoded = load_model(path, RealisticDecoder), torch.rand(1, 3, 16, 16)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    samples = [m.sample(decoded, 2, generator=g) for m, g in zip((model, loaded), generators)]
    assert torch.equal(*samples)


def test_size_of_the_default_network():
    assert sum(p.numel() for p in RealisticDecoder().parameters()) < 2_000_000


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
        ({"rms": torch.tensor(0.1)}, r"rms must be float \(1,\)"),
        ({"rms": torch.tensor([-0.1])}, "rms"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_decoder().sample(**({"decoded": torch.rand(1, 3, 16, 16)} | arguments))
