"""Ablation of the prior: effect of its parts and of its training on held-out bits per code.

    python benchmarks/priors.py --data PATH        # 15 minutes per run; call again to resume

All priors are trained on the same codes, those of the pretrained VQ-VAE, with the same number of
steps and the same seed. Each differs from the first one in what its name says. The weights of the
epoch with the fewest bits per code on the validation split are kept. The results are written to
data/results/priors.json, which notebook 04 shows.
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
from vqlib.checkpoints import MODELS, PRETRAINED, read_log, work_dir
from vqlib.codes import EncodedDataset, add_augmented
from vqlib.evaluation.results import load_results, save_results
from vqlib.metrics import baseline_bits
from vqlib.pixelcnn import SlotLayerNorm


class BaselinePixelCNN(PixelCNN):
    """PixelCNN without three of its parts; each subclass adds one of them.

    The embeddings are random with 32 dimensions, so that similarities between codes have to be
    learned. The causal mean is not used (its weights stay 0). The prior is not conditioned on the
    orientation.
    """

    use_codebook_embeddings = use_causal_mean = use_orientation = False

    def __init__(
        self, *args: Any, embedding_dim: int, orientations: int = 1, **options: Any
    ) -> None:
        super().__init__(
            *args,
            embedding_dim=embedding_dim if self.use_codebook_embeddings else 32,
            orientations=orientations if self.use_orientation else 1,
            **options,
        )
        self.orientation_embedding.requires_grad_(self.use_orientation)
        for block in self.blocks:
            block.causal_mean_weight.requires_grad_(self.use_causal_mean)

    def initialize_embeddings(self, codebook: Tensor) -> None:
        if self.use_codebook_embeddings:
            super().initialize_embeddings(codebook)

    def conditional_bias(
        self, n: int, labels: Tensor | None = None, orientations: Tensor | None = None
    ) -> Tensor:
        return super().conditional_bias(n, labels, orientations if self.use_orientation else None)


class CodebookEmbeddings(BaselinePixelCNN):
    use_codebook_embeddings = True


class CausalMean(BaselinePixelCNN):
    use_causal_mean = True


class OrientationConditioned(BaselinePixelCNN):
    use_orientation = True


class SingleStackPixelCNN(BaselinePixelCNN):
    """One stack of masked convolutions as in the report (7x7, eight residual 3x3, 1x1), with slots,
    embeddings, labels and `SlotLayerNorm` as in `BaselinePixelCNN`, but without gates and without
    the second stack. It has 120 channels instead of 72, for about the same number of weights. The
    comparison does not separate the effect of gating from that of the second stack."""

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
        del self.vertical, self.horizontal, self.center
        self.label_embedding = nn.Embedding(num_classes + 1, (blocks + 1) * filters)
        nn.init.zeros_(self.label_embedding.weight)
        self.orientation_embedding = nn.Parameter(torch.zeros(1, (blocks + 1) * filters), False)
        self.first = MaskedConv2d("A", slots * embedding_dim, filters, 7, slots=slots)
        self.first_norm = SlotLayerNorm(filters, slots)
        self.blocks = nn.ModuleList(
            ResidualMaskedConv2d(filters, lambda c: SlotLayerNorm(c, slots), slots, dropout)
            for _ in range(blocks)
        )

    def forward_embedded(
        self, x: Tensor, labels: Tensor | None = None, orientations: Tensor | None = None
    ) -> Tensor:
        conditions = self.conditional_bias(len(x), labels)[:, :, None, None]
        conditions = conditions.chunk(len(self.blocks) + 1, dim=1)
        x = F.relu(self.first_norm(self.first(x) + conditions[0]))
        for block, condition in zip(self.blocks, conditions[1:], strict=True):
            x = block(x, condition)
        logits = self.head(x).unflatten(1, (self.slots, self.num_embeddings))
        return logits.permute(0, 3, 4, 1, 2)


PRIORS = (
    BaselinePixelCNN,
    CodebookEmbeddings,
    CausalMean,
    OrientationConditioned,
    SingleStackPixelCNN,
)
MODELS |= {prior.__name__: prior for prior in PRIORS}


def count_trained_weights(prior: PixelCNN) -> int:
    """Number of trained parameters that are not masked."""
    masked = sum(int((m.mask == 0).sum()) for m in prior.modules() if isinstance(m, MaskedConv2d))
    return sum(p.numel() for p in prior.parameters() if p.requires_grad) - masked


EPOCHS = 12
CHANGES: dict[str, dict[str, Any]] = {
    "two gated stacks": {},
    "one plain stack": {"prior": SingleStackPixelCNN, "conv_filters": 120},
    "one orientation instead of eight": {"orientations": 1},
    "embeddings from the codebook": {"prior": CodebookEmbeddings},
    "causal mean over the rows above": {"prior": CausalMean},
    "conditioned on the orientation": {"prior": OrientationConditioned},
    "embeddings, causal mean and orientation": {"prior": PixelCNN},
    "dropout 0.3": {"dropout": 0.3},
    "wider layers": {"conv_filters": 96},
    "no EMA of the weights": {"schedule": replace(WORKBOOK.schedule, ema_decay=None)},
}


def run(name: str, encoded: EncodedDataset, epochs: int) -> dict[str, Any]:
    options = {"conv_filters": 72} | CHANGES[name]
    if options.pop("orientations", 8) == 1:
        encoded = without_augmented(encoded)
    recipe = replace(
        WORKBOOK,
        name=name,
        prior=options.pop("prior", BaselinePixelCNN),
        schedule=options.pop("schedule", WORKBOOK.schedule),
    )
    folder = f"prior-{name.replace(' ', '-')}"
    prior = train_prior(encoded, recipe, run=folder, epochs=epochs, **options)
    steps, held_out = read_log(folder)
    best = min(range(len(held_out)), key=lambda i: held_out[i]["held_out"]["bits_per_code"])
    steps_per_epoch = len(steps) // len(held_out)
    last_steps = steps[-steps_per_epoch:]
    return {
        "change": name,
        "parameters": count_trained_weights(prior),
        "epochs": epochs,
        "best_epoch": best + 1,
        "bits_per_code": held_out[best]["held_out"]["bits_per_code"],
        "last_bits_per_code": held_out[-1]["held_out"]["bits_per_code"],
        "train_bits_per_code": sum(s["bits_per_code"] for s in last_steps) / steps_per_epoch,
        "n": len(encoded.split.val),
    }


def without_augmented(encoded: EncodedDataset) -> EncodedDataset:
    return EncodedDataset(
        encoded.codes, encoded.labels, encoded.split, encoded.codebook, encoded.source
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    parser.add_argument(
        "--only", nargs="*", default=list(CHANGES), help="names of the changes to run"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of each run")
    options = parser.parse_args()
    data, path = open_dataset(options.data), work_dir() / "augmented.safetensors"
    if path.is_file():
        encoded = EncodedDataset.load(path)
    else:
        vqvae = load_model(PRETRAINED / "ham10000" / "vqvae.safetensors")
        encoded = encode_dataset(vqvae, data)
        add_augmented(encoded, vqvae, data)
        encoded.save(path)
    table = load_results("priors", {"rows": []})
    train, val = encoded.codes[encoded.split.train], encoded.codes[encoded.split.val]
    table |= {"data": encoded.source, "split": "val"}
    table["counting_baselines"] = baseline_bits(train, val, encoded.num_embeddings)
    done = {row["change"] for row in table["rows"]}
    for name in options.only:
        if name not in done:
            table["rows"].append(run(name, encoded, options.epochs))
            save_results("priors", table)
            print(table["rows"][-1])


if __name__ == "__main__":
    main()
