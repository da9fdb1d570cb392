# Two commands: `make demo` (see it work) and `make test` (see that it is right). No logic here: recipes only.
PYTHON ?= python3
VENV   ?= .venv
DEMO   ?= demo
BIN     = $(VENV)/bin

.PHONY: demo test install docs lint

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,train,docs,lint]'
	touch $@

install: $(VENV)/.installed

demo: install
	rm -rf $(DEMO)
	$(BIN)/tractode-simulate $(DEMO)/bids --participants 2 --seed 1 --resolution 2.5 --shells 1000:20,2500:40
	$(BIN)/tractode $(DEMO)/bids $(DEMO)/derivatives participant -w $(DEMO)/work --output-spaces MNI152NLin2009aSym --n-streamlines 20000
	$(BIN)/tractode $(DEMO)/bids $(DEMO)/derivatives group -w $(DEMO)/work
	@echo; echo "Reports:"; ls $(CURDIR)/$(DEMO)/derivatives/*.html

test: install
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff format --check bidsapp tests benchmarks docs
	$(BIN)/ruff check bidsapp tests benchmarks docs
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/codespell

docs: install
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html
