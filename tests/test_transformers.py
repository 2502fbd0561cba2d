"""The causal and the masked transformer prior."""

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from vqlib import VQVAE, WORKBOOK, EncodedDataset, load_model, sample, save_model, train_prior
from vqlib.__main__ import main
from vqlib.beyond.causal_transformer import CausalTransformer
from vqlib.beyond.masked_transformer import MaskedTransformer, random_masks
from vqlib.checkpoints import model_notes
from vqlib.data import Split
from vqlib.metrics import code_bits
from vqlib.training import Progress

GRID, SLOTS, K = (2, 3), 2, 5


def lively(kind, grid=GRID, slots=SLOTS, k=K):
    """Random weights that are large enough for every code to matter."""
    torch.manual_seed(0)
    prior = kind(k, slots, 16, 3, embedding_dim=8, blocks=2, heads=2, orientations=2, grid=grid)
    for parameter in prior.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return prior.eval()


def random_codes(n, grid=GRID, slots=SLOTS, k=K):
    return torch.randint(k, (n, *grid, slots))


@torch.no_grad()
def test_a_code_changes_the_logits_of_later_codes_only():
    prior, codes = lively(CausalTransformer), random_codes(1)
    reference = prior(codes).flatten(0, 3)
    for i in range(len(reference)):
        changed = codes.clone().flatten()
        changed[i] = (changed[i] + 1) % K
        differs = (prior(changed.view(codes.shape)).flatten(0, 3) != reference).any(1)
        assert not differs[: i + 1].any() and differs[i + 1 :].all(), i


@torch.no_grad()
def test_probabilities_of_all_grids_sum_to_one():
    """The code lengths are exact, so that they can be compared with those of a PixelCNN."""
    prior = lively(CausalTransformer, (1, 2), 2, 3)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4).view(81, 1, 2, 2)
    for labels in (None, torch.full((81,), 2)):
        bits = code_bits(prior, every, labels).double().flatten(1).sum(1)
        assert float((2**-bits).sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"guidance": 1.5}, {"top_p": 0.8, "temperature": 0.9}])
def test_the_cached_sampler_equals_the_naive_one(options):
    prior, labels = lively(CausalTransformer).double(), torch.tensor([0, 2, 1, 2])
    given, keep = random_codes(4), torch.rand(GRID) < 0.3
    for region in ({}, {"given": given, "keep": keep}):
        cached = prior.sample(
            4, labels, generator=torch.Generator().manual_seed(1), **region, **options
        )
        naive = sample(
            prior, 4, labels, generator=torch.Generator().manual_seed(1), method="naive",
            grid=GRID, **region, **options,
        )  # fmt: skip
        assert torch.equal(cached, naive)
    assert torch.equal(cached[:, keep], given[:, keep])


@pytest.mark.parametrize("kind", [CausalTransformer, MaskedTransformer])
@torch.no_grad()
def test_label_orientation_and_position_matter(kind):
    prior, codes = lively(kind), torch.zeros(1, *GRID, SLOTS, dtype=torch.long)
    inputs = (codes,) if kind is CausalTransformer else (codes, torch.ones_like(codes) > 0)
    no_label = prior(*inputs)
    assert torch.equal(no_label, prior(*inputs, torch.tensor([3]), torch.tensor([0])))
    assert not torch.allclose(no_label, prior(*inputs, torch.tensor([1])))
    assert not torch.allclose(no_label, prior(*inputs, None, torch.tensor([1])))
    logits = no_label.flatten(0, 3)
    assert torch.pdist(logits).min() > 1e-3  # equal inputs, but each has its position


@pytest.mark.parametrize("kind", [CausalTransformer, MaskedTransformer])
def test_training_learns_a_dependency_between_codes(kind):
    """All codes of a grid are equal: the first takes log2(3) bits, the others none."""
    torch.manual_seed(0)
    prior = kind(3, 2, 32, embedding_dim=8, blocks=1, heads=2, dropout=0.0, grid=(1, 2))
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)

    def grids(n):
        return torch.randint(3, (n, 1, 1, 1)).expand(-1, 1, 2, 2).contiguous()

    for _ in range(150):
        codes = grids(64)
        if kind is CausalTransformer:
            loss = F.cross_entropy(prior(codes).flatten(0, 3), codes.flatten())
        else:
            loss, _ = prior.training_loss(codes, None, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    entropy = math.log2(3) / 4  # bits per code
    generator = torch.Generator().manual_seed(0)
    if kind is CausalTransformer:
        bits, sampled = code_bits(prior, grids(300)).mean(), prior.sample(99, generator=generator)
    else:
        bits = prior.bits_bound(grids(300), repeats=8).mean()
        sampled = prior.sample(99, passes=8, generator=generator)
        # One pass samples all codes independently.
        independent = prior.sample(99, passes=1, generator=generator)
        assert (independent.flatten(1).diff(dim=1) == 0).all(1).float().mean() < 0.2
    assert entropy - 0.06 < float(bits) < entropy + 0.06
    assert (sampled.flatten(1).diff(dim=1) == 0).all(1).float().mean() > 0.95
    assert len(sampled[:, 0, 0, 0].unique()) == 3


@torch.no_grad()
def test_logits_depend_on_visible_codes_only():
    prior, codes = lively(MaskedTransformer), random_codes(1)
    masked = torch.zeros(codes.shape, dtype=torch.bool)
    masked[0, 0, 1, 0] = masked[0, 1, 2, 1] = True
    reference = prior(codes, masked)
    assert torch.equal(prior(torch.where(masked, (codes + 1) % K, codes), masked), reference)
    for i in (~masked).flatten().nonzero().flatten():
        changed = codes.clone().flatten()
        changed[i] = (changed[i] + 1) % K
        differs = prior(changed.view(codes.shape), masked) != reference
        assert differs[masked].any(1).all(), i  # codes before and after the masked ones


@torch.no_grad()
def test_the_bound_is_the_mean_over_all_orders_and_above_their_mixture():
    """All 24 orders of four codes, each with its exact code length by the chain rule."""
    prior, codes = lively(MaskedTransformer, (2, 1), 2), random_codes(1, (2, 1), 2)
    labels, orders = torch.tensor([1]), list(itertools.permutations(range(4)))
    lengths = []
    for order in orders:
        bits = 0.0
        for i, code in enumerate(order):
            masked = torch.zeros(4, dtype=torch.bool)
            masked[list(order[i:])] = True
            nats = prior.masked_nats(codes, masked.view(codes.shape), labels)
            bits += float(nats.flatten()[code]) / math.log(2)
        lengths.append(bits / 4)
    mean = sum(lengths) / len(orders)
    mixture = -math.log2(sum(2 ** (-4 * bits) for bits in lengths) / len(orders)) / 4
    estimates = prior.bits_bound(codes.expand(4000, -1, -1, -1), labels.expand(4000), 4)
    error = float(estimates.std()) / len(estimates) ** 0.5
    assert float(estimates.mean()) == pytest.approx(mean, abs=4 * error + 1e-5)
    assert mean > mixture + 0.01  # the test is sharp: the orders differ


def test_a_uniform_prior_has_a_bound_of_log2_k():
    prior = lively(MaskedTransformer)
    torch.nn.init.zeros_(prior.head.weight)
    torch.nn.init.zeros_(prior.head_bias)
    bits = prior.bits_bound(random_codes(5), torch.arange(5) % 3)
    assert torch.allclose(bits, torch.full((5,), math.log2(K)))


def test_random_masks_have_every_size_and_position():
    masks = random_masks((4000, 1, 3, 2), torch.rand(4000))
    numbers = masks.flatten(1).sum(1).bincount(minlength=7)
    assert numbers[0] == 0 and (numbers[1:] / 4000 - 1 / 6).abs().max() < 0.03
    assert (masks.float().mean(0) - 3.5 / 6).abs().max() < 0.03


@pytest.mark.parametrize("passes", [1, 3, 100])
def test_kept_codes_stay_and_all_others_are_sampled(passes):
    prior = lively(MaskedTransformer)
    with torch.no_grad():
        prior.head_bias[:, 0] = -40  # a masked code that was never decided would still be 0
    given, keep = torch.zeros(6, *GRID, SLOTS, dtype=torch.long), torch.rand(GRID) < 0.5
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    first, again, other = (
        prior.sample(6, 1, passes, given=given, keep=keep, generator=g) for g in generators
    )
    assert (first[:, keep] == 0).all() and (first[:, ~keep] > 0).all()
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (prior.sample(2, passes=passes) > 0).all()


def test_the_cosine_schedule_decides_how_many_codes_are_left(monkeypatch):
    prior, left = lively(MaskedTransformer, (4, 4)), []
    forward = MaskedTransformer.forward
    monkeypatch.setattr(
        MaskedTransformer,
        "forward",
        lambda self, codes, masked, *a: (
            left.append(int(masked[0].sum())) or forward(self, codes, masked, *a)
        ),
    )
    prior.sample(2, passes=4)
    assert left == [32, 29, 22, 12]  # 32 cos(pi/2 * s/4), rounded down


@pytest.mark.parametrize("kind", [CausalTransformer, MaskedTransformer])
def test_save_and_load(kind, tmp_path):
    prior = lively(kind)
    prior.trained_on_codebook = "0123456789abcdef"
    loaded = load_model(save_model(prior, tmp_path / "prior.safetensors"), kind)
    assert loaded.trained_on_codebook == prior.trained_on_codebook
    first, second = (
        p.sample(3, 1, generator=torch.Generator().manual_seed(0)) for p in (prior, loaded)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", [CausalTransformer, MaskedTransformer])
def test_embeddings_start_from_the_codebook_of_each_slot(kind):
    prior, codebook = lively(kind), 3 + 2 * torch.randn(SLOTS, K, 8)
    prior.initialize_embeddings(codebook)
    codes = random_codes(2)
    vectors = ((codebook - codebook.mean(1, True)) / codebook.std(1, keepdim=True))[
        torch.arange(SLOTS), codes
    ]
    assert torch.allclose(prior.embed(codes), vectors.flatten(1, 2), atol=1e-5)


@pytest.mark.parametrize("kind", [CausalTransformer, MaskedTransformer])
def test_bad_input_is_named(kind):
    prior = lively(kind)
    with pytest.raises(ValueError, match="190 is not a multiple of 12"):
        kind(width=190)
    with pytest.raises(ValueError, match=r"int64 \(\*, 2, 3, 2\)"):
        prior.embed(random_codes(1, (2, 2)))
    with pytest.raises(ValueError, match=r"0\.\.4"):
        prior.embed(random_codes(1) + K)
    with pytest.raises(ValueError, match="needs labels"):
        prior.sample(1, guidance=1.0)
    with pytest.raises(ValueError, match="at least 0"):
        prior.sample(1, 1, guidance=math.nan)
    with pytest.raises(ValueError, match="labels must lie"):
        prior.sample(1, 7)
    if kind is MaskedTransformer:
        with pytest.raises(ValueError, match="passes"):
            prior.sample(1, passes=0)


@pytest.mark.parametrize("kind", [CausalTransformer, MaskedTransformer])
def test_about_as_many_weights_as_the_pretrained_pixelcnn(kind):
    weights = sum(p.numel() for p in kind(orientations=8).parameters())
    assert 2_200_000 < weights < 2_600_000


@pytest.mark.parametrize("kind", [CausalTransformer, MaskedTransformer])
def test_train_prior_trains_them_with_their_own_loss_and_measure(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    torch.manual_seed(0)
    codes = torch.randint(K, (32, 1, 1, SLOTS)).expand(-1, *GRID, -1).contiguous()
    split = Split(*torch.arange(32).split([24, 4, 4]))
    encoded = EncodedDataset(codes, torch.arange(32) % 3, split, torch.randn(SLOTS, K, 8))
    recipe = replace(
        WORKBOOK, name="small", prior=partial(kind, width=16, blocks=1, heads=2, grid=GRID)
    )
    prior = train_prior(encoded, recipe, run="prior", epochs=2, device="cpu", progress=Progress())
    notes = model_notes(tmp_path / "runs" / "prior" / "prior.safetensors")
    measure = prior.bits_bound if kind is MaskedTransformer else partial(code_bits, prior)
    bits = float(measure(codes[split.val], encoded.labels[split.val]).mean())
    assert notes["val_bits"] == pytest.approx(bits, rel=1e-5)
    assert notes["finished"] and prior.trained_on_codebook is not None


@pytest.mark.parametrize("kind", [CausalTransformer, MaskedTransformer])
def test_sample_uses_the_sampler_of_the_prior(kind):
    prior, labels = lively(kind), torch.tensor([0, 2])
    options = {"temperature": 0.8, "top_k": 3, "top_p": 0.9, "guidance": 0.5}
    options |= {"given": random_codes(2), "keep": torch.rand(GRID) < 0.5}
    own, through = (
        f(generator=torch.Generator().manual_seed(0), labels=labels, **options)
        for f in (partial(prior.sample, 2), partial(sample, prior, 2))
    )
    assert torch.equal(own, through)
    assert sample(prior, 1, grid=GRID).shape == (1, *GRID, SLOTS)
    with pytest.raises(ValueError, match=r"grid of \(2, 3\), got \(8, 8\)"):
        sample(prior, 1)
    with torch.no_grad():
        prior.head_bias[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        prior.sample(1)


@pytest.mark.parametrize("kind", [CausalTransformer, MaskedTransformer])
def test_the_command_sample_accepts_them(kind, tmp_path, capsys):
    vqvae = VQVAE(K, 256 // SLOTS)
    prior = lively(kind, (2, 2))
    prior.trained_on_codebook = vqvae.codebook_fingerprint
    files = [str(tmp_path / f"{name}.safetensors") for name in ("vqvae", "prior")]
    save_model(vqvae, files[0])
    save_model(prior, files[1], grid=[2, 2], classes=["a", "b", "c"])
    image = tmp_path / "new.png"
    command = ["sample", "--vqvae", files[0], "--prior", files[1], "--out", str(image), "--n", "2"]
    assert main([*command, "--label", "b"]) == 0 and image.stat().st_size > 500
    assert main([*command, "--grid", "3"]) == 2
    assert "made for a grid of (2, 2)" in capsys.readouterr().err
