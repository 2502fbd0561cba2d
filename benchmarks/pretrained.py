"""Everything in data/pretrained: two VQ-VAEs, the codes of all lesions, a prior, a classifier.

    python benchmarks/pretrained.py --data PATH        # hours on a CPU; run again to resume

Trainings are runs of their own (work_dir()/runs/shipped-...); what is trained already is loaded.
Weights are written in float16, and codes are made with the weights *as written*, so they are what
everyone gets who encodes the same image. The held-out curves go to data/results/curves.json and
prior-curve.json, the results table to data/results/NAME-val.json.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from vqlib import (
    DEEP,
    WORKBOOK,
    classifier,
    encode_dataset,
    load_model,
    open_dataset,
    save_model,
    train_prior,
    train_vqvae,
)
from vqlib.codes import add_turned
from vqlib.curves import read_log
from vqlib.evaluation import as_text, evaluate, save_results
from vqlib.training import train_classifier
from vqlib.weights import PRETRAINED, model_notes, run_folder

LAYERS, BEST = "ham10000-report-layers", "ham10000"
RECIPES = {LAYERS: WORKBOOK, BEST: DEEP}


def ship(run: str, name: str, file: str) -> nn.Module:
    """Write a run's weights to data/pretrained in float16, and read them back."""
    trained = run_folder(run) / file
    path = PRETRAINED / name / file
    save_model(load_model(trained), path, torch.float16, **model_notes(trained))
    return load_model(path)


def curve(run: str, *keys: str) -> dict[str, list[float]]:
    """What held-out lesions said after each epoch."""
    epochs = read_log(run)[1]
    found = {key: [round(e["held_out"][key], 4) for e in epochs] for key in keys}
    return {"step": [e["step"] for e in epochs], **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of images; default: as open_dataset()")
    options = parser.parse_args()
    data = open_dataset(options.data)
    models, curves = {}, {}
    keys = ("psnr_db", "ssim", "codes_used", "perplexity")
    for name, recipe in RECIPES.items():
        run = f"shipped-{name}"
        train_vqvae(data, recipe, run=run)
        models[name] = ship(run, name, "vqvae.safetensors")
        curves[name] = curve(run, *keys)
    save_results("curves", curves)
    split = DEEP.split(data)
    encoded = encode_dataset(models[BEST], data, split=split)
    encoded.save(PRETRAINED / BEST / "codes.safetensors")
    add_turned(encoded, models[BEST], data)
    train_prior(encoded, WORKBOOK, run="shipped-prior")
    save_results("prior-curve", curve("shipped-prior", "bits_per_code"))
    prior = ship("shipped-prior", BEST, "prior.safetensors")
    small = data.pixels(classifier.SIZE)
    train_classifier(
        small[split.train],
        data.labels[split.train],
        small[split.val],
        data.labels[split.val],
        source=repr(data),
        run="shipped-classifier",
        epochs=24,
    )
    judge = ship("shipped-classifier", BEST, "classifier.safetensors")
    result = evaluate(data, {name: models[name] for name in (BEST, LAYERS)}, prior, judge)
    save_results(f"{data.name}-val", result)
    print(as_text(result))


if __name__ == "__main__":
    main()
