#!/usr/bin/env bash
# `make bench-loss`: goodput of 1 MiB WRITEs between two appliances over a shared-memory link whose ports lose frames by
# chance, by go-back-N and with selective retransmission. Prints a JSON object for each measurement, and a table of medians.
#
#   tests/bench-loss.sh [seconds of each measurement] [rounds]
#   RNIC_RATES="0 1" for other rates of loss, in per cent
#   RNIC_SLEEP=1ms for cores that sleep longer: longer than a window of 256 packets lasts, which alone holds it back then
#   RNIC_CONGESTION=dcqcn for congestion control, which takes loss for congestion (docs/adr/0012)
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${RNIC_BIN:-target/release}
seconds=${1:-2}
rounds=${2:-3}
congestion=${RNIC_CONGESTION:-off}
rates=(${RNIC_RATES:-0 0.1 0.5 1 2 5})
run=$(mktemp -d /tmp/rnic-loss.XXXXXX)
pids=()
cleanup() {
  local pid
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  pids=()
}
trap 'cleanup; rm -rf "$run"' EXIT
fail() { echo "bench-loss: $*" >&2; tail -n 20 "$run"/*.log "$run"/*.err >&2; exit 1; }

start() { # NAME ROLE HOST LOSS
  local dir=$run/$1 faults=
  mkdir -p "$dir"
  [ "$4" = 0 ] || faults="faults: { seed: $3, rx: { drop: $4% } }"
  cat >"$dir/rnicd.yaml" <<YAML
version: 1
control: { socket: $dir/rnicd.sock, admin_socket: $dir/admin.sock, socket_mode: "0600" }
eal: { memory: none, memory_size: 128MiB }
cores: { poll: auto, count: 1, pin: false, idle: { policy: sleep, max_sleep: ${RNIC_SLEEP:-50us} } }
ports:
  - name: rnic0
    device: { vdev: "net_memif0,role=$2,id=0,socket=$run/memif.sock,socket-abstract=no,bsize=8192" }
    mtu: 4200
    addresses: ["10.0.0.$3/24"]
    congestion: $congestion
    $faults
YAML
  "$bin/rnicd" --config "$dir/rnicd.yaml" >"$run/$1.log" 2>&1 &
  local pid=$!
  pids+=($pid)
  for _ in $(seq 300); do
    kill -0 $pid 2>/dev/null || fail "rnicd $1 ended"
    RNIC_ADMIN_SOCKET=$dir/admin.sock "$bin/rnicctl" status --json >/dev/null 2>&1 && return
    sleep 0.1
  done
  fail "rnicd $1 does not answer"
}

port=$((20000 + RANDOM % 20000))
measure() { # MODE LOSS
  local option=; [ "$1" = selective ] && option=--selective
  port=$((port + 1))
  local common=(write bw -p $port -s 1M -D "$seconds" --tx-depth 8 --verify --json $option)
  timeout 120 "$bin/rnic-perf" "${common[@]}" --socket "$run/a/rnicd.sock" >"$run/server.out" 2>"$run/server.err" &
  local server=$!
  timeout 120 "$bin/rnic-perf" "${common[@]}" --socket "$run/b/rnicd.sock" localhost >"$run/client.out" 2>"$run/client.err" ||
    fail "$1 at $2 %: the client failed"
  wait $server || fail "$1 at $2 %: the server failed"
  grep '^{' "$run/client.out" | jq -c --arg mode "$1" --argjson loss "$2" --arg congestion "$congestion" \
    '{mode: $mode, loss_percent: $loss, congestion: $congestion, size, gbit_per_s, msgs_per_s, errors}'
}

# Rates and modes take turns, so that what else the machine does meets all of them.
for round in $(seq "$rounds"); do
  for loss in "${rates[@]}"; do
    start a server $((2 * round)) "$loss"
    start b client $((2 * round + 1)) "$loss"
    for mode in go-back-n selective; do measure $mode "$loss"; done
    cleanup
  done
done | tee "$run/results.jsonl"
jq -rs '
  def median: sort | .[(length - 1) / 2 | floor];
  def cell($mode; $loss): map(select(.mode == $mode and .loss_percent == $loss).gbit_per_s) | median;
  def text($mode; $loss): "\(cell($mode; $loss) * 1000 | round / 1000) (\(100 * cell($mode; $loss) / cell($mode; 0) | round) %)";
  ["loss", "go-back-N, Gbit/s (of loss-free)", "selective, Gbit/s (of loss-free)"],
  ["---", "---", "---"],
  ((map(.loss_percent) | unique[]) as $loss | ["\($loss) %", text("go-back-n"; $loss), text("selective"; $loss)]) | @tsv' \
  "$run/results.jsonl" | column -t -s $'\t'
