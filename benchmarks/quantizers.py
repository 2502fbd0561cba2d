"""Our quantizer beside those of `vector-quantize-pytorch`, in the same network on the same data.

    pip install vector-quantize-pytorch
    python benchmarks/quantizers.py --data PATH        # six trainings of minutes; again to resume

Same encoder, decoder, images (128 px), steps, seed and optimizer, and no average of the weights
(it would harm a codebook whose rows are restarted often, so it would not be fair to all); all have
four codes of 9 bits at each position. Time and memory are those of the quantizer alone, forwards
and backwards. The times are taken in turns in one process, on as many vectors as a batch of 16
images of 256 px has; the memory of each in a process of its own, for 256 images. Results go to
data/results/quantizers.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from vqlib import WORKBOOK, VectorQuantizer, open_dataset, train_vqvae
from vqlib.evaluation import load_results, save_results
from vqlib.metrics import evaluate_vqvae
from vqlib.quantizer import Quantized, count_codes, perplexity
from vqlib.vqvae import VQVAE

SIZE, EPOCHS = 128, 3


class Peer(nn.Module):
    """A quantizer of the other library, with the face of ours."""

    num_embeddings = 512

    def __init__(self, peer: nn.Module) -> None:
        super().__init__()
        self.peer = peer

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            found = self.peer(z.float().flatten(2).transpose(1, 2))
        vectors, codes = found[0].transpose(1, 2).view_as(z), found[1].unflatten(1, z.shape[2:])
        loss = found[2].sum() if len(found) > 2 else z.new_zeros(())  # FSQ has none
        spread = perplexity(count_codes(codes.long(), 512)).log().mean().exp()
        return Quantized(vectors, codes.long(), loss, spread)


def peer(restart_below: float, rotation_trick: bool = False) -> Peer:
    """A row whose running count falls below `restart_below` is put on a vector of the batch. 2, as
    in the library's own example, asks for large batches: at 128 px a batch of 16 has 256 vectors
    for 512 rows, so that nearly all would be restarted all the time."""
    from vector_quantize_pytorch import VectorQuantize

    return Peer(
        VectorQuantize(
            dim=256,
            codebook_dim=64,
            heads=4,
            separate_codebook_per_head=True,
            codebook_size=512,
            decay=0.99,
            commitment_weight=0.25,
            kmeans_init=True,
            threshold_ema_dead_code=restart_below,
            rotation_trick=rotation_trick,
        )
    )


def fsq() -> Peer:
    from vector_quantize_pytorch import FSQ

    return Peer(FSQ(levels=[8, 8, 8], dim=256, num_codebooks=4))


QUANTIZERS: dict[str, Callable[[], nn.Module]] = {
    "ours": partial(
        VectorQuantizer,
        ema_decay=0.99,
        codebooks=4,
        data_init=True,
        restart_after=WORKBOOK.vqvae().quantizer.restart_after,
    ),
    "theirs, EMA, no restarts": partial(peer, 0.0),
    "theirs, EMA, restarts below 2": partial(peer, 2.0),
    "theirs, EMA, restarts below 0.1": partial(peer, 0.1),
    "theirs, rotation trick": partial(peer, 0.1, rotation_trick=True),
    "theirs, FSQ 8 x 8 x 8": fsq,
}


def with_quantizer(make: Callable[[], nn.Module]) -> VQVAE:
    vqvae = VQVAE()
    vqvae.quantizer = make()
    return vqvae


def train(name: str, data: Any) -> dict[str, Any]:
    recipe = replace(
        WORKBOOK,
        name=name,
        vqvae=partial(with_quantizer, QUANTIZERS[name]),
        schedule=replace(WORKBOOK.schedule, average=None),
    )
    run = "peer-" + "".join(c if c.isalnum() else "-" for c in name)
    vqvae = train_vqvae(data, recipe, run=run, size=SIZE, epochs=EPOCHS)
    return evaluate_vqvae(vqvae, data.pixels(SIZE), data.split().val).summary()


def step(quantizer: nn.Module, z: Tensor) -> None:
    out = quantizer(z)
    (out.vectors.square().mean() + out.loss).backward()


def times(rounds: int = 15) -> dict[str, float]:
    """Median milliseconds of a step for each quantizer."""
    quantizers = {name: make().train() for name, make in QUANTIZERS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in QUANTIZERS}
    for number in range(rounds + 2):
        z = torch.randn(16, 256, 8, 8, requires_grad=True)
        for name, quantizer in quantizers.items():
            start = time.perf_counter()
            step(quantizer, z)
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * median(found) for name, found in seconds.items()}


def peak() -> float:
    """Megabytes, the most that this process has taken since the last reset (Linux only)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def memory(name: str) -> float:
    """Megabytes that a step needs beyond what stood before it; run in a fresh process."""
    quantizer = QUANTIZERS[name]().train()
    small = torch.randn(2, 256, 8, 8, requires_grad=True)
    step(quantizer, small)  # what is loaded once
    z = torch.randn(256, 256, 8, 8, requires_grad=True)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak()
    step(quantizer, z)
    return peak() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of images; default: as open_dataset()")
    parser.add_argument("--memory-of", choices=QUANTIZERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(memory(options.memory_of))
        return
    data = open_dataset(options.data)
    table = load_results("quantizers", {"rows": {}})
    table |= {"data": repr(data), "size": SIZE, "epochs": EPOCHS, "split": "val"}
    for name in QUANTIZERS:
        if name not in table["rows"]:
            table["rows"][name] = train(name, data)
            save_results("quantizers", table)
    measured = times()
    for name, row in table["rows"].items():
        command = [sys.executable, __file__, "--memory-of", name]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row |= {"ms_per_step": measured[name], "mb_per_step_of_256": float(told.split()[-1])}
        print(
            f"{name:42}{row['psnr_db']:7.2f} dB{row['codes_used']:5} codes"
            f"{row['ms_per_step']:8.1f} ms{row['mb_per_step_of_256']:8.0f} MB"
        )
    save_results("quantizers", table)


if __name__ == "__main__":
    main()
