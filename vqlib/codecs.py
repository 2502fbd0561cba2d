"""Chapter 8: the rivals. What JPEG, WebP and AVIF make of the same few bytes.

At 288 bytes for 256x256 pixels a codec does best on a thumbnail: the picture is shrunk, encoded,
decoded and enlarged again. The side of the thumbnail and the quality are searched for every image,
and the combination with the highest PSNR is kept. All other options of the encoders are fixed
(`CODECS`): slower settings of AVIF compress better and were not measured.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .data import Pixels
from .metrics import MAX_PSNR, Quality, ssim

# Multiples of 8: these codecs work on blocks of 16 x 16, and an odd rest costs bytes. Far more
# pixels than these can't be coded well in some hundreds of bytes.
SIDES = (16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256)
# Pillow's options: colour at half the resolution, which all three need at such rates; optimized
# Huffman tables for JPEG; the slowest method of WebP; Pillow's default speed for AVIF, 6 of 0..10.
CODECS: dict[str, dict[str, object]] = {
    "JPEG": {"optimize": True, "subsampling": "4:2:0"},
    "WebP": {"method": 6},
    "AVIF": {"speed": 6, "subsampling": "4:2:0"},
}


class CodedImage(NamedTuple):
    """The best file found for an image, and what it looks like."""

    file: bytes
    cost: int  # bytes that count against the budget
    side: int  # pixels of the thumbnail
    quality: int
    picture: Image.Image  # decoded, enlarged to the original's size
    psnr: float  # dB


def best_file(
    image: Image.Image, codec: str, budget: int = 288, headers: bool = True
) -> CodedImage | None:
    """The file of at most `budget` bytes with the highest PSNR that the search finds.

    Searches over `SIDES` and the quality; the options in `CODECS` are fixed.

    Args:
        image: RGB, square.
        codec: "JPEG", "WebP" or "AVIF".
        headers: False counts only the compressed pixels, as if containers and tables were free.

    Returns:
        None if no file is small enough.
    """
    best: CodedImage | None = None
    for side in SIDES:
        if side > image.width:
            break
        thumbnail = image.resize((side, side), Image.Resampling.LANCZOS)
        found = _largest_fitting(thumbnail, codec, budget, headers)
        if found is None:
            break  # a larger one hardly ever fits
        file, cost, quality = found
        decoded = Image.open(io.BytesIO(file)).convert("RGB")
        picture = decoded.resize(image.size, Image.Resampling.BICUBIC)
        score = _psnr(picture, image)
        if best is None or score > best.psnr:
            best = CodedImage(file, cost, side, quality, picture, score)
    return best


def cheapest_file(image: Image.Image, codec: str, psnr: float, most: int = 4096) -> CodedImage:
    """The smallest file of `best_file`, to within 4 bytes, that reaches `psnr` dB.

    Raises:
        ValueError: not even `most` bytes are enough.
    """
    best, low, high = best_file(image, codec, most), 0, most
    if best is None or best.psnr < psnr:
        raise ValueError(f"{codec} does not reach {psnr:.1f} dB in {most} bytes")
    while high - low > 4:
        middle = (low + high) // 2
        found = best_file(image, codec, middle)
        if found is None or found.psnr < psnr:
            low = middle
        else:
            best, high = found, min(middle, found.cost)
    return best


def _largest_fitting(
    thumbnail: Image.Image, codec: str, budget: int, headers: bool
) -> tuple[bytes, int, int] | None:
    """(file, cost, quality) of the highest quality that fits. Bisection, then a look at the next
    few, because a higher quality does not always mean more bytes."""

    def encode(quality: int) -> tuple[bytes, int, int] | None:
        buffer = io.BytesIO()
        thumbnail.save(buffer, codec, quality=quality, **CODECS[codec])
        file = buffer.getvalue()
        cost = len(file) if headers else payload(file, codec)
        return (file, cost, quality) if cost <= budget else None

    best, low, high = encode(0), 1, 100
    while best and low <= high:
        middle = (low + high) // 2
        found = encode(middle)
        low, high = (low, middle - 1) if found is None else (middle + 1, high)
        best = found or best
    if best:
        for quality in range(low + 1, min(100, low + 4) + 1):
            best = encode(quality) or best
    return best


def payload(file: bytes, codec: str) -> int:
    """Bytes of the compressed pixels alone: JPEG after its last header (its Huffman tables go
    free), WebP after the 30 bytes it starts with, AVIF after the mark `mdat`."""
    if codec == "JPEG":
        scan = file.rindex(b"\xff\xda") + 2
        return len(file) - scan - int.from_bytes(file[scan : scan + 2], "big")
    return len(file) - (30 if codec == "WebP" else file.index(b"mdat") + 4)


def raw_thumbnail(image: Image.Image, budget: int = 288) -> CodedImage:
    """Uncompressed pixels at 3 bytes each: 8 x 12 of them for 288 bytes. Needs no codec at all."""
    if budget < 3:
        raise ValueError(f"one pixel takes 3 bytes, but the budget is {budget}")
    pixels = budget // 3
    # Of all sizes that fit and are at most twice as wide as high: the one with the most pixels.
    most = math.isqrt(pixels)
    width, height = max(
        ((min(pixels // h, 2 * h), h) for h in range(1, most + 1)), key=lambda wh: wh[0] * wh[1]
    )
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    picture = small.resize(image.size, Image.Resampling.BICUBIC)
    return CodedImage(
        small.tobytes(), 3 * width * height, height, 100, picture, _psnr(picture, image)
    )


def mean_colour(image: Image.Image) -> CodedImage:
    """One colour for the whole picture: what 3 bytes are good for."""
    small = image.resize((1, 1), Image.Resampling.BOX)
    picture = small.resize(image.size)
    return CodedImage(small.tobytes(), 3, 1, 100, picture, _psnr(picture, image))


def _psnr(picture: Image.Image, original: Image.Image) -> float:
    """As `metrics.psnr`, of two 8-bit images."""
    difference = np.asarray(picture, np.float32) - np.asarray(original, np.float32)
    mse = float(np.square(difference).mean())
    return min(MAX_PSNR, 10 * math.log10(255**2 / mse)) if mse else MAX_PSNR


def evaluate_codec(
    code: Callable[[Image.Image], CodedImage | None], pixels: Pixels, indices: Tensor
) -> Quality:
    """Measure a codec on the images `indices`, as `evaluate_vqvae` measures a model.

    Args:
        code: such as `partial(best_file, codec="WebP")` or `raw_thumbnail`.

    Returns:
        Quality, with NaN for every image that doesn't fit.
    """

    def judge(index: int) -> tuple[float, float, float]:
        original = pixels[index]
        coded = code(Image.fromarray(original.permute(1, 2, 0).numpy()))
        if coded is None:
            return (float("nan"),) * 3
        pair = torch.stack([original, torch.from_numpy(np.array(coded.picture)).permute(2, 0, 1)])
        likeness = ssim(*pair.float().div(255)[:, None])
        return coded.psnr, float(likeness), float(coded.cost)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the codecs work outside Python's lock
        rows = list(pool.map(judge, indices.tolist()))
    return Quality(*torch.tensor(rows).unbind(1))
