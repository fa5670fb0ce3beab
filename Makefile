# make demo   the whole pipeline on the embedded world; opens nothing, ends with runs/demo/report.html
# make test   lint, types, layers, and the test suite
# Both make their own virtual environment first.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
INSTALLED := $(VENV)/installed

.PHONY: help demo test lint clean

help:
	@sed -n 's/^# //p' Makefile

demo: $(INSTALLED)
	$(BIN)/python jobs/pipeline.py --config jobs/experiments/demo.yaml --run_dir runs/demo

test: lint
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# torch by itself and first: a plain requirement would take a CUDA build of several gigabytes. vLLM asks for torchvision and
# its like, whose CUDA builds break every import of transformers beside a CPU torch; nothing here needs them.
$(INSTALLED): pyproject.toml constraints/cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints/cpu.txt)"
	$(BIN)/pip install --quiet -c constraints/cpu.txt -e ".[cpu,tracking,test,bench]"
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache .hypothesis
