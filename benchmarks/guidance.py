"""What guidance towards the class does to samples: more typical of it, or less like real lesions?

    python benchmarks/guidance.py --data PATH        # a few minutes

The models that ship, the sampler's defaults but for the guidance w. Two sets for each w: as many
lesions as the split val has, of its classes, beside its photographs (kernel distance, precision and
recall, as in `judge`); and the same number of each class, to see how often the classifier finds the
class that was asked for (mean over the classes, as balanced accuracy). The photographs of val, and
these after coding, say how often it is found in real lesions. Results go to
data/results/guidance.json.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from vqlib import CLASSES, load_model, load_pretrained, open_dataset, sample
from vqlib.classifier import balanced_accuracy, classify
from vqlib.evaluation import save_results
from vqlib.judging import kernel_distance, precision_recall
from vqlib.weights import PRETRAINED

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of images; default: as open_dataset()")
    data = open_dataset(parser.parse_args().data)
    val = data.split().val
    pixels, labels = data.pixels(256)[val], data.labels[val]
    vqvae, prior = load_pretrained("ham10000")
    classifier = load_model(PRETRAINED / "ham10000" / "classifier.safetensors")
    balanced = torch.arange(len(val)) % len(CLASSES)

    def decoded(codes: Tensor) -> Tensor:
        return torch.cat([(255 * vqvae.decode(c)).round().byte() for c in codes.split(32)])

    def pictures(wanted: Tensor, w: float) -> Tensor:
        return decoded(sample(prior, len(wanted), wanted, generator=generator, guidance=w))

    def class_found(images: Tensor, wanted: Tensor) -> float:
        return balanced_accuracy(classify(classifier, images), wanted)

    real = classify(classifier, pixels, describe=True)
    coded = torch.cat([vqvae.encode(part / 255) for part in pixels.split(32)])
    table = {
        "data": repr(data),
        "split": "val",
        "n": len(val),
        "real_class_found": class_found(pixels, labels),
        "reconstructions_class_found": class_found(decoded(coded), labels),
        "rows": [],
    }
    print(table)
    for w in STRENGTHS:
        generator = torch.Generator().manual_seed(0)
        drawn = classify(classifier, pictures(labels, w), describe=True)
        distance, error = kernel_distance(real, drawn)
        precision, recall = precision_recall(real, drawn)
        row = {
            "guidance": w,
            "kernel_distance": distance,
            "standard_error": error,
            "precision": precision,
            "recall": recall,
            "class_found": class_found(pictures(balanced, w), balanced),
        }
        table["rows"].append(row)
        print(row, flush=True)
    save_results("guidance", table)


if __name__ == "__main__":
    main()
