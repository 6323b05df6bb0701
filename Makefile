# `make demo` and `make test` do all set-up themselves, on a machine with Python 3.10 or newer and a C++
# compiler. CUDA kernels are built when nvcc is on PATH; CUDAARCHS chooses their targets.
PYTHON ?= python3
FASTSAMPLE_CUDA ?= AUTO
CUDAARCHS ?= 80-real;90
VENV := .venv
BIN := $(VENV)/bin
# One build folder per configuration: a folder remembers the options it was made with.
BUILD := build/cuda-$(FASTSAMPLE_CUDA)-$(subst ;,+,$(CUDAARCHS))
# Tests run in one process per core; a module's tests stay in one, since they share what it makes once.
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc -type f)
INSTALLED := $(VENV)/.installed-$(notdir $(BUILD))

.PHONY: demo test test-all lint types format sanitize bench install clean

demo: install
	$(BIN)/fastsample demo --out out/demo.png

test: install
	$(PYTEST) -m "not slow"

# What trains, starts processes or disassembles kernels too.
test-all: install
	$(PYTEST)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/typos
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

types: install
	$(BIN)/pyright

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

# The native code under AddressSanitizer and UndefinedBehaviorSanitizer: a build of its own, CPU only, -O1, which
# the editable install does not see. torch.compile starts processes and compilers that cannot be preloaded.
SANITIZED := build/sanitized
SANITIZED_TESTS ?= tests/native tests/ops tests/planning --ignore tests/ops/test_compile.py

sanitize: install
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -DFASTSAMPLE_SANITIZE=ON \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF \
	  -DSKBUILD_PROJECT_VERSION=0 -DSKBUILD_PROJECT_VERSION_FULL=sanitized
	$(BIN)/cmake --build $(SANITIZED)
	$(BIN)/python .ci/sanitize.py $(SANITIZED) -q -n 0 -m "not slow" $(SANITIZED_TESTS)

bench: install
	$(BIN)/python -m benchmarks.bench_step

install: $(INSTALLED)

$(VENV)/.environment: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt --group dev
	touch $@

$(INSTALLED): $(VENV)/.environment $(SOURCES)
	CUDAARCHS="$(CUDAARCHS)" $(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e . \
	  -C build-dir=$(BUILD) -C cmake.define.FASTSAMPLE_CUDA=$(FASTSAMPLE_CUDA) \
	  -C cmake.define.FASTSAMPLE_WERROR=$(if $(CI),ON,OFF)
	rm -f $(VENV)/.installed-*
	touch $@

clean:
	rm -rf $(VENV) build dist out .pytest_cache .ruff_cache .hypothesis
