"""Encoded data sets: the codes of all images, with labels and split, in memory and in a file.

`encode_dataset` runs a trained VQ-VAE over a data set once, and `training.train_prior` trains on
the result. In a file the codes are packed bit by bit: 256 codes of 9 bits take 288 bytes, instead
of 2,048 bytes as the 64-bit integers that PyTorch computes with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .checkpoints import explain_errors, read_safetensors, write_safetensors
from .checks import check_tensor, check_whole
from .data import ImageDataset, Split, batches, dihedral_transform, to_float
from .vqvae import DOWNSCALE, VQVAE, eval_mode

SPLITS = ("train", "val", "test")
PACKED_IMAGES = 64  # images that are packed at a time; a multiple of 8: their codes fill bytes


def pack_codes(codes: Tensor, bits: int) -> np.ndarray:
    """Pack codes into bytes without unused bits between them.

    Args:
        codes: int64 of any shape, values in 0..2**bits-1.
        bits: bits per code; 9 for 512 codes.

    Returns:
        uint8 (ceil(codes.numel() * bits / 8),); the most significant bit of each code comes first.

    Raises:
        ValueError: a code does not fit into `bits` bits.
    """
    flat = codes.flatten().cpu().numpy()
    if flat.size and (flat.min() < 0 or flat.max() >= 2**bits):
        raise ValueError(f"codes {flat.min()}..{flat.max()} do not fit into {bits} bits")
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((flat[:, None] >> shifts & 1).astype(np.uint8))


def unpack_codes(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Inverse of `pack_codes`: int64 codes of the given shape.

    Raises:
        ValueError: `packed` is not uint8, or its number of bytes does not match the shape.
    """
    count = math.prod(shape)
    num_bytes = -(-count * bits // 8)
    if packed.dtype != np.uint8 or packed.shape != (num_bytes,):
        found = f"{packed.dtype} {packed.shape}"
        raise ValueError(f"{found} can't be {count} codes of {bits} bits: expected ({num_bytes},)")
    bit_matrix = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    return torch.from_numpy(bit_matrix @ (1 << np.arange(bits - 1, -1, -1))).reshape(shape)


def _pack_images(codes: Tensor, order: Tensor, bits: int) -> Tensor:
    """`pack_codes(codes[order], bits)` for codes (N, h, w, slots), in parts: the unpacked bits of a
    large data set would take 64 times as much memory as its packed codes."""
    parts = [pack_codes(codes[indices], bits) for indices in order.split(PACKED_IMAGES)]
    return torch.from_numpy(np.concatenate(parts))


def _unpack_images(packed: Tensor, bits: int, codes: Tensor) -> None:
    """`unpack_codes` in parts, into `codes`, (N, h, w, slots)."""
    size = PACKED_IMAGES * math.prod(codes.shape[1:]) * bits // 8
    for raw, part in zip(packed.split(size), codes.split(PACKED_IMAGES), strict=True):
        part.copy_(unpack_codes(raw.numpy(), bits, part.shape))


@dataclass(eq=False, repr=False)
class EncodedDataset(Dataset):
    """The codes of a data set, with its labels and its split by lesion.

    Attributes:
        codes: int64 (N, h, w, slots), values in 0..K-1. All tensors are on the CPU.
        labels: int64 (N,), class indices.
        split: `Split` of int64 index tensors, as in the data set that was encoded. Images may be in
            no part of the split, but no image may be in two parts.
        codebook: float32 (1 or slots, K, D), finite; needed only by `vectors`.
        source: one line that says where the codes come from.
        classes: names of the classes; () if there are no classes, and then all labels are 0. None:
            unknown, as in files of earlier versions.
        augmented: int64 (8, len(split.train), h, w, slots): the codes of the training images after
            each of the eight dihedral transforms, in the order of
            `vqlib.data.dihedral_transform`; None before `add_augmented` is called.

    Raises:
        ValueError: a tensor has another shape, dtype or range.
    """

    codes: Tensor
    labels: Tensor
    split: Split
    codebook: Tensor
    source: str = ""
    augmented: Tensor | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self.classes = None if self.classes is None else tuple(self.classes)
        self._check()

    def _check(self) -> None:
        """Raise ValueError if an attribute differs from its description in the class docstring."""
        codes, codebook = self.codes, self.codebook
        check_tensor("codebook", codebook, torch.float32, (None, None, None))
        check_tensor("codes", codes, torch.int64, (None, None, None, None), codebook.shape[1])
        end = 256 if self.classes is None else max(1, len(self.classes))
        check_tensor("labels", self.labels, torch.int64, (len(codes),), end)
        for name, indices in zip(SPLITS, self.split, strict=True):
            check_tensor(f"split.{name}", indices, torch.int64, (None,), len(codes))
        all_indices = torch.cat(list(self.split))
        if len(all_indices.unique()) < len(all_indices):
            raise ValueError("split: expected each image at most once, got an image twice")
        if not (codes.numel() and codebook.numel() and codebook.isfinite().all()):
            raise ValueError("expected at least one code, and a codebook of finite numbers")
        if len(codebook) not in (1, codes.shape[3]):
            raise ValueError(f"expected 1 or {codes.shape[3]} codebooks, got {len(codebook)}")
        if self.augmented is not None:
            train = codes[self.split.train]
            shape = (8, *train.shape)
            check_tensor("augmented", self.augmented, torch.int64, shape, codebook.shape[1])
            if not torch.equal(self.augmented[0], train):
                raise ValueError("augmented: expected augmented[0] to be the codes of split.train")

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """Codes (h, w, slots) and label (), both int64."""
        return self.codes[i], self.labels[i]

    @property
    def num_embeddings(self) -> int:
        return self.codebook.shape[1]

    @property
    def num_classes(self) -> int:
        """Number of classes; if they are unknown, the largest label plus 1."""
        return int(self.labels.max()) + 1 if self.classes is None else len(self.classes)

    @property
    def bits(self) -> int:
        """Bits per code in a file: 9 for 512 codes."""
        return (self.num_embeddings - 1).bit_length()

    @property
    def bytes_per_image(self) -> int:
        return -(-self.codes[0].numel() * self.bits // 8)

    def vectors(self, i: int | Tensor) -> Tensor:
        """Quantized vectors of image i, float32 (slots * D, h, w), or of several images,
        (B, slots * D, h, w). The report's prior is trained on these."""
        codes = self.codes[i]
        if len(self.codebook) > 1:
            codes = codes + self.num_embeddings * torch.arange(len(self.codebook))
        return self.codebook.flatten(0, 1)[codes].flatten(-2).movedim(-1, -3).contiguous()

    def save(self, path: str | Path) -> None:
        """Write packed codes, labels, split and codebook to a safetensors file (atomically).

        `load` returns each part of the split in ascending order.

        Raises:
            ValueError: a tensor differs from its description in the class docstring, or an image is
                in no part of the split.
        """
        self._check()
        if (missing := len(self) - sum(map(len, self.split))) > 0:
            raise ValueError(f"{missing} of {len(self)} images are in no part of the split")
        parts = torch.empty(len(self), dtype=torch.uint8)
        for part, indices in enumerate(self.split):
            parts[indices] = part
        tensors = {
            "packed": _pack_images(self.codes, torch.arange(len(self)), self.bits),
            "labels": self.labels.to(torch.uint8),
            "split": parts,
            "codebook": self.codebook.contiguous(),
        }
        if self.augmented is not None:
            ascending = self.split.train.argsort()
            order = torch.cat([i * len(ascending) + ascending for i in range(1, 8)])
            tensors["augmented"] = _pack_images(self.augmented.flatten(0, 1), order, self.bits)
        metadata = {
            "shape": "x".join(map(str, self.codes.shape)),
            "source": self.source,
            "classes": json.dumps(self.classes),
        }
        write_safetensors(Path(path).expanduser(), metadata, tensors)

    @classmethod
    def load(cls, path: str | Path) -> EncodedDataset:
        """Read a file that `save` has written.

        Raises:
            FileNotFoundError: no such file.
            DataError: the file was not written by `save`, or its content is damaged.
        """
        path = Path(path).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        advice = "create one with `python -m vqlib encode` or EncodedDataset.save"
        with explain_errors(f"{path} is not a file of codes", advice):
            metadata, tensors = read_safetensors(path)
            shape = tuple(int(n) for n in metadata["shape"].split("x"))
            labels, parts = tensors["labels"], tensors["split"]
            check_tensor("labels", labels, torch.uint8, shape[:1])
            check_tensor("split", parts, torch.uint8, shape[:1], len(SPLITS))
            codebook = tensors["codebook"].float()
            bits = (codebook.shape[1] - 1).bit_length()
            codes = torch.empty(shape, dtype=torch.int64)
            _unpack_images(tensors["packed"], bits, codes)
            split = Split(*((parts == n).nonzero().flatten() for n in range(len(SPLITS))))
            packed = tensors.get("augmented", tensors.get("turned"))  # key in older files
            augmented = None if packed is None else codes.new_empty(8, len(split.train), *shape[1:])
            if packed is not None:
                augmented[0] = codes[split.train]
                _unpack_images(packed, bits, augmented[1:].flatten(0, 1))
            classes = json.loads(metadata.get("classes", "null"))
            source = metadata.get("source", "")
            return cls(codes, labels.long(), split, codebook, source, augmented, classes)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(i)} {name}" for name, i in zip(SPLITS, self.split, strict=True))
        return (
            f"{len(self)} images ({sizes}) as {tuple(self.codes.shape[1:])} codes of "
            f"{self.bits} bits, {self.bytes_per_image} bytes each; {self.num_classes} classes"
        )


def encode_dataset(
    vqvae: VQVAE,
    data: ImageDataset,
    size: int = 256,
    *,
    split: Split | None = None,
    batch_size: int = 64,
) -> EncodedDataset:
    """Encode every image of a data set once, without augmentation.

    Args:
        vqvae: used in eval() mode, and returned to the mode it was in.
        data: the images.
        size: images are cropped and resized to size x size pixels.
        split: stored with the codes; `data.split()` if None.
        batch_size: images per batch.

    Returns:
        EncodedDataset in the order of `data`, on the CPU.
    """
    pixels, indices = data.pixels(size), torch.arange(len(data))
    image_batches = (images for images, _ in batches(pixels, indices, batch_size, shuffle=False))
    side = size // DOWNSCALE
    codes = torch.empty(len(data), side, side, vqvae.slots, dtype=torch.int64)
    _encode(vqvae, image_batches, batch_size, codes)
    return EncodedDataset(
        codes,
        data.labels,
        split or data.split(),
        vqvae.quantizer.codebook.detach().float().cpu().clone(),
        repr(data),
        classes=data.classes,
    )


def add_augmented(
    encoded: EncodedDataset,
    vqvae: VQVAE,
    data: ImageDataset | None = None,
    size: int = 256,
    *,
    batch_size: int = 64,
) -> None:
    """Encode the training images after all eight dihedral transforms, into `encoded.augmented`.

    A rotated or mirrored lesion is an equally plausible image, so the prior gets eight times as
    many training grids. Transforming the grid of codes instead would not work: each code would move
    to its new position, but the image content that it stands for would not be rotated.

    Args:
        encoded: result of `encode_dataset` for `data`; changed in place.
        vqvae: the model that computed the codes.
        data: the images. If None, the codes are decoded, and the decoded images are transformed and
            encoded again. This needs no photographs, but it loses some quality.
        size: side of the images in pixels, as for `encode_dataset`.
        batch_size: images per batch.
    """
    train = encoded.split.train
    augmented = encoded.codes.new_empty(8, len(train), *encoded.codes.shape[1:])
    augmented[0] = encoded.codes[train]
    device = next(vqvae.parameters()).device
    pixels = None if data is None else data.pixels(size)

    def transformed_batches(index: int) -> Iterator[Tensor]:
        for image_indices in train.split(batch_size):
            if pixels is None:
                images = vqvae.decode(encoded.codes[image_indices].to(device))
            else:
                images = to_float(pixels[image_indices])
            yield dihedral_transform(images, index)

    for index in range(1, 8):
        _encode(vqvae, transformed_batches(index), batch_size, augmented[index])
    encoded.augmented = augmented


def _encode(vqvae: VQVAE, images: Iterator[Tensor], batch_size: int, codes: Tensor) -> None:
    """Encode batches of images in eval() mode, into `codes`, int64 (N, h, w, slots)."""
    check_whole(batch_size=batch_size)
    parts = codes.split(batch_size)
    steps = tqdm(images, "encoding", len(parts), leave=False, disable=None)
    with eval_mode(vqvae) as device:
        for batch, part in zip(steps, parts):
            part.copy_(vqvae.encode(batch.to(device)))
