"""Chapter 11: the results table. Every method on the same held-out images, for the same bytes.

`python -m vqlib evaluate` prints it; README and the notebooks quote what it has written as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .cache import REPOSITORY
from .classifier import Inception, LesionClassifier
from .codecs import (
    CODECS,
    CodedImage,
    best_file,
    cheapest_file,
    evaluate_codec,
    mean_colour,
    raw_thumbnail,
)
from .codes import SPLITS, EncodedDataset, encode_dataset
from .compression import compress
from .data import LesionDataset, Pixels
from .judging import as_text as judgement_as_text
from .judging import judge
from .metrics import Quality, Reconstruction, code_bits, evaluate_vqvae, paired_interval, table_bits
from .pixelcnn import PixelCNN
from .vqvae import VQVAE

RESULTS = REPOSITORY / "data" / "results"
RIVAL = "WebP"  # the one codec here whose whole file fits for every image of both held-out splits
AVIF = f"AVIF speed {CODECS['AVIF']['speed']}"  # slower settings compress better; not measured
FILES = 100  # images for which files of equal quality are searched


def rivals(budget: int) -> dict[str, Callable[[Image.Image], CodedImage | None]]:
    """Baselines of the results table, name -> codec; each gets `budget` bytes an image.

    The codecs are searched as `best_file` says, with the options in `CODECS`. None of them is the
    strongest baseline there could be.
    """
    codecs = {"JPEG": "JPEG", RIVAL: RIVAL, AVIF: "AVIF"}
    return {
        "mean colour": mean_colour,
        "raw thumbnail": partial(raw_thumbnail, budget=budget),
        **{name: partial(best_file, codec=codecs[name], budget=budget) for name in codecs},
        **{
            f"{name}, headers free": partial(
                best_file, codec=codecs[name], budget=budget, headers=False
            )
            for name in ("JPEG", AVIF)
        },
    }


def evaluate(
    data: LesionDataset,
    models: Mapping[str, VQVAE],
    prior: PixelCNN | None = None,
    classifier: LesionClassifier | Inception | None = None,
    *,
    size: int = 256,
    split: str = "val",
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure all rivals, all models, and how far the prior shortens the first model's codes.

    Args:
        data: any data set; its own split by lesion is used.
        models: name -> VQVAE. The first one's rate is the budget of the rivals.
        prior: learnt on codes of the *first* model.
        classifier: judges what the prior draws.
        split: "train", "val" or "test".
        progress: told a line for each row.

    Returns:
        What can be written as JSON: "rows", name -> results, of which only "n", how many images
        fit the budget, if that is not all of them; with a prior "bits_per_code", and "files", bytes
        at equal quality; with a classifier "samples", see `judge`; "psnr_db_of", name -> image id
        -> dB (None where a codec's file does not fit).
    """
    pixels, parts = data.pixels(size), data.split()
    indices = parts[SPLITS.index(split)]
    first = next(iter(models.values()))
    measured: dict[str, Quality] = {}
    for name, model in models.items():
        measured[name] = evaluate_vqvae(model, pixels, indices)
        progress(name)
    own = next(iter(models))
    budget = round(float(measured[own].bytes[0]))
    coded = {}
    for name, code in rivals(budget).items():
        coded[name] = evaluate_codec(code, pixels, indices)
        progress(name)
    measured = coded | measured
    result: dict[str, Any] = {
        "data": repr(data),
        "split": split,
        "n": len(indices),
        "size": size,
        "budget_bytes": budget,
        "rows": {name: _row(found, measured[RIVAL]) for name, found in measured.items()},
    }
    if prior is not None:
        encoded = encode_dataset(first, data, size, split=parts)
        result["bits_per_code"] = _bits(prior, encoded.codes, encoded.labels, parts.train, indices)
        progress("prior")
        some = torch.linspace(0, len(indices) - 1, min(FILES, len(indices))).long()
        result["files"] = _files(prior, encoded, pixels, indices[some], measured[own].psnr[some])
        progress("files")
        if classifier is not None:
            result["samples"] = judge(
                data, encoded, first, prior, classifier, size=size, split=split, progress=progress
            )
    ids = [data.image_ids[i] for i in indices.tolist()]
    result["psnr_db_of"] = {
        name: {i: None if x != x else round(x, 3) for i, x in zip(ids, found.psnr.tolist())}
        for name, found in measured.items()
    }
    return result


def _row(found: Quality, rival: Quality) -> dict[str, Any]:
    row: dict[str, Any] = found.summary()
    if row["n"] < len(found.psnr):
        return {"n": row["n"]}  # a mean over other images than those of the other rows
    row["bytes"] = float(found.bytes.mean())
    if isinstance(found, Reconstruction):
        fits = not rival.psnr.isnan().any()
        row["psnr_above_rival_db"] = paired_interval(found.psnr, rival.psnr) if fits else None
        row["ssim_above_rival"] = paired_interval(found.ssim, rival.ssim) if fits else None
    return row


def _bits(
    prior: PixelCNN, codes: Tensor, labels: Tensor, train: Tensor, held_out: Tensor
) -> dict[str, float]:
    bits = code_bits(prior, codes[held_out], labels[held_out])
    return table_bits(codes[train], codes[held_out], prior.num_embeddings) | {
        "prior, given the class": float(bits.mean()),
        "bytes per image": float(bits.flatten(1).sum(1).mean() / 8),
    }


def _files(
    prior: PixelCNN, encoded: EncodedDataset, pixels: Pixels, indices: Tensor, psnr: Tensor
) -> dict[str, Any]:
    """Bytes of real files: ours, and the rival's that are as near to the image."""

    def rivals_bytes(index: int, db: float) -> int:
        image = Image.fromarray(pixels[index].permute(1, 2, 0).numpy())
        return cheapest_file(image, RIVAL, db).cost

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the codecs work outside Python's lock
        theirs = list(pool.map(rivals_bytes, indices.tolist(), psnr.tolist()))
    ours = []
    for i in indices.tolist():
        codes, label = encoded[i]
        ours.append(len(compress(prior, codes, int(label))))
    return {
        "n": len(indices),
        "psnr_db": float(psnr.mean()),
        "ours": sum(ours) / len(ours),
        RIVAL: sum(theirs) / len(theirs),
        "ours_minus_rival": paired_interval(torch.tensor(ours), torch.tensor(theirs)),
    }


def save_results(name: str, content: Any) -> None:
    """Keep what a command of this repository has measured, as data/results/`name`.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def load_results(name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `save_results` kept under that name.

    Args:
        default: returned if there is nothing of that name.

    Raises:
        FileNotFoundError: nothing of that name, and no default; lists what there is.
    """
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        if default is not None:
            return default
        there = sorted(p.stem for p in RESULTS.glob("*.json"))
        raise FileNotFoundError(f"{path}: no such results; there are {there or 'none'}")
    return json.loads(path.read_text())


def as_text(result: Mapping[str, Any]) -> str:
    """The table as people read it."""
    lines = [
        f"measured on {result['data'].strip('<>')}",
        f"split {result['split']}, n = {result['n']}, {result['size']} px, at most "
        f"{result['budget_bytes']} bytes an image\n",
        f"{'':28}{'fits':>5}{'bytes':>7}{'PSNR dB':>9}{'SSIM':>7}"
        f"{f'  above {RIVAL}, dB (95 %)':28}{'codes used':>10}{'perplexity':>12}",
    ]
    for name, row in result["rows"].items():
        line = f"{name:28}{row['n']:5}"
        if "psnr_db" in row:
            line += f"{row['bytes']:7.0f}{row['psnr_db']:9.2f}{row['ssim']:7.3f}"
        if "codes_used" in row:
            above = row["psnr_above_rival_db"]
            above = "" if above is None else "  {:+.2f} ({:+.2f} .. {:+.2f})".format(*above)
            line += f"{above:28}"
            line += f"{row['codes_used']:10}{row['perplexity']:12.0f}"
        lines.append(line)
    lines += [f"{name}: {row['note']}" for name, row in result["rows"].items() if "note" in row]
    lines.append(
        "\nPSNR and SSIM of 8-bit pixels. A row has no means if some images do not fit: they would "
        "be means over\nother images. Compare an SSIM with that of the mean colour, not with 0: in "
        "smooth windows a flat\ncolour scores high (see `vqlib.metrics.ssim`)."
    )
    if "bits_per_code" in result:
        lines.append("\nbits per code")
        lines += [f"  {name:24}{value:8.3f}" for name, value in result["bits_per_code"].items()]
    if "files" in result:
        files = result["files"]
        lines.append(
            f"\nfiles of equal quality ({files['psnr_db']:.2f} dB, n = {files['n']}): "
            f"{files['ours']:.0f} bytes, {RIVAL} {files[RIVAL]:.0f} bytes"
        )
    if "samples" in result:
        lines.append("\n" + judgement_as_text(result["samples"]))
    return "\n".join(lines)
