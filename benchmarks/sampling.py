"""Speed of sampling: naive, naive without the rows below the current one, and cached.

    python benchmarks/sampling.py        # five minutes, on an otherwise idle machine

All three methods sample from the pretrained prior with the same random numbers. In float64 they
must give the same codes, which is checked first. The unit of time is one forward pass over the
whole grid, measured interleaved with the cached sampler; the speedup is the time of 256 such passes
divided by the time of the sampler. It varies by a third and more between processes, with the
placement of memory and threads, so the median over five processes is reported. It also depends on
the machine: a forward pass over many grids benefits more from a fast processor than many small
steps do. Therefore data/results/sampling.json has one entry for each processor, with times in
seconds as well as speedups; a run replaces the entry of its own processor.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vqlib import VQVAE, PixelCNN, load_pretrained, sample
from vqlib.evaluation.results import load_results, save_results
from vqlib.sampling import sample_categorical


@torch.inference_mode()
def crop_rows(prior: PixelCNN, n: int, generator: torch.Generator) -> Tensor:
    """Naive sampling that leaves out the rows below the current one."""
    codes = torch.zeros(n, 8, 8, prior.slots, dtype=torch.long)
    for row, column, slot in torch.cartesian_prod(*map(torch.arange, codes.shape[1:])).tolist():
        logits = prior(codes[:, : row + 1])[:, row, column, slot]
        uniforms = torch.rand(n, dtype=logits.dtype, generator=generator)
        codes[:, row, column, slot] = sample_categorical(logits.softmax(-1), uniforms)
    return codes


PROCESSES = 5
METHODS: dict[str, Callable[..., Tensor]] = {
    "naive": partial(sample, method="naive"),
    "rows cropped": crop_rows,
    "cached": partial(sample, method="cached"),
}


def run_sampler(method: str, prior: PixelCNN, n: int) -> Tensor:
    return METHODS[method](prior, n, generator=torch.Generator().manual_seed(0))


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def same_codes(prior: PixelCNN) -> bool:
    prior64 = prior.double()
    grids = [run_sampler(method, prior64, 2) for method in METHODS]
    prior.float()
    return all(torch.equal(grids[0], grid) for grid in grids)


def seconds_to_first_images(vqvae: VQVAE, prior: PixelCNN, n: int = 4) -> float:
    """Seconds to sample and decode n images."""

    def run() -> None:
        with torch.inference_mode():
            vqvae.decode(sample(prior, n))

    run()  # warm-up
    return median(seconds(run) for _ in range(7))


def interleaved_timings(n: int, rounds: int = 15) -> tuple[float, float]:
    """Seconds for one forward pass over n grids, and for sampling them with the cache."""
    _, prior = load_pretrained("ham10000")
    codes = torch.zeros(n, 8, 8, prior.slots, dtype=torch.long)
    forward_pass, cached = partial(prior, codes), partial(run_sampler, "cached", prior, n)
    pass_seconds, cached_seconds = [], []
    with torch.inference_mode():
        forward_pass(), cached()  # warm-up
        for _ in range(rounds):
            pass_seconds += [seconds(forward_pass) for _ in range(5)]
            cached_seconds.append(seconds(cached))
    return median(pass_seconds), median(cached_seconds)


def processor() -> str:
    """Name of the processor as reported by Linux, else by Python ("x86_64" if it has no name)."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def with_machine(machines: list[dict[str, Any]], entry: dict[str, Any]) -> list[dict[str, Any]]:
    """`machines` with `entry` added; an earlier entry of the same processor is replaced."""
    return [m for m in machines if m["processor"] != entry["processor"]] + [entry]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 16, 64], help="numbers of grids"
    )
    parser.add_argument("--interleaved", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.interleaved:
        print(json.dumps(interleaved_timings(options.interleaved)))
        return
    vqvae, prior = load_pretrained("ham10000")
    result = {
        "processor": processor(),
        "torch": torch.__version__,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": PROCESSES,
        "same_codes_in_float64": same_codes(prior),
        "seconds_for_4_lesions": seconds_to_first_images(vqvae, prior),
        "rows": [],
    }
    print(result)
    for n in options.batch_sizes:
        command = [sys.executable, __file__, "--interleaved", str(n)]
        outputs = [subprocess.check_output(command, text=True) for _ in range(PROCESSES)]
        pairs = [json.loads(output) for output in outputs]
        speedups = sorted(256 * one_pass / cached for one_pass, cached in pairs)
        one_pass, cached = (median(column) for column in zip(*pairs, strict=True))
        row = {"n": n, "seconds_per_forward_pass": one_pass}
        for name in METHODS:
            taken = cached if name == "cached" else seconds(partial(run_sampler, name, prior, n))
            row[name] = {"seconds": taken, "speedup": 256 * one_pass / taken}
        row["cached"] |= {"speedup": median(speedups), "speedup_of_each_process": speedups}
        result["rows"].append(row)
        print(f"n {n:3}, {1000 * one_pass:6.1f} ms per forward pass", end="")
        for name in METHODS:
            timing = row[name]
            print(f"   {name} {timing['seconds']:.3f} s, {timing['speedup']:.1f}x", end="")
        print(f"   {[round(x) for x in speedups]}", flush=True)
    machines = load_results("sampling", {"machines": []})["machines"]
    save_results("sampling", {"machines": with_machine(machines, result)})


if __name__ == "__main__":
    main()
