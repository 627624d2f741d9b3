# rnic: the two commands of the README are `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
CARGO ?= cargo
PROFILE_DIR := target/release

PACKAGES := libdpdk-dev dpdk libclang-14-dev clang-14 pkg-config libhwloc-dev libudev-dev libnuma-dev \
            tshark iproute2 iputils-ping procps bsdextrautils jq git gcc libc6-dev
# Without it the interop tests and the guest's part of `make compare` are skipped.
QEMU := qemu-system-x86
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
	@if ! command -v qemu-system-x86_64 >/dev/null; then \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends $(QEMU) || \
	    echo "*** $(QEMU) cannot be installed: what needs the kernel's rxe will be SKIPPED ***" >&2; \
	fi
	@command -v $(CARGO) >/dev/null || { echo "cargo is not on the PATH: install Rust 1.90 or later" >&2; exit 1; }

.PHONY: build
build: deps ## Build everything in release mode
	$(CARGO) build --release --workspace --bins --examples

.PHONY: demo
demo: build ## Start an appliance and move data through it (under a minute)
	tests/demo.sh

.PHONY: test
test: deps ## All tests: units, simulator, models in bounded form, whole appliances, the kernel's rxe
	$(MAKE) --no-print-directory layers
	$(CARGO) build --workspace --bins --examples
	$(CARGO) test --workspace
	$(MAKE) --no-print-directory loom asan tsan miri
	$(MAKE) --no-print-directory stress-asan stress-tsan STRESS_SECONDS=20

.PHONY: interop
interop: deps ## rnicd against the kernel's soft-RoCE (rxe) in an emulated guest: the whole matrix (minutes)
	$(CARGO) build -p rnic-interop -p rnic-control -p rnic --bins --examples
	target/debug/rnic-interop

.PHONY: lint
lint: deps ## Format, clippy, layers, documents, requirements, licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy -p rnic-testpmd --features stages -- -D warnings
	tests/docs.sh
	tests/mutations.sh --check
	$(MAKE) --no-print-directory layers
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check licenses bans sources; \
	else echo "SKIPPED cargo deny: install it with 'cargo install cargo-deny'"; fi

.PHONY: layers
layers: ## Check that each crate uses only what its layer may
	tests/layers.sh

# loom replaces the atomics of a whole build, so each package has its own target directory.
.PHONY: loom
loom: ## Model-check QSBR, views, retire pages, rings, doorbells, CQ arming, events, the order of destruction
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom $(CARGO) test --release -p rnic-qsbr --lib --test loom
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom $(CARGO) test --release -p rnic-abi --test loom

.PHONY: mutations
mutations: deps ## Break the line that holds each invariant and see its test fail (half an hour)
	tests/mutations.sh

.PHONY: soak
soak: deps ## Five million simulated schedules: of RC, XRC, UC, UD and SRQs a million each
	RNIC_SIM_SEEDS=1000000 $(CARGO) test --release -p rnic-transport --test schedules --test unreliable --test shared \
	  -- --nocapture

.PHONY: fuzz
fuzz: deps ## Ten million frames that are almost right, to requester and responder
	RNIC_FUZZ_FRAMES=10000000 $(CARGO) test --release -p rnic-transport --test fuzz -- --nocapture

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

# Miri belongs to a nightly toolchain. Of the engine the parts that make no system calls, which Miri does not know.
MIRI ?= $(CARGO) +nightly miri

.PHONY: miri
miri: ## Tests of QSBR, the ABI and the engine's tables under Miri, where there is one
	@if $(MIRI) --version >/dev/null 2>&1; then set -ex; export CARGO_TARGET_DIR=target/miri MIRIFLAGS=-Zmiri-disable-isolation; \
	  $(MIRI) test -p rnic-qsbr --lib --tests; \
	  $(MIRI) test -p rnic-abi --lib --tests; \
	  $(MIRI) test -p rnic-engine --no-default-features --lib -- view:: core::timer arena::space watch; \
	else echo "SKIPPED miri: '$(MIRI)' is not there (rustup component add --toolchain nightly miri); nothing was tested under Miri" >&2; fi

STRESS_SECONDS ?= 600
STRESS := target/debug/rnic-stress run --seconds $(STRESS_SECONDS)

.PHONY: stress
stress: stress-build ## Everything at random by many clients, some killed, ports removed, for STRESS_SECONDS
	$(STRESS) --processes 4 --threads 2 --library 2

.PHONY: stress-build
stress-build: deps
	$(CARGO) build -p rnic-stress -p rnic-tests -p rnic-control --bins

PAIRS ?= 1000000

.PHONY: stress-pairs
stress-pairs: deps ## PAIRS creations and destructions of a QP beside traffic, watching the daemon's memory
	$(CARGO) build --release -p rnic-stress -p rnic-tests -p rnic-control --bins
	target/release/rnic-stress pairs --count $(PAIRS)

# Only the daemon is sanitized: the client library's uninstrumented std would look like races.
.PHONY: stress-asan
stress-asan: stress-build ## The same against a daemon under AddressSanitizer
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/asan \
	  $(CARGO) build -p rnic-control --bins --target x86_64-unknown-linux-gnu
	RNIC_BIN_DIR=target/asan/x86_64-unknown-linux-gnu/debug ASAN_OPTIONS=abort_on_error=1:detect_leaks=0 $(STRESS) --sanitized

# Without DPDK, whose own synchronisation ThreadSanitizer does not see: the ports are rings in Rust.
.PHONY: stress-tsan
stress-tsan: stress-build ## The same against a daemon under ThreadSanitizer
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" CARGO_TARGET_DIR=target/tsan \
	  $(CARGO) build -p rnic-control --no-default-features --bins --target x86_64-unknown-linux-gnu
	RNIC_BIN_DIR=target/tsan/x86_64-unknown-linux-gnu/debug \
	  TSAN_OPTIONS="suppressions=$(CURDIR)/tests/tsan.supp halt_on_error=1" $(STRESS) --sanitized

.PHONY: perf
perf: build ## rnic-perf at 8 B, 4 KiB and 1 MiB, on loopback and on the wire path, as JSON
	tests/perf.sh

.PHONY: bench-testpmd
bench-testpmd: deps ## What the data path does a second and in how many cycles, by operation, as JSON
	@$(CARGO) build --release --quiet -p rnic-testpmd
	@for a in "io" "rc-write --size 8" "rc-write --size 8 --qps 16" "rc-send --size 64 --qps 16" "rc-read --size 8" \
	  "rc-atomic --size 8" "mixed --size 64 --qps 16" "ud-send --size 64" "rc-write --size 1M --outstanding 16 --reuse --bare" \
	  "rc-write --size 1M --outstanding 64 --signal-every 16 --bare" "rc-write --size 8 --qps 10000" \
	  "rc-write --size 8 --qps 100000"; do \
	  $(PROFILE_DIR)/rnic-testpmd --json --mode $$a || exit 1; done

.PHONY: bench-stages
bench-stages: deps ## In which stages of the data path the cycles of a message go, as JSON
	@CARGO_TARGET_DIR=target/stages $(CARGO) build --release --quiet -p rnic-testpmd --features stages
	@for a in "rc-write --size 8" "rc-send --size 64 --qps 16" "rc-read --size 8" "rc-write --size 1M --outstanding 16 --reuse"; do \
	  target/stages/release/rnic-testpmd --json --stages --mode $$a || exit 1; done

.PHONY: pgo
pgo: deps ## rnicd and rnic-testpmd built with the profile of testpmd's runs, in target/pgo (docs/performance.md)
	@CARGO="$(CARGO)" benches/testpmd/pgo.sh

.PHONY: bench-loss
bench-loss: deps ## Goodput of 1 MiB WRITEs between two appliances over loss, go-back-N and selective, as JSON and a table
	@$(CARGO) build --release --quiet -p rnic-control -p rnic-perf --bins
	@tests/bench-loss.sh

.PHONY: bench-grace
bench-grace: deps ## What grace periods cost beside those of DPDK and crossbeam-epoch, as JSON
	@$(CARGO) build --release --quiet -p rnic-bench-lifetimes --bin bench-grace
	@$(PROFILE_DIR)/bench-grace

.PHONY: bench-lookup
bench-lookup: deps ## What finding a QP costs beside publications, as JSON
	@$(CARGO) build --release --quiet -p rnic-bench-lifetimes --bin bench-lookup
	@$(PROFILE_DIR)/bench-lookup

.PHONY: bench-verbs
bench-verbs: deps ## What verbs cost with 1,000 and with 100,000 live QPs, as JSON
	@$(CARGO) build --release --quiet -p rnic-control --bin rnicd
	@$(CARGO) build --release --quiet -p rnic-bench-lifetimes --bin bench-verbs
	@$(PROFILE_DIR)/bench-verbs

.PHONY: bench-latency
bench-latency: deps ## Client to client on loopback: latency of 8 B, 1 MiB beside memcpy, as JSON
	@$(CARGO) build --release --quiet -p rnic-control --bin rnicd
	@$(CARGO) build --release --quiet -p rnic-bench-daemon --bin bench-latency
	@$(PROFILE_DIR)/bench-latency

.PHONY: bench-micro
bench-micro: ## Micro-benchmarks: ICRC, copy and CRC, parsing, lookup, rings, timers, epochs (criterion)
	$(CARGO) bench -p rnic-bench-micro

.PHONY: bench-instructions
bench-instructions: deps ## Instructions a message of the RC fast path (callgrind) beside those written down; UPDATE=1 writes them
	@command -v valgrind >/dev/null || { sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends valgrind || true; }
	@$(CARGO) build --release --quiet -p rnic-testpmd
	@benches/testpmd/instructions.sh $(if $(UPDATE),--update)

.PHONY: check-syscalls
check-syscalls: deps ## No system call of a poll thread under load; less than 3 % of a core while idle
	@$(CARGO) build --release --quiet -p rnic-control --bins
	@$(CARGO) build --release --quiet -p rnic-bench-daemon --bin check-syscalls
	@$(PROFILE_DIR)/check-syscalls

# What is not installed and cannot be is left out of the comparison, which says so.
.PHONY: compare
compare: deps ## rnic beside TCP, UCX and libfabric here, beside rxe in a guest: ratios, JSON, an SVG in target/compare
	@missing=; for p in qperf ucx-utils libfabric-bin perftest; do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo apt-get update -qq; \
	  for p in $$missing; do $$sudo apt-get install -y -qq --no-install-recommends $$p || true; done; fi
	@$(CARGO) build --release --quiet -p rnic-control -p rnic-perf -p rnic-bench-daemon -p rnic-bench-compare --bins
	@$(CARGO) build --release --quiet -p rnic --example pingpong
	@$(PROFILE_DIR)/rnic-compare

.PHONY: clean
clean: ## Remove what was built
	$(CARGO) clean
