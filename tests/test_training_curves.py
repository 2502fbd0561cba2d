"""Reading and plotting the log of a run, and names of any kind in what the notebooks show."""

import json

import pytest
import torch
from torchvision.utils import save_image

from vqlib import DataError
from vqlib.checkpoints import read_log
from vqlib.course import plots
from vqlib.course.training_curves import LiveTraining, plot_log


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


def test_what_was_trained_before_is_drawn_again(tmp_path, capsys):
    """The curve, the held-out value and the last picture of a run that has been finished."""
    for epoch, brightness in ((1, 0.0), (2, 1.0)):
        save_image(torch.full((3, 8, 8), brightness), tmp_path / f"epoch_{epoch:03d}.png")
    live = LiveTraining("bits_per_code")
    live.start("trained before", 3, 3, write_log(tmp_path, *STEPS, EPOCH))
    lines = {line.get_label(): line for line in live.curve_axis.lines}
    assert lines["mean of the last 20 batches"].get_xdata().tolist() == [1, 2, 3]
    assert lines["held out"].get_xydata().tolist() == [[3, 8.5]]
    assert live.image_axis.images[0].get_array().min() == 1
    assert "trained before" in capsys.readouterr().out
    live.start("new", 3, 0, tmp_path)  # the files of an earlier training are not shown
    assert not live.curve_axis.lines and not live.image_axis.images


def test_names_of_files_and_runs_are_no_formulas(tmp_path):
    name = r"$\frac$ 1"
    plots.image_grid(torch.rand(1, 3, 8, 8), [name], title=name, rows=[name]).canvas.draw()
    plot_log(write_log(tmp_path / name, *STEPS)).canvas.draw()


def test_html_in_names_and_sources_is_not_rendered(monkeypatch):
    html = plots.show_animation(b"", '"><script>').data
    assert html.count("<") == html.count(">") == 1 and "&lt;script&gt;" in html

    def ends_a_block():
        """
        ```
        <script>
        """

    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    plots.show_source(ends_a_block)
    assert shown[0].data.count("````") == 2 and shown[0].data.endswith("\n````")
