"""Chapter 1, at rest: all images as uint8 squares in one file, computed once.

Decoding and scaling a photograph gives the same bytes in every epoch, so it is done once. The file
is mapped into memory: the operating system reads the pages that are asked for and keeps those it
has room for, whether the data set fits into memory or not.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from .layouts import DataError

REPOSITORY = Path(__file__).resolve().parent.parent
VERSION = 1  # part of each cache's name: count up when its bytes would be others
CHUNK = 128  # images per write
ABANDONED = 600  # seconds without a write, after which a builder must be dead
Fit = Literal["crop", "squash"]


def work_dir() -> Path:
    """The folder for everything that is computed; created if need be.

    $VQLIB_HOME; else `build` in the repository, if the package lies in one; else ~/.cache/vqlib.
    """
    if home := os.environ.get("VQLIB_HOME"):
        folder = Path(home).expanduser()
    elif (REPOSITORY / "pyproject.toml").is_file():
        folder = REPOSITORY / "build"
    else:
        folder = Path.home() / ".cache" / "vqlib"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file that appears whole or not at all: write to the path given, which lies beside its place
    and is moved there when the block has ended. If it ends in an error, nothing is left."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.touch()
    mode = beside.stat().st_mode
    try:
        yield beside
        if beside.stat().st_mode != mode:  # some writers leave it to its owner only
            beside.chmod(mode)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def fingerprint(*parts: Tensor | bytes | str) -> str:
    """16 hex digits that differ, for all practical purposes, if any of the parts does.

    Args:
        parts: tensors (dtype, shape and values count, the device does not), bytes or texts.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        part = part.encode() if isinstance(part, str) else part
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]


class Pixels:
    """N images of size x size pixels in a file; only those that are asked for are read.

    `pixels[i]` is uint8 (3, size, size); `pixels[a:b]` and `pixels[indices]` are uint8
    (B, 3, size, size). All are copies, in channels_last memory, which is how they lie in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Mode "c": PyTorch wants memory that it may write to, and no write reaches the file.
            self._images = torch.from_numpy(np.load(path, mmap_mode="c"))
        except (ValueError, EOFError) as error:
            raise DataError(
                f"{path} is damaged ({error}): delete it, and it is computed again."
            ) from error

    def __len__(self) -> int:
        return len(self._images)

    @property
    def fingerprint(self) -> str:  # TEMPORARY
        return fingerprint(self.path.name)

    @property
    def size(self) -> int:
        return self._images.shape[1]

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        if not isinstance(index, slice):
            index = torch.as_tensor(index)
            if index.ndim == 1 and index.dtype == torch.int64:  # copies whole images: the fast way
                rows = torch.where(index < 0, index + len(self), index)
                return self._images.index_select(0, rows).permute(0, 3, 1, 2)
        return self._images[index].clone().movedim(-1, -3)


def square(image: Image.Image, size: int, fit: Fit = "crop") -> np.ndarray:
    """One RGB image as uint8 (size, size, 3), antialiased; see `LesionDataset.pixels`."""
    if fit == "squash":  # bilinear, as torchvision's Resize
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def build(
    name: str,
    inputs: str,
    shape: tuple[int, int, int, int],
    squares: Callable[[range], np.ndarray],
) -> Pixels:
    """The images of `squares`, from their file in work_dir()/cache; written if it is not there.

    The file is written under a name of its own and renamed when it is whole. So it is never seen
    half-made, and builders that run at the same time can't disturb each other.

    Args:
        name: the beginning of the file's name.
        inputs: whatever the images depend on. If it changes, so does the file's name.
        shape: (N, size, size, 3).
        squares: computes uint8 (len(rows), size, size, 3) for rows of 0..N-1.

    Raises:
        DataError: there is no room for it.
    """
    folder = work_dir() / "cache"
    key = hashlib.sha256(f"{VERSION} {shape} {inputs}".encode()).hexdigest()[:16]
    path = folder / f"{name}-{key}.npy"
    if path.exists():
        return Pixels(path)
    folder.mkdir(exist_ok=True)
    for part in folder.glob(f"*-{16 * '?'}-{8 * '?'}.part"):  # left by a builder that was killed
        with suppress(OSError):  # another builder removed it just now
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
    needed, free = int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{path} takes {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free: set VQLIB_HOME "
            "to a folder on a larger disk, or take a smaller size."
        )
    part = path.with_name(f"{path.stem}-{uuid.uuid4().hex[:8]}.part")
    try:
        # Written, not mapped: on a full disk, writing to mapped memory kills the process.
        with part.open("xb") as file, tqdm(total=shape[0], leave=False, disable=None) as bar:
            bar.set_description("preparing images")
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(map(int, shape))}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, shape[0], CHUNK):
                rows = range(start, min(start + CHUNK, shape[0]))
                file.write(np.ascontiguousarray(squares(rows)).data)
                bar.update(len(rows))
        with suppress(FileNotFoundError):  # taken for abandoned, as it had stood still for so long
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    if not path.exists():
        raise DataError(f"{path} was not finished, as work on it had stopped for long: call again.")
    return Pixels(path)
