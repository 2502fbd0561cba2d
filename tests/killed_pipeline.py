"""Kill a pipeline again and again, continue it, and compare its files with an uninterrupted run.

    python tests/killed_pipeline.py FOLDER KILLS SEED

The pipeline caches synthetic images, trains a VQ-VAE, encodes the images and trains a prior. A
third of the kills are SIGKILL at a random moment, a third SIGTERM at a random moment, and a third
SIGKILL within the write of a checkpoint. If the pipeline ends before all kills have happened, it
starts again in an empty folder. Prints the numbers of kills as JSON.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from vqlib import encode_dataset, train_prior, train_vqvae
from vqlib.codes import add_augmented
from vqlib.lesions import synthetic_dataset
from vqlib.training import Progress


class Quiet(Progress):
    def start(self, title, total, done, folder):
        pass

    def report_mean_loss(self, line):
        pass

    def epoch(self, logs, images):
        pass


def pipeline(folder: Path) -> None:
    os.environ["VQLIB_HOME"] = str(folder)
    data, options = synthetic_dataset(24), {"device": "cpu", "progress": Quiet()}
    vqvae = train_vqvae(data, size=64, epochs=4, **options)
    encoded = encode_dataset(vqvae, data, 64)
    add_augmented(encoded, vqvae, data, 64)
    encoded.save(folder / "codes.safetensors")
    train_prior(encoded, epochs=8, conv_filters=16, blocks=1, **options)


def kill_in_write(number: int) -> None:
    """Write half of the checkpoint that is written as the `number`-th one from now, and die."""
    write_bytes, left = Path.write_bytes, [number]

    def write(path: Path, data: bytes) -> int:
        left[0] -= 1
        if left[0] > 0:
            return write_bytes(path, data)
        write_bytes(path, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    Path.write_bytes = write


def start(folder: Path, number: int = 0) -> int:
    """Start the pipeline in a child process, which dies in the `number`-th write if that is not 0.
    The parent has no threads, because it computes nothing with PyTorch."""
    if pid := os.fork():
        return pid
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    if number:
        kill_in_write(number)
    code = 1
    try:
        pipeline(folder)
        code = 0
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def results(folder: Path) -> dict[str, bytes]:
    """All files of the runs except the checkpoints, which contain no result, and the codes."""
    files = [*(folder / "runs").rglob("*"), *folder.glob("*.safetensors")]
    files = [path for path in files if path.is_file() and path.name != "checkpoint.pt"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def main(folder: Path, kills: int, seed: int) -> None:
    rng, began, done = random.Random(seed), time.monotonic(), {}
    assert os.waitpid(start(folder / "whole"), 0)[1] == 0
    seconds, expected = time.monotonic() - began, results(folder / "whole")
    assert len(expected) > 8

    def finish() -> None:
        assert os.waitpid(start(folder / "parts"), 0)[1] == 0
        found = results(folder / "parts")
        changed = [n for n in expected | found if expected.get(n) != found.get(n)]
        assert not changed, f"differs from the uninterrupted run: {changed}"

    while sum(done.values()) < kills:
        kind = ("SIGKILL", "in a write", "SIGTERM")[sum(done.values()) % 3]
        number = rng.randint(1, 3) if kind == "in a write" else 0
        pid = start(folder / "parts", number)
        if not number:
            time.sleep(rng.uniform(0, min(0.5, 2 / kills) * seconds))
            os.kill(pid, getattr(signal, kind))
        status = os.waitpid(pid, 0)[1]
        if status:
            assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 130, status
            done[kind] = done.get(kind, 0) + 1
        else:
            finish()
            shutil.rmtree(folder / "parts")
    finish()
    print(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
