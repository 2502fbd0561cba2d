"""Train three priors on the same codes with equal budgets: causal, masked, and PixelCNN.

    python benchmarks/transformer_priors.py --data PATH --kind causal    # call again to resume

The codes are those of the pretrained VQ-VAE, with the training images in all eight orientations, as
for the pretrained prior. The number of epochs is chosen so that a run takes about `--minutes` CPU
minutes, with the times in CPU_SECONDS_PER_STEP. The weights of the epoch with the fewest bits per
code on the validation split are kept, in work_dir()/runs/RUN/prior.safetensors; for the masked
transformer, bits per code are an upper bound (see `MaskedTransformer.bits_bound`).
`python benchmarks/pretrained.py --priors` then stores them in data/pretrained.
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

# One step of 16 grids, one thread of an AMD EPYC with AVX-512 bf16, other programs running.
CPU_SECONDS_PER_STEP = {"causal": 0.72, "masked": 0.2, "pixelcnn": 0.2}
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


def train(
    data: ImageDataset,
    kind: str,
    run: str | None = None,
    minutes: float = 45,
    device: torch.device | None = None,
) -> None:
    """Train one prior with a budget of CPU minutes; a run that was stopped is continued."""
    encoded = augmented_codes(data)
    steps_per_epoch = -(-len(encoded.split.train) // WORKBOOK.batch_size)
    epochs = max(1, round(60 * minutes / (CPU_SECONDS_PER_STEP[kind] * steps_per_epoch)))
    print(f"{epochs} epochs of {steps_per_epoch} steps")
    recipe = WORKBOOK
    if kind != "pixelcnn":
        prior = partial(TRANSFORMERS[kind], grid=tuple(encoded.codes.shape[1:3]))
        recipe = replace(WORKBOOK, name=kind, prior=prior, schedule=SCHEDULE)
    train_prior(encoded, recipe, run=run or f"prior-{kind}", epochs=epochs, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    parser.add_argument("--kind", required=True, choices=list(CPU_SECONDS_PER_STEP))
    parser.add_argument("--run", help="name of the run; default: prior-KIND")
    parser.add_argument("--minutes", type=float, default=45, help="CPU minutes, see above")
    parser.add_argument("--device", help="default: the first of cuda, mps and cpu")
    options = parser.parse_args()
    torch.set_flush_denormal(True)  # see denormals.py
    device = torch.device(options.device) if options.device else pick_device()
    data = open_dataset(options.data)
    train(data, options.kind, options.run, options.minutes, device)


if __name__ == "__main__":
    main()
