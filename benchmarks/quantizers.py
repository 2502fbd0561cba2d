"""Comparison of our quantizer with those of `vector-quantize-pytorch`, in the same network.

    pip install vector-quantize-pytorch
    python benchmarks/quantizers.py --data PATH        # six runs of a few minutes; again to resume

Encoder, decoder, images (128 px), steps, seed and optimizer are the same, without an EMA of the
weights, which would be a disadvantage for a codebook whose codes are restarted in almost every
step. All quantizers produce four 9-bit codes per position. Time and memory are those of the
quantizer alone, forward and backward. Times are measured interleaved in one process, for as many
vectors as 16 images of 256 px give; memory is measured in a separate process for each quantizer,
for 256 images. The results are written to data/results/quantizers.json.
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
from vqlib.evaluation.results import load_results, save_results
from vqlib.metrics import evaluate_vqvae
from vqlib.quantizer import QuantizerOutput, count_codes, perplexity
from vqlib.vqvae import VQVAE

SIZE, EPOCHS = 128, 3


class ExternalQuantizer(nn.Module):
    """A quantizer of vector-quantize-pytorch with the interface of `VectorQuantizer`."""

    num_embeddings = 512

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: Tensor) -> QuantizerOutput:
        with torch.autocast(z.device.type, enabled=False):
            outputs = self.quantizer(z.float().flatten(2).transpose(1, 2))
        quantized = outputs[0].transpose(1, 2).view_as(z)
        codes = outputs[1].unflatten(1, z.shape[2:]).long()
        loss = outputs[2].sum() if len(outputs) > 2 else z.new_zeros(())  # FSQ has no loss
        batch_perplexity = perplexity(count_codes(codes, 512)).log().mean().exp()
        return QuantizerOutput(quantized, codes, loss, batch_perplexity)


def vector_quantize(restart_below: float, rotation_trick: bool = False) -> ExternalQuantizer:
    """EMA quantizer of vector-quantize-pytorch.

    A code whose EMA cluster size falls below `restart_below` is replaced by a vector of the batch.
    The value 2 of the library's example assumes large batches: at 128 px a batch of 16 images has
    256 vectors per slot for 512 codes, so that nearly all codes would be replaced all the time.
    """
    from vector_quantize_pytorch import VectorQuantize

    return ExternalQuantizer(
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


def finite_scalar_quantization() -> ExternalQuantizer:
    from vector_quantize_pytorch import FSQ

    return ExternalQuantizer(FSQ(levels=[8, 8, 8], dim=256, num_codebooks=4))


QUANTIZERS: dict[str, Callable[[], nn.Module]] = {
    "vqlib": partial(
        VectorQuantizer,
        ema_decay=0.99,
        codebooks=4,
        data_init=True,
        restart_after=WORKBOOK.vqvae().quantizer.restart_after,
    ),
    "vector-quantize-pytorch, EMA, no restarts": partial(vector_quantize, 0.0),
    "vector-quantize-pytorch, EMA, restarts below 2": partial(vector_quantize, 2.0),
    "vector-quantize-pytorch, EMA, restarts below 0.1": partial(vector_quantize, 0.1),
    "vector-quantize-pytorch, rotation trick": partial(vector_quantize, 0.1, rotation_trick=True),
    "vector-quantize-pytorch, FSQ 8 x 8 x 8": finite_scalar_quantization,
}


def with_quantizer(make_quantizer: Callable[[], nn.Module]) -> VQVAE:
    vqvae = VQVAE()
    vqvae.quantizer = make_quantizer()
    return vqvae


def train(name: str, data: Any) -> dict[str, Any]:
    recipe = replace(
        WORKBOOK,
        name=name,
        vqvae=partial(with_quantizer, QUANTIZERS[name]),
        schedule=replace(WORKBOOK.schedule, ema_decay=None),
    )
    run = "peer-" + "".join(c if c.isalnum() else "-" for c in name)
    vqvae = train_vqvae(data, recipe, run=run, size=SIZE, epochs=EPOCHS)
    return evaluate_vqvae(vqvae, data.pixels(SIZE), data.split().val).summary()


def step(quantizer: nn.Module, z: Tensor) -> None:
    out = quantizer(z)
    (out.quantized.square().mean() + out.loss).backward()


def milliseconds_per_step(rounds: int = 15) -> dict[str, float]:
    """Median milliseconds of a step for each quantizer."""
    quantizers = {name: make().train() for name, make in QUANTIZERS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in QUANTIZERS}
    for round_number in range(rounds + 2):
        z = torch.randn(16, 256, 8, 8, requires_grad=True)
        for name, quantizer in quantizers.items():
            start = time.perf_counter()
            step(quantizer, z)
            if round_number >= 2:  # the first two are warm-up
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * median(measured) for name, measured in seconds.items()}


def peak_memory() -> float:
    """Peak memory of this process in megabytes since the last reset (Linux only)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def memory_of_step(name: str) -> float:
    """Additional memory of one step in megabytes; call it in a new process."""
    quantizer = QUANTIZERS[name]().train()
    small = torch.randn(2, 256, 8, 8, requires_grad=True)
    step(quantizer, small)  # loads libraries and allocates their memory
    z = torch.randn(256, 256, 8, 8, requires_grad=True)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_memory()
    step(quantizer, z)
    return peak_memory() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    parser.add_argument("--memory-of", choices=QUANTIZERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(memory_of_step(options.memory_of))
        return
    data = open_dataset(options.data)
    table = load_results("quantizers", {"rows": {}})
    table |= {"data": repr(data), "size": SIZE, "epochs": EPOCHS, "split": "val"}
    for name in QUANTIZERS:
        if name not in table["rows"]:
            table["rows"][name] = train(name, data)
            save_results("quantizers", table)
    measured = milliseconds_per_step()
    for name, row in table["rows"].items():
        command = [sys.executable, __file__, "--memory-of", name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row |= {"ms_per_step": measured[name], "mb_per_step_of_256": float(output.split()[-1])}
        print(
            f"{name:50}{row['psnr_db']:7.2f} dB{row['codes_used']:5} codes"
            f"{row['ms_per_step']:8.1f} ms{row['mb_per_step_of_256']:8.0f} MB"
        )
    save_results("quantizers", table)


if __name__ == "__main__":
    main()
