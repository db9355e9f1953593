# The commands people and CI share. `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := core web device server export lab broker_config
COMPOSE ?= docker compose
# Test processes: twice as many as cores, for many tests wait for what others do.
WORKERS ?= $(shell echo $$((2 * $$(nproc))))
# Each of the tests' many processes would else compile what it imports.
unexport PYTHONDONTWRITEBYTECODE
PYTEST = $(BIN)/pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

.PHONY: demo up down test test-quick test-costs chaos test-all-networks check fuzz check-wheels lock sbom docs release format clean

demo: $(VENV)/.lab
	$(BIN)/splitee demo $(DEMO)

# Broker and server in containers; PROFILE=demo adds three devices. Certificates are made on first use.
up:
	mkdir -p secrets
	$(COMPOSE) build certificates
	$(COMPOSE) run --rm certificates
	$(COMPOSE) $(if $(PROFILE),--profile $(PROFILE)) up --detach

down:
	$(COMPOSE) --profile demo down

test: $(VENV)/.dev
	scripts/ensure_mosquitto.sh
	scripts/ensure_ejabberd.sh
	scripts/ensure_chromium.sh
	scripts/ensure_homeassistant.sh
	$(PYTEST) $(TESTS)

# Under a minute, for what one works on: make test-quick TESTS=tests/server
test-quick: $(VENV)/.dev
	scripts/ensure_mosquitto.sh
	$(PYTEST) -m "not slow" $(TESTS)

# A real fleet whose parts are killed and frozen, three times: the weights are those of one that was left alone.
chaos: $(VENV)/.dev
	$(BIN)/python -m benchmarks.chaos --strategy averaging --faults 3 --rounds 3 --samples 64

# Wall and CPU seconds of each test, and the processes that it starts.
test-costs: $(VENV)/.dev
	scripts/ensure_mosquitto.sh
	PYTHONPATH=tests/support $(PYTEST) -p costs --costs costs.tsv $(TESTS)

test-all-networks: $(VENV)/.dev
	$(BIN)/pytest tests/core/networks/all_networks.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES) benchmarks examples scripts

fuzz: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt atheris
	$(BIN)/python -m benchmarks.fuzz_messages -max_total_time=60 benchmarks/corpus/messages
	$(BIN)/python -m benchmarks.fuzz_server -max_total_time=60 benchmarks/corpus/server

# A Raspberry Pi installs without a compiler: base and [train] resolve to wheels for Debian 12's glibc.
check-wheels: $(VENV)/.dev
	@for python in 3.11 3.12; do for extra in "" "--extra train"; do \
		echo "# Python $$python on aarch64 $$extra"; \
		$(BIN)/uv pip compile pyproject.toml $$extra --python-version $$python \
			--python-platform aarch64-manylinux_2_36 --only-binary :all: \
			--quiet --no-header --no-annotate || exit 1; \
	done; done

# requirements/*.txt: what an installation as root takes, pinned to constraints.txt and with hashes.
lock: $(VENV)/.dev
	$(BIN)/python scripts/lock_requirements.py

# The software bill of materials, CycloneDX: sbom.json; of a device that trains: make sbom OF=train
sbom: $(VENV)/.dev
	$(BIN)/uvx --quiet --constraints constraints.txt --from cyclonedx-bom cyclonedx-py requirements \
		--pyproject pyproject.toml --output-reproducible --output-file sbom.json requirements/$(or $(OF),server).txt

# The generated pages, then the site: build/docs/index.html. A broken link fails it; nothing is fetched.
docs: $(VENV)/.dev
	$(BIN)/python scripts/make_docs.py
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs

# Builds, tries what was built in empty environments, and tags; --no-tag: make release RELEASE=--no-tag
release: $(VENV)/.dev
	$(BIN)/python scripts/release.py $(RELEASE)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Modules are compiled when they are first imported: most that pip would compile never are.
$(VENV)/.lab $(VENV)/.dev: $(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[$*]'
	touch $@
