"""Command line of vqlib: download, train, encode, sample and evaluate without a notebook."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from .beyond.realistic import RealisticDecoder
from .beyond.transformer import CodeTransformer
from .checkpoints import (
    PRETRAINED,
    DataError,
    atomic_write,
    check_pair,
    load_model,
    load_pretrained,
    make_folder,
    model_notes,
    pretrained_names,
    run_folder,
)
from .codes import SPLITS, EncodedDataset, add_augmented, encode_dataset
from .data import IMAGE_SUFFIXES, read_image, resize_to_square, to_float
from .distributed import process_group
from .evaluation import compress, decompress, evaluate, results_table
from .evaluation.features import EfficientNetLite0, Inception, lite0_is_installed
from .evaluation.generation import decode_codes
from .lesions import CLASSES, LesionClassifier, download, open_dataset, synthetic_dataset
from .metrics import psnr
from .pixelcnn import PixelCNN
from .sampling import sample
from .training import RECIPES, TrainingStopped, pick_device, train_prior, train_vqvae
from .vqvae import DOWNSCALE, VQVAE

MAX_POSITIONS = 4096 * 8 * 8  # of the codes of all images in one file: 2.5 GB of memory


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code. Errors are printed as one line.

    torchrun may start the commands train-vqvae and train-prior on several processes.
    """
    try:
        with process_group():
            options = _parser().parse_args(arguments)
            try:
                options.run_command(options)
            except TrainingStopped as stop:
                print(stop)  # here, where only rank 0 prints
                return 130
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, FloatingPointError) as error:  # DataError is a ValueError
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        advice = "a traceback is shown by python -X dev -m vqlib ..."
        print(f"error: {reason} (not expected here: {advice})", file=sys.stderr)
        return 1
    return 0


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows default values, except "(default: None)"."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _whole(low: int, high: int, step: int = 1) -> Callable[[str], int]:
    """Type of an option: a multiple of `step` in low..high."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high or int(text) % step:
            kind = f"a multiple of {step}" if step > 1 else "a whole number"
            raise argparse.ArgumentTypeError(f"expected {kind} in {low}..{high}, got {text!r}")
        return int(text)

    return parse


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1e-30 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at least 1e-30, got {text}")
    return value


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _output(suffixes: Collection[str] = ()) -> Callable[[str], Path]:
    """Type of an option: the name of a file to be written."""

    def parse(text: str) -> Path:
        path = _path(text)
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text!r} is a folder: name a file in it")
        if suffixes and path.suffix.lower() not in suffixes:
            expected = ", ".join(sorted(suffixes))
            raise argparse.ArgumentTypeError(f"expected a name that ends in {expected}, got {text}")
        return path

    return parse


def _device(text: str) -> torch.device:
    try:
        device = torch.zeros(1, device=text).device
        torch.zeros(1, device=device).cpu()  # "meta" has no data that could be read
        return device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        expected = f"expected cuda, mps or cpu; {text!r} can't be used ({reason})"
        raise argparse.ArgumentTypeError(expected) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vqlib", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, text: str) -> Callable[..., Any]:
        """Add a command; returns the method that adds its arguments."""
        added = commands.add_parser(
            name, help=text, description=text, formatter_class=_HelpFormatter
        )
        added.set_defaults(run_command=run)
        return added.add_argument

    def add_data(add: Callable) -> None:
        add("--data", help="folder of images, or synthetic; default: $VQLIB_DATA, data/, synthetic")
        size = _whole(DOWNSCALE, 8192, DOWNSCALE)
        add("--size", type=size, default=256, help="pixels of a side, a multiple of 32")
        add("--verify", action="store_true", help="compare the images with those in the cache")

    def add_device(add: Callable) -> None:
        add("--device", type=_device, help="cuda, mps or cpu; default: the first available one")

    def add_training(add: Callable, run: str) -> None:
        add("--recipe", choices=RECIPES, default="workbook", help="settings of the training")
        add("--run", default=run, help="name or folder of the run; the same name continues it")
        add("--epochs", type=_whole(1, 10**6), help="number of epochs; default: the recipe's")
        add(
            "--lr",
            type=_positive,
            help="learning rate of a new or continued run; default: the recipe's",
        )
        add("--extend", action="store_true", help="continue a run started with fewer epochs")
        add("--seed", type=_whole(0, 2**32 - 1), default=0, help="random seed")
        add_device(add)

    add = command("download", _download, "download the real images and verify them (CC BY-NC 4.0)")
    add("which", choices=("isic2018", "ham10000"), help="data set")
    add("--to", type=_path, default=Path("data"), help="destination folder")

    add = command("train-vqvae", _train_vqvae, "train a VQ-VAE, or continue an interrupted run")
    add_data(add)
    add_training(add, "vqvae")

    add = command("encode", _encode, "encode a data set into a file of codes")
    add_data(add)
    add("--vqvae", type=_path, required=True, help="weights of the VQ-VAE (.safetensors)")
    add("--recipe", choices=RECIPES, default="workbook", help="recipe whose split is stored")
    add("--out", type=_output(), required=True, help="output file (.safetensors)")
    text = "also encode the training images after all eight dihedral transforms"
    add("--augmented", action="store_true", help=text)
    add_device(add)

    add = command("train-prior", _train_prior, "train a prior, or continue an interrupted run")
    add("--codes", type=_path, required=True, help="file that the command encode has written")
    add_training(add, "prior")

    add = command("sample", _sample, "generate lesion images and write them as one image file")
    add("--model", default="ham10000", help="pretrained model, a folder in data/pretrained")
    add("--vqvae", type=_path, help="weights, together with --prior; default: those of --model")
    add("--prior", type=_path, help="weights, together with --vqvae; default: those of --model")
    add("--n", type=_whole(1, 4096), default=16, help="number of images")
    add("--label", help="class of the prior, such as MEL; default: unconditional samples")
    add("--temperature", type=_positive, default=1.0, help="sampling temperature")
    add("--top-k", type=_whole(1, 10**6), help="only the k most probable codes; default: all codes")
    text = "nucleus sampling: only the most probable codes of total probability p; default: all"
    add("--top-p", type=float, help=text)
    text = "positions per side, 8 for 256 pixels; default: as in training"
    add("--grid", type=_whole(1, 255), help=text)
    add("--seed", type=_whole(0, 2**32 - 1), default=0, help="random seed")
    add_device(add)
    add("--out", type=_output(IMAGE_SUFFIXES), default=Path("samples.png"), help="output file")

    add = command("compress", _compress, "compress one picture to a file of about 250 bytes")
    size = _whole(DOWNSCALE, 255 * DOWNSCALE, DOWNSCALE)
    add("image", type=_path, help="picture, of which the largest centered square is used")
    add("out", type=_output(), nargs="?", help="output file; default: the picture's name with .vq")
    add("--model", default="ham10000", help="pretrained model, a folder in data/pretrained")
    add("--size", type=size, default=256, help="pixels of a side, a multiple of 32")

    add = command("decompress", _decompress, "decode a file that the command compress has written")
    add("file", type=_path, help="compressed picture (.vq)")
    text = "output image; default: the file's name with .decoded.png"
    add("out", type=_output(IMAGE_SUFFIXES), nargs="?", help=text)
    add("--model", default="ham10000", help="pretrained model with which it was compressed")

    text = "results table: models and image codecs with the same number of bytes"
    add = command("evaluate", _evaluate, text)
    add_data(add)
    add(
        "--vqvae",
        action="append",
        metavar="FILE|NAME",
        help="weights, or name of a pretrained model; may be repeated. The first one determines "
        "the number of bytes; default: all pretrained models, with prior and classifier",
    )
    text = "weights of a prior of the first model; default: none, or the pretrained one"
    add("--prior", type=_path, help=f"{text} without --vqvae")
    add(
        "--classifier",
        type=_path,
        help="weights of the lesion classifier, whose features are used to evaluate samples; "
        "default: as for --prior. The features of EfficientNet-Lite0 are used if it is installed",
    )
    text = "also use the features of Inception v3 to evaluate samples (downloaded, slow)"
    add("--inception", action="store_true", help=text)
    text = (
        "also measure AVIF at its slowest setting, HEVC and JPEG XL: about 25 seconds of CPU time "
        'for each image; the same call continues (needs pip install "vqlib[codecs]")'
    )
    add("--strict-codecs", action="store_true", help=text)
    text = "split to evaluate on; use test only once, at the end"
    add("--split", choices=SPLITS, default="val", help=text)
    add_device(add)
    text = "also write the results, with the PSNR of each image, to this file; default: only print"
    add("--json", type=_output(), help=text)
    return parser


def _download(options: argparse.Namespace) -> None:
    download(options.which, options.to)


def _training_options(options: argparse.Namespace) -> dict[str, Any]:
    names = ("run", "epochs", "lr", "extend", "device", "seed")
    return {name: getattr(options, name) for name in names}


def _train_vqvae(options: argparse.Namespace) -> None:
    data, recipe = open_dataset(options.data, verify=options.verify), RECIPES[options.recipe]
    train_vqvae(data, recipe, size=options.size, **_training_options(options))
    print(f"weights: {run_folder(options.run) / 'vqvae.safetensors'}")


def _train_prior(options: argparse.Namespace) -> None:
    encoded, recipe = EncodedDataset.load(options.codes), RECIPES[options.recipe]
    train_prior(encoded, recipe, **_training_options(options))
    print(f"weights: {run_folder(options.run) / 'prior.safetensors'}")


def _encode(options: argparse.Namespace) -> None:
    data = open_dataset(options.data, verify=options.verify)
    make_folder(options.out.parent)
    vqvae = load_model(options.vqvae, VQVAE).to(options.device or pick_device())
    if options.out.exists():
        try:
            EncodedDataset.load(options.out)
        except DataError as error:
            raise DataError(
                f"{options.out} exists and is not a file of codes: use another --out"
            ) from error
    split = RECIPES[options.recipe].split(data)
    encoded = encode_dataset(vqvae, data, options.size, split=split)
    if options.augmented:
        add_augmented(encoded, vqvae, data, options.size)
    encoded.save(options.out)
    print(f"{options.out}: {encoded}")


def _sample(options: argparse.Namespace) -> None:
    if (options.vqvae is None) != (options.prior is None):
        raise ValueError(
            "--vqvae and --prior belong together: give both, or neither to use a pretrained model"
        )
    device = options.device or pick_device()
    if options.vqvae is None:
        vqvae, prior = load_pretrained(options.model)
        path = PRETRAINED / options.model / "prior.safetensors"
    else:
        vqvae, path = load_model(options.vqvae, VQVAE), options.prior
        prior = load_model(path)
        if not isinstance(prior, PixelCNN | CodeTransformer):
            name = type(prior).__name__
            raise DataError(f"{path} contains a {name}, but a prior was expected: use another file")
        check_pair(vqvae, prior)
    notes = model_notes(path)
    classes = notes.get("classes") or ()
    if options.label not in (None, *classes):
        raise ValueError(
            f"--label {options.label}: the classes of {path} are {', '.join(classes) or '(none)'}"
        )
    height, width = notes.get("grid", [8, 8]) if options.grid is None else [options.grid] * 2
    if options.n * height * width > MAX_POSITIONS:
        raise ValueError(
            f"--n {options.n} with {height} x {width} positions: one file holds at most "
            f"{MAX_POSITIONS // 64} images of 8 x 8 positions. Generate fewer or smaller images; "
            "another --seed gives others"
        )
    make_folder(options.out.parent)
    codes = sample(
        prior.to(device),
        options.n,
        None if options.label is None else classes.index(options.label),
        options.temperature,
        options.top_k,
        options.top_p,
        generator=torch.Generator(device).manual_seed(options.seed),
        grid=(height, width),
        progress=True,
    )
    images = decode_codes(vqvae.to(device), codes)
    _write_image(make_grid(images, round(options.n**0.5)), options.out)
    print(f"{options.out}: {options.n} generated images")


def _write_image(image: Tensor, path: Path) -> None:
    with atomic_write(path) as temporary:
        to_pil_image(image).save(temporary, Image.registered_extensions()[path.suffix.lower()])


def _compress(options: argparse.Namespace) -> None:
    vqvae, prior = load_pretrained(options.model)
    square = resize_to_square(read_image(options.image)[0], options.size)
    pixels = to_float(torch.from_numpy(square.copy()).movedim(-1, 0)[None])
    codes = vqvae.encode(pixels)
    data = compress(prior, codes[0])
    path = options.out or options.image.with_suffix(".vq")
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    quality = psnr(vqvae.decode(codes), pixels).item()
    print(f"{path}: {len(data)} bytes for {options.size} x {options.size} pixels, {quality:.1f} dB")


def _decompress(options: argparse.Namespace) -> None:
    vqvae, prior = load_pretrained(options.model)
    codes, _ = decompress(prior, options.file.read_bytes())
    path = options.out or options.file.with_suffix(".decoded.png")
    _write_image(vqvae.decode(codes[None])[0], path)
    print(f"{path}: {codes.numel()} codes decoded")


def _model_files(names: list[str]) -> dict[str, Path]:
    """Files of VQ-VAEs, given as paths or as names of pretrained models; key: name of the folder.

    Raises:
        DataError: two models have the same name.
    """
    pretrained = [PRETRAINED / name / "vqvae.safetensors" for name in names]
    files = [p if p.is_file() else _path(name) for p, name in zip(pretrained, names, strict=True)]
    models = {file.resolve().parent.name: file for file in files}
    if len(models) < len(files):
        raise DataError(
            "models are named by the folder of their weights, and two have the same name "
            f"({', '.join(map(str, files))}): move one of them to a folder with another name"
        )
    return models


def _evaluate(options: argparse.Namespace) -> None:
    data = open_dataset(options.data, verify=options.verify)
    device = options.device or pick_device()
    # The codes of the codec are not packed, so benchmarks/codec_results.py measures it.
    default = [name for name in pretrained_names() if name != "ham10000-codec"]
    files = _model_files(options.vqvae or default)
    prior_file, classifier_file = options.prior, options.classifier
    if options.vqvae is None:
        folder = next(iter(files.values())).parent
        prior_file = prior_file or folder / "prior.safetensors"
        classifier_file = classifier_file or folder / "classifier.safetensors"
    models = {name: load_model(file, VQVAE).to(device) for name, file in files.items()}
    prior = classifier = prior_classes = None
    extractors: dict[str, Any] = {}
    if prior_file is not None:
        prior = load_model(prior_file, PixelCNN).to(device)
        check_pair(next(iter(models.values())), prior)
        prior_classes = model_notes(prior_file).get("classes")
    elif classifier_file is not None or options.inception:
        raise ValueError("--classifier and --inception evaluate samples, so they need --prior")
    if classifier_file is not None:
        classifier = extractors["lesion classifier"] = load_model(classifier_file, LesionClassifier)
    if lite0_is_installed():
        extractors["EfficientNet-Lite0"] = EfficientNetLite0()
    if options.inception:
        extractors["Inception"] = Inception()
    for extractor in extractors.values():
        extractor.to(device)
    decoders = {}
    realistic = next(iter(files.values())).parent / "realistic.safetensors"
    if realistic.is_file():
        decoder = load_model(realistic, RealisticDecoder).to(device)
        generator = torch.Generator().manual_seed(0)
        decoders["realistic decoder"] = partial(decoder.sample, generator=generator)
    lesions = data.classes == CLASSES
    other_sets = {"synthetic lesions": lambda n: synthetic_dataset(n).pixels(options.size)[:n]}
    result = evaluate(
        data,
        models,
        prior,
        extractors,
        classifier if lesions else None,
        size=options.size,
        split=options.split,
        decoders=decoders,
        other_sets=other_sets if lesions else None,
        prior_classes=prior_classes,
        strict_codecs=options.strict_codecs,
        progress=lambda row: print(f"measured: {row}", file=sys.stderr),
    )
    print(results_table(result))
    if options.json is not None:
        with atomic_write(options.json) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
