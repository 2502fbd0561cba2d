"""Copies for students and instructors, and the grading of notebooks that were handed in."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from vqlib.course import exercises

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / ".ci"))

import copies  # noqa: E402
import grade  # noqa: E402
import lab  # noqa: E402

exercises._load()
TASKS = exercises.TASKS
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_instructors_copy_becomes_a_students_copy(path):
    committed = nbformat.read(path, as_version=4)
    book = copies.instructor_copy(nbformat.read(path, as_version=4), "# Notes")
    nbformat.validate(book)
    sources = [cell.source for cell in book.cells]
    assert sources[1] == "# Notes"
    for task in (task for task in TASKS.values() if task.notebook == path.name[:2]):
        [index] = [i for i, source in enumerate(sources) if f'check("{task.name}"' in source]
        assert sources[index].startswith(task.solution)
        assert sources[index + 1].count("\n- ") >= 2, f"{task.name}: typical mistakes"

    copies.unsolve(book)
    book = copies.student_copy(book)
    kept = [cell for cell in book.cells if not cell.id.endswith("-notes")]
    assert [cell.source for cell in kept] == [cell.source for cell in committed.cells]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)


def test_the_readers_copies_have_no_outputs_and_are_never_overwritten(tmp_path):
    assert set(lab.copy_notebooks(ROOT / "notebooks", tmp_path).values()) == {"copied"}
    first, second, *_ = (tmp_path / path.name for path in NOTEBOOKS)
    book = nbformat.read(first, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)
    first.write_text(first.read_text("utf-8").replace("...", "my answer"), "utf-8")
    second.write_text("a copy of another version", "utf-8")
    before = first.read_bytes(), second.read_bytes()
    found = lab.copy_notebooks(ROOT / "notebooks", tmp_path)
    assert found[first.name] == "yours" and "older version" in found[second.name]
    assert (first.read_bytes(), second.read_bytes()) == before
    ignored = subprocess.run(["git", "check-ignore", "-q", "my_notebooks/x"], cwd=ROOT)
    assert ignored.returncode == 0 or not (ROOT / ".git").exists()


def test_notes_for_instructors_belong_to_notebooks():
    numbers = {path.name[:2] for path in NOTEBOOKS}
    for path in (ROOT / "docs/instructor").iterdir():
        text = path.read_text("utf-8")
        assert path.stem in numbers
        assert "## Talking points" in text and "## Common misconceptions" in text
        tasks = re.findall(r"`(\w+)`", text.partition("\n## ")[0])
        assert tasks and {TASKS[name].notebook for name in tasks} == {path.stem}


def hand_in(path, *sources):
    cells = [{"cell_type": "code", "source": source} for source in sources]
    path.write_text(json.dumps({"cells": cells}), "utf-8")


def answer(name, source=None):
    return f'{source or TASKS[name].solution}\n\n\ncheck("{name}", {name})'


def test_notebooks_are_graded_whatever_they_contain(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["grade.py", str(tmp_path), "--task-seconds", "2"])
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--csv", str(tmp_path / "results.csv")])
    hand_in(
        tmp_path / "a.ipynb",
        "%matplotlib inline\nfrom vqlib.course.exercises import check",
        "raise RuntimeError('a cell that is not run')",
        "CHUNK = 1 +",  # a syntax error
        'print(\'{"task": "from_slots", "verdict": "correct", "message": ""}\')\n'
        + answer("squared_distances", "def helper(a):\n    return a\n")
        + "\n",
        "def two(x):\n    return 2 * x",
        answer(
            "squared_distances",
            "def squared_distances(vectors, codebook):\n"
            "    products = two(vectors @ codebook.T)\n"
            "    return vectors.pow(2).sum(1, keepdim=True) - products + codebook.pow(2).sum(1)",
        )
        + "\nplt.plot(model(images))",  # names of cells that are not run
        answer("nearest_code", TASKS["nearest_code"].given),
        answer("to_slots", "import sys\n\ndef to_slots(z, slots):\n    sys.exit()"),
        answer("straight_through", TASKS["straight_through"].solution).partition("check(")[0],
    )
    hand_in(
        tmp_path / "b.ipynb",
        answer(
            "squared_distances",
            "def squared_distances(vectors, codebook):\n"
            "    while True:\n"
            "        try:\n"
            "            vectors.sum()\n"
            "        except Exception:\n"
            "            pass",
        ),
        answer("to_slots"),
        answer("from_slots", "import os\n\ndef from_slots(vectors, shape):\n    os.abort()"),
    )
    (tmp_path / "c.ipynb").write_text("{")
    grade.main()
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[:4]] == ["file", "a.ipynb", "b.ipynb", "c.ipynb"]
    assert "2 of 9" in table[1] and "error: to_slots" in table[1]
    assert "1 of 9" in table[2] and "crashed" in table[2]
    assert "0 of 0" in table[3] and "not a notebook" in table[3]

    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        rows = {(row["file"], row["task"]): row for row in csv.DictReader(file)}
    verdicts = {key: row["verdict"] for key, row in rows.items()}
    for task, expected in {
        "squared_distances": "correct",
        "nearest_code": "not attempted",
        "to_slots": "error",
        "from_slots": "missing",
        "straight_through": "correct",  # without the line that calls check
    }.items():
        assert verdicts["a.ipynb", task] == expected
    assert verdicts["b.ipynb", "squared_distances"] == "time limit"
    assert verdicts["b.ipynb", "to_slots"] == "correct"
    assert verdicts["b.ipynb", "from_slots"] == verdicts["b.ipynb", "vq_losses"] == "not reached"
    assert verdicts["c.ipynb", ""] == "not graded"


def test_a_notebook_that_takes_too_long_is_stopped(tmp_path):
    hand_in(tmp_path / "slow.ipynb", answer("to_slots"))
    result = grade.run(tmp_path / "slow.ipynb", seconds=0.2, task_seconds=30)
    assert result["problem"] == "stopped after 0.2 s" and not result["verdicts"]
