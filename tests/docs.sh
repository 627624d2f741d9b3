#!/usr/bin/env bash
# Every file that the documents name exists, and every test that the requirements name.
set -euo pipefail
cd "$(dirname "$0")/.."
files=$(git ls-files)
bad=0
while read -r doc name; do
  name=${name#/}
  grep -qE "(^|/)${name//./\\.}$" <<<"$files" || { echo "docs: $doc names $name, which does not exist" >&2; bad=1; }
done < <(grep -oE '`[A-Za-z0-9_./-]+\.(rs|sh|yaml|service|md)`' README.md ARCHITECTURE.md docs/*.md docs/adr/*.md | tr -d '`' | sed 's/:/ /')
[ $bad = 0 ] && echo "docs: every file named exists"
tests/requirements.sh || bad=1
exit $bad
