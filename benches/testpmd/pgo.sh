#!/usr/bin/env bash
# Builds rnicd and rnic-testpmd with the profile of a mixture of testpmd's runs, in target/pgo: once with counters, which the
# runs fill, and once with what they have counted. Needs the llvm-profdata of the LLVM that rustc has: others do not know the
# format of the counters.
#
# Usage: pgo.sh; LLVM_PROFDATA names the tool where it is not found, CARGO cargo, SECONDS_EACH how long each run takes.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo=${CARGO:-cargo}
out=$PWD/target/pgo
host=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')

fits() { [ "$("$1" --version 2>/dev/null | sed -n 's/.*LLVM version \([0-9]*\).*/\1/p' | head -1)" = "$llvm" ]; }
profdata=
for candidate in "${LLVM_PROFDATA:-}" "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" \
  "llvm-profdata-$llvm" llvm-profdata; do
  if [ -n "$candidate" ] && fits "$candidate"; then profdata=$candidate; break; fi
done
if [ -z "$profdata" ]; then
  echo "pgo: no llvm-profdata of LLVM $llvm, which $(rustc --version) has; nothing was built." >&2
  echo "pgo: 'apt-get install llvm-$llvm' or 'rustup component add llvm-tools' brings it; LLVM_PROFDATA names another." >&2
  exit 1
fi

# With --target the flags are for the programs alone, not for build scripts, which would leave profiles of themselves.
build() { # FLAGS TARGET_DIR
  RUSTFLAGS="${RUSTFLAGS:-} $1" CARGO_TARGET_DIR=$2 $cargo build --release --quiet --target "$host" \
    -p rnic-control -p rnic-testpmd --bin rnicd --bin rnic-testpmd
}

rm -rf "$out/raw"
build "-Cprofile-generate=$out/raw" "$out/instrumented"
rm -rf "$out/raw" # whatever else was run meanwhile
run() { # ARGS
  # shellcheck disable=SC2086
  "$out/instrumented/$host/release/rnic-testpmd" --json --seconds "${SECONDS_EACH:-1}" --mode $1 >/dev/null
}
for args in "rc-write --size 8" "rc-write --size 8 --qps 16" "rc-write --size 8 --qps 10000" "rc-send --size 64 --qps 16" \
  "rc-read --size 8 --qps 4" "rc-atomic --size 8 --qps 4" "mixed --size 64 --qps 16" "ud-send --size 64 --qps 4" \
  "rc-write --size 1M --outstanding 16 --reuse" "rc-send --size 64K --outstanding 16" "rc-read --size 64K --outstanding 16"; do
  run "$args"
done
# What has not run is taken for cold and made small: the kernels that this processor would not choose run too, for those that do.
for kernel in portable pclmulqdq vpclmulqdq; do
  for args in "rc-write --size 8" "rc-write --size 64K --outstanding 16"; do RNIC_SIMD=$kernel run "$args"; done
done
"$profdata" merge -o "$out/merged.profdata" "$out/raw"
# Cargo looks at the name of a profile and not into it.
profile=$out/$(sha256sum <"$out/merged.profdata" | cut -c1-16).profdata
find "$out" -maxdepth 1 -name '*.profdata' ! -name merged.profdata -delete
mv "$out/merged.profdata" "$profile"
build "-Cprofile-use=$profile" "$out"
echo "pgo: $out/$host/release/rnicd, rnic-testpmd"
