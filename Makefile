# Two commands do everything on a fresh machine: `make run` (the main job) and `make test` (all checks and tests).
# Both make `.venv` with what they need if it is not there yet.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml CMakeLists.txt $(wildcard kernbench/_native/*.cpp kernbench/_native/*.h)

.PHONY: run test check versions bench clean

run: .venv/.core
	$(BIN)/kernbench run benches/tp_mlp.py --topology topologies/ahbm-4sip.yaml

test: check versions
	$(BIN)/python -m pytest

check: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Older versions of Triton for tests/kernels/test_triton_versions.py, which skips those that cannot be had here.
versions: .venv/.test
	$(BIN)/python tests/kernels/triton_versions.py

bench: .venv/.test
	$(BIN)/python benches/simulator_speed.py

$(BIN)/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

# Editable, so that an edit to Python needs no reinstall; a change to the C++ sources rebuilds.
.venv/.core: $(BIN)/pip $(SOURCES)
	$(BIN)/pip install --quiet --editable ".[plot]"
	@touch $@

# torch first and by its exact version, so that nothing else can pull a larger build of it.
.venv/.test: $(BIN)/pip $(SOURCES)
	$(BIN)/pip install --quiet "torch==2.13.0"
	$(BIN)/pip install --quiet --editable ".[test]"
	@touch $@ .venv/.core

clean:
	rm -rf .venv build dist runs
