"""Files that training and its callers write: paths, runs, checkpoints, and models as safetensors.

`open_run` locks the folder of a run and compares its settings with those of an earlier call, so
that a call never returns the result of a different training. `save_model` and `load_model` store
models as safetensors files. Such a file contains only numbers and text, so loading it can't execute
code. It also stores the class of its model and the constructor's arguments, so that `load_model`
needs only the path. `training` writes these files; the notebooks load them with `load_pretrained`.
"""

from __future__ import annotations

import glob
import hashlib
import inspect
import io
import json
import os
import re
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .distributed import rank

if TYPE_CHECKING:
    from .pixelcnn import PixelCNN
    from .vqvae import VQVAE

REPOSITORY = Path(__file__).resolve().parent.parent
PRETRAINED = REPOSITORY / "data" / "pretrained"
FORMAT = "2"  # version of the metadata; files without this entry are older
STALE_SECONDS = 600  # without a change, after which a temporary file is regarded as abandoned
RESTART_ADVICE = "delete it to restart this run, or use another run name."
WRITE_ADVICE = "make room on the disk, or use another folder, and call again."
MODELS: dict[str, type[nn.Module]] = {}
Model = TypeVar("Model", bound=nn.Module)


class DataError(ValueError):
    """Bad or missing input. The message names the file, what was expected and what to do."""


@contextmanager
def explain_errors(problem: str, advice: str) -> Iterator[None]:
    """Context for reading or writing a file: an error in its block becomes a `DataError` that names
    the problem, the reason and what to do. Libraries raise errors of many types for bad files."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        reason = " ".join(reason.split())[:300]  # PyTorch lists every tensor that does not fit
        raise DataError(f"{problem} ({reason}): {advice}") from error


def make_folder(folder: Path) -> Path:
    """Create a folder, unless it exists, and return it."""
    with explain_errors(f"{folder} can't be used as a folder", "use another name."):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def work_dir() -> Path:
    """Folder for caches, runs and other computed files; created if it does not exist.

    $VQLIB_HOME if set; else `build` in the repository, if the package is part of one; else
    ~/.cache/vqlib.
    """
    if home := os.environ.get("VQLIB_HOME"):
        folder = Path(home).expanduser()
    elif (REPOSITORY / "pyproject.toml").is_file():
        folder = REPOSITORY / "build"
    else:
        folder = Path.home() / ".cache" / "vqlib"
    return make_folder(folder)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Context for an atomic write: the file is either complete or absent.

    Write to the path that is yielded, a temporary file in the same folder. At the end of the block
    it replaces `path`; after an error it is deleted. Missing folders are created.

    Raises:
        DataError: the file can't be written, for example because the disk is full.
    """
    with explain_errors(f"{path} could not be written", WRITE_ADVICE):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, f".{glob.escape(path.name)}.*")
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            yield temporary
            # Some libraries create files that only their owner can read.
            if temporary.stat().st_mode != mode:
                temporary.chmod(mode)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_abandoned(folder: Path, pattern: str, seconds: float = STALE_SECONDS) -> None:
    """Delete the files and folders that match a pattern and have not been changed for `seconds`: a
    process that was killed could not delete its temporary files itself."""
    for path in folder.glob(pattern):
        with suppress(OSError):  # another process has just deleted it
            last_change = max(p.stat().st_mtime for p in (path, *path.rglob("*")))
            if time.time() - last_change >= seconds:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def fingerprint(*parts: Tensor | bytes | str) -> str:
    """Hash of tensors, bytes and texts, 16 hex digits (the first 64 bits of SHA-256).

    Args:
        parts: tensors (dtype, shape and values are hashed, the device is not), bytes or strings.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        part = part.encode() if isinstance(part, str) else part
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]


def describe(value: Any) -> Any:
    """Description of a setting as JSON, so that the settings of two runs can be compared.

    Functions and classes become their qualified name; `functools.partial` adds its arguments. The
    name of a function that is defined in a notebook is followed by a fingerprint of its source,
    because the function may be edited between two calls.

    Raises:
        ValueError: a function without a name of its own (a lambda, a nested function, a bound
            method or a callable object): two different ones could have the same description.
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
            f"{value!r} can't be part of a recipe: it has no name by which a later call could "
            "recognize it. Define a function at the top level of a module or notebook, or use "
            "functools.partial of such a function."
        )
    # The library's module names are left out, because code may move between its files.
    name = f"vqlib.{name}" if module.startswith("vqlib.") else f"{module}.{name}"
    if module == "__main__":
        with suppress(OSError, TypeError):  # no source, e.g. in an interactive shell
            name += f" [source {fingerprint(inspect.getsource(value))}]"
    return name


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, old value, new value) for each field in which two descriptions differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            values = (settings.get(key, "not recorded") for settings in (old, new))
            yield from differences(*values, f"{name}.{key}")
    elif old != new:
        yield name.removeprefix("."), old, new


@dataclass
class Run:
    """An open run. Its folder is locked against other processes until it is closed."""

    folder: Path
    state: dict[str, Any] | None  # the checkpoint, tensors on the CPU; None for a new run

    @property
    def log_path(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint (atomically)."""
        if rank() > 0:
            return
        buffer = io.BytesIO()  # torch.save to a file would hide the reason of a failed write
        torch.save(state, buffer)
        with atomic_write(self.checkpoint_path) as temporary:
            temporary.write_bytes(buffer.getbuffer())


@contextmanager
def open_run(
    run: str | Path, config: dict[str, Any], *, lr: float | None = None, extend: bool = False
) -> Iterator[Run]:
    """Open or create the folder of a run and lock it until the block ends. In a training on several
    processes all of them open it; rank 0 locks it and writes.

    Args:
        run: name or absolute path, see `run_folder`.
        config: identifies the run, as JSON. Its fields "lr" and "epochs" may differ from those in
            the folder only as the next two arguments allow.
        lr: the learning rate that the caller has passed explicitly; if given, it may differ.
        extend: allow a larger number of epochs than before.

    Raises:
        DataError: the folder contains a run with other settings, is used by another process, or its
            settings or checkpoint can't be read. In these cases nothing is changed.
    """
    config = json.loads(json.dumps(config))
    folder = make_folder(run_folder(run))
    opened, path = Run(folder, None), folder / "config.json"
    checkpoint = opened.checkpoint_path
    with _locked(folder):
        if rank() == 0:
            remove_abandoned(folder, ".*.[0-9]*", seconds=0)  # of processes killed while writing
        if path.is_file() or checkpoint.is_file():
            with explain_errors(
                f"{path} can't be read", f"delete {folder}, or use another run name"
            ):
                old = json.loads(path.read_text())
            allowed = {"lr"} if lr is not None else set()
            if extend and old.get("epochs", 0) <= config["epochs"]:
                allowed.add("epochs")
            _compare(folder, old, config, allowed)
        if checkpoint.is_file():
            with explain_errors(f"{checkpoint} can't be read", RESTART_ADVICE):
                opened.state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if rank() == 0:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(config, indent=1) + "\n")
        yield opened


def _compare(folder: Path, old: dict, new: dict, allowed: set[str]) -> None:
    changed = [d for d in differences(old, new) if d[0] not in allowed]
    if not changed:
        return
    lines = "; ".join(
        f"{name}: {before} in the folder, {after} in this call" for name, before, after in changed
    )
    hints = {
        "lr": " To continue with another learning rate, pass it as lr=... (--lr).",
        "epochs": " To train a run for more epochs, pass extend=True (--extend).",
    }
    raise DataError(
        f"{folder} contains a run with other settings ({lines}). Use another name with run=... "
        f"(--run), or delete that folder." + "".join(hints.get(name, "") for name, *_ in changed)
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder: two processes in one folder would mix their logs and checkpoints."""
    with open(folder / ".lock", "a") as file:
        try:
            if fcntl is not None and rank() == 0:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends
        except BlockingIOError as error:
            raise DataError(
                f"{folder} is being trained by another process: wait for it, stop it, or use "
                "another name with run=... (--run)"
            ) from error
        except OSError:
            pass  # some network drives do not support locks
        yield


def read_log(run: str | Path) -> tuple[list[dict], list[dict]]:
    """Lines of a run's log.jsonl: first those of steps, then those of epochs (with "held_out").

    Raises:
        DataError: there is no log, or it does not contain a step yet.
    """
    path = run_folder(run) / "log.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: no log; is {run!r} the name of a run?")
    complete = path.read_text().rpartition("\n")[0]  # the last line may be incomplete
    with explain_errors(f"{path} is damaged", "delete the line that is not JSON."):
        lines = [json.loads(line) for line in complete.splitlines()]
    steps, epochs = [x for x in lines if "held_out" not in x], [x for x in lines if "held_out" in x]
    if not steps:
        raise DataError(f"{path} contains no step yet: wait for the first one, or restart the run")
    return steps, epochs


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Context in which Ctrl-C, the notebook's stop button and SIGTERM only set a flag, so that a
    training loop can finish its step before it writes the checkpoint. A second signal interrupts
    at once.

    Yields:
        A function that returns True if a signal has arrived.
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


def run_folder(run: str | Path) -> Path:
    """Folder of a run: `run` itself if it is an absolute path, else work_dir()/runs/run.

    Raises:
        ValueError: `run` is empty, or a relative path that contains "..".
    """
    path = Path(run).expanduser()
    if path.is_absolute():
        return path
    if not path.parts or ".." in path.parts:
        raise ValueError(f'run must be a name without "..", or an absolute path, got {str(run)!r}')
    return work_dir() / "runs" / path


def register_model(model: type[Model]) -> type[Model]:
    """Class decorator that allows `load_model` to build the class.

    An instance needs an attribute `config` with the keyword arguments of its constructor, as JSON.
    The class may have an attribute `renamed_parameters`: it maps patterns of parameter names in
    files of earlier versions to the present names.
    """
    MODELS[model.__name__] = model
    return model


def save_model(
    model: nn.Module, path: str | Path, dtype: torch.dtype | None = None, **notes: object
) -> Path:
    """Write a model's weights and configuration to a safetensors file (atomically). In a training
    on several processes only rank 0 writes.

    Args:
        model: its class has `register_model`, e.g. `VQVAE`, `PixelCNN` or `LesionClassifier`.
        path: ends in .safetensors; missing folders are created.
        dtype: torch.float16 halves the size of the file; integer tensors are not converted.
        notes: stored in the file as JSON, e.g. recipe="workbook", epochs=20, finished=True.

    Returns:
        The path.

    Raises:
        ValueError: `dtype` is not a floating-point dtype.
        DataError: the file can't be written.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point dtype, got {dtype}")
    path, tensors = Path(path).expanduser(), {}
    if rank() > 0:
        return path
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        tensors[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    metadata = {
        "format": FORMAT,
        "model": type(model).__name__,
        "config": json.dumps(getattr(model, "config", {})),
        "notes": json.dumps(notes),
    }
    if getattr(model, "trained_on_codebook", None) is not None:
        metadata["codebook"] = model.trained_on_codebook
    write_safetensors(path, metadata, tensors)
    return path


def load_model(path: str | Path, expected: type[Model] = nn.Module) -> Model:
    """Load a model from a file: in float32, in eval() mode, on the CPU.

    Args:
        path: a file that `save_model` has written.
        expected: class that the model must have.

    Raises:
        FileNotFoundError: no such file.
        DataError: the file was not written by `save_model`, its weights do not fit the class that
            it names, or the class is not the expected one.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; train the model first")
    problem = f"{path} does not contain a model of this version of vqlib"
    with explain_errors(problem, "use a file that `save_model` has written, or train again."):
        metadata, tensors = read_safetensors(path)
        build = partial(MODELS[metadata["model"]], **json.loads(metadata["config"]))
        for pattern, new in getattr(build.func, "renamed_parameters", {}).items():
            tensors = {re.sub(pattern, new, name): tensor for name, tensor in tensors.items()}
        tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        with torch.device("meta"):  # a damaged configuration could ask for more than the memory
            build().load_state_dict(tensors, assign=True)
        model = build()
        model.load_state_dict(tensors)
    if not isinstance(model, expected):
        names = f"a {type(model).__name__}, but a {expected.__name__} was expected"
        raise DataError(f"{path} contains {names}: use another file")
    if "codebook" in metadata:
        model.trained_on_codebook = metadata["codebook"]
    if "format" not in metadata:
        warnings.warn(
            f"{path} was written by an earlier version: it does not record what the model was "
            "trained on, nor whether its training was finished",
            stacklevel=2,
        )
    return model.eval()


def write_safetensors(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file with a checksum (atomically). Equal content gives equal files: the
    library alone would write the metadata in random order."""
    metadata = metadata | {"checksum": _checksum(metadata, tensors)}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata)
        with temporary.open("r+b") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) | {"__metadata__": metadata}
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            file.seek(8)
            file.write(text.ljust(size))


def read_safetensors(
    path: str | Path, with_tensors: bool = True
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file.

    Raises:
        DataError: the checksum of `write_safetensors` is wrong; earlier versions wrote none.
    """
    open(path, "rb").close()  # this error names the file; safe_open's reasons are misleading
    with safe_open(path, framework="pt") as file:
        names = file.keys() if with_tensors else ()
        metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    checksum = metadata.pop("checksum", None)
    if with_tensors and checksum not in (None, _checksum(metadata, tensors)):
        raise DataError(f"{path} is damaged (its checksum is wrong): use another copy.")
    return metadata, tensors


def _checksum(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    named = (part for name in sorted(tensors) for part in (name, tensors[name]))
    return fingerprint(json.dumps(metadata, sort_keys=True), *named)


def model_notes(path: str | Path) -> dict[str, Any]:
    """The notes that were passed to `save_model`.

    After a training with this library: "recipe", "data", "seed"; "epoch" of these weights; "epochs"
    that were requested; "finished", whether the training is complete; and fingerprints of the
    training data.

    Raises:
        DataError: `save_model` has not written this file.
    """
    advice = "use a file that `save_model` has written."
    with explain_errors(f"{path} has no readable notes", advice):
        return dict(json.loads(read_safetensors(path, False)[0].get("notes", "{}")))


def mark_finished(path: Path, epochs: int) -> None:
    """Record in a weight file that its training is complete after `epochs` epochs."""
    notes = model_notes(path)
    if notes.get("finished") and notes["epochs"] == epochs:
        return
    save_model(load_model(path), path, **notes | {"epochs": epochs, "finished": True})


def check_pair(vqvae: VQVAE, prior: PixelCNN) -> None:
    """Check that a prior was trained on the codes of this VQ-VAE. Otherwise its samples decode to
    colored noise.

    Raises:
        DataError: it was trained on other codes. A prior without a stored fingerprint passes.
    """
    if prior.trained_on_codebook not in (None, vqvae.codebook_fingerprint):
        raise DataError(
            "the prior was trained on the codes of another VQ-VAE (codebook "
            f"{prior.trained_on_codebook}; this one has {vqvae.codebook_fingerprint}): load the "
            "VQ-VAE that encoded its training images, or train a prior on the codes of this one"
        )


def pretrained_names() -> list[str]:
    """Names of the models in data/pretrained/; those with a prior come first."""
    folders = sorted(path.parent for path in PRETRAINED.glob("*/vqvae.safetensors"))
    return [f.name for f in sorted(folders, key=lambda f: not (f / "prior.safetensors").is_file())]


def load_pretrained(name: str = "ham10000") -> tuple[VQVAE, PixelCNN]:
    """A pretrained VQ-VAE and its prior: in float32, in eval() mode, on the CPU.

    Args:
        name: folder in data/pretrained/.

    Raises:
        FileNotFoundError: there is no model of this name (the message lists the names), or it has
            no prior.
    """
    paths = [PRETRAINED / name / f"{part}.safetensors" for part in ("vqvae", "prior")]
    if not paths[0].is_file():
        raise FileNotFoundError(
            f"no pretrained model {name!r} in {PRETRAINED}; available: {pretrained_names()}. The "
            "files are in the repository, not in the installed package: clone the repository."
        )
    if not paths[1].is_file():
        raise FileNotFoundError(
            f"{name} comes without a prior; load only its VQ-VAE: load_model({str(paths[0])!r})"
        )
    vqvae, prior = map(load_model, paths, (MODELS["VQVAE"], MODELS["PixelCNN"]))
    check_pair(vqvae, prior)
    return vqvae, prior


def find_run(run: str, *files: str) -> Path:
    """Folder with the given files: of a finished run on this machine, or else of the pretrained
    models.

    Prints which of the two is used, and whether an unfinished run was skipped.

    Args:
        run: name of a run, as passed to `train_vqvae` or `train_prior`.
        files: files that the folder must contain, such as "vqvae.safetensors".

    Raises:
        FileNotFoundError: neither folder contains all files.
    """
    for folder in (run_folder(run), PRETRAINED / "ham10000"):
        if all((folder / file).is_file() for file in files):
            notes = [model_notes(folder / file) for file in files]
            stopped = [n for n in notes if n.get("finished") is False]
            if not stopped:
                own = folder.parent != PRETRAINED
                print(f"using your own run {run}" if own else "using the pretrained model ham10000")
                return folder
            print(
                f"the run {run} stopped at epoch {stopped[0]['epoch']} of {stopped[0]['epochs']} "
                "and is not used: call its training again to continue it"
            )
    raise FileNotFoundError(
        f"neither the run {run} nor the pretrained model ham10000 has {', '.join(files)}: run the "
        "previous notebook, or clone the repository, which contains the pretrained models"
    )
