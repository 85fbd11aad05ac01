# `make lab` opens the book, `make test` proves it. Both set up .venv by themselves.
# Another Python: make PYTHON=python3.12 lab    Other JupyterLab options: make lab LAB_ARGS="--no-browser --port 8890"
# Another port for the built book: make book-serve BOOK_PORT=8001

PYTHON ?= python3
LAB_ARGS ?=
BOOK_PORT ?= 8000
VENV_PYTHON := .venv/bin/python

# A "python3" kernel that the reader registered for another environment must not win over the one in .venv.
export JUPYTER_PREFER_ENV_PATH := 1

.DEFAULT_GOAL := help
.PHONY: help setup lab check test notebooks book book-serve pdf lint clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

setup: ## create .venv, install everything, fetch the default model
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "set-up: $(PYTHON) is not installed: install Python 3.11 or newer, then run the same command again." >&2; exit 1; }
	@"$(PYTHON)" tools/bootstrap.py

# Containers run as root; bound to this machine and behind its token, JupyterLab may too.
lab: setup ## open chapter 00 in JupyterLab
	@$(VENV_PYTHON) -m jupyterlab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=. --allow-root \
	  --LabApp.default_url=/lab/tree/chapters/00_start_here.ipynb $(LAB_ARGS)

# Workers with two torch threads each would fight over the cores. tests/conftest.py puts what is slow first and says
# which tests stay on one worker: those of one file, and of one notebook. Where bytecode is not to be written, as some
# containers have it, each worker, and each Python that a test starts, would compile every file of the project again.
PYTEST := PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n logical \
  --dist loadfile --no-loadscope-reorder --doctest-modules --nbval --nbval-current-env --nbval-cell-timeout=300

# For daily work: no browser, no built book, a quarter of what properties draw, and of the chapters and of the slowest
# tests those that something changed for since the main branch: see tests/helpers/draws.py.
check: lint ## check style, run unit tests, quick property tests, doctests and changed chapters: minutes
	@changed=$$($(VENV_PYTHON) tools/changed_chapters.py) && \
	  TESTS_DRAW_ONE_IN=4 $(PYTEST) --ignore=tests/browser --ignore-glob='tests/test_book_*' \
	  tests pagedattn_lab $$changed

# The tests in tests/browser skip where neither Chromium nor Chrome is installed; with REQUIRE_BROWSER=1 they fail.
test: setup ## run unit tests, property tests, doctests, every chapter, and all of it in a browser
	@TESTS_DRAW_ONE_IN= $(PYTEST)

notebooks: setup ## execute every chapter again and store its outputs
	@$(VENV_PYTHON) tools/notebooks.py

# Nothing is executed: the book shows the outputs that the chapters store. A warning is an error.
book: setup ## build the book into build/book
	@$(VENV_PYTHON) -m sphinx -W -n --keep-going -q -b html -c book . build/book
	@echo "The book is in build/book: open build/book/index.html, or run make book-serve."

book-serve: book ## build the book and show it on http://127.0.0.1:8000
	@$(VENV_PYTHON) -m http.server --bind 127.0.0.1 --directory build/book $(BOOK_PORT)

pdf: book ## build the book and print it with Chromium into build/pagedattention.pdf
	@$(VENV_PYTHON) tools/book.py build/book build/pagedattention.pdf

lint: setup ## check style and formatting, chapters included, and the types of the half without torch
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m mypy

clean: ## remove .venv and every cache in this folder; the downloaded model stays
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist book/api *.egg-info chapters/.ipynb_checkpoints
	find pagedattn_lab tests tools chapters -name __pycache__ -type d -prune -exec rm -rf {} +
