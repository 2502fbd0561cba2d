import fcntl
import json
import signal
from dataclasses import replace

import pytest
import torch

from vqlib import (
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
from vqlib.classifier import classify
from vqlib.data import Split
from vqlib.loop import Progress, Schedule, fit


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    return tmp_path


class StopAt(Progress):
    """The stop button, pressed during some step; another run records its losses."""

    def __init__(self, at=None):
        super().__init__()
        self.at = at

    def start(self, title, total, done):
        self.total = total

    def step(self, step, logs):
        if step == self.at:
            signal.raise_signal(signal.SIGINT)

    def mean(self, line):
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
    recipe = replace(WORKBOOK, schedule=replace(WORKBOOK.schedule, average=average))
    options = {"recipe": recipe, "size": 64, "epochs": 2, "device": "cpu"}
    quiet = StopAt()
    train_vqvae(data, run="whole", progress=quiet, **options)
    assert quiet.total >= 4
    with pytest.raises(KeyboardInterrupt):
        train_vqvae(data, run="parts", progress=StopAt(min(stop, quiet.total - 1)), **options)
    train_vqvae(data, run="parts", progress=StopAt(), **options)
    runs = home / "runs"
    whole, parts = (state(runs / name / "vqvae.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert log(runs / "whole" / "log.jsonl") == log(runs / "parts" / "log.jsonl")


def test_averaged_weights_equal_the_closed_form(home):
    """0.5 of the newest, 0.25 of the one before ..., and that is what is judged and kept."""
    model, seen, judged = torch.nn.Linear(1, 1), [], []

    def loss_of(batch):
        seen.append(model.weight.item())
        return (model(batch) - 5).square().mean(), {}

    def after_epoch(folder):
        judged.append(model.weight.item())
        return {}, None

    fit(
        model,
        run="mean",
        config={"kind": "line"},
        schedule=Schedule(lr=0.5, average=0.5),
        epochs=2,
        steps_per_epoch=20,
        batches_of=lambda epoch, start: iter([torch.ones(1, 1)] * (20 - start)),
        loss_of=loss_of,
        after_epoch=after_epoch,
        device=torch.device("cpu"),
        seed=0,
        progress=StopAt(),
    )
    # seen[20] is the weight after the first epoch's last step. The first few count for less.
    expected = sum(weight / 2 ** (i + 1) for i, weight in enumerate(seen[20:0:-1]))
    assert judged[0] == pytest.approx(expected, rel=1e-4) and judged[0] != seen[20]
    assert judged[1] == model.weight.item()  # kept at the end


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


def test_a_prior_of_turned_grids_draws_them_as_photographed(home):
    """The grid of each orientation repeats one code of its own. Were the prior not told which one
    it is shown, it would draw all eight codes."""
    photographed = codes(64)
    each = torch.arange(8)[:, None, None, None, None].expand(8, 48, 2, 2, 4).contiguous()
    photographed.codes[:], photographed.turned = 0, each
    fast = replace(WORKBOOK, schedule=Schedule(lr=1e-2))
    small = {"conv_filters": 16, "blocks": 1, "dropout": 0.0}
    prior = train_prior(
        photographed, fast, run="turned", epochs=60, device="cpu", progress=StopAt(), **small
    )
    drawn = sample(prior, 200, grid=(2, 2), generator=torch.Generator().manual_seed(0))
    assert (drawn == 0).float().mean() > 0.95


def test_another_run_in_the_folder_is_refused_and_left_alone(home):
    data = open_dataset(lesions=21)
    train_vqvae(data, run="mine", size=64, epochs=1, progress=StopAt())
    before = (home / "runs/mine/vqvae.safetensors").read_bytes()
    with pytest.raises(DataError, match=r"epochs: 1 there, 2 now.*another name"):
        train_vqvae(data, run="mine", size=64, epochs=2, progress=StopAt())
    (home / "runs/mine/checkpoint.pt").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"checkpoint\.pt can't be read"):
        train_vqvae(data, run="mine", size=64, epochs=1, progress=StopAt())
    assert (home / "runs/mine/vqvae.safetensors").read_bytes() == before


def test_a_run_that_another_process_trains_is_left_alone(home):
    options = {"epochs": 3, "device": "cpu", "conv_filters": 16, "blocks": 1}
    with pytest.raises(KeyboardInterrupt):
        train_prior(codes(), run="mine", progress=StopAt(5), **options)
    before = (home / "runs/mine/log.jsonl").read_bytes()
    with open(home / "runs/mine/config.json") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"mine is being trained by another process.*run="):
            train_prior(codes(), run="mine", progress=StopAt(), **options)
    assert (home / "runs/mine/log.jsonl").read_bytes() == before
    train_prior(codes(), run="mine", progress=StopAt(), **options)


def test_schedule():
    plain = Schedule(lr=1e-3)
    assert {plain.lr_at(step, 10) for step in range(10)} == {1e-3}
    cosine = Schedule(lr=1.0, warmup=4, cosine=True)
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
        assert torch.allclose(classify(other, images), classify(classifier, images), atol=1e-5)
    assert len(log(home / "runs" / "classifier" / "log.jsonl")) == 2 + 1  # steps, and an epoch
    with pytest.raises(DataError):
        train_classifier(*arguments, source="other noise", epochs=1)
