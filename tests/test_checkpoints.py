"""Pretrained models, stored codes, the images decoded from them, and weight files."""

import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vqlib import DataError, PixelCNN, load_model
from vqlib.checkpoints import (
    PRETRAINED,
    atomic_write,
    check_pair,
    load_pretrained,
    pretrained_names,
    save_model,
)
from vqlib.codes import EncodedDataset
from vqlib.lesions.datasets import decoded_dataset
from vqlib.quantizer import codebook_fingerprint
from vqlib.vqvae import VQVAE


def test_a_pretrained_model_with_a_prior_comes_first():
    assert pretrained_names()[0] == "ham10000"
    assert (PRETRAINED / "ham10000/prior.safetensors").is_file()


def test_all_shipped_weights_load_after_import_vqlib_alone():
    code = (
        "import sys, vqlib; models = [vqlib.load_model(path) for path in sys.argv[1:]]; "
        "print(*(type(model).__name__ for model in models), 'vqlib.course' in sys.modules)"
    )
    files = [f for f in sorted(PRETRAINED.glob("*/*.safetensors")) if f.stem != "codes"]
    command = [sys.executable, "-c", code, *files]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {"VQVAE", "PixelCNN", "RealisticDecoder", "CausalTransformer"} <= set(shown)
    assert shown[-1] == "False"  # figures and widgets are not needed


def test_decoded_dataset_decodes_the_stored_codes(tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    vqvae, _ = load_pretrained()
    encoded = EncodedDataset.load(PRETRAINED / "ham10000" / "codes.safetensors")
    data = decoded_dataset(images=3)
    pixels = data.pixels(256)
    last = vqvae.decode(encoded.codes[-1:])[0]
    assert (pixels[2].float() / 255 - last).abs().max() < 0.51 / 255 + 1e-6
    assert data.labels.tolist() == encoded.labels[[0, len(encoded) // 2 - 1, -1]].tolist()
    assert not data.is_synthetic and "decoded" in repr(data)
    assert data.pixels(64)[0].shape == (3, 64, 64) and data.image(0).size == (256, 256)


def test_atomic_write_leaves_a_complete_readable_file_or_none(tmp_path):
    (tmp_path / "plain").touch()
    save_model(VQVAE.report(), tmp_path / "model.safetensors")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1 and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "other") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "model.safetensors"}


def test_load_pretrained_without_a_prior_raises():
    with pytest.raises(FileNotFoundError, match="without a prior"):
        load_pretrained("ham10000-report-layers")


def test_a_prior_keeps_its_codebook_fingerprint_in_files_and_float16(tmp_path):
    vqvae, prior = VQVAE(16), PixelCNN(16, conv_filters=8, blocks=1)
    prior.trained_on_codebook = codebook_fingerprint(vqvae.quantizer.codebook)
    save_model(vqvae, tmp_path / "vqvae.safetensors", torch.float16)
    save_model(prior, tmp_path / "prior.safetensors", torch.float16)
    loaded_vqvae = load_model(tmp_path / "vqvae.safetensors")
    loaded_prior = load_model(tmp_path / "prior.safetensors")
    check_pair(loaded_vqvae, loaded_prior)
    with pytest.raises(DataError, match="codes of another VQ-VAE"):
        check_pair(VQVAE(16), loaded_prior)
    check_pair(*load_pretrained())


OLD_NAMES = {
    "label_embedding.": "labels.",
    "orientation_embedding": "orientations",
    "vertical_to_horizontal.": "above.",
    "horizontal_norm.": "norm.",
    "horizontal_out.": "out.",
    "horizontal.": "left.",
    "center.": "here.",
    "causal_mean_weight": "so_far",
    "ema_cluster_size": "ema_count",
    "steps_unused": "idle",
}


@pytest.mark.parametrize("name", ["prior", "vqvae"])
def test_weights_of_an_earlier_version_load_with_a_warning(tmp_path, name):
    """With the parameter names of that version, and without fingerprints."""
    path, old = PRETRAINED / "ham10000" / f"{name}.safetensors", tmp_path / "old.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = {key: file.metadata()[key] for key in ("model", "config", "notes")}
    tensors = load_file(path)
    for new_name, old_name in OLD_NAMES.items():
        tensors = {key.replace(new_name, old_name): value for key, value in tensors.items()}
    if name == "prior":
        first_layer = {"vertical.weight": "above.weight", "vertical.bias": "above.bias"}
        tensors = {first_layer.get(key, key): value for key, value in tensors.items()}
    save_file(tensors, old, metadata)
    with pytest.warns(UserWarning, match="earlier version"):
        model = load_model(old)
    expected = load_model(path).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    if name == "prior":
        check_pair(load_pretrained()[0], model)  # without a stored fingerprint, nothing is checked
