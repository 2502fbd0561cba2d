"""Train the realistic decoder: a flow that samples the detail that the codes do not contain.

    python benchmarks/realistic.py --data PATH      # three hours on one core; call again to resume

The photographs of the training split are encoded and decoded once with the pretrained VQ-VAE
(8-bit pixels in work_dir()/cache). The network is trained on crops of 128 px and evaluated on the
validation split after each epoch:

- flow_loss: mean squared error of the velocity, at fixed times and for fixed noise;
- psnr_db, decoded_psnr_db: of photographs with sampled detail, and of decoded images;
- detail: energy of the differences between neighboring pixels, divided by that of photographs.

The EMA weights are saved after each epoch, in work_dir()/runs/NAME/realistic.safetensors.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqlib import DEEP, load_pretrained, open_dataset, save_model
from vqlib.beyond.realistic import RealisticDecoder, root_mean_square, roughness
from vqlib.checkpoints import fingerprint, mark_finished
from vqlib.data import ImageDataset, Pixels, batches, load_or_build_cache, random_dihedral, to_float
from vqlib.metrics import psnr, to_8_bit
from vqlib.training import Precision, Progress, Schedule, fit, pick_device
from vqlib.vqvae import VQVAE, eval_mode

SIZE, CROP, BATCH = 256, 128, 16
SAMPLED = 16  # validation images that are sampled after each epoch
SCHEDULE = Schedule(lr=1e-3, warmup_steps=200, cosine_decay=True, grad_clip=1.0, ema_decay=0.999)


def decode_all(pixels: Pixels, vqvae: VQVAE) -> Pixels:
    """The images of `pixels` after encoding and decoding, computed once."""

    @torch.inference_mode()
    def build(indices: range) -> tuple[np.ndarray, list[str]]:
        photographs = to_float(pixels[torch.tensor(indices)])
        decoded = torch.cat([vqvae.decode(vqvae.encode(x)) for x in photographs.split(BATCH)])
        return decoded.mul(255).round().byte().permute(0, 2, 3, 1).numpy(), []

    inputs = f"{pixels.fingerprint} {fingerprint(*vqvae.state_dict().values())}"
    return load_or_build_cache("reconstructed", inputs, (len(pixels), SIZE, SIZE, 3), build)


class Pairs:
    """Photographs and decoded images, uint8 (B, 6, S, S), by indices; for `data.batches`."""

    def __init__(self, pixels: Pixels, decoded: Pixels) -> None:
        self.pixels, self.decoded = pixels, decoded

    def __getitem__(self, indices: Tensor) -> Tensor:
        return torch.cat([self.pixels[indices], self.decoded[indices]], dim=1)


def random_crops(pairs: Tensor, generator: torch.Generator) -> Tensor:
    """One random crop of each image, at a multiple of 8 pixels, in a random orientation.

    Args:
        pairs: uint8 (B, 6, S, S), photographs and decoded images.

    Returns:
        float (B, 7, CROP, CROP) in [0, 1]. The last channel is constant: the root mean square of
        the residual of the whole image.
    """
    # The codes belong to patches of 32 pixels, so the decoder's error depends on the position
    # within a patch. Crops at multiples of 8 pixels stay aligned with the network's patches of 8
    # pixels.
    corners = torch.randint((SIZE - CROP) // 8 + 1, (len(pairs), 2), generator=generator) * 8
    crops = [
        pair[:, y : y + CROP, x : x + CROP]
        for pair, (y, x) in zip(pairs, corners.tolist(), strict=True)
    ]
    turned = random_dihedral(torch.stack(crops), generator)
    rms = residual_rms(pairs)[:, None, None, None].expand(-1, 1, CROP, CROP)
    return torch.cat([turned, rms], dim=1)


def residual_rms(pairs: Tensor) -> Tensor:
    """Root mean square of photographs minus decoded images, uint8 (B, 6, S, S) to float (B,)."""
    photographs, decoded = to_float(pairs).chunk(2, dim=1)
    return root_mean_square(photographs - decoded)


def detail(images: Tensor) -> float:
    """Mean squared difference between neighboring pixels."""
    return float(roughness(images).square().mean())


def train_realistic(
    data: ImageDataset,
    *,
    run: str = "realistic",
    device: torch.device | None = None,
    epochs: int = 30,
    seed: int = 0,
    extend: bool = False,
) -> None:
    """Train on photographs and their decoded images, or continue an interrupted run."""
    # The last layers start at 0, so many of the first gradients are denormal; see denormals.py.
    torch.set_flush_denormal(True)
    device = device or pick_device()
    pixels, split = data.pixels(SIZE), DEEP.split(data)
    decoded = decode_all(pixels, load_pretrained("ham10000")[0])
    torch.manual_seed(seed)
    model = RealisticDecoder()
    some = split.train[:: max(1, len(split.train) // 512)]
    model.fit_statistics(to_float(pixels[some]), to_float(decoded[some]))
    strengths = ", ".join(f"{x:.2f}" for x in model.component_std.flip(0).tolist())
    print(f"{sum(p.numel() for p in model.parameters()):,} weights, {model.config}")
    print(f"standard deviations of the components of normalized residuals: {strengths}")
    intercept, slope, error = model.rms_model.tolist()
    print(f"log rms = {intercept:.3f} + {slope:.3f} * log roughness, error {error:.3f}")

    pairs: Any = Pairs(pixels, decoded)
    # The remaining arguments are the epoch and the first batch.
    get_batches = partial(batches, pairs, split.train, BATCH, random_crops, seed)

    def compute_loss(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        crops = batch[0].to(device, memory_format=torch.channels_last)
        photographs, means, rms = crops.split((3, 3, 1), dim=1)
        return model.loss(photographs, means, rms[:, 0, 0, 0]).mean(), {}

    notes = {"data": repr(data), "seed": seed, "pixels": pixels.fingerprint}
    previewed = split.val[:: max(1, len(split.val) // SAMPLED)][:SAMPLED]

    def evaluate(folder: Path, epoch: int) -> tuple[dict[str, float], Tensor]:
        corner, losses = (SIZE - CROP) // 2, []
        with eval_mode(model), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for indices in split.val.split(BATCH):
                whole = pairs[indices]
                rms = residual_rms(whole).to(device)
                crops = to_float(whole[..., corner : corner + CROP, corner : corner + CROP])
                crops = crops.to(device, memory_format=torch.channels_last)
                times = ((torch.arange(len(crops)) + 0.5) / len(crops)).to(device)
                with Precision.choose(device).autocast(device):
                    losses.append(model.loss(*crops.chunk(2, dim=1), rms, times).cpu())
        photographs, means = to_float(pairs[previewed]).chunk(2, dim=1)
        samples = torch.cat(
            [
                model.sample(part.contiguous(), generator=torch.Generator().manual_seed(i)).cpu()
                for i, part in enumerate(means.split(4))
            ]
        )
        path = folder / "realistic.safetensors"
        save_model(model, path, **notes, epoch=epoch, epochs=epochs, finished=False)
        return {
            "flow_loss": float(torch.cat(losses).mean()),
            "psnr_db": float(psnr(to_8_bit(samples), photographs).mean()),
            "decoded_psnr_db": float(psnr(means, photographs).mean()),
            "detail": detail(samples) / detail(photographs),
        }, torch.cat([photographs[:6], samples[:6]])

    folder = fit(
        model,
        run=run,
        config={
            "kind": "realistic decoder",
            "pixels": pixels.fingerprint,
            "decoded": decoded.fingerprint,
            "split": fingerprint(*split),
            "crop": CROP,
            "batch_size": BATCH,
            "warmup_steps": SCHEDULE.warmup_steps,
            "ema_decay": SCHEDULE.ema_decay,
            "seed": seed,
            "model": model.config,
        },
        schedule=SCHEDULE,
        epochs=epochs,
        steps_per_epoch=-(-len(split.train) // BATCH),
        get_batches=get_batches,
        compute_loss=compute_loss,
        evaluate=evaluate,
        device=device,
        seed=seed,
        progress=Progress(),
        extend=extend,
    )
    mark_finished(folder / "realistic.safetensors", epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    parser.add_argument("--run", default="realistic", help="name of the run")
    parser.add_argument(
        "--device", type=torch.device, help="default: the first of cuda, mps and cpu"
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--extend", action="store_true", help="continue with more epochs")
    options = vars(parser.parse_args())
    train_realistic(open_dataset(options.pop("data")), **options)


if __name__ == "__main__":
    main()
