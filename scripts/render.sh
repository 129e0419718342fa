#!/usr/bin/env bash
# render.sh [DIRECTORY]: make what is made of other files, here or in a copy of the repository: k8s/all.yaml (the default,
# for kubectl apply -f), the PrometheusRules of components/monitoring, the releases of components/releases. A test holds
# them current.
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"
kubectl=${KUBECTL:-kubectl}
command -v "$kubectl" >/dev/null || { echo "$kubectl is not installed; it renders Kustomize's files" >&2; exit 1; }

made="# Made by scripts/render.sh; change the files that it is made of."
{
    echo "$made"
    for rules in prometheus/*.rules.yml; do
        name=$(basename "$rules" .rules.yml)
        printf -- '---\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n'
        printf 'metadata:\n  name: headway-%s\nspec:\n' "$name"
        sed 's/^./  &/' "$rules"
    done
} >k8s/components/monitoring/rules.yaml

for release in models/*/release.yaml; do
    { echo "$made"; cat "$release"; } >"k8s/components/releases/$(basename "$(dirname "$release")").yaml"
done

{
    echo "$made"
    "$kubectl" kustomize k8s
} >k8s/all.yaml
