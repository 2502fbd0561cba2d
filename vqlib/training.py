"""Chapter 7, second half: two models, two recipes.

`train_vqvae` and `train_prior` set up what differs (model, batches, loss, held-out check) and hand
it to `fit`. What a training does is named by a recipe: `REPORT` is faithful to the report, flaws
included; `WORKBOOK` is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import fingerprint
from .checkpoints import describe
from .classifier import LesionClassifier, balanced_accuracy, classify
from .codes import EncodedDataset
from .data import (
    CLASSES,
    DataError,
    LesionDataset,
    Pixels,
    Split,
    batches,
    dihedral,
    rotate_and_flip,
)
from .loop import Progress, Schedule, fit, pick_device
from .metrics import code_bits, evaluate_vqvae
from .pixelcnn import PixelCNN, PixelRCNN
from .quantizer import codebook_fingerprint
from .vqvae import IMAGENET_MEAN, VQVAE
from .weights import load_model, mark_finished, save_model


@dataclass(frozen=True)
class Recipe:
    """What a training does, by name."""

    name: str
    vqvae: Callable[[], VQVAE]
    augment: Callable[[Tensor, torch.Generator], Tensor]  # uint8 batch -> float32 in [0, 1]
    fit: str  # "crop" keeps the aspect, "squash" does not
    split_by: str  # "lesion" or "image"
    split_fractions: tuple[float, float, float]
    vqvae_epochs: int
    prior_epochs: int
    prior: Callable[..., PixelCNN | PixelRCNN]
    batch_size: int = 16
    schedule: Schedule = field(default_factory=Schedule)
    label_dropout: float = 0.1  # how often the prior is not told the class
    start_images: int = 0  # how many `VQVAE.start_from` sees; 0: it is not called

    def split(self, data: LesionDataset) -> Split:
        return data.split(fractions=self.split_fractions, by=self.split_by)

    def identity(self) -> dict[str, Any]:
        """All settings as JSON, see `checkpoints.describe`, but those that a run may change
        (learning rate) or replaces (epochs); `fit` records these itself."""
        settings = describe(self)
        del settings["vqvae_epochs"], settings["prior_epochs"], settings["schedule"]["lr"]
        return settings


REPORT = Recipe(
    name="report",
    vqvae=VQVAE.report,
    # The report rotates images whose corners then are 0. Its losses fit only if that happened
    # after normalising, where 0 is ImageNet's mean colour.
    augment=partial(rotate_and_flip, degrees=30.0, corners=IMAGENET_MEAN),
    fit="squash",
    split_by="image",
    split_fractions=(0.9, 0.05, 0.05),
    vqvae_epochs=20,
    prior_epochs=100,
    prior=PixelRCNN,
)
WORKBOOK = Recipe(
    name="workbook",
    vqvae=VQVAE,
    augment=dihedral,
    fit="crop",
    split_by="lesion",
    split_fractions=(0.8, 0.1, 0.1),
    vqvae_epochs=20,
    prior_epochs=32,
    prior=partial(PixelCNN, conv_filters=96),
    schedule=Schedule(lr=2e-3, warmup=100, cosine=True, clip=1.0, average=0.999),
)
# The workbook's recipe for its deep model: small steps, since it starts near its goal.
DEEP = replace(
    WORKBOOK,
    name="deep",
    vqvae=VQVAE.deep,
    vqvae_epochs=24,
    schedule=Schedule(lr=4e-4, warmup=100, cosine=True, clip=1.0, average=0.999),
    start_images=512,
)
RECIPES = {recipe.name: recipe for recipe in (REPORT, WORKBOOK, DEEP)}


def train_vqvae(
    data: LesionDataset,
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
    """Train a VQ-VAE, or continue its training, or load it if it is trained already.

    A run is known by the recipe, the pixels, the split, size, epochs and seed; its folder is used
    again only for the same run. The device and its number format do not count.

    Args:
        data: see `open_dataset`; the recipe splits it, and only its training part is learned from.
        run: the run's folder; a relative name lies in work_dir()/runs.
        size: pixels, divisible by 32.
        epochs: the recipe's number if None.
        lr: replaces the recipe's learning rate; may also be given to continue a run with another
            one, for example after its loss became NaN.
        extend: continue a run that was started with fewer epochs; the learning rate then follows
            the schedule of the longer run.
        device: CUDA, MPS or CPU, whichever is there, if None.
        progress: `Progress()` if None; in notebooks `plots.LiveTraining()`.

    Returns:
        The model in eval(), on the CPU. The folder also has it, as vqvae.safetensors.

    Raises:
        DataError: the folder holds another run.
        FloatingPointError: the loss is no longer finite.
        KeyboardInterrupt: stopped; a checkpoint has been written.
    """
    device = torch.device(device) if device is not None else pick_device()
    epochs = recipe.vqvae_epochs if epochs is None else epochs
    split = recipe.split(data)
    train = split.train
    pixels = data.pixels(size, recipe.fit)
    torch.manual_seed(seed)
    vqvae = recipe.vqvae()
    if not len(split.val):
        raise DataError(f"{data} has no lesion left for validation: take more images")
    shown, _ = next(batches(pixels, split.val[:8], batch_size=8, shuffle=False))

    def batches_of(epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(
            pixels, train, recipe.batch_size, recipe.augment, seed=seed, epoch=epoch, start=start
        )

    def start() -> None:
        if recipe.start_images:
            first = batches(pixels, train, recipe.start_images, recipe.augment, seed=seed)
            vqvae.start_from(next(first)[0].to(device))

    def loss_of(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        out = vqvae(batch[0].to(device, non_blocking=True))
        return out.loss, {
            "reconstruction_loss": out.reconstruction_loss,
            "vq_loss": out.vq_loss,
            "perplexity": out.perplexity,
        }

    def after_epoch(folder: Path, epoch: int) -> tuple[dict[str, float], Tensor]:
        result = evaluate_vqvae(vqvae, pixels, split.val)
        vqvae.eval()
        with torch.inference_mode():
            rebuilt = vqvae(shown.to(device)).reconstruction.cpu()
        return result.summary(), torch.cat([shown, rebuilt])

    folder = fit(
        vqvae,
        run=run,
        config={
            "kind": "VQ-VAE",
            "recipe": recipe.identity(),
            "pixels": pixels.fingerprint,
            "split": fingerprint(*split),
            "size": size,
            "seed": seed,
            "model": vqvae.config,
        },
        schedule=recipe.schedule,
        epochs=epochs,
        steps_per_epoch=-(-len(train) // recipe.batch_size),
        before=start,
        batches_of=batches_of,
        loss_of=loss_of,
        after_epoch=after_epoch,
        device=device,
        seed=seed,
        progress=progress or Progress(),
        lr=lr,
        extend=extend,
    )
    vqvae.to("cpu").eval()
    notes = {"recipe": recipe.name, "data": repr(data), "size": size, "seed": seed}
    notes |= {"pixels": pixels.fingerprint, "split": fingerprint(*split)}
    notes |= {"epoch": epochs, "epochs": epochs, "finished": True}
    save_model(vqvae, folder / "vqvae.safetensors", **notes)
    return vqvae


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
    """Train a prior on codes, or continue its training, or load it if it is trained already.

    A run is known by the recipe, the codes with their labels, split and codebook, epochs and seed.
    `run`, `epochs`, `lr`, `extend`, `device` and `progress` are those of `train_vqvae`.

    With a `PixelCNN` (`model_options` change it), as in `WORKBOOK`: cross-entropy; the embeddings
    start as the codebook's vectors; the weights kept are those of the epoch with the fewest bits
    per code on the validation split, and each grid is shown in one of its eight orientations, and
    it is told which, if `encoded.turned` has them. With `REPORT`'s `PixelRCNN`, MSE on the
    quantized vectors; the last weights are kept.

    Returns:
        The model in eval(), on the CPU. The folder also has it, as prior.safetensors: while the
        run goes on the best so far, and its notes say so.

    Raises:
        DataError: the folder holds another run.
        FloatingPointError: the loss is no longer finite.
        KeyboardInterrupt: stopped; a checkpoint has been written.
    """
    device = torch.device(device) if device is not None else pick_device()
    epochs = recipe.prior_epochs if epochs is None else epochs
    train, val = encoded.split.train, encoded.split.val
    steps = -(-len(train) // recipe.batch_size)
    torch.manual_seed(seed)
    is_report = recipe.prior is PixelRCNN
    orientations = 1 if encoded.turned is None else len(encoded.turned)
    if is_report:
        channels = encoded.vectors(0).shape[0]
        prior = PixelRCNN(channels, channels, **model_options)
        variance = encoded.vectors(train[:1024]).var((0, 2, 3)).mean()  # of each channel
    else:
        prior = recipe.prior(
            encoded.num_embeddings,
            encoded.codes.shape[-1],
            embedding_dim=encoded.codebook.shape[-1],
            orientations=orientations,
            **model_options,
        )
        prior.start_from(encoded.codebook)

    def batches_of(epoch: int, start: int) -> Iterator[Tensor]:
        order = torch.randperm(
            len(train), generator=torch.Generator().manual_seed(seed * 100_003 + epoch)
        )
        return iter(order.split(recipe.batch_size)[start:])  # places in `train`

    def mse_loss(places: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        vectors = encoded.vectors(train[places]).to(device)
        loss = F.mse_loss(prior(vectors).float(), vectors)
        return loss, {"mse_over_variance": loss / variance}

    def cross_entropy(places: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        codes, labels = encoded.codes[train[places]], encoded.labels[train[places]]
        seen_from = torch.zeros_like(places)
        if encoded.turned is not None:
            seen_from = torch.randint(orientations, places.shape)
            codes = encoded.turned[seen_from, places]
        codes = codes.to(device)
        dropped = torch.rand(len(labels)) < recipe.label_dropout
        labels = labels.masked_fill(dropped, prior.num_classes).to(device)
        logits = prior(codes, labels, seen_from.to(device)).float().flatten(0, 3)
        loss = F.cross_entropy(logits, codes.flatten())
        top1 = (logits.argmax(-1) == codes.flatten()).float().mean()
        return loss, {"bits_per_code": loss / math.log(2), "top1": top1}

    memory = {"best": math.inf}
    notes = {"recipe": recipe.name, "data": encoded.source, "seed": seed, "epochs": epochs}
    notes |= {"codes": fingerprint(encoded.codes, encoded.labels, *encoded.split)}
    prior.codebook_fingerprint = codebook_fingerprint(encoded.codebook)

    @torch.inference_mode()
    def after_epoch(folder: Path, epoch: int) -> tuple[dict[str, float], None]:
        path = folder / "prior.safetensors"
        now = notes | {"epoch": epoch, "finished": False}
        prior.eval()
        if is_report:
            parts = [encoded.vectors(i).to(device) for i in val.split(64)]
            sums = [F.mse_loss(prior(x).float(), x, reduction="sum").item() for x in parts]
            mse = sum(sums) / sum(x.numel() for x in parts)
            save_model(prior, path, **now, val_mse=mse)
            return {"mse": mse, "mse_over_variance": mse / float(variance)}, None
        bits = float(code_bits(prior, encoded.codes[val], encoded.labels[val]).mean())
        if bits < memory["best"]:
            memory["best"] = bits
            save_model(prior, path, **now, val_bits=bits)
        return {"bits_per_code": bits}, None

    folder = fit(
        prior,
        run=run,
        config={
            "kind": "prior",
            "recipe": recipe.identity(),
            "codes": notes["codes"],
            "codebook": codebook_fingerprint(encoded.codebook),
            "turned": None if encoded.turned is None else fingerprint(encoded.turned),
            "seed": seed,
            "model": prior.config,
        },
        schedule=recipe.schedule,
        epochs=epochs,
        steps_per_epoch=steps,
        batches_of=batches_of,
        loss_of=mse_loss if is_report else cross_entropy,
        after_epoch=after_epoch,
        device=device,
        seed=seed,
        progress=progress or Progress(),
        memory=memory,
        lr=lr,
        extend=extend,
    )
    mark_finished(folder / "prior.safetensors", epochs)
    return load_model(folder / "prior.safetensors")


def train_classifier(
    images: Pixels | Tensor,
    labels: Tensor,
    val_images: Pixels | Tensor,
    val_labels: Tensor,
    *,
    source: str,
    run: str | Path = "classifier",
    epochs: int = 30,
    lr: float | None = None,
    extend: bool = False,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: Any = None,
) -> LesionClassifier:
    """Train a classifier of lesions, or continue its training, or load it if it is trained already.

    Seven in ten lesions are naevi. The loss adds the log of each class's frequency to its logit
    (Menon et al., "Long-tail learning via logit adjustment", 2021, arXiv:2007.07314, equation 10):
    the network need not learn the frequencies, and its logits alone, without them, do best when all
    classes count alike.

    Args:
        images, val_images: uint8 (N, 3, S, S), best of `classifier.SIZE` pixels.
        labels, val_labels: int64 (N,), numbers into CLASSES.
        source: one line saying what it is trained on.

    Returns:
        The model in eval(), on the CPU. The folder also has it, as classifier.safetensors. The
        weights are those of the last epoch: none is chosen on `val`.
    """
    device = torch.device(device) if device is not None else pick_device()
    torch.manual_seed(seed)
    classifier = LesionClassifier()
    counts = torch.bincount(labels, minlength=len(CLASSES)).clamp_min(1)
    frequency = (counts / counts.sum()).log().to(device)
    every, size = torch.arange(len(labels)), 32

    def batches_of(epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(images, every, size, dihedral, seed=seed, epoch=epoch, start=start)

    def loss_of(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        pictures = batch[0].to(device, non_blocking=True)
        logits = classifier(pictures).float() + frequency
        return F.cross_entropy(logits, labels[batch[1]].to(device)), {}

    def after_epoch(folder: Path, epoch: int) -> tuple[dict[str, float], None]:
        logits = classify(classifier, val_images)
        accuracy = balanced_accuracy(logits, val_labels)
        return {"balanced_accuracy": accuracy}, None

    folder = fit(
        classifier,
        run=run,
        config={
            "kind": "classifier",
            "images": fingerprint(images[:]),
            "labels": fingerprint(labels),
            "seed": seed,
            "model": classifier.config,
        },
        schedule=Schedule(lr=2e-3, warmup=100, cosine=True, average=0.999),
        epochs=epochs,
        steps_per_epoch=-(-len(labels) // size),
        batches_of=batches_of,
        loss_of=loss_of,
        after_epoch=after_epoch,
        device=device,
        seed=seed,
        progress=progress or Progress(),
        lr=lr,
        extend=extend,
    )
    classifier.to("cpu").eval()
    notes = {"data": source, "seed": seed, "epoch": epochs, "epochs": epochs, "finished": True}
    save_model(classifier, folder / "classifier.safetensors", **notes)
    return classifier
