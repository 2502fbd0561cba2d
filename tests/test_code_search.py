"""The search finds the best codes where they are known, and its files are within the budget."""

import math

import pytest
import torch
from test_sampling import lively_prior
from torch import nn

from vqlib import VQVAE, EncodedDataset, compress, decompress, load_pretrained
from vqlib.checkpoints import PRETRAINED
from vqlib.evaluation.code_search import choose_codes, codes_within_budget, decoder_metric
from vqlib.metrics import code_bits, psnr


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


def gradient_at(model, codes, images):
    latents = model.quantizer.quantize(codes).detach().requires_grad_()
    error = (model.decoder(latents) - images).square().sum()
    return latents.detach(), torch.autograd.grad(error, latents)[0]


def test_one_code_per_position_is_the_best_of_all(images):
    """With one slot, a linear decoder and no rate, the best code of each position is known."""
    model, prior = local_model(1), lively_prior(1)
    latents, gradient = gradient_at(model, model.encode(images), images)
    found = choose_codes(
        model, prior, exact_metric(model), latents, torch.zeros(2), gradient=gradient
    )
    errors = []
    for code in range(16):
        decoded = model.decode(torch.full_like(found, code))
        error = (decoded - images).square().sum(1)
        errors.append(error.unflatten(2, (3, 32)).unflatten(1, (4, 32)).sum((2, 4)))
    assert torch.equal(found[..., 0], torch.stack(errors).argmin(0))
    assert not torch.equal(found, model.encode(images))


def test_the_last_code_takes_the_others_and_its_rate_into_account(images):
    """Given all earlier codes, the cost of the last one can be computed from its definition."""
    model, prior, labels = local_model(4), lively_prior(4), torch.tensor([2, 5])
    weight = torch.tensor([0.3, 3.0])
    latents, gradient = gradient_at(model, model.encode(images), images)
    found = choose_codes(
        model, prior, exact_metric(model), latents, weight, labels, gradient=gradient
    )
    costs = []
    for code in range(16):
        codes = found.clone()
        codes[:, -1, -1, -1] = code
        bits = code_bits(prior, codes, labels)[:, -1, -1, -1]
        costs.append(squared_errors(model, codes, images) + weight * bits)
    assert torch.equal(found[:, -1, -1, -1], torch.stack(costs).argmin(0))


def test_only_visited_positions_change(images):
    model, prior, codes = local_model(2), lively_prior(2), torch.zeros(2, 4, 3, 2).long()
    visited = torch.arange(12).view(4, 3) % 5 == 0
    latents, gradient = gradient_at(model, codes, images)
    found = choose_codes(
        model,
        prior,
        exact_metric(model),
        latents,
        torch.zeros(2),
        gradient=gradient,
        codes=codes,
        visited=visited,
    )
    assert (found != codes).any(3).logical_and(~visited).sum() == 0
    assert (found != codes).any()


def test_files_fill_the_budget_and_the_search_lowers_the_error(images):
    model, prior, labels = local_model(4), lively_prior(4), torch.tensor([2, 5])
    free = codes_within_budget(model, prior, images, labels, 10_000, sweeps=0)
    budget = len(compress(prior, free[0], 2)) - 8
    errors = []
    for sweeps in (0, 2):
        codes = codes_within_budget(model, prior, images, labels, budget, sweeps=sweeps)
        sizes = [len(compress(prior, grid, int(n))) for grid, n in zip(codes, labels)]
        assert budget - 8 <= max(sizes) <= budget
        errors.append(squared_errors(model, codes, images))
    assert (errors[1] < errors[0]).all()
    assert all(math.isfinite(error) for error in errors[1].tolist())


def test_the_pretrained_codec_writes_files_within_its_budget():
    codec, prior = load_pretrained("ham10000-codec")
    deep, _ = load_pretrained("ham10000")
    encoded = EncodedDataset.load(PRETRAINED / "ham10000" / "codes.safetensors")
    codes, label = encoded[int(encoded.split.val[0])]
    image = deep.decode(codes[None])
    found = codes_within_budget(codec, prior, image, label[None], sweeps=1)[0]
    file = compress(prior, found, int(label))
    assert 250 < len(file) <= 288 and torch.equal(decompress(prior, file)[0], found)
    assert psnr(codec.decode(found[None]), image) > 38
