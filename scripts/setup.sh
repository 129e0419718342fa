#!/usr/bin/env bash
# Make the virtual environment hold what requirements/$1.txt locks. Done once for each content of that file:
# the environment records the digest of what it holds, last of all, so that an interrupted call is repaired by the next.
set -euo pipefail
cd "$(dirname "$0")/.."
wanted=${1:?usage: setup.sh server|test|recipes|conversion|tensorflow}
venv=${VENV:-.venv}
python=${PYTHON:-python3}
lock=requirements/$wanted.txt

say() { printf '%s\n' "$*" >&2; }

digest_of() { cat "requirements/$1.txt" pyproject.toml | sha256sum | cut -d' ' -f1; }

is_current() {
    # What the tests need includes what the server needs.
    for kind in "$wanted" test; do
        [ "$(cat "$venv/.headway-$kind" 2>/dev/null)" = "$(digest_of "$kind")" ] && [ -x "$venv/bin/headway" ] && return 0
        [ "$wanted" = server ] || return 1
    done
    return 1
}

command -v sha256sum >/dev/null || sha256sum() { shasum -a 256 "$@"; }

if is_current; then exit 0; fi

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "Headway needs Python 3.11 or newer; '$python' is $("$python" --version 2>&1 || echo missing). Choose another with PYTHON=…"
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    say "'$python' has no venv module; on Debian and Ubuntu: apt-get install python3-venv"
    exit 1
fi

say "Setting up $venv for $wanted (once; about a minute) …"
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi
rm -f "$venv"/.headway-*
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
if [ "$wanted" != server ] && [ "$wanted" != tensorflow ]; then
    # The CPU build where pip finds one, else the one with CUDA, which works on a CPU as well.
    pip install --quiet "$(grep -oE '"torch==[0-9.]+' pyproject.toml | tr -d '"' | sort -u)"
fi
pip install --quiet --require-hashes --no-deps -r "$lock"
pip install --quiet --no-deps --no-build-isolation --no-index -e .
digest_of "$wanted" > "$venv/.headway-$wanted.part"
mv "$venv/.headway-$wanted.part" "$venv/.headway-$wanted"
