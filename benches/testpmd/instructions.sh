#!/usr/bin/env bash
# Instructions a message of the RC fast path, both ends together, counted under callgrind: what a slow or busy machine does
# not change. Each script is run with two numbers of messages; the difference is free of start-up and end. CRCs are
# computed by the portable kernel, since valgrind knows no AVX-512.
#
# Prints one JSON object a script and compares it with instructions.tsv: more than TOLERANCE percent above is a failure,
# as much below a hint to write the new figures down (--update).
set -euo pipefail
cd "$(dirname "$0")"
baseline=$PWD/instructions.tsv
program=${RNIC_TESTPMD:-../../target/release/rnic-testpmd}
tolerance=${TOLERANCE:-3}
messages=4800
command -v valgrind >/dev/null || { echo "SKIPPED: valgrind is not installed" >&2; exit 0; }
run=$(mktemp -d /tmp/rnic-instructions.XXXXXX)
trap 'rm -rf "$run"' EXIT
export RNIC_SIMD=portable

count() { # MESSAGES ARGS…
  local n=$1; shift
  # shellcheck disable=SC2086
  valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" --messages "$n" $* >"$run/out" 2>"$run/err" ||
    { cat "$run/out" "$run/err" >&2; exit 1; }
  sed -n 's/.*Collected : \([0-9]*\).*/\1/p' "$run/err"
}

failed=0
while IFS=$'\t' read -r args expected; do
  [ -n "$args" ] || continue
  few=$(count $messages "$args")
  done_few=$(jq .messages "$run/out")
  many=$(count $((3 * messages)) "$args")
  done_many=$(jq .messages "$run/out")
  line=$(jq -nc --arg script "$args" --argjson few "$few" --argjson many "$many" --argjson df "$done_few" \
    --argjson dm "$done_many" --arg expected "$expected" --argjson tolerance "$tolerance" '
    ((($many - $few) / ($dm - $df)) * 10 | round / 10) as $per | ($expected | tonumber? // null) as $base
    | {script: $script, instructions_per_msg: $per, baseline: $base,
       change_percent: (if $base then (($per / $base - 1) * 1000 | round / 10) else null end)}
    | . + {ok: ($base != null and .change_percent <= $tolerance)}')
  echo "$line"
  printf '%s\t%s\n' "$args" "$(jq .instructions_per_msg <<<"$line")" >>"$run/new"
  if [ "$(jq .ok <<<"$line")" = false ]; then failed=1; fi
  if [ "$(jq ".change_percent != null and .change_percent < -$tolerance" <<<"$line")" = true ]; then
    echo "fewer than in $(basename "$baseline"): write it down with 'make bench-instructions UPDATE=1'" >&2
  fi
done <"$baseline"
if [ "${1:-}" = --update ]; then cp "$run/new" "$baseline"; exit 0; fi
[ $failed = 0 ] || { echo "more instructions than $(basename "$baseline") allows" >&2; exit 1; }
