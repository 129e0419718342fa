#!/usr/bin/env bash
# perf_analyzer.sh [OPTION…]: Triton's perf_analyzer against a server of its own with the model digits, by HTTP and by gRPC;
# prints its tables. The options are perf_analyzer's; without any it measures digits for a few seconds.
# The program is in the wheel of tritonclient 2.48.0, for Linux on x86-64; it wants libb64 (from Debian's package, which
# is unpacked and not installed) and CUDA's runtime library, and no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv-perf-analyzer

if [ ! -d "$venv/libb64" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
        tritonclient==2.48.0 nvidia-cuda-runtime-cu12==12.9.79
    (cd "$venv" && apt-get download -qq -o APT::Sandbox::User=root libb64-0d && dpkg -x libb64-0d_*.deb libb64)
fi
LD_LIBRARY_PATH=$(find "$PWD/$venv" \( -name 'libb64.so*' -o -name 'libcudart.so*' \) -printf '%h\n' | sort -u |
    paste -sd: -)
export LD_LIBRARY_PATH
if [ $# -eq 0 ]; then
    set -- -m digits -b 4 --concurrency-range 1:4:3 \
        --measurement-mode count_windows --measurement-request-count 1000 --stability-percentage 999
fi

work=$(mktemp -d)
# Its figures of the server are those of a version that is a whole number: of others it says 0 requests.
mkdir -p "$work/models/digits"
cp -R models/digits/1.1.0 "$work/models/digits/1"
sed -i 's/^version: .*/version: "1"/' "$work/models/digits/1/model.yaml"
HEADWAY_MODELS=$work/models HEADWAY_DATA_DIR=$work .venv/bin/headway serve --port 0 --grpc-port 0 2>"$work/log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" || true; rm -rf "$work"' EXIT
for _ in $(seq 600); do
    grep -q "serves at" "$work/log" && break
    kill -0 "$server" 2>/dev/null || { cat "$work/log"; exit 1; }
    sleep 0.1
done
http=$(sed -nE 's#.*serves at http://([^ ]+).*#\1#p' "$work/log")
grpc=$(sed -nE 's#.*gRPC at (grpc://)?([^ ]+).*#\2#p' "$work/log")
for address in "-i HTTP -u $http" "-i gRPC -u $grpc"; do
    echo "### perf_analyzer $address $*"
    # shellcheck disable=SC2086
    "$venv/bin/perf_analyzer" $address "$@"
done
