# Two commands are enough: `make demo` draws a picture, `make test` runs the tests.
# Each makes its own environment in .venv the first time.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test lint unit browser bench assets clean help

help:
	@echo "make demo    draw a picture with two shipped LoRAs"
	@echo "make test    lint, types and all tests"
	@echo "make lint    ruff and mypy only"
	@echo "make bench   run the benchmarks; results go to benchmarks/results/"
	@echo "make assets  remake the shipped adapters and tables (a GPU helps)"

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; several minutes where torch has to be fetched)" >&2
	@($(BIN)/python -m pip install --upgrade pip && $(BIN)/python -m pip install --editable ".[dev]") \
		> $(VENV)/install.log 2>&1 || { tail -n 20 $(VENV)/install.log >&2; exit 1; }
	@touch $(STAMP)

demo: $(STAMP)
	@mkdir -p out
	@$(BIN)/loracomp compose "a watermelon emoji, blobs style" --lora watermelon --lora blobs \
		--method merge --seed 4 --size 128 --out out/demo.png > /dev/null
	@echo "$(CURDIR)/out/demo.png"
	@echo "a watermelon (subject LoRA) drawn in the blobs style (style LoRA), composed by loracomp"

lint: $(STAMP)
	$(BIN)/ruff check loracomp tests benchmarks
	$(BIN)/ruff format --check loracomp tests benchmarks
	$(BIN)/mypy

# The page's tests need a Chromium: installed where that is allowed, named where it is not.
BROWSERS := chromium chromium-browser google-chrome-stable google-chrome

browser:
	@for name in $(LORACOMP_CHROMIUM) $(BROWSERS); do command -v $$name > /dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "installing chromium for the page's tests (once)" >&2; \
		{ apt-get update -qq && apt-get install -yqq --no-install-recommends chromium; } > /dev/null 2>&1 && exit 0; \
	fi; \
	echo "no Chromium: the page's tests are skipped here, and fail where CI=true; run 'apt-get install chromium'" \
		"or set LORACOMP_CHROMIUM to a browser's program" >&2

unit: $(STAMP) browser
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test: lint unit

bench: $(STAMP)
	$(BIN)/python -m benchmarks.stacked
	$(BIN)/python -m benchmarks.doctor
	$(BIN)/python -m benchmarks.merge
	$(BIN)/python -m benchmarks.accelerator

assets: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[glyph]"
	$(BIN)/python -m loracomp.training.tables
	$(BIN)/python -m loracomp.training.glyph data --out .data
	$(BIN)/python -m loracomp.training.glyph adapters --data .data
	$(BIN)/python -m loracomp.training.shipped --data .data --out loracomp/assets/adapters

clean:
	rm -rf $(VENV) build dist out *.egg-info
