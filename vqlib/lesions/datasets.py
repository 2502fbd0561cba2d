"""Data sets of skin lesions: images from a folder, synthetic ones, and ones decoded from codes.

`open_dataset` finds the data and returns a `data.ImageDataset` with the seven classes and with one
group per physical lesion, so that a split can keep all images of a lesion together.

Papers: Tschandl, Rosendahl and Kittler, "The HAM10000 dataset" (2018), doi:10.1038/sdata.2018.161;
Codella et al., "Skin Lesion Analysis Toward Melanoma Detection 2018" (2019), arXiv:1902.03368.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints import PRETRAINED, REPOSITORY, DataError, fingerprint, load_pretrained
from ..codes import EncodedDataset
from ..data import ImageDataset, open_folder
from . import synthetic
from .layouts import EXPECTED_LAYOUTS, find_tables, read_layout
from .synthetic import CLASSES

# Pairs of HAM10000 images that show the same lesion under two lesion ids, as the numbers in
# ISIC_00xxxxx (Abhishek et al., "Investigating the Quality of DermaMNIST and Fitzpatrick17k", 2025,
# arXiv:2401.14497).
DUPLICATE_IMAGE_NUMBERS = """
    33481-33421 33556-32634 29152-33173 29036-27027 27820-28209 27689-32647 30906-24879 33391-34186
    25226-30074 26087-25664 24736-29748 24770-27811 27162-29061 24602-32283 29625-24629 30000-31392
    24437-31299 33374-33417"""
DUPLICATE_PAIRS = [
    tuple(f"ISIC_00{number}" for number in pair.split("-"))
    for pair in DUPLICATE_IMAGE_NUMBERS.split()
]


def open_dataset(
    path: str | Path | None = None, *, lesions: int = 400, seed: int = 0, verify: bool = False
) -> ImageDataset:
    """Open the data set in `path`, or the default one.

    If `path` is None, the data set is the folder named by $VQLIB_DATA if that is set; else the
    repository's `data` folder, if it contains a data set; else synthetic lesions. If a folder is
    given but can't be used, an error is raised; there is no fallback. The name "synthetic" selects
    the synthetic lesions.

    Args:
        path: a folder in the layout of ISIC 2018 Task 3 or HAM10000, or the folder above it; or any
            other folder of images, see `data.open_folder`.
        lesions: number of synthetic lesions.
        seed: random seed of the synthetic lesions.
        verify: also call `ImageDataset.verify`, which reads all images.

    Raises:
        DataError: the folder, a table or an image is missing or damaged; see `layouts`.
    """
    path = path or os.environ.get("VQLIB_DATA")
    repository_data = REPOSITORY / "data"
    if not path and repository_data.is_dir() and find_tables(repository_data):
        path = repository_data
    if not path or str(path) == "synthetic":
        return synthetic_dataset(lesions, seed)
    root = Path(path).expanduser()
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {problem}: give the folder of the data set; {EXPECTED_LAYOUTS}.")
    if is_other_folder(root):
        data = open_folder(root)
    else:
        data = read_layout(root)
        data.groups = number_lesions(data.image_ids, data.group_ids)
    if verify:
        data.verify()
    return data


def synthetic_dataset(lesions: int = 400, seed: int = 0) -> ImageDataset:
    """Synthetic lesions, rendered by `synthetic`; no real patient is shown.

    Args:
        lesions: number of lesions, with about 1.35 images each.
        seed: random seed.

    Raises:
        ValueError: `lesions` < 1 or `seed` < 0.
    """
    table = synthetic.catalog(lesions, seed)
    lesion_ids = [f"synthetic_{lesion:05d}" for lesion in table.lesions]
    image_ids = [f"{lesion}_{view}" for lesion, view in zip(lesion_ids, table.views)]

    def render(indices: np.ndarray, size: int) -> np.ndarray:
        return synthetic.render(*(column[indices] for column in table), size=size, seed=seed)

    return ImageDataset(
        "synthetic",
        image_ids,
        table.labels,
        CLASSES,
        lesion_ids,
        group_word="lesion",
        render=render,
        render_key=f"synthetic {synthetic.VERSION} {lesions} {seed}",
    )


def decoded_dataset(name: str = "ham10000", images: int = 1200) -> ImageDataset:
    """Real lesions without a download: images decoded from the codes in the repository.

    A VQ-VAE has encoded each photograph into 288 bytes, so the details that it can't represent are
    already missing. Every VQ-VAE therefore scores higher on these images than on photographs.

    Args:
        name: of the pretrained models.
        images: number of images, chosen at equal distances from all that are available.

    Raises:
        FileNotFoundError: there are no pretrained models with this name.
    """
    vqvae, _ = load_pretrained(name)
    path = PRETRAINED / name / "codes.safetensors"
    encoded = EncodedDataset.load(path)
    chosen = torch.linspace(0, len(encoded) - 1, min(images, len(encoded))).long()

    @torch.inference_mode()
    def render(indices: np.ndarray, size: int) -> np.ndarray:
        decoded = vqvae.decode(encoded.codes[chosen[torch.from_numpy(indices)]])
        scaled = F.interpolate(decoded, size=(size, size), mode="bicubic", antialias=True)
        return scaled.mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()

    names = [f"decoded_{i:05d}" for i in chosen.tolist()]
    return ImageDataset(
        "decoded",
        names,
        encoded.labels[chosen],
        CLASSES,
        group_word="lesion",
        render=render,
        render_key=f"{fingerprint(path.read_bytes())} {len(chosen)}",
    )


def is_other_folder(root: Path) -> bool:
    """Whether a folder has none of HAM10000's tables and images. If it has such
    images but no table, their folders must not be taken for classes."""
    if find_tables(root):
        return False
    return not any(any(root.glob(f"{depth}ISIC_???????.*")) for depth in ("", "*/", "*/*/"))


def number_lesions(image_ids: list[str], lesion_ids: list[str]) -> Tensor:
    """Number of the physical lesion of each image, in order of appearance (union-find)."""
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
