"""The synthetic lesions: reproducible, several views that belong together, classes that differ."""

import numpy as np
import pytest

from vqlib.synthetic import CLASSES, catalogue, render

SIZE = 64  # small pictures keep these tests fast; `size` changes nothing but the resolution


def thumbnails(images: np.ndarray, side: int = 16) -> np.ndarray:
    """Block means: float (n, side * side * 3)."""
    n, size = images.shape[:2]
    blocks = images.reshape(n, side, size // side, side, size // side, 3)
    return blocks.mean((2, 4)).reshape(n, -1)


def statistics(images: np.ndarray) -> np.ndarray:
    """Simple colour and texture statistics of middle and rim: float (n, 18)."""
    x = images.astype(np.float64)
    cut = x.shape[1] // 4
    middle = x[:, cut:-cut, cut:-cut]
    columns = [x.mean((1, 2)), x.std((1, 2)), middle.mean((1, 2)), middle.std((1, 2))]
    columns += [np.abs(np.diff(part, axis=1)).mean((1, 2)) for part in (x, middle)]
    return np.concatenate(columns, 1)


def test_catalogue_resembles_ham10000():
    table = catalogue(400, seed=3)
    assert all(column.dtype == np.int64 for column in table)
    assert table.lesions.max() == 399 and len(np.unique(table.lesions)) == 400
    assert 1.2 < len(table.labels) / 400 < 1.5
    first = table.views == 0
    assert first.sum() == 400 and table.views.max() <= 3
    shares = np.bincount(table.labels[first], minlength=7) / 400
    assert shares.min() >= 0.05 and CLASSES[shares.argmax()] == "NV"
    label_of = table.labels[first][table.lesions]  # lesions are listed in order
    assert (label_of == table.labels).all()
    assert not np.array_equal(catalogue(400, seed=4).labels[:400], table.labels[:400])


def test_an_image_depends_on_its_own_row_only():
    labels, lesions, views = np.arange(7), np.arange(7) + 10, np.array([0, 1, 2, 0, 1, 2, 0])
    images = render(labels, lesions, views, SIZE)
    assert images.shape == (7, SIZE, SIZE, 3) and images.dtype == np.uint8
    assert (images.max((1, 2, 3)) > 120).all() and (images.std((1, 2, 3)) > 5).all()
    backwards = render(labels[::-1], lesions[::-1], views[::-1], SIZE)[::-1]
    assert np.array_equal(images, backwards)
    assert np.array_equal(images[3:4], render([3], [13], [0], SIZE))
    assert not np.array_equal(images[3:4], render([3], [13], [0], SIZE, seed=1))


def test_size_changes_the_resolution_not_the_picture():
    rows = np.arange(7), np.arange(7), np.zeros(7, int)
    small, large = (thumbnails(render(*rows, size)) for size in (64, 256))
    other = thumbnails(render(rows[0], rows[1] + 100, rows[2], 64))
    assert np.abs(small - large).mean() < 0.25 * np.abs(other - large).mean()


@pytest.mark.parametrize("size", [33, 80])
def test_every_size_is_drawn(size):
    assert render([0], [0], [0], size).shape == (1, size, size, 3)


def test_views_of_a_lesion_are_nearer_than_other_lesions():
    labels, lesions = np.repeat(np.arange(7), 8), np.arange(56)
    one, two = (
        thumbnails(render(labels, lesions, np.full(56, view), SIZE)).reshape(7, 8, 16, 16, 3)
        for view in (0, 1)
    )
    one, two = (x[:, :, 3:-3, 3:-3].reshape(7, 8, -1) for x in (one, two))  # no dark corners
    views_apart = np.linalg.norm(one - two, axis=-1)
    lesions_apart = np.linalg.norm(one - np.roll(one, 1, axis=1), axis=-1)
    assert (np.median(views_apart, 1) < 0.7 * np.median(lesions_apart, 1)).all()
    assert (views_apart > 0).all()


def test_simple_statistics_tell_the_classes_apart():
    def draw(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(7), count)
        lesions = first + np.arange(len(labels))
        return statistics(render(labels, lesions, np.zeros_like(labels), SIZE)), labels

    (known, labels), (unseen, truth) = draw(0, 20), draw(1000, 12)
    mean, spread = known.mean(0), known.std(0)
    centroids = np.stack([((known - mean) / spread)[labels == c].mean(0) for c in range(7)])
    distance = np.linalg.norm((unseen - mean)[:, None] / spread - centroids, axis=-1)
    assert (distance.argmin(1) == truth).mean() > 0.4  # chance is 0.14


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
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        render(**({"labels": [0], "lesions": [0], "views": [0], "size": SIZE} | change))
    with pytest.raises(ValueError, match="lesions"):
        catalogue(0)
