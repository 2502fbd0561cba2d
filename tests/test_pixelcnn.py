"""Causality, proved by gradient over every (position, slot), and checks that can fail."""

import pytest
import torch
import torch.nn.functional as F

from vqlib import MaskedConv2d, PixelCNN, PixelRCNN
from vqlib.pixelcnn import dependencies, mean_so_far


def small_prior(**options):
    torch.manual_seed(0)
    options = {"conv_filters": 24, "embedding_dim": 4, "blocks": 8, **options}
    return PixelCNN(num_embeddings=16, **options)


def lively_prior(**options):
    """Weights that start at 0 would hide what passes through them."""
    prior = small_prior(**options)
    for parameter in prior.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter)
    return prior


def proof(prior, size=8):
    embedded = prior.embed(torch.randint(16, (1, size, size, 4))).detach().requires_grad_()
    return dependencies(prior.predict(embedded), embedded, prior.slots)


def reachable(size, slots, blocks):
    """The same matrix from the masks alone: boolean convolutions composed, no network."""
    inputs = torch.eye(size * size * slots).view(-1, size, size, slots).permute(0, 3, 1, 2)

    def spread(x, mask_type, kernel):
        conv = MaskedConv2d(mask_type, slots, slots, kernel, slots=slots)
        return (F.conv2d(x, conv.mask, padding=kernel // 2) > 0).float()

    x = spread(inputs, "A", 7)
    for _ in range(blocks):
        x = x + spread(x, "B", 3)
    x = spread(x, "B", 1)
    return x.permute(0, 2, 3, 1).flatten(1).bool().T  # (output, input)


def test_no_code_sees_itself_or_a_later_one():
    seen = proof(lively_prior().eval())
    assert seen.shape == (256, 256)
    assert not seen.triu().any()


def test_every_later_code_sees_every_earlier_one():
    """Two stacks leave no blind spot: all 32,640 pairs, with as many blocks as the default, and
    before any block's mean of the rows above has a weight."""
    seen = proof(small_prior().eval())
    assert torch.equal(seen, torch.ones(256, 256).tril(-1).bool())


def test_a_plain_stack_has_the_blind_spot_that_its_masks_say():
    """The report's prior sees exactly what its masks allow, and 8 blocks do not help it: what lies
    up and more than three columns to the right, one row above, is never seen."""
    report = PixelRCNN(no_channels=8, out_channels=8, conv_filters=12).eval()
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    seen = dependencies(report(x).permute(0, 2, 3, 1).unsqueeze(3), x, slots=1)
    assert torch.equal(seen, reachable(8, 1, blocks=8))
    blind = torch.ones(64, 64).tril(-1).bool() & ~seen
    assert 0 < blind.sum() < 0.1 * 64 * 63 / 2
    for i, j in blind.nonzero().tolist():
        assert j // 8 < i // 8 and j % 8 > i % 8 + 3


def test_the_proof_catches_a_prior_that_looks_ahead(monkeypatch):
    prior = small_prior().eval()
    prior.blocks[3].here.mask[0, -1] = 1  # slot 0 sees slot 3 of its own position
    assert proof(prior).triu().any()
    prior = small_prior().eval()
    prior.here.mask[-1, -1] = 1  # slot 3 sees itself
    assert proof(prior).triu().any()
    own_row_too = lambda x, rows: F.pad(x, (0, 0, rows - 1, 0))  # noqa: E731
    monkeypatch.setattr("vqlib.pixelcnn.rows_above", own_row_too)
    assert proof(small_prior().eval()).triu().any()


def test_the_mean_so_far_is_of_rows_that_are_known(monkeypatch):
    v = torch.randn(2, 3, 4, 5)
    for row in range(4):
        expected = v[:, :, : row + 1].mean((2, 3))
        assert torch.allclose(mean_so_far(v)[:, :, row, 0], expected, atol=1e-6)
    monkeypatch.setattr("vqlib.pixelcnn.mean_so_far", lambda v: v.mean((2, 3), keepdim=True))
    assert not proof(small_prior().eval()).triu().any()  # no weight, and so no leak to be seen
    assert proof(lively_prior().eval()).triu().any()


def test_batch_norm_leaks_in_training_and_slot_norm_does_not():
    torch.manual_seed(0)
    report = PixelRCNN(no_channels=8, out_channels=8, conv_filters=12)
    x = torch.randn(1, 8, 8, 8, requires_grad=True)

    def proof_of(model):
        return dependencies(model(x).permute(0, 2, 3, 1).unsqueeze(3), x, slots=1)

    assert not proof_of(report.eval()).triu().any()
    assert proof_of(report.train()).triu().any()
    assert not proof(small_prior(dropout=0.0).train()).triu().any()


def test_logits_do_not_change_when_later_codes_do():
    """By perturbation, the check a user would make: every place, all later codes redrawn."""
    prior = lively_prior().eval()
    codes = torch.randint(16, (256, 8, 8, 4))
    codes[:] = codes[:1]
    changed = codes.flatten(1).clone()
    for place in range(256):
        changed[place, place:] = torch.randint(16, (256 - place,))
    with torch.no_grad():
        before = prior(codes).flatten(1, 3)
        after = prior(changed.view_as(codes)).flatten(1, 3)
    rows = torch.arange(256)
    assert torch.equal(before[rows, rows], after[rows, rows])


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (8, 1), (2, 8), (2, 2), (3, 3), (8, 8)])
def test_maps_smaller_than_the_kernel(size):
    """Same output as with the whole kernel, and the gradient in bf16 is that in float32."""
    torch.manual_seed(0)
    conv = MaskedConv2d("A", 128, 120, 7, slots=4)
    x = torch.randn(4, 128, *size)
    whole = F.conv2d(x, conv.weight * conv.mask, conv.bias, padding=3)
    assert torch.allclose(conv(x), whole, atol=1e-5)
    gradients = []
    for half in (False, True):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            conv(x).float().square().sum().backward()
        gradients.append(conv.weight.grad)
    exact, rounded = gradients
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_labels_matter_once_learnt_and_none_is_the_last_row():
    prior = small_prior().eval()
    codes = torch.randint(16, (2, 4, 4, 4))
    torch.nn.init.normal_(prior.labels.weight)
    none = torch.full((2,), 7)
    assert torch.equal(prior(codes), prior(codes, none))
    assert not torch.allclose(prior(codes), prior(codes, torch.tensor([0, 1])))


def test_orientations_matter_once_learnt_and_none_is_the_first():
    prior = lively_prior(orientations=8).eval()
    codes = torch.randint(16, (2, 4, 4, 4))
    first, other = torch.zeros(2, dtype=torch.long), torch.tensor([0, 5])
    assert torch.equal(prior(codes), prior(codes, None, first))
    same = (prior(codes) == prior(codes, None, other)).flatten(1).all(1)
    assert same.tolist() == [True, False]


def test_the_reports_prior_layer_by_layer():
    convolutions = [m for m in PixelRCNN().modules() if isinstance(m, MaskedConv2d)]
    assert [(c.mask_type, c.kernel_size[0]) for c in convolutions] == [
        ("A", 7),
        *[("B", 3)] * 8,
        ("B", 1),
    ]
    assert PixelRCNN()(torch.randn(1, 256, 8, 8)).shape == (1, 256, 8, 8)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='"A" or "B"'):
        MaskedConv2d("C", 4, 4, 3)
    with pytest.raises(ValueError, match="odd kernel"):
        MaskedConv2d("A", 4, 4, 4)
    with pytest.raises(ValueError, match="equal groups"):
        MaskedConv2d("A", 6, 4, 3, slots=4)
    with pytest.raises(ValueError, match="int64"):
        small_prior()(torch.zeros(1, 8, 8, 3, dtype=torch.long))
    for code, slot in ((16, 0), (-1, 3)):  # embeddings of the next and of the last slot
        codes = torch.zeros(1, 2, 2, 4, dtype=torch.long)
        codes[0, 0, 1, slot] = code
        with pytest.raises(ValueError, match=r"codes must lie in 0\.\.15"):
            small_prior()(codes)


def test_embeddings_start_as_the_codebooks_vectors():
    """Each feature with mean 0 and variance 1 in a slot; one that no code uses stays 0."""
    codebook = 5 + 3 * torch.randn(4, 16, 6)
    codebook[..., 5] = 1.0
    prior = PixelCNN(16, 4, 24, embedding_dim=6, blocks=1)
    prior.start_from(codebook)
    rows = prior.embedding.weight.view(4, 16, 6)
    assert torch.allclose(rows.mean(1), torch.zeros(4, 6), atol=1e-5)
    assert torch.allclose(rows.std(1)[:, :5], torch.ones(4, 5), atol=1e-4)
    assert not rows[..., 5].any()
    ranks = [x[2, :, 0].argsort().tolist() for x in (rows, codebook)]
    assert ranks[0] == ranks[1]  # who is near to whom
