# Everything works on a fresh machine with Python 3.10+ and a C++ compiler; nvcc and a GPU are used where they exist.
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
# torch first and exactly: a plain `torch` may bring gigabytes of CUDA packages that a CPU machine does not need
TORCH ?= torch==2.13.0
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-slow bench lint format build clean

setup: $(STAMP)

$(STAMP): pyproject.toml CMakeLists.txt
	test -x $(PY) || $${PYTHON:-python3} -m venv $(VENV)
	$(PIP) install -U pip
	$(PY) -c "import torch" 2>/dev/null || $(PIP) install "$(TORCH)"
	$(PIP) install "scikit-build-core>=0.10" "pybind11>=2.13" "cmake>=3.24" ninja
	$(PIP) install --no-build-isolation -e ".[test,dev,triton]"
	touch $@

build: $(STAMP)  ## rebuild the native module after a change
	$(PIP) install --no-build-isolation --no-deps -e .

demo: $(STAMP)  ## the main job on the shipped clip: track three objects, write masks and an overlay
	$(VENV)/bin/sam2-fast track examples/clip.mp4 --prompts examples/clip_prompts.json --output outputs/demo

test: $(STAMP)
	$(PY) -m pytest -n 2 --dist worksteal -q

test-slow: $(STAMP)
	$(PY) -m pytest -q -m slow --timeout 1800

bench: $(STAMP)
	$(PY) -m benchmarks.run

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	git ls-files '*.cpp' '*.cu' '*.h' '*.cuh' | xargs $(VENV)/bin/clang-format --dry-run -Werror

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	git ls-files '*.cpp' '*.cu' '*.h' '*.cuh' | xargs $(VENV)/bin/clang-format -i

clean:
	rm -rf build dist outputs
