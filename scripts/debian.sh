#!/usr/bin/env bash
# debian.sh PACKAGE:COMMAND …: see that each command is there, installing its Debian package where this user may.
# A package without a command is installed along with the others, and not looked for.
# In CI a missing component is a failure; elsewhere the tests that need it say so and are skipped.
set -euo pipefail
missing=() commands=()
for pair in "$@"; do
    command=${pair#*:}
    if [ -n "$command" ] && ! command -v "$command" >/dev/null 2>&1; then
        commands+=("$command")
    fi
done
[ ${#commands[@]} -gt 0 ] || exit 0
for pair in "$@"; do missing+=("${pair%%:*}"); done
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    printf 'Installing %s …\n' "${missing[*]}" >&2
    if apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; then
        exit 0
    fi
fi
printf 'Not installed: %s. On Debian and Ubuntu: sudo apt-get install %s\n' "${commands[*]}" "${missing[*]}" >&2
[ -z "${CI:-}" ]
