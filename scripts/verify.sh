#!/usr/bin/env bash
# What takes too long for `make check`. Writes docs/verification/latest.txt, to be committed.
# With HEADWAY_LABELLED naming a folder that has calibration/ and evaluation/ (images with labels.csv), the shipped models
# are built anew, compared by digest, measured, and run on an emulated CPU without VNNI; HEADWAY_TEXTS names the table of
# sentences that models/sentiment is built from.
set -euo pipefail
cd "$(dirname "$0")/.."
report=docs/verification/latest.txt
mkdir -p "$(dirname "$report")"
# Where this machine looks for packages and keeps temporary files is nobody's business.
exec > >(grep --line-buffered -v -e "^WARNING: Location '" -e '^ *Configuration: ' | tee "$report") 2>&1

echo "make verify, $(date -u +%Y-%m-%d), commit $(git rev-parse --short HEAD)$(git diff --quiet HEAD -- . ':!docs/verification' || echo ' with changes')"
echo "CPU: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | xargs), $(nproc) cores; $(.venv/bin/python --version)"
.venv/bin/python - <<'PY'
from importlib.metadata import version
print(", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "numpy", "pillow", "fastapi", "uvicorn", "gunicorn")))
PY

echo; echo "## hostile images, bodies in flight, memory over 200,000 requests"
scripts/debian.sh gcc:cc libc6-dev:
VENV=.venv-conversion scripts/setup.sh conversion
VENV=.venv-tensorflow scripts/setup.sh tensorflow
kserve=tests/api/open_inference/test_kserve.py
.venv/bin/pytest -q -s -m slow tests/slow tests/api tests/cli tests/nginx tests/optimize --ignore "$kserve"

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo; echo "## images and compose.yaml"
    scripts/verify_image.sh
    # Built from the layers that are there now.
    base=${BASE_IMAGE:-localhost/headway-base:bookworm}
    BUILDER=buildah BASE_IMAGE=$base BUILD_OPTIONS="--isolation chroot" scripts/image.sh localhost/headway >/dev/null 2>&1
    echo; echo "# manifests"
    scripts/verify_kubernetes.sh
fi

echo; echo "## the OpenAPI document against a running server, by Schemathesis"
.venv/bin/python scripts/verify_openapi.py 200
echo; echo "## kserve's own client"
.venv/bin/pytest -q -s -m slow "$kserve"
echo; echo "## Triton's perf_analyzer"
scripts/perf_analyzer.sh

if [ -n "${HEADWAY_LABELLED:-}" ]; then
    echo; echo "## accuracy through the served path"
    .venv/bin/headway evaluate efficientnet-lite0 "$HEADWAY_LABELLED/evaluation"
    echo; echo "## the recipes, built anew"
    scripts/verify_recipes.sh "$HEADWAY_LABELLED" "${HEADWAY_TEXTS:-}"
    .venv-recipes/bin/python -m pytest -q -m slow tests/recipes
fi
