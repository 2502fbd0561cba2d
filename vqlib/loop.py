"""Chapter 7, first half: the training loop that both models share.

`fit` does what every training needs: number format, learning rate, a log of every step, the mean
loss of the last 100 batches, a look at held-out data after each epoch, and checkpoints from which
an interrupted run goes on as if nothing had happened. What is trained, and on what, is told to it
by `training.py`.

A run is a folder: `log.jsonl` (a line a step, a line an epoch), `checkpoint.pt`, `epoch_001.png`
..., and at its end the weights as safetensors.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.utils import save_image
from tqdm.auto import tqdm

from .checkpoints import deferred_signals, open_run


@dataclass(frozen=True)
class Schedule:
    """How the optimizer's steps are taken."""

    lr: float = 1e-3
    warmup: int = 0  # steps over which the learning rate rises from 0
    cosine: bool = False  # then falls to 0 along a cosine; otherwise it stays
    clip: float | None = None  # largest norm of the gradient
    # Decay of a running mean of the weights, which is what is judged and kept; None: the last ones.
    average: float | None = None

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of a step, 0 <= step < total."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if not self.cosine:
            return self.lr
        done = (step - self.warmup) / max(1, total - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


def pick_device() -> torch.device:
    """CUDA if there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@dataclass(frozen=True)
class Precision:
    """Number format of the layers; losses, quantizer and optimizer stay in float32."""

    dtype: torch.dtype
    why: str

    @classmethod
    def choose(cls, device: torch.device) -> Precision:
        """The fastest format that the device computes natively and that needs no luck."""
        if device.type == "cuda":
            if torch.cuda.get_device_capability(device) >= (8, 0):
                return cls(torch.bfloat16, "bf16 autocast: native on this GPU")
            return cls(torch.float16, "fp16 autocast with loss scaling: this GPU has no bf16")
        if device.type == "cpu" and _cpu_has_bf16():
            return cls(torch.bfloat16, "bf16 autocast: this CPU multiplies it natively")
        return cls(torch.float32, "float32: no faster format is native here")

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)


def _cpu_has_bf16() -> bool:
    """True if the CPU has bf16 products and PyTorch may use them (ATEN_CPU_CAPABILITY can forbid
    it). Emulated bf16 is slower than float32."""
    if not torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX")):
        return False
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
        return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)
    return False


@dataclass
class Progress:
    """Shows a training in a terminal: a bar with ETA, and the report's lines.

    `plots.LiveTraining` has the same methods and draws a curve in a notebook instead.
    """

    bar: tqdm | None = field(default=None, init=False)

    def start(self, title: str, total: int, done: int) -> None:
        self.bar = tqdm(desc=title, total=total, initial=done, unit="batch", disable=None)

    def step(self, step: int, logs: dict[str, float]) -> None:
        if self.bar is not None:
            self.bar.update()

    def mean(self, line: str) -> None:
        """A mean over the last batches, ready to print."""
        tqdm.write(line)

    def epoch(self, logs: dict[str, float], images: Tensor | None) -> None:
        """Held-out results; `images` (2n, 3, H, W): n originals, then n reconstructions."""
        tqdm.write("  held out: " + ", ".join(f"{k} {v:.4g}" for k, v in logs.items()))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _running_mean(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """A running mean of all weights and statistics. It forgets faster at first, or the random
    start would weigh in it for 1 / (1 - decay) steps."""
    if decay is None:
        return None

    def mean_of(old: Tensor, new: Tensor, seen: Tensor | int) -> Tensor:
        if not old.is_floating_point():
            return new
        return old.lerp(new, 1 - min(decay, (1 + int(seen)) / (10 + int(seen))))

    return AveragedModel(model, avg_fn=mean_of, use_buffers=True)


@contextlib.contextmanager
def _swapped(model: nn.Module, averaged: AveragedModel | None) -> Iterator[None]:
    """The model with its averaged weights, for as long as the block lasts."""
    if averaged is None:
        yield
        return
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(averaged.module.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(own)


def fit(
    model: nn.Module,
    *,
    run: str | Path,
    config: dict[str, Any],
    schedule: Schedule,
    epochs: int,
    steps_per_epoch: int,
    batches_of: Callable[[int, int], Iterator[Any]],
    loss_of: Callable[[Any], tuple[Tensor, dict[str, Tensor]]],
    after_epoch: Callable[[Path, int], tuple[dict[str, float], Tensor | None]],
    device: torch.device,
    seed: int,
    progress: Any,
    before: Callable[[], None] = lambda: None,
    memory: dict[str, float] | None = None,
    lr: float | None = None,
    extend: bool = False,
    save_every: float = 300.0,
) -> Path:
    """Train `model` in place; continue from the run's checkpoint if there is one.

    Args:
        config: what makes this run what it is, see `checkpoints.describe`; "epochs" and "lr" are
            added. A folder with another config is refused.
        batches_of: (epoch, first batch) -> the batches of that epoch from there on. They must
            depend on nothing else, or a resumed run would differ from an uninterrupted one.
        loss_of: batch -> loss and what to log beside it, scalars on the device.
        after_epoch: (folder, epoch, counted from 1) -> held-out results to log, and pictures for
            `progress.epoch`.
        before: called before the first step, not when a run is resumed.
        memory: numbers that `after_epoch` needs again in later epochs; kept in the checkpoint.
        lr: replaces the schedule's learning rate; may differ from that of a run that is resumed.
        extend: a run that was started with fewer epochs may be continued.
        save_every: seconds between checkpoints within an epoch.

    Returns:
        The run's folder.

    Raises:
        ValueError: nothing to train on, or for no epoch.
        DataError: the folder holds a run with another config, or is in use by another process.
        FloatingPointError: the loss is no longer finite.
        KeyboardInterrupt: stopped; a checkpoint has been written.
    """
    if epochs < 1 or steps_per_epoch < 1:
        raise ValueError(f"nothing to train: {epochs} epochs of {steps_per_epoch} batches")
    if lr is not None:
        schedule = replace(schedule, lr=lr)
    config = {**config, "epochs": epochs, "lr": schedule.lr}
    precision = Precision.choose(device)
    model.to(device, memory_format=torch.channels_last)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=schedule.lr)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype == torch.float16)
    memory = {} if memory is None else memory
    torch.manual_seed(seed)

    with (
        open_run(run, config, lr=lr, extend=extend) as opened,
        open(opened.log_path, "a", buffering=1) as log,
        deferred_signals() as stop_asked,
    ):
        state, total, step = opened.state, epochs * steps_per_epoch, 0
        if state is None:
            before()
        averaged = _running_mean(model, schedule.average)
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            scaler.load_state_dict(state["scaler"])
            if averaged is not None:
                averaged.load_state_dict(state["averaged"])
            memory.update(state["memory"])
            torch.set_rng_state(state["rng"])
            if device.type == "cuda" and state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"], device)
            step = state["step"]
        # What was logged after the checkpoint is done again.
        log.truncate(
            min(opened.log_path.stat().st_size, 0 if state is None else state["log_bytes"])
        )

        def save() -> None:
            opened.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                    "averaged": None if averaged is None else averaged.state_dict(),
                    "memory": memory,
                    "rng": torch.get_rng_state(),
                    "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
                    "step": step,
                    "log_bytes": opened.log_path.stat().st_size,
                }
            )

        progress.start(f"{config['kind']} on {device}, {precision.why}", total, step)
        saved, saved_step, recent = time.monotonic(), step, []
        for epoch in range(step // steps_per_epoch, epochs):
            for batch in batches_of(epoch, step % steps_per_epoch):
                # learning rate
                for group in optimizer.param_groups:
                    group["lr"] = schedule.lr_at(step, total)
                # forward
                model.train()
                with precision.autocast(device):
                    loss, extra = loss_of(batch)
                # backward
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                # clip
                if schedule.clip is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(trained, schedule.clip)
                # step
                scaler.step(optimizer)
                scaler.update()
                if averaged is not None:
                    averaged.update_parameters(model)
                step += 1
                # log
                logs = {"loss": loss.item(), **{k: v.item() for k, v in extra.items()}}
                if not math.isfinite(logs["loss"]):
                    raise FloatingPointError(
                        f"the loss is {logs['loss']} at step {step}; nothing after step "
                        f"{saved_step} is kept. Continue from there with a lower learning rate: "
                        f"the same call with lr={schedule.lr / 2:g} (--lr {schedule.lr / 2:g})."
                    )
                log.write(json.dumps({"step": step, "epoch": epoch + 1, **logs}) + "\n")
                progress.step(step, logs)
                recent.append(logs["loss"])
                number = (step - 1) % steps_per_epoch + 1
                if number % 100 == 0 or number == steps_per_epoch:
                    progress.mean(
                        f"Epoch {epoch + 1}, Batch {number}/{steps_per_epoch}, "
                        f"Loss: {sum(recent) / len(recent):.6f}"
                    )
                    recent = []
                # save; at the end of an epoch only after its evaluation
                if number == steps_per_epoch:
                    continue
                if stop_asked() or time.monotonic() - saved > save_every:
                    save()
                    saved, saved_step = time.monotonic(), step
                if stop_asked():
                    progress.close()
                    print(f"Stopped at step {step} of {total}: the same call goes on from there.")
                    raise KeyboardInterrupt
            # evaluate
            with _swapped(model, averaged):
                held_out, pictures = after_epoch(opened.folder, epoch + 1)
            log.write(json.dumps({"step": step, "epoch": epoch + 1, "held_out": held_out}) + "\n")
            progress.epoch(held_out, pictures)
            if pictures is not None:
                path = opened.folder / f"epoch_{epoch + 1:03d}.png"
                save_image(pictures, path, nrow=len(pictures) // 2)
            save()
            saved, saved_step = time.monotonic(), step
            if stop_asked():
                progress.close()
                print(f"Stopped after epoch {epoch + 1}: the same call goes on from there.")
                raise KeyboardInterrupt
    if averaged is not None:
        model.load_state_dict(averaged.module.state_dict())
    progress.close()
    return opened.folder
