"""What ships can be used: models, codes, and the lesions decoded from them."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vqlib import DataError, PixelCNN, load_model
from vqlib.cache import whole_file
from vqlib.codes import EncodedDataset
from vqlib.quantizer import codebook_fingerprint
from vqlib.vqvae import VQVAE
from vqlib.weights import (
    PRETRAINED,
    check_pair,
    decoded_dataset,
    load_pretrained,
    save_model,
    shipped,
)


def test_what_ships_with_a_prior_comes_first():
    assert shipped()[0] == "ham10000" and (PRETRAINED / "ham10000/prior.safetensors").is_file()


def test_decoded_lesions_are_the_shipped_codes(tmp_path, monkeypatch):
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


def test_files_appear_whole_for_all_readers_or_not_at_all(tmp_path):
    (tmp_path / "plain").touch()
    save_model(VQVAE.report(), tmp_path / "model.safetensors")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1 and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "other") as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "model.safetensors"}


def test_models_without_a_prior_say_so():
    with pytest.raises(FileNotFoundError, match="without a prior"):
        load_pretrained("ham10000-report-layers")


def test_a_prior_knows_its_codebook_through_files_and_float16(tmp_path):
    vqvae, prior = VQVAE(16), PixelCNN(16, conv_filters=8, blocks=1)
    prior.codebook_fingerprint = codebook_fingerprint(vqvae.quantizer.codebook)
    save_model(vqvae, tmp_path / "vqvae.safetensors", torch.float16)
    save_model(prior, tmp_path / "prior.safetensors", torch.float16)
    rounded, again = (load_model(tmp_path / f"{name}.safetensors") for name in ("vqvae", "prior"))
    check_pair(rounded, again)
    with pytest.raises(DataError, match="codes of another VQ-VAE"):
        check_pair(VQVAE(16), again)
    check_pair(*load_pretrained())


def test_weights_of_an_earlier_version_load_with_a_warning(tmp_path):
    path = PRETRAINED / "ham10000" / "prior.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = {key: file.metadata()[key] for key in ("model", "config", "notes")}
    save_file(load_file(path), tmp_path / "old.safetensors", metadata)
    with pytest.warns(UserWarning, match="earlier version"):
        prior = load_model(tmp_path / "old.safetensors")
    check_pair(load_pretrained()[0], prior)  # nothing is known, nothing is refused
