#!/usr/bin/env bash
# `make demo`: one appliance with two ports wired back to back through DPDK, two client processes that move data
# through it, a table, one provoked error, and the capture checked against the transport's rules. Leaves
# target/demo/session.pcapng and target/demo/result.json.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${RNIC_BIN:-target/release}
out=target/demo
rm -rf "$out"; mkdir -p "$out"
run=$(mktemp -d /tmp/rnic-demo.XXXXXX)
export RNIC_SOCKET=$run/rnicd.sock RNIC_ADMIN_SOCKET=$run/admin.sock RNIC_CAPTURE=$PWD/$out/session.pcapng
pids=()
cleanup() {
  local pid
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$run"
}
trap cleanup EXIT
fail() { echo "demo: $*" >&2; echo "--- $out/rnicd.log" >&2; tail -20 "$out/rnicd.log" >&2; exit 1; }
step() { printf '\n\033[1m%s\033[0m\n' "$*"; }

step "1. an appliance: two ports, wired back to back, no NIC, no hugepages"
"$bin/rnicd" --check deploy/samples/laptop.yaml >/dev/null
"$bin/rnicd" --config deploy/samples/laptop.yaml >"$out/rnicd.log" 2>&1 &
rnicd=$!; pids+=($rnicd)
for _ in $(seq 100); do
  kill -0 $rnicd 2>/dev/null || fail "rnicd ended"
  "$bin/rnicctl" status --json >/dev/null 2>&1 && break
  sleep 0.1
done
"$bin/rnicctl" dev || fail "rnicctl does not reach rnicd"

step "2. two client processes, one on each port; every byte goes through frames on the wire"
port=$((20000 + RANDOM % 20000))
: >"$out/runs.jsonl"
measure() { # OP METRIC SIZE ITERS
  port=$((port + 1))
  printf '   %-5s %-3s %8s bytes … ' "$1" "$2" "$3"
  timeout 30 "$bin/rnic-perf" "$1" "$2" -d rnic1 -p $port -s "$3" -n "$4" --path-label wire --json >"$run/server.out" 2>"$run/server.err" &
  local server=$!; pids+=($server)
  timeout 30 "$bin/rnic-perf" "$1" "$2" -d rnic0 -p $port -s "$3" -n "$4" --path-label wire --json localhost \
    >"$run/client.out" 2>"$run/client.err" || { cat "$run/client.err" "$run/server.err" >&2; fail "$1 $2 failed"; }
  wait $server || { cat "$run/server.err" >&2; fail "the server of $1 $2 failed"; }
  grep '^{' "$run/client.out" | tee -a "$out/runs.jsonl" | jq -r '
    if .metric == "bw" then "\(.gbit_per_s * 100 | round / 100) Gbit/s, \(.msgs_per_s | round) messages/s"
    else "p50 \(.p50_ns / 10 | round / 100) µs, p99 \(.p99_ns / 10 | round / 100) µs" end'
}
for op in send write read; do
  measure $op bw 65536 20000
  measure $op lat 8 10000
done

step "3. a write with a key that is not valid: the QP dies, and says why"
port=$((port + 1))
timeout 30 "$bin/examples/access_error" -d rnic1 -p $port --json >"$out/event.json" & server=$!; pids+=($server)
timeout 30 "$bin/examples/access_error" -d rnic0 -p $port localhost || fail "the access error did not happen"
wait $server || fail "no event"
jq -r '"   event \(.kind) on QP \(.qpn): \(.cause) (PSN \(.psn), opcode \(.opcode), syndrome \(.syndrome))"' "$out/event.json"

step "4. what was measured"
jq -rs '
  ["operation", "size", "Gbit/s", "messages/s", "p50 µs", "p99 µs"], ["---", "---", "---", "---", "---", "---"],
  (.[] | [.op + " " + .metric, .size,
    (if .metric == "bw" then (.gbit_per_s * 100 | round / 100) else "-" end),
    (if .metric == "bw" then (.msgs_per_s | round) else "-" end),
    (if .metric == "lat" then (.p50_ns / 10 | round / 100) else "-" end),
    (if .metric == "lat" then (.p99_ns / 10 | round / 100) else "-" end)]) | @tsv' "$out/runs.jsonl" | column -t -s $'\t'
jq -s --slurpfile event "$out/event.json" '{runs: ., event: $event[0]}' "$out/runs.jsonl" >"$out/result.json"

kill -TERM $rnicd; wait $rnicd || fail "rnicd did not stop cleanly"
frames=$(tshark -r "$out/session.pcapng" 2>/dev/null | wc -l)
[ "$frames" -gt 0 ] || fail "the capture is empty"
"$bin/rnic-trace" "$out/session.pcapng" >"$out/trace.txt" || { head "$out/trace.txt" >&2; fail "the capture violates the transport's rules"; }
printf '\n%s: %s frames (tshark -r %s)\n%s\n' "$out/session.pcapng" "$frames" "$out/session.pcapng" "$out/result.json"
