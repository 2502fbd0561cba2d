"""Chapter 1, in the field: ISIC 2018 and HAM10000 as they lie on a disk.

Both names stand for the same 10,015 dermoscopic photographs, published in two layouts:

- ISIC 2018 Task 3: one folder of pictures, a "ground truth" table with one column per class (a one
  and six zeros in each row), and a table that says which pictures show the same lesion.
- HAM10000 (Harvard Dataverse, Kaggle): two folders of pictures and one table with everything.

`read_layout` finds out which of them a folder holds and reads its tables. What is missing or does
not fit is an error that names the file and the cure: a row that silently disappears would change
every number that is computed later.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .synthetic import CLASSES

GROUNDTRUTH_COLUMNS = ("image", *CLASSES)
GROUPINGS_COLUMNS = ("image", "lesion_id")
METADATA_COLUMNS = ("lesion_id", "image_id", "dx")
DIAGNOSES = {name.lower(): label for label, name in enumerate(CLASSES)}  # HAM10000's "dx"

TABLE_SUFFIXES = {".csv", ".tab", ".tsv", ".txt", ""}  # Dataverse serves .tab, or no suffix at all
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png"}

EXPECTED = (
    "expected either ISIC2018_Task3_Training_GroundTruth.csv beside the folder "
    "ISIC2018_Task3_Training_Input (ISIC 2018), or HAM10000_metadata.csv beside the folders "
    "HAM10000_images_part_1 and HAM10000_images_part_2 (HAM10000)"
)


class DataError(ValueError):
    """Bad or missing input. The message names the file, what was expected and what to do."""


class Records(NamedTuple):
    """One entry per image, sorted by image id; four lists of equal length."""

    name: str  # "isic2018" or "ham10000"
    root: Path
    image_ids: list[str]
    labels: list[int]  # positions in CLASSES
    lesion_ids: list[str]
    paths: list[Path]


def read_layout(folder: str | Path) -> Records:
    """Read the tables of ISIC 2018 or HAM10000 and find the pictures that they name.

    Args:
        folder: the folder of the data set, or the one above it.

    Raises:
        DataError: nothing or more than one data set is there; a table lacks a column, holds an
            image or a column twice, or a class that is none of the seven; the images of a lesion
            have two diagnoses; a picture is absent.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}: give the folder of the data set; {EXPECTED}.")
    try:
        tables = find_tables(root)
    except OSError as error:
        raise _unreadable(root, error) from error
    if not tables:
        raise DataError(f"no table of a known data set in {root}: {EXPECTED}.")
    if len(tables) > 1:
        found = ", ".join(str(table) for _, _, table in tables)
        raise DataError(f"{root} holds more than one data set ({found}): name the folder of one.")
    name, root, table = tables[0]
    read = read_metadata if name == "ham10000" else read_groundtruth
    try:
        labels, lesions = read(table, root)
        paths = find_pictures(root, table, labels)
    except OSError as error:
        raise _unreadable(root, error) from error
    ids = sorted(labels)
    shown: dict[str, str] = {}  # the first image of each lesion
    for image in ids:
        first = shown.setdefault(lesions[image], image)
        if labels[image] != labels[first]:
            raise DataError(
                f"{table}: the images of lesion {lesions[image]} have two diagnoses, "
                f"{CLASSES[labels[first]]} ({first}) and {CLASSES[labels[image]]} ({image}), but "
                "a lesion has one. Correct the diagnosis or the lesion_id, or get the tables again."
            )
    return Records(
        name,
        root,
        ids,
        [labels[i] for i in ids],
        [lesions[i] for i in ids],
        [paths[i] for i in ids],
    )


def _unreadable(root: Path, error: OSError) -> DataError:
    return DataError(f"{root} can't be read ({error}): check its permissions.")


def find_tables(root: Path) -> list[tuple[str, Path, Path]]:
    """The data sets in `root`, or else one folder deeper: (name, folder, table of classes)."""
    found = _tables_in(root)
    for child in () if found else _subfolders(root):
        with suppress(PermissionError):  # somebody else's folder, beside the data set's
            found = found + _tables_in(child)
    return found


def _tables_in(folder: Path) -> list[tuple[str, Path, Path]]:
    """As `find_tables`, in one folder and its folders named after ground truth or metadata."""
    files = _nearby(folder, "groundtruth|metadata", TABLE_SUFFIXES)
    files.sort(key=lambda f: len(f.name))  # "... - Copy.csv" and "... (1).csv" come last
    truths = [f for f in files if "groundtruth" in f.name.lower()]
    # The challenge has three parts; the training part is the one with all the lesions.
    training = [f for f in truths if "training" in f.name.lower()]
    metadata = [f for f in files if f.name.lower().startswith("ham10000_metadata")]
    # HAM10000's archive brings the ground truth of the challenge's test images along.
    isic = training[:1] or ([] if metadata else truths[:1])
    return [("isic2018", folder, f) for f in isic] + [("ham10000", folder, f) for f in metadata[:1]]


def read_groundtruth(table: Path, root: Path) -> tuple[dict[str, int], dict[str, str]]:
    """ISIC 2018: the label and the lesion id of each image id."""
    labels: dict[str, int] = {}
    for line, row in _read_rows(table, GROUNDTRUTH_COLUMNS):
        values = [row[name] for name in CLASSES]
        hot = [i for i, value in enumerate(values) if _number(value) == 1]
        if len(hot) != 1 or sum(_number(value) == 0 for value in values) != len(CLASSES) - 1:
            raise DataError(
                f"{table}, line {line} ({row['image']}): expected one 1 and six 0 in the columns "
                f"{', '.join(CLASSES)}, found {', '.join(values)}. Get the table again."
            )
        _add(labels, row["image"], hot[0], table)
    part = table.stem.lower().split("_groundtruth")[0]
    if re.search("validation|test", part):  # published for the training images only
        return labels, {image: image for image in labels}
    groupings = [
        f
        for f in _nearby(root, "grouping|groundtruth", TABLE_SUFFIXES)
        if "lesiongroupings" in f.name.lower()
    ]
    groupings.sort(key=lambda f: (not f.name.lower().startswith(part), len(f.name)))
    if not groupings:
        raise DataError(
            f"ISIC2018_Task3_Training_LesionGroupings.csv is missing in {root}: without it, "
            "pictures of one lesion can't be kept on one side of a split. Get it from "
            "https://challenge.isic-archive.com/data/#2018 (under 1 MB)."
        )
    lesions: dict[str, str] = {}
    for _, row in _read_rows(groupings[0], GROUPINGS_COLUMNS):
        _add(lesions, row["image"], row["lesion_id"], groupings[0])
    if absent := [image for image in labels if not lesions.get(image)]:
        raise DataError(
            f"{groupings[0]} names no lesion for {_list(absent)} of {table.name}. "
            "Get both tables from the same release."
        )
    return labels, lesions


def read_metadata(table: Path, root: Path) -> tuple[dict[str, int], dict[str, str]]:
    """HAM10000: the label and the lesion id of each image id."""
    labels: dict[str, int] = {}
    lesions: dict[str, str] = {}
    for line, row in _read_rows(table, METADATA_COLUMNS):
        diagnosis = row["dx"].lower()
        if diagnosis not in DIAGNOSES or not row["lesion_id"]:
            raise DataError(
                f"{table}, line {line} ({row['image_id']}): expected a lesion_id, and a dx out of "
                f"{', '.join(DIAGNOSES)}; found lesion_id {row['lesion_id']!r}, dx {row['dx']!r}. "
                "Get the table again."
            )
        _add(labels, row["image_id"], DIAGNOSES[diagnosis], table)
        lesions[_image_id(row["image_id"])] = row["lesion_id"]
    return labels, lesions


def find_pictures(root: Path, table: Path, image_ids: Iterable[str]) -> dict[str, Path]:
    """The file of each image id, in `root` or in its folders named after images or input."""
    files = _nearby(root, "image|input", PICTURE_SUFFIXES)
    files += [
        f for d in _subfolders(root, "image|input") for f in _nearby(d, ".", PICTURE_SUFFIXES)
    ]
    paths: dict[str, Path] = {}
    for file in files:  # Kaggle's archive holds each picture twice: the first one counts
        paths.setdefault(file.stem, file)
    wanted = list(image_ids)
    absent = [image for image in wanted if image not in paths]
    if absent:
        folders = sorted({str(f.parent) for f in files}) or [f"{root} and folders named *images*"]
        raise DataError(
            f"{table} names {len(wanted):,} images, but there is no picture for {_list(absent)}; "
            f"looked in {', '.join(folders)}. Unpack all image archives of the data set there."
        )
    used = {paths[image].parent for image in wanted}
    if extra := [i for i in paths.keys() - set(wanted) if paths[i].parent in used]:
        warnings.warn(
            f"{table} says nothing about {_list(sorted(extra))}: left out, as it has no class.",
            stacklevel=4,
        )
    return {image: paths[image] for image in wanted}


def _read_rows(table: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Line number and stripped values of each row; commas, semicolons or tabs between them."""
    raw = table.read_bytes()
    try:
        text = raw.decode("utf-8-sig")  # with or without the byte order mark of Excel
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    names = [name.strip() for name in next(reader, [])]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise DataError(
            f"{table} has more than one column {', '.join(twice)}, and which of them counts is "
            "unknown: expected one column of each name. Remove the others."
        )
    if missing := [name for name in columns if name not in names]:
        raise DataError(
            f"{table} lacks the column {', '.join(missing)}: expected {', '.join(columns)}, "
            f"found {', '.join(names) or 'nothing'}. Get the table again from its source."
        )
    rows = []
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue  # a blank line at the end
            if len(values) != len(names):
                raise csv.Error(f"expected {len(names)} values, found {len(values)}")
            rows.append((reader.line_num, dict(zip(names, (value.strip() for value in values)))))
    except csv.Error as error:
        raise DataError(
            f"{table}, line {reader.line_num}: {error}. The file is damaged: get it again."
        ) from error
    if not rows:
        raise DataError(f"{table} has a header but no rows: get the table again from its source.")
    return rows


def _add(column: dict, image: str, value: object, table: Path) -> None:
    if (image_id := _image_id(image)) in column:
        raise DataError(
            f"{table} names {image_id} twice: one row per image was expected. "
            "Remove one of the two rows, or get the table again."
        )
    column[image_id] = value


def _image_id(name: str) -> str:
    return re.sub(r"\.(jpe?g|png)$", "", name, flags=re.IGNORECASE)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _subfolders(folder: Path, pattern: str = "") -> list[Path]:
    """The visible folders in `folder` whose name contains `pattern`, sorted."""
    return [
        child
        for child in sorted(folder.iterdir())
        if child.is_dir()
        and not child.name.startswith(".")
        and re.search(pattern, child.name, re.I)
    ]


def _nearby(folder: Path, pattern: str, suffixes: set[str]) -> list[Path]:
    """Files with these suffixes in `folder`, then in its subfolders named like `pattern`."""
    return [
        file
        for place in (folder, *_subfolders(folder, pattern))
        for file in sorted(place.iterdir())
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    ]


def _list(ids: list[str]) -> str:
    """How many, and the first few of them."""
    more = ", ..." if len(ids) > 3 else ""
    return f"{len(ids):,} of them ({', '.join(ids[:3])}{more})"
