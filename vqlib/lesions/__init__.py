"""Data sets of skin lesions: file layouts, download, synthetic lesions, and a classifier."""

from .classifier import LesionClassifier, balanced_accuracy, train_classifier
from .datasets import decoded_dataset, open_dataset, synthetic_dataset
from .download import download
from .synthetic import CLASSES

__all__ = [
    "CLASSES",
    "LesionClassifier",
    "balanced_accuracy",
    "decoded_dataset",
    "download",
    "open_dataset",
    "synthetic_dataset",
    "train_classifier",
]
