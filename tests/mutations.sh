#!/usr/bin/env bash
# Breaks one line at a time, each the line that holds an invariant, and checks that the test named for it fails.
#
# A mutation is a patch in tests/mutations/ that begins with
#   Invariant: the invariant of ARCHITECTURE.md it breaks
#   Breaks: what goes wrong
#   Test: the test that must fail
#   Run: how cargo runs it (RUSTFLAGS and the like may come first)
#
#   tests/mutations.sh              all of them, some minutes
#   tests/mutations.sh I3 I7-pages  those whose names begin so
#   tests/mutations.sh --check      only that each still applies and names a test there is (part of make lint)
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
header() { sed -n "s/^$1: //p;/^diff /q" "$2" | head -1; }

check() {
  local bad=0 patch name
  for patch in tests/mutations/*.patch; do
    name=$(basename "$patch" .patch)
    for key in Invariant Breaks Test Run; do
      [ -n "$(header $key "$patch")" ] || { echo "mutations: $name has no line '$key:'" >&2; bad=1; }
    done
    git apply --check "$patch" 2>/dev/null || { echo "mutations: $name no longer applies: make it anew" >&2; bad=1; }
    local test; test=$(header Test "$patch")
    git grep -qE "fn ${test##*::}\b" -- '*.rs' || { echo "mutations: $name names $test, which does not exist" >&2; bad=1; }
    grep -q "\`$name\`" ARCHITECTURE.md || { echo "mutations: ARCHITECTURE.md does not list $name" >&2; bad=1; }
  done
  [ $bad = 0 ] && echo "mutations: every one applies and names its test"
  return $bad
}
if [ "${1:-}" = --check ]; then check; exit; fi

tree=$root/target/mutations/tree
git worktree remove --force "$tree" 2>/dev/null || true
rm -rf "$tree"
git worktree prune
git worktree add -q --detach "$tree" HEAD
trap 'cd "$root"; git worktree remove --force "$tree"' EXIT
export CARGO_TARGET_DIR=$root/target/mutations/build
cd "$tree"
survived=0 caught=0
for patch in "$root"/tests/mutations/*.patch; do
  name=$(basename "$patch" .patch)
  if [ $# -gt 0 ]; then
    wanted=0
    for prefix in "$@"; do [[ $name == "$prefix"* ]] && wanted=1; done
    [ $wanted = 1 ] || continue
  fi
  git checkout -q -- . && git apply "$patch"
  test=$(header Test "$patch")
  log=$CARGO_TARGET_DIR/$name.log
  mkdir -p "$CARGO_TARGET_DIR"
  # However long it takes to build: what is limited is the test, which may hang.
  build=$(header Run "$patch"); build=${build/cargo test/cargo test --no-run}
  bash -c "env ${build%% -- *}" >"$log" 2>&1 || true
  # A test under a model checker or sanitizer may abort its process instead of failing in the usual way; then the
  # log ends while the test runs. What does not compile proves nothing.
  if bash -c "timeout 300 env $(header Run "$patch")" >>"$log" 2>&1; then
    echo "SURVIVED $name: $(header Breaks "$patch")"; survived=$((survived + 1))
  elif grep -qE '^error(\[E[0-9]+\])?: ' "$log" && ! grep -q '^running [0-9]* test' "$log"; then
    echo "BROKEN   $name: the mutation does not compile, see $log"; survived=$((survived + 1))
  elif grep -q "${test##*::}" "$log"; then
    echo "caught   $name by $test"; caught=$((caught + 1))
  else
    echo "BROKEN   $name: something else failed than $test, see $log"; survived=$((survived + 1))
  fi
done
echo "mutations: $caught caught, $survived not"
[ $survived = 0 ]
