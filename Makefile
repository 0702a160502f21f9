# Everything works on a fresh machine with Python 3.10+ and a C++ compiler. nvcc and a GPU are used
# if they exist.
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
# An exact version, installed first: a plain `torch` may download gigabytes of CUDA packages that a
# CPU machine does not need.
TORCH ?= torch==2.13.0
STAMP := $(VENV)/.installed
BUILD_PACKAGES := "scikit-build-core>=0.10" "pybind11>=2.13" "cmake>=3.24" ninja

# make fuzz: seconds of each target, and the engine, `seeded` or `atheris`.
SECONDS ?= 60
ENGINE ?= seeded
SEED ?= 0

# make sanitize: processes of pytest
WORKERS ?= 2

# The lowest supported versions, in a virtual environment of their own. Triton 3.6's interpreter
# needs numpy < 2.4.
FLOOR ?= .venv-floor
FLOOR_PYTHON ?= python3
FLOOR_PIP := $(FLOOR)/bin/python -m pip --disable-pip-version-check -q
FLOOR_PACKAGES := "torch==2.11.0" "triton==3.6.0" "numpy<2.4"
FLOOR_WHEEL ?=
FLOOR_TESTS := tests/ops/test_triton_sizes.py tests/test_all_in_triton.py \
  tests/ops/test_tracing.py tests/test_traced_model.py
# The virtual environment from which a GPU machine is packed: its Python and the same versions.
GPU ?= .venv-gpu
GPU_PYTHON ?= python3.12
GPU_PIP := $(GPU)/bin/python -m pip --disable-pip-version-check -q
TEST_PACKAGES := pytest pytest-timeout pytest-xdist hypothesis pillow safetensors tqdm \
  huggingface_hub typer av scipy onnx onnxscript onnxruntime

.PHONY: setup demo test test-slow faults test-idioms test-floor fuzz sanitize bench lint format \
  build clean floor-packages gpu-setup pack-gpu dry-run generated pictures docs docs-serve

setup: $(STAMP)

$(STAMP): pyproject.toml CMakeLists.txt
	test -x $(PY) || $${PYTHON:-python3} -m venv $(VENV)
	$(PIP) install -U pip
	$(PY) -c "import torch" 2>/dev/null || $(PIP) install "$(TORCH)"
	$(PIP) install $(BUILD_PACKAGES)
	$(PIP) install --no-build-isolation -e ".[test,dev,docs,triton]"
	touch $@

build: $(STAMP)  ## rebuild the native module after a change
	$(PIP) install --no-build-isolation --no-deps -e .

demo: $(STAMP)  ## track three objects through the example clip; write masks and an overlay
	$(VENV)/bin/sam2-fast track examples/clip.mp4 --prompts examples/clip_prompts.json \
	  --output outputs/demo --overwrite

test: $(STAMP)
	$(PY) -m pytest -n 2 --dist worksteal -q

test-slow: $(STAMP)
	$(PY) -m pytest -q -m slow --timeout 1800

faults: $(STAMP)  ## an error at every operation of calls on sessions, an interrupt at every line
	$(PY) -m pytest -q -m slow --timeout 3000 tests/reliability

test-idioms: $(STAMP)  ## scripts of other programs, with this and the official package
	$(PY) -m pytest -q -m slow --timeout 1800 tests/compat/test_idioms.py

fuzz: $(STAMP)  ## mutated files through every reader; SECONDS or EXECUTIONS of each, TARGET, SEED
	$(PIP) install coverage $(filter atheris,$(ENGINE))
	$(PY) -m tests.fuzz.run --seconds $(SECONDS) --engine $(ENGINE) --seed $(SEED) \
	  $(addprefix --executions ,$(EXECUTIONS)) $(addprefix --target ,$(TARGET))

sanitize: $(STAMP)  ## tests of kernels and bindings with AddressSanitizer and UBSan
	$(PY) -m tools.sanitize --workers $(WORKERS)

$(FLOOR)/.packages: Makefile
	test -x $(FLOOR)/bin/python || $(FLOOR_PYTHON) -m venv $(FLOOR)
	$(FLOOR_PIP) install -U pip
	$(FLOOR_PIP) install $(FLOOR_PACKAGES) $(TEST_PACKAGES)
	touch $@

floor-packages: $(FLOOR)/.packages

# FLOOR_WHEEL: a wheel of this tree; without it, one is built
test-floor: $(FLOOR)/.packages  ## tests with the lowest supported versions
	$(FLOOR_PIP) install --no-deps --force-reinstall $(or $(FLOOR_WHEEL),.)
	rm -rf build/floor && mkdir -p build/floor
	cp -r tests tools benchmarks examples pyproject.toml build/floor/
	cd build/floor && $(abspath $(FLOOR))/bin/python -m pytest -n 2 --dist worksteal -q \
	  $(FLOOR_TESTS)
	cd build/floor && $(abspath $(FLOOR))/bin/python -m tools.dry_run --check

dry-run: $(FLOOR)/.packages  ## replace the table of what the real models launch
	$(FLOOR_PIP) install --no-deps --force-reinstall $(or $(FLOOR_WHEEL),.)
	rm -rf build/floor && mkdir -p build/floor && cp -r tools build/floor/
	cd build/floor && $(abspath $(FLOOR))/bin/python -m tools.dry_run \
	  --json $(abspath tools/gpu/dry_run.json)

$(GPU)/.installed: Makefile
	test -x $(GPU)/bin/python || $(GPU_PYTHON) -m venv $(GPU)
	$(GPU_PIP) install -U pip
	$(GPU_PIP) install $(FLOOR_PACKAGES) $(TEST_PACKAGES)
	$(GPU_PIP) install $(BUILD_PACKAGES)
	touch $@

gpu-setup: $(GPU)/.installed

pack-gpu: $(GPU)/.installed  ## pack what benchmarks.first_light needs on a GPU machine into .gpu
	$(GPU)/bin/python -m tools.pack_gpu

generated: $(STAMP)  ## files that follow from the sources: floor plan, op names, status, chart
	$(PY) -m tools.floor_plan --write
	$(PY) -m tools.op_names --write
	$(PY) -m tools.official_configs --write
	$(PY) -m tools.status --write
	$(PY) -m tools.readme --write
	$(PY) -m tools.program_table --write
	$(PY) -m tools.pictures

pictures: $(STAMP)  ## the moving picture and the still of the documents, by the shipped commands
	$(VENV)/bin/sam2-fast track examples/clip.mp4 --prompts examples/clip_prompts.json \
	  --weights nano --device cpu --overlay-format webp --overwrite --output build/pictures/track
	$(VENV)/bin/sam2-fast segment examples/clip_frames/00000.jpg --weights nano --device cpu \
	  --object 1:box=1,172,79,251:point=40,212 --object 2:box=340,118,440,218 \
	  --object 3:point=301,50:point=301,100,0 --overwrite --output build/pictures/segment
	cp build/pictures/track/overlay.webp docs/assets/tracked.webp
	cp build/pictures/segment/overlay.png docs/assets/segmented.png

docs: $(STAMP)  ## the documentation site, into build/site; strict
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build -q
	$(PY) -m tools.check_site

docs-serve: docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs serve

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
