"""Figures: samples of each class for README.md, the stages of one sample for the results page.

    python benchmarks/pictures.py        # takes seconds

Pretrained models and default sampling options, seed 0, without selection. The last row of the first
figure shows reconstructions of lesions of the validation split. In the second figure, codes that
are not sampled yet are decoded as code 0. Writes data/results/samples.jpg and
data/results/sampling.webp.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch

from vqlib import CLASSES, EncodedDataset, load_pretrained, sample
from vqlib.checkpoints import PRETRAINED
from vqlib.course import plots
from vqlib.evaluation.results import RESULTS


def main() -> None:
    plots.use_style()
    vqvae, prior = load_pretrained("ham10000")
    encoded = EncodedDataset.load(PRETRAINED / "ham10000" / "codes.safetensors")
    labels = torch.arange(len(CLASSES)).repeat(3)
    samples = sample(prior, len(labels), labels, generator=torch.Generator().manual_seed(0))
    val = encoded.split.val
    first_of_class = [val[encoded.labels[val] == c][0] for c in range(len(CLASSES))]
    codes = torch.cat([samples, encoded.codes[torch.stack(first_of_class)]])
    rows = ["sample", "sample", "sample", "held-out lesion"]
    figure = plots.image_grid(vqvae.decode(codes), CLASSES, columns=len(CLASSES), rows=rows)
    figure.savefig(RESULTS / "samples.jpg", dpi=120, pil_kwargs={"quality": 80})
    plt.close(figure)

    stages = list(range(0, samples[0].numel() + 1, prior.slots))
    is_sampled = torch.arange(samples[0].numel()) < torch.tensor(stages)[:, None]
    partial_codes = (samples[1].flatten() * is_sampled).view(-1, *samples[1].shape)
    images = vqvae.decode(partial_codes)
    some = encoded.codes[encoded.split.train[::64]]
    colors = plots.code_colors(some, vqvae.decode(some), prior.num_embeddings)
    animation = plots.sampling_animation(partial_codes, stages, images, colors)
    (RESULTS / "sampling.webp").write_bytes(animation)


if __name__ == "__main__":
    main()
