"""Evaluation of generated images as a set, beside reference sets and sets with known defects.

A generated image has no original with which it could be compared, so the set of samples is compared
with a set of real images that no model was trained on, by the measures of `set_measures` in the
features of `features`. Their values have no meaning in isolation: `evaluate_samples` reports them
together with the values of a second set of real images and of blurred ones. Which measures respond
to which defects is measured by `benchmarks/calibration.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from ..codes import EncodedDataset
from ..data import ImageDataset, Pixels, dihedral_transform, to_float
from ..metrics import FeatureExtractor, predict_images
from ..pixelcnn import PixelCNN
from ..sampling import sample
from ..vqvae import VQVAE
from .features import PixelStatistics
from .set_measures import density_coverage, kernel_distance, nearest_training, two_sample_accuracy

MIN_IMAGES = 20  # of each held-out split; neighborhoods and folds need some images
MIN_CLASS_IMAGES = 50  # for the kernel distance within a class


def compare_sets(real: Tensor, other: Tensor) -> dict[str, float]:
    """The measures that respond to defects, for features (n, D) and (m, D) of two sets."""
    distance, error = kernel_distance(real, other)
    density, coverage = density_coverage(real, other)
    accuracy, accuracy_error = two_sample_accuracy(real, other)
    return {
        "images": len(other),
        "kernel_distance": distance,
        "standard_error": error,
        "density": density,
        "coverage": coverage,
        "two_sample_accuracy": accuracy,
        "two_sample_accuracy_error": accuracy_error,
    }


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (n, 3, S, S), blurred by a Gaussian of standard deviation `sigma` pixels."""
    return gaussian_blur(images, 2 * round(3 * sigma) + 1, sigma)


@torch.inference_mode()
def evaluate_samples(
    data: ImageDataset,
    encoded: EncodedDataset,
    vqvae: VQVAE,
    prior: PixelCNN,
    extractors: Mapping[str, FeatureExtractor],
    classifier: nn.Module | None = None,
    *,
    size: int = 256,
    split: str = "val",
    decoders: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    other_sets: Mapping[str, Callable[[int], Tensor]] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compare samples of the prior, and several reference sets, with held-out real images.

    All sets have the same number of images. Reference sets: the real images of the other held-out
    split (two sets of real images), the same, blurred by 1 and 2 px (a known defect), their
    reconstructions (effect of the VQ-VAE alone), samples from the per-position marginals (effect of
    ignoring the dependencies between codes), and `other_sets`. Sets that are decoded from codes are
    also compared with the reconstructions of the real images, which isolates the prior. The samples
    are generated for the class labels of the real images, with the default options of `sample`.

    Args:
        data: the images.
        encoded: codes of `data`, computed by `vqvae`, with a split by lesion.
        vqvae, prior: models in eval() mode.
        extractors: name -> model that computes the features; `PixelStatistics` are added.
        classifier: returns logits for the classes of `data`, for the fraction of images of each
            class in which it predicts this class. None: not measured.
        size: pixels of a side.
        split: "val" or "test"; the other one is the second set of real images. `train_prior`
            selects the prior's epoch on val, so only test is free of this selection.
        decoders: name -> function of decoded images, float (n, 3, S, S), that returns other images
            of the same shape, such as `beyond.RealisticDecoder.sample`.
        other_sets: name -> function of n that returns n more images, uint8 (n, 3, S, S).
        progress: called with a text after each step.

    Returns:
        JSON-compatible results: "n"; "rows" and "rows_against_reconstructions" (extractor -> name
        -> measures, see `compare_sets`); "classes" (class -> extractor -> kernel distance of its
        samples to its reconstructions, with standard error), for classes with at least
        `MIN_CLASS_IMAGES` images; "found" (set -> class -> [fraction, number of images]);
        "near_copies", see `search_near_copies`; "distinct_grids".

    Raises:
        ValueError: `split` is neither "val" nor "test", or one of them has less than `MIN_IMAGES`
            images.
    """
    if split not in ("val", "test"):
        raise ValueError(
            'samples are compared with held-out lesions: split must be "val" or "test", got '
            f"{split!r}"
        )
    parts = encoded.split
    real, other = (parts.val, parts.test) if split == "val" else (parts.test, parts.val)
    n = min(len(real), len(other))
    if n < MIN_IMAGES:
        raise ValueError(f"val and test need at least {MIN_IMAGES} images each, got {n}")
    generator = torch.Generator().manual_seed(0)
    real = real[torch.randperm(len(real), generator=generator)[:n]]
    other = other[torch.randperm(len(other), generator=generator)[:n]]
    pixels = data.pixels(size)
    train = encoded.codes[parts.train]
    labels = data.labels[real]
    shape = train.shape[1:]

    samples = sample(prior, n, labels, generator=generator, grid=tuple(shape[:2])).cpu()
    image_index = torch.randint(len(train), (n, *shape), generator=generator)
    # At each position and slot, the code of another random training image.
    from_marginals = train.gather(0, image_index)
    progress("sampled")

    decoded = partial(decode_codes, vqvae)
    statistics = PixelStatistics()
    statistics.fit(predict_images(statistics, pixels[real], return_features=True))
    extractors = {**extractors, "pixel statistics": statistics}

    def features_of(images: Pixels | Tensor) -> dict[str, Tensor]:
        return {
            name: predict_images(extractor, images, return_features=True)
            for name, extractor in extractors.items()
        }

    first = next(iter(extractors.values()))
    near_copies = search_near_copies(vqvae, first, train, encoded.codes[real], samples)
    progress("near-copies")
    reconstructed, sampled = decoded(encoded.codes[real]), decoded(samples)
    sets: dict[str, Callable[[], Tensor]] = {
        "real, another split": lambda: pixels[other],
        "real, blurred by 1 px": lambda: blurred(pixels[other], 1.0),
        "real, blurred by 2 px": lambda: blurred(pixels[other], 2.0),
        "reconstructions": lambda: decoded(encoded.codes[other]),
        "samples": lambda: sampled,
        "per-position marginals": lambda: decoded(from_marginals),
    }
    for name, then in (decoders or {}).items():
        sets[f"reconstructions, {name}"] = lambda then=then: decoded(encoded.codes[other], then)
        sets[f"samples, {name}"] = lambda then=then: decoded(samples, then)
    sets |= {name: lambda make=make: make(n) for name, make in (other_sets or {}).items()}

    photographs, reconstructions = features_of(pixels[real]), features_of(reconstructed)
    rows: dict[str, dict[str, Any]] = {name: {} for name in extractors}
    against_reconstructions: dict[str, dict[str, Any]] = {name: {} for name in extractors}
    classes: dict[str, dict[str, Any]] = {}
    for name, make in sets.items():
        features = features_of(make())
        for extractor, of_set in features.items():
            rows[extractor][name] = compare_sets(photographs[extractor], of_set)
            if name in ("reconstructions", "samples", "per-position marginals"):
                comparison = compare_sets(reconstructions[extractor], of_set)
                against_reconstructions[extractor][name] = comparison
        if name == "samples":
            for index, class_name in enumerate(data.classes):
                chosen = labels == index
                if chosen.sum() >= MIN_CLASS_IMAGES:
                    classes[class_name] = {"n": int(chosen.sum())} | {
                        extractor: kernel_distance(reconstructions[extractor][chosen], f[chosen])
                        for extractor, f in features.items()
                    }
        progress(name)
    result = {
        "data": repr(data),
        "split": split,
        "n": n,
        "features": {name: f.shape[1] for name, f in photographs.items()},
        "rows": rows,
        "rows_against_reconstructions": against_reconstructions,
        "classes": classes,
        "near_copies": near_copies,
        "distinct_grids": len(samples.flatten(1).unique(dim=0)),
    }
    if classifier is not None and data.classes:
        result["found"] = _found_by_class(
            classifier,
            data.classes,
            labels,
            {"photographs": pixels[real], "reconstructions": reconstructed, "samples": sampled},
        )
    return result


def decode_codes(
    vqvae: VQVAE, codes: Tensor, then: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Decoded images, uint8 (n, 3, S, S) on the CPU, of codes (n, h, w, slots); `then` may change
    the images, float (B, 3, S, S), before they are rounded."""
    images, device = [], next(vqvae.parameters()).device
    for part in codes.split(32):
        batch = vqvae.decode(part.to(device))
        batch = batch if then is None else then(batch)
        images.append((255 * batch).round().byte().cpu())
    return torch.cat(images)


def describe_views(
    vqvae: VQVAE, extractor: FeatureExtractor, images: Tensor, codes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Features (8, n, D) and codes (8, n, h, w, slots) of the eight dihedral transforms of images.

    Args:
        images: uint8 (n, 3, S, S).
        codes: the codes of the images themselves; None: they are encoded, like the other views.
    """
    device, features, all_codes = next(vqvae.parameters()).device, [], []
    for index in range(8):
        view = dihedral_transform(images, index)
        features.append(predict_images(extractor, view, return_features=True))
        if index == 0 and codes is not None:
            all_codes.append(codes)
            continue
        parts = (vqvae.encode(to_float(part).to(device)) for part in view.split(32))
        all_codes.append(torch.cat([part.cpu() for part in parts]))
    return torch.stack(features), torch.stack(all_codes)


def search_near_copies(
    vqvae: VQVAE, extractor: FeatureExtractor, train: Tensor, held_out: Tensor, samples: Tensor
) -> dict[str, dict[str, float]]:
    """Search for samples that are nearly training images, in any of the eight orientations.

    All images are decoded from codes. Otherwise the decoder's blur, which only the samples have,
    would increase their distance to the photographs and hide copies.

    Args:
        train, held_out, samples: codes, int64 (N, h, w, slots).

    Returns:
        "features" and "codes" -> results of `nearest_training` for these distances.
    """
    sample_views, held_out_views = (
        describe_views(vqvae, extractor, decode_codes(vqvae, codes), codes)
        for codes in (samples, held_out)
    )
    train_features = [
        predict_images(extractor, decode_codes(vqvae, part), return_features=True)
        for part in train.split(512)
    ]
    result = {}
    for i, (name, of_train) in enumerate(
        {"features": torch.cat(train_features), "codes": train}.items()
    ):
        search = nearest_training(of_train, held_out_views[i], sample_views[i])
        result[name] = {
            "fraction": search.near_copy_fraction,
            "expected_upper_limit": search.expected_upper_limit,
            "threshold": search.threshold,
            "minimum_distance": float(search.sample_distances.min()),
        }
    return result


def _found_by_class(
    classifier: nn.Module, classes: tuple[str, ...], labels: Tensor, sets: Mapping[str, Tensor]
) -> dict[str, dict[str, list[float]]]:
    """Set -> class -> [fraction of its images for which the classifier predicts it, their number];
    classes without images are left out."""
    result: dict[str, dict[str, list[float]]] = {}
    for name, images in sets.items():
        correct = predict_images(classifier, images).argmax(1) == labels
        result[name] = {
            class_name: [float(correct[labels == i].float().mean()), int((labels == i).sum())]
            for i, class_name in enumerate(classes)
            if (labels == i).any()
        }
    return result


def distance_text(distance: float, error: float) -> str:
    """Kernel distance x 1,000 with its standard error, or "> 1000" if it is so with certainty.

    The features are standardized on real images and the kernel is cubic: where no real image lies
    near, the distance grows with the sixth power of a feature, and its value says no more.
    """
    if distance - 3 * error > 1:
        return "> 1000"
    return f"{1000 * distance:,.1f} ± {1000 * error:,.1f}"


def samples_table(result: dict[str, Any]) -> str:
    """The results as a text table."""
    n, split = result["n"], result["split"]
    lines = []
    for key, what in (
        ("rows", f"{n} photographs of the {split} split"),
        ("rows_against_reconstructions", "their reconstructions"),
    ):
        for extractor, rows in result[key].items():
            lines.append(
                f"sets of {n} images against {what}, features: {extractor} "
                f"({result['features'][extractor]})"
            )
            lines.append(
                f"{'':34}{'KID x 1000':>17}{'density':>9}{'coverage':>10}{'told apart':>12}"
            )
            for name, row in rows.items():
                distance = distance_text(row["kernel_distance"], row["standard_error"])
                distance = distance.replace("±", "+-")
                lines.append(
                    f"{name:34}{distance:>17}{row['density']:9.2f}{row['coverage']:10.2f}"
                    f"{row['two_sample_accuracy']:12.0%}"
                )
            lines.append("")
    lines += [
        "KID: kernel distance, 0 for sets of the same distribution. Told apart: accuracy of a",
        "logistic regression that tells the two sets apart, 50 % if it can't.",
    ]
    for name, row in result["near_copies"].items():
        lines.append(
            f"nearer to a training image, in any orientation, than 99 % of the held-out images "
            f"(by {name}): {100 * row['fraction']:.1f} % of the samples (at most "
            f"{100 * row['expected_upper_limit']:.1f} % expected without copying)"
        )
    lines.append(f"distinct grids of codes: {result['distinct_grids']} of {n}")
    if "found" in result:
        lines.append("\nclass found by the classifier")
        for name, by_class in result["found"].items():
            found = "  ".join(f"{c} {rate:.0%}" for c, (rate, _) in by_class.items())
            lines.append(f"  {name:18}{found}")
    return "\n".join(lines)
