"""Download of ISIC 2018 and HAM10000 from their publishers, with checksums.

`python -m vqlib download` calls `download`; `open_dataset` opens the result. Both data sets are
licensed under CC BY-NC 4.0: they may be used for teaching and research, but not commercially. Cite
Tschandl et al. (Scientific Data 5:180161, 2018) and, for ISIC 2018, Codella et al. (2019,
arXiv:1902.03368).
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

from ..checkpoints import DataError

LICENCE_NOTICE = (
    "ISIC 2018 and HAM10000 are licensed under CC BY-NC 4.0: use them for non-commercial purposes "
    "only, and cite Tschandl et al. 2018 (doi:10.1038/sdata.2018.161) and Codella et al. 2019 "
    "(arXiv:1902.03368)."
)


class RemoteFile(NamedTuple):
    """A published file, with its MD5 checksum and its size in bytes."""

    name: str
    url: str  # relative to the base URL
    md5: str
    bytes: int | None = None  # None: not published


BASE_URLS = {
    "isic2018": "https://isic-challenge-data.s3.amazonaws.com/2018/",
    "ham10000": "https://dataverse.harvard.edu/api/access/datafile/",
}
FILES = {
    "isic2018": (
        RemoteFile(
            "ISIC2018_Task3_Training_LesionGroupings.csv",
            "ISIC2018_Task3_Training_LesionGroupings.csv",
            "9517b6aa6902d6c27e234bac8279a64a",
        ),
        RemoteFile(
            "ISIC2018_Task3_Training_GroundTruth.zip",
            "ISIC2018_Task3_Training_GroundTruth.zip",
            "8302427e4ce0c107559531b9f444abe9",
        ),
        RemoteFile(
            "ISIC2018_Task3_Training_Input.zip",
            "ISIC2018_Task3_Training_Input.zip",
            "0c281f121070a8d63457caffcdec439a",
            2_771_732_744,
        ),
    ),
    "ham10000": (
        RemoteFile(
            "HAM10000_metadata.csv",
            "4338392?format=original",  # otherwise the server converts the table
            "8f85fb1aa29d80a2797247e434deb79d",
            690_218,
        ),
        RemoteFile(
            "HAM10000_images_part_1.zip",
            "3172585",
            "4639bfa73ab251610530a97c898e6e46",
            1_366_522_108,
        ),
        RemoteFile(
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
    files: Sequence[RemoteFile] | None = None,
) -> Path:
    """Download, verify and unpack a data set: 2.8 GB to download, and another 2.8 GB unpacked.

    After an interruption, call it again: complete files are verified and kept.

    Args:
        which: "isic2018" or "ham10000".
        folder: destination; `open_dataset(folder)` opens the result.
        base_url: URL of a mirror, ending in "/"; None: the publisher.
        files: files to download; None: the tables and training images of the data set.

    Returns:
        The folder.

    Raises:
        DataError: the data set is unknown, a file can't be downloaded or has the wrong checksum, or
            the disk is full.
    """
    if which not in FILES:
        raise DataError(f"unknown data set {which!r}: expected {' or '.join(FILES)}")
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    base_url = base_url or BASE_URLS[which]
    files = FILES[which] if files is None else files
    size = sum(file.bytes or 0 for file in files)
    print(f"{LICENCE_NOTICE}\n{which}: {len(files)} files, {size / 1e9:.1f} GB, to {folder}")
    free = shutil.disk_usage(folder).free
    needed = sum(file.bytes or 0 for file in files if not (folder / file.name).exists())
    needed += max(0, size - sum(p.stat().st_size for p in folder.rglob("*.jpg")))  # unpacked
    if free < needed:
        raise DataError(
            f"{folder} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed to "
            "download and unpack: use a folder on a larger disk."
        )
    for file in files:
        path = _fetch(file, base_url + file.url, folder)
        if path.suffix == ".zip":
            _unpack(path, folder)
    print(f"done: set VQLIB_DATA={folder.resolve()}. The .zip files in it are no longer needed.")
    return folder


def _fetch(file: RemoteFile, url: str, folder: Path) -> Path:
    """Path of the verified file from `url`, which is downloaded if it does not exist yet."""
    import pooch

    path = folder / file.name
    if path.exists():
        if pooch.file_hash(path, alg="md5") != file.md5:
            raise DataError(
                f"{path} differs from the published file (its MD5 is not {file.md5}): move or "
                "delete it and call again."
            )
        return path
    try:
        pooch.retrieve(url, f"md5:{file.md5}", fname=file.name, path=folder, progressbar=True)
    except Exception as error:  # pooch, requests and urllib3 raise different ones
        raise DataError(
            f"{file.name} could not be downloaded from {url} ({error}). Check the connection and "
            f"call again, or save the file in {folder} yourself; its MD5 must be {file.md5}."
        ) from error
    return path


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack into `folder`; each file is written atomically, and existing files are kept."""
    try:
        with zipfile.ZipFile(archive) as zip_file:
            members = [m for m in zip_file.infolist() if not m.is_dir()]
            # Dataverse's archives contain no folder: unpack them into one named after the archive.
            bare = all("/" not in member.filename for member in members)
            target = folder / archive.stem if bare else folder
            target.mkdir(exist_ok=True)
            missing = []
            for member in members:
                existing = target / member.filename
                if not existing.exists():
                    missing.append(member)
                elif existing.stat().st_size != member.file_size:
                    raise DataError(
                        f"{existing} differs from the file in {archive.name}: move or delete it "
                        "and call again."
                    )
            with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as temporary:
                for member in tqdm(missing, f"unpacking {archive.name}", leave=False, disable=None):
                    unpacked = Path(zip_file.extract(member, temporary))
                    destination = target / unpacked.relative_to(temporary)
                    destination.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(unpacked, destination)
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive} is damaged ({error}): delete it and call again.") from error
