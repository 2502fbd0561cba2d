"""Images of any kind: splits without leakage, resized uint8 images in a file, augmented batches.

`ImageDataset` divides images so that those of one group (a lesion, a patient) are in the same
split. `Pixels` reads the resized images: decoding and resizing an image gives the same result in
every epoch, so it is done once, and the uint8 pixels are stored with checksums in one memory-mapped
file, which may be larger than the memory. `batches` makes float32 batches from them, with a
separate random augmentation for each image. `lesions` opens the data sets of this workbook.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import math
import mmap
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Generator, Tensor
from tqdm.auto import tqdm

from .checkpoints import DataError, explain_errors, fingerprint, remove_abandoned, work_dir
from .checks import check_tensor, check_whole
from .distributed import rank, shard

CACHE_VERSION = 2  # part of each cache's name; increase it when the stored pixels change
BLOCK = 128  # images per block, the unit of writing and of checksums
UNUSED_SECONDS = 30 * 24 * 3600  # without a use, after which a cache is deleted
ResizeMode = Literal["crop", "squash"]

# Which blocks of a file have been compared with their checksums in this process: bool (blocks,).
_VERIFIED: dict[tuple, np.ndarray] = {}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
TABLE_ADVICE = "The column image is required; the columns label, group and split are optional."
Augment = Callable[[Tensor, Generator], Tensor]


class Split(NamedTuple):
    """Image indices of the three splits, int64, ascending.

    Make all choices on val; evaluate on test once, at the end.
    """

    train: Tensor
    val: Tensor
    test: Tensor


@dataclass(eq=False, repr=False)
class ImageDataset:
    """Images with labels, and with groups that a split must not divide.

    Args:
        name: short, for messages and the names of cached files.
        image_ids: N names.
        labels: N indices into `classes`, in an array, a list or a tensor; stored as int64 (N,).
        classes: names of the classes; () if there are none, and then all labels are 0.
        group_ids: N names; images of the same group (a lesion, a patient, a scene) have the same
            name. None: each image is a group of its own.
        given_split: replaces what `split` would compute.
        group_word: name of a group in messages, in the singular, such as "lesion".
        root: folder of the image files; None if there are none.
        paths: N files; or else
        render: (int64 (n,) image indices, size) -> uint8 (n, size, size, 3), and `render_key`, a
            text that changes when the rendered images change.

    Raises:
        ValueError: the lists have different lengths, or a label is not an index into `classes`.

    Attributes:
        groups: int64 (N,), the number of each image's group in order of appearance. Replace it if
            two ids are known to name the same group.
    """

    name: str
    image_ids: list[str]
    labels: Tensor
    classes: tuple[str, ...]
    group_ids: list[str] | None = None
    _: KW_ONLY
    given_split: Split | None = None
    group_word: str = "group"
    root: Path | None = None
    paths: list[Path] | None = None
    render: Callable[[np.ndarray, int], np.ndarray] | None = None
    render_key: str = ""

    def __post_init__(self) -> None:
        self.group_ids = self.image_ids if self.group_ids is None else self.group_ids
        labels = torch.as_tensor(self.labels)
        self.labels = labels if labels.is_floating_point() else labels.long()
        check_tensor("labels", self.labels, torch.int64, (len(self),), max(1, len(self.classes)))
        lengths = {len(self), len(self.group_ids), len(self.paths or self.image_ids)}
        if len(lengths) > 1:
            raise ValueError(f"image_ids, group_ids and paths have different lengths: {lengths}")
        numbers = {group: i for i, group in enumerate(dict.fromkeys(self.group_ids))}
        self.groups = torch.tensor([numbers[group] for group in self.group_ids])

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        classes = ", ".join(f"{name} {count}" for name, count in zip(self.classes, counts))
        groups = f"{len(self.groups.unique()):,} {self.group_word}s"
        return f"<{self.name}: {len(self):,} images of {groups}; {classes or 'no classes'}>"

    @property
    def is_synthetic(self) -> bool:
        """Whether the images are rendered by code."""
        return self.name == "synthetic"

    def image(self, i: int) -> Image.Image:
        """Image i in 8-bit RGB, upright, in its original size; a rendered image at 256 x 256.

        Raises:
            DataError: the file can't be read or its colors are undefined; see `read_image`.
        """
        if self.render is not None:
            return Image.fromarray(self.render(np.array([range(len(self))[i]]), 256)[0])
        return read_image(self.paths[i])[0]

    def split(
        self,
        seed: int = 0,
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        by: Literal["group", "image"] = "group",
    ) -> Split:
        """Divide the images into train, val and test, stratified by class. A data set that comes
        with a split (`given_split`) returns that one.

        by="group" keeps all images of a group in the same split. by="image" does not: the test
        split then contains images of groups that are also in the training split (data leakage), so
        never use it to evaluate a model.

        The groups of each class are sorted by a hash of their names, and train, val and test are
        consecutive parts of this order. The split is therefore the same on every machine, and a
        subset of the data set is split almost like the whole. A class with at least three groups is
        in every split whose fraction is above 0.

        Args:
            seed: part of the hash; another seed gives another split.
            fractions: of train, val and test.
            by: "group" or "image".

        Raises:
            ValueError: the fractions are negative, not finite or don't sum to 1, `by` is unknown,
                or `seed` is not a whole number.
        """
        # Written as "not (valid)", because every comparison with NaN is False.
        if not (len(fractions) == 3 and min(fractions) >= 0 and abs(sum(fractions) - 1) <= 1e-6):
            raise ValueError(f"fractions must be three numbers >= 0 that sum to 1, got {fractions}")
        check_whole(-math.inf, seed=seed)  # 1.0 and True would have other hashes than 1
        if by not in ("group", "image"):
            raise ValueError(f'by must be "group" or "image", got {by!r}')
        if self.given_split is not None:
            return self.given_split
        groups = self.groups.numpy() if by == "group" else np.arange(len(self))
        names = self.group_ids if by == "group" else self.image_ids
        _, first_image, group_of_image, sizes = np.unique(
            groups, return_index=True, return_inverse=True, return_counts=True
        )
        hashes = [hashlib.sha256(f"{seed}/{names[i]}".encode()).digest() for i in first_image]
        split_of_group = np.zeros(len(sizes), dtype=np.int64)
        for label in self.labels.unique().tolist():
            members = np.flatnonzero(self.labels.numpy()[first_image] == label)
            members = np.array(sorted(members, key=hashes.__getitem__), dtype=np.int64)
            split_of_group[members] = _assign_parts(sizes[members], fractions)
        split_of_image = split_of_group[group_of_image]
        return Split(*(torch.from_numpy(np.flatnonzero(split_of_image == i)) for i in range(3)))

    def pixels(self, size: int = 256, resize_mode: ResizeMode = "crop") -> Pixels:
        """All images as uint8 squares, computed once and then memory-mapped from a file.

        The file is reused as long as name, size, times and inode of each image file are unchanged;
        `verify` compares the image files byte by byte.

        Args:
            size: pixels of a side.
            resize_mode: "crop" takes the largest centered square, which keeps the aspect ratio;
                "squash" is the report's Resize((256, 256)), which keeps the whole image but
                distorts it.

        Raises:
            ValueError: the size is not a whole number of at least 1, or `resize_mode` is unknown.
            DataError: an image can't be read, or the disk is full (no partial file is left); or an
                existing file is damaged.
        """
        check_whole(size=size)
        if resize_mode not in ("crop", "squash"):
            raise ValueError(f'resize_mode must be "crop" or "squash", got {resize_mode!r}')
        name = f"{self.name}-{size}-{resize_mode}"
        shape = (len(self), int(size), int(size), 3)
        pixels = load_or_build_cache(
            name, self._inputs(), shape, lambda indices: self._resized(indices, size, resize_mode)
        )
        if self.render is not None:
            # On another CPU, a rendered pixel may differ in its last bit. A training must be
            # resumable there, so this fingerprint does not depend on the content.
            pixels.fingerprint = fingerprint(name, self._inputs())
        return pixels

    def verify(self) -> None:
        """Compare the bytes of all image files with those that the cached pixels were built from.

        This finds changes that leave size and times of an image file as they were, such as damage
        to the disk. Without image files (rendered images), or before the first call of `pixels`,
        there is nothing to compare.

        Raises:
            DataError: an image file differs or can't be read.
        """
        if self.paths is None:
            return
        with (
            explain_errors(f"an image of {self.name} can't be read", "get the file again."),
            ThreadPoolExecutor() as pool,
        ):
            present = list(pool.map(lambda p: fingerprint(p.read_bytes()), self.paths))
        # The caches of any size and resize mode. A name may contain characters of patterns: [ ].
        pattern = f"{glob.escape(self.name)}-*-{_key(self._inputs())}"
        for folder in (work_dir() / "cache").glob(pattern):
            with explain_errors(f"{folder} is damaged", "delete this folder."):
                recorded = json.loads((folder / "checksums.json").read_bytes())["pictures"]
                files = zip(self.paths, present, recorded, strict=True)
                changed = [path for path, new, old in files if new != old]
            if changed:
                raise DataError(
                    f"{len(changed):,} of {len(self):,} images ({changed[0]} is the first) have "
                    f"changed since {folder} was built from them, although size and times are the "
                    "same. Get them again; or, if they are right, delete that folder."
                )

    def _inputs(self) -> str:
        """Text that changes whenever an image file is changed or replaced."""
        if self.paths is None:
            return f"{len(self)} {self.render_key}"
        stats = ((path.name, path.stat()) for path in self.paths)
        return " ".join(
            f"{name} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" for name, s in stats
        )

    def _resized(
        self, indices: range, size: int, resize_mode: ResizeMode
    ) -> tuple[np.ndarray, list[str]]:
        """Resized images, uint8 (len(indices), size, size, 3), and the fingerprints of their files
        (an empty list for rendered images)."""
        if self.render is not None:
            return self.render(np.array(indices), size), []

        def read_and_resize(i: int) -> tuple[np.ndarray, str]:
            image, file_fingerprint = read_image(self.paths[i])
            return resize_to_square(image, size, resize_mode), file_fingerprint

        with ThreadPoolExecutor() as pool:  # PIL releases the GIL
            images, fingerprints = zip(*pool.map(read_and_resize, indices))
        return np.stack(images), list(fingerprints)


def _assign_parts(sizes: np.ndarray, fractions: tuple[float, float, float]) -> np.ndarray:
    """Split number (0, 1 or 2) of each group, for groups with `sizes` images in sorted order."""
    centers = (sizes.cumsum() - sizes / 2) / max(1, sizes.sum())
    boundaries = np.cumsum(fractions)[:2]
    val, test = np.searchsorted(centers, boundaries)  # first group of val and of test
    if len(sizes) >= 3:  # at least one group for each split whose fraction is above 0
        needs_train, needs_val, needs_test = (fraction > 0 for fraction in fractions)
        val = np.clip(val, needs_train, len(sizes) - needs_val - needs_test)
        test = np.clip(test, val + needs_val, len(sizes) - needs_test)
    return np.searchsorted([val, test], np.arange(len(sizes)), side="right")


def open_folder(folder: str | Path) -> ImageDataset:
    """Open any folder of images.

    - Subfolders are classes, as in torchvision's ImageFolder: `cats/1.png`, `dogs/7.png`.
    - A flat folder has no classes.
    - One CSV file in the folder, with a column `image` (paths relative to the folder), replaces
      both: it names the images to use and, in the optional columns `label`, `group` and `split`,
      their class, the group that must stay in one split, and "train", "val" or "test".

    Returns:
        An ImageDataset in the order of the sorted image names. Without classes, `classes` is ()
        and all labels are 0.

    Raises:
        DataError: there is no image, images lie both in the folder and in its subfolders, a table
            names an image that is absent or named twice, has labels or splits for some images
            only, divides a group, or there is more than one table.
    """
    root = Path(folder).expanduser()
    tables = sorted(root.glob("*.csv"))
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise DataError(f"{root} has more than one CSV file ({names}): keep only one")
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    paths = {p.relative_to(root).as_posix(): p for p in found}
    paths = {name: path for name, path in paths.items() if "/." not in f"/{name}"}  # not hidden
    if not paths:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{root} has no images: expected files that end in {suffixes}")
    names, groups, split = list(paths), None, None
    labels = [name.split("/")[0] if "/" in name else "" for name in paths]
    if tables:
        names, labels, groups, split = _read_folder_table(root, tables[0], paths)
    elif "" in labels and any(labels):
        raise DataError(
            f"{root} contains images directly and in subfolders ({max(labels)}), so it is unclear "
            "whether subfolders are classes: move them, or add a CSV file. " + TABLE_ADVICE
        )
    classes = tuple(sorted(set(labels) - {""}))
    return ImageDataset(
        root.resolve().name,
        names,
        [classes.index(label) if label else 0 for label in labels],
        classes,
        groups,
        given_split=split,
        root=root,
        paths=[paths[name] for name in names],
    )


def _read_folder_table(
    root: Path, table: Path, paths: dict[str, Path]
) -> tuple[list[str], list[str], list[str], Split | None]:
    """Sorted image names of a table, their labels ("" if there are none), groups and split."""
    records: dict[str, dict[str, str]] = {}
    for line, row in read_table(table, ("image",), TABLE_ADVICE):
        name = row["image"]
        if name not in paths:
            raise DataError(f"{table}, line {line}: there is no image {name!r} in {root}")
        if name in records:
            raise DataError(f"{table}, line {line}: {name} is named twice")
        records[name] = row
    names = sorted(records)

    def column(key: str) -> list[str]:
        values = [records[name].get(key, "") for name in names]
        if any(values) and not all(values):
            missing = names[values.index("")]
            raise DataError(f"{table}: {missing} has no {key}; give one to all images or to none")
        return values

    groups = [records[name].get("group") or name for name in names]
    parts = column("split")
    if not any(parts):
        return names, column("label"), groups, None
    part_of: dict[str, str] = {}
    for group, part in zip(groups, parts):
        if part not in Split._fields:
            raise DataError(f"{table}: split {part!r}; expected {', '.join(Split._fields)}")
        if part_of.setdefault(group, part) != part:
            raise DataError(f"{table}: group {group} is in {part_of[group]} and in {part}")
    split = Split(*(torch.from_numpy(np.flatnonzero(np.array(parts) == f)) for f in Split._fields))
    return names, column("label"), groups, split


def read_table(table: Path, columns: tuple[str, ...], advice: str) -> list[tuple[int, dict]]:
    """Rows of a table with a header: (line number, {column: value}), values without outer spaces.

    The delimiter is a comma, semicolon or tab. The encoding is UTF-8, UTF-16 with a byte order mark
    (Excel's "Unicode text"), or else Latin-1. Empty lines are skipped.

    Args:
        columns: the columns that the table must have.
        advice: last sentence of each error, which says what to do about it.

    Raises:
        DataError: a column is missing or occurs twice, there are no rows, or a row has
            another number of values than the header.
    """
    raw = table.read_bytes()
    is_utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = raw.decode("utf-16" if is_utf16 else "utf-8-sig")  # with or without a mark
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    rows = []
    try:
        names = [name.strip() for name in next(reader, [])]
        if missing := [name for name in columns if name not in names]:
            found = ", ".join(names)[:200]
            raise csv.Error(f"lacks the column {', '.join(missing)}; found {found!r}")
        if repeated := [name for name in names if name and names.count(name) > 1]:
            raise csv.Error(f"more than one column {repeated[0]}")
        for values in reader:
            if any(value.strip() for value in values):  # else an empty line
                if len(values) != len(names):
                    raise csv.Error(f"expected {len(names)} values, found {len(values)}")
                rows.append((reader.line_num, dict(zip(names, map(str.strip, values)))))
        if not rows:
            raise csv.Error("no rows after the header")
    except csv.Error as error:
        raise DataError(f"{table}, line {reader.line_num}: {error}. {advice}") from error
    return rows


class Pixels:
    """N images of size x size pixels in a memory-mapped file; only the requested ones are read.

    `pixels[i]` is uint8 (3, size, size); `pixels[a:b]` and `pixels[indices]` are uint8
    (B, 3, size, size). All are copies, in channels_last memory format, the order of the file.

    The images are verified in blocks of BLOCK: the first read of a block in this process compares
    the block with its checksum; later reads do not.

    Args:
        folder: contains images.npy and checksums.json, as written by `load_or_build_cache`.
        shape: (N, size, size, 3), the expected shape.

    Attributes:
        path: the file images.npy.
        fingerprint: 16 hex digits that identify the images, for example in the settings of a
            training run: a hash of the content, computed from the checksums. For images that are
            rendered, `ImageDataset.pixels` sets it to a hash of what they are rendered from.

    Raises:
        DataError: the cache is damaged; when it is opened, or at the first read of a damaged block.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int, int]) -> None:
        self.path = folder / "images.npy"
        self._advice = f"delete the folder {folder}, and the images will be computed again."
        with explain_errors(f"{self.path} is damaged", self._advice):
            self._checksums = json.loads((folder / "checksums.json").read_bytes())["blocks"]
            # Mode "c" (copy-on-write): PyTorch needs writable memory, and writes don't reach the
            # file.
            images = np.load(self.path, mmap_mode="c")
            layout = images.dtype, images.shape, len(self._checksums)
            if layout != (np.uint8, shape, -(-shape[0] // BLOCK)):
                raise ValueError(f"expected uint8 {shape}, got {layout}")
            stat = self.path.stat()
        self._images, self._file_size = torch.from_numpy(images), stat.st_size
        self._mapped = images.base
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
        with suppress(FileNotFoundError):  # a deleted file can still be read
            if self.path.stat().st_size < self._file_size:  # reading would kill the process
                raise DataError(f"{self.path} has been cut short: {self._advice}")
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            # Unmap what was read before, or the memory of this process would grow with each read.
            self._mapped.madvise(mmap.MADV_DONTNEED)
        if not self._verified.all():
            self._verify(torch.arange(len(self))[index])
        if isinstance(index, Tensor) and index.ndim == 1 and index.dtype == torch.int64:
            # index_select copies whole images and is faster, but accepts no negative indices.
            indices = torch.where(index < 0, index + len(self), index)
            return self._images.index_select(0, indices).permute(0, 3, 1, 2)
        return self._images[index].clone().movedim(-1, -3)

    def _verify(self, indices: Tensor) -> None:
        """Compare the blocks of these images with their checksums, unless this was done before."""
        for block in (indices // BLOCK).unique().tolist():
            if not self._verified[block]:
                images = self._images[block * BLOCK : (block + 1) * BLOCK]
                if zlib.crc32(images.numpy()) != self._checksums[block]:
                    where = f"the checksum of images {block * BLOCK} onwards is wrong"
                    raise DataError(f"{self.path} is damaged ({where}): {self._advice}")
                self._verified[block] = True


def read_image(path: Path) -> tuple[Image.Image, str]:
    """Read an image file as 8-bit RGB, rotated upright according to its EXIF orientation.

    16-bit gray is scaled to 8 bits. An alpha channel is dropped if all pixels are opaque.

    Returns:
        The image, and the `fingerprint` of the file's bytes.

    Raises:
        DataError: the file can't be read or is too large; it has transparent pixels, whose color
            is undefined, or 32-bit pixels, whose range is unknown.
    """
    try:
        raw = path.read_bytes()
        with Image.open(io.BytesIO(raw)) as image:
            mode, opaque = image.mode, True
            ImageOps.exif_transpose(image, in_place=True)
            if image.has_transparency_data:
                opaque = image.convert("RGBA").getchannel("A").getextrema()[0] == 255
            if mode.startswith("I;16"):  # convert("RGB") would clip the values at 255
                gray = (np.asarray(image).astype(np.uint32) + 128) // 257  # 65535 becomes 255
                image = Image.fromarray(gray.astype(np.uint8))
            rgb = image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large ({error}): scale the image down.") from error
    except Exception as error:  # PIL raises errors of many types for damaged files
        if isinstance(error, OSError) and error.strerror:
            advice = "check its name and your permissions"
            raise DataError(f"{path} can't be opened ({error.strerror}): {advice}.") from error
        reason = str(error).partition(" <_io")[0]  # without the address of an object
        raise DataError(
            f"{path} can't be read as an image ({reason}): it is damaged; get this file again."
        ) from error
    if mode in ("I", "F"):
        raise DataError(f"{path} has 32-bit pixels of unknown range. Convert it to 8-bit RGB.")
    if not opaque:
        raise DataError(f"{path} has transparent pixels, whose color is undefined. Save it opaque.")
    return rgb, fingerprint(raw)


def resize_to_square(image: Image.Image, size: int, resize_mode: ResizeMode = "crop") -> np.ndarray:
    """Resize one RGB image to uint8 (size, size, 3), antialiased; see `ImageDataset.pixels`."""
    if resize_mode == "squash":  # bilinear, like torchvision's Resize
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def load_or_build_cache(
    name: str,
    inputs: str,
    shape: tuple[int, int, int, int],
    compute_images: Callable[[range], tuple[np.ndarray, list[str]]],
) -> Pixels:
    """Load the resized images from their folder in work_dir()/cache, or compute and store them.

    The folder is written under a temporary name and renamed when it is complete. Images and
    checksums therefore always belong together, an incomplete cache is never opened, and several
    processes may build it at the same time. Caches that were not used for 30 days are removed.

    Args:
        name: beginning of the folder's name: data set, size and resize mode.
        inputs: text that describes everything else that the images depend on. It determines the
            rest of the folder's name.
        shape: (N, size, size, 3).
        compute_images: function from a range of image indices to uint8 (len(range), size, size, 3)
            and the `fingerprint` of each image file that was read (an empty list if there are no
            files).

    Raises:
        DataError: the disk has not enough space or can't be written; no partial cache is left.
    """
    parent = work_dir() / "cache"
    folder = parent / f"{name}-{_key(inputs)}"
    if folder.is_dir():
        with suppress(OSError):  # a folder that may only be read
            os.utime(folder)  # the time of the last use
        return Pixels(folder, shape)
    parent.mkdir(exist_ok=True)
    remove_abandoned(parent, f"*-{16 * '[0-9a-f]'}-{8 * '[0-9a-f]'}.part")
    remove_abandoned(parent, f"*-{16 * '[0-9a-f]'}", UNUSED_SECONDS)
    partial = parent / f"{folder.name}-{uuid.uuid4().hex[:8]}.part"
    checksums, fingerprints = [], []
    try:
        needed, free = math.prod(shape), shutil.disk_usage(parent).free
        if needed > free:
            raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        partial.mkdir()
        # file.write instead of numpy.lib.format.open_memmap: if another program fills the disk
        # meanwhile, file.write raises an error, but a write to mapped memory kills the process.
        with (partial / "images.npy").open("xb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            starts = range(0, shape[0], BLOCK)
            for start in tqdm(starts, "preparing images", leave=False, disable=None):
                images, files = compute_images(range(start, min(start + BLOCK, shape[0])))
                images = np.ascontiguousarray(images)
                checksums.append(zlib.crc32(images))
                fingerprints += files
                file.write(images.data)
        text = json.dumps({"blocks": checksums, "pictures": fingerprints})
        (partial / "checksums.json").write_text(text)
        os.rename(partial, folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            raise DataError(
                f"{folder} could not be written ({error}): make room on the disk, or set "
                "VQLIB_HOME to another folder, and call again."
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Pixels(folder, shape)


def _key(inputs: str) -> str:
    return fingerprint(f"{CACHE_VERSION} {inputs}")


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0..255 to float32 in [0, 1], like torchvision's ToTensor; float32 is returned as is.

    Raises:
        ValueError: another dtype, whose range is unknown.
    """
    if images.dtype == torch.float32:
        return images
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 or float32, got {images.dtype}")
    return images.to(torch.float32).div_(255)


def dihedral_transform(images: Tensor, index: int) -> Tensor:
    """Apply one of the eight symmetries of a square (the dihedral group D4), exactly.

    The image is rotated counter-clockwise by `index % 4` quarter turns, and for `index` >= 4 then
    mirrored horizontally; 0 is the identity. Pixels are only permuted: no interpolation, no empty
    corners.

    Args:
        images: any dtype, (..., S, S).
        index: 0..7.

    Raises:
        ValueError: another index.
    """
    if index not in range(8):
        raise ValueError(f"index must be 0..7, got {index}")
    images = torch.rot90(images, index % 4, dims=(-2, -1))
    return images.flip(-1) if index >= 4 else images


def random_dihedral(images: Tensor, generator: Generator) -> Tensor:
    """Apply a random dihedral transform to each image; see `dihedral_transform`.

    Args:
        images: uint8 (B, 3, S, S).
        generator: chooses one of the eight transforms for each image.

    Returns:
        float32 (B, 3, S, S) in [0, 1], channels_last.
    """
    choices = torch.randint(8, (len(images),), generator=generator)
    channels_last = images.permute(0, 2, 3, 1)  # so that each image is contiguous in memory
    out = torch.empty(channels_last.shape)
    for index in range(8):
        selected = (choices == index).nonzero().flatten()
        group = channels_last.index_select(0, selected).permute(0, 3, 1, 2)
        transformed = dihedral_transform(group, index)
        out.index_copy_(0, selected, to_float(transformed.permute(0, 2, 3, 1)))
    return out.permute(0, 3, 1, 2)


def rotate_and_flip(
    images: Tensor,
    generator: Generator,
    degrees: float = 30.0,
    corners: Literal["reflect", "black"] | tuple[float, float, float] = "reflect",
) -> Tensor:
    """Rotate each image by a random angle, and flip it along each axis with probability 1/2.

    Rotation and flips are combined into one 2 x 2 matrix per image, so that each pixel is
    interpolated only once (bilinearly). Rotation leaves the corners undefined; `corners` says how
    they are filled:

    - "reflect": by reflection of the image at its borders, without artificial colors.
    - "black": with zeros, as torchvision's RandomRotation does. With angles up to 30 degrees this
      affects about 9 % of the pixels, and a model learns to reproduce the black corners.
    - three numbers in [0, 1]: with that color. ImageNet's mean (0.485, 0.456, 0.406) is equivalent
      to rotating *after* Normalize with fill 0.

    Args:
        images: uint8 (B, 3, S, S).
        generator: chooses the angles, uniform between -degrees and degrees, and the flips.
        degrees: maximum angle.
        corners: "reflect", "black" or a color.

    Returns:
        float32 (B, 3, S, S) in [0, 1], channels_last.

    Raises:
        ValueError: `degrees` is not finite, or `corners` is none of these.
    """
    if not math.isfinite(degrees):
        raise ValueError(f"degrees must be a finite number, got {degrees}")
    # grid_sample fills with zeros only, so subtract the color before and add it afterwards.
    fill = (0.0, 0.0, 0.0) if corners in ("reflect", "black") else corners
    if isinstance(fill, str) or len(fill) != 3 or not all(0 <= value <= 1 for value in fill):
        raise ValueError(
            f'corners must be "reflect", "black" or three numbers in [0, 1], got {corners!r}'
        )
    color = torch.tensor(fill).view(3, 1, 1)
    padding = "reflection" if corners == "reflect" else "zeros"
    count = len(images)
    angles = (torch.rand(count, generator=generator) * 2 - 1).mul(degrees).deg2rad()
    flips = torch.randint(2, (2, count), generator=generator) * 2.0 - 1
    # Input position of an output pixel (x, y): the inverse flip, then the inverse rotation.
    cos, sin = angles.cos(), angles.sin()
    matrices = torch.stack([cos, -sin, sin, cos], 1).view(count, 2, 2) * flips.T[:, None]
    out = torch.empty(images.shape, memory_format=torch.channels_last)
    for start in range(0, count, 4):  # small enough for the CPU cache
        chunk = slice(start, start + 4)
        grid = _affine_grid(matrices[chunk], images)
        pixels = to_float(images[chunk]) - color
        rotated = F.grid_sample(pixels, grid, padding_mode=padding, align_corners=False)
        out[chunk] = rotated.add_(color).clamp_(0, 1)
    return out


def _affine_grid(matrices: Tensor, images: Tensor) -> Tensor:
    """Sampling positions (B, H, W, 2), as F.affine_grid without translation, but five times faster.

    matrix @ (x, y) = x * first column + y * second column, so two small tables are sufficient.
    """
    height, width = images.shape[-2:]
    x, y = ((torch.arange(n) * 2 + 1) / n - 1 for n in (width, height))
    along_x = matrices[:, None, :, 0] * x[:, None]
    along_y = matrices[:, None, :, 1] * y[:, None]
    return along_y[:, :, None] + along_x[:, None]


def batches(
    pixels: Pixels,
    indices: Tensor,
    batch_size: int = 16,
    augment: Augment | None = None,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    shuffle: bool = True,
    sharded: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch over the images `indices`, batch by batch.

    The order depends only on (seed, epoch), and the augmentation of batch b only on (seed, epoch,
    b). A training that was interrupted continues with `start=b` and gets the same batches.

    Args:
        pixels: see `ImageDataset.pixels`.
        indices: int64 (n,), image indices, such as `split.train`.
        augment: (uint8 batch, generator) -> float32 batch, such as `random_dihedral`; None: no
            augmentation.
        start: number of batches to skip.
        shuffle: False keeps the order of `indices`.
        sharded: in a training on several processes, yield only this one's part of each batch. The
            order of the images does not depend on the number of processes, their augmentation does.

    Yields:
        Images, float32 (B, 3, S, S) in [0, 1], channels_last; and their indices, int64 (B,).

    Raises:
        ValueError: `indices` are not whole numbers but, for example, a mask.
    """
    check_whole(batch_size=batch_size)
    indices = torch.as_tensor(indices, dtype=None if len(indices) else torch.int64)
    if indices.ndim != 1 or indices.dtype == torch.bool or indices.is_floating_point():
        raise ValueError(
            f"indices must be int64 (n,), got {indices.dtype} {tuple(indices.shape)}; "
            "a mask becomes indices by mask.nonzero().flatten()"
        )
    if shuffle:
        indices = indices[torch.randperm(len(indices), generator=_make_generator(seed, epoch, 0))]
    for b, batch_indices in enumerate(indices.split(batch_size)):
        if b < start or not len(batch_indices):
            continue
        if sharded:
            batch_indices = shard(batch_indices, batch_size)
        images = pixels[batch_indices]
        if augment is None:
            yield to_float(images), batch_indices
        else:
            key = (seed, epoch, b + 1, rank()) if sharded and rank() else (seed, epoch, b + 1)
            yield augment(images, _make_generator(*key)), batch_indices


def _make_generator(*key: int) -> Generator:
    """Random generator seeded by all numbers of `key`; similar keys give independent streams."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0]) >> 1)  # 63 bits
