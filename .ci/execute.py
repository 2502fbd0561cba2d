"""Run the notebooks, in order, one kernel each: behind `make workbook` and `make refresh`.

    python .ci/execute.py workbook [--only 02]   into build/workbook/, with an HTML page each
    python .ci/execute.py refresh  [--only 02]   in place, on the embedded default

Kernels run in notebooks/. Where a run keeps caches and models is VQLIB_HOME, build/ unless set;
VQLIB_DATA is passed on. A notebook is written in place only after all its cells have run.
"""

import argparse
import os
import re
import shutil
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "build"
CELL_TIMEOUT = 4 * 3600  # seconds; a long training on real images is one cell

WIDGET = "application/vnd.jupyter.widget-view+json"
PROGRESS_BAR = re.compile(r"\d+%\|")
# Metadata of every committed notebook, so that a refresh elsewhere changes no line of it.
METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
}
KEPT_CELL_METADATA = {"tags", "jupyter"}


class NotebookFailed(Exception):
    """A cell raised, ran out of time or lost its kernel; the text says which and how."""


def find_notebooks(only: str | None) -> list[Path]:
    """The notebooks in order; with `only` ("02", "0[34]") those whose names start so."""
    found = sorted(NOTEBOOKS.glob(f"{only or ''}*.ipynb"))
    if not found:
        sys.exit(f"No notebook {only or ''}*.ipynb in {NOTEBOOKS}")
    return found


def set_environment(home: Path, data: str | None) -> None:
    """What the kernels inherit. Paths are made absolute, as kernels run in another folder."""
    home.mkdir(parents=True, exist_ok=True)
    os.environ["VQLIB_HOME"] = str(home.resolve())
    if data and data != "synthetic":
        data = str(Path(data).expanduser().resolve())
    os.environ["VQLIB_DATA"] = data or ""


def run(notebook: Path) -> tuple[nbformat.NotebookNode, NotebookFailed | None]:
    """Execute a notebook; it comes back with its outputs even when a cell has failed."""
    book = nbformat.read(notebook, as_version=4)
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
        reason = f"no end after {CELL_TIMEOUT} s"
    except DeadKernelError:
        reason = "the kernel died, often for want of memory"
    else:
        return book, None
    index = running["index"]
    source = book.cells[index].source.splitlines()
    shown = "\n".join(f"    {line}" for line in [*source[:12], *(["..."] if source[12:] else [])])
    return book, NotebookFailed(
        f"{notebook.name}, cell {index} of {len(book.cells)}:\n{shown}\n{reason}"
    )


def write_html(book: nbformat.NotebookNode, path: Path) -> None:
    """A page that needs no kernel: widgets, which would be empty frames in it, are left out."""
    book = nbformat.from_dict(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    resources = {"metadata": {"name": path.stem, "path": str(NOTEBOOKS)}}
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(book, resources=resources)
    path.write_text(page, "utf-8")


def tidy(book: nbformat.NotebookNode) -> None:
    """Leave out what differs between two runs: timings, widget ids, versions, cell ids."""
    language = dict(book.metadata.get("language_info", {}))
    language.pop("version", None)
    book.metadata = nbformat.from_dict({**METADATA, "language_info": language})
    book.nbformat, book.nbformat_minor = 4, 5
    for index, cell in enumerate(book.cells):
        cell.id = f"c{index:02d}"
        cell.metadata = nbformat.from_dict(
            {key: value for key, value in cell.metadata.items() if key in KEPT_CELL_METADATA}
        )
        if cell.cell_type == "code":  # a finished progress bar says nothing any more
            cell.outputs = [o for o in cell.outputs if not is_progress_bar(o)]
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
            if "metadata" in output:
                output.metadata.pop(WIDGET, None)


def is_progress_bar(output: nbformat.NotebookNode) -> bool:
    text = output.get("data", {}).get("text/plain", "")
    return output.output_type == "display_data" and PROGRESS_BAR.search(text) is not None


def stderr_cells(book: nbformat.NotebookNode) -> list[str]:
    """Cells that wrote to stderr anything but a progress bar, each with the first such line."""
    found = []
    for index, cell in enumerate(book.cells):
        texts = [o.text for o in cell.get("outputs", []) if o.get("name") == "stderr"]
        lines = [line for line in re.split(r"[\r\n]", "".join(texts)) if line.strip()]
        lines = [line for line in lines if not PROGRESS_BAR.search(line)]
        if lines:
            found.append(f"cell {index}: {lines[0]}")
    return found


def write(book: nbformat.NotebookNode, path: Path) -> None:
    nbformat.validate(book)
    partial = path.with_suffix(".partial")
    nbformat.write(book, partial)
    partial.replace(path)


def table(rows: list[tuple[str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, seconds, made in rows:
        print(f"  {name:<{widths[0]}}  {seconds:>{widths[1]}}  {made}")


def size(path: Path) -> str:
    return f"{shown(path)} ({path.stat().st_size / 1e6:.2f} MB)"


def shown(path: Path) -> Path:
    """A path as short as it can be said from the project's folder."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["workbook", "refresh"])
    parser.add_argument("--only", metavar="NB", help="notebooks whose names start so, e.g. 02")
    options = parser.parse_args()
    notebooks = find_notebooks(options.only)
    in_place = options.command == "refresh"
    if in_place:
        home = BUILD / "refresh"
        shutil.rmtree(home, ignore_errors=True)
        set_environment(home, data="synthetic")
    else:
        set_environment(Path(os.environ.get("VQLIB_HOME") or BUILD), os.environ.get("VQLIB_DATA"))
    images = os.environ["VQLIB_DATA"] or "none named, so data/ or the embedded default"
    print(f"Images: {images}\nWork:   {shown(Path(os.environ['VQLIB_HOME']))}/", flush=True)

    rows = [("notebook", "time", "made")]
    started = time.perf_counter()
    failure = None
    for number, notebook in enumerate(notebooks, 1):
        print(f"[{number}/{len(notebooks)}] {notebook.name} ... ", end="", flush=True)
        start = time.perf_counter()
        book, failure = run(notebook)
        seconds = f"{time.perf_counter() - start:.0f} s"
        print(f"FAILED after {seconds}" if failure else seconds, flush=True)
        if in_place and not failure:
            for line in stderr_cells(book):
                print(f"  warning: wrote to stderr: {line}")
            tidy(book)
            write(book, notebook)
            rows.append((notebook.name, seconds, size(notebook)))
        else:
            target = (BUILD / "refresh" if in_place else BUILD / "workbook") / notebook.name
            page = target.with_suffix(".html")
            target.parent.mkdir(parents=True, exist_ok=True)
            write_html(book, page)
            tidy(book)
            write(book, target)
            rows.append((notebook.name, seconds, f"{size(target)}, {size(page)}"))
        if failure:
            break

    print()
    table([*rows, ("in all", f"{time.perf_counter() - started:.0f} s", "")])
    if failure:
        sys.exit(f"\nFAILED: {failure}\nThe outputs up to there: {rows[-1][2]}")


if __name__ == "__main__":
    main()
