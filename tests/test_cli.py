"""The commands of README, one after another, on the embedded default at 64 pixels."""

import json

import pytest

from vqlib import VQVAE, save_model
from vqlib.__main__ import main


def test_images_to_codes_to_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    vqvae, prior = (
        str(tmp_path / "runs" / part / f"{part}.safetensors") for part in ("vqvae", "prior")
    )
    codes, results = str(tmp_path / "codes.safetensors"), tmp_path / "results.json"
    small, models = ["--size", "64"], ["--vqvae", vqvae, "--prior", prior]
    picture = tmp_path / "pictures" / "new.png"
    for command in (
        ["train-vqvae", "--epochs", "1", *small],
        ["encode", "--vqvae", vqvae, "--out", codes, *small],
        ["train-prior", "--codes", codes, "--epochs", "1"],
        ["sample", *models, "--n", "4", "--label", "MEL", "--grid", "2", "--out", str(picture)],
        ["evaluate", *models, "--json", str(results), *small],
    ):
        assert main(command) == 0, command
    assert picture.stat().st_size > 1000
    table = json.loads(results.read_text())
    ours = table["rows"]["vqvae"]
    assert table["split"] == "val" and table["n"] == len(table["psnr_db_of"]["vqvae"]) > 40
    assert table["budget_bytes"] == 18 and ours["bytes"] == 18.0  # 2 x 2 x 4 codes of 9 bits
    assert 10 < ours["psnr_db"] < 40 and 0 < table["bits_per_code"]["prior, given the class"] < 12
    assert table["rows"]["WebP"]["n"] == 0 and ours["psnr_above_rival_db"] is None
    assert "PSNR dB" in capsys.readouterr().out

    # Neither are weights overwritten by codes, nor two models of one name taken for one.
    weights = (tmp_path / "runs" / "vqvae" / "vqvae.safetensors").read_bytes()
    other = str(save_model(VQVAE(), tmp_path / "other" / "vqvae.safetensors"))
    for mistake in (
        ["encode", "--vqvae", vqvae, "--out", vqvae, *small],
        ["encode", "--vqvae", vqvae, "--out", str(results), *small],
        ["evaluate", "--vqvae", vqvae, "--vqvae", vqvae, *small],
        ["evaluate", "--vqvae", vqvae, "--classifier", prior, *small],
        ["sample", "--vqvae", prior, "--prior", vqvae],
        ["sample", "--vqvae", other, "--prior", prior, "--out", str(picture)],
        ["evaluate", "--vqvae", other, "--prior", prior, *small],
        ["sample", *models, "--n", "0"],
        ["train-vqvae", "--epochs", "0", "--run", "never", *small],
    ):
        assert main(mistake) == 2 and capsys.readouterr().err.startswith("error: ")
    assert (tmp_path / "runs" / "vqvae" / "vqvae.safetensors").read_bytes() == weights
    assert json.loads(results.read_text()) == table and not (tmp_path / "runs" / "never").exists()
    for option in (["--size", "50"], ["--device", "abacus"]):
        with pytest.raises(SystemExit):
            main(["train-vqvae", *option])


@pytest.mark.parametrize(
    "command",
    [
        ["train-vqvae", "--data", "nowhere"],
        ["sample", "--vqvae", "nowhere.safetensors", "--prior", "nowhere.safetensors"],
        ["train-prior", "--codes", "nowhere.safetensors"],
    ],
)
def test_a_mistake_is_one_clear_line(command, capsys):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "nowhere" in error and "Traceback" not in error
