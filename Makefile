# Each target prepares .venv by itself, once; `make demo` and `make test` need Python 3.11+ and make alone.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test test-full test-gpu check proto bench clean

help:
	@echo "make demo       the bundled model on two ranks behind gRPC, on this machine"
	@echo "make test       every test that needs no GPU, but for the long matrix"
	@echo "make test-full  that matrix too"
	@echo "make test-gpu   the tests on GPUs, with the python at hand (PYTHON=python3)"
	@echo "make check      lint, format, types, import contracts"
	@echo "make proto      generate the gRPC code anew"
	@echo "make bench      latency, throughput, tensor parallelism, idle cost"
	@echo "make clean      remove what these have made"

demo: $(READY)
	$(BIN)/headway demo --tp 2

# What keeps hostile input out must not rest on assert: these tests pass without assertions, too. (pytest
# rewrites those in test files into plain ifs, so they still hold; the warning is about all the others.)
HOSTILE := tests/e2e/test_bad_input.py tests/e2e/test_bad_requests.py tests/e2e/test_front_end_port.py \
	tests/unit/test_chat_template.py tests/unit/test_core.py tests/unit/test_folder.py \
	tests/unit/test_limits_proto.py tests/unit/test_link_messages.py

test: $(READY)
	$(BIN)/pytest
	$(BIN)/python -O -m pytest -W ignore::pytest.PytestConfigWarning $(HOSTILE)

test-full: $(READY)
	$(BIN)/pytest -m "not gpu"

test-gpu:
	PYTHONPATH=runtime:kernels $(PYTHON) -m pytest -m gpu tests/gpu

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

proto: $(READY)
	$(BIN)/python proto/generate.py

bench: $(READY)
	$(BIN)/headway bench latency --model demo
	$(BIN)/headway bench throughput --model demo
	$(BIN)/headway bench tp --model demo
	$(BIN)/headway bench idle --model demo

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .out build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@echo "Preparing .venv (once; a minute or two)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
