"""Compare the priors that `transformer_priors.py` trains: likelihood, samples, speed, completion.

    python benchmarks/compare_priors.py --data PATH --prior NAME=FILE --prior NAME=FILE ...

The measures, the number of samples and the seed were chosen before the first of these priors was
trained, and are fixed here:

- bits per code of the validation lesions, given the class: exact, or an upper bound for the masked
  transformer (16 masks for each lesion);
- kernel distance (KID x 1000) of 4 samples for each validation lesion, with its class, to the
  *reconstructions* of the validation lesions, which isolates the prior, and to their photographs;
  in the features of the lesion classifier and of EfficientNet-Lite0; temperature 1, no guidance;
- found rate: how often the classifier finds the class that was asked for, 200 samples a class;
- seconds per grid in batches of 16, and evaluations of the network;
- seam: the upper half of each validation grid is removed and completed once from the lower half.
  Mean squared difference of the mean colors of neighboring 32 px patches across the border,
  divided by that of the reconstructions; 1 without a seam, more if the halves do not fit.

The prior that samples by default is the one with the lowest kernel distance to the reconstructions
in EfficientNet-Lite0's features, or the fastest one within one standard error of it; completion
uses the one with the seam nearest to 1. Results go to data/results/transformer-priors.json, one
prior after the other, so that the command may be called again; "default" has the two choices. The
seconds need an otherwise idle machine; --times measures them again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqlib import CLASSES, load_model, load_pretrained, open_dataset, sample
from vqlib.beyond.masked_transformer import MaskedTransformer
from vqlib.checkpoints import PRETRAINED, model_notes
from vqlib.codes import encode_dataset
from vqlib.evaluation.features import EfficientNetLite0
from vqlib.evaluation.generation import decode_codes
from vqlib.evaluation.results import load_results, save_results
from vqlib.evaluation.set_measures import kernel_distance
from vqlib.metrics import code_bits, predict_images

SEED = 0
SAMPLES_PER_LESION = 4
SAMPLES_PER_CLASS = 200
PASSES = (4, 8, 12, 16)  # of the masked transformer
MASKS = 16  # for the bound


def sampler(prior: nn.Module, passes: int | None) -> Any:
    """Function of (n, labels) and the other arguments of `sample`."""
    return partial(sample, prior) if passes is None else partial(prior.sample, passes=passes)


@torch.inference_mode()
def seconds_per_grid(sample_codes: Any, labels: Tensor) -> float:
    """Median of five batches of 16 grids."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        sample_codes(16, labels[:16])
        seconds.append((time.perf_counter() - started) / 16)
    return sorted(seconds)[2]


def choose(priors: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """The priors that sample and complete by default, by the rule above."""

    def distance(name: str) -> list[float]:
        return priors[name]["kernel_distance_x1000"]["reconstructions"]["EfficientNet-Lite0"]

    best, error = min(map(distance, priors))
    near = [name for name in priors if distance(name)[0] <= best + error]
    return {
        "sampling": min(near, key=lambda name: priors[name]["seconds_per_grid"]),
        "completion": min(priors, key=lambda name: abs(priors[name]["seam"] - 1)),
    }


def rows_of(name: str, prior: nn.Module) -> list[tuple[str, int | None]]:
    """Name of the row and number of passes; a masked transformer has several rows."""
    if isinstance(prior, MaskedTransformer):
        return [(f"{name}, {passes} passes", passes) for passes in PASSES]
    return [(name, None)]


def measure_times(priors: list[str], labels: Tensor) -> None:
    """Replace the seconds in the stored rows, and choose the default priors again."""
    results = load_results("transformer-priors")
    for name, file in (text.split("=", 1) for text in priors):
        prior = load_model(Path(file))
        for key, passes in rows_of(name, prior):
            row = results["priors"][key]
            row["seconds_per_grid"] = seconds_per_grid(sampler(prior, passes), labels)
    results["default"] = choose(results["priors"])
    save_results("transformer-priors", results)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    parser.add_argument("--prior", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--times", action="store_true", help="only measure the seconds again")
    options = parser.parse_args()
    data = open_dataset(options.data)
    val = data.split().val
    if options.times:
        return measure_times(options.prior, data.labels[val])
    vqvae, _ = load_pretrained("ham10000")
    encoded = encode_dataset(vqvae, data)
    codes, labels = encoded.codes[val], encoded.labels[val]
    classifier = load_model(PRETRAINED / "ham10000" / "classifier.safetensors")
    extractors = {"classifier": classifier, "EfficientNet-Lite0": EfficientNetLite0()}

    def features(images: Tensor) -> dict[str, Tensor]:
        return {k: predict_images(e, images, return_features=True) for k, e in extractors.items()}

    def patch_step(images: Tensor) -> Tensor:
        """Squared difference of mean colors across the middle, (n, 3, 8)."""
        means = images.float().unflatten(3, (8, 32)).mean(4)
        return (means[:, :, 96:128].mean(2) - means[:, :, 128:160].mean(2)).square()

    reconstructions = decode_codes(vqvae, codes)
    reconstruction_step = patch_step(reconstructions).mean()
    references = {
        "reconstructions": features(reconstructions),
        "photographs": features(data.pixels(256)[val]),
    }
    lower_half = torch.zeros(codes.shape[1:3], dtype=torch.bool)
    lower_half[len(lower_half) // 2 :] = True
    many_labels = labels.repeat(SAMPLES_PER_LESION)
    class_labels = torch.arange(len(CLASSES)).repeat_interleave(SAMPLES_PER_CLASS)

    def measure(prior: nn.Module, passes: int | None) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(SEED)
        sample_codes = sampler(prior, passes)

        def generate(labels: Tensor) -> Tensor:
            parts = [sample_codes(len(p), p, generator=generator) for p in labels.split(64)]
            return decode_codes(vqvae, torch.cat(parts))

        sampled = features(generate(many_labels))
        distances = {
            reference: {
                name: [1000 * x for x in kernel_distance(of_reference[name], sampled[name])]
                for name in extractors
            }
            for reference, of_reference in references.items()
        }
        found = predict_images(classifier, generate(class_labels)).argmax(1) == class_labels
        completed = torch.cat(
            [
                sample_codes(len(c), y, given=c, keep=lower_half, generator=generator)
                for c, y in zip(codes.split(64), labels.split(64), strict=True)
            ]
        )
        return {
            "evaluations": passes or codes[0].numel(),
            "seconds_per_grid": seconds_per_grid(sample_codes, labels),
            "kernel_distance_x1000": distances,
            "found": dict(
                zip(CLASSES, found.view(len(CLASSES), -1).float().mean(1).tolist(), strict=True)
            ),
            "seam": float(patch_step(decode_codes(vqvae, completed)).mean() / reconstruction_step),
        }

    results = load_results("transformer-priors", {"split": "val", "n": len(val), "priors": {}})
    results |= {"data": repr(data), "samples": len(many_labels), "seed": SEED}
    for name, file in (text.split("=", 1) for text in options.prior):
        prior = load_model(Path(file))
        masked = isinstance(prior, MaskedTransformer)
        if masked:
            bits = prior.bits_bound(codes, labels, MASKS, SEED).double()
        else:
            bits = code_bits(prior, codes, labels).double().flatten(1).mean(1)
        row = {
            "weights": sum(p.numel() for p in prior.parameters()),
            "epochs": model_notes(Path(file))["epochs"],
            "bits_per_code": float(bits.mean()),
            "bits_standard_error": float(bits.std() / len(bits) ** 0.5),
            "bits_are": "an upper bound" if masked else "exact",
        }
        for key, passes in rows_of(name, prior):
            results["priors"][key] = row | measure(prior, passes)
            results["default"] = choose(results["priors"])
            print(key, results["priors"][key], flush=True)
            save_results("transformer-priors", results)


if __name__ == "__main__":
    main()
