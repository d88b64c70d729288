# Needs make and Python 3.11, 3.12 or 3.13; everything else is installed under this directory, from locked
# versions. `make help` lists what there is. Written for GNU make 3.81, the one that macOS has.

CONFIG ?= configs/quickstart/turnout.yaml
EXAMPLE ?= configs/quickstart/request.json
ARGS ?=

BIN = .venv/bin
# Twice quiet: errors are shown, what an index of the machine's own is warned about is not.
PIP = -m pip -qq --disable-pip-version-check
PIP_INSTALL = $(PIP) install --use-pep517 --require-hashes
SILERO = 5.1.2 6.2.3
# The last wheel of Triton's client that has perf_analyzer in it, and a library that it was linked with.
PERF_ANALYZER = tritonclient==2.46.0 nvidia-cuda-runtime-cu12==12.9.79
PEERS = kserve mlserver litserve bentoml mlflow

# Not merely the first on the PATH: a shim of pyenv may name a version that is not installed, and Debian's python3
# has no venv without python3-venv.
CANDIDATES = $(PYTHON) python3.13 python3.12 python3.11 python3 python
SUITABLE = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
FIND_PYTHON = for python in $(CANDIDATES); do \
	  if $$python -c '$(SUITABLE)' >/dev/null 2>&1; then echo $$python; exit 0; fi; done; \
	echo "Turnout needs Python 3.11, 3.12 or 3.13 with venv (on Debian and Ubuntu the package python3-venv);" >&2; \
	echo "none of these is one: $(CANDIDATES). Name yours: make PYTHON=/path/to/python3.12" >&2; exit 1
MAKE_VENV = @python=`$(FIND_PYTHON)` && "$$python" -m venv --clear

.PHONY: help serve test check bench bench-peers bench-parts faults load proto lock clean setup
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1#/p' Makefile | awk -F'#' '{ printf "make %-12s %s\n", $$1, $$2 }'

serve: .venv/.run-installed ## the quickstart's gateway on 8080, gRPC on 8081, its admin listener on 8082; state in .turnout/
	@exec $(BIN)/turnout serve --config $(CONFIG) --example $(EXAMPLE) $(ARGS)

test: setup ## all tests, after all of their set-up; ARGS="-k rollback" for some of them
	@$(BIN)/python -m pytest $(ARGS)

check: .venv/.test-installed ## lint, format, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: .venv/.test-installed ## ours beside nginx and a bare uvicorn, into docs/performance.md; needs wrk and nginx; ARGS=--dry
	@for bench in limits budget flip readers; do $(BIN)/python -m loadtests.bench.$$bench $(ARGS) || exit 1; done

bench-peers: .venv/.test-installed $(PEERS:%=.venvs/peer-%/.installed) ## the same against other model servers; needs wrk
	@$(BIN)/python -m loadtests.bench.peers $(ARGS)

bench-parts: .venv/.test-installed ## what single parts take: codec, gRPC, overload, fetch, many routes
	@for bench in codec overload grpc fetch many_routes; do $(BIN)/python -m loadtests.bench.$$bench || exit 1; done

faults: .venv/.test-installed ## replicas and their store, hurt on purpose, and judged by what clients saw; ARGS="--flips 1000 --seed 7"
	@$(BIN)/python -m tests.faults $(ARGS)

load: .venv/.test-installed ## a gateway of its own under load, and its versions compared; ARGS="-u 20 -t 60s"
	@$(BIN)/python -m loadtests.quickstart $(ARGS)

proto: .venv/.test-installed ## the Python of gateway/wire/grpc/inference.proto, after a change of it
	@cd gateway/wire/grpc && $(CURDIR)/$(BIN)/python -m grpc_tools.protoc -I . --python_out . --pyi_out . inference.proto

lock: .venv/.made ## resolve the locks under requirements/ anew (brings uv into .venv)
	@$(BIN)/python $(PIP) install uv
	$(LOCK) requirements/test.lock pyproject.toml --all-extras --group test
	$(LOCK) requirements/run.lock pyproject.toml --constraints requirements/test.lock
	$(LOCK) requirements/mlflow.lock --group mlflow
	$(LOCK) requirements/clients.lock --group clients
	@for peer in $(PEERS); do $(LOCK) requirements/peers/$$peer.lock --group peer-$$peer || exit 1; done

# No addresses of an index in the files: they are the installer's own business. run.lock is a part of test.lock,
# so that one .venv does for both.
LOCK = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header --no-emit-index-url --no-emit-find-links --output-file

clean: ## remove what make made, the models' cache and the gateway's state with it
	rm -rf .venv .venvs .cache .turnout .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Downloads, mostly: together they take as long as the longest, unless the caller chose a -j.
setup:
	@$(MAKE) --silent --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,-j4) \
	  .venv/.test-installed .venvs/mlflow/.installed .venvs/clients/.installed .cache/silero/.downloaded \
	  .cache/perf_analyzer/.downloaded

# Order-only (|) where the rule is another file's: a new lock installs over an environment, only a new Python
# or `make clean` makes one.
.venv/.made:
	@echo "making .venv (once)"
	$(MAKE_VENV) .venv
	@touch $@

.venv/.run-installed: requirements/run.lock pyproject.toml | .venv/.made
	@echo "installing the gateway into .venv (once)"
	@$(BIN)/python $(PIP_INSTALL) --requirement requirements/run.lock
	@$(BIN)/python $(PIP) install --no-deps --editable .
	@touch $@

.venv/.test-installed: requirements/test.lock .venv/.run-installed
	@echo "installing the tests' tools into .venv (once)"
	@$(BIN)/python $(PIP_INSTALL) --requirement requirements/test.lock
	@touch $@

# Each in an environment of its own: they pin what the gateway uses to other versions.
.venvs/%/.installed: requirements/%.lock
	$(INSTALL_ENVIRONMENT)

.venvs/peer-%/.installed: requirements/peers/%.lock
	$(INSTALL_ENVIRONMENT)

define INSTALL_ENVIRONMENT
@echo "installing $(@D) (once)"
@mkdir -p .venvs
$(MAKE_VENV) $(@D)
@$(@D)/bin/python $(PIP_INSTALL) --requirement $<
@touch $@
endef

# Models that are not ours: two releases of a public one, for the engine's tests. Nothing of it is installed.
.cache/silero/.downloaded: | .venv/.made
	@echo "downloading silero-vad's models (once)"
	@mkdir -p .cache/silero
	@for version in $(SILERO); do \
	  $(BIN)/python $(PIP) download --no-deps --dest .cache/silero \
	    silero-vad==$$version || exit 1; done
	@touch $@

# A program that is not ours, for Linux on x86_64 alone; Debian and Ubuntu have the other library that it needs.
.cache/perf_analyzer/.downloaded: | .venv/.made
	@mkdir -p $(@D)
	@if [ "`uname -sm`" = "Linux x86_64" ]; then \
	  echo "downloading perf_analyzer (once)" && \
	  $(BIN)/python $(PIP) download --no-deps --only-binary :all: --platform manylinux1_x86_64 \
	    --platform manylinux2014_x86_64 --dest $(@D) $(PERF_ANALYZER) || exit 1; \
	  cd $(@D) && ls /usr/lib/*/libb64.so.0d >/dev/null 2>&1 || \
	    { apt-get download libb64-0d && dpkg-deb -x libb64-0d_*.deb libb64; } >/dev/null 2>&1 || \
	    echo "without Debian's libb64-0d the test with perf_analyzer is skipped" >&2; \
	fi
	@touch $@
