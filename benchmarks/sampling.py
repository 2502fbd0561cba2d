"""How fast codes are drawn: the whole grid for every code, only the rows that count, or each once.

    python benchmarks/sampling.py        # five minutes, on a machine that does nothing else

All three draw from the prior that ships, with the same random numbers; in float64 they must draw
the same codes, which is checked first. The unit is one forward pass over the whole grid, timed in
turns with the cached sampler, so that the ratio says how many of the 256 passes are saved. It
depends on where a process happens to get its memory and its threads, by a third and more; so five
processes are asked, and the median counts. It also depends on the machine: one pass over many grids
gains more from a fast processor than many small steps do. So data/results/sampling.json keeps an
entry for each processor, with seconds beside ratios; a run replaces the entry of its own processor.
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
from vqlib.evaluation import load_results, save_results
from vqlib.sampling import draw


@torch.inference_mode()
def cropped(prior: PixelCNN, n: int, generator: torch.Generator) -> Tensor:
    """What most public notebooks do at best: rows below the present one are left out."""
    codes = torch.zeros(n, 8, 8, prior.slots, dtype=torch.long)
    for row, column, slot in torch.cartesian_prod(*map(torch.arange, codes.shape[1:])).tolist():
        logits = prior(codes[:, : row + 1])[:, row, column, slot]
        points = torch.rand(n, dtype=logits.dtype, generator=generator)
        codes[:, row, column, slot] = draw(logits.softmax(-1), points)
    return codes


PROCESSES = 5
WAYS: dict[str, Callable[..., Tensor]] = {
    "naive": partial(sample, method="naive"),
    "rows cropped": cropped,
    "cached": partial(sample, method="cached"),
}


def drawn(way: str, prior: PixelCNN, n: int) -> Tensor:
    return WAYS[way](prior, n, generator=torch.Generator().manual_seed(0))


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def same_codes(prior: PixelCNN) -> bool:
    exact = prior.double()
    grids = [drawn(way, exact, 2) for way in WAYS]
    prior.float()
    return all(torch.equal(grids[0], grid) for grid in grids)


def until_seen(vqvae: VQVAE, prior: PixelCNN, n: int = 4) -> float:
    """Seconds from a click to n new lesions as pixels."""

    def run() -> None:
        with torch.inference_mode():
            vqvae.decode(sample(prior, n))

    run()  # the first is slower
    return median(seconds(run) for _ in range(7))


def in_turns(n: int, rounds: int = 15) -> tuple[float, float]:
    """Seconds of one pass over n grids, and of drawing them with the cache."""
    _, prior = load_pretrained("ham10000")
    codes = torch.zeros(n, 8, 8, prior.slots, dtype=torch.long)
    a_pass, cached = partial(prior, codes), partial(drawn, "cached", prior, n)
    turns = []
    with torch.inference_mode():
        a_pass(), cached()  # the first are slower
        for _ in range(rounds):
            turns.append((*(seconds(a_pass) for _ in range(5)), seconds(cached)))
    return median(took for turn in turns for took in turn[:-1]), median(t[-1] for t in turns)


def processor() -> str:
    """The processor's name as Linux gives it, else as Python does ("x86_64" if it has no name)."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def with_machine(machines: list[dict[str, Any]], entry: dict[str, Any]) -> list[dict[str, Any]]:
    """`machines` and `entry`, which replaces an earlier entry of the same processor."""
    return [m for m in machines if m["processor"] != entry["processor"]] + [entry]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--in-turns", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_turns:
        print(json.dumps(in_turns(options.in_turns)))
        return
    vqvae, prior = load_pretrained("ham10000")
    result = {
        "processor": processor(),
        "torch": torch.__version__,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": PROCESSES,
        "same_codes_in_float64": same_codes(prior),
        "seconds_for_4_lesions": until_seen(vqvae, prior),
        "rows": [],
    }
    print(result)
    for n in options.batch_sizes:
        command = [sys.executable, __file__, "--in-turns", str(n)]
        told = [subprocess.check_output(command, text=True) for _ in range(PROCESSES)]
        pairs = [json.loads(text) for text in told]
        faster = sorted(256 * one_pass / took for one_pass, took in pairs)
        one_pass, cached = (median(column) for column in zip(*pairs, strict=True))
        row = {"n": n, "seconds_of_a_pass": one_pass}
        for way in WAYS:
            took = cached if way == "cached" else seconds(partial(drawn, way, prior, n))
            row[way] = {"seconds": took, "times_faster": 256 * one_pass / took}
        row["cached"] |= {"times_faster": median(faster), "of_each_process": faster}
        result["rows"].append(row)
        print(f"n {n:3}, {1000 * one_pass:6.1f} ms a pass", end="")
        for way in WAYS:
            print(f"   {way} {row[way]['seconds']:.3f} s, {row[way]['times_faster']:.1f}x", end="")
        print(f"   {[round(x) for x in faster]}", flush=True)
    machines = load_results("sampling", {"machines": []})["machines"]
    save_results("sampling", {"machines": with_machine(machines, result)})


if __name__ == "__main__":
    main()
