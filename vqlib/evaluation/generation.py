"""Metrics for generated images: distances between sets, precision and recall, near-copies.

A generated image has no reference image, so the set of samples is compared with a set of real
images that no model was trained on. All distances compare features of a network, such as
`LesionClassifier`. Their values have no meaning in isolation: `evaluate_samples` reports them
together with the distance between two sets of *real* lesions, and with baselines. `results` adds
them to the results table.

Papers: FID: Heusel et al. (2017), arXiv:1706.08500; KID: Binkowski et al. (2018), arXiv:1801.01401;
precision and recall: Kynkaanniemi et al. (2019), arXiv:1904.06991; Inception v3: Szegedy et al.
(2016), arXiv:1512.00567.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception_v3
from torchvision.transforms.functional import normalize

from ..checkpoints import DataError
from ..codes import EncodedDataset
from ..data import ImageDataset, Pixels, dihedral_transform, to_float
from ..metrics import FeatureExtractor, predict_images
from ..pixelcnn import PixelCNN
from ..sampling import sample
from ..vqvae import IMAGENET_MEAN, IMAGENET_STD, VQVAE


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between normal distributions with the means and covariances of two sets.

    |mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), Heusel et al., "GANs Trained
    by a Two Time-Scale Update Rule" (2017), arXiv:1706.08500, section 4; called FID if the features
    are Inception's. The estimate is biased: for two samples of the *same* distribution it is above
    0, about D (D + 5) / (2n) for D uncorrelated features of variance 1 and samples of n images, and
    less for correlated features. Compare only sets of equal size.

    Args:
        a, b: float (n, D) and (m, D), features.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(cov_a)
    sqrt_cov_a = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # The eigenvalues of cov_a cov_b are those of this symmetric matrix.
    eigenvalues = torch.linalg.eigvalsh(sqrt_cov_a @ cov_b @ sqrt_cov_a).clamp_min(0)
    mean_distance = (a.mean(0) - b.mean(0)).square().sum()
    return float(mean_distance + cov_a.trace() + cov_b.trace() - 2 * eigenvalues.sqrt().sum())


def kernel_distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Unbiased estimate of the squared maximum mean discrepancy, with kernel (x.y / D + 1)^3.

    Binkowski et al., "Demystifying MMD GANs" (2018), arXiv:1801.01401, section 3; called KID if the
    features are Inception's. Its mean over samples of the same distribution is 0, so that single
    values can be negative.

    Args:
        a, b: float (n, D) and (m, D), features.

    Returns:
        The distance and its standard error (jackknife: leaving out one image at a time).
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    a, b = a.double(), b.double()
    n, m = len(a), len(b)
    k_ab = kernel(a, b)
    k_aa, k_bb = kernel(a, a).fill_diagonal_(0), kernel(b, b).fill_diagonal_(0)
    aa, bb, ab = k_aa.sum(), k_bb.sum(), k_ab.sum()

    def distance(aa: Tensor, bb: Tensor, ab: Tensor, n: int, m: int) -> Tensor:
        return aa / (n * (n - 1)) + bb / (m * (m - 1)) - 2 * ab / (n * m)

    leave_out_a = distance(aa - 2 * k_aa.sum(1), bb, ab - k_ab.sum(1), n - 1, m)
    leave_out_b = distance(aa, bb - 2 * k_bb.sum(1), ab - k_ab.sum(0), n, m - 1)
    variance = sum(
        (len(x) - 1) * (x - x.mean()).square().mean() for x in (leave_out_a, leave_out_b)
    )
    return float(distance(aa, bb, ab, n, m)), float(variance**0.5)


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of a set of generated images.

    Precision is the fraction of generated images inside the manifold of the real ones, recall the
    fraction of real images inside the manifold of the generated ones. An image is inside the
    manifold of a set if its distance to one of the set's images is at most the distance of that
    image to its k-th nearest neighbor in the set. Kynkaanniemi et al., "Improved Precision and
    Recall Metric for Assessing Generative Models" (2019), arXiv:1904.06991, section 2. Values for
    sets of different sizes can't be compared.

    Args:
        real, generated: float (n, D), features.
        k: number of the neighbor that defines the radius.

    Returns:
        Precision (how realistic the samples are) and recall (how much of the real distribution they
        cover), both in [0, 1].
    """

    def fraction_inside(points: Tensor, manifold: Tensor) -> float:
        # k + 1, because the smallest distance is that of the image to itself, 0.
        radius = torch.cdist(manifold, manifold).kthvalue(k + 1).values
        return float((torch.cdist(points, manifold) <= radius).any(1).float().mean())

    return fraction_inside(generated, real), fraction_inside(real, generated)


@dataclass
class NearestTraining:
    """Distances of generated and held-out images to their nearest training image."""

    sample_distances: Tensor  # (n,) of generated images
    held_out_distances: Tensor  # (m,) of real images that were not used for training
    nearest: Tensor  # int64 (n,), index of the nearest training image of each generated one

    @property
    def threshold(self) -> float:
        """1 % quantile of the held-out images' distances."""
        return float(self.held_out_distances.quantile(0.01))

    @property
    def near_copy_fraction(self) -> float:
        """Fraction of generated images below the threshold; about 0.01 without copying."""
        return float((self.sample_distances < self.threshold).float().mean())

    @property
    def expected_upper_limit(self) -> float:
        """0.01 plus two standard errors of a fraction of n samples with this expectation.

        The sampling error of the threshold itself is not included: the quantile of 600 held-out
        images rests on 6 of them.
        """
        return 0.01 + 2 * (0.01 * 0.99 / len(self.sample_distances)) ** 0.5


def nearest_training(train: Tensor, held_out: Tensor, samples: Tensor) -> NearestTraining:
    """Distance of each image to its nearest training image, minimized over several views.

    Args:
        train: features, float (N, D), compared by Euclidean distance; or codes, int64
            (N, h, w, slots), compared by the fraction of codes that differ.
        held_out, samples: (V, n, ...), features or codes of V views of each image, such as its
            eight dihedral transforms.
    """

    def pairwise_distances(view: Tensor) -> Tensor:
        if view.is_floating_point():
            return torch.cdist(view, train)
        # p = 0 counts the codes that differ.
        differing = torch.cdist(view.flatten(1).float(), train.flatten(1).float(), p=0)
        return differing / train[0].numel()

    def nearest_over_views(views: Tensor) -> tuple[Tensor, Tensor]:
        distances, indices = zip(*(pairwise_distances(view).min(1) for view in views), strict=True)
        best = torch.stack(distances).min(0)
        return best.values, torch.stack(indices).gather(0, best.indices[None])[0]

    distances, nearest = nearest_over_views(samples)
    return NearestTraining(distances, nearest_over_views(held_out)[0], nearest)


class Inception(nn.Module):
    """The usual feature extractor: Inception v3 trained on ImageNet, from torchvision.

    The weights (104 MB) are downloaded at the first use. Distances in its features can't be
    compared with published FID values, which are computed with other weights and preprocessing.

    Args:
        weights: name of torchvision's weights; None: random weights.

    Raises:
        DataError: the weights can't be downloaded.
    """

    def __init__(self, weights: str | None = "IMAGENET1K_V1") -> None:
        super().__init__()
        try:
            self.net = inception_v3(weights=weights, init_weights=False)
        except OSError as error:  # no connection, or the disk is full
            raise DataError(
                f"the weights of Inception can't be downloaded ({error}): connect to the internet, "
                "or use the pretrained lesion classifier"
            ) from error
        self.net.fc = nn.Identity()

    def extract_features(self, images: Tensor) -> Tensor:
        """Input of the last layer, float (B, 2048), for images, float (B, 3, S, S) in [0, 1]."""
        images = F.interpolate(images, (299, 299), mode="bilinear", antialias=True)
        return self.net(normalize(images, IMAGENET_MEAN, IMAGENET_STD))


# Factor by which more samples are used for the kernel distance: its estimate is unbiased for every
# n, and a larger n reduces its standard error.
KERNEL_DISTANCE_FACTOR = 4


@torch.inference_mode()
def evaluate_samples(
    data: ImageDataset,
    encoded: EncodedDataset,
    vqvae: VQVAE,
    prior: PixelCNN,
    extractor: FeatureExtractor,
    *,
    size: int = 256,
    split: str = "val",
    other_sets: Mapping[str, Callable[[int], Tensor]] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compare samples of the prior, and several reference sets, with held-out real images.

    Every set is compared with the real images of `split` and has the same number of images. Only
    for the kernel distance of the samples, `KERNEL_DISTANCE_FACTOR` times as many are generated.
    The reference sets are the real images of the other held-out split (distance between two sets of
    real lesions), their reconstructions (effect of the VQ-VAE alone), samples from the per-position
    marginals (effect of ignoring the dependencies between codes), and `other_sets`. The samples are
    generated for the class labels of the real images, with the default options of `sample`.

    Args:
        data: the images.
        encoded: codes of `data`, computed by `vqvae`, with a split by lesion.
        vqvae, prior: models in eval() mode.
        extractor: computes the features.
        size: pixels of a side.
        split: "val" or "test"; the other one is the second set of real lesions. `train_prior`
            selects the prior's epoch on val, so only test is free of this selection.
        other_sets: name -> function of n that returns n more images, uint8 (n, 3, S, S).
        progress: called with a text after each step.

    Returns:
        JSON-compatible results: "n"; "rows" (name -> metrics; "images" is the number of images used
        for the kernel distance); "near_copies" of training images in any of the eight orientations,
        by features and by codes; "diversity".

    Raises:
        ValueError: `split` is neither "val" nor "test".
    """
    if split not in ("val", "test"):
        raise ValueError(
            'samples are compared with held-out lesions: split must be "val" or "test", got '
            f"{split!r}"
        )
    parts = encoded.split
    real, other = (parts.val, parts.test) if split == "val" else (parts.test, parts.val)
    n = min(len(real), len(other))
    generator = torch.Generator().manual_seed(0)
    real = real[torch.randperm(len(real), generator=generator)[:n]]
    other = other[torch.randperm(len(other), generator=generator)[:n]]
    pixels = data.pixels(size)
    train = encoded.codes[parts.train]

    labels = data.labels[real]
    shape, device = train.shape[1:], next(vqvae.parameters()).device

    def generate() -> Tensor:
        codes = sample(prior, n, labels, generator=generator, grid=tuple(shape[:2]))
        return codes.cpu()

    samples = generate()
    image_index = torch.randint(len(train), (n, *shape), generator=generator)
    further_samples = [generate() for _ in range(KERNEL_DISTANCE_FACTOR - 1)]
    progress("sampled")

    def decoded(codes: Tensor) -> Tensor:
        images = (vqvae.decode(part.to(device)) for part in codes.split(32))
        return torch.cat([(255 * batch).round().byte().cpu() for batch in images])

    def features_of(images: Pixels | Tensor) -> Tensor:
        return predict_images(extractor, images, return_features=True)

    def encoded_again(images: Tensor) -> Tensor:
        batches = (vqvae.encode(to_float(part).to(device)) for part in images.split(32))
        return torch.cat([codes.cpu() for codes in batches])

    def in_all_orientations(codes: Tensor) -> tuple[Tensor, Tensor]:
        """Features (8, n, D) and codes (8, n, h, w, slots) of the eight dihedral transforms of the
        decoded images; the first codes are `codes` themselves."""
        images, features, all_codes = decoded(codes), [], []
        for index in range(8):
            view = dihedral_transform(images, index)
            features.append(features_of(view))
            all_codes.append(codes if index == 0 else encoded_again(view))
        return torch.stack(features), torch.stack(all_codes)

    # All images in this search are decoded from codes. Otherwise the decoder's blur, which only the
    # samples have, would increase their distance to the photographs and hide copies.
    sample_views, held_out_views = map(in_all_orientations, (samples, encoded.codes[real]))
    train_views = torch.cat([features_of(decoded(part)) for part in train.split(512)]), train
    near_copies = {}
    for i, name in enumerate(("features", "codes")):
        search = nearest_training(train_views[i], held_out_views[i], sample_views[i])
        near_copies[name] = {
            "fraction": search.near_copy_fraction,
            "expected_upper_limit": search.expected_upper_limit,
            "threshold": search.threshold,
            "minimum_distance": float(search.sample_distances.min()),
        }
    progress("near-copies")
    reference, sample_features = features_of(pixels[real]), sample_views[0][0]
    sets = {
        "real, another split": features_of(pixels[other]),
        "reconstructions": features_of(decoded(encoded.codes[other])),
        "samples": sample_features,
        # At each position and slot, the code of another random training image.
        "per-position marginals": features_of(decoded(train.gather(0, image_index))),
    }
    sets |= {name: features_of(images(n)) for name, images in (other_sets or {}).items()}
    further_features = [features_of(decoded(codes)) for codes in further_samples]
    rows = {}
    for name, features in sets.items():
        all_features = [features, *further_features] if name == "samples" else [features]
        distance, error = kernel_distance(reference, torch.cat(all_features))
        precision, recall = precision_recall(reference, features)
        rows[name] = {
            "images": n * len(all_features),
            "kernel_distance": distance,
            "standard_error": error,
            "frechet_distance": frechet_distance(reference, features),
            "precision": precision,
            "recall": recall,
        }
        progress(name)

    def mean_distances(of_class: Tensor) -> dict[str, float]:
        feature_sets = {"samples": sample_features, "real": reference}
        return {name: float(torch.pdist(f[of_class]).mean()) for name, f in feature_sets.items()}

    by_class = {name: labels == c for c, name in enumerate(data.classes)}
    return {
        "data": repr(data),
        "split": split,
        "n": n,
        "features": sample_features.shape[1],
        "rows": rows,
        "near_copies": near_copies,
        "diversity": {
            "distinct_grids": len(samples.flatten(1).unique(dim=0)),
            "mean_distance_within_class": {
                name: mean_distances(chosen)
                for name, chosen in by_class.items()
                if chosen.sum() > 1
            },
        },
    }


def samples_table(result: dict[str, Any]) -> str:
    """The results as a text table."""
    n, split = result["n"], result["split"]
    lines = [
        f"sets of {n} images, compared with {n} real images of the {split} split by their features",
        f"(kernel distance of the samples: {result['rows']['samples']['images']} images)",
        f"{'':24}{'kernel distance':>18}{'Frechet':>9}{'precision':>11}{'recall':>8}",
    ]
    for name, row in result["rows"].items():
        distance = f"{row['kernel_distance']:.3f} +- {row['standard_error']:.3f}"
        lines.append(
            f"{name:24}{distance:>18}{row['frechet_distance']:9.2f}"
            f"{row['precision']:11.2f}{row['recall']:8.2f}"
        )
    for name, row in result["near_copies"].items():
        lines.append(
            f"nearer to a training image, in any orientation, than 99 % of the held-out images "
            f"(by {name}): {100 * row['fraction']:.1f} % of the samples (at most "
            f"{100 * row['expected_upper_limit']:.1f} % expected without copying)"
        )
    lines.append(f"distinct grids of codes: {result['diversity']['distinct_grids']} of {n}")
    return "\n".join(lines)
