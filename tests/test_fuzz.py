"""Random damage to every kind of file: it is refused, or the content is that of the good file.

An image has no checksum: damage to it may change the pixels (`ImageDataset.verify` finds it).
"""

import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_bad_input import small_prior

from vqlib import DataError, EncodedDataset, compress, decompress, load_model, save_model
from vqlib.data import Split, open_folder, read_image


def damaged(original: bytes) -> st.SearchStrategy[bytes]:
    """One to three replacements, insertions or deletions, mostly at the beginning; or any bytes."""
    at = st.one_of(st.integers(0, min(200, len(original))), st.integers(0, len(original)))
    change = st.tuples(at, st.integers(0, 8) | st.just(len(original)), st.binary(max_size=8))

    def apply(changes):
        data = original
        for start, deleted, inserted in changes:
            data = data[:start] + inserted + data[start + deleted :]
        return data

    return st.lists(change, min_size=1, max_size=3).map(apply) | st.binary(max_size=100)


class Codes:
    def __init__(self, folder):
        torch.manual_seed(0)
        self.path, indices = folder / "codes.safetensors", torch.arange(10)
        split = Split(indices[:6], indices[6:8], indices[8:])
        codes, codebook = torch.randint(16, (10, 2, 2, 4)), torch.randn(4, 16, 8)
        self.data = EncodedDataset(codes, indices % 2, split, codebook, "x", classes=("a", "b"))
        self.data.save(self.path)
        self.originals = [self.path.read_bytes()]

    def read(self, content):
        self.path.write_bytes(content)
        data = EncodedDataset.load(self.path)
        for name in ("codes", "labels", "codebook"):
            assert torch.equal(getattr(data, name), getattr(self.data, name))
        assert data.classes == self.data.classes
        assert all(map(torch.equal, data.split, self.data.split))


class Weights:
    def __init__(self, folder):
        self.path, self.model = folder / "prior.safetensors", small_prior()
        save_model(self.model, self.path, classes=["a", "b"])
        self.originals = [self.path.read_bytes()]

    def read(self, content):
        self.path.write_bytes(content)
        state = load_model(self.path).state_dict()
        assert all(torch.equal(state[n], x) for n, x in self.model.state_dict().items())


class Compressed:
    def __init__(self, folder):
        torch.manual_seed(0)
        self.prior, self.codes = small_prior(), torch.randint(16, (3, 2, 4))
        self.originals = [compress(self.prior, self.codes, 1)]

    def read(self, content):
        codes, label = decompress(self.prior, content)
        assert torch.equal(codes, self.codes) and label == 1


class Images:
    def __init__(self, folder):
        pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        self.path, self.originals = folder / "image", []
        for file_format in ("PNG", "JPEG", "TIFF", "BMP", "WebP"):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, file_format)
            self.originals.append(file.getvalue())

    def read(self, content):
        self.path.write_bytes(content)
        image, _ = read_image(self.path)
        assert image.mode == "RGB" and image.width * image.height < 2 * Image.MAX_IMAGE_PIXELS


class Tables:
    def __init__(self, folder):
        self.folder = folder / "images"
        self.folder.mkdir()
        self.names = {f"{i}.png" for i in range(4)}
        for name in self.names:
            Image.new("RGB", (4, 4)).save(self.folder / name)
        table = "image,label,group,split\n0.png,a,g,train\n1.png,b,g,train\n2.png,a,h,val\n"
        self.originals = [table.encode(encoding) for encoding in ("utf-8-sig", "utf-16")]
        self.originals.append(table.replace(",", ";").encode())

    def read(self, content):
        (self.folder / "images.csv").write_bytes(content)
        data = open_folder(self.folder)
        assert set(data.image_ids) <= self.names and len(data) == len(set(data.image_ids)) > 0
        split = torch.cat(list(data.split()))
        assert split.sort().values.equal(torch.arange(len(data)))


@pytest.mark.parametrize("examples", [15, pytest.param(2000, marks=pytest.mark.long)])
@pytest.mark.parametrize("reader", [Codes, Weights, Compressed, Images, Tables])
def test_a_damaged_file_is_refused_or_harmless(tmp_path, reader, examples, record_property):
    reader, refused = reader(tmp_path), []
    for original in reader.originals:
        reader.read(original)

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(st.one_of(*map(damaged, reader.originals)))
    def check(content):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # e.g. of PIL, about damaged metadata
                reader.read(content)
        except DataError as error:
            refused.append(str(error))

    check()
    assert refused
    record_property("examples", examples)
    record_property("refused", len(refused))
