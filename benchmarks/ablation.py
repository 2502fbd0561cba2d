"""What each part of the quantizer and of its training is worth: one change at a time.

    python benchmarks/ablation.py --data PATH      # 24 runs of some minutes; again to resume

All runs share the report's layers, the images (128 px) and the steps, and differ from the first,
the base, by what their name says. The base is the workbook's recipe as it was before this table;
the two changes that help have moved into the recipe since. Held-out PSNR, SSIM, used codes and
perplexity go to data/results/ablation.json, which notebook 03 shows. All have seed 0, and four run
again with seed 1: a difference smaller than between seeds is no difference.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqlib import WORKBOOK, VectorQuantizer, open_dataset, train_vqvae
from vqlib.evaluation import load_results, save_results
from vqlib.loop import Schedule
from vqlib.metrics import evaluate_vqvae
from vqlib.quantizer import Quantized
from vqlib.vqvae import VQVAE, VQVAEOutput

SIZE, EPOCHS = 128, 3


class RotationTrick(VectorQuantizer):
    """The gradient is turned and scaled as the latent was on its way to its code, instead of being
    copied (Fifty et al., "Restructuring Vector Quantization with the Rotation Trick", 2024,
    arXiv:2410.06424, section 4)."""

    def straight_through(self, z: Tensor, quantized: Tensor) -> Tensor:
        cut = (len(z), -1, self.embedding_dim, *z.shape[2:])
        z, quantized = z.reshape(cut), quantized.reshape(cut)
        from_, to = (
            v / v.norm(dim=2, keepdim=True).clamp_min(1e-6) for v in (z.detach(), quantized)
        )
        middle = torch.nn.functional.normalize(from_ + to, dim=2)
        scale = quantized.norm(dim=2, keepdim=True) / z.detach().norm(
            dim=2, keepdim=True
        ).clamp_min(1e-6)
        turned = (
            z
            - 2 * middle * (middle * z).sum(2, keepdim=True)
            + 2 * to * (from_ * z).sum(2, keepdim=True)
        )
        return (scale * turned).flatten(1, 2)


class UnitLatents(VectorQuantizer):
    """Latents of length 1, so that only their direction is coded (Yu et al., "Vector-quantized
    Image Modeling with Improved VQGAN", 2021, arXiv:2110.04627, section 3.2)."""

    def _unit(self, z: Tensor) -> Tensor:
        vectors = z.float().unflatten(1, (-1, self.embedding_dim))
        return torch.nn.functional.normalize(vectors, dim=2).flatten(1, 2)

    def forward(self, z: Tensor) -> Quantized:
        return super().forward(self._unit(z))

    def encode(self, z: Tensor) -> Tensor:
        return super().encode(self._unit(z))


class NoQuantizer(VectorQuantizer):
    """Latents as they are: the bound that no codebook of this network can pass."""

    def forward(self, z: Tensor) -> Quantized:
        codes = torch.zeros(len(z), *z.shape[2:], z.shape[1] // self.embedding_dim).long()
        return Quantized(z.float(), codes.to(z.device), z.new_zeros(()), z.new_ones(()))


class OwnLoss(VQVAE):
    """A VQVAE whose reconstruction is judged by `error` instead of MSE / data_variance."""

    error: Callable[[Tensor, Tensor], Tensor]

    def forward(self, images: Tensor) -> VQVAEOutput:
        out = super().forward(images)
        return out._replace(loss=self.error(out.raw, images) + out.vq_loss)


def log_mse(raw: Tensor, images: Tensor) -> Tensor:
    """Mean over the images of log MSE: PSNR in other units, so every image counts alike."""
    return ((raw - images).square().mean((1, 2, 3)) + 1e-5).log().mean()


def absolute(raw: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error, over the standard deviation of the pixels."""
    return (raw - images).abs().mean() / 0.025**0.5


def build(
    quantizer: type[VectorQuantizer] | None = None,
    error: Callable[[Tensor, Tensor], Tensor] | None = None,
    **options: Any,
) -> VQVAE:
    """The base with one or more things changed."""
    options = {"restart_after": 100} | options
    vqvae = VQVAE(**options) if error is None else OwnLoss(**options)
    if error is not None:
        vqvae.error = error
    if quantizer is not None:
        vqvae.quantizer.__class__ = quantizer  # same state, another rule
    return vqvae


CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "no start from data": {"data_init": False},
    "no restarts": {"restart_after": None},
    "restarts after 20 batches": {"restart_after": 20},
    "neither": {"data_init": False, "restart_after": None},
    "EMA 0.9": {"ema_decay": 0.9},
    "EMA 0.999": {"ema_decay": 0.999},
    "gradient codebook": {"ema_decay": None},
    "ReLU before the quantizer": {"final_relu": True},
    "one codebook for all slots": {"codebooks": 1},
    "commitment 1": {"commitment_cost": 1.0},
    "latents of length 1": {"quantizer": UnitLatents},
    "rotation trick": {"quantizer": RotationTrick},
    "MSE not divided by its variance": {"data_variance": 1.0},
    "log MSE of each image": {"error": log_mse},
    "absolute error": {"error": absolute},
    "constant learning rate 1e-3": {"schedule": Schedule(lr=1e-3)},
    "no quantizer": {"quantizer": NoQuantizer},
    "weight average 0.999": {"schedule": WORKBOOK.schedule},
    "workbook: both": {"restart_after": 20, "schedule": WORKBOOK.schedule},
}
TWICE = ("base", "restarts after 20 batches", "log MSE of each image", "workbook: both")


def run(name: str, seed: int, data: Any) -> dict[str, Any]:
    options = dict(CHANGES[name])
    schedule = options.pop("schedule", replace(WORKBOOK.schedule, average=None))
    recipe = replace(WORKBOOK, name=name, vqvae=partial(build, **options), schedule=schedule)
    folder = f"ablation-{name.replace(':', '').replace(' ', '-')}-{seed}"
    vqvae = train_vqvae(data, recipe, run=folder, size=SIZE, epochs=EPOCHS, seed=seed)
    split = data.split()
    result = evaluate_vqvae(vqvae, data.pixels(SIZE), split.val)
    summary = {k: round(v, 4) for k, v in result.summary().items()}
    if name == "no quantizer":
        summary |= {"codes_used": None, "perplexity": None}
    mse = 10 ** (-result.psnr.double() / 10)
    psnr_of_mean = float(-10 * mse.mean().log10())
    steps = EPOCHS * -(-len(split.train) // WORKBOOK.batch_size)
    return {"change": name, "seed": seed, "steps": steps, **summary, "psnr_of_mean": psnr_of_mean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of images; default: as open_dataset()")
    parser.add_argument("--only", nargs="*", default=list(CHANGES), help="names of changes")
    options = parser.parse_args()
    data = open_dataset(options.data)
    table = load_results("ablation", {"rows": []})
    table |= {"data": repr(data), "size": SIZE, "split": "val"}
    done = {(row["change"], row["seed"]) for row in table["rows"]}
    wanted = [(name, 0) for name in options.only] + [(n, 1) for n in TWICE if n in options.only]
    for name, seed in wanted:
        if (name, seed) in done:
            continue
        row = run(name, seed, data)
        table["rows"].append(row)
        save_results("ablation", table)
        print(f"{name:34} seed {seed}  {row['psnr_db']:.2f} dB  SSIM {row['ssim']:.3f}")


if __name__ == "__main__":
    main()
