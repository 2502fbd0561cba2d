"""Metrics of generated images agree with torchmetrics and with planted differences and copies."""

import json
from urllib.error import URLError

import pytest
import torch
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import maximum_mean_discrepancy

from vqlib import VQVAE, DataError, PixelCNN, encode_dataset, open_dataset
from vqlib.evaluation.features import (
    EfficientNetLite0,
    Inception,
    PixelStatistics,
    lite0_is_installed,
)
from vqlib.evaluation.generation import blurred, evaluate_samples, samples_table
from vqlib.evaluation.set_measures import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    nearest_training,
    precision_recall,
    two_sample_accuracy,
)
from vqlib.lesions.classifier import LesionClassifier, balanced_accuracy
from vqlib.metrics import predict_images


def two_sets(n=300, d=6, shift=0.5):
    torch.manual_seed(0)
    return torch.randn(n, d), 1.5 * torch.randn(n, d) + shift


def test_frechet_distance_of_known_normals_and_like_torchmetrics():
    a, b = two_sets()
    means, covs = [x.double().mean(0) for x in (a, b)], [x.double().T.cov() for x in (a, b)]
    expected = _compute_fid(means[0], covs[0], means[1], covs[1])
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(6 * 4, rel=1e-6)  # means only


def test_kernel_distance_like_torchmetrics():
    a, b = (x.double() for x in two_sets())
    k = [(x @ y.T / 6 + 1) ** 3 for x, y in ((a, a), (a, b), (b, b))]
    expected = maximum_mean_discrepancy(*k)
    assert kernel_distance(a, b)[0] == pytest.approx(float(expected), rel=1e-9)


def test_standard_error_of_the_kernel_distance_is_its_standard_deviation_over_samples():
    torch.manual_seed(0)
    distances = [
        kernel_distance(torch.randn(150, 4), 1.3 * torch.randn(150, 4) + 0.3) for _ in range(200)
    ]
    values, errors = torch.tensor(distances).T
    assert errors.mean() == pytest.approx(float(values.std()), rel=0.15)


def test_kernel_distance_of_equal_distributions_is_zero_on_average():
    torch.manual_seed(0)
    values = torch.tensor(
        [kernel_distance(torch.randn(60, 4), torch.randn(60, 4))[0] for _ in range(200)]
    )
    assert values.mean().abs() < 3 * values.std() / 200**0.5


def test_precision_and_recall_detect_a_missing_mode_and_outliers():
    torch.manual_seed(0)
    real = torch.randn(400, 2)
    assert precision_recall(real, torch.randn(400, 2))[0] > 0.8
    one_mode = 0.05 * torch.randn(400, 2)  # realistic, but not diverse
    precision, recall = precision_recall(real, one_mode)
    assert precision > 0.95 and recall < 0.2
    precision, recall = precision_recall(real, 6 * torch.randn(400, 2))  # too spread out
    assert precision < 0.3 and recall > 0.8


def test_density_ignores_an_outlier_that_makes_precision_high():
    """The neighborhood of one far real image contains all of the garbage."""
    torch.manual_seed(0)
    real = torch.cat([torch.randn(300, 2), torch.tensor([[50.0, 0.0]])])
    garbage = torch.randn(300, 2) + torch.tensor([20.0, 0.0])
    assert precision_recall(real, garbage, k=5)[0] == 1.0
    density, coverage = density_coverage(real, garbage)
    assert density == pytest.approx(1 / 5) and coverage == pytest.approx(1 / 301)


def test_density_and_coverage_of_equal_distributions_and_of_a_missing_mode():
    torch.manual_seed(0)
    real = torch.randn(500, 4)
    density, coverage = density_coverage(real, torch.randn(500, 4))
    assert density == pytest.approx(1, abs=0.15) and coverage == pytest.approx(1 - 2**-5, abs=0.03)
    _, coverage = density_coverage(real, 0.1 * torch.randn(500, 4))
    assert coverage < 0.3


@pytest.mark.parametrize("d", [5, 400])  # fewer features than images, and more
def test_two_sample_accuracy_is_half_for_equal_distributions_and_one_for_separate_ones(d):
    torch.manual_seed(0)
    a, b = torch.randn(200, d), torch.randn(100, d)
    accuracy, error = two_sample_accuracy(a, b)
    assert 0.02 < error < 0.05 and accuracy == pytest.approx(0.5, abs=3 * error)
    b[:, :5] += 8
    assert two_sample_accuracy(a, b)[0] > 0.97
    # A constant feature has no effect, and the classifier that always says "a" is right in half.
    assert two_sample_accuracy(torch.zeros(40, 2), torch.zeros(20, 2))[0] == 0.5


def test_pixel_statistics_see_blur_in_the_high_frequencies_and_color_in_the_means():
    images = torch.randint(256, (12, 3, 64, 64), dtype=torch.uint8)
    statistics = PixelStatistics()
    of = lambda images: predict_images(statistics, images, return_features=True)  # noqa: E731
    statistics.fit(of(images))
    assert of(images).mean(0).abs().max() < 1e-3
    torch.testing.assert_close(of(images).std(0), torch.ones(18), rtol=1e-3, atol=1e-3)
    change = of(blurred(images, 1.0)).mean(0)
    assert change[11] < 10 * change[5] < 0 and change[12:15].abs().max() < 1
    darker = of((images * 0.9).byte()).mean(0)
    assert (darker[12:15] < -3).all()


def test_efficientnet_features_or_the_way_to_get_them(monkeypatch):
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    if lite0_is_installed():
        features = predict_images(EfficientNetLite0(), images, return_features=True)
        assert features.shape == (2, 1280) and features.isfinite().all()
    monkeypatch.setattr("vqlib.evaluation.features.LITE0_PACKAGES", ("no_such_package",) * 2)
    assert not lite0_is_installed()
    with pytest.raises(DataError, match="pip install no_such_package"):
        EfficientNetLite0()


def test_nearest_training_finds_planted_copies():
    torch.manual_seed(0)
    train, held_out, samples = (torch.randn(n, 8) for n in (500, 300, 200))
    search = nearest_training(train, held_out[None], samples[None])
    assert search.near_copy_fraction <= search.expected_upper_limit
    with_copies = samples.clone()
    with_copies[:20] = train[40:60] + 0.01
    views = torch.stack([samples, with_copies])  # two views of each image
    search = nearest_training(train, held_out[None], views)
    assert search.near_copy_fraction >= 0.1 > search.expected_upper_limit
    assert torch.equal(search.nearest[:20], torch.arange(40, 60))
    codes = torch.randint(16, (50, 2, 2, 4))
    copy = codes[7:8].clone()
    copy[0, 0, 0, 0] = (copy[0, 0, 0, 0] + 1) % 16
    search = nearest_training(
        codes, torch.randint(16, (1, 50, 2, 2, 4)), torch.stack([copy + 1, copy])
    )
    assert search.nearest.item() == 7
    assert search.sample_distances.item() == pytest.approx(1 / 16)


def test_balanced_accuracy_of_a_constant_answer_is_one_over_the_number_of_classes():
    labels = torch.tensor([1] * 90 + [0] * 6 + [2] * 4)
    constant = torch.nn.functional.one_hot(torch.ones(100, dtype=torch.long), 7).float()
    assert balanced_accuracy(constant, labels) == pytest.approx(1 / 3)


def test_classifier_accepts_any_size():
    classifier = LesionClassifier().eval()
    assert classifier(torch.rand(2, 3, 256, 256)).shape == (2, 7)
    assert classifier.features(torch.rand(2, 3, 64, 64)).shape == (2, 96)


def test_evaluate_samples_returns_json_and_detects_copies(tmp_path, monkeypatch):
    """All rows survive JSON; samples that are copies of training images are detected."""
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    data = open_dataset(lesions=230)
    vqvae, prior = VQVAE(data_init=False).eval(), PixelCNN(conv_filters=8, blocks=1).eval()
    colors = lambda images: torch.nn.functional.adaptive_avg_pool2d(images, 2)  # noqa: E731
    as_codes = lambda images: (511 * colors(images)).long().movedim(1, -1)  # noqa: E731
    monkeypatch.setattr(vqvae, "encode", lambda x: as_codes(x)[..., [0, 1, 2, 0]])
    encoded = encode_dataset(vqvae, data, size=64)
    classifier = LesionClassifier().eval()
    arguments = (data, encoded, vqvae, prior, {"lesion classifier": classifier}, classifier)
    result = json.loads(json.dumps(evaluate_samples(*arguments, size=64)))
    n = result["n"]
    assert n == min(len(encoded.split.val), len(encoded.split.test)) >= 20
    assert list(result["rows"]) == ["lesion classifier", "pixel statistics"]
    rows = result["rows"]["pixel statistics"]
    assert rows["real, blurred by 2 px"]["coverage"] < rows["real, another split"]["coverage"]
    assert "samples" in result["rows_against_reconstructions"]["lesion classifier"]
    assert sum(n for _, n in result["found"]["samples"].values()) == result["distinct_grids"] == n
    assert "told apart" in samples_table(result)
    copies = encoded.codes[encoded.split.train[:n]]
    monkeypatch.setattr("vqlib.evaluation.generation.sample", lambda *_, **__: copies)
    assert evaluate_samples(*arguments, size=64)["near_copies"]["codes"]["minimum_distance"] == 0.0
    # Mirrored copies are detected, too, although their codes are different.
    mirrored = data.pixels(64)[encoded.split.train[:n]].flip(-2) / 255
    codes = vqvae.encode(mirrored)
    search = nearest_training(encoded.codes[encoded.split.train], codes[None], codes[None])
    assert search.sample_distances.min() > 0
    monkeypatch.setattr("vqlib.evaluation.generation.sample", lambda *_, **__: codes)
    monkeypatch.setattr(vqvae, "decode", lambda codes: mirrored)
    near_copies = evaluate_samples(*arguments, size=64)["near_copies"]
    assert (
        near_copies["codes"]["minimum_distance"] == 0.0
        and near_copies["features"]["minimum_distance"] < 1e-2
    )
    with pytest.raises(ValueError, match="held-out"):
        evaluate_samples(*arguments, size=64, split="train")
    encoded.split = encoded.split._replace(val=encoded.split.val[:19])
    with pytest.raises(ValueError, match="at least 20 images each, got 19"):
        evaluate_samples(*arguments, size=64)


def test_inception_features_and_error_if_its_weights_cannot_be_downloaded(monkeypatch):
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    features = predict_images(Inception(weights=None), images, return_features=True)
    assert features.shape == (2, 2048) and features.isfinite().all()

    def no_connection(**_):
        raise URLError("no connection")

    monkeypatch.setattr("vqlib.evaluation.features.inception_v3", no_connection)
    with pytest.raises(DataError, match=r"no connection.*pretrained lesion classifier"):
        Inception()
