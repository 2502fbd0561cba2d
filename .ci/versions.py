"""Test with other versions of the dependencies, in an environment of their own.

    python .ci/versions.py floors    # the lowest versions that pyproject.toml allows
    python .ci/versions.py newest    # the newest ones
    python .ci/versions.py colab     # those that Colab preinstalls; its Python is 3.13

`floors` and `newest` run the unit tests. `colab` runs the notebooks as Colab does, with synthetic
images: the kernel has a module google.colab and starts in a folder without the repository, which
the first cell clones (from the last commit here) before it installs the packages that are missing.

The environment is written to build/versions/, about 6 GB with the PyTorch of Linux. The result is
written to data/results/versions.json, under the name and the version of Python.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

from set_repo import current

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results" / "versions.json"
# Read from the lists of packages at github.com/googlecolab/backend-info, August 2026. nbclient runs
# the notebooks here, and numpy and torchvision are the only other packages that they need at once.
COLAB = """
torch==2.11.0 torchvision==0.26.0 numpy==2.1.3 pillow==11.3.0 matplotlib==3.10.0 tqdm==4.67.3
ipywidgets==7.7.1 ipython==7.34.0 ipykernel==6.17.1 traitlets==5.7.1 nbclient
"""
FAKE_COLAB = 'import sys, types\nsys.modules["google.colab"] = types.ModuleType("google.colab")\n'


def requirements(name: str) -> list[str]:
    if name == "colab":
        return COLAB.split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *extras["notebook"], *extras["dev"]]
    if name == "floors":
        return [re.sub(r">=([\d.]+).*", r"==\1", requirement) for requirement in listed]
    return listed


def install(folder: Path, listed: list[str]) -> Path:
    """Create an environment in `folder`; returns its python."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *listed], check=True)
    return python


def versions(python: Path, listed: list[str]) -> dict[str, str]:
    """Version of each package that was asked for."""
    command = [python, "-m", "pip", "list", "--format=json"]
    found = json.loads(subprocess.check_output(command))
    found = {package["name"].lower(): package["version"] for package in found}
    return {name: found[name] for name in (re.split(r"[=<>]", line)[0] for line in listed)}


def unit_tests(python: Path, folder: Path) -> dict[str, int]:
    """Number of tests that passed, failed or were skipped."""
    report = folder / "unit.xml"
    command = [python, "-m", "pytest", "-q", f"--junitxml={report}", "tests"]
    subprocess.run(command, cwd=ROOT, check=False)
    suite = ET.parse(report).getroot().find("testsuite")
    counts = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    return {"passed": passed, "failed": failed, "skipped": counts["skipped"]}


def notebooks(python: Path, folder: Path, only: str) -> dict[str, dict[str, float | bool]]:
    """Name of each notebook -> whether it ran without an error, and the seconds that it took."""
    content = folder / "content"
    shutil.rmtree(content, ignore_errors=True)
    startup = folder / "ipython" / "profile_default" / "startup"
    for new in (content, startup):
        new.mkdir(parents=True, exist_ok=True)
    (startup / "colab.py").write_text(FAKE_COLAB)
    environment = os.environ | {
        "IPYTHONDIR": str(folder / "ipython"),
        "VQLIB_DATA": "synthetic",
        "GIT_CONFIG_COUNT": "1",  # git clones this folder instead of the address
        "GIT_CONFIG_KEY_0": f"url.file://{ROOT}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{current(ROOT)}",
    }
    rows = {}
    for path in sorted((ROOT / "notebooks").glob(f"{only}*.ipynb")):
        text = path.read_text("utf-8").replace('\\"/content/', f'\\"{content}/')
        (content / path.name).write_text(text, "utf-8")
        command = [python.with_name("jupyter-execute"), "--timeout=1200", content / path.name]
        start = time.perf_counter()
        passed = subprocess.run(command, env=environment, check=False).returncode == 0
        rows[path.stem] = {"passed": passed, "seconds": round(time.perf_counter() - start)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=("floors", "newest", "colab"))
    parser.add_argument("--only", default="", metavar="NB", help="only these notebooks, e.g. 02")
    options = parser.parse_args()
    folder, listed = ROOT / "build" / "versions" / options.name, requirements(options.name)
    python = install(folder, listed)
    if options.name == "colab":
        result = {"notebooks": notebooks(python, folder, options.only)}
        passed = all(row["passed"] for row in result["notebooks"].values())
    else:
        result = {"unit tests": unit_tests(python, folder)}
        passed = not result["unit tests"]["failed"]
    result |= {"date": str(datetime.date.today()), "system": platform.system()}
    result |= {"versions": versions(python, listed)}
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results[f"{options.name}, Python {platform.python_version()}"] = {"passed": passed, **result}
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
