"""The report, reproduced: what its losses between 0.389 and 0.447 can and can't be.

    python benchmarks/report.py --data PATH        # PATH in the layout of HAM10000; again to resume

1. Three readings of where the rotation stands, without any training: the *floor* that no network of
   the report's kind can pass, and the loss of the best *single image*, which is all that is left
   when every position of every image gets the same code.
2. Readings of the quantizer, trained shortly: which terms does the loss have, how do the vectors
   lie in the feature map, and how many codes survive?
3. The report's training: 20 epochs at 256 px, 90 % of the images, batch 16, Adam 1e-3.
4. Its prior: PixelRCNN with MSE for 100 epochs on the codes of 3.

Results go to data/results/report.json, which notebooks 02 and 04 quote.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import save_image

from vqlib import REPORT, encode_dataset, open_dataset, train_prior, train_vqvae
from vqlib.curves import read_log
from vqlib.data import LesionDataset, batches, rotate_and_flip
from vqlib.evaluation import RESULTS, load_results, save_results
from vqlib.metrics import evaluate_vqvae
from vqlib.quantizer import VectorQuantizer
from vqlib.vqvae import IMAGENET_MEAN, IMAGENET_STD, VQVAE

BAND = (0.389486, 0.447475)  # of the report's means over 100 batches, epochs 18 to 20
ROTATIONS: dict[str, Callable[..., Tensor] | None] = {
    "no rotation": None,
    "rotated after Normalize": partial(rotate_and_flip, degrees=30.0, corners=IMAGENET_MEAN),
    "rotated before Normalize": partial(rotate_and_flip, degrees=30.0, corners="black"),
}


def uniform_codebook() -> VQVAE:
    """A gradient codebook that starts as most do, in [-1/K, 1/K]."""
    model = VQVAE.report(ema_decay=None)
    bound = 1 / model.quantizer.num_embeddings
    torch.nn.init.uniform_(model.quantizer.codebook, -bound, bound)
    return model


class NoPermute(VectorQuantizer):
    """Vectors cut from the feature map as it lies in memory: 8 x 8 pixels of one channel."""

    def _to_vectors(self, z: Tensor) -> Tensor:
        return z.reshape(1, -1, self.embedding_dim)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook[0]).reshape(len(codes), -1, *codes.shape[1:3])


def without_permute(**options: Any) -> VQVAE:
    model = VQVAE.report(**options)
    model.quantizer.__class__ = NoPermute  # same state, another rule
    return model


QUANTIZERS: dict[str, Callable[[], VQVAE]] = {
    "EMA: MSE + 0.25 commitment": VQVAE.report,
    "gradient: MSE + codebook + 0.25 commitment": partial(VQVAE.report, ema_decay=None),
    "gradient, codebook from [-1/512, 1/512]": uniform_codebook,
    "EMA, without the permute": without_permute,
    "gradient, without the permute": partial(without_permute, ema_decay=None),
}


def without_training(data: LesionDataset, size: int, images: int = 2048) -> list[dict[str, Any]]:
    """Floor and single-image loss of each reading, on training images."""
    pixels, train = data.pixels(size, REPORT.fit), REPORT.split(data).train[:images]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    rows = []
    for name, augment in ROTATIONS.items():
        floor = total = squares = torch.zeros(3, size, size)
        for part, _ in batches(pixels, train, 64, augment, seed=0):
            target = (part - mean) / std
            floor = floor + (target - target.clamp(0, 1)).square().sum(0)
            total, squares = total + target.sum(0), squares + target.square().sum(0)
        average = total / len(train)
        single = average.clamp(0, 1)
        loss = squares / len(train) - 2 * single * average + single.square()
        rows.append(
            {
                "rotation": name,
                "images": len(train),
                "floor": float(floor.mean() / len(train)),
                "one_code": float(loss.mean()),
                "variance": float((squares / len(train)).mean() - average.mean().square()),
            }
        )
        print(rows[-1])
    return rows


def trained(data: LesionDataset, name: str, run: str, size: int, epochs: int) -> dict[str, Any]:
    """Train one reading of the quantizer, and sum up its log."""
    recipe = replace(REPORT, vqvae=QUANTIZERS[name])
    vqvae = train_vqvae(data, recipe, run=run, size=size, epochs=epochs)
    steps, _ = read_log(run)
    split = recipe.split(data)
    found = evaluate_vqvae(vqvae, data.pixels(size, recipe.fit), split.val)
    each = -(-len(split.train) // recipe.batch_size)
    means = {
        key: [
            sum(line[key] for line in part) / len(part)
            for part in (
                steps[start : start + min(100, end - start)]
                for end in range(each, len(steps) + 1, each)
                for start in range(end - each, end, 100)
            )
        ]
        for key in ("loss", "reconstruction_loss", "vq_loss")
    }
    last = means["loss"][-3 * -(-each // 100) :]  # three epochs, as the report prints
    return {
        "quantizer": name,
        "size": size,
        "epochs": epochs,
        "batches": each,
        **found.summary(),
        "codes_in_all": int((found.counts > 0).any(0).sum()),
        "last_losses": [min(last), max(last)],
        "inside_the_band": BAND[0] <= sum(last) / len(last) <= BAND[1],
        "means_of_100": {key: [round(x, 5) for x in values] for key, values in means.items()},
    }


@torch.inference_mode()
def report_samples(vqvae: VQVAE, prior: nn.Module) -> Tensor:
    """The report's way to draw 16 images, gaps filled as in notebook 05: (16, 3, 96, 96)."""
    torch.manual_seed(0)
    side = 8
    logits = prior(torch.zeros(16, 256, side, side))  # always of the same empty grid
    p = logits.softmax(1).movedim(1, -1).flatten(0, 2)
    indices = torch.multinomial(p, 1).view(16, side, side)
    indices = indices[..., None].expand(-1, -1, -1, 4).reshape(-1)
    quantized = vqvae.quantizer.codebook[0][indices].view(16, 256, side, side)
    return F.interpolate(vqvae.decoder(quantized), (96, 96), mode="area")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of images; default: as open_dataset()")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=REPORT.vqvae_epochs)
    parser.add_argument("--prior-epochs", type=int, default=REPORT.prior_epochs)
    options = parser.parse_args()
    data = open_dataset(options.data)
    results = load_results("report", {})

    def once(key: str, compute: Callable[[], Any]) -> None:
        if key not in results:
            results[key] = compute()
            save_results("report", results)

    once("data", lambda: repr(data))
    once("band", lambda: list(BAND))
    once("without_training", lambda: without_training(data, options.size))
    half = options.size // 2
    for number, name in enumerate(QUANTIZERS):
        # Only at full size has a channel's map as many pixels as a vector has numbers.
        size = options.size if "without" in name else half
        once(name, partial(trained, data, name, f"report-reading-{number}", size, 2))
    first, main_run = next(iter(QUANTIZERS)), "report-ham10000"
    once("training", partial(trained, data, first, main_run, options.size, options.epochs))

    def prior() -> dict[str, Any]:
        whole = {"size": options.size, "epochs": options.epochs}
        vqvae = train_vqvae(data, REPORT, run=main_run, **whole)  # loads it
        encoded = encode_dataset(vqvae, data, options.size, split=REPORT.split(data))
        epochs = options.prior_epochs
        network = train_prior(encoded, REPORT, run="report-prior", epochs=epochs)
        save_image(report_samples(vqvae, network), RESULTS / "report-samples.png", nrow=8)
        steps, held_out = read_log("report-prior")
        each = -(-len(encoded.split.train) // REPORT.batch_size)
        losses = [step["loss"] for step in steps]
        return {
            "epochs": epochs,
            "train_mse": [
                round(sum(losses[end - each : end]) / each, 5)
                for end in range(each, len(losses) + 1, each)
            ],
            "held_out_mse": [round(line["held_out"]["mse"], 5) for line in held_out],
            "held_out_mse_over_variance": held_out[-1]["held_out"]["mse_over_variance"],
            "n": len(encoded.split.val),
            "codes_in_all": len(encoded.codes.unique()),
        }

    once("prior", prior)


if __name__ == "__main__":
    main()
