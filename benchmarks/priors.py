"""What each part of the prior and of its training is worth, in bits per code on held-out lesions.

    python benchmarks/priors.py --data PATH        # each a quarter of an hour; again to resume

All learn the same codes, those of the VQ-VAE that ships, with the same steps and seed, and differ
from the first by what their name says. The weights kept are those of the epoch with the fewest bits
on the validation split. Results go to data/results/priors.json, which notebook 04 shows.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlib import (
    WORKBOOK,
    MaskedConv2d,
    PixelCNN,
    ResidualMaskedConv2d,
    encode_dataset,
    load_model,
    open_dataset,
    train_prior,
)
from vqlib.codes import EncodedDataset, add_turned
from vqlib.curves import read_log
from vqlib.data import work_dir
from vqlib.evaluation import load_results, save_results
from vqlib.metrics import table_bits
from vqlib.pixelcnn import SlotNorm
from vqlib.weights import MODELS, PRETRAINED


class Bare(PixelCNN):
    """Without three of its parts, each of which a subclass gives back. Its embeddings start as 32
    random numbers, so that it has to find out which codes are alike; its vertical stack is not told
    the mean so far (weights that stay 0); nor it the orientation."""

    from_codebook = so_far = told = False

    def __init__(
        self, *args: Any, embedding_dim: int, orientations: int = 1, **options: Any
    ) -> None:
        super().__init__(
            *args,
            embedding_dim=embedding_dim if self.from_codebook else 32,
            orientations=orientations if self.told else 1,
            **options,
        )
        self.orientations.requires_grad_(self.told)
        for block in self.blocks:
            block.so_far.requires_grad_(self.so_far)

    def start_from(self, codebook: Tensor) -> None:
        if self.from_codebook:
            super().start_from(codebook)

    def conditions(
        self, n: int, labels: Tensor | None = None, orientations: Tensor | None = None
    ) -> Tensor:
        return super().conditions(n, labels, orientations if self.told else None)


class FromCodebook(Bare):
    from_codebook = True


class MeanSoFar(Bare):
    so_far = True


class ToldOrientation(Bare):
    told = True


class PlainPixelCNN(Bare):
    """The report's stack (masked 7x7, eight residual masked 3x3, masked 1x1), with everything that
    `PixelCNN` has but the two stacks."""

    def __init__(
        self, num_embeddings: int = 512, codes_per_position: int = 4, conv_filters: int = 120,
        num_classes: int = 7, *, embedding_dim: int, blocks: int = 8, dropout: float = 0.1,
        orientations: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(
            num_embeddings, codes_per_position, conv_filters, num_classes,
            embedding_dim=embedding_dim, blocks=0, dropout=dropout,
        )  # fmt: skip
        slots, filters = codes_per_position, conv_filters
        embedding_dim = self.config["embedding_dim"]
        self.config |= {"blocks": blocks}
        del self.above, self.left, self.here
        self.labels = nn.Embedding(num_classes + 1, (blocks + 1) * filters)
        nn.init.zeros_(self.labels.weight)
        self.orientations = nn.Parameter(torch.zeros(1, (blocks + 1) * filters), False)
        self.first = MaskedConv2d("A", slots * embedding_dim, filters, 7, slots=slots)
        self.first_norm = SlotNorm(filters, slots)
        self.blocks = nn.ModuleList(
            ResidualMaskedConv2d(filters, lambda c: SlotNorm(c, slots), slots, dropout)
            for _ in range(blocks)
        )

    def predict(
        self, x: Tensor, labels: Tensor | None = None, orientations: Tensor | None = None
    ) -> Tensor:
        conditions = self.conditions(len(x), labels)[:, :, None, None]
        conditions = conditions.chunk(len(self.blocks) + 1, dim=1)
        x = F.relu(self.first_norm(self.first(x) + conditions[0]))
        for block, condition in zip(self.blocks, conditions[1:], strict=True):
            x = block(x, condition)
        logits = self.head(x).unflatten(1, (self.slots, self.num_embeddings))
        return logits.permute(0, 3, 4, 1, 2)


MODELS |= {c.__name__: c for c in (Bare, FromCodebook, MeanSoFar, ToldOrientation, PlainPixelCNN)}


def weights_used(prior: PixelCNN) -> int:
    """Parameters that are learnt, and that no mask sets to zero."""
    masked = sum(int((m.mask == 0).sum()) for m in prior.modules() if isinstance(m, MaskedConv2d))
    return sum(p.numel() for p in prior.parameters() if p.requires_grad) - masked


EPOCHS = 12
CHANGES: dict[str, dict[str, Any]] = {
    "two gated stacks": {},
    "one plain stack": {"prior": PlainPixelCNN, "conv_filters": 120},
    "one orientation": {"orientations": 1},
    "embeddings from the codebook": {"prior": FromCodebook},
    "mean of the rows so far": {"prior": MeanSoFar},
    "told the orientation": {"prior": ToldOrientation},
    "all three": {"prior": PixelCNN},
    "dropout 0.3": {"dropout": 0.3},
    "wider": {"conv_filters": 96},
    "no weight average": {"schedule": replace(WORKBOOK.schedule, average=None)},
}


def run(name: str, encoded: EncodedDataset, epochs: int) -> dict[str, Any]:
    options = {"conv_filters": 72} | CHANGES[name]
    if options.pop("orientations", 8) == 1:
        encoded = replace_turned(encoded)
    recipe = replace(
        WORKBOOK,
        name=name,
        prior=options.pop("prior", Bare),
        schedule=options.pop("schedule", WORKBOOK.schedule),
    )
    folder = f"prior-{name.replace(' ', '-')}"
    prior = train_prior(encoded, recipe, run=folder, epochs=epochs, **options)
    steps, held_out = read_log(folder)
    best = min(range(len(held_out)), key=lambda i: held_out[i]["held_out"]["bits_per_code"])
    each = len(steps) // len(held_out)
    return {
        "change": name,
        "weights": weights_used(prior),
        "epochs": epochs,
        "best_epoch": best + 1,
        "bits_per_code": held_out[best]["held_out"]["bits_per_code"],
        "last_bits_per_code": held_out[-1]["held_out"]["bits_per_code"],
        "train_bits_per_code": sum(s["bits_per_code"] for s in steps[-each:]) / each,
        "n": len(encoded.split.val),
    }


def replace_turned(encoded: EncodedDataset) -> EncodedDataset:
    e = encoded
    return EncodedDataset(e.codes, e.labels, e.split, e.codebook, e.source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of images; default: as open_dataset()")
    parser.add_argument("--only", nargs="*", default=list(CHANGES), help="names of changes")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    data, path = open_dataset(options.data), work_dir() / "turned.safetensors"
    if path.is_file():
        encoded = EncodedDataset.load(path)
    else:
        vqvae = load_model(PRETRAINED / "ham10000" / "vqvae.safetensors")
        encoded = encode_dataset(vqvae, data)
        add_turned(encoded, vqvae, data)
        encoded.save(path)
    table = load_results("priors", {"rows": []})
    train, val = encoded.codes[encoded.split.train], encoded.codes[encoded.split.val]
    table |= {"data": encoded.source, "split": "val"}
    table["tables"] = table_bits(train, val, encoded.num_embeddings)
    done = {row["change"] for row in table["rows"]}
    for name in options.only:
        if name not in done:
            table["rows"].append(run(name, encoded, options.epochs))
            save_results("priors", table)
            print(table["rows"][-1])


if __name__ == "__main__":
    main()
