"""What each part of the prior and of its training is worth, in bits per code on held-out lesions.

    python benchmarks/priors.py --data PATH        # each a quarter of an hour; again to resume

All learn the same codes, those of the VQ-VAE that ships, with the same steps and seed, and differ
from the first by what their name says. The weights kept are those of the epoch with the fewest bits
on the validation split. Results go to data/results/priors.json, which notebook 04 shows.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlib import (
    WORKBOOK,
    MaskedConv2d,
    PixelCNN,
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


class GatedBlock(nn.Module):
    """Two stacks side by side: what lies above, and what lies to the left in the same row."""

    def __init__(self, filters: int, slots: int, dropout: float) -> None:
        super().__init__()
        self.slots = slots
        self.vertical = nn.Conv2d(filters, 2 * filters, (2, 3), padding=(0, 1))
        self.vertical_norm = SlotNorm(2 * filters)
        self.left = nn.Conv2d(filters, 2 * filters, 1, bias=False)
        self.own = MaskedConv2d("B", filters, 2 * filters, 1, slots=slots)
        self.from_vertical = nn.Conv2d(filters, 2 * filters, 1, bias=False)
        self.norm = SlotNorm(2 * filters, slots)
        self.out = MaskedConv2d("B", filters, filters, 1, slots=slots)
        self.dropout = nn.Dropout(dropout)

    def gate(self, x: Tensor) -> Tensor:
        """tanh(a) * sigmoid(b), with a and b from the same slot."""
        a, b = x.unflatten(1, (self.slots, 2, -1)).unbind(2)
        return (a.tanh() * b.sigmoid()).flatten(1, 2)

    def forward(self, v: Tensor, h: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        above = self.gate(self.vertical_norm(self.vertical(F.pad(v, (0, 0, 1, 0)))))
        shifted = F.pad(h, (1, 0))[..., :-1]
        mixed = self.left(shifted) + self.own(h) + self.from_vertical(above) + condition
        return v + self.dropout(above), h + self.dropout(self.out(self.gate(self.norm(mixed))))


class GatedPixelCNN(PixelCNN):
    """The two-stack prior without a blind spot.

    Source: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders" (2016),
    arXiv:1606.05328, sections 2.1 (gates), 2.2 (blind spot) and figure 2; normalised as ours is.
    """

    def __init__(
        self, num_embeddings: int = 512, codes_per_position: int = 4, conv_filters: int = 64,
        num_classes: int = 7, *, embedding_dim: int = 32, blocks: int = 8, dropout: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__(
            num_embeddings, codes_per_position, conv_filters, num_classes,
            embedding_dim=embedding_dim, blocks=0, dropout=dropout,
        )  # fmt: skip
        slots, filters, channels = (
            codes_per_position,
            conv_filters,
            codes_per_position * embedding_dim,
        )
        self.config |= {"blocks": blocks}
        del self.first, self.first_norm
        self.labels = nn.Embedding(num_classes + 1, blocks * 2 * filters)
        nn.init.zeros_(self.labels.weight)
        self.above = nn.Conv2d(channels, filters, (3, 7), padding=(0, 3))
        self.left = nn.Conv2d(channels, filters, (1, 3), bias=False)
        self.own = MaskedConv2d("A", channels, filters, 1, slots=slots)
        self.blocks = nn.ModuleList(GatedBlock(filters, slots, dropout) for _ in range(blocks))

    def predict(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            labels = torch.full((len(x),), self.num_classes, device=x.device)
        conditions = self.labels(labels)[:, :, None, None].chunk(len(self.blocks), dim=1)
        v = self.above(F.pad(x, (0, 0, 3, 0))[:, :, :-1])  # rows above only
        h = self.left(F.pad(x, (3, 0))[..., :-1]) + self.own(x)
        for block, condition in zip(self.blocks, conditions, strict=True):
            v, h = block(v, h, condition)
        logits = self.head(h).unflatten(1, (self.slots, self.num_embeddings))
        return logits.permute(0, 3, 4, 1, 2)


MODELS["GatedPixelCNN"] = GatedPixelCNN


def weights_used(prior: PixelCNN) -> int:
    """Parameters that no mask sets to zero."""
    masked = sum(int((m.mask == 0).sum()) for m in prior.modules() if isinstance(m, MaskedConv2d))
    return sum(p.numel() for p in prior.parameters()) - masked


def from_codebook(codebook: Tensor, *args: Any, **options: Any) -> PixelCNN:
    """Codes whose vectors are close start with embeddings that are close."""
    slots, _, depth = codebook.shape
    prior = PixelCNN(*args, embedding_dim=depth, **options)
    spread = codebook.std(1, keepdim=True)
    prior.embedding.weight.data.copy_(
        ((codebook - codebook.mean(1, keepdim=True)) / spread).flatten(0, 1)
    )
    return prior


EPOCHS = 24
CHANGES: dict[str, dict[str, Any]] = {
    "plain stack": {},
    "two gated stacks": {"prior": GatedPixelCNN, "conv_filters": 72},
    "one orientation": {"orientations": 1},
    "embeddings from the codebook": {"prior": from_codebook},
    "dropout 0.3": {"dropout": 0.3},
    "twice as wide": {"conv_filters": 240},
    "no weight average": {"schedule": replace(WORKBOOK.schedule, average=None)},
}


def run(name: str, encoded: EncodedDataset, epochs: int) -> dict[str, Any]:
    options = dict(CHANGES[name])
    if options.pop("orientations", 8) == 1:
        encoded = replace_turned(encoded)
    make = options.pop("prior", PixelCNN)
    if make is from_codebook:
        make = partial(from_codebook, encoded.codebook)
    recipe = replace(
        WORKBOOK, name=name, prior=make, schedule=options.pop("schedule", WORKBOOK.schedule)
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
