# Everything runs from a fresh checkout on Debian/Ubuntu with Python 3.11 and make; no compiler, no system ffmpeg.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SAMPLES ?= .nfs-cache/samples
VIDEO ?=
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: setup demo test test-all check bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 12), sys.version' || \
		{ echo "make: need Python 3.11 or 3.12; run make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# A talking clip through the whole chain to a rendered talking head. VIDEO=my.mp4 uses your own clip.
demo: $(READY)
ifeq ($(VIDEO),)
	$(BIN)/nfs samples fetch $(SAMPLES)
	OMP_NUM_THREADS=1 $(BIN)/python -m jobs.pipeline jobs/configs/pipeline/demo.yaml \
		input=$(SAMPLES)/obama_speech.mp4 'extra_inputs=[$(SAMPLES)]' --run-name demo
else
	OMP_NUM_THREADS=1 $(BIN)/python -m jobs.pipeline jobs/configs/pipeline/demo.yaml \
		'input="$(VIDEO)"' --run-name 'demo-$(basename $(notdir $(VIDEO)))'
endif

# Units, properties, parity, goldens on two processes; then Ray, faults and jobs, one at a time.
test: $(READY)
	$(PYTEST) -n 2 --dist loadgroup -m "not ray and not distributed and not fault and not e2e and not slow"
	$(PYTEST) -m "(ray or distributed or fault or e2e) and not slow"

test-all: test
	$(PYTEST) -m slow

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(PYTEST) -n 2 --dist loadgroup -m "not ray and not distributed and not fault and not e2e and not slow"

bench: $(READY)
	for file in benchmarks/bench_*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
