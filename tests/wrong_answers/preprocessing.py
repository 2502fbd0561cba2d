"""Wrong answers to the tasks of notebook 01: task -> (source, words of the reply)."""

import textwrap


def _weights(expression):
    return (
        "def class_weights(labels, num_classes):\n"
        "    counts = torch.bincount(labels, minlength=num_classes)\n"
        "    inverse = (counts > 0) / counts.clamp_min(1)\n"
        f"    return {expression}"
    )


def _square(*lines):
    body = "\n".join(f"    {line}" for line in lines)
    return f"def to_square(image, size):\n    width, height = image.size\n{body}"


def _input(expression):
    return (
        "def to_input(images, mean, std):\n"
        "    x = images.permute(0, 3, 1, 2)\n"
        "    m, s = mean.view(3, 1, 1), std.view(3, 1, 1)\n"
        f"    return {expression}"
    )


def _split(body):
    body = textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    return f"def grouped_split(groups, labels, test_share, generator):\n{body}"


# Lesions class by class; {take} chooses those of the test split from `lesions`.
CLASS_BY_CLASS = """
    chosen = []
    for label in labels.unique():
        lesions = groups[labels == label].unique()
        {take}
    in_test = torch.isin(groups, torch.cat(chosen))
    return {result}
"""
INDICES = "(~in_test).nonzero().flatten(), in_test.nonzero().flatten()"
SHUFFLE = "lesions = lesions[torch.randperm(len(lesions), generator=generator)]"
TAKE = "chosen.append(lesions[:max(1, round(test_share * len(lesions)))])"


def _by_class(take, result=INDICES):
    return _split(CLASS_BY_CLASS.format(take=take, result=result))


def _merge(body):
    body = textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    return f"def merge_lesions(count, pairs):\n    parent = list(range(count))\n{body}"


ROOT = """
    def root(lesion):
        while parent[lesion] != lesion:
            lesion = parent[lesion]
        return lesion
    for a, b in pairs:
        {join}
    return [{number} for lesion in range(count)]
"""


def _transform(turn, flip="x.flip(-1)"):
    return (
        "def transform_batch(images, choices):\n"
        "    out = torch.empty_like(images)\n"
        "    for choice in range(8):\n"
        "        chosen = choices == choice\n"
        "        x = images[chosen]\n"
        f"        x = {turn}\n"
        f"        out[chosen] = {flip} if choice >= 4 else x\n"
        "    return out"
    )


def _epoch(seeds, choices, order="torch.randperm(count, generator=g)"):
    return (
        "def epoch_batches(count, batch_size, seed, epoch, start=0):\n"
        "    def make(*key):\n"
        "        state = np.random.SeedSequence(key).generate_state(1)\n"
        "        return torch.Generator().manual_seed(int(state[0]))\n"
        f"    g = {seeds}\n"
        f"    order = {order}\n"
        "    batches = []\n"
        "    for number, indices in enumerate(order.split(batch_size)):\n"
        "        if number >= start:\n"
        f"            choices = {choices}\n"
        "            batches.append((indices, choices))\n"
        "    return batches"
    )


WRONG = {
    "class_weights": [
        (_weights("counts / counts.float().mean()"), "proportional to the counts"),
        (_weights("inverse / inverse.sum()"), "mean weight over the images is"),
        (_weights("inverse"), "mean weight over the images is"),
        (_weights("inverse / inverse.sum() * (counts > 0).sum()"), "mean over the classes is 1"),
        (_weights("len(labels) / (num_classes * counts)"), "infinite"),
        (_weights("inverse * len(labels) / num_classes"), "only classes that occur"),
    ],
    "to_square": [
        (_square("return image.resize((size, size))"), "circle becomes an ellipse"),
        (
            _square(
                "side = min(width, height)",
                "return image.crop((0, 0, side, side)).resize((size, size))",
            ),
            "not at the center",
        ),
        (
            _square(
                "left, top = (width - size) // 2, (height - size) // 2",
                "return image.crop((left, top, left + size, top + size))",
            ),
            "largest square has",
        ),
        (
            _square(
                "left = (width - height) // 2",
                "return image.crop((left, 0, left + height, height)).resize((size, size))",
            ),
            "240 x 400",
        ),
        (_square("side = min(width, height)", "return image.crop((0, 0, side, side))"), "pixels."),
        (
            _square("return vqlib.data.resize_to_square(image, size)"),
            "calls vqlib.data.resize_to_square",
        ),
    ],
    "to_input": [
        (_input("((x - m) / s) / 255"), "before the division by 255"),
        (_input("(x // 255 - m) / s"), "integer division"),
        (_input("(x.float() - m) / s"), "as if they were in [0, 1]"),
        (_input("x / 255"), "not normalized"),
        (
            "def to_input(images, mean, std):\n"
            "    b, h, w, _ = images.shape\n"
            "    m, s = mean.view(3, 1, 1), std.view(3, 1, 1)\n"
            "    return (images.view(b, 3, h, w) / 255 - m) / s",
            "order of memory",
        ),
        (_input("(x / 255 - m) * s"), "Order:"),
    ],
    "grouped_split": [
        (
            _split("""
            order = torch.randperm(len(groups), generator=generator)
            n_test = round(test_share * len(order))
            return order[n_test:], order[:n_test]
            """),
            "in train and in test",
        ),
        (
            _split("""
            lesions = groups.unique()
            lesions = lesions[torch.randperm(len(lesions), generator=generator)]
            in_test = torch.isin(groups, lesions[:round(test_share * len(lesions) / 2)])
            return (~in_test).nonzero().flatten(), in_test.nonzero().flatten()
            """),
            "not stratified",
        ),
        (_by_class(TAKE), "not shuffled"),
        (
            _by_class(SHUFFLE.replace(", generator=generator", "") + "\n        " + TAKE),
            "pass `generator`",
        ),
        (
            _by_class(
                SHUFFLE + "\n        chosen.append(lesions[:int(test_share * len(lesions))])"
            ),
            "has none in test",
        ),
        (_by_class(SHUFFLE + "\n        " + TAKE, "~in_test, in_test"), "masks"),
        (
            _by_class(
                SHUFFLE + "\n        " + TAKE, "groups[~in_test].unique(), groups[in_test].unique()"
            ),
            "numbers of lesions",
        ),
        (
            _by_class(
                "members = (labels == label).nonzero().flatten()\n"
                "        chosen.append(groups[members[:1]])"
            ),
            "not stratified",
        ),
    ],
    "merge_lesions": [
        (
            _merge("""
            for a, b in pairs:
                parent[b] = parent[a]
            return parent
            """),
            "must not undo an earlier one",
        ),
        (
            _merge("""
            for a, b in pairs:
                parent[a] = parent[b] = min(parent[a], parent[b])
            return parent
            """),
            "join whole groups",
        ),
        (_merge(ROOT.format(join="parent[a] = b", number="root(lesion)")), "join whole groups"),
        (_merge(ROOT.format(join="parent[b] = root(a)", number="root(lesion)")), "join whole"),
        (
            _merge(ROOT.format(join="parent[root(a)] = root(b)", number="parent[lesion]")),
            "different numbers",
        ),
        (
            _merge("""
            for a, b in pairs:
                parent[a] = parent[b] = 0
            return parent
            """),
            "share a number",
        ),
    ],
    "transform_batch": [
        (
            "def transform_batch(images, choices):\n"
            "    choice = int(choices[0])\n"
            "    images = torch.rot90(images, choice % 4, dims=(-2, -1))\n"
            "    return images.flip(-1) if choice >= 4 else images.clone()",
            "All images get the same transform",
        ),
        (
            _transform("torch.rot90(x, choice % 4, dims=(-2, -1))", "x"),
            "only 4 of the 8",
        ),
        (_transform("x"), "only 2 of the 8"),
        (_transform("torch.rot90(x, choice % 4, dims=(-1, -2))"), "clockwise"),
        (_transform("torch.rot90(x, choice % 4, dims=(-2, -1))", "x.flip(-2)"), "vertical"),
        (
            _transform(
                "torch.rot90(x.flip(-1) if choice >= 4 else x, choice % 4, dims=(-2, -1))", "x"
            ),
            "flip comes first",
        ),
        (
            "def transform_batch(images, choices):\n"
            "    out = torch.empty_like(images)\n"
            "    for i, choice in enumerate(choices):\n"
            "        turned = torch.rot90(images[i], int(choice) % 4, dims=(-2, -1))\n"
            "        out[i] = turned.flip(-1) if choice >= 4 else turned\n"
            "    return out",
            "loop over the images",
        ),
        (
            _transform("torch.rot90(x, choice % 4, dims=(-2, -1))").replace(
                "torch.empty_like(images)", "torch.zeros(images.shape)"
            ),
            "keep the dtype",
        ),
        (
            _transform("torch.rot90(x, choice % 4, dims=(-2, -1))").replace(
                "return out", "return out.float()"
            ),
            "keep the dtype",
        ),
    ],
    "epoch_batches": [
        (
            _epoch("make(seed, epoch)", "torch.randint(8, (len(indices),), generator=g)"),
            "their transforms differ",
        ),
        (
            _epoch(
                "make(seed + epoch, 0)",
                "torch.randint(8, (len(indices),), generator=make(seed + epoch, number + 1))",
            ),
            "have the same order",
        ),
        (
            _epoch(
                "make(seed, epoch)",
                "torch.randint(8, (len(indices),), generator=make(seed, epoch))",
            ),
            "Every batch has the same transforms",
        ),
        (
            _epoch("make(seed, epoch)", "torch.randint(8, (len(indices),))"),
            "global random state",
        ),
        (
            _epoch(
                "make(seed)",
                "torch.randint(8, (len(indices),), generator=make(seed, epoch, number))",
            ),
            "The next epoch has the same order",
        ),
        (
            _epoch(
                "make(seed, epoch)",
                "torch.randint(8, (len(indices),), generator=make(seed, number))",
            ),
            "The next epoch has the same transforms",
        ),
        (
            _epoch(
                "make(seed, epoch)",
                "torch.randint(8, (len(indices),), generator=make(seed, epoch, number))",
                "torch.arange(count)",
            ),
            "not shuffled",
        ),
        (
            _epoch(
                "make(seed, epoch)",
                "torch.randint(8, (len(indices),), generator=make(seed, epoch, number))",
            ),
            "share one key",
        ),
    ],
}
