"""Write the repository's address into all files that contain it: `make set-repo REPO=owner/name`.

The address is defined in pyproject.toml under [project.urls]. From there it is copied to README.md
and, in each notebook, to the Colab badge and to the bootstrap cell. Only the standard library is
needed. With the current address, the script repairs badges and cells that were changed by mistake.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The first code cell of all notebooks. Outside Colab it does nothing.
BOOTSTRAP = """\
# On Colab: fetch the workbook, once, and step into it. Anywhere else this cell does nothing.
import sys

if "google.colab" in sys.modules:
    import importlib.util
    import os
    import subprocess
    from pathlib import Path

    repository = "https://github.com/{owner}/{name}"
    folder = Path("/content/{name}")
    if not folder.exists():
        clone = ["git", "clone", "--quiet", "--depth=1", repository, folder]
        if subprocess.run(clone).returncode:
            raise RuntimeError(
                f"{repository} could not be cloned. Write the address of a public copy of the "
                "workbook into this cell (in all notebooks: `make set-repo REPO=owner/name`)."
            )
    os.chdir(folder / "notebooks")
    sys.path.insert(0, str(folder))
    small = ["torchmetrics", "safetensors", "requests", "tqdm", "constriction"]
    missing = [package for package in small if importlib.util.find_spec(package) is None]
    if missing:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)
        importlib.invalidate_caches()"""
BOOTSTRAP_MARK = '"google.colab" in sys.modules'
# Folded in JupyterLab, and not part of HTML pages.
BOOTSTRAP_METADATA = {"jupyter": {"source_hidden": True}, "tags": ["remove-cell"]}

BADGE_IMAGE = "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
BADGE = (
    BADGE_IMAGE + "(https://colab.research.google.com/github/{repo}/blob/main/notebooks/{notebook})"
)
ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+")
REPOSITORY = re.compile(r'^(Repository = "https://github\.com/)([^"]+)(")$', re.MULTILINE)
COLAB_ADDRESS = re.compile(r"colab\.research\.google\.com/github/([^/\s]+/[^/\s]+)/blob/")


def current(root: Path = ROOT) -> str:
    """The address in pyproject.toml, as owner/name."""
    match = REPOSITORY.search((root / "pyproject.toml").read_text("utf-8"))
    if match is None:
        sys.exit('pyproject.toml: no line Repository = "https://github.com/owner/name"')
    return match[2]


def bootstrap(repo: str) -> str:
    """The bootstrap cell for an address owner/name."""
    owner, name = repo.split("/")
    return BOOTSTRAP.replace("{owner}", owner).replace("{name}", name)


def badge(repo: str, notebook: str) -> str:
    """Markdown of the Colab badge that opens the notebook with this file name."""
    return BADGE.format(repo=repo, notebook=notebook)


def readdress(text: str, old: str, new: str) -> str:
    """Replace the address in a text: in Colab links, elsewhere, and in `cd name`."""
    text = COLAB_ADDRESS.sub(lambda link: link[0].replace(link[1], new), text)
    text = re.sub(rf"(?<![\w.-]){re.escape(old)}(?![\w-])", new, text)
    old_name, new_name = old.split("/")[1], new.split("/")[1]
    return re.sub(rf"\bcd {re.escape(old_name)}(?![\w-])", f"cd {new_name}", text)


def readdress_notebook(text: str, old: str, new: str) -> str:
    """Replace the address in the JSON of a notebook, and write its bootstrap cell again."""
    book = json.loads(text)
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and BOOTSTRAP_MARK in source:
            source, cell["metadata"] = bootstrap(new), BOOTSTRAP_METADATA
        elif cell["cell_type"] == "markdown":
            source = readdress(source, old, new)
        else:
            continue
        cell["source"] = source.splitlines(keepends=True)
    return json.dumps(book, ensure_ascii=False, indent=1) + "\n"


def set_repo(new: str, root: Path = ROOT) -> list[Path]:
    """Write the address owner/name into all files below root; returns the changed files."""
    old = current(root)
    files = [root / "pyproject.toml", root / "README.md", *sorted(root.glob("notebooks/*.ipynb"))]
    changed = []
    for file in files:
        before = file.read_text("utf-8")
        if file.name == "pyproject.toml":
            after = REPOSITORY.sub(rf"\g<1>{new}\g<3>", before)
        elif file.suffix == ".ipynb":
            after = readdress_notebook(before, old, new)
        else:
            after = readdress(before, old, new)
        if after != before:
            file.write_text(after, "utf-8")
            changed.append(file)
    return changed


def main() -> None:
    new = sys.argv[1] if len(sys.argv) == 2 else ""
    new = new.removeprefix("https://github.com/").removesuffix(".git")
    if not ADDRESS.fullmatch(new):
        sys.exit(
            f"Not an address: {new!r}. Use: make set-repo REPO=owner/name (current: {current()})"
        )
    changed = set_repo(new)
    for file in changed:
        print(f"  {file.relative_to(ROOT)}")
    print(f"The address is {new}; {len(changed)} files changed.")


if __name__ == "__main__":
    main()
