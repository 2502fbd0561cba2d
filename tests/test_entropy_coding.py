"""Codes survive compression, files have the length that the prior predicts, damage is detected."""

import copy
import math

import pytest
import torch
from test_sampling import lively_prior

from vqlib import DataError, EncodedDataset, compress, decompress, load_pretrained, sample
from vqlib.checkpoints import PRETRAINED
from vqlib.evaluation.entropy_coding import HEADER
from vqlib.metrics import code_bits


def sample_codes(prior, n=1, label=None, grid=(3, 3)):
    generator = torch.Generator().manual_seed(0)
    return sample(prior, n, label, grid=grid, generator=generator)


@pytest.fixture(scope="module")
def prior():
    return lively_prior(2)


@pytest.fixture(scope="module")
def file(prior):
    return compress(prior, sample_codes(prior)[0], 3)


@pytest.mark.parametrize("slots, grid", [(4, (8, 8)), (3, (3, 5)), (1, (7, 2)), (2, (1, 1))])
def test_decompress_returns_the_codes(slots, grid):
    prior = lively_prior(slots).train()
    unlikely = torch.randint(16, (*grid, slots), generator=torch.Generator().manual_seed(1))
    for codes in (sample_codes(prior, grid=grid)[0], unlikely):
        for label in (None, 0, 6):
            decoded, decoded_label = decompress(prior, compress(prior, codes, label))
            assert torch.equal(decoded, codes) and decoded.dtype == torch.long
            assert decoded_label == label
    assert prior.training and prior.head.weight.dtype == torch.float32


def test_length_of_the_file_is_the_negative_log_likelihood(prior):
    codes = sample_codes(prior, 12, 3, (8, 8))
    predicted = code_bits(prior, codes, torch.full((12,), 3)).flatten(1).sum(1) / 8
    for grid, size in zip(codes, predicted.tolist()):
        payload = len(compress(prior, grid, 3)) - HEADER
        assert size - 1 < payload < 1.01 * size + 8  # the coder fills its last word of 4 bytes


def test_certain_codes_need_one_word():
    """A grid of zeros with more codes than a file of 13 bytes has bits."""
    prior = lively_prior(4)
    with torch.no_grad():
        prior.head.weight.zero_()
        prior.head.bias.view(4, 16)[:, 0] = 100
    codes = torch.zeros(9, 16, 4, dtype=torch.long)
    assert len(compress(prior, codes)) <= HEADER + 4
    for code in (0, 5):  # a code of probability 0 costs at most 24 bits and is no error
        codes[0, 0, 1] = code
        file = compress(prior, codes)
        assert len(file) <= HEADER + 8 and torch.equal(decompress(prior, file)[0], codes)


def test_files_can_be_read_with_the_same_weights_in_another_precision():
    prior = lively_prior(2).half()
    codes = sample_codes(copy.deepcopy(prior).float(), grid=(4, 4))[0]
    for reader in (copy.deepcopy(prior).float(), copy.deepcopy(prior).double()):
        assert torch.equal(decompress(reader, compress(prior, codes))[0], codes)


def test_real_lesions_need_fewer_bytes_than_packed_codes():
    _, prior = load_pretrained("ham10000")
    encoded = EncodedDataset.load(PRETRAINED / "ham10000" / "codes.safetensors")
    chosen = encoded.split.val[:2]
    bits = code_bits(prior, encoded.codes[chosen], encoded.labels[chosen]).flatten(1).sum(1)
    files = [compress(prior, *encoded[i]) for i in chosen]
    for i, file, predicted_bits in zip(chosen, files, bits.tolist()):
        codes, label = decompress(prior, file)
        assert torch.equal(codes, encoded.codes[i]) and label == encoded.labels[i]
        assert len(file) < HEADER + math.ceil(1.01 * predicted_bits / 8) + 8
    assert sum(map(len, files)) < 2 * encoded.bytes_per_image


def test_files_of_another_prior_are_refused_before_decoding(prior, file, monkeypatch):
    other = copy.deepcopy(prior)
    with torch.no_grad():
        other.head.bias[-1] += 1e-6
    monkeypatch.setattr("vqlib.evaluation.entropy_coding._for_each_code", None)
    for wrong_prior in (other, lively_prior(4), lively_prior(2, k=8)):
        with pytest.raises(DataError, match="another prior"):
            decompress(wrong_prior, file)


def test_every_damaged_byte_is_detected(prior, file):
    for i in range(len(file)):
        for flip in (0x01, 0x10, 0xFF):
            broken = file[:i] + bytes([file[i] ^ flip]) + file[i + 1 :]
            expected = ["not a file"] * 2 + ["another prior"] * 5 + ["damaged"] * len(file)
            with pytest.raises(DataError, match=expected[i]):
                decompress(prior, broken)


def test_every_truncation_and_extension_is_detected(prior, file):
    for end in range(len(file)):
        with pytest.raises(DataError, match="not a file" if end < 2 else "cut short"):
            decompress(prior, file[:end])
    for extra in (b"\0", b"\0" * 4, file):
        with pytest.raises(DataError):
            decompress(prior, file + extra)


def test_random_bytes_are_refused(prior, file):
    generator = torch.Generator().manual_seed(0)
    for n in range(60):
        noise = bytes(torch.randint(256, (n,), generator=generator).tolist())
        for start in (b"", b"VQ", file[:7], file[:HEADER]):
            with pytest.raises(DataError):
                decompress(prior, start + noise)
    with pytest.raises(DataError, match="not a file of compressed codes"):
        decompress(prior, b"\x89PNG\r\n\x1a\n" + file)


def test_different_rounding_is_detected(prior, file, monkeypatch):
    """Simulates a machine that rounds differently: any code may change, but not undetected."""
    from vqlib.sampling import CachedPixelCNN

    logits = CachedPixelCNN.logits
    monkeypatch.setattr(CachedPixelCNN, "logits", lambda *a: logits(*a).half().double())
    with pytest.raises(DataError, match="rounds differently"):
        decompress(prior, file)
