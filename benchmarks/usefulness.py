"""Usefulness of samples: do they improve a classifier, and more than flips and rotations do?

    python benchmarks/usefulness.py --data PATH     # two hours on one core; call again to resume

The same small network is trained from scratch on each set, for the same number of steps and with
the same ten seeds, and measured by balanced accuracy on the photographs of the validation split;
random guesses give 1/7. "Orientations" means that each image is shown in a random one of the eight
dihedral transforms. The generated set has as many images as the training split, equally many of
each class, sampled from the pretrained prior with default options. A training on reconstructions
(the photographs after encoding and decoding) shows the effect of the VQ-VAE alone.

Differences are paired by seed. Two intervals of 95 %: over seeds (Student's t), which contains the
randomness of training, and over lesions (bootstrap within each class, of the mean over seeds),
which contains that of the few lesions of the rare classes. The results are written to
data/results/usefulness.json, which notebook 07 shows.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlib import CLASSES, EncodedDataset, load_pretrained, open_dataset, sample
from vqlib.checkpoints import PRETRAINED
from vqlib.data import random_dihedral, to_float
from vqlib.evaluation.results import load_results, save_results
from vqlib.lesions.classifier import LesionClassifier
from vqlib.vqvae import VQVAE

SIZE = 64  # pixels of a side; the pretrained classifier has 128
SEEDS = 10
STEPS = 1000
BATCH = 32
T_97_5 = 2.262  # quantile of Student's t with 9 degrees of freedom
REFERENCE = "photographs, orientations"
# Name -> sets, and whether each image is shown in a random orientation.
TRAININGS = {
    "photographs": (("photographs",), False),
    REFERENCE: (("photographs",), True),
    "photographs and generated": (("photographs", "generated"), False),
    "photographs and generated, orientations": (("photographs", "generated"), True),
    "reconstructions, orientations": (("reconstructions",), True),
    "generated, orientations": (("generated",), True),
}


class SmallClassifier(LesionClassifier):
    """The lesion classifier for images of `SIZE` pixels, without resizing to its usual size."""

    def features(self, images: Tensor) -> Tensor:
        x = self.blocks(self.stem(4 * (images - 0.6)))
        return self.standardize(F.relu(self.norm(x)).mean((2, 3)))


@torch.inference_mode()
def decode_small(vqvae: VQVAE, codes: Tensor) -> Tensor:
    """Decoded images of `SIZE` pixels, uint8 (N, 3, SIZE, SIZE)."""
    parts = []
    for part in codes.split(32):
        small = F.interpolate(vqvae.decode(part), (SIZE, SIZE), mode="bilinear", antialias=True)
        parts.append((255 * small).round().byte())
    return torch.cat(parts)


def train(images: Tensor, labels: Tensor, augment: bool, seed: int) -> SmallClassifier:
    """Train with logit adjustment (see `train_classifier`), AdamW and a cosine schedule."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = SmallClassifier().train()
    log_frequencies = labels.bincount(minlength=len(CLASSES)).float().log()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS, pct_start=0.1)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(STEPS):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(labels), generator=generator)])
        batch, order = order[:BATCH], order[BATCH:]
        x = random_dihedral(images[batch], generator) if augment else to_float(images[batch])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float() + log_frequencies, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def balanced_accuracy(correct: Tensor, labels: Tensor) -> Tensor:
    """Mean over classes of the mean of `correct` (..., n)."""
    classes = labels.unique()
    return torch.stack([correct[..., labels == c].double().mean(-1) for c in classes]).mean(0)


def interval_over_lesions(difference: Tensor, labels: Tensor, repetitions: int = 2000) -> Any:
    """95 % interval of the balanced mean of `difference` (n,): bootstrap within each class."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(repetitions, dtype=torch.float64)
    classes = labels.unique()
    for c in classes:
        values = difference[labels == c].double()
        chosen = torch.randint(len(values), (repetitions, len(values)), generator=generator)
        total += values[chosen].mean(1) / len(classes)
    return total.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    data = open_dataset(options.data)
    split, labels, photographs = data.split(), data.labels, data.pixels(SIZE)
    n = len(split.train)
    vqvae, prior = load_pretrained("ham10000")
    encoded = EncodedDataset.load(PRETRAINED / "ham10000" / "codes.safetensors")
    generator = torch.Generator().manual_seed(0)
    generated_labels = torch.arange(n) % len(CLASSES)
    generated_codes = torch.cat(
        [sample(prior, len(y), y, generator=generator) for y in generated_labels.split(128)]
    )
    train_codes = encoded.codes[encoded.split.train]
    sets = {
        "photographs": (photographs[split.train], labels[split.train]),
        "reconstructions": (
            decode_small(vqvae, train_codes),
            encoded.labels[encoded.split.train],
        ),
        "generated": (decode_small(vqvae, generated_codes), generated_labels),
    }
    val_images, val_labels = to_float(photographs[split.val]), labels[split.val]

    table = load_results("usefulness", {"correct": {}})
    if table.get("steps") != STEPS:  # results of another protocol
        table = {"correct": {}}
    table |= {"data": repr(data), "split": "val", "n": len(split.val), "steps": STEPS}
    table |= {"size": SIZE, "seeds": SEEDS, "lesions": {}, "rows": {}}
    for i, name in enumerate(CLASSES):
        table["lesions"][name] = int((val_labels == i).sum())
    for seed in range(SEEDS):
        for name, (parts, augment) in TRAININGS.items():
            # One character for each lesion of the split: 1 if its class was found.
            found = table["correct"].setdefault(name, [])
            if len(found) > seed:
                continue
            images, targets = (torch.cat(x) for x in zip(*(sets[p] for p in parts), strict=True))
            model = train(images, targets, augment, seed)
            with torch.inference_mode():
                predicted = torch.cat([model(x) for x in val_images.split(128)]).argmax(1)
            found.append("".join(str(int(x)) for x in predicted == val_labels))
            accuracy = balanced_accuracy(predicted == val_labels, val_labels)
            print(f"seed {seed}, {name}: {accuracy:.3f}", flush=True)
            save_results("usefulness", table)

    def correct_of(name: str) -> Tensor:
        return torch.tensor([[int(x) for x in text] for text in table["correct"][name]])

    reference = correct_of(REFERENCE)
    for name, (parts, _) in TRAININGS.items():
        correct = correct_of(name)
        accuracies = balanced_accuracy(correct, val_labels)
        paired = accuracies - balanced_accuracy(reference, val_labels)
        half = T_97_5 * float(paired.std()) / SEEDS**0.5
        table["rows"][name] = {
            "images": sum(len(sets[part][1]) for part in parts),
            "balanced_accuracy": float(accuracies.mean()),
            "std_over_seeds": float(accuracies.std()),
            "recall": {
                c: float(correct[:, val_labels == i].double().mean())
                for i, c in enumerate(CLASSES)
                if (val_labels == i).any()
            },
            "difference": float(paired.mean()),
            "interval_over_seeds": [float(paired.mean()) - half, float(paired.mean()) + half],
            "interval_over_lesions": interval_over_lesions(
                (correct - reference).double().mean(0), val_labels
            ),
        }
        print(name, table["rows"][name])
    save_results("usefulness", table)


if __name__ == "__main__":
    main()
