"""Copy the notebooks, without outputs, to my_notebooks/, where the reader works; see `make lab`.

Without outputs, a prediction does not stand above its answer, and git does not see the reader's
work. A copy that exists is never changed.
"""

import hashlib
from pathlib import Path

import nbformat
from copies import student_copy

ROOT = Path(__file__).resolve().parents[1]


def copy_notebooks(source: Path, target: Path) -> dict[str, str]:
    """Copy all notebooks of a folder; returns what became of each, by its name."""
    target.mkdir(exist_ok=True)
    found = {}
    for path in sorted(source.glob("*.ipynb")):
        original = path.read_bytes()
        version = hashlib.sha256(original).hexdigest()[:16]
        copy = target / path.name
        if copy.exists():
            same = version in copy.read_text("utf-8")
            found[path.name] = "yours" if same else (
                "yours, of an older version: rename it and call `make lab` again to get the new one"
            )  # fmt: skip
            continue
        book = student_copy(nbformat.reads(original.decode("utf-8"), as_version=4))
        book.metadata["vqlib_version"] = version
        nbformat.write(book, copy)
        found[path.name] = "copied"
    (target / "README.md").write_bytes((source / "README.md").read_bytes())
    return found


if __name__ == "__main__":
    target = ROOT / "my_notebooks"
    for name, state in copy_notebooks(ROOT / "notebooks", target).items():
        print(f"{target.name}/{name}: {state}")
