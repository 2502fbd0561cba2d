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
