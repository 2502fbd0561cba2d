"""Do generated lesions help? A classifier trained on them, on real ones, and on both.

    python benchmarks/usefulness.py --data PATH      # four trainings of 10 minutes; again to resume

Same network, same number of steps, judged on real held-out photographs by balanced accuracy:
guessing gives 1/7. The generated set has as many lesions as the training split, the same number of
each class, drawn at the sampler's defaults from the prior that ships. "Reconstructions" are the
real training lesions as their codes show them: what coding alone takes away. Results go to
data/results/usefulness.json, which notebook 05 shows.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlib import CLASSES, EncodedDataset, load_pretrained, open_dataset, sample, train_classifier
from vqlib.classifier import SIZE, balanced_accuracy, classify
from vqlib.evaluation import load_results, save_results
from vqlib.vqvae import VQVAE
from vqlib.weights import PRETRAINED

STEPS = 150 * 16  # of 32 images


@torch.inference_mode()
def pictures(vqvae: VQVAE, codes: Tensor) -> Tensor:
    """Decoded, as the classifier takes them: uint8 (N, 3, SIZE, SIZE)."""
    parts = []
    for part in codes.split(32):
        small = F.interpolate(vqvae.decode(part), (SIZE, SIZE), mode="bilinear", antialias=True)
        parts.append((255 * small).round().byte())
    return torch.cat(parts)


def by_class(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Recall of each class, and the standard error of their mean, the balanced accuracy."""
    right = (logits.argmax(-1) == labels).float()
    found = {CLASSES[c]: right[labels == c] for c in labels.unique().tolist()}
    # Laplace's estimate: six out of six do not mean an error of zero.
    guess = {name: (hits.sum() + 1) / (len(hits) + 2) for name, hits in found.items()}
    variances = [guess[name] * (1 - guess[name]) / len(hits) for name, hits in found.items()]
    return {
        "balanced_accuracy_error": float(sum(variances)) ** 0.5 / len(found),
        "recall": {name: float(hits.mean()) for name, hits in found.items()},
        "lesions": {name: len(hits) for name, hits in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of images; default: as open_dataset()")
    options = parser.parse_args()
    data = open_dataset(options.data)
    split, labels, images = data.split(), data.labels, data.pixels(SIZE)
    vqvae, prior = load_pretrained("ham10000")
    encoded = EncodedDataset.load(PRETRAINED / "ham10000" / "codes.safetensors")
    n = len(split.train)
    wanted = torch.arange(n) % len(CLASSES)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([sample(prior, len(c), c, generator=generator) for c in wanted.split(128)])
    sets = {
        "real": (images[split.train], labels[split.train]),
        "reconstructions": (
            pictures(vqvae, encoded.codes[encoded.split.train]),
            encoded.labels[encoded.split.train],
        ),
        "generated": (pictures(vqvae, drawn), wanted),
    }
    both = [torch.cat(pair) for pair in zip(sets["real"], sets["generated"], strict=True)]
    sets["real and generated"] = (both[0], both[1])
    val = (images[split.val], labels[split.val])
    table = load_results("usefulness", {"rows": {}})
    table |= {"data": repr(data), "split": "val", "n": len(split.val), "steps": STEPS}
    for name, (shown, told) in sets.items():
        if name in table["rows"]:
            continue
        classifier = train_classifier(
            shown,
            told,
            *val,
            source=f"{name}, {data!r}",
            run=f"useful-{name.replace(' ', '-')}",
            epochs=max(1, round(STEPS * 32 / len(told))),
        )
        logits = classify(classifier, val[0])
        table["rows"][name] = {
            "images": len(told),
            "balanced_accuracy": balanced_accuracy(logits, val[1]),
            **by_class(logits, val[1]),
        }
        save_results("usefulness", table)
        print(name, table["rows"][name])


if __name__ == "__main__":
    main()
