# Everything a newcomer needs: Rust, a C compiler and make. The first two targets are the README's.

.DEFAULT_GOAL := help
CARGO ?= cargo
ARGS ?=

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: tools ## Build, and watch swaps live on two small built-in applications
	$(CARGO) build --locked
	target/debug/switchover demo $(ARGS)

test: tools ## Build, and run every test
	$(CARGO) test --locked

build: tools ## The release: target/release/switchover
	$(CARGO) build --locked --release

bench: tools ## CPU per request beside a bare Pingora proxy (and nginx, HAProxy where installed)
	$(CARGO) bench --locked --bench cpu

check: tools ## Format, lints, documentation, licences
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check licenses bans sources; \
	else echo "cargo deny: NOT RUN, it is not installed here; cargo install --locked cargo-deny brings it"; fi

clean: ## Remove what was built
	$(CARGO) clean

tools:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs"; exit 1; }
	@command -v cc >/dev/null || { echo "a C compiler is missing: apt-get install gcc libc6-dev"; exit 1; }

.PHONY: help demo test build bench check clean tools
