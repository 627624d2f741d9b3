#!/usr/bin/env bash
# Every test, script and rule that docs/requirements.md names exists, and every requirement has one or is marked open.
set -euo pipefail
cd "$(dirname "$0")/.."
doc=docs/requirements.md
bad=0 rows=0 open=0
complain() { echo "requirements: $doc:$1: $2" >&2; bad=1; }
# Functions under #[test], with whatever attributes and comments between; and those that the macro of the mutations makes.
functions=$(git ls-files -co --exclude-standard '*.rs' | xargs awk '
  /^ *#\[test\]/ { test = 1; next }
  test && match($0, /fn [a-z0-9_]+/) { print substr($0, RSTART + 3, RLENGTH - 3); test = 0 }
  test && /^ *[^ #\/]/ { test = 0 }
  match($0, /^    [a-z0-9_]+: [A-Z][A-Za-z]+;$/) { sub(/^ +/, ""); sub(/:.*/, ""); print }' | sort -u)
scripts=$(git ls-files -co --exclude-standard 'tests/conformance/scripts/*.txt' | sed 's#.*/##')
rules=$(sed -nE 's/^ +"([a-z]+(-[a-z]+)*)",$/\1/p' tests/trace/src/rule.rs; grep -oE '=> \["[a-z-]+"' tests/trace/src/rule.rs | grep -oE '"[a-z-]+"' | tr -d '"')
number=0
while IFS= read -r line; do
  number=$((number + 1))
  [[ $line == '|'* && $line != '|---'* && $line != '| requirement |'* ]] || continue
  rows=$((rows + 1))
  IFS='|' read -r _ what section tests _ <<<"$line"
  [ -n "${section// /}" ] || complain $number "no section of the specification"
  if [[ $tests == *'**open**'* ]]; then open=$((open + 1)); continue; fi
  [[ $tests == *'`'* ]] || complain $number "neither a test nor marked **open**:$what"
  while read -r kind name; do
    case $kind:$name in
      rule:*) grep -qx -- "$name" <<<"$rules" || complain $number "rnic-trace has no rule $name" ;;
      *.txt) grep -qx -- "$name" <<<"$scripts" || complain $number "there is no script $name" ;;
      *) grep -qx -- "$name" <<<"$functions" || complain $number "there is no test $name" ;;
    esac
  done < <(grep -oE '(rule )?`[^`]+`' <<<"$tests" | sed -E 's/^rule `/rule /; s/^`/test /; s/`$//')
done <$doc
# A script that no requirement needs is one that nobody will miss.
for script in $scripts; do
  grep -q "\`$script\`" $doc || { echo "requirements: no requirement names the script $script" >&2; bad=1; }
done
[ $rows -gt 0 ] || complain 1 "no requirements"
[ $bad = 0 ] && echo "requirements: $rows, $open of them open; every test, script and rule named exists"
exit $bad
