"""The search finds the best codes where they are known, and never makes the sum worse."""

import pytest
import torch
from test_sampling import lively_prior
from torch import nn

from vqlib import VQVAE
from vqlib.evaluation.code_search import _linearized_costs, decoder_metric, search_codes
from vqlib.metrics import code_bits


def local_model(slots):
    """A model whose decoder is linear and maps each position to its own 32x32 pixels."""
    torch.manual_seed(0)
    model = VQVAE(num_embeddings=16, embedding_dim=256 // slots).eval()
    linear = nn.Conv2d(256, 3 * 32 * 32, kernel_size=1)
    nn.init.normal_(linear.weight, std=0.005)
    nn.init.constant_(linear.bias, 0.5)
    model.decoder = nn.Sequential(linear, nn.PixelShuffle(32))
    return model


def exact_metric(model):
    jacobian = model.decoder[0].weight.detach().flatten(1)
    return jacobian.T @ jacobian


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 128, 96, generator=torch.Generator().manual_seed(1))


def squared_errors(model, codes, images):
    return (model.decode(codes) - images).square().flatten(1).sum(1)


def test_metric_is_the_mean_of_the_squared_jacobian():
    model = local_model(4)
    codes = torch.randint(16, (8, 4, 4, 4))
    expected = exact_metric(model)
    error = decoder_metric(model, codes, probes=32) - expected
    assert error.std() < 0.03 * expected.diagonal().mean()
    assert error.diagonal().mean().abs() < 0.01 * expected.diagonal().mean()


def test_costs_are_exact_for_a_linear_decoder(images):
    model = local_model(4)
    codes = model.encode(images)
    costs = _linearized_costs(model, codes, images, exact_metric(model))
    before = squared_errors(model, codes, images)
    for image, row, column, slot, code in ((0, 0, 0, 0, 3), (0, 2, 1, 3, 0), (1, 3, 2, 1, 15)):
        changed = codes.clone()
        changed[image, row, column, slot] = code
        difference = (squared_errors(model, changed, images) - before)[image]
        assert torch.allclose(costs[image, row, column, slot, code], difference, atol=2e-3)
    assert costs.gather(-1, codes[..., None]).abs().max() < 1e-3


def test_one_code_per_position_is_the_best_of_all(images):
    """With one slot and this decoder, the best code of each position is known."""
    model = local_model(1)
    found = search_codes(model, images, torch.eye(256), sweeps=1, candidates=15)
    errors = []
    for code in range(16):
        decoded = model.decode(torch.full_like(found, code))
        error = (decoded - images).square().sum(1)
        errors.append(error.unflatten(2, (3, 32)).unflatten(1, (4, 32)).sum((2, 4)))
    assert torch.equal(found[..., 0], torch.stack(errors).argmin(0))
    assert not torch.equal(found, model.encode(images))


def test_no_single_change_improves_the_result(images):
    model = local_model(4)
    found = search_codes(model, images, exact_metric(model), sweeps=6, candidates=2)
    assert _linearized_costs(model, found, images, exact_metric(model)).min() > -1e-3
    nearest = squared_errors(model, model.encode(images), images)
    assert (squared_errors(model, found, images) < nearest).all()


def test_rate_is_weighted_against_the_error(images):
    model, prior, labels = local_model(4), lively_prior(4).eval(), torch.tensor([2, 5])
    metric = decoder_metric(model, model.encode(images))

    def measure(codes):
        return squared_errors(model, codes, images), code_bits(prior, codes, labels).sum((1, 2, 3))

    results = [measure(model.encode(images))]
    for weight in (0.0, 0.5):
        codes = search_codes(model, images, metric, prior, labels, rate_weight=weight)
        results.append(measure(codes))
    (error0, bits0), (error1, bits1), (error2, bits2) = results
    assert (error1 < error0).all() and (error1 < error2).all()
    assert (bits2 < bits0).all() and (bits2 < bits1).all()
    assert (error2 + 0.5 * bits2 < error1 + 0.5 * bits1).all()


def test_errors_name_the_argument(images):
    model, prior = local_model(4), lively_prior(4).eval()
    metric = torch.eye(256)
    for weight in (-1, 0.1):
        with pytest.raises(ValueError, match="rate_weight"):
            search_codes(model, images, metric, rate_weight=weight)
    for models in ((model.train(), prior), (model.eval(), prior.train())):
        with pytest.raises(ValueError, match=r"eval\(\)"):
            search_codes(models[0], images, metric, models[1])
        model.eval()
