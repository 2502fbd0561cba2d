"""Nearest codes, EMA updates, restarts and gradients of the quantizer."""

from itertools import pairwise

import pytest
import torch

from vqlib.quantizer import VectorQuantizer, count_codes, k_means, nearest_codes, perplexity


def quantizer(**options):
    torch.manual_seed(0)
    return VectorQuantizer(num_embeddings=16, embedding_dim=4, **options)


@pytest.mark.parametrize("max_scores", [1, 1000, 2**18])
@pytest.mark.parametrize("codebooks", [1, 4])
def test_nearest_codes_equals_brute_force_for_any_chunk_size(codebooks, max_scores):
    torch.manual_seed(0)
    vectors, codebook = torch.randn(codebooks, 333, 8), torch.randn(codebooks, 50, 8)
    expected = torch.cdist(vectors.double(), codebook.double()).argmin(-1)
    assert torch.equal(nearest_codes(vectors, codebook, max_scores), expected)


def test_nearest_codes_never_holds_all_scores():
    """50,000 x 4,096 scores would take 800 MB; the largest tensor is one chunk of them."""
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


def test_quantize_looks_up_the_slots_codebook_and_encode_inverts_it():
    for codebooks in (1, 2):
        vq = quantizer(codebooks=codebooks).eval()
        codes = torch.randint(16, (3, 5, 6, 2))
        z = vq.quantize(codes)
        assert z.shape == (3, 8, 5, 6)
        codebook = vq.codebook[-1]
        assert torch.equal(z[2, 4:, 4, 5], codebook[codes[2, 4, 5, 1]])
        assert torch.equal(vq.encode(z), codes)
        assert torch.equal(vq(z).encoding_indices, codes)


def test_straight_through_copies_the_gradient():
    vq = quantizer().eval()
    z = torch.randn(2, 8, 3, 3, requires_grad=True)
    weight = torch.randn(2, 8, 3, 3)
    out = vq(z)
    assert torch.allclose(out.quantized, vq.quantize(out.encoding_indices), atol=1e-6)
    (out.quantized * weight).sum().backward()
    assert torch.equal(z.grad, weight)
    assert not vq.codebook.requires_grad  # the EMA needs neither gradient nor optimizer
    assert out.loss.item() == pytest.approx(0.25 * (z - out.quantized).square().mean().item())


def test_commitment_loss_trains_the_encoder_and_codebook_loss_the_codebook():
    """z gets the gradient of the commitment loss only, e that of the codebook loss only."""
    vq = quantizer(ema_decay=None, commitment_cost=0.25).eval()
    z = torch.randn(1, 4, 1, 1, requires_grad=True)
    out = vq(z)
    out.loss.backward()
    embedding = vq.codebook[0, out.encoding_indices.item()].detach()
    difference = z.detach().flatten() - embedding
    assert torch.allclose(z.grad.flatten(), 0.25 * 2 * difference / 4)
    assert torch.allclose(vq.codebook.grad[0, out.encoding_indices.item()], -2 * difference / 4)
    assert vq.codebook.grad[0].ne(0).any(-1).sum() == 1


def test_ema_equals_the_closed_form():
    """After t steps: sum_k (1 - g) g^(t-k) * statistics_k + g^t * start."""
    decay = 0.9
    vq = quantizer(ema_decay=decay, codebooks=2).train()
    start = vq.codebook.detach().double().clone()
    cluster_size, vector_sum = torch.ones(2, 16).double(), start.clone()
    for _ in range(7):
        z = torch.randn(2, 8, 3, 3)
        vectors = z.permute(0, 2, 3, 1).reshape(-1, 2, 4).transpose(0, 1).double()
        codes = vq(z).encoding_indices.reshape(-1, 2).T
        one_hot = torch.nn.functional.one_hot(codes, 16).double()
        cluster_size = decay * cluster_size + (1 - decay) * one_hot.sum(1)
        vector_sum = decay * vector_sum + (1 - decay) * one_hot.transpose(1, 2) @ vectors
    assert torch.allclose(vq.codebook.double(), vector_sum / cluster_size[..., None], atol=1e-5)
    assert torch.allclose(vq.ema_cluster_size.double(), cluster_size, atol=1e-5)


def test_an_unused_code_keeps_its_codebook_vector():
    vq = quantizer(ema_decay=0.5).train()
    with torch.no_grad():
        vq.codebook[0, 3] = vq.ema_sum[0, 3] = 1e3
    for _ in range(200):  # 0.5 ** 200 is 0 in float32
        vq(torch.randn(2, 8, 3, 3))
    assert torch.equal(vq.codebook[0, 3], torch.full((4,), 1e3))
    assert vq.codebook.isfinite().all()


def test_unused_codes_restart_from_the_batch_and_only_in_training():
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
def test_a_code_restarts_after_exactly_restart_after_unused_batches(ema_decay):
    """The first batch uses codes 0 and 1, the next two code 0 only; all others are far away."""
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
    assert torch.allclose(vq.codebook[0, 1:], start[0, 1:])  # unused for 2 batches, not 3
    vq(ones)
    vectors = ones.permute(0, 2, 3, 1).reshape(-1, 4).double()
    distance = torch.cdist(vq.codebook[0].double(), vectors).min(1).values
    assert distance[2:].max() == 0 < distance[:2].min()  # only these codes are replaced
    assert torch.allclose(vq.codebook[0, 1], start[0, 1])  # unused for 2 batches
    assert vq.steps_unused.tolist() == [[0, 2] + [0] * 14]
    if ema_decay:  # their averages start again
        assert torch.equal(vq.ema_sum[0, 2:], vq.codebook[0, 2:])
        assert (vq.ema_cluster_size[0, 2:] == 1).all()


@pytest.mark.parametrize("codebooks", [1, 2])
def test_data_init_copies_vectors_of_the_first_training_batch(codebooks):
    """With as many vectors as codes, each vector is copied once."""
    vq = quantizer(data_init=True, ema_decay=None, codebooks=codebooks)
    z = 50 + torch.randn(1, 8, 4, 4 // (3 - codebooks))
    vq.eval()(z)
    assert vq.codebook.max() < 40 and not vq.initialized
    vq.train()(z)
    vectors = z.permute(0, 2, 3, 1).reshape(-1, 2, 4).transpose(0, 1).reshape(codebooks, 16, 4)
    for embeddings, expected in zip(vq.codebook.tolist(), vectors.tolist(), strict=True):
        assert sorted(embeddings) == sorted(expected)
    before = vq.codebook.clone()
    vq(z + 10)
    assert torch.equal(vq.codebook, before)  # the first batch only


def test_initialization_with_k_means_resets_the_ema():
    vq = quantizer(data_init=True, ema_decay=0.9).train()
    z = torch.randn(4, 8, 4, 4)
    for _ in range(3):
        vq(10 + z)
    vq.initialized.fill_(False)
    vq.initialize_with_k_means(z)
    assert vq.initialized and (vq.ema_cluster_size == 1).all()
    assert torch.equal(vq.ema_sum, vq.codebook) and vq.codebook.abs().max() < 5


def test_counts_and_perplexity():
    codes = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 0]])
    counts = count_codes(codes, 8)
    assert counts.tolist() == [[4, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]]
    assert perplexity(counts).tolist() == pytest.approx([1.0, 4.0])
    assert perplexity(torch.zeros(2, 8)).tolist() == [1.0, 1.0]
    vq = quantizer(codebooks=2).eval()
    out = vq(vq.quantize(codes.view(1, 2, 2, 2)))
    assert out.perplexity.item() == pytest.approx(2.0)  # the geometric mean of 1 and 4


def test_forward_is_float32_under_autocast():
    vq = quantizer()
    z = torch.randn(2, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = vq.eval()(z)
    assert out.quantized.dtype == torch.float32
    assert torch.equal(out.encoding_indices, vq(z).encoding_indices)
    half = vq(z.bfloat16())
    assert half.quantized.dtype == torch.float32
    assert torch.equal(half.encoding_indices, vq(z.bfloat16().float()).encoding_indices)


def test_encode_and_k_means_are_float32_under_autocast():
    vq, z = quantizer(), torch.randn(8, 8, 16, 16)  # in bf16, 1 % of codes differ
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vq.encode(z), vq(z).encoding_indices)
    codebooks = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            vq.initialize_with_k_means(z)
        codebooks.append(vq.codebook.clone())
    assert torch.equal(*codebooks)


@pytest.mark.parametrize("codebooks", [1, 2])
@pytest.mark.parametrize("code", [-1, 16])
def test_a_code_out_of_range_raises(codebooks, code):
    """In the shared embedding table, code 16 of slot 0 would be code 0 of slot 1."""
    codes = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    codes[0, 1, 1, 0 if code == 16 else 1] = code
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.15"):
        quantizer(codebooks=codebooks).quantize(codes)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite_raise(bad):
    z = torch.randn(2, 8, 3, 3)
    z[1, 2, 0, 0] = bad
    vq = quantizer(data_init=True)
    with pytest.raises(ValueError, match="NaN or infinity"):
        vq.train()(z)
    assert vq.codebook.isfinite().all() and not vq.initialized  # a later batch can do it
    with pytest.raises(ValueError, match="NaN or infinity"):
        vq.initialize_with_k_means(z)
    with pytest.raises(ValueError, match="NaN or infinity"):
        vq.encode(z)
    with torch.no_grad():
        vq.codebook[0, 3, 0] = bad
    with pytest.raises(ValueError, match="codebook"):
        vq.encode(torch.randn(2, 8, 3, 3))
    with pytest.raises(ValueError, match="at least one"):
        k_means(torch.zeros(1, 0, 4), 16)


def test_k_means_finds_the_clusters_and_never_gets_worse():
    torch.manual_seed(0)
    centers = 10 * torch.randn(2, 8, 5)
    vectors = centers.repeat(1, 100, 1) + 0.3 * torch.randn(2, 800, 5)

    def error(codebook):
        codes = nearest_codes(vectors, codebook)[..., None].expand_as(vectors)
        return float((codebook.gather(1, codes) - vectors).square().mean())

    errors = []
    for steps in range(12):
        torch.manual_seed(1)  # the same initialization each time
        errors.append(error(k_means(vectors, 64, steps)))
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(errors))
    assert errors[-1] < min(0.8 * errors[0], 0.3**2)
    subset = vectors[:, :3]
    codebook = k_means(subset, 40)  # more codes than vectors: all of them equal a vector
    assert torch.cdist(codebook.double(), subset.double()).min(2).values.max() < 1e-5


def test_an_untrained_state_that_is_loaded_starts_from_data_again():
    vq = VectorQuantizer(4, 2, data_init=True)
    untrained = {name: tensor.clone() for name, tensor in vq.state_dict().items()}
    vq(torch.randn(8, 2, 1, 1))
    vq.load_state_dict(untrained)
    vq(100 + torch.randn(8, 2, 1, 1))
    assert vq.initialized and vq.codebook.min() > 50
