#!/usr/bin/env bash
# rollout-restart.sh [--namespace NAME] [--timeout DURATION] [DEPLOYMENT]
# Replaces the pods of a Deployment (headway) one after the other, as after a change of the Secret; no request is lost.
# Exits 1 where the new ones do not get ready: the old ones then go on serving.
set -euo pipefail
namespace=headway timeout=10m deployment=headway

while [ $# -gt 0 ]; do
    case $1 in
        --namespace | --timeout)
            [ -n "${2:-}" ] || { echo "rollout-restart.sh: $1 needs a value" >&2; exit 2; }
            declare "${1#--}=$2"
            shift 2
            ;;
        -h | --help) sed -n '2,4s/^# //p' "$0"; exit ;;
        -*) echo "rollout-restart.sh: unknown option $1; --help lists them" >&2; exit 2 ;;
        *) deployment=$1; shift ;;
    esac
done
command -v kubectl >/dev/null || { echo "rollout-restart.sh: kubectl is not installed" >&2; exit 1; }

kubectl -n "$namespace" rollout restart "deployment/$deployment"
if ! kubectl -n "$namespace" rollout status "deployment/$deployment" "--timeout=$timeout"; then
    kubectl -n "$namespace" get pods -o wide >&2 || true
    echo "rollout-restart.sh: $deployment has no new pods that are ready after $timeout; the old ones go on." >&2
    echo "To take the change back: kubectl -n $namespace rollout undo deployment/$deployment" >&2
    exit 1
fi
