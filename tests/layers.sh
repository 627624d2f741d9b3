#!/usr/bin/env bash
# Arrows point down only: each crate may depend on what its layer allows, and on nothing else of this workspace.
set -euo pipefail
cd "$(dirname "$0")/.."
allowed() {
  case $1 in
    dpdk-sys | rnic-wire | rnic-qsbr | rnic-abi | rnic-config) echo ;;
    rnic-simd | rnic-transport) echo rnic-wire ;;
    rnic-sim) echo rnic-wire rnic-transport ;;
    rnic-trace) echo rnic-wire ;;
    rnic-conformance) echo rnic-sim rnic-trace rnic-transport rnic-wire ;;
    rnic-engine) echo dpdk-sys rnic-abi rnic-qsbr rnic-simd rnic-transport rnic-wire ;;
    rnic-control) echo rnic-abi rnic-config rnic-engine rnic-qsbr rnic-transport rnic-wire ;;
    rnic) echo rnic-abi ;;
    rnic-perf) echo rnic ;;
    rnic-testpmd) echo rnic-abi rnic-engine rnic-simd rnic-transport rnic-wire ;;
    rnic-bench) echo ;;
    rnic-bench-compare) echo rnic-bench rnic-guest ;;
    rnic-bench-daemon) echo rnic rnic-bench ;;
    rnic-bench-micro) echo rnic-wire ;;
    rnic-bench-lifetimes) echo dpdk-sys rnic-abi rnic-bench rnic-engine rnic-qsbr ;;
    rnic-tests) echo rnic rnic-abi rnic-config rnic-control rnic-engine rnic-trace rnic-transport rnic-wire rnic-simd ;;
    rnic-guest) echo ;;
    rnic-interop) echo rnic rnic-guest rnic-tests rnic-trace ;;
    rnic-stress) echo rnic rnic-abi rnic-tests ;;
    *) echo "unknown" ;;
  esac
}
bad=0
while read -r crate dependency; do
  may=$(allowed "$crate")
  if [ "$may" = unknown ]; then echo "layers: $crate has no place in the table of tests/layers.sh" >&2; bad=1; continue; fi
  case " $may " in *" $dependency "*) ;; *) echo "layers: $crate must not use $dependency" >&2; bad=1 ;; esac
done < <(cargo metadata --no-deps --format-version 1 --offline 2>/dev/null | jq -r '
  [.packages[].name] as $own | .packages[] | .name as $n | .dependencies[]
  | select(.kind != "dev") | select(.name as $d | $own | index($d)) | "\($n) \(.name)"' | sort -u)
for crate in dataplane/wire dataplane/transport client/abi; do
  for word in '#!\[no_std\]' '#!\[forbid(unsafe_code)\]'; do
    grep -q "$word" "$crate/src/lib.rs" || { echo "layers: $crate/src/lib.rs lacks ${word//\\/}" >&2; bad=1; }
  done
done
[ $bad = 0 ] && echo "layers: every crate keeps to its layer"
exit $bad
