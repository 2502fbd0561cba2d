"""Measures that compare a set of generated images with a set of real ones, by their features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    x, y = torch.cat([a, b]).double(), torch.cat([torch.zeros(len(a)), torch.ones(len(b))]).double()
    fold = torch.cat([torch.randperm(len(s), generator=generator) % folds for s in (a, b)])
    class_weight = len(x) / 2 / torch.tensor([len(a), len(b)], dtype=torch.float64)
    correct = torch.zeros(len(x), dtype=torch.bool)
    for i in range(folds):
        train, test = fold != i, fold == i
        mean, std = x[train].mean(0), x[train].std(0).clamp_min(1e-6)
        z = (x - mean) / std
        # With more features than images the weights lie in the span of the images: use the
        # principal components of the training images instead of the features.
        basis = torch.linalg.svd(z[train], full_matrices=False).Vh.T
        z = z @ basis
        weights = torch.zeros(z.shape[1] + 1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

        def loss(
            z: Tensor = z[train],
            y: Tensor = y[train],
            w: Tensor = class_weight[y[train].long()],
            weights: Tensor = weights,
        ) -> Tensor:
            logits = z @ weights[1:] + weights[0]
            loss = F.binary_cross_entropy_with_logits(logits, y, w, reduction="sum")
            return loss + weight_decay / 2 * weights[1:].square().sum()

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(closure)
        with torch.no_grad():
            correct[test] = ((z[test] @ weights[1:] + weights[0]) > 0) == y[test].bool()
    rates = [correct[: len(a)].double().mean(), correct[len(a) :].double().mean()]
    variance = sum(r * (1 - r) / n for r, n in zip(rates, (len(a), len(b)), strict=True)) / 4
    return float(sum(rates) / 2), float(variance**0.5)
