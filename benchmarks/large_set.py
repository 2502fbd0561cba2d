"""Memory and time of large sets: their images, their codes, and a prior's training on the codes.

    python benchmarks/large_set.py      # about ten minutes on one core; Linux; 2 GB of disk

Images: procedural JPEGs of 64 px in seven classes, all different, are opened, resized into the
cache, encoded, also in eight orientations, saved and loaded, and a prior is trained on the codes
for one epoch; with 12,500 to 100,000 images, each number of them in a process of its own. The
models are tiny (a single convolution encodes an image), because memory and growth are measured,
not speed.

Codes alone: 256 random codes per image, as of images of 256 px, saved and loaded; 50,000 images
whose training split (80 %) is in eight orientations, and 550,000 (about the whole ISIC archive) in
one.

Memory is read from /proc: `peak_mb` is the process's largest resident set, with the pages of mapped
files that are in memory; `anonymous_mb` is without them and sampled every 10 ms. Seconds are those
of the processor, summed over the threads, so that they do not depend on what else runs on the
machine. The results are written to data/results/large-set.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from vqlib import VQVAE, WORKBOOK, EncodedDataset, PixelCNN, encode_dataset, train_prior
from vqlib.checkpoints import work_dir
from vqlib.codes import add_augmented
from vqlib.data import Split, open_folder, to_float
from vqlib.evaluation.results import save_results
from vqlib.vqvae import CHANNELS, DOWNSCALE, NETWORKS, Network

SIZE = 64  # pixels of a side
NUMBERS = (12_500, 25_000, 50_000, 100_000)
CODES_ALONE = ((50_000, 8), (550_000, 1))  # images, orientations
CLASSES = 7

# One convolution over patches of 32 x 32 pixels. Nothing is decoded.
NETWORKS["patches"] = Network(
    lambda final_relu: nn.Conv2d(3, CHANNELS[-1], DOWNSCALE, stride=DOWNSCALE), nn.Identity
)
RECIPE = replace(WORKBOOK, batch_size=256, prior=partial(PixelCNN, conv_filters=16))


class Meter:
    """Processor seconds and memory of each phase of this process, in `phases`."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}
        self.anonymous = 0
        with self.phase("start"):  # the memory of Python and PyTorch
            pass
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self.anonymous = max(self.anonymous, _memory("RssAnon"))
            time.sleep(0.01)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the peak, starts again
        self.anonymous, started = 0, time.process_time()
        yield
        seconds = time.process_time() - started
        anonymous = max(self.anonymous, _memory("RssAnon"))
        self.phases[name] = {
            "seconds": round(seconds, 2),
            "peak_mb": _memory("VmHWM") // 1000,
            "anonymous_mb": anonymous // 1000,
        }


def _memory(key: str) -> int:
    """A line of /proc/self/status, in thousands of bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{key}:")[2].split()[0]) * 1024 // 1000


def write_images(folder: Path, numbers: range) -> None:
    """Write smooth random images, each from its own seed."""
    for i in numbers:
        coarse = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        image.save(folder / f"class {i % CLASSES}" / f"{i:06}.jpg", quality=90)


def measure_images(folder: Path) -> dict[str, Any]:
    """All phases for the images in `folder`; runs and caches are stored in VQLIB_HOME."""
    torch.manual_seed(0)
    meter, vqvae = Meter(), VQVAE(network="patches")
    with meter.phase("open the folder"):
        data = open_folder(folder)
    with meter.phase("resize into the cache"):
        pixels = data.pixels(SIZE)
    vqvae.quantizer(vqvae.encoder(to_float(pixels[:1024])))  # its codebook starts from these
    with meter.phase("encode"):
        encoded = encode_dataset(vqvae, data, SIZE)
    with meter.phase("encode eight orientations"):
        add_augmented(encoded, vqvae, data, SIZE)
    path = work_dir() / "codes.safetensors"
    with meter.phase("save the codes"):
        encoded.save(path)
    del encoded
    with meter.phase("load the codes"):
        encoded = EncodedDataset.load(path)
    with meter.phase("train a prior for one epoch"):
        train_prior(encoded, RECIPE, epochs=1, device="cpu")
    return {
        "images": len(data),
        "pixels_mb": pixels.path.stat().st_size // 10**6,
        "codes_per_image": encoded.codes[0].numel(),
        "phases": meter.phases,
    }


def measure_codes(images: int, orientations: int) -> dict[str, Any]:
    """Saving and loading random codes."""
    generator = torch.Generator().manual_seed(0)
    meter, shape = Meter(), (8, 8, 4)
    with meter.phase("make the codes"):
        train, val, test = torch.arange(images).split([images - images // 5] + [images // 10] * 2)
        encoded = EncodedDataset(
            torch.randint(512, (images, *shape), generator=generator),
            torch.zeros(images, dtype=torch.int64),
            Split(train, val, test),
            torch.randn(4, 512, 64, generator=generator),
        )
        if orientations > 1:
            grids = torch.randint(512, (orientations, len(train), *shape), generator=generator)
            grids[0] = encoded.codes[train]
            encoded.augmented = grids
            del grids
    path = work_dir() / "codes.safetensors"
    with meter.phase("save the codes"):
        encoded.save(path)
    del encoded
    with meter.phase("load the codes"):
        EncodedDataset.load(path)
    return {
        "images": images,
        "orientations": orientations,
        "file_mb": path.stat().st_size // 10**6,
        "phases": meter.phases,
    }


def in_new_process(home: Path, *arguments: object) -> dict[str, Any]:
    """What this script measures with these arguments, with VQLIB_HOME = home, which is deleted."""
    output = subprocess.check_output(
        [sys.executable, __file__, *map(str, arguments)],
        text=True,
        env=os.environ | {"VQLIB_HOME": str(home)},
    )
    shutil.rmtree(home)
    print(output, flush=True)
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS, help="of images")
    parser.add_argument("--images", help=argparse.SUPPRESS)
    parser.add_argument("--codes", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.images or options.codes:
        found = measure_codes(*options.codes) if options.codes else measure_images(options.images)
        print(json.dumps(found))
        return
    result: dict[str, Any] = {
        "python": ".".join(map(str, sys.version_info[:2])),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "size": SIZE,
    }
    with tempfile.TemporaryDirectory(dir=work_dir()) as name:  # /tmp may lie in memory
        folder, home = Path(name, "images"), Path(name, "home")
        for i in range(CLASSES):
            (folder / f"class {i}").mkdir(parents=True)
        result["images"] = []
        for start, end in pairwise([0, *sorted(options.numbers)]):
            write_images(folder, range(start, end))
            result["images"].append(in_new_process(home, "--images", folder))
        result["codes"] = [in_new_process(home, "--codes", *row) for row in CODES_ALONE]
    save_results("large-set", result)


if __name__ == "__main__":
    main()
