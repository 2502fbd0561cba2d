"""Build the reading site from the committed notebooks, without executing them; used by `make site`.

The pages, with the folders of the repository, are first written to build/site-source/. There the
cells that serve only the tests or the installation are tagged as hidden, links to files that are no
pages go to the repository, and the first mention of a term is linked to the glossary. Sphinx then
writes build/site/. The copies for students are in build/site/student/.
"""

import binascii
import hashlib
import json
import re
import shutil
import sys
import time
from pathlib import Path

import nbformat
import set_repo
from copies import student_copy
from pages import copy_mathjax, with_links

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
SITE = BUILD / "site"
PAGES = [
    "notebooks/README.md",
    "data/README.md",
    "data/results/README.md",
    "data/results/*.jpg",
    "data/results/*.png",
    "data/results/*.webp",
]
# What a reader of a page does not need to see: source of a cell -> tag of MyST-NB.
HIDDEN = {
    r"\Aquiz\([^\n]*\)\Z": "remove-input",
    r"\Aprogress\([^\n]*\)\Z": "remove-cell",
    r"^plots\.use_style\(\)": "hide-input",  # the imports
}
GLOSSARY = "\n## Glossary\n"


def stage(folder: Path) -> None:
    """Write all sources of the site into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder)
    copy_mathjax(folder / "_static")
    copied = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    books = sorted((ROOT / "notebooks").glob("*.ipynb"))
    pages = {str(path.relative_to(ROOT)) for path in [*copied, *books]}
    pages |= {f"notebooks/{path.stem}.jpg" for path in books}  # the pictures at the top
    for path in sorted((ROOT / "docs").rglob("*.md")):  # one folder higher on the site
        text = with_links(path.read_text("utf-8"), str(path.parent.relative_to(ROOT)), pages)
        target = folder / path.relative_to(ROOT / "docs")
        target.write_text(text.replace("](../", "]("), "utf-8")
    for path in copied:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text = path.read_text("utf-8")
            if path.parent.name == "notebooks":
                text, _, terms = text.replace(" and glossary\n", "\n", 1).partition(GLOSSARY)
                glossary = glossary_page(terms, [book.stem for book in books])
                (folder / "glossary.md").write_text(glossary, "utf-8")
            parent = str(path.parent.relative_to(ROOT))
            target.write_text(with_links(text, parent, pages), "utf-8")
        else:
            shutil.copyfile(path, target)
    names, alts = terms_by_name((folder / "glossary.md").read_text("utf-8")), {}
    for path in books:
        book = nbformat.read(path, as_version=4)
        alts |= alt_texts(book)
        picture = folder / "notebooks" / f"{path.stem}.jpg"
        for content in book.cells[0].pop("attachments", {}).values():
            picture.write_bytes(binascii.a2b_base64(content["image/jpeg"]))
        book.cells[0].source = book.cells[0].source.replace("attachment:picture.jpg", picture.name)
        nbformat.write(page(book, path, names, pages), folder / "notebooks" / path.name)
    (folder / "alt.json").write_text(json.dumps(alts), "utf-8")


def alt_texts(book: nbformat.NotebookNode) -> dict[str, str]:
    """SHA-256 of an image in the outputs, the name that MyST-NB gives its file -> its alt text."""
    found = {}
    for cell in book.cells:
        for output in cell.get("outputs", []):
            for mime, content in output.get("data", {}).items():
                if mime in ("image/jpeg", "image/png"):
                    name = hashlib.sha256(binascii.a2b_base64(content)).hexdigest()
                    found[name] = output.metadata.get(mime, {}).get("alt", "")
    return found


def page(
    book: nbformat.NotebookNode, path: Path, names: dict[str, str], pages: set[str]
) -> nbformat.NotebookNode:
    """A notebook as a page: see the docstring of this module."""
    remaining = dict(names)
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = with_terms(with_links(cell.source, "notebooks", pages), remaining)
        else:
            found = [tag for regex, tag in HIDDEN.items() if re.search(regex, cell.source, re.M)]
            cell.outputs = [output for output in cell.outputs if not is_open_verdict(output)]
            cell.metadata.tags = [*cell.metadata.get("tags", []), *found]
    badge = set_repo.badge(set_repo.current(ROOT), path.name)
    colab = badge.rpartition("(")[2].rstrip(")")
    buttons = (
        f'<p class="open"><a href="{colab}">Open in Colab</a> '
        f'<a href="../student/{path.name}" download>Download, without outputs</a></p>'
    )
    book.cells[0].source = book.cells[0].source.replace(badge, buttons)
    return book


def is_open_verdict(output: nbformat.NotebookNode) -> bool:
    """Whether an output is the verdict "Not attempted yet" of a task."""
    return output.get("data", {}).get("text/plain", "").startswith("○")


def glossary_page(table: str, notebooks: list[str]) -> str:
    """The table of terms as a glossary in the syntax of MyST."""
    numbers = {name[:2]: name for name in notebooks}
    entries = []
    for row in table.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]
        if len(cells) == 4 and cells[0] not in ("Term", "---"):
            term, symbol, meaning, used = (cell.replace(r"\|", "|") for cell in cells)
            where = [
                f"[{number}](notebooks/{numbers[number]}.ipynb)" if number in numbers else number
                for number in used.split(", ")
            ]
            symbol = f" Symbol: {symbol}." if symbol else ""
            entries.append(f"{term}\n  {meaning}{symbol} *Notebook {', '.join(where)}.*\n")
    return "# Glossary\n\n```{glossary}\n" + "\n".join(entries) + "```\n"


def terms_by_name(glossary: str) -> dict[str, str]:
    """Spellings of each term (plural, without the abbreviation, the abbreviation) -> term."""
    names = {}
    for term in re.findall(r"^(\S.*)\n  ", glossary, re.M):
        plain, _, short = term.rstrip(")").partition(" (")
        for name in (term, plain, short, f"{plain}s"):
            names[name.lower()] = term
    names.pop("", None)
    return names


def with_terms(text: str, remaining: dict[str, str]) -> str:
    """Link a term in bold, which is how the notebooks define it, to the glossary, once a page."""

    def linked(bold: re.Match) -> str:
        text = " ".join(bold[1].split())
        term = remaining.get(text.lower())
        if term is None:
            return bold[0]
        for name in [name for name, other in remaining.items() if other == term]:
            del remaining[name]
        return f"**{{term}}`{text} <{term}>`**"

    return re.sub(r"\*\*([^*]+)\*\*", linked, text)


def build(source: Path, target: Path) -> int:
    """Call Sphinx; a warning is an error. Returns its exit code."""
    from sphinx.cmd.build import main as sphinx_build

    shutil.rmtree(target, ignore_errors=True)
    doctrees = source.with_name("site-doctrees")
    shutil.rmtree(doctrees, ignore_errors=True)
    options = ["-b", "html", "-q", "-W", "--keep-going", "-d", doctrees, source, target]
    code = sphinx_build([str(option) for option in options])
    (target / "student").mkdir(exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        book = student_copy(nbformat.read(path, as_version=4))
        nbformat.write(book, target / "student" / path.name)
    return code


def main() -> None:
    started = time.perf_counter()
    source = BUILD / "site-source"
    stage(source)
    if code := build(source, SITE):
        sys.exit(code)
    megabytes = sum(p.stat().st_size for p in SITE.rglob("*") if p.is_file()) / 1e6
    print(f"build/site/index.html: {megabytes:.1f} MB, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
