"""The pictures of README: samples of each class, and one image while it is drawn.

    python benchmarks/pictures.py        # seconds

All from the models that ship, at the sampler's defaults and without choosing: seed 0, in the order
in which they come. The last row shows lesions of the validation split as their codes show them.
Writes data/results/samples.jpg and data/results/drawing.webp.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch

from vqlib import CLASSES, EncodedDataset, load_pretrained, plots, sample
from vqlib.evaluation import RESULTS
from vqlib.weights import PRETRAINED


def main() -> None:
    plots.use_style()
    vqvae, prior = load_pretrained("ham10000")
    encoded = EncodedDataset.load(PRETRAINED / "ham10000" / "codes.safetensors")
    wanted = torch.arange(len(CLASSES)).repeat(3)
    drawn = sample(prior, len(wanted), wanted, generator=torch.Generator().manual_seed(0))
    val = encoded.split.val
    firsts = [val[encoded.labels[val] == c][0] for c in range(len(CLASSES))]
    codes = torch.cat([drawn, encoded.codes[torch.stack(firsts)]])
    rows = ["drawn", "drawn", "drawn", "held out"]
    figure = plots.images(vqvae.decode(codes), CLASSES, columns=len(CLASSES), rows=rows)
    figure.savefig(RESULTS / "samples.jpg", dpi=120, pil_kwargs={"quality": 80})
    plt.close(figure)

    stages = list(range(0, drawn[0].numel() + 1, prior.slots))
    is_drawn = torch.arange(drawn[0].numel()) < torch.tensor(stages)[:, None]
    growing = (drawn[1].flatten() * is_drawn).view(-1, *drawn[1].shape)
    film = plots.raster_animation(growing, stages, vqvae.decode(growing), prior.num_embeddings)
    (RESULTS / "drawing.webp").write_bytes(film)


if __name__ == "__main__":
    main()
