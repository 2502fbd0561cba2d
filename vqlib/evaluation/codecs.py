"""Baselines: JPEG, WebP and AVIF files with the same number of bytes as the VQ-VAE's codes.

At 288 bytes for 256x256 pixels a codec gives the best result on a thumbnail: the image is reduced,
encoded, decoded and enlarged. For each image, the size of the thumbnail and the quality setting are
searched for the highest PSNR (not SSIM). All other options of the encoders are fixed (`CODECS`);
slower settings of AVIF compress better and were not measured. `baselines` lists what the results
table compares.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from ..data import Pixels
from ..metrics import MAX_PSNR, ImageMetrics, ssim

# Sides of the thumbnails in pixels. Multiples of 8, because the codecs work on blocks and partly
# filled blocks cost bytes.
THUMBNAIL_SIZES = (16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256)
# Pillow's options: chroma at half the resolution (lossy WebP has no other choice); optimized
# Huffman tables for JPEG; the slowest method of WebP; AVIF at Pillow's default speed, 6 on a scale
# from 0 (slowest) to 10.
CODECS: dict[str, dict[str, object]] = {
    "JPEG": {"optimize": True, "subsampling": "4:2:0"},
    "WebP": {"method": 6},
    "AVIF": {"speed": 6, "subsampling": "4:2:0"},
}
# The only codec whose whole file is within the budget for all images of val and test.
BASELINE_CODEC = "WebP"


class CompressedImage(NamedTuple):
    """A compressed image: the best file found, and the image decoded from it."""

    file: bytes
    num_bytes: int  # size that counts against the budget
    thumbnail_size: int  # pixels of a side
    picture: Image.Image  # decoded, and enlarged to the size of the original
    psnr: float  # dB


def best_within_budget(
    image: Image.Image, codec: str, budget: int = 288, headers: bool = True
) -> CompressedImage | None:
    """The file of at most `budget` bytes with the highest PSNR that the search finds.

    The search covers `THUMBNAIL_SIZES` and the quality setting; the options in `CODECS` are fixed.

    Args:
        image: RGB, square.
        codec: "JPEG", "WebP" or "AVIF".
        budget: maximum size in bytes.
        headers: False does not count containers and tables (JPEG and AVIF only).

    Returns:
        None if no file is small enough.
    """
    best: CompressedImage | None = None
    for side in THUMBNAIL_SIZES:
        if side > image.width:
            break
        thumbnail = image.resize((side, side), Image.Resampling.LANCZOS)
        candidate = _highest_quality_within_budget(thumbnail, codec, budget, headers)
        if candidate is None:
            break  # a larger thumbnail almost never fits
        file, num_bytes = candidate
        small = Image.open(io.BytesIO(file)).convert("RGB")
        decoded = small.resize(image.size, Image.Resampling.BICUBIC)
        psnr = _psnr(decoded, image)
        if best is None or psnr > best.psnr:
            best = CompressedImage(file, num_bytes, side, decoded, psnr)
    return best


def smallest_at_psnr(
    image: Image.Image, codec: str, psnr: float, max_bytes: int = 4096
) -> CompressedImage | None:
    """The smallest file of `best_within_budget` (to within 4 bytes) that reaches `psnr` dB; None if
    `max_bytes` bytes are not enough."""
    best, low, high = best_within_budget(image, codec, max_bytes), 0, max_bytes
    if best is None or best.psnr < psnr:
        return None
    while high - low > 4:
        budget = (low + high) // 2
        candidate = best_within_budget(image, codec, budget)
        if candidate is None or candidate.psnr < psnr:
            low = budget
        else:
            best, high = candidate, min(budget, candidate.num_bytes)
    return best


def _highest_quality_within_budget(
    thumbnail: Image.Image, codec: str, budget: int, headers: bool
) -> tuple[bytes, int] | None:
    """(file, number of bytes) at the highest quality setting within the budget: bisection,
    then a test of the next settings, because file size does not always increase with quality."""

    def encode(quality: int) -> tuple[bytes, int] | None:
        buffer = io.BytesIO()
        thumbnail.save(buffer, codec, quality=quality, **CODECS[codec])
        file = buffer.getvalue()
        num_bytes = len(file) if headers else payload_bytes(file, codec)
        return (file, num_bytes) if num_bytes <= budget else None

    best, low, high = encode(0), 1, 100
    while best and low <= high:
        middle = (low + high) // 2
        candidate = encode(middle)
        low, high = (low, middle - 1) if candidate is None else (middle + 1, high)
        best = candidate or best
    if best:
        for quality in range(low + 1, min(100, low + 4) + 1):
            best = encode(quality) or best
    return best


def payload_bytes(file: bytes, codec: str) -> int:
    """Size of the compressed pixels alone: for JPEG what follows the start-of-scan header (so its
    Huffman tables are not counted), for AVIF what follows the marker `mdat`."""
    if codec == "JPEG":
        scan = file.rindex(b"\xff\xda") + 2
        return len(file) - scan - int.from_bytes(file[scan : scan + 2], "big")
    return len(file) - (file.index(b"mdat") + 4)


def raw_thumbnail(image: Image.Image, budget: int = 288) -> CompressedImage:
    """A thumbnail of uncompressed pixels, 3 bytes each: 12 x 8 pixels for 288 bytes.

    Raises:
        ValueError: `budget` is less than one pixel.
    """
    if budget < 3:
        raise ValueError(f"budget must be at least 3 bytes (one pixel), got {budget}")
    pixels = budget // 3
    # The size with the most pixels among those that fit and have height <= width <= 2 * height.
    sizes = [(min(pixels // h, 2 * h), h) for h in range(1, math.isqrt(pixels) + 1)]
    width, height = max(sizes, key=math.prod)
    thumbnail = image.resize((width, height), Image.Resampling.LANCZOS)
    decoded = thumbnail.resize(image.size, Image.Resampling.BICUBIC)
    file = thumbnail.tobytes()
    return CompressedImage(file, len(file), height, decoded, _psnr(decoded, image))


def mean_color(image: Image.Image) -> CompressedImage:
    """The mean color of the image, in 3 bytes."""
    pixel = image.resize((1, 1), Image.Resampling.BOX)
    decoded = pixel.resize(image.size)
    return CompressedImage(pixel.tobytes(), 3, 1, decoded, _psnr(decoded, image))


def baselines(budget: int) -> dict[str, Callable[[Image.Image], CompressedImage | None]]:
    """Baselines of the results table, name -> codec, each with `budget` bytes per image.

    Stronger baselines may exist: see `best_within_budget` for what is searched.
    """
    avif = f"AVIF speed {CODECS['AVIF']['speed']}"
    best = partial(best_within_budget, budget=budget)
    return {
        "mean color": mean_color,
        "raw thumbnail": partial(raw_thumbnail, budget=budget),
        "JPEG": partial(best, codec="JPEG"),
        "WebP": partial(best, codec="WebP"),
        avif: partial(best, codec="AVIF"),
        "JPEG, headers not counted": partial(best, codec="JPEG", headers=False),
        f"{avif}, headers not counted": partial(best, codec="AVIF", headers=False),
    }


def _psnr(decoded: Image.Image, original: Image.Image) -> float:
    """PSNR in dB of two 8-bit images, like `metrics.psnr`."""
    difference = np.asarray(decoded, np.float32) - np.asarray(original, np.float32)
    mse = float(np.square(difference).mean())
    return min(MAX_PSNR, 10 * math.log10(255**2 / mse)) if mse else MAX_PSNR


def evaluate_codec(
    compress_image: Callable[[Image.Image], CompressedImage | None],
    pixels: Pixels,
    indices: Tensor,
) -> ImageMetrics:
    """Evaluate a baseline on the images `indices`, like `evaluate_vqvae` for a model.

    Args:
        compress_image: such as `partial(best_within_budget, codec="WebP")` or `raw_thumbnail`.
        pixels, indices: see `evaluate_vqvae`.

    Returns:
        PSNR (dB), SSIM and bytes of each image; NaN for images without a file in the budget.
    """

    def evaluate_image(index: int) -> tuple[float, float, float]:
        original = pixels[index]
        coded = compress_image(to_pil_image(original))
        if coded is None:
            return (float("nan"),) * 3
        pair = torch.stack([original, pil_to_tensor(coded.picture)])
        similarity = ssim(*pair.float().div(255)[:, None])
        return coded.psnr, float(similarity), float(coded.num_bytes)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the codecs release the GIL
        metrics = list(pool.map(evaluate_image, indices.tolist()))
    return ImageMetrics(*torch.tensor(metrics).unbind(1))
