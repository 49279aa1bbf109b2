# Two commands: `make demo` and `make test`.  Each sets up what it needs in .venv first; `make install` does that alone.

PYTHON ?= python3
BIN := .venv/bin
export ONEDNN_PRIMITIVE_CACHE_CAPACITY ?= 16384

.PHONY: demo install test test-all bench bench-profiler bench-growth lint format clean

demo: .venv/installed-embedded
	$(BIN)/wattle demo $(if $(filter 1,$(KEEP)),--keep)

install: .venv/installed-embedded

test: lint
	$(BIN)/pytest -m "not slow and not alone" -n 2 --dist loadgroup
	$(BIN)/pytest -m "not slow and alone"

test-all: test
	$(BIN)/pytest -m slow

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks

bench-profiler: .venv/installed-dev
	$(BIN)/python -m benchmarks latency energy lookup

bench-growth: .venv/installed-dev
	$(BIN)/python -m benchmarks.growth --minutes 90

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/installed-%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Wattle needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Set PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing wattle-nas[$*] into .venv (torch is large: this takes a minute or more) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@
