"""Chapter 1, in motion: from bytes at rest to batches that never look the same twice.

A network that sees every photograph in one position learns the position along with the lesion. A
lesion has no up or down, so turning and mirroring gives pictures that could have been taken as
well. Each function here works on a whole uint8 batch at once, with an own draw for each image, and
returns float32 pixels in [0, 1], in channels_last memory, the layout that convolutions like best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

if TYPE_CHECKING:
    from .data import Pixels

Augment = Callable[[Tensor, Generator], Tensor]


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0..255 to float32 in [0, 1], as torchvision's ToTensor; float32 stays as it is.

    Raises:
        ValueError: another dtype, whose range is unknown.
    """
    if images.dtype == torch.float32:
        return images
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 or float32, got {images.dtype}")
    return images.to(torch.float32).div_(255)


def moved(images: Tensor, move: int) -> Tensor:
    """One of the eight symmetries of a square (the dihedral group D4), `move` in 0..7.

    Turned by `move % 4` quarters of a circle, from 4 on mirrored as well; 0 leaves the image as it
    is. Pixels are only moved about: nothing is interpolated, no corner is lost.

    Args:
        images: any dtype, (..., S, S).
    """
    images = torch.rot90(images, move % 4, dims=(-2, -1))
    return images.flip(-1) if move >= 4 else images


def dihedral(images: Tensor, generator: Generator) -> Tensor:
    """Turn and mirror each image by one of the eight symmetries of a square; see `moved`.

    Args:
        images: uint8 (B, 3, S, S).
        generator: draws one of the eight for each image.

    Returns:
        float32 (B, 3, S, S) in [0, 1], channels_last.
    """
    moves = torch.randint(8, (len(images),), generator=generator)
    rows = images.permute(0, 2, 3, 1)  # channels last, as the memory lies: an image is one piece
    out = torch.empty(rows.shape)
    for move in range(8):
        chosen = (moves == move).nonzero().flatten()
        turned = moved(rows.index_select(0, chosen).permute(0, 3, 1, 2), move)
        out.index_copy_(0, chosen, to_float(turned.permute(0, 2, 3, 1)))
    return out.permute(0, 3, 1, 2)


def rotate_and_flip(
    images: Tensor,
    generator: Generator,
    degrees: float = 30.0,
    corners: Literal["reflect", "black"] | tuple[float, float, float] = "reflect",
) -> Tensor:
    """Rotate each image by its own angle and flip it with probability 1/2 along either axis.

    Rotation and flips are one 2 x 2 matrix per image, so that each pixel is interpolated once
    (bilinearly). A rotated square leaves its corners empty; `corners` says what stands there:

    - "reflect": the image, mirrored at its edges. No artificial colour enters.
    - "black": zeros, as torchvision's RandomRotation leaves them; about 9 % of the pixels at up to
      30 degrees, which a model then learns to draw.
    - three numbers in [0, 1]: that colour. ImageNet's mean (0.485, 0.456, 0.406) is what you get
      by rotating *after* Normalize with fill 0.

    Args:
        images: uint8 (B, 3, S, S).
        generator: draws angles, uniform between -degrees and degrees, and flips.

    Returns:
        float32 (B, 3, S, S) in [0, 1], channels_last.

    Raises:
        ValueError: `degrees` is not finite, or `corners` is something else.
    """
    if not math.isfinite(degrees):
        raise ValueError(f"degrees must be a finite number, got {degrees}")
    if isinstance(corners, str):
        known = corners in ("reflect", "black")
    else:
        known = len(corners) == 3 and all(0 <= value <= 1 for value in corners)
    if not known:
        raise ValueError(
            f'corners must be "reflect", "black" or three numbers in [0, 1], got {corners!r}'
        )
    count = len(images)
    angles = (torch.rand(count, generator=generator) * 2 - 1).mul(degrees).deg2rad()
    flip_x, flip_y = torch.randint(2, (2, count), generator=generator) * 2.0 - 1
    # Where an output pixel (x, y) comes from: flip it back, then turn it back.
    matrices = torch.stack(
        [
            angles.cos() * flip_x,
            -angles.sin() * flip_y,
            angles.sin() * flip_x,
            angles.cos() * flip_y,
        ],
        dim=1,
    ).view(count, 2, 2)
    padding = "reflection" if corners == "reflect" else "zeros"
    # grid_sample can only fill with zeros, so make the wanted colour the zero.
    colour = None if isinstance(corners, str) else torch.tensor(corners).view(3, 1, 1)
    out = torch.empty(images.shape, memory_format=torch.channels_last)
    for start in range(0, count, 4):  # few enough to stay in the processor's cache
        part = slice(start, start + 4)
        pixels = to_float(images[part])
        pixels = pixels if colour is None else pixels - colour
        turned = F.grid_sample(
            pixels, _grid(matrices[part], images), padding_mode=padding, align_corners=False
        )
        turned = turned if colour is None else turned.add_(colour)
        out[part] = turned.clamp_(0, 1)
    return out


def _grid(matrices: Tensor, images: Tensor) -> Tensor:
    """The points (B, H, W, 2) to sample at: F.affine_grid without a shift, but five times faster.

    matrix @ (x, y) = x * first column + y * second column, so two small tables are enough.
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
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the images `indices`, batch by batch.

    The order is a function of (seed, epoch), the augmentation of batch b of (seed, epoch, b).
    So a training that was interrupted goes on with `start=b` and sees the very same batches.

    Args:
        pixels: see `LesionDataset.pixels`.
        indices: int64 (n,), image numbers, such as `split.train`.
        augment: (uint8 batch, generator) -> float32 batch, such as `dihedral`; None for none.
        start: number of batches to leave out.
        drop_last: leave out the last batch if it is smaller than the others.

    Yields:
        Images, float32 (B, 3, S, S) in [0, 1], channels_last; and their indices, int64 (B,).

    Raises:
        ValueError: `indices` is not a list of whole numbers; a mask, for example.
    """
    indices = torch.as_tensor(indices, dtype=None if len(indices) else torch.int64)
    if indices.ndim != 1 or indices.dtype == torch.bool or indices.is_floating_point():
        raise ValueError(
            f"indices must be int64 (n,), got {indices.dtype} {tuple(indices.shape)}; "
            "a mask becomes indices by mask.nonzero().flatten()"
        )
    if shuffle:
        indices = indices[torch.randperm(len(indices), generator=_generator(seed, epoch, 0))]
    for number, chosen in enumerate(indices.split(batch_size)):
        if number < start or len(chosen) < (batch_size if drop_last else 1):
            continue
        images = pixels[chosen]
        if augment is None:
            yield to_float(images), chosen
        else:
            yield augment(images, _generator(seed, epoch, number + 1)), chosen


def _generator(*key: int) -> Generator:
    """A generator that depends on every number of `key`; neighbours are unrelated."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0]) >> 1)  # 63 bits


REASONS = {
    "Resize": "The report wants 256 x 256 for the sake of a U-Net, but it builds none: five layers "
    "of stride 2 need a side divisible by 32; and Resize((256, 256)) squeezes a photograph of "
    "600 x 450 to three quarters of its width, so round lesions turn oval.",
    "RandomRotation": "The report calls 30 degrees a balance of variation and information, and "
    "somewhat arbitrary; a lesion has no up, so any angle would do, but every angle leaves empty "
    "corners (9 % of the pixels on average), which the model then learns to draw.",
    "RandomHorizontalFlip": "The report mirrors half of the images so that the model learns "
    "features without a left and a right; that is so, and it costs nothing: pixels only move.",
    "RandomVerticalFlip": "The report gives the same reason again; right for skin under a "
    "dermatoscope, though not for photographs of things that have an up and a down.",
    "ToTensor": "The report lists it last, but Normalize works on tensors, so it has to come "
    "before; it also divides by 255, which brings the pixels into [0, 1].",
    "Normalize": "The report takes ImageNet's mean and deviation to stabilise training; here the "
    "input is the target too, and it now runs from -2.1 to 2.6, out of reach of a decoder that "
    "ends in a sigmoid.",
}


def report_transforms(size: int = 256) -> dict[str, Callable]:
    """The report's six steps for one PIL image, by name and in an order that works.

    The names are the keys of `REASONS`. `torchvision.transforms.Compose(list(steps.values()))`
    makes one transform of them: PIL image to float32 (3, size, size), normalised.
    """
    from torchvision import transforms  # here, because it takes a second and few need it

    return {
        "Resize": transforms.Resize((size, size)),
        "RandomRotation": transforms.RandomRotation(degrees=30),
        "RandomHorizontalFlip": transforms.RandomHorizontalFlip(p=0.5),
        "RandomVerticalFlip": transforms.RandomVerticalFlip(p=0.5),
        "ToTensor": transforms.ToTensor(),
        "Normalize": transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    }
