"""Cost of denormal numbers: the first steps of each training, and the sampler, with and without.

    python benchmarks/denormals.py --data PATH    # ten minutes, on an otherwise idle machine

A float32 below 1.2e-38 is denormal, and many processors handle it in slow microcode. Denormals
occur where layers are initialized with zeros: gradients and Adam's second moments are tiny at
first. `torch.set_flush_denormal(True)` replaces them by zero. Each row is measured twice with the
same seed, in separate processes, because the setting belongs to a thread. The results are written
to data/results/denormals.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlib import DEEP, WORKBOOK, EncodedDataset, load_pretrained, open_dataset, sample
from vqlib.checkpoints import PRETRAINED
from vqlib.data import batches
from vqlib.evaluation.results import save_results
from vqlib.training import Precision, Recipe, Schedule

ROWS = {
    "deep VQ-VAE": ("deep", {}),
    "deep VQ-VAE in float32": ("deep", {"ATEN_CPU_CAPABILITY": "avx2"}),  # no bf16 without AVX-512
    "report's layers": ("workbook", {}),
    "prior": ("prior", {}),
    "prior in float32": ("prior", {"ATEN_CPU_CAPABILITY": "avx2"}),
    "sampler, 16 grids": ("sampler", {}),
}


def first_steps(
    model: nn.Module, compute_loss: Callable[[int], Tensor], steps: int, schedule: Schedule
) -> float:
    """Seconds for `steps` training steps, after one step that allocates memory. They are shorter
    than those of `fit`, because the gradient is not clipped and the weights are not averaged."""
    precision, cpu = Precision.choose(torch.device("cpu")), torch.device("cpu")
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    for step in range(steps + 1):
        if step == 1:
            started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step, 7200)
        with precision.autocast(cpu):
            loss = compute_loss(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


def vqvae_seconds(recipe: Recipe, path: str | None, steps: int) -> float:
    data = open_dataset(path)
    pixels, train = data.pixels(256, recipe.resize_mode), recipe.split(data).train
    torch.manual_seed(0)
    model = recipe.vqvae()
    if recipe.init_images:
        first = batches(pixels, train, recipe.init_images, recipe.augment)
        model.initialize_from_data(next(first)[0])
    images = [b for b, _ in batches(pixels, train[: 16 * (steps + 1)], 16, recipe.augment)]
    return first_steps(model, lambda i: model(images[i % len(images)]).loss, steps, recipe.schedule)


def prior_seconds(steps: int) -> float:
    encoded = EncodedDataset.load(PRETRAINED / "ham10000" / "codes.safetensors")
    torch.manual_seed(0)
    prior = WORKBOOK.prior(embedding_dim=64, orientations=8)
    prior.initialize_embeddings(encoded.codebook)

    def compute_loss(step: int) -> Tensor:
        codes = encoded.codes[16 * step : 16 * (step + 1)]
        return F.cross_entropy(prior(codes).float().flatten(0, 3), codes.flatten())

    return first_steps(prior, compute_loss, steps, WORKBOOK.schedule)


def sampler_seconds(repeats: int = 20) -> float:
    _, prior = load_pretrained("ham10000")
    sample(prior, 16)
    started = time.perf_counter()
    for _ in range(repeats):
        sample(prior, 16)
    return (time.perf_counter() - started) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    parser.add_argument("--steps", type=int, default=100, help="training steps to measure")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--flush", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        torch.set_flush_denormal(options.flush)
        match options.row:
            case "prior":
                seconds = prior_seconds(options.steps)
            case "sampler":
                seconds = sampler_seconds()
            case recipe:
                recipes = {"deep": DEEP, "workbook": WORKBOOK}
                seconds = vqvae_seconds(recipes[recipe], options.data, options.steps)
        print(json.dumps(seconds))
        return
    result = {"steps": options.steps, "threads": torch.get_num_threads(), "rows": {}}
    for name, (row, environment) in ROWS.items():
        command = [sys.executable, __file__, "--row", row, "--steps", str(options.steps)]
        command += ["--data", options.data] if options.data else []
        seconds = {}
        for key, flush in (("default", []), ("flushed", ["--flush"])):
            output = subprocess.check_output(
                command + flush, text=True, env=os.environ | environment, stderr=subprocess.DEVNULL
            )
            seconds[key] = json.loads(output)
        result["rows"][name] = seconds
        print(f"{name:24} default {seconds['default']:8.2f} s, flushed {seconds['flushed']:8.2f} s")
    save_results("denormals", result)


if __name__ == "__main__":
    main()
