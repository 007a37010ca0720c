# Two commands matter: `make demo` and `make test`. Each does all the set-up it needs, once: a virtual environment in .venv,
# torch, the native op, mrt itself. All that is needed beforehand is Python 3.11 or newer (a C++ compiler makes the op fast).
#
#   make PYTHON=/path/to/python3.12 demo     another interpreter
#   make DEMO="--seeds 0 1 2" demo           other options for `mrt demo`

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3 python; do \
    $$name -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$name; break; }; done)

# What the native build needs before mrt can be installed, read from pyproject.toml so that no version is written twice.
BUILD_NEEDS = $(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
    print(*(p["build-system"]["requires"] + ["ninja"] + [d for d in p["project"]["dependencies"] if d.startswith("torch")]), sep="\n")'
SOURCES := pyproject.toml setup.py mrt/__init__.py $(shell find csrc -type f 2>/dev/null)

.PHONY: help demo demo-quick demo-from-scratch demo-results small-source synth-source test soak lint docs build bench wheel clean

help:
	@echo "make demo                a detector goes from clear weather into fog, on the CPU"
	@echo "make demo-quick          the same in a smaller world, in minutes"
	@echo "make test                every test"
	@echo "make demo-from-scratch   the demo, source detector included: an hour more"
	@echo "make demo-results        the demo's figures: five seeds and their oracles"
	@echo "make small-source        the source detector of preset small, which ships with mrt, again"
	@echo "make synth-source        that of the presets demo, synth2foggy, synth2night and synth2rain, again: an hour"
	@echo "make wheel               dist/: a wheel for the CPU that needs no compiler, and the sources as .tar.gz"
	@echo "make docs                the documentation as a site, in build/site"
	@echo "make soak                kills, failing disks, flipped bits and mutated files by the thousand, the wheel in an empty environment: hours"
	@echo "make lint | build | bench | clean"

demo: $(VENV)/.installed
	$(BIN)/mrt demo $(DEMO)

demo-quick: $(VENV)/.installed
	$(BIN)/mrt demo --quick $(DEMO)

demo-from-scratch: $(VENV)/.installed
	$(BIN)/mrt demo --from-scratch $(DEMO)

demo-results: $(VENV)/.installed
	$(BIN)/mrt demo --seeds 0 1 2 3 4 --oracle --record mrt/presets/demo-results.json $(DEMO)

# Remakes the source detector of preset small.
small-source: $(VENV)/.installed
	test -f data/synthetic-clear/dataset.json || $(BIN)/mrt prepare-data synthetic
	$(BIN)/mrt pretrain-source --preset small --name small-source --ship mrt/weights/small-source.safetensors

# Remakes the source detector of the presets demo, synth2foggy, synth2night and synth2rain, in an hour on two cores.
synth-source: $(VENV)/.installed
	test -f data/synth-clear/dataset.json || $(BIN)/mrt prepare-data synthetic --benchmark
	$(BIN)/mrt pretrain-source --preset synth2foggy --name synth-source --ship mrt/weights/synth-source.safetensors

# Two halves beside each other, a core each; what the first prints follows what the second does.
FIRST := tests/engine tests/parts tests/ablate tests/models
SECOND = tests $(addprefix --ignore=,$(FIRST))

test: $(VENV)/.installed
ifdef TESTS
	$(BIN)/python -m pytest $(TESTS)
else
	@export OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}"; code=0; \
	$(BIN)/python -m pytest $(FIRST) > $(VENV)/tests.log 2>&1 & first=$$!; \
	$(BIN)/python -m pytest $(SECOND) || code=$$?; \
	wait $$first || code=$$?; \
	cat $(VENV)/tests.log; exit $$code
endif

soak: $(VENV)/.installed wheel
	$(BIN)/python -m pytest -m soak $(TESTS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .

# Strict: a dead link, or a page that is in no menu, fails. To read while writing: $(BIN)/mkdocs serve
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Written to build/site/index.html"

build: $(VENV)/.installed

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.ms_deform_attn

# Built from the unpacked sdist, not from here, so that one is known to be complete. torch's libraries stay out of the wheel: the program has
# loaded those of the torch beside it when it loads the kernels. auditwheel names the oldest glibc that will do, which depends on the machine's.
wheel: $(VENV)/.wheel-needs
	@echo "Building the sdist and, from it, the wheel: a minute. Details: $(VENV)/wheel.log"
	@rm -rf build/wheel dist/mrt_detection-*
	@export PATH="$(abspath $(BIN)):$$PATH" MRT_BUILD=cpu SOURCE_DATE_EPOCH="$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || date +%s)}"; \
	{ python -m build --no-isolation --outdir build/wheel . && \
	  auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' --wheel-dir dist build/wheel/*.whl; } > $(VENV)/wheel.log 2>&1 || \
	{ tail -n 40 $(VENV)/wheel.log >&2; grep -ho 'mrt build:.*' $(VENV)/wheel.log >&2; echo "There is no wheel: see above." >&2; exit 1; }
	@mv build/wheel/*.tar.gz dist/
	@grep -ho 'mrt build:.*' $(VENV)/wheel.log
	@ls -l dist/mrt_detection-*

clean:
	rm -rf build *.egg-info mrt/*.so .pytest_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.installed

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "mrt needs Python 3.11 or newer with its venv module (on Debian and Ubuntu: the package python3-venv); \
	or name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "Setting up $(VENV): once, a few minutes, most of them torch's download."
	"$(PYTHON)" -m venv $(VENV)
	touch $@

$(VENV)/.needs: $(VENV)/.created pyproject.toml
	$(BUILD_NEEDS) > $@.txt
	$(BIN)/python -m pip install -r $@.txt
	touch $@

# What `make wheel` needs besides: the extra of that name.
$(VENV)/.wheel-needs: $(VENV)/.needs
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["wheel"], sep="\n")' > $@.txt
	$(BIN)/python -m pip install -r $@.txt
	touch $@

# Editable: Python changes need no new install; a change of the native sources or the metadata does.
$(VENV)/.installed: $(VENV)/.needs $(SOURCES)
	@echo "Installing mrt and building its native op: a minute or two. Details: $(VENV)/install.log"
	@$(BIN)/python -m pip install -v --no-build-isolation -e '.[demo,dev]' > $(VENV)/install.log 2>&1 || { tail -n 40 $(VENV)/install.log >&2; exit 1; }
	@grep -ho 'mrt build:.*' $(VENV)/install.log || true
	touch $@
