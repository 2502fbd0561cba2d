"""Configuration of the site; `make site` stages the pages and calls Sphinx with it."""

import json
from pathlib import Path

from docutils import nodes

project = "vqlib workbook"
author = "vqlib workbook contributors"
copyright = "vqlib workbook contributors. Code: MIT. Images: CC BY-NC 4.0, from HAM10000"
extensions = ["myst_nb"]

nb_execution_mode = "off"  # the committed outputs are shown
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # as on GitHub

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
mathjax_path = "tex-svg-full.js"
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # one search field is enough
    "show_toc_level": 2,
    "show_navbar_depth": 1,
}


def add_alt_texts(app, doctree):
    """Give each figure the alternative text in the metadata of its output, under the key that
    nbconvert uses. MyST-NB names the file of an image by its hash and drops this key."""
    alts = json.loads(Path(app.srcdir, "alt.json").read_text("utf-8"))
    for image in doctree.findall(nodes.image):
        image.setdefault("alt", alts.get(Path(image["uri"]).stem, ""))


def setup(app):
    app.connect("doctree-read", add_alt_texts)
