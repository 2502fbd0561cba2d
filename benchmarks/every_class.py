"""Does each class look like its class? Guidance, and fine-tuning with rarer classes more often.

    python benchmarks/every_class.py --data PATH     # half an hour; call again to resume

The fraction of samples of a class in which a classifier finds this class, beside that of the
reconstructions of real lesions of the validation split (few for the rare classes). Two judges: the
lesion classifier selects the options, and a second one, logistic regression in the features of
EfficientNet-Lite0, trained on the reconstructions of the training split, reports the result without
having selected it. Three attempts:

1. guidance w, the same for all classes;
2. the prior fine-tuned for a few epochs in which each class is shown in proportion to the square
   root of its number of training images, instead of the number itself, with and without guidance;
3. guidance for each class by itself.

The selected options have the smallest mean absolute difference to the real rates over the classes.
Kernel distances to the reconstructions, with the labels of the validation split, show what is paid.
The results are written to data/results/every-class.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformer_priors import augmented_codes

from vqlib import (
    CLASSES,
    WORKBOOK,
    EncodedDataset,
    PixelCNN,
    load_model,
    load_pretrained,
    open_dataset,
    sample,
    train_prior,
)
from vqlib.checkpoints import PRETRAINED
from vqlib.data import Split
from vqlib.evaluation.features import EfficientNetLite0
from vqlib.evaluation.generation import decode_codes
from vqlib.evaluation.results import load_results, save_results
from vqlib.evaluation.set_measures import kernel_distance
from vqlib.metrics import predict_images
from vqlib.training import Schedule

SAMPLES_PER_CLASS = 200
GUIDANCE_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
FINE_TUNING = Schedule(lr=2e-4, warmup_steps=50, cosine_decay=True, grad_clip=1.0, ema_decay=0.99)
EPOCHS = 6


def balanced(encoded: EncodedDataset, seed: int = 0) -> EncodedDataset:
    """The same data with as many training images, resampled with replacement by class."""
    train = encoded.split.train
    counts = encoded.labels[train].bincount().double()
    weight = counts.rsqrt()[encoded.labels[train]]  # n_c images of weight n_c^(-1/2)
    generator = torch.Generator().manual_seed(seed)
    chosen = weight.multinomial(len(train), replacement=True, generator=generator)
    # An image may be in a split only once, so the resampled ones are added at the end.
    index = torch.arange(len(encoded), len(encoded) + len(train))
    return EncodedDataset(
        torch.cat([encoded.codes, encoded.codes[train[chosen]]]),
        torch.cat([encoded.labels, encoded.labels[train[chosen]]]),
        Split(index, encoded.split.val, encoded.split.test),
        encoded.codebook,
        source=f"{encoded.source}, resampled by class",
        augmented=encoded.augmented[:, chosen],
        classes=encoded.classes,
    )


def pretrained_prior(*arguments: Any, **options: Any) -> PixelCNN:
    """The pretrained prior, as the start of a training; the arguments are those of PixelCNN."""
    prior = load_pretrained("ham10000")[1]
    prior.initialize_embeddings = lambda codebook: None  # they have been trained already
    return prior.train()


class LinearJudge(nn.Module):
    """Logistic regression on standardized features of another network, for balanced classes."""

    def __init__(self, features: Tensor, labels: Tensor, weight_decay: float = 100.0) -> None:
        super().__init__()
        self.mean, self.std = features.mean(0), features.std(0).clamp_min(1e-6)
        x = (features - self.mean) / self.std
        log_frequencies = labels.bincount(minlength=len(CLASSES)).float().log()
        self.layer = nn.Linear(x.shape[1], len(CLASSES))
        optimizer = torch.optim.LBFGS(
            self.layer.parameters(), max_iter=200, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            # Logit adjustment, as in `train_classifier`: the layer does not learn the frequencies.
            loss = F.cross_entropy(self.layer(x) + log_frequencies, labels, reduction="sum")
            loss = loss + weight_decay / 2 * self.layer.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        return self.layer((features - self.mean) / self.std)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    data = open_dataset(options.data)
    vqvae, prior = load_pretrained("ham10000")
    encoded = augmented_codes(data)
    resampled = balanced(encoded)
    recipe = replace(WORKBOOK, name="balanced", prior=pretrained_prior, schedule=FINE_TUNING)
    priors = {
        "pretrained": prior,
        "fine-tuned": train_prior(resampled, recipe, run="prior-balanced", epochs=EPOCHS),
    }

    classifier = load_model(PRETRAINED / "ham10000" / "classifier.safetensors")
    lite0 = EfficientNetLite0()
    features_of = partial(predict_images, lite0, return_features=True)
    train, val = encoded.split.train, encoded.split.val
    # Decoding and describing in parts: 4,786 decoded images would need 0.9 GB.
    train_features = torch.cat(
        [features_of(decode_codes(vqvae, part)) for part in encoded.codes[train].split(256)]
    )
    linear = LinearJudge(train_features, encoded.labels[train])
    labels = encoded.labels[val]
    reconstructions = decode_codes(vqvae, encoded.codes[val])
    class_labels = torch.arange(len(CLASSES)).repeat_interleave(SAMPLES_PER_CLASS)

    def judge(images: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
        """Judge -> class -> fraction of the images of this class that are found."""
        predictions = {
            "lesion classifier": predict_images(classifier, images).argmax(1),
            "EfficientNet-Lite0": linear(features_of(images)).argmax(1),
        }
        return {
            name: {
                c: float((predicted[labels == i] == i).float().mean())
                for i, c in enumerate(CLASSES)
                if (labels == i).any()
            }
            for name, predicted in predictions.items()
        }

    def describe(images: Tensor) -> dict[str, Tensor]:
        """Judge -> features."""
        return {
            "lesion classifier": predict_images(classifier, images, return_features=True),
            "EfficientNet-Lite0": features_of(images),
        }

    real_features = describe(reconstructions)

    def measure(prior: PixelCNN, guidance: Tensor) -> dict[str, Any]:
        """`guidance`: one weight for each class."""

        def generate(labels: Tensor) -> Tensor:
            codes = torch.empty(len(labels), *encoded.codes.shape[1:], dtype=torch.int64)
            for w in guidance.unique().tolist():
                chosen = guidance[labels] == w
                codes[chosen] = torch.cat(
                    [
                        sample(prior, len(y), y, generator=generator, guidance=w)
                        for y in labels[chosen].split(128)
                    ]
                )
            return decode_codes(vqvae, codes)

        generator = torch.Generator().manual_seed(0)
        found = judge(generate(class_labels), class_labels)
        sampled = describe(generate(labels))
        return {
            "guidance": guidance.tolist(),
            "found": found,
            "kernel_distance_x1000": {
                name: [1000 * x for x in kernel_distance(real, sampled[name])]
                for name, real in real_features.items()
            },
        }

    results = load_results("every-class", {"split": "val", "n": len(val), "rows": {}})
    results |= {
        "data": repr(data),
        "samples_per_class": SAMPLES_PER_CLASS,
        "lesions": {c: int((labels == i).sum()) for i, c in enumerate(CLASSES)},
        "real": judge(reconstructions, labels),
    }
    rows, real = results["rows"], results["real"]

    def difference(row: dict[str, Any], judge: str) -> float:
        gaps = [abs(row["found"][judge][c] - rate) for c, rate in real[judge].items()]
        return sum(gaps) / len(gaps)

    def run(name: str, prior: PixelCNN, guidance: Tensor) -> None:
        if name not in rows:
            rows[name] = measure(prior, guidance)
            rows[name]["difference"] = {judge: difference(rows[name], judge) for judge in real}
            save_results("every-class", results)
        print(name, rows[name], flush=True)

    for name, model in priors.items():
        for w in GUIDANCE_WEIGHTS:
            run(f"{name}, w = {w:g}", model, torch.full((len(CLASSES),), w))
    for name, model in priors.items():
        best = [
            min(
                GUIDANCE_WEIGHTS,
                key=lambda w: abs(
                    rows[f"{name}, w = {w:g}"]["found"]["lesion classifier"][c]
                    - real["lesion classifier"][c]
                ),
            )
            for c in CLASSES
        ]
        run(f"{name}, w by class", model, torch.tensor(best))
    results["selected"] = min(rows, key=lambda name: rows[name]["difference"]["lesion classifier"])
    save_results("every-class", results)
    print("selected:", results["selected"])


if __name__ == "__main__":
    main()
