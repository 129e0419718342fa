#!/usr/bin/env bash
# verify_recipes.sh DIR [ENGLISH.csv]: build the shipped models anew from DIR/calibration and DIR/evaluation, and from the
# sentences of ENGLISH.csv where it is given, compare their digests with what is committed, and run the INT8 models on an
# emulated CPU without VNNI.
set -euo pipefail
cd "$(dirname "$0")/.."
labelled=${1:?usage: verify_recipes.sh DIR [ENGLISH.csv]}
english=${2:-}
scripts/debian.sh qemu-user-static:qemu-x86_64-static
VENV=.venv-recipes scripts/setup.sh recipes
VENV=.venv-conversion scripts/setup.sh conversion
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv-recipes/bin/python recipes/efficientnet_lite0.py --calibration "$labelled/calibration" \
    --evaluation "$labelled/evaluation" --models "$work" | sed "s#$work/##"
.venv-recipes/bin/python recipes/efficientnet_lite0_tflite.py --calibration "$labelled/calibration" \
    --evaluation "$labelled/evaluation" --models "$work" | sed "s#$work/##"
.venv-recipes/bin/python recipes/digits.py --models "$work" | sed "s#$work/##"
.venv-recipes/bin/python recipes/recommender.py --models "$work" | sed "s#$work/##"
same=()
if [ -n "$english" ]; then
    .venv-recipes/bin/python recipes/sentiment.py --english "$english" --models "$work" | sed "s#$work/##"
    same=(sentiment/1.0.0/model.onnx)
fi
for model in efficientnet-lite0/1.1.0/model.onnx efficientnet-lite0-tflite/1.0.0/model.tflite \
    digits/1.0.0/model.onnx digits/1.1.0/model.onnx recommender/1.0.0/model.onnx "${same[@]}"; do
    cmp "$work/$model" "models/$model" && echo "$model: the same digest"
done
