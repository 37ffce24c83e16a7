# `make run` and `make test` do all of their own set-up. Variables:
#   PYTHON=python3.12   the interpreter to build the environment with (3.11 or newer)
#   VENV=.venv          where the environment lives
#   TORCH_INDEX=URL     one more package index, e.g. https://download.pytorch.org/whl/cpu for the small CPU build of torch
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.rftkit-installed
SITE_STAMP := $(VENV)/.rftkit-site-installed
VERL_STAMP := $(VENV)/.rftkit-verl-installed
SITE := $(VENV)/lib/python*/site-packages

.PHONY: help setup run test lab site slides record bench pretrain format clean

help:
	@echo "make run       set up, run every notebook at the tiny tier, write build/html"
	@echo "make test      set up, check the code, run the tests"
	@echo "make setup     build the environment alone: what a class does the day before"
	@echo "make lab       open the notebooks in JupyterLab"
	@echo "make site      build the course as a book in HTML from what make run left: build/site/html"
	@echo "make slides    build its slides alone: build/slides"
	@echo "make record    make the recorded runs again that are missing or have other settings; several may run at once"
	@echo "make bench     time the training loops beside plain TRL"
	@echo "make pretrain  rebuild the tiny base model from nothing"
	@echo "make format    put the code in its usual layout"
	@echo "make clean     remove what was built (the environment in $(VENV) stays)"

run: setup
	$(BIN)/python -m rftkit run
	@$(BIN)/python -m rftkit claims
	@echo "Pages: build/html (RFTKIT_HOME sets another folder); above, what became of each claim."

test: setup $(VERL_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lab: setup
	RFTKIT_HOME="$(CURDIR)/build" $(BIN)/jupyter lab notebooks

site: setup $(SITE_STAMP)
	$(BIN)/python -m rftkit.site

slides: setup
	$(BIN)/python -m rftkit.site --slides

record: setup
	$(BIN)/python -m rftkit record

bench: setup
	$(BIN)/python -m rftkit bench

pretrain: setup
	$(BIN)/python -m rftkit pretrain

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find rftkit tests -name __pycache__ -prune -exec rm -rf {} +

setup: $(STAMP)
	@if ls -d $(SITE)/torch-*+cpu.dist-info $(SITE)/torchvision-*.dist-info 2>/dev/null | grep -c . | grep -qx 2; then \
		echo "torchvision is installed in $(VENV) beside the CPU build of torch and breaks it: run $(BIN)/pip uninstall torchvision." >&2; \
		exit 1; \
	fi

$(STAMP): requirements.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "rftkit needs Python 3.11 or newer and $(PYTHON) is not: install it, then run make PYTHON=/path/to/python3.11." >&2; \
		exit 1; \
	}
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@
	@echo "Installed in $(VENV). To see that it works, in a minute or two: $(BIN)/python -m rftkit run 01"

# Beside the environment, not in it: only a test reads verl's configuration, in a process of its own, and is skipped without
$(VERL_STAMP): course/locks/verl.txt $(STAMP)
	@$(BIN)/python -m pip install --quiet --retries 1 --timeout 10 --no-deps --require-hashes --upgrade --target $(VENV)/verl -r $< && touch $@ || \
		echo "verl could not be fetched: the test that its configuration is read will be skipped." >&2

$(SITE_STAMP): course/locks/site.txt $(STAMP)
	$(BIN)/python -m pip install --quiet -c requirements.txt -r course/locks/site.txt
	@touch $@
