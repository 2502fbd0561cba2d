"""What denormal numbers cost: the first steps of each training, and the sampler, with and without.

    python benchmarks/denormals.py --data PATH    # ten minutes, on a machine that does nothing else

A float32 below 1.2e-38 is denormal, and many processors compute with it in slow microcode. They
arise where layers start at zero: gradients and Adam's second moments are tiny at first.
`torch.set_flush_denormal(True)` replaces them by zero. Each row is measured twice from the same
seed, in processes of their own, since the setting belongs to each thread. Results go to
data/results/denormals.json.
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
from vqlib.data import batches
from vqlib.evaluation import save_results
from vqlib.loop import Precision, Schedule
from vqlib.training import Recipe
from vqlib.weights import PRETRAINED

ROWS = {
    "deep VQ-VAE": ("deep", {}),
    "deep VQ-VAE in float32": ("deep", {"ATEN_CPU_CAPABILITY": "avx2"}),  # no bf16 without AVX-512
    "report's layers": ("workbook", {}),
    "prior": ("prior", {}),
    "prior in float32": ("prior", {"ATEN_CPU_CAPABILITY": "avx2"}),
    "sampler, 16 grids": ("sampler", {}),
}


def first_steps(model: nn.Module, loss_of: Callable[[int], Tensor], steps: int, s: Schedule):
    """Seconds of the first `steps` steps after one that sets up memory."""
    precision, cpu = Precision.choose(torch.device("cpu")), torch.device("cpu")
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    for step in range(steps + 1):
        if step == 1:
            started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = s.lr_at(step, 7200)
        with precision.autocast(cpu):
            loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


def of_vqvae(recipe: Recipe, path: str | None, steps: int) -> float:
    data = open_dataset(path)
    pixels, train = data.pixels(256, recipe.fit), recipe.split(data).train
    torch.manual_seed(0)
    model = recipe.vqvae()
    if recipe.start_images:
        first = batches(pixels, train, recipe.start_images, recipe.augment)
        model.start_from(next(first)[0])
    images = [b for b, _ in batches(pixels, train[: 16 * (steps + 1)], 16, recipe.augment)]
    return first_steps(model, lambda i: model(images[i % len(images)]).loss, steps, recipe.schedule)


def of_prior(steps: int) -> float:
    encoded = EncodedDataset.load(PRETRAINED / "ham10000" / "codes.safetensors")
    torch.manual_seed(0)
    prior = WORKBOOK.prior(embedding_dim=64, orientations=8)
    prior.start_from(encoded.codebook)

    def loss_of(step: int) -> Tensor:
        codes = encoded.codes[16 * step : 16 * (step + 1)]
        return F.cross_entropy(prior(codes).float().flatten(0, 3), codes.flatten())

    return first_steps(prior, loss_of, steps, WORKBOOK.schedule)


def of_sampler(repeats: int = 20) -> float:
    _, prior = load_pretrained("ham10000")
    sample(prior, 16)
    started = time.perf_counter()
    for _ in range(repeats):
        sample(prior, 16)
    return (time.perf_counter() - started) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of images; default: as open_dataset()")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--flush", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        torch.set_flush_denormal(options.flush)
        match options.row:
            case "prior":
                seconds = of_prior(options.steps)
            case "sampler":
                seconds = of_sampler()
            case recipe:
                recipes = {"deep": DEEP, "workbook": WORKBOOK}
                seconds = of_vqvae(recipes[recipe], options.data, options.steps)
        print(json.dumps(seconds))
        return
    result = {"steps": options.steps, "threads": torch.get_num_threads(), "rows": {}}
    for name, (row, environment) in ROWS.items():
        command = [sys.executable, __file__, "--row", row, "--steps", str(options.steps)]
        command += ["--data", options.data] if options.data else []
        seconds = {}
        for key, flush in (("as_it_is", []), ("flushed", ["--flush"])):
            text = subprocess.check_output(
                command + flush, text=True, env=os.environ | environment, stderr=subprocess.DEVNULL
            )
            seconds[key] = json.loads(text)
        result["rows"][name] = seconds
        print(f"{name:24} {seconds['as_it_is']:8.2f} s, flushed {seconds['flushed']:8.2f} s")
    save_results("denormals", result)


if __name__ == "__main__":
    main()
