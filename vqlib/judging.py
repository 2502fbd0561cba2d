"""Chapter 10: are they any good? Distances between *sets* of images, and what they can't say.

No single picture is right or wrong, so generated lesions are judged as a set, beside a set of real
ones that nothing was trained on. All distances compare features of `LesionClassifier`, and none
means anything by itself: each stands beside what two sets of *real* lesions differ by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .augment import moved, to_float
from .classifier import Inception, LesionClassifier, classify
from .codes import EncodedDataset
from .data import CLASSES, LesionDataset, Pixels, synthetic_dataset
from .pixelcnn import PixelCNN
from .sampling import sample
from .vqvae import VQVAE


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Distance between two normal distributions with the means and covariances of two sets.

    |mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), Heusel et al., "GANs Trained
    by a Two Time-Scale Update Rule" (2017), arXiv:1706.08500, section 4; "FID" if the features are
    Inception's. It is biased: two small samples of *one* set are apart by about features / n.

    Args:
        a, b: float (n, D) and (m, D), features.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # The eigenvalues of cov_a cov_b are those of this symmetric matrix.
    of_product = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0)
    apart = (a.mean(0) - b.mean(0)).square().sum()
    return float(apart + cov_a.trace() + cov_b.trace() - 2 * of_product.sqrt().sum())


def kernel_distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, without bias.

    Binkowski et al., "Demystifying MMD GANs" (2018), arXiv:1801.01401, section 3; "KID" if the
    features are Inception's. Two samples of one set give 0 on average, so it may fall below.

    Args:
        a, b: float (n, D) and (m, D), features.

    Returns:
        The distance, and its standard error by leaving one image out at a time (jackknife).
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    a, b = a.double(), b.double()
    n, m = len(a), len(b)
    across = kernel(a, b)
    within = [k.fill_diagonal_(0) for k in (kernel(a, a), kernel(b, b))]
    sums = [within[0].sum(), within[1].sum(), across.sum()]

    def distance(aa: Tensor, bb: Tensor, ab: Tensor, n: int, m: int) -> Tensor:
        return aa / (n * (n - 1)) + bb / (m * (m - 1)) - 2 * ab / (n * m)

    without_a = distance(sums[0] - 2 * within[0].sum(1), sums[1], sums[2] - across.sum(1), n - 1, m)
    without_b = distance(sums[0], sums[1] - 2 * within[1].sum(1), sums[2] - across.sum(0), n, m - 1)
    variance = sum((len(x) - 1) * (x - x.mean()).square().mean() for x in (without_a, without_b))
    return float(distance(*sums, n, m)), float(variance**0.5)


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """How many generated images lie among the real ones, and how many real among the generated.

    An image lies in a set if one of the set's images is nearer to it than that image's own k-th
    neighbour within the set. Kynkaanniemi et al., "Improved Precision and Recall Metric" (2019),
    arXiv:1904.06991, section 2. Only sets of equal size can be compared.

    Args:
        real, generated: float (n, D), features.

    Returns:
        Precision (are they realistic?) and recall (is nothing missing?), both in [0, 1].
    """

    def share_inside(points: Tensor, among: Tensor) -> float:
        # The nearest of an image's distances to its own set is 0, to itself.
        radius = torch.cdist(among, among).kthvalue(k + 1).values
        return float((torch.cdist(points, among) <= radius).any(1).float().mean())

    return share_inside(generated, real), share_inside(real, generated)


@dataclass
class Nearness:
    """How near images are to the nearest image of the training set."""

    samples: Tensor  # (n,) distances of generated images
    held_out: Tensor  # (m,) distances of real images that were not trained on
    nearest: Tensor  # int64 (n,) which training image it is, for each generated one

    @property
    def threshold(self) -> float:
        """Only 1 % of the held-out images are nearer than this."""
        return float(self.held_out.quantile(0.01))

    @property
    def near_copies(self) -> float:
        """Share of generated images below the threshold; about 0.01 if nothing was copied."""
        return float((self.samples < self.threshold).float().mean())

    @property
    def allowed(self) -> float:
        """0.01 and two standard errors of such a share."""
        return 0.01 + 2 * (0.01 * 0.99 / len(self.samples)) ** 0.5


def nearness(train: Tensor, held_out: Tensor, samples: Tensor) -> Nearness:
    """Search the training set for copies, turned and mirrored ones too.

    Args:
        train: features, float (N, D), compared by Euclidean distance; or codes, int64
            (N, h, w, slots), by the share of codes that differ.
        held_out, samples: (V, n, ...), the same of V views of each image, as the eight that
            `moved` makes; the nearest of them counts.
    """

    def of_view(x: Tensor) -> tuple[Tensor, Tensor]:
        if x.is_floating_point():
            found = torch.cdist(x, train).min(1)
            return found.values, found.indices
        known = train.flatten(1)
        rows = [(known != row).float().mean(1).min(0) for row in x.flatten(1)]
        return torch.stack([r.values for r in rows]), torch.stack([r.indices for r in rows])

    def to_train(views: Tensor) -> tuple[Tensor, Tensor]:
        distances, which = map(torch.stack, zip(*map(of_view, views), strict=True))
        best = distances.min(0)
        return best.values, which.gather(0, best.indices[None])[0]

    distances, nearest = to_train(samples)
    return Nearness(distances, to_train(held_out)[0], nearest)


MORE = 4  # times as many samples for the kernel distance: they cost little, and n does not bias it


@torch.inference_mode()
def judge(
    data: LesionDataset,
    encoded: EncodedDataset,
    vqvae: VQVAE,
    prior: PixelCNN,
    classifier: LesionClassifier | Inception,
    *,
    size: int = 256,
    split: str = "val",
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> dict[str, Any]:
    """Generated lesions beside held-out ones, beside everything that puts the distance into scale.

    All sets are compared with the real images of `split`, and have as many images; only for the
    samples' kernel distance `MORE` times as many are drawn, which makes its error smaller. The
    other held-out split says what two sets of real lesions differ by, and what coding alone costs.
    The samples are asked for the classes that the real images have.

    Args:
        encoded: `data` as codes of `vqvae`, with a split by lesion.
        split: "val" or "test"; the other one is the second set of real lesions.
        options: for `sample`; none means its defaults.

    Returns:
        What can be written as JSON: "n", "rows" (name -> results; "images" is how many the kernel
        distance is of), "near_copies" (of training images, turned or not, in features and in
        codes), "diversity".
    """
    if split not in ("val", "test"):
        raise ValueError(
            f'samples are judged beside held-out lesions, "val" or "test", not {split!r}'
        )
    parts = encoded.split
    real, other = (parts.val, parts.test) if split == "val" else (parts.test, parts.val)
    n = min(len(real), len(other))
    generator = torch.Generator().manual_seed(seed)
    real = real[torch.randperm(len(real), generator=generator)[:n]]
    other = other[torch.randperm(len(other), generator=generator)[:n]]
    pixels = data.pixels(size)
    train = encoded.codes[parts.train]

    labels = data.labels[real]
    shape = train.shape[1:]

    def draw() -> Tensor:
        return sample(prior, n, labels, generator=generator, grid=tuple(shape[:2]), **options)

    drawn = draw()
    place = torch.randint(len(train), (n, *shape), generator=generator)
    synthetic = synthetic_dataset(n).pixels(size)[:n]
    more = [draw() for _ in range(MORE - 1)]
    progress("sampled")

    def decoded(codes: Tensor) -> Tensor:
        return torch.cat([(255 * vqvae.decode(c)).round().byte() for c in codes.split(32)])

    def describe(images: Pixels | Tensor) -> Tensor:
        return classify(classifier, images, describe=True)

    def in_all_orientations(images: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Features, (8, n, D), and codes, (8, n, h, w, slots), of images turned and mirrored."""
        features, as_codes = [describe(images)], [codes]
        for move in range(1, 8):
            turned = moved(images, move)
            features.append(describe(turned))
            parts = [vqvae.encode(to_float(part)) for part in turned.split(32)]
            as_codes.append(torch.cat(parts))
        return torch.stack(features), torch.stack(as_codes)

    # Copies are looked for among pictures that all came through the decoder: its blur, in the
    # samples only, would hide them from photographs.
    drawn_views = in_all_orientations(decoded(drawn), drawn)
    held_out_views = in_all_orientations(decoded(encoded.codes[real]), encoded.codes[real])
    known = torch.cat([describe(decoded(part)) for part in train.split(512)]), train
    searched = {
        name: nearness(*three)
        for name, *three in zip(
            ("features", "codes"), known, held_out_views, drawn_views, strict=True
        )
    }
    progress("near-copies")
    reference, fakes = describe(pixels[real]), drawn_views[0][0]
    sets = {
        "real, another split": describe(pixels[other]),
        "reconstructions": describe(decoded(encoded.codes[other])),
        "samples": fakes,
        "codes of their places": describe(decoded(train.gather(0, place))),
        "synthetic lesions": describe(synthetic),
    }
    larger = {"samples": torch.cat([fakes, *(describe(decoded(codes)) for codes in more)])}
    rows = {}
    for name, found in sets.items():
        many = larger.get(name, found)
        distance, error = kernel_distance(reference, many)
        precision, recall = precision_recall(reference, found)
        rows[name] = {
            "images": len(many),
            "kernel_distance": distance,
            "standard_error": error,
            "frechet_distance": frechet_distance(reference, found),
            "precision": precision,
            "recall": recall,
        }
        progress(name)

    apart = {"samples": fakes, "real": reference}
    return {
        "data": repr(data),
        "split": split,
        "n": n,
        "features": fakes.shape[1],
        "rows": rows,
        "near_copies": {
            name: {
                "share": found.near_copies,
                "allowed": found.allowed,
                "threshold": found.threshold,
                "nearest": float(found.samples.min()),
            }
            for name, found in searched.items()
        },
        "diversity": {
            "distinct_grids": len(drawn.flatten(1).unique(dim=0)),
            "mean_distance": {
                name: _mean_distance(found, torch.ones(n, dtype=torch.bool))
                for name, found in apart.items()
            },
            "mean_distance_within_class": {
                CLASSES[c]: {
                    name: _mean_distance(found, labels == c) for name, found in apart.items()
                }
                for c in labels.unique().tolist()
                if (labels == c).sum() > 1
            },
        },
    }


def _mean_distance(features: Tensor, which: Tensor) -> float:
    return float(torch.pdist(features[which]).mean())


def as_text(result: dict[str, Any]) -> str:
    """The tables as people read them."""
    n, split = result["n"], result["split"]
    lines = [
        f"sets of {n} images beside {n} real ones of the split {split}; features of the classifier",
        f"(the kernel distance of the samples is of {result['rows']['samples']['images']})",
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
            f"nearer to a training lesion, turned or not, than 99 % of held-out ones, by {name}: "
            f"{100 * row['share']:.1f} % of the samples (expected: at most "
            f"{100 * row['allowed']:.1f} %)"
        )
    lines.append(f"distinct grids: {result['diversity']['distinct_grids']} of {n}")
    return "\n".join(lines)
