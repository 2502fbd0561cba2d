"""Tasks of notebook 07: near copies, the kernel distance, precision."""

from __future__ import annotations

import torch
from torch import Tensor

from ..exercises import NotAttempted, Wrong, add_quiz, expect, task


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
        """Fraction of generated images inside a ball of a real image.

        real: features (n, D). generated: features (m, D). k: number of the neighbor that
        defines the radius. Returns a number in [0, 1].
        """
        ...
    ''',
    solution='''
    def precision(real, generated, k=3):
        """Fraction of generated images inside a ball of a real image.

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
        "A generated image counts if it lies in at least one ball: `any` over the real images, "
        "then the mean over the generated ones.",
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

    def nearest_ball(r, g, k):
        distance, index = torch.cdist(g, r).min(1)
        return float((distance <= _kth(r, r, k + 1)[index]).float().mean())

    mistakes = {
        "an image is counted as its own first neighbor. The distance 0 of an image to itself "
        "comes first, so the k-th neighbor is entry k + 1": lambda r, g, k: _inside(
            g, r, _kth(r, r, k)
        ),
        "this is the recall, the fraction of real images in balls of generated "
        "images": lambda r, g, k: _inside(r, g, _kth(g, g, k + 1)),
        "the radius comes from the other set: it is the distance of a real image to its k-th "
        "neighbor among the generated images. Use its neighbors among the real "
        "ones": lambda r, g, k: _inside(g, r, _kth(r, g, k)),
        "the radius comes from the other set: each generated image has a radius of its own. The "
        "balls belong to the real images": lambda r, g, k: float(
            (torch.cdist(g, r) <= _kth(g, g, k + 1)[:, None]).any(1).float().mean()
        ),
        "only the ball of the nearest real image is considered. An image may lie outside of it "
        "and inside a larger ball": nearest_ball,
        "pairs are counted. A generated image that lies in many balls counts "
        "once": lambda r, g, k: float((torch.cdist(g, r) <= _kth(r, r, k + 1)).float().mean()),
        "one radius is used for all balls, the mean radius. Each real image has its "
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
    idea = "Radius of each real image, then for each generated image: is it in any of the balls?"
    case = f"20 real and 31 generated images with 2 features, k = {cases[first][2]}"
    expect(answers[first], expected[first], case, idea)


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
    "Two sets of real lesions have 16 images each. Which distance indicates that they differ?",
    {
        "the Fréchet distance": "Right. Its estimate is biased: it is far above 0 for small sets.",
        "the kernel distance": "No. Its mean is 0 here, and its standard error is large.",
        "neither": "The kernel distance does not, but the Fréchet distance does, see below.",
    },
)


add_quiz(
    "07.3",
    "Which precision will the marginals have, which do not look like lesions?",
    {
        "near 0": "No. One large ball is enough for an image to count as realistic.",
        "about 0.2": "No, it is much higher.",
        "above 0.7": "Right. Precision alone does not detect this defect.",
    },
)
