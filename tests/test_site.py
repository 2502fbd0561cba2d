"""The site and the HTML pages: complete, readable without a network, each figure with a text."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
sys.path.append(str(ROOT / ".ci"))

for package in ("myst_nb", "sphinx_book_theme", "sphinx-mathjax-offline"):
    pytest.importorskip(package, reason="the extra `site` is not installed")

# Of the extensions of Sphinx, about its next versions.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated. Check CHANGES for Sphinx")

import build_site  # noqa: E402
import execute  # noqa: E402


class Page(HTMLParser):
    """Links, anchors, images and loaded files of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors, self.images, self.loaded = [], set(), [], []
        self.text = path.read_text("utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, pairs):
        found = dict(pairs)
        self.anchors.add(found.get("id"))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "img":
            self.images.append(found)
        if tag == "link" and found.get("rel") not in ("index", "search", "next", "prev"):
            self.loaded.append(found["href"])
        if "src" in found and not found["src"].startswith("data:"):
            self.loaded.append(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build_site.stage(folder / "source")
    assert build_site.build(folder / "source", folder / "html") == 0, "a warning, see above"
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in str(path)}


def figures(notebook: Path) -> int:
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return sum("image/jpeg" in output.get("data", {}) for output in outputs)


def test_every_notebook_is_a_page_with_all_its_figures(site, pages):
    for notebook in NOTEBOOKS:
        page = pages[site / "notebooks" / f"{notebook.stem}.html"]
        shown = [image["src"] for image in page.images if "_images/" in image["src"]]
        top = sum(src.endswith(f"/{notebook.stem}.jpg") for src in shown)
        assert len(shown) - top == figures(notebook)
        assert top == ("attachment:picture.jpg" in notebook.read_text("utf-8"))
        assert any(link.endswith(f"/notebooks/{notebook.name}") for link in page.links), "Colab"
        assert "google.colab" not in page.text, "the bootstrap cell is shown"
        copy = nbformat.read(site / "student" / notebook.name, as_version=4)
        assert not any(cell.get("outputs") for cell in copy.cells)


def test_every_image_has_an_alternative_text(pages):
    for path, page in pages.items():
        assert all(image.get("alt", "").strip() for image in page.images), path


def test_pages_load_nothing_from_other_hosts(site, pages):
    for path, page in pages.items():
        for name in page.loaded:
            assert not re.match(r"(\w+:)?//", name), f"{path}: {name}"
            assert (path.parent / unquote(name.partition("?")[0])).is_file(), f"{path}: {name}"
    for path in site.rglob("*.css"):
        style = path.read_text("utf-8")
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style), path


def test_links_between_pages_have_targets(site, pages):
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            name, _, anchor = unquote(link).partition("#")
            if re.match(r"\w+:", name):
                continue
            target = (path.parent / name).resolve() if name else path
            assert target.is_file(), f"{path}: {link}"
            if anchor and target in pages:
                assert anchor in pages[target].anchors, f"{path}: {link}"
            checked += 1
    assert checked > 500


def test_terms_in_bold_are_linked_to_the_glossary(site, pages):
    glossary = pages[site / "glossary.html"]
    assert {"term-perplexity", "term-codebook-vector"} <= glossary.anchors
    prior = pages[site / "notebooks/04_prior_training.html"]
    assert "../glossary.html#term-blind-spot" in prior.links


def test_site_is_small(site):
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 20e6


def test_html_page_of_the_workbook_needs_no_network(tmp_path):
    first, second = NOTEBOOKS[1:3]
    path = tmp_path / f"{first.stem}.html"
    execute.write_html(nbformat.read(first, as_version=4), path)
    page = Page(path)
    assert not [name for name in page.loaded if re.match(r"(\w+:)?//", name)]
    assert [name for name in page.loaded if (tmp_path / name).is_file()], "MathJax is missing"
    assert f"{second.stem}.html" in page.links and not [x for x in page.links if "../" in x]
    assert len(page.images) == figures(first) + 1  # and the picture at the top
    assert all(image.get("alt", "").strip() for image in page.images)
    assert "google.colab" not in page.text
    text = path.read_text("utf-8")  # derivations are folded, so their text stands inside
    assert "<details><summary>" in text and not re.search(r"</summary>\s*</details>", text)
