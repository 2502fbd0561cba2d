"""Reading the tables and finding the image files of ISIC 2018 Task 3 and HAM10000.

Both contain the same 10,015 dermoscopic images, in different folder layouts:

- ISIC 2018 Task 3: one folder of images, a "ground truth" table with a one-hot column per class,
  and a table of the images that show the same lesion.
- HAM10000 (Harvard Dataverse, Kaggle): two folders of images and one table with all metadata.

`open_dataset` calls `read_layout`, which detects the layout of a folder and reads its tables.
Missing or inconsistent input raises an error that names the file and the remedy, because a silently
dropped image would change all results.

Papers: Tschandl et al. (2018), doi:10.1038/sdata.2018.161; Codella et al. (2019), arXiv:1902.03368.
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

from ..checkpoints import DataError
from .synthetic import CLASSES

GROUNDTRUTH_COLUMNS = ("image", *CLASSES)
GROUPINGS_COLUMNS = ("image", "lesion_id")
METADATA_COLUMNS = ("lesion_id", "image_id", "dx")
DX_TO_LABEL = {name.lower(): label for label, name in enumerate(CLASSES)}  # HAM10000's "dx"

TABLE_SUFFIXES = {".csv", ".tab", ".tsv", ".txt", ""}  # Dataverse: .tab, or a name without suffix
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}

EXPECTED_LAYOUTS = (
    "expected either ISIC2018_Task3_Training_GroundTruth.csv next to the folder "
    "ISIC2018_Task3_Training_Input (ISIC 2018), or HAM10000_metadata.csv next to the folders "
    "HAM10000_images_part_1 and HAM10000_images_part_2 (HAM10000)"
)


class DatasetTables(NamedTuple):
    """Tables of a data set: one entry per image, sorted by image id, in lists of equal length."""

    name: str  # "isic2018" or "ham10000"
    root: Path
    image_ids: list[str]
    labels: list[int]  # indices into CLASSES
    lesion_ids: list[str]
    paths: list[Path]


def read_layout(folder: str | Path) -> DatasetTables:
    """Read the tables of ISIC 2018 or HAM10000 and find the image files that they name.

    Args:
        folder: folder of the data set, or its parent folder.

    Raises:
        DataError: the folder contains no data set or more than one; a table lacks a column, lists
            an image or a column twice, or contains an unknown class; the images of a lesion have
            two diagnoses; an image file is missing.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {problem}: give the folder of the data set; {EXPECTED_LAYOUTS}.")
    try:
        tables = find_tables(root)
    except OSError as error:
        raise _unreadable(root, error) from error
    if not tables:
        raise DataError(f"no table of a known data set in {root}: {EXPECTED_LAYOUTS}.")
    if len(tables) > 1:
        names = ", ".join(str(table) for _, _, table in tables)
        raise DataError(
            f"{root} contains more than one data set ({names}): give the folder of one of them."
        )
    name, root, table = tables[0]
    read = read_metadata if name == "ham10000" else read_groundtruth
    try:
        labels, lesions = read(table, root)
        paths = find_images(root, table, labels)
    except OSError as error:
        raise _unreadable(root, error) from error
    ids = sorted(labels)
    first_image: dict[str, str] = {}  # of each lesion
    for image in ids:
        first = first_image.setdefault(lesions[image], image)
        if labels[image] != labels[first]:
            raise DataError(
                f"{table}: the images of lesion {lesions[image]} have two diagnoses, "
                f"{CLASSES[labels[first]]} ({first}) and {CLASSES[labels[image]]} ({image}), but "
                "a lesion has one. Correct the diagnosis or the lesion_id, or download the tables "
                "again."
            )
    return DatasetTables(
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
    """Data sets in `root`, or else in its subfolders, as (name, folder, table of classes)."""
    tables = _tables_in(root)
    for child in () if tables else _subfolders(root):
        with suppress(PermissionError):  # a neighbouring folder without read permission
            tables = tables + _tables_in(child)
    return tables


def _tables_in(folder: Path) -> list[tuple[str, Path, Path]]:
    """The same in one folder and its subfolders named like "groundtruth" or "metadata"."""
    files = _list_files(folder, "groundtruth|metadata", TABLE_SUFFIXES)
    files.sort(key=lambda f: len(f.name))  # copies, such as "... (1).csv", come last
    truths = [f for f in files if "groundtruth" in f.name.lower()]
    # The challenge has three parts; only the training part contains all 10,015 images.
    training = [f for f in truths if "training" in f.name.lower()]
    metadata = [f for f in files if f.name.lower().startswith("ham10000_metadata")]
    # HAM10000's archive also contains the ground truth of the challenge's test images.
    isic = training[:1] or ([] if metadata else truths[:1])
    return [("isic2018", folder, f) for f in isic] + [("ham10000", folder, f) for f in metadata[:1]]


def read_groundtruth(table: Path, root: Path) -> tuple[dict[str, int], dict[str, str]]:
    """ISIC 2018: the label and the lesion id of each image id."""
    labels: dict[str, int] = {}
    for line, row in _read_rows(table, GROUNDTRUTH_COLUMNS):
        values = [row[name] for name in CLASSES]
        ones = [i for i, value in enumerate(values) if _to_number(value) == 1]
        if len(ones) != 1 or sum(_to_number(value) == 0 for value in values) != len(CLASSES) - 1:
            raise DataError(
                f"{table}, line {line} ({row['image']}): expected one 1 and six 0 in the columns "
                f"{', '.join(CLASSES)}, found {', '.join(values)}. "
                "Download the table again."
            )
        _add_row(labels, row["image"], ones[0], table)
    prefix = table.stem.lower().split("_groundtruth")[0]
    if re.search("validation|test", prefix):  # lesion ids exist for the training images only
        return labels, {image: image for image in labels}
    groupings = [
        f
        for f in _list_files(root, "grouping|groundtruth", TABLE_SUFFIXES)
        if "lesiongroupings" in f.name.lower()
    ]
    groupings.sort(key=lambda f: (not f.name.lower().startswith(prefix), len(f.name)))
    if not groupings:
        raise DataError(
            f"ISIC2018_Task3_Training_LesionGroupings.csv is missing in {root}: without it, "
            "images of the same lesion can't be kept in the same split. Get it from "
            "https://challenge.isic-archive.com/data/#2018 (under 1 MB)."
        )
    lesions: dict[str, str] = {}
    for _, row in _read_rows(groupings[0], GROUPINGS_COLUMNS):
        _add_row(lesions, row["image"], row["lesion_id"], groupings[0])
    if missing := [image for image in labels if not lesions.get(image)]:
        raise DataError(
            f"{groupings[0]} names no lesion for {_summarize(missing)} of {table.name}. "
            "Download both tables from the same release."
        )
    return labels, lesions


def read_metadata(table: Path, root: Path) -> tuple[dict[str, int], dict[str, str]]:
    """HAM10000: the label and the lesion id of each image id."""
    labels: dict[str, int] = {}
    lesions: dict[str, str] = {}
    for line, row in _read_rows(table, METADATA_COLUMNS):
        diagnosis = row["dx"].lower()
        if diagnosis not in DX_TO_LABEL or not row["lesion_id"]:
            raise DataError(
                f"{table}, line {line} ({row['image_id']}): expected a lesion_id and one of the dx "
                f"{', '.join(DX_TO_LABEL)}; found lesion_id {row['lesion_id']!r} and dx "
                f"{row['dx']!r}. Download the table again."
            )
        _add_row(labels, row["image_id"], DX_TO_LABEL[diagnosis], table)
        lesions[_image_id(row["image_id"])] = row["lesion_id"]
    return labels, lesions


def find_images(root: Path, table: Path, image_ids: Iterable[str]) -> dict[str, Path]:
    """File of each image id, in `root` or in its subfolders named like "image" or "input"."""
    files = _list_files(root, "image|input", IMAGE_SUFFIXES)
    files += [
        f for d in _subfolders(root, "image|input") for f in _list_files(d, ".", IMAGE_SUFFIXES)
    ]
    paths: dict[str, Path] = {}
    for file in files:  # Kaggle's archive contains each image twice; the first file is used
        paths.setdefault(file.stem, file)
    expected_ids = list(image_ids)
    missing = [image for image in expected_ids if image not in paths]
    if missing:
        folders = sorted({str(f.parent) for f in files}) or [f"{root} and folders named *images*"]
        raise DataError(
            f"{table} lists {len(expected_ids):,} images, but there is no file for "
            f"{_summarize(missing)}; searched in {', '.join(folders)}. Unpack all image archives "
            "of the data set there."
        )
    image_folders = {paths[image].parent for image in expected_ids}
    unlisted = [i for i in paths.keys() - set(expected_ids) if paths[i].parent in image_folders]
    if unlisted:
        warnings.warn(
            f"{table} has no row for {_summarize(sorted(unlisted))}: left out, because the class "
            "is unknown.",
            stacklevel=4,
        )
    return {image: paths[image] for image in expected_ids}


def _read_rows(table: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Line number and stripped values of each row; the delimiter is a comma, semicolon or tab."""
    raw = table.read_bytes()
    try:
        text = raw.decode("utf-8-sig")  # with or without the byte order mark that Excel writes
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    names = [name.strip() for name in next(reader, [])]
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        raise DataError(
            f"{table} has more than one column {', '.join(repeated)}: expected one column of each "
            "name. Remove the others."
        )
    if missing := [name for name in columns if name not in names]:
        raise DataError(
            f"{table} lacks the column {', '.join(missing)}: expected {', '.join(columns)}, "
            f"found {', '.join(names) or 'nothing'}. Download the table again."
        )
    rows = []
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue  # an empty line
            if len(values) != len(names):
                raise csv.Error(f"expected {len(names)} values, found {len(values)}")
            rows.append((reader.line_num, dict(zip(names, (value.strip() for value in values)))))
    except csv.Error as error:
        raise DataError(
            f"{table}, line {reader.line_num}: {error}. The file is damaged: download it again."
        ) from error
    if not rows:
        raise DataError(f"{table} has a header but no rows: download the table again.")
    return rows


def _add_row(column: dict, image: str, value: object, table: Path) -> None:
    if (image_id := _image_id(image)) in column:
        raise DataError(
            f"{table} lists {image_id} twice, but one row per image was expected. "
            "Remove one of the two rows, or download the table again."
        )
    column[image_id] = value


def _image_id(name: str) -> str:
    return re.sub(r"\.(jpe?g|png)$", "", name, flags=re.IGNORECASE)


def _to_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _subfolders(folder: Path, pattern: str = "") -> list[Path]:
    """Visible subfolders of `folder` whose names match the regular expression `pattern`, sorted."""
    return [
        child
        for child in sorted(folder.iterdir())
        if child.is_dir()
        and not child.name.startswith(".")
        and re.search(pattern, child.name, re.I)
    ]


def _list_files(folder: Path, pattern: str, suffixes: set[str]) -> list[Path]:
    """Files with these suffixes in `folder`, then in its subfolders that match `pattern`."""
    return [
        file
        for directory in (folder, *_subfolders(folder, pattern))
        for file in sorted(directory.iterdir())
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    ]


def _summarize(ids: list[str]) -> str:
    """The number of ids, and the first three of them."""
    more = ", ..." if len(ids) > 3 else ""
    return f"{len(ids):,} of them ({', '.join(ids[:3])}{more})"
