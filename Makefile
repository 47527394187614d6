# make serve: run the host.  make test: run the tests.  make slow: those that take long.  Whatever needs .venv sets it up.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# pip runs only when one of these has changed since it last did
SETUP := pyproject.toml constraints.txt Makefile
EXAMPLES := $(dir $(wildcard examples/plugins/*/pyproject.toml))

.PHONY: serve test slow examples check format bench screenshots fuzz sequences soak eval clean

serve: $(VENV)/serve.done
	$(BIN)/latentwire serve $(ARGS)

test: $(VENV)/dev.done
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

slow: $(VENV)/dev.done
	$(BIN)/pytest -n 2 --dist worksteal -m slow $(ARGS)

# the packages of examples/plugins/, installed as any other and tested by their own tests; from a copy, for building
# leaves folders behind
examples: $(VENV)/dev.done
	@rm -rf $(VENV)/examples && cp -R examples $(VENV)/
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target $(VENV)/examples/site $(addprefix $(VENV)/,$(EXAMPLES))
	PYTHONPATH=$(VENV)/examples/site $(BIN)/pytest -n 2 --dist worksteal --timeout 120 $(VENV)/examples/plugins $(ARGS)

check: $(VENV)/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@# mypy wants a folder with the package's name; the checkout may have any
	@mkdir -p $(VENV)/checked && ln -sfn ../.. $(VENV)/checked/latentwire
	MYPYPATH=$(VENV)/checked:benchmarks $(BIN)/mypy -p latentwire
	MYPYPATH=$(VENV)/checked $(BIN)/mypy --follow-imports=silent examples/plugins/*/*.py
	$(BIN)/pytest -q tests/test_docs.py tests/test_docs_protocol.py

format: $(VENV)/dev.done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# in short forms, some ten minutes; docs/performance.md has the long ones
bench: $(VENV)/serve.done
	$(BIN)/python benchmarks/overhead.py --rounds 5
	$(BIN)/python benchmarks/throughput.py --rounds 2 --clients 1,8
	$(BIN)/python benchmarks/throughput.py --rounds 2 --clients 8 --dtype bfloat16
	$(BIN)/python benchmarks/throughput.py --rounds 2 --clients 8 --mix
	$(BIN)/python benchmarks/first_preview.py --rounds 4
	$(BIN)/python benchmarks/cancel.py --rounds 4
	$(BIN)/python benchmarks/fanout.py
	$(BIN)/python benchmarks/startup.py --rounds 1 --caches warm
	$(BIN)/python benchmarks/hooks.py --rounds 2

# the README's pictures of the page
screenshots: $(VENV)/dev.done
	LATENTWIRE_SCREENSHOTS=docs/images $(BIN)/pytest -q tests/test_page_screenshots.py $(ARGS)

# five minutes of random frames; ARGS="--seconds 60 --seed 7"
fuzz: $(VENV)/dev.done
	$(BIN)/python -m latentwire.tests.trust.fuzz_frames $(ARGS)

# ten minutes of 32 clients that do everything at once, figures as JSON; ARGS='--minutes 3 --seed 7'
soak: $(VENV)/dev.done
	@$(BIN)/python -m latentwire.tests.trust.soak $(ARGS)

# 10,000 steps of random messages, some ten minutes
sequences: $(VENV)/dev.done
	LATENTWIRE_FUZZ_STEPS=$${LATENTWIRE_FUZZ_STEPS:-10000} $(BIN)/pytest -sq tests/trust/test_state_machine.py $(ARGS)

# figures about the embedded model, as JSON; needs Debian's fonts-noto-color-emoji
eval: $(VENV)/dev.done
	@$(BIN)/python -m latentwire.training.evaluate $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "latentwire needs Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "on Debian: apt-get install python3-venv"; exit 1; }

# the first time this fetches torch and takes minutes, so pip shows what it does (not among what eval prints)
$(VENV)/serve.done: $(SETUP) | $(VENV)/bin/pip
	@$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable . >&2
	@touch $@

$(VENV)/dev.done: $(SETUP) | $(VENV)/bin/pip
	@$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev,training]' >&2
	@touch $@ $(VENV)/serve.done
