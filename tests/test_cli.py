"""The commands of the README, run in sequence on synthetic images of 64 pixels."""

import json

from vqlib import VQVAE, save_model
from vqlib.__main__ import _parser, main
from vqlib.checkpoints import PRETRAINED


def test_train_encode_sample_and_evaluate(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    vqvae, prior = (
        str(tmp_path / "runs" / part / f"{part}.safetensors") for part in ("vqvae", "prior")
    )
    codes, results = str(tmp_path / "codes.safetensors"), tmp_path / "results.json"
    small, models = ["--size", "64"], ["--vqvae", vqvae, "--prior", prior]
    image = tmp_path / "images" / "new.png"
    for command in (
        ["train-vqvae", "--epochs", "1", *small],
        ["encode", "--vqvae", vqvae, "--out", codes, *small],
        ["train-prior", "--codes", codes, "--epochs", "1"],
        ["sample", *models, "--n", "4", "--label", "MEL", "--grid", "2", "--out", str(image)],
        ["evaluate", *models, "--json", str(results), *small],
    ):
        assert main(command) == 0, command
    assert image.stat().st_size > 1000
    table = json.loads(results.read_text())
    ours = table["rows"]["vqvae"]
    assert table["split"] == "val" and table["n"] == len(table["psnr_db_of"]["vqvae"]) > 40
    assert table["budget_bytes"] == 18 and ours["bytes"] == 18.0  # 2 x 2 x 4 codes of 9 bits
    assert 10 < ours["psnr_db"] < 40 and 0 < table["bits_per_code"]["prior, given the class"] < 12
    assert table["rows"]["WebP"]["n"] == 0 and ours["psnr_above_baseline_db"] is None
    assert "PSNR dB" in capsys.readouterr().out

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


def test_every_option_has_a_help_text_with_its_default():
    commands = next(action.choices for action in _parser()._actions if action.choices)
    for name, command in commands.items():
        for action in command._actions:
            assert action.help, f"{name} {action.dest}"
            shown = action.required or action.default is not None or "default: " in action.help
            assert shown, f"{name} {action.dest}: no default"
