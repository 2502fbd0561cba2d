"""Full disks, torn files, foreign checkpoints and killed processes: nothing is lost or mixed up."""

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_training import StopAt, log

from vqlib import DataError, PixelCNN, save_model
from vqlib.checkpoints import atomic_write, read_log, run_folder
from vqlib.training import Schedule, fit


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    return tmp_path


@contextmanager
def full_disk(file_size):
    """No file can become larger than `file_size` bytes."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.SIG_IGN
    handler = signal.signal(signal.SIGXFSZ, handler)  # then a write raises OSError
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def train_line(run, steps=4, epochs=2, **options):
    """A few steps of linear regression; returns the weights."""
    torch.manual_seed(0)
    model = torch.nn.Linear(30, 30)

    def get_batches(epoch, start):
        generator = torch.Generator().manual_seed(epoch)
        return iter(torch.randn(steps, 8, 30, generator=generator)[start:])

    fit(
        model,
        run=run,
        config={"kind": "line", "steps": steps},
        schedule=Schedule(lr=0.1),
        epochs=epochs,
        steps_per_epoch=steps,
        get_batches=get_batches,
        compute_loss=lambda batch: ((model(batch) - batch.flip(1)).square().mean(), {}),
        evaluate=lambda folder, epoch: ({}, None),
        device="cpu",
        progress=StopAt(),
        **options,
    )
    return model.weight.detach()


@pytest.mark.parametrize(
    ("size", "steps", "name"),
    [(50, 4, "config.json"), (2000, 100, "log.jsonl"), (2000, 4, "checkpoint.pt")],
)
def test_a_run_continues_after_the_disk_was_full(home, size, steps, name):
    whole = train_line("whole", steps)
    with (
        full_disk(size),
        pytest.raises(DataError, match=rf"{name} could not be written \(.*\): make room"),
    ):
        train_line("parts", steps)
    assert not list(run_folder("parts").glob(".*.*"))  # no temporary file
    assert torch.equal(train_line("parts", steps), whole)
    assert log(home / "runs/parts/log.jsonl") == log(home / "runs/whole/log.jsonl")


def test_a_full_disk_does_not_empty_the_settings_of_a_run(home):
    train_line("mine")
    before = (home / "runs/mine/config.json").read_bytes()
    with full_disk(50), pytest.raises(DataError, match=r"config\.json could not be written"):
        train_line("mine", epochs=3, extend=True)
    assert (home / "runs/mine/config.json").read_bytes() == before


@pytest.mark.parametrize("left", [0, 10, 75], ids=["deleted", "torn", "torn later"])
def test_a_log_that_lost_lines_gets_only_complete_ones(home, left):
    """As after its restoration from an older copy of the folder."""
    train_line("mine", epochs=1)
    path = home / "runs/mine/log.jsonl"
    path.write_bytes(path.read_bytes()[:left])
    if not left:
        path.unlink()
    train_line("mine", extend=True)
    steps, _ = read_log("mine")
    assert [line["step"] for line in steps][-4:] == [5, 6, 7, 8]


def foreign(path, content):
    state = torch.load(path, weights_only=True)
    if content == "another model":
        state["model"] = PixelCNN(4, conv_filters=8, blocks=1).state_dict()
    if content == "another size":
        state["model"] = {name: value[:2] for name, value in state["model"].items()}
    return {"nothing": {}, "a list": [1]}.get(content, state)


@pytest.mark.parametrize("content", ["nothing", "a list", "another model", "another size"])
def test_a_checkpoint_of_something_else_is_refused_and_kept(home, content):
    train_line("mine")
    path = home / "runs/mine/checkpoint.pt"
    torch.save(foreign(path, content), path)
    before = path.read_bytes(), (home / "runs/mine/log.jsonl").read_bytes()
    with pytest.raises(DataError, match=rf"{path} is not of this training .*delete it to restart"):
        train_line("mine")
    assert (path.read_bytes(), (home / "runs/mine/log.jsonl").read_bytes()) == before


def test_a_checkpoint_without_settings_is_refused(home):
    """It could be of any training with the same layers."""
    train_line("mine")
    (home / "runs/mine/config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json can't be read .*use another run name"):
        train_line("mine")


def test_temporary_files_of_killed_processes_are_removed(home):
    train_line("mine")
    folder = home / "runs/mine"
    (folder / ".checkpoint.pt.123456").write_bytes(b"half a checkpoint")
    train_line("mine")
    assert {path.name for path in folder.glob(".*")} == {".lock"}
    for name, age in ((".table.json.1", 10_000), (".table.json.2", 10)):
        (home / name).touch()
        os.utime(home / name, (0, (home / name).stat().st_mtime - age))
    with atomic_write(home / "table.json") as temporary:
        temporary.write_text("{}")
    assert [p.name for p in home.glob(".table*")] == [".table.json.2"]  # it may be in use


@pytest.mark.parametrize("kills", [3, pytest.param(21, marks=pytest.mark.long)])
def test_a_pipeline_that_is_killed_ends_with_the_same_files(tmp_path, kills, record_property):
    script = Path(__file__).with_name("killed_pipeline.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent.parent)}
    command = [sys.executable, script, tmp_path, str(kills), "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record_property("kills", done.stdout.strip())


@pytest.mark.parametrize("run", ["", ".", "../x", "a/../../x"])
def test_a_run_stays_in_the_folder_of_runs(home, run):
    with pytest.raises(ValueError, match="run must be a name"):
        train_line(run)
    assert not list(home.rglob("config.json"))


def test_a_run_in_the_home_folder(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home / "me"))
    assert run_folder("~/x") == home / "me" / "x"


def test_equal_weights_give_equal_files(tmp_path):
    model = PixelCNN(4, conv_filters=8, blocks=1)
    files = {
        save_model(model, tmp_path / "a.safetensors", note="ä\n", epochs=3).read_bytes()
        for _ in range(5)
    }
    assert len(files) == 1
    assert json.loads(files.pop()[8:].split(b"}}")[0] + b"}}")["__metadata__"]["format"] == "2"
