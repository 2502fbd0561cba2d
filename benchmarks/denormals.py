"""What denormal numbers cost: the first steps of a training with and without flushing them to zero.

    python benchmarks/denormals.py --data PATH --steps 100    # on a machine that does nothing else

Layers that start at zero have gradients and Adam moments that begin near 1e-39, below float32's
normal range, where many processors fall back to slow microcode. `torch.set_flush_denormal(True)`
replaces such numbers by zero. Each training runs twice from the same seed, once with and once
without it, in a process of its own, because the setting belongs to each thread. Results go to
data/results/denormals.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

import vqlib
from vqlib import DEEP, WORKBOOK, load_pretrained, sample
from vqlib.data import batches, open_dataset
from vqlib.loop import Precision


def train_steps(model, loss_of, steps, schedule):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=schedule.lr)
    precision, device = Precision.choose(torch.device("cpu")), torch.device("cpu")
    model.train().to(memory_format=torch.channels_last)
    started = None
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step, 7200)
        with precision.autocast(device):
            loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step == 0:  # the first step sets up memory
            started = time.perf_counter()
    return time.perf_counter() - started


def vqvae_seconds(recipe, data, steps):
    torch.manual_seed(0)
    pixels, split = data.pixels(256), recipe.split(data)
    model = recipe.vqvae()
    few = split.train[: 16 * (steps + 1)]
    images = [b for b, _ in batches(pixels, few, 16, recipe.augment)][:steps]
    if recipe.start_images:
        first = batches(pixels, split.train, recipe.start_images, recipe.augment)
        model.start_from(next(first)[0])
    return train_steps(model, lambda i: model(images[i % len(images)]).loss, steps, recipe.schedule)


def prior_seconds(steps):
    torch.manual_seed(0)
    encoded = vqlib.EncodedDataset.load(vqlib.weights.PRETRAINED / "ham10000/codes.safetensors")
    prior = WORKBOOK.prior(512, 4, embedding_dim=64, orientations=8)
    prior.start_from(encoded.codebook)

    def loss_of(step):
        codes = encoded.codes[16 * step : 16 * (step + 1)]
        return F.cross_entropy(prior(codes).float().flatten(0, 3), codes.flatten())

    return train_steps(prior, loss_of, steps, WORKBOOK.schedule)


def sampler_seconds():
    _, prior = load_pretrained("ham10000")
    sample(prior, 16)
    started = time.perf_counter()
    for _ in range(10):
        sample(prior, 16)
    return (time.perf_counter() - started) / 10


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--one", nargs=2)
    o = parser.parse_args()
    ways = {
        "deep": lambda: vqvae_seconds(DEEP, open_dataset(o.data), o.steps),
        "workbook": lambda: vqvae_seconds(WORKBOOK, open_dataset(o.data), o.steps),
        "prior": lambda: prior_seconds(o.steps),
        "sampler": sampler_seconds,
    }
    if o.one:
        torch.set_flush_denormal(o.one[1] == "1")
        print(json.dumps(ways[o.one[0]]()))
        return
    for name in ways:
        row = {}
        for flush in "01":
            cmd = [sys.executable, __file__, "--steps", str(o.steps), "--one", name, flush]
            if o.data:
                cmd += ["--data", o.data]
            row[flush] = json.loads(subprocess.check_output(cmd, text=True))
            print(name, flush, row[flush], flush=True)


if __name__ == "__main__":
    main()
