# The README's two commands. Each makes .venv from constraints.txt; a second run takes seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := out/demo/demo.onnx
SOURCES := $(shell find native prosparse_export graph_passes models/prosparse_models -name '*.py' -o -name '*.cc' -o -name '*.h' -o -name '*.inc' -o -name 'CMakeLists.txt')

.PHONY: demo test check docs libraries wheels clean

demo: $(DEMO)
	$(BIN)/prosparse validate models/demo $(DEMO)
	$(BIN)/prosparse generate $(DEMO) "The city of Paris is"
	@echo "artifact: $(DEMO), with everything that it needs in $(dir $(DEMO))"

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile  # two at a time, each with one thread of torch

$(DEMO): $(VENV)/installed $(wildcard models/demo/*.json models/demo/*.safetensors)
	$(BIN)/prosparse-export models/demo $@ --overwrite

# Lint, types and import rules: what CI runs after the tests.
check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 & $(BIN)/mypy && wait $$!  # beside each other
	$(BIN)/lint-imports
	find native examples -name '*.h' -o -name '*.c' -o -name '*.cc' -o -name '*.inc' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/python benchmarks/tables.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# The operator library of every platform, into build/libraries: see packaging/libraries.py.
libraries: $(VENV)/ready
	$(BIN)/python -m pip install --quiet -r packaging/requirements.txt
	$(BIN)/python packaging/libraries.py

# Wheels of every platform and the sdist, into dist: see packaging/wheels.py.
wheels: libraries
	$(BIN)/python packaging/wheels.py

docs: $(VENV)/installed-dev
	$(BIN)/mkdocs serve

$(VENV)/ready: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/built: $(VENV)/ready pyproject.toml $(SOURCES)
	rm -rf $(VENV)/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(VENV)/wheel .
	touch $@

$(VENV)/installed: $(VENV)/built
	$(BIN)/python -m pip install -c constraints.txt $(VENV)/wheel/*.whl
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall $(VENV)/wheel/*.whl  # pip keeps one of the same version
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install -c constraints.txt "$$(echo $(VENV)/wheel/*.whl)[dev]"
	touch $@

clean:
	rm -rf $(VENV) out build
