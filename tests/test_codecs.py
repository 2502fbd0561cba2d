"""Codecs are searched well and stay within their bytes; models are measured as codecs are."""

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from vqlib import VQVAE
from vqlib.codecs import (
    CODECS,
    best_file,
    cheapest_file,
    evaluate_codec,
    mean_colour,
    payload,
    raw_thumbnail,
)
from vqlib.data import synthetic_dataset
from vqlib.evaluation import RIVAL, as_text, evaluate, load_results, rivals
from vqlib.metrics import evaluate_vqvae, paired_interval, psnr


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQLIB_HOME", str(tmp_path_factory.mktemp("home")))
        yield synthetic_dataset(lesions=8).pixels(128)


@pytest.fixture(scope="module")
def image(pixels):
    return Image.fromarray(pixels[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("codec", CODECS)
def test_the_file_fits_and_decodes_to_the_picture(image, codec):
    coded = best_file(image, codec, budget=600)
    assert len(coded.file) == coded.cost <= 600
    small = Image.open(io.BytesIO(coded.file)).convert("RGB")
    assert small.size == (coded.side, coded.side)
    again = small.resize(image.size, Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(again), np.asarray(coded.picture))


def test_no_other_webp_of_multiples_of_16_is_nearer(image):
    best = 0.0
    for side in (16, 32, 48, 64, 80):
        thumbnail = image.resize((side, side), Image.Resampling.LANCZOS)
        for quality in range(0, 101):
            file = io.BytesIO()
            thumbnail.save(file, "WebP", quality=quality, method=6)
            if file.tell() <= 288:
                picture = (
                    Image.open(file).convert("RGB").resize(image.size, Image.Resampling.BICUBIC)
                )
                pair = [np.asarray(x, np.float32) / 255 for x in (picture, image)]
                best = max(
                    best, float(psnr(*(torch.tensor(x).permute(2, 0, 1)[None] for x in pair)))
                )
    assert best_file(image, "WebP").psnr > best - 0.02


def test_more_bytes_and_free_headers_never_hurt(image):
    tight = best_file(image, "JPEG", budget=400)
    assert best_file(image, "JPEG", budget=800).psnr > tight.psnr
    free = best_file(image, "JPEG", budget=400, headers=False)
    assert free.psnr > tight.psnr and free.cost == payload(free.file, "JPEG") <= 400
    assert len(free.file) > 400


def test_what_does_not_fit_is_not_a_number(pixels):
    found = evaluate_codec(partial(best_file, codec="AVIF"), pixels, torch.arange(2))
    assert found.psnr.isnan().all() and found.summary()["n"] == 0


def test_simple_rivals(image, pixels):
    thumbnail = raw_thumbnail(image, 288)
    assert len(thumbnail.file) == thumbnail.cost == 288
    assert thumbnail.psnr > mean_colour(image).psnr + 3
    found = evaluate_codec(raw_thumbnail, pixels, torch.arange(1))
    assert float(found.psnr) == pytest.approx(thumbnail.psnr, abs=1e-3)


def test_a_model_is_measured_on_8_bit_pixels_as_codecs_are(pixels, monkeypatch):
    """A reconstruction that rounds to the image itself has no error, and its PSNR is finite."""
    model = VQVAE()
    forward = model.forward
    near = lambda x: forward(x)._replace(reconstruction=x + 0.4 / 255)  # noqa: E731
    monkeypatch.setattr(model, "forward", near)
    found = evaluate_vqvae(model, pixels, torch.arange(2))
    assert 90 < found.psnr.min() and found.psnr.isfinite().all()
    assert found.ssim.tolist() == pytest.approx([1, 1], abs=1e-6)
    same = Image.new("RGB", (64, 64), (200, 150, 120))
    assert mean_colour(same).psnr == pytest.approx(float(found.psnr[0]))


def test_a_codec_that_cannot_code_all_images_gets_no_means(tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    some = lambda x: mean_colour(x) if np.asarray(x).sum() % 2 else None  # noqa: E731
    codecs = {RIVAL: mean_colour, "some": some}
    monkeypatch.setattr("vqlib.evaluation.rivals", lambda budget: codecs)
    result = evaluate(synthetic_dataset(lesions=120), {"model": VQVAE()}, size=64)
    n, rows = result["n"], result["rows"]
    fits = sum(db is not None for db in result["psnr_db_of"]["some"].values())
    assert 0 < fits < n and rows["some"] == {"n": fits}
    assert rows[RIVAL]["n"] == n and {"psnr_db", "ssim", "bytes"} <= set(rows[RIVAL])
    rows["model"]["note"] = "on other pixels"
    lines = as_text(result).splitlines()
    assert ["some", str(fits)] in [line.split() for line in lines]
    assert "model: on other pixels" in lines


def test_rows_say_at_which_speed_avif_was_run():
    speed = CODECS["AVIF"]["speed"]
    named = {f"AVIF speed {speed}", f"AVIF speed {speed}, headers free"}
    assert {name for name in rivals(288) if "AVIF" in name} == named
    for split in ("val", "test"):
        kept = load_results(f"isic2018-{split}")
        for rows in (kept["rows"], kept["psnr_db_of"]):
            assert {name for name in rows if "AVIF" in name} == named


def test_the_interval_is_of_the_pairs():
    base = 10 * torch.randn(400, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(400, generator=torch.Generator().manual_seed(1))
    mean, low, high = paired_interval(base + 0.5 + noise, base)
    assert low < mean < high and mean == pytest.approx(0.5 + float(noise.mean()), abs=1e-4)
    assert (high - low) == pytest.approx(2 * 1.96 * float(noise.std()) / 20, rel=0.1)


def test_the_cheapest_file_is_good_enough_and_a_smaller_one_is_not(image):
    wanted = best_file(image, "WebP", budget=500).psnr
    found = cheapest_file(image, "WebP", wanted)
    assert found.psnr >= wanted and found.cost <= 500
    assert best_file(image, "WebP", budget=found.cost - 5).psnr < wanted
    with pytest.raises(ValueError, match="does not reach"):
        cheapest_file(image, "WebP", 90.0)
