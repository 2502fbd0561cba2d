"""Properties of the quantizer that a wrong one would not have."""

from itertools import pairwise

import pytest
import torch

from vqlib.quantizer import VectorQuantizer, count_codes, k_means, nearest_codes, perplexity


def quantizer(**options):
    torch.manual_seed(0)
    return VectorQuantizer(num_embeddings=16, embedding_dim=4, **options)


@pytest.mark.parametrize("max_scores", [1, 1000, 2**18])
@pytest.mark.parametrize("sets", [1, 4])
def test_nearest_equals_brute_force_whatever_the_chunk(sets, max_scores):
    torch.manual_seed(0)
    vectors, codebook = torch.randn(sets, 333, 8), torch.randn(sets, 50, 8)
    wanted = torch.cdist(vectors.double(), codebook.double()).argmin(-1)
    assert torch.equal(nearest_codes(vectors, codebook, max_scores), wanted)


def test_nearest_never_holds_all_scores():
    """50,000 x 4,096 scores would be 800 MB; the largest tensor made is one chunk of them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                Largest.size = max(Largest.size, result.numel())
            return result

    vectors, codebook = torch.randn(1, 50_000, 4), torch.randn(1, 4096, 4)
    with Largest():
        nearest_codes(vectors, codebook)
    assert Largest.size <= 2**18


def test_code_k_of_slot_s_is_row_k_and_comes_back():
    for codebooks in (1, 2):
        vq = quantizer(codebooks=codebooks).eval()
        codes = torch.randint(16, (3, 5, 6, 2))
        z = vq.lookup(codes)
        assert z.shape == (3, 8, 5, 6)
        book = vq.codebook[-1]
        assert torch.equal(z[2, 4:, 4, 5], book[codes[2, 4, 5, 1]])
        assert torch.equal(vq.encode(z), codes)
        assert torch.equal(vq(z).codes, codes)


def test_straight_through_copies_the_gradient():
    vq = quantizer().eval()
    z = torch.randn(2, 8, 3, 3, requires_grad=True)
    weight = torch.randn(2, 8, 3, 3)
    out = vq(z)
    assert torch.allclose(out.vectors, vq.lookup(out.codes), atol=1e-6)
    (out.vectors * weight).sum().backward()
    assert torch.equal(z.grad, weight)
    assert not vq.codebook.requires_grad  # running means need no gradient, nor an optimizer
    assert out.loss.item() == pytest.approx(0.25 * (z - out.vectors).square().mean().item())


def test_gradient_codebook_loss_pulls_the_two_sides_apart_correctly():
    """d/dz is the commitment term alone, d/de the codebook term alone."""
    vq = quantizer(ema_decay=None, commitment_cost=0.25).eval()
    z = torch.randn(1, 4, 1, 1, requires_grad=True)
    out = vq(z)
    out.loss.backward()
    row = vq.codebook[0, out.codes.item()].detach()
    difference = z.detach().flatten() - row
    assert torch.allclose(z.grad.flatten(), 0.25 * 2 * difference / 4)
    assert torch.allclose(vq.codebook.grad[0, out.codes.item()], -2 * difference / 4)
    assert vq.codebook.grad[0].ne(0).any(-1).sum() == 1


def test_ema_equals_the_closed_form():
    """After t steps: sum_k (1 - g) g^(t-k) * statistics_k + g^t * start."""
    decay = 0.9
    vq = quantizer(ema_decay=decay, codebooks=2).train()
    start = vq.codebook.detach().double().clone()
    count, total = torch.ones(2, 16).double(), start.clone()
    for _ in range(7):
        z = torch.randn(2, 8, 3, 3)
        vectors = z.permute(0, 2, 3, 1).reshape(-1, 2, 4).transpose(0, 1).double()
        codes = vq(z).codes.reshape(-1, 2).T
        one_hot = torch.nn.functional.one_hot(codes, 16).double()
        count = decay * count + (1 - decay) * one_hot.sum(1)
        total = decay * total + (1 - decay) * one_hot.transpose(1, 2) @ vectors
    assert torch.allclose(vq.codebook.double(), total / count[..., None], atol=1e-5)
    assert torch.allclose(vq.ema_count.double(), count, atol=1e-5)


def test_an_unused_code_stays_where_it_is():
    vq = quantizer(ema_decay=0.5).train()
    with torch.no_grad():
        vq.codebook[0, 3] = vq.ema_sum[0, 3] = 1e3
    for _ in range(200):  # 0.5 ** 200 is 0 in float32
        vq(torch.randn(2, 8, 3, 3))
    assert torch.equal(vq.codebook[0, 3], torch.full((4,), 1e3))
    assert vq.codebook.isfinite().all()


def test_idle_codes_restart_on_the_data_and_only_in_training():
    vq = quantizer(restart_after=3)
    with torch.no_grad():
        vq.codebook[0, 8:] = vq.ema_sum[0, 8:] = 1e3
    z = torch.randn(4, 8, 4, 4)
    vq.eval()
    for _ in range(5):
        vq(z)
    assert (vq.codebook[0, 8:] == 1e3).all()
    vq.train()
    for _ in range(4):
        vq(z)
    assert vq.codebook.abs().max() < 100


@pytest.mark.parametrize("ema_decay", [0.9, None])
def test_a_code_restarts_after_exactly_so_many_idle_batches(ema_decay):
    """Codes 0 and 1 are chosen at first, then code 0 alone; the others are far away."""
    vq = quantizer(ema_decay=ema_decay, restart_after=3).train()
    start = torch.full((1, 16, 4), 1e3)
    start[0, 0], start[0, 1] = 1.0, -1.0
    with torch.no_grad():
        vq.codebook.copy_(start)
        if ema_decay:
            vq.ema_sum.copy_(start)
    ones = 1 + 0.1 * torch.rand(1, 8, 4, 8)
    vq(torch.cat([ones, -torch.ones_like(ones)]))
    vq(ones)
    assert torch.allclose(vq.codebook[0, 1:], start[0, 1:])  # 2 batches are not 3
    vq(ones)
    vectors = ones.permute(0, 2, 3, 1).reshape(-1, 4).double()
    distance = torch.cdist(vq.codebook[0].double(), vectors).min(1).values
    assert distance[2:].max() == 0 < distance[:2].min()  # and no other code is moved
    assert torch.allclose(vq.codebook[0, 1], start[0, 1])  # idle for 2 batches
    assert vq.idle.tolist() == [[0, 2] + [0] * 14]
    if ema_decay:  # their running means start again
        assert torch.equal(vq.ema_sum[0, 2:], vq.codebook[0, 2:])
        assert (vq.ema_count[0, 2:] == 1).all()


@pytest.mark.parametrize("codebooks", [1, 2])
def test_data_init_takes_rows_from_the_first_training_batch(codebooks):
    """From as many vectors as there are rows: each of them once."""
    vq = quantizer(data_init=True, ema_decay=None, codebooks=codebooks)
    z = 50 + torch.randn(1, 8, 4, 4 // (3 - codebooks))
    vq.eval()(z)
    assert vq.codebook.max() < 40 and not vq.initialized
    vq.train()(z)
    vectors = z.permute(0, 2, 3, 1).reshape(-1, 2, 4).transpose(0, 1).reshape(codebooks, 16, 4)
    for rows, wanted in zip(vq.codebook.tolist(), vectors.tolist(), strict=True):
        assert sorted(rows) == sorted(wanted)
    before = vq.codebook.clone()
    vq(z + 10)
    assert torch.equal(vq.codebook, before)  # the first batch only


def test_a_start_by_k_means_stays_and_forgets_earlier_means():
    vq = quantizer(data_init=True, ema_decay=0.9).train()
    z = torch.randn(4, 8, 4, 4)
    for _ in range(3):
        vq(10 + z)
    vq.initialized.fill_(False)
    vq.start_from(z)
    assert vq.initialized and (vq.ema_count == 1).all()
    assert torch.equal(vq.ema_sum, vq.codebook) and vq.codebook.abs().max() < 5


def test_counts_and_perplexity():
    codes = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 0]])
    counts = count_codes(codes, 8)
    assert counts.tolist() == [[4, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]]
    assert perplexity(counts).tolist() == pytest.approx([1.0, 4.0])
    assert perplexity(torch.zeros(2, 8)).tolist() == [1.0, 1.0]
    vq = quantizer(codebooks=2).eval()
    out = vq(vq.lookup(codes.view(1, 2, 2, 2)))
    assert out.perplexity.item() == pytest.approx(2.0)  # the geometric mean of 1 and 4


def test_float32_under_autocast():
    vq = quantizer()
    z = torch.randn(2, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = vq.eval()(z)
    assert out.vectors.dtype == torch.float32
    assert torch.equal(out.codes, vq(z).codes)
    half = vq(z.bfloat16())
    assert half.vectors.dtype == torch.float32
    assert torch.equal(half.codes, vq(z.bfloat16().float()).codes)


def test_encode_and_k_means_are_float32_under_autocast():
    vq, z = quantizer(), torch.randn(8, 8, 16, 16)  # in bf16, 1 in 100 of these codes is another
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vq.encode(z), vq(z).codes)
    codebooks = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            vq.start_from(z)
        codebooks.append(vq.codebook.clone())
    assert torch.equal(*codebooks)


def test_wrong_channels_are_refused():
    with pytest.raises(ValueError, match="10 channels do not divide"):
        quantizer()(torch.randn(1, 10, 2, 2))


@pytest.mark.parametrize("codebooks", [1, 2])
@pytest.mark.parametrize("code", [-1, 16])
def test_a_code_that_does_not_exist_is_refused(codebooks, code):
    """In a table of both codebooks, code 16 of slot 0 would be code 0 of slot 1."""
    codes = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    codes[0, 1, 1, 0 if code == 16 else 1] = code
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.15"):
        quantizer(codebooks=codebooks).lookup(codes)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite_are_refused(bad):
    z = torch.randn(2, 8, 3, 3)
    z[1, 2, 0, 0] = bad
    vq = quantizer(data_init=True)
    with pytest.raises(ValueError, match="NaN or infinity"):
        vq.train()(z)
    assert vq.codebook.isfinite().all() and not vq.initialized  # a good batch may still start it
    with pytest.raises(ValueError, match="NaN or infinity"):
        vq.start_from(z)
    with pytest.raises(ValueError, match="NaN or infinity"):
        vq.encode(z)
    with torch.no_grad():
        vq.codebook[0, 3, 0] = bad
    with pytest.raises(ValueError, match="codebook"):
        vq.encode(torch.randn(2, 8, 3, 3))
    with pytest.raises(ValueError, match="at least one"):
        k_means(torch.zeros(1, 0, 4), 16)


def test_k_means_finds_the_clouds_and_never_gets_worse():
    torch.manual_seed(0)
    centres = 10 * torch.randn(2, 8, 5)
    vectors = centres.repeat(1, 100, 1) + 0.3 * torch.randn(2, 800, 5)

    def error(rows):
        codes = nearest_codes(vectors, rows)[..., None].expand_as(vectors)
        return float((rows.gather(1, codes) - vectors).square().mean())

    errors = []
    for steps in range(12):
        torch.manual_seed(1)  # the same start each time
        errors.append(error(k_means(vectors, 64, steps)))
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(errors))
    assert errors[-1] < min(0.8 * errors[0], 0.3**2)
    few = vectors[:, :3]
    rows = k_means(few, 40)  # more than there are vectors: the others lie on vectors all the same
    assert torch.cdist(rows.double(), few.double()).min(2).values.max() < 1e-5
