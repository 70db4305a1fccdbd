# The README's two commands, and what developers use beside them. Everything runs in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs ci

.venv/bin/uv:
	$(PYTHON) -m venv .venv && $(BIN)/pip install -q uv

demo: .venv/bin/uv ## a small ablation on bundled photographs
	$(BIN)/uv pip install -q -p .venv -e '.[sr]' && $(BIN)/python examples/sr_ablation.py --preset demo

test: .venv/bin/uv ## the tests
	$(BIN)/uv pip install -q -p .venv -e '.[sr,dev]' && $(BIN)/python -m pytest -n auto --dist loadfile

lint: ## ruff and mypy, as CI runs them
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: .venv/bin/uv ## the site, into site/
	$(BIN)/uv pip install -q -p .venv -e '.[sr,docs]' && $(BIN)/mkdocs build --strict

ci: ## what CI runs
	.ci/run
