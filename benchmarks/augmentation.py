"""Speed of batch preparation: whole batches from the cache, and single images with PIL.

    python benchmarks/augmentation.py            # the default data set; VQLIB_DATA selects another

All variants process the same images in the same order, interleaved, so that other load on the
machine affects all of them equally. Ratios are medians over the rounds. The CPU ratio compares the
CPU time of all threads, which other programs do not affect. PIL's rotation uses the nearest pixel,
which is the default of torchvision's RandomRotation; ours interpolates bilinearly.
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

from vqlib.course.report_transforms import report_transforms
from vqlib.data import batches, random_dihedral, rotate_and_flip
from vqlib.lesions.datasets import open_dataset

MEAN_COLOR = (0.485, 0.456, 0.406)


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
    parser.add_argument("--images", type=int, default=512, help="number of images")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side")
    parser.add_argument("--batch-size", type=int, default=16, help="images per batch")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each variant")
    parser.add_argument(
        "--threads",
        type=int,
        help="number of threads; use 1 on a busy machine to compare CPU time",
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    data = open_dataset()
    indices = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: args.images]
    print(data)
    start = time.perf_counter()
    pixels = data.pixels(args.size)
    print(
        f"pixels loaded or computed in {time.perf_counter() - start:.1f} s: {len(pixels):,} images"
    )

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{i}.jpg") for i in indices.tolist()]
        for i, file in zip(indices.tolist(), files):  # synthetic images are not files
            data.image(i).save(file, quality=92)
        print(f"{len(files)} JPEG of {data.image(0).size}, {torch.get_num_threads()} threads")

        ours = partial(batches, pixels, indices, args.batch_size)
        variants: dict[str, Callable[[], Iterable]] = {
            "one by one, PIL (nearest)": lambda: one_by_one(files, args.size, args.batch_size),
            "rotate_and_flip, reflect": lambda: ours(rotate_and_flip),
            "rotate_and_flip, black": lambda: ours(partial(rotate_and_flip, corners="black")),
            "rotate_and_flip, color": lambda: ours(partial(rotate_and_flip, corners=MEAN_COLOR)),
            "dihedral": lambda: ours(random_dihedral),
            "no augmentation": lambda: ours(None),
        }
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        cpu_seconds: dict[str, list[float]] = {name: [] for name in variants}
        for round_number in range(args.rounds + 1):
            for name, run in variants.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                for _ in run():
                    pass
                if round_number:  # the first round is a warm-up
                    seconds[name].append(time.perf_counter() - start)
                    cpu_seconds[name].append(time.process_time() - cpu_start)

    reference = next(iter(variants))
    print(f"\n{'':28}{'images/s':>10}{'ratio':>8}{'lowest':>8}{'CPU ratio':>11}")
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(seconds[reference], times)]
        cpu = median(a / b for a, b in zip(cpu_seconds[reference], cpu_seconds[name]))
        rate = len(indices) / median(times)
        print(f"{name:28}{rate:10,.0f}{median(ratios):8.1f}{min(ratios):8.1f}{cpu:11.1f}")


if __name__ == "__main__":
    main()
