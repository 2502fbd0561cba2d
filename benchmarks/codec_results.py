"""The codec `ham10000-codec` against the strictest baselines, on validation lesions.

    python benchmarks/codec_results.py --data PATH --n 100     # call again to resume

All methods have at most 288 bytes for each image, header included. The n images are the first ones
in a fixed random order of the validation split, so a larger n continues a smaller one. The rows:

- the codec, with the codes of `codes_within_budget`, with and without its search, and files of
  `compress`;
- `ham10000` with packed codes, and WebP and AVIF from the table of `evaluate`;
- AVIF at its slowest setting, HEVC and JPEG XL (see `strict_baselines`; 25 seconds per image);
- with `--hyperprior` the hyperprior of `hyperprior.py`, which is trained first if necessary.

The results of each image are kept in a run, and written to data/results/codec.json.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator

import torch
from hyperprior import evaluate_within_budget, train_hyperprior
from torch import Tensor

from vqlib import compress, load_pretrained, open_dataset
from vqlib.checkpoints import fingerprint
from vqlib.data import ImageDataset, batches
from vqlib.evaluation.code_search import codes_within_budget, decoder_metric
from vqlib.evaluation.codecs import evaluate_strict_codecs, measure_once, strict_baselines
from vqlib.evaluation.results import load_results, save_results
from vqlib.metrics import (
    ImageMetrics,
    evaluate_vqvae,
    paired_bootstrap_interval,
    psnr,
    ssim,
    to_8_bit,
)

BUDGET, BATCH = 288, 20
NAME = "ham10000-codec"
STORED = ("WebP", "AVIF speed 6, headers not counted")  # in the table of `evaluate`


def measure_codec(data: ImageDataset, indices: Tensor, sweeps: int) -> ImageMetrics:
    """PSNR and SSIM of 8-bit pixels and the size of the file of each image."""
    vqvae, prior = load_pretrained(NAME)
    pixels = data.pixels(256)
    first, _ = next(batches(pixels, data.split().train, 16, shuffle=False))
    metric = decoder_metric(vqvae, vqvae.encode(first))

    def measure(batch: Tensor) -> Tensor:
        images, labels = next(batches(pixels, batch, BATCH, shuffle=False))[0], data.labels[batch]
        codes = codes_within_budget(
            vqvae, prior, images, labels, BUDGET, metric=metric, sweeps=sweeps
        )
        decoded = to_8_bit(vqvae.decode(codes))
        files = [compress(prior, *pair) for pair in zip(codes, labels.tolist(), strict=True)]
        sizes = torch.tensor([float(len(file)) for file in files])
        return torch.stack([psnr(decoded, images), ssim(decoded, images), sizes])

    weights = fingerprint(*vqvae.state_dict().values(), *prior.state_dict().values())
    config = {"kind": "codec results", "weights": weights, "budget": BUDGET, "sweeps": sweeps}
    return measure_in_batches(f"codec-results-{weights}-{sweeps}", config, indices, measure)


def measure_in_batches(
    name: str, config: dict, indices: Tensor, measure: Callable[[Tensor], Tensor]
) -> ImageMetrics:
    """PSNR, SSIM and bytes of images; those that the log of the run has are not measured again.

    Args:
        measure: int64 (B,), image numbers -> float (3, B).
    """

    def measure_tasks(missing: list[tuple]) -> Iterator[list[float]]:
        for batch in torch.tensor(missing).flatten().split(BATCH):
            yield from measure(batch).T.tolist()

    tasks = [(index,) for index in indices.tolist()]
    found = measure_once(name, config, tasks, measure_tasks)
    return ImageMetrics(*torch.tensor([found[task] for task in tasks]).unbind(1))


def measure_hyperprior(data: ImageDataset, indices: Tensor) -> ImageMetrics:
    model, pixels = train_hyperprior(data), data.pixels(256)
    weights = fingerprint(*model.state_dict().values())
    config = {"kind": "hyperprior results", "weights": weights, "budget": BUDGET}

    def measure(batch: Tensor) -> Tensor:
        metrics = evaluate_within_budget(model, pixels, batch)
        return torch.stack([metrics.psnr, metrics.ssim, metrics.bytes])

    return measure_in_batches(f"hyperprior-results-{weights}", config, indices, measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    parser.add_argument("--n", type=int, default=100, help="number of images, at most 601")
    parser.add_argument("--n-codecs", type=int, help="of them, images for the codecs; default: all")
    parser.add_argument("--sweeps", type=int, default=1, help="see codes_within_budget")
    parser.add_argument(
        "--codecs",
        nargs="*",
        default=list(strict_baselines(BUDGET)),
        help="image codecs to be measured; default: all of strict_baselines",
    )
    parser.add_argument("--hyperprior", action="store_true", help="also measure the hyperprior")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    data = open_dataset(options.data)
    val = data.split().val
    order = torch.randperm(len(val), generator=torch.Generator().manual_seed(0))
    indices = val[order[: options.n]]
    metrics = {NAME: measure_codec(data, indices, options.sweeps)}
    metrics[f"{NAME}, no search"] = measure_codec(data, indices, 0)
    metrics["ham10000"] = evaluate_vqvae(load_pretrained()[0], data.pixels(256), indices)
    if options.hyperprior:
        metrics["hyperprior"] = measure_hyperprior(data, indices)
    if options.codecs:
        first = indices[: options.n_codecs]
        found = evaluate_strict_codecs(data.pixels(256), first, BUDGET, options.codecs)
        missing = torch.full((len(indices) - len(first),), math.nan)
        for name, of in found.items():
            columns = (torch.cat([x, missing]) for x in (of.psnr, of.ssim, of.bytes))
            metrics[name] = ImageMetrics(*columns)
    ids = [data.image_ids[i] for i in indices.tolist()]
    stored = load_results("isic2018-val", {"psnr_db_of": {}})["psnr_db_of"]
    for name in filter(stored.__contains__, STORED):
        values = torch.tensor([stored[name].get(i, math.nan) for i in ids])
        metrics[name] = ImageMetrics(values, *torch.full((2, len(ids)), math.nan))
    rows = {}
    for name, found in metrics.items():
        summary = ImageMetrics.summary(found) | {"bytes": float(found.bytes.nanmean())}
        rows[name] = {key: value for key, value in summary.items() if value == value}
        both = ~found.psnr.isnan()
        if name != NAME and both.any():
            ours = metrics[NAME].psnr[both]
            rows[name]["codec_above_db"] = paired_bootstrap_interval(ours, found.psnr[both])
    result = {"data": repr(data), "split": "val", "n": len(indices), "budget_bytes": BUDGET}
    given = shlex.join(sys.argv[1:]).replace(options.data or "PATH", "PATH")
    result |= {"sweeps": options.sweeps, "options": given, "rows": rows}
    result["psnr_db_of"] = {
        name: {i: round(x, 3) for i, x in zip(ids, found.psnr.tolist(), strict=True) if x == x}
        for name, found in metrics.items()
    }
    save_results("codec", result)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
