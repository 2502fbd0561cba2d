"""Models as files: safetensors, which hold numbers only and can run no code.

A file also says which class it fits and how that was built, so `load_model` needs only the path.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypeVar

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
        notes: kept in the file as JSON, e.g. recipe="workbook", epochs=20.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        tensors[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    metadata = {
        "model": type(model).__name__,
        "config": json.dumps(getattr(model, "config", {})),
        "notes": json.dumps(notes),
    }
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
    return model.eval()


def model_notes(path: str | Path) -> dict[str, object]:
    """What `save_model` was told about the model: recipe, epochs, results."""
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("notes", "{}"))


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
    return vqvae, load_model(folder / "prior.safetensors", PixelCNN)


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
    """Folder to go on from: that of an earlier run on this machine, else the one that ships.

    Prints which of the two it is.

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
            print(f"going on from {origin}")
            return folder
    raise FileNotFoundError(
        f"neither the run {run} nor the shipped {pretrained} has {', '.join(files)}: run the "
        "notebook before this one, or clone the repository, which holds the shipped models"
    )
