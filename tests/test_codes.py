import tracemalloc

import pytest
import torch
from safetensors.torch import save_file

from vqlib import VQVAE, DataError, EncodedDataset, encode_dataset, open_dataset
from vqlib.checkpoints import read_safetensors
from vqlib.codes import add_augmented, pack_codes, unpack_codes
from vqlib.data import Split, dihedral_transform
from vqlib.lesions import CLASSES


def encoded(n=10, books=4):
    torch.manual_seed(0)
    codes, labels = torch.randint(512, (n, 8, 8, 4)), torch.randint(7, (n,))
    order = torch.randperm(n)
    split = Split(order[:6].sort().values, order[6:8].sort().values, order[8:].sort().values)
    return EncodedDataset(
        codes, labels, split, torch.randn(books, 512, 64), "made up", classes=CLASSES
    )


def test_256_codes_of_9_bits_are_288_bytes():
    data = encoded()
    assert data.bytes_per_image == 288
    assert pack_codes(data.codes, 9).size == 10 * 288


@pytest.mark.parametrize("bits", [1, 7, 9, 13])
def test_unpack_codes_inverts_pack_codes(bits):
    codes = torch.randint(2**bits, (3, 5, 7))
    packed = pack_codes(codes, bits)
    assert torch.equal(unpack_codes(packed, bits, (3, 5, 7)), codes)
    with pytest.raises(ValueError, match="can't be"):
        unpack_codes(packed, bits, (3, 5, 9))
    with pytest.raises(ValueError, match="do not fit"):
        pack_codes(codes + 2**bits, bits)


def test_saving_needs_little_memory(tmp_path):
    """A data set of 50,000 images has 90 million augmented codes."""
    data, codes = encoded(), torch.randint(512, (4000, 8, 8, 4))
    indices = torch.arange(4000)
    split = Split(indices[20:], indices[10:20], indices[:10])
    data = EncodedDataset(codes, 0 * indices, split, data.codebook)
    tracemalloc.start()
    data.save(tmp_path / "codes.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * codes.numel()  # bytes; with all bits at once 8 * 9 * codes.numel()
    assert torch.equal(EncodedDataset.load(tmp_path / "codes.safetensors").codes, codes)
    whole = torch.from_numpy(pack_codes(codes, 9))
    assert torch.equal(read_safetensors(tmp_path / "codes.safetensors")[1]["packed"], whole)


def test_load_returns_what_save_wrote(tmp_path):
    data = encoded()
    data.save(tmp_path / "codes.safetensors")
    loaded = EncodedDataset.load(tmp_path / "codes.safetensors")
    assert torch.equal(loaded.codes, data.codes) and torch.equal(loaded.labels, data.labels)
    assert all(torch.equal(a, b) for a, b in zip(loaded.split, data.split, strict=True))
    assert loaded.source == "made up"
    (tmp_path / "broken").write_bytes(b"not a file of codes")
    with pytest.raises(DataError, match="broken is not a file of codes"):
        EncodedDataset.load(tmp_path / "broken")


@pytest.mark.parametrize("books", [1, 4])
def test_vectors_equal_the_quantizers_embeddings(books):
    vqvae = VQVAE(codebooks=books, data_init=False).eval()
    data = encoded(books=books)
    data.codebook = vqvae.quantizer.codebook.detach()
    assert torch.equal(data.vectors(3), vqvae.quantizer.quantize(data.codes[3:4])[0])
    assert torch.equal(data.vectors(torch.tensor([1, 3]))[1], data.vectors(3))


def test_encode_dataset_equals_encoding_single_images(tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    data = open_dataset(lesions=14)
    vqvae = VQVAE(data_init=False).train()
    result = encode_dataset(vqvae, data, size=64, batch_size=4)
    assert vqvae.training
    vqvae.eval()
    single = vqvae.encode(data.pixels(64)[5:6].float() / 255)
    assert torch.equal(result.codes[5:6], single)
    assert len(result) == len(data) and torch.equal(result.labels, data.labels)


def test_augmented_codes_are_those_of_augmented_images(tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    data, vqvae = open_dataset(lesions=14), VQVAE(data_init=False).eval()
    encoded = encode_dataset(vqvae, data, size=64)
    add_augmented(encoded, vqvae, data, size=64, batch_size=4)
    train = encoded.split.train
    assert torch.equal(encoded.augmented[0], encoded.codes[train])
    image = data.pixels(64)[train[2:3]].float() / 255
    for index in range(8):
        assert torch.equal(
            encoded.augmented[index, 2:3], vqvae.encode(dihedral_transform(image, index))
        )
    encoded.save(tmp_path / "augmented.safetensors")
    assert torch.equal(
        EncodedDataset.load(tmp_path / "augmented.safetensors").augmented, encoded.augmented
    )
    add_augmented(encoded, vqvae, batch_size=4)  # without images: decoded, transformed, encoded
    expected = vqvae.encode(dihedral_transform(vqvae.decode(encoded.codes[train[2:3]]), 5))
    assert torch.equal(encoded.augmented[5, 2:3], expected)


def test_the_eight_dihedral_transforms_form_a_group():
    image = torch.randn(1, 1, 4, 4)
    transformed = {tuple(dihedral_transform(image, index).flatten().tolist()) for index in range(8)}
    assert len(transformed) == 8
    assert all(
        tuple(dihedral_transform(dihedral_transform(image, a), b).flatten().tolist()) in transformed
        for a in range(8)
        for b in range(8)
    )
    for index in (-1, 8):
        with pytest.raises(ValueError, match=r"0\.\.7"):
            dihedral_transform(image, index)


def with_unsorted_split(data):
    """The same data set with training images in another order and random augmented codes."""
    split = data.split._replace(train=data.split.train.flip(0))
    augmented = torch.cat([data.codes[split.train][None], torch.randint(512, (7, 6, 8, 8, 4))])
    return EncodedDataset(
        data.codes, data.labels, split, data.codebook, augmented=augmented, classes=data.classes
    )


def test_save_and_load_keep_augmented_codes_with_their_images(tmp_path):
    data = with_unsorted_split(encoded())
    data.save(tmp_path / "codes.safetensors")
    loaded = EncodedDataset.load(tmp_path / "codes.safetensors")
    assert torch.equal(loaded.split.train, data.split.train.flip(0))
    assert torch.equal(loaded.augmented, data.augmented.flip(1))


def changed(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


INVALID = {
    "codes of another dtype": lambda d: {"codes": d.codes.int()},
    "codes of another shape": lambda d: {"codes": d.codes[0]},
    "a code that is too large": lambda d: {"codes": changed(d.codes, 512)},
    "a negative code": lambda d: {"codes": changed(d.codes, -1)},
    "too few labels": lambda d: {"labels": d.labels[1:]},
    "a label that is too large": lambda d: {"labels": changed(d.labels, 7)},
    "an index that is too large": lambda d: {"split": d.split._replace(val=torch.tensor([10]))},
    "an image in two parts": lambda d: {"split": d.split._replace(val=d.split.test)},
    "a mask as split": lambda d: {"split": d.split._replace(val=torch.zeros(10) > 0)},
    "a codebook with NaN": lambda d: {"codebook": changed(d.codebook, float("nan"))},
    "a codebook without slots": lambda d: {"codebook": d.codebook[0]},
    "three codebooks for four slots": lambda d: {"codebook": d.codebook[:3]},
    "seven orientations": lambda d: {"augmented": d.augmented[:7]},
    "an orientation with a code too large": lambda d: {"augmented": changed(d.augmented, 512)},
    "orientations of other images": lambda d: {"augmented": d.augmented.flip(1)},
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_tensors_are_rejected(tmp_path, case):
    data = with_unsorted_split(encoded())
    names = {"codes", "labels", "split", "codebook", "augmented", "classes"}
    tensors = {name: getattr(data, name) for name in names} | INVALID[case](data)
    with pytest.raises(ValueError):
        EncodedDataset(**tensors)
    for name, tensor in tensors.items():
        setattr(data, name, tensor)
    with pytest.raises(ValueError):
        data.save(tmp_path / "codes.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_split_that_leaves_images_out_is_not_saved(tmp_path):
    data = encoded()
    split = data.split._replace(train=data.split.train[:2])
    subset = EncodedDataset(data.codes, data.labels, split, data.codebook)  # valid in memory
    with pytest.raises(ValueError, match="4 of 10 images"):
        subset.save(tmp_path / "codes.safetensors")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("packed", lambda t: t.fill_(255)),  # code 511, but there are only 500 codebook vectors
        ("labels", lambda t: t.fill_(7)),
        ("labels", lambda t: t[1:]),
        ("labels", lambda t: t.float()),
        ("split", lambda t: t.fill_(3)),
        ("split", lambda t: t[1:]),
        ("codebook", lambda t: t.fill_(torch.inf)),
        ("codebook", lambda t: t[:3]),
        ("shape", "10x8x32"),
        ("shape", "10x8x-8x-4"),
        ("shape", "10x16x8x2"),
    ],
)
def test_a_file_with_invalid_content_is_rejected(tmp_path, name, change):
    data, file = encoded(), tmp_path / "codes.safetensors"
    data.codes, data.codebook = data.codes % 500, data.codebook[:, :500]
    data.save(file)
    metadata, tensors = read_safetensors(file)
    if name == "shape":
        metadata["shape"] = change
    else:
        tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(DataError, match=r"codes.safetensors is not a file of codes \(.*encode"):
        EncodedDataset.load(file)
