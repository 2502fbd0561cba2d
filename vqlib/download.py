"""Chapter 1, by post: the real data from where it is published, checked byte by byte.

Both data sets are under CC BY-NC 4.0: free for teaching and research, not for business, and not to
be passed on as part of something else. Cite Tschandl et al. (Scientific Data 5:180161, 2018) and,
for ISIC 2018, Codella et al. (arXiv:1902.03368).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from .layouts import DataError

LICENCE = (
    "ISIC 2018 and HAM10000 are licensed under CC BY-NC 4.0: use them for non-commercial purposes "
    "only, and cite Tschandl et al. 2018 (doi:10.1038/sdata.2018.161) and Codella et al. 2018 "
    "(arXiv:1902.03368)."
)


class Remote(NamedTuple):
    """A published file. Bytes and checksum are those that its users have agreed on."""

    name: str
    url: str  # after the base URL
    md5: str
    bytes: int | None = None  # None: not published


BASE_URLS = {
    "isic2018": "https://isic-challenge-data.s3.amazonaws.com/2018/",
    "ham10000": "https://dataverse.harvard.edu/api/access/datafile/",
}
FILES = {
    "isic2018": (
        Remote(
            "ISIC2018_Task3_Training_LesionGroupings.csv",
            "ISIC2018_Task3_Training_LesionGroupings.csv",
            "9517b6aa6902d6c27e234bac8279a64a",
        ),
        Remote(
            "ISIC2018_Task3_Training_GroundTruth.zip",
            "ISIC2018_Task3_Training_GroundTruth.zip",
            "8302427e4ce0c107559531b9f444abe9",
        ),
        Remote(
            "ISIC2018_Task3_Training_Input.zip",
            "ISIC2018_Task3_Training_Input.zip",
            "0c281f121070a8d63457caffcdec439a",
            2_771_732_744,
        ),
    ),
    "ham10000": (
        Remote(
            "HAM10000_metadata.csv",
            "4338392?format=original",  # without it, a re-export of other bytes is served
            "8f85fb1aa29d80a2797247e434deb79d",
            690_218,
        ),
        Remote(
            "HAM10000_images_part_1.zip",
            "3172585",
            "4639bfa73ab251610530a97c898e6e46",
            1_366_522_108,
        ),
        Remote(
            "HAM10000_images_part_2.zip",
            "3172584",
            "da43d6cc50f6613013be07e8986b384b",
            1_403_566_547,
        ),
    ),
}


def download(
    which: str,
    folder: str | Path,
    *,
    base_url: str | None = None,
    files: Sequence[Remote] | None = None,
) -> Path:
    """Download a data set, check it and unpack it. About 2.8 GB, and 2.8 GB more when unpacked.

    Call it again after an interruption: files that are complete are checked and kept.

    Args:
        which: "isic2018" or "ham10000".
        folder: where to put it; `open_dataset(folder)` then opens it.
        base_url: a mirror, ending in "/"; the publisher's if None.
        files: what to get; the data set's tables and training images if None.

    Returns:
        The folder.

    Raises:
        DataError: the data set is unknown, a file can't be had, or has not the expected bytes.
    """
    if which not in FILES:
        raise DataError(f"unknown data set {which!r}: expected {' or '.join(FILES)}")
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    base_url = base_url or BASE_URLS[which]
    files = FILES[which] if files is None else files
    size = sum(file.bytes or 0 for file in files)
    print(f"{LICENCE}\n{which}: {len(files)} files, {size / 1e9:.1f} GB, to {folder}")
    free = shutil.disk_usage(folder).free
    needed = sum(file.bytes or 0 for file in files if not (folder / file.name).exists())
    needed += max(0, size - sum(p.stat().st_size for p in folder.rglob("*.jpg")))  # to unpack
    if free < needed:
        raise DataError(
            f"{folder} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed to "
            "download and unpack: choose a folder on a larger disk."
        )
    for file in files:
        path = _fetch(file, base_url + file.url, folder)
        if path.suffix == ".zip":
            _unpack(path, folder)
    print(f"done: set VQLIB_DATA={folder.resolve()}. The .zip files there are no longer needed.")
    return folder


def _fetch(file: Remote, url: str, folder: Path) -> Path:
    """The file at `url`, checked; downloaded unless it is there already."""
    import pooch

    path = folder / file.name
    if path.exists():
        if pooch.file_hash(path, alg="md5") != file.md5:
            raise DataError(
                f"{path} is another file than the published one (its MD5 is not {file.md5}): move "
                "it away, or delete it, and call again."
            )
        return path
    try:
        pooch.retrieve(url, f"md5:{file.md5}", fname=file.name, path=folder, progressbar=True)
    except Exception as error:  # pooch, requests and urllib3 each bring their own
        raise DataError(
            f"{file.name} could not be had from {url} ({error}). Check the connection and call "
            f"again, or get the file by hand into {folder}; its MD5 must be {file.md5}."
        ) from error
    return path


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack into `folder`, each file whole or not at all; those that are there are kept."""
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [m for m in packed.infolist() if not m.is_dir()]
            # Dataverse's archives hold bare files: give them the folder of the archive's name.
            bare = all("/" not in member.filename for member in members)
            target = folder / archive.stem if bare else folder
            target.mkdir(exist_ok=True)
            missing = []
            for member in members:
                there = target / member.filename
                if not there.exists():
                    missing.append(member)
                elif there.stat().st_size != member.file_size:
                    raise DataError(
                        f"{there} is not the one in {archive.name}: move it away, or delete it, "
                        "and call again."
                    )
            with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as beside:
                for member in tqdm(missing, f"unpacking {archive.name}", leave=False, disable=None):
                    whole = Path(packed.extract(member, beside))
                    place = target / whole.relative_to(beside)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(whole, place)
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive} is damaged ({error}): delete it and call again.") from error
