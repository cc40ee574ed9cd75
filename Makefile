# One command each. `make setup` is included in all of them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup tune test check bench bench-serving bench-reliability bench-gpu characterise validate results clean

setup: $(READY)

# pip, not uv: the CPU build of torch comes as torch==2.13.0 and nothing else.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@

tune: setup
	$(BIN)/deeprecsys tune dlrm-rmc1

test: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/pytest

check: test

bench: setup
	$(BIN)/python benchmarks/run.py

# What serving costs over HTTP, in 20 minutes: docs/serving.md.
bench-serving: setup
	$(BIN)/python benchmarks/serving.py

# Overload, drain, kill, mutated requests and half an hour's soak, in 50 minutes: docs/reliability.md.
bench-reliability: setup
	$(BIN)/python benchmarks/reliability.py

# docs/characterisation.md of this machine, in 35 minutes.
characterise: setup
	$(BIN)/python benchmarks/characterise.py
	$(BIN)/python benchmarks/characterise.py --hardware

# docs/validation.md of this machine, in 20 minutes.
validate: setup
	$(BIN)/python benchmarks/validate.py

# docs/results.md: the paper's results beside ours, in an hour and a half.
results: setup
	$(BIN)/python benchmarks/paper.py

# Everything that needs an NVIDIA GPU; says so where there is none. Needs a CUDA build of PyTorch.
bench-gpu: setup
	$(BIN)/python benchmarks/gpu.py

clean:
	rm -rf $(VENV)
