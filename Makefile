# Commands of the workbook; `make` without a command lists them.
# Needs bash, GNU make and Python 3.11 or newer.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
VENV ?= .venv
PY := "$(VENV)/bin/python"
STAMP := $(VENV)/.installed

# Notebook kernels run in notebooks/. A relative VQLIB_DATA or VQLIB_HOME is relative to the folder
# where make was called, or, under `make -C folder` if it does not exist there, to this folder.
define absolute_paths
for name in VQLIB_DATA VQLIB_HOME; do \
  case "$${!name:-}" in \
    ''|/*|synthetic) ;; \
    *) base="$${PWD_AT_CALL:-$$PWD}"; \
       [ -e "$$base/$${!name}" ] || [ ! -e "$$PWD/$${!name}" ] || base="$$PWD"; \
       export "$$name=$$base/$${!name}" ;; \
  esac; \
done
endef
export PWD_AT_CALL := $(PWD)

# All outputs are compared, except images and the outputs of tagged cells.
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=1200

.NOTPARALLEL:
.PHONY: help workbook lab site student instructor grade test lint unit nbval solved browser mutants \
  versions refresh set-repo clean

help: ## list the commands
	@echo "make <command>, where <command> is"
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' Makefile | while IFS='|' read -r name text; do \
	  printf '  %-10s %s\n' "$$name" "$$text"; done
	@echo "Set VQLIB_DATA=/path/to/images to use real lesions instead of synthetic ones."

workbook: $(STAMP) ## run all notebooks and write them, with HTML pages, to build/workbook/ [NB=02]
	@$(absolute_paths); $(PY) .ci/execute.py workbook $(if $(NB),--only "$(NB)")

lab: $(STAMP) ## open your copies of the notebooks in JupyterLab [LAB="--no-browser --port=8889"]
	@$(PY) .ci/lab.py
	@$(absolute_paths); $(PY) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" \
	  --LabApp.app_settings_dir="$(CURDIR)/.ci/lab" \
	  --LabApp.default_url=/lab/tree/my_notebooks/02_vqvae_training.ipynb $(LAB)

site: $(STAMP) ## build the notebooks as a website to read, without running them, in build/site/
	@$(PY) .ci/build_site.py

student: $(STAMP) ## copies of the notebooks without outputs and solutions, in build/student/
	@$(PY) .ci/copies.py student

instructor: $(STAMP) ## copies with solutions, typical mistakes and teaching notes, in build/instructor/
	@$(PY) .ci/copies.py instructor

grade: $(STAMP) ## check the tasks of handed-in notebooks [FOLDER=handed-in]
	@$(PY) .ci/grade.py "$(FOLDER)"

test: lint unit nbval solved browser ## all tests: lint, units, notebooks compared and solved, widgets

lint: $(STAMP) ## check code style, format and imports
	@echo "== lint"
	@$(PY) -m ruff check --quiet .
	@mkdir -p build
	@"$(VENV)/bin/lint-imports" --no-cache >build/imports.txt 2>&1 || { cat build/imports.txt; exit 1; }
	@$(PY) -m ruff format --check --quiet . || { echo "Fix: $(VENV)/bin/python -m ruff format ."; exit 1; }

unit: $(STAMP) ## unit tests only
	@echo "== unit tests"
	@$(PY) -m pytest -q --durations=5 --durations-min=2 \
	  --junitxml=build/reports/unit.xml tests

nbval: $(STAMP) ## compare the notebooks with their committed outputs only
	@echo "== notebooks (nbval)"
	@rm -rf build/test && mkdir -p build/test
	@env VQLIB_DATA=synthetic VQLIB_HOME="$(CURDIR)/build/test" $(PY) -m pytest -q $(NBVAL) \
	  --durations=5 --durations-min=2 --junitxml=build/reports/nbval.xml "$(CURDIR)/notebooks" \
	  2> >(grep -v "Kernel is running over TCP" >&2)

solved: $(STAMP) ## run all notebooks with the solutions of their tasks filled in [NB=02]
	@echo "== notebooks with solutions"
	@$(PY) .ci/execute.py solved $(if $(NB),--only "$(NB)")

browser: $(STAMP) ## drive all widgets in Chromium; screenshots in build/browser/
	@echo "== widgets in a browser"
	@$(PY) -m pytest -q -rs -m browser --junitxml=build/reports/browser.xml tests/test_browser.py

mutants: $(STAMP) ## mutation tests of quantizer, masked convolutions and samplers (an hour; resumable)
	@OMP_NUM_THREADS=1 "$(VENV)/bin/mutmut" run --max-children 2
	@"$(VENV)/bin/mutmut" results | sort >mutants/results.txt
	@"$(VENV)/bin/mutmut" export-cicd-stats

versions: ## test with other versions of the dependencies: ENV=floors, newest or colab [NB=02]
	@"$(PYTHON)" .ci/versions.py "$(ENV)" $(if $(NB),--only "$(NB)")

refresh: $(STAMP) ## run the committed notebooks in place, with synthetic lesions [NB=02]
	@$(PY) .ci/execute.py refresh $(if $(NB),--only "$(NB)")

set-repo: ## write the repository's address into all files: make set-repo REPO=owner/name
	@"$(PYTHON)" .ci/set_repo.py "$(REPO)"

clean: ## remove all generated files except the environment
	@rm -rf build mutants .ruff_cache .pytest_cache ./*.egg-info
	@find . -path "./$(VENV)" -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) \
	  -exec rm -rf {} +
	@echo "Removed build/ and caches. $(VENV)/ is kept; to reinstall, run: rm -rf $(VENV)"

# Created only after a successful installation, and renewed when pyproject.toml changes.
$(STAMP): pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is required, but '$(PYTHON)' is: $$("$(PYTHON)" --version 2>&1 | head -1)." >&2; \
	  echo "Fix: install it and pass its name, e.g. make workbook PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no venv module. Fix on Debian or Ubuntu: sudo apt install python3-venv" >&2; \
	  exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || { echo "Creating $(VENV)/"; \
	  if [ -f "$(VENV)/pyvenv.cfg" ]; then clear=--clear; else clear=; fi; \
	  "$(PYTHON)" -m venv $$clear "$(VENV)"; }
	@echo "Installing the project into $(VENV)/ (once; takes a few minutes and several GB with PyTorch)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -e ".[notebook,dev,site]"
	@touch "$@"
