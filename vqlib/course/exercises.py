"""Tasks of the notebooks: `check`, `hint`, `solution`, and `quiz` for predictions.

A task is a notebook cell with an unfinished or broken function and a call of `check`. The tests,
hints and solutions of the tasks are in `vqlib.course.tasks`, one module for each notebook. The
functions have the names of those in Kaggle's learntools.
"""

from __future__ import annotations

import ast
import contextlib
import html
import importlib
import inspect
import math
import operator
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from IPython.display import Markdown, display
from torch import Tensor, nn

import vqlib


class Wrong(Exception):
    """An answer is wrong. The message says what was expected, what the answer gave, and which idea
    to review. `draw`, if given, plots the first case that differs."""

    def __init__(self, message: str, draw: Callable[[], Any] | None = None):
        super().__init__(message)
        self.draw = draw


class LibraryUsed(Exception):
    """An answer calls the function that the task asks for."""


class NotAttempted(Exception):
    """An answer is still the placeholder."""


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: also the name of the function, class or variable that the student writes.
        notebook: number of the notebook, for `progress`.
        given: source of the student's cell, without the call of `check`.
        solution: source that replaces `given`.
        verify: tests an answer on random inputs; raises `Wrong`. Functions and modules that it
            receives are wrapped, see `_Guarded`.
        hints: from an idea to nearly the code.
        hides: dotted names of Python functions that raise `LibraryUsed` while the answer runs.
    """

    name: str
    notebook: str
    given: str
    solution: str
    verify: Callable[[Any], None]
    hints: tuple[str, ...]
    hides: tuple[str, ...] = ()

    @property
    def is_repair(self) -> bool:
        """True if `given` is complete but wrong code; otherwise it has a `...` to be replaced."""
        nodes = ast.walk(ast.parse(self.given))
        return not any(isinstance(n, ast.Constant) and n.value is Ellipsis for n in nodes)


# Names that the sources of tasks may use without an import.
NAMES = {"math": math, "np": np, "torch": torch, "nn": nn, "F": nn.functional, "vqlib": vqlib}
TASKS: dict[str, Task] = {}
_passed: dict[str, bool] = {}
_hints_shown: dict[str, int] = {}


def task(
    notebook: str, *, given: str, solution: str, hints: tuple[str, ...], hides: tuple[str, ...] = ()
) -> Callable[[Callable[[Any], None]], Task]:
    """A decorator that makes a `Task` of the function that verifies it, under that function's name.

    The sources may be indented as a whole.
    """

    def register(verify: Callable[[Any], None]) -> Task:
        name = verify.__name__
        sources = (textwrap.dedent(text).strip("\n") for text in (given, solution))
        TASKS[name] = Task(name, notebook, *sources, verify, hints, hides)
        return TASKS[name]

    return register


def check(name: str, answer: Any) -> None:
    """Test an answer and show the verdict.

    Args:
        name: of the task.
        answer: function, class or value that the student wrote.

    Raises:
        KeyError: there is no task of this name.
    """
    found = _find(name)
    _passed[name] = False
    try:
        evaluate(found, answer)
    except NotAttempted:
        how = "Change the code of this cell" if found.is_repair else "Replace the ..."
        _show("○", f"Not attempted yet. {how} and run it again. Help: hint({name!r})", "gray")
    except Wrong as wrong:
        _show("✗", f"{wrong}\nHelp: hint({name!r})", "firebrick")
        if wrong.draw is not None:
            wrong.draw()
    else:
        _passed[name] = True
        _show("✓", f"{name}: correct.", "seagreen")


def evaluate(task: Task, answer: Any) -> None:
    """Test an answer without showing anything. The random state of PyTorch is kept.

    Raises:
        NotAttempted: the answer is still what was given.
        Wrong: the answer is wrong, or its code raises an error.
    """
    if answer is None or answer is Ellipsis or _is_given(task, answer):
        raise NotAttempted
    with torch.random.fork_rng(devices=[]):
        torch.seed()
        try:
            task.verify(_Guarded(answer, task.hides) if callable(answer) else answer)
        except (NotAttempted, Wrong):
            raise
        except LibraryUsed as error:
            raise Wrong(str(error)) from None
        except Exception as error:
            raise Wrong(f"{type(error).__name__}{_line_of(error)}: {error}") from error


def expect(
    actual: Any,
    expected: Any,
    case: str,
    idea: str,
    *,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    draw: Callable[[], Any] | None = None,
) -> None:
    """Compare a result with the expected one: type, shape, kind of numbers, then values.

    Args:
        actual, expected: tensors, numbers, or anything comparable with `==`.
        case: the input, in words: "features of shape (5, 3)".
        idea: what to think about if the values differ.
        draw: plots the difference, see `Wrong`.

    Raises:
        Wrong: they differ. NotAttempted: `actual` is None or `...`.
    """
    if actual is None or actual is Ellipsis:
        raise NotAttempted
    if isinstance(expected, Tensor):
        if not isinstance(actual, Tensor):
            raise Wrong(f"For {case} a tensor was expected, not {type(actual).__name__}.")
        if actual.shape != expected.shape:
            raise Wrong(
                f"For {case} the shape should be {tuple(expected.shape)}, not "
                f"{tuple(actual.shape)}. {idea}"
            )
        if actual.is_floating_point() != expected.is_floating_point():
            raise Wrong(f"For {case} the dtype should be {expected.dtype}, not {actual.dtype}.")
        actual, expected = actual.detach(), expected.detach().to(actual.dtype)
        wrong = ~torch.isclose(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
        if wrong.any():
            index = tuple(wrong.nonzero()[0].tolist())
            at = f" at index {index}" if index else ""
            values = f"expected {expected[index].item():.5g}, got {actual[index].item():.5g}"
            share = f"{int(wrong.sum())} of {wrong.numel()} values differ"
            raise Wrong(f"For {case}: {values}{at} ({share}). {idea}", draw)
    elif isinstance(expected, float):
        if abs(float(actual) - expected) > atol + rtol * abs(expected):
            raise Wrong(
                f"For {case}: expected {expected:.5g}, got {float(actual):.5g}. {idea}", draw
            )
    elif actual != expected:
        raise Wrong(f"For {case}: expected {expected!r}, got {actual!r}. {idea}", draw)


def hint(name: str) -> None:
    """Show the next hint of a task; after the last one, all of them."""
    hints = _find(name).hints
    shown = _hints_shown[name] = min(_hints_shown.get(name, 0) + 1, len(hints))
    lines = [f"Hint {i} of {len(hints)}: {text}" for i, text in enumerate(hints[:shown], 1)]
    _show("?", "\n".join(lines), "steelblue")


def solution(name: str) -> None:
    """Show the solution of one task."""
    display(Markdown(f"```python\n{_find(name).solution}\n```"))


def passed(*names: str) -> bool:
    """Whether all these tasks have passed their last `check`."""
    return all(_passed.get(_find(name).name, False) for name in names)


def choose(name: str, answer: Any, library: Any = None) -> Any:
    """The student's answer if it has passed its last `check`, otherwise the library's version, or
    the solution of the task if there is no such version."""
    own = passed(name)
    print(f"{name}: going on with {'your version' if own else 'the version of the library'}")
    if own or library is not None:
        return answer if own else library
    return solved(name)


def solved(name: str) -> Any:
    """The object that the solution of a task defines, after those of earlier tasks."""
    scope, found = dict(NAMES), _find(name)
    for other in TASKS.values():
        if other.notebook == found.notebook:
            exec(other.solution, scope)  # source from this package
        if other is found:
            break
    return scope[name]


def progress(notebook: str) -> None:
    """Show which tasks of a notebook have been solved in this session."""
    _load()
    names = [name for name, each in TASKS.items() if each.notebook == notebook]
    lines = [f"{'✓' if _passed.get(name) else '○'} {name}" for name in names]
    solved = sum(_passed.get(name, False) for name in names)
    print("\n".join([f"{solved} of {len(names)} tasks solved", *lines]))


class _Quiz:
    def __init__(self, question: str, choices: Mapping[str, str]):
        self.question, self.choices = question, choices

    def __repr__(self) -> str:
        return "\n".join([self.question, *(f"  ( ) {choice}" for choice in self.choices)])

    def _repr_html_(self) -> str:
        boxes = "".join(
            f"<details style='margin:4px 1em'><summary>{html.escape(choice)}</summary>"
            f"<div style='margin:2px 2em'>{html.escape(reply)}</div></details>"
            for choice, reply in self.choices.items()
        )
        return f"<div><b>{html.escape(self.question)}</b>{boxes}</div>"


QUIZZES: dict[str, _Quiz] = {}


def add_quiz(name: str, question: str, choices: Mapping[str, str]) -> None:
    """Register a question; its answers are not in the source of the notebook.

    Args:
        name: number of the notebook and of the question, "02.1".
        choices: choice -> reply, which says whether it is right and why.
    """
    QUIZZES[name] = _Quiz(question, choices)


def quiz(name: str) -> None:
    """Ask for a prediction. A click on a choice opens the reply to it; needs no JavaScript."""
    _load()
    display(QUIZZES[name])


class _Verdict:
    def __init__(self, mark: str, text: str, color: str):
        self.mark, self.text, self.color = mark, text, color

    def __repr__(self) -> str:
        return f"{self.mark} {self.text}"

    def _repr_html_(self) -> str:
        text = html.escape(self.text).replace("\n", "<br>")
        style = f"border-left:4px solid {self.color};padding:4px 10px"
        return f"<div style='{style}'><b style='color:{self.color}'>{self.mark}</b> {text}</div>"


def _show(mark: str, text: str, color: str) -> None:
    display(_Verdict(mark, text, color))


def _load() -> None:
    importlib.import_module("vqlib.course.tasks")


def _find(name: str) -> Task:
    _load()
    if name not in TASKS:
        raise KeyError(f"there is no task {name!r}; the tasks are {', '.join(sorted(TASKS))}")
    return TASKS[name]


class _Guarded:
    """A student's function, class or module. While it runs, the functions that the task hides
    raise an error, and a change of an argument in place is detected."""

    def __init__(self, answer: Any, hides: tuple[str, ...]):
        self._answer, self._hides = answer, hides

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        versions = [tensor._version for tensor in tensors]
        with _hidden(self._hides):
            result = self._answer(*args, **kwargs)
        if versions != [tensor._version for tensor in tensors]:
            raise Wrong(
                "The code changes its input in place. The caller still needs the old values."
            )
        return _Guarded(result, self._hides) if isinstance(result, nn.Module) else result

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._answer, name)
        return _Guarded(value, self._hides) if callable(value) else value


@contextlib.contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Python functions, by dotted name, raise `LibraryUsed`, however they were imported: their
    code object is replaced, not a reference to them."""
    functions = [_function(name) for name in names]
    codes = [function.__code__ for function in functions]
    try:
        for function, code, name in zip(functions, codes, names, strict=True):
            function.__code__ = _refusal(name, code)
        yield
    finally:
        for function, code in zip(functions, codes, strict=True):
            function.__code__ = code


def _function(name: str) -> FunctionType:
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found = operator.attrgetter(".".join(parts[split:]))(
                importlib.import_module(".".join(parts[:split]))
            )
            return inspect.unwrap(found.__init__ if inspect.isclass(found) else found)
    raise ModuleNotFoundError(name)


def _refusal(name: str, replaced: CodeType) -> CodeType:
    scope: dict[str, Any] = {}
    exec(  # source from this package; `name` comes from the task
        "def refuse(*args, **kwargs):\n"
        "    from vqlib.course.exercises import LibraryUsed\n"
        f"    raise LibraryUsed('The task is to write it yourself, but the answer calls {name}.')",
        scope,
    )
    return scope["refuse"].__code__.replace(co_freevars=replaced.co_freevars)


def _line_of(error: Exception) -> str:
    """Text " in `line`" with the last line of the student's own code in the traceback."""
    own = (str(Path(vqlib.__file__).parent), "site-packages")
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.line or f"line {f.lineno}" for f in frames if not any(o in f.filename for o in own)]
    return f" in `{lines[-1]}`" if lines else ""


def _is_given(task: Task, answer: Any) -> bool:
    """Whether an answer has the code of `task.given`, apart from comments and spaces."""
    if not isinstance(answer, FunctionType | type):
        return False
    scope = dict(NAMES)
    exec(task.given, scope)  # source from this package
    return _codes(answer) == _codes(scope[task.name])


def _codes(answer: FunctionType | type) -> Any:
    if isinstance(answer, FunctionType):
        return _code(answer.__code__)
    return {name: _code(f.__code__) for name, f in vars(answer).items() if inspect.isfunction(f)}


def _code(code: CodeType) -> tuple[Any, ...]:
    constants = (_code(c) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, tuple(constants)
