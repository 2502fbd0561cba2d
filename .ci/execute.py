"""Run the notebooks in order, each in its own kernel; used by `make workbook` and `make refresh`.

    python .ci/execute.py workbook [--only 02]   into build/workbook/, with HTML pages
    python .ci/execute.py refresh  [--only 02]   in place, with synthetic images
    python .ci/execute.py solved   [--only 02]   into build/solved/, with all solutions filled in

Kernels run in notebooks/. Caches and models are stored in VQLIB_HOME, or in build/ if it is not
set; VQLIB_DATA is passed on. A notebook is replaced only after all its cells have run.
"""

import argparse
import os
import re
import shutil
import sys
import time
from pathlib import Path

import nbformat
import set_repo
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.preprocessors import TagRemovePreprocessor
from pages import MATHJAX, copy_mathjax, with_links

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "build"
CELL_TIMEOUT = 4 * 3600  # seconds; a long training on real images is one cell

WIDGET = "application/vnd.jupyter.widget-view+json"
PROGRESS_BAR = re.compile(r"\d+%\|")
CHECK = re.compile(r'^check\("(\w+)"', re.M)
# Metadata of all committed notebooks, so that a refresh on another machine does not change them.
METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
}
KEPT_CELL_METADATA = {"tags", "jupyter"}
# The page of nbconvert, with nothing from other hosts, and with the alternative texts of figures.
PAGE = """
{%- extends "index.html.j2" -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}
<script>MathJax = {tex: {inlineMath: [["$", "$"]], processEscapes: true}}</script>
<script defer src="MATHJAX"></script>
<style>pre, pre * {font-family: var(--jp-code-font-family)}</style>
{%- endblock -%}
{%- block data_jpg scoped -%}
<div class="jp-RenderedImage jp-OutputArea-output {{ extra_class }}">
<img alt="{{ output | get_metadata("alt", "image/jpeg") | escape_html }}"
 src="data:image/jpeg;base64,{{ output.data["image/jpeg"] }}">
</div>
{%- endblock -%}
""".replace("MATHJAX", MATHJAX)


class NotebookFailed(Exception):
    """A cell failed, timed out or lost its kernel; the message names the cell and the reason."""


def find_notebooks(only: str | None) -> list[Path]:
    """The notebooks in order; with `only` ("02", "0[34]"), those whose names start with it."""
    notebooks = sorted(NOTEBOOKS.glob(f"{only or ''}*.ipynb"))
    if not notebooks:
        sys.exit(f"No notebook {only or ''}*.ipynb in {NOTEBOOKS}")
    return notebooks


def set_environment(home: Path, data: str | None) -> None:
    """Set the environment of the kernels, with absolute paths: kernels run in another folder."""
    home.mkdir(parents=True, exist_ok=True)
    os.environ["VQLIB_HOME"] = str(home.resolve())
    if data and data != "synthetic":
        data = str(Path(data).expanduser().resolve())
    os.environ["VQLIB_DATA"] = data or ""


def solve(book: nbformat.NotebookNode) -> set[str]:
    """Replace the given code in the task cells by the solutions; returns the names of the tasks."""
    import vqlib.course.tasks  # noqa: F401  (registers them)
    from vqlib.course.exercises import TASKS

    found = set()
    for cell in book.cells:
        asked = CHECK.findall(cell.source) if cell.cell_type == "code" else []
        for name in asked:
            cell.source = cell.source.replace(TASKS[name].given, TASKS[name].solution)
        found.update(asked)
    return found


def unsolved(book: nbformat.NotebookNode, names: set[str]) -> NotebookFailed | None:
    """The failure, if a check did not accept a solution; else None."""
    outputs = (o for cell in book.cells for o in cell.get("outputs", []))
    texts = "".join(o.get("data", {}).get("text/plain", "") for o in outputs)
    missing = sorted(name for name in names if f"{name}: correct." not in texts)
    return NotebookFailed(f"solutions not accepted: {', '.join(missing)}") if missing else None


def run(
    notebook: Path, solved: bool = False
) -> tuple[nbformat.NotebookNode, NotebookFailed | None]:
    """Execute a notebook; returns it with its outputs, even if a cell has failed."""
    book = nbformat.read(notebook, as_version=4)
    tasks = solve(book) if solved else set()
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    running = {"index": 0}
    client = NotebookClient(
        book,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no warning about local TCP
        on_cell_start=lambda cell, cell_index: running.update(index=cell_index),
    )
    try:
        client.execute()
    except CellExecutionError as error:
        reason = f"{error.ename}: {error.evalue}"
    except CellTimeoutError:
        reason = f"not finished after {CELL_TIMEOUT} s"
    except DeadKernelError:
        reason = "the kernel died, which often means that there was not enough memory"
    else:
        return book, unsolved(book, tasks)
    index = running["index"]
    source = book.cells[index].source.splitlines()
    excerpt = "\n".join(f"    {line}" for line in [*source[:12], *(["..."] if source[12:] else [])])
    return book, NotebookFailed(
        f"{notebook.name}, cell {index} of {len(book.cells)}:\n{excerpt}\n{reason}"
    )


def write_html(book: nbformat.NotebookNode, path: Path) -> None:
    """Write an HTML page that needs no network, and MathJax beside it: without widgets, which would
    be empty frames without a kernel, and with links to the other pages."""
    book = nbformat.from_dict(book)
    notebooks = {f"notebooks/{each.name}" for each in NOTEBOOKS.glob("*.ipynb")}
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
        else:
            text = with_links(cell.source, "notebooks", notebooks)
            text = text.replace(set_repo.BADGE_IMAGE, "[Open in Colab]")
            cell.source = re.sub(r"(\]\(\d\d_\w+)\.ipynb", r"\1.html", text)
    resources = {"metadata": {"name": path.stem, "path": str(NOTEBOOKS)}}
    exporter = HTMLExporter(raw_template=PAGE)
    exporter.register_preprocessor(
        TagRemovePreprocessor(remove_cell_tags=["remove-cell"], enabled=True), enabled=True
    )
    page, _ = exporter.from_notebook_node(book, resources=resources)
    path.write_text(page, "utf-8")
    copy_mathjax(path.parent)


def tidy(book: nbformat.NotebookNode) -> None:
    """Remove what differs between two runs: timings, widget ids, versions, cell ids."""
    language = dict(book.metadata.get("language_info", {}))
    language.pop("version", None)
    book.metadata = nbformat.from_dict({**METADATA, "language_info": language})
    book.nbformat, book.nbformat_minor = 4, 5
    attach_picture(book)
    for index, cell in enumerate(book.cells):
        cell.id = f"c{index:02d}"
        cell.metadata = nbformat.from_dict(
            {key: value for key, value in cell.metadata.items() if key in KEPT_CELL_METADATA}
        )
        if set_repo.BOOTSTRAP_MARK in cell.source and cell.cell_type == "code":
            cell.metadata = nbformat.from_dict(set_repo.BOOTSTRAP_METADATA)
        if cell.cell_type == "code":  # without finished progress bars
            cell.outputs = [o for o in cell.outputs if not is_progress_bar(o)]
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
            if "metadata" in output:
                output.metadata.pop(WIDGET, None)


def attach_picture(book: nbformat.NotebookNode) -> None:
    """Attach the last figure of the cell with the tag "picture" to the first cell, which shows what
    the notebook makes. An attachment needs no file and no network."""
    cells = [cell for cell in book.cells if "picture" in cell.metadata.get("tags", [])]
    figures = [
        output.data["image/jpeg"]
        for cell in cells
        for output in cell.outputs
        if "image/jpeg" in output.get("data", {})
    ]
    if figures:
        book.cells[0].attachments = {"picture.jpg": {"image/jpeg": figures[-1].replace("\n", "")}}


def is_progress_bar(output: nbformat.NotebookNode) -> bool:
    text = output.get("data", {}).get("text/plain", "")
    return output.output_type == "display_data" and PROGRESS_BAR.search(text) is not None


def stderr_cells(book: nbformat.NotebookNode) -> list[str]:
    """Cells that wrote to stderr, except for progress bars, each with its first such line."""
    messages = []
    for index, cell in enumerate(book.cells):
        texts = [o.text for o in cell.get("outputs", []) if o.get("name") == "stderr"]
        lines = [line for line in re.split(r"[\r\n]", "".join(texts)) if line.strip()]
        lines = [line for line in lines if not PROGRESS_BAR.search(line)]
        if lines:
            messages.append(f"cell {index}: {lines[0]}")
    return messages


def write(book: nbformat.NotebookNode, path: Path) -> None:
    nbformat.validate(book)
    partial = path.with_suffix(".partial")
    nbformat.write(book, partial)
    partial.replace(path)


def table(rows: list[tuple[str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, seconds, files in rows:
        print(f"  {name:<{widths[0]}}  {seconds:>{widths[1]}}  {files}")


def size(path: Path) -> str:
    return f"{relative(path)} ({path.stat().st_size / 1e6:.2f} MB)"


def relative(path: Path) -> Path:
    """A path relative to the repository, if it lies in it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["workbook", "refresh", "solved"])
    parser.add_argument(
        "--only", metavar="NB", help="only notebooks whose names start with NB, e.g. 02"
    )
    options = parser.parse_args()
    notebooks = find_notebooks(options.only)
    if options.command == "solved":
        notebooks = [path for path in notebooks if 'check(\\"' in path.read_text("utf-8")]
    in_place = options.command == "refresh"
    if options.command in ("refresh", "solved"):
        home = BUILD / options.command
        shutil.rmtree(home, ignore_errors=True)
        set_environment(home, data="synthetic")
    else:
        set_environment(Path(os.environ.get("VQLIB_HOME") or BUILD), os.environ.get("VQLIB_DATA"))
    images = os.environ["VQLIB_DATA"] or "VQLIB_DATA is not set: data/, else synthetic images"
    print(f"Images: {images}\nWork:   {relative(Path(os.environ['VQLIB_HOME']))}/", flush=True)

    rows = [("notebook", "time", "files")]
    started = time.perf_counter()
    failure = None
    for number, notebook in enumerate(notebooks, 1):
        print(f"[{number}/{len(notebooks)}] {notebook.name} ... ", end="", flush=True)
        start = time.perf_counter()
        book, failure = run(notebook, solved=options.command == "solved")
        seconds = f"{time.perf_counter() - start:.0f} s"
        print(f"FAILED after {seconds}" if failure else seconds, flush=True)
        if in_place and not failure:
            for line in stderr_cells(book):
                print(f"  warning: wrote to stderr: {line}")
            tidy(book)
            write(book, notebook)
            rows.append((notebook.name, seconds, size(notebook)))
        else:
            target = BUILD / options.command / notebook.name
            page = target.with_suffix(".html")
            target.parent.mkdir(parents=True, exist_ok=True)
            write_html(book, page)
            tidy(book)
            write(book, target)
            rows.append((notebook.name, seconds, f"{size(target)}, {size(page)}"))
        if failure:
            break

    print()
    table([*rows, ("total", f"{time.perf_counter() - started:.0f} s", "")])
    if failure:
        sys.exit(f"\nFAILED: {failure}\nThe outputs up to this cell: {rows[-1][2]}")


if __name__ == "__main__":
    main()
