"""Every task: its solution passes, what is given does not, and plausible mistakes are named."""

import importlib
import json
import pkgutil
import re
from pathlib import Path

import pytest
import torch
import wrong_answers

from vqlib.course import exercises
from vqlib.course.exercises import NAMES, NotAttempted, Wrong, evaluate, expect, task

ROOT = Path(__file__).resolve().parents[1]
exercises._load()
TASKS = dict(exercises.TASKS)
WRONG = {
    name: answers
    for module in pkgutil.iter_modules(wrong_answers.__path__)
    for name, answers in importlib.import_module(f"wrong_answers.{module.name}").WRONG.items()
}


def answer_of(name, source):
    """Object that this source defines, after the solutions of the notebook's earlier tasks."""
    scope = dict(NAMES)
    for other in TASKS.values():
        if other.name == name:
            break
        if other.notebook == TASKS[name].notebook:
            exec(other.solution, scope)
    exec(source, scope)
    return scope[name]


@pytest.mark.parametrize("name", TASKS)
def test_solution_passes(name):
    answer = answer_of(name, TASKS[name].solution)
    for _ in range(5):  # each check has other random inputs
        evaluate(TASKS[name], answer)


@pytest.mark.parametrize("name", TASKS)
def test_what_is_given_has_not_been_attempted(name):
    with pytest.raises(NotAttempted):
        evaluate(TASKS[name], answer_of(name, TASKS[name].given))


@pytest.mark.parametrize("name", TASKS)
def test_given_code_of_a_repair_is_wrong(name):
    """A change, even of a name only, must not make the broken code pass."""
    each = TASKS[name]
    if each.is_repair:
        with pytest.raises(Wrong):
            answer = answer_of(name, each.given)
            each.verify(exercises._Guarded(answer, ()) if callable(answer) else answer)


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [(name, *answer) for name, answers in WRONG.items() for answer in answers],
)
def test_wrong_answer_fails_and_is_explained(name, source, words):
    answer = answer_of(name, source)
    for _ in range(3):
        with pytest.raises(Wrong) as caught:
            evaluate(TASKS[name], answer)
        assert words in str(caught.value)


def test_each_task_has_three_wrong_answers_and_two_hints():
    for name, each in TASKS.items():
        assert len(WRONG.get(name, [])) >= 3, name
        assert len(each.hints) >= 2, name
    assert set(WRONG) <= set(TASKS)


def test_each_quiz_is_in_its_notebook_once():
    asked = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        names = re.findall(r'quiz\(\\"([\d.]+)\\"\)', path.read_text("utf-8"))
        assert all(name[:2] == path.name[:2] for name in names)
        asked += names
    assert sorted(asked) == sorted(exercises.QUIZZES)


def test_each_task_is_in_its_notebook_as_given():
    cells = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                cells.setdefault(path.name[:2], []).append("".join(cell["source"]))
    for each in TASKS.values():
        found = [c for c in cells[each.notebook] if f'check("{each.name}"' in c]
        assert len(found) == 1, each.name
        assert found[0].startswith(each.given), each.name


@pytest.fixture
def double(monkeypatch):
    monkeypatch.setattr(exercises, "TASKS", {})

    @task(
        "99",
        given="def double(x):\n    ...",
        solution="def double(x):\n    return 2 * x",
        hints=("add", "x + x"),
        hides=("vqlib.quantizer.nearest_codes", "vqlib.vqvae.VQVAE"),
    )
    def double(answer):
        x = torch.randn(3)
        expect(answer(x), 2 * x, "three numbers", "Twice.")

    return double


def test_library_is_hidden_from_the_answer_only(double):
    from vqlib import VQVAE
    from vqlib.quantizer import nearest_codes

    arguments = torch.zeros(1, 2, 3), torch.zeros(1, 4, 3)
    for calls in (lambda x: nearest_codes(*arguments), lambda x: VQVAE()):
        with pytest.raises(Wrong, match="write it yourself"):
            evaluate(double, calls)
    assert nearest_codes(*arguments).shape == (1, 2)
    VQVAE()


def test_errors_name_the_line_and_input_is_kept(double):
    with pytest.raises(Wrong, match="ZeroDivisionError in `evaluate"):
        evaluate(double, lambda x: 1 / 0)
    with pytest.raises(Wrong, match="in place"):
        evaluate(double, lambda x: x.mul_(2))
    with pytest.raises(Wrong, match=r"shape should be \(3,\), not \(\)"):
        evaluate(double, lambda x: 2 * x.sum())


def test_check_keeps_the_random_state_and_chooses(double, capsys):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    exercises.check("double", lambda x: 3 * x)
    assert exercises.choose("double", "mine", "library") == "library"
    assert exercises.choose("double", "mine")(3) == 6  # the solution
    exercises.check("double", lambda x: x + x)
    assert exercises.choose("double", "mine", "library") == "mine"
    assert torch.equal(torch.get_rng_state(), state)
    exercises.hint("double")
    exercises.hint("double")
    exercises.progress("99")
    exercises.add_quiz("99.1", "Which <b>?", {"x < y": "Right."})
    exercises.quiz("99.1")
    shown = capsys.readouterr().out
    for text in ("✗ For three numbers", "✓ double", "Hint 2 of 2: x + x", "1 of 1 tasks solved"):
        assert text in shown
    assert "x &lt; y" in exercises.QUIZZES.pop("99.1")._repr_html_()
    with pytest.raises(KeyError, match="no task 'triple'"):
        exercises.check("triple", None)
