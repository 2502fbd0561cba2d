import json

import pytest

from vqlib import DataError
from vqlib.curves import bits_by_epoch, losses, read_log


def write(folder, *lines, torn=""):
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text + torn)
    return folder


STEPS = [{"step": i, "epoch": 1, "loss": 1.0, "bits_per_code": 9.0} for i in (1, 2, 3)]
EPOCH = {"step": 3, "epoch": 1, "held_out": {"bits_per_code": 8.5}}


def test_a_log_is_read_while_it_is_written(tmp_path):
    steps, epochs = read_log(write(tmp_path, *STEPS, EPOCH, torn='{"step": 4, "ep'))
    assert (steps, epochs) == (STEPS, [EPOCH])


def test_what_a_log_does_not_hold_is_named(tmp_path):
    with pytest.raises(DataError, match="is 'never' the name of a run"):
        read_log("never")
    with pytest.raises(DataError, match="no step yet"):
        read_log(write(tmp_path, torn='{"st'))
    with pytest.raises(ValueError, match=r"\['accuracy'\] not in the log"):
        losses(write(tmp_path, *STEPS), ["accuracy"])


def test_every_baseline_is_drawn_before_the_first_epoch_has_ended(tmp_path):
    tables = {name: 8.0 for name in "abcde"}
    axis = bits_by_epoch(write(tmp_path, *STEPS), tables).axes[0]
    labels = axis.get_legend_handles_labels()[1]
    assert all(f"{name}: 8.00" in labels for name in tables)
    assert "the epoch that is kept" not in labels
