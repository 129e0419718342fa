#!/usr/bin/env bash
# Make app/api/open_inference_grpc/stubs from protocol/*.proto, by the compiler in an environment of its own.
# The messages go into a pool of ours: in the default one they would collide with those of a client library, which has
# the same names, in the same process. Each file names the digest of its source, which a test compares.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=.venv-stubs
out=app/api/open_inference_grpc/stubs

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'grpcio-tools==1.85.1'
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
"$venv/bin/python" -m grpc_tools.protoc -Iprotocol --python_out="$made" --pyi_out="$made" protocol/*.proto
for source in protocol/*.proto; do
    digest=$(sha256sum "$source" 2>/dev/null || shasum -a 256 "$source")
    for kind in py pyi; do
        name=$(basename "$source" .proto)_pb2.$kind
        {
            # shellcheck disable=SC2016  # the name is meant
            printf '# Made by `make stubs` from %s, SHA-256 %s.\n' "$source" "${digest%% *}"
            printf '# ruff: noqa\n# fmt: off\n# mypy: ignore-errors\n'
            sed -e '/^# -\*- coding/d' \
                -e 's/^from google.protobuf import descriptor_pool as _descriptor_pool$/from app.api.open_inference_grpc.pool import POOL as _pool/' \
                -e 's/_descriptor_pool\.Default()/_pool/' "$made/$name"
        } >"$out/$name"
    done
done
