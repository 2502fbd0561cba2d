"""Reproduction of the report: which settings can explain its losses between 0.389 and 0.447?

    python benchmarks/report.py --data PATH        # PATH in the layout of HAM10000; again to resume

1. Without training, for three hypotheses about where the images are rotated: the *lower bound* of
   the loss for any network with the report's target and sigmoid output, and the loss of the best
   *single image*, which is all that the decoder can output if every position has the same code.
2. Hypotheses about the quantizer, with short trainings: which terms the loss contains, how vectors
   are cut from the feature map, and how many codes remain in use.
3. The report's training: 20 epochs at 256 px, 90 % of the images, batch size 16, Adam 1e-3.
4. The report's prior: PixelRCNN with MSE for 100 epochs on the codes of step 3.

The results are written to data/results/report.json, which notebook 09 quotes.
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

from vqlib import REPORT, ImageDataset, encode_dataset, open_dataset, train_prior, train_vqvae
from vqlib.checkpoints import read_log
from vqlib.data import batches, rotate_and_flip
from vqlib.evaluation.results import RESULTS, load_results, save_results
from vqlib.metrics import evaluate_vqvae
from vqlib.quantizer import VectorQuantizer
from vqlib.vqvae import IMAGENET_MEAN, IMAGENET_STD, VQVAE

REPORT_LOSS_RANGE = (0.389486, 0.447475)  # of the report's means over 100 batches, epochs 18 to 20
ROTATIONS: dict[str, Callable[..., Tensor] | None] = {
    "no rotation": None,
    "rotated after Normalize": partial(rotate_and_flip, degrees=30.0, corners=IMAGENET_MEAN),
    "rotated before Normalize": partial(rotate_and_flip, degrees=30.0, corners="black"),
}


def uniform_codebook() -> VQVAE:
    """Codebook trained by gradient, with the usual uniform initialization in [-1/K, 1/K]."""
    model = VQVAE.report(ema_decay=None)
    bound = 1 / model.quantizer.num_embeddings
    torch.nn.init.uniform_(model.quantizer.codebook, -bound, bound)
    return model


class ChannelFirstQuantizer(VectorQuantizer):
    """Quantizer without the permute: each vector is the 8 x 8 map of one channel."""

    def _flatten(self, z: Tensor) -> Tensor:
        return z.reshape(1, -1, self.embedding_dim)

    def look_up(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook[0]).reshape(len(codes), -1, *codes.shape[1:3])


def without_permute(**options: Any) -> VQVAE:
    model = VQVAE.report(**options)
    model.quantizer.__class__ = ChannelFirstQuantizer  # same parameters, other vectors
    return model


QUANTIZERS: dict[str, Callable[[], VQVAE]] = {
    "EMA: MSE + 0.25 commitment": VQVAE.report,
    "gradient: MSE + codebook + 0.25 commitment": partial(VQVAE.report, ema_decay=None),
    "gradient, codebook from [-1/512, 1/512]": uniform_codebook,
    "EMA, without the permute": without_permute,
    "gradient, without the permute": partial(without_permute, ema_decay=None),
}


def loss_bounds(data: ImageDataset, size: int, images: int = 2048) -> list[dict[str, Any]]:
    """Lower bound and single-image loss of each hypothesis, on training images."""
    pixels, train = data.pixels(size, REPORT.resize_mode), REPORT.split(data).train[:images]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    rows = []
    for name, augment in ROTATIONS.items():
        lower_bound = total = sum_of_squares = torch.zeros(3, size, size)
        for batch, _ in batches(pixels, train, 64, augment, seed=0):
            target = (batch - mean) / std
            lower_bound = lower_bound + (target - target.clamp(0, 1)).square().sum(0)
            total = total + target.sum(0)
            sum_of_squares = sum_of_squares + target.square().sum(0)
        mean_image, mean_square = total / len(train), sum_of_squares / len(train)
        best_image = mean_image.clamp(0, 1)
        loss = mean_square - 2 * best_image * mean_image + best_image.square()
        rows.append(
            {
                "rotation": name,
                "images": len(train),
                "lower_bound": float(lower_bound.mean() / len(train)),
                "single_image_loss": float(loss.mean()),
                "variance": float(mean_square.mean() - mean_image.mean().square()),
            }
        )
        print(rows[-1])
    return rows


def train_and_summarize(
    data: ImageDataset, name: str, run: str, size: int, epochs: int
) -> dict[str, Any]:
    """Train one variant of the quantizer, and summarize its log."""
    recipe = replace(REPORT, vqvae=QUANTIZERS[name])
    vqvae = train_vqvae(data, recipe, run=run, size=size, epochs=epochs)
    steps, _ = read_log(run)
    split = recipe.split(data)
    metrics = evaluate_vqvae(vqvae, data.pixels(size, recipe.resize_mode), split.val)
    batches_per_epoch = -(-len(split.train) // recipe.batch_size)
    means = {
        key: [
            sum(line[key] for line in lines) / len(lines)
            for lines in (
                steps[start : start + min(100, end - start)]
                for end in range(batches_per_epoch, len(steps) + 1, batches_per_epoch)
                for start in range(end - batches_per_epoch, end, 100)
            )
        ]
        for key in ("loss", "reconstruction_loss", "vq_loss")
    }
    # the last three epochs, as in the report
    last_means = means["loss"][-3 * -(-batches_per_epoch // 100) :]
    last_mean = sum(last_means) / len(last_means)
    return {
        "quantizer": name,
        "size": size,
        "epochs": epochs,
        "batches": batches_per_epoch,
        **metrics.summary(),
        "codes_used_in_any_slot": int((metrics.counts > 0).any(0).sum()),
        "last_losses": [min(last_means), max(last_means)],
        "inside_report_loss_range": REPORT_LOSS_RANGE[0] <= last_mean <= REPORT_LOSS_RANGE[1],
        "means_over_100_batches": {
            key: [round(x, 5) for x in values] for key, values in means.items()
        },
    }


@torch.inference_mode()
def report_samples(vqvae: VQVAE, prior: nn.Module) -> Tensor:
    """16 images sampled by the report's method, completed as in notebook 09.

    Returns:
        float32 (16, 3, 96, 96): as in the report, the outputs of the decoder's sigmoid, which are
        not mapped back to pixels.
    """
    torch.manual_seed(0)
    side = 8
    # always for the same empty grid, our reading of the report's "independently"
    logits = prior(torch.zeros(16, 256, side, side))
    p = logits.softmax(1).movedim(1, -1).flatten(0, 2)
    indices = torch.multinomial(p, 1).view(16, side, side)
    indices = indices[..., None].expand(-1, -1, -1, 4).reshape(-1)
    quantized = vqvae.quantizer.codebook[0][indices].view(16, 256, side, side)
    return F.interpolate(vqvae.decoder(quantized), (96, 96), mode="area")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side")
    parser.add_argument(
        "--epochs", type=int, default=REPORT.vqvae_epochs, help="epochs of the VQ-VAE"
    )
    parser.add_argument(
        "--prior-epochs", type=int, default=REPORT.prior_epochs, help="epochs of the prior"
    )
    options = parser.parse_args()
    data = open_dataset(options.data)
    results = load_results("report", {})

    def compute_once(key: str, compute: Callable[[], Any]) -> None:
        if key not in results:
            results[key] = compute()
            save_results("report", results)

    compute_once("data", lambda: repr(data))
    compute_once("report_loss_range", lambda: list(REPORT_LOSS_RANGE))
    compute_once("loss_bounds", lambda: loss_bounds(data, options.size))
    half = options.size // 2
    for number, name in enumerate(QUANTIZERS):
        # Without the permute, the map of a channel has 64 pixels only at full size (256 px).
        size = options.size if "without" in name else half
        compute_once(
            name, partial(train_and_summarize, data, name, f"report-reading-{number}", size, 2)
        )
    first, main_run = next(iter(QUANTIZERS)), "report-ham10000"
    compute_once(
        "training",
        partial(train_and_summarize, data, first, main_run, options.size, options.epochs),
    )

    def prior_results() -> dict[str, Any]:
        training_options = {"size": options.size, "epochs": options.epochs}
        # loads the finished run
        vqvae = train_vqvae(data, REPORT, run=main_run, **training_options)
        encoded = encode_dataset(vqvae, data, options.size, split=REPORT.split(data))
        epochs = options.prior_epochs
        network = train_prior(encoded, REPORT, run="report-prior", epochs=epochs)
        save_image(report_samples(vqvae, network), RESULTS / "report-samples.png", nrow=8)
        steps, held_out = read_log("report-prior")
        batches_per_epoch = -(-len(encoded.split.train) // REPORT.batch_size)
        losses = [step["loss"] for step in steps]
        return {
            "epochs": epochs,
            "train_mse": [
                round(sum(losses[end - batches_per_epoch : end]) / batches_per_epoch, 5)
                for end in range(batches_per_epoch, len(losses) + 1, batches_per_epoch)
            ],
            "held_out_mse": [round(line["held_out"]["mse"], 5) for line in held_out],
            "held_out_mse_over_variance": held_out[-1]["held_out"]["mse_over_variance"],
            "n": len(encoded.split.val),
            "codes_used_in_any_slot": len(encoded.codes.unique()),
        }

    compute_once("prior", prior_results)


if __name__ == "__main__":
    main()
