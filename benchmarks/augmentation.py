"""How fast batches are made: whole batches from the cache beside one image at a time with PIL.

    python benchmarks/augmentation.py            # the data set at hand; VQLIB_DATA names another

All variants take the same images in the same order, in turns, so that a busy machine slows all of
them alike; the ratios are medians over the rounds. The CPU ratio compares the computing time of all
threads, which other programs don't disturb. PIL's rotation takes the nearest pixel, as
torchvision's RandomRotation does by default; ours interpolates (bilinearly).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from torchvision import transforms

from vqlib.data import (
    batches,
    dihedral,
    open_dataset,
    report_transforms,
    rotate_and_flip,
)

MEAN_COLOUR = (0.485, 0.456, 0.406)


def one_by_one(files: list[Path], size: int, batch_size: int) -> Iterable[torch.Tensor]:
    """The report's pipeline without Normalize: decode, resize, rotate, flip, to tensor, stack."""
    pipeline = transforms.Compose(list(report_transforms(size).values())[:-1])
    for start in range(0, len(files), batch_size):
        images = []
        for file in files[start : start + batch_size]:
            with Image.open(file) as image:
                images.append(pipeline(image.convert("RGB")))
        yield torch.stack(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="1 on a busy machine: compares computing time")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    data = open_dataset()
    indices = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: args.images]
    print(data)
    start = time.perf_counter()
    pixels = data.pixels(args.size)
    print(
        f"cache at hand or built after {time.perf_counter() - start:.1f} s: {len(pixels):,} images"
    )

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{i}.jpg") for i in indices.tolist()]
        for i, file in zip(indices.tolist(), files):  # synthetic images have no files of their own
            data.image(i).save(file, quality=92)
        print(f"{len(files)} JPEG of {data.image(0).size}, {torch.get_num_threads()} threads")

        ours = partial(batches, pixels, indices, args.batch_size)
        variants: dict[str, Callable[[], Iterable]] = {
            "one by one, PIL (nearest)": lambda: one_by_one(files, args.size, args.batch_size),
            "rotate_and_flip, reflect": lambda: ours(rotate_and_flip),
            "rotate_and_flip, black": lambda: ours(partial(rotate_and_flip, corners="black")),
            "rotate_and_flip, colour": lambda: ours(partial(rotate_and_flip, corners=MEAN_COLOUR)),
            "dihedral": lambda: ours(dihedral),
            "no augmentation": lambda: ours(None),
        }
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        computing: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(args.rounds + 1):
            for name, run in variants.items():
                start, start_computing = time.perf_counter(), time.process_time()
                for _ in run():
                    pass
                if number:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
                    computing[name].append(time.process_time() - start_computing)

    first = next(iter(variants))
    print(f"\n{'':28}{'images/s':>10}{'ratio':>8}{'lowest':>8}{'CPU ratio':>11}")
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(seconds[first], times)]
        cpu = median(a / b for a, b in zip(computing[first], computing[name]))
        rate = len(indices) / median(times)
        print(f"{name:28}{rate:10,.0f}{median(ratios):8.1f}{min(ratios):8.1f}{cpu:11.1f}")


if __name__ == "__main__":
    main()
