"""Bad input and the exact error that the user gets: what is wrong, what was expected, what to do.

The table is bad_input.txt. The tables of HAM10000 and ISIC 2018 are in test_data.py.
"""

import json
import re
import shlex
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vqlib import (
    VQVAE,
    EncodedDataset,
    ImageDataset,
    MaskedConv2d,
    PixelCNN,
    VectorQuantizer,
    compress,
    decompress,
    encode_dataset,
    load_model,
    open_dataset,
    sample,
    save_model,
)
from vqlib.__main__ import main
from vqlib.checkpoints import model_notes, read_log, read_safetensors
from vqlib.data import Split, batches
from vqlib.evaluation import evaluate
from vqlib.lesions import LesionClassifier, synthetic_dataset
from vqlib.metrics import code_bits, psnr, ssim
from vqlib.sampling import complete, filter_logits


@pytest.fixture(scope="module")
def f(tmp_path_factory):
    """Folder with models, codes, images and runs, and with damaged ones."""
    folder = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQLIB_HOME", str(folder / "home"))
        write_models(folder)
        write_images(folder)
        yield folder


def small_prior(**options):
    return PixelCNN(16, conv_filters=8, blocks=1, **options)


def write_models(f):
    torch.manual_seed(0)
    vqvae, prior = VQVAE(16, data_init=False), small_prior()
    prior.trained_on_codebook = vqvae.codebook_fingerprint
    save_model(vqvae, f / "vqvae.safetensors")
    save_model(VQVAE(16), f / "other.safetensors")
    save_model(prior, f / "prior.safetensors", classes=["cat", "dog"], grid=[2, 2])
    indices = torch.arange(20)
    split = Split(indices[:16], indices[16:18], indices[18:])
    codes, codebook = torch.randint(16, (20, 2, 2, 4)), vqvae.quantizer.codebook.detach()
    encoded = EncodedDataset(codes, indices % 2, split, codebook, classes=("cat", "dog"))
    encoded.save(f / "codes.safetensors")
    no_val = Split(torch.arange(18), indices[:0], indices[18:])
    encoded.split = no_val
    encoded.save(f / "noval.safetensors")
    metadata, tensors = read_safetensors(f / "codes.safetensors")
    for name, change in {
        "labels": {"labels": torch.full((20,), 200).byte()},
        "range": {"codebook": codebook[:, :9].contiguous()},
        "nan": {"codebook": codebook * torch.nan},
        "short": {"packed": tensors["packed"][1:].clone()},
    }.items():
        save_file(tensors | change, f / f"{name}.safetensors", metadata)
    save_file(tensors, f / "shape.safetensors", metadata | {"shape": "2x2"})
    weights = (f / "prior.safetensors").read_bytes()
    (f / "cut.safetensors").write_bytes(weights[: len(weights) // 2])
    (f / "flipped.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    (f / "zeros.safetensors").write_bytes(bytes(100))
    (f / "huge.safetensors").write_bytes(b"\xff" * 100)
    metadata, tensors = read_safetensors(f / "prior.safetensors")
    huge = json.loads(metadata["config"]) | {"num_embeddings": 10**12}
    for name, change in {
        "unknown": {"model": "Malware"},
        "config": {"config": "{"},
        "large": {"config": json.dumps(huge)},
        "notes": {"notes": "[1]"},
    }.items():
        save_file(tensors, f / f"{name}.safetensors", metadata | change)
    save_file({"a": torch.zeros(1)}, f / "foreign.safetensors")
    (f / "codes.vq").write_bytes(compress(prior, codes[0]))
    run = f / "home" / "runs" / "torn"
    run.mkdir(parents=True)
    (run / "log.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    (run / "config.json").write_text("")
    (run / "checkpoint.pt").write_bytes(b"PK")
    (run.parent / "cut").mkdir()
    (run.parent / "cut" / "checkpoint.pt").write_bytes(b"PK")
    (run.parent / "new").mkdir()
    (run.parent / "new" / "log.jsonl").touch()


def png_header(width, height):
    """A PNG file of this size without pixels."""
    data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT"


def write_images(f):
    def folder(name, *lines, images=2, size=(40, 40)):
        (f / name).mkdir()
        for i in range(images):
            Image.new("RGB", size, (50 * i, 0, 0)).save(f / name / f"{i}.png")
        if lines:
            (f / name / "images.csv").write_text("\n".join(lines) + "\n")
        return f / name

    folder("two")
    folder("empty", images=0)
    (folder("large") / "0.png").write_bytes(png_header(20_000, 20_000))
    (folder("html") / "0.png").write_bytes(b"<html>not found</html>")
    half = folder("half", size=(200, 200)) / "1.png"
    half.write_bytes(half.read_bytes()[:100])
    Image.new("RGBA", (40, 40), (0, 0, 0, 9)).save(folder("clear") / "0.png")
    Image.fromarray(np.zeros((40, 40), np.float32)).save(folder("float", images=0) / "0.tif")
    (folder("mixed") / "sub").mkdir()
    shutil.copy(f / "mixed" / "0.png", f / "mixed" / "sub" / "0.png")
    (folder("tables", "image") / "other.csv").write_text("image\n0.png\n")
    for name, lines in {
        "no-column": ["file,label", "0.png,a"],
        "no-image": ["image", "0.png", "9.png"],
        "twice": ["image", "0.png", "0.png"],
        "no-label": ["image,label", "0.png,a", "1.png,"],
        "part": ["image,split", "0.png,dev"],
        "leak": ["image,group,split", "0.png,g,train", "1.png,g,test"],
        "ragged": ["image,label", "0.png"],
        "two-labels": ["image,label,label", "0.png,a,b"],
        "no-row": ["image"],
    }.items():
        folder(name, *lines)
    (folder("binary") / "images.csv").write_bytes(bytes(range(256)))


FILES = {
    "an image that is too large": lambda f: open_dataset(f / "large").pixels(32),
    "no image but a web page": lambda f: open_dataset(f / "html").pixels(32),
    "half an image": lambda f: open_dataset(f / "half").pixels(32),
    "a transparent image": lambda f: open_dataset(f / "clear").pixels(32),
    "an image of 32-bit numbers": lambda f: open_dataset(f / "float").image(0),
    "images beside folders": lambda f: open_dataset(f / "mixed"),
    "two tables": lambda f: open_dataset(f / "tables"),
    "a table without the column": lambda f: open_dataset(f / "no-column"),
    "a table with an absent image": lambda f: open_dataset(f / "no-image"),
    "an image named twice": lambda f: open_dataset(f / "twice"),
    "an image without label": lambda f: open_dataset(f / "no-label"),
    "an unknown split": lambda f: open_dataset(f / "part"),
    "a group in two splits": lambda f: open_dataset(f / "leak"),
    "a short row": lambda f: open_dataset(f / "ragged"),
    "a column twice": lambda f: open_dataset(f / "two-labels"),
    "a table without rows": lambda f: open_dataset(f / "no-row"),
    "a table of binary data": lambda f: open_dataset(f / "binary"),
    "no weights": lambda f: load_model(f / "nowhere"),
    "a folder as weights": lambda f: load_model(f / "two"),
    "weights that are cut short": lambda f: load_model(f / "cut.safetensors"),
    "weights with a flipped bit": lambda f: load_model(f / "flipped.safetensors"),
    "weights with a huge header": lambda f: load_model(f / "huge.safetensors"),
    "weights of something else": lambda f: load_model(f / "foreign.safetensors"),
    "weights of an unknown model": lambda f: load_model(f / "unknown.safetensors"),
    "a damaged configuration": lambda f: load_model(f / "config.safetensors"),
    "a configuration for a terabyte": lambda f: load_model(f / "large.safetensors"),
    "weights of another model": lambda f: load_model(f / "prior.safetensors", VQVAE),
    "notes that are no mapping": lambda f: model_notes(f / "notes.safetensors"),
    "notes of an image": lambda f: model_notes(f / "two" / "0.png"),
    "codes that are cut short": lambda f: EncodedDataset.load(f / "short.safetensors"),
    "codes of another shape": lambda f: EncodedDataset.load(f / "shape.safetensors"),
    "a log without steps": lambda f: read_log("new"),
    "a damaged log": lambda f: read_log("torn"),
    "no log": lambda f: read_log("nowhere"),
    "compressed: an image": lambda f: decompress(small_prior(), (f / "two" / "0.png").read_bytes()),
    "compressed: cut short": lambda f: decompress(
        load_model(f / "prior.safetensors"), (f / "codes.vq").read_bytes()[:-1]
    ),
    "compressed: another prior": lambda f: decompress(small_prior(), (f / "codes.vq").read_bytes()),
    "compressed: damaged": lambda f: decompress(
        load_model(f / "prior.safetensors"), (f / "codes.vq").read_bytes()[:-4] + b"abcd"
    ),
    "weights into a file as folder": lambda f: save_model(small_prior(), f / "zeros.safetensors/x"),
}
images, codes, labels = torch.rand(2, 3, 64, 64), torch.zeros(2, 2, 2, 4).long(), torch.zeros(2)
keep = torch.ones(2, 2) > 0
logits = torch.zeros(2, 16)
a_model, a_prior = VQVAE(16, data_init=False), small_prior()
ARGUMENTS = {
    "images in 0..255": lambda: a_model.encode(255 * images),
    "images with NaN": lambda: a_model.encode(torch.nan * images),
    "uint8 images": lambda: a_model(images.byte()),
    "float16 images": lambda: a_model(images.half()),
    "float64 images": lambda: a_model(images.double()),
    "no image": lambda: a_model(images[:0]),
    "one image without batch": lambda: a_model(images[0]),
    "images of 50 pixels": lambda: a_model(images[..., :50]),
    "an array": lambda: a_model(images.numpy()),
    "codes out of range": lambda: a_model.decode(codes + 16),
    "float codes": lambda: a_model.decode(codes.float()),
    "codes without positions": lambda: a_model.decode(codes[:, :0]),
    "codes of three slots": lambda: a_model.quantizer.quantize(codes[..., :3]),
    "an unknown network": lambda: VQVAE(network="shallow"),
    "the report's layers from data": lambda: a_model.initialize_from_data(images),
    "no code": lambda: VQVAE(0),
    "half a dimension": lambda: VQVAE(16, 0.5),
    "three codebooks": lambda: VQVAE(16, codebooks=3, data_init=False)(images),
    "ten channels": lambda: VectorQuantizer(16, 4)(torch.randn(1, 10, 2, 2)),
    "a kernel of four": lambda: MaskedConv2d("A", 4, 4, 4),
    "mask C": lambda: MaskedConv2d("C", 4, 4, 3),
    "six channels for four slots": lambda: MaskedConv2d("A", 6, 4, 3, slots=4),
    "a prior without blocks": lambda: PixelCNN(16, blocks=0),
    "prior: codes of three slots": lambda: a_prior(codes[..., :3]),
    "prior: a code out of range": lambda: a_prior(codes - 1),
    "prior: float labels": lambda: a_prior(codes, labels),
    "prior: one label for two": lambda: a_prior(codes, labels[:1].long()),
    "prior: three orientations": lambda: a_prior(codes, None, torch.zeros(3).long()),
    "sample: no grid": lambda: sample(a_prior, 0),
    "sample: half a grid": lambda: sample(a_prior, 1.5),
    "sample: grid": lambda: sample(a_prior, 1, grid=(8,)),
    "sample: method": lambda: sample(a_prior, 1, method="magic"),
    "sample: a label out of range": lambda: sample(a_prior, 1, 9),
    "sample: a boolean label": lambda: sample(a_prior, 1, True),
    "sample: a float label": lambda: sample(a_prior, 1, 1.0),
    "sample: three labels": lambda: sample(a_prior, 2, torch.tensor([1, 2, 3])),
    "sample: temperature": lambda: filter_logits(logits, 0.0),
    "sample: tiny temperature": lambda: filter_logits(logits, 1e-45),
    "sample: top_k": lambda: filter_logits(logits, top_k=0),
    "sample: top_p": lambda: filter_logits(logits, top_p=torch.nan),
    "sample: guidance": lambda: sample(a_prior, 1, 2, guidance=-0.5),
    "sample: guidance without labels": lambda: sample(a_prior, 1, guidance=1.0),
    "sample: only keep": lambda: sample(a_prior, 1, keep=keep),
    "sample: kept codes": lambda: sample(a_prior, 2, given=codes + 16, keep=keep),
    "sample: given in float": lambda: sample(a_prior, 2, given=codes + 0.5, keep=keep),
    "complete: keep in int64": lambda: complete(a_prior, codes, keep.long()),
    "sample: another shape": lambda: sample(a_prior, 3, given=codes, keep=keep),
    "complete: labels": lambda: complete(a_prior, codes, keep, labels=torch.tensor([1, 2, 3])),
    "complete: candidates": lambda: complete(a_prior, codes, keep, candidates=0),
    "code_bits: labels": lambda: code_bits(a_prior, codes, torch.zeros(3).long()),
    "compress: a batch": lambda: compress(a_prior, codes),
    "compress: out of range": lambda: compress(a_prior, codes[0] + 16),
    "compress: 256 columns": lambda: compress(a_prior, codes[0, :, :1].expand(2, 256, 4)),
    "compress: a label out of range": lambda: compress(a_prior, codes[0], 7),
    "psnr: uint8": lambda: psnr((255 * images).byte(), images),
    "ssim: another shape": lambda: ssim(images, images[:1]),
    "classifier: uint8": lambda: LesionClassifier()((255 * images).byte()),
    "weights as integers": lambda: save_model(a_prior, "x.safetensors", torch.int8),
    "data: a label out of range": lambda: ImageDataset("x", ["1", "2"], [0, 2], ("a", "b")),
    "data: float labels": lambda: ImageDataset("x", ["1", "2"], [0.5, 1.0], ("a", "b")),
    "data: one group for two": lambda: ImageDataset("x", ["1", "2"], [0, 1], ("a", "b"), ["g"]),
    "split: fractions": lambda: synthetic_dataset(3).split(fractions=(0.8, 0.1, 0.2)),
    "split: seed": lambda: synthetic_dataset(3).split(1.0),
    "split: by": lambda: synthetic_dataset(3).split(by="color"),
    "pixels: size": lambda: synthetic_dataset(3).pixels(32.0),
    "pixels: mode": lambda: synthetic_dataset(3).pixels(32, "fill"),
    "batches: a mask": lambda: next(batches(None, torch.arange(14) > 3)),
    "batches: size": lambda: next(batches(None, torch.arange(14), 0)),
    "encode: batch size": lambda: encode_dataset(a_model, synthetic_dataset(3), 32, batch_size=0),
    "evaluate: no model": lambda: evaluate(synthetic_dataset(3), {}, size=32),
    "synthetic: no lesion": lambda: synthetic_dataset(0),
}


def read_errors():
    """The expected errors of the table: name or command -> text."""
    errors, key = {}, ""
    for line in Path(__file__).with_name("bad_input.txt").read_text("utf-8").splitlines():
        if line.startswith("    "):
            errors[key] = f"{errors[key]} {line.strip()}".strip()
        elif line and line[0] != "#":
            key = line
            errors[key] = ""
    return errors


ERRORS = read_errors()
COMMANDS = [key for key in ERRORS if key not in FILES | ARGUMENTS]


def assert_is_expected(key, error, f):
    """Some texts are wrapped in the table, so spaces are compared as one."""
    pattern = re.escape(" ".join(ERRORS[key].split())).replace(r"\.\.\.", ".*")
    found = " ".join(str(error).replace(str(f), "{f}").split())
    assert re.fullmatch(pattern, found), f"{key}: {found}"


def files_in(folder):
    """The time of the last change of each file, except locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("key", FILES)
def test_a_bad_file_is_refused(f, key):
    with pytest.raises((ValueError, OSError)) as error:
        FILES[key](f)
    assert_is_expected(key, error.value, f)


@pytest.mark.parametrize("key", ARGUMENTS)
def test_a_bad_argument_is_refused(f, key):
    with pytest.raises(ValueError) as error:
        ARGUMENTS[key]()
    assert_is_expected(key, error.value, f)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_command_ends_with_one_line(f, command, capsys):
    before = files_in(f)
    try:
        code = main(shlex.split(command.format(f=f)))
    except SystemExit as error:  # from argparse
        code = error.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and not [line for line in lines if "Traceback" in line]
    assert_is_expected(command, lines[-1].partition("error: ")[2], f)
    after = files_in(f)
    assert [path for path in before if after[path] != before[path]] == []


def test_an_unexpected_error_is_one_line_too(monkeypatch, capsys):
    monkeypatch.setattr("vqlib.__main__.download", lambda *_: {}["a bug\nof two lines"])
    assert main(["download", "isic2018"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: KeyError: ") and "python -X dev -m vqlib" in line
