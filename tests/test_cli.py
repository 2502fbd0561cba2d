"""The commands of the README, run in sequence on synthetic images of 64 pixels."""

import json

import numpy as np
from PIL import Image

from vqlib import VQVAE, save_model
from vqlib.__main__ import _parser, main
from vqlib.beyond.realistic import RealisticDecoder
from vqlib.checkpoints import PRETRAINED


def test_train_encode_sample_and_evaluate(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    vqvae, prior = (
        str(tmp_path / "runs" / part / f"{part}.safetensors") for part in ("vqvae", "prior")
    )
    codes, results = str(tmp_path / "codes.safetensors"), tmp_path / "results.json"
    small, models = ["--size", "64"], ["--vqvae", vqvae, "--prior", prior]
    image = tmp_path / "images" / "new.png"
    printed = ""
    untrained = RealisticDecoder((8, 8), (0, 0, 0), 8)
    save_model(untrained, tmp_path / "runs" / "vqvae" / "realistic.safetensors")
    for command in (
        ["train-vqvae", "--epochs", "1", *small],
        ["encode", "--vqvae", vqvae, "--out", codes, *small],
        ["train-prior", "--codes", codes, "--epochs", "1"],
        ["sample", *models, "--n", "4", "--label", "MEL", "--grid", "2", "--out", str(image)],
        ["evaluate", *models, "--json", str(results), *small],
    ):
        assert main(command) == 0, command
        printed += capsys.readouterr().out
    assert f"weights: {vqvae}" in printed and f"weights: {prior}" in printed
    assert image.stat().st_size > 1000
    table = json.loads(results.read_text())
    ours = table["rows"]["vqvae"]
    assert table["split"] == "val" and table["n"] == len(table["psnr_db_of"]["vqvae"]) > 40
    assert table["budget_bytes"] == 18 and ours["bytes"] == 18.0  # 2 x 2 x 4 codes of 9 bits
    assert 10 < ours["psnr_db"] < 40 and 0 < table["bits_per_code"]["prior, given the class"] < 12
    assert table["rows"]["WebP"]["n"] == 0 and ours["psnr_above_baseline_db"] is None
    sets = table["samples"]["rows"]["pixel statistics"]
    for name in ("reconstructions", "samples"):  # the decoder beside the VQ-VAE adds noise
        assert (
            sets[f"{name}, realistic decoder"]["kernel_distance"] != sets[name]["kernel_distance"]
        )
    assert "PSNR dB" in printed

    # Codes do not overwrite weights, and two models of the same name are not confused.
    weights = (tmp_path / "runs" / "vqvae" / "vqvae.safetensors").read_bytes()
    other = str(save_model(VQVAE(), tmp_path / "other" / "vqvae.safetensors"))
    for mistake in (
        ["encode", "--vqvae", vqvae, "--out", vqvae, *small],
        ["encode", "--vqvae", vqvae, "--out", str(results), *small],
        ["evaluate", "--vqvae", vqvae, "--classifier", prior, *small],
        ["evaluate", "--vqvae", other, "--prior", prior, *small],
    ):
        assert main(mistake) == 2 and capsys.readouterr().err.startswith("error: ")
    assert (tmp_path / "runs" / "vqvae" / "vqvae.safetensors").read_bytes() == weights
    assert json.loads(results.read_text()) == table


def test_sample_uses_the_pretrained_model_by_default_or_by_name(tmp_path):
    def sampled(name, *options):
        path = tmp_path / name
        assert main(["sample", "--n", "1", "--out", str(path), *options]) == 0
        return path.read_bytes()

    vqvae, prior = (
        str(PRETRAINED / "ham10000" / f"{part}.safetensors") for part in ("vqvae", "prior")
    )
    default = sampled("default.png")
    assert default == sampled("name.png", "--model", "ham10000")
    assert default == sampled("files.png", "--vqvae", vqvae, "--prior", prior)


def test_a_picture_is_compressed_to_a_few_bytes_and_back(tmp_path, capsys):
    waves = np.sin(np.arange(240) / 40)[:, None] * np.cos(np.arange(320) / 60)
    picture = np.stack([140 + 60 * waves, 110 + 30 * waves, 100 - 20 * waves], -1).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    assert main(["compress", str(tmp_path / "photo.png"), "--size", "96"]) == 0
    printed = capsys.readouterr().out
    size = (tmp_path / "photo.vq").stat().st_size
    assert f"photo.vq: {size} bytes for 96 x 96 pixels" in printed and size < 100
    original = (tmp_path / "photo.png").read_bytes()
    assert main(["decompress", str(tmp_path / "photo.vq")]) == 0
    assert (tmp_path / "photo.png").read_bytes() == original
    back = np.asarray(Image.open(tmp_path / "photo.decoded.png")).astype(float)
    square = np.asarray(Image.fromarray(picture[:, 40:280]).resize((96, 96))).astype(float)
    assert back.shape == (96, 96, 3) and np.abs(back - square).mean() < 15

    (tmp_path / "photo.vq").write_bytes(b"VQ" + bytes(20))
    assert main(["decompress", str(tmp_path / "photo.vq")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_every_option_has_a_help_text_with_its_default():
    commands = next(action.choices for action in _parser()._actions if action.choices)
    for name, command in commands.items():
        for action in command._actions:
            assert action.help, f"{name} {action.dest}"
            shown = action.required or action.default is not None or "default: " in action.help
            assert shown, f"{name} {action.dest}: no default"
