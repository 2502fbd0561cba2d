"""The results page, data/results/README.md, and the three results in README.md.

    python benchmarks/results_page.py        # seconds; after any other benchmark has been run again

Both texts are computed from the JSON files in data/results, so that no number is typed by hand. The
page is written completely; in README.md only the lines between the two `results` comments change.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vqlib.checkpoints import REPOSITORY
from vqlib.evaluation.generation import distance_text
from vqlib.evaluation.results import RESULTS, load_results

START, END = "<!-- results -->\n", "<!-- /results -->\n"
DEEP, LAYERS, REPORT = "ham10000", "ham10000-report-layers", "report-ham10000"
# Names in the tables for names in the JSON files; a name that is not listed here is not changed.
NAMES = {
    "raw thumbnail": "thumbnail, raw pixels",
    DEEP: "**deep** (`deep`), ships as `ham10000`",
    LAYERS: "**report's layers** (`workbook`)",
    REPORT: "the report's recipe, `report-ham10000`",
    "ham10000-codec": "**codec**, ships as `ham10000-codec`",
    "ham10000-codec, no search": "codec, no search",
    "unigram": "unigram of each slot",
    "unigram per position": "unigram of each slot and position",
    "prior, given the class": "**the prior**, given the class",
    "per-position marginals": "samples from the per-position marginals",
    "real": "photographs",
    "reconstructions": "reconstructions of photographs",
    "generated": "samples",
    "real and generated": "photographs and samples",
    "two gated stacks": "base: two gated stacks",
    "vqlib": "**`vqlib`**",
}

# How feature extractors are named in a sentence.
FEATURES = {
    "lesion classifier": "a classifier of lesions, which was trained on the training split",
    "EfficientNet-Lite0": "EfficientNet-Lite0, which was trained on ImageNet",
    "pixel statistics": "simple statistics of pixels (spectrum, color, contrast)",
}


def named(name: str) -> str:
    return NAMES.get(name, name).replace("vector-quantize-pytorch", "`vector-quantize-pytorch`")


def table(head: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; `head` is its first line. All columns but the first are aligned right."""
    lines = [head, "|---" + "|--:" * (head.count("|") - 2) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def fill(block: str) -> str:
    """Break a paragraph or an item of a list into lines; the rest of Markdown stays as it is."""
    if block.startswith(("#", "|", "    ", "!", "<!--")):
        return block
    return textwrap.fill(
        " ".join(block.split()),
        width=100,
        subsequent_indent="  " if block.startswith("- ") else "",
        break_long_words=False,
        break_on_hyphens=False,
    )


def filled(text: str) -> str:
    return "\n\n".join(map(fill, text.strip("\n").split("\n\n"))) + "\n"


def interval(values: Sequence[float], digits: int) -> str:
    """A mean with its 95 % interval: "+1.46 (+1.42 to +1.50)"."""
    return "{:+.{d}f} ({:+.{d}f} to {:+.{d}f})".format(*values, d=digits)


def span(values: Iterable[float], digits: int) -> str:
    """The smallest and the largest value, or the one that they share: "43 to 51", "43"."""
    values = list(values)
    return " to ".join(dict.fromkeys(f"{v:.{digits}f}" for v in (min(values), max(values))))


def with_error(value: float, error: float, digits: int, factor: int = 1) -> str:
    return f"{factor * value:.{digits}f} ± {factor * error:.{digits}f}"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


# --- the sections ---------------------------------------------------------------------------------


def at_equal_bytes(result: dict[str, Any]) -> str:
    def cells(name: str, row: dict[str, Any]) -> list[object]:
        found: list[object] = [named(name), row["n"], "", "", "", "", ""]
        if "psnr_db" in row:
            found[2:4] = f"{row['psnr_db']:.2f}", f"{row['ssim']:.3f}"
        if "codes_used" in row:
            digits = 0 if row["perplexity"] > 9 else 1
            found[4] = interval(row["psnr_above_baseline_db"], 2)
            found[5:] = row["codes_used"], f"{row['perplexity']:.{digits}f}"
        return found

    return table(
        f"| At most {result['budget_bytes']} bytes per image | fits | PSNR, dB | SSIM "
        "| above WebP, dB (95 %) | codes used | perplexity |",
        (cells(name, row) for name, row in result["rows"].items()),
    )


def above_avif(result: dict[str, Any]) -> str:
    """The difference to the best AVIF row that has a mean."""
    rows = {n: r["psnr_db"] for n, r in result["rows"].items() if "AVIF" in n and "psnr_db" in r}
    best = max(rows, key=rows.__getitem__)
    speed = best.removeprefix("AVIF ").removesuffix(", headers not counted")
    above = result["rows"][DEEP]["psnr_db"] - rows[best]
    return f"{above:.2f} dB above AVIF at {speed} without its headers"


def settings_of_avif(result: dict[str, Any]) -> str:
    if not any(name.startswith("HEVC") for name in result["rows"]):
        return (
            "AVIF runs at speed 6, the default of Pillow. Slower settings compress better and were "
            "not measured."
        )
    return (
        "AVIF runs at speed 6, the default of Pillow, and at speed 0, the slowest; the second is "
        "tuned for PSNR. HEVC (x265, preset placebo, tuned for PSNR) and JPEG XL (effort 9, a file "
        "without container) also have their slowest settings. These rows need the option "
        "`--strict-codecs` and were searched over other thumbnail sizes, from 40 to 160 pixels."
    )


def ssim_above_webp(result: dict[str, Any]) -> str:
    models = {n: row for n, row in result["rows"].items() if "codes_used" in row}
    found = [f"{named(n)}: {interval(row['ssim_above_baseline'], 3)}" for n, row in models.items()]
    return "The differences from WebP in SSIM (95 %) are: " + "; ".join(found) + "."


def reconstruction() -> str:
    val, test, bounds = map(load_results, ("isic2018-val", "isic2018-test", "bounds"))
    flat = val["rows"]["mean color"]["ssim"]
    notes = [
        f"Note on {named(n)}: {row['note']}." for n, row in test["rows"].items() if "note" in row
    ]
    lost = [
        (named(name), f"{row['psnr_db']:.2f}", f"{coded:.2f}", f"{row['psnr_db'] - coded:.2f}")
        for name, row in bounds["rows"].items()
        for coded in [val["rows"][name]["psnr_db"]]
    ]
    return f"""
## Reconstruction with at most {val["budget_bytes"]} bytes per image

This table compares the VQ-VAEs with image codecs on the same images and at the same size.
Validation split, n = {val["n"]}, {val["size"]} px:

    python -m vqlib evaluate --data PATH

{at_equal_bytes(val)}

The codecs write complete files. For each image, the thumbnail size and the quality setting with the
highest PSNR are searched. In rows with "headers not counted", the size is that of the compressed
pixels alone; codes have no header. {settings_of_avif(val)} "Fits" is the number of images whose
file is small enough.
If some images do not fit, the row has no means, because they would be means over other images than
those of the other rows. PSNR and SSIM are computed on 8-bit pixels.

"Above WebP" is the mean difference in PSNR over the same images, with its 95 % interval (paired
bootstrap). "Codes used" is the number of codes, out of 512, in the slot that uses the fewest. The
perplexity is the geometric mean over the slots. The deep model is {above_avif(val)}.
{ssim_above_webp(val)}

An SSIM should be compared with that of the mean color ({flat:.3f}), not with 0. Skin is smooth,
and in a smooth window even a flat color has a high SSIM: see the documentation of
`vqlib.metrics.ssim`.

### Test split

The VQ-VAEs were measured on the test split once, after all choices about them had been made. (The
pretrained models were measured again later, on 8-bit pixels; no choice was based on that.) The
report's recipe splits by image, so most of these photographs were in its training set. Test split,
n = {test["n"]}, {test["size"]} px:

    python -m vqlib evaluate --data PATH --split test \\
        --vqvae ham10000 --vqvae ham10000-report-layers \\
        --vqvae build/runs/report-ham10000/vqvae.safetensors    # trained by benchmarks/report.py

{at_equal_bytes(test)}

The deep model is {above_avif(test)}. {ssim_above_webp(test)} {" ".join(notes)}

### The same networks without their quantizer

This table estimates the highest PSNR that each network could reach with any codebook. Each network
was trained for {bounds["epochs"]} more epochs on its unquantized latents. If the difference is
large, the quantization limits the model; if it is small, the network does. The PSNR without
quantizer is computed on float pixels. Validation split, n = {bounds["rows"][DEEP]["n"]}:

    python benchmarks/bounds.py --data PATH

{table("| Network | without quantizer, dB | with quantizer, dB | difference, dB |", lost)}
"""


def bits_and_files() -> str:
    val = load_results("isic2018-val")
    bits, files, size = val["bits_per_code"], val["files"], val["bytes_per_image"]
    own = bits["prior, given the class"]
    best, name = min((value, name) for name, value in bits.items() if value != own)
    body = table("| Model | bits per code |", ((named(n), f"{v:.2f}") for n, v in bits.items()))
    return f"""
## Bits per code and size of files

The bits per code are the mean negative log-likelihood of a code to base 2, which is the length that
an ideal entropy coder would need. The frequency tables (unigram, bigram) were counted on the
training split and are not conditioned on the class. Validation split, n = {val["n"]}:

    python -m vqlib evaluate --data PATH

{body}

The prior needs {percent(1 - own / best, 1)} fewer bits than the best frequency table ({name}); its
ideal code length is {size:.0f} bytes per image. Files written by a range coder take
{files["prior_bytes"]:.0f} bytes on average, header included (n = {files["n"]}). At the same PSNR
({files["psnr_db"]:.1f} dB on average) WebP needs {files["baseline_bytes"]:.0f} bytes.
The mean difference is {interval(files["difference_bytes"], 0)} bytes (95 % interval).
"""


HYPERPRIOR = (
    "The hyperprior is a learned codec with the same networks (`benchmarks/hyperprior.py`); its "
    "bytes are the ideal code length plus the same header."
)


def codec() -> str:
    """Nothing, if the codec has not been measured."""
    found = load_results("codec", {"rows": {}})
    if not found["rows"]:
        return ""
    size, learned = found["budget_bytes"], "hyperprior" in found["rows"]
    smaller = (
        "Rows with a smaller n have the first of them: compare the last column, not the means."
    )
    fewer = any(row["n"] < found["n"] for row in found["rows"].values())
    rows = [
        (
            named(name),
            row["n"],
            *(
                f"{row[key]:.{digits}f}" if key in row else ""
                for key, digits in (("psnr_db", 2), ("ssim", 3), ("bytes", 0))
            ),
            interval(row["codec_above_db"], 2) if "codec_above_db" in row else "",
        )
        for name, row in found["rows"].items()
    ]
    head = "| Method | n | PSNR, dB | SSIM | bytes | the codec is above, dB (95 %) |"
    return f"""
## The codec

`ham10000-codec` has larger codebooks than `ham10000` and a prior that was trained together with
them, so that the file after entropy coding, not the packed codes, has at most {size} bytes. The
encoder chooses the codes with the prior and improves them by a search (`codes_within_budget`,
{count(found["sweeps"], "sweep")}). All methods have at most {size} bytes for each image, with the
header, unless it says otherwise. {HYPERPRIOR if learned else ""} The last column is the mean
difference over the same images, with its 95 % interval (paired bootstrap). Validation split, the
first {found["n"]} of 601 images in a random order. {smaller if fewer else ""}

    python benchmarks/codec.py --data PATH
    python benchmarks/codec_results.py {found["options"]}

{table(head, rows)}
"""


def speed() -> str:
    machines = load_results("sampling")["machines"]
    same = sum(m["same_codes_in_float64"] for m in machines)
    rows = [
        (
            machine["processor"],
            machine["threads"],
            row["n"],
            f"{1000 * row['seconds_per_forward_pass']:.0f} ms",
            *(f"{row[way]['seconds']:.2f} s" for way in ("naive", "rows cropped", "cached")),
            f"{row['cached']['speedup']:.0f}x",
            span(row["cached"]["speedup_of_each_process"], 0),
        )
        for machine in machines
        for row in machine["rows"]
    ]
    body = table(
        "| Processor | threads | images at once | one pass | naive | rows cropped | cached "
        "| speedup | lowest to highest |",
        rows,
    )
    return f"""
## Speed of the sampler

The naive sampler runs the complete network once for each of the 256 codes. "Rows cropped" leaves
out the rows below the current one. The cached sampler computes each position once. The
speedup compares the cached sampler with 256 passes through the network; it is the median of
{span((m["processes"] for m in machines), 0)} processes. The ratio depends on the machine. In
float64 the samplers must give the same codes, and they did on {same} of
{count(len(machines), "machine")}. Speed on a GPU has not been measured.

    python benchmarks/sampling.py

{body}

Four new lesions are sampled and decoded in
{span((m["seconds_for_4_lesions"] for m in machines), 2)} s.
"""


def set_table(rows: dict[str, dict[str, float]]) -> str:
    """Measures of several sets in one kind of features."""
    return table(
        "| Set of images | KID x 1000 | density | coverage | told apart |",
        (
            (
                named(name),
                distance_text(row["kernel_distance"], row["standard_error"]),
                f"{row['density']:.2f}",
                f"{row['coverage']:.2f}",
                percent(row["two_sample_accuracy"]),
            )
            for name, row in rows.items()
        ),
    )


def samples() -> str:
    found = load_results("isic2018-val")["samples"]
    copies = found["near_copies"]
    against_photographs, against_reconstructions = (
        "\n\n".join(
            f"{where}, in the {found['features'][name]:,} features of {FEATURES[name]}:\n\n"
            + set_table(rows)
            for name, rows in found[key].items()
        )
        for key, where in (
            ("rows", "Against the photographs"),
            ("rows_against_reconstructions", "Against the reconstructions"),
        )
    )
    classes = found["found"]["samples"]
    found_rows = (
        (named(name), *(percent(rate) for rate, _ in by_class.values()))
        for name, by_class in found["found"].items()
    )
    heads = " | ".join(f"{name}, n = {n}" for name, (_, n) in classes.items())
    test = load_results("isic2018-test")
    test_rows = test["samples"]["rows"]["EfficientNet-Lite0"]
    return f"""
## Generated samples as a set

Each set of {found["n"]} images is compared with {found["n"]} photographs of the validation split.
"Real, another split" are photographs of the test split, and the blurred ones and the
reconstructions are made of them. They show the distance between two sets of real lesions and the
effect of a known defect, and no choice was based on them. The samples are generated with the
default settings. KID is the kernel distance, ± one standard error; "told apart" is the accuracy of
a logistic regression that tells the two sets apart, 50 % if it can't. Which measures respond to
which defects: see [the calibration](#calibration-of-the-measures).

    python -m pip install -e ".[judge]"
    python -m vqlib evaluate --data PATH

{against_photographs}

Samples and reconstructions share the decoder. Compared with reconstructions, what the prior gets
wrong is seen alone.

{against_reconstructions}

How often the classifier finds the class that a sample was asked for, or that an image has:

{table(f"| Images | {heads} |", found_rows)}

A near-copy is nearer to a training lesion, in any of eight orientations, than 99 % of the held-out
lesions are. {percent(copies["features"]["fraction"], 1)} of the samples are near-copies by features
and {percent(copies["codes"]["fraction"], 1)} by codes; up to
{percent(copies["features"]["expected_upper_limit"], 1)} is consistent with chance.

The same command was called once for the test split (`--split test`), after all choices about the
prior and the realistic decoder had been made. There the prior needs
{test["bits_per_code"]["prior, given the class"]:.2f} bits per code, and the distances to the
photographs, in the features of EfficientNet-Lite0, are (n = {test["samples"]["n"]}):

{set_table(test_rows)}

![Codes appear one position after another, row by row; beside them the decoded image](sampling.webp)

*One sample while it is generated (left), and the image decoded from the codes so far (right). Each
code is shown in the mean color of the image regions in which it occurs (`benchmarks/pictures.py`).*
"""


def calibration() -> str:
    found = load_results("calibration")
    measures = {
        "kernel_distance": ("KID x 1000", 1000, 1),
        "frechet_distance": ("Fréchet", 1, 1),
        "precision": ("precision", 1, 2),
        "recall": ("recall", 1, 2),
        "density": ("density", 1, 2),
        "coverage": ("coverage", 1, 2),
        "two_sample_accuracy": ("told apart", 100, 0),
    }
    heads = " | ".join(head for head, _, _ in measures.values())

    def cells(row: dict[str, Any]) -> list[str]:
        return [f"{factor * row[key]:,.{digits}f}" for key, (_, factor, digits) in measures.items()]

    parts = []
    for name, features in FEATURES.items():
        null = found["null"][name]
        rows = [
            (
                "two sets of real lesions, mean ± SD",
                *(
                    f"{factor * null[key][0]:.{digits}f} ± {factor * null[key][1]:.{digits}f}"
                    for key, (_, factor, digits) in measures.items()
                ),
            )
        ]
        rows += [
            (f"{row['kind']} {row['amount']:g}", *cells(row[name]))
            for row in found["sets"]
            if row["kind"] != "real lesions"
        ]
        parts.append(f"In the features of {features}:\n\n{table(f'| Set | {heads} |', rows)}")
    kinds = next(iter(found["copies"].values()))
    shares = next(iter(kinds.values()))["power"]
    power_rows = [
        (
            kind,
            named(name),
            percent(of_features[kind]["copies_found"]),
            *(percent(of_features[kind]["power"][share]) for share in shares),
        )
        for kind in kinds
        for name, of_features in found["copies"].items()
    ]
    share_heads = " | ".join(f"{100 * float(share):g} % copies" for share in shares)
    return f"""
## Calibration of the measures

Real lesions of the test split (n = {found["n"]["test"]}) are degraded by known amounts and
compared with those of the validation split (n = {found["n"]["val"]}). The first row of each table
is what two sets of real lesions give: 50 random divisions of all these lesions in two. "Told apart"
is in percent.

    python benchmarks/calibration.py --data PATH

{(chr(10) * 2).join(parts)}

Power of the test for near-copies: a set of {found["n"]["test"]} images contains a share of copies
of training lesions that were changed a little. The table shows how many of 100 copies are nearer to
a training lesion than 99 % of the validation lesions, and in how many of 1,000 simulated sets the
fraction of near-copies exceeds its upper limit, by the share of copies.

{table(f"| Copies | compared by | found | {share_heads} |", power_rows)}
"""


def perception() -> str:
    found = load_results("perception")
    lite, classifier = "EfficientNet-Lite0", "lesion classifier"

    def cells(name: str, row: dict[str, Any]) -> list[str]:
        numbers = (
            f"{row[key]:.{digits}f}" if key in row else ""
            for key, digits in (
                ("psnr_db", 2),
                ("ssim", 3),
                ("relative_error", 2),
                ("relative_energy", 2),
            )
        )
        distances = {
            kind: with_error(of["kernel_distance"], of["standard_error"], 1, 1000)
            for kind, of in row["features"].items()
        }
        of = row["features"][lite]
        return [
            named(name),
            *numbers,
            distances[lite],
            f"{of['density']:.2f}",
            f"{of['coverage']:.2f}",
            percent(of["two_sample_accuracy"]),
            distances[classifier],
            f"{row['seconds_for_4']:.2f}" if "seconds_for_4" in row else "",
        ]

    def set_rows(group: str) -> str:
        return table(
            "| Images | PSNR, dB | SSIM | error | energy | KID x 1000 | density | coverage "
            "| told apart | KID, classifier | s for 4 |",
            (cells(name, row) for name, row in found[group].items()),
        )

    nearest = table(
        "| Images | features | median | minimum | near-copies | expected at most |",
        (
            (
                named(name),
                kind,
                *(f"{row[key]:.2f}" for key in ("median", "minimum")),
                *(
                    percent(row[key], 1) if key in row else ""
                    for key in ("near_copies", "expected_upper_limit")
                ),
            )
            for kind, rows in found["nearest"].items()
            for name, row in rows.items()
        ),
    )
    steps, few = found["steps"], found["few"]
    return f"""
## Perception and distortion

Images made from the codes of lesions of the validation split (n = {found["n"]}) are compared with
their own photographs (PSNR, SSIM, error, energy) and, as a set, with photographs of the test split.
"Faithful" is `VQVAE.decode`. "Realistic" adds sampled detail (`beyond.realistic`, {steps} steps),
which is invented. "Error" is the squared error divided by that of the faithful decoder, "energy"
the mean square of the added detail divided by that of the true residuals; they are 2 and 1 for
perfect samples, if the faithful decoder returns the mean. Matched noise has the covariance of
residuals in patches of 4x4 pixels. KID, density, coverage and "told apart" are measured in the
features of {FEATURES[lite]}, the last KID in those of {FEATURES[classifier]}. The last column has
the seconds for four lesions, from codes to pixels; for samples with the prior.

    python -m pip install -e ".[judge]"
    python benchmarks/perception.py --data PATH

{set_rows("rows")}

Settings of the sampler, with fewer images, n = {few}. Coverage is lower for smaller sets, so it is
compared within this table only.

{set_rows("settings")}

Distance to the nearest photograph of the training split, in eight orientations in the classifier's
features. A near-copy is nearer than 99 % of the photographs of the validation split.

{nearest}
"""


def guidance() -> str:
    found = load_results("guidance")
    rows = [
        (
            f"samples, w = {row['guidance']:g}",
            percent(row["balanced_accuracy"]),
            with_error(row["kernel_distance"], row["standard_error"], 3),
            f"{row['precision']:.2f}",
            f"{row['recall']:.2f}",
        )
        for row in found["rows"]
    ]
    for name in ("reconstructions", "real"):
        rows.append((named(name), percent(found[f"{name}_balanced_accuracy"]), "", "", ""))
    return f"""
## Classifier-free guidance

`sample(..., guidance=w)` moves the conditional logits away from the unconditional ones.
The balanced accuracy is the fraction of images for which the classifier predicts the requested
class, averaged over the classes. Kernel distance, precision and recall compare the samples with the
photographs of the validation split, n = {found["n"]}. These samples are other ones than in the
previous section. ± is one standard error.

    python benchmarks/guidance.py --data PATH

{table("| Images | balanced accuracy | kernel distance | precision | recall |", rows)}
"""


def usefulness() -> str:
    found = load_results("usefulness")
    lesions = found["lesions"]

    def points(values: list[float]) -> str:
        return " to ".join(f"{100 * x:+.1f}" for x in values)

    rows = [
        (
            named(name),
            f"{row['images']:,}",
            f"{100 * row['balanced_accuracy']:.1f} %",
            f"{100 * row['difference']:+.1f}",
            points(row["interval_over_seeds"]),
            points(row["interval_over_lesions"]),
            *(percent(row["recall"][c]) for c in lesions),
        )
        for name, row in found["rows"].items()
    ]
    heads = " | ".join(f"{name}, n = {n}" for name, n in lesions.items())
    head = f"| Trained on | images | balanced accuracy | difference | seeds | lesions | {heads} |"
    return f"""
## A classifier trained on samples

The same small network ({found["size"]} px) is trained from scratch on each set, {found["steps"]:,}
steps with {found["seeds"]} seeds, and measured on the photographs of the validation split, n =
{found["n"]}. Differences in points to photographs in random orientations, paired by seed, with 95 %
intervals over seeds and over lesions. The last columns are the recall of each class.

    python benchmarks/usefulness.py --data PATH

{table(head, rows)}
"""


def every_class() -> str:
    found = load_results("every-class")
    classes = found["lesions"]
    heads = " | ".join(f"{name}, n = {n}" for name, n in classes.items())
    text = ""
    for judge, real in found["real"].items():
        rows = [("reconstructions of real lesions", *(percent(x) for x in real.values()), "", "")]
        for name, row in found["rows"].items():
            rows.append(
                (
                    f"samples, {name}" + (" (selected)" if name == found["selected"] else ""),
                    *(percent(row["found"][judge][c]) for c in classes),
                    f"{100 * row['difference'][judge]:.0f}",
                    with_error(*row["kernel_distance_x1000"][judge], 1),
                )
            )
        head = f"| {judge} | {heads} | mean difference | kernel distance x 1000 |"
        text += f"\n{table(head, rows)}\n"
    return f"""
## Is the class found?

The fraction of images in which a classifier finds the class that they have or were sampled for:
{found["samples_per_class"]} samples of each class, and real lesions of the validation split (n at
the head of each column). The lesion classifier selects the options, the other judge (logistic
regression in features of EfficientNet-Lite0) has not selected anything. The mean difference is that
of the absolute differences to the first line, in points. The kernel distance compares {found["n"]}
samples with reconstructions, with the same labels.

    python benchmarks/every_class.py --data PATH
{text}"""


def priors() -> str:
    found = load_results("priors")
    base = found["rows"][0]
    rows = [
        (
            named(row["change"]),
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['bits_per_code']:.3f}",
            "" if row is base else f"{row['bits_per_code'] - base['bits_per_code']:+.3f}",
            f"{row['train_bits_per_code']:.3f}",
            row["best_epoch"],
        )
        for row in found["rows"]
    ]
    body = table(
        "| Prior | parameters, M | bits per code | minus base | bits in training | best epoch |",
        rows,
    )
    return f"""
## Ablation of the prior

The base is smaller than the pretrained prior. Each prior was trained for {base["epochs"]} epochs
with one seed and differs from the base in what its name says. The bits per code are those of the
best epoch. Validation split, n = {base["n"]}:

    python benchmarks/priors.py --data PATH

{body}
"""


def three_priors() -> str:
    found = load_results("transformer-priors")
    rows = found["priors"]

    def distances(row: dict[str, Any], reference: str) -> list[str]:
        by_extractor = row["kernel_distance_x1000"][reference]
        return [with_error(*by_extractor[e], 1) for e in ("classifier", "EfficientNet-Lite0")]

    body = table(
        "| Prior | parameters, M | epochs | bits per code | passes | s per grid | seam |",
        (
            (
                name,
                f"{row['weights'] / 1e6:.2f}",
                row["epochs"],
                ("" if row["bits_are"] == "exact" else "at most ")
                + with_error(row["bits_per_code"], row["bits_standard_error"], 3),
                row["evaluations"],
                f"{row['seconds_per_grid']:.3f}",
                f"{row['seam']:.2f}",
            )
            for name, row in rows.items()
        ),
    )
    set_rows = table(
        "| Prior | to reconstructions, classifier | Lite0 | to photographs, classifier | Lite0 |",
        (
            (name, *distances(row, "reconstructions"), *distances(row, "photographs"))
            for name, row in rows.items()
        ),
    )
    (low, low_error), (high, high_error) = (
        rows[name]["kernel_distance_x1000"]["reconstructions"]["EfficientNet-Lite0"]
        for name in ("PixelCNN", "shipped PixelCNN")
    )
    apart = (high - low) / (low_error**2 + high_error**2) ** 0.5
    classes = next(iter(rows.values()))["found"]
    found_rows = table(
        f"| Prior | {' | '.join(classes)} |",
        ((name, *(percent(row["found"][c]) for c in classes)) for name, row in rows.items()),
    )
    return f"""
## Three priors on the same codes

A causal transformer, a masked transformer with parallel decoding and a PixelCNN were trained on the
same codes for 45 CPU minutes each, with one seed. The shipped PixelCNN had fewer epochs.
Measures, number of samples and seed were fixed in `benchmarks/compare_priors.py` before the first
training. Validation split, n = {found["n"]}:

    python benchmarks/transformer_priors.py --data PATH --kind causal    # also masked, pixelcnn
    python benchmarks/pretrained.py --priors
    python benchmarks/compare_priors.py --data PATH --prior NAME=FILE --prior NAME=FILE ...

{body}

Bits per code are given the class, ± one standard error; those of the masked transformer are an
upper bound. A pass is an evaluation of the network that has to wait for the previous one; with a
cache it is a small step. Times are for 16 grids at once, on a CPU. Seam: the upper half of each
grid is completed once from the lower half; the squared difference of colors across the border,
divided by that of the reconstructions.

KID x 1000 of {found["samples"]:,} samples, ± one standard error, in the features of the lesion
classifier and of EfficientNet-Lite0:

{set_rows}

How often the classifier finds the class that was asked for, 200 samples for each class:

{found_rows}

The rule was to sample by default from the prior with the lowest KID to the reconstructions in
EfficientNet-Lite0's features, or from the fastest one within one standard error of it, and to
complete with the prior whose seam is nearest to 1. It chooses "{found["default"]["sampling"]}" for
sampling and "{found["default"]["completion"]}" for completion. This PixelCNN is the shipped network
with more epochs; the KIDs of both differ by {apart:.1f} standard errors of their difference. Its
weights are not stored, so the command `sample` uses the shipped PixelCNN.
"""


def ablation() -> str:
    found = load_results("ablation")
    runs = {(row["change"], row["seed"]): row["psnr_db"] for row in found["rows"]}
    again = [abs(runs[name, 0] - psnr) for (name, seed), psnr in runs.items() if seed == 1]
    rows = [
        (
            named(row["change"]),
            row["seed"],
            f"{row['psnr_db']:.2f}",
            "" if row["change"] == "base" else f"{row['psnr_db'] - runs['base', row['seed']]:+.2f}",
            f"{row['ssim']:.3f}",
            "" if row["codes_used"] is None else row["codes_used"],
            "" if row["perplexity"] is None else f"{row['perplexity']:.0f}",
        )
        for row in found["rows"]
    ]
    body = table("| Change | seed | PSNR, dB | minus base | SSIM | codes used | perplexity |", rows)
    return f"""
## Ablation of the quantizer and of its training

The report's layers at {found["size"]} px, trained for {found["rows"][0]["steps"]} steps. Each row
differs from the base in what its name says. Two seeds of one row differ by up to
{max(again):.2f} dB, so smaller differences between rows are not interpreted. Validation split, n =
{found["rows"][0]["n"]}:

    python benchmarks/ablation.py --data PATH

{body}
"""


def quantizers() -> str:
    found = load_results("quantizers")
    rows = [
        (
            named(name),
            f"{row['psnr_db']:.2f}",
            f"{row['ssim']:.3f}",
            row["codes_used"],
            f"{row['perplexity']:.0f}",
            f"{row['ms_per_step']:.0f} ms",
            f"{row['mb_per_step_of_256']:.0f} MB",
        )
        for name, row in found["rows"].items()
    ]
    return f"""
## The quantizer compared with `vector-quantize-pytorch`

Network, images ({found["size"]} px), optimizer, seed and number of epochs
({found["epochs"]}) are the same; only the quantizer differs. Time and memory are those of the
quantizer alone, forward and backward: the time for 16 images, the memory for 256. Each row has one
seed; the previous section shows how much the seeds differ. Validation split, n =
{found["rows"]["vqlib"]["n"]}:

    pip install vector-quantize-pytorch
    python benchmarks/quantizers.py --data PATH

{table("| Quantizer | PSNR, dB | SSIM | codes used | perplexity | time | memory |", rows)}
"""


def report() -> str:
    found = load_results("report")
    low, high = found["report_loss_range"]
    readings = [v for v in found.values() if isinstance(v, dict) and "quantizer" in v]
    readings.sort(key=lambda row: -row["epochs"])  # the complete training first
    first, prior, held_out = readings[0], found["prior"], found["prior"]["held_out_mse"]
    batches, images = first["batches"], found["data"].strip("<>").partition(";")[0]

    def last(row: dict[str, Any], key: str) -> float:
        return row["means_over_100_batches"][key][-1]

    def inside(key: str) -> str:
        return "; ".join(
            f'"{row["quantizer"]}" ({count(row["codes_used_in_any_slot"], "code")} used)'
            for row in readings
            if low <= last(row, key) <= high
        )

    body = table(
        "| Reading of the quantizer | px | epochs | loss | of which MSE | PSNR, dB "
        "| codes used in any slot, of 512 |",
        (
            (
                row["quantizer"],
                row["size"],
                row["epochs"],
                f"{last(row, 'loss'):.3f}",
                f"{last(row, 'reconstruction_loss'):.3f}",
                f"{row['psnr_db']:.1f}",
                row["codes_used_in_any_slot"],
            )
            for row in readings
        ),
    )
    excluded = [f'"{r["rotation"]}"' for r in found["loss_bounds"] if r["lower_bound"] > high]
    floors = table(
        "| Reading of the rotation | lower bound | best single image | variance of the target |",
        (
            (
                row["rotation"],
                *(f"{row[key]:.3f}" for key in ("lower_bound", "single_image_loss", "variance")),
            )
            for row in found["loss_bounds"]
        ),
    )
    return f"""
## The report, reproduced

The first row is the report's recipe without any change. The other rows are possible readings of
what the text leaves open, trained for fewer epochs. The data are `{images}`, split by image, 90 %
for training as in the report. Loss and MSE are means over the last {batches % 100 or 100} of the
{batches} batches of the last epoch. PSNR and codes are measured on held-out images, n =
{first["n"]}.

    python benchmarks/report.py --data PATH        # PATH in the layout of HAM10000

{body}

The report's losses over its last three epochs lie between {low:.3f} and {high:.3f}. Readings whose
loss ends in this interval: {inside("loss") or "none"}. Readings whose MSE ends in it:
{inside("reconstruction_loss") or "none"}.

The report compares a sigmoid output in [0, 1] with a normalized target, so its loss has a lower
bound above zero. The table gives this bound, and the loss of the best single image as output for
all inputs, on {found["loss_bounds"][0]["images"]:,} training images. Both depend on the order of
rotation and Normalize.

{floors}

A lower bound above the report's losses excludes a reading: {", ".join(excluded) or "none here"}. A
model that uses a single code produces the same image for every input, so its MSE can't be smaller
than that of the best single image.

The report's prior, `PixelRCNN` with MSE, was trained for {prior["epochs"]} epochs on the codes of
the first row. Its MSE in training ends at {prior["train_mse"][-1]:.3f}. On held-out images (n =
{prior["n"]}) the MSE is lowest after epoch {1 + held_out.index(min(held_out))}, at
{min(held_out):.3f}, and ends at {held_out[-1]:.3f}, which is
{prior["held_out_mse_over_variance"]:.2f} of the variance. The report's own value is in the units of
another codebook and can't be compared. Its sampling loop, as notebook 09 reads it, gives these
images:

![16 images sampled by the report's loop](report-samples.png)
"""


def large_set() -> str:
    found = load_results("large-set")
    sets = found["images"]
    heads = " | ".join(f"{row['images']:,} images" for row in sets)
    per_image = [
        (name, *(f"{1e6 * row['phases'][name]['seconds'] / row['images']:.0f}" for row in sets))
        for name in sets[0]["phases"]
        if name != "start"
    ]
    for key, name in (("peak_mb", "**memory, MB**"), ("anonymous_mb", "of which not files, MB")):
        highest = (max(phase[key] for phase in row["phases"].values()) for row in sets)
        per_image.append((name, *(f"{value:,}" for value in highest)))
    codes = [
        (
            f"{row['images']:,} in {count(row['orientations'], 'orientation')}",
            row["file_mb"],
            *(f"{row['phases'][name]['peak_mb']:,}" for name in row["phases"] if name != "start"),
        )
        for row in found["codes"]
    ]
    start, cache = sets[0]["phases"]["start"]["peak_mb"], sets[-1]["pixels_mb"]
    return f"""
## Large sets of images

Procedural images of {found["size"]} px, all different, pass through all steps. The networks are
tiny, because growth is measured and not speed. The first lines are the microseconds of processor
time per image, which would rise with the number of images if a step were slower than linear;
another program ran on the machine, so a single one may be too high. The last lines are the largest
resident memory of the process, with and without the pages of mapped files. Python and PyTorch alone
take {start} MB; the cache of {sets[-1]["images"]:,} images has {cache:,} MB.

    python benchmarks/large_set.py

{table(f"| Step | {heads} |", per_image)}

The next table is for random codes, 256 per image as of images of 256 px. In memory each code takes
8 bytes. In the first row the training images (80 %) are in eight orientations. The ISIC archive has
about as many images as the second row.

{table("| Codes of images | file, MB | memory, MB | while saving | while loading |", codes)}
"""


SECTIONS: tuple[Callable[[], str], ...] = (
    reconstruction,
    bits_and_files,
    codec,
    speed,
    samples,
    calibration,
    perception,
    guidance,
    usefulness,
    every_class,
    priors,
    three_priors,
    ablation,
    quantizers,
    report,
    large_set,
)


def results_page() -> str:
    """data/results/README.md."""
    images, _, classes = load_results("isic2018-val")["data"].strip("<>").partition("; ")
    head = f"""
<!-- Written by benchmarks/results_page.py: change that script, not this page. -->

# Results

All tables of the workbook, each with the command that measured it. The script
`benchmarks/results_page.py` writes this page from the JSON files in this folder, so no number here
is typed by hand.

PATH is a folder of images; [data/README.md](../README.md) says how to get them. The images of all
sections but the last two are `{images}` ({classes}), split by lesion. They are square crops, as the
[model card](../pretrained/ham10000/README.md) describes. The complete download has more photographs
and other crops, so it gives other numbers. Choices were made on the validation split. The prior,
its samples and the classifier were measured on that split only.
"""
    tail = """
## Other files in this folder

`curves.json` and `prior-curve.json` contain the held-out metrics after each epoch of the trainings
in `benchmarks/pretrained.py`; notebooks 06 and 04 plot them. `samples.jpg` is the figure in the
main README; `benchmarks/pictures.py` writes it. `robustness.json` contains the long tests of
interruption and damaged files, as `python benchmarks/robustness.py` has run them last.
`versions.json` contains the last tests with the lowest and the newest versions of the dependencies
and with those of Colab, by `make versions ENV=floors`, `ENV=newest` and `ENV=colab`.
"""
    return "\n".join(filled(part) for part in (head, *(make() for make in SECTIONS), tail))


def readme_results() -> str:
    """The three results in README.md."""
    val, test = load_results("isic2018-val"), load_results("isic2018-test")
    machines = load_results("sampling")["machines"]
    bits, files = val["bits_per_code"], val["files"]
    ours, webp = (
        [f"{result['rows'][name]['psnr_db']:.2f}" for result in (val, test)]
        for name in (DEEP, "WebP")
    )
    cached: dict[int, list[dict[str, Any]]] = {}
    for row in (row for machine in machines for row in machine["rows"]):
        cached.setdefault(row["n"], []).append(row["cached"])
    times = [
        f"{span((row['speedup'] for row in rows), 0)}x for {n} "
        f"({span((row['seconds'] for row in rows), 2)} s)"
        for n, rows in cached.items()
    ]
    ranges = ", lowest to highest" if len(machines) > 1 else ""
    above = interval(test["rows"][DEEP]["psnr_above_baseline_db"], 2)
    items = f"""
- **Reconstruction** (`python -m vqlib evaluate --data PATH`). With {val["budget_bytes"]} bytes per
image, the pretrained VQ-VAE reaches {ours[0]} dB PSNR and WebP {webp[0]} dB on the validation split
(n = {val["n"]}), {ours[1]} and {webp[1]} dB on the test split (n = {test["n"]}, `--split test`).
On the test split, it is {above} dB (95 % interval) above WebP, and {above_avif(test)}.

- **Bits per code and file size** (same command). Given the class, the prior needs
{bits["prior, given the class"]:.2f} bits per code on the validation split (n = {val["n"]}); a
code without a model takes {bits["uniform"]:.0f}. Entropy-coded files take
{files["prior_bytes"]:.0f} bytes, WebP files of the same PSNR
{files["baseline_bytes"]:.0f} bytes (n = {files["n"]}).

- **Speed of the sampler** (`python benchmarks/sampling.py`). Speedup of the cached sampler over 256
passes through the network, for each batch size: {", ".join(times)}; on
{count(len(machines), "machine")}{ranges}, {span((m["threads"] for m in machines), 0)} CPU threads.
Four new lesions, sampled and decoded, take
{span((m["seconds_for_4_lesions"] for m in machines), 2)} s. Speed on a GPU has not been measured.
"""
    return filled(items).replace("\n\n", "\n")


def with_results(readme: str) -> str:
    """README.md with its three results as the files have them now."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return before + START + readme_results() + END + after


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    readme = REPOSITORY / "README.md"
    readme.write_text(with_results(readme.read_text("utf-8")), "utf-8")
    (RESULTS / "README.md").write_text(results_page(), "utf-8")


if __name__ == "__main__":
    main()
