"""Ablation of the VQ-VAE with the report's layers: one change of quantizer or training at a time.

    python benchmarks/ablation.py --data PATH      # 24 runs of a few minutes; call again to resume

All runs use the report's layers, the same images (128 px) and the same number of steps. Each
differs from the first one, the base, in what its name says. The base is the workbook's recipe
before this experiment; the two changes that improve it are part of the recipe now. Held-out PSNR,
SSIM, number of used codes and perplexity are written to data/results/ablation.json, which notebook
03 shows. All runs use seed 0, and four are repeated with seed 1: we do not interpret differences
that are smaller than those between the two seeds.
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
from vqlib.evaluation.results import load_results, save_results
from vqlib.metrics import evaluate_vqvae
from vqlib.quantizer import QuantizerOutput
from vqlib.training import Schedule
from vqlib.vqvae import VQVAE, VQVAEOutput

SIZE, EPOCHS = 128, 3


class RotationTrickQuantizer(VectorQuantizer):
    """Rotation trick instead of the straight-through estimator: in the backward pass the gradient
    is rotated and scaled by the transformation that maps the latent vector to its codebook vector
    (Fifty et al., "Restructuring Vector Quantization with the Rotation Trick", 2024,
    arXiv:2410.06424, section 4)."""

    def straight_through(self, z: Tensor, quantized: Tensor) -> Tensor:
        shape = (len(z), -1, self.embedding_dim, *z.shape[2:])
        z, quantized = z.reshape(shape), quantized.reshape(shape)
        z_direction, q_direction = (
            v / v.norm(dim=2, keepdim=True).clamp_min(1e-6) for v in (z.detach(), quantized)
        )
        bisector = torch.nn.functional.normalize(z_direction + q_direction, dim=2)
        scale = quantized.norm(dim=2, keepdim=True) / z.detach().norm(
            dim=2, keepdim=True
        ).clamp_min(1e-6)
        rotated = (
            z
            - 2 * bisector * (bisector * z).sum(2, keepdim=True)
            + 2 * q_direction * (z_direction * z).sum(2, keepdim=True)
        )
        return (scale * rotated).flatten(1, 2)


class NormalizedLatents(VectorQuantizer):
    """Latent vectors normalized to length 1, so that only their direction is quantized (Yu et al.,
    "Vector-quantized Image Modeling with Improved VQGAN", 2021, arXiv:2110.04627, section 3.2).
    Unlike in that paper, the codebook vectors are not normalized."""

    def _normalize(self, z: Tensor) -> Tensor:
        vectors = z.float().unflatten(1, (-1, self.embedding_dim))
        return torch.nn.functional.normalize(vectors, dim=2).flatten(1, 2)

    def forward(self, z: Tensor) -> QuantizerOutput:
        return super().forward(self._normalize(z))

    def encode(self, z: Tensor) -> Tensor:
        return super().encode(self._normalize(z))


class IdentityQuantizer(VectorQuantizer):
    """No quantization: estimates the upper bound of the PSNR of this network with any codebook."""

    def forward(self, z: Tensor) -> QuantizerOutput:
        codes = torch.zeros(len(z), *z.shape[2:], z.shape[1] // self.embedding_dim).long()
        return QuantizerOutput(z.float(), codes.to(z.device), z.new_zeros(()), z.new_ones(()))


class CustomLossVQVAE(VQVAE):
    """A VQVAE whose reconstruction loss is `reconstruction_error`, not MSE / data_variance."""

    reconstruction_error: Callable[[Tensor, Tensor], Tensor]

    def forward(self, images: Tensor) -> VQVAEOutput:
        out = super().forward(images)
        return out._replace(loss=self.reconstruction_error(out.raw, images) + out.vq_loss)


def log_mse(raw: Tensor, images: Tensor) -> Tensor:
    """Mean over the images of log MSE: the negative mean PSNR up to a factor and a constant."""
    return ((raw - images).square().mean((1, 2, 3)) + 1e-5).log().mean()


def absolute_error(raw: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error, divided by the standard deviation of the pixels."""
    return (raw - images).abs().mean() / 0.025**0.5


def build_variant(
    quantizer: type[VectorQuantizer] | None = None,
    reconstruction_error: Callable[[Tensor, Tensor], Tensor] | None = None,
    **options: Any,
) -> VQVAE:
    """The base model with one or more changes."""
    options = {"restart_after": 100} | options
    vqvae = VQVAE(**options) if reconstruction_error is None else CustomLossVQVAE(**options)
    if reconstruction_error is not None:
        vqvae.reconstruction_error = reconstruction_error
    if quantizer is not None:
        vqvae.quantizer.__class__ = quantizer  # same parameters and buffers, another forward()
    return vqvae


CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "no initialization from data": {"data_init": False},
    "no restarts": {"restart_after": None},
    "restarts after 20 batches": {"restart_after": 20},
    "neither initialization nor restarts": {"data_init": False, "restart_after": None},
    "EMA 0.9": {"ema_decay": 0.9},
    "EMA 0.999": {"ema_decay": 0.999},
    "codebook trained by gradient": {"ema_decay": None},
    "ReLU before the quantizer": {"final_relu": True},
    "one codebook for all slots": {"codebooks": 1},
    "commitment 1": {"commitment_cost": 1.0},
    "latents normalized to length 1": {"quantizer": NormalizedLatents},
    "rotation trick": {"quantizer": RotationTrickQuantizer},
    "MSE not divided by its variance": {"data_variance": 1.0},
    "log MSE of each image": {"reconstruction_error": log_mse},
    "absolute error": {"reconstruction_error": absolute_error},
    "constant learning rate 1e-3": {"schedule": Schedule(lr=1e-3)},
    "no quantizer": {"quantizer": IdentityQuantizer},
    "EMA of the weights 0.999": {"schedule": WORKBOOK.schedule},
    "workbook: restarts, EMA of the weights": {
        "restart_after": 20,
        "schedule": WORKBOOK.schedule,
    },
}
TWO_SEEDS = (
    "base",
    "restarts after 20 batches",
    "log MSE of each image",
    "workbook: restarts, EMA of the weights",
)


def run(name: str, seed: int, data: Any) -> dict[str, Any]:
    options = dict(CHANGES[name])
    schedule = options.pop("schedule", replace(WORKBOOK.schedule, ema_decay=None))
    recipe = replace(
        WORKBOOK, name=name, vqvae=partial(build_variant, **options), schedule=schedule
    )
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
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    parser.add_argument(
        "--only", nargs="*", default=list(CHANGES), help="names of the changes to run"
    )
    options = parser.parse_args()
    data = open_dataset(options.data)
    table = load_results("ablation", {"rows": []})
    table |= {"data": repr(data), "size": SIZE, "split": "val"}
    done = {(row["change"], row["seed"]) for row in table["rows"]}
    wanted = [(name, 0) for name in options.only] + [(n, 1) for n in TWO_SEEDS if n in options.only]
    for name, seed in wanted:
        if (name, seed) in done:
            continue
        row = run(name, seed, data)
        table["rows"].append(row)
        save_results("ablation", table)
        print(f"{name:42} seed {seed}  {row['psnr_db']:.2f} dB  SSIM {row['ssim']:.3f}")


if __name__ == "__main__":
    main()
