# Everything a checkout needs, from a machine that has Python, make and a C compiler.
#
#   make test         the tests of the core (pass pytest arguments with ARGS="-k embedded")
#   make test-gateway  the tests of the HTTP gateway and of chat agents
#   make lint         style, types, import directions
#   make demo         watch a worker stream to another process (TOPIC=json.dumps)
#   make serve        Valkey, a worker and the HTTP gateway, to try out (PORT=8080)
#   make demo-chat    a chat page (React, AI SDK) with an agent behind it (PORT=8080)
#   make bench        the benchmarks (BENCH_JSON=file writes them as JSON too)
#   make bench-gateway  the HTTP gateway beside other servers of its protocol (Linux)
#   make bench-chat   a chat's first chunk beside an endpoint written by hand
#   make conformance  the Durable Streams conformance suite (npm) against the gateway
#   make test-browser  the gateway's page in a real Chromium
#   make s2-lite      install the S2 server of the tests by cargo (minutes, once)
#   make test-s2      the tests of the S2 store, on s2-lite
#   make bench-s2     chunks to S2 beside the S2 SDK's own ways, on s2-lite
#   make soak         the fault tests with their full counts, at most 30 minutes
#   make test-oldest  all tests on the oldest versions that pyproject.toml allows
#   make clean        remove what the other targets made

PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
BENCH := .venv-bench
BIN := $(VENV)/bin
TOPIC ?= json.dumps
PORT ?= 8080
ARGS ?=
# More processes than cores: most tests wait for servers more than they compute. Each gets a
# row of neighbours, which share a module's worker, and helps the others when it is done.
PARALLEL ?= -n 5 --dist worksteal
# What `make test-gateway` runs, and `make test` does not.
HTTP := tests/gateway tests/chat

# The S2 server of the tests: outside the checkout, because building it takes long.
S2_LITE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/celery-streams/s2-lite
S2_LITE_VERSION := 0.43.4

# What the conformance suite's runner (vitest 4) does not start without.
NODE_MISSING = ! command -v npm >/dev/null \
	|| ! node -e 'process.exit(+(parseInt(process.versions.node) < 20))'

# Folders with Python files in them.
TYPED = $(sort $(patsubst %/,%,$(dir $(wildcard \
	celery_streams/*.py tests/*.py example_project/*.py benchmarks/*.py))))

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: all venv test test-gateway test-browser test-s2 bench-s2 s2-lite lint format demo demo-chat chat-page serve bench bench-gateway bench-chat conformance soak test-oldest redis-server nodejs chromium clean

all: lint test test-gateway

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

test: venv redis-server
	$(BIN)/python -m pytest $(PARALLEL) $(addprefix --ignore=,$(HTTP)) $(ARGS)

test-gateway: venv redis-server nodejs
	$(BIN)/python -m pytest $(PARALLEL) $(HTTP) $(ARGS)

# Playwright only drives the distribution's Chromium; it downloads none. Without the chat page,
# which npm builds, its tests are skipped and say so.
test-browser: venv chromium nodejs
	-@timeout 300 $(MAKE) --no-print-directory chat-page
	@if ! command -v chromium >/dev/null; \
	then echo "test-browser: SKIPPED, because chromium is missing"; \
	else $(BIN)/python -m pytest tests/browser -n 2 $(ARGS); fi

# The crate s2-lite calls its binary `server`. Without link-time optimization, which takes most of
# the time and which no test needs.
s2-lite: $(S2_LITE)/bin/server

$(S2_LITE)/bin/server:
	@command -v cargo >/dev/null \
	|| { echo "s2-lite: cargo is missing; install Rust, https://rustup.rs" >&2; exit 1; }
	CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		cargo install --locked s2-lite --version $(S2_LITE_VERSION) --root $(S2_LITE)

test-s2: venv s2-lite
	S2_LITE_ROOT=$(S2_LITE) $(BIN)/python -m pytest tests/s2 $(PARALLEL) $(ARGS)

bench-s2: venv s2-lite
	S2_LITE_ROOT=$(S2_LITE) $(BIN)/python -m benchmarks.s2 $(ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports --no-logo

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: venv
	$(BIN)/python -m example_project.demo --topic '$(TOPIC)'

serve: venv
	@exec $(BIN)/python -m example_project.serve --topic '$(TOPIC)' --port $(PORT)

demo-chat: venv chat-page
	@exec $(BIN)/python -m example_project.demo_chat --port $(PORT)

# Needs Node 20.19 and npm; the page is built to build/chat_page.
chat-page: nodejs
	@if $(NODE_MISSING); \
	then echo "chat-page: npm or Node 20 (or newer) is missing" >&2; exit 1; fi
	@npm install --prefix example_project/chat_page --no-package-lock --no-audit --no-fund --silent
	@npm run --prefix example_project/chat_page --silent build -- --logLevel warn

bench: venv
	$(BIN)/python -m benchmarks

# The gateway's peers: one in an environment of its own, one in benchmarks/gateway/node_modules.
$(BENCH)/.installed: pyproject.toml benchmarks/gateway/requirements.txt
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --editable '.[demo,gateway]' \
		--requirement benchmarks/gateway/requirements.txt
	touch $@

benchmarks/gateway/node_modules/.installed: benchmarks/gateway/package.json
	@if ! command -v npm >/dev/null; then echo "bench-gateway: npm is missing"; \
	else npm install --prefix benchmarks/gateway --no-package-lock --no-audit --no-fund --silent \
	     && touch $@ || echo "bench-gateway: npm install failed"; fi

bench-gateway: $(BENCH)/.installed benchmarks/gateway/node_modules/.installed
	$(BENCH)/bin/python -m benchmarks.gateway $(ARGS)

bench-chat: venv
	$(BIN)/python -m benchmarks.chat $(ARGS)

# Needs Node 20 and npm; its packages go to build/conformance.
conformance: venv nodejs
	@if $(NODE_MISSING); \
	then echo "conformance: SKIPPED, because npm or Node 20 (or newer) is missing"; \
	else $(BIN)/python -m tests.conformance.run $(ARGS); fi

soak: venv redis-server
	CELERY_STREAMS_SOAK=1 $(BIN)/python -m pytest -m soak -s --timeout 1800 --session-timeout 1800 $(ARGS)

# The oldest direct dependencies that the ranges allow; the tests' own tools stay current.
$(OLDEST)/.installed: pyproject.toml | venv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLDEST)
	$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python \
		--resolution lowest-direct --editable '.[demo,gevent,eventlet,gateway]'
	$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python --editable '.[test]'
	$(BIN)/uv pip uninstall --quiet --python $(OLDEST)/bin/python hiredis  # workers may lack it
	touch $@

test-oldest: $(OLDEST)/.installed redis-server
	$(BIN)/uv pip list --quiet --python $(OLDEST)/bin/python
	$(OLDEST)/bin/python -m pytest $(PARALLEL) $(ARGS)

# Tests run on Debian's Redis 7 too. Installed here if that is possible without asking.
redis-server:
	@command -v redis-server >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	     && apt-get update -qq \
	     && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server; } \
	|| echo "redis-server is not installed: the tests on Redis 7 will be skipped"

# Node and npm for the conformance suite, the chat page and the transports. Installed here if that is possible without asking.
nodejs:
	@command -v npm >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	     && apt-get update -qq \
	     && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm; } \
	|| echo "npm is not installed: what needs it will be skipped"

# The browser for the page's tests. Installed here if that is possible without asking.
chromium:
	@command -v chromium >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	     && apt-get update -qq \
	     && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
	|| echo "chromium is not installed: the page's tests will be skipped"

clean:
	rm -rf $(VENV) $(OLDEST) $(BENCH) benchmarks/gateway/node_modules example_project/chat_page/node_modules build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache
	find celery_streams tests example_project benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
