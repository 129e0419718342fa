#!/usr/bin/env bash
# image.sh [--push] [NAME]: build NAME:VERSION and NAME:VERSION-lite (NAME: headway) with Docker, else buildah, else podman.
# BASE_IMAGE=… takes another base, BUILD_OPTIONS="…" more options. What this host's pip is configured with, and its
# certificate authorities (SSL_CERT_FILE), are used in the build and do not stay in the image.
set -euo pipefail
cd "$(dirname "$0")/.."
push=
if [ "${1:-}" = --push ]; then push=1; shift; fi
name=${1:-headway}
version=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)}
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
source=$(git config --get remote.origin.url 2>/dev/null | sed 's#//[^@/]*@#//#' || true)
secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT

if [ -n "${BUILDER:-}" ]; then build=$BUILDER
elif docker info >/dev/null 2>&1; then build="docker"
elif command -v buildah >/dev/null; then build="buildah"
elif command -v podman >/dev/null; then build="podman"
else
    echo "Neither Docker (with its daemon), buildah nor podman is here. On Debian and Ubuntu: sudo apt-get install buildah" >&2
    exit 1
fi

options=()
python3 scripts/pip_config.py > "$secrets/pip.conf" 2> "$secrets/directories"
if [ -s "$secrets/pip.conf" ]; then options+=(--secret "id=pip_config,src=$secrets/pip.conf"); fi
if [ -n "${SSL_CERT_FILE:-}" ]; then options+=(--secret "id=ca_bundle,src=$SSL_CERT_FILE"); fi
if [ "$build" != docker ]; then
    while read -r directory; do options+=(--volume "$directory:$directory:ro"); done < "$secrets/directories"
    # Without it the health check is lost: the OCI's own format has none.
    options+=(--format docker --layers)
fi
if [ "$build" = docker ]; then export DOCKER_BUILDKIT=1; fi
if [ -n "${BASE_IMAGE:-}" ]; then options+=(--build-arg "BASE_IMAGE=$BASE_IMAGE"); fi
read -ra more <<< "${BUILD_OPTIONS:-}"

for target in server lite; do
    tag=$name:$version
    if [ "$target" = lite ]; then tag=$tag-lite; fi
    "$build" build "${options[@]}" "${more[@]}" --file docker/Dockerfile --target "$target" --tag "$tag" \
        --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "SOURCE=${source:-unknown}" .
    if [ -n "$push" ]; then "$build" push "$tag"; fi
    echo "$tag"
done
