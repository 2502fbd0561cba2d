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

import re
import warnings
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ..checkpoints import DataError
from ..data import ImageDataset, read_table
from .synthetic import CLASSES

DOWNLOAD_AGAIN = "Download the table again."
TABLE_SUFFIXES = {".csv", ".tab", ".tsv", ".txt", ""}  # Dataverse: .tab, or a name without suffix
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}

EXPECTED_LAYOUTS = (
    "expected either ISIC2018_Task3_Training_GroundTruth.csv next to the folder "
    "ISIC2018_Task3_Training_Input (ISIC 2018), or HAM10000_metadata.csv next to the folders "
    "HAM10000_images_part_1 and HAM10000_images_part_2 (HAM10000)"
)


def read_layout(root: Path) -> ImageDataset:
    """Read the tables of ISIC 2018 or HAM10000 and find the image files that they name.

    Args:
        root: folder of the data set, or its parent folder.

    Returns:
        "isic2018" or "ham10000", sorted by image id; the groups are the lesions of the table.

    Raises:
        DataError: the folder contains no data set or more than one; a table lacks a column, lists
            an image or a column twice, or contains an unknown class; the images of a lesion have
            two diagnoses; an image file is missing.
    """
    try:
        tables = find_tables(root)
        if not tables:
            raise DataError(f"no table of a known data set in {root}: {EXPECTED_LAYOUTS}.")
        if len(tables) > 1:
            names = ", ".join(str(table) for _, _, table in tables)
            raise DataError(
                f"{root} contains more than one data set ({names}): pass the folder of one."
            )
        name, root, table = tables[0]
        read = read_metadata if name == "ham10000" else read_groundtruth
        labels, lesions = read(table, root)
        paths = find_images(root, table, labels)
    except OSError as error:
        raise DataError(f"{root} can't be read ({error}): check its permissions.") from error
    ids = sorted(labels)
    first_image: dict[str, str] = {}  # of each lesion
    for image in ids:
        first = first_image.setdefault(lesions[image], image)
        if labels[image] != labels[first]:
            one, other = (f"{CLASSES[labels[i]]} ({i})" for i in (first, image))
            raise DataError(
                f"{table}: the images of lesion {lesions[image]} have two diagnoses, {one} and "
                f"{other}. Correct the diagnosis or the lesion_id, or download the tables again."
            )
    return ImageDataset(
        name,
        ids,
        [labels[i] for i in ids],
        CLASSES,
        [lesions[i] for i in ids],
        group_word="lesion",
        root=root,
        paths=[paths[i] for i in ids],
    )


def find_tables(root: Path) -> list[tuple[str, Path, Path]]:
    """Data sets in `root`, or else in its subfolders, as (name, folder, table of classes)."""
    tables = _tables_in(root)
    for child in () if tables else _subfolders(root):
        with suppress(PermissionError):  # a neighboring folder without read permission
            tables = tables + _tables_in(child)
    return tables


def _tables_in(folder: Path) -> list[tuple[str, Path, Path]]:
    """`find_tables` for one folder and its subfolders named like "groundtruth" or "metadata"."""
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
    for line, row in read_table(table, ("image", *CLASSES), DOWNLOAD_AGAIN):
        hot = [re.sub(r"\.0*$", "", row[name]) for name in CLASSES]
        if sorted(hot) != ["0"] * (len(CLASSES) - 1) + ["1"]:
            raise DataError(
                f"{table}, line {line} ({row['image']}): expected one 1 and six 0 in the columns "
                f"{', '.join(CLASSES)}, found {', '.join(hot)}. {DOWNLOAD_AGAIN}"
            )
        _add_row(labels, row["image"], hot.index("1"), table)
    prefix = table.stem.lower().split("_groundtruth")[0]
    if re.search("validation|test", prefix):  # lesion ids exist for the training images only
        return labels, {image: image for image in labels}
    groupings = _list_files(root, "grouping|groundtruth", TABLE_SUFFIXES)
    groupings = [f for f in groupings if "lesiongroupings" in f.name.lower()]
    groupings.sort(key=lambda f: (not f.name.lower().startswith(prefix), len(f.name)))
    if not groupings:
        raise DataError(
            f"ISIC2018_Task3_Training_LesionGroupings.csv is missing in {root}: without it, "
            "images of the same lesion can't be kept in the same split. Get it from "
            "https://challenge.isic-archive.com/data/#2018 (under 1 MB)."
        )
    lesions: dict[str, str] = {}
    for _, row in read_table(groupings[0], ("image", "lesion_id"), DOWNLOAD_AGAIN):
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
    classes = [name.lower() for name in CLASSES]  # as in the column dx
    for line, row in read_table(table, ("lesion_id", "image_id", "dx"), DOWNLOAD_AGAIN):
        if row["dx"].lower() not in classes or not row["lesion_id"]:
            raise DataError(
                f"{table}, line {line} ({row['image_id']}): expected a lesion_id and one of the dx "
                f"{', '.join(classes)}; found lesion_id {row['lesion_id']!r} and dx "
                f"{row['dx']!r}. {DOWNLOAD_AGAIN}"
            )
        _add_row(labels, row["image_id"], classes.index(row["dx"].lower()), table)
        _add_row(lesions, row["image_id"], row["lesion_id"], table)
    return labels, lesions


def find_images(root: Path, table: Path, image_ids: Collection[str]) -> dict[str, Path]:
    """File of each image id, in `root` or in its subfolders named like "image" or "input"; also of
    images that are not in `image_ids`."""
    files = _list_files(root, "image|input", IMAGE_SUFFIXES)
    for folder in _subfolders(root, "image|input"):
        files += _list_files(folder, ".", IMAGE_SUFFIXES)
    paths: dict[str, Path] = {}
    for file in files:  # Kaggle's archive contains each image twice; the first file is used
        paths.setdefault(file.stem, file)
    if missing := [image for image in image_ids if image not in paths]:
        folders = sorted({str(f.parent) for f in files}) or [f"{root} and folders named *images*"]
        raise DataError(
            f"{table} lists {len(image_ids):,} images, but there is no file for "
            f"{_summarize(missing)}; searched in {', '.join(folders)}. Unpack all image archives "
            "of the data set there."
        )
    used_folders = {paths[image].parent for image in image_ids}
    unlisted = [i for i in paths.keys() - set(image_ids) if paths[i].parent in used_folders]
    if unlisted:
        warnings.warn(
            f"{table} has no row for {_summarize(sorted(unlisted))}: left out, because the class "
            "is unknown.",
            stacklevel=4,
        )
    return paths


def _add_row(column: dict, image: str, value: object, table: Path) -> None:
    image_id = re.sub(r"\.(jpe?g|png)$", "", image, flags=re.IGNORECASE)
    if image_id in column:
        raise DataError(f"{table} lists {image_id} twice: remove one of the two rows.")
    column[image_id] = value


def _subfolders(folder: Path, pattern: str = "") -> list[Path]:
    """Visible subfolders of `folder` whose names match the regular expression `pattern`, sorted."""
    return [
        child
        for child in sorted(folder.iterdir())
        if child.is_dir() and child.name[0] != "." and re.search(pattern, child.name, re.I)
    ]


def _list_files(folder: Path, pattern: str, suffixes: set[str]) -> list[Path]:
    """Files with these suffixes in `folder`, then in its subfolders that match `pattern`."""
    return [
        file
        for directory in (folder, *_subfolders(folder, pattern))
        for file in sorted(directory.iterdir())
        if file.suffix.lower() in suffixes and file.name[0] != "." and file.is_file()
    ]


def _summarize(ids: list[str]) -> str:
    """The number of ids, and the first three of them."""
    more = ", ..." if len(ids) > 3 else ""
    return f"{len(ids):,} of them ({', '.join(ids[:3])}{more})"
