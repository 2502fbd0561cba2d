"""Add fingerprints of the training data to the pretrained weights, as new trainings store them.

    python benchmarks/fingerprints.py --data PATH    # the images that the models were trained on

The pretrained files were written before `save_model` stored fingerprints. This script adds those of
pixels, split, codes and codebook, and the note that the training is finished. All tensors stay
exactly the same. A second call changes nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from vqlib import DEEP, WORKBOOK, EncodedDataset, load_model, open_dataset, save_model
from vqlib.checkpoints import PRETRAINED, fingerprint, model_notes
from vqlib.evaluation.results import load_results
from vqlib.quantizer import codebook_fingerprint

MODELS = {"ham10000": DEEP, "ham10000-report-layers": WORKBOOK}


def record(path: Path, codebook: str | None = None, **notes: Any) -> None:
    """Rewrite the file with additional notes."""
    model = load_model(path)
    if codebook is not None:
        model.trained_on_codebook = codebook
    save_model(model, path, torch.float16, **model_notes(path) | notes)
    after = load_model(path).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in model.state_dict().items())
    print(f"{path.parent.name}/{path.name}: {model_notes(path)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder of the images")
    data = open_dataset(parser.parse_args().data)
    for name, recipe in MODELS.items():
        epochs = recipe.vqvae_epochs
        record(
            PRETRAINED / name / "vqvae.safetensors",
            pixels=data.pixels(256, recipe.resize_mode).fingerprint,
            split=fingerprint(*recipe.split(data)),
            **{"epoch": epochs, "epochs": epochs, "finished": True},
        )
    folder = PRETRAINED / "ham10000"
    encoded = EncodedDataset.load(folder / "codes.safetensors")
    bits = load_results("prior-curve")["bits_per_code"]  # after each epoch
    record(
        folder / "prior.safetensors",
        codebook_fingerprint(encoded.codebook),
        classes=data.classes,
        grid=list(encoded.codes.shape[1:3]),
        codes=fingerprint(encoded.codes, encoded.labels, *encoded.split),
        epoch=1 + bits.index(min(bits)),
        **{"epochs": len(bits), "finished": True},
    )
    epochs = model_notes(folder / "classifier.safetensors")["epochs"]
    record(folder / "classifier.safetensors", epoch=epochs, finished=True)


if __name__ == "__main__":
    main()
