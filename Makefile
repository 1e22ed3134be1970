PYTHON ?= python

.PHONY: help install check lint test slow docs bench zoo demo-weights clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install:  ## install fxprune and everything its tests need
	$(PYTHON) -m pip install -e '.[demo,test]'

check: lint test  ## everything that must pass before a commit

lint:  ## style and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test:  ## the tests
	$(PYTHON) -m pytest

slow:  ## the tests that take minutes
	$(PYTHON) -m pytest -m slow

docs:  ## bring the generated parts of docs/ up to date
	$(PYTHON) docs/generate.py

bench:  ## measure accuracies and times, and write them into docs/benchmarks.md (hours; can be stopped)
	$(PYTHON) -m benchmarks.accuracy --resume --seeds 0 1 2 --write
	$(PYTHON) -m benchmarks.ablation --resume --write
	$(PYTHON) -m benchmarks.analysis --write
	$(PYTHON) -m benchmarks.cost_of_fast --write
	$(PYTHON) -m benchmarks.quantize --resume --write
	$(PYTHON) -m benchmarks.latency --resume --write
	$(PYTHON) -m benchmarks.precrop_widths --write
	$(PYTHON) -m benchmarks.precrop --resume --write

zoo:  ## prune some 300 networks of torchvision and timm, exactly or with a reason, into docs/zoo.md (hours; can be stopped)
	$(PYTHON) -m benchmarks.zoo --resume --write

demo-weights:  ## train the demo's network anew (a minute)
	$(PYTHON) -m fxprune.demo.train

clean:  ## remove what the tools leave behind
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
