#!/usr/bin/env bash
# rnic-perf at 8 B, 4 KiB and 1 MiB, on loopback (both clients on one port) and on the wire path, one JSON object a line.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${RNIC_BIN:-target/release}
run=$(mktemp -d /tmp/rnic-perf.XXXXXX)
export RNIC_SOCKET=$run/rnicd.sock RNIC_ADMIN_SOCKET=$run/admin.sock
"$bin/rnicd" --config deploy/samples/laptop.yaml >"$run/rnicd.log" 2>&1 &
rnicd=$!
trap 'kill $rnicd 2>/dev/null; wait $rnicd 2>/dev/null || true; rm -rf "$run"' EXIT
for _ in $(seq 100); do "$bin/rnicctl" status --json >/dev/null 2>&1 && break; sleep 0.1; done
port=$((20000 + RANDOM % 20000))
for path in loopback wire; do
  server=rnic1; [ $path = wire ] || server=rnic0
  for size in 8 4096 1048576; do
    iters=5000; [ $size -lt 100000 ] || iters=300
    for op in send write read; do
      for metric in bw lat; do
        port=$((port + 1))
        timeout 60 "$bin/rnic-perf" $op $metric -d $server -p $port -s $size -n $iters --path-label $path --json >/dev/null &
        timeout 60 "$bin/rnic-perf" $op $metric -d rnic0 -p $port -s $size -n $iters --path-label $path --json localhost | grep '^{'
        wait $!
      done
    done
  done
done
