"""Long tests of robustness: a pipeline that is killed again and again, and files with damage.

    python benchmarks/robustness.py     # a minute or two on one core

It runs the tests with the marker "long": 21 kills at random moments, a third of them within the
write of a checkpoint (tests/killed_pipeline.py), and 2,000 damaged files for each reader
(tests/test_fuzz.py). The results are written to data/results/robustness.json: for each test
whether it passed, its seconds, and what it counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import torch

from vqlib.checkpoints import REPOSITORY
from vqlib.evaluation.results import save_results


def run_long_tests() -> dict[str, Any]:
    """Name of each test -> "passed", "seconds" and the properties that it recorded."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "long", f"--junitxml={report}", "tests"]
        subprocess.run(command, cwd=REPOSITORY, check=False)
        cases = list(ET.parse(report).iter("testcase"))
    rows = {}
    for case in cases:
        counted = {p.get("name"): json.loads(p.get("value")) for p in case.iter("property")}
        passed = not {"failure", "error", "skipped"} & {child.tag for child in case}
        seconds = round(float(case.get("time")), 1)
        rows[case.get("name")] = {"passed": passed, "seconds": seconds, **counted}
    return rows


if __name__ == "__main__":
    rows = run_long_tests()
    python = ".".join(map(str, sys.version_info[:2]))
    save_results("robustness", {"python": python, "torch": torch.__version__, "tests": rows})
    sys.exit(not rows or not all(row["passed"] for row in rows.values()))
