"""Curves of a training: live while it runs, and later from its log."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from .data import DataError
from .weights import run_folder

WIDTH = 9.0  # inches: the width of a notebook
WINDOW = 20  # batches, for runs of some hundreds: a longer mean would lag behind
AVERAGED = f"mean of last {WINDOW} batches"


def as_picture(image: Tensor) -> np.ndarray:
    """(3, H, W) or (H, W), float in [0, 1] or uint8, to what imshow takes."""
    image = image.detach().cpu()
    image = image.movedim(0, -1) if image.ndim == 3 else image
    return image.clamp(0, 1).numpy() if image.is_floating_point() else image.numpy()


def read_log(run: str | Path) -> tuple[list[dict], list[dict]]:
    """The lines of a run's log.jsonl: those of steps, and those of epochs (with "held_out").

    Raises:
        DataError: there is no log, or not one step in it yet.
    """
    path = run_folder(run) / "log.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: no log; is {run!r} the name of a run?")
    text = path.read_text()
    text = text[: text.rfind("\n") + 1]  # the last line may be just being written
    lines = [json.loads(line) for line in text.splitlines()]
    steps, epochs = [x for x in lines if "held_out" not in x], [x for x in lines if "held_out" in x]
    if not steps:
        raise DataError(f"{path} holds no step yet: wait for the run's first, or start it again")
    return steps, epochs


def smooth(values: Sequence[float], width: int) -> np.ndarray:
    """Mean over the last `width` values, or as many as there are."""
    total = np.cumsum(np.insert(np.asarray(values, dtype=float), 0, 0.0))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - width, 0)
    return (total[end] - total[start]) / (end - start)


def losses(run: str | Path, keys: Sequence[str] | None = None) -> Figure:
    """Every scalar that a run has logged, by step, with held-out values as dots.

    It stands where the report used a hosted service: the log is a file of the run's own.
    """
    steps, epochs = read_log(run)
    logged = [k for k in steps[0] if k not in ("step", "epoch")]
    if unknown := set(keys or ()) - set(logged):
        raise ValueError(f"{sorted(unknown)} not in the log of {run}; there are {logged}")
    keys = keys or logged
    figure, axes = plt.subplots(1, len(keys), figsize=(WIDTH, 2.8), squeeze=False)
    for axis, key in zip(axes.flat, keys, strict=True):
        values = [line[key] for line in steps]
        at = [line["step"] for line in steps]
        axis.plot(at, values, alpha=0.25, color="C0")
        axis.plot(at, smooth(values, WINDOW), color="C0", label=AVERAGED)
        held_out = [(x["step"], x["held_out"][key]) for x in epochs if key in x["held_out"]]
        if held_out:
            axis.plot(*zip(*held_out, strict=True), "o", color="C1", label="held out")
        if "loss" in key:
            _log_scale(axis, values)
        axis.set(title=key.replace("_", " "), xlabel="step")
    named = [pair for a in axes.flat for pair in zip(*a.get_legend_handles_labels())]
    legend = {label: handle for handle, label in named}  # each name once
    figure.legend(legend.values(), legend.keys(), ncols=2, loc="outside lower center", fontsize=8)
    figure.suptitle(f"run {Path(run).name}")
    return figure


def _log_scale(axis: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers at 1, 2, 3 and 5 of each decade, for values that span
    half a decade or more. Less than that would leave it with hardly a number."""
    if not 0 < 3 * min(values) < max(values):
        return
    axis.set_yscale("log")
    for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        which(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "1235" else "")
    axis.tick_params(axis="y", which="minor", labelsize=8)


class LiveTraining:
    """A live curve for `train_vqvae` and `train_prior` in a notebook, with time left.

    One figure, updated in place at most every `every` seconds; after each epoch held-out images
    stand above their reconstructions. Has the methods of `loop.Progress`.
    """

    def __init__(
        self,
        key: str = "loss",
        label: str | None = None,
        every: float = 2.0,
        with_images: bool = True,  # a prior has none to show
        floor: float | None = None,  # the least that the value can be, drawn as a line
    ) -> None:
        self.key, self.label, self.every = key, label or key.replace("_", " "), every
        self.with_images, self.floor = with_images, floor

    def start(self, title: str, total: int, done: int) -> None:
        from IPython.display import display

        self.values: list[float] = []
        self.held_out: list[tuple[int, dict[str, float]]] = []
        self.lines: list[str] = []
        print(title)
        self.title, self.total, self.first, self.now = title, total, done, done
        self.began = self.drawn = time.monotonic()
        if self.with_images:
            self.figure, (self.curve, self.pictures) = plt.subplots(
                2, 1, figsize=(WIDTH, 5.2), height_ratios=[1.3, 1]
            )
            self.pictures.axis("off")
        else:
            self.figure, self.curve = plt.subplots()
        self._draw()
        self.handle = display(self.figure, display_id=True)

    def step(self, step: int, logs: dict[str, float]) -> None:
        self.now = step
        self.values.append(logs[self.key])
        if time.monotonic() - self.drawn > self.every:
            self._draw()
            self.handle.update(self.figure)

    def mean(self, line: str) -> None:
        self.lines.append(line)

    def epoch(self, logs: dict[str, float], images: Tensor | None) -> None:
        self.held_out.append((self.now, logs))
        if images is not None and self.with_images:
            grid = make_grid(images, nrow=len(images) // 2, padding=4, pad_value=1.0)
            self.pictures.cla()
            self.pictures.imshow(as_picture(grid), interpolation="antialiased")
            self.pictures.set_title("held-out images, and their reconstructions below", fontsize=9)
            self.pictures.axis("off")

    def close(self) -> None:
        self._draw()
        self.handle.update(self.figure)
        plt.close(self.figure)  # or the inline backend would show it a second time
        for line in self.lines[-3:]:
            print(line)
        if self.held_out:
            results = ", ".join(f"{k} {v:.4g}" for k, v in self.held_out[-1][1].items())
            print(f"held out: {results}")

    def _draw(self) -> None:
        self.drawn = time.monotonic()
        axis = self.curve
        axis.cla()
        at = np.arange(len(self.values)) + self.first + 1
        if self.values:
            axis.plot(at, self.values, alpha=0.25, color="C0")
            axis.plot(at, smooth(self.values, WINDOW), color="C0", label=AVERAGED)
            held_out = [(s, logs[self.key]) for s, logs in self.held_out if self.key in logs]
            if held_out:
                axis.plot(*zip(*held_out, strict=True), "o", color="C1", label="held out")
            if self.floor is not None:
                axis.axhline(self.floor, color="C3", ls="--", label=f"floor {self.floor:.3f}")
            axis.legend(fontsize=8, loc="best")
            if "loss" in self.key:
                _log_scale(axis, self.values)
        done = self.now - self.first
        left = (self.drawn - self.began) / done * (self.total - self.now) if done else 0.0
        state = f", about {left:.0f} s left" if left >= 1 else ""
        axis.set(
            title=f"step {self.now} of {self.total}{state}",
            xlabel="step",
            ylabel=self.label,
            xlim=(0, self.total),
        )


def bits_by_epoch(run: str | Path, baselines: dict[str, float]) -> Figure:
    """Bits per code of a prior's run, on training and held-out codes, above lines to beat."""
    steps, epochs = read_log(run)
    figure, axis = plt.subplots()
    held_out = [line["held_out"]["bits_per_code"] for line in epochs]
    axis.plot([x["step"] for x in steps], [x["bits_per_code"] for x in steps], alpha=0.2)
    means = smooth([x["bits_per_code"] for x in steps], 50)
    axis.plot([x["step"] for x in steps], means, color="C0", label="training, mean of 50 batches")
    at = [line["step"] for line in epochs]
    axis.plot(at, held_out, "o-", color="C1", label="validation, after each epoch")
    if held_out:
        best = int(np.argmin(held_out))
        axis.plot(at[best], held_out[best], "*", ms=15, color="C3", label="the epoch that is kept")
    styles = cycle((":", "--", "-.", (0, (6, 1))))
    for style, (name, bits) in zip(styles, baselines.items(), strict=False):
        axis.axhline(bits, color="grey", ls=style, label=f"{name}: {bits:.2f}")
    axis.set(title="Bits per code", xlabel="step", ylabel="bits per code")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
