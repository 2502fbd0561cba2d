"""Wrong answers to the tasks of notebook 07: task -> (source, words of the reply)."""

NEAREST = "def nearest_training_grid(codes, train):\n"
BEST = "    best = equal.max(1)\n    return best.values, best.indices"
MMD = (
    "def squared_mmd(a, b):\n"
    "    n, m, d = len(a), len(b), a.shape[1]\n"
    "    aa, bb, ab = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))\n"
)
OFF = (
    "    aa = (aa.sum() - aa.diagonal().sum()) / (n * (n - 1))\n"
    "    bb = (bb.sum() - bb.diagonal().sum()) / (m * (m - 1))\n"
)
PRECISION = "def precision(real, generated, k=3):\n"


def nearest(count):
    return NEAREST + f"    equal = torch.stack([{count} for grid in codes])\n" + BEST


def ball(radius, distances="torch.cdist(generated, real)", reduce="any(1).float()"):
    return (
        PRECISION
        + f"    radius = {radius}\n"
        + f"    return float(({distances} <= radius).{reduce}.mean())"
    )


POWER = (
    "def copy_test_power(held_out, innocent, copies, innocent_index, copy_index):\n"
    "    distances = torch.cat([innocent[innocent_index], copies[copy_index]], 1)\n"
    "    sets, n = distances.shape\n"
)
TWO_SAMPLE = (
    "def two_sample_accuracy(a, b, fit, folds=5):\n"
    "    x = torch.cat([a, b])\n"
    "    y = torch.cat([-torch.ones(len(a)), torch.ones(len(b))])\n"
)
BALANCED = "    return float(correct[y < 0].mean() + correct[y > 0].mean()) / 2"


def power(threshold="held_out.quantile(0.01)", n="n", errors="2 * ", result="near > limit"):
    return (
        POWER
        + f"    near = (distances < {threshold}).double().mean(1)\n"
        + f"    limit = 0.01 + {errors}(0.01 * 0.99 / {n}) ** 0.5\n"
        + f"    return float(({result}).double().mean())"
    )


def two_sample(
    fold="torch.arange(len(x)) % folds",
    train="x[~test], y[~test]",
    tested="test",
    result=BALANCED,
):
    return (
        TWO_SAMPLE
        + f"    fold = {fold}\n    correct = torch.zeros(len(x))\n"
        + "    for i in range(folds):\n        test = fold == i\n"
        + f"        weights, bias = fit({train})\n"
        + f"        right = y[{tested}] * (x[{tested}] @ weights + bias) > 0\n"
        + f"        correct[{tested}] = right.float()\n"
        + result
    )


REAL_RADIUS = "torch.cdist(real, real).kthvalue(k + 1).values"

WRONG = {
    "nearest_training_grid": [
        (nearest("(train == grid).all(3).sum((1, 2))"), "only those at which all slots agree"),
        (nearest("(train == grid).any(-1).sum((1, 2))"), "any slot agrees"),
        (nearest("(codes == grid).sum((1, 2, 3))"), "compared with itself"),
        (nearest("(train == grid).float().mean((1, 2, 3))"), "not a fraction"),
        (
            NEAREST
            + "    differ = torch.stack([(train != grid).sum((1, 2, 3)) for grid in codes])\n"
            + "    best = differ.min(1)\n    return best.values, best.indices",
            "codes that differ",
        ),
        (
            nearest("(train == grid).sum((1, 2, 3))").replace("indices", "indices % 1000"),
            "from the start of `part`",
        ),
        (
            NEAREST
            + "    equal = torch.stack([(train == grid).sum((1, 2, 3)) for grid in codes])\n"
            + "    return equal.max(1).values, torch.arange(len(codes)) + 24",
            "returned index",
        ),
    ],
    "copy_test_power": [
        (power(result="near"), "fraction of *sets*"),
        (power("innocent.quantile(0.01)"), "only the held-out"),
        (power("held_out.quantile(0.99)"), "99 % quantile"),
        (power(n="sets"), "number of simulated sets"),
        (power(n="len(held_out)"), "number of held-out images"),
        (power(errors="0 * "), "adds two standard errors"),
        (power(errors=""), "one standard error is added"),
        (power(result="near <= limit"), "not* report"),
    ],
    "squared_mmd": [
        (MMD + "    return aa.mean() + bb.mean() - 2 * ab.mean()", "the diagonal of the matrix"),
        (
            MMD + "    aa.fill_diagonal_(0)\n    bb.fill_diagonal_(0)\n"
            "    return aa.mean() + bb.mean() - 2 * ab.mean()",
            "n (n - 1) pairs are left",
        ),
        (
            MMD.replace(" / d ", " ") + OFF + "    return aa + bb - 2 * ab.mean()",
            "not normalized",
        ),
        (
            MMD.replace(" / d ", " / d**0.5 ") + OFF + "    return aa + bb - 2 * ab.mean()",
            "square root of D",
        ),
        (MMD.replace(" + 1", "") + OFF + "    return aa + bb - 2 * ab.mean()", "1 is missing"),
        (MMD + OFF + "    return aa + bb - ab.mean()", "only once"),
        (MMD + OFF + "    return (aa + bb - 2 * ab.mean()).abs() ** 0.5", "square root is taken"),
        (
            MMD + OFF + "    if n == m:\n"
            "        ab = (ab.sum() - ab.diagonal().sum()) / (n * (n - 1))\n"
            "    return aa + bb - 2 * ab.mean()",
            "left out of the mixed term",
        ),
        (
            "def squared_mmd(a, b):\n"
            "    return vqlib.evaluation.set_measures.kernel_distance(a, b)[0]",
            "calls vqlib.evaluation.set_measures.kernel_distance",
        ),
    ],
    "precision": [
        (ball("torch.cdist(real, real).kthvalue(k).values"), "own first neighbor"),
        (
            ball("torch.cdist(real, generated).kthvalue(k).values"),
            "neighbor among the generated",
        ),
        (
            ball("torch.cdist(generated, generated).kthvalue(k + 1).values[:, None]"),
            "radius of its own",
        ),
        (
            ball(
                "torch.cdist(generated, generated).kthvalue(k + 1).values",
                "torch.cdist(real, generated)",
            ),
            "this is the recall",
        ),
        (ball(REAL_RADIUS, reduce="float()"), "pairs are counted"),
        (ball(REAL_RADIUS + ".mean()"), "one radius"),
        (
            PRECISION
            + f"    radius = {REAL_RADIUS}\n"
            + "    nearest = torch.cdist(generated, real).min(1)\n"
            + "    return float((nearest.values <= radius[nearest.indices]).float().mean())",
            "nearest real image",
        ),
    ],
    "two_sample_accuracy": [
        (two_sample(train="x, y"), "trained on all images"),
        (two_sample("torch.arange(len(x)) * folds // len(x)"), "prefers it"),
        (two_sample(train="x[test], y[test]"), "trained on the tested fold only"),
        (two_sample(tested="~test"), "tested on images that it was trained on"),
        (two_sample(result="    return float(correct.mean())"), "mean over all images"),
        (two_sample(train="x[~test], y"), "images and"),
        (two_sample().replace("range(folds)", "range(folds - 1)"), "should be called"),
        (
            TWO_SAMPLE + "    return vqlib.evaluation.set_measures.two_sample_accuracy(a, b)[0]",
            "calls vqlib.evaluation.set_measures.two_sample_accuracy",
        ),
    ],
}
