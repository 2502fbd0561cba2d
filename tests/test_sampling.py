import math

import pytest
import torch

from vqlib import PixelCNN, sample
from vqlib.cached import CachedPixelCNN
from vqlib.metrics import code_bits, table_bits
from vqlib.sampling import complete, filter_logits


def small_prior(k=3, grid_scale=2.0):
    torch.manual_seed(0)
    prior = PixelCNN(k, 2, 8, embedding_dim=4, blocks=1).eval()
    torch.nn.init.normal_(prior.head.weight, std=grid_scale)  # a prior with opinions
    torch.nn.init.normal_(prior.labels.weight)
    return prior


@pytest.mark.parametrize("method", ["naive", "cached"])
def test_samples_follow_the_priors_own_distribution(method):
    """Every grid of 2 positions x 2 slots x 3 codes: 81 outcomes, drawn 20,000 times."""
    prior = small_prior()
    n = 20_000
    draws = sample(
        prior, n, 2, grid=(1, 2), generator=torch.Generator().manual_seed(1), method=method
    )
    weights = 3 ** torch.arange(4)
    seen = torch.bincount((draws.flatten(1) * weights).sum(1), minlength=81) / n
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    label = torch.full((81,), 2)
    p = 2 ** -code_bits(prior, every.view(81, 1, 2, 2), label).flatten(1).sum(1).double()
    assert p.sum() == pytest.approx(1.0, abs=1e-4)  # the chain rule: it is a distribution
    expected = torch.zeros(81).double().scatter_(0, (every * weights).sum(1), p)
    chi2 = (n * (seen - expected) ** 2 / expected.clamp_min(1e-9))[expected > 5 / n].sum()
    freedom = (expected > 5 / n).sum() - 1
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)


def lively_prior(slots, blocks=2, k=16, filters=24):
    """No weight is at its start, so that nothing can be left out unnoticed."""
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
    for kept in ({}, {"given": given, "keep": keep}):
        naive, cached = (
            sample(
                prior,
                n,
                grid=grid,
                generator=torch.Generator().manual_seed(11),
                method=method,
                **options,
                **kept,
            )
            for method in ("naive", "cached")
        )
        assert torch.equal(naive, cached)
    if grid == (8, 8):
        assert len(naive.unique()) > 10  # not one code everywhere


def test_cached_logits_are_the_priors_in_float32():
    """Where float32 rounds differently, a draw may differ only if it was a tie within 1e-4."""
    prior = lively_prior(4)
    codes = torch.randint(16, (5, 6, 4, 4))
    labels = torch.tensor([0, 1, 2, 3, 7])
    cache = CachedPixelCNN(prior, codes.shape, labels)
    with torch.inference_mode():
        whole = prior(codes, labels)
        for row, column in torch.cartesian_prod(torch.arange(6), torch.arange(4)).tolist():
            cache.move_to(row, column)
            for slot in range(4):
                cache.advance(slot)
                assert torch.allclose(
                    cache.logits(slot), whole[:, row, column, slot], rtol=0, atol=1e-4
                )
                cache.put(slot, codes[:, row, column, slot])


def test_same_generator_same_codes_and_training_mode_is_kept():
    prior = small_prior().train()
    a, b = (
        sample(prior, 5, grid=(3, 3), generator=torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(a, b) and prior.training and a.shape == (5, 3, 3, 2)
    a[0, 0, 0, 0] = 1  # an ordinary tensor, to be changed by whoever has it
    with pytest.raises(ValueError, match="above 0"):
        sample(prior, 5, temperature=-1)
    assert prior.training  # after an error, too


def test_kept_codes_stay_and_the_others_see_them():
    prior = small_prior()
    given = torch.randint(3, (4, 3, 3, 2))
    keep = torch.zeros(3, 3, dtype=torch.bool)
    keep[:2] = True
    out = sample(prior, 4, given=given, keep=keep)
    assert torch.equal(out[:, :2], given[:, :2])
    many = torch.randint(3, (32, 3, 3, 2))
    assert len(sample(prior, 32, given=many, keep=keep, top_k=1)[:, 2].unique(dim=0)) > 1


@pytest.mark.parametrize("method", ["naive", "cached"])
def test_given_codes_may_lie_in_memory_as_they_like(method):
    prior = small_prior()
    given = torch.randint(3, (4, 3, 5, 2))
    keep = torch.arange(15).view(3, 5) % 4 == 0
    layouts = {
        "slots first": given.movedim(3, 1).contiguous().movedim(1, 3),
        "columns first": given.transpose(1, 2).contiguous().transpose(1, 2),
        "one for all": given[:1].expand(4, -1, -1, -1),
        "nothing known where nothing is kept": given.masked_fill(~keep[..., None], -1),
    }
    for name, codes in layouts.items():
        same = codes.clamp(min=0).clone(memory_format=torch.contiguous_format)
        for fill, options in (
            (sample, {"n": 4}),
            (sample, {"n": 4, "labels": 2, "guidance": 0.5}),
            (complete, {"candidates": 1}),
            (complete, {"candidates": 3}),
        ):
            results = []
            for each in (codes, same):
                generator = torch.Generator().manual_seed(0)
                options |= {"keep": keep, "generator": generator, "method": method}
                results.append(fill(prior, given=each, **options))
            assert torch.equal(*results), name
            assert torch.equal(results[0][:, keep], same[:, keep])
            assert not torch.equal(results[0], same)


def test_filters():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    p = lambda **options: filter_logits(logits, **options).softmax(-1).tolist()  # noqa: E731
    assert p() == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert p(top_k=2) == pytest.approx([0.625, 0.375, 0, 0])
    assert p(top_p=0.7) == pytest.approx([0.625, 0.375, 0, 0])
    assert p(top_p=0.5) == pytest.approx([1, 0, 0, 0])
    assert p(temperature=0.5)[0] == pytest.approx(0.25 / (0.25 + 0.09 + 0.0225 + 0.0025))
    assert filter_logits(100 * logits, 1e-37).softmax(-1).tolist() == [1, 0, 0, 0]
    temperatures = [{"temperature": t} for t in (0.0, -1.0, math.nan, math.inf, 1e-46)]
    for bad in (*temperatures, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_p": math.nan}):
        with pytest.raises(ValueError, match="must"):
            filter_logits(logits, **bad)


def test_guidance_goes_beyond_the_class():
    """First codes of many grids, beside p(code | class)^(1 + w) / p(code)^w, normalised."""
    prior, w, n = lively_prior(1), 1.5, 20_000
    with torch.inference_mode():
        empty = torch.zeros(1, 1, 1, 1, dtype=torch.long)
        told, untold = (prior(empty, torch.tensor([c])).softmax(-1).flatten() for c in (2, 7))
    wanted = told ** (1 + w) / untold**w
    generator = torch.Generator().manual_seed(0)
    drawn = sample(prior, n, 2, guidance=w, grid=(1, 1), generator=generator)
    share = drawn.flatten().bincount(minlength=len(wanted)) / n
    assert (share - wanted / wanted.sum()).abs().max() < 0.015
    assert (share - told).abs().max() > 0.03  # which are another distribution


def test_bad_arguments_are_named():
    prior = small_prior()
    with pytest.raises(ValueError, match="go together"):
        sample(prior, 1, keep=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.6"):
        sample(prior, 1, 9)
    with pytest.raises(ValueError, match="method"):
        sample(prior, 1, method="magic")
    with pytest.raises(ValueError, match="needs labels"):
        sample(prior, 1, guidance=1.0)
    with pytest.raises(ValueError, match=r"one class or int64 \(2,\)"):
        sample(prior, 2, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"kept must lie in 0\.\.2"):
        sample(prior, 1, given=torch.full((1, 2, 2, 2), 5), keep=torch.ones(2, 2) > 0)
    with pytest.raises(ValueError, match="at least 1"):
        sample(prior, 0)
    given, keep = torch.zeros(1, 2, 2, 2, dtype=torch.long), torch.ones(2, 2) > 0
    for bad in ((given + 0.7, keep), (given, keep.float()), (given, keep.long())):
        for fill in (complete, lambda *x: sample(prior, 1, given=x[1], keep=x[2])):
            with pytest.raises(ValueError, match="given must be int64 and keep bool"):
                fill(prior, *bad)
    for guidance in (-0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="guidance must be"):
            sample(prior, 1, 2, guidance=guidance, grid=(1, 1))
    for labels in (True, 1.0, torch.tensor([math.nan])):
        with pytest.raises(ValueError, match="one class or int64"):
            sample(prior, 1, labels, grid=(1, 1))
    with pytest.raises(ValueError, match=r"one class or int64 \(1,\)"):
        complete(prior, given, keep, labels=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="one candidate"):
        complete(prior, given, keep, candidates=0)
    with pytest.raises(ValueError, match="grid must be"):
        sample(prior, 1, grid=(8,))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["embedding.weight", "orientations", "head.bias"])
def test_a_prior_with_broken_weights_samples_nothing(name, bad):
    prior = small_prior()
    with torch.no_grad():
        prior.get_parameter(name).view(-1)[-1] = bad
    given, keep = torch.zeros(1, 2, 2, 2, dtype=torch.long), torch.zeros(2, 2) > 0
    for method in ("naive", "cached"):
        with pytest.raises(ValueError, match="prior's weights hold NaN or infinity"):
            sample(prior, 1, grid=(2, 2), method=method)
        with pytest.raises(ValueError, match="prior's weights hold NaN or infinity"):
            complete(prior, given, keep, candidates=2, method=method)


def test_tables_are_paid_for_honestly():
    """Independent codes cost their entropy; a table that peeked would be below it."""
    torch.manual_seed(0)
    p = torch.tensor([0.5, 0.25, 0.125, 0.125])
    codes = torch.multinomial(p, 600 * 8, replacement=True).view(600, 2, 2, 2)
    bits = table_bits(codes[:500], codes[500:], 4)
    assert bits["uniform"] == 2.0
    assert bits["unigram"] == pytest.approx(1.75, abs=0.05)
    assert bits["unigram per position"] == pytest.approx(1.75, abs=0.07)
    one = torch.zeros(10, 2, 2, 2, dtype=torch.long)
    assert table_bits(one, one + 1, 4)["unigram"] > 5  # a code never seen in training is dear


def test_in_float32_a_draw_differs_only_at_a_tie():
    """Two ways of adding up round differently; the first code that differs, if any, was drawn by a
    random number within 1e-4 of the border between two codes."""
    prior, n, grid = lively_prior(4), 32, (6, 6)
    naive, cached = (
        sample(prior, n, grid=grid, generator=torch.Generator().manual_seed(5), method=method)
        for method in ("naive", "cached")
    )
    generator = torch.Generator().manual_seed(5)
    u = torch.stack([torch.rand(n, 1, generator=generator)[:, 0] for _ in naive[0].flatten()], 1)
    with torch.inference_mode():
        borders = prior(naive).softmax(-1).cumsum(-1).flatten(1, 3)
    differs = (naive != cached).flatten(1)
    assert differs.any(1).float().mean() < 0.2
    for i in differs.any(1).nonzero().flatten():
        first = differs[i].int().argmax()
        assert (borders[i, first] - u[i, first]).abs().min() < 1e-4


def test_completion_sees_what_is_kept_below():
    """A prior of two rows that must be equal: the upper one is drawn to fit the lower one."""
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
    blind = sample(prior, 200, given=given, keep=keep, generator=generator)
    sighted = complete(prior, given, keep, candidates=64, generator=generator)
    agrees = [(codes[:, 0] == codes[:, 1]).all((1, 2)).float().mean() for codes in (blind, sighted)]
    assert agrees[0] < 0.25 and agrees[1] > 0.85  # 1/16 by chance; 64 candidates miss 1.6 %
    assert torch.equal(sighted[:, 1], given[:, 1])


def test_bigrams_find_what_stands_beside_what():
    """A chain in which the next code is the last one plus 1, nine times out of ten."""
    torch.manual_seed(0)
    steps = 1 + torch.randint(4, (600, 8, 8, 2)) * (torch.rand(600, 8, 8, 2) < 0.1)
    codes = steps.cumsum(2) % 4
    bits = table_bits(codes[:500], codes[500:], 4)
    entropy = -(0.925 * math.log2(0.925) + 3 * 0.025 * math.log2(0.025))
    expected = entropy  # the first column is drawn in the same way, from an even start
    assert bits["unigram"] > 1.5 and abs(bits["bigram"] - expected) < 0.05
