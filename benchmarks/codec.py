"""Train the codec for 288 bytes, `ham10000-codec`: a VQ-VAE and a prior that are trained together.

    python benchmarks/codec.py --data PATH        # hours on a CPU; call again to resume

The VQ-VAE `ham10000` has 288 bytes of codes, and its prior writes them in about 240. This codec has
larger codebooks, so that the file *after* entropy coding fills the budget. It starts from the
shipped weights: k-means gives the new codebooks, and the prior treats each new code like the old
code that is nearest to it. Then both models are trained together. The code of a vector z is the one
with the smallest sum of distortion and rate,

    argmin over k of ||z - e_k||^2 - rate_weight * log2 p(k | earlier codes)

where p is the prior, applied to the codes of the nearest-neighbor search. So codes that the prior
predicts are preferred, and the encoder learns, through the commitment loss, to produce predictable
vectors. The reconstruction loss is the mean *logarithm* of each image's MSE, because the mean PSNR
is what is compared.

Papers: Chou, Lookabaugh and Gray, "Entropy-Constrained Vector Quantization" (1989).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqlib import DEEP, PixelCNN, load_pretrained, open_dataset, save_model
from vqlib.checkpoints import PRETRAINED, fingerprint
from vqlib.data import ImageDataset, Pixels, batches, dihedral_transform
from vqlib.metrics import code_bits, psnr, to_8_bit
from vqlib.quantizer import count_codes, k_means, nearest_codes
from vqlib.training import Schedule, fit
from vqlib.vqvae import VQVAE, eval_mode

NAME, RUN = "ham10000-codec", "codec"
NUM_EMBEDDINGS = 1536
RATE_WEIGHT = 0.06  # squared distance in latent space for one bit
INIT_IMAGES = 3200
TYPICAL_MSE = 3.3e-4  # the mean of the logarithm is scaled like MSE / data_variance at this MSE
SCHEDULE = Schedule(lr=2e-4, warmup_steps=100, cosine_decay=True, grad_clip=1.0, ema_decay=0.998)
EPOCHS = 3


class Codec(nn.Module):
    """A VQ-VAE and a prior over its codes, with one training loss."""

    def __init__(self, num_embeddings: int = NUM_EMBEDDINGS) -> None:
        super().__init__()
        old_vqvae, old_prior = load_pretrained("ham10000")
        # The codebook is trained by gradient descent, so that the decoder's gradient reaches it.
        self.vqvae = VQVAE(num_embeddings, network="deep", ema_decay=None, restart_after=None)
        self.prior = PixelCNN(**old_prior.config | {"num_embeddings": num_embeddings})
        for new, old in ((self.vqvae, old_vqvae), (self.prior, old_prior)):
            shapes = {name: tensor.shape for name, tensor in new.state_dict().items()}
            kept = {k: v for k, v in old.state_dict().items() if shapes.get(k) == v.shape}
            new.load_state_dict(kept, strict=False)

    @torch.no_grad()
    def initialize(self, images: Iterator[Tensor]) -> None:
        """Larger codebooks by k-means, and the prior's rows for the new codes."""
        old_vqvae, old_prior = load_pretrained("ham10000")
        old, quantizer = old_vqvae.quantizer.codebook, self.vqvae.quantizer
        with eval_mode(self.vqvae):
            latents = torch.cat([self.vqvae.encoder(batch) for batch in images]).clone()
        vectors = quantizer._flatten(latents)
        codebook = k_means(vectors, quantizer.num_embeddings)
        quantizer.codebook.copy_(codebook)
        quantizer.initialized.fill_(True)
        counts = count_codes(nearest_codes(vectors, codebook).T, quantizer.num_embeddings) + 1
        parent = nearest_codes(codebook, old)  # (slots, K), the old code of each new one
        siblings = torch.zeros(old.shape[:2], dtype=torch.long).scatter_add_(1, parent, counts)
        rows = parent + old.shape[1] * torch.arange(len(old))[:, None]
        offset = (codebook.flatten(0, 1) - old.flatten(0, 1)[rows.flatten()]) / old.std(
            1, keepdim=True
        ).clamp_min(1e-6).expand(-1, codebook.shape[1], -1).flatten(0, 1)
        rows = rows.flatten()
        self.prior.embedding.weight.copy_(old_prior.embedding.weight[rows] + offset)
        self.prior.head.weight.copy_(old_prior.head.weight[rows])
        share = counts.log() - siblings.gather(1, parent).log()  # of its parent's probability
        self.prior.head.bias.copy_(old_prior.head.bias[rows] + share.flatten())

    @torch.no_grad()
    def choose_codes(
        self, latents: Tensor, labels: Tensor | None, orientations: Tensor | None
    ) -> Tensor:
        """Codes int64 (B, h, w, slots) with a small sum of distortion and rate."""
        quantizer = self.vqvae.quantizer
        vectors = quantizer._flatten(latents)
        nearest = quantizer._unflatten_indices(
            nearest_codes(vectors, quantizer.codebook), latents.shape
        )
        logits = self.prior(nearest, labels, orientations).float()  # (B, h, w, slots, K)
        bits = F.log_softmax(logits, -1).mul_(-1 / math.log(2)).permute(3, 0, 1, 2, 4).flatten(1, 3)
        with torch.autocast("cpu", enabled=False):
            half_norms = quantizer.codebook.square().sum(-1)[:, None]
            cost = torch.baddbmm(
                half_norms, vectors, quantizer.codebook.transpose(1, 2), beta=1, alpha=-2
            )
        codes = cost.add_(bits, alpha=RATE_WEIGHT).argmin(-1)
        return quantizer._unflatten_indices(codes, latents.shape)

    def loss(self, images: Tensor, labels: Tensor, orientations: Tensor) -> tuple[Tensor, dict]:
        """Loss and values to log; images float32 (B, 3, H, W), labels and orientations (B,)."""
        latents = self.vqvae.encoder(images).float()
        codes = self.choose_codes(latents, labels, orientations)
        vectors = self.vqvae.quantizer.look_up(codes)
        commitment = F.mse_loss(latents, vectors)  # moves both the encoder and the codebook
        # The decoder's gradient reaches the codebook, and through the estimator the encoder.
        decoded = self.vqvae.decoder(vectors + latents - latents.detach()).float()
        mse = (decoded - images).square().flatten(1).mean(1)
        distortion = TYPICAL_MSE / self.vqvae.data_variance * mse.log().mean()
        logits = self.prior(codes, labels, orientations).float().flatten(0, 3)
        rate = F.cross_entropy(logits, codes.flatten())
        psnr_db = -10 / math.log(10) * mse.log().mean()
        logged = {"psnr_db": psnr_db, "bits_per_code": rate / math.log(2), "commitment": commitment}
        # The rate's gradient reaches the prior only, so its weight does not matter much.
        return distortion + self.vqvae.quantizer.commitment_cost * commitment + 0.01 * rate, logged


def train_codec(data: ImageDataset, run: str | Path = RUN, seed: int = 0) -> Codec:
    """Train the codec, continue its training, or load it if its training is finished."""
    split, pixels = DEEP.split(data), data.pixels(256)
    codec = Codec()

    def initialize() -> None:
        batches_of_32 = batches(pixels, split.train[:INIT_IMAGES], 32, shuffle=False)
        codec.initialize(images for images, _ in batches_of_32)

    def get_batches(epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images, labels and orientations; an orientation is the index of a dihedral transform."""
        for b, (images, indices) in enumerate(
            batches(pixels, split.train, DEEP.batch_size, None, seed, epoch, start), start
        ):
            generator = torch.Generator().manual_seed((seed * 1000 + epoch) * 100_003 + b)
            orientations = torch.randint(8, (len(images),), generator=generator)
            without_label = torch.rand(len(images), generator=generator) < DEEP.label_dropout
            labels = data.labels[indices].masked_fill(without_label, codec.prior.num_classes)
            turned = [dihedral_transform(x, int(i)) for x, i in zip(images, orientations)]
            images = torch.stack(turned).contiguous(memory_format=torch.channels_last)
            yield images, labels, orientations

    trained_on = {"pixels": pixels.fingerprint, "split": fingerprint(*split)}
    settings = {"k": NUM_EMBEDDINGS, "rate_weight": RATE_WEIGHT, "init_images": INIT_IMAGES}
    fit(
        codec,
        run=run,
        config={"kind": "codec", "settings": settings, **trained_on},
        schedule=SCHEDULE,
        epochs=EPOCHS,
        steps_per_epoch=-(-len(split.train) // DEEP.batch_size),
        get_batches=get_batches,
        compute_loss=lambda batch: codec.loss(*batch),
        evaluate=lambda folder, epoch: (
            evaluate_codec(codec, pixels, split.val, data.labels),
            None,
        ),
        initialize=initialize,
        device="cpu",
        seed=seed,
        save_every=120,
    )
    return codec.eval()


def evaluate_codec(
    codec: Codec, pixels: Pixels, indices: Tensor, labels: Tensor, count: int = 200
) -> dict[str, float]:
    """PSNR of 8-bit pixels and bytes of `count` images with the codes of `choose_codes`."""
    psnr_db, num_bytes = [], []
    with eval_mode(codec):
        for images, batch in batches(pixels, indices[:count], 25, shuffle=False):
            latents = codec.vqvae.encoder(images)
            codes = codec.choose_codes(latents, labels[batch], None)
            num_bytes.append(code_bits(codec.prior, codes, labels[batch]).flatten(1).sum(1) / 8)
            psnr_db.append(psnr(to_8_bit(codec.vqvae.decode(codes)), images))
    return {
        "psnr_db": float(torch.cat(psnr_db).mean()),
        "bytes": float(torch.cat(num_bytes).mean()),
    }


def write_pretrained(codec: Codec, data: ImageDataset) -> None:
    """Store the weights in data/pretrained in float16."""
    codec.prior.trained_on_codebook = codec.vqvae.codebook_fingerprint
    notes = {"data": repr(data), "classes": data.classes, "grid": [8, 8]}
    for name in ("vqvae", "prior"):
        path = PRETRAINED / NAME / f"{name}.safetensors"
        save_model(getattr(codec, name), path, torch.float16, **notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    data = open_dataset(options.data)
    write_pretrained(train_codec(data), data)


if __name__ == "__main__":
    main()
