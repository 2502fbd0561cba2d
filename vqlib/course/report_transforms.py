"""The six transforms of the report, from torchvision, with a note on the purpose of each."""

from __future__ import annotations

from collections.abc import Callable

from torchvision import transforms

REPORT_TRANSFORM_NOTES = {
    "Resize": "The report resizes to 256 x 256 because of a U-Net, but it contains no U-Net. Five "
    "layers of stride 2 need a side that is divisible by 32. Resize((256, 256)) compresses a "
    "photograph of 600 x 450 pixels horizontally to three quarters, so that round lesions become "
    "oval.",
    "RandomRotation": "The report calls 30 degrees a balance of variation and information, and "
    "somewhat arbitrary. Lesions have no preferred orientation, so any angle is plausible, but a "
    "rotation leaves empty corners (9 % of the pixels on average), which the model then learns to "
    "reproduce.",
    "RandomHorizontalFlip": "The report mirrors half of the images so that the features do not "
    "depend on left and right. This is correct, and no information is lost, because pixels are "
    "only permuted.",
    "RandomVerticalFlip": "The report gives the same reason again. It is correct for dermoscopic "
    "images, but it would not be for photographs of objects with a fixed orientation.",
    "ToTensor": "The report lists it last, but Normalize works on tensors, so ToTensor has to come "
    "before it. It also divides by 255, which maps the pixels to [0, 1].",
    "Normalize": "The report normalises with ImageNet's mean and standard deviation to stabilise "
    "training. Here the input is also the target: its values lie between -2.1 and 2.6, partly "
    "outside the range of a decoder that ends in a sigmoid.",
}


def report_transforms(size: int = 256) -> dict[str, Callable]:
    """The report's six transforms of a PIL image, by name, in a valid order.

    The names are the keys of `REPORT_TRANSFORM_NOTES`.
    `torchvision.transforms.Compose(list(steps.values()))` combines them into one transform from a
    PIL image to float32 (3, size, size), normalised.
    """
    return {
        "Resize": transforms.Resize((size, size)),
        "RandomRotation": transforms.RandomRotation(degrees=30),
        "RandomHorizontalFlip": transforms.RandomHorizontalFlip(p=0.5),
        "RandomVerticalFlip": transforms.RandomVerticalFlip(p=0.5),
        "ToTensor": transforms.ToTensor(),
        "Normalize": transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    }
