"""The notebooks as a reader meets them: JupyterLab in Chromium, dark theme, 1,000 pixels wide.

Each widget is operated with the keyboard or the mouse. Of a notebook, only the cells run that a
widget needs. Screenshots and the times of the answers are written to build/browser/.
"""

import ast
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from torchvision.transforms.functional import to_pil_image

from vqlib.lesions import CLASSES, synthetic_dataset

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[1]
SHOTS = ROOT / "build" / "browser"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
SECONDS = 4.0  # for an answer, on a busy machine; an idle one with 2 cores takes below 0.3
SWITCHES = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
SETTINGS = {
    "@jupyterlab/apputils-extension/themes": {"theme": "JupyterLab Dark"},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}


def needed_cells(book):
    """The code cells that the cells with a widget need, found by the names that they define."""
    wanted, kept = set(), []
    for cell in reversed([c for c in book["cells"] if c["cell_type"] == "code"][1:]):
        source = "".join(cell["source"])
        nodes = list(ast.walk(ast.parse(source)))
        names = [node for node in nodes if isinstance(node, ast.Name)]
        defined = {n.id for n in names if isinstance(n.ctx, ast.Store)}
        defined |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        defined |= {n.asname or n.name for n in nodes if isinstance(n, ast.alias)}
        if "widgets." in source or defined & wanted:
            kept.insert(0, {**cell, "outputs": [], "execution_count": None})
            wanted = (wanted - defined) | {n.id for n in names if n.id not in defined}
            wanted |= set(re.findall(r'choose\("(\w+)"', source))  # x = choose("x", x, ...)
    return {**book, "cells": kept}


@pytest.fixture(scope="module")
def browser():
    SHOTS.mkdir(parents=True, exist_ok=True)
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason='no playwright: pip install "playwright>=1.45"'
    )
    if not CHROMIUM:
        pytest.skip("no Chromium: on Debian and Ubuntu, apt install chromium")
    with sync_api.sync_playwright() as api:
        switches = [f"--{switch}" for switch in SWITCHES.split()]
        yield api.chromium.launch(executable_path=CHROMIUM, args=switches)


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """Folder of notebooks and address of a JupyterLab server with the settings of `make lab`. The
    notebooks read a few images and have no runs."""
    home, folder = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("notebooks")
    images = tmp_path_factory.mktemp("images")
    for i, image in enumerate(synthetic_dataset(lesions=40).pixels(256)):
        path = images / CLASSES[i % 7] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        to_pil_image(image).save(path)
    for name, values in SETTINGS.items():
        path = home / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        f"JUPYTER{name}": str(home / name.lower().strip("_"))
        for name in ("_CONFIG_DIR", "_DATA_DIR", "_RUNTIME_DIR", "LAB_WORKSPACES_DIR")
    }
    variables |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "IPYTHONDIR": str(home)}
    variables |= {"VQLIB_DATA": str(images), "VQLIB_HOME": str(home), "PYTHONPATH": str(ROOT)}
    options = {
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder,
        "IdentityProvider.token": "token",
        "LabApp.app_settings_dir": ROOT / ".ci/lab",
        "LabApp.expose_app_in_browser": True,
        "LabApp.extension_manager": "readonly",
    }
    flags = [f"--{key}={value}" for key, value in options.items()]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", *flags],
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/api/status?token=token", timeout=5).read()
                break
            except OSError:
                time.sleep(0.2)
        yield folder, address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


STEADY = """async () => {
    const panel = window.jupyterapp.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    for (let quiet = 0; quiet < 3; ) {
        await new Promise(resolve => setTimeout(resolve, 300));
        const kernel = panel.sessionContext.session?.kernel;
        const idle = kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
        quiet = idle ? quiet + 1 : 0;
    }
}"""


ERROR = '[data-mime-type$="jupyter.error"], [data-mime-type$="jupyter.stderr"]'


class Page:
    """A notebook in JupyterLab, in a workspace of its own; as a context, it ends its kernel."""

    def __init__(self, browser, lab, name, book):
        self.folder, self.address = lab
        self.path = self.folder / f"{name}.ipynb"
        self.path.write_text(json.dumps(book), "utf-8")
        self.tab = browser.new_page(viewport={"width": 1000, "height": 900})
        self.tab.set_default_timeout(120_000)

    def __enter__(self):
        self.open()
        return self

    def __exit__(self, *_):
        self.tab.screenshot(path=SHOTS / f"{self.path.stem}.png")
        self.end_kernel()
        self.tab.close()

    def open(self):
        workspace = f"{self.address}/lab/workspaces/{self.path.stem}"
        self.tab.goto(f"{workspace}/tree/{self.path.name}?token=token")
        self.tab.wait_for_selector(".jp-Notebook .jp-Cell")
        self.tab.evaluate(STEADY)

    def end_kernel(self):
        self.tab.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")

    def command(self, name):
        """Without a promise as its value, for which `evaluate` would wait without a timeout."""
        self.tab.evaluate(f"() => {{ window.jupyterapp.commands.execute('{name}'); }}")

    def run(self):
        self.command("notebook:run-all-cells")
        script = """() => {
            const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
            return prompts.every(p => /\\[\\d+\\]/.test(p.textContent))
                || document.querySelector(ERROR);
        }""".replace("ERROR", repr(ERROR))
        self.tab.wait_for_function(script)
        self.tab.evaluate(STEADY)
        assert self.errors() == []

    def errors(self):
        return self.tab.locator(ERROR).all_inner_texts()

    def set_theme(self, name):
        command = f"'apputils:change-theme', {{theme: 'JupyterLab {name}'}}"
        self.tab.evaluate(f"() => {{ window.jupyterapp.commands.execute({command}); }}")
        self.tab.wait_for_selector(f"body[data-jp-theme-name$='{name}']", state="attached")
        self.tab.wait_for_timeout(300)  # its style sheet

    def save(self):
        self.tab.evaluate("() => window.jupyterapp.shell.currentWidget.context.save()")


def notebook(*sources):
    cells = [{"cell_type": "code", "metadata": {}, "source": source, "outputs": [],
              "execution_count": None} for source in sources]  # fmt: skip
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}


def operate(control):
    """Change one control with the keyboard, as a reader would."""
    if control.locator(".noUi-handle").count():
        handle = control.locator(".noUi-handle")
        low = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemin")
        handle.press("ArrowRight" if low else "ArrowLeft")
    elif control.locator("input[type=checkbox]").count():
        control.locator("input[type=checkbox]").press("Space")
    else:
        control.locator("button").nth(1).press("Space")


EXPLORER = ".jp-OutputArea .widget-vbox:has(> .widget-box > .widget-inline-hbox)"
NUMBERS = sorted(
    path.name[:2]
    for path in (ROOT / "notebooks").glob("*.ipynb")
    if "widgets." in path.read_text("utf-8")
)


@pytest.mark.parametrize("number", NUMBERS)
def test_each_control_of_each_widget_answers(browser, lab, number):
    (path,) = (ROOT / "notebooks").glob(f"{number}*.ipynb")
    book = needed_cells(json.loads(path.read_text("utf-8")))
    with Page(browser, lab, path.stem, book) as page:
        page.run()
        explorers = page.tab.locator(EXPLORER)
        assert explorers.count()
        seconds = {}
        for i in range(explorers.count()):
            explorer = explorers.nth(i)
            explorer.scroll_into_view_if_needed()
            picture = explorer.locator(":scope > .widget-html").first
            assert picture.locator("img, svg").count(), "starts without a picture"
            controls = explorer.locator(":scope > .widget-box").first.locator(":scope > *")
            for j in range(controls.count()):
                before, start = picture.inner_html(), time.monotonic()
                operate(controls.nth(j))
                while picture.inner_html() == before:
                    assert time.monotonic() - start < 20, f"widget {i}, control {j}: no answer"
                    page.tab.wait_for_timeout(10)
                seconds[f"widget {i}, control {j}"] = round(time.monotonic() - start, 3)
        for theme in ("Light", "Dark"):
            page.set_theme(theme)
            for i in range(explorers.count()):
                explorers.nth(i).screenshot(path=SHOTS / f"{number}_{i}_{theme.lower()}.png")
        (SHOTS / f"{number}.json").write_text(json.dumps(seconds, indent=1))
        assert page.errors() == []
        assert max(seconds.values()) < SECONDS, seconds


def test_a_widget_that_was_saved_is_shown_the_day_after(browser, lab):
    cell = (
        "import torch\nfrom vqlib.course import widgets\n"
        "widgets.augmentation_explorer(torch.rand(3, 64, 64).mul(255).byte())"
    )
    with Page(browser, lab, "saved", notebook(cell)) as page:
        page.run()
        page.save()
        page.end_kernel()
        page.open()
        page.tab.locator(".widget-html img").first.wait_for()
        shown = page.tab.locator(".jp-Notebook").inner_text()
        assert "model not found" not in shown and "Run this cell" in shown


TRAINING = """import vqlib
from vqlib.course import plots
from vqlib.lesions import synthetic_dataset

plots.use_style()
options = {"run": "stopped", "size": 64, "epochs": 12, "device": "cpu"}
data = synthetic_dataset(lesions=30)
vqlib.train_vqvae(data, progress=plots.LiveTraining(every=0.2), **options)
print("trained")"""


def test_a_stopped_training_shows_one_line_and_a_finished_one_its_curve(browser, lab):
    with Page(browser, lab, "stopped", notebook(TRAINING)) as page:
        page.command("notebook:run-all-cells")
        page.tab.locator(".jp-OutputArea img").wait_for()
        page.command("notebook:interrupt-kernel")
        error = page.tab.locator(ERROR)
        error.wait_for()
        assert re.fullmatch(r"Stopped at step \d+ of \d+: .*", error.inner_text().strip())
        for state in ("VQ-VAE on cpu", "trained before, loaded"):
            page.tab.evaluate(STEADY)
            page.run()
            texts = page.tab.locator(".jp-OutputArea-child").all_inner_texts()
            assert state in texts[0] and "held out" in texts[-1], texts
