"""Write copies of the notebooks; used by `make student` and `make instructor`.

    python .ci/copies.py student      build/student/: without outputs, with all tasks unsolved
    python .ci/copies.py instructor   build/instructor/: with solutions, the replies of the checks
                                      to typical mistakes, and the notes of docs/instructor/

Nothing is executed. The outputs of an instructor's copy are those of the unsolved notebook.
"""

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]


def student_copy(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook without outputs."""
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return book


def unsolve(book: nbformat.NotebookNode) -> None:
    """Put what was given back into all task cells."""
    for cell, task in task_cells(book):
        if task.solution in cell.source:
            cell.source = cell.source.replace(task.solution, task.given)
        elif task.given not in cell.source:  # another answer
            cell.source = f"{task.given}\n\n\n{cell.source[cell.source.index('check(') :]}"


def instructor_copy(book: nbformat.NotebookNode, notes: str) -> nbformat.NotebookNode:
    """A notebook with its notes, and with solution and typical mistakes at each task."""
    from execute import solve

    solve(book)
    for cell, task in task_cells(book):
        cell.outputs = []
        replies = "\n".join(f"- {reply}" for reply in mistakes(task))
        text = f"**What `check` replies to typical mistakes in `{task.name}`:**\n\n{replies}"
        insert_after(book, cell, text)
    if notes:
        insert_after(book, book.cells[0], notes)
    return book


def task_cells(book: nbformat.NotebookNode) -> list[tuple[nbformat.NotebookNode, object]]:
    """Cells with a task, and the task."""
    from execute import CHECK

    import vqlib.course.tasks  # noqa: F401  (registers them)
    from vqlib.course.exercises import TASKS

    code = [cell for cell in book.cells if cell.cell_type == "code"]
    return [(cell, TASKS[name]) for cell in code for name in CHECK.findall(cell.source)]


def insert_after(book: nbformat.NotebookNode, cell: nbformat.NotebookNode, text: str) -> None:
    new = nbformat.v4.new_markdown_cell(text, id=f"{cell.id}-notes")
    book.cells.insert(book.cells.index(cell) + 1, new)


def mistakes(task: object) -> list[str]:
    """The sentences in the source of a task's test, also in functions of its module that it calls:
    the replies to typical mistakes. Values known only when the test runs are shown as "…"."""
    module = ast.parse(inspect.getsource(inspect.getmodule(task.verify)))
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    found, seen, waiting = [], set(), [task.name]
    while waiting:
        function = functions[waiting.pop(0)]
        seen.add(function.name)
        has_docstring = ast.get_docstring(function) is not None
        for statement in function.body[has_docstring:]:
            for node in expressions(statement):
                if isinstance(node, ast.Name) and node.id in functions.keys() - seen - {*waiting}:
                    waiting.append(node.id)
                elif isinstance(node, ast.Constant | ast.JoinedStr):
                    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                    constant = [isinstance(part, ast.Constant) for part in parts]
                    text = "".join(str(p.value) if c else "…" for p, c in zip(parts, constant))
                    if text.endswith(".") and len(text.split()) > 3:
                        found.append(text)
    return list(dict.fromkeys(found))


def expressions(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below a node, but not the parts of an f-string."""
    yield node
    if not isinstance(node, ast.JoinedStr):
        for child in ast.iter_child_nodes(node):
            yield from expressions(child)


def main() -> None:
    kinds = ("student", "instructor")
    if len(sys.argv) != 2 or sys.argv[1] not in kinds:
        sys.exit(f"Use: python .ci/copies.py {' or '.join(kinds)}")
    kind = sys.argv[1]
    folder = ROOT / "build" / kind
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        book = nbformat.read(path, as_version=4)
        if kind == "student":
            unsolve(book)
            student_copy(book)
        else:
            notes = ROOT / "docs/instructor" / f"{path.name[:2]}.md"
            instructor_copy(book, notes.read_text("utf-8") if notes.exists() else "")
        nbformat.write(book, folder / path.name)
        print(f"  build/{kind}/{path.name}")


if __name__ == "__main__":
    main()
