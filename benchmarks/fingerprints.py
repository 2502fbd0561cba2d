"""Record in the shipped weights what they were trained on, as trainings do now by themselves.

    python benchmarks/fingerprints.py --data PATH    # the images that the models were trained on

The files were written before `save_model` kept fingerprints. This adds to each the fingerprints of
pixels, split, codes and codebook, and that its training was finished; tensors stay as they are,
bit by bit. Run again, it changes nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from vqlib import DEEP, WORKBOOK, EncodedDataset, load_model, open_dataset, save_model
from vqlib.cache import fingerprint
from vqlib.evaluation import load_results
from vqlib.quantizer import codebook_fingerprint
from vqlib.weights import PRETRAINED, model_notes

MODELS = {"ham10000": DEEP, "ham10000-report-layers": WORKBOOK}


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def record(path: Path, codebook: str | None = None, **notes: Any) -> None:
    """Write the file anew with these notes beside those that it has."""
    before = tensors_of(path)
    model = load_model(path)
    if codebook is not None:
        model.codebook_fingerprint = codebook
    save_model(model, path, torch.float16, **model_notes(path) | notes)
    after = tensors_of(path)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    print(f"{path.parent.name}/{path.name}: {model_notes(path)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder of images")
    data = open_dataset(parser.parse_args().data)
    for name, recipe in MODELS.items():
        epochs = recipe.vqvae_epochs
        record(
            PRETRAINED / name / "vqvae.safetensors",
            pixels=data.pixels(256, recipe.fit).fingerprint,
            split=fingerprint(*recipe.split(data)),
            **{"epoch": epochs, "epochs": epochs, "finished": True},
        )
    folder = PRETRAINED / "ham10000"
    encoded = EncodedDataset.load(folder / "codes.safetensors")
    bits = load_results("prior-curve")["bits_per_code"]  # after each epoch
    record(
        folder / "prior.safetensors",
        codebook_fingerprint(encoded.codebook),
        codes=fingerprint(encoded.codes, encoded.labels, *encoded.split),
        epoch=1 + bits.index(min(bits)),
        **{"epochs": len(bits), "finished": True},
    )
    epochs = model_notes(folder / "classifier.safetensors")["epochs"]
    record(folder / "classifier.safetensors", epoch=epochs, finished=True)


if __name__ == "__main__":
    main()
