"""Reading and plotting the log of a run."""

import json

import pytest

from vqlib import DataError
from vqlib.checkpoints import read_log
from vqlib.course.training_curves import plot_bits_by_epoch, plot_log


def write_log(folder, *lines, incomplete=""):
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text + incomplete)
    return folder


STEPS = [{"step": i, "epoch": 1, "loss": 1.0, "bits_per_code": 9.0} for i in (1, 2, 3)]
EPOCH = {"step": 3, "epoch": 1, "held_out": {"bits_per_code": 8.5}}


def test_an_incomplete_last_line_of_a_log_is_ignored(tmp_path):
    steps, epochs = read_log(write_log(tmp_path, *STEPS, EPOCH, incomplete='{"step": 4, "ep'))
    assert (steps, epochs) == (STEPS, [EPOCH])


def test_missing_logs_steps_and_keys_are_reported(tmp_path):
    with pytest.raises(DataError, match="is 'never' the name of a run"):
        read_log("never")
    with pytest.raises(DataError, match="no step yet"):
        read_log(write_log(tmp_path, incomplete='{"st'))
    with pytest.raises(ValueError, match=r"\['accuracy'\] not in the log"):
        plot_log(write_log(tmp_path, *STEPS), ["accuracy"])


def test_all_baselines_are_plotted_before_the_end_of_the_first_epoch(tmp_path):
    baselines = {name: 8.0 for name in "abcde"}
    axis = plot_bits_by_epoch(write_log(tmp_path, *STEPS), baselines).axes[0]
    labels = axis.get_legend_handles_labels()[1]
    assert all(f"{name}: 8.00" in labels for name in baselines)
    assert "epoch whose weights are kept" not in labels
