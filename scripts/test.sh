#!/usr/bin/env bash
# The whole suite, in parallel. What it needs from Debian is installed where that is allowed, else named.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/debian.sh chromium:chromium fonts-dejavu-core: curl:curl nodejs:node gcc:cc libc6-dev: \
    postgresql:pg_ctlcluster prometheus:promtool prometheus-alertmanager:amtool nginx:nginx openssl:openssl
exec .venv/bin/pytest -n 3 --dist loadgroup -m 'not slow' "$@"
