#!/usr/bin/env bash
# Resolve pyproject.toml into requirements/*.txt: every package pinned with its hashes, for Python 3.11 and newer on
# every platform, and no index named. An environment that is behind its file is set up again by the next `make`.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uv
compile() {
    local target=$1
    shift
    "$folder/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-find-links --no-annotate --custom-compile-command "make lock" "$@" -o "$target" pyproject.toml
}
# setuptools builds the project itself, without a second environment.
compile requirements/server.txt --extra build
compile requirements/test.txt --extra build --extra test
# torch and what only its CUDA build needs stay out: setup.sh installs the CPU build by its version, whose digest differs
# from platform to platform.
compile "$folder/recipes.txt" --extra build --extra recipes
unwanted=$(grep -oE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)==' "$folder/recipes.txt" | tr -d '=' | sort -u)
# shellcheck disable=SC2046,SC2086
compile requirements/recipes.txt --extra build --extra recipes $(printf -- '--no-emit-package %s ' $unwanted)
