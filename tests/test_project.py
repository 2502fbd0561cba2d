"""Checks of the whole project: its notebooks, its license, the safety of its code."""

import ast
import functools
import importlib.util
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from vqlib.__main__ import _parser
from vqlib.evaluation.generation import distance_text

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "vqlib").rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

TITLES = [
    "01_preprocessing",
    "02_vqvae_training",
    "03_codebook_inspection",
    "04_prior_training",
    "05_generation",
]
# Tags of nbval; of the bootstrap cell, which HTML pages do not show; and of the cell whose last
# figure is shown at the top of its notebook. A new tag is added here, with its meaning.
TAGS = {"nbval-ignore-output", "nbval-skip", "raises-exception", "remove-cell", "picture"}
NOT_COMPARED = {"nbval-ignore-output", "nbval-skip"}
CELL_LINES = 40

UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

# Every image or archive in git must be listed here with its origin; none is a photograph.
BINARIES = {
    "data/results/report-samples.png": "sampled by the models of benchmarks/report.py",
    "data/results/samples.jpg": "decoded from codes by benchmarks/pictures.py",
    "data/results/sampling.webp": "decoded from codes by benchmarks/pictures.py",
}
BINARY_SUFFIXES = set(
    ".png .jpg .jpeg .gif .webp .avif .bmp .tif .tiff .pdf"
    " .npy .npz .pt .pth .ckpt .pkl .zip .gz .tar .7z .h5".split()
)
LESION_FILE = re.compile(r"ISIC_\d+|HAM10000_(metadata|images)|ISIC2018_Task3|GroundTruth", re.I)
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|Users|root|work|farm|tmp|mnt)/|\b[A-Z]:\\\w")


def load_script(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


set_repo = load_script(".ci/set_repo.py")
REPO = set_repo.current()


@functools.cache
def project_files() -> tuple[str, ...]:
    """Files in git or about to be; in an unpacked archive, all but generated files."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        names = listed.stdout.split("\0")
    else:
        made = {
            ".venv",
            "build",
            "my_notebooks",
            "__pycache__",
            ".ruff_cache",
            ".ipynb_checkpoints",
        }
        paths = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        names = [
            p.as_posix() for p in paths if not made & set(p.parts) and "egg-info" not in str(p)
        ]
    return tuple(sorted(name for name in names if name and (ROOT / name).is_file()))


def test_the_first_notebooks_keep_their_names_and_each_has_its_number():
    names = [path.stem for path in NOTEBOOKS]
    assert names[:5] == TITLES
    assert len({name[:2] for name in names}) == len(names)
    assert all(re.fullmatch(r"\d\d_[a-z_]+", name) for name in names)


# --- each notebook --------------------------------------------------------------------------------


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def book(path):
    return json.loads(path.read_text("utf-8"))


def code_cells(book):
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def source(cell) -> str:
    return "".join(cell["source"])


def tags(cell) -> set[str]:
    return set(cell["metadata"].get("tags", []))


def texts(cell) -> str:
    """All text in the outputs of a cell: streams, results, HTML, tracebacks."""
    parts = []
    for output in cell.get("outputs", []):
        parts += [output.get("text", []), output.get("traceback", [])]
        parts += [v for mime, v in output.get("data", {}).items() if mime.startswith("text/")]
    return "\n".join("".join(part) for part in parts)


def compared(cell) -> bool:
    """Whether nbval compares a text of this cell, so that a wrong one fails."""
    printed = any(
        output.get("name") == "stdout" or output["output_type"] == "execute_result"
        for output in cell["outputs"]
    )
    return printed and not tags(cell) & NOT_COMPARED


def test_notebook_was_executed_in_order(book):
    counts = [cell["execution_count"] for cell in code_cells(book)]
    assert counts == list(range(1, len(counts) + 1)), "run `make refresh`"


def test_notebook_holds_no_error(book):
    for cell in code_cells(book):
        if "raises-exception" not in tags(cell):
            assert not [o for o in cell["outputs"] if o["output_type"] == "error"], source(cell)


def test_notebook_metadata_is_that_of_a_refresh(book):
    metadata = book["metadata"]
    assert set(metadata) == {"accelerator", "colab", "kernelspec", "language_info"}
    assert metadata["kernelspec"]["name"] == "python3"
    assert "version" not in metadata["language_info"]
    for cell in book["cells"]:
        assert set(cell["metadata"]) <= {"tags", "jupyter"}, "timings? run `make refresh`"
        for output in cell.get("outputs", []):
            assert not [mime for mime in output.get("data", {}) if "widget" in mime], source(cell)


def test_notebook_cells_are_numbered_tagged_and_short(book):
    assert [cell["id"] for cell in book["cells"]] == [
        f"c{i:02d}" for i in range(len(book["cells"]))
    ]
    for cell in book["cells"]:
        assert tags(cell) <= TAGS, f"unknown tag in {cell['id']}: {tags(cell) - TAGS}"
        assert len(source(cell).splitlines()) <= CELL_LINES, cell["id"]


def test_notebook_hides_no_value_with_a_semicolon(book):
    """nbval runs cells without history, where IPython shows the value in spite of the `;`."""
    for cell in code_cells(book):
        assert not source(cell).rstrip().endswith(";"), f"{cell['id']}: end it with plt.show()"


def test_notebook_contains_no_path_of_a_machine(book):
    for cell in book["cells"]:
        text = source(cell) + "\n" + texts(cell)
        assert not MACHINE_PATH.search(text), f"{cell['id']}: {MACHINE_PATH.search(text)}"
        assert not re.search(r" at 0x[0-9a-f]{6,}", texts(cell)), f"{cell['id']}: a memory address"


def test_notebook_is_small(path):
    assert path.stat().st_size < 1_000_000


def test_notebook_starts_on_colab(path, book):
    cells = code_cells(book)
    assert source(cells[0]) == set_repo.bootstrap(REPO), "run `make set-repo` with the address"
    assert sum(set_repo.BOOTSTRAP_MARK in source(cell) for cell in cells) == 1
    assert cells[0]["metadata"] == set_repo.BOOTSTRAP_METADATA
    assert not cells[0]["outputs"]
    assert book["cells"][0]["cell_type"] == "markdown"
    assert set_repo.badge(REPO, path.name) in source(book["cells"][0])


def test_every_figure_has_an_alternative_text(book):
    for cell in code_cells(book):
        for output in cell["outputs"]:
            for mime in (mime for mime in output.get("data", {}) if mime.startswith("image/")):
                assert output["metadata"].get(mime, {}).get("alt"), f"{cell['id']}: `make refresh`"


def test_notebook_compares_something_after_each_cell_nbval_ignores(book):
    cells = code_cells(book)
    for index, cell in enumerate(cells):
        if tags(cell) & NOT_COMPARED:
            following = cells[index + 1 : index + 3]
            assert any(compared(c) for c in following), f"no check cell after {cell['id']}"
    assert sum(compared(cell) for cell in cells) >= 3


def test_notebook_shows_no_real_lesion(book):
    """Its output names the synthetic or decoded data set, and no real image is named or pasted."""
    printed = "\n".join(texts(cell) for cell in code_cells(book))
    assert re.search(r"<(synthetic|decoded): [\d,]+ images", printed), "the data set isn't shown"
    assert not re.search(r"<(isic ?2018|ham10000): [\d,]+ images", printed, re.IGNORECASE)
    assert not re.search(r"ISIC_\d{7}", printed)
    figures = [
        output["data"]["image/jpeg"].replace("\n", "")
        for cell in code_cells(book)
        if "picture" in tags(cell)
        for output in cell["outputs"]
        if "image/jpeg" in output.get("data", {})
    ]
    picture = {"picture.jpg": {"image/jpeg": figures[-1]}} if figures else {}
    for cell, attached in zip(book["cells"], [picture, *[{}] * len(book["cells"])], strict=False):
        assert cell.get("attachments", {}) == attached, f"{cell['id']}: a pasted image"
        assert "data:image" not in source(cell), f"{cell['id']}: a pasted image"


# --- the repository -------------------------------------------------------------------------------


def test_the_address_is_the_same_everywhere():
    readme = (ROOT / "README.md").read_text("utf-8")
    for notebook in NOTEBOOKS:
        assert set_repo.badge(REPO, notebook.name) in readme, f"README.md: badge of {notebook.name}"
    for name in ["README.md", *(f"notebooks/{path.name}" for path in NOTEBOOKS)]:
        addresses = set(set_repo.COLAB_ADDRESS.findall((ROOT / name).read_text("utf-8")))
        assert addresses == {REPO}, name


def test_set_repo_rewrites_everything_and_can_be_undone(tmp_path):
    (tmp_path / "notebooks").mkdir()
    files = ["pyproject.toml", "README.md", *(f"notebooks/{path.name}" for path in NOTEBOOKS)]
    before = {name: (ROOT / name).read_text("utf-8") for name in files}
    for name, text in before.items():
        (tmp_path / name).write_text(text, "utf-8")
    assert len(set_repo.set_repo("someone/else.where", tmp_path)) == len(files)
    for name in files:
        assert REPO not in (tmp_path / name).read_text("utf-8"), name
    assert set_repo.current(tmp_path) == "someone/else.where"
    set_repo.set_repo(REPO, tmp_path)
    assert {name: (tmp_path / name).read_text("utf-8") for name in files} == before


def test_bootstrap_says_what_to_do_if_the_repository_cannot_be_cloned(tmp_path, monkeypatch):
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\nexit 128\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "google.colab", object())
    cell = set_repo.bootstrap("someone/no-such-workbook-here")
    with pytest.raises(RuntimeError, match="make set-repo REPO=owner/name"):
        exec(cell, {})


def test_environment_yml_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert environment["name"] == PYPROJECT["project"]["name"]
    assert environment["channels"] == ["conda-forge"]
    python, pip, installed = environment["dependencies"]
    floor = SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert SpecifierSet(python.removeprefix("python")) == floor
    assert pip == "pip"
    optional = {"codecs"}  # only for `evaluate --strict-codecs`
    extras = ",".join(x for x in PYPROJECT["project"]["optional-dependencies"] if x not in optional)
    assert installed == {"pip": [f"-e .[{extras}]"]}
    assert f'-e ".[{extras}]"' in (ROOT / "Makefile").read_text("utf-8")
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    for version in ci["jobs"]["test"]["strategy"]["matrix"]["python"]:
        assert version in floor


def test_no_lesion_and_no_unnamed_binary_is_in_git():
    for name in project_files():
        assert not LESION_FILE.search(name), f"{name}: CC BY-NC images stay out of git"
        if Path(name).suffix.lower() in BINARY_SUFFIXES:
            assert name in BINARIES, f"{name}: name it in BINARIES, with its origin"
        assert os.path.getsize(ROOT / name) < 10_000_000, f"{name}: over 10 MB"


def test_no_file_contains_a_path_of_a_machine():
    for name in project_files():
        if Path(name).suffix in {".py", ".md", ".toml", ".yml", ".cfg", ""}:
            found = MACHINE_PATH.search((ROOT / name).read_text("utf-8"))
            assert not found, f"{name}: {found}"


def test_the_results_page_and_the_readme_are_as_their_script_writes_them():
    script = load_script("benchmarks/results_page.py")
    readme = (ROOT / "README.md").read_text("utf-8")
    page = (ROOT / "data/results/README.md").read_text("utf-8")
    assert page == script.results_page(), "run `python benchmarks/results_page.py`"
    assert readme == script.with_results(readme), "run `python benchmarks/results_page.py`"
    assert readme.count(script.START) == readme.count(script.END) == 1


def results(name):
    return json.loads((ROOT / f"data/results/{name}.json").read_text("utf-8"))


def on_one_line(name):
    return " ".join((ROOT / name).read_text("utf-8").split())


def test_tables_of_results_are_those_of_evaluate():
    """Formatted here a second time, so that a wrong column in the script is noticed."""
    page = (ROOT / "data/results/README.md").read_text("utf-8")
    card = (ROOT / "data/pretrained/ham10000/README.md").read_text("utf-8")
    val, test = results("isic2018-val"), results("isic2018-test")
    display_names = {
        "mean color": "mean color",
        "raw thumbnail": "thumbnail, raw pixels",
        "ham10000": "**deep** (`deep`), ships as `ham10000`",
        "ham10000-report-layers": "**report's layers** (`workbook`)",
        "report-ham10000": "the report's recipe, `report-ham10000`",
    }

    def table_row(name, row):
        cells = [display_names.get(name, name), str(row["n"]), "", "", "", "", ""]
        if "psnr_db" in row:
            cells[2:4] = f"{row['psnr_db']:.2f}", f"{row['ssim']:.3f}"
        if "codes_used" in row:
            digits = 0 if row["perplexity"] > 9 else 1
            cells[4] = "{:+.2f} ({:+.2f} to {:+.2f})".format(*row["psnr_above_baseline_db"])
            cells[5:] = str(row["codes_used"]), f"{row['perplexity']:.{digits}f}"
        return f"| {' | '.join(cells)} |\n"

    for name, row in val["rows"].items():
        assert table_row(name, row) in page and table_row(name, row) in card, name
    for name, row in test["rows"].items():
        assert table_row(name, row) in page, name
    for rows in val["samples"]["rows"].values():
        for name, row in rows.items():
            distance = distance_text(row["kernel_distance"], row["standard_error"])
            line = f"| {distance} | {row['density']:.2f} | {row['coverage']:.2f} |"
            assert line in page, f"{name}: {line}"


def test_results_in_the_readme_are_those_of_the_files():
    def span(values, digits):
        ends = dict.fromkeys(f"{value:.{digits}f}" for value in (min(values), max(values)))
        return " to ".join(ends)

    val, test, machines = *map(results, ("isic2018-val", "isic2018-test")), results("sampling")
    ours, webp = (
        [result["rows"][name]["psnr_db"] for result in (val, test)] for name in ("ham10000", "WebP")
    )
    avif = max(row.get("psnr_db", 0) for name, row in test["rows"].items() if "AVIF" in name)
    bits, files, machines = val["bits_per_code"], val["files"], machines["machines"]
    said = [
        f"With {val['budget_bytes']} bytes",
        f"VQ-VAE reaches {ours[0]:.2f} dB PSNR and WebP {webp[0]:.2f} dB on the validation",
        f"(n = {val['n']}), {ours[1]:.2f} and {webp[1]:.2f} dB on the test split (n = {test['n']},",
        "{:+.2f} ({:+.2f} to {:+.2f}) dB".format(
            *test["rows"]["ham10000"]["psnr_above_baseline_db"]
        ),
        f"{ours[1] - avif:.2f} dB above AVIF",
        f"needs {bits['prior, given the class']:.2f} bits per code",
        f"take {files['prior_bytes']:.0f} bytes",
        f"same PSNR {files['baseline_bytes']:.0f} bytes (n = {files['n']})",
        f"on {len(machines)} machine",
        f"take {span([m['seconds_for_4_lesions'] for m in machines], 2)} s",
    ]
    cached = {}
    for row in (row for machine in machines for row in machine["rows"]):
        cached.setdefault(row["n"], []).append(row["cached"])
    for n, rows in cached.items():
        faster, seconds = ([row[key] for row in rows] for key in ("speedup", "seconds"))
        said.append(f"{span(faster, 0)}x for {n} ({span(seconds, 2)} s)")
    readme = on_one_line("README.md")
    assert not [text for text in said if text not in readme]


def test_other_results_are_those_of_their_benchmarks():
    val, bounds = results("isic2018-val"), results("bounds")["rows"]
    found, prior = results("report"), results("report")["prior"]
    said = [f"| {bounds['ham10000']['psnr_db']:.2f} | {val['rows']['ham10000']['psnr_db']:.2f} |"]
    for row in results("usefulness")["rows"].values():
        accuracy, difference = (100 * row[key] for key in ("balanced_accuracy", "difference"))
        said.append(f"{accuracy:.1f} % | {difference:+.1f} |")
    for row in results("guidance")["rows"]:
        said.append(f"w = {row['guidance']:g} | {100 * row['balanced_accuracy']:.0f} % |")
    for row in results("priors")["rows"]:
        said.append(f"| {row['bits_per_code']:.3f} |")
    for name, row in results("transformer-priors")["priors"].items():
        bits, error = row["bits_per_code"], row["bits_standard_error"]
        bound = "" if row["bits_are"] == "exact" else "at most "
        said.append(f"| {row['epochs']} | {bound}{bits:.3f} ± {error:.3f} |")
        kid = row["kernel_distance_x1000"]["reconstructions"]["classifier"]
        said.append(f"| {name} | {kid[0]:.1f} ± {kid[1]:.1f} |")
    for row in results("ablation")["rows"]:
        said.append(f"| {row['seed']} | {row['psnr_db']:.2f} |")
    for row in results("quantizers")["rows"].values():
        said.append(f"| {row['ms_per_step']:.0f} ms | {row['mb_per_step_of_256']:.0f} MB |")
    for row in found["loss_bounds"]:
        said.append(
            f"| {row['rotation']} | {row['lower_bound']:.3f} | {row['single_image_loss']:.3f} |"
        )
    for row in (row for row in found.values() if "means_over_100_batches" in row):
        loss, mse = (
            row["means_over_100_batches"][key][-1] for key in ("loss", "reconstruction_loss")
        )
        said.append(f"| {row['size']} | {row['epochs']} | {loss:.3f} | {mse:.3f} |")
    said.append(f"training ends at {prior['train_mse'][-1]:.3f}")
    said.append(f"and ends at {prior['held_out_mse'][-1]:.3f}")
    page = on_one_line("data/results/README.md")
    assert not [text for text in said if text not in page]


def test_the_readme_can_be_read_in_three_minutes():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


def test_commands_in_the_readme_are_valid():
    text = (ROOT / "README.md").read_text("utf-8").replace("\\\n", " ")
    commands = re.findall(r"^python -m vqlib (.*)$", text, re.MULTILINE)
    assert {command.split()[0] for command in commands} >= {"download", "train-vqvae", "evaluate"}
    for command in commands:
        _parser().parse_args(shlex.split(command, comments=True))


def test_the_table_of_the_reports_method_names_existing_objects():
    text = (ROOT / "notebooks/README.md").read_text("utf-8")
    rows = text.partition("| The report's method |")[2].splitlines()[2:]
    cells = [row.split("|")[2] for row in rows if row.startswith("|")]
    names = re.findall(r"`([a-z]\w*\.[\w.]+)`", " ".join(cells))
    assert len(names) > 20
    for name in names:
        pkgutil.resolve_name(f"vqlib.{name}")


def headings(text):
    """The anchors that GitHub gives to the headings of a Markdown text."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_between_pages_have_targets():
    pages = [ROOT / name for name in project_files() if name.endswith(".md")]
    links = 0
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
            if not link.startswith(("https://", "http://", "mailto:")):
                links += 1
                name, _, anchor = link.partition("#")
                target = (page.parent / name).resolve() if name else page
                where = f"{page.relative_to(ROOT)}: {link}"
                assert target.exists() and target.is_relative_to(ROOT), where
                if anchor:
                    assert anchor in headings(target.read_text("utf-8")), where
    assert len(pages) >= 6 and links > 20


def test_a_run_of_the_sampling_benchmark_replaces_only_its_own_processor():
    speed = load_script("benchmarks/sampling.py")
    old, other = {"processor": speed.processor(), "torch": "1"}, {"processor": "another"}
    new = {"processor": speed.processor(), "torch": "2"}
    assert speed.processor() and speed.with_machine([old, other], new) == [other, new]
    assert speed.with_machine([other], new) == [other, new]


def test_top_level_is_what_the_readme_lists():
    top = {name.split("/")[0] for name in project_files()}
    assert top <= {
        ".ci",
        ".github",
        ".gitignore",
        "LICENSE",
        "Makefile",
        "README.md",
        "benchmarks",
        "data",
        "docs",
        "environment.yml",
        "notebooks",
        "pyproject.toml",
        "tests",
        "vqlib",
    }


# --- the library ----------------------------------------------------------------------------------


@pytest.fixture(params=MODULES, ids=lambda module: module.stem)
def module(request):
    return request.param


def test_no_code_is_run_from_disk(module):
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & UNSAFE
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in UNSAFE
        elif isinstance(node, ast.Call):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if ast.unparse(node.func) == "torch.load":
                assert given.get("weights_only") == "True", f"line {node.lineno}"
            assert given.get("allow_pickle", "False") == "False", f"line {node.lineno}"
