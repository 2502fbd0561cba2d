"""Train everything in data/pretrained: VQ-VAEs, codes, priors, a classifier, a decoder.

    python benchmarks/pretrained.py --data PATH        # hours on a CPU; call again to resume
    python benchmarks/pretrained.py --priors           # only stores the trained transformers

Each training is a run of its own (work_dir()/runs/shipped-...); finished ones are loaded. Weights
are stored in float16, and the codes are computed with the *stored* weights, so that anyone who
encodes the same image gets the same codes. The held-out curves are written to
data/results/curves.json and prior-curve.json, the results table to data/results/NAME-val.json.
"""

from __future__ import annotations

import argparse

import torch
from realistic import train_realistic
from torch import nn
from transformer_priors import CPU_SECONDS_PER_STEP, train

from vqlib import (
    DEEP,
    WORKBOOK,
    encode_dataset,
    load_model,
    open_dataset,
    save_model,
    train_prior,
    train_vqvae,
)
from vqlib.checkpoints import PRETRAINED, model_notes, read_log, run_folder
from vqlib.codes import add_augmented
from vqlib.evaluation.results import evaluate, results_table, save_results
from vqlib.lesions.classifier import SIZE, train_classifier

REPORT_LAYERS, BEST = "ham10000-report-layers", "ham10000"
RECIPES = {REPORT_LAYERS: WORKBOOK, BEST: DEEP}


def write_pretrained(run: str, name: str, file: str, new_name: str | None = None) -> nn.Module:
    """Store the weights of a run in data/pretrained in float16, and load them from there."""
    source = run_folder(run) / file
    path = PRETRAINED / name / (new_name or file)
    save_model(load_model(source), path, torch.float16, **model_notes(source))
    return load_model(path)


def write_priors() -> None:
    """Store the two transformers of transformer_priors.py."""
    for run in ("prior-causal", "prior-masked"):
        write_pretrained(run, BEST, "prior.safetensors", f"{run}.safetensors")


def held_out_curve(run: str, *keys: str) -> dict[str, list[float]]:
    """Held-out metrics after each epoch."""
    epochs = read_log(run)[1]
    values = {key: [round(e["held_out"][key], 4) for e in epochs] for key in keys}
    return {"step": [e["step"] for e in epochs], **values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    parser.add_argument("--priors", action="store_true", help="only store the two transformers")
    options = parser.parse_args()
    if options.priors:
        return write_priors()
    data = open_dataset(options.data)
    models, curves = {}, {}
    keys = ("psnr_db", "ssim", "codes_used", "perplexity")
    for name, recipe in RECIPES.items():
        run = f"shipped-{name}"
        train_vqvae(data, recipe, run=run)
        models[name] = write_pretrained(run, name, "vqvae.safetensors")
        curves[name] = held_out_curve(run, *keys)
    save_results("curves", curves)
    split = DEEP.split(data)
    encoded = encode_dataset(models[BEST], data, split=split)
    encoded.save(PRETRAINED / BEST / "codes.safetensors")
    add_augmented(encoded, models[BEST], data)
    train_prior(encoded, WORKBOOK, run="shipped-prior")
    save_results("prior-curve", held_out_curve("shipped-prior", "bits_per_code"))
    prior = write_pretrained("shipped-prior", BEST, "prior.safetensors")
    small_images = data.pixels(SIZE)
    train_classifier(
        small_images[split.train],
        data.labels[split.train],
        small_images[split.val],
        data.labels[split.val],
        source=repr(data),
        run="shipped-classifier",
        epochs=24,
    )
    classifier = write_pretrained("shipped-classifier", BEST, "classifier.safetensors")
    train_realistic(data, run="shipped-realistic")
    write_pretrained("shipped-realistic", BEST, "realistic.safetensors")
    result = evaluate(
        data,
        {name: models[name] for name in (BEST, REPORT_LAYERS)},
        prior,
        {"lesion classifier": classifier},
        classifier,
    )
    save_results(f"{data.name}-val", result)
    print(results_table(result))
    for kind in CPU_SECONDS_PER_STEP:
        train(data, kind)
    write_priors()


if __name__ == "__main__":
    main()
