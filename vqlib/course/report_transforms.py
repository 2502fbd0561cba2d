"""The six transforms of the report, from torchvision."""

from __future__ import annotations

from collections.abc import Callable

from torchvision import transforms


def report_transforms(size: int = 256) -> dict[str, Callable]:
    """The report's six transforms of a PIL image, by name, in a valid order.

    `torchvision.transforms.Compose(list(steps.values()))` combines them into one transform from a
    PIL image to float32 (3, size, size), normalized.
    """
    return {
        "Resize": transforms.Resize((size, size)),
        "RandomRotation": transforms.RandomRotation(degrees=30),
        "RandomHorizontalFlip": transforms.RandomHorizontalFlip(p=0.5),
        "RandomVerticalFlip": transforms.RandomVerticalFlip(p=0.5),
        "ToTensor": transforms.ToTensor(),
        "Normalize": transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    }
