# rnic: the two commands of the README are `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
CARGO ?= cargo
PROFILE_DIR := target/release

PACKAGES := libdpdk-dev dpdk libclang-14-dev clang-14 pkg-config libhwloc-dev libudev-dev libnuma-dev \
            tshark iproute2 iputils-ping procps bsdextrautils jq git gcc libc6-dev
export DEBIAN_FRONTEND := noninteractive

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

.PHONY: deps
deps: ## Install what building and testing need (apt)
	@missing=; for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  echo "installing$$missing"; \
	  $$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends $$missing; \
	fi
	@command -v $(CARGO) >/dev/null || { echo "cargo is not on the PATH: install Rust 1.90 or later" >&2; exit 1; }

.PHONY: build
build: deps ## Build everything in release mode
	$(CARGO) build --release --workspace --bins --examples

.PHONY: demo
demo: build ## Start an appliance and move data through it (under a minute)
	tests/demo.sh

.PHONY: test
test: deps ## All tests: units, simulator, models in bounded form, whole appliances
	$(MAKE) --no-print-directory layers
	$(CARGO) build --workspace --bins --examples
	$(CARGO) test --workspace
	$(MAKE) --no-print-directory loom asan tsan

.PHONY: lint
lint: deps ## Format, clippy, layers, documents, licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	tests/docs.sh
	$(MAKE) --no-print-directory layers
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check licenses bans sources; \
	else echo "SKIPPED cargo deny: install it with 'cargo install cargo-deny'"; fi

.PHONY: layers
layers: ## Check that each crate uses only what its layer may
	tests/layers.sh

# loom replaces the atomics of a whole build, so each package has its own target directory.
.PHONY: loom
loom: ## Model-check QSBR, views, doorbells and CQ arming
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom $(CARGO) test --release -p rnic-qsbr --lib --test loom
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom $(CARGO) test --release -p rnic-abi --test loom

.PHONY: soak
soak: deps ## A million simulated schedules
	RNIC_SIM_SEEDS=1000000 $(CARGO) test --release -p rnic-transport

# Not the doctests: RUSTFLAGS do not reach rustdoc, and its unsanitized build would be mixed with a sanitized one.
.PHONY: asan
asan: deps ## Engine tests under AddressSanitizer
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/asan \
	  $(CARGO) test --lib --bins --tests -p rnic-engine --no-default-features --target x86_64-unknown-linux-gnu

.PHONY: tsan
tsan: deps ## Engine tests under ThreadSanitizer
	TSAN_OPTIONS="suppressions=$(CURDIR)/tests/tsan.supp halt_on_error=1" RUSTC_BOOTSTRAP=1 \
	  RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" CARGO_TARGET_DIR=target/tsan \
	  $(CARGO) test --lib --bins --tests -p rnic-engine --no-default-features --target x86_64-unknown-linux-gnu

STRESS_SECONDS ?= 600

.PHONY: stress
stress: deps ## Everything at random by many clients, some killed, for STRESS_SECONDS
	$(CARGO) build -p rnic-stress -p rnic-tests -p rnic-control --bins
	target/debug/rnic-stress run --seconds $(STRESS_SECONDS) --processes 4 --threads 2 --library 2

.PHONY: perf
perf: build ## rnic-perf at 8 B, 4 KiB and 1 MiB, on loopback and on the wire path, as JSON
	tests/perf.sh

.PHONY: bench-lookup
bench-lookup: deps ## What finding a QP costs beside publications, as JSON
	@$(CARGO) build --release --quiet -p rnic-bench-lifetimes --bin bench-lookup
	@$(PROFILE_DIR)/bench-lookup

.PHONY: bench-verbs
bench-verbs: deps ## What verbs cost with 1,000 and with 100,000 live QPs, as JSON
	@$(CARGO) build --release --quiet -p rnic-control --bin rnicd
	@$(CARGO) build --release --quiet -p rnic-bench-lifetimes --bin bench-verbs
	@$(PROFILE_DIR)/bench-verbs

.PHONY: clean
clean: ## Remove what was built
	$(CARGO) clean
