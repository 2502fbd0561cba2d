"""Training curves: live in a notebook while a model trains, and from the log of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from ..checkpoints import DataError, read_log

WIDTH = 9.0  # inches: the width of a notebook
# Short, because runs of a few hundred batches are shown: a longer window would lag.
MOVING_AVERAGE_BATCHES = 20


def to_image_array(image: Tensor) -> np.ndarray:
    """Array for imshow, (H, W, 3) or (H, W), of an image (3, H, W) or (H, W), float or uint8."""
    image = image.detach().cpu()
    image = image.movedim(0, -1) if image.ndim == 3 else image
    return image.clamp(0, 1).numpy() if image.is_floating_point() else image.numpy()


def moving_average(values: Sequence[float], width: int) -> np.ndarray:
    """Mean over the last `width` values; at the beginning over all values so far."""
    total = np.cumsum(np.insert(np.asarray(values, dtype=float), 0, 0.0))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - width, 0)
    return (total[end] - total[start]) / (end - start)


def plot_log(run: str | Path, keys: Sequence[str] | None = None) -> Figure:
    """Plot the scalars that a run has logged against the step, with held-out values as dots.

    It replaces the report's hosted logging service: the log is a local file of the run.

    Args:
        run: name or folder of the run.
        keys: scalars to plot; all if None.

    Raises:
        DataError: there is no log, or it contains no step yet.
        ValueError: the log does not contain one of the keys.
    """
    steps, epochs = read_log(run)
    logged = [k for k in steps[0] if k not in ("step", "epoch")]
    if unknown := set(keys or ()) - set(logged):
        raise ValueError(f"{sorted(unknown)} not in the log of {run}; available: {logged}")
    keys = keys or logged
    figure, axes = plt.subplots(1, len(keys), figsize=(WIDTH, 2.8), squeeze=False)
    for axis, key in zip(axes.flat, keys, strict=True):
        held_out = [(x["step"], x["held_out"][key]) for x in epochs if key in x["held_out"]]
        _plot_values(axis, key, [x["step"] for x in steps], [x[key] for x in steps], held_out)
        axis.set(title=key.replace("_", " "), xlabel="step")
    labeled = [pair for a in axes.flat for pair in zip(*a.get_legend_handles_labels())]
    legend = {label: handle for handle, label in labeled}  # each label once
    figure.legend(legend.values(), legend.keys(), ncols=2, loc="outside lower center", fontsize=8)
    figure.suptitle(f"run {Path(run).name}", parse_math=False)
    return figure


def _plot_values(
    axis: Axes,
    key: str,
    steps: Sequence[int],
    values: Sequence[float],
    held_out: Sequence[tuple[int, float]],
) -> None:
    """Plot the value of each batch, their moving average, and held-out values (step, value)."""
    axis.plot(steps, values, alpha=0.25, color="C0")
    means = moving_average(values, MOVING_AVERAGE_BATCHES)
    label = f"mean of the last {MOVING_AVERAGE_BATCHES} batches"
    axis.plot(steps, means, color="C0", label=label)
    if held_out:
        axis.plot(*zip(*held_out, strict=True), "o", color="C1", label="held out")
    if "loss" in key:
        _log_scale(axis, values)


def _log_scale(axis: Axes, values: Sequence[float]) -> None:
    """Use a logarithmic axis if the values span at least half a decade, with labels at 1, 2, 3 and
    5 of each decade. With a smaller range, a logarithmic axis would have almost no labels."""
    if not 0 < 3 * min(values) < max(values):
        return
    axis.set_yscale("log")
    for set_formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "1235" else "")
    axis.tick_params(axis="y", which="minor", labelsize=8)


class LiveTraining:
    """Live training curve in a notebook, with the remaining time.

    One figure is updated in place, at most every `every` seconds. After each epoch it shows
    held-out images above their reconstructions. What was trained before is drawn from the files of
    the run. It has the methods of `training.Progress`.

    Args:
        key: logged value to plot, such as "loss" or "bits_per_code".
        label: of the vertical axis; None: the key.
        every: seconds between two updates of the figure.
        with_images: show held-out images; False for a prior, which has none.
        references: name -> value, shown as horizontal lines.
    """

    def __init__(
        self,
        key: str = "loss",
        label: str | None = None,
        every: float = 2.0,
        with_images: bool = True,
        references: Mapping[str, float] | None = None,
    ) -> None:
        self.key, self.label, self.every = key, label or key.replace("_", " "), every
        self.with_images = with_images
        self.references = dict(references or {})

    def start(self, title: str, total: int, done: int, folder: Path) -> None:
        from IPython.display import display

        steps, epochs = [], []
        if done:
            with suppress(DataError):  # without the log, only the steps from now on are drawn
                steps, epochs = read_log(folder)
        self.steps: list[int] = [line["step"] for line in steps]
        self.values: list[float] = [line[self.key] for line in steps]
        self.held_out = [(line["step"], line["held_out"]) for line in epochs]
        self.lines: list[str] = []
        print(title)
        self.total, self.first_step, self.current_step = total, done, done
        self.start_time = self.last_draw_time = time.monotonic()
        if self.with_images:
            self.figure, (self.curve_axis, self.image_axis) = plt.subplots(
                2, 1, figsize=(WIDTH, 5.2), height_ratios=[1.3, 1]
            )
            self.image_axis.axis("off")
            if done and (pictures := sorted(folder.glob("epoch_*.png"))):
                self._show_images(plt.imread(pictures[-1]))
        else:
            self.figure, self.curve_axis = plt.subplots()
        self._draw()
        self.handle = display(self.figure, display_id=True)

    def step(self, step: int, logs: dict[str, float]) -> None:
        self.current_step = step
        self.steps.append(step)
        self.values.append(logs[self.key])
        if time.monotonic() - self.last_draw_time > self.every:
            self._draw()
            self.handle.update(self.figure)

    def report_mean_loss(self, line: str) -> None:
        self.lines.append(line)

    def epoch(self, logs: dict[str, float], images: Tensor | None) -> None:
        self.held_out.append((self.current_step, logs))
        if images is not None and self.with_images:
            grid = make_grid(images, nrow=len(images) // 2, padding=4, pad_value=1.0)
            self._show_images(to_image_array(grid))

    def close(self) -> None:
        self._draw()
        self.handle.update(self.figure)
        plt.close(self.figure)  # otherwise the inline backend shows it a second time
        for line in self.lines[-3:]:
            print(line)
        if self.held_out:
            results = ", ".join(f"{k} {v:.4g}" for k, v in self.held_out[-1][1].items())
            print(f"held out: {results}")

    def _show_images(self, grid: np.ndarray) -> None:
        self.image_axis.cla()
        self.image_axis.imshow(grid, interpolation="antialiased")
        title = "held-out images (top) and their reconstructions (bottom)"
        self.image_axis.set_title(title, fontsize=9)
        self.image_axis.axis("off")

    def _draw(self) -> None:
        self.last_draw_time = time.monotonic()
        axis = self.curve_axis
        axis.cla()
        if self.values:
            held_out = [(s, logs[self.key]) for s, logs in self.held_out if self.key in logs]
            _plot_values(axis, self.key, self.steps, self.values, held_out)
            for i, (name, value) in enumerate(self.references.items()):
                axis.axhline(value, color=f"C{3 + i}", ls="--", label=f"{name} {value:.3f}")
            axis.legend(fontsize=8, loc="best")
        done, remaining = self.current_step - self.first_step, self.total - self.current_step
        seconds_left = (self.last_draw_time - self.start_time) / done * remaining if done else 0.0
        time_left = f", about {seconds_left:.0f} s left" if seconds_left >= 1 else ""
        axis.set(
            title=f"step {self.current_step} of {self.total}{time_left}",
            xlabel="step",
            ylabel=self.label,
            xlim=(0, self.total),
        )
