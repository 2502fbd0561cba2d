"""Train three priors on the same codes with equal budgets: causal, masked, and PixelCNN.

    python benchmarks/transformer_priors.py --data PATH --kind causal    # call again to resume

The codes are those of the pretrained VQ-VAE, with the training images in all eight orientations, as
for the pretrained prior. The number of epochs is chosen so that a run takes about `--minutes`
minutes on two cores, with the seconds per step in SECONDS_PER_STEP. The weights of the epoch with
the fewest bits per code on the validation split are kept, in work_dir()/runs/RUN/prior.safetensors;
for the masked transformer, bits per code are an upper bound (see `MaskedTransformer.bits_bound`).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from vqlib import (
    WORKBOOK,
    EncodedDataset,
    encode_dataset,
    load_pretrained,
    open_dataset,
    train_prior,
)
from vqlib.beyond.causal_transformer import CausalTransformer
from vqlib.beyond.masked_transformer import MaskedTransformer
from vqlib.checkpoints import work_dir
from vqlib.codes import add_augmented
from vqlib.data import ImageDataset
from vqlib.training import Schedule, pick_device

# Measured on two busy cores (AMD EPYC with AVX-512 bf16):
# CPU seconds of one thread per step of 16 grids, divided by two.
SECONDS_PER_STEP = {"causal": 0.36, "masked": 0.1, "pixelcnn": 0.1}
TRANSFORMERS: dict[str, Any] = {"causal": CausalTransformer, "masked": MaskedTransformer}
SCHEDULE = Schedule(lr=1e-3, warmup_steps=200, cosine_decay=True, grad_clip=1.0, ema_decay=0.999)


def augmented_codes(data: ImageDataset) -> EncodedDataset:
    """Codes of the pretrained VQ-VAE, training images in eight orientations; computed once."""
    path = work_dir() / "augmented.safetensors"
    if path.is_file() and (encoded := EncodedDataset.load(path)).source == repr(data):
        return encoded
    vqvae, _ = load_pretrained("ham10000")
    encoded = encode_dataset(vqvae, data)
    add_augmented(encoded, vqvae, data)
    encoded.save(path)
    return encoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    parser.add_argument("--kind", required=True, choices=list(SECONDS_PER_STEP))
    parser.add_argument("--run", help="name of the run; default: prior-KIND")
    parser.add_argument("--minutes", type=float, default=45, help="budget, see above")
    parser.add_argument("--device", help="default: the first of cuda, mps and cpu")
    options = parser.parse_args()
    torch.set_flush_denormal(True)  # see denormals.py
    device = torch.device(options.device) if options.device else pick_device()
    encoded = augmented_codes(open_dataset(options.data))
    steps_per_epoch = -(-len(encoded.split.train) // WORKBOOK.batch_size)
    seconds_per_epoch = SECONDS_PER_STEP[options.kind] * steps_per_epoch
    epochs = max(1, round(60 * options.minutes / seconds_per_epoch))
    run = options.run or f"prior-{options.kind}"
    print(f"{epochs} epochs of {steps_per_epoch} steps")
    recipe = WORKBOOK
    if options.kind != "pixelcnn":
        grid = tuple(encoded.codes.shape[1:3])
        prior = partial(TRANSFORMERS[options.kind], grid=grid)
        recipe = replace(WORKBOOK, name=options.kind, prior=prior, schedule=SCHEDULE)
    train_prior(encoded, recipe, run=run, epochs=epochs, device=device)


if __name__ == "__main__":
    main()
