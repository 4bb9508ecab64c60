# `make demo` shrinks the shipped model end to end; `make test` runs the tests. Both create .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where an NVIDIA GPU answers, the CUDA extra is installed, else the CPU one.
EXTRA := $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
STAMP := $(VENV)/.installed-$(EXTRA)

.PHONY: demo smoke test test-slow test-serving lint clean
demo: $(STAMP)
	$(BIN)/optimize run digits

smoke: $(STAMP)
	$(BIN)/optimize run smoke

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# The models served by a real Triton server; its environment is made once, from the package index, in the cache folder.
test-serving: $(STAMP)
	$(BIN)/python -m pytest -m "slow or not slow" tests/serving

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch goes in first and alone, so that the pinned build is there before anything asks for another.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[$(EXTRA),dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
