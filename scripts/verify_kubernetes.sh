#!/usr/bin/env bash
# What `make check` is too short for: the manifests against a policy linter and the schemas of the operators' kinds, and
# the rendered Deployment for real, as podman runs it (memory limit, user, read-only root, settings; no probes, Services
# or HPA), with the image of scripts/image.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
kubectl=kubectl
if [ -x .venv/bin/kubectl ]; then kubectl=.venv/bin/kubectl; fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
image=${1:-localhost/headway:$version}
work=$(mktemp -d)
play=''
cleanup() {
    [ -z "$play" ] || podman play kube --down "$work/play.yaml" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT

mkdir "$work/rendered"
cp k8s/all.yaml k8s/components/gateway/httproute.yaml "$work/rendered/"
for overlay in k8s/overlays/*/; do
    "$kubectl" kustomize "$overlay" >"$work/rendered/$(basename "$overlay").yaml"
done

scripts/debian.sh nodejs:node npm:npm podman:podman runc:runc curl:curl

echo "## policies (checkov)"
# Not ours: 11 limits of CPU stop all threads at once; 15 and 43 a tag is never used twice, and scripts/deploy.sh takes
# a digest; 35 settings are variables, and nothing in the pod shows them; 40 nginx's user is that of its image.
if [ ! -x .venv-checkov/bin/checkov ]; then
    python3 -m venv .venv-checkov
    .venv-checkov/bin/python -m pip install --quiet --disable-pip-version-check checkov==3.3.30
fi
.venv-checkov/bin/checkov --directory "$work/rendered" --framework kubernetes --skip-download --compact --quiet \
    --skip-check CKV_K8S_11,CKV_K8S_15,CKV_K8S_35,CKV_K8S_40,CKV_K8S_43
echo "no findings"

echo; echo "## the operators' kinds"
# Of the fields that they know; unknown ones are for tests/k8s/test_manifests.py to find.
(cd "$work" && npm install --silent --no-fund --no-audit --prefix "$work" \
    @kubernetes-models/prometheus-operator@6.0.0 @kubernetes-models/gateway-api@0.5.1)
cat >"$work/validate.mjs" <<'JS'
import { readFileSync } from "node:fs";
const packages = {
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
  "gateway.networking.k8s.io/v1": "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1",
};
for (const object of JSON.parse(readFileSync(0))) {
  const { [object.kind]: Kind } = await import(`${packages[object.apiVersion]}/${object.kind}`);
  new Kind(object).validate();
  console.log(`${object.kind} ${object.metadata.name} is valid`);
}
JS
.venv/bin/python - "$work"/rendered/*.yaml >"$work/custom.json" <<'PY'
import json
import sys
from pathlib import Path

import yaml

objects = [it for path in sys.argv[1:] for it in yaml.safe_load_all(Path(path).read_text())]
groups = ("monitoring.coreos.com", "gateway.networking.k8s.io")
print(json.dumps([it for it in objects if it["apiVersion"].split("/")[0] in groups]))
PY
node "$work/validate.mjs" <"$work/custom.json" | sort | uniq -c

echo; echo "## the Deployment, run by podman"
if ! podman image exists "$image"; then
    echo "There is no image $image: run scripts/image.sh, or name one" >&2
    exit 1
fi
if [ -z "${CONTAINERS_CONF:-}" ]; then
    # Of what a container on a host with few rights may have.
    {
        printf '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
        printf '[engine]\ncgroup_manager = "cgroupfs"\n'
    } >"$work/containers.conf"
    if command -v runc >/dev/null; then echo 'runtime = "runc"' >>"$work/containers.conf"; fi
    export CONTAINERS_CONF=$work/containers.conf
fi
.venv/bin/python - "$work/rendered/local.yaml" "$image" >"$work/play.yaml" <<'PY'
import socket
import sys
from pathlib import Path

import yaml

objects = {(it["kind"], it["metadata"]["name"]): it for it in yaml.safe_load_all(Path(sys.argv[1]).read_text())}
deployment = objects["Deployment", "headway"]
(container,) = deployment["spec"]["template"]["spec"]["containers"]
settings = objects["ConfigMap", container["envFrom"][0]["configMapRef"]["name"]]
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    container["ports"][0] |= {"hostIP": "127.0.0.1", "hostPort": free.getsockname()[1]}
container["image"] = sys.argv[2]
yaml.safe_dump_all([settings, deployment], sys.stdout)
PY
port=$(sed -n 's/.*hostPort: //p' "$work/play.yaml")
play=1
podman play kube "$work/play.yaml" >"$work/play.log" 2>&1 || { cat "$work/play.log" >&2; exit 1; }
name=$(podman ps --format '{{.Names}}' | grep '^headway-pod-.*headway$')
curl -sS --fail --retry 60 --retry-delay 1 --retry-all-errors -o /dev/null "http://127.0.0.1:$port/health/startup"
for path in /health/ready /health/live /metrics; do
    curl -sS --fail -o /dev/null -w "$path %{http_code}\n" "http://127.0.0.1:$port$path"
done
curl -sS --fail -H 'Content-Type: image/jpeg' --data-binary @examples/cat.jpg -o "$work/answer" \
    "http://127.0.0.1:$port/predict"
head -c 120 "$work/answer"
echo
podman exec "$name" sh -c 'id; grep -E "^(CapEff|NoNewPrivs)" /proc/1/status'
podman exec "$name" sh -c '! touch /app/x 2>/dev/null && echo "the root is read-only"'
# Not /dev/shm: an emptyDir, which the kubelet lets all of a pod write to, is root's here. The counters are in /tmp
# then.
for directory in /tmp /data; do
    podman exec "$name" sh -c "touch $directory/x && rm $directory/x && echo $directory can be written"
done
podman stop --time 110 "$name" >/dev/null 2>&1
status=$(podman inspect --format '{{.State.ExitCode}}' "$name")
echo "ended by SIGTERM with exit code $status"
[ "$status" = 0 ]
