import math

import pytest
import torch

from vqlib import PixelCNN, sample
from vqlib.metrics import baseline_bits, code_bits
from vqlib.sampling import CachedPixelCNN, complete, filter_logits, sample_categorical


def small_prior(k=3, head_std=2.0):
    torch.manual_seed(0)
    prior = PixelCNN(k, 2, 8, embedding_dim=4, blocks=1).eval()
    torch.nn.init.normal_(prior.head.weight, std=head_std)  # far from uniform
    torch.nn.init.normal_(prior.label_embedding.weight)
    return prior


@pytest.mark.parametrize("method", ["naive", "cached"])
def test_samples_follow_the_priors_distribution(method):
    """Frequencies of all 81 grids of 2 positions x 2 slots x 3 codes among 20,000 samples."""
    prior = small_prior()
    n = 20_000
    samples = sample(
        prior, n, 2, grid=(1, 2), generator=torch.Generator().manual_seed(1), method=method
    )
    weights = 3 ** torch.arange(4)
    observed = torch.bincount((samples.flatten(1) * weights).sum(1), minlength=81) / n
    all_grids = torch.cartesian_prod(*[torch.arange(3)] * 4)
    label = torch.full((81,), 2)
    p = 2 ** -code_bits(prior, all_grids.view(81, 1, 2, 2), label).flatten(1).sum(1).double()
    assert p.sum() == pytest.approx(1.0, abs=1e-4)  # chain rule: the product is a distribution
    expected = torch.zeros(81).double().scatter_(0, (all_grids * weights).sum(1), p)
    chi2 = (n * (observed - expected) ** 2 / expected.clamp_min(1e-9))[expected > 5 / n].sum()
    degrees = (expected > 5 / n).sum() - 1
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees)


def lively_prior(slots, blocks=2, k=16, filters=24):
    """Parameters that are initialized with 0 would hide a missing term, so they are made random."""
    torch.manual_seed(slots)
    prior = PixelCNN(k, slots, filters, embedding_dim=5, blocks=blocks).eval()
    for name, parameter in prior.named_parameters():
        offset = 1.0 if "norm.weight" in name else 0.0
        torch.nn.init.normal_(parameter, offset, 0.3)
    return prior


OPTIONS = {
    "plain": {},
    "one label": {"labels": 3},
    "labels and temperature": {"labels": torch.tensor([0, 6, 7]), "temperature": 0.6},
    "top-k": {"top_k": 4, "temperature": 1.3},
    "top-p": {"top_p": 0.7},
    "guided": {"labels": torch.tensor([0, 6, 3]), "guidance": 0.7},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("slots, grid", [(4, (8, 8)), (1, (3, 9)), (2, (5, 1)), (3, (1, 2))])
def test_cached_equals_naive(slots, grid, options):
    prior = lively_prior(slots).double()
    n = 3
    keep = torch.rand(grid, generator=torch.Generator().manual_seed(0)) < 0.3
    given = torch.randint(16, (n, *grid, slots))
    for kept_options in ({}, {"given": given, "keep": keep}):
        naive, cached = (
            sample(
                prior,
                n,
                grid=grid,
                generator=torch.Generator().manual_seed(11),
                method=method,
                **options,
                **kept_options,
            )
            for method in ("naive", "cached")
        )
        assert torch.equal(naive, cached)
    if grid == (8, 8):
        assert len(naive.unique()) > 10  # the codes differ


def test_cached_logits_equal_the_priors_in_float32():
    """Equal within rounding errors of 1e-4, at every position and slot."""
    prior = lively_prior(4)
    codes = torch.randint(16, (5, 6, 4, 4))
    labels = torch.tensor([0, 1, 2, 3, 7])
    cache = CachedPixelCNN(prior, codes.shape, labels)
    with torch.inference_mode():
        logits = prior(codes, labels)
        for row, column in torch.cartesian_prod(torch.arange(6), torch.arange(4)).tolist():
            cache.start_position(row, column)
            for slot in range(4):
                cache.compute_slot(slot)
                assert torch.allclose(
                    cache.logits(slot), logits[:, row, column, slot], rtol=0, atol=1e-4
                )
                cache.set_code(slot, codes[:, row, column, slot])


def test_sample_is_reproducible_and_keeps_the_training_mode():
    prior = small_prior().train()
    a, b = (
        sample(prior, 5, grid=(3, 3), generator=torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(a, b) and prior.training and a.shape == (5, 3, 3, 2)
    a[0, 0, 0, 0] = 1  # not an inference tensor: it can be changed
    with pytest.raises(ValueError, match="above 0"):
        sample(prior, 5, temperature=-1)
    assert prior.training  # also after an error


def test_kept_codes_stay_and_later_codes_depend_on_them():
    prior = small_prior()
    given = torch.randint(3, (4, 3, 3, 2))
    keep = torch.zeros(3, 3, dtype=torch.bool)
    keep[:2] = True
    sampled = sample(prior, 4, given=given, keep=keep)
    assert torch.equal(sampled[:, :2], given[:, :2])
    many_grids = torch.randint(3, (32, 3, 3, 2))
    assert len(sample(prior, 32, given=many_grids, keep=keep, top_k=1)[:, 2].unique(dim=0)) > 1


@pytest.mark.parametrize("method", ["naive", "cached"])
def test_given_codes_may_have_any_memory_layout(method):
    prior = small_prior()
    given = torch.randint(3, (4, 3, 5, 2))
    keep = torch.arange(15).view(3, 5) % 4 == 0
    layouts = {
        "slots first": given.movedim(3, 1).contiguous().movedim(1, 3),
        "columns first": given.transpose(1, 2).contiguous().transpose(1, 2),
        "one expanded grid": given[:1].expand(4, -1, -1, -1),
        "-1 where no code is kept": given.masked_fill(~keep[..., None], -1),
    }
    for name, codes in layouts.items():
        contiguous = codes.clamp(min=0).clone(memory_format=torch.contiguous_format)
        for function, options in (
            (sample, {"n": 4}),
            (sample, {"n": 4, "labels": 2, "guidance": 0.5}),
            (complete, {"candidates": 1}),
            (complete, {"candidates": 3}),
        ):
            results = []
            for grid in (codes, contiguous):
                generator = torch.Generator().manual_seed(0)
                options |= {"keep": keep, "generator": generator, "method": method}
                results.append(function(prior, given=grid, **options))
            assert torch.equal(*results), name
            assert torch.equal(results[0][:, keep], contiguous[:, keep])
            assert not torch.equal(results[0], contiguous)


def test_filter_logits():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    p = lambda **options: filter_logits(logits, **options).softmax(-1).tolist()  # noqa: E731
    assert p() == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert p(top_k=2) == pytest.approx([0.625, 0.375, 0, 0])
    assert p(top_p=0.7) == pytest.approx([0.625, 0.375, 0, 0])
    assert p(top_p=0.5) == pytest.approx([1, 0, 0, 0])
    assert p(top_k=9) == p(top_p=1.0) == p()
    assert p(top_p=0.951) == p() and p(top_p=0.949)[3] == 0
    order = [2, 0, 3, 1]  # whatever the order of the codes
    mixed = filter_logits(logits[order], top_p=0.7).softmax(-1)
    assert mixed.tolist() == pytest.approx([0, 0.625, 0, 0.375])
    ties = filter_logits(torch.tensor([1.0, 2.0, 1.0, 0.0]), top_k=2)
    assert ties.isfinite().tolist() == [True, True, True, False]  # all that tie with the second
    rare = torch.tensor([0.99, 0.0095, 0.0005]).log()
    assert filter_logits(rare, top_p=0.995).isfinite().tolist() == [True, True, False]
    assert p(temperature=0.5)[0] == pytest.approx(0.25 / (0.25 + 0.09 + 0.0225 + 0.0025))
    assert filter_logits(100 * logits, 1e-37).softmax(-1).tolist() == [1, 0, 0, 0]
    temperatures = [{"temperature": t} for t in (0.0, -1.0, math.nan, math.inf, 1e-46)]
    for bad in (*temperatures, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_p": math.nan}):
        with pytest.raises(ValueError, match="must"):
            filter_logits(logits, **bad)


def test_a_code_without_probability_is_never_sampled():
    p = torch.tensor([0.0, 0.5, 0.0, 0.4999, 0.0])  # sums to less than 1, as rounded sums may
    points = torch.tensor([0.0, 0.4, 0.6, 1 - 2**-24])
    assert sample_categorical(p.expand(4, 5), points).tolist() == [1, 1, 3, 3]
    assert (
        sample_categorical(torch.tensor([0.5, 0.5]), torch.tensor(0.5)) == 1
    )  # the first code's end is open


def test_guidance_follows_equation_6():
    """First codes of many grids follow p(code | class)^(1 + w) / p(code)^w, normalized."""
    prior, w, n = lively_prior(1), 1.5, 20_000
    with torch.inference_mode():
        empty = torch.zeros(1, 1, 1, 1, dtype=torch.long)
        conditional, unconditional = (
            prior(empty, torch.tensor([c])).softmax(-1).flatten() for c in (2, 7)
        )
    expected = conditional ** (1 + w) / unconditional**w
    generator = torch.Generator().manual_seed(0)
    sampled = sample(prior, n, 2, guidance=w, grid=(1, 1), generator=generator)
    frequencies = sampled.flatten().bincount(minlength=len(expected)) / n
    assert (frequencies - expected / expected.sum()).abs().max() < 0.015
    assert (frequencies - conditional).abs().max() > 0.03  # unlike without guidance


def test_guidance_compares_the_same_grid_with_and_without_its_class():
    """The second codes follow the guided logits of both halves, given the sampled first code."""
    prior, w, n = lively_prior(1), 1.5, 20_000
    generator = torch.Generator().manual_seed(0)
    codes = sample(prior, n, 2, guidance=w, grid=(1, 2), generator=generator)
    with torch.inference_mode():
        conditional, unconditional = (prior(codes, torch.full((n,), c))[:, 0, 1, 0] for c in (2, 7))
        blind = prior(torch.zeros_like(codes[:1]))[:, 0, 1, 0]  # given another first code
    share = codes[:, 0, 1, 0].bincount(minlength=16) / n
    wanted, wrong = (
        (x + (1 + w) * (conditional - x)).softmax(-1).mean(0) for x in (unconditional, blind)
    )
    assert (share - wanted).abs().max() < 0.015 < 0.03 < (wrong - wanted).abs().max()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["embedding.weight", "orientation_embedding", "head.bias"])
def test_a_prior_with_non_finite_weights_is_rejected(name, bad):
    prior = small_prior()
    with torch.no_grad():
        prior.get_parameter(name).view(-1)[-1] = bad
    given, keep = torch.zeros(1, 2, 2, 2, dtype=torch.long), torch.zeros(2, 2) > 0
    for method in ("naive", "cached"):
        with pytest.raises(ValueError, match="prior's weights contain NaN or infinity"):
            sample(prior, 1, grid=(2, 2), method=method)
        with pytest.raises(ValueError, match="prior's weights contain NaN or infinity"):
            complete(prior, given, keep, candidates=2, method=method)


def test_baselines_do_not_see_the_held_out_codes():
    """Independent codes take as many bits as their entropy; a table that was counted on the
    held-out codes would take fewer."""
    torch.manual_seed(0)
    p = torch.tensor([0.5, 0.25, 0.125, 0.125])
    codes = torch.multinomial(p, 600 * 8, replacement=True).view(600, 2, 2, 2)
    bits = baseline_bits(codes[:500], codes[500:], 4)
    assert bits["uniform"] == 2.0
    assert bits["unigram"] == pytest.approx(1.75, abs=0.05)
    assert bits["unigram per position"] == pytest.approx(1.75, abs=0.07)
    zeros = torch.zeros(10, 2, 2, 2, dtype=torch.long)
    assert baseline_bits(zeros, zeros + 1, 4)["unigram"] > 5  # a code never seen in training


def test_float32_samples_differ_only_at_ties():
    """Both methods round differently. The first code that differs, if any, was sampled with a
    random number within 1e-4 of the border between two codes."""
    prior, n, grid = lively_prior(4), 32, (6, 6)
    naive, cached = (
        sample(prior, n, grid=grid, generator=torch.Generator().manual_seed(5), method=method)
        for method in ("naive", "cached")
    )
    generator = torch.Generator().manual_seed(5)
    uniforms = torch.stack(
        [torch.rand(n, 1, generator=generator)[:, 0] for _ in naive[0].flatten()], 1
    )
    with torch.inference_mode():
        borders = prior(naive).softmax(-1).cumsum(-1).flatten(1, 3)
    differs = (naive != cached).flatten(1)
    assert differs.any(1).float().mean() < 0.2
    for i in differs.any(1).nonzero().flatten():
        first = differs[i].int().argmax()
        assert (borders[i, first] - uniforms[i, first]).abs().min() < 1e-4


def test_complete_depends_on_kept_codes_below():
    """The prior learns that two rows are equal: the sampled upper row must equal the lower one."""
    torch.manual_seed(0)
    prior = PixelCNN(4, 1, 16, embedding_dim=8, blocks=2, dropout=0.0)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(150):
        codes = torch.randint(4, (64, 1, 2, 1)).repeat(1, 2, 1, 1)
        loss = torch.nn.functional.cross_entropy(prior(codes).flatten(0, 3), codes.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    given = torch.randint(4, (200, 1, 2, 1)).repeat(1, 2, 1, 1)
    keep = torch.tensor([[False, False], [True, True]])
    generator = torch.Generator().manual_seed(0)
    sampled = sample(prior, 200, given=given, keep=keep, generator=generator)
    completed = complete(prior, given, keep, candidates=64, generator=generator)
    agreement = [
        (codes[:, 0] == codes[:, 1]).all((1, 2)).float().mean() for codes in (sampled, completed)
    ]
    assert agreement[0] < 0.25 and agreement[1] > 0.85  # chance is 1/16; 64 candidates miss 1.6 %
    assert torch.equal(completed[:, 1], given[:, 1])
    # Options reach `sample`: with top_k = 1 nothing is left to chance.
    greedy = [complete(prior, given[:9], keep, 2, generator=generator, top_k=1) for _ in range(2)]
    assert torch.equal(*greedy)


def test_completion_follows_the_posterior_of_each_label():
    """p(first position | second position, label), exactly, for all 9 pairs of first codes."""
    prior, n = small_prior(), 1000
    labels = torch.tensor([2, 5]).repeat(n // 2)
    keep = torch.tensor([[False, True]])
    given = torch.tensor([0, 0, 2, 1]).view(1, 1, 2, 2).expand(n, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    filled = complete(prior, given, keep, 64, labels, generator)
    first = filled[:, 0, 0] @ torch.tensor([3, 1])
    every = torch.cartesian_prod(*[torch.arange(3)] * 2)
    whole = torch.cat([every, given[:9, 0, 1]], 1).view(9, 1, 2, 2)
    for label in (2, 5):
        bits = code_bits(prior, whole, torch.full((9,), label)).flatten(1).sum(1)
        posterior = torch.softmax(-bits * math.log(2), 0)
        share = first[labels == label].bincount(minlength=9) / (n // 2)
        assert (share - posterior).abs().max() < 0.08, label


def test_bigram_baseline_learns_dependencies_between_neighbors():
    """A Markov chain: the next code is the last one plus 1 with a probability of 0.925."""
    torch.manual_seed(0)
    steps = 1 + torch.randint(4, (600, 8, 8, 2)) * (torch.rand(600, 8, 8, 2) < 0.1)
    codes = steps.cumsum(2) % 4
    bits = baseline_bits(codes[:500], codes[500:], 4)
    entropy = -(0.925 * math.log2(0.925) + 3 * 0.025 * math.log2(0.025))
    # The first column has the same entropy, because its code is 1 plus such a random step.
    assert bits["unigram"] > 1.5 and abs(bits["bigram"] - entropy) < 0.05
