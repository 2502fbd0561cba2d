"""Models as files: safetensors, which hold numbers only and can run no code.

A file also says which class it fits and how that was built, so `load_model` needs only the path.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .cache import whole_file
from .classifier import LesionClassifier
from .codes import EncodedDataset
from .data import DataError, LesionDataset, work_dir
from .pixelcnn import PixelCNN, PixelRCNN
from .vqvae import VQVAE

MODELS: dict[str, type[nn.Module]] = {
    model.__name__: model for model in (VQVAE, PixelCNN, PixelRCNN, LesionClassifier)
}
Model = TypeVar("Model", bound=nn.Module)
FORMAT = "2"  # of the metadata; files without it are of an earlier version
PRETRAINED = Path(__file__).resolve().parent.parent / "data" / "pretrained"


def run_folder(run: str | Path) -> Path:
    """The folder of a run: `run` itself if absolute, else work_dir()/runs/run."""
    return Path(run) if Path(run).is_absolute() else work_dir() / "runs" / run


def save_model(
    model: nn.Module, path: str | Path, dtype: torch.dtype | None = None, **notes: object
) -> Path:
    """Write a model's weights, and how to build it, to a safetensors file.

    The file appears whole or not at all.

    Args:
        model: a `VQVAE`, `PixelCNN`, `PixelRCNN` or `LesionClassifier`.
        path: ends in .safetensors; folders are made.
        dtype: torch.float16 halves the file; integers stay as they are.
        notes: kept in the file as JSON, e.g. recipe="workbook", epochs=20, finished=True.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        tensors[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    metadata = {
        "format": FORMAT,
        "model": type(model).__name__,
        "config": json.dumps(getattr(model, "config", {})),
        "notes": json.dumps(notes),
    }
    if getattr(model, "codebook_fingerprint", None) is not None:
        metadata["codebook"] = model.codebook_fingerprint
    with whole_file(path) as beside:
        save_file(tensors, beside, metadata=metadata)
    return path


def load_model(path: str | Path, expected: type[Model] = nn.Module) -> Model:
    """Build the model that a file holds: float32, in eval(), on the CPU.

    Args:
        expected: the class that the model must be of.

    Raises:
        FileNotFoundError: no such file.
        DataError: it is not a file of `save_model`, does not fit the class it names, or that is not
            the expected one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights; train one first")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        model = MODELS[metadata["model"]](**json.loads(metadata["config"]))
        model.load_state_dict(
            {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        )
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]  # PyTorch names every tensor that is amiss
        raise DataError(
            f"{path} does not hold a model of this version of vqlib: {reason}. "
            "Delete it and train again, or take a file that `save_model` wrote."
        ) from error
    if not isinstance(model, expected):
        raise DataError(
            f"{path} holds a {type(model).__name__}, but a {expected.__name__} was expected: "
            "name another file"
        )
    if isinstance(model, PixelCNN):
        model.codebook_fingerprint = metadata.get("codebook")
    if "format" not in metadata:
        warnings.warn(
            f"{path} was written by an earlier version: it does not say what the model was trained "
            "on, nor whether its training was finished",
            stacklevel=2,
        )
    return model.eval()


def model_notes(path: str | Path) -> dict[str, Any]:
    """What `save_model` was told about the model. After a training of this library: "recipe",
    "data", "seed"; "epoch", the one that the weights are of; "epochs", how many were asked for;
    "finished", whether the training has come to its end; fingerprints of what it was trained on.
    """
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("notes", "{}"))


def mark_finished(path: Path, epochs: int) -> None:
    """Note in a file of weights that its training has come to its end, after so many epochs."""
    notes = model_notes(path)
    if notes.get("finished") and notes["epochs"] == epochs:
        return
    save_model(load_model(path), path, **notes | {"epochs": epochs, "finished": True})


def check_pair(vqvae: VQVAE, prior: PixelCNN) -> None:
    """Make sure that a prior was trained on the codes of this VQ-VAE. With those of another one it
    samples codes that decode to coloured noise.

    Raises:
        DataError: it was not. A prior that does not know its codebook passes.
    """
    known, own = prior.codebook_fingerprint, vqvae.codebook_fingerprint
    if known not in (None, own):
        raise DataError(
            f"the prior was trained on the codes of another VQ-VAE (its codebook {known}, this one "
            f"{own}): load the VQ-VAE whose images were encoded for it, or train a prior on codes "
            "of this one"
        )


def shipped() -> list[str]:
    """Names of the models in data/pretrained/, those with a prior first."""
    folders = sorted(path.parent for path in PRETRAINED.glob("*/vqvae.safetensors"))
    return [f.name for f in sorted(folders, key=lambda f: not (f / "prior.safetensors").is_file())]


def load_pretrained(name: str = "ham10000") -> tuple[VQVAE, PixelCNN]:
    """The VQ-VAE and prior that ship in data/pretrained/: float32, eval, on the CPU.

    Raises:
        FileNotFoundError: no models of that name; lists those there are.
    """
    folder = PRETRAINED / name
    if not (folder / "vqvae.safetensors").is_file():
        raise FileNotFoundError(
            f"no pretrained model {name!r} in {PRETRAINED}; there are: {shipped() or 'none'}. "
            "They lie in the repository, outside the installed package: clone it."
        )
    if not (folder / "prior.safetensors").is_file():
        raise FileNotFoundError(
            f"{name} ships without a prior; load its VQ-VAE alone, "
            f'load_model(PRETRAINED / "{name}" / "vqvae.safetensors")'
        )
    vqvae = load_model(folder / "vqvae.safetensors", VQVAE)
    prior = load_model(folder / "prior.safetensors", PixelCNN)
    check_pair(vqvae, prior)
    return vqvae, prior


def decoded_dataset(name: str = "ham10000", images: int = 1200) -> LesionDataset:
    """Real lesions without a download: pictures decoded from the codes that ship.

    Every one was made by a VQ-VAE from 288 bytes of a real lesion, and what such a model can't keep
    is gone already. So they flatter any VQ-VAE: on photographs it scores lower.

    Args:
        name: of the models that ship.
        images: how many, drawn evenly from all that ship.

    Raises:
        FileNotFoundError: no models of that name.
    """
    vqvae, _ = load_pretrained(name)
    path = PRETRAINED / name / "codes.safetensors"
    encoded = EncodedDataset.load(path)
    chosen = torch.linspace(0, len(encoded) - 1, min(images, len(encoded))).long()

    @torch.inference_mode()
    def render(rows: np.ndarray, size: int) -> np.ndarray:
        pictures = vqvae.decode(encoded.codes[chosen[torch.from_numpy(rows)]])
        scaled = F.interpolate(pictures, size=(size, size), mode="bicubic", antialias=True)
        return scaled.mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()

    names = [f"decoded_{i:05d}" for i in chosen.tolist()]
    key = f"{hashlib.sha256(path.read_bytes()).hexdigest()} {len(chosen)}"
    return LesionDataset(
        "decoded", names, encoded.labels[chosen], names, render=render, render_key=key
    )


def find_run(run: str, *files: str, pretrained: str = "ham10000") -> Path:
    """Folder to go on from: that of a finished run on this machine, else the one that ships.

    Prints which of the two it is, and if there is a run whose training was interrupted.

    Args:
        run: name of a run, as given to `train_vqvae` or `train_prior`.
        files: what the folder must hold, such as "vqvae.safetensors".

    Raises:
        FileNotFoundError: neither has them all.
    """
    for folder, origin in (
        (run_folder(run), f"this machine's own run {run}"),
        (PRETRAINED / pretrained, f"the models that ship with the workbook, {pretrained}"),
    ):
        if all((folder / file).is_file() for file in files):
            notes = [model_notes(folder / file) for file in files]
            open_ends = [n for n in notes if n.get("finished") is False]
            if open_ends:
                print(
                    f"the run {run} stopped at epoch {open_ends[0]['epoch']} of "
                    f"{open_ends[0]['epochs']}, so it is not used: run its training to the end"
                )
                continue
            print(f"going on from {origin}")
            return folder
    raise FileNotFoundError(
        f"neither the run {run} nor the shipped {pretrained} has {', '.join(files)}: run the "
        "notebook before this one, or clone the repository, which holds the shipped models"
    )
