"""Download of ISIC 2018 and HAM10000 from their publishers, with checksums.

`python -m vqlib download` calls `download`; `open_dataset` opens the result. Both data sets are
licensed under CC BY-NC 4.0: they may be used for teaching and research, but not commercially. Cite
Tschandl et al. (Scientific Data 5:180161, 2018) and, for ISIC 2018, Codella et al. (2019,
arXiv:1902.03368).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import requests
from tqdm.auto import tqdm

from ..checkpoints import DataError, explain_errors, make_folder, remove_abandoned

LICENSE_NOTICE = (
    "ISIC 2018 and HAM10000 are licensed under CC BY-NC 4.0: use them for non-commercial purposes "
    "only, and cite Tschandl et al. 2018 (doi:10.1038/sdata.2018.161) and Codella et al. 2019 "
    "(arXiv:1902.03368)."
)


class RemoteFile(NamedTuple):
    """A published file, with its MD5 checksum and its size in bytes."""

    name: str
    url: str  # relative to the base URL
    md5: str
    bytes: int  # 0: not published


BASE_URLS = {
    "isic2018": "https://isic-challenge-data.s3.amazonaws.com/2018/",
    "ham10000": "https://dataverse.harvard.edu/api/access/datafile/",
}
# One file per line. Without "format=original", Dataverse converts the table.
ISIC2018_FILES = """
    ISIC2018_Task3_Training_LesionGroupings.csv 9517b6aa6902d6c27e234bac8279a64a 0
    ISIC2018_Task3_Training_GroundTruth.zip 8302427e4ce0c107559531b9f444abe9 0
    ISIC2018_Task3_Training_Input.zip 0c281f121070a8d63457caffcdec439a 2771732744"""
HAM10000_FILES = """
    HAM10000_metadata.csv 8f85fb1aa29d80a2797247e434deb79d 690218 4338392?format=original
    HAM10000_images_part_1.zip 4639bfa73ab251610530a97c898e6e46 1366522108 3172585
    HAM10000_images_part_2.zip da43d6cc50f6613013be07e8986b384b 1403566547 3172584"""


def _parse(table: str) -> list[RemoteFile]:
    """Files of a table of name, MD5, size and, if it differs from the name, URL."""
    rows = [line.split() for line in table.strip().splitlines()]
    return [RemoteFile(name, (*url, name)[0], md5, int(size)) for name, md5, size, *url in rows]


FILES = {"isic2018": _parse(ISIC2018_FILES), "ham10000": _parse(HAM10000_FILES)}


def download(which: str, folder: str | Path) -> Path:
    """Download, verify and unpack a data set: 2.8 GB to download, and another 2.8 GB unpacked.

    After an interruption, call it again: complete files are verified and kept, and a partial
    download is continued. Nothing is unpacked before its checksum was verified.

    Args:
        which: "isic2018" or "ham10000".
        folder: destination; `open_dataset(folder)` opens the result.

    Returns:
        The folder.

    Raises:
        DataError: the data set is unknown, a file can't be downloaded or has the wrong checksum, or
            the disk is full.
    """
    if which not in FILES:
        raise DataError(f"unknown data set {which!r}: expected {' or '.join(FILES)}")
    folder, files = Path(folder).expanduser(), FILES[which]
    make_folder(folder)
    remove_abandoned(folder, ".unpacking-*")  # of processes that were killed
    size = sum(file.bytes for file in files)
    print(f"{LICENSE_NOTICE}\n{which}: {len(files)} files, {size / 1e9:.1f} GB, to {folder}")
    free = shutil.disk_usage(folder).free
    needed = sum(file.bytes for file in files if not (folder / file.name).exists())
    needed += max(0, size - sum(p.stat().st_size for p in folder.rglob("*.jpg")))  # unpacked
    if free < needed:
        raise DataError(
            f"{folder} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed to "
            "download and unpack: use a folder on a larger disk."
        )
    for file in files:
        path = _fetch(file, BASE_URLS[which] + file.url, folder)
        if path.suffix == ".zip":
            with explain_errors(f"{path} can't be unpacked", "if damaged, delete it; call again."):
                _unpack(path, folder)
    print(f"done: set VQLIB_DATA={folder.resolve()}. The .zip files in it are no longer needed.")
    return folder


def _fetch(file: RemoteFile, url: str, folder: Path) -> Path:
    """Path of the verified file from `url`, which is downloaded if it does not exist yet. A
    download that was interrupted is continued."""
    path, partial = folder / file.name, folder / f".{file.name}.part"
    if path.exists():
        if _md5(path) != file.md5:
            raise DataError(
                f"{path} differs from the published file (its MD5 is not {file.md5}): move or "
                "delete it and call again."
            )
        return path
    advice = f"call again, or save it in {folder} yourself; its MD5 must be {file.md5}."
    with explain_errors(f"{file.name} could not be downloaded from {url}", advice):
        _download(url, partial)
        if _md5(partial) != file.md5:
            partial.unlink()
            raise ValueError("what the server sent has another MD5 and was deleted")
        os.replace(partial, path)
    return path


def _download(url: str, path: Path) -> None:
    """Append to `path` what is missing of the file at `url`."""
    done = path.stat().st_size if path.exists() else 0
    # "identity": compressed by the server, the parts would not fit together.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=60) as response:
        if done and response.status_code == 416:  # nothing is missing
            return
        response.raise_for_status()
        done = done if response.status_code == 206 else 0  # 200: the server starts from byte 0
        total = done + int(response.headers.get("Content-Length", 0))
        options = {"initial": done, "unit": "B", "unit_scale": True, "disable": None}
        with (
            path.open("ab" if done else "wb") as file,
            tqdm(desc=path.name, total=total, **options) as bar,
        ):
            for chunk in response.iter_content(2**20):
                file.write(chunk)
                bar.update(len(chunk))
    if path.stat().st_size < total:
        raise OSError("the connection was interrupted")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack into `folder`; each file is written atomically, and existing files are kept.

    Raises:
        DataError: a file of the archive would lie outside `folder`, the disk has not enough space
            for all of them, or an existing file differs.
    """
    with (
        zipfile.ZipFile(archive) as zip_file,
        tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as temporary,
    ):
        members = [m for m in zip_file.infolist() if not m.is_dir()]
        # Dataverse's archives contain no folder: unpack them into one named after the archive.
        bare = all("/" not in member.filename for member in members)
        target = (folder / archive.stem if bare else folder).resolve()
        paths = [(target / member.filename).resolve() for member in members]
        if outside := [path for path in paths if not path.is_relative_to(target)]:
            raise DataError(f"{archive} would write to {outside[0]}: do not use this archive.")
        needed = sum(m.file_size for m, path in zip(members, paths) if not path.exists())
        if needed > (free := shutil.disk_usage(folder).free):
            raise DataError(
                f"{archive} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: make room."
            )
        bar = tqdm(members, f"unpacking {archive.name}", leave=False, disable=None)
        for member, path in zip(bar, paths):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(zip_file.extract(member, temporary), path)
            elif path.stat().st_size != member.file_size:
                raise DataError(
                    f"{path} differs from the file in {archive.name}: move or delete it and call "
                    "again."
                )
