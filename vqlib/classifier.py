"""Chapter 9: a small classifier of lesions, the eye that generated images are judged with.

To compare two *sets* of images one needs numbers that say what an image shows. The usual choice,
Inception trained on ImageNet, tells breeds of dogs apart; to it all dermoscopy is much the same.
A network that had to tell seven diagnoses apart on the training split has learnt what matters here,
and its file is small enough to ship.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception_v3
from torchvision.transforms.functional import normalize

from .data import CLASSES, DataError
from .vqvae import IMAGENET_MEAN, IMAGENET_STD, evaluating

SIZE = 128  # pixels that the classifier looks at


class Block(nn.Module):
    """x + two 3x3 convolutions of x (He et al. 2016, arXiv:1603.05027, "pre-activation"), at half
    the size and twice the width if `stride` is 2."""

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


class LesionClassifier(nn.Module):
    """A residual network of 0.28 million weights: images to 96 features, and to seven logits.

    Args:
        width: channels of the first stage.
        features: length of an image's description.
    """

    def __init__(self, width: int = 24, features: int = 96) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"width": width, "features": features}
        widths = [width, width, 2 * width, 3 * width, features]
        self.stem = nn.Conv2d(3, width, 5, stride=2, padding=2, bias=False)
        self.blocks = nn.Sequential(
            *(
                Block(c_in, c_out, 1 if i == 0 else 2)
                for i, (c_in, c_out) in enumerate(pairwise(widths))
            )
        )
        self.norm = nn.BatchNorm2d(features)
        # Every feature with mean 0 and variance 1, so that none rules a distance by its units.
        self.standardize = nn.BatchNorm1d(features, affine=False)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(features, len(CLASSES))

    def features(self, images: Tensor) -> Tensor:
        """Float (B, 3, S, S) in [0, 1], any size, to float (B, features)."""
        if images.shape[-1] != SIZE:
            images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
        x = self.blocks(self.stem(4 * (images - 0.6)))
        return self.standardize(F.relu(self.norm(x)).mean((2, 3)))

    def describe(self, images: Tensor) -> Tensor:
        """The features, scaled to length sqrt(features): only their direction counts. Otherwise one
        odd image, whose features are ten times as long, would rule any distance between sets."""
        features = self.features(images)
        return F.normalize(features) * features.shape[1] ** 0.5

    def forward(self, images: Tensor) -> Tensor:
        """Float (B, 3, S, S) in [0, 1] to logits (B, 7), as if all classes were equally frequent
        (see `train_classifier`)."""
        return self.head(self.dropout(self.features(images)))


class Inception(nn.Module):
    """The usual eye: Inception v3, trained on ImageNet, as torchvision has it. Fetched when it is
    first made (104 MB). Distances in its features can't be compared with those of papers, which use
    another port of it and other images.

    Raises:
        DataError: the weights can't be fetched.
    """

    def __init__(self, weights: str | None = "IMAGENET1K_V1") -> None:
        super().__init__()
        try:
            self.net = inception_v3(weights=weights, init_weights=False)
        except OSError as error:  # no connection, or no room
            raise DataError(
                f"the weights of Inception can't be fetched ({error}): connect to the internet, or "
                "judge with the classifier that ships"
            ) from error
        self.net.fc = nn.Identity()

    def describe(self, images: Tensor) -> Tensor:
        """Float (B, 3, S, S) in [0, 1] to float (B, 2048), what stands before the last layer."""
        images = F.interpolate(images, (299, 299), mode="bilinear", antialias=True)
        return self.net(normalize(images, IMAGENET_MEAN, IMAGENET_STD))


def classify(
    classifier: LesionClassifier | Inception, images: Any, describe: bool = False
) -> Tensor:
    """Logits (N, 7), or descriptions (N, 96 or 2048), of uint8 images (N, 3, S, S), in eval()."""
    run = classifier.describe if describe else classifier
    with evaluating(classifier) as device:
        found = [
            run(images[i : i + 64].to(device).float() / 255).float().cpu()
            for i in range(0, len(images), 64)
        ]
    return torch.cat(found)


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Mean over the classes of how often a lesion of that class is recognised: guessing, or saying
    "naevus" always, gives 1/7. Classes without a lesion in `labels` are left out."""
    right = logits.argmax(-1) == labels
    return float(torch.stack([right[labels == c].float().mean() for c in labels.unique()]).mean())
