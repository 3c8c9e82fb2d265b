# Requires Rust, a C compiler and make. The README uses the first two targets.

.DEFAULT_GOAL := demo
CARGO ?= cargo
ARGS ?=
PREFIX ?= /usr/local
SHARE = $(DESTDIR)$(PREFIX)/share
# .ci/run installs cargo-deny into the first folder, `make test-deploy` installs typos into the last.
export PATH := $(CURDIR)/target/tools/bin:$(PATH):$(CURDIR)/target/deploy/venv/bin

demo: tools ## Build, and show swaps between two small applications (ARGS=--once ends after the last swap)
	$(CARGO) build --locked --bin switchover --example demo
	target/debug/examples/demo $(ARGS)

picture: tools ## Draw a swap of the demo again: docs/swap.svg
	$(CARGO) build --locked --bin switchover --example demo
	target/debug/examples/demo --picture docs/swap.svg

test: tools ## Build, and run every test (ARGS=NAME runs the tests with NAME in their names)
	@command -v curl >/dev/null || { echo "curl is missing and the tests need it: installing it"; \
	sudo=$$(command -v sudo || true); $$sudo apt-get update -q && $$sudo apt-get install -qy --no-install-recommends curl; } \
	|| { echo "curl is missing and could not be installed; run: apt-get install curl"; exit 1; }
	$(CARGO) test --locked $(ARGS)

docs: tools ## Generate from the configuration's types: conf/switchover.schema.json and the tables of docs/configuration.md
	UPDATE_EXPECTED=1 $(CARGO) test --locked --test it schema::

test-deploy: tools ## The tests with real Spring Boot, containers and Prometheus; installs their tools (as root), takes minutes
	CARGO=$(CARGO) tests/deploy/run

fuzz: tools ## Every parser under a coverage-guided fuzzer, 20 seconds each (ARGS=600: ten minutes); needs a C++ compiler
	CARGO=$(CARGO) fuzz/run $(ARGS)

build: tools ## Build the release: target/release/switchover
	$(CARGO) build --locked --release

install: ## Install the release under PREFIX (/usr/local): program, man pages, completions; with systemd also the unit and /etc/switchover
	@[ -x target/release/switchover ] || { echo "target/release/switchover is missing; run: make build"; exit 1; }
	install -D -m 755 target/release/switchover $(DESTDIR)$(PREFIX)/bin/switchover
	install -d $(SHARE)/man/man1 $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	target/release/switchover man $(SHARE)/man/man1
	target/release/switchover completions bash >$(SHARE)/bash-completion/completions/switchover
	target/release/switchover completions zsh >$(SHARE)/zsh/site-functions/_switchover
	target/release/switchover completions fish >$(SHARE)/fish/vendor_completions.d/switchover.fish
	@if command -v systemctl >/dev/null; then deploy/systemd/install "$(DESTDIR)" "$(PREFIX)"; fi

man: tools ## Build the man pages: target/man/switchover.1 and one for each command
	$(CARGO) build --locked
	mkdir -p target/man && target/debug/switchover man target/man

bench: tools ## Measure CPU per request beside a bare Pingora proxy, nginx and HAProxy, and the time of a swap (BEFORE=BINARY: and an earlier build)
	BEFORE=$(abspath $(BEFORE)) $(CARGO) bench --locked --bench cpu

check: tools ## Check format, lints, documentation, prose, spelling, the oldest Rust, licences, and known vulnerabilities if their database is reachable
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps
	tests/msrv
	tests/prose
	@if command -v typos >/dev/null; then typos; \
	elif [ -n "$$CI" ]; then echo "typos is missing; run: make test-deploy, or: cargo install --locked typos-cli"; exit 1; \
	else echo "typos: NOT RUN, it is not installed; run: cargo install --locked typos-cli"; fi
	@if ! $(CARGO) deny --version >/dev/null 2>&1; then \
	echo "cargo deny: NOT RUN, it is not installed; run: cargo install --locked cargo-deny"; exit 0; fi; \
	$(CARGO) deny --locked check licenses bans sources || exit 1; \
	if timeout 60 $(CARGO) deny fetch db >/dev/null 2>&1; then $(CARGO) deny --locked check --disable-fetch advisories; \
	else echo "cargo deny check advisories: NOT RUN, the RustSec database (github.com/rustsec/advisory-db) is not reachable"; fi

digests: ## Print the digests of the base images, as arguments for docker build; needs their registry
	@deploy/digests

clean: ## Remove the build output
	$(CARGO) clean

help: ## Print this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

tools:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing; install Rust from https://rustup.rs"; exit 1; }
	@command -v cc >/dev/null || { echo "a C compiler is missing; run: apt-get install gcc libc6-dev"; exit 1; }

.PHONY: demo picture test docs test-deploy fuzz build install man bench check digests clean help tools
