"""Diagram of notebook 09: the system of the report, and where it is examined."""

from __future__ import annotations

from . import arrow, box, canvas

# Text, kind and number of the task that examines it; None: no task of its own.
VQVAE_ROW = [
    ("image\n600 x 450", "data", None),
    ("resize, rotate,\nnormalize", "data", "2, 3"),
    ("encoder", "layer", "1, 5"),
    ("quantizer\n512 codes", "codes", "1"),
    ("decoder,\nsigmoid", "layer", "1"),
    ("MSE against\nthe input", "loss", "4"),
]
PRIOR_ROW = [
    ("vectors of\nthe training\nimages", "data", "5, 6"),
    ("masked\nconvolutions", "layer", None),
    ("MSE in\ntraining", "loss", "7"),
    ("256 channels\nas logits", "codes", "8"),
    ("64 samples\nfor an image", "codes", "9"),
    ("codebook,\ndecoder", "layer", "10"),
]


def report_system() -> None:
    """Two rows of boxes, the VQ-VAE above the prior, each box with the tasks that examine it."""
    axes = canvas(18, 7.2, "The system of the report, and the tasks that examine its parts")
    legend = "blue: data, transforms   orange: layers   green: codes, numbers as codes   red: loss"
    axes.text(9, 0.0, legend, ha="center", va="bottom", fontsize=8.5)
    rows = ((4.2, "VQ-VAE", VQVAE_ROW), (0.6, "Prior and sampling", PRIOR_ROW))
    for y, name, row in rows:
        axes.text(0.2, y + 2.15, name, ha="left", va="bottom", fontsize=10, weight="bold")
        for i, (text, kind, tasks) in enumerate(row):
            x = 0.2 + 3.0 * i
            box(axes, x, y, 2.4, 1.5, text, kind, 8.5)
            if tasks is not None:
                word = "tasks" if "," in tasks else "task"
                axes.text(
                    x + 1.2, y + 1.58, f"{word} {tasks}", ha="center", va="bottom", fontsize=8.5
                )
            if i:
                arrow(axes, (x - 0.6, y + 0.75), (x, y + 0.75))
