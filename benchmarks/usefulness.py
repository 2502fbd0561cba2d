"""Usefulness of samples: a classifier trained on generated images, on real ones, and on both.

    python benchmarks/usefulness.py --data PATH      # four runs of 10 minutes; call again to resume

All classifiers have the same network and, up to the rounding to whole epochs, the same number of
steps. They are evaluated by balanced accuracy on real held-out photographs; random guesses give
1/7. The generated set has as many images as the training split, equally many of each class,
sampled from the pretrained prior with default options. "Reconstructions" are the real training
images after encoding and decoding: they show the effect of the VQ-VAE alone. The results are
written to data/results/usefulness.json, which notebook 07 shows.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlib import CLASSES, EncodedDataset, load_pretrained, open_dataset, sample, train_classifier
from vqlib.checkpoints import PRETRAINED
from vqlib.evaluation.results import load_results, save_results
from vqlib.lesions.classifier import SIZE, balanced_accuracy
from vqlib.metrics import predict_images
from vqlib.vqvae import VQVAE

STEPS = 150 * 16  # of batches of 32 images


@torch.inference_mode()
def decode_small(vqvae: VQVAE, codes: Tensor) -> Tensor:
    """Decoded images of the classifier's input size, uint8 (N, 3, SIZE, SIZE)."""
    chunks = []
    for chunk in codes.split(32):
        small = F.interpolate(vqvae.decode(chunk), (SIZE, SIZE), mode="bilinear", antialias=True)
        chunks.append((255 * small).round().byte())
    return torch.cat(chunks)


def by_class(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Recall of each class, and the standard error of their mean, the balanced accuracy."""
    correct = (logits.argmax(-1) == labels).float()
    hits_by_class = {CLASSES[c]: correct[labels == c] for c in labels.unique().tolist()}
    variances = []
    for hits in hits_by_class.values():
        # Laplace's rule of succession: six correct out of six do not imply an error of zero.
        smoothed_recall = (hits.sum() + 1) / (len(hits) + 2)
        variances.append(smoothed_recall * (1 - smoothed_recall) / len(hits))
    return {
        "balanced_accuracy_error": float(sum(variances)) ** 0.5 / len(hits_by_class),
        "recall": {name: float(hits.mean()) for name, hits in hits_by_class.items()},
        "lesions": {name: len(hits) for name, hits in hits_by_class.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    options = parser.parse_args()
    data = open_dataset(options.data)
    split, labels, images = data.split(), data.labels, data.pixels(SIZE)
    vqvae, prior = load_pretrained("ham10000")
    encoded = EncodedDataset.load(PRETRAINED / "ham10000" / "codes.safetensors")
    n = len(split.train)
    generated_labels = torch.arange(n) % len(CLASSES)
    generator = torch.Generator().manual_seed(0)
    generated_codes = torch.cat(
        [sample(prior, len(c), c, generator=generator) for c in generated_labels.split(128)]
    )
    sets = {
        "real": (images[split.train], labels[split.train]),
        "reconstructions": (
            decode_small(vqvae, encoded.codes[encoded.split.train]),
            encoded.labels[encoded.split.train],
        ),
        "generated": (decode_small(vqvae, generated_codes), generated_labels),
    }
    combined = [torch.cat(pair) for pair in zip(sets["real"], sets["generated"], strict=True)]
    sets["real and generated"] = (combined[0], combined[1])
    val = (images[split.val], labels[split.val])
    table = load_results("usefulness", {"rows": {}})
    table |= {"data": repr(data), "split": "val", "n": len(split.val), "steps": STEPS}
    for name, (train_images, train_labels) in sets.items():
        if name in table["rows"]:
            continue
        classifier = train_classifier(
            train_images,
            train_labels,
            *val,
            source=f"{name}, {data!r}",
            run=f"useful-{name.replace(' ', '-')}",
            epochs=max(1, round(STEPS * 32 / len(train_labels))),
        )
        logits = predict_images(classifier, val[0])
        table["rows"][name] = {
            "images": len(train_labels),
            "balanced_accuracy": balanced_accuracy(logits, val[1]),
            **by_class(logits, val[1]),
        }
        save_results("usefulness", table)
        print(name, table["rows"][name])


if __name__ == "__main__":
    main()
