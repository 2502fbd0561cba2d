"""Other images: any folder becomes a data set, or an error says what to do."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vqlib import encode_dataset, open_dataset, sample, train_prior, train_vqvae
from vqlib.__main__ import main
from vqlib.training import Progress


def shapes(path, kind, i, size=(96, 64)):
    """Stripes or disks in random colors: nothing like skin."""
    rng = np.random.default_rng([i, kind == "disks"])
    y, x = np.mgrid[: size[1], : size[0]]
    period, phase = rng.uniform(8, 30), rng.uniform(0, 30)
    disk = np.hypot(x - rng.uniform(20, 76), y - rng.uniform(15, 49)) < rng.uniform(8, 25)
    inside = disk if kind == "disks" else (x + phase) % period < period / 2
    one, two = rng.integers(0, 256, (2, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(inside[..., None], one, two).astype(np.uint8)).save(path)


@pytest.fixture
def classed(tmp_path):
    """Two subfolders of 20 images."""
    for kind in ("stripes", "disks"):
        for i in range(20):
            shapes(tmp_path / "shapes" / kind / f"{i:02d}.png", kind, i)
    return tmp_path / "shapes"


def write(folder, *lines):
    (folder / "images.csv").write_text("\n".join(lines) + "\n")


def test_subfolders_are_classes_and_a_flat_folder_has_none(classed):
    data = open_dataset(classed)
    assert data.classes == ("disks", "stripes") and len(data) == 40 and data.root == classed
    assert data.image_ids[0] == "disks/00.png" and data.labels.tolist() == [0] * 20 + [1] * 20
    assert "40 images of 40 groups; disks 20, stripes 20" in repr(data)
    split = data.split()
    assert torch.bincount(data.labels[split.test]).tolist() == [2, 2]
    flat = open_dataset(classed / "disks")
    assert flat.classes == () and flat.labels.tolist() == [0] * 20 and "no classes" in repr(flat)
    assert list(map(len, flat.split())) == [16, 2, 2]


def test_a_table_gives_labels_groups_and_the_split(classed):
    names = [f"disks/{i:02d}.png" for i in range(8)]
    parts = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    rows = [f"{n},{'odd' if i % 2 else 'even'},g{i // 2},{parts[i]}" for i, n in enumerate(names)]
    write(classed, "image,label,group,split", *rows)
    data = open_dataset(classed)
    assert data.image_ids == names and data.classes == ("even", "odd")
    assert data.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [part.tolist() for part in data.split()] == [[0, 1, 2, 3], [4, 5], [6, 7]]
    write(classed, "image,group", *(f"{n},{'pair' if i < 2 else ''}" for i, n in enumerate(names)))
    data = open_dataset(classed)
    assert data.classes == () and data.groups.tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    train = set(data.split().train.tolist())
    assert ({0, 1} <= train) or not ({0, 1} & train)


@pytest.mark.parametrize("kind", ["two classes", "no classes"])
def test_from_any_images_to_new_ones(classed, monkeypatch, tmp_path, kind):
    """Rectangular photographs, 64 px, with two classes and with none."""
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path / "home"))
    data = open_dataset(classed if kind == "two classes" else classed / "disks")
    vqvae = train_vqvae(data, size=64, epochs=1, progress=Progress())
    encoded = encode_dataset(vqvae, data, 64)
    assert encoded.classes == data.classes and encoded.num_classes == len(data.classes)
    prior = train_prior(encoded, epochs=1, conv_filters=16, blocks=1, progress=Progress())
    assert prior.num_classes == len(data.classes)
    codes = sample(prior, 2, 1 if data.classes else None, grid=(2, 2))
    assert vqvae.decode(codes).shape == (2, 3, 64, 64)


def test_commands_on_images_that_are_no_lesions(classed, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path / "home"))
    runs, out = tmp_path / "home" / "runs", tmp_path / "new.png"
    data = ["--data", str(classed), "--size", "64"]
    vqvae, prior = (str(runs / name / f"{name}.safetensors") for name in ("vqvae", "prior"))
    codes, table = str(tmp_path / "codes.safetensors"), tmp_path / "table.json"
    models = ["--vqvae", vqvae, "--prior", prior]
    for command in (
        ["train-vqvae", *data, "--epochs", "1"],
        ["encode", *data, "--vqvae", vqvae, "--out", codes],
        ["train-prior", "--codes", codes, "--epochs", "1"],
        ["sample", *models, "--n", "1", "--label", "stripes", "--out", str(out)],
        ["evaluate", *data, *models, "--json", str(table)],
    ):
        assert main(command) == 0, command
    assert Image.open(out).size[1] < 100  # 64 pixels: the grid of the codes that it was trained on
    result = json.loads(table.read_text())
    assert result["rows"]["vqvae"]["n"] == 4 and result["bits_per_code"]
    assert main(["sample", *models, "--label", "MEL"]) == 2
    assert "disks, stripes" in capsys.readouterr().err
    # The models that ship have seven classes, which these images do not have.
    assert main(["evaluate", *data, "--json", str(table)]) == 0
    assert "not measured" in capsys.readouterr().out and "samples" not in json.loads(
        table.read_text()
    )
