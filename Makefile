# What CI runs is what you run: .ci/run is `make test`. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
FUZZ_SECONDS ?= 30
CARGO_FUZZ_VERSION := 0.13.2
HELM_VERSION := 3.22.0
# Tests wait more than they compute, so more of them run at once than there are processors: make pytest PARALLEL= for one.
PARALLEL ?= --numprocesses 4 --dist worksteal
# Arguments for the program and for the test runner: make run ARGS="--port 5000", make pytest ARGS="-k relay".
ARGS ?=

# One target directory for everything except the sanitised fuzz build, so that the C of aws-lc is compiled
# once for checks and tests (dev) and once for the product, the wheel and the sdist check (release).
export CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TERM_COLOR ?= auto
# The interpreter the binding is built for; the same path each time, or cargo would rebuild it.
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport VIRTUAL_ENV CONDA_PREFIX

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find crates/binding crates/netstack crates/engine crates/packet -name '*.rs' -o -name Cargo.toml -o -name build.rs)

# Crates with a lock file of their own, outside the workspace.
OTHER_CRATES := $(wildcard fuzz/Cargo.toml tests/peers/*/Cargo.toml)

.PHONY: help run build dev check test style lint docs docs-check fmt rust-test stubtest pytest fuzz bench wheel sdist-check image-check deploy-lint deploy-check chart packages package-check system-packages clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 20

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

# What builds and runs the program.
$(STAMPS)/runtime: $(STAMPS)/venv constraints.txt
	$(BIN)/pip install --quiet maturin
	touch $@

# What checks it as well.
$(STAMPS)/tools: $(STAMPS)/venv constraints.txt
	grep -v '^ziglang==' constraints.txt | $(BIN)/pip install --quiet --requirement /dev/stdin
	touch $@

# zig is 400 MB, and only a wheel needs it.
$(STAMPS)/zig: $(STAMPS)/tools
	$(BIN)/pip install --quiet ziglang
	touch $@

# The Python files are used where they lie (editable), so only Rust and the metadata make this stale.
# Each of the two stamps removes the other, since both builds lie in the same place. A stamp has the time at which
# its build began: a source that is edited meanwhile is built again.
$(STAMPS)/installed: $(RUST_SOURCES) pyproject.toml $(STAMPS)/runtime
	touch $@.begun
	PIP_QUIET=1 $(BIN)/maturin develop --release --locked --extras server,tun
	rm -f $(STAMPS)/dev
	mv $@.begun $@

$(STAMPS)/dev: $(RUST_SOURCES) pyproject.toml $(STAMPS)/runtime
	touch $@.begun
	PIP_QUIET=1 $(BIN)/maturin develop --locked --extras server,tun
	rm -f $(STAMPS)/installed
	mv $@.begun $@

build: $(STAMPS)/installed ## build in release mode and install into .venv

dev: $(STAMPS)/dev ## build in the quick profile and install into .venv; the tests use it

run: build ## start the server (make run ARGS="--port 5000")
	$(BIN)/intermediate-server serve $(ARGS)

test: ## everything CI checks; the test runner speaks last
	$(MAKE) lint
	$(MAKE) rust-test
	$(MAKE) fuzz
	$(MAKE) sdist-check
	$(MAKE) image-check
	$(MAKE) package-check
	$(MAKE) pytest

check: $(STAMPS)/tools dev style ## the inner loop: style, Rust tests, unit and property tests; needs no root
	$(MAKE) rust-test
	$(BIN)/python -m pytest $(PARALLEL) tests/unit tests/property

# What needs no build of the extension.
style: $(STAMPS)/tools
	cargo fmt --all --check
	for crate in $(OTHER_CRATES); do cargo fmt --check --manifest-path $$crate; done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports
	$(BIN)/python tools/import_circles.py
	$(BIN)/python tools/file_lengths.py

lint: style deploy-lint docs ## formatting, clippy, ruff, mypy, stubtest, import borders, deploy/, docs/
	cargo clippy --locked --workspace --all-targets -- -D warnings
	$(MAKE) stubtest

docs-check: docs dev ## the site, and each command of each page, run in networks of namespaces (root)
	$(BIN)/python -m pytest -rs $(PARALLEL) tests/docs

docs: $(STAMPS)/tools ## the pages as a site in target/site/html, strictly checked
	$(BIN)/python -m tools.build_site

fmt: $(STAMPS)/tools ## format everything
	cargo fmt --all
	for crate in $(OTHER_CRATES); do cargo fmt --manifest-path $$crate; done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

stubtest: $(STAMPS)/tools dev ## the hand-written stub against the real module
	$(BIN)/python -m mypy.stubtest intermediate_server._engine --mypy-config-file pyproject.toml \
		--allowlist tools/stubtest-allow.txt --ignore-unused-allowlist

# The binding holds no logic and links only inside an interpreter; pytest is its test.
rust-test: $(STAMPS)/tools ## the tests of the Rust crates
	cargo test --locked --workspace --exclude ztna-binding

# The clients in the field as a test peer, on quiche; it needs BoringSSL, so it is not part of the workspace.
PEER := target/peers/release/quiche-peer
$(PEER): $(shell find tests/peers/quiche-peer -name '*.rs' -o -name 'Cargo.*')
	CARGO_TARGET_DIR=$(CURDIR)/target/peers cargo test --release --locked --quiet \
		--manifest-path tests/peers/quiche-peer/Cargo.toml
	CARGO_TARGET_DIR=$(CURDIR)/target/peers cargo build --release --locked \
		--manifest-path tests/peers/quiche-peer/Cargo.toml
	touch $@

pytest: $(STAMPS)/tools dev $(PEER) ## the Python tests (make pytest ARGS="-k relay")
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

fuzz: $(STAMPS)/tools .tools/bin/cargo-fuzz-$(CARGO_FUZZ_VERSION) ## each fuzz target for FUZZ_SECONDS (30)
	tools/fuzz.sh $(FUZZ_SECONDS)

.tools/bin/cargo-fuzz-$(CARGO_FUZZ_VERSION):
	cargo install cargo-fuzz --version $(CARGO_FUZZ_VERSION) --locked --root .tools
	cp .tools/bin/cargo-fuzz $@

bench: $(STAMPS)/tools build ## measure and print the table (not a test)
	$(BIN)/python -m bench $(ARGS)

# zig links against the glibc of the oldest systems that Rust supports.
wheel: $(STAMPS)/zig ## wheel and sdist in dist/
	rm -rf dist
	$(BIN)/maturin sdist --out dist
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/maturin build --release --locked --zig --compatibility manylinux_2_17 --out dist

sdist-check: wheel ## inspect wheel and sdist, install each into an empty environment and run it
	$(BIN)/python -m tools.check_dist dist

# The wheel that sdist-check has left in dist/ takes the place of the stage that compiles; deploy-check compiles there.
image-check: $(STAMPS)/tools ## the image with the wheel in dist/, built and run by buildah
	$(BIN)/python -m tools.check_image dist

deploy-lint: $(STAMPS)/tools
	if [[ -x $(BIN)/hadolint ]]; then $(BIN)/hadolint deploy/Dockerfile; else echo "skipped: no hadolint for this processor"; fi
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/release.yml
	$(BIN)/check-jsonschema --quiet --check-metaschema deploy/chart/values.schema.json
	$(BIN)/check-jsonschema --quiet --schemafile deploy/chart/values.schema.json deploy/chart/values.yaml

packages: wheel ## deb and rpm in target/packages, checked
	$(MAKE) package-check

package-check: $(STAMPS)/tools ## deb and rpm of the wheel in dist/, as root on Debian installed, upgraded, run and purged
	$(BIN)/python -m tools.check_packages

# Where there is no Go, the tests that need helm skip.
HELM := .tools/bin/helm-$(HELM_VERSION)
$(HELM):
	tools/build_helm.sh $(HELM_VERSION) $@

chart: $(HELM) ## render the chart for the tests, after a change of it
	$(PYTHON) tools/render_chart.py $(HELM)

deploy-check: deploy-lint dev $(HELM) ## all of deploy/: units, Compose, chart, packages, and the image, built and run by buildah
	$(BIN)/python -m pytest -rs tests/chart tests/e2e/test_chart.py tests/unit/test_deploy.py tests/unit/test_unit.py \
		tests/integration/test_systemd.py tests/integration/test_compose.py tests/integration/test_healthcheck.py
	$(BIN)/python -m tools.check_image
	$(MAKE) packages

system-packages: ## what the network tests need, when root on Debian
	tools/system-packages.sh

clean: ## remove all that is built, the environment included
	rm -rf $(VENV) .tools target fuzz/target dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src -name '*.so' -delete
	find . -name __pycache__ -prune -exec rm -rf {} +
