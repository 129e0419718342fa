#!/bin/sh
# Puts nginx's files in their places and writes in what only a running pod knows: the addresses of the cluster's DNS,
# the names of its domain and of the namespace, and how many CPUs were asked for. Clusters differ in all of them.
# nginx-place.sh FROM TO RESOLV_CONF WORKERS
set -eu
from=$1 to=$2 resolv=$3 workers=$4

# IPv6 addresses in brackets, as nginx wants them.
servers=$(awk '$1 == "nameserver" { printf "%s%s", space, ($2 ~ /:/ ? "[" $2 "]" : $2); space = " " }' "$resolv")
# The first that is searched is NAMESPACE.svc.DOMAIN.
domain=$(awk '$1 == "search" { print $2; exit }' "$resolv")
if [ -z "$servers" ] || [ -z "$domain" ]; then
    echo "nginx-place.sh: $resolv names no nameserver, or no domain to search" >&2
    exit 1
fi

mkdir -p "$to/headway" "$to/site"
cp -L "$from"/nginx.conf "$to/"
cp -L "$from"/headway/*.conf "$to/headway/"
cp -L "$from"/site/*.conf "$to/site/"
for name in main replicas; do
    sed -e "s|^resolver [^ ]*|resolver $servers|" \
        -e "s|headway-pods\.headway\.svc\.cluster\.local|headway-pods.$domain|" \
        -e "s|^worker_processes .*|worker_processes $workers;|" "$from/site/$name.conf" >"$to/site/$name.conf"
done
