"""Check the tasks of handed-in notebooks: `make grade FOLDER=...`, a table and a CSV file.

    python .ci/grade.py FOLDER [--csv build/results.csv] [--seconds 300] [--task-seconds 30]

Each notebook runs in a process of its own with a time limit. Only the cells with a task are run;
from the other cells come imports, functions, classes and assigned literals, so that nothing is
trained. The verdicts are those of `check`. The code of the students runs with your rights: grade in
a container or an account without anything of value, and read answers that look too good.
"""

import argparse
import ast
import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CHECK = re.compile(r'^\s*check\(\s*["\'](\w+)["\']', re.M)
MAGIC = re.compile(r"^\s*[%!].*$", re.M)
MARKS = {"correct": "✓", "not attempted": "○"}  # every other verdict: ✗


class TimeLimit(BaseException):
    """The code of one task runs too long. Not an Exception, which an answer may catch."""


# --- the process that runs one notebook -----------------------------------------------------------


def grade(notebook: Path, report: Path, task_seconds: float) -> None:
    """Run the tasks of a notebook. Each verdict is written at once, as a line of JSON."""
    import matplotlib

    matplotlib.use("Agg")
    import vqlib.course.tasks  # noqa: F401  (registers them)
    from vqlib.course import exercises

    file = report.open("w", encoding="utf-8")

    def write(**line: Any) -> None:
        print(json.dumps(line), file=file, flush=True)

    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        write(problem=f"not a notebook: {describe(error)}")
        return
    sources = [MAGIC.sub("", source) for source in sources]
    asked = [name for source in sources for name in CHECK.findall(source)]
    numbers = Counter(exercises.TASKS[name].notebook for name in asked if name in exercises.TASKS)
    number = numbers.most_common(1)[0][0] if numbers else ""
    names = [name for name, task in exercises.TASKS.items() if task.notebook == number]
    write(notebook=number, tasks=names)
    verdicts = {}

    def check(name: str, answer: Any) -> None:
        if name in names:
            verdicts[name] = verdict(exercises, name, answer)
            write(task=name, verdict=verdicts[name][0], message=verdicts[name][1])

    exercises.check = check  # what `from vqlib.course.exercises import check` imports
    scope = {**exercises.NAMES, "__name__": "__main__"}
    for source in sources:
        here = [name for name in CHECK.findall(source) if name in names]
        scope["check"] = check
        try:
            with time_limit(task_seconds):
                failed = run_cell(source, scope, all_of_it=bool(here))
        except BaseException as error:
            failed = error
        for name in here:
            if name not in verdicts:
                verdicts[name] = kind(failed), describe(failed)
                write(task=name, verdict=verdicts[name][0], message=verdicts[name][1])
    for name in names:  # the line with `check` was deleted
        if name not in verdicts and name in scope:
            try:
                with time_limit(task_seconds):
                    check(name, scope[name])
            except BaseException as error:
                write(task=name, verdict=kind(error), message=describe(error))
    write(finished=True)


def verdict(exercises: Any, name: str, answer: Any) -> tuple[str, str]:
    try:
        exercises.evaluate(exercises.TASKS[name], answer)
    except exercises.NotAttempted:
        return "not attempted", ""
    except exercises.Wrong as wrong:
        return "wrong", str(wrong)
    return "correct", ""


def run_cell(source: str, scope: dict[str, Any], all_of_it: bool) -> Exception | None:
    """Run the statements of a cell, or only imports, definitions and assignments of literals. One
    that fails is skipped: it may need a cell that was not run. Returns the first error."""
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    failed = None
    for node in ast.parse(source).body:
        literal = isinstance(node, ast.Assign) and is_literal(node.value)
        if all_of_it or literal or isinstance(node, kept):
            try:
                exec(compile(ast.Module([node], []), "<cell>", "exec"), scope)
            except Exception as error:
                failed = failed or error
    return failed


def is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeLimit

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again each second, if it was swallowed
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def kind(error: BaseException | None) -> str:
    return "time limit" if isinstance(error, TimeLimit) else "error"


def describe(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, Exception | SystemExit) else ""


# --- the process of the instructor ----------------------------------------------------------------


def run(notebook: Path, seconds: float, task_seconds: float) -> dict[str, Any]:
    """Grade a notebook in a process of its own.

    Returns:
        notebook: number, or "" if it is not known; verdicts: task -> (verdict, message); problem:
        why the notebook was not graded to its end, or "".
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        options = ["--report", str(report), "--task-seconds", str(task_seconds)]
        process = subprocess.Popen(
            [sys.executable, __file__, str(notebook.resolve()), *options],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "VQLIB_DATA": "synthetic",
                "VQLIB_HOME": folder,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        problem = ""
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            problem = f"stopped after {seconds:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            process.wait()
        lines = read_report(report)
    header = next((line for line in lines if "tasks" in line), {"notebook": "", "tasks": []})
    verdicts = {
        line["task"]: (line["verdict"], line["message"]) for line in lines if "task" in line
    }
    problem = problem or next((line["problem"] for line in lines if "problem" in line), "")
    if not problem and not any("finished" in line for line in lines):
        problem = f"crashed (exit code {process.returncode})"
    elif not problem and not header["tasks"]:
        problem = "no task of the workbook was found"
    missing = "not reached" if problem else "missing"
    verdicts = {name: verdicts.get(name, (missing, "")) for name in header["tasks"]}
    return {"notebook": header["notebook"], "verdicts": verdicts, "problem": problem}


def read_report(path: Path) -> list[dict[str, Any]]:
    """Lines of a report; the last one may be incomplete, because the process was stopped."""
    lines = []
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        for line in path.read_text("utf-8").splitlines():
            lines.append(json.loads(line))
    return lines


def summary(name: str, result: dict[str, Any]) -> tuple[str, str, str, str, str]:
    kinds = [kind for kind, _ in result["verdicts"].values()]
    marks = "".join(MARKS.get(kind, "✗") for kind in kinds)
    notes = [result["problem"]] if result["problem"] else []
    for other in ("error", "time limit", "missing"):
        names = [task for task, (kind, _) in result["verdicts"].items() if kind == other]
        notes += [f"{other}: {', '.join(names)}"] if names else []
    solved = f"{kinds.count('correct')} of {len(kinds)}"
    return name, result["notebook"] or "?", solved, marks, "; ".join(notes)


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the notebooks that were handed in")
    parser.add_argument("--csv", type=Path, default=ROOT / "build/results.csv", help="output file")
    parser.add_argument("--seconds", type=float, default=300, help="limit for a notebook")
    parser.add_argument("--task-seconds", type=float, default=30, help="limit for a task")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)  # set by `run`
    options = parser.parse_args()
    if options.report:
        grade(options.folder, options.report, options.task_seconds)
        return
    notebooks = [
        path
        for path in sorted(options.folder.rglob("*.ipynb"))
        if ".ipynb_checkpoints" not in path.parts
    ]
    if not notebooks:
        sys.exit(f"{options.folder}: no notebook (*.ipynb) in this folder")
    rows, lines = [("file", "notebook", "solved", "tasks", "notes")], []
    for path in notebooks:
        name = str(path.relative_to(options.folder))
        print(f"{name} ...", file=sys.stderr, flush=True)
        result = run(path, options.seconds, options.task_seconds)
        rows.append(summary(name, result))
        verdicts = result["verdicts"] or {"": ("not graded", result["problem"])}
        lines += [(name, result["notebook"], task, *found) for task, found in verdicts.items()]
    print(table(rows))
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with options.csv.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "notebook", "task", "verdict", "message"), *lines])
    print(f"All verdicts, with the replies of `check`: {options.csv}")


if __name__ == "__main__":
    main()
