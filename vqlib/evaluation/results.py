"""The results table: all methods on the same held-out images, with the same number of bytes.

`python -m vqlib evaluate` prints the table. README and the notebooks quote the committed results in
data/results, which `save_results` writes and `load_results` reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from ..checkpoints import REPOSITORY
from ..codes import SPLITS, EncodedDataset, encode_dataset
from ..data import ImageDataset, Pixels
from ..metrics import (
    FeatureExtractor,
    ImageMetrics,
    ReconstructionMetrics,
    baseline_bits,
    code_bits,
    evaluate_vqvae,
    paired_bootstrap_interval,
)
from ..pixelcnn import PixelCNN
from ..vqvae import VQVAE
from .codecs import (
    BASELINE_CODEC,
    baselines,
    evaluate_codec,
    evaluate_strict_codecs,
    register_strict_codecs,
    smallest_at_psnr,
)
from .entropy_coding import compress
from .generation import MIN_IMAGES, evaluate_samples, samples_table

RESULTS = REPOSITORY / "data" / "results"
NUM_FILE_IMAGES = 100  # images for which files of equal PSNR are searched


def evaluate(
    data: ImageDataset,
    models: Mapping[str, VQVAE],
    prior: PixelCNN | None = None,
    extractors: Mapping[str, FeatureExtractor] | None = None,
    classifier: nn.Module | None = None,
    *,
    size: int = 256,
    split: str = "val",
    decoders: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    other_sets: Mapping[str, Callable[[int], Tensor]] | None = None,
    prior_classes: Sequence[str] | None = None,
    strict_codecs: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Evaluate all baselines and models, and optionally the prior and its samples.

    Args:
        data: any data set; it is split by group (lesion), with the default fractions. A model that
            was trained with another split may have seen images of `split` in training.
        models: name -> VQVAE. The number of bytes of the first one is the budget of the baselines.
        prior: trained on codes of the *first* model.
        extractors, classifier: see `evaluate_samples`.
        size: pixels of a side.
        split: "train", "val" or "test".
        decoders, other_sets: see `evaluate_samples`.
        prior_classes: names of the classes that the prior was trained with; None if they are those
            of `data`. If they are others, the prior is used without labels and its samples are not
            evaluated.
        strict_codecs: also measure `codecs.strict_baselines`, see `evaluate_strict_codecs`.
        progress: called with the name of each finished row.

    Returns:
        JSON-compatible results: "rows", name -> metrics, or only "n", the number of images with a
        file in the budget, if that is not all of them; with a prior "bits_per_code",
        "bytes_per_image" (the mean negative log-likelihood of an image), "files", the sizes of
        files of equal PSNR, and "samples", see `evaluate_samples`; "skipped", what was not measured
        and why, unless everything was; "psnr_db_of", name -> image id -> dB
        (None where no file is within the budget).
    """
    if strict_codecs:
        register_strict_codecs()  # an error comes before anything is measured
    pixels, parts = data.pixels(size), data.split()
    indices = parts[SPLITS.index(split)]
    if not models or not len(indices):
        found = f"{len(models)} models, {len(indices)} images in the split {split} of {data}"
        raise ValueError(f"nothing to evaluate: {found}")
    first_name, first_model = next(iter(models.items()))
    model_metrics: dict[str, ImageMetrics] = {}
    for name, model in models.items():
        model_metrics[name] = evaluate_vqvae(model, pixels, indices)
        progress(name)
    budget = round(float(model_metrics[first_name].bytes[0]))
    baseline_metrics = {}
    for name, compress_image in baselines(budget).items():
        baseline_metrics[name] = evaluate_codec(compress_image, pixels, indices)
        progress(name)
    if strict_codecs:
        baseline_metrics |= evaluate_strict_codecs(pixels, indices, budget)
        progress("strict codecs")
    all_metrics = baseline_metrics | model_metrics
    rows = {
        name: _result_row(metrics, all_metrics[BASELINE_CODEC])
        for name, metrics in all_metrics.items()
    }
    result: dict[str, Any] = {"data": repr(data), "split": split, "n": len(indices), "size": size}
    result |= {"budget_bytes": budget, "rows": rows}
    if prior is not None:
        encoded = encode_dataset(first_model, data, size, split=parts)
        same_classes = prior_classes is None or tuple(prior_classes) == data.classes
        if not same_classes:
            encoded.labels = torch.full_like(encoded.labels, prior.num_classes)  # no label
            result["skipped"] = {
                "samples": f"the prior was trained with the classes {', '.join(prior_classes)}, "
                f"and these images have {', '.join(data.classes) or 'none'}"
            }
        bits = _prior_bits(prior, encoded, indices)
        result["bits_per_code"], result["bytes_per_image"] = bits
        progress("prior")
        subset = torch.linspace(0, len(indices) - 1, min(NUM_FILE_IMAGES, len(indices))).long()
        psnr = all_metrics[first_name].psnr[subset]
        files = _compare_file_sizes(prior, encoded, pixels, indices[subset], psnr)
        if files is not None:
            result["files"] = files
        progress("files")
        held_out = min(len(parts.val), len(parts.test))
        if same_classes and (split == "train" or held_out < MIN_IMAGES):
            result["skipped"] = {
                "samples": "they are compared with held-out images, at least "
                f"{MIN_IMAGES} of val and of test"
            }
        elif same_classes:
            result["samples"] = evaluate_samples(
                data,
                encoded,
                first_model,
                prior,
                extractors or {},
                classifier,
                size=size,
                split=split,
                decoders=decoders,
                other_sets=other_sets,
                progress=progress,
            )
    ids = [data.image_ids[i] for i in indices.tolist()]
    result["psnr_db_of"] = {
        name: {i: None if x != x else round(x, 3) for i, x in zip(ids, metrics.psnr.tolist())}
        for name, metrics in all_metrics.items()
    }
    return result


def _result_row(metrics: ImageMetrics, baseline: ImageMetrics) -> dict[str, Any]:
    row: dict[str, Any] = metrics.summary()
    if row["n"] < len(metrics.psnr):
        return {"n": row["n"]}  # no means, because the other rows' means are over more images
    row["bytes"] = float(metrics.bytes.mean())
    if isinstance(metrics, ReconstructionMetrics):
        all_fit = not baseline.psnr.isnan().any()
        for key, ours, theirs in (
            ("psnr_above_baseline_db", metrics.psnr, baseline.psnr),
            ("ssim_above_baseline", metrics.ssim, baseline.ssim),
        ):
            row[key] = paired_bootstrap_interval(ours, theirs) if all_fit else None
    return row


def _prior_bits(
    prior: PixelCNN, encoded: EncodedDataset, held_out: Tensor
) -> tuple[dict[str, float], float]:
    """Bits per code of counting baselines and of the prior, and the prior's bytes per image."""
    codes, labels = encoded.codes, encoded.labels[held_out]
    bits = code_bits(prior, codes[held_out], labels)
    labeled = bool((labels < prior.num_classes).all())
    rows = baseline_bits(codes[encoded.split.train], codes[held_out], prior.num_embeddings)
    rows["prior, given the class" if labeled else "prior"] = float(bits.mean())
    return rows, float(bits.flatten(1).sum(1).mean() / 8)


def _compare_file_sizes(
    prior: PixelCNN, encoded: EncodedDataset, pixels: Pixels, indices: Tensor, psnr: Tensor
) -> dict[str, Any] | None:
    """Sizes of compressed files: codes written with the prior, and WebP files of the same PSNR.
    Images for which WebP does not reach the PSNR are left out; None if these are all."""

    def baseline_bytes_at(index: int, psnr_db: float) -> float:
        found = smallest_at_psnr(to_pil_image(pixels[index]), BASELINE_CODEC, psnr_db)
        return float("nan") if found is None else found.num_bytes

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the codecs release the GIL
        sizes = list(pool.map(baseline_bytes_at, indices.tolist(), psnr.tolist()))
    baseline_bytes = torch.tensor(sizes, dtype=torch.float64)
    reached = ~baseline_bytes.isnan()
    if not reached.any():
        return None
    prior_bytes = []
    for codes, label in (encoded[i] for i in indices[reached].tolist()):
        label = None if label == prior.num_classes else int(label)
        prior_bytes.append(len(compress(prior, codes, label)))
    prior_bytes, baseline_bytes = torch.tensor(prior_bytes).double(), baseline_bytes[reached]
    return {
        "n": len(prior_bytes),
        "psnr_db": float(psnr[reached].mean()),
        "prior_bytes": float(prior_bytes.mean()),
        "baseline_bytes": float(baseline_bytes.mean()),
        "difference_bytes": paired_bootstrap_interval(prior_bytes, baseline_bytes),
    }


def save_results(name: str, content: Any) -> None:
    """Write results, anything that JSON can represent, to data/results/`name`.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def load_results(name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read results that `save_results` has written.

    Args:
        name: name of the file without suffix.
        default: returned if the file does not exist.

    Raises:
        FileNotFoundError: no such file and no default. The message lists the existing names.
    """
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        if default is not None:
            return default
        names = sorted(p.stem for p in RESULTS.glob("*.json"))
        raise FileNotFoundError(f"{path} does not exist; available: {names or 'none'}")
    return json.loads(path.read_text())


def results_table(result: Mapping[str, Any]) -> str:
    """The results as a text table."""
    data = result["data"].strip("<>").replace("; ", "\n  ")
    lines = [
        f"measured on {data}",
        f"split {result['split']}, n = {result['n']}, {result['size']} px, at most "
        f"{result['budget_bytes']} bytes per image\n",
        f"{'':34}{'n':>5}{'bytes':>6}{'PSNR dB':>8}{'SSIM':>6}"
        f"{f'  above {BASELINE_CODEC}, dB (95 %)':25}{'codes':>5}{'perplexity':>11}",
    ]
    for name, row in result["rows"].items():
        line = f"{name:34}{row['n']:5}"
        if "psnr_db" in row:
            line += f"{row['bytes']:6.0f}{row['psnr_db']:8.2f}{row['ssim']:6.3f}"
        if "codes_used" in row:
            above = row["psnr_above_baseline_db"]
            above = "" if above is None else "  {:+.2f} ({:+.2f} .. {:+.2f})".format(*above)
            line += f"{above:25}{row['codes_used']:5}{row['perplexity']:11.0f}"
        lines.append(line)
    lines += [f"{name}: {row['note']}" for name, row in result["rows"].items() if "note" in row]
    lines.append(
        "\nn: images with a file in the budget; a row has no means if these are not all images. "
        "codes: used in\nthe slot that uses the fewest. PSNR and SSIM of 8-bit pixels. Compare an "
        "SSIM with that of the mean\ncolor, not with 0: in smooth windows a flat color scores high "
        "(see `vqlib.metrics.ssim`)."
    )
    if "bits_per_code" in result:
        lines.append("\nbits per code")
        lines += [f"  {name:24}{value:8.3f}" for name, value in result["bits_per_code"].items()]
        lines.append(f"bytes per image, by the prior: {result['bytes_per_image']:.1f}")
    if "files" in result:
        files = result["files"]
        prior_bytes, baseline_bytes = files["prior_bytes"], files["baseline_bytes"]
        lines.append(
            f"\nfiles of equal PSNR ({files['psnr_db']:.2f} dB, n = {files['n']}): with the prior "
            f"{prior_bytes:.0f} bytes, {BASELINE_CODEC} {baseline_bytes:.0f} bytes"
        )
    for name, reason in result.get("skipped", {}).items():
        lines.append(f"\n{name}: not measured, because {reason}")
    if "samples" in result:
        lines.append("\n" + samples_table(result["samples"]))
    return "\n".join(lines)
