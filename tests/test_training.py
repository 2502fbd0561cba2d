import fcntl
import json
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vqlib import (
    REPORT,
    VQVAE,
    WORKBOOK,
    DataError,
    EncodedDataset,
    load_model,
    open_dataset,
    sample,
    train_classifier,
    train_prior,
    train_vqvae,
)
from vqlib.checkpoints import describe, find_run, model_notes
from vqlib.data import Split, rotate_and_flip
from vqlib.metrics import predict_images
from vqlib.training import Progress, Schedule, TrainingStopped, _copy_of_weights, _update_ema, fit


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    return tmp_path


class StopAt(Progress):
    """Prints nothing, and presses the stop button in step `at` if one is given."""

    def __init__(self, at=None):
        super().__init__()
        self.at = at

    def start(self, title, total, done, folder):
        self.title, self.total = title, total

    def step(self, step, logs):
        if step == self.at:
            signal.raise_signal(signal.SIGINT)

    def report_mean_loss(self, line):
        pass

    def epoch(self, logs, images):
        pass


def state(path):
    return load_model(path).state_dict()


def log(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("stop, average", [(1, None), (3, 0.9), (4, None), (6, 0.9)])
def test_resumed_vqvae_equals_uninterrupted(home, stop, average):
    """Weights and log, to the last bit: stopped in an epoch, at its end, and in the next."""
    data = open_dataset(lesions=21)
    recipe = replace(WORKBOOK, schedule=replace(WORKBOOK.schedule, ema_decay=average))
    options = {"recipe": recipe, "size": 64, "epochs": 2, "device": "cpu"}
    quiet = StopAt()
    train_vqvae(data, run="whole", progress=quiet, **options)
    assert quiet.total >= 4
    with pytest.raises(
        TrainingStopped, match=r"^Stopped at step \d of \d: run the same"
    ) as stopped:
        train_vqvae(data, run="parts", progress=StopAt(min(stop, quiet.total - 1)), **options)
    assert stopped.value._render_traceback_() == [str(stopped.value)]  # one line in a notebook
    train_vqvae(data, run="parts", progress=StopAt(), **options)
    train_vqvae(data, run="whole", progress=quiet, **options)
    assert "trained before, loaded" in quiet.title
    runs = home / "runs"
    whole, parts = (state(runs / name / "vqvae.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert log(runs / "whole" / "log.jsonl") == log(runs / "parts" / "log.jsonl")


def test_averaged_weights_equal_the_closed_form(home):
    """0.5 of the newest, 0.25 of the one before ...; the average is evaluated and kept."""
    model, seen, evaluated = torch.nn.Linear(1, 1), [], []

    def compute_loss(batch):
        seen.append(model.weight.item())
        return (model(batch) - 5).square().mean(), {}

    def evaluate(folder, epoch):
        evaluated.append(model.weight.item())
        return {}, None

    fit(
        model,
        run="mean",
        config={"kind": "line"},
        schedule=Schedule(lr=0.5, ema_decay=0.5),
        epochs=2,
        steps_per_epoch=20,
        get_batches=lambda epoch, start: iter([torch.ones(1, 1)] * (20 - start)),
        compute_loss=compute_loss,
        evaluate=evaluate,
        device=torch.device("cpu"),
        seed=0,
        progress=StopAt(),
    )
    # seen[20] is the weight after the first epoch's last step. The first few count for less.
    expected = sum(weight / 2 ** (i + 1) for i, weight in enumerate(seen[20:0:-1]))
    assert evaluated[0] == pytest.approx(expected, rel=1e-4) and evaluated[0] != seen[20]
    assert evaluated[1] == model.weight.item()  # kept at the end


def codes(n=64):
    torch.manual_seed(0)
    half = torch.randint(16, (n, 2, 2, 2))
    grid = torch.stack([half, half], -1).flatten(3)  # every second code repeats the one before
    indices = torch.arange(n)
    split = Split(indices[:-16], indices[-16:-8], indices[-8:])
    return EncodedDataset(grid, indices % 7, split, torch.randn(4, 16, 8), "pairs")


def test_resumed_prior_equals_uninterrupted_with_dropout(home):
    small = {"conv_filters": 16, "blocks": 1, "dropout": 0.3}
    options = {"epochs": 3, "device": "cpu", **small}
    train_prior(codes(), run="whole", progress=StopAt(), **options)
    with pytest.raises(KeyboardInterrupt):
        train_prior(codes(), run="parts", progress=StopAt(5), **options)
    train_prior(codes(), run="parts", progress=StopAt(), **options)
    whole, parts = (state(home / "runs" / n / "prior.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_prior_learns_a_rule_that_tables_cannot(home):
    """Half of the codes repeat the code before: 4 bits each alone, 2 on average with the rule."""
    train_prior(
        codes(256),
        run="rule",
        epochs=20,
        device="cpu",
        progress=StopAt(),
        conv_filters=32,
        blocks=1,
        dropout=0.0,
    )
    epochs = [x for x in log(home / "runs/rule/log.jsonl") if "held_out" in x]
    best = min(x["held_out"]["bits_per_code"] for x in epochs)
    assert best < 3.4


def test_a_prior_of_augmented_grids_samples_orientation_0(home):
    """Each orientation has grids of one code of its own. A prior that is not conditioned on the
    orientation would sample all eight codes."""
    photographed = codes(64)
    each = torch.arange(8)[:, None, None, None, None].expand(8, 48, 2, 2, 4).contiguous()
    photographed.codes[:], photographed.augmented = 0, each
    fast = replace(WORKBOOK, schedule=Schedule(lr=1e-2))
    small = {"conv_filters": 16, "blocks": 1, "dropout": 0.0}
    prior = train_prior(
        photographed, fast, run="augmented", epochs=60, device="cpu", progress=StopAt(), **small
    )
    sampled = sample(prior, 200, grid=(2, 2), generator=torch.Generator().manual_seed(0))
    assert (sampled == 0).float().mean() > 0.95


def test_another_run_in_the_folder_is_refused_and_not_changed(home):
    data = open_dataset(lesions=21)
    train_vqvae(data, run="mine", size=64, epochs=1, progress=StopAt())
    before = (home / "runs/mine/vqvae.safetensors").read_bytes()
    with pytest.raises(
        DataError, match=r"epochs: 1 in the folder, 2 in this call.*another name.*extend=True"
    ):
        train_vqvae(data, run="mine", size=64, epochs=2, progress=StopAt())
    (home / "runs/mine/checkpoint.pt").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"checkpoint\.pt can't be read"):
        train_vqvae(data, run="mine", size=64, epochs=1, progress=StopAt())
    assert (home / "runs/mine/vqvae.safetensors").read_bytes() == before


def test_a_run_that_another_process_trains_is_not_changed(home):
    options = {"epochs": 3, "device": "cpu", "conv_filters": 16, "blocks": 1}
    with pytest.raises(KeyboardInterrupt):
        train_prior(codes(), run="mine", progress=StopAt(5), **options)
    before = (home / "runs/mine/log.jsonl").read_bytes()
    with open(home / "runs/mine/.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"mine is being trained by another process.*run="):
            train_prior(codes(), run="mine", progress=StopAt(), **options)
    assert (home / "runs/mine/log.jsonl").read_bytes() == before
    train_prior(codes(), run="mine", progress=StopAt(), **options)


def test_schedule():
    plain = Schedule(lr=1e-3)
    assert {plain.lr_at(step, 10) for step in range(10)} == {1e-3}
    cosine = Schedule(lr=1.0, warmup_steps=4, cosine_decay=True)
    rates = [cosine.lr_at(step, 104) for step in range(104)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[54] == pytest.approx(0.5) and 0 < rates[-1] < 1e-3


def test_a_trained_classifier_is_loaded_not_trained_again(home):
    torch.manual_seed(0)
    images, labels = torch.randint(256, (40, 3, 64, 64)).byte(), torch.arange(40) % 3
    arguments = (images, labels, images[:7], labels[:7])
    classifier = train_classifier(*arguments, source="noise", epochs=1)
    saved = load_model(home / "runs" / "classifier" / "classifier.safetensors")
    again = train_classifier(*arguments, source="noise", epochs=1)
    for other in (saved, again):
        assert torch.allclose(
            predict_images(other, images), predict_images(classifier, images), atol=1e-5
        )
    assert len(log(home / "runs" / "classifier" / "log.jsonl")) == 2 + 1  # steps, and an epoch
    with pytest.raises(DataError, match="images: "):
        train_classifier(255 - images, *arguments[1:], source="noise", epochs=1)


# --- the settings identify a run ------------------------------------------------------------------


def one_color(images, generator):
    """An augmentation that removes the content of the images."""
    return torch.full(images.shape, 0.5)


VQVAE_CHANGES = {
    r"recipe\.augment: vqlib\.random_dihedral in the folder, .*one_color": {"augment": one_color},
    r"augment: .* in the folder, vqlib\.rotate_and_flip\(degrees=5\.0\)": {
        "augment": partial(rotate_and_flip, degrees=5.0)
    },
    r"recipe\.resize_mode: crop in the folder, squash": {"resize_mode": "squash"},
    r"recipe\.batch_size: 16 in the folder, 4": {"batch_size": 4},
    r"recipe\.split_by: group in the folder, image": {"split_by": "image"},
    r"split: .* in the folder, ": {"split_fractions": (0.6, 0.2, 0.2)},
    r"recipe\.schedule\.grad_clip: 1\.0 in the folder, None": {
        "schedule": replace(WORKBOOK.schedule, grad_clip=None)
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the workbook's recipe on 21 synthetic lesions."""
    home = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQLIB_HOME", str(home))
        train_vqvae(open_dataset(lesions=21), run="done", size=64, epochs=1, progress=StopAt())
    return home


@pytest.mark.parametrize("message", VQVAE_CHANGES)
def test_another_recipe_does_not_get_the_weights_of_a_finished_run(finished, monkeypatch, message):
    monkeypatch.setenv("VQLIB_HOME", str(finished))
    before = {path: path.read_bytes() for path in finished.glob("runs/done/*")}
    data, recipe = open_dataset(lesions=21), replace(WORKBOOK, **VQVAE_CHANGES[message])
    with pytest.raises(DataError, match=rf"{message}.* in this call.*run="):
        train_vqvae(data, recipe, run="done", size=64, epochs=1, progress=StopAt())
    assert {path: path.read_bytes() for path in finished.glob("runs/done/*")} == before


def test_other_images_do_not_get_the_weights_of_a_finished_run(finished, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(finished))
    other = open_dataset(lesions=21, seed=1)
    with pytest.raises(DataError, match=r"pixels: .* in the folder"):
        train_vqvae(other, run="done", size=64, epochs=1, progress=StopAt())


def test_a_finished_run_is_loaded_on_any_device_and_precision(finished, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(finished))
    weights = state(finished / "runs/done/vqvae.safetensors")
    monkeypatch.setattr("vqlib.training._cpu_has_bf16", lambda: True)
    again = train_vqvae(
        open_dataset(lesions=21), run="done", size=64, epochs=1, device="cpu", progress=StopAt()
    )
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())
    assert model_notes(finished / "runs/done/vqvae.safetensors")["finished"] is True


SMALL_PRIOR = {"conv_filters": 16, "blocks": 1, "device": "cpu"}


def test_other_codes_do_not_get_the_prior_of_a_finished_run(home):
    train_prior(codes(), run="done", epochs=1, progress=StopAt(), **SMALL_PRIOR)
    others = {"codes": codes(), "codebook": codes(), "augmented": codes()}
    others["codes"].codes[0, 0, 0, 0] += 1
    others["codebook"].codebook = others["codebook"].codebook.flip(1)
    others["augmented"].augmented = others["augmented"].codes[None, :48].expand(8, -1, -1, -1, -1)
    for field, other in others.items():
        with pytest.raises(DataError, match=f"{field}: .* in the folder"):
            train_prior(other, run="done", epochs=1, progress=StopAt(), **SMALL_PRIOR)
    with pytest.raises(
        DataError, match=r"recipe.label_dropout: 0.1 in the folder, 0.5 in this call"
    ):
        often = replace(WORKBOOK, label_dropout=0.5)
        train_prior(codes(), often, run="done", epochs=1, progress=StopAt(), **SMALL_PRIOR)


def test_functions_without_a_name_are_refused():
    def nested(images, generator):
        return images

    for unnamed in (lambda: None, nested, partial(nested, 1), "text".upper):
        with pytest.raises(ValueError, match="top level"):
            describe(replace(WORKBOOK, augment=unnamed))
    settings = describe(REPORT)
    assert settings["vqvae"] == "vqlib.VQVAE.report"
    assert settings["augment"].startswith("vqlib.rotate_and_flip(corners=[0.485, ")


def test_a_run_may_be_extended_but_only_if_that_is_asked_for(home):
    train_prior(codes(), run="mine", epochs=1, progress=StopAt(), **SMALL_PRIOR)
    longer = {"run": "mine", "epochs": 3, "progress": StopAt(), **SMALL_PRIOR}
    with pytest.raises(DataError, match="epochs: 1 in the folder, 3 in this call"):
        train_prior(codes(), **longer)
    train_prior(codes(), extend=True, **longer)
    assert log(home / "runs/mine/log.jsonl")[-1]["epoch"] == 3
    assert model_notes(home / "runs/mine/prior.safetensors")["epochs"] == 3
    with pytest.raises(DataError, match="epochs: 3 in the folder, 2 in this call"):
        train_prior(codes(), extend=True, **longer | {"epochs": 2})


def test_an_unfinished_prior_is_not_taken_for_a_finished_one(home, capsys):
    options = {"epochs": 4, **SMALL_PRIOR}
    with pytest.raises(KeyboardInterrupt):  # 3 steps an epoch
        train_prior(codes(), run="04", progress=StopAt(7), **options)
    notes = model_notes(home / "runs/04/prior.safetensors")
    assert (notes["finished"], notes["epochs"]) == (False, 4) and notes["epoch"] in (1, 2)
    assert find_run("04", "prior.safetensors").name == "ham10000"
    assert "stopped at epoch" in capsys.readouterr().out
    train_prior(codes(), run="04", progress=StopAt(), **options)
    assert model_notes(home / "runs/04/prior.safetensors")["finished"] is True
    assert find_run("04", "prior.safetensors") == home / "runs/04"


def test_after_a_nan_the_advised_call_continues_from_the_checkpoint(home):
    model, seen = torch.nn.Linear(1, 1), []

    def compute_loss(batch):
        loss = model(batch).square().mean()
        seen.append(model.weight.item())
        return loss * (torch.nan if len(seen) == 6 else 1), {}

    options = {
        "run": "nan",
        "config": {"kind": "line"},
        "schedule": Schedule(lr=0.5),
        "epochs": 3,
        "steps_per_epoch": 4,
        "get_batches": lambda epoch, start: iter([torch.ones(1, 1)] * (4 - start)),
        "compute_loss": compute_loss,
        "evaluate": lambda folder, epoch: ({}, None),
        "device": torch.device("cpu"),
        "seed": 0,
        "progress": StopAt(),
    }
    with pytest.raises(FloatingPointError, match=r"nan at step 6; nothing after step 4.*lr=0\.25"):
        fit(model, **options)
    with pytest.raises(DataError, match=r"lr: 0.5 in the folder, 0.1 in this call.*lr=\.\.\."):
        fit(model, **options | {"schedule": Schedule(lr=0.1)})
    fit(model, **options, lr=0.25)
    assert seen[6] == seen[4]  # the first step after the checkpoint, done again
    assert [line["step"] for line in log(home / "runs/nan/log.jsonl") if "loss" in line] == [
        *range(1, 13)
    ]


def overfitting():
    """Random codes: the validation loss is lowest after one of the first epochs."""
    torch.manual_seed(1)
    grid = torch.randint(16, (64, 2, 2, 4))
    indices = torch.arange(64)
    split = Split(indices[:-16], indices[-16:-8], indices[-8:])
    return EncodedDataset(grid, indices % 7, split, torch.randn(4, 16, 8), "chance")


def test_a_resumed_prior_keeps_its_best_epoch_even_if_a_log_line_is_torn(home):
    fast = replace(WORKBOOK, schedule=Schedule(lr=1e-2))
    options = {"recipe": fast, "epochs": 8, "dropout": 0.0, **SMALL_PRIOR}
    train_prior(overfitting(), run="whole", progress=StopAt(), **options)
    best = model_notes(home / "runs/whole/prior.safetensors")["epoch"]
    assert best < 6
    with pytest.raises(KeyboardInterrupt):
        train_prior(overfitting(), run="parts", progress=StopAt(3 * 7 - 1), **options)
    with open(home / "runs/parts/log.jsonl", "a") as file:
        file.write('{"step": 21, "lo')
    train_prior(overfitting(), run="parts", progress=StopAt(), **options)
    assert model_notes(home / "runs/parts/prior.safetensors")["epoch"] == best
    whole, parts = (state(home / "runs" / n / "prior.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


# --- the settings of a recipe are applied ---------------------------------------------------------


def test_training_images_are_augmented(home):
    data, recipe = open_dataset(lesions=21), replace(WORKBOOK, augment=one_color)
    train_vqvae(data, recipe, run="gray", size=64, epochs=1, progress=StopAt())
    train_vqvae(data, run="augmented", size=64, epochs=1, progress=StopAt())
    gray, augmented = (log(home / f"runs/{run}/log.jsonl") for run in ("gray", "augmented"))
    assert gray[0]["perplexity"] < 5 < augmented[0]["perplexity"]  # one color: a code per corner


def test_labels_are_dropped_at_random(home):
    for rate, run in ((0.0, "never"), (0.5, "often")):
        recipe = replace(WORKBOOK, label_dropout=rate)
        prior = train_prior(codes(), recipe, run=run, epochs=2, progress=StopAt(), **SMALL_PRIOR)
        assert prior.label_embedding.weight[:7].abs().sum() > 0
        assert (prior.label_embedding.weight[7].abs().sum() > 0) == (rate > 0)  # "no label"


def test_the_reports_prior_learns_to_predict_the_vectors(home):
    """All vectors are the same and far from zero: MSE toward anything else stays above 1."""
    encoded = codes()
    encoded.codebook = encoded.codebook + 5
    train_prior(encoded, REPORT, run="report", epochs=20, progress=StopAt(), device="cpu")
    epochs = [x for x in log(home / "runs/report/log.jsonl") if "held_out" in x]
    assert epochs[-1]["held_out"]["mse_over_variance"] < 1.5


def test_gradients_are_clipped(home):
    """Adam forgets the scale of all gradients, but not that one of them was larger."""

    def train(clip):
        torch.manual_seed(0)
        model, number = torch.nn.Linear(1, 1, bias=False), iter(range(3))
        fit(
            model,
            run=f"clip {clip}",
            config={"kind": "line"},
            schedule=Schedule(lr=0.1, grad_clip=clip),
            epochs=1,
            steps_per_epoch=3,
            get_batches=lambda epoch, start: iter([torch.ones(1, 1)] * 3),
            compute_loss=lambda batch: (100 ** next(number) * model(batch).sum(), {}),
            evaluate=lambda folder, epoch: ({}, None),
            device=torch.device("cpu"),
            seed=0,
            progress=StopAt(),
        )
        return model.weight.item()

    weight = torch.nn.Linear(1, 1, bias=False)
    torch.manual_seed(0)
    weight = torch.nn.Linear(1, 1, bias=False).weight
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for _ in range(3):  # each gradient, 1, 100 and 10,000, is clipped to 1
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert train(1.0) == pytest.approx(weight.item(), abs=1e-5)
    assert train(None) != pytest.approx(weight.item(), abs=1e-3)


def test_the_classifiers_loss_contains_the_class_frequencies(home):
    """At the start its logits are about 0, so its loss is the entropy of the frequencies."""
    torch.manual_seed(0)
    images, labels = torch.randint(256, (64, 3, 64, 64)).byte(), (torch.arange(64) == 0).long()
    arguments = (images, labels, images[:2], labels[:2])
    train_classifier(*arguments, source="noise", epochs=1, progress=StopAt())
    first = log(home / "runs/classifier/log.jsonl")[0]["loss"]
    assert first < 0.5 < float(F.cross_entropy(torch.zeros(1, 7), torch.zeros(1).long()))


def test_the_report_splits_by_image_and_the_workbook_by_lesion():
    data = open_dataset(lesions=60)
    for recipe, shares in ((REPORT, True), (WORKBOOK, False)):
        train, *held_out = recipe.split(data)
        groups = [set(data.groups[part].tolist()) for part in (train, torch.cat(held_out))]
        assert bool(groups[0] & groups[1]) == shares


# --- no synchronization with a GPU ----------------------------------------------------------------


class CountReads(TorchDispatchMode):
    """Counts the operators that copy a value from the device to Python and so synchronize a GPU."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "bincount")
        self.reads += func.overloadpacket.__name__ in names
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_training_step_reads_nothing_from_the_device(ema_decay):
    """Except in steps that log. On a GPU, unused codes are replaced without a check whether there
    are any."""
    torch.manual_seed(0)
    vqvae = VQVAE(restart_after=None).train()
    images = torch.rand(8, 3, 64, 64)
    vqvae(images)  # the codebook starts from the first batch
    ema = _copy_of_weights(vqvae)
    with CountReads() as count:
        out = vqvae(images)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(vqvae.parameters(), 1.0)
        if ema_decay is not None:
            _update_ema(ema, vqvae, ema_decay, step=2)
    assert count.reads == 0
