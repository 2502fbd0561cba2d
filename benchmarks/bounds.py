"""Effect of the quantization: both pretrained networks, trained further without their quantizer.

    python benchmarks/bounds.py --data PATH        # an hour on a CPU; call again to resume

Each training starts from the pretrained weights, with unquantized latents: 16,384 numbers per image
instead of 288 bytes. The result estimates the upper bound of the network's PSNR. Its distance to
the pretrained model is the loss by quantization; the remaining error is that of the network itself.
Held-out lesions; the results are written to data/results/bounds.json, which notebook 06 shows.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

from ablation import IdentityQuantizer

from vqlib import DEEP, load_model, open_dataset, train_vqvae
from vqlib.checkpoints import PRETRAINED, pretrained_names
from vqlib.evaluation.results import load_results, save_results
from vqlib.metrics import evaluate_vqvae
from vqlib.vqvae import VQVAE

EPOCHS = 3


def load_without_quantizer(name: str) -> VQVAE:
    """The pretrained VQ-VAE of this name; its quantizer returns its input."""
    vqvae = load_model(PRETRAINED / name / "vqvae.safetensors")
    assert isinstance(vqvae, VQVAE)
    vqvae.quantizer.__class__ = IdentityQuantizer  # same parameters and buffers, another forward()
    return vqvae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    data = open_dataset(parser.parse_args().data)
    table = load_results("bounds", {"rows": {}})
    table |= {"data": repr(data), "split": "val", "epochs": EPOCHS}
    for name in pretrained_names():
        if name in table["rows"] or name == "ham10000-codec":
            continue
        # The recipe with the small learning rate, because the weights are pretrained.
        recipe = replace(DEEP, vqvae=partial(load_without_quantizer, name), init_images=0)
        vqvae = train_vqvae(data, recipe, run=f"bound-{name}", epochs=EPOCHS)
        summary = evaluate_vqvae(vqvae, data.pixels(256), recipe.split(data).val).summary()
        table["rows"][name] = {key: summary[key] for key in ("n", "psnr_db", "ssim")}
        save_results("bounds", table)
        print(name, table["rows"][name])


if __name__ == "__main__":
    main()
