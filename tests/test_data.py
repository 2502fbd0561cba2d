"""Reading data sets, splitting them by lesion, the pixel cache, augmentation and downloads."""

import csv
import hashlib
import http.server
import os
import sys
import threading
import time
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from vqlib import checkpoints, data
from vqlib.__main__ import main
from vqlib.checkpoints import DataError
from vqlib.course.report_transforms import report_transforms
from vqlib.data import _make_generator, batches, random_dihedral, rotate_and_flip, to_float
from vqlib.lesions import CLASSES, datasets, synthetic
from vqlib.lesions.datasets import open_dataset, synthetic_dataset
from vqlib.lesions.download import BASE_URLS, FILES, RemoteFile, download

IDS = [f"ISIC_{n:07d}" for n in range(24306, 24320)]  # two images of one lesion for each class
DX = [name.lower() for name in CLASSES for _ in range(2)]


def save_image(path, i=0, size=(60, 45)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(i).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)


def table(path, rows, encoding="utf-8", delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def metadata():
    rows = [
        [f"HAM_{i // 2:07d}", image, DX[i], "histo", "50", "male", "back"]
        for i, image in enumerate(IDS)
    ]
    header = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    return [header, *reversed(rows)]


def groundtruth():
    hot = [[float(name.lower() == dx) for name in CLASSES] for dx in DX]
    return [["image", *CLASSES], *([image, *row] for image, row in zip(IDS, hot))]


def groupings():
    rows = [[image, f"HAM_{i // 2:07d}", "histopathology"] for i, image in enumerate(IDS)]
    return [["image", " lesion_id", " diagnosis_confirm_type"], *rows]


@pytest.fixture
def ham(tmp_path):
    root = tmp_path / "ham"
    for i, image in enumerate(IDS):
        save_image(root / f"HAM10000_images_part_{1 + i % 2}" / f"{image}.jpg", i)
    table(root / "HAM10000_metadata.csv", metadata())
    return root


@pytest.fixture
def isic(tmp_path):
    root = tmp_path / "isic"
    for i, image in enumerate(IDS):
        save_image(root / "ISIC2018_Task3_Training_Input" / f"{image}.jpg", i)
    name = "ISIC2018_Task3_Training_GroundTruth"
    table(root / name / f"{name}.csv", groundtruth())
    table(root / "ISIC2018_Task3_Training_LesionGroupings.csv", groupings())
    return root


def contents(dataset):
    return dataset.image_ids, dataset.labels.tolist(), dataset.group_ids


EXPECTED = (IDS, [i // 2 for i in range(14)], [f"HAM_{i // 2:07d}" for i in range(14)])


# --- layouts


def test_tables_by_other_names(ham, isic):
    """A copy of the table is ignored, and missing lesion ids are never replaced by a guess."""
    (ham / "HAM10000_metadata - Copy.csv").write_text("half a copy")
    assert contents(open_dataset(ham)) == EXPECTED
    folder = isic / "ISIC2018_Task3_Training_GroundTruth"
    (folder / f"{folder.name}.csv").rename(isic / "GroundTruth.csv")
    assert contents(open_dataset(isic)) == EXPECTED
    (isic / "ISIC2018_Task3_Training_LesionGroupings.csv").unlink()
    with pytest.raises(DataError, match="LesionGroupings"):
        open_dataset(isic)


def test_both_layouts_give_the_same_data_set(ham, isic):
    a, b = open_dataset(ham), open_dataset(isic)
    assert (a.name, b.name) == ("ham10000", "isic2018")
    assert contents(a) == contents(b) == EXPECTED
    assert len(a) == 14 and not a.is_synthetic and a.root == ham
    line = repr(a)
    assert "\n" not in line and "14 images of 7 lesions" in line and "VASC 2" in line
    assert np.array_equal(np.asarray(a.image(3)), np.asarray(b.image(3)))


def test_other_file_placements(ham, isic, tmp_path):
    nested = tmp_path / "above" / "data"
    nested.parent.mkdir()
    ham.rename(nested)
    assert contents(open_dataset(nested.parent)) == EXPECTED  # one folder deeper
    (nested / "HAM10000_images_part_1").rename(nested / "ham10000_images_part_1")  # Kaggle
    table(nested / "ISIC2018_Task3_Test_GroundTruth.csv", [["lesion_id", "image_id"]])  # Dataverse
    assert contents(open_dataset(nested)) == EXPECTED
    flat = tmp_path / "flat"  # everything in one folder
    flat.mkdir()
    for file in list(isic.rglob("*.*")):
        if file.is_file():
            file.rename(flat / file.name)
    assert contents(open_dataset(flat)) == EXPECTED
    nested.rename(flat / "ham10000")
    (flat / "ISIC2018_Task3_Training_GroundTruth.csv").rename(flat / "no_table")
    assert open_dataset(flat).name == "ham10000"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_table_encodings_and_delimiters(ham, encoding, delimiter):
    rows = metadata()
    rows[1][-1] = "Rücken"
    (ham / "HAM10000_metadata.csv").unlink()
    table(ham / "HAM10000_metadata.tab", rows, encoding, delimiter)
    assert contents(open_dataset(ham)) == EXPECTED


def replace_cell(rows, line, column, value):
    rows[line][rows[0].index(column)] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row[1:] for row in metadata()], "lacks the column lesion_id"),
        ([[*row, row[2]] for row in metadata()], "more than one column dx"),
        (metadata()[:1], "no rows"),
        ([], "lacks the column lesion_id, image_id, dx"),
        ([*metadata(), metadata()[3]], f"{IDS[11]} twice"),
        (replace_cell(metadata(), 2, "dx", "scc"), "line 3 .*'scc'"),
        (replace_cell(metadata(), 2, "lesion_id", ""), "line 3 .*lesion_id ''"),
        ([*metadata()[:5], metadata()[5][:3]], "line 6: expected 7 values, found 3"),
    ],
)
def test_bad_metadata_raises(ham, rows, message):
    file = table(ham / "HAM10000_metadata.csv", rows)
    with pytest.raises(DataError, match=message) as error:
        open_dataset(ham)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    "values", ["1 1 0 0 0 0 0", "0 0 0 0 0 0 0", "0.5 0.5 0 0 0 0 0", "1 0 0 0 0 0 x"]
)
def test_rows_that_are_not_one_hot_raise(isic, values):
    rows = groundtruth()
    rows[4][1:] = values.split()
    name = "ISIC2018_Task3_Training_GroundTruth"
    table(isic / name / f"{name}.csv", rows)
    with pytest.raises(DataError, match=rf"GroundTruth.csv, line 5 \({IDS[3]}\): expected one 1"):
        open_dataset(isic)


def test_missing_lesion_ids_raise(isic):
    file = isic / "ISIC2018_Task3_Training_LesionGroupings.csv"
    table(file, groupings()[:-1])
    with pytest.raises(DataError, match=f"names no lesion for 1 of them .{IDS[-1]}"):
        open_dataset(isic)
    file.unlink()
    with pytest.raises(DataError, match=r"LesionGroupings.csv is missing in .*Get it from"):
        open_dataset(isic)


def test_a_lesion_with_two_diagnoses_raises(ham, isic):
    message = rf"HAM_0000001 have two diagnoses, NV \({IDS[2]}\) and BKL \({IDS[3]}\)"
    table(ham / "HAM10000_metadata.csv", replace_cell(metadata(), -4, "dx", "bkl"))
    name = "ISIC2018_Task3_Training_GroundTruth"
    rows = groundtruth()
    rows[4][1:] = [float(c == "BKL") for c in CLASSES]
    table(isic / name / f"{name}.csv", rows)
    for folder in (ham, isic):
        with pytest.raises(DataError, match=message):
            open_dataset(folder)


def test_missing_folder_table_and_images_raise(ham, isic, tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="README is not a folder"):
        (tmp_path / "README").touch()
        open_dataset(tmp_path / "README")
    with pytest.raises(DataError, match="more than one data set"):
        open_dataset(tmp_path)
    for image in IDS[:6:2]:  # the table lists them from the last to the first
        (ham / "HAM10000_images_part_1" / f"{image}.jpg").unlink()
    message = f"lists 14 images, .* 3 of them .{IDS[4]}, {IDS[2]}, {IDS[0]}.; .*part_1.*Unpack"
    with pytest.raises(DataError, match=message):
        open_dataset(ham)
    (ham / "HAM10000_metadata.csv").unlink()
    with pytest.raises(DataError, match=r"no table .*expected either .*HAM10000_metadata.csv"):
        open_dataset(ham)


def test_images_without_a_class_cause_a_warning(ham):
    save_image(ham / "HAM10000_images_part_1" / "ISIC_9999999.jpg")
    with pytest.warns(UserWarning, match=r"has no row for 1 of them \(ISIC_9999999\)"):
        assert len(open_dataset(ham)) == 14


def test_default_data_set(ham, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "REPOSITORY", tmp_path / "clone")
    monkeypatch.delenv("VQLIB_DATA", raising=False)
    assert open_dataset(lesions=20).is_synthetic
    (tmp_path / "clone" / "data").mkdir(parents=True)
    assert open_dataset(lesions=20).is_synthetic
    ham.rename(tmp_path / "clone" / "data" / "ham10000")
    assert open_dataset().name == "ham10000"
    monkeypatch.setenv("VQLIB_DATA", "synthetic")
    assert open_dataset(lesions=20).is_synthetic
    monkeypatch.setenv("VQLIB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_dataset()


def test_work_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path / "a" / "home"))
    assert data.work_dir() == tmp_path / "a" / "home" and data.work_dir().is_dir()
    monkeypatch.delenv("VQLIB_HOME")
    monkeypatch.setattr(checkpoints, "REPOSITORY", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.work_dir() == tmp_path / ".cache" / "vqlib"
    (tmp_path / "pyproject.toml").touch()
    assert data.work_dir() == tmp_path / "build"


# --- image files


def test_every_kind_of_image_file_is_converted_or_raises(ham, monkeypatch):
    dataset, path = open_dataset(ham), ham / "HAM10000_images_part_1" / f"{IDS[0]}.jpg"
    color = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 60, 3), np.uint8))

    def read(image, file_format="PNG", **options):
        image.save(path, file_format, **options)
        return np.asarray(dataset.image(0))

    gray = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    for sixteen_bits in (gray, gray + (gray < 65535), gray.astype(">u2")):
        file_format = "PNG" if sixteen_bits.dtype == np.uint16 else "TIFF"
        out = read(Image.fromarray(sixteen_bits), file_format)
        assert np.array_equal(out[..., 0].flatten(), np.arange(256)) and out.shape == (16, 16, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn
    assert np.array_equal(read(color, exif=exif), np.rot90(color, -1))
    opaque = color.copy()
    opaque.putalpha(255)
    assert np.array_equal(read(opaque), np.asarray(color))

    opaque.putpixel((3, 3), (0, 0, 0, 254))
    palette = color.quantize(8)
    for transparent, options in ((opaque, {}), (palette, {"transparency": 0})):
        with pytest.raises(DataError, match=f"{IDS[0]}.jpg has transparent pixels, .* Save it"):
            read(transparent, **options)
    for dtype in (np.int32, np.float32):
        with pytest.raises(DataError, match=r"32-bit pixels .* Convert"):
            read(Image.fromarray(gray.astype(dtype)), "TIFF")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"is too large .* scale the image down"):
        read(color)


# --- groups and splits


def test_pairs_under_two_lesion_ids_are_one_lesion():
    assert len(datasets.DUPLICATE_PAIRS) == 18
    ids = [image for pair in datasets.DUPLICATE_PAIRS for image in pair]
    assert len(set(ids)) == 36
    more_ids = [*ids, "ISIC_0024306", "ISIC_0024307"]
    lesions = [f"HAM_{i}" for i in range(36)] + ["HAM_0", "HAM_99"]  # a third image of lesion 0
    groups = datasets.number_lesions(more_ids, lesions).tolist()
    assert groups == [i // 2 for i in range(36)] + [0, 18]


@pytest.mark.parametrize("seed", range(5))
def test_split_by_lesion(seed):
    dataset = synthetic_dataset(300, seed)
    split = dataset.split(seed)
    assert torch.cat(split).sort().values.equal(torch.arange(len(dataset)))
    lesions = [set(dataset.groups[part].tolist()) for part in split]
    assert not (lesions[0] & lesions[1] or lesions[0] & lesions[2] or lesions[1] & lesions[2])
    total = torch.bincount(dataset.labels, minlength=7)
    for part, fraction in zip(split, (0.8, 0.1, 0.1)):
        counts = torch.bincount(dataset.labels[part], minlength=7)
        assert (counts > 0).all()
        assert ((counts - fraction * total).abs() <= 3).all()  # a lesion has up to four images
    assert all(map(torch.equal, split, dataset.split(seed)))
    assert not split.train.equal(dataset.split(seed + 1).train)


def test_split_by_image_has_lesions_in_two_splits():
    dataset = synthetic_dataset(300)
    split = dataset.split(by="image")
    train, _, test = (set(dataset.groups[part].tolist()) for part in split)
    assert train & test
    assert torch.cat(split).sort().values.equal(torch.arange(len(dataset)))


def test_a_subset_is_split_like_the_whole_data_set():
    """A model that was trained on a subset of HAM10000 has not seen test lesions of the whole."""
    ids = [f"image {i}" for i in range(4000)]
    whole = data.ImageDataset("ham10000", ids, [i % 7 for i in range(4000)], CLASSES)
    subset = data.ImageDataset("isic2018", ids[:2500], [i % 7 for i in range(2500)], CLASSES)
    assert not set(subset.split().train.tolist()) & set(whole.split().test.tolist())


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.1, 0.1, 0.8), (0.98, 0.01, 0.01)])
def test_three_lesions_are_enough_for_three_splits(fractions):
    lesions = [*"aaaaaabc", *"defghijkl"]
    ids = [str(i) for i in range(len(lesions))]
    dataset = data.ImageDataset("ham10000", ids, [0] * 8 + [3] * 9, CLASSES, lesions)
    for seed in range(20):
        splits = dataset.split(seed, fractions)
        assert all(set(dataset.labels[split].tolist()) == {0, 3} for split in splits)
    assert len(dataset.split(0, (0.9, 0.1, 0)).test) == 0
    for wrong in ((0.8, 0.1), (0.8, 0.1, 0.2), (1.1, -0.1, 0), (0.8, float("nan"), 0.1)):
        with pytest.raises(ValueError, match="three numbers"):
            dataset.split(0, wrong)
    with pytest.raises(ValueError, match="whole number"):
        dataset.split(True)


# --- the cache


@pytest.mark.parametrize("size", [(600, 450), (224, 224), (200, 150), (45, 60)])
def test_crop_keeps_the_aspect_ratio_and_squash_is_the_reports_resize(size):
    width, height = size
    y, x = np.mgrid[:height, :width] + 0.5
    disk = np.hypot(x - width / 2, y - height / 2) < min(size) / 4
    image = Image.fromarray(np.uint8(disk * 255)).convert("RGB")
    crop = data.resize_to_square(image, 64, "crop") > 127
    assert crop.any((0, 2)).sum() == crop.any((1, 2)).sum() == 32
    assert np.array_equal(crop, crop[::-1]) and np.array_equal(crop, crop[:, ::-1])  # centered
    squashed = data.resize_to_square(image, 64, "squash")
    assert np.array_equal(squashed, np.asarray(transforms.Resize((64, 64))(image)))


def test_pixels_are_the_resized_images(ham):
    dataset = open_dataset(ham)
    pixels = dataset.pixels(32)
    assert len(pixels) == 14 and pixels.size == 32
    expected = torch.tensor(data.resize_to_square(dataset.image(5), 32)).permute(2, 0, 1)
    assert pixels[5].equal(expected) and pixels[torch.tensor(5)].equal(expected)
    batch = pixels[torch.tensor([5, 0, 5])]
    assert batch.dtype == torch.uint8 and batch.shape == (3, 3, 32, 32)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert batch[0].equal(expected) and batch[2].equal(expected) and pixels[4:6][1].equal(expected)
    for view in (pixels[5], pixels[5:6], pixels[torch.tensor(5)]):
        view.zero_()  # a copy: the stored image does not change
    assert pixels[5].equal(expected) and dataset.pixels(32)[5].equal(expected)
    assert pixels[torch.tensor([-9])][0].equal(expected)
    with pytest.raises(IndexError):
        pixels[torch.tensor([14])]


def test_synthetic_pixels_equal_the_images():
    dataset = synthetic_dataset(3)
    assert dataset.is_synthetic and dataset.root is None and "synthetic" in repr(dataset)
    image = torch.from_numpy(np.array(dataset.image(-1))).permute(2, 0, 1)
    assert dataset.pixels()[-1].equal(image) and image.shape == (3, 256, 256)
    with pytest.raises(IndexError):
        dataset.image(len(dataset))


def test_cache_is_built_once_for_the_same_inputs(ham, monkeypatch):
    built = []
    resize = data.resize_to_square
    monkeypatch.setattr(data, "resize_to_square", lambda *a: built.append(1) or resize(*a))

    def images_built():
        built.clear()
        open_dataset(ham).pixels(32)
        return len(built)

    assert images_built() == 14
    assert images_built() == 0
    save_image(ham / "HAM10000_images_part_1" / f"{IDS[0]}.jpg", 99, (80, 60))
    assert images_built() == 14
    assert images_built() == 0
    open_dataset(ham).pixels(32, "squash")
    assert len(built) == 14
    for lesions, seed in ((4, 0), (3, 1)):
        assert (
            synthetic_dataset(lesions, seed).pixels(32).path != synthetic_dataset(3).pixels(32).path
        )


def test_a_failed_build_leaves_nothing(ham, monkeypatch):
    monkeypatch.setattr(data, "BLOCK", 4)
    dataset = open_dataset(ham)
    broken = ham / "HAM10000_images_part_2" / f"{IDS[9]}.jpg"
    complete = broken.read_bytes()
    for bad in (complete[: len(complete) // 2], b"", b"<html>not found</html>"):
        broken.write_bytes(bad)
        with pytest.raises(DataError, match=f"{IDS[9]}.jpg can't be read as an image"):
            dataset.pixels(48)
    folder = data.work_dir() / "cache"
    assert not list(folder.glob("ham10000-48-*")) and not list(folder.glob("*.part"))
    broken.write_bytes(complete)
    monkeypatch.setattr(data.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="set VQLIB_HOME"):
        dataset.pixels(48)
    monkeypatch.undo()

    def fill_the_disk(indices, size):
        raise OSError(28, "No space left on device")

    full = data.ImageDataset("decoded", ["a"], [0], CLASSES, render=fill_the_disk)
    with pytest.raises(DataError, match=r"could not be written .*No space left"):
        full.pixels(48)
    assert not list(folder.glob("decoded-48-*"))
    killed = folder / f"ham10000-48-{16 * '0'}-{8 * '0'}.part"
    building = folder / f"ham10000-48-{16 * '0'}-{8 * '1'}.part"
    foreign = folder / "film.part"
    for partial_cache in (killed, building, foreign):
        partial_cache.mkdir()
        (partial_cache / "images.npy").touch()
        for path in (partial_cache / "images.npy", partial_cache):
            os.utime(path, (0, 0))
    (building / "images.npy").write_bytes(b"just now")
    assert len(dataset.pixels(48)) == 14
    assert not killed.exists() and building.exists() and foreign.exists()


def test_several_builds_at_the_same_time(ham):
    dataset, results = open_dataset(ham), []
    threads = [
        threading.Thread(target=lambda: results.append(dataset.pixels(40)[:])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(result.equal(results[0]) for result in results)
    files = list((data.work_dir() / "cache").glob("ham10000-40-*"))
    assert len(files) == 1 and (files[0] / "images.npy").is_file()


def test_a_changed_image_is_read_again(ham):
    """Even if its size and its time of modification are unchanged."""
    path, dataset = ham / "HAM10000_images_part_1" / f"{IDS[0]}.jpg", open_dataset(ham)
    fingerprints = []
    for color in ("red", "blue"):
        Image.new("RGB", (40, 40), color).save(path, "BMP")  # always of the same size
        os.utime(path, (0, 0))
        pixels = dataset.pixels(24)
        image = torch.tensor(np.array(dataset.image(0))[:24, :24])
        assert pixels[0].equal(image.permute(2, 0, 1))
        fingerprints.append(pixels.fingerprint)
        time.sleep(0.02)  # file times have a resolution of up to 10 ms
    assert len(set(fingerprints)) == 2 and dataset.pixels(24).fingerprint == fingerprints[1]


@pytest.mark.parametrize("file", ["images.npy", "checksums.json"])
def test_a_damaged_cache_raises(ham, tmp_path, monkeypatch, file):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(data, "BLOCK", 4)
    dataset = open_dataset(ham)
    folder, images = dataset.pixels(24).path.parent, dataset.pixels(24)[:]
    good = (folder / file).read_bytes()
    flipped = bytearray(good)
    flipped[-1 if file == "images.npy" else good.index(b"[") + 1] ^= 1
    for bad in (flipped, good[: len(good) // 2], b""):
        (folder / file).write_bytes(bad)
        with pytest.raises(DataError, match=rf"damaged .* delete the folder {folder}"):
            pixels = dataset.pixels(24)
            if file == "images.npy":
                assert pixels[:12].equal(images[:12])  # blocks without the flipped bit
            pixels[:]
    (folder / file).unlink()
    with pytest.raises(DataError, match="delete the folder"):
        dataset.pixels(24)


def test_a_cache_that_is_cut_short_while_it_is_read_raises(ham, tmp_path, monkeypatch):
    """A read beyond the end of a mapped file would kill the process."""
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path / "home"))
    pixels = open_dataset(ham).pixels(64)
    image, content = pixels[13], pixels.path.read_bytes()
    pixels.path.unlink()
    assert pixels[13].equal(image)  # a deleted file can still be read
    pixels.path.write_bytes(content[:4096])
    with pytest.raises(DataError, match=r"images.npy has been cut short: delete the folder"):
        pixels[13]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_images_that_were_read_do_not_stay_in_the_memory_of_the_process(tmp_path, monkeypatch):
    def megabytes_of_files():
        return int(Path("/proc/self/status").read_text().partition("RssFile:")[2].split()[0]) / 1000

    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    names, shape = [str(i) for i in range(5000)], (64, 64, 3)
    blank = data.ImageDataset(
        "blank", names, [0] * 5000, (), render=lambda i, size: np.zeros((len(i), *shape), np.uint8)
    )
    pixels = blank.pixels(64)  # 61 MB
    memory = []
    for _ in batches(pixels, torch.arange(5000), 100, shuffle=False):
        memory.append(megabytes_of_files())
    assert memory[-1] < memory[0] + 20


def test_caches_that_were_not_used_for_long_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    unused, used = (synthetic_dataset(2, seed=seed).pixels(32).path.parent for seed in (1, 2))
    for folder in (unused, used):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (0, time.time() - 1.01 * data.UNUSED_SECONDS))
    synthetic_dataset(2, seed=2).pixels(32)
    synthetic_dataset(2, seed=3).pixels(32)
    assert used.is_dir() and not unused.exists()


def test_verify_compares_the_bytes_of_image_files(ham, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(data.ImageDataset, "_inputs", lambda self: "a disk that records no times")
    open_dataset(ham, verify=True).pixels(32)  # no cache yet, so nothing is compared
    open_dataset(ham, verify=True)
    path = ham / "HAM10000_images_part_1" / f"{IDS[2]}.jpg"
    save_image(path, 99)
    open_dataset(ham)
    with pytest.raises(DataError, match=rf"1 of 14 images \({path} is the first\).* Get them"):
        open_dataset(ham, verify=True)
    assert main(["train-vqvae", "--data", str(ham), "--size", "32", "--verify"]) == 2
    assert "1 of 14 images" in capsys.readouterr().err


def test_verify_a_folder_whose_name_looks_like_a_pattern(tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(data.ImageDataset, "_inputs", lambda self: "a disk that records no times")
    folder = tmp_path / "holiday [2024]"
    save_image(folder / "1.png")
    data.open_folder(folder).pixels(32)
    save_image(folder / "1.png", 99)
    with pytest.raises(DataError, match="1 of 1 images"):
        data.open_folder(folder).verify()


def test_fingerprint_of_rendered_images(tmp_path, monkeypatch):
    """It depends on what is rendered, not on a last bit that differs between processors."""

    def rendered(last_bit, key):
        monkeypatch.setenv("VQLIB_HOME", str(tmp_path / f"{last_bit} {key}"))

        def render(indices, size):
            return np.full((len(indices), size, size, 3), last_bit, dtype=np.uint8)

        dataset = data.ImageDataset("decoded", ["a"], [0], CLASSES, render=render, render_key=key)
        return [dataset.pixels(8, mode).fingerprint for mode in ("crop", "squash")]

    assert rendered(0, "one") == rendered(1, "one")
    assert len({*rendered(0, "one"), *rendered(0, "two")}) == 4
    seeds = [synthetic_dataset(3, seed).pixels(32).fingerprint for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


# --- augmentation and batches


@pytest.fixture
def images():
    squares = torch.randint(256, (24, 40, 40, 3), dtype=torch.uint8, generator=generator(1))
    return squares.permute(0, 3, 1, 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_to_float(images):
    one = transforms.ToTensor()(images[0].permute(1, 2, 0).numpy())
    assert to_float(images)[0].equal(one)
    with pytest.raises(ValueError, match="float64"):
        to_float(one.double())  # in [0, 1] already


def test_random_dihedral_only_permutes_pixels(images):
    out = random_dihedral(images, generator())
    assert out.is_contiguous(memory_format=torch.channels_last)
    used = set()
    for before, after in zip(to_float(images), out):
        symmetries = [x.rot90(k, (1, 2)) for x in (before, before.flip(2)) for k in range(4)]
        (index,) = (i for i, transformed in enumerate(symmetries) if transformed.equal(after))
        used.add(index)
    assert used == set(range(8))
    assert out.equal(random_dihedral(images, generator())) and not out.equal(
        random_dihedral(images, generator(1))
    )


def test_rotation_by_0_degrees_is_a_flip(images):
    out = rotate_and_flip(images, generator(), degrees=0)
    used = set()
    for before, after in zip(to_float(images), out):
        flips = {"": before, "x": before.flip(2), "y": before.flip(1), "xy": before.flip(1, 2)}
        used |= {name for name, flip in flips.items() if (flip - after).abs().max() < 1e-4}
    assert used == {"", "x", "y", "xy"}
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_each_image_is_rotated_by_its_own_angle():
    """The direction of a rotated bar is computed from its second moments."""
    bar = torch.zeros(200, 3, 64, 64, dtype=torch.uint8)
    bar[:, :, 30:34, 8:56] = 255
    out = rotate_and_flip(bar, generator(), degrees=30, corners="black")[:, 0]
    axis = torch.arange(64) - 31.5
    xx, yy = (out * axis**2).sum((1, 2)), (out * axis[:, None] ** 2).sum((1, 2))
    xy = (out * axis * axis[:, None]).sum((1, 2))
    angles = torch.rad2deg(torch.atan2(2 * xy, xx - yy) / 2)
    assert angles.abs().max() < 30.5 and (angles.max() > 25) and (angles.min() < -25)
    assert 15 < angles.std() < 20  # uniform between -30 and 30: 17.3
    assert (out.sum((1, 2)) / out[0].sum() - 1).abs().max() < 0.02  # the area is unchanged


def test_corners():
    with pytest.raises(ValueError, match="'white'"):
        rotate_and_flip(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), generator(), corners="white")
    for options in ({"corners": (0.5, 0.5, float("nan"))}, {"degrees": float("nan")}):
        with pytest.raises(ValueError, match="nan"):
            rotate_and_flip(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), generator(), **options)
    white = torch.full((32, 3, 64, 64), 255, dtype=torch.uint8)
    assert rotate_and_flip(white, generator()).min() > 0.999  # reflect: no black corners
    black = rotate_and_flip(white, generator(), corners="black")
    empty = (black[:, :, 0, 0] == 0).all(1)  # all but those with a small angle
    assert empty.float().mean() > 0.8
    assert 0.05 < (black == 0).float().mean() < 0.13
    color = (0.485, 0.456, 0.406)
    out = rotate_and_flip(white, generator(), corners=color)
    assert (out[empty, :, 0, 0] == torch.tensor(color)).all()
    assert out.max() <= 1 and out[:, :, 32, 32].min() > 0.999

    # Equivalent to rotating the normalized image with fill 0, the report's other order.
    normalize = transforms.Normalize(color, (0.229, 0.224, 0.225))
    shifted = to_float(white) - torch.tensor(color).view(3, 1, 1)
    zeros = rotate_and_flip(shifted.clamp(0, 1), generator(), corners="black")
    assert torch.allclose(
        normalize(out), zeros / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), atol=1e-5
    )


def test_batches(ham):
    pixels, indices = open_dataset(ham).pixels(32), torch.tensor([3, 1, 4, 5, 9, 2, 6])
    unshuffled = list(batches(pixels, indices, 3, shuffle=False))
    assert torch.cat([i for _, i in unshuffled]).equal(indices)
    assert [len(i) for _, i in unshuffled] == [3, 3, 1]
    assert list(batches(pixels, indices[:0], 3)) == []
    for images, batch_indices in unshuffled:
        assert images.equal(to_float(pixels[batch_indices])) and images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
    orders = [torch.cat([i for _, i in batches(pixels, indices, 3, epoch=e)]) for e in range(4)]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert all(order.sort().values.equal(indices.sort().values) for order in orders)


def test_random_streams_do_not_depend_on_the_version_of_numpy():
    """With NumPy 1, `np.uint64 >> int` is a TypeError."""
    assert _make_generator(7, 2, 1).initial_seed() == 6442943914433913233


@pytest.mark.parametrize("augment", [None, random_dihedral, partial(rotate_and_flip, degrees=10)])
def test_batches_continue_from_a_given_batch(ham, augment):
    pixels, indices = open_dataset(ham).pixels(32), torch.arange(14)
    options = dict(batch_size=4, augment=augment, seed=7, epoch=2)
    complete = list(batches(pixels, indices, **options))
    remaining = list(batches(pixels, indices, start=2, **options))
    assert len(complete) == 4 and len(remaining) == 2
    for (a, i), (b, j) in zip(complete[2:], remaining):
        assert a.equal(b) and i.equal(j)
    if augment:  # another epoch, other transforms
        other = next(batches(pixels, indices[:1], 1, augment, seed=7, epoch=3))[0]
        assert any(
            not other.equal(next(batches(pixels, indices[:1], 1, augment, seed=7, epoch=e))[0])
            for e in range(4, 8)
        )


def test_the_reports_six_transforms(ham):
    steps = report_transforms(64)
    flips = ["RandomHorizontalFlip", "RandomVerticalFlip"]
    assert list(steps) == ["Resize", "RandomRotation", *flips, "ToTensor", "Normalize"]
    assert all(type(step).__name__ == name for name, step in steps.items())
    out = transforms.Compose(list(steps.values()))(open_dataset(ham).image(0))
    assert out.shape == (3, 64, 64) and out.min() < 0 < out.max()


# --- download


@pytest.fixture
def server(tmp_path):
    """A local web server: its folder, its address, and the paths that were requested."""
    folder, requested = tmp_path / "published", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            requested.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web_server:
        threading.Thread(target=web_server.serve_forever, args=(0.02,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{web_server.server_port}/", requested
        web_server.shutdown()


def test_download(ham, server, tmp_path, capsys, monkeypatch):
    folder, url, requested = server
    (ham / "HAM10000_metadata.csv").rename(folder / "4338392")
    for part in (1, 2):
        with zipfile.ZipFile(folder / str(part), "w") as archive:
            for file in (ham / f"HAM10000_images_part_{part}").iterdir():
                archive.write(file, file.name)  # without folders, as in Dataverse
    names = {
        "4338392": "HAM10000_metadata.csv",
        "1": "HAM10000_images_part_1.zip",
        "2": "HAM10000_images_part_2.zip",
    }
    raw = {key: (folder / key).read_bytes() for key in names}
    files = [
        RemoteFile(
            names[key], f"{key}?format=original", hashlib.md5(raw[key]).hexdigest(), len(raw[key])
        )
        for key in names
    ]
    target = tmp_path / "target"
    monkeypatch.setitem(BASE_URLS, "ham10000", url)

    def get(files):
        monkeypatch.setitem(FILES, "ham10000", files)
        return download("ham10000", target)

    with pytest.raises(DataError, match=r"HAM10000_images_part_2.* could not be downloaded"):
        get(files=[*files[:2], files[2]._replace(md5="0" * 32)])
    assert not (target / names["2"]).exists() and len(requested) == 3
    changed = next((target / "HAM10000_images_part_1").iterdir())
    changed.write_bytes(b"half")  # a foreign file is not overwritten
    with pytest.raises(DataError, match=f"{changed.name} differs from the file in"):
        get(files=files)
    changed.unlink()
    assert get(files=files) == target
    assert requested[3:] == ["/2?format=original"]  # complete files are kept
    assert contents(open_dataset(target)) == EXPECTED
    open_dataset(target).image(IDS.index(changed.stem))  # unpacked again
    assert "CC BY-NC 4.0" in capsys.readouterr().out
    table = target / "HAM10000_metadata.csv"
    table.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"metadata\.csv differs from the published file"):
        get(files=files)
    assert table.read_bytes() == b"mine"
    with pytest.raises(DataError, match="isic2018 or ham10000"):
        download("imagenet", target)


def test_another_version_of_the_renderer_uses_another_cache(monkeypatch):
    before = synthetic_dataset(3).pixels(32).path
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    assert synthetic_dataset(3).pixels(32).path != before
