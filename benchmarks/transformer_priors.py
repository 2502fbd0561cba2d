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
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqlib import (
    WORKBOOK,
    EncodedDataset,
    encode_dataset,
    load_pretrained,
    open_dataset,
    save_model,
    train_prior,
)
from vqlib.beyond.causal_transformer import CausalTransformer
from vqlib.beyond.masked_transformer import MaskedTransformer, random_masks
from vqlib.checkpoints import fingerprint, mark_finished, work_dir
from vqlib.codes import add_augmented
from vqlib.data import ImageDataset
from vqlib.quantizer import codebook_fingerprint
from vqlib.training import Progress, Schedule, fit, pick_device

# Measured on two busy cores (AMD EPYC with AVX-512 bf16):
# CPU seconds of one thread per step of 16 grids, divided by two.
SECONDS_PER_STEP = {"causal": 0.36, "masked": 0.1, "pixelcnn": 0.1}
BATCH = WORKBOOK.batch_size
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


def train_masked(encoded: EncodedDataset, run: str, epochs: int, device: torch.device) -> None:
    """Train a masked transformer; the weights with the lowest bound on validation are kept.

    The number of masked codes of a grid is uniform in 1..T, as in the bound. In sampling, too, the
    fraction of codes that are still masked when a code is sampled is about uniform over the codes.
    The loss is the mean over all masked codes of a batch.
    """
    train, val = encoded.split.train, encoded.split.val
    augmented, labels = encoded.augmented, encoded.labels
    torch.manual_seed(0)
    model = MaskedTransformer(
        encoded.num_embeddings,
        encoded.codes.shape[-1],
        num_classes=encoded.num_classes,
        embedding_dim=encoded.codebook.shape[-1],
        orientations=len(augmented),
        grid=tuple(encoded.codes.shape[1:3]),
    )
    model.initialize_embeddings(encoded.codebook)
    model.trained_on_codebook = codebook_fingerprint(encoded.codebook)

    def get_batches(epoch: int, start: int) -> Iterator[Tensor]:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch))
        return iter(order.split(BATCH)[start:])  # positions in `train`

    def compute_loss(positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        orientations = torch.randint(len(augmented), positions.shape)
        codes = augmented[orientations, positions]
        no_label = torch.rand(len(positions)) < WORKBOOK.label_dropout
        batch_labels = labels[train[positions]].masked_fill(no_label, model.num_classes)
        # One value in each of B equal parts of [0, 1): the mean of a batch varies less.
        u = (torch.arange(len(positions)) + torch.rand(len(positions))) / len(positions)
        masked = random_masks(codes.shape, u)
        nats = model.masked_nats(
            *(x.to(device) for x in (codes, masked, batch_labels, orientations))
        )
        loss = nats.sum() / masked.sum().to(device)
        return loss, {"bits_per_masked_code": loss / math.log(2)}

    kept_state = {"best": math.inf}
    codes = fingerprint(encoded.codes, labels, *encoded.split)
    notes = {"recipe": "masked", "data": encoded.source, "seed": 0, "codes": codes}
    notes |= {"classes": encoded.classes, "grid": list(encoded.codes.shape[1:3])}

    def evaluate(folder: Path, epoch: int) -> tuple[dict[str, float], None]:
        generator = torch.Generator().manual_seed(0)
        bound = model.bits_bound(encoded.codes[val], labels[val], generator=generator)
        bits = float(bound.mean())
        if bits < kept_state["best"]:
            kept_state["best"] = bits
            now = {"epoch": epoch, "epochs": epochs, "finished": False, "val_bits_bound": bits}
            save_model(model, folder / "prior.safetensors", **notes | now)
        return {"bits_per_code_bound": bits}, None

    folder = fit(
        model,
        run=run,
        config={
            "kind": "masked prior",
            "codes": codes,
            "augmented": fingerprint(augmented),
            "codebook": model.trained_on_codebook,
            "label_dropout": WORKBOOK.label_dropout,
            "batch_size": BATCH,
            "warmup_steps": SCHEDULE.warmup_steps,
            "ema_decay": SCHEDULE.ema_decay,
            "seed": 0,
            "model": model.config,
        },
        schedule=SCHEDULE,
        epochs=epochs,
        steps_per_epoch=-(-len(train) // BATCH),
        get_batches=get_batches,
        compute_loss=compute_loss,
        evaluate=evaluate,
        device=device,
        seed=0,
        progress=Progress(),
        kept_state=kept_state,
    )
    mark_finished(folder / "prior.safetensors", epochs)


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
    steps_per_epoch = -(-len(encoded.split.train) // BATCH)
    seconds_per_epoch = SECONDS_PER_STEP[options.kind] * steps_per_epoch
    epochs = max(1, round(60 * options.minutes / seconds_per_epoch))
    run = options.run or f"prior-{options.kind}"
    print(f"{epochs} epochs of {steps_per_epoch} steps")
    if options.kind == "masked":
        train_masked(encoded, run, epochs, device)
        return
    recipe = WORKBOOK
    if options.kind == "causal":
        grid: Any = tuple(encoded.codes.shape[1:3])
        recipe = replace(
            WORKBOOK,
            name="causal",
            prior=partial(CausalTransformer, grid=grid),
            schedule=SCHEDULE,
        )
    train_prior(encoded, recipe, run=run, epochs=epochs, device=device)


if __name__ == "__main__":
    main()
