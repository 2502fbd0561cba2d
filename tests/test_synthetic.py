"""Synthetic lesions: reproducible, with similar views of one lesion and distinguishable classes."""

import numpy as np
import pytest

from vqlib.lesions import CLASSES
from vqlib.lesions.synthetic import catalog, render

SIZE = 64  # small images keep these tests fast; `size` changes only the resolution


def thumbnails(images: np.ndarray, side: int = 16) -> np.ndarray:
    """Block means: float (n, side * side * 3)."""
    n, size = images.shape[:2]
    blocks = images.reshape(n, side, size // side, side, size // side, 3)
    return blocks.mean((2, 4)).reshape(n, -1)


def statistics(images: np.ndarray) -> np.ndarray:
    """Color and texture statistics of the image and of its middle: float (n, 18)."""
    x = images.astype(np.float64)
    cut = x.shape[1] // 4
    middle = x[:, cut:-cut, cut:-cut]
    columns = [x.mean((1, 2)), x.std((1, 2)), middle.mean((1, 2)), middle.std((1, 2))]
    columns += [np.abs(np.diff(part, axis=1)).mean((1, 2)) for part in (x, middle)]
    return np.concatenate(columns, 1)


def test_catalog_resembles_ham10000():
    table = catalog(400, seed=3)
    assert all(column.dtype == np.int64 for column in table)
    assert table.lesions.max() == 399 and len(np.unique(table.lesions)) == 400
    assert 1.2 < len(table.labels) / 400 < 1.5
    first = table.views == 0
    assert first.sum() == 400 and table.views.max() <= 3
    proportions = np.bincount(table.labels[first], minlength=7) / 400
    assert proportions.min() >= 0.05 and CLASSES[proportions.argmax()] == "NV"
    label_of = table.labels[first][table.lesions]  # lesions are listed in order
    assert (label_of == table.labels).all()
    assert not np.array_equal(catalog(400, seed=4).labels[:400], table.labels[:400])


def test_an_image_depends_only_on_its_own_label_lesion_and_view():
    labels, lesions, views = np.arange(7), np.arange(7) + 10, np.array([0, 1, 2, 0, 1, 2, 0])
    images = render(labels, lesions, views, SIZE)
    assert images.shape == (7, SIZE, SIZE, 3) and images.dtype == np.uint8
    assert (images.max((1, 2, 3)) > 120).all() and (images.std((1, 2, 3)) > 5).all()
    backwards = render(labels[::-1], lesions[::-1], views[::-1], SIZE)[::-1]
    assert np.array_equal(images, backwards)
    assert np.array_equal(images[3:4], render([3], [13], [0], SIZE))
    assert not np.array_equal(images[3:4], render([3], [13], [0], SIZE, seed=1))


def test_size_changes_only_the_resolution():
    labels, lesions, views = np.arange(7), np.arange(7), np.zeros(7, int)
    small, large = (thumbnails(render(labels, lesions, views, size)) for size in (64, 256))
    other = thumbnails(render(labels, lesions + 100, views, 64))
    assert np.abs(small - large).mean() < 0.25 * np.abs(other - large).mean()


@pytest.mark.parametrize("size", [33, 80])
def test_sizes_need_not_be_powers_of_two(size):
    assert render([0], [0], [0], size).shape == (1, size, size, 3)


def test_views_of_a_lesion_are_more_similar_than_different_lesions():
    labels, lesions = np.repeat(np.arange(7), 8), np.arange(56)
    first, second = (
        thumbnails(render(labels, lesions, np.full(56, view), SIZE)).reshape(7, 8, 16, 16, 3)
        for view in (0, 1)
    )
    # Without the margins, which can be dark.
    first, second = (x[:, :, 3:-3, 3:-3].reshape(7, 8, -1) for x in (first, second))
    between_views = np.linalg.norm(first - second, axis=-1)
    between_lesions = np.linalg.norm(first - np.roll(first, 1, axis=1), axis=-1)
    assert (np.median(between_views, 1) < 0.7 * np.median(between_lesions, 1)).all()
    assert (between_views > 0).all()


def test_simple_statistics_distinguish_the_classes():
    def render_lesions(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(7), count)
        lesions = first + np.arange(len(labels))
        return statistics(render(labels, lesions, np.zeros_like(labels), SIZE)), labels

    (train, labels), (test, test_labels) = render_lesions(0, 20), render_lesions(1000, 12)
    mean, std = train.mean(0), train.std(0)
    centroids = np.stack([((train - mean) / std)[labels == c].mean(0) for c in range(7)])
    distance = np.linalg.norm((test - mean)[:, None] / std - centroids, axis=-1)
    assert (distance.argmin(1) == test_labels).mean() > 0.4  # chance is 0.14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [7]}, "labels"),
        ({"labels": [-1]}, "labels"),
        ({"labels": [0.5]}, "whole numbers"),
        ({"lesions": [0, 1]}, "one length"),
        ({"views": [-1]}, "views"),
        ({"size": 8}, "size"),
    ],
)
def test_errors_name_the_wrong_argument(change, message):
    with pytest.raises(ValueError, match=message):
        render(**({"labels": [0], "lesions": [0], "views": [0], "size": SIZE} | change))
    with pytest.raises(ValueError, match="lesions"):
        catalog(0)
