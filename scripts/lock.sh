#!/usr/bin/env bash
# Resolve pyproject.toml into requirements/*.txt: every package pinned with its hashes, for Python 3.11 and newer on
# every platform, and no index named. An environment that is behind its file is set up again by the next `make`.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uv
# Its 1.3 is for Pythons below 3.11: uv does not look at such upper bounds, and pip does.
echo "backports-strenum<1.3" > "$folder/constraints.txt"
compile() {
    local target=$1
    shift
    "$folder/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --constraint "$folder/constraints.txt" --no-emit-find-links --no-annotate \
        --custom-compile-command "make lock" "$@" -o "$target"
}
# torch and what only its CUDA build needs stay out: setup.sh installs the CPU build by its version, whose digest differs
# from platform to platform.
compile_without_torch() {
    local target=$1
    shift
    compile "$folder/all.txt" "$@"
    unwanted=$(grep -oE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)==' "$folder/all.txt" | tr -d '=' | sort -u)
    # shellcheck disable=SC2046,SC2086
    compile "$target" "$@" $(printf -- '--no-emit-package %s ' $unwanted)
}
# setuptools builds the project itself, without a second environment.
compile requirements/server.txt --extra build --extra grpc --extra tflite --extra postgresql pyproject.toml
compile_without_torch requirements/test.txt --extra build --extra grpc --extra tflite --extra postgresql --extra compare \
    --extra openvino --extra quantize-tflite --extra robustness --extra scikit-learn --extra test pyproject.toml
compile_without_torch requirements/recipes.txt --extra build --extra quantize-tflite --extra recipes pyproject.toml
compile_without_torch requirements/conversion.txt requirements/conversion.in
compile requirements/tensorflow.txt requirements/tensorflow.in
