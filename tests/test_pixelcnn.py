"""Causality, tested by gradients over every (position, slot), and tests of these tests."""

import pytest
import torch
import torch.nn.functional as F

from vqlib import MaskedConv2d, PixelCNN, PixelRCNN, ResidualMaskedConv2d
from vqlib.pixelcnn import GatedBlock, causal_row_mean, dependency_matrix


def small_prior(**options):
    torch.manual_seed(0)
    options = {"conv_filters": 24, "embedding_dim": 4, "blocks": 8, **options}
    return PixelCNN(num_embeddings=16, **options)


def random_prior(**options):
    """Parameters that are initialized with 0 would hide dependencies, so they are made random."""
    prior = small_prior(**options)
    for parameter in prior.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter)
    return prior


def dependencies_of(prior, size=8):
    embedded = prior.embed(torch.randint(16, (1, size, size, 4))).detach().requires_grad_()
    return dependency_matrix(prior.forward_embedded(embedded), embedded, prior.slots)


def reachable(size, slots, blocks):
    """The dependency matrix computed from the masks alone, by composing boolean convolutions."""
    inputs = torch.eye(size * size * slots).view(-1, size, size, slots).permute(0, 3, 1, 2)

    def masked_convolution(x, mask_type, kernel):
        conv = MaskedConv2d(mask_type, slots, slots, kernel, slots=slots)
        return (F.conv2d(x, conv.mask, padding=kernel // 2) > 0).float()

    x = masked_convolution(inputs, "A", 7)
    for _ in range(blocks):
        x = x + masked_convolution(x, "B", 3)
    x = masked_convolution(x, "B", 1)
    return x.permute(0, 2, 3, 1).flatten(1).bool().T  # (output, input)


def test_no_code_depends_on_itself_or_a_later_one():
    depends = dependencies_of(random_prior().eval())
    assert depends.shape == (256, 256)
    assert not depends.triu().any()


def test_every_code_depends_on_every_earlier_one():
    """Two stacks leave no blind spot: all 32,640 pairs depend, with the default number of blocks,
    and while the weights of the causal mean are still 0."""
    depends = dependencies_of(small_prior().eval())
    assert torch.equal(depends, torch.ones(256, 256).tril(-1).bool())


def test_a_single_stack_has_the_blind_spot_of_its_masks():
    """The report's prior depends on exactly what its masks allow. Eight blocks do not remove the
    blind spot: positions one row above and more than three columns to the right, and one column
    more for each further row, are in no receptive field."""
    report = PixelRCNN(no_channels=8, out_channels=8, conv_filters=12).eval()
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    depends = dependency_matrix(report(x).permute(0, 2, 3, 1).unsqueeze(3), x, slots=1)
    assert torch.equal(depends, reachable(8, 1, blocks=8))
    blind_spot = torch.ones(64, 64).tril(-1).bool() & ~depends
    assert 0 < blind_spot.sum() < 0.1 * 64 * 63 / 2
    for i, j in blind_spot.nonzero().tolist():
        assert j // 8 < i // 8 and j % 8 > i % 8 + 3


def test_dependency_matrix_detects_a_prior_that_looks_ahead(monkeypatch):
    prior = small_prior().eval()
    prior.blocks[3].center.mask[0, -1] = 1  # slot 0 depends on slot 3 of its own position
    assert dependencies_of(prior).triu().any()
    prior = small_prior().eval()
    prior.center.mask[-1, -1] = 1  # slot 3 depends on itself
    assert dependencies_of(prior).triu().any()
    with_own_row = lambda x, rows: F.pad(x, (0, 0, rows - 1, 0))  # noqa: E731
    monkeypatch.setattr("vqlib.pixelcnn.down_shift", with_own_row)
    assert dependencies_of(small_prior().eval()).triu().any()


def test_causal_row_mean_uses_earlier_rows_only(monkeypatch):
    v = torch.randn(2, 3, 4, 5)
    for row in range(4):
        expected = v[:, :, : row + 1].mean((2, 3))
        assert torch.allclose(causal_row_mean(v)[:, :, row, 0], expected, atol=1e-6)
    monkeypatch.setattr("vqlib.pixelcnn.causal_row_mean", lambda v: v.mean((2, 3), keepdim=True))
    assert not dependencies_of(small_prior().eval()).triu().any()  # its weights are 0: no leak
    assert dependencies_of(random_prior().eval()).triu().any()


def test_batch_norm_leaks_in_train_mode_and_slot_layer_norm_does_not():
    torch.manual_seed(0)
    report = PixelRCNN(no_channels=8, out_channels=8, conv_filters=12)
    x = torch.randn(1, 8, 8, 8, requires_grad=True)

    def report_dependencies(model):
        return dependency_matrix(model(x).permute(0, 2, 3, 1).unsqueeze(3), x, slots=1)

    assert not report_dependencies(report.eval()).triu().any()
    assert report_dependencies(report.train()).triu().any()
    assert not dependencies_of(small_prior(dropout=0.0).train()).triu().any()


def test_logits_do_not_change_when_later_codes_do():
    """By perturbation instead of gradients: for every position, all later codes are replaced."""
    prior = random_prior().eval()
    codes = torch.randint(16, (256, 8, 8, 4))
    codes[:] = codes[:1]
    changed = codes.flatten(1).clone()
    for i in range(256):
        changed[i, i:] = torch.randint(16, (256 - i,))
    with torch.no_grad():
        before = prior(codes).flatten(1, 3)
        after = prior(changed.view_as(codes)).flatten(1, 3)
    indices = torch.arange(256)
    assert torch.equal(before[indices, indices], after[indices, indices])


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (8, 1), (2, 8), (2, 2), (3, 3), (8, 8)])
def test_masked_convolution_on_maps_smaller_than_the_kernel(size):
    """The output is that of the full kernel; the gradient in bf16 is close to that in float32."""
    torch.manual_seed(0)
    conv = MaskedConv2d("A", 128, 120, 7, slots=4)
    x = torch.randn(4, 128, *size)
    full = F.conv2d(x, conv.weight * conv.mask, conv.bias, padding=3)
    assert torch.allclose(conv(x), full, atol=1e-5)
    gradients = []
    for half in (False, True):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            conv(x).float().square().sum().backward()
        gradients.append(conv.weight.grad)
    exact, rounded = gradients
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_labels_change_the_logits_and_none_is_the_last_label():
    prior = small_prior().eval()
    codes = torch.randint(16, (2, 4, 4, 4))
    torch.nn.init.normal_(prior.label_embedding.weight)
    no_label = torch.full((2,), 7)
    assert torch.equal(prior(codes), prior(codes, no_label))
    assert not torch.allclose(prior(codes), prior(codes, torch.tensor([0, 1])))


def test_orientations_change_the_logits_and_none_is_the_first():
    prior = random_prior(orientations=8).eval()
    codes = torch.randint(16, (2, 4, 4, 4))
    first, other = torch.zeros(2, dtype=torch.long), torch.tensor([0, 5])
    assert torch.equal(prior(codes), prior(codes, None, first))
    equal = (prior(codes) == prior(codes, None, other)).flatten(1).all(1)
    assert equal.tolist() == [True, False]


def test_the_reports_prior_layer_by_layer():
    convolutions = [m for m in PixelRCNN().modules() if isinstance(m, MaskedConv2d)]
    assert [(c.mask_type, c.kernel_size[0]) for c in convolutions] == [
        ("A", 7),
        *[("B", 3)] * 8,
        ("B", 1),
    ]
    assert PixelRCNN()(torch.randn(1, 256, 8, 8)).shape == (1, 256, 8, 8)
    assert [type(layer).__name__ for layer in PixelRCNN().net] == [
        *("MaskedConv2d", "BatchNorm2d", "ReLU"),
        *["ResidualMaskedConv2d"] * 8,
        "MaskedConv2d",
    ]
    block, x = ResidualMaskedConv2d(6, slots=2).eval(), torch.randn(2, 6, 3, 3)
    condition = torch.randn(2, 6, 1, 1)
    wanted = x + block.norm(block.conv(x) + condition).clamp(min=0)
    assert torch.allclose(block(x, condition), wanted)


def test_dropout_drops_all_that_a_block_adds():
    v, x, condition = (torch.randn(2, n, 3, 3) for n in (8, 8, 16))
    kept_v, kept_x = GatedBlock(8, slots=2, dropout=1.0).train()(v, x, condition)
    assert torch.equal(kept_v, v) and torch.equal(kept_x, x)
    assert torch.equal(ResidualMaskedConv2d(8, dropout=1.0).train()(x), x)


def test_an_untrained_prior_is_nearly_uniform_and_knows_no_class():
    prior, codes = small_prior(orientations=8).eval(), torch.randint(16, (8, 4, 4, 4))
    logits = prior(codes)
    bits = F.cross_entropy(logits.flatten(0, 3), codes.flatten()) / torch.tensor(2.0).log()
    assert bits.item() == pytest.approx(4, abs=0.05)
    same = torch.arange(8) % 7, torch.arange(8)
    assert torch.equal(prior(codes, *same), logits)


def test_a_code_that_would_read_the_embedding_of_another_slot_raises():
    for code, slot in ((16, 0), (-1, 3)):
        codes = torch.zeros(1, 2, 2, 4, dtype=torch.long)
        codes[0, 0, 1, slot] = code
        with pytest.raises(ValueError, match=r"codes must lie in 0\.\.15"):
            small_prior()(codes)


def test_initialize_embeddings_standardizes_the_codebook_vectors():
    """Every component has mean 0 and variance 1 over a slot; a constant component becomes 0."""
    codebook = 5 + torch.tensor([3, 3, 0.1, 0.1, 0.01, 0]) * torch.randn(4, 16, 6)
    prior = PixelCNN(16, 4, 24, embedding_dim=6, blocks=1)
    prior.initialize_embeddings(codebook)
    embeddings = prior.embedding.weight.view(4, 16, 6)
    assert torch.allclose(embeddings.mean(1), torch.zeros(4, 6), atol=1e-4)
    assert torch.allclose(embeddings.std(1)[:, :5], torch.ones(4, 5), atol=1e-3)
    assert not embeddings[..., 5].any()
    ranks = [x[2, :, 0].argsort().tolist() for x in (embeddings, codebook)]
    assert ranks[0] == ranks[1]  # the order of the codes is kept
