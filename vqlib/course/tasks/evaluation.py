"""Tasks of notebook 07: copies, kernel distance, precision, two-sample test."""

from __future__ import annotations

import torch
from torch import Tensor

from ..exercises import NotAttempted, Wrong, add_quiz, expect, task


def _number(result: object) -> float:
    """The number that an answer returned; raises `Wrong` or `NotAttempted`."""
    if result is None or result is Ellipsis:
        raise NotAttempted
    if isinstance(result, Tensor) and result.numel() == 1:
        return float(result)
    if isinstance(result, int | float):
        return float(result)
    raise Wrong(f"One number was expected, not {type(result).__name__}.")


@task(
    "07",
    given='''
    def nearest_training_grid(codes, train):
        """Largest number of equal codes with a training grid, and the index of this grid.

        codes: int64 (n, h, w, slots). train: int64 (N, h, w, slots).
        Returns two int64 tensors of shape (n,).
        """
        counts = torch.full((len(codes),), -1)
        indices = torch.zeros_like(counts)
        for start in range(0, len(train), 1000):  # 1,000 grids at a time, to save memory
            part = train[start : start + 1000]
            equal = torch.stack([(part == grid).all(-1).sum((1, 2)) for grid in codes])
            best = equal.max(1)  # over the grids of this part
            better = best.values > counts
            counts[better] = best.values[better]
            indices[better] = best.indices[better]
        return counts, indices
    ''',
    solution='''
    def nearest_training_grid(codes, train):
        """Largest number of equal codes with a training grid, and the index of this grid.

        codes: int64 (n, h, w, slots). train: int64 (N, h, w, slots).
        Returns two int64 tensors of shape (n,).
        """
        counts = torch.full((len(codes),), -1)
        indices = torch.zeros_like(counts)
        for start in range(0, len(train), 1000):  # 1,000 grids at a time, to save memory
            part = train[start : start + 1000]
            equal = torch.stack([(part == grid).sum((1, 2, 3)) for grid in codes])
            best = equal.max(1)  # over the grids of this part
            better = best.values > counts
            counts[better] = best.values[better]
            indices[better] = start + best.indices[better]
        return counts, indices
    ''',
    hints=(
        "What is the largest number that the function can return for a grid of 8 x 8 positions?",
        "`.all(-1)` reduces the slots before anything is counted. What happens to a position of "
        "which three codes agree?",
        "Sum the comparison over all three axes of a grid: rows, columns and slots. Then look at "
        "the indices: `best.indices` counts from the start of `part`, not of `train`.",
    ),
    hides=("vqlib.evaluation.set_measures.nearest_training",),
)
def nearest_training_grid(answer):
    h, w, slots, k = *torch.randint(3, 6, (2,)).tolist(), 4, 9
    total = h * w * slots
    train = torch.randint(k, (2400, h, w, slots))
    codes = train[1100 + torch.randperm(1300)[:6]].clone()  # copies of grids behind the first 1,000
    for i, grid in enumerate(codes):  # copies, ever less exact; one code of every position changes
        changed = torch.rand(h, w, slots) < 0.1 * i
        changed[..., i % slots] |= i > 0
        grid[changed] = (grid[changed] + 1) % k
    equal = (train == codes[:, None]).sum((2, 3, 4))
    expected = equal.max(1).values
    result = answer(codes, train)
    if result is None or result is Ellipsis:
        raise NotAttempted
    if not isinstance(result, tuple) or len(result) != 2:
        raise Wrong("Two tensors were expected: the numbers of equal codes, and the indices.")
    counts, indices = result
    case = f"6 changed copies and 2,400 training grids of {h} x {w} x {slots} codes"
    if isinstance(counts, Tensor) and counts.shape == (6,):
        if counts.is_floating_point():
            raise Wrong("The number of equal codes was expected, an int64 tensor, not a fraction.")
        at_positions = (train == codes[:, None]).all(-1).sum((2, 3)).max(1).values
        somewhere = (train == codes[:, None]).any(-1).sum((2, 3)).max(1).values
        mistakes = {
            "all grids have only equal codes. Is the set compared with itself instead of with "
            "the training grids?": torch.full_like(expected, total),
            "positions are counted, and only those at which all slots agree. Count "
            "codes": at_positions,
            "positions are counted at which any slot agrees. Count codes": somewhere,
            "the codes that differ are counted, not the equal ones": total - expected,
        }
        for mistake, wrong in mistakes.items():
            if torch.equal(counts, wrong) and not torch.equal(counts, expected):
                raise Wrong(f"For {case}: it looks as if {mistake}")
    idea = "Compare each grid with every training grid, and count the equal codes."
    expect(counts, expected, f"{case}, number of equal codes", idea)
    expect(
        indices, indices.clamp(0, 2399), f"{case}, indices", "An index of `train` is in 0..2399."
    )
    if torch.equal(indices, equal.max(1).indices % 1000) and (indices < 1000).all():
        raise Wrong(f"For {case}: the indices count from the start of `part`, not of `train`.")
    expect(
        equal.gather(1, indices[:, None])[:, 0],
        expected,
        f"{case}, equal codes with the training grid of the returned index",
        "The index is that of the training grid with the largest number.",
    )


def _copy_test_power(
    held_out: Tensor,
    innocent: Tensor,
    copies: Tensor,
    innocent_index: Tensor,
    copy_index: Tensor,
    *,
    threshold: float | None = None,
    n: float | None = None,
    errors: float = 2,
    mean: bool = False,
    quantile: float = 0.01,
) -> float:
    # The power, or the result of a typical mistake.
    if threshold is None:
        threshold = float(held_out.quantile(quantile))
    near = torch.cat([innocent[innocent_index], copies[copy_index]], 1) < threshold
    fraction = near.double().mean(1)
    if mean:
        return float(fraction.mean())
    n = n or near.shape[1]
    return float((fraction > 0.01 + errors * (0.01 * 0.99 / n) ** 0.5).double().mean())


@task(
    "07",
    given='''
    def copy_test_power(held_out, innocent, copies, innocent_index, copy_index):
        """Fraction of the simulated sets in which the test reports copying.

        held_out, innocent, copies: distances to the nearest training image, float (N,) each.
        innocent_index (sets, n - c) and copy_index (sets, c): int64. Row t chooses the images of
        simulated set t from `innocent` and from `copies`. Returns a number in [0, 1].
        """
        ...
    ''',
    solution='''
    def copy_test_power(held_out, innocent, copies, innocent_index, copy_index):
        """Fraction of the simulated sets in which the test reports copying.

        held_out, innocent, copies: distances to the nearest training image, float (N,) each.
        innocent_index (sets, n - c) and copy_index (sets, c): int64. Row t chooses the images of
        simulated set t from `innocent` and from `copies`. Returns a number in [0, 1].
        """
        distances = torch.cat([innocent[innocent_index], copies[copy_index]], dim=1)  # (sets, n)
        near_copies = (distances < held_out.quantile(0.01)).double().mean(1)  # fraction in each set
        n = distances.shape[1]
        limit = 0.01 + 2 * (0.01 * 0.99 / n) ** 0.5
        return float((near_copies > limit).double().mean())
    ''',
    hints=(
        "innocent[innocent_index] has the shape of the index: the distances of the innocent "
        "images of all simulated sets. Put the copies beside them: torch.cat(..., dim=1).",
        "The test knows neither the innocent images nor the copies. Its threshold comes from the "
        "held-out images. In each set, count the fraction of distances below it.",
        "The limit needs the number n of images in one set. The result is the fraction of *sets* "
        "above the limit, not the fraction of images.",
    ),
    hides=("vqlib.evaluation.set_measures.nearest_training",),
)
def copy_test_power(answer):
    different = None
    for c in (2, 4, 0, 7, 5):
        n, sets = 300, 400
        held_out, innocent = torch.rand(70) + 0.5, 0.6 * torch.rand(160) + 0.515
        copies = 0.5 * torch.rand(30) + 0.1 + 0.25 * torch.rand(())
        copies[:4] += 0.6
        held_out[0], innocent[:2] = 0.505, 0.4
        copies[4:10] = 0.49  # between the 1 % quantiles of `innocent` and of `held_out`
        arguments = (
            held_out,
            innocent,
            copies,
            torch.randint(160, (sets, n - c)),
            torch.randint(30, (sets, c)),
        )
        value = _number(answer(*arguments))
        expected = _copy_test_power(*arguments)
        case = f"{sets} sets of {n} images with {c} copies each"
        far = 1 - _copy_test_power(*arguments)
        mistakes = {
            "the mean fraction of near-copies was returned. The power is the fraction of *sets* in "
            "which this fraction exceeds the limit": _copy_test_power(*arguments, mean=True),
            "the threshold comes from the innocent images. The test has only the held-out "
            "images": _copy_test_power(*arguments, threshold=float(innocent.quantile(0.01))),
            "the threshold is the 99 % quantile of the held-out distances. Copies are *nearer* to "
            "the training images than others": _copy_test_power(*arguments, quantile=0.99),
            "the limit is computed with the number of simulated sets. It depends on the number of "
            "images in one set": _copy_test_power(*arguments, n=sets),
            "the limit is computed with the number of held-out images. n is the number of images "
            "in one set": _copy_test_power(*arguments, n=len(held_out)),
            "a set counts as soon as its fraction exceeds 0.01. The limit adds two standard "
            "errors": _copy_test_power(*arguments, errors=0),
            "one standard error is added to 0.01 instead of two": _copy_test_power(
                *arguments, errors=1
            ),
            "the sets are counted in which the test does *not* report copying": far,
        }
        if abs(value - expected) < 1e-6:
            continue
        matching = [text for text, wrong in mistakes.items() if abs(value - wrong) < 1e-6]
        if len(matching) == 1:  # two mistakes can have the same power, such as 1, in one case
            raise Wrong(f"For {case}: it looks as if {matching[0]}.")
        different = different or (value, expected, case)
    if different:
        idea = "Threshold from the held-out images; fraction below it in each set; limit; mean."
        expect(*different, idea, rtol=0, atol=1e-6)


def _squared_mmd(
    a: Tensor,
    b: Tensor,
    *,
    divide_by: float | None = None,
    plus: float = 1.0,
    degree: int = 3,
    diagonal: bool = False,
    squares: bool = False,
    factor: int = 2,
) -> float:
    """The estimate, or one with a typical mistake."""
    a, b = a.double(), b.double()
    divide_by = divide_by or a.shape[1]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / divide_by + plus) ** degree

    def mean_of_pairs(x: Tensor) -> Tensor:
        k, n = kernel(x, x), len(x)
        if not diagonal:
            k = k.fill_diagonal_(0)
        return k.sum() / (n * n if diagonal or squares else n * (n - 1))

    return float(mean_of_pairs(a) + mean_of_pairs(b) - factor * kernel(a, b).mean())


@task(
    "07",
    given='''
    def squared_mmd(a, b):
        """Unbiased estimate of the squared MMD of two sets of features, (n, D) and (m, D),
        with the kernel (x.y / D + 1)^3. Returns a number."""
        ...
    ''',
    solution='''
    def squared_mmd(a, b):
        """Unbiased estimate of the squared MMD of two sets of features, (n, D) and (m, D),
        with the kernel (x.y / D + 1)^3. Returns a number."""

        def kernel(x, y):
            return (x @ y.T / x.shape[1] + 1) ** 3

        def mean_of_pairs(x):
            k, n = kernel(x, x), len(x)
            return (k.sum() - k.diagonal().sum()) / (n * (n - 1))

        return mean_of_pairs(a) + mean_of_pairs(b) - 2 * kernel(a, b).mean()
    ''',
    hints=(
        "All values of the kernel for two sets are one matrix: (x @ y.T / D + 1) ** 3.",
        "In the first two sums i and j are different: leave out the diagonal of the matrix. How "
        "many pairs are left?",
        "n (n - 1) pairs are left. In the mixed term no pair is left out, also if n = m.",
    ),
    hides=("vqlib.evaluation.set_measures.kernel_distance",),
)
def squared_mmd(answer):
    for n, m in ((9, 6), (7, 7), (7, 7)):
        d = int(torch.randint(3, 8, ()))
        a, b = torch.randn(n, d), torch.randn(m, d) + 1
        result = answer(a, b)
        if result is None or result is Ellipsis:
            raise NotAttempted
        if isinstance(result, Tensor) and result.numel() != 1:
            raise Wrong(f"One number was expected, not a tensor of shape {tuple(result.shape)}.")
        value, expected = float(result), _squared_mmd(a, b)
        case = f"sets of {n} and {m} images with {d} features"
        mixed = (a.double() @ b.double().T / d + 1) ** 3
        without_diagonal = 0.0
        if n == m:
            off = (mixed.sum() - mixed.diagonal().sum()) / (n * (n - 1))
            without_diagonal = expected + 2 * float(mixed.mean() - off)
        mistakes = {
            "the pairs of an image with itself are included (the diagonal of the matrix), which "
            "makes the estimate biased": _squared_mmd(a, b, diagonal=True),
            "the diagonal is left out of the sum but counted in the number of pairs: n (n - 1) "
            "pairs are left, not n²": _squared_mmd(a, b, squares=True),
            "the kernel is not normalized: the product x.y is divided by the number of features "
            "D": _squared_mmd(a, b, divide_by=1),
            "the product x.y is divided by the square root of D. Here it is divided by "
            "D": _squared_mmd(a, b, divide_by=d**0.5),
            "the 1 is missing in the kernel": _squared_mmd(a, b, plus=0),
            "the degree of the kernel is 2, not 3": _squared_mmd(a, b, degree=2),
            "the mixed term is subtracted only once": _squared_mmd(a, b, factor=1),
            "the square root is taken. The estimate of the *squared* MMD can be negative": abs(
                expected
            )
            ** 0.5,
            "the diagonal is left out of the mixed term, too. An image of `a` and one of `b` are "
            "never the same image": without_diagonal,
        }
        tolerance = 1e-4 * abs(expected) + 1e-4
        if abs(value - expected) <= tolerance:
            continue
        # The nearest one, because the values of two mistakes can be similar by chance.
        mistake, wrong = min(mistakes.items(), key=lambda item: abs(value - item[1]))
        if abs(value - wrong) <= 1e-3 * abs(wrong) + 1e-4:
            raise Wrong(f"For {case}: it looks as if {mistake}.")
        idea = "Mean over pairs within `a`, plus within `b`, minus twice the mean over mixed pairs."
        expect(value, expected, case, idea, rtol=1e-4, atol=1e-4)


def _inside(points: Tensor, centers: Tensor, radius: Tensor) -> float:
    return float((torch.cdist(points, centers) <= radius).any(1).float().mean())


def _kth(points: Tensor, others: Tensor, k: int) -> Tensor:
    return torch.cdist(points, others).kthvalue(k, 1).values


@task(
    "07",
    given='''
    def precision(real, generated, k=3):
        """Fraction of generated images inside the neighborhood of a real image.

        real: features (n, D). generated: features (m, D). k: number of the neighbor that
        defines the radius. Returns a number in [0, 1].
        """
        ...
    ''',
    solution='''
    def precision(real, generated, k=3):
        """Fraction of generated images inside the neighborhood of a real image.

        real: features (n, D). generated: features (m, D). k: number of the neighbor that
        defines the radius. Returns a number in [0, 1].
        """
        radius = torch.cdist(real, real).kthvalue(k + 1, dim=1).values  # (n,)
        inside = torch.cdist(generated, real) <= radius  # (m, n)
        return float(inside.any(1).float().mean())
    ''',
    hints=(
        "First the radius of each real image: the distance to its k-th nearest neighbor among "
        "the other real images. torch.cdist gives all distances.",
        "In torch.cdist(real, real) the smallest distance of each row is 0: that of the image to "
        "itself.",
        "A generated image counts if it lies in at least one neighborhood: `any` over the real "
        "images, then the mean over the generated ones.",
    ),
    hides=("vqlib.evaluation.set_measures.precision_recall",),
)
def precision(answer):
    cases, answers = [], []
    for _ in range(12):
        n, m, k = 20, 31, int(torch.randint(1, 5, ()))
        real, generated = torch.randn(n, 2), 1.5 * torch.randn(m, 2) + 0.5
        result = answer(real, generated, k)
        if result is None or result is Ellipsis:
            raise NotAttempted
        if isinstance(result, Tensor) and result.numel() != 1:
            raise Wrong(f"One number was expected, not a tensor of shape {tuple(result.shape)}.")
        cases.append((real, generated, k))
        answers.append(float(result))

    def nearest_neighborhood(r, g, k):
        distance, index = torch.cdist(g, r).min(1)
        return float((distance <= _kth(r, r, k + 1)[index]).float().mean())

    mistakes = {
        "an image is counted as its own first neighbor": lambda r, g, k: _inside(
            g, r, _kth(r, r, k)
        ),
        "this is the recall, the fraction of real images in neighborhoods of generated "
        "images": lambda r, g, k: _inside(r, g, _kth(g, g, k + 1)),
        "the radius comes from the other set: it is the distance of a real image to its k-th "
        "neighbor among the generated images": lambda r, g, k: _inside(g, r, _kth(r, g, k)),
        "the radius comes from the other set: each generated image has a radius of its "
        "own": lambda r, g, k: float(
            (torch.cdist(g, r) <= _kth(g, g, k + 1)[:, None]).any(1).float().mean()
        ),
        "only the neighborhood of the nearest real image is considered. An image may lie outside "
        "of it and inside a larger neighborhood": nearest_neighborhood,
        "pairs are counted. A generated image that lies in many neighborhoods counts "
        "once": lambda r, g, k: float((torch.cdist(g, r) <= _kth(r, r, k + 1)).float().mean()),
        "one radius is used for all neighborhoods, the mean radius. Each real image has its "
        "own": lambda r, g, k: _inside(g, r, _kth(r, r, k + 1).mean()),
    }
    expected = [_inside(g, r, _kth(r, r, k + 1)) for r, g, k in cases]

    def agree(values: list[float]) -> bool:
        return all(abs(x - y) < 1e-4 for x, y in zip(answers, values, strict=True))

    if agree(expected):
        return
    for mistake, function in mistakes.items():
        if agree([function(*case) for case in cases]):
            raise Wrong(f"It looks as if {mistake}.")
    first = next(i for i, x in enumerate(expected) if abs(x - answers[i]) >= 1e-4)
    idea = "Radius of each real image; then: is a generated image in any of the neighborhoods?"
    case = f"20 real and 31 generated images with 2 features, k = {cases[first][2]}"
    expect(answers[first], expected[first], case, idea)


@task(
    "07",
    given='''
    def two_sample_accuracy(a, b, fit, folds=5):
        """Accuracy of a classifier that tells two sets apart, by cross-validation.

        a, b: features (n, D) and (m, D). fit(x, y) trains on the images x with the labels y,
        -1 for `a` and 1 for `b`, and returns weights (D,) and a bias. Each image is tested once.
        Returns the mean of the accuracies on both sets.
        """
        x = torch.cat([a, b])
        y = torch.cat([-torch.ones(len(a)), torch.ones(len(b))])
        fold = torch.arange(len(x)) * folds // len(x)  # 0 to folds - 1
        correct = torch.zeros(len(x))
        for i in range(folds):
            test = fold == i
            weights, bias = fit(x, y)
            correct[test] = (y[test] * (x[test] @ weights + bias) > 0).float()
        return float(correct[y < 0].mean() + correct[y > 0].mean()) / 2
    ''',
    solution='''
    def two_sample_accuracy(a, b, fit, folds=5):
        """Accuracy of a classifier that tells two sets apart, by cross-validation.

        a, b: features (n, D) and (m, D). fit(x, y) trains on the images x with the labels y,
        -1 for `a` and 1 for `b`, and returns weights (D,) and a bias. Each image is tested once.
        Returns the mean of the accuracies on both sets.
        """
        x = torch.cat([a, b])
        y = torch.cat([-torch.ones(len(a)), torch.ones(len(b))])
        fold = torch.arange(len(x)) % folds  # in each fold the same mixture of both sets
        correct = torch.zeros(len(x))
        for i in range(folds):
            test = fold == i
            weights, bias = fit(x[~test], y[~test])
            correct[test] = (y[test] * (x[test] @ weights + bias) > 0).float()
        return float(correct[y < 0].mean() + correct[y > 0].mean()) / 2
    ''',
    hints=(
        "Which images does `fit` see in each pass of the loop, and which are tested?",
        "Train on the images that are not in the tested fold: ~test. Is the accuracy for two real "
        "sets now 50 %? Print `fold` for both sets.",
        "With the given assignment, the first fold has images of `a` only, so the classifier is "
        "trained on more images of `b` and prefers `b`. Each fold needs the same mixture of both "
        "sets: torch.arange(len(x)) % folds, for example.",
    ),
    hides=("vqlib.evaluation.set_measures.two_sample_accuracy",),
)
def two_sample_accuracy(answer):
    different = None
    for n, m, folds in ((40, 60, 5), (30, 70, 5), (48, 48, 4), (45, 60, 5)):
        a, b = torch.randn(n, 6), torch.randn(m, 6) + 0.5
        x, is_b = torch.cat([a, b]), torch.arange(n + m) >= n
        calls = []

        def fit(rows, labels, x=x, is_b=is_b, calls=calls):
            if len(rows) != len(labels):
                raise Wrong(
                    f"`fit` received {len(rows)} images and {len(labels)} labels. Choose the same "
                    "part of both."
                )
            found = (rows[:, None] == x).all(-1)
            used = found.any(0)
            if not found.any(1).all():
                raise Wrong("`fit` received rows that are not images of the two sets.")
            if ((labels > 0) != is_b[found.float().argmax(1)]).any():
                raise Wrong("`fit` received labels that do not belong to the images.")
            # Any weights would do: the accuracy of the test images is computed from them below.
            weights, bias = torch.randn(6), torch.randn(())
            calls.append((used, weights, bias))
            return weights, bias

        value = _number(answer(a, b, fit, folds))
        case = f"sets of {n} and {m} images and {folds} folds"
        if len(calls) != folds:
            raise Wrong(f"For {case}: `fit` should be called {folds} times, not {len(calls)}.")
        tested = torch.stack([~used for used, _, _ in calls])
        if not tested.any():
            raise Wrong(
                f"For {case}: the classifier is trained on all images, also on tested ones."
            )
        if (tested.sum(1) > 0.6 * len(x)).all():
            raise Wrong(
                f"For {case}: the classifier is trained on the tested fold only. Train it on the "
                "other folds."
            )
        if (tested.sum(0) != 1).any():
            raise Wrong(
                f"For {case}: each image should be left out of the training in exactly one pass, "
                "the one in which it is tested."
            )
        shares = torch.stack(
            [each[is_b].float().mean() - each[~is_b].float().mean() for each in tested]
        )
        if shares.abs().max() > 0.4:
            worst = int(shares.abs().argmax())
            counts = int(tested[worst, :n].sum()), int(tested[worst, n:].sum())
            raise Wrong(
                f"For {case}: one tested fold has {counts[0]} images of `a` and {counts[1]} of "
                "`b`. The classifier sees more of the other set in training and prefers it. "
                "Each fold needs about the same mixture."
            )
        scores = torch.stack([x @ weights + bias for _, weights, bias in calls])
        correct = ((scores > 0) == is_b).float()
        tested = tested.float()
        right = (correct * tested).sum(0)  # each image is tested once
        expected = float(right[~is_b].mean() + right[is_b].mean()) / 2
        mistakes = {
            "the classifier is tested on the images that it was trained on": (
                (correct * (1 - tested)).sum(0) / (folds - 1)
            ),
            "the classifier is tested on images that it was trained on": correct[
                folds - 1 - tested[-1].long(), torch.arange(len(x))
            ],
            "the classifier is tested on all images, also on those that it was trained "
            "on": correct.mean(0),
        }
        results = {
            mistake: float(each[~is_b].mean() + each[is_b].mean()) / 2
            for mistake, each in mistakes.items()
        }
        results[
            "the mean over all images is returned. The sets count equally, so that 0.5 means "
            "guessing: take the mean of the accuracies on both sets"
        ] = float(right.mean())
        if abs(value - expected) < 1e-5:
            continue
        matching = [text for text, wrong in results.items() if abs(value - wrong) < 1e-5]
        if len(matching) == 1:  # two mistakes can have the same accuracy in one case
            raise Wrong(f"For {case}: it looks as if {matching[0]}.")
        different = different or (value, expected, case)
    if different:
        idea = "Train on all folds but one, test on that one, and average over both sets."
        expect(*different, idea, atol=1e-5)


add_quiz(
    "07.1",
    "Four of these images are generated. Which ones?",
    {
        "1, 3, 6 and 8": "Right. What did you look at? Four images cannot show whether this "
        "holds for the whole set.",
        "2, 4, 5 and 7": "No, these four are held-out lesions.",
        "1, 2, 7 and 8": "Two of them are: 1 and 8. The others are 3 and 6.",
    },
)


add_quiz(
    "07.2",
    "Two sets of 16 real lesions each: which estimate will be far above 0, on average, although "
    "nothing differs?",
    {
        "the Fréchet distance": "Right: it compares estimated means and covariances, and estimates "
        "from 16 images differ.",
        "the kernel distance": "No. It leaves out the pairs of an image with itself, so its mean "
        "is 0 for every number of images.",
        "neither": "No. The means and covariances of 16 images differ from those of 16 others.",
    },
)


add_quiz(
    "07.3",
    "Which precision will the marginals have, which do not look like lesions?",
    {
        "near 0": "No. One large neighborhood is enough for an image to count as realistic.",
        "about 0.2": "No, it is much higher.",
        "about 0.7": "Right. Precision alone does not detect this defect.",
    },
)


add_quiz(
    "07.4",
    "Which measures notice that real lesions were blurred by 2 pixels?",
    {
        "all measures, in all features": "No. A measure only sees what its features keep.",
        "the kernel distance in the classifier's features": "Hardly: the classifier was trained to "
        "ignore what does not help a diagnosis, and it sees the images at half their size.",
        "the measures in the pixel statistics": "Right. The power at high frequencies is part of "
        "these features, see the table below.",
    },
)


add_quiz(
    "07.5",
    "A generator returns training images, pixel by pixel. Which measure reports a problem?",
    {
        "the kernel distance": "No. Training images have the distribution of real lesions, so the "
        "distance is that of two sets of real lesions.",
        "density or coverage": "No. Both compare with real lesions, and training images are real "
        "lesions.",
        "none of them": "Right. Only the search for copies of section 2 uses the training images.",
    },
)


add_quiz(
    "07.6",
    "In features of EfficientNet-Lite0, a classifier tells all samples from photographs (100 %). "
    "What follows?",
    {
        "the prior is poor": "Not yet. Samples differ from photographs by the prior and by the "
        "decoder, and reconstructions, which use no prior, are told apart as well.",
        "the decoder is seen, whatever the prior does": "Right: reconstructions are told apart as "
        "well. To see the prior, compare the samples with reconstructions.",
        "the samples are useless": "No. This depends on what they are used for, see section 8.",
    },
)
