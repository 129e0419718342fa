#!/usr/bin/env bash
# Look up every package of requirements/*.txt among the known vulnerabilities; one that cannot be looked up is a failure too.
# All files are looked at, whatever the first one says.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pip-audit==2.10.1
failed=0
for lock in requirements/*.txt; do
    printf '%s:\n' "$lock"
    "$folder/venv/bin/pip-audit" --strict --disable-pip --require-hashes --progress-spinner off --requirement "$lock" || failed=1
done
exit "$failed"
