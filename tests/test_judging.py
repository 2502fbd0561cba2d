import json
from urllib.error import URLError

import pytest
import torch
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import maximum_mean_discrepancy

from vqlib import VQVAE, DataError, PixelCNN, encode_dataset, open_dataset
from vqlib.classifier import Inception, LesionClassifier, balanced_accuracy, classify
from vqlib.judging import (
    MORE,
    as_text,
    frechet_distance,
    judge,
    kernel_distance,
    nearness,
    precision_recall,
)


def sets(n=300, d=6, shift=0.5):
    torch.manual_seed(0)
    return torch.randn(n, d), 1.5 * torch.randn(n, d) + shift


def test_frechet_distance_of_known_normals_and_as_torchmetrics_has_it():
    a, b = sets()
    means, covs = [x.double().mean(0) for x in (a, b)], [x.double().T.cov() for x in (a, b)]
    expected = _compute_fid(means[0], covs[0], means[1], covs[1])
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(6 * 4, rel=1e-6)  # means only


def test_kernel_distance_as_torchmetrics_has_it():
    a, b = (x.double() for x in sets())
    k = [(x @ y.T / 6 + 1) ** 3 for x, y in ((a, a), (a, b), (b, b))]
    expected = maximum_mean_discrepancy(*k)
    assert kernel_distance(a, b)[0] == pytest.approx(float(expected), rel=1e-9)


def test_standard_error_of_the_kernel_distance_is_its_spread_over_samples():
    torch.manual_seed(0)
    found = [
        kernel_distance(torch.randn(150, 4), 1.3 * torch.randn(150, 4) + 0.3) for _ in range(200)
    ]
    values, errors = torch.tensor(found).T
    assert errors.mean() == pytest.approx(float(values.std()), rel=0.15)


def test_without_a_difference_the_kernel_distance_is_zero_on_average():
    torch.manual_seed(0)
    values = torch.tensor(
        [kernel_distance(torch.randn(60, 4), torch.randn(60, 4))[0] for _ in range(200)]
    )
    assert values.mean().abs() < 3 * values.std() / 200**0.5


def test_precision_and_recall_see_what_they_should():
    torch.manual_seed(0)
    real = torch.randn(400, 2)
    assert precision_recall(real, torch.randn(400, 2))[0] > 0.8
    one_mode = 0.05 * torch.randn(400, 2)  # realistic, and all alike
    precision, recall = precision_recall(real, one_mode)
    assert precision > 0.95 and recall < 0.2
    precision, recall = precision_recall(real, 6 * torch.randn(400, 2))  # too wild
    assert precision < 0.3 and recall > 0.8


def test_nearness_finds_planted_copies():
    torch.manual_seed(0)
    train, held_out, fresh = (torch.randn(n, 8) for n in (500, 300, 200))
    honest = nearness(train, held_out[None], fresh[None])
    assert honest.near_copies <= honest.allowed
    planted = fresh.clone()
    planted[:20] = train[40:60] + 0.01
    found = nearness(train, held_out[None], torch.stack([fresh, planted]))  # two views of each
    assert found.near_copies >= 0.1 > found.allowed
    assert torch.equal(found.nearest[:20], torch.arange(40, 60))
    codes = torch.randint(16, (50, 2, 2, 4))
    copy = codes[7:8].clone()
    copy[0, 0, 0, 0] = (copy[0, 0, 0, 0] + 1) % 16
    found = nearness(codes, torch.randint(16, (1, 50, 2, 2, 4)), torch.stack([copy + 1, copy]))
    assert found.nearest.item() == 7 and found.samples.item() == pytest.approx(1 / 16)


def test_balanced_accuracy_of_always_saying_naevus_is_one_in_the_number_of_classes():
    labels = torch.tensor([1] * 90 + [0] * 6 + [2] * 4)
    always = torch.nn.functional.one_hot(torch.ones(100, dtype=torch.long), 7).float()
    assert balanced_accuracy(always, labels) == pytest.approx(1 / 3)


def test_classifier_takes_any_size():
    classifier = LesionClassifier().eval()
    assert classifier(torch.rand(2, 3, 256, 256)).shape == (2, 7)
    assert classifier.features(torch.rand(2, 3, 64, 64)).shape == (2, 96)


def test_judge_tells_the_same_story_as_json(tmp_path, monkeypatch):
    """All rows, from images to JSON; samples that are training lesions are found out."""
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    data = open_dataset(lesions=60)
    vqvae, prior = VQVAE(data_init=False).eval(), PixelCNN(conv_filters=8, blocks=1).eval()
    colours = lambda images: torch.nn.functional.adaptive_avg_pool2d(images, 2)  # noqa: E731
    as_codes = lambda images: (511 * colours(images)).long().movedim(1, -1)  # noqa: E731
    monkeypatch.setattr(vqvae, "encode", lambda x: as_codes(x)[..., [0, 1, 2, 0]])
    encoded = encode_dataset(vqvae, data, size=64)
    classifier = LesionClassifier().eval()
    arguments = (data, encoded, vqvae, prior, classifier)
    found = json.loads(json.dumps(judge(*arguments, size=64)))
    n = found["n"]
    assert n == min(len(encoded.split.val), len(encoded.split.test)) > 4
    assert list(found["rows"])[:3] == ["real, another split", "reconstructions", "samples"]
    assert found["diversity"]["distinct_grids"] == n
    assert found["rows"]["samples"]["images"] == MORE * n
    assert "precision" in as_text(found)
    copies = encoded.codes[encoded.split.train[:n]]
    monkeypatch.setattr("vqlib.judging.sample", lambda *_, **__: copies)
    assert judge(*arguments, size=64)["near_copies"]["codes"]["nearest"] == 0.0
    # A copy that is mirrored, too, though its codes are others.
    mirrored = data.pixels(64)[encoded.split.train[:n]].flip(-2) / 255
    codes = vqvae.encode(mirrored)
    assert nearness(encoded.codes[encoded.split.train], codes[None], codes[None]).samples.min() > 0
    monkeypatch.setattr("vqlib.judging.sample", lambda *_, **__: codes)
    monkeypatch.setattr(vqvae, "decode", lambda codes: mirrored)
    found = judge(*arguments, size=64)["near_copies"]
    assert found["codes"]["nearest"] == 0.0 and found["features"]["nearest"] < 1e-2
    with pytest.raises(ValueError, match="held-out"):
        judge(*arguments, size=64, split="train")


def test_inception_is_an_option_where_its_weights_can_be_fetched(monkeypatch):
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    described = classify(Inception(weights=None), images, describe=True)
    assert described.shape == (2, 2048) and described.isfinite().all()

    def no_connection(**_):
        raise URLError("no connection")

    monkeypatch.setattr("vqlib.classifier.inception_v3", no_connection)
    with pytest.raises(DataError, match=r"no connection.*classifier that ships"):
        Inception()
