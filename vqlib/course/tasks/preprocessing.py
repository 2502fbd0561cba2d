"""Tasks of notebook 01: class weights, squares, the order of transforms, splits by lesion, dihedral
transforms of a batch, and batches that can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from ...data import dihedral_transform
from ..exercises import NotAttempted, Wrong, add_quiz, expect, task


def _unanswered(result: Any) -> bool:
    return result is None or result is Ellipsis


@task(
    "01",
    given='''
    def class_weights(labels, num_classes):
        """A weight for each class, float (num_classes,), from the labels of the images, int64 (N,).
        A class without images gets the weight 0."""
        ...
    ''',
    solution='''
    def class_weights(labels, num_classes):
        """A weight for each class, float (num_classes,), from the labels of the images, int64 (N,).
        A class without images gets the weight 0."""
        counts = torch.bincount(labels, minlength=num_classes)
        present = counts > 0
        weights = len(labels) / (present.sum() * counts.clamp_min(1))
        return weights * present
    ''',
    hints=(
        "`torch.bincount(labels, minlength=num_classes)` counts the images of each class.",
        "The total weight of a class is weight x count. It must be the same for each class that "
        "occurs, and the sum over the classes must be N.",
        "With C classes that occur, the total of a class is N / C, so the weight is "
        "N / (C x count).",
    ),
)
def class_weights(answer):
    for num_classes, empty in ((4, None), (7, 2), (5, 4)):
        classes = [c for c in range(num_classes) if c != empty]
        counts = torch.randperm(40)[: len(classes)] + 5
        labels = torch.tensor(classes).repeat_interleave(counts)
        labels = labels[torch.randperm(len(labels))]
        counts = torch.bincount(labels, minlength=num_classes).float()
        inverse = torch.where(counts > 0, 1 / counts, 0)
        expected = inverse * len(labels) / len(classes)
        result = answer(labels, num_classes)
        if isinstance(result, Tensor) and result.shape == expected.shape:
            _look_at_weights(result.float(), counts, inverse)
        case = f"classes with {counts.int().tolist()} images"
        expect(result, expected, case, "Which total weight should a class have?", rtol=1e-3)


def reference_weights(labels: Tensor, num_classes: int) -> Tensor:
    """N / (C count) for each of the C classes that occur, and 0 for the others."""
    counts = torch.bincount(labels, minlength=num_classes)
    occurring = int((counts > 0).sum())
    return torch.where(counts > 0, len(labels) / (occurring * counts), 0)


def _look_at_weights(result: Tensor, counts: Tensor, inverse: Tensor) -> None:
    if not result.isfinite().all():
        raise Wrong("A class without images gets an infinite weight or NaN. It should get 0.")
    if not torch.allclose(result.sum() * inverse, result * inverse.sum(), rtol=1e-3):
        if torch.allclose(result.sum() * counts, result * counts.sum(), rtol=1e-3):
            raise Wrong(
                "These weights are proportional to the counts: frequent classes get larger weights."
            )
        if (result[counts == 0] > 0).any():
            raise Wrong("A class without images should get the weight 0.")
        return
    mean = float((result * counts).sum() / counts.sum())
    if abs(mean - 1) < 1e-3:
        return
    occurring = int((counts > 0).sum())
    if abs(mean - occurring / len(counts)) < 1e-3:
        raise Wrong(f"The mean over the images is {mean:.3f}: count only classes that occur.")
    if abs(float(result.sum()) / occurring - 1) < 1e-3:
        raise Wrong(
            f"The mean over the classes is 1, but the mean over the images is {mean:.3f}. The loss "
            "is a mean over images."
        )
    raise Wrong(
        f"The ratios are right, but the mean weight over the images is {mean:.3g} instead of 1. "
        "The loss would be scaled by this factor."
    )


@task(
    "01",
    given='''
    def to_square(image, size):
        """The largest centered square of an image, PIL of any width and height, resized to
        size x size pixels. Returns a PIL image."""
        return image.resize((size, size))
    ''',
    solution='''
    def to_square(image, size):
        """The largest centered square of an image, PIL of any width and height, resized to
        size x size pixels. Returns a PIL image."""
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        return image.resize((size, size))
    ''',
    hints=(
        "Cut first, then resize. The square is as high as a landscape image and as wide as a "
        "portrait image.",
        "`image.crop((left, top, right, bottom))` cuts out a rectangle. Its side is "
        "`min(image.size)`.",
        "left = (image.width - side) // 2, and top in the same way from the height.",
    ),
    hides=("vqlib.data.resize_to_square",),
)
def to_square(answer):
    for width, height in ((600, 450), (240, 400), (300, 300)):
        size = int(torch.randint(32, 100, ()))
        result = answer(_ramps(width, height), size)
        if _unanswered(result):
            raise NotAttempted
        if not isinstance(result, Image.Image):
            raise Wrong(f"A PIL image was expected, not {type(result).__name__}.")
        case = f"an image of {width} x {height} pixels"
        if result.size != (size, size):
            raise Wrong(f"For {case} and size {size}, the result has {result.size} pixels.")
        _look_at_square(np.asarray(result.convert("RGB"), float), width, height, case)


def _ramps(width: int, height: int) -> Image.Image:
    """An image whose red is the column and whose green is the row, as shares of 255. Resizing by
    any method keeps them, so they tell where a pixel comes from."""
    x, y = (np.arange(n) + 0.5 for n in (width, height))
    pixels = np.zeros((height, width, 3))
    pixels[..., 0], pixels[..., 1] = 255 * x / width, 255 * y[:, None] / height
    return Image.fromarray(pixels.round().astype(np.uint8))


def _look_at_square(pixels: np.ndarray, width: int, height: int, case: str) -> None:
    size, side = len(pixels), min(width, height)
    middle = pixels[size // 2, size // 2]
    step = max(1, size // 8)  # away from the borders, which depend on the method of resizing
    inner = slice(step, size - step)
    x, y = pixels[inner, inner, 0].mean(0) / 255 * width, pixels[inner, inner, 1].mean(1) / 255
    y = y * height
    wide, high = (
        np.polyfit(np.arange(len(line)), line, 1)[0] * size for line in (x, y)
    )  # how much of the frame is visible
    place = f"{middle[0] / 255:.0%} of the width and {middle[1] / 255:.0%} of the height"
    if abs(wide - high) > 0.03 * side:
        raise Wrong(
            f"For {case}: the result shows {wide:.0f} x {high:.0f} pixels of the frame as a "
            "square, so a circle becomes an ellipse."
        )
    if abs(wide - side) > 0.03 * side:
        raise Wrong(
            f"For {case}: the result shows a square of {wide:.0f} pixels. The largest square has "
            f"{side} pixels."
        )
    if abs(middle[0] / 255 - 0.5) > 0.03 or abs(middle[1] / 255 - 0.5) > 0.03:
        raise Wrong(f"For {case}: the middle of the result is at {place}, not at the center.")


@task(
    "01",
    given='''
    def to_input(images, mean, std):
        """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), normalized with the mean and the standard
        deviation of each channel, float (3,), such as those of ImageNet."""
        images = images.permute(0, 3, 1, 2)
        images = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        return images / 255
    ''',
    solution='''
    def to_input(images, mean, std):
        """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), normalized with the mean and the standard
        deviation of each channel, float (3,), such as those of ImageNet."""
        images = images.permute(0, 3, 1, 2) / 255
        return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    ''',
    hints=(
        "The standard deviation is right, the mean is not. In which units are the images when the "
        "mean is subtracted?",
        "ToTensor (division by 255) comes before Normalize (subtract the mean, divide by the "
        "standard deviation).",
    ),
)
def to_input(answer):
    size = torch.randint(4, 9, (3,)).tolist()
    images = torch.randint(256, (*size, 3), dtype=torch.uint8)
    mean, std = torch.rand(3) * 0.4 + 0.3, torch.rand(3) * 0.2 + 0.1
    m, s = mean.view(3, 1, 1), std.view(3, 1, 1)
    first = images.permute(0, 3, 1, 2)
    expected = (first / 255 - m) / s
    result = answer(images, mean, std)
    if isinstance(result, Tensor) and result.shape == expected.shape:

        def equals(other: Tensor) -> bool:
            return torch.allclose(result.float(), other, rtol=1e-3, atol=1e-3)

        if equals((first - m) / s / 255):
            raise Wrong(
                "Normalize comes before the division by 255: a mean of about 0.5 is subtracted "
                "from pixels in 0..255."
            )
        if equals((first // 255 - m) / s):
            raise Wrong("An integer division: // 255 turns every pixel below 255 into 0.")
        if equals((first - m) / s):
            raise Wrong("Pixels in 0..255 are normalized as if they were in [0, 1]. Divide by 255.")
        if equals(first / 255):
            raise Wrong("The pixels are in [0, 1] but not normalized.")
        if equals((images.view(len(images), 3, *size[1:]) / 255 - m) / s):
            raise Wrong(
                "`view` and `reshape` keep the order of memory, where the three colors of a pixel "
                "are neighbors. The channels have to be moved: permute(0, 3, 1, 2)."
            )
    case = f"images of shape {tuple(images.shape)}"
    expect(result, expected, case, "Order: permute, to [0, 1], normalize.")


@task(
    "01",
    given='''
    def grouped_split(groups, labels, test_share, generator):
        """Indices of the training and of the test images, int64 each. groups, labels: lesion and
        class of each image, int64 (N,). If a class has n lesions, round(test_share * n) of them,
        but at least 1, are in the test split with all their images."""
        order = torch.randperm(len(groups), generator=generator)
        n_test = round(test_share * len(groups))
        return order[n_test:], order[:n_test]
    ''',
    solution='''
    def grouped_split(groups, labels, test_share, generator):
        """Indices of the training and of the test images, int64 each. groups, labels: lesion and
        class of each image, int64 (N,). If a class has n lesions, round(test_share * n) of them,
        but at least 1, are in the test split with all their images."""
        test_groups = []
        for label in labels.unique():
            lesions = groups[labels == label].unique()
            order = lesions[torch.randperm(len(lesions), generator=generator)]
            test_groups.append(order[: max(1, round(test_share * len(lesions)))])
        in_test = torch.isin(groups, torch.cat(test_groups))
        return (~in_test).nonzero().flatten(), in_test.nonzero().flatten()
    ''',
    hints=(
        "Shuffle lesions, not images. `groups.unique()` are the lesions, and "
        "`torch.isin(groups, test_groups)` says which images belong to some of them.",
        "For the classes: loop over `labels.unique()`, and shuffle the lesions of one class, "
        "`groups[labels == label].unique()`, on their own.",
        "Take `max(1, round(test_share * len(lesions)))` lesions of each class for the test split.",
    ),
    hides=("vqlib.data.ImageDataset.split",),
)
def grouped_split(answer):
    for share in (0.2, 0.1):
        sizes = [int(torch.randint(24, 40, ())), int(torch.randint(11, 18, ())), 4]
        class_of = torch.arange(3).repeat_interleave(torch.tensor(sizes))
        class_of = class_of[torch.randperm(len(class_of))]
        groups = torch.arange(len(class_of)).repeat_interleave(
            torch.randint(1, 5, (len(class_of),))
        )
        groups = groups[torch.randperm(len(groups))]
        labels = class_of[groups]
        splits = [answer(groups, labels, share, Generator().manual_seed(i)) for i in (0, 0, 1, 2)]
        if any(_unanswered(split) for split in splits):
            raise NotAttempted
        for split in splits:
            _look_at_split(split, groups, class_of, share)
        test = [set(split[1].tolist()) for split in splits]
        if test[0] != test[1]:
            raise Wrong(
                "Two generators with the same seed give different splits: pass `generator` to "
                "every random function."
            )
        if test[0] == test[2] == test[3]:
            raise Wrong(
                "Different seeds give the same split: the lesions are not shuffled. Files are "
                "often sorted by hospital or date, so the order of the files is not random."
            )


def _look_at_split(split: Any, groups: Tensor, class_of: Tensor, share: float) -> None:
    if len(split) != 2 or not all(isinstance(part, Tensor) and part.ndim == 1 for part in split):
        raise Wrong("Return two tensors of image indices, train and test.")
    if any(part.dtype == torch.bool for part in split):
        raise Wrong("These are masks. Indices come from mask.nonzero().flatten().")
    train, test = split
    both = torch.cat([train, test]).sort().values
    if len(both) != len(groups) or not torch.equal(both, torch.arange(len(groups))):
        raise Wrong(
            f"{len(groups)} images have to appear exactly once, in train or in test; got "
            f"{len(train)} and {len(test)} indices, {len(both.unique())} of them different. Are "
            "these indices of images, or numbers of lesions?"
        )
    lesions = [set(groups[part].tolist()) for part in split]
    if shared := lesions[0] & lesions[1]:
        raise Wrong(
            f"{len(shared)} of {len(class_of)} lesions are in train and in test. Divide the "
            "lesions, and let each image follow its lesion."
        )
    test_classes = class_of[sorted(lesions[1])] if lesions[1] else torch.zeros(0).long()
    totals = torch.bincount(class_of)
    found = torch.bincount(test_classes, minlength=len(totals))
    for total, got in zip(totals.tolist(), found.tolist()):
        if got == 0:
            raise Wrong(
                f"The split is not stratified: a class with {total} lesions has none in test. It "
                "needs at least one."
            )
    for total, got in zip(totals.tolist(), found.tolist()):
        if got != (wanted := max(1, round(share * total))):
            raise Wrong(
                f"The split is not stratified: a class with {total} lesions and a test share of "
                f"{share} should have {wanted} lesions in test, not {got}. Shuffle and divide each "
                "class on its own."
            )


@task(
    "01",
    given='''
    def merge_lesions(count, pairs):
        """Groups of lesions that are the same. There are `count` lesion ids, 0 to count - 1, and
        `pairs` is a list of (a, b): a and b are the same lesion. Returns a list of `count`
        numbers, equal for ids of one lesion and different for different lesions."""
        ...
    ''',
    solution='''
    def merge_lesions(count, pairs):
        """Groups of lesions that are the same. There are `count` lesion ids, 0 to count - 1, and
        `pairs` is a list of (a, b): a and b are the same lesion. Returns a list of `count`
        numbers, equal for ids of one lesion and different for different lesions."""
        parent = list(range(count))

        def root(lesion):
            while parent[lesion] != lesion:
                lesion = parent[lesion]
            return lesion

        for a, b in pairs:
            parent[root(a)] = root(b)
        return [root(lesion) for lesion in range(count)]
    ''',
    hints=(
        "Let each lesion point to a parent, at first to itself: parent = list(range(count)). The "
        "root of a lesion is where following the parents ends.",
        "A pair (a, b) joins two whole trees: the root of one becomes the child of the other root. "
        "If you join a and b themselves, one of them loses its former parent. (If your code does "
        "not end, interrupt it: two lesions have become each other's parents.)",
        "parent[root(a)] = root(b), and in the end the number of a lesion is its root.",
    ),
    hides=("vqlib.lesions.datasets.number_lesions",),
)
def merge_lesions(answer):
    shuffled = torch.randperm(30).tolist()
    chain = list(pairwise(shuffled[:6]))
    cases = [  # redundant pairs come last: with them, some wrong answers do not end
        (4, [(1, 2)]),
        (3, [(0, 2), (1, 2)]),
        (3, [(2, 0), (2, 1)]),
        (4, [(0, 1), (2, 3), (1, 2)]),
        (4, [(1, 0), (3, 2), (0, 3)]),
        (30, chain),
        (30, [chain[i] for i in torch.randperm(len(chain)).tolist()]),
        (5, []),
        (3, [(0, 1), (1, 2), (2, 0), (0, 1)]),
        (30, torch.randint(30, (18, 2)).tolist()),
    ]
    for count, pairs in cases:
        result = answer(count, list(pairs))
        if _unanswered(result):
            raise NotAttempted
        if isinstance(result, Tensor):
            result = result.tolist()
        case = f"{count} lesions and the pairs {pairs}"
        if not isinstance(result, list) or len(result) != count:
            raise Wrong(f"For {case}, a list of {count} numbers was expected, got {result!r}.")
        _look_at_groups(result, count, pairs, case)


def _look_at_groups(result: list, count: int, pairs: Sequence, case: str) -> None:
    expected = list(range(count))
    for a, b in pairs:  # the slow way: rename one of the two groups everywhere
        expected = [expected[b] if group == expected[a] else group for group in expected]
    for a, b in pairs:
        if result[a] != result[b]:
            raise Wrong(
                f"For {case}: {a} and {b} are a pair but have different numbers in {result}. A "
                "later pair must not undo an earlier one: join whole groups, not two lesions."
            )
    for a in range(count):
        for b in range(a):
            if (result[a] == result[b]) == (expected[a] == expected[b]):
                continue
            if expected[a] == expected[b]:
                raise Wrong(
                    f"For {case}: {b} and {a} are connected by a chain of pairs but have different "
                    f"numbers in {result}."
                )
            raise Wrong(f"For {case}: {b} and {a} are different lesions but share a number.")


class _RecordStates(TorchFunctionMode):
    """Notices whether two different random calls start from the same state of a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[bytes, str] = {}  # state -> the first call that started from it
        self.shared = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if isinstance(generator := kwargs.get("generator"), Generator):
            state, call = generator.get_state().numpy().tobytes(), f"{func} {args}"
            self.shared |= self.calls.setdefault(state, call) != call
        return func(*args, **kwargs)


class _CountCalls(TorchFunctionMode):
    """Counts calls of PyTorch functions, which shows a loop over images."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


@task(
    "01",
    given='''
    def transform_batch(images, choices):
        """Apply to each image of a batch, (B, C, S, S) of any dtype, the dihedral transform that
        `choices`, int64 (B,) in 0..7, names for it: choice % 4 quarter turns counter-clockwise,
        and then, if choice >= 4, a horizontal flip. No loop over the images; a loop over
        the eight transforms is allowed."""
        ...
    ''',
    solution='''
    def transform_batch(images, choices):
        """Apply to each image of a batch, (B, C, S, S) of any dtype, the dihedral transform that
        `choices`, int64 (B,) in 0..7, names for it: choice % 4 quarter turns counter-clockwise,
        and then, if choice >= 4, a horizontal flip. No loop over the images; a loop over
        the eight transforms is allowed."""
        out = torch.empty_like(images)
        for choice in range(8):
            chosen = choices == choice
            turned = torch.rot90(images[chosen], choice % 4, dims=(-2, -1))
            out[chosen] = turned.flip(-1) if choice >= 4 else turned
        return out
    ''',
    hints=(
        "Loop over the eight transforms, and handle all images with the same choice at once.",
        "`images[choices == 3]` are these images, and `out[choices == 3] = ...` puts them back.",
        "`torch.rot90(x, k, dims=(-2, -1))` turns counter-clockwise; `x.flip(-1)` is the "
        "horizontal flip.",
    ),
    hides=("vqlib.data.dihedral_transform", "vqlib.data.random_dihedral"),
)
def transform_batch(answer):
    size = int(torch.randint(5, 8, ()))
    choices = torch.cat([torch.arange(8), torch.randint(8, (392,))])[torch.randperm(400)]
    images = torch.randint(256, (400, 3, size, size), dtype=torch.uint8)
    choices[0] = 5  # the first image tells whether all follow it
    wrong_dtype = "The images are uint8 and the result is not: keep the dtype of `images`."
    with _CountCalls() as counter:
        try:
            result = answer(images, choices)
        except RuntimeError as error:
            if "dtypes match" in str(error):  # PyTorch's words for out[...] = images[...]
                raise Wrong(wrong_dtype) from error
            raise
    if isinstance(result, Tensor) and result.dtype != images.dtype:
        raise Wrong(wrong_dtype)
    expected = _transform(images, choices)
    if isinstance(result, Tensor) and result.shape == expected.shape:
        _look_at_transforms(result, images, choices)
    expect(
        result,
        expected,
        f"{len(images)} images of {size} x {size} pixels",
        "Try single images: one choice at a time.",
    )
    if counter.calls > 300:
        raise Wrong(
            f"The result is right, but it took {counter.calls} calls of PyTorch for 400 images: a "
            "loop over the images. Loop over the eight transforms instead."
        )


def _transform(images: Tensor, choices: Tensor, one: Callable = dihedral_transform) -> Tensor:
    return torch.stack([one(image, choice) for image, choice in zip(images, choices.tolist())])


def _look_at_transforms(result: Tensor, images: Tensor, choices: Tensor) -> None:
    def equals(one: Callable[[Tensor, int], Tensor]) -> bool:
        return torch.equal(result, _transform(images, choices, one))

    first = int(choices[0])
    if equals(lambda image, choice: dihedral_transform(image, first)):
        raise Wrong("All images get the same transform, that of the first one.")
    if equals(lambda image, choice: dihedral_transform(image, choice % 4)):
        raise Wrong("The flips are missing: only 4 of the 8 transforms occur.")
    if equals(lambda image, choice: image.flip(-1) if choice >= 4 else image):
        raise Wrong("The quarter turns are missing: only 2 of the 8 transforms occur.")

    def clockwise(image: Tensor, choice: int) -> Tensor:
        image = torch.rot90(image, choice % 4, dims=(-1, -2))
        return image.flip(-1) if choice >= 4 else image

    def flip_first(image: Tensor, choice: int) -> Tensor:
        return torch.rot90(image.flip(-1) if choice >= 4 else image, choice % 4, dims=(-2, -1))

    def vertical(image: Tensor, choice: int) -> Tensor:
        image = torch.rot90(image, choice % 4, dims=(-2, -1))
        return image.flip(-2) if choice >= 4 else image

    if equals(clockwise):
        raise Wrong("The turns are clockwise: height and width are exchanged in `dims`.")
    if equals(flip_first):
        raise Wrong("The flip comes first. The two orders give different images.")
    if equals(vertical):
        raise Wrong("The flip is vertical: the last dimension is the width.")
    wrong = (result != _transform(images, choices)).flatten(1).any(1)
    if 0 < wrong.sum() < len(images):
        index = int(wrong.nonzero()[0])
        raise Wrong(
            f"{int(wrong.sum())} of {len(images)} images are wrong. The first has the choice "
            f"{int(choices[index])}.",
            lambda: _draw(images[index], result[index], int(choices[index])),
        )


def _draw(image: Tensor, result: Tensor, choice: int) -> None:
    _figure, axes = plt.subplots(1, 3, figsize=(7, 2.6))
    shown = {"image": image, "expected": dihedral_transform(image, choice), "yours": result}
    for axis, (title, pixels) in zip(axes, shown.items(), strict=True):
        axis.imshow(pixels.permute(1, 2, 0))
        axis.set(title=title, xticks=[], yticks=[])
    plt.show()


@task(
    "01",
    given='''
    def epoch_batches(count, batch_size, seed, epoch, start=0):
        """Batches of one epoch over `count` images, from batch number `start` on. A list of
        (indices, choices), int64 (B,) each: the images of the batch in a shuffled order, and the
        dihedral transform of each image, 0..7."""
        generator = torch.Generator().manual_seed(seed + epoch)
        order = torch.randperm(count, generator=generator)
        batches = []
        for number, indices in enumerate(order.split(batch_size)):
            if number >= start:
                choices = torch.randint(8, (len(indices),), generator=generator)
                batches.append((indices, choices))
        return batches
    ''',
    solution='''
    def epoch_batches(count, batch_size, seed, epoch, start=0):
        """Batches of one epoch over `count` images, from batch number `start` on. A list of
        (indices, choices), int64 (B,) each: the images of the batch in a shuffled order, and the
        dihedral transform of each image, 0..7."""

        def generator(*key):
            state = np.random.SeedSequence(key).generate_state(1)
            return torch.Generator().manual_seed(int(state[0]))

        order = torch.randperm(count, generator=generator(seed, epoch, 0))
        batches = []
        for number, indices in enumerate(order.split(batch_size)):
            if number >= start:
                own = generator(seed, epoch, number + 1)
                choices = torch.randint(8, (len(indices),), generator=own)
                batches.append((indices, choices))
        return batches
    ''',
    hints=(
        "A resumed epoch skips the first batches. How many random numbers has the generator given "
        "before batch 2 in the uninterrupted epoch, and how many in the resumed one?",
        "Give each batch a generator of its own, whose seed depends on seed, epoch and the number "
        "of the batch. (Or choose the transforms of the whole epoch before the loop.)",
        "seed + epoch is the same for seed 0, epoch 1 and for seed 1, epoch 0. "
        "`int(np.random.SeedSequence((seed, epoch, number + 1)).generate_state(1)[0])` hashes "
        "several integers to one seed. The + 1 reserves (seed, epoch, 0) for the order.",
    ),
    hides=("vqlib.data.batches",),
)
def epoch_batches(answer):
    count, size, seed = int(torch.randint(120, 160, ())), 16, int(torch.randint(1, 50, ()))
    state = torch.get_rng_state()
    with _RecordStates() as recorded:
        full = answer(count, size, seed, 3)
    if _unanswered(full):
        raise NotAttempted
    if not torch.equal(torch.get_rng_state(), state):
        raise Wrong(
            "The function uses or sets PyTorch's global random state, which the model also uses. "
            "Use a torch.Generator."
        )
    _look_at_epoch(full, count, size)
    case = f"{count} images in batches of {size}"
    if not _same(full, answer(count, size, seed, 3)):
        raise Wrong("Two calls with the same arguments give different batches.")
    for start in (1, 4):
        rest = answer(count, size, seed, 3, start)
        if len(rest) != len(full) - start:
            raise Wrong(f"For {case} and start={start}: got {len(rest)} batches of {len(full)}.")
        if not all(torch.equal(a[0], b[0]) for a, b in zip(full[start:], rest)):
            raise Wrong(f"With start={start}, the batches contain other images than without.")
        if not _same(full[start:], rest):
            raise Wrong(
                f"With start={start}, the images are the same, but their transforms differ from "
                "those of the uninterrupted epoch. What do they depend on?"
            )
    for other_seed, other_epoch, name in (
        (seed, 4, "The next epoch has"),
        (seed + 1, 3, "Another seed gives"),
        (seed - 1, 4, f"Seed {seed - 1}, epoch 4 and seed {seed}, epoch 3 have"),
    ):
        other = answer(count, size, other_seed, other_epoch)
        for part, word in enumerate(("order", "transforms")):
            if torch.equal(*(torch.cat([b[part] for b in each]) for each in (full, other))):
                raise Wrong(f"{name} the same {word}. Each (seed, epoch) needs its own.")
    if recorded.shared:
        raise Wrong(
            "Two calls share one key: the order and the transforms of a batch come from the same "
            "random numbers."
        )


def _look_at_epoch(batches: list, count: int, size: int) -> None:
    if not isinstance(batches, list) or len(batches) != -(-count // size):
        raise Wrong(f"{count} images in batches of {size} should be {-(-count // size)} batches.")
    indices, choices = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    if not torch.equal(indices.sort().values, torch.arange(count)):
        raise Wrong("In an epoch each image has to appear exactly once.")
    if torch.equal(indices, torch.arange(count)):
        raise Wrong("The order is not shuffled.")
    if all(torch.equal(batch[1], batches[0][1]) for batch in batches[:-1]):
        raise Wrong(
            "Every batch has the same transforms: its generator starts from the same seed. The "
            "seed should depend on the number of the batch, too."
        )
    if choices.shape != indices.shape or choices.unique().tolist() != list(range(8)):
        raise Wrong("Each image needs a transform, and all of 0..7 should occur.")


def _same(first: list, second: list) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for one, two in pairs for a, b in zip(one, two, strict=True))


def quiz_lesions(labels: Tensor) -> list[int]:
    """Image indices A to D of quiz 01.1: nevus, melanoma, melanoma, nevus."""
    melanomas, nevi = ((labels == label).nonzero().flatten().tolist() for label in (0, 1))
    return [nevi[0], melanomas[0], melanomas[3], nevi[1]]


add_quiz(
    "01.1",
    "Which two are melanomas (MEL)?",
    {
        "A and B": "Half right: B is. A is a nevus.",
        "B and C": "Right. Asymmetry and several colors are warning signs.",
        "A and D": "No. Both are nevi.",
        "C and D": "Half right: C is. D is a nevus.",
    },
)


add_quiz(
    "01.2",
    "In HAM10000, 115 of 10,015 images are DF. What share of random batches of 16 has no DF image?",
    {
        "about 1 %": "No. 1.1 % is the share of DF among the images.",
        "about 50 %": "No. The expected number of DF images in a batch is 16 x 0.0115 = 0.18.",
        "about 83 %": "Right. With the share p of DF it is (1 - p)^16, here 0.9885^16 = 0.83.",
    },
)


add_quiz(
    "01.3",
    "Which of the six can be undone, apart from rounding?",
    {
        "all but Resize": "No. A rotation by any angle loses pixels and cuts off the corners.",
        "the flips, ToTensor and Normalize": "Right. They only permute pixels or rescale "
        "their values.",
        "the flips only": "Not only: ToTensor and Normalize can be undone, too. They rescale the "
        "values, x -> ax + b.",
    },
)


add_quiz(
    "01.4",
    "torch.tensor(3, dtype=torch.uint8) - torch.tensor(10, dtype=torch.uint8) is",
    {
        "-7": "No. A uint8 has no sign.",
        "0": "No. PyTorch and NumPy do not saturate.",
        "249": "Right. uint8 arithmetic is modulo 256, so dark pixels become bright.",
        "an error": "No. There is no error, so the mistake can go unnoticed.",
    },
)


add_quiz(
    "01.5",
    "Some patients have several lesions. Which split estimates the accuracy for a new patient?",
    {
        "by image": "No. The classifier also recognizes lesions that it has seen.",
        "by lesion": "Almost. Another lesion of the same patient, with the same skin and the same "
        "camera, may be in training. The table of HAM10000 has no patient ids, so this is the best "
        "split that it allows.",
        "by patient": "Right. No image of a new patient is in training. But the table of HAM10000 "
        "has no patient ids, so a split by lesion has to do.",
    },
)


add_quiz(
    "01.6",
    "How many different results can quarter turns, horizontal and vertical flips produce together?",
    {
        "6": "No. A turn and a flip can be combined.",
        "8": "Right. Four turns, each with or without one flip.",
        "16": "No. Both flips together are a half turn, so each result occurs twice.",
    },
)
