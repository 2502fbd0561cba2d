"""Chapter 4: a data set of images becomes a data set of codes.

Every image is encoded once; from here on the images are not needed any more. 256 codes of 9 bits
are 288 bytes, and that is what a file of them takes: the codes are packed bit by bit, not stored
in the 64-bit integers that PyTorch computes with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .augment import moved, to_float
from .cache import whole_file
from .data import CLASSES, DataError, LesionDataset, Split, batches
from .vqvae import VQVAE, evaluating

SPLITS = ("train", "val", "test")


def pack_codes(codes: Tensor, bits: int) -> np.ndarray:
    """Codes as a dense string of bits.

    Args:
        codes: int64 of any shape, values in 0..2**bits-1.
        bits: bits per code; 9 for 512 codes.

    Returns:
        uint8 (ceil(codes.numel() * bits / 8),); each code with its highest bit first.

    Raises:
        ValueError: a code does not fit.
    """
    flat = codes.flatten().cpu().numpy()
    if flat.size and (flat.min() < 0 or flat.max() >= 2**bits):
        raise ValueError(f"codes {flat.min()}..{flat.max()} do not fit into {bits} bits")
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((flat[:, None] >> shifts & 1).astype(np.uint8))


def unpack_codes(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_codes`: int64 codes of the given shape.

    Raises:
        ValueError: there are more or fewer bytes than the shape needs, or they are not uint8.
    """
    count = math.prod(shape)
    if packed.dtype != np.uint8 or packed.shape != (-(-count * bits // 8),):
        raise ValueError(
            f"{packed.dtype} {packed.shape} can't be {count} codes of {bits} bits as bytes"
        )
    digits = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    codes = digits.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))
    return torch.from_numpy(codes).reshape(shape)


def _expect(
    name: str,
    tensor: Tensor,
    dtype: torch.dtype,
    shape: tuple[int | None, ...],
    end: int | None = None,
) -> None:
    """Raises ValueError if a tensor has another dtype or shape (None: any number), or a value
    outside 0..end-1."""
    sizes = tensor.shape
    fits = len(sizes) == len(shape) and all(w in (None, n) for w, n in zip(shape, sizes))
    if tensor.dtype != dtype or not fits:
        wanted = str(shape).replace("None", "*")
        raise ValueError(f"{name}: expected {dtype} {wanted}, got {tensor.dtype} {tuple(sizes)}")
    if end is not None and tensor.numel() and (tensor.min() < 0 or tensor.max() >= end):
        raise ValueError(f"{name}: expected 0..{end - 1}, got {tensor.min()}..{tensor.max()}")


class EncodedDataset(Dataset):
    """The codes of a data set, with its labels and its split by lesion.

    Attributes:
        codes: int64 (N, h, w, slots), in 0..K-1, on the CPU as all tensors here.
        labels: int64 (N,), numbers into `CLASSES`.
        split: `Split` of int64 index tensors; the same images as in the data set that was encoded.
            A part of the images may be left out, but none may be in two parts.
        codebook: float32 (1 or slots, K, D), finite, needed only by `vectors`.
        source: one line saying where the codes come from.
        turned: int64 (8, len(split.train), h, w, slots): the training images in all eight
            orientations, in the order of `vqlib.augment.moved`; None before `add_turned`.

    Raises:
        ValueError: a tensor has another shape, dtype or range.
    """

    def __init__(
        self,
        codes: Tensor,
        labels: Tensor,
        split: Split,
        codebook: Tensor,
        source: str = "",
        turned: Tensor | None = None,
    ) -> None:
        self.codes, self.labels, self.split = codes, labels, split
        self.codebook, self.source, self.turned = codebook, source, turned
        self._check()

    def _check(self) -> None:
        """Raises ValueError if the tensors are not as the class describes them."""
        codes, book = self.codes, self.codebook
        _expect("codebook", book, torch.float32, (None, None, None))
        _expect("codes", codes, torch.int64, (None, None, None, None), book.shape[1])
        _expect("labels", self.labels, torch.int64, (len(codes),), len(CLASSES))
        for name, part in zip(SPLITS, self.split, strict=True):
            _expect(f"split.{name}", part, torch.int64, (None,), len(codes))
        every = torch.cat(list(self.split))
        if len(every.unique()) < len(every):
            raise ValueError("split: expected each image once, got an image more than once")
        if not (codes.numel() and book.numel() and book.isfinite().all()):
            raise ValueError("expected codes, and a codebook of finite numbers")
        if len(book) not in (1, codes.shape[3]):
            raise ValueError(f"expected 1 or {codes.shape[3]} codebooks, got {len(book)}")
        if self.turned is not None:
            train = codes[self.split.train]
            _expect("turned", self.turned, torch.int64, (8, *train.shape), book.shape[1])
            if not torch.equal(self.turned[0], train):
                raise ValueError("turned: expected the first orientation to be the training codes")

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """Codes (h, w, slots) and label (), both int64."""
        return self.codes[i], self.labels[i]

    @property
    def num_embeddings(self) -> int:
        return self.codebook.shape[1]

    @property
    def bits(self) -> int:
        """Bits that one code takes in a file: 9 for 512 codes."""
        return (self.num_embeddings - 1).bit_length()

    @property
    def bytes_per_image(self) -> int:
        return -(-self.codes[0].numel() * self.bits // 8)

    def vectors(self, i: int | Tensor) -> Tensor:
        """The quantized vectors of image i, float32 (slots * D, h, w), or of several images,
        (B, slots * D, h, w): what the report's prior is trained on."""
        codes = self.codes[i]
        if len(self.codebook) > 1:
            codes = codes + self.num_embeddings * torch.arange(len(self.codebook))
        return self.codebook.flatten(0, 1)[codes].flatten(-2).movedim(-1, -3).contiguous()

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: codes packed, labels, split, codebook. It appears whole or not
        at all.

        The parts of the split come back in ascending order.

        Raises:
            ValueError: a tensor is not as described above, or an image is in no part of the split.
        """
        self._check()
        if (missing := len(self) - sum(map(len, self.split))) > 0:
            raise ValueError(f"{missing} of {len(self)} images are in no part of the split")
        names = torch.empty(len(self), dtype=torch.uint8)
        for number, indices in enumerate(self.split):
            names[indices] = number
        tensors = {
            "packed": torch.from_numpy(pack_codes(self.codes, self.bits)),
            "labels": self.labels.to(torch.uint8),
            "split": names,
            "codebook": self.codebook.contiguous(),
        }
        if self.turned is not None:
            ascending = self.turned[1:, self.split.train.argsort()]
            tensors["turned"] = torch.from_numpy(pack_codes(ascending, self.bits))
        shape = "x".join(map(str, self.codes.shape))
        with whole_file(Path(path)) as beside:
            save_file(tensors, beside, metadata={"shape": shape, "source": self.source})

    @classmethod
    def load(cls, path: str | Path) -> EncodedDataset:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            DataError: the file is not one of `save`'s, or what it holds is not as described above.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            shape = tuple(int(n) for n in metadata["shape"].split("x"))
            codebook, part = tensors["codebook"].float(), tensors["split"]
            if len(shape) != 4 or min(shape) < 1 or codebook.ndim != 3:
                raise ValueError(f"codes of shape {shape}, a codebook of {tuple(codebook.shape)}")
            if part.dtype != torch.uint8 or part.shape != shape[:1] or part.max() > 2:
                raise ValueError(f"expected a split of uint8 ({shape[0]},) in 0..2")
            if tensors["labels"].dtype != torch.uint8:
                raise ValueError(f"expected labels of uint8, got {tensors['labels'].dtype}")
            bits = (codebook.shape[1] - 1).bit_length()
            codes = unpack_codes(tensors["packed"].numpy(), bits, shape)
            split = Split(*((part == n).nonzero().flatten() for n in range(3)))
            labels = tensors["labels"].long()
            turned = None
            if "turned" in tensors:
                packed, train = tensors["turned"].numpy(), codes[split.train]
                turned = unpack_codes(packed, bits, (7, *train.shape))
                turned = torch.cat([train[None], turned])
            return cls(codes, labels, split, codebook, metadata.get("source", ""), turned)
        except FileNotFoundError:
            raise
        except (SafetensorError, KeyError, OSError, ValueError) as error:
            raise DataError(
                f"{path} is not a file of codes ({error}): write one with "
                "`python -m vqlib encode`, or EncodedDataset.save"
            ) from error

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(i)} {name}" for name, i in zip(SPLITS, self.split, strict=True))
        return (
            f"{len(self)} images ({sizes}) as {tuple(self.codes.shape[1:])} codes of "
            f"{self.bits} bits, {self.bytes_per_image} bytes each; {len(CLASSES)} classes"
        )


def encode_dataset(
    vqvae: VQVAE,
    data: LesionDataset,
    size: int = 256,
    *,
    split: Split | None = None,
    batch_size: int = 64,
) -> EncodedDataset:
    """Encode every image of a data set once, without augmentation.

    Args:
        vqvae: used in eval(), whatever mode it is in, and left in that mode.
        size: images are cropped and scaled to size x size pixels.
        split: kept beside the codes; `data.split()` if not given.

    Returns:
        EncodedDataset in the order of `data`, on the CPU.
    """
    pixels, indices = data.pixels(size), torch.arange(len(data))
    steps = (images for images, _ in batches(pixels, indices, batch_size, shuffle=False))
    return EncodedDataset(
        _encode(vqvae, steps, -(-len(data) // batch_size)),
        data.labels,
        split or data.split(),
        vqvae.quantizer.codebook.detach().float().cpu().clone(),
        repr(data),
    )


def add_turned(
    encoded: EncodedDataset,
    vqvae: VQVAE,
    data: LesionDataset | None = None,
    size: int = 256,
    *,
    batch_size: int = 64,
) -> None:
    """Encode the training images in all eight orientations, and keep that in `encoded.turned`.

    A lesion turned by a quarter of a circle is a lesion: a prior that is shown all eight has eight
    times as many grids to learn from. There is no short cut through the codes: turning the grid
    would put every code into its new place, but what each code shows would not turn with it.

    Args:
        encoded: what `encode_dataset` gave for `data`; changed in place.
        vqvae: the model that made the codes.
        data: the images. Without them the codes are decoded, and the pictures turned and encoded
            again: the same without photographs, at a small loss.
        size: of the images, as for `encode_dataset`.
    """
    train, turned = encoded.split.train, [encoded.codes[encoded.split.train]]
    device = next(vqvae.parameters()).device
    pixels = None if data is None else data.pixels(size)

    def pictures(move: int) -> Iterator[Tensor]:
        for part in train.split(batch_size):
            if pixels is None:
                images = vqvae.decode(encoded.codes[part].to(device))
            else:
                images = to_float(pixels[part])
            yield moved(images, move)

    for move in range(1, 8):
        turned.append(_encode(vqvae, pictures(move), -(-len(train) // batch_size)))
    encoded.turned = torch.stack(turned)


def _encode(vqvae: VQVAE, images: Iterator[Tensor], total: int) -> Tensor:
    """The codes of all batches, by a model in eval()."""
    steps = tqdm(images, "encoding", total, leave=False, disable=None)
    with evaluating(vqvae) as device:
        codes = [vqvae.encode(part.to(device)).cpu() for part in steps]
    return torch.cat(codes)
