#!/usr/bin/env bash
# Build both images for real and run them as production does, alone and by compose.yaml; prints what it found, and ends with 1
# at the first thing that is not so. Needs root on Debian. Where no registry can be reached, all bases are made of Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/debian.sh buildah:buildah podman:podman runc:runc mmdebstrap:mmdebstrap catatonit:catatonit netavark: aardvark-dns: curl:curl
work=$(mktemp -d)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# Of containers, volumes and images: nothing that this machine has by the usual names is touched.
name=localhost/headway-verification
compose=$(command -v podman-compose || echo "$PWD/.venv/bin/podman-compose")
container=headway-verification
photo=examples/cat.jpg

clean() {
    podman rm --force --volumes --time 0 "$container" >/dev/null 2>&1 || true
    if [ -f "$work/site/compose.yaml" ]; then
        (cd "$work/site" && "$compose" -p "$container" down --volumes --timeout 0 >/dev/null 2>&1) || true
    fi
    podman image rm --force "$name:$version" "$name:$version-lite" "$name/nginx" "$name/prometheus" "$name/alertmanager" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap clean EXIT
[ -x "$compose" ] || { echo "podman-compose is not installed: pip install podman-compose" >&2; exit 1; }

fail() { echo "FAILED: $*"; exit 1; }
await() { # await SECONDS COMMAND…: until it succeeds
    local limit=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $limit ] || return 1; sleep 0.2; done
}

# crun fails where both versions of cgroups are mounted, and raising a limit may be forbidden to this root.
cat > "$work/containers.conf" <<'CONF'
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
export CONTAINERS_CONF=$work/containers.conf

# What the official images have where their processes write.
# shellcheck disable=SC2016
layout='rm -rf "$1/var/log/nginx"; mkdir -p "$1/var/log/nginx" "$1/prometheus" "$1/alertmanager"
    ln -s /dev/stderr "$1/var/log/nginx/error.log"; chown 65534:65534 "$1/prometheus" "$1/alertmanager"'
bootstrap() { # bootstrap IMAGE PACKAGES CHANGE…: an image of Debian packages, without perl, which nothing of them needs
    local image=$1 packages=$2 exclude=() changes=() part; shift 2
    for part in doc info locale man; do exclude+=("--dpkgopt=path-exclude=/usr/share/$part/*"); done
    for part in "$@"; do changes+=(--change "$part"); done
    if ! [ -f "$work/$packages.tar" ]; then
        # shellcheck disable=SC2016  # $1 is the hook's
        mmdebstrap --quiet --variant=essential "${exclude[@]}" --include="usr-is-merged,$packages" --customize-hook='chroot "$1" dpkg --purge \
            --force-depends $(chroot "$1" dpkg-query -W -f "\${Package}\n" usrmerge "*perl*" | grep -vx perl-base)' \
            --customize-hook="$layout" bookworm "$work/$packages.tar" > "$work/log" 2>&1 || { cat "$work/log"; fail "mmdebstrap $packages"; }
    fi
    podman import --quiet "${changes[@]}" "$work/$packages.tar" "$image" >/dev/null
}

base=${BASE_IMAGE:-localhost/headway-base:bookworm}
if [ -z "${BASE_IMAGE:-}" ]; then bootstrap "$base" python3,python3-venv,python3-pip,ca-certificates,libstdc++6; fi
echo "$(buildah --version); $(podman --version)"
BUILDER=buildah BASE_IMAGE=$base BUILD_OPTIONS="--isolation chroot ${BUILD_OPTIONS:-}" scripts/image.sh "$name" > "$work/log" 2>&1 ||
    { tail -n 40 "$work/log"; fail "the build"; }

megabytes() { echo $(($(podman image inspect --format '{{.Size}}' "$1") / 1000000)); }

classify() { # classify URL: a cat, or what else was answered
    curl --silent --show-error --max-time 30 "$1/predict" -H 'Content-Type: image/jpeg' --data-binary @"$photo" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["predictions"][0]["label"])'
}

status_of() { curl --silent --max-time 30 --output /dev/null --write-out '%{http_code}' "$@"; }

check_image() {
    local image=$name:$1 url label found
    echo "$image: $(megabytes "$image") MB, of which its base $(megabytes "$base") MB"
    [ "$(megabytes "$image")" -lt 400 ] || fail "400 MB or more"
    podman run --detach --name "$container" --no-healthcheck --read-only --read-only-tmpfs=false --tmpfs /tmp --cap-drop ALL \
        --security-opt no-new-privileges --memory 1g --cpus 1 --publish 127.0.0.1::8000 "$image" >/dev/null
    url=http://$(podman port "$container" 8000/tcp)
    # Its own health check, which podman does not repeat without systemd.
    await 60 podman exec "$container" /app/.venv/bin/python -I -S /app/healthcheck.py || { podman logs "$container"; fail "it does not become healthy"; }
    podman image inspect --format '{{json .HealthCheck}}' "$image" | grep -q healthcheck.py || fail "no health check in the image"
    found=$(podman exec "$container" sh -c 'id -u; touch /app/x 2>/dev/null && echo written; grep CapEff /proc/1/status | cut -f2; tr "\0" " " </proc/1/cmdline')
    echo "  read-only, no capabilities, 1 CPU, 1 GB; user, capabilities, process 1: $(echo "$found" | xargs)"
    [ "$(echo "$found" | head -n 2 | xargs)" = "10001 0000000000000000" ] || fail "another user, capabilities, or a file system that can be written to"
    found=$(podman exec "$container" sh -c 'for one in pip pip3 gcc cc g++ make ld as curl; do command -v $one; done
        find / -xdev \( -name pip -o -name ensurepip -o -name setuptools -o -path "*/.cache/*" \) 2>/dev/null' || true)
    [ -z "$found" ] || fail "pip, a compiler or a cache: $found"
    label=$(classify "$url")
    echo "  $photo is a $label; rubbish gets $(status_of "$url/predict" -H 'Content-Type: image/jpeg' --data-binary @LICENSE)"
    case $label in *cat*) ;; *) fail "no cat" ;; esac
    [ "$(status_of "$url/predict" -H 'Content-Type: image/jpeg' --data-binary @LICENSE)" = 400 ] || fail "rubbish"
    [ "$(classify "$url")" = "$label" ] || fail "after rubbish"
    found=$SECONDS
    podman stop --time 30 "$container" >/dev/null
    echo "  SIGTERM: exit code $(podman inspect --format '{{.State.ExitCode}}' "$container") after $((SECONDS - found)) s"
    [ "$(podman inspect --format '{{.State.ExitCode}}' "$container")" = 0 ] || fail "SIGTERM"
    podman rm --volumes "$container" >/dev/null
    podman run --detach --name "$container" --no-healthcheck "$image" >/dev/null
    sleep 0.5
    found=$SECONDS
    podman stop --time 30 "$container" >/dev/null
    echo "  SIGTERM half a second after the start: over after $((SECONDS - found)) s"
    [ $((SECONDS - found)) -lt 20 ] || fail "SIGTERM at the start"
    podman rm --volumes "$container" >/dev/null
}
check_image "$version"
check_image "$version-lite"

# --- compose.yaml, as it is but for what Debian's nginx 1.22 does not know: `resolve` and `http2 on`
mkdir "$work/site"
cp -r compose.yaml docker grafana models nginx prometheus "$work/site"
sed -i '/^resolver/d; s/ resolve / /' "$work/site/docker/nginx/replicas.conf"
sed -i '/^http2 on/d' "$work/site/nginx/kubernetes/listen.conf"
# The load below comes from one address.
sed -i -E 's/(rate|burst)=[0-9]+/\1=100000/' "$work/site/nginx/site/limits.conf"
sed -i -E "s#^( +image: )headway:#\1$name:#; s#^( +image: ).*/(nginx|prometheus|alertmanager)[^/]*:.*#\1$name/\2#" "$work/site/compose.yaml"
peers=nginx-light,prometheus,prometheus-alertmanager
bootstrap "$name/nginx" "$peers" 'USER 101:101'
bootstrap "$name/prometheus" "$peers" 'USER 65534:65534' 'ENTRYPOINT ["/bin/prometheus"]'
bootstrap "$name/alertmanager" "$peers" 'USER 65534:65534' 'ENTRYPOINT ["/bin/prometheus-alertmanager"]'
up() {
    (cd "$work/site" && "$compose" -p "$container" up --detach --no-build --no-deps "$@" > "$work/log" 2>&1) ||
        { cat "$work/log"; fail "compose up $*"; }
}
replicas="headway-1 headway-2 headway-3"
id_of() {
    podman ps --all --quiet --filter "label=com.docker.compose.project=$container" --filter "label=com.docker.compose.service=$1"
}
# shellcheck disable=SC2086
up $replicas
for replica in $replicas; do
    await 60 podman exec "$(id_of "$replica")" /app/.venv/bin/python -I -S /app/healthcheck.py || fail "$replica is not healthy"
done
up nginx prometheus alertmanager
await 30 curl --silent --fail http://127.0.0.1:8080/nginx-health || { podman logs --tail 3 "$(id_of nginx)"; fail "nginx"; }
echo "compose.yaml with $("$compose" --version 2>/dev/null | head -n 1); nginx, Prometheus and Alertmanager of Debian; without Grafana"
echo "  through nginx: $photo is a $(classify http://127.0.0.1:8080); a replica's port from outside: $(status_of http://127.0.0.1:8000/ || true)"
[ "$(status_of http://127.0.0.1:8080/metrics)" = 404 ] || fail "/metrics is open"

secrets=$(for replica in $replicas; do podman exec "$(id_of "$replica")" sha256sum /data/secret; done | sort -u | wc -l)
echo "  secrets of the three replicas: $secrets"
[ "$secrets" = 1 ] || fail "the replicas do not share a secret"
count_up() {
    curl --silent 'http://127.0.0.1:9090/api/v1/query?query=sum(up\{job="headway"\})' |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["data"]["result"][0]["value"][1])'
}
are_up() { [ "$(count_up)" = 3 ]; }
await 60 are_up || { podman logs --tail 5 "$(id_of prometheus)"; fail "Prometheus does not see three replicas: $(count_up)"; }
count_of() { curl --silent "http://127.0.0.1:9090/api/v1/$1" | grep -o "$2" | wc -l; }
echo "  Prometheus: 3 replicas are up, $(count_of rules '"type":"\(alerting\|recording\)"') rules," \
    "$(count_of alertmanagers '"url"') Alertmanager"
[ "$(status_of http://127.0.0.1:9093/-/ready)" = 200 ] || fail "Alertmanager"

python3 scripts/verify_load.py http://127.0.0.1:8080/predict "$photo" -- podman kill --signal KILL "$(id_of headway-2)" || fail "under load"
for replica in headway-1 headway-3; do
    found=$(podman exec "$(id_of "$replica")" /app/.venv/bin/python -c 'import urllib.request as r
text = r.urlopen("http://127.0.0.1:8000/metrics").read().decode()
lines = [line for line in text.splitlines() if line.startswith("headway_requests_total{")]
print(int(sum(float(line.split()[-1]) for line in lines if "code=\"200\"" in line)))')
    echo "  $replica has answered $found"
    [ "$found" -gt 0 ] || fail "$replica was asked nothing"
done
echo "images and compose.yaml: all as it should be"
