# One command each. `make setup` is included in all of them.
PYTHON ?= python3
# A folder for each Python that is asked for: `make test PYTHON=python3.12` leaves .venv alone.
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(shell $(PYTHON) -c \
  'import sys; print("%d.%d" % sys.version_info[:2])'))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Modules are compiled when they are first imported, which few of them ever are.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# As many as there are cores; a core that is done takes over what another has before it.
PARALLEL := --numprocesses logical --maxprocesses 8 --dist worksteal
TOOLS := $(VENV)/.tools
LIBRARIES := $(VENV)/.libraries
# The native core is built anew when its sources change.
NATIVE := $(VENV)/.native
SOURCES := $(shell find src/native -name '*.cpp' -o -name '*.h') setup.py
CXX ?= g++
STRICT := -std=c++20 -O1 -g -Wall -Wextra -Werror -Isrc/native

.PHONY: setup tune test check static kernels sanitize fuzz bench bench-serving bench-peers \
  bench-reliability bench-swaps bench-gpu bench-executions bench-native characterise validate results audit clean

setup:
	@$(MAKE) --no-print-directory --jobs 2 $(READY)

# What compiling asks for comes first, so that it goes on while all else is installed.
$(TOOLS): constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools pybind11 numba scipy hypothesis
	touch $@

# torch first, by pip and by itself: so its CPU build comes, and nothing else. recbole last and alone:
# its wheel holds the data of examples/your_model and is never imported, and it asks for much (ray,
# tensorboard), and for another colorlog than constraints.txt has.
$(LIBRARIES): pyproject.toml $(TOOLS)
	$(PIP) torch
	$(BIN)/python requirements.py | $(PIP) -r /dev/stdin
	$(PIP) --no-deps recbole
	touch $@

# What links torch is compiled once torch is there, with the package.
$(NATIVE): $(SOURCES) $(TOOLS)
	DEEPRECSYS_CORE_ALONE=1 $(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

$(READY): $(LIBRARIES) $(NATIVE)
	$(PIP) --no-build-isolation --no-deps -e .
	touch $@

tune: setup
	$(BIN)/deeprecsys tune dlrm-rmc1

# What is measured is measured alone, when all else is done.
test:
	@$(MAKE) --no-print-directory --jobs 2 kernels $(READY)
	@$(MAKE) --no-print-directory static
	$(BIN)/pytest -m "not measures" $(PARALLEL)
	$(BIN)/pytest -m measures

# Before each commit: what needs no engine.
check:
	@$(MAKE) --no-print-directory --jobs 2 kernels $(READY)
	@$(MAKE) --no-print-directory static
	$(BIN)/pytest -m "not measures and not engine" $(PARALLEL)

static: setup
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy

# Compiled once, before processes that run at the same time would each do it.
kernels: $(TOOLS)
	PYTHONPATH=src $(BIN)/python tests/compile_kernels.py

# The core's own tests, under AddressSanitizer and ThreadSanitizer: no Python is needed.
sanitize:
	@mkdir -p build/sanitize
	@for kind in address,undefined thread; do for test in src/native/tests/*_test.cpp; do \
	  echo "$$(basename $$test .cpp), $$kind"; \
	  $(CXX) $(STRICT) -fsanitize=$$kind -fno-sanitize-recover=all \
	    $$test $(wildcard src/native/rules/*.cpp src/native/engine/*.cpp src/native/http/*.cpp) \
	    -pthread -o build/sanitize/test && build/sanitize/test || exit 1; \
	done; done

# What reads clients' bytes by hand, a million times with what is none, in half a minute.
fuzz:
	@mkdir -p build/sanitize
	$(CXX) $(STRICT) -fsanitize=address,undefined -fno-sanitize-recover=all \
	  src/native/tests/http_test.cpp src/native/http/head.cpp src/native/http/keys.cpp \
	  src/native/http/request.cpp -o build/sanitize/fuzz && build/sanitize/fuzz 1000000

bench: setup
	$(BIN)/python benchmarks/run.py

# What the native core costs, in two minutes: docs/decisions/0018-native-core.md.
bench-native: setup
	$(BIN)/python benchmarks/native.py

# What serving costs over HTTP, in 20 minutes: docs/serving.md.
bench-serving: setup
	$(BIN)/python benchmarks/serving.py

# One artifact in-process, over HTTP and under mosec, in 20 minutes, alone: docs/peers.md.
bench-peers: setup
	$(BIN)/python benchmarks/peers.py

# Overload, drain, kill, mutated requests and half an hour's soak, in 50 minutes: docs/reliability.md.
bench-reliability: setup
	$(BIN)/python benchmarks/reliability.py

# New versions under load, many reloads, two models beside each other, in 50 minutes.
bench-swaps: setup
	$(BIN)/python benchmarks/swaps.py

# docs/executions.md of this machine, in 15 minutes.
bench-executions: setup
	$(BIN)/python benchmarks/executions.py

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

# Are there known vulnerabilities in what constraints.txt pins? Before a release; it asks the package
# index about each, and needs nothing of `make setup`: an environment of its own.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip-audit
	build/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

clean:
	rm -rf .venv .venv-* build src/deeprecsys/*.so
