PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test test-all lint bench clean

demo: .venv/demo
	$(BIN)/python demo.py

test: .venv/dev
	$(BIN)/python -m pytest -rs -m "not slow and not gpu"

test-all: .venv/dev
	$(BIN)/python -m pytest -rs -m "not gpu"

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python benchmarks/traverse.py

clean:
	rm -rf .venv out/demo

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing fastdirs with torch, ONNX Runtime and OpenVINO into .venv ..."
	$(PIP) --editable '.[cpu]'
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing fastdirs with its development tools into .venv ..."
	$(PIP) --editable '.[dev]'
	@touch $@
