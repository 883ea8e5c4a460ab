# ZenML keeps its database and artifacts in the user's own store (`zenml status` shows where), not in this folder: a
# `zenml` command typed in a shell must find the runs that `make run` made. Set ZENML_CONFIG_PATH to keep them elsewhere.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed.stamp

# What the metadata of torch's wheel pins by itself; see requirements.in.
BY_TORCH := triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc \
	nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
	nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx

.DEFAULT_GOAL := help
.PHONY: help run test bench lock install zenml

help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

run: install zenml ## distil the sample: data to verified ONNX student, with a report (runs/latest)
	$(BIN)/zenml pipeline run ted_pipeline

test: install ## every check: style, types, import direction, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

bench: install ## measure speed into benchmarks/results
	$(BIN)/python -m benchmarks

COMPILE := uv pip compile pyproject.toml --python-version 3.11 --no-annotate --custom-compile-command "make lock" \
	$(BY_TORCH:%=--no-emit-package %)

lock: ## resolve requirements.lock and those of the images anew (needs uv)
	$(COMPILE) requirements.in --all-extras --upgrade --output-file requirements.lock
	$(COMPILE) --extra sample --extra cluster --constraint requirements.lock --output-file k8s/images/training.lock

install: $(INSTALLED) ## create .venv from requirements.lock

# Written last, so that an installation that was cut off is done again.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("$(PYTHON) is Python %d.%d; 3.11 to 3.13 are needed: make PYTHON=python3.11" \
		% sys.version_info[:2] if not (3, 11) <= sys.version_info < (3, 14) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# A repository (.zen) fixes where steps are imported from, whatever folder a command is called in.
zenml: install
	$(BIN)/zenml analytics opt-out
	test -d .zen || $(BIN)/zenml init
