"""A small lesion classifier, whose features are used to compare sets of images.

Metrics for generated images (FID, KID, precision and recall) compare distributions of image
features. The usual feature extractor, Inception v3, was trained on the objects and animals of
ImageNet. A network that was trained to distinguish the seven diagnoses has features that are
relevant here, and its file is small enough to be part of the repository. `evaluation.generation`
uses these features; `train_classifier` trains the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import fingerprint, register_model, save_model
from ..checks import check_tensor
from ..data import Pixels, batches, random_dihedral
from ..metrics import predict_images
from ..training import Progress, Schedule, fit, pick_device
from .synthetic import CLASSES

SIZE = 128  # pixels of a side of the classifier's input


class PreActivationBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016, arXiv:1603.05027): x plus two 3x3 convolutions
    of x. With `stride` 2 the output has half the height and width."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)])
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False),
                nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            ]
        )
        self.skip = nn.Conv2d(c_in, c_out, 1, bias=False) if c_in != c_out else nn.Identity()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs[0](F.relu(self.norms[0](x)))
        y = self.convs[1](F.relu(self.norms[1](y)))
        return self.skip(F.avg_pool2d(x, self.stride) if self.stride > 1 else x) + y


@register_model
class LesionClassifier(nn.Module):
    """Residual network with 0.28 million parameters, from images to 96 features and seven logits.

    Args:
        width: channels of the first stage.
        features: dimension of the feature vector.
    """

    def __init__(self, width: int = 24, features: int = 96) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"width": width, "features": features}
        widths = [width, width, 2 * width, 3 * width, features]
        self.stem = nn.Conv2d(3, width, 5, stride=2, padding=2, bias=False)
        self.blocks = nn.Sequential(
            *(
                PreActivationBlock(c_in, c_out, 1 if i == 0 else 2)
                for i, (c_in, c_out) in enumerate(pairwise(widths))
            )
        )
        self.norm = nn.BatchNorm2d(features)
        # Standardizes each feature, so that no feature dominates a distance by its scale.
        self.standardize = nn.BatchNorm1d(features, affine=False)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(features, len(CLASSES))

    def features(self, images: Tensor) -> Tensor:
        """Standardized features (B, features) of images, float32 (B, 3, S, S) in [0, 1], any S."""
        check_tensor("images", images, torch.float32, (None, 3, "S", "S"))
        if images.shape[-1] != SIZE:
            images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
        x = self.blocks(self.stem(4 * (images - 0.6)))
        return self.standardize(F.relu(self.norm(x)).mean((2, 3)))

    def extract_features(self, images: Tensor) -> Tensor:
        """Features for comparing sets of images, (B, features), scaled to length sqrt(features).

        Only the direction counts. Without the scaling, a single unusual image with features of ten
        times the usual length would dominate every distance between sets.
        """
        features = self.features(images)
        return F.normalize(features) * features.shape[1] ** 0.5

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 7) of images, float (B, 3, S, S) in [0, 1], for equally frequent classes (see
        `train_classifier`)."""
        return self.head(self.dropout(self.features(images)))


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Balanced accuracy: the mean over the classes of their recall.

    Classes that do not occur in `labels` are left out. Random guesses, or a constant answer, give 1
    divided by the number of classes that do occur.
    """
    correct = logits.argmax(-1) == labels
    return float(torch.stack([correct[labels == c].float().mean() for c in labels.unique()]).mean())


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
    """Train a lesion classifier, continue an interrupted training, or load the finished one.

    The classes are imbalanced: 67 % of the images of HAM10000 show nevi. The loss adds the log
    frequency of each class to its logit (Menon et al., "Long-tail learning via logit adjustment",
    2021, arXiv:2007.07314, equation 10). The network therefore does not learn the frequencies, and
    its logits without them are suited to balanced accuracy, in which all classes count equally.

    Args:
        images, val_images: uint8 (N, 3, S, S), preferably with S = `classifier.SIZE`.
        labels, val_labels: int64 (N,), indices into CLASSES.
        source: one line that says what the classifier is trained on; stored with the weights.
        run: folder of the run; a relative name is a folder in work_dir()/runs.
        epochs: passes over the training images.
        lr, extend, device, seed, progress: see `training.fit`.

    Returns:
        The model in eval() mode, on the CPU. It is also saved in the folder of the run as
        classifier.safetensors. The weights are those of the last epoch; no epoch is selected on
        `val_images`.
    """
    device = torch.device(device) if device is not None else pick_device()
    torch.manual_seed(seed)
    classifier = LesionClassifier()
    counts = torch.bincount(labels, minlength=len(CLASSES)).clamp_min(1)
    log_frequencies = (counts / counts.sum()).log().to(device)
    all_indices, batch_size = torch.arange(len(labels)), 32

    def get_batches(epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(
            images, all_indices, batch_size, random_dihedral, seed=seed, epoch=epoch, start=start
        )

    def compute_loss(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = batch[0].to(device, non_blocking=True)
        logits = classifier(inputs).float() + log_frequencies
        return F.cross_entropy(logits, labels[batch[1]].to(device)), {}

    def evaluate(folder: Path, epoch: int) -> tuple[dict[str, float], None]:
        accuracy = balanced_accuracy(predict_images(classifier, val_images), val_labels)
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
        schedule=Schedule(lr=2e-3, warmup_steps=100, cosine_decay=True, ema_decay=0.999),
        epochs=epochs,
        steps_per_epoch=-(-len(labels) // batch_size),
        get_batches=get_batches,
        compute_loss=compute_loss,
        evaluate=evaluate,
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
