# Two commands on a fresh machine with Python 3.11+:  make speedrun   and   make test
# Both create the environment in $(VENV) first; uv is used where it is installed.

VENV   ?= .venv
PYTHON ?= python3
PRESET ?= cpu
ARGS   ?=
BIN     = $(VENV)/bin

.PHONY: speedrun test check clean

speedrun: $(VENV)/.installed
	$(BIN)/ghostvis speedrun --preset $(PRESET) $(ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ghostvis_plugins ghostvis_cli components stages

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "ghostvis needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV) && uv pip install --compile-bytecode --python $(BIN)/python -e '.[dev]'; \
	else \
		$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet -e '.[dev]'; \
	fi
	@touch $@

clean:
	rm -rf $(VENV)
