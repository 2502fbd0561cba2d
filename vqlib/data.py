"""Chapter 1: where images come from, how they are split, and how they get to the network fast.

`open_dataset` finds the data, `LesionDataset.split` divides it so that no lesion stands on two
sides, and `LesionDataset.pixels` prepares all images once. Four short chapters stand beside this
one, and their public names are here too: `layouts` reads the files of ISIC 2018 and HAM10000,
`cache` keeps the prepared images, `augment` makes batches of them, `download` gets the data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import synthetic
from .augment import REASONS, batches, dihedral, report_transforms, rotate_and_flip, to_float
from .cache import (
    REPOSITORY,
    Fit,
    Pixels,
    build,
    compare_pictures,
    fingerprint,
    read_picture,
    square,
    work_dir,
)
from .download import download
from .layouts import DataError, find_tables, read_layout
from .synthetic import CLASSES

__all__ = [
    "CLASSES",
    "REASONS",
    "DataError",
    "LesionDataset",
    "Pixels",
    "Split",
    "batches",
    "dihedral",
    "download",
    "open_dataset",
    "report_transforms",
    "rotate_and_flip",
    "synthetic_dataset",
    "to_float",
    "work_dir",
]

# Pairs of HAM10000's photographs that show one lesion under two lesion ids, numbers of ISIC_00xxxxx
# (Abhishek et al., "Investigating the Quality of DermaMNIST and Fitzpatrick17k", 2025,
# arXiv:2401.14497).
DUPLICATES = """33481-33421 33556-32634 29152-33173 29036-27027 27820-28209 27689-32647 30906-24879
    33391-34186 25226-30074 26087-25664 24736-29748 24770-27811 27162-29061 24602-32283 29625-24629
    30000-31392 24437-31299 33374-33417"""
DUPLICATE_PAIRS = [
    tuple(f"ISIC_00{number}" for number in pair.split("-")) for pair in DUPLICATES.split()
]


def open_dataset(
    path: str | Path | None = None, *, lesions: int = 400, seed: int = 0, verify: bool = False
) -> LesionDataset:
    """Open the data set in `path`, or the one that is at hand.

    Without a path: the folder that $VQLIB_DATA names; else the repository's `data` folder, if a
    data set lies there; else synthetic lesions, drawn by code. A folder that was named but can't
    be used is an error; nothing is put in its place. The name "synthetic" asks for them.

    Args:
        path: a folder in the layout of ISIC 2018 Task 3 or HAM10000, or the folder above it.
        lesions: number of synthetic lesions.
        seed: of the synthetic lesions.
        verify: also call `LesionDataset.verify`, which reads all pictures.

    Raises:
        DataError: the folder, a table or a picture is missing or damaged; see `layouts`.
    """
    path = path or os.environ.get("VQLIB_DATA")
    in_clone = REPOSITORY / "data"
    if not path and in_clone.is_dir() and find_tables(in_clone):
        path = in_clone
    if not path or str(path) == "synthetic":
        return synthetic_dataset(lesions, seed)
    name, root, image_ids, labels, lesion_ids, paths = read_layout(path)
    data = LesionDataset(name, image_ids, labels, lesion_ids, root=root, paths=paths)
    if verify:
        data.verify()
    return data


def synthetic_dataset(lesions: int = 400, seed: int = 0) -> LesionDataset:
    """Synthetic lesions, whatever data is at hand. Nothing in them shows a real patient."""
    rows = synthetic.catalogue(lesions, seed)
    lesion_ids = [f"synthetic_{lesion:05d}" for lesion in rows.lesions]
    image_ids = [f"{lesion}_{view}" for lesion, view in zip(lesion_ids, rows.views)]

    def render(images: np.ndarray, size: int) -> np.ndarray:
        return synthetic.render(*(column[images] for column in rows), size=size, seed=seed)

    # Another version of the renderer draws other pictures.
    source = hashlib.sha256(Path(synthetic.__file__).read_bytes()).hexdigest()
    key = f"synthetic {lesions} {seed} {source}"
    return LesionDataset(
        "synthetic", image_ids, rows.labels, lesion_ids, render=render, render_key=key
    )


class Split(NamedTuple):
    """int64 tensors of image numbers, ascending. Tune on val; look at test once, at the end."""

    train: Tensor
    val: Tensor
    test: Tensor


class LesionDataset:
    """Photographs of skin lesions with their diagnosis; made by `open_dataset`.

    Attributes:
        name: "isic2018", "ham10000", "synthetic" or "decoded".
        root: its folder; None if there are no files.
        image_ids: N names, sorted.
        labels: int64 (N,), positions in CLASSES.
        lesion_ids: N names; images of one lesion share one.
        groups: int64 (N,), one number per physical lesion: lesions by their id, joined where two
            ids are known to name one lesion (DUPLICATE_PAIRS).
    """

    def __init__(
        self,
        name: str,
        image_ids: list[str],
        labels: list[int] | np.ndarray,
        lesion_ids: list[str],
        *,
        root: Path | None = None,
        paths: list[Path] | None = None,
        render: Callable[[np.ndarray, int], np.ndarray] | None = None,
        render_key: str = "",
    ) -> None:
        self.name, self.root = name, root
        self.image_ids, self.lesion_ids = image_ids, lesion_ids
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.groups = _group(image_ids, lesion_ids)
        self._paths, self._render, self._render_key = paths, render, render_key

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        counts = torch.bincount(self.labels, minlength=len(CLASSES)).tolist()
        classes = ", ".join(f"{name} {count}" for name, count in zip(CLASSES, counts))
        lesions = len(set(self.groups.tolist()))
        return f"<{self.name}: {len(self):,} images of {lesions:,} lesions; {classes}>"

    @property
    def is_synthetic(self) -> bool:
        return self.name == "synthetic"

    def image(self, i: int) -> Image.Image:
        """Image number i in 8-bit RGB, upright, in its own size; a rendered one at 256 x 256.

        Raises:
            DataError: the file can't be read or has no defined colours; see `read_picture`.
        """
        if self._render is not None:
            return Image.fromarray(self._render(np.array([range(len(self))[i]]), 256)[0])
        return read_picture(self._paths[i])[0]

    def split(
        self,
        seed: int = 0,
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        by: Literal["lesion", "image"] = "lesion",
    ) -> Split:
        """Divide the images into train, val and test, with every class in about these fractions.

        by="lesion" keeps all images of a physical lesion together. by="image" does not, and thus
        shows a model at test time lesions that it was trained on: never use it to judge a model.

        Each lesion's place in the queue is a hash of its name, and train, val and test are cut
        from the queue in this order. So the split is the same on every machine, and a part of the
        data set is split almost like the whole: hardly a lesion is for training there and for
        testing here.
        A class of at least three lesions appears on all three sides.

        Raises:
            ValueError: the fractions are negative, not finite or don't sum to 1, `by` is unknown,
                or `seed` is not a whole number.
        """
        # A comparison with NaN is False, so ask for what is wanted, not for what is wrong.
        if not (len(fractions) == 3 and min(fractions) >= 0 and abs(sum(fractions) - 1) <= 1e-6):
            raise ValueError(f"fractions must be three numbers >= 0 of sum 1, got {fractions}")
        if not isinstance(seed, int | np.integer) or isinstance(seed, bool):
            raise ValueError(f"seed must be a whole number, got {seed!r}")  # 1.0 hashes unlike 1
        if by not in ("lesion", "image"):
            raise ValueError(f'by must be "lesion" or "image", got {by!r}')
        units = self.groups.numpy() if by == "lesion" else np.arange(len(self))
        names = self.lesion_ids if by == "lesion" else self.image_ids
        _, first, unit, sizes = np.unique(
            units, return_index=True, return_inverse=True, return_counts=True
        )
        queue = [hashlib.sha256(f"{seed}/{names[i]}".encode()).digest() for i in first]
        side = np.zeros(len(first), dtype=np.int64)
        for label in range(len(CLASSES)):
            members = np.flatnonzero(self.labels.numpy()[first] == label)
            members = np.array(sorted(members, key=queue.__getitem__), dtype=np.int64)
            side[members] = _cut(sizes[members], fractions)
        return Split(*(torch.from_numpy(np.flatnonzero(side[unit] == part)) for part in range(3)))

    def pixels(self, size: int = 256, fit: Fit = "crop") -> Pixels:
        """All images as uint8 squares, computed once and then mapped from a file.

        The file is used again as long as name, size, times and inode of each picture are the same;
        `verify` compares the pictures byte by byte.

        Args:
            size: pixels of a side.
            fit: "crop" takes the largest square from the centre, so circles stay round;
                "squash" is the report's Resize((256, 256)), which keeps the margin instead.

        Raises:
            ValueError: the size is not a whole number of at least 1, or `fit` is unknown.
            DataError: an image can't be read, or the disk is full; then no file is left behind. Or
                an existing file is damaged.
        """
        whole = isinstance(size, int | np.integer)
        if not whole or size < 1 or fit not in ("crop", "squash"):
            raise ValueError(
                f'expected a size in pixels and "crop" or "squash", got {size!r}, {fit!r}'
            )
        name = f"{self.name}-{size}-{fit}"
        shape = (len(self), int(size), int(size), 3)
        pixels = build(name, self._inputs(), shape, lambda rows: self._squares(rows, size, fit))
        if self._render is not None:
            # Rendered on another processor, a pixel may differ in its last bit. That must not keep
            # a training from being resumed there, so the content does not count.
            pixels.fingerprint = fingerprint(name, self._inputs())
        return pixels

    def verify(self) -> None:
        """Compare the bytes of all pictures with those that the files of `pixels` were built from.

        This finds changes that leave size and times of a picture as they were, such as damage to
        the disk. Without pictures (rendered images) or without such files, there is nothing to do.

        Raises:
            DataError: a picture differs or can't be read.
        """
        if self._paths is None:
            return
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                found = list(pool.map(lambda path: fingerprint(path.read_bytes()), self._paths))
        except OSError as error:
            raise DataError(f"a picture can't be read ({error}): get the file again.") from error
        compare_pictures(self.name, self._inputs(), self._paths, found)

    def _inputs(self) -> str:
        """What the images are computed from: changes when a picture is changed or replaced."""
        if self._paths is None:
            return f"{len(self)} {self._render_key}"
        stats = ((path.name, path.stat()) for path in self._paths)
        return " ".join(
            f"{name} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" for name, s in stats
        )

    def _squares(self, rows: range, size: int, fit: Fit) -> tuple[np.ndarray, list[str]]:
        """uint8 (len(rows), size, size, 3), and the fingerprints of the files that were read."""
        if self._render is not None:
            return self._render(np.array(rows), size), []

        def one(i: int) -> tuple[np.ndarray, str]:
            image, read = read_picture(self._paths[i])
            return square(image, size, fit), read

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL frees the GIL
            images, read = zip(*pool.map(one, rows))
        return np.stack(images), list(read)


def _group(image_ids: list[str], lesion_ids: list[str]) -> Tensor:
    """Number the physical lesions, in order of appearance (union-find)."""
    parent = {lesion: lesion for lesion in lesion_ids}

    def root(lesion: str) -> str:
        while parent[lesion] != lesion:
            lesion = parent[lesion]
        return lesion

    lesion_of = dict(zip(image_ids, lesion_ids))
    for a, b in DUPLICATE_PAIRS:
        if a in lesion_of and b in lesion_of:
            parent[root(lesion_of[a])] = root(lesion_of[b])
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(root(lesion), len(numbers)) for lesion in lesion_ids])


def _cut(sizes: np.ndarray, fractions: tuple[float, float, float]) -> np.ndarray:
    """Cut a queue of lesions with `sizes` images each: the side of each, 0, 1 or 2."""
    middles = (sizes.cumsum() - sizes / 2) / max(1, sizes.sum())
    ends = np.cumsum(fractions)[:2]
    val, test = np.searchsorted(middles, ends)  # where val and test begin
    if len(sizes) >= 3:  # leave each side that is wanted at least one
        train_wanted, val_wanted, test_wanted = (fraction > 0 for fraction in fractions)
        val = np.clip(val, train_wanted, len(sizes) - val_wanted - test_wanted)
        test = np.clip(test, val + val_wanted, len(sizes) - test_wanted)
    return np.searchsorted([val, test], np.arange(len(sizes)), side="right")
