"""Training runs on disk: what a run is, its folder, and the checkpoint it continues from.

`loop.fit` trains inside `open_run`. A run is a folder: `config.json` (its identity), `log.jsonl`
(one line per step and one per epoch), `checkpoint.pt`, pictures of each epoch, and at the end the
weights. A call with other settings than those in `config.json` is refused, so a run never returns
the result of another training.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import torch

from .cache import fingerprint, whole_file
from .data import DataError
from .weights import run_folder


def describe(value: Any) -> Any:
    """A setting as JSON, so that two runs can be compared.

    Functions and classes become their qualified name, `functools.partial` adds its arguments. A
    function that is defined in a notebook adds a fingerprint of its source, because it may be
    edited between two calls.

    Raises:
        ValueError: a function without a name of its own (a lambda, a nested function, a bound
            method or a callable object): two of them could not be told apart.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: describe(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, partial):
        arguments = [repr(describe(item)) for item in value.args]
        arguments += [f"{key}={describe(item)!r}" for key, item in sorted(value.keywords.items())]
        return f"{describe(value.func)}({', '.join(arguments)})"
    name = getattr(value, "__qualname__", "<unnamed>")
    module = getattr(value, "__module__", None)
    is_bound = inspect.ismethod(value) and not isinstance(value.__self__, type)
    if module is None or "<" in name or is_bound:
        raise ValueError(
            f"{value!r} can't be part of a recipe, because its name does not say what it does, and "
            "a run could not be told from another. Define a function at the top level of a module "
            "or notebook, or use functools.partial of one."
        )
    # Inside the library the module is left out: code may move between its files.
    name = f"vqlib.{name}" if module.startswith("vqlib.") else f"{module}.{name}"
    if module == "__main__":
        with contextlib.suppress(OSError, TypeError):  # no source, e.g. in an interactive shell
            name += f" [source {fingerprint(inspect.getsource(value))}]"
    return name


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(field, old value, new value) for each field in which two descriptions differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            yield from differences(
                old.get(key, "not recorded"), new.get(key, "not recorded"), f"{name}.{key}"
            )
    elif old != new:
        yield name.removeprefix("."), old, new


@dataclass
class Run:
    """An opened run; nobody else trains in its folder until it is closed."""

    folder: Path
    config: dict[str, Any]
    state: dict[str, Any] | None  # the checkpoint, tensors on the CPU; None at the beginning

    @property
    def log_path(self) -> Path:
        return self.folder / "log.jsonl"

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; it is always whole."""
        with whole_file(self.folder / "checkpoint.pt") as beside:
            torch.save(state, beside)


@contextlib.contextmanager
def open_run(
    run: str | Path, config: dict[str, Any], *, lr: float | None = None, extend: bool = False
) -> Iterator[Run]:
    """Open the folder of a run, or make it; it is locked until the block ends.

    Args:
        config: what makes this run what it is, as JSON. Its fields "lr" and "epochs" may differ
            from those in the folder only if the next two arguments allow it.
        lr: the learning rate that the caller asked for by itself; it may differ.
        extend: more epochs than before are wanted.

    Raises:
        DataError: the folder holds a run with other settings, is in use by another process, or its
            settings or checkpoint can't be read. Nothing is changed then.
    """
    config = json.loads(json.dumps(config))
    folder = run_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        path = folder / "config.json"
        if path.is_file():
            old = _read_config(path)
            allowed = {"lr"} if lr is not None else set()
            if extend and old.get("epochs", 0) <= config["epochs"]:
                allowed.add("epochs")
            _compare(folder, old, config, allowed)
        state = _read_checkpoint(folder / "checkpoint.pt")
        with whole_file(path) as beside:
            beside.write_text(json.dumps(config, indent=1) + "\n")
        yield Run(folder, config, state)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(
            f"{path} can't be read ({error}), so it is unknown what its run trained: delete "
            f"{path.parent}, or give this run another name with run=..."
        ) from error


def _compare(folder: Path, old: dict, new: dict, allowed: set[str]) -> None:
    differ = [d for d in differences(old, new) if d[0] not in allowed]
    if not differ:
        return
    lines = "; ".join(f"{name}: {there} there, {now} now" for name, there, now in differ)
    hints = {
        "lr": "To go on with another learning rate, pass it as lr=... (--lr).",
        "epochs": "To train a run for more epochs, pass extend=True (--extend).",
    }
    names = [name for name, _, _ in differ]
    more = " ".join(hint for name, hint in hints.items() if name in names)
    raise DataError(
        f"{folder} holds a run with other settings ({lines}). Give this one another name with "
        f"run=... (--run), or delete that folder. {more}".rstrip()
    )


def _read_checkpoint(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no narrower one for a damaged file
        raise DataError(
            f"{path} can't be read ({error}): delete it to start this run again"
        ) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two processes in one folder would mix their logs and checkpoints."""
    with open(folder / ".lock", "a") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends
        except BlockingIOError as error:
            raise DataError(
                f"{folder} is being trained by another process: wait for it, stop it, or give this "
                "run another name with run=..."
            ) from error
        except OSError:
            pass  # some network drives have no locks
        yield


@contextlib.contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C, the notebook's stop button and SIGTERM take effect at the end of a step, so that no
    step is half done when the checkpoint is written. A second signal takes effect at once.

    Gives a function that says whether a signal has arrived.
    """
    arrived: list[int] = []

    def handler(number: int, frame: object) -> None:
        if arrived:
            raise KeyboardInterrupt
        arrived.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(arrived)
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
