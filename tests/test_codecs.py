"""Baseline codecs find good files within the budget; models are measured in the same way."""

import io
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from vqlib import VQVAE, DataError, work_dir
from vqlib.evaluation.codecs import (
    BASELINE_CODEC,
    CODECS,
    STRICT_CODECS,
    baselines,
    best_within_budget,
    evaluate_codec,
    evaluate_strict_codecs,
    mean_color,
    payload_bytes,
    raw_thumbnail,
    register_strict_codecs,
    smallest_at_psnr,
    strict_baselines,
)
from vqlib.evaluation.results import evaluate, load_results, results_table
from vqlib.lesions.datasets import synthetic_dataset
from vqlib.metrics import evaluate_vqvae, paired_bootstrap_interval, psnr


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQLIB_HOME", str(tmp_path_factory.mktemp("home")))
        yield synthetic_dataset(lesions=8).pixels(128)


@pytest.fixture(scope="module")
def image(pixels):
    return Image.fromarray(pixels[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("codec", CODECS)
def test_file_is_within_budget_and_decodes_to_the_image(image, codec):
    coded = best_within_budget(image, codec, budget=600)
    assert len(coded.file) == coded.num_bytes <= 600
    thumbnail = Image.open(io.BytesIO(coded.file)).convert("RGB")
    assert thumbnail.size == (coded.thumbnail_size, coded.thumbnail_size)
    decoded = thumbnail.resize(image.size, Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(decoded), np.asarray(coded.picture))


def test_search_is_as_good_as_an_exhaustive_search_over_multiples_of_16(image):
    best = 0.0
    for side in (16, 32, 48, 64, 80):
        thumbnail = image.resize((side, side), Image.Resampling.LANCZOS)
        for quality in range(0, 101):
            file = io.BytesIO()
            thumbnail.save(file, "WebP", quality=quality, method=6)
            if file.tell() <= 288:
                decoded = Image.open(file).convert("RGB")
                decoded = decoded.resize(image.size, Image.Resampling.BICUBIC)
                pair = [np.asarray(x, np.float32) / 255 for x in (decoded, image)]
                best = max(
                    best, float(psnr(*(torch.tensor(x).permute(2, 0, 1)[None] for x in pair)))
                )
    assert best_within_budget(image, "WebP").psnr > best - 0.02


def test_more_bytes_or_uncounted_headers_increase_the_psnr(image):
    complete = best_within_budget(image, "JPEG", budget=400)
    assert best_within_budget(image, "JPEG", budget=800).psnr > complete.psnr
    pixels_only = best_within_budget(image, "JPEG", budget=400, headers=False)
    assert pixels_only.psnr > complete.psnr
    assert pixels_only.num_bytes == payload_bytes(pixels_only.file, "JPEG") <= 400
    assert len(pixels_only.file) > 400


def test_images_without_a_file_in_the_budget_are_nan(pixels):
    metrics = evaluate_codec(partial(best_within_budget, codec="AVIF"), pixels, torch.arange(2))
    assert metrics.psnr.isnan().all() and metrics.summary()["n"] == 0


def test_raw_thumbnail_and_mean_color(image, pixels):
    thumbnail = raw_thumbnail(image, 288)
    assert len(thumbnail.file) == thumbnail.num_bytes == 288
    assert thumbnail.psnr > mean_color(image).psnr + 3
    metrics = evaluate_codec(raw_thumbnail, pixels, torch.arange(1))
    assert float(metrics.psnr) == pytest.approx(thumbnail.psnr, abs=1e-3)


def test_models_are_measured_on_8_bit_pixels_like_codecs(pixels, monkeypatch):
    """A reconstruction that rounds to the image itself has no error, and its PSNR is finite."""
    model = VQVAE()
    forward = model.forward
    almost_exact = lambda x: forward(x)._replace(reconstruction=x + 0.4 / 255)  # noqa: E731
    monkeypatch.setattr(model, "forward", almost_exact)
    metrics = evaluate_vqvae(model, pixels, torch.arange(2))
    assert 90 < metrics.psnr.min() and metrics.psnr.isfinite().all()
    assert metrics.ssim.tolist() == pytest.approx([1, 1], abs=1e-6)
    uniform = Image.new("RGB", (64, 64), (200, 150, 120))
    assert mean_color(uniform).psnr == pytest.approx(float(metrics.psnr[0]))


def test_no_means_for_a_codec_that_cannot_code_all_images(tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    partly = lambda x: mean_color(x) if np.asarray(x).sum() % 2 else None  # noqa: E731
    codecs = {BASELINE_CODEC: mean_color, "partial": partly}
    monkeypatch.setattr("vqlib.evaluation.results.baselines", lambda budget: codecs)
    result = evaluate(synthetic_dataset(lesions=120), {"model": VQVAE()}, size=64)
    n, rows = result["n"], result["rows"]
    fits = sum(db is not None for db in result["psnr_db_of"]["partial"].values())
    assert 0 < fits < n and rows["partial"] == {"n": fits}
    assert rows[BASELINE_CODEC]["n"] == n and {"psnr_db", "ssim", "bytes"} <= set(
        rows[BASELINE_CODEC]
    )
    rows["model"]["note"] = "on other pixels"
    lines = results_table(result).splitlines()
    assert ["partial", str(fits)] in [line.split() for line in lines]
    assert "model: on other pixels" in lines


def test_names_of_rows_contain_the_speed_of_avif():
    speed = CODECS["AVIF"]["speed"]
    names = {f"AVIF speed {speed}", f"AVIF speed {speed}, headers not counted"}
    assert {name for name in baselines(288) if "AVIF" in name} == names
    strict = {name for name in strict_baselines(288) if "AVIF" in name}
    for split in ("val", "test"):
        committed = load_results(f"isic2018-{split}")
        for rows in (committed["rows"], committed["psnr_db_of"]):
            assert {name for name in rows if "AVIF" in name} in (names, names | strict)


@pytest.mark.parametrize("codec", STRICT_CODECS)
def test_strict_codecs_find_a_file_whose_header_is_counted_or_not(image, codec):
    if codec != "AVIF speed 0":
        pytest.importorskip("pillow_heif")
        pytest.importorskip("pillow_jxl")
        register_strict_codecs()
    small = image.resize((40, 40))
    coded = best_within_budget(small, codec, budget=200, headers=codec == "JPEG XL")
    assert coded.num_bytes <= 200 and coded.psnr > mean_color(small).psnr + 3
    decoded = Image.open(io.BytesIO(coded.file)).convert("RGB")
    assert decoded.resize(small.size, Image.Resampling.BICUBIC) == coded.picture
    if codec != "JPEG XL":
        assert len(coded.file) > 200 and best_within_budget(small, codec, budget=200) is None


def test_strict_codecs_are_measured_once(pixels, monkeypatch):
    measured, stop_at, versions = [], [3], {"pillow": "1"}

    def first(picture):
        if len(measured) == stop_at[0]:
            raise KeyboardInterrupt
        measured.append(picture)
        return mean_color(picture)

    def second(picture):
        return None

    module = "vqlib.evaluation.codecs"
    monkeypatch.setattr(f"{module}.strict_baselines", lambda budget: {"1": first, "2": second})
    monkeypatch.setattr(f"{module}.register_strict_codecs", lambda: versions)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        evaluate_strict_codecs(pixels, torch.arange(5), 288)
    stop_at[0] = None
    result = evaluate_strict_codecs(pixels, torch.tensor([4, 2, 0, 1, 3]), 288)
    assert len(measured) == 5
    expected = evaluate_codec(mean_color, pixels, torch.tensor([4, 2, 0, 1, 3]))
    for name in ("psnr", "ssim", "bytes"):
        assert torch.equal(getattr(result["1"], name), getattr(expected, name))
        assert getattr(result["2"], name).isnan().all()

    (log,) = (work_dir() / "runs").glob("strict-codecs-*/log.jsonl")
    text = log.read_text()
    log.write_text(text[:-5])  # a process that was killed while it wrote a line
    evaluate_strict_codecs(pixels, torch.arange(5), 288)
    assert sorted(log.read_text().splitlines()) == sorted(text.splitlines())
    measured.clear()
    versions["pillow"] = "2"  # other files
    evaluate_strict_codecs(pixels, torch.arange(1), 288)
    evaluate_strict_codecs(pixels, torch.arange(1), 289)
    assert len(measured) == 2


def test_strict_codecs_without_their_packages_are_refused_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"vqlib\[codecs\]"):
        evaluate(synthetic_dataset(lesions=8), {}, strict_codecs=True)


def test_bootstrap_interval_is_paired():
    base = 10 * torch.randn(400, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(400, generator=torch.Generator().manual_seed(1))
    mean, low, high = paired_bootstrap_interval(base + 0.5 + noise, base)
    assert low < mean < high and mean == pytest.approx(0.5 + float(noise.mean()), abs=1e-4)
    assert (high - low) == pytest.approx(2 * 1.96 * float(noise.std()) / 20, rel=0.1)


def test_smallest_file_reaches_the_psnr_and_a_smaller_one_does_not(image):
    target = best_within_budget(image, "WebP", budget=500).psnr
    smallest = smallest_at_psnr(image, "WebP", target)
    assert smallest.psnr >= target and smallest.num_bytes <= 500
    assert best_within_budget(image, "WebP", budget=smallest.num_bytes - 5).psnr < target
    assert smallest_at_psnr(image, "WebP", 90.0) is None
