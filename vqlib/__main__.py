"""Long work without a notebook: `python -m vqlib COMMAND --help`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torchvision.utils import save_image

from .classifier import Inception, LesionClassifier
from .codes import SPLITS, EncodedDataset, add_turned, encode_dataset
from .data import CLASSES, DataError, download, open_dataset
from .evaluation import as_text, evaluate
from .pixelcnn import PixelCNN
from .sampling import sample
from .training import RECIPES, train_prior, train_vqvae
from .vqvae import DOWNSCALE, VQVAE
from .weights import PRETRAINED, check_pair, load_model, shipped


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors of the user's making are one clear line."""
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


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Tells defaults, but not "(default: None)"."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _pixels(text: str) -> int:
    if int(text) < DOWNSCALE or int(text) % DOWNSCALE:
        raise argparse.ArgumentTypeError(f"{text} is not divisible by {DOWNSCALE}")
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
            formatter_class=_Help,
        )
        added.set_defaults(run_command=run)
        return added

    def add_data(p: argparse.ArgumentParser) -> None:
        p.add_argument("--data", help="folder of images; default: as open_dataset()")
        p.add_argument("--size", type=_pixels, default=256, help="pixels, divisible by 32")
        p.add_argument(
            "--verify",
            action="store_true",
            help="read all pictures and compare them with those that the cache was built from",
        )

    def add_training(p: argparse.ArgumentParser, run: str) -> None:
        p.add_argument("--recipe", choices=RECIPES, default="workbook")
        p.add_argument("--run", default=run, help="folder of the run; the same name resumes it")
        p.add_argument("--epochs", type=int, help="default: the recipe's")
        p.add_argument("--lr", type=float, help="another learning rate, also to continue a run")
        p.add_argument(
            "--extend", action="store_true", help="continue a run that had fewer --epochs"
        )
        p.add_argument("--seed", type=int, default=0)
        p.add_argument(
            "--device", type=_device, help="cuda, mps or cpu; default: the first that is there"
        )

    p = command("download", _download, "fetch the real images, with checksums (CC BY-NC 4.0)")
    p.add_argument("which", choices=("isic2018", "ham10000"))
    p.add_argument("--to", type=Path, default=Path("data"), help="folder")

    p = command("train-vqvae", _train_vqvae, "train a VQ-VAE; run again to resume")
    add_data(p)
    add_training(p, "vqvae")

    p = command("encode", _encode, "encode a data set into a file of codes")
    add_data(p)
    p.add_argument("--vqvae", type=Path, required=True, help="weights, .safetensors")
    p.add_argument("--recipe", choices=RECIPES, default="workbook", help="whose split is kept")
    p.add_argument("--out", type=Path, required=True, help="file to write, .safetensors")
    p.add_argument(
        "--turned", action="store_true", help="the training part in all eight orientations, too"
    )

    p = command("train-prior", _train_prior, "train a prior on codes; run again to resume")
    p.add_argument("--codes", type=Path, required=True, help="file written by encode")
    add_training(p, "prior")

    p = command("sample", _sample, "draw new lesions and write them as one picture")
    p.add_argument("--vqvae", type=Path, required=True, help="weights, .safetensors")
    p.add_argument("--prior", type=Path, required=True, help="weights, .safetensors")
    p.add_argument("--n", type=int, default=16)
    p.add_argument("--label", choices=CLASSES, help="diagnosis; default: none")
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--top-k", type=int)
    p.add_argument("--top-p", type=float)
    p.add_argument("--grid", type=int, default=8, help="codes a side; 8 gives 256 pixels")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=Path("samples.png"))

    p = command("evaluate", _evaluate, "the results table: models and image codecs at equal bytes")
    add_data(p)
    p.add_argument(
        "--vqvae",
        action="append",
        metavar="FILE|NAME",
        help="weights, or the name of a model that ships; may be given again. "
        "The first sets the bytes. Default: every model that ships, with prior and classifier",
    )
    p.add_argument("--prior", type=Path, help="weights, of a prior on the first model's codes")
    p.add_argument(
        "--classifier",
        metavar="FILE|inception",
        help="weights of the eye that samples are judged with, or Inception v3, fetched and slow",
    )
    p.add_argument("--split", choices=SPLITS, default="val", help="look at test once")
    p.add_argument("--json", type=Path, help="also write the results here, PSNR of each image too")
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
    vqvae = load_model(options.vqvae, VQVAE)
    if options.out.exists():
        try:
            EncodedDataset.load(options.out)
        except DataError as error:
            raise DataError(
                f"{options.out} holds no codes to replace: name another --out"
            ) from error
    encoded = encode_dataset(vqvae, data, options.size, split=split)
    if options.turned:
        add_turned(encoded, vqvae, data, options.size)
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
    options.out.parent.mkdir(parents=True, exist_ok=True)
    vqvae, prior = load_model(options.vqvae, VQVAE), load_model(options.prior, PixelCNN)
    check_pair(vqvae, prior)
    codes = sample(
        prior,
        options.n,
        None if options.label is None else CLASSES.index(options.label),
        options.temperature,
        options.top_k,
        options.top_p,
        generator=torch.Generator().manual_seed(options.seed),
        grid=(options.grid, options.grid),
        progress=True,
    )
    save_image(vqvae.decode(codes), options.out, nrow=round(options.n**0.5))
    print(f"{options.out}: {options.n} lesions that nobody has")


def _evaluate(options: argparse.Namespace) -> None:
    data = open_dataset(options.data, verify=options.verify)
    names = options.vqvae or shipped()
    files = [PRETRAINED / name / "vqvae.safetensors" for name in names]
    files = [
        file if file.is_file() else Path(name) for name, file in zip(names, files, strict=True)
    ]
    names = [file.resolve().parent.name for file in files]
    if len(set(names)) < len(names):
        raise DataError(
            f"a model is called as the folder that its file lies in, and here two have one name "
            f"({', '.join(names)}): move one of them to a folder of another name"
        )
    prior, classifier = options.prior, options.classifier
    if options.vqvae is None:
        prior = prior or files[0].with_name("prior.safetensors")
        classifier = classifier or files[0].with_name("classifier.safetensors")
    if classifier is not None and prior is None:
        raise ValueError("--classifier judges what a prior draws, and needs --prior")
    eye = None
    if classifier is not None:
        inception = str(classifier) == "inception"
        eye = Inception() if inception else load_model(classifier, LesionClassifier)
    models = {name: load_model(file, VQVAE) for name, file in zip(names, files, strict=True)}
    loaded = None if prior is None else load_model(prior, PixelCNN)
    if loaded is not None:
        check_pair(models[names[0]], loaded)
    result = evaluate(
        data,
        models,
        loaded,
        eye,
        size=options.size,
        split=options.split,
        progress=lambda row: print(f"measured: {row}", file=sys.stderr),
    )
    print(as_text(result))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
