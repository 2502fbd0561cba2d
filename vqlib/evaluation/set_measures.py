"""Measures that compare a set of generated images with a set of real ones, by their features.

Kernel distance (KID), Frechet distance (FID), precision and recall, density and coverage, a
classifier two-sample test (C2ST), and the search for near-copies of training images. Each function
takes features, float (n, D); see `features`. `benchmarks/calibration.py` measures how they respond
to known defects.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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


def density_coverage(real: Tensor, generated: Tensor, k: int = 5) -> tuple[float, float]:
    """Density and coverage of a set of generated images.

    The neighborhood of a real image reaches to its k-th nearest real image. Density is the number
    of neighborhoods that contain a generated image, averaged over the generated images and divided
    by k; coverage is the fraction of neighborhoods that contain at least one. Naeem et al.,
    "Reliable Fidelity and Diversity Metrics for Generative Models" (2020), arXiv:2002.09797,
    equations 3 and 5. Unlike precision, density counts neighborhoods: a few outliers among the real
    images, whose neighborhoods contain nearly everything, hardly raise it. Unlike recall, coverage
    uses no neighborhoods of generated images.

    Args:
        real, generated: float (n, D) and (m, D), features.
        k: number of the neighbor that defines the radius.

    Returns:
        Density, about 1 for images of the same distribution and above 1 for images near the modes
        only; coverage in [0, 1], which rises with m / n: for independent sets of the same
        distribution and size it is about 1 - 2^-k (0.97 for k = 5), Naeem et al., section 3.
    """
    # k + 1, because the smallest distance is that of the image to itself, 0.
    radius = torch.cdist(real, real).kthvalue(k + 1).values
    inside = torch.cdist(generated, real) <= radius  # (m, n)
    return float(inside.sum(1).float().mean() / k), float(inside.any(0).float().mean())


def two_sample_accuracy(
    a: Tensor, b: Tensor, *, folds: int = 5, weight_decay: float = 1.0, seed: int = 0
) -> tuple[float, float]:
    """Accuracy of a linear classifier that tells two sets apart: classifier two-sample test (C2ST).

    Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests" (2017), arXiv:1610.06545. Logistic
    regression on standardized features is trained on all folds but one and tested on that one. The
    sets count equally, whatever their sizes. 0.5 means that this classifier can't tell them apart.

    Args:
        a, b: float (n, D) and (m, D), features of different images: the same image in both sets
            would make the folds dependent.
        folds: number of parts in which each image is tested once.
        weight_decay: factor of |w|^2 / 2 in the loss, with the sum of the log losses.
        seed: of the assignment to folds.

    Returns:
        The mean accuracy on both sets, in [0, 1], and its binomial standard error.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.cat([a, b]).double()
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    # The gradient of the loss is a combination of the images. With D features and n < D images, n
    # coefficients are enough; the coordinates change, lengths and angles do not.
    x = x @ torch.linalg.svd(x, full_matrices=False).Vh.T
    is_b = torch.arange(len(x)) >= len(a)
    fold = torch.cat([torch.randperm(len(s), generator=generator) % folds for s in (a, b)])
    example_weight = torch.where(is_b, len(x) / 2 / len(b), len(x) / 2 / len(a)).double()
    correct = torch.zeros(len(x))
    for i in range(folds):
        train, test = fold != i, fold == i
        w, bias = _logistic_regression(x[train], is_b[train], example_weight[train], weight_decay)
        correct[test] = ((x[test] @ w + bias > 0) == is_b[test]).float()
    rates = [correct[~is_b].double().mean(), correct[is_b].double().mean()]
    variance = sum(r * (1 - r) / n for r, n in zip(rates, (len(a), len(b)), strict=True)) / 4
    return float(sum(rates) / 2), float(variance**0.5)


@torch.inference_mode(False)
@torch.enable_grad()
def _logistic_regression(
    x: Tensor, y: Tensor, example_weight: Tensor, weight_decay: float
) -> tuple[Tensor, Tensor]:
    """Weights and bias that minimize the weighted log losses + weight_decay / 2 * |w|^2."""
    x, y, example_weight = x.clone(), y.double(), example_weight.clone()
    w = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros((), dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, bias], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = x @ w + bias
        loss = F.binary_cross_entropy_with_logits(logits, y, example_weight, reduction="sum")
        loss = loss + weight_decay / 2 * w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach(), bias.detach()


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
