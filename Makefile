# One word for each job. Everything is installed into .venv; nothing is installed globally.
#
#   PYTHON   the interpreter that .venv is made with (3.11 or newer)
#   DEMO     minilm (quantize and prune with the sweep), prune_minilm (prune with gradients), digits
#            (optimizers)
#   PIP_ARGS more words for pip, for instance an index that has the CPU build of torch

PYTHON      ?= python3
VENV        ?= .venv
DEMO        ?= minilm
PIP_ARGS    ?=
PYTEST_ARGS ?= -n 2

bin    := $(VENV)/bin
python := $(bin)/python
pip    := $(python) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt $(PIP_ARGS)

# Python files are not listed: the install is editable, so only the compiled part goes stale.
native  := CMakeLists.txt pyproject.toml $(shell find cpp/include cpp/cpu cpp/cuda cpp/bindings cpp/cmake -type f 2>/dev/null)
cxx     := $(shell find cpp -name '*.hpp' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)
benchmarks := $(subst /,.,$(basename $(filter-out %_gpu.py,$(wildcard bench/*/bench_*.py))))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test bench lint format types stubs docs clean

help:  ## list these words
	@sed -n 's/^\([a-z]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(VENV)/.demo  ## quantize and prune a real transformer on real text; DEMO=... for others
	$(python) -m demo.$(DEMO)

test: $(VENV)/.dev  ## run every test and every docstring's example
	$(python) -m pytest $(PYTEST_ARGS)

bench: $(VENV)/.bench  ## measure the kernels against their peers
	for name in $(benchmarks); do $(python) -m $$name || exit; done

lint: $(VENV)/.dev  ## ruff and clang-format, changing nothing
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(if $(cxx),$(bin)/clang-format --dry-run --Werror $(cxx))

format: $(VENV)/.dev  ## let ruff and clang-format rewrite the files
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(if $(cxx),$(bin)/clang-format -i $(cxx))

types: $(VENV)/.dev  ## mypy --strict
	$(bin)/mypy

stubs: $(VENV)/.dev  ## rewrite the committed stubs of the compiled module
	rm -rf python/quadric/_core
	$(bin)/pybind11-stubgen quadric._core --output-dir python
	$(bin)/ruff format --quiet python/quadric/_core
	$(bin)/ruff check --fix --quiet python/quadric/_core

docs: $(VENV)/.docs  ## build the documentation into docs/_build/html
	$(python) -m sphinx --quiet -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean:  ## remove what these words have made, .venv included
	rm -rf $(VENV) build dist docs/_build docs/_generated docs/api/generated docs/gallery_out docs/measured demo/out
	find python tests bench demo docs -name __pycache__ -prune -exec rm -rf {} +

# ---- the environment, one stamp for each step ---------------------------------------------------

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	  "quadric needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	@echo "==> making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.tools: constraints.txt | $(VENV)/.created
	@echo "==> installing the build tools"
	@$(pip) scikit-build-core pybind11 cmake ninja
	@touch $@

$(VENV)/.package: $(native) | $(VENV)/.tools
	@command -v $${CXX:-c++} >/dev/null || { \
	  echo "quadric needs a C++ compiler: install one or set CXX" >&2; exit 1; }
	@echo "==> building quadric"
	@PATH="$(abspath $(bin)):$$PATH" $(pip) --no-build-isolation --editable .
	@touch $@

# The package is already there, so this installs the extra's requirements alone.
$(VENV)/.demo $(VENV)/.dev $(VENV)/.bench $(VENV)/.docs: $(VENV)/.%: constraints.txt pyproject.toml | $(VENV)/.package
	@echo "==> installing what \"$*\" needs (the first time this downloads a few hundred MB)"
	@$(pip) "quadric[$*]"
	@touch $@
