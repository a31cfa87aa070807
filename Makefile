# make demo   environment, then five real tasks in seconds and a report
# make test   environment with the developers' tools, then the test suite
# make thorough | lint | types | ci | clean

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Small networks gain nothing from threads; processes do: every core, up to four.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test thorough lint types ci clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	$(BIN)/clnp demo

test: $(VENV)/.installed-dev
	$(PYTEST)

# More cases of what `make test` has some of.
thorough: $(VENV)/.installed-dev
	$(PYTEST) -m thorough

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

ci:
	bash .ci/run

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache

# The environment is made again only when what it is made of has changed. The package itself is installed editable: a
# change of its source needs no new installation.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "clnp needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "cannot make $(VENV): '$(PYTHON) -m venv' failed (on Debian: apt install python3-venv)." >&2; exit 1; }
