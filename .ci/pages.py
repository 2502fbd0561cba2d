"""What the site and the HTML pages of `make workbook` have in common: formulas and links."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from posixpath import normpath

import set_repo

# From a package on PyPI that contains the files of MathJax 3.2.2, unchanged. This one includes all
# extensions and the glyphs, so a page loads nothing else.
MATHJAX = "tex-svg-full.js"
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)((?:#[^)\s]*)?)(?=\))")


def copy_mathjax(folder: Path) -> None:
    """Copy MathJax into a folder, which is created.

    Raises:
        ModuleNotFoundError: the package that contains it is not installed.
    """
    package = find_spec("sphinx-mathjax-offline")
    if package is None:
        raise ModuleNotFoundError("sphinx-mathjax-offline is not installed: pip install -e .[site]")
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(package.submodule_search_locations[0], "static", "mathjax", MATHJAX)
    shutil.copyfile(source, folder / MATHJAX)


def with_links(text: str, folder: str, kept: set[str]) -> str:
    """Replace relative links by links to the repository.

    Args:
        text: Markdown.
        folder: of the text in the repository, "notebooks".
        kept: files of the repository whose links stay as they are.
    """
    repository = f"https://github.com/{set_repo.current()}/blob/main"

    def target(link: re.Match) -> str:
        path = normpath(PurePosixPath(folder, link[1]))
        return link[0] if path in kept else f"{repository}/{path}{link[2]}"

    return LINK.sub(target, text)
