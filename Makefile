# Everything a newcomer needs: Rust, a C compiler and make. The first two targets are the README's.

.DEFAULT_GOAL := demo
CARGO ?= cargo
ARGS ?=
PREFIX ?= /usr/local
SHARE = $(DESTDIR)$(PREFIX)/share
# Where .ci/run puts cargo-deny; one that is installed for good is found as well.
export PATH := $(CURDIR)/target/tools/bin:$(PATH)

demo: tools ## Build, and watch swaps live on two small built-in applications (ARGS=--once ends after the tally)
	$(CARGO) build --locked
	target/debug/switchover demo $(ARGS)

test: tools ## Build, and run every test (ARGS=NAME runs those with NAME in theirs)
	@command -v curl >/dev/null || { echo "curl, a client of the tests, is missing here: installing it"; \
	sudo=$$(command -v sudo || true); $$sudo apt-get update -q && $$sudo apt-get install -qy --no-install-recommends curl; } \
	|| { echo "curl is missing, and could not be installed: apt-get install curl"; exit 1; }
	$(CARGO) test --locked $(ARGS)

docs: tools ## Generate from the configuration's types: conf/switchover.schema.json and the tables of docs/configuration.md
	UPDATE_EXPECTED=1 $(CARGO) test --locked --test it schema::

test-deploy: tools ## The tests with real Spring Boot, containers and Prometheus; installs what they need (as root), and takes minutes
	CARGO=$(CARGO) tests/deploy/run

fuzz: tools ## Everything that parses bytes, by a coverage-guided fuzzer, 20 seconds each (ARGS=600 for ten minutes); needs a C++ compiler
	CARGO=$(CARGO) fuzz/run $(ARGS)

build: tools ## The release: target/release/switchover
	$(CARGO) build --locked --release

install: ## The release under PREFIX (/usr/local): program, man pages, completions; the systemd unit and /etc/switchover where systemd is
	@[ -x target/release/switchover ] || { echo "target/release/switchover is missing: make build"; exit 1; }
	install -D -m 755 target/release/switchover $(DESTDIR)$(PREFIX)/bin/switchover
	install -d $(SHARE)/man/man1 $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	target/release/switchover man $(SHARE)/man/man1
	target/release/switchover completions bash >$(SHARE)/bash-completion/completions/switchover
	target/release/switchover completions zsh >$(SHARE)/zsh/site-functions/_switchover
	target/release/switchover completions fish >$(SHARE)/fish/vendor_completions.d/switchover.fish
	@if command -v systemctl >/dev/null; then deploy/systemd/install "$(DESTDIR)" "$(PREFIX)"; fi

man: tools ## The man pages: target/man/switchover.1 and one for each command
	$(CARGO) build --locked
	mkdir -p target/man && target/debug/switchover man target/man

bench: tools ## CPU per request beside a bare Pingora proxy (and nginx, HAProxy where installed), and the time of a swap
	$(CARGO) bench --locked --bench cpu

check: tools ## Format, lints, documentation, licences; known vulnerabilities where the database can be had
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps
	@if ! $(CARGO) deny --version >/dev/null 2>&1; then \
	echo "cargo deny: NOT RUN, it is not installed here; cargo install --locked cargo-deny brings it"; exit 0; fi; \
	$(CARGO) deny --locked check licenses bans sources || exit 1; \
	if timeout 60 $(CARGO) deny fetch db >/dev/null 2>&1; then $(CARGO) deny --locked check --disable-fetch advisories; \
	else echo "cargo deny check advisories: NOT RUN, the database of RustSec (github.com/rustsec/advisory-db) cannot be had here"; fi

digests: ## The base images with the digests of their tags, as arguments for docker build; needs their registry
	@deploy/digests

clean: ## Remove what was built
	$(CARGO) clean

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

tools:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs"; exit 1; }
	@command -v cc >/dev/null || { echo "a C compiler is missing: apt-get install gcc libc6-dev"; exit 1; }

.PHONY: demo test docs test-deploy fuzz build install man bench check digests clean help tools
