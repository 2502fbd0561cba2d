"""Baselines: files of image codecs with the same number of bytes as the VQ-VAE's codes.

At 288 bytes for 256x256 pixels a codec gives the best result on a thumbnail: the image is reduced,
encoded, decoded and enlarged. For each image, the size of the thumbnail and the quality setting are
searched for the highest PSNR (not SSIM). All other options of the encoders are fixed. `baselines`
lists what the results table compares: JPEG, WebP and AVIF at their usual settings (`CODECS`).
`strict_baselines` has the best settings of the best codecs (`STRICT_CODECS`), which take many
seconds for each image, so `evaluate_strict_codecs` measures each image only once.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from tqdm.auto import tqdm

from ..checkpoints import DataError, fingerprint, open_run
from ..data import Pixels
from ..metrics import MAX_PSNR, ImageMetrics, ssim

# Sides of the thumbnails in pixels. Multiples of 8, because the codecs work on blocks and partly
# filled blocks cost bytes.
THUMBNAIL_SIZES = (16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256)
# In a trial on six lesions with sizes from 32 to 256, the best ones were 48 to 160.
STRICT_THUMBNAIL_SIZES = (40, 48, 56, 64, 80, 96, 112, 128, 160)
# Pillow's options: chroma at half the resolution (lossy WebP has no other choice); optimized
# Huffman tables for JPEG; the slowest method of WebP; AVIF at Pillow's default speed, 6 on a scale
# from 0 (slowest) to 10.
CODECS: dict[str, dict[str, object]] = {
    "JPEG": {"optimize": True, "subsampling": "4:2:0"},
    "WebP": {"method": 6},
    "AVIF": {"speed": 6, "subsampling": "4:2:0"},
}
# The slowest settings, tuned for the PSNR. "format" is Pillow's name of the format.
STRICT_CODECS: dict[str, dict[str, object]] = {
    "AVIF speed 0": {
        "format": "AVIF",
        "speed": 0,
        "subsampling": "4:2:0",
        "advanced": {"tune": "psnr"},
    },
    "HEVC": {
        "format": "HEIF",
        "enc_params": {"preset": "placebo", "tune": "psnr", "chroma": "420"},
    },
    "JPEG XL": {"format": "JXL", "effort": 9},  # a codestream without container
}
# Packages whose versions determine the files, and the modules that add formats to Pillow.
STRICT_PACKAGES = {"pillow": "PIL", "pillow-heif": "pillow_heif", "pillow-jxl-plugin": "pillow_jxl"}
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

    The search covers the quality setting and the sizes `THUMBNAIL_SIZES`, for the codecs in
    `STRICT_CODECS` `STRICT_THUMBNAIL_SIZES`. The other options of the codec are fixed.

    Args:
        image: RGB, square.
        codec: name in `CODECS` or `STRICT_CODECS`; the latter need `register_strict_codecs`.
        budget: maximum size in bytes.
        headers: False does not count containers and tables (of JPEG, AVIF and HEVC).

    Returns:
        None if no file is small enough.
    """
    best: CompressedImage | None = None
    for side in STRICT_THUMBNAIL_SIZES if codec in STRICT_CODECS else THUMBNAIL_SIZES:
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
    options = {"format": codec} | (CODECS | STRICT_CODECS)[codec]

    def encode(quality: int) -> tuple[bytes, int] | None:
        buffer = io.BytesIO()
        thumbnail.save(buffer, quality=quality, **options)
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
    Huffman tables are not counted), for AVIF and HEVC what follows the marker `mdat`."""
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
    """Baselines of the results table, name -> codec, each with `budget` bytes per image."""
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


def strict_baselines(budget: int) -> dict[str, Callable[[Image.Image], CompressedImage | None]]:
    """The strictest baselines that we know, like `baselines`."""
    best = partial(best_within_budget, budget=budget)
    counted = {name: partial(best, codec=name) for name in STRICT_CODECS}
    return counted | {
        f"{name}, headers not counted": partial(best, codec=name, headers=False)
        for name in ("AVIF speed 0", "HEVC")
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
        return _evaluate_image(compress_image, pixels[index])

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the codecs release the GIL
        metrics = list(pool.map(evaluate_image, indices.tolist()))
    return ImageMetrics(*torch.tensor(metrics).unbind(1))


def _evaluate_image(
    compress_image: Callable[[Image.Image], CompressedImage | None], original: Tensor
) -> tuple[float, float, float]:
    """PSNR, SSIM and bytes of one uint8 image (3, H, W); NaN without a file in the budget."""
    coded = compress_image(to_pil_image(original))
    if coded is None:
        return (float("nan"),) * 3
    pair = torch.stack([original, pil_to_tensor(coded.picture)])
    similarity = ssim(*pair.float().div(255)[:, None])
    return coded.psnr, float(similarity), float(coded.num_bytes)


def evaluate_strict_codecs(
    pixels: Pixels, indices: Tensor, budget: int, names: Collection[str] | None = None
) -> dict[str, ImageMetrics]:
    """Evaluate `strict_baselines`, which takes about 25 seconds of CPU time for each image.

    Each result is written to the log of a run (see `open_run`) as soon as it is known, and the next
    call continues there. Other pixels, settings or versions of the encoders start another run.
    Progress and remaining time are shown on stderr.

    Args:
        pixels, indices: see `evaluate_vqvae`.
        budget: maximum size in bytes.
        names: which of the baselines; None for all.

    Returns:
        Name -> PSNR (dB), SSIM and bytes of each image, see `evaluate_codec`.

    Raises:
        DataError: the packages of the extra "codecs" are not installed, or another process is
            measuring the same.
    """
    config = {"kind": "strict codecs", "pixels": pixels.fingerprint, "budget": budget}
    config |= {"codecs": STRICT_CODECS, "sizes": STRICT_THUMBNAIL_SIZES}
    config |= {"versions": register_strict_codecs()}
    codecs = strict_baselines(budget)
    codecs = {name: codecs[name] for name in names or codecs}
    tasks = [(name, index) for index in indices.tolist() for name in codecs]

    def measure(missing: list[tuple]) -> Iterator[Sequence[float]]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # the codecs release the GIL
            yield from pool.map(
                lambda task: _evaluate_image(codecs[task[0]], pixels[task[1]]), missing
            )

    run = f"strict-codecs-{fingerprint(json.dumps(config))}"
    found = measure_once(run, config, tasks, measure)
    return {
        name: ImageMetrics(*torch.tensor([found[name, i] for i in indices.tolist()]).unbind(1))
        for name in codecs
    }


def measure_once(
    run: str,
    config: dict[str, object],
    tasks: Sequence[tuple],
    measure: Callable[[list[tuple]], Iterable[Sequence[float]]],
) -> dict[tuple, Sequence[float]]:
    """Measure what the log of a run does not have yet; each result is written as soon as it is
    known, so that a stopped measurement continues with the next call.

    Args:
        run, config: see `open_run`.
        tasks: tuples of equal length, of strings and whole numbers.
        measure: tasks -> the values of each of them, in this order.

    Returns:
        Task -> values, for all tasks.
    """
    with open_run(run, config) as folder:
        folder.log_path.touch()
        complete, _, _ = folder.log_path.read_text().rpartition("\n")  # without half a line
        size, lines = len(tasks[0]), map(json.loads, complete.splitlines())
        found = {tuple(line[:size]): line[size:] for line in lines}
        missing = [task for task in tasks if task not in found]
        with (
            open(folder.log_path, "a", buffering=1) as log,
            tqdm(total=len(tasks), initial=len(tasks) - len(missing), unit="file") as bar,
        ):
            log.truncate(len(complete) + bool(complete))
            for task, values in zip(missing, measure(missing)):
                log.write(json.dumps([*task, *values]) + "\n")
                found[task] = values
                bar.update()
    return found


def register_strict_codecs() -> dict[str, str]:
    """Add HEVC and JPEG XL to Pillow's formats.

    Returns:
        Versions of the packages that encode `STRICT_CODECS`.

    Raises:
        DataError: a package is not installed.
    """
    try:
        modules = [importlib.import_module(name) for name in STRICT_PACKAGES.values()]
        versions = {name: importlib.metadata.version(name) for name in STRICT_PACKAGES}
    except ImportError as error:
        raise DataError(
            f"the strict codecs need more packages ({error}): pip install "
            '"vqlib[codecs]", or pip install pillow-heif pillow-jxl-plugin'
        ) from error
    modules[1].register_heif_opener()
    return versions
