"""Command line of vqlib: download, train, encode, sample and evaluate without a notebook."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torchvision.utils import save_image

from .checkpoints import (
    PRETRAINED,
    DataError,
    check_pair,
    load_model,
    load_pretrained,
    model_notes,
    pretrained_names,
)
from .codes import SPLITS, EncodedDataset, add_augmented, encode_dataset
from .evaluation import as_text, evaluate
from .evaluation.generation import Inception
from .lesions import LesionClassifier, download, open_dataset, synthetic_dataset
from .pixelcnn import PixelCNN
from .sampling import sample
from .training import RECIPES, pick_device, train_prior, train_vqvae
from .vqvae import DOWNSCALE, VQVAE


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code. Expected errors are printed as one line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run_command(options)
    except (OSError, ValueError, FloatingPointError) as error:  # DataError is a ValueError
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows default values, except "(default: None)"."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _image_size(text: str) -> int:
    if not text.isdecimal() or int(text) == 0 or int(text) % DOWNSCALE:
        raise argparse.ArgumentTypeError(f"{text} is not a positive multiple of {DOWNSCALE}")
    return int(text)


def _device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(str(error).partition("\n")[0]) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vqlib", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=_HelpFormatter,
        )
        added.set_defaults(run_command=run)
        return added

    def add_data(p: argparse.ArgumentParser) -> None:
        p.add_argument(
            "--data",
            help="folder of the images, or synthetic; "
            "default: the folder $VQLIB_DATA, else data/, else synthetic images",
        )
        p.add_argument(
            "--size", type=_image_size, default=256, help="pixels of a side, a multiple of 32"
        )
        p.add_argument(
            "--verify",
            action="store_true",
            help="read all images and compare them with those that the cache was built from",
        )

    def add_device(p: argparse.ArgumentParser) -> None:
        p.add_argument(
            "--device", type=_device, help="cuda, mps or cpu; default: the first that is available"
        )

    def add_training(p: argparse.ArgumentParser, run: str) -> None:
        p.add_argument(
            "--recipe", choices=RECIPES, default="workbook", help="settings of the training"
        )
        p.add_argument(
            "--run", default=run, help="name or folder of the run; the same name continues it"
        )
        p.add_argument("--epochs", type=int, help="number of epochs; default: the recipe's")
        p.add_argument(
            "--lr",
            type=float,
            help="learning rate, also to continue a run with another one; default: the recipe's",
        )
        p.add_argument(
            "--extend",
            action="store_true",
            help="continue a run that was started with fewer epochs",
        )
        p.add_argument("--seed", type=int, default=0, help="random seed")
        add_device(p)

    p = command("download", _download, "download the real images and verify them (CC BY-NC 4.0)")
    p.add_argument("which", choices=("isic2018", "ham10000"), help="data set")
    p.add_argument("--to", type=Path, default=Path("data"), help="destination folder")

    p = command(
        "train-vqvae", _train_vqvae, "train a VQ-VAE; call it again to continue an interrupted run"
    )
    add_data(p)
    add_training(p, "vqvae")

    p = command("encode", _encode, "encode a data set into a file of codes")
    add_data(p)
    p.add_argument("--vqvae", type=Path, required=True, help="weights of the VQ-VAE (.safetensors)")
    p.add_argument(
        "--recipe",
        choices=RECIPES,
        default="workbook",
        help="recipe whose split is stored with the codes",
    )
    p.add_argument("--out", type=Path, required=True, help="output file (.safetensors)")
    p.add_argument(
        "--augmented",
        action="store_true",
        help="also encode the training images after all eight dihedral transforms",
    )
    add_device(p)

    p = command(
        "train-prior",
        _train_prior,
        "train a prior on codes; call it again to continue an interrupted run",
    )
    p.add_argument(
        "--codes", type=Path, required=True, help="file that the command encode has written"
    )
    add_training(p, "prior")

    p = command("sample", _sample, "generate lesion images and write them as one image file")
    p.add_argument(
        "--model",
        default="ham10000",
        help="name of a pretrained model, a folder in data/pretrained",
    )
    p.add_argument(
        "--vqvae",
        type=Path,
        help="weights of the VQ-VAE (.safetensors), with --prior; default: those of --model",
    )
    p.add_argument(
        "--prior",
        type=Path,
        help="weights of the prior (.safetensors), with --vqvae; default: those of --model",
    )
    p.add_argument("--n", type=int, default=16, help="number of images")
    p.add_argument(
        "--label", help="class that the prior knows, such as MEL; default: unconditional samples"
    )
    p.add_argument("--temperature", type=float, default=1.0, help="sampling temperature")
    p.add_argument(
        "--top-k",
        type=int,
        help="sample from the k most probable codes only; default: from all codes",
    )
    p.add_argument(
        "--top-p",
        type=float,
        help="nucleus sampling: sample from the most probable codes of total probability p only; "
        "default: from all codes",
    )
    p.add_argument(
        "--grid",
        type=int,
        help="positions per side of the grid, 8 for 256 pixels; default: as in training",
    )
    p.add_argument("--seed", type=int, default=0, help="random seed")
    add_device(p)
    p.add_argument("--out", type=Path, default=Path("samples.png"), help="output file")

    p = command(
        "evaluate",
        _evaluate,
        "results table: models and image codecs with the same number of bytes",
    )
    add_data(p)
    p.add_argument(
        "--vqvae",
        action="append",
        metavar="FILE|NAME",
        help="weights, or name of a pretrained model; may be repeated. The first one determines "
        "the number of bytes; default: all pretrained models, with prior and classifier",
    )
    p.add_argument(
        "--prior",
        type=Path,
        help="weights of a prior on the codes of the first model; "
        "default: none, or the pretrained one if --vqvae is not given",
    )
    p.add_argument(
        "--classifier",
        metavar="FILE|inception",
        help="weights of the classifier whose features are used to evaluate samples, or inception "
        "(Inception v3, downloaded, slow); default: as for --prior",
    )
    p.add_argument(
        "--split",
        choices=SPLITS,
        default="val",
        help="split to evaluate on; use test only once, at the end",
    )
    add_device(p)
    p.add_argument(
        "--json",
        type=Path,
        help="also write the results to this file, including the PSNR of each image; "
        "default: only print them",
    )
    return parser


def _download(options: argparse.Namespace) -> None:
    download(options.which, options.to)


def _train_vqvae(options: argparse.Namespace) -> None:
    train_vqvae(
        open_dataset(options.data, verify=options.verify),
        RECIPES[options.recipe],
        run=options.run,
        size=options.size,
        epochs=options.epochs,
        lr=options.lr,
        extend=options.extend,
        device=options.device,
        seed=options.seed,
    )


def _encode(options: argparse.Namespace) -> None:
    data = open_dataset(options.data, verify=options.verify)
    split = RECIPES[options.recipe].split(data)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    vqvae = load_model(options.vqvae, VQVAE).to(options.device or pick_device())
    if options.out.exists():
        try:
            EncodedDataset.load(options.out)
        except DataError as error:
            raise DataError(
                f"{options.out} exists and is not a file of codes: use another --out"
            ) from error
    encoded = encode_dataset(vqvae, data, options.size, split=split)
    if options.augmented:
        add_augmented(encoded, vqvae, data, options.size)
    encoded.save(options.out)
    print(f"{options.out}: {encoded}")


def _train_prior(options: argparse.Namespace) -> None:
    train_prior(
        EncodedDataset.load(options.codes),
        RECIPES[options.recipe],
        run=options.run,
        epochs=options.epochs,
        lr=options.lr,
        extend=options.extend,
        device=options.device,
        seed=options.seed,
    )


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
        vqvae, prior = load_model(options.vqvae, VQVAE), load_model(options.prior, PixelCNN)
        check_pair(vqvae, prior)
        path = options.prior
    notes = model_notes(path)
    classes = notes.get("classes") or ()
    if options.label not in (None, *classes):
        raise ValueError(
            f"--label {options.label}: {path} knows the classes {', '.join(classes) or '(none)'}"
        )
    grid = notes.get("grid", [8, 8]) if options.grid is None else [options.grid] * 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    codes = sample(
        prior.to(device),
        options.n,
        None if options.label is None else classes.index(options.label),
        options.temperature,
        options.top_k,
        options.top_p,
        generator=torch.Generator(device).manual_seed(options.seed),
        grid=tuple(grid),
        progress=True,
    )
    save_image(vqvae.to(device).decode(codes), options.out, nrow=round(options.n**0.5))
    print(f"{options.out}: {options.n} generated images")


def _evaluate(options: argparse.Namespace) -> None:
    data = open_dataset(options.data, verify=options.verify)
    names = options.vqvae or pretrained_names()
    files = [PRETRAINED / name / "vqvae.safetensors" for name in names]
    files = [
        file if file.is_file() else Path(name) for name, file in zip(names, files, strict=True)
    ]
    names = [file.resolve().parent.name for file in files]
    if len(set(names)) < len(names):
        raise DataError(
            f"models are named by the folder of their weights, and two have the same name "
            f"({', '.join(names)}): move one of them to a folder with another name"
        )
    prior, classifier = options.prior, options.classifier
    if options.vqvae is None:
        prior = prior or files[0].with_name("prior.safetensors")
        classifier = classifier or files[0].with_name("classifier.safetensors")
    if classifier is not None and prior is None:
        raise ValueError("--classifier evaluates samples of a prior, so it needs --prior")
    feature_extractor = None
    if classifier is not None:
        inception = str(classifier) == "inception"
        feature_extractor = Inception() if inception else load_model(classifier, LesionClassifier)
    device = options.device or pick_device()
    models = {
        name: load_model(file, VQVAE).to(device) for name, file in zip(names, files, strict=True)
    }
    prior_model = None if prior is None else load_model(prior, PixelCNN).to(device)
    if prior_model is not None:
        check_pair(models[names[0]], prior_model)
    if feature_extractor is not None:
        feature_extractor.to(device)
    result = evaluate(
        data,
        models,
        prior_model,
        feature_extractor,
        size=options.size,
        split=options.split,
        other_sets={"synthetic lesions": lambda n: synthetic_dataset(n).pixels(options.size)[:n]},
        prior_classes=None if prior is None else model_notes(prior).get("classes"),
        progress=lambda row: print(f"measured: {row}", file=sys.stderr),
    )
    print(as_text(result))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
