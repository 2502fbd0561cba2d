"""What the codes cost: both networks that ship, without their quantizer.

    python benchmarks/bounds.py --data PATH        # an hour on a CPU; run again to resume

Each goes on from the weights that ship, with latents as they are in place of codes: 4,096 numbers
an image instead of 288 bytes. It estimates the most that this network could reach: the distance to
the model that ships is the price of the codes, and the rest is the network's own blur. Held-out
lesions; results go to data/results/bounds.json, which notebook 02 shows.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

from ablation import NoQuantizer

from vqlib import DEEP, load_model, open_dataset, train_vqvae
from vqlib.evaluation import load_results, save_results
from vqlib.metrics import evaluate_vqvae
from vqlib.vqvae import VQVAE
from vqlib.weights import PRETRAINED, shipped

EPOCHS = 3


def unquantized(name: str) -> VQVAE:
    vqvae = load_model(PRETRAINED / name / "vqvae.safetensors")
    assert isinstance(vqvae, VQVAE)
    vqvae.quantizer.__class__ = NoQuantizer  # same state, another rule
    return vqvae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of images; default: as open_dataset()")
    data = open_dataset(parser.parse_args().data)
    table = load_results("bounds", {"rows": {}})
    table |= {"data": repr(data), "split": "val", "epochs": EPOCHS}
    for name in shipped():
        if name in table["rows"]:
            continue
        # Of the recipes the one that starts near its goal: small steps, and no fresh start.
        recipe = replace(DEEP, vqvae=partial(unquantized, name), start_images=0)
        vqvae = train_vqvae(data, recipe, run=f"bound-{name}", epochs=EPOCHS)
        found = evaluate_vqvae(vqvae, data.pixels(256), recipe.split(data).val).summary()
        table["rows"][name] = {key: found[key] for key in ("n", "psnr_db", "ssim")}
        save_results("bounds", table)
        print(name, table["rows"][name])


if __name__ == "__main__":
    main()
