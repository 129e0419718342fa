#!/usr/bin/env bash
# deploy.sh [--overlay NAME] [--image REGISTRY/NAME:TAG] [--namespace NAME] [--timeout DURATION] [--photo FILE]
# Applies k8s/ (or k8s/overlays/NAME, or any directory with a kustomization), waits until the new pods serve, and has a
# photo classified through nginx. Where one of these fails it says why, brings back what ran before, and exits 1.
# HEADWAY_API_KEY is sent if it is set.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
deployments=(headway headway-nginx)
overlay='' image='' namespace='' timeout=10m photo=$root/examples/cat.jpg

fail() {
    echo "deploy.sh: $*" >&2
    exit "${status:-1}"
}

while [ $# -gt 0 ]; do
    case $1 in
        --overlay | --image | --namespace | --timeout | --photo)
            [ -n "${2:-}" ] || status=2 fail "$1 needs a value"
            declare "${1#--}=$2"
            shift 2
            ;;
        -h | --help) sed -n '2,5s/^# //p' "$0"; exit ;;
        *) status=2 fail "unknown option $1; --help lists them" ;;
    esac
done

case $overlay in
    '') directory=$root/k8s ;;
    */*) directory=$(cd "$overlay" && pwd) || status=2 fail "there is no directory $overlay" ;;
    *) directory=$root/k8s/overlays/$overlay ;;
esac
[ -f "$directory/kustomization.yaml" ] ||
    status=2 fail "there is no overlay $overlay: $directory/kustomization.yaml is missing"
[ -f "$photo" ] || status=2 fail "there is no photo $photo"
for command in kubectl curl; do
    command -v "$command" >/dev/null || fail "$command is not installed"
done

work=$(mktemp -d "$root/.deploy-XXXXXX")
forward=''
cleanup() {
    [ -z "$forward" ] || kill "$forward" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

# Kustomize takes no absolute paths; the directory of this run is inside the repository for that.
render() {
    local up=''
    case $directory in
        "$root"/*) up=../${directory#"$root"/} ;;
        *) up=$(python3 -c 'import os, sys; print(os.path.relpath(*sys.argv[1:]))' "$directory" "$work") ;;
    esac
    {
        printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - %s\n' "$up"
        [ -z "$namespace" ] || printf 'namespace: %s\n' "$namespace"
        [ -z "$image" ] || print_image
    } >"$work/kustomization.yaml"
    kubectl kustomize "$work" >"$work/all.yaml" || fail "the manifests cannot be rendered; nothing was changed"
    [ -n "$namespace" ] || namespace=$(sed -n '/^kind: Namespace$/,/^---$/s/^  name: //p' "$work/all.yaml" | head -1)
    [ -n "$namespace" ] || fail "$directory names no Namespace; give --namespace"
}

# A port of the registry is no tag.
print_image() {
    local name=$image rest=''
    case $image in
        *@*) name=${image%%@*} rest="digest: ${image#*@}" ;;
        *) case ${image##*/} in *:*) name=${image%:*} rest="newTag: \"${image##*:}\"" ;; esac ;;
    esac
    [ -n "$rest" ] || status=2 fail "--image needs a tag or a digest, as registry.example.com/headway:0.1.0"
    printf 'images:\n  - name: headway\n    newName: %s\n    %s\n' "$name" "$rest"
}

# Nothing where there is no such Deployment yet.
revision_of() {
    kubectl -n "$namespace" get deployment "$1" --ignore-not-found \
        -o 'jsonpath={.metadata.annotations.deployment\.kubernetes\.io/revision}'
}

smoke_test() {
    local address='' answer
    kubectl -n "$namespace" port-forward service/headway :80 >"$work/forward" 2>&1 &
    forward=$!
    for _ in $(seq 100); do
        address=$(sed -n 's/^Forwarding from \(127\.0\.0\.1:[0-9]*\) .*/\1/p' "$work/forward" | head -1)
        if [ -n "$address" ] || ! kill -0 "$forward" 2>/dev/null; then break; fi
        sleep 0.2
    done
    if [ -z "$address" ]; then
        cat "$work/forward" >&2
        echo "the Service cannot be reached by port-forward" >&2
        return 1
    fi
    # From a file: the arguments of a process are there for all to see.
    printf 'Content-Type: image/jpeg\n%s\n' "${HEADWAY_API_KEY:+X-API-Key: $HEADWAY_API_KEY}" >"$work/headers"
    if ! answer=$(curl -sS --fail-with-body --max-time 30 --retry 2 -H "@$work/headers" \
        --data-binary "@$photo" "http://$address/predict"); then
        echo "a photo was not classified: $answer" >&2
        case $answer in *unauthorized*) echo "Set HEADWAY_API_KEY to one of the keys in the Secret." >&2 ;; esac
        return 1
    fi
    echo "A photo was classified: ${answer:0:200}"
}

# To the revision from before, by its number: where the template did not change, the one before that would come.
undo() {
    local name was now
    echo "deploy.sh: $1; what ran before comes back" >&2
    kubectl -n "$namespace" get pods -o wide >&2 || true
    kubectl -n "$namespace" get events --field-selector type=Warning --sort-by=.lastTimestamp | tail -n 10 >&2 || true
    kubectl -n "$namespace" logs deployment/headway --tail=20 >&2 || true
    for name in "${deployments[@]}"; do
        was=$(cat "$work/$name") now=$(revision_of "$name" || true)
        if [ -z "$was" ]; then
            echo "$name: this was its first revision; there is none to bring back" >&2
        elif [ "$was" = "$now" ]; then
            echo "$name: revision $was, which this run did not change" >&2
        elif kubectl -n "$namespace" rollout undo "deployment/$name" "--to-revision=$was" >&2 &&
            kubectl -n "$namespace" rollout status "deployment/$name" "--timeout=$timeout" >&2; then
            echo "$name: as in revision $was again" >&2
        else
            echo "$name: revision $was could not be brought back: kubectl -n $namespace describe deployment $name" >&2
        fi
    done
    fail "not deployed. Deployments alone are undone: the HPA, Services and policies are those that were applied"
}

render
for name in "${deployments[@]}"; do
    revision_of "$name" >"$work/$name" || fail "the cluster cannot be asked; nothing was changed"
done
kubectl apply -f "$work/all.yaml" || undo "the manifests were not taken, or not all of them"
for name in "${deployments[@]}"; do
    kubectl -n "$namespace" rollout status "deployment/$name" "--timeout=$timeout" ||
        undo "$name is not ready after $timeout"
done
smoke_test || undo "the new pods do not answer"
echo "Deployed to the namespace $namespace."
