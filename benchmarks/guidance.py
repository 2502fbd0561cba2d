"""Effect of classifier-free guidance on samples: recognizability of the class, and realism.

    python benchmarks/guidance.py --data PATH        # a few minutes

Pretrained models; default sampling options, except for the guidance weight w. For each w two sets
are generated. One has as many images as the validation split, with the same labels; it is compared
with the photographs (kernel distance, precision and recall, as in `evaluate_samples`). The other
has the same number of images for each class; it shows how often the classifier predicts the
requested class (balanced accuracy). For comparison, the same is measured for the photographs of val
and for their reconstructions. The results are written to data/results/guidance.json.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from vqlib import CLASSES, load_model, load_pretrained, open_dataset, sample
from vqlib.checkpoints import PRETRAINED
from vqlib.evaluation.generation import decode_codes
from vqlib.evaluation.results import save_results
from vqlib.evaluation.set_measures import kernel_distance, precision_recall
from vqlib.lesions.classifier import balanced_accuracy
from vqlib.metrics import predict_images

GUIDANCE_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    data = open_dataset(parser.parse_args().data)
    val = data.split().val
    pixels, labels = data.pixels(256)[val], data.labels[val]
    vqvae, prior = load_pretrained("ham10000")
    classifier = load_model(PRETRAINED / "ham10000" / "classifier.safetensors")
    balanced_labels = torch.arange(len(val)) % len(CLASSES)

    def generate(labels: Tensor, w: float) -> Tensor:
        codes = sample(prior, len(labels), labels, generator=generator, guidance=w)
        return decode_codes(vqvae, codes)

    def accuracy(images: Tensor, labels: Tensor) -> float:
        return balanced_accuracy(predict_images(classifier, images), labels)

    real_features = predict_images(classifier, pixels, return_features=True)
    val_codes = torch.cat([vqvae.encode(part / 255) for part in pixels.split(32)])
    table = {
        "data": repr(data),
        "split": "val",
        "n": len(val),
        "real_balanced_accuracy": accuracy(pixels, labels),
        "reconstructions_balanced_accuracy": accuracy(decode_codes(vqvae, val_codes), labels),
        "rows": [],
    }
    print(table)
    for w in GUIDANCE_WEIGHTS:
        generator = torch.Generator().manual_seed(0)
        features = predict_images(classifier, generate(labels, w), return_features=True)
        distance, standard_error = kernel_distance(real_features, features)
        precision, recall = precision_recall(real_features, features)
        row = {
            "guidance": w,
            "kernel_distance": distance,
            "standard_error": standard_error,
            "precision": precision,
            "recall": recall,
            "balanced_accuracy": accuracy(generate(balanced_labels, w), balanced_labels),
        }
        table["rows"].append(row)
        print(row, flush=True)
    save_results("guidance", table)


if __name__ == "__main__":
    main()
