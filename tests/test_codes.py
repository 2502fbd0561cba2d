import pytest
import torch

from vqlib import VQVAE, DataError, EncodedDataset, encode_dataset, open_dataset
from vqlib.augment import moved
from vqlib.codes import add_turned, pack_codes, unpack_codes
from vqlib.data import Split


def encoded(n=10, books=4):
    torch.manual_seed(0)
    codes, labels = torch.randint(512, (n, 8, 8, 4)), torch.randint(7, (n,))
    order = torch.randperm(n)
    split = Split(order[:6].sort().values, order[6:8].sort().values, order[8:].sort().values)
    return EncodedDataset(codes, labels, split, torch.randn(books, 512, 64), "made up")


def test_256_codes_of_9_bits_are_288_bytes():
    data = encoded()
    assert data.bytes_per_image == 288
    assert pack_codes(data.codes, 9).size == 10 * 288


@pytest.mark.parametrize("bits", [1, 7, 9, 13])
def test_packing_comes_back(bits):
    codes = torch.randint(2**bits, (3, 5, 7))
    packed = pack_codes(codes, bits)
    assert torch.equal(unpack_codes(packed, bits, (3, 5, 7)), codes)
    with pytest.raises(ValueError, match="can't be"):
        unpack_codes(packed, bits, (3, 5, 9))
    with pytest.raises(ValueError, match="do not fit"):
        pack_codes(codes + 2**bits, bits)


def test_a_file_of_codes_comes_back(tmp_path):
    data = encoded()
    data.save(tmp_path / "codes.safetensors")
    back = EncodedDataset.load(tmp_path / "codes.safetensors")
    assert torch.equal(back.codes, data.codes) and torch.equal(back.labels, data.labels)
    assert all(torch.equal(a, b) for a, b in zip(back.split, data.split, strict=True))
    assert back.source == "made up"
    (tmp_path / "broken").write_bytes(b"not a file of codes")
    with pytest.raises(DataError, match="broken is not a file of codes"):
        EncodedDataset.load(tmp_path / "broken")


@pytest.mark.parametrize("books", [1, 4])
def test_vectors_are_what_the_quantizer_looks_up(books):
    vqvae = VQVAE(codebooks=books, data_init=False).eval()
    data = encoded(books=books)
    data.codebook = vqvae.quantizer.codebook.detach()
    assert torch.equal(data.vectors(3), vqvae.quantizer.lookup(data.codes[3:4])[0])
    assert torch.equal(data.vectors(torch.tensor([1, 3]))[1], data.vectors(3))


def test_encode_dataset_equals_encoding_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    data = open_dataset(lesions=14)
    vqvae = VQVAE(data_init=False).train()
    result = encode_dataset(vqvae, data, size=64, batch_size=4)
    assert vqvae.training
    vqvae.eval()
    alone = vqvae.encode(data.pixels(64)[5:6].float() / 255)
    assert torch.equal(result.codes[5:6], alone)
    assert len(result) == len(data) and torch.equal(result.labels, data.labels)


def test_turned_codes_are_those_of_turned_images(tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    data, vqvae = open_dataset(lesions=14), VQVAE(data_init=False).eval()
    encoded = encode_dataset(vqvae, data, size=64)
    add_turned(encoded, vqvae, data, size=64, batch_size=4)
    train = encoded.split.train
    assert torch.equal(encoded.turned[0], encoded.codes[train])
    image = data.pixels(64)[train[2:3]].float() / 255
    for move in range(8):
        assert torch.equal(encoded.turned[move, 2:3], vqvae.encode(moved(image, move)))
    encoded.save(tmp_path / "turned.safetensors")
    assert torch.equal(EncodedDataset.load(tmp_path / "turned.safetensors").turned, encoded.turned)
    add_turned(encoded, vqvae, batch_size=4)  # without images: decoded, turned, encoded
    again = vqvae.encode(moved(vqvae.decode(encoded.codes[train[2:3]]), 5))
    assert torch.equal(encoded.turned[5, 2:3], again)


def test_the_eight_orientations_are_a_group():
    image = torch.randn(1, 1, 4, 4)
    found = {tuple(moved(image, move).flatten().tolist()) for move in range(8)}
    assert len(found) == 8
    assert all(
        tuple(moved(moved(image, a), b).flatten().tolist()) in found
        for a in range(8)
        for b in range(8)
    )
