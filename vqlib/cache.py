"""All images as uint8 squares in one file, computed once, with checksums beside it.

Decoding and scaling a photograph gives the same bytes in every epoch, so it is done once. The file
is memory-mapped: the operating system reads the pages that are asked for and keeps those it has
room for, whether the data set fits into memory or not.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

from .layouts import DataError

REPOSITORY = Path(__file__).resolve().parent.parent
VERSION = 2  # part of each cache's name: count up when its bytes would be others
CHUNK = 128  # images per block, the unit of writing and of checksums
ABANDONED = 600  # seconds without a write, after which a builder must be dead
Fit = Literal["crop", "squash"]

# Which blocks of a file have been compared with their checksums in this process: bool (blocks,).
_VERIFIED: dict[tuple, np.ndarray] = {}


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

    The images are verified in blocks of CHUNK: the first read of a block in this process compares
    the block with its checksum, and later reads cost nothing extra.

    Args:
        folder: holds images.npy and checksums.json, as written by `build`.
        shape: (N, size, size, 3), the expected shape.

    Attributes:
        path: the file images.npy.
        fingerprint: 16 hex digits that identify the images, for example in the settings of a
            training run: a hash of the content, computed from the checksums. For images that are
            rendered, `LesionDataset.pixels` sets it to a hash of what they are rendered from.

    Raises:
        DataError: the cache is damaged: at opening, or at the first read of a damaged block.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int, int]) -> None:
        self.path = folder / "images.npy"
        try:
            self._checksums = json.loads((folder / "checksums.json").read_bytes())["blocks"]
            # Mode "c": PyTorch wants memory that it may write to, and no write reaches the file.
            images = np.load(self.path, mmap_mode="c")
            found = images.dtype, images.shape, len(self._checksums)
            if found != (np.uint8, shape, -(-shape[0] // CHUNK)):
                raise ValueError(f"expected bytes of shape {shape}, found {found}")
            stat = self.path.stat()
        except Exception as error:  # NumPy raises errors of many types for damaged headers
            raise self._damaged(str(error)) from error
        self._images = torch.from_numpy(images)
        self.fingerprint = fingerprint(f"{shape} {self._checksums}")
        state = (self.path, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, self.fingerprint)
        self._verified = _VERIFIED.setdefault(state, np.zeros(len(self._checksums), dtype=bool))

    def __len__(self) -> int:
        return len(self._images)

    @property
    def size(self) -> int:
        return self._images.shape[1]

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        if not isinstance(index, slice):
            index = torch.as_tensor(index)
        if not self._verified.all():
            self._verify(torch.arange(len(self))[index])
        if isinstance(index, Tensor) and index.ndim == 1 and index.dtype == torch.int64:
            rows = torch.where(index < 0, index + len(self), index)
            return self._images.index_select(0, rows).permute(0, 3, 1, 2)  # the fast way
        return self._images[index].clone().movedim(-1, -3)

    def _verify(self, rows: Tensor) -> None:
        """Compare the blocks of these images with their checksums, unless this was done before."""
        for block in (rows // CHUNK).unique().tolist():
            if not self._verified[block]:
                images = self._images[block * CHUNK : (block + 1) * CHUNK]
                if zlib.crc32(images.numpy()) != self._checksums[block]:
                    raise self._damaged(f"the checksum of images {block * CHUNK} ff. differs")
                self._verified[block] = True

    def _damaged(self, reason: str) -> DataError:
        return DataError(
            f"{self.path} is damaged ({reason}): delete the folder {self.path.parent}, and the "
            "images are computed again."
        )


def read_picture(path: Path) -> tuple[Image.Image, str]:
    """The image in a file as 8-bit RGB, turned upright as its EXIF orientation says.

    16-bit grey is scaled to 8 bits. An alpha channel is dropped if all pixels are opaque.

    Returns:
        The image, and the `fingerprint` of the file's bytes.

    Raises:
        DataError: the file can't be read or is too large; it has transparent pixels, whose colour
            is undefined, or pixels of 32 bits, whose range is unknown.
    """
    try:
        raw = path.read_bytes()
        with Image.open(io.BytesIO(raw)) as image:
            mode = image.mode
            ImageOps.exif_transpose(image, in_place=True)
            alpha = 255
            if image.has_transparency_data:
                alpha = image.convert("RGBA").getchannel("A").getextrema()[0]
            if mode.startswith("I;16"):  # convert("RGB") would clip the values at 255
                grey = (np.asarray(image).astype(np.uint32) + 128) // 257  # 65535 becomes 255
                image = Image.fromarray(grey.astype(np.uint8))
            rgb = image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large ({error}): scale the picture down.") from error
    except Exception as error:  # PIL raises errors of many types for damaged files
        raise DataError(
            f"{path} can't be read as an image ({error}): it is damaged or was copied only in "
            "part. Get this file again, or unpack its archive again."
        ) from error
    if mode in ("I", "F"):
        raise DataError(
            f"{path} has 32-bit pixels (mode {mode}), and the values of black and white are "
            "unknown: expected 8 bits per channel. Convert the picture to 8-bit RGB."
        )
    if alpha < 255:
        raise DataError(
            f"{path} has transparent pixels, whose colour is undefined: expected an opaque "
            "picture. Save it without transparency, on a background of your choice."
        )
    return rgb, fingerprint(raw)


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
    squares: Callable[[range], tuple[np.ndarray, list[str]]],
) -> Pixels:
    """The images of `squares`, from their folder in work_dir()/cache; written if it is not there.

    The folder is written under another name and renamed when it is complete. So images and
    checksums always belong together, no half-written cache is ever opened, and builders that run
    at the same time do not disturb each other.

    Args:
        name: the beginning of the folder's name: data set, size and fit.
        inputs: whatever the images depend on besides. If it changes, so does the folder's name.
        shape: (N, size, size, 3).
        squares: computes, for a range of 0..N-1, uint8 (len(rows), size, size, 3) and the
            `fingerprint` of each picture file that was read, if there are files.

    Raises:
        DataError: there is no room for it, or it can't be written; then nothing is left behind.
    """
    folder = work_dir() / "cache" / f"{name}-{_key(inputs)}"
    if folder.is_dir():
        return Pixels(folder, shape)
    folder.parent.mkdir(exist_ok=True)
    for part in folder.parent.glob(f"*-{16 * '?'}-{8 * '?'}.part"):  # left by a killed builder
        with suppress(OSError):  # another builder removed it just now
            if time.time() - max(p.stat().st_mtime for p in (part, *part.iterdir())) > ABANDONED:
                shutil.rmtree(part)
    needed, free = math.prod(shape), shutil.disk_usage(folder.parent).free
    if needed > free:
        raise DataError(
            f"{folder} takes {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free: set "
            "VQLIB_HOME to a folder on a larger disk, or take a smaller size."
        )
    part = folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:8]}.part")
    checksums, pictures = [], []
    try:
        part.mkdir()
        # Written with file.write, not through numpy.lib.format.open_memmap: if another program
        # fills the disk meanwhile, a write raises an error, but mapped memory kills the process.
        with (
            (part / "images.npy").open("xb") as file,
            tqdm(total=shape[0], leave=False, disable=None) as bar,
        ):
            bar.set_description("preparing images")
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(map(int, shape))}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, shape[0], CHUNK):
                rows = range(start, min(start + CHUNK, shape[0]))
                images, read = squares(rows)
                images = np.ascontiguousarray(images)
                checksums.append(zlib.crc32(images))
                pictures += read
                file.write(images.data)
                bar.update(len(rows))
        text = json.dumps({"blocks": checksums, "pictures": pictures})
        (part / "checksums.json").write_text(text)
        os.rename(part, folder)
    except OSError as error:
        if not folder.is_dir():  # else another builder was faster
            raise DataError(
                f"{folder} could not be written ({error}): make room on the disk, or set "
                "VQLIB_HOME to another folder, and call again."
            ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Pixels(folder, shape)


def compare_pictures(name: str, inputs: str, paths: list[Path], pictures: list[str]) -> None:
    """Compare picture files with those that the caches of the same inputs were built from.

    Args:
        name: of the data set; caches of any size and fit are compared.
        inputs: as for `build`.
        paths: the picture files.
        pictures: the `fingerprint` of each file's bytes.

    Raises:
        DataError: the bytes of a file are not those that a cache was built from.
    """
    for folder in (work_dir() / "cache").glob(f"{name}-*-{_key(inputs)}"):
        try:
            recorded = json.loads((folder / "checksums.json").read_bytes())["pictures"]
            pairs = zip(paths, pictures, recorded, strict=True)
            changed = [path for path, now, before in pairs if now != before]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} is damaged ({error}): delete this folder.") from error
        if changed:
            raise DataError(
                f"{len(changed):,} of {len(paths):,} pictures ({changed[0]} is the first) hold "
                f"other bytes than when {folder} was built from them, though their size and times "
                "are the same: they are damaged or were replaced. Get them again; or, if they are "
                "right as they are, delete that folder."
            )


def _key(inputs: str) -> str:
    return fingerprint(f"{VERSION} {inputs}")
