#!/usr/bin/env bash
# Stands for kubectl and a cluster: it writes down what it was asked, renders with the real one, and answers from the
# files in $FAKE: address (where port-forward leads), revision-NAME, not-ready (the Deployments that never get ready),
# refuses (verbs that fail).
set -euo pipefail
echo "$*" >>"$FAKE/calls"
[ "$1" != -n ] || shift 2
if grep -qsx "$1" "$FAKE/refuses"; then
    echo "the server refused: $1" >&2
    exit 1
fi
case $1 in
    kustomize) exec "$REAL_KUBECTL" "$@" ;;
    apply)
        cp "$3" "$FAKE/applied.yaml"
        for name in headway headway-nginx; do
            revision=$(cat "$FAKE/revision-$name" 2>/dev/null || echo 0)
            grep -qsx "$name" "$FAKE/unchanged" || echo $((revision + 1)) >"$FAKE/revision-$name"
        done
        ;;
    get) if [ "$2" = deployment ]; then tr -d '\n' <"$FAKE/revision-$3" || true; fi 2>/dev/null ;;
    port-forward)
        echo "Forwarding from $(cat "$FAKE/address") -> 8080"
        exec sleep 60
        ;;
    rollout)
        case $2 in
            status) ! grep -qsx "${3#deployment/}" "$FAKE/not-ready" ;;
            undo)
                rm -f "$FAKE/not-ready"
                cat "$FAKE/refuses-undo" 2>/dev/null && exit 1
                echo "${3#deployment/} rolled back"
                ;;
        esac
        ;;
esac
