"""Training on several processes: two of them, with one thread each, connected by gloo."""

import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing
from test_training import StopAt, codes, log

from vqlib import WORKBOOK, EncodedDataset, open_dataset, train_prior, train_vqvae
from vqlib import distributed as vd
from vqlib.__main__ import main
from vqlib.data import Split
from vqlib.quantizer import VectorQuantizer


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The folder of the runs, and for each rank the results of `twenty_steps` and `trainings`."""
    home = tmp_path_factory.mktemp("two_ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQLIB_HOME", str(home))
        torch.multiprocessing.spawn(one_rank, (home,), nprocs=2)
    return home, [torch.load(home / f"rank {rank}") for rank in range(2)]


def one_rank(rank, home):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{home}/connection", rank=rank, world_size=2
    )
    torch.save((twenty_steps(), trainings()), home / f"rank {rank}")
    torch.distributed.destroy_process_group()


def test_shards_are_equal_parts_of_a_batch_in_order(monkeypatch):
    def shards(batch, batch_size=16, ranks=4):
        monkeypatch.setattr(vd, "world_size", lambda: ranks)
        for rank in range(ranks):
            monkeypatch.setattr(vd, "rank", lambda rank=rank: rank)
            yield vd.shard(torch.arange(batch), batch_size).tolist()

    assert torch.tensor(list(shards(16))).flatten().tolist() == list(range(16))
    assert list(shards(6)) == [[0, 1], [2, 3], [4, 5], [0, 1]]  # the last batch of an epoch
    assert list(shards(1)) == [[0], [0], [0], [0]]
    with pytest.raises(ValueError, match="batches of 16 can't be divided evenly among 3 processes"):
        list(shards(16, ranks=3))


def twenty_steps():
    """State of quantizers in float64 after 20 batches of features, of which each rank gets a part;
    initialized from data, with codes that are replaced, one codebook and one for each slot."""
    results = {}
    for codebooks in (1, 2):
        torch.manual_seed(vd.rank())
        vq = VectorQuantizer(64, 4, codebooks=codebooks, data_init=True, restart_after=2)
        vq.double().train()
        generator, restarts = torch.Generator().manual_seed(0), 0
        for step in range(20):
            z = torch.randn(4, 8, 3, 3, dtype=torch.float64, generator=generator) + step
            before = vq.steps_unused.clone()
            out = vq(z.chunk(vd.world_size())[vd.rank()])
            restarts += int(((before == 1) & (vq.steps_unused == 0)).sum())
            results[f"{codebooks} perplexity {step}"] = out.perplexity.detach()
        results |= {f"{codebooks} {name}": tensor for name, tensor in vq.state_dict().items()}
        assert restarts > 100
    return results


def test_the_quantizer_on_two_ranks_equals_one_process(two_ranks):
    expected = twenty_steps()
    for state, _ in two_ranks[1]:
        for name, tensor in expected.items():
            assert torch.allclose(state[name].double(), tensor.double(), rtol=0, atol=1e-6), name


def steps_in(run):
    """The steps in the log of a run, without the lines of held-out results."""
    return [line["step"] for line in log(run / "log.jsonl") if "loss" in line]


VQVAE_OPTIONS = {"recipe": WORKBOOK, "size": 64, "epochs": 2, "device": "cpu"}
PRIOR_OPTIONS = {"epochs": 2, "device": "cpu", "conv_filters": 16, "blocks": 1, "dropout": 0.0}
PRIOR_OPTIONS["recipe"] = replace(WORKBOOK, label_dropout=0.0)  # nothing random but the weights


def trainings():
    """A training without and one with an interruption, which only rank 1 receives; one that is to
    be continued on one process; and a prior. Returns the states of the models."""
    stopping = {"progress": StopAt(3 if vd.rank() == 1 else None), **VQVAE_OPTIONS}
    data, quiet = open_dataset(lesions=21), {"progress": StopAt()}
    whole = train_vqvae(data, run="whole", **quiet, **VQVAE_OPTIONS)
    for run in ("parts", "moved"):
        with pytest.raises(KeyboardInterrupt):
            train_vqvae(data, run=run, **stopping)
    parts = train_vqvae(data, run="parts", **quiet, **VQVAE_OPTIONS)
    prior = train_prior(codes(), run="on two", **quiet, **PRIOR_OPTIONS)
    train_prior(codes(), run="random", **quiet, **PRIOR_OPTIONS | {"dropout": 0.5})
    return [model.state_dict() for model in (whole, parts, prior)]


def test_trainings_on_two_ranks(two_ranks, monkeypatch):
    home, results = two_ranks
    monkeypatch.setenv("VQLIB_HOME", str(home))
    runs, ranks = home / "runs", [models for _, models in results]

    # All ranks hold the same model, and a resumed run equals an uninterrupted one.
    for whole, parts, _ in ranks:
        for name, tensor in ranks[0][0].items():
            assert torch.equal(whole[name], tensor) and torch.equal(parts[name], tensor), name
    assert ranks[0][0]["quantizer.initialized"]
    assert log(runs / "whole/log.jsonl") == log(runs / "parts/log.jsonl")

    # All ranks stopped in the same step, and one process continues the run.
    stopped = torch.load(runs / "moved/checkpoint.pt")
    assert stopped["step"] == steps_in(runs / "moved")[-1] == 3
    data = open_dataset(lesions=21)
    train_vqvae(data, run="moved", progress=StopAt(), **VQVAE_OPTIONS)
    lines = log(runs / "moved/log.jsonl")
    assert lines[:3] == log(runs / "whole/log.jsonl")[:3]
    held_out = [line["held_out"] for line in lines if "held_out" in line]
    assert steps_in(runs / "moved") == [1, 2, 3, 4] and len(held_out) == 2
    assert {line["n"] for line in held_out} == {len(WORKBOOK.split(data).val)}

    # A model without BatchNorm learns the same on one process and on two.
    prior = train_prior(codes(), run="one", progress=StopAt(), **PRIOR_OPTIONS)
    for name, tensor in prior.state_dict().items():
        assert torch.allclose(ranks[0][2][name], tensor, atol=1e-4), name
    for on_two, on_one in zip(log(runs / "on two/log.jsonl"), log(runs / "one/log.jsonl")):
        if "loss" in on_one:
            assert on_two["loss"] == pytest.approx(on_one["loss"], rel=1e-4)
        else:
            bits = on_one["held_out"]["bits_per_code"]
            assert on_two["held_out"]["bits_per_code"] == pytest.approx(bits, rel=1e-4)

    # The ranks have different dropout masks.
    rng = torch.load(runs / "random/checkpoint.pt")["rng"]
    assert len(rng) == 2 and not torch.equal(*rng)


def test_torchrun_stops_all_ranks_and_one_process_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VQLIB_HOME", str(tmp_path))
    indices = torch.arange(180)
    split = Split(indices[:160], indices[160:170], indices[170:])
    torch.manual_seed(0)
    grids = torch.randint(16, (180, 2, 2, 4))
    encoded = EncodedDataset(grids, indices % 7, split, torch.randn(4, 16, 8), "noise")
    encoded.save(tmp_path / "codes.safetensors")
    command = ["train-prior", "--codes", str(tmp_path / "codes.safetensors")]
    command += ["--run", "cli", "--epochs", "3", "--device", "cpu"]
    # Without "--", torchrun takes --run for an abbreviation of its --run-path.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--"]
    with open(tmp_path / "output", "w") as output:
        process = subprocess.Popen(
            [*torchrun, "vqlib", *command], stdout=output, stderr=subprocess.STDOUT
        )
        path, deadline = tmp_path / "runs/cli/log.jsonl", time.monotonic() + 120
        while not (path.is_file() and path.stat().st_size) and time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    printed = (tmp_path / "output").read_text()
    step = torch.load(tmp_path / "runs/cli/checkpoint.pt")["step"]
    assert printed.count(f"Stopped at step {step} of 30: run the same call again") == 1, printed
    assert 1 <= step < 30 and steps_in(path.parent) == list(range(1, step + 1))
    assert main(command) == 0
    assert steps_in(path.parent) == list(range(1, 31))
