#!/usr/bin/env bash
# try.sh IMAGE: run it as a cluster does (read-only, no capabilities), wait until it is ready, have a photo classified, and stop it:
# it must end by itself with code 0.
set -euo pipefail
image=${1:?usage: try.sh IMAGE}
container=$(docker run --detach --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
    --memory 2g --publish 127.0.0.1::8000 "$image")
finish() {
    code=$?
    [ "$code" = 0 ] || docker logs "$container"
    docker rm --force --volumes "$container" > /dev/null
}
trap finish EXIT
address=$(docker port "$container" 8000/tcp)
curl --silent --show-error --fail --output /dev/null --retry 60 --retry-delay 1 --retry-all-errors "http://$address/health/ready"
answer=$(curl --silent --show-error --fail --header 'Content-Type: image/jpeg' --data-binary @examples/cat.jpg "http://$address/predict")
grep --quiet '"label": *"tiger cat"' <<< "$answer" || { printf 'Not a tiger cat: %s\n' "$answer" >&2; exit 1; }
docker stop --timeout 90 "$container" > /dev/null
code=$(docker inspect --format '{{.State.ExitCode}}' "$container")
[ "$code" = 0 ] || { printf 'It ended with code %s\n' "$code" >&2; exit 1; }
printf '%s: ready, a photo classified, stopped with code 0\n' "$image"
