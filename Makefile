# make demo   the whole pipeline on the embedded world; opens nothing, ends with runs/demo/report.html
# make cluster-up   a Ray cluster of two nodes on this machine, with token authentication (clusters/local.yaml)
# make cluster-down ends it
# make audit | sbom  installed versions against published advisories; sbom.json, what is installed (CycloneDX)
# make test   lint, types, layers, and the test suite
# All make their own virtual environment first.

SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
INSTALLED := $(VENV)/installed
TOOLS := .venv-tools/bin

.PHONY: help demo cluster-up cluster-down test lint audit sbom clean

help:
	@sed -n 's/^# //p' Makefile

demo: $(INSTALLED)
	$(BIN)/python jobs/pipeline.py --config jobs/experiments/demo.yaml --run_dir runs/demo

cluster-up cluster-down: $(INSTALLED)
	$(BIN)/scpo_ray cluster $(@:cluster-%=%) clusters/local.yaml

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

audit sbom: $(INSTALLED)
	test -x $(TOOLS)/pip-audit || { $(PYTHON) -m venv $(TOOLS:/bin=) && $(TOOLS)/pip install --quiet pip-audit cyclonedx-bom; }
	$($@)

audit = set -o pipefail; $(BIN)/pip freeze --exclude-editable | sed "s/+cpu//" | $(TOOLS)/pip-audit --strict --no-deps --disable-pip --requirement /dev/stdin
sbom = $(TOOLS)/cyclonedx-py environment $(BIN)/python --output-file sbom.json

clean:
	rm -rf $(VENV) .venv-tools runs .pytest_cache .ruff_cache .mypy_cache .hypothesis
