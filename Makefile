# make quickstart   train, evaluate and look at a small DeepLabv3+ on drawn scenes (CPU, under three minutes)
# make test         lint and tests
# Both set up .venv by themselves, once; they do it again when pyproject.toml or constraints.txt changes.

PYTHON ?= python3.11
VENV := .venv
READY := $(VENV)/.ready

.PHONY: setup quickstart test lint clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt overrides.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt uv
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python \
	  --constraint constraints.txt --override overrides.txt --editable '.[dev,headless]'
	touch $@

quickstart: $(READY)
	$(VENV)/bin/python train.py +recipe=quickstart

lint: $(READY)
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

test: lint
	$(VENV)/bin/python -m pytest --numprocesses auto $(PYTEST_ARGS)

clean:
	rm -rf $(VENV)
