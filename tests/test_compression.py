import pytest
import torch
from test_sampling import lively_prior

from vqlib import DataError, EncodedDataset, load_pretrained, sample
from vqlib.compression import HEADER, compress, decompress
from vqlib.metrics import code_bits
from vqlib.weights import PRETRAINED


@pytest.mark.parametrize("grid, label", [((8, 8), None), ((3, 5), 6), ((1, 1), 0)])
def test_codes_come_back(grid, label):
    prior = lively_prior(4)
    for codes in (sample(prior, 1, label, grid=grid)[0], torch.randint(16, (*grid, 4))):
        back, told = decompress(prior, compress(prior, codes, label))
        assert torch.equal(back, codes) and told == label


def test_a_file_is_as_long_as_the_prior_says():
    prior = lively_prior(2)
    codes = sample(prior, 12, 3, generator=torch.Generator().manual_seed(0))
    written = sum(len(compress(prior, grid, 3)) - HEADER for grid in codes)
    promised = float(code_bits(prior, codes, torch.full((12,), 3)).sum()) / 8
    assert 0.99 * promised < written < 1.01 * promised + 12 * 4  # the last word of each


def test_real_lesions_in_fewer_bytes_than_packed():
    _, prior = load_pretrained()
    encoded = EncodedDataset.load(PRETRAINED / "ham10000" / "codes.safetensors")
    sizes = []
    for i in encoded.split.val[:3]:
        codes, label = encoded[i]
        file = compress(prior, codes, int(label))
        assert torch.equal(decompress(prior, file)[0], codes)
        sizes.append(len(file))
    assert sum(sizes) / len(sizes) < encoded.bytes_per_image


def test_foreign_and_damaged_files_are_refused():
    prior, other = lively_prior(2), lively_prior(2)
    torch.nn.init.normal_(other.head.bias)
    codes = sample(prior, 1, grid=(3, 3), generator=torch.Generator().manual_seed(0))[0]
    file = compress(prior, codes)
    with pytest.raises(DataError, match="another prior"):
        decompress(other, file)
    for broken in (b"", b"VQ", b"\x89PNG\r\n\x1a\n" + file):
        with pytest.raises(DataError, match="not a file of compressed codes"):
            decompress(prior, broken)
    flipped = [file[:i] + bytes([file[i] ^ 0x10]) + file[i + 1 :] for i in range(len(file))]
    for i, broken in enumerate([*flipped, *(file[:end] for end in range(len(file)))]):
        try:
            back, _ = decompress(prior, broken)
        except DataError:
            continue
        # What the coder does not need may change without harm.
        assert torch.equal(back, codes) and i >= len(file) - 4, i
