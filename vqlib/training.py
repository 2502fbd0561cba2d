"""Training of the VQ-VAE and the prior: one resumable loop, and recipes by name.

`fit` runs the optimizer, logs, evaluates and saves checkpoints; `train_vqvae` and `train_prior`
define what differs: model, batches, loss and evaluation. `REPORT` reproduces the report's settings,
including its flaws; `WORKBOOK` has the settings that we recommend.

Label dropout: Ho and Salimans (2022), arXiv:2207.12598.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import save_image
from tqdm.auto import tqdm

from . import distributed
from .checkpoints import (
    RESTART_ADVICE,
    WRITE_ADVICE,
    DataError,
    atomic_write,
    deferred_signals,
    describe,
    explain_errors,
    fingerprint,
    load_model,
    mark_finished,
    open_run,
    save_model,
)
from .checks import check_whole
from .codes import EncodedDataset
from .data import ImageDataset, Split, batches, random_dihedral, rotate_and_flip
from .metrics import ReconstructionMetrics, code_bits, evaluate_vqvae
from .pixelcnn import PixelCNN, PixelRCNN
from .quantizer import codebook_fingerprint
from .vqvae import IMAGENET_MEAN, VQVAE, eval_mode


@dataclass(frozen=True)
class Schedule:
    """Settings of the optimizer (Adam)."""

    lr: float = 1e-3
    warmup_steps: int = 0  # steps of linear increase up to lr
    cosine_decay: bool = False  # afterwards decrease to 0 along a cosine; False: constant
    grad_clip: float | None = None  # maximum norm of the gradient; None: no clipping
    # Decay of the exponential moving average (EMA) of the weights. If set, the EMA weights are
    # evaluated and kept; None: no EMA, the last weights are kept.
    ema_decay: float | None = None

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate at a step, 0 <= step < total."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if not self.cosine_decay:
            return self.lr
        done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


def pick_device() -> torch.device:
    """The first of CUDA, Apple's MPS and the CPU that is available. Several processes can't
    exchange tensors on MPS."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    mps = torch.backends.mps.is_available() and distributed.world_size() == 1
    return torch.device("mps" if mps else "cpu")


@dataclass(frozen=True)
class Precision:
    """Number format of the layers. Losses, quantizer and optimizer always use float32."""

    dtype: torch.dtype
    reason: str

    @classmethod
    def choose(cls, device: torch.device) -> Precision:
        """The fastest number format with native support on this device.

        float16 is used only with loss scaling, on GPUs without bfloat16.
        """
        if device.type == "cuda":
            if torch.cuda.get_device_capability(device) >= (8, 0):
                return cls(torch.bfloat16, "bf16 autocast: native on this GPU")
            return cls(torch.float16, "fp16 autocast with loss scaling: this GPU has no bf16")
        if device.type == "cpu" and _cpu_has_bf16():
            return cls(torch.bfloat16, "bf16 autocast: native on this CPU")
        return cls(torch.float32, "float32: this device has no faster native format")

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)


def _cpu_has_bf16() -> bool:
    """True if the CPU has bf16 instructions and PyTorch may use them (the environment variable
    ATEN_CPU_CAPABILITY can forbid it). Emulated bf16 is slower than float32."""
    if not torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX")):
        return False
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
        return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)
    return False


@dataclass
class Progress:
    """Progress of a training in a terminal: a bar with the remaining time, and loss lines in the
    report's format.

    `plots.LiveTraining` has the same methods and draws a live curve in a notebook instead.
    """

    bar: tqdm | None = field(default=None, init=False)

    def start(self, title: str, total: int, done: int, folder: Path) -> None:
        """`folder`: of the run, with the log of the `done` steps that were trained before."""
        hide = distributed.rank() > 0 or None  # None: unless in a terminal
        self.bar = tqdm(desc=title, total=total, initial=done, unit="batch", disable=hide)

    def step(self, step: int, logs: dict[str, float]) -> None:
        if self.bar is not None:
            self.bar.update()

    def report_mean_loss(self, line: str) -> None:
        """Print a line with the mean loss of the last batches."""
        tqdm.write(line)

    def epoch(self, logs: dict[str, float], images: Tensor | None) -> None:
        """Print held-out results. `images`: (2n, 3, H, W), n originals, then n reconstructions."""
        tqdm.write("  held out: " + ", ".join(f"{k} {v:.4g}" for k, v in logs.items()))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class TrainingStopped(KeyboardInterrupt):
    """A training was stopped by a signal, after writing a checkpoint."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback: stopping a training is not an error."""
        return [str(self)]


def fit(
    model: nn.Module,
    *,
    run: str | Path,
    config: dict[str, Any],
    schedule: Schedule,
    epochs: int,
    steps_per_epoch: int,
    get_batches: Callable[[int, int], Iterator[Any]],
    compute_loss: Callable[[Any], tuple[Tensor, dict[str, Tensor]]],
    evaluate: Callable[[Path, int], tuple[dict[str, float], Tensor | None]],
    initialize: Callable[[], None] = lambda: None,
    kept_state: dict[str, float] | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: Any = None,
    lr: float | None = None,
    extend: bool = False,
    save_every: float = 300.0,
) -> Path:
    """Train `model` in place; continue from the run's checkpoint if there is one.

    The order of the loop and most names are those of nanoGPT's train.py (Karpathy). With a process
    group (see `distributed`), all ranks call this function, and only rank 0 writes. BatchNorm then
    normalizes each rank's part of a batch by itself on the CPU, and the whole batch (SyncBatchNorm)
    on GPUs; its running statistics are averaged over the ranks.

    Args:
        config: identifies the run, see `checkpoints.describe`; "seed", "model", "epochs" and "lr"
            are added. A folder with another config is refused.
        schedule: settings of the optimizer.
        get_batches: (epoch, first batch) -> the batches of that epoch from there on. They must
            depend on nothing else but the rank, or a resumed run would differ from an
            uninterrupted one.
        compute_loss: batch -> loss and further values to log, scalars on the device. The batch is
            as `get_batches` yields it, see `to_device`.
        evaluate: (folder, epoch, counted from 1) -> held-out results to log, and images for
            `progress.epoch` or None.
        initialize: called before the first step, but not when a run is resumed.
        kept_state: numbers that `evaluate` needs again in later epochs; saved in the checkpoint.
        device: None for `pick_device()`.
        seed: of everything random that uses PyTorch's global generator.
        progress: None for `Progress()`.
        lr: learning rate instead of the schedule's; a resumed run may use another one.
        extend: allow a run that was started with fewer epochs to be continued.
        save_every: seconds between checkpoints within an epoch.

    Returns:
        The folder of the run.

    Raises:
        ValueError: there are no batches or no epochs.
        DataError: the folder contains a run with another config, or another process uses it.
        FloatingPointError: the loss is no longer finite.
        TrainingStopped: training was stopped; a checkpoint has been written.
    """
    check_whole(epochs=epochs)
    if steps_per_epoch < 1:
        raise ValueError("nothing to train: the training split is empty")
    schedule = schedule if lr is None else replace(schedule, lr=lr)
    config = {"seed": seed, "model": getattr(model, "config", {}), **config}
    config |= {"epochs": epochs, "lr": schedule.lr}
    device = pick_device() if device is None else torch.device(device)
    precision = Precision.choose(device)
    model.to(device, memory_format=torch.channels_last)
    if device.type == "cuda" and distributed.world_size() > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place
    statistics = [b for name, b in model.named_buffers() if name.endswith(BATCH_STATISTICS)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=schedule.lr)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype == torch.float16)
    progress = Progress() if progress is None else progress
    torch.manual_seed(seed)
    with (
        open_run(run, config, lr=lr, extend=extend) as opened,
        deferred_signals() as stop_requested,
    ):
        if opened.state is None:
            initialize()
        for tensor in model.state_dict().values():
            distributed.from_rank_0(tensor)
        if distributed.rank() > 0:  # so that the ranks have different dropout masks
            torch.manual_seed(seed + distributed.rank())
        ema = None if schedule.ema_decay is None else _copy_of_weights(model)
        kept_state = {} if kept_state is None else kept_state
        state = TrainingState(model, optimizer, scaler, ema, kept_state, device)
        every = 1 if device.type == "cpu" else LOG_EVERY
        log = _Log(opened.log_path, progress, steps_per_epoch, every)
        with explain_errors(f"{opened.checkpoint_path} is not of this training", RESTART_ADVICE):
            log_bytes = 0 if opened.state is None else state.load(opened.state)
        log.truncate(log_bytes)
        step, total = state.step, epochs * steps_per_epoch
        saved_at = time.monotonic()

        title = f"{config['kind']} on {device}, {precision.reason}"
        if step == total:
            title = f"{config['kind']}: trained before, loaded from the run {opened.folder.name}"
        progress.start(title, total, step, opened.folder)
        for epoch in range(step // steps_per_epoch, epochs):
            for batch in get_batches(epoch, step % steps_per_epoch):
                # learning rate
                for group in optimizer.param_groups:
                    group["lr"] = schedule.lr_at(step, total)
                # forward
                model.train()
                with precision.autocast(device):
                    loss, extra = compute_loss(batch)
                # backward
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                distributed.average([p.grad for p in parameters if p.grad is not None] + statistics)
                # clip
                if schedule.grad_clip is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(parameters, schedule.grad_clip)
                # step
                scaler.step(optimizer)
                scaler.update()
                step += 1
                if ema is not None:
                    _update_ema(ema, model, schedule.ema_decay, step)
                # log
                epoch_ends = step % steps_per_epoch == 0
                log.add(step, epoch, loss, extra)
                if epoch_ends or step % log.every == 0:
                    log.flush(state.step, schedule.lr)
                # evaluate
                if epoch_ends:
                    with _ema_weights(model, ema):
                        held_out, images = evaluate(opened.folder, epoch + 1)
                    log.write({"step": step, "epoch": epoch + 1, "held_out": held_out})
                    progress.epoch(held_out, images)
                    if images is not None and distributed.rank() == 0:
                        with atomic_write(opened.folder / f"epoch_{epoch + 1:03d}.png") as path:
                            save_image(images, path, nrow=len(images) // 2, format="png")
                # save
                stopping = distributed.any_rank(stop_requested())
                save_due = distributed.any_rank(time.monotonic() - saved_at > save_every)
                if epoch_ends or stopping or save_due:
                    log.flush(state.step, schedule.lr)
                    state.step = step  # of the last checkpoint
                    opened.save(state.to_save(log_bytes=log.path.stat().st_size))
                    saved_at = time.monotonic()
                    distributed.barrier()  # torchrun ends all ranks when the first one has stopped
                if stopping:
                    progress.close()
                    raise TrainingStopped(
                        f"Stopped at step {step} of {total}: run the same call again to continue."
                    )
    if ema is not None:
        model.load_state_dict(ema)
    progress.close()
    return opened.folder


def to_device(batch: Tensor, model: nn.Module) -> Tensor:
    """Copy a batch to the model's device.

    From pinned memory, a GPU copies it while the CPU continues. Since the kernels of a step are
    only queued, the CPU also prepares the next batch while the GPU computes this one.
    """
    device = next(model.parameters()).device
    batch = batch.pin_memory() if device.type == "cuda" else batch
    return batch.to(device, non_blocking=True)


@dataclass
class TrainingState:
    """Everything that the next step depends on, and how it is saved."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: dict[str, Tensor] | None
    kept_state: dict[str, float]
    device: torch.device
    step: int = 0  # steps done at the last checkpoint

    def to_save(self, log_bytes: int) -> dict[str, Any]:
        """The content of a checkpoint."""
        rng, cuda_rng = torch.get_rng_state(), None
        if self.device.type == "cuda":
            cuda_rng = distributed.concatenate(torch.cuda.get_rng_state(self.device)[None])
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema,
            "kept_state": self.kept_state,
            "rng": distributed.concatenate(rng[None]),  # (ranks, bytes)
            "cuda_rng": cuda_rng,
            "log_bytes": log_bytes,
        }

    def load(self, saved: dict[str, Any]) -> int:
        """The inverse of `to_save`, in place; returns `log_bytes`."""
        self.step = saved["step"]
        for name in ("model", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(saved[name])
        for name, average in (self.ema or {}).items():
            average.copy_(saved["ema"][name])
        self.kept_state.update(saved["kept_state"])
        rng = torch.atleast_2d(saved["rng"])  # (ranks, bytes), and (bytes,) in older files
        if distributed.rank() < len(rng):  # else the run had fewer ranks so far
            torch.set_rng_state(rng[distributed.rank()].clone())  # a view would crash it
        if self.device.type == "cuda" and saved["cuda_rng"] is not None:
            cuda_rng = torch.atleast_2d(saved["cuda_rng"])
            if distributed.rank() < len(cuda_rng):
                torch.cuda.set_rng_state(cuda_rng[distributed.rank()].clone(), self.device)
        return saved["log_bytes"]


BATCH_STATISTICS = ("running_mean", "running_var")  # buffers of BatchNorm
LOG_EVERY = 20  # steps between two reads of logged values from a GPU; each read synchronizes


@dataclass
class _Log:
    """The values of the steps since the last flush, which stay on the device, and the log file."""

    path: Path
    progress: Any
    steps_per_epoch: int
    every: int
    waiting: list[tuple[int, int, list[str], Tensor]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)  # losses of up to 100 batches of this epoch

    def truncate(self, size: int) -> None:
        """Remove the lines after a checkpoint, because their steps will be repeated, and a line
        that is cut short, because the next one would be appended to it."""
        if distributed.rank() == 0:
            self.path.touch()
            os.truncate(self.path, self.path.read_bytes()[:size].rfind(b"\n") + 1)

    def write(self, line: dict[str, Any]) -> None:
        if distributed.rank() == 0:
            with explain_errors(f"{self.path} could not be written", WRITE_ADVICE):
                with self.path.open("a") as file:
                    file.write(json.dumps(line) + "\n")

    def add(self, step: int, epoch: int, loss: Tensor, extra: dict[str, Tensor]) -> None:
        values = torch.stack([loss.detach(), *(v.detach() for v in extra.values())]).float()
        self.waiting.append((step, epoch, ["loss", *extra], values))

    def flush(self, saved_step: int, lr: float) -> None:
        """Write the values that have not been written yet.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        if not self.waiting:
            return
        rows = torch.stack([values for *_, values in self.waiting])
        distributed.average([rows])
        for (step, epoch, names, _), row in zip(self.waiting, rows.tolist(), strict=True):
            if not math.isfinite(row[0]):
                raise FloatingPointError(
                    f"the loss is {row[0]} at step {step}; nothing after step {saved_step} is "
                    f"kept. Continue from there with a lower learning rate: the same call with "
                    f"lr={lr / 2:g} (--lr {lr / 2:g})."
                )
            logs = dict(zip(names, row, strict=True))
            self.write({"step": step, "epoch": epoch + 1, **logs})
            self.progress.step(step, logs)
            self.recent.append(row[0])
            number = (step - 1) % self.steps_per_epoch + 1
            if number % 100 == 0 or number == self.steps_per_epoch:
                mean = sum(self.recent) / len(self.recent)
                self.progress.report_mean_loss(
                    f"Epoch {epoch + 1}, Batch {number}/{self.steps_per_epoch}, Loss: {mean:.6f}"
                )
                self.recent = []
        self.waiting = []


def _copy_of_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def _update_ema(ema: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of all weights and buffers, after step 1, 2, ...

    The decay is smaller in the first steps, min(decay, step / (9 + step)), and the first step
    replaces the initial weights, which would otherwise dominate for about 1 / (1 - decay) steps.
    `torch.optim.swa_utils.AveragedModel` reads its step counter from the device, which would
    synchronize with a GPU in every step.
    """
    weight = 1.0 if step == 1 else 1 - min(decay, step / (9 + step))
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            ema[name].lerp_(value, weight)
        else:
            ema[name].copy_(value)


@contextlib.contextmanager
def _ema_weights(model: nn.Module, ema: dict[str, Tensor] | None) -> Iterator[None]:
    """A context in which the model has its EMA weights."""
    if ema is None:
        yield
        return
    own = _copy_of_weights(model)
    model.load_state_dict(ema)
    try:
        yield
    finally:
        model.load_state_dict(own)


@dataclass(frozen=True)
class Recipe:
    """Settings of a training, under one name."""

    name: str
    vqvae: Callable[[], VQVAE]
    augment: Callable[[Tensor, torch.Generator], Tensor]  # uint8 batch -> float32 in [0, 1]
    resize_mode: str  # "crop" keeps the aspect ratio, "squash" does not
    split_by: str  # "group" (lesion) or "image"
    split_fractions: tuple[float, float, float]
    vqvae_epochs: int
    prior_epochs: int
    prior: Callable[..., PixelCNN | PixelRCNN]
    batch_size: int = 16
    schedule: Schedule = field(default_factory=Schedule)
    label_dropout: float = 0.1  # probability that a training example gets the label "no label"
    init_images: int = 0  # images for `VQVAE.initialize_from_data`; 0: it is not called

    def split(self, data: ImageDataset) -> Split:
        return data.split(fractions=self.split_fractions, by=self.split_by)

    def identity(self) -> dict[str, Any]:
        """All settings that identify a run, as JSON; see `checkpoints.describe`.

        The learning rate and the numbers of epochs are left out: `fit` records them itself, because
        the caller may override them.
        """
        settings = describe(self)
        del settings["vqvae_epochs"], settings["prior_epochs"], settings["schedule"]["lr"]
        return settings


REPORT = Recipe(
    name="report",
    vqvae=VQVAE.report,
    # The report's rotation fills the corners with 0. Its losses are possible only if it rotated
    # after normalizing, where 0 is ImageNet's mean color.
    augment=partial(rotate_and_flip, degrees=30.0, corners=IMAGENET_MEAN),
    resize_mode="squash",
    split_by="image",
    split_fractions=(0.9, 0.05, 0.05),
    vqvae_epochs=20,
    prior_epochs=100,
    prior=PixelRCNN,
)
WORKBOOK = Recipe(
    name="workbook",
    vqvae=VQVAE,
    augment=random_dihedral,
    resize_mode="crop",
    split_by="group",
    split_fractions=(0.8, 0.1, 0.1),
    vqvae_epochs=20,
    prior_epochs=32,
    prior=partial(PixelCNN, conv_filters=96),
    schedule=Schedule(lr=2e-3, warmup_steps=100, cosine_decay=True, grad_clip=1.0, ema_decay=0.999),
)
RECIPES = {recipe.name: recipe for recipe in (REPORT, WORKBOOK)}  # `beyond` adds to them


def _check_validation(val: Tensor, data: ImageDataset | EncodedDataset) -> None:
    """Each process evaluates a part of the validation split, but only after a whole epoch."""
    if len(val) < (needed := distributed.world_size()):
        found = f"{len(val)} images in the validation split, expected at least {needed}"
        raise DataError(f"{found}: use a larger data set ({data})")


def train_vqvae(
    data: ImageDataset,
    recipe: Recipe = WORKBOOK,
    *,
    run: str | Path = "vqvae",
    size: int = 256,
    epochs: int | None = None,
    lr: float | None = None,
    extend: bool = False,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: Any = None,
) -> VQVAE:
    """Train a VQ-VAE, continue its training, or load it if its training is finished.

    A run is identified by the recipe, the pixels, the split, the size, the number of epochs and the
    seed. Its folder is reused only for the same run. The device and the number format may differ.

    Args:
        data: see `open_dataset`; it is split by the recipe, and only the training split is used for
            training.
        recipe: settings.
        run: folder of the run; a relative name lies in work_dir()/runs.
        size: pixels of a side, divisible by 32.
        epochs: None for the recipe's number.
        lr: learning rate instead of the recipe's. An existing run may be continued with another
            one, for example after its loss became NaN.
        extend: continue a run that was started with fewer epochs; the learning rate then follows
            the schedule of the longer run.
        device: None for the first of CUDA, MPS and CPU that is available.
        seed: of the initial weights, the order of the batches and the augmentation.
        progress: None for `Progress()`; in notebooks `plots.LiveTraining()`.

    Returns:
        The model in eval() mode, on the CPU. It is also saved in the folder, as vqvae.safetensors.

    Raises:
        DataError: the folder contains another run, or the validation split has fewer images than
            there are processes.
        FloatingPointError: the loss is no longer finite.
        TrainingStopped: training was stopped; a checkpoint has been written.
    """
    epochs = recipe.vqvae_epochs if epochs is None else epochs
    split = recipe.split(data)
    with distributed.rank_0_first():
        pixels = data.pixels(size, recipe.resize_mode)
    _check_validation(split.val, data)
    preview_images, _ = next(batches(pixels, split.val[:8], batch_size=8, shuffle=False))
    torch.manual_seed(seed)
    vqvae = recipe.vqvae()

    def initialize() -> None:
        if recipe.init_images:
            initial = batches(pixels, split.train, recipe.init_images, recipe.augment, seed=seed)
            vqvae.initialize_from_data(to_device(next(initial)[0], vqvae))

    # The remaining arguments are the epoch and the first batch.
    get_batches = partial(
        batches, pixels, split.train, recipe.batch_size, recipe.augment, seed, sharded=True
    )

    def compute_loss(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        out = vqvae(to_device(batch[0], vqvae))
        logged = ("reconstruction_loss", "vq_loss", "perplexity")
        return out.loss, {name: getattr(out, name) for name in logged}

    def evaluate(folder: Path, epoch: int) -> tuple[dict[str, float], Tensor]:
        measure = partial(evaluate_vqvae, vqvae, pixels)
        metrics = ReconstructionMetrics.join(distributed.map_parts(measure, split.val))
        with eval_mode(vqvae) as device:
            reconstructions = vqvae(preview_images.to(device)).reconstruction.cpu()
        return metrics.summary(), torch.cat([preview_images, reconstructions])

    trained_on = {"pixels": pixels.fingerprint, "split": fingerprint(*split), "size": size}
    folder = fit(
        vqvae,
        run=run,
        config={"kind": "VQ-VAE", "recipe": recipe.identity(), **trained_on},
        schedule=recipe.schedule,
        epochs=epochs,
        steps_per_epoch=-(-len(split.train) // recipe.batch_size),
        initialize=initialize,
        get_batches=get_batches,
        compute_loss=compute_loss,
        evaluate=evaluate,
        device=device,
        seed=seed,
        progress=progress,
        lr=lr,
        extend=extend,
    )
    notes = {"recipe": recipe.name, "data": repr(data), "seed": seed, **trained_on}
    notes |= {"epoch": epochs, "epochs": epochs, "finished": True}
    save_model(vqvae, folder / "vqvae.safetensors", **notes)
    return vqvae.to("cpu").eval()


def train_prior(
    encoded: EncodedDataset,
    recipe: Recipe = WORKBOOK,
    *,
    run: str | Path = "prior",
    epochs: int | None = None,
    lr: float | None = None,
    extend: bool = False,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: Any = None,
    **model_options: Any,
) -> PixelCNN | PixelRCNN:
    """Train a prior on codes, continue its training, or load it if its training is finished.

    A run is identified by the recipe, the codes with their labels, split and codebook, the number
    of epochs and the seed.

    With a `PixelCNN`, as in `WORKBOOK`, the loss is the cross-entropy (negative log-likelihood) of
    the codes under teacher forcing. The embeddings are initialized from the codebook. If
    `encoded.augmented` exists, each grid is shown in one of eight orientations, and the prior is
    conditioned on it. The weights of the epoch with the fewest bits per code on the validation
    split are kept. A prior that is not autoregressive brings its own loss and an upper bound on the
    bits, as methods `training_loss` and `bits_bound`. With the `PixelRCNN` of `REPORT`, the loss is
    the MSE of the quantized vectors, and the last weights are kept.

    Args:
        encoded: codes, labels, split and codebook.
        run, epochs, lr, extend, device, seed, progress: see `train_vqvae`.
        model_options: constructor arguments of the prior.

    Returns:
        The model in eval() mode, on the CPU. It is also saved in the folder, as prior.safetensors.
        During training this file holds the best weights so far, and its notes say so.

    Raises:
        DataError: the folder contains another run, or the validation split has fewer images than
            there are processes.
        FloatingPointError: the loss is no longer finite.
        TrainingStopped: training was stopped; a checkpoint has been written.
    """
    epochs = recipe.prior_epochs if epochs is None else epochs
    train, val = encoded.split.train, encoded.split.val
    _check_validation(val, encoded)
    torch.manual_seed(seed)
    predicts_vectors = recipe.prior is PixelRCNN
    # The training grids in all orientations, int64 (orientations, n, h, w, slots).
    grids = encoded.codes[train][None] if encoded.augmented is None else encoded.augmented
    if predicts_vectors:
        channels = encoded.vectors(0).shape[0]
        prior = PixelRCNN(channels, channels, **model_options)
        variance = encoded.vectors(train[:1024]).var((0, 2, 3)).mean()  # mean over the channels
    else:
        prior = recipe.prior(
            encoded.num_embeddings,
            encoded.codes.shape[-1],
            embedding_dim=encoded.codebook.shape[-1],
            num_classes=encoded.num_classes,
            orientations=len(grids),
            **model_options,
        )
        prior.initialize_embeddings(encoded.codebook)
    prior.trained_on_codebook = codebook_fingerprint(encoded.codebook)

    def get_batches(epoch: int, start: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        order = torch.randperm(len(train), generator=generator)
        for positions in order.split(recipe.batch_size)[start:]:  # in `train`
            yield distributed.shard(positions, recipe.batch_size)

    def mse_loss(positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        vectors = to_device(encoded.vectors(train[positions]), prior)
        loss = F.mse_loss(prior(vectors).float(), vectors)
        return loss, {"mse_over_variance": loss / variance}

    def cross_entropy(positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        orientation = torch.zeros_like(positions)
        if len(grids) > 1:
            orientation = torch.randint(len(grids), positions.shape)
        without_label = torch.rand(len(positions)) < recipe.label_dropout
        labels = encoded.labels[train[positions]].masked_fill(without_label, prior.num_classes)
        codes, labels, orientation = (
            to_device(x, prior) for x in (grids[orientation, positions], labels, orientation)
        )
        if hasattr(prior, "training_loss"):
            return prior.training_loss(codes, labels, orientation)
        logits = prior(codes, labels, orientation).float().flatten(0, 3)
        loss = F.cross_entropy(logits, codes.flatten())
        top1 = (logits.argmax(-1) == codes.flatten()).float().mean()
        return loss, {"bits_per_code": loss / math.log(2), "top1": top1}

    kept_state = {"best": math.inf}
    codes = fingerprint(encoded.codes, encoded.labels, *encoded.split)
    notes = {"recipe": recipe.name, "data": encoded.source, "seed": seed, "codes": codes}
    notes |= {"classes": encoded.classes, "grid": list(encoded.codes.shape[1:3])}

    def evaluate(folder: Path, epoch: int) -> tuple[dict[str, float], None]:
        path = folder / "prior.safetensors"
        now = notes | {"epoch": epoch, "epochs": epochs, "finished": False}
        if predicts_vectors:
            with eval_mode(prior) as device:
                vectors = [encoded.vectors(part).to(device) for part in val.split(64)]
                errors = [F.mse_loss(prior(x).float(), x, reduction="sum").item() for x in vectors]
            mse = sum(errors) / sum(x.numel() for x in vectors)
            save_model(prior, path, **now, val_mse=mse)
            return {"mse": mse, "mse_over_variance": mse / float(variance)}, None
        measure = prior.bits_bound if hasattr(prior, "bits_bound") else partial(code_bits, prior)
        bits_of_parts = distributed.map_parts(
            lambda part: measure(encoded.codes[part], encoded.labels[part]), val
        )
        bits = float(torch.cat(bits_of_parts).mean())
        if bits < kept_state["best"]:
            kept_state["best"] = bits
            save_model(prior, path, **now, val_bits=bits)
        return {"bits_per_code": bits}, None

    trained_on = {
        "codes": codes,
        "codebook": prior.trained_on_codebook,
        "augmented": None if encoded.augmented is None else fingerprint(encoded.augmented),
    }
    folder = fit(
        prior,
        run=run,
        config={"kind": "prior", "recipe": recipe.identity(), **trained_on},
        schedule=recipe.schedule,
        epochs=epochs,
        steps_per_epoch=-(-len(train) // recipe.batch_size),
        get_batches=get_batches,
        compute_loss=mse_loss if predicts_vectors else cross_entropy,
        evaluate=evaluate,
        device=device,
        seed=seed,
        progress=progress,
        kept_state=kept_state,
        lr=lr,
        extend=extend,
    )
    mark_finished(folder / "prior.safetensors", epochs)
    return load_model(folder / "prior.safetensors")
