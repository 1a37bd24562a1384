#!/bin/sh
# Makes what is missing of the secrets that compose.yml and Kubernetes' Secrets take: ./secrets.sh [FOLDER]
#
# A private authority and a certificate for each admin listener and for Redis (renewed 30 days before their end), the
# fleet's pepper and record key, the passwords of Redis and Grafana, and an empty file for Prometheus' token. As root it
# gives the files to the users of compose's containers, who alone may read them.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/secrets}
gateways="gateway-0 gateway-1 gateway-2"

mkdir -p "$out/ca" "$out/gateway" "$out/admin" "$out/redis" "$out/prometheus" "$out/grafana"
work=$(mktemp -d "$out/.new-XXXXXX")
trap 'rm -rf "$work"' EXIT

# Written aside and renamed, so that no half of a secret stays behind.
keep() {
    chmod "$2" "$work/new"
    mv "$work/new" "$1"
    echo "made $1"
}

# FILE: 32 random bytes as hex digits.
random() {
    [ -s "$1" ] && return
    (umask 077 && openssl rand -hex 32 >"$work/new")
    keep "$1" 600
}

new_key() {
    (umask 077 && openssl ecparam -name prime256v1 -genkey -noout | openssl pkey -out "$work/new")
    keep "$1" 600
}

authority() {
    [ -s "$out/ca/ca.pem" ] && return
    new_key "$out/ca/ca.key"
    openssl req -x509 -new -key "$out/ca/ca.key" -sha256 -days 3650 -subj "/CN=wasmgate fleet" \
        -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign -out "$work/new"
    keep "$out/ca/ca.pem" 644
    rm -f "$out/gateway/ca.pem"
}

# What gateways trust: this authority, and what was added by hand.
trusted() {
    [ -s "$out/gateway/ca.pem" ] && return
    cp "$out/ca/ca.pem" "$work/new"
    keep "$out/gateway/ca.pem" 644
}

# FILE without its ending, NAME...: a key and a certificate for these names.
certificate() {
    file=$1
    shift
    if openssl x509 -in "$file.pem" -noout -checkend 2592000 >/dev/null 2>&1 \
        && openssl verify -CAfile "$out/ca/ca.pem" "$file.pem" >/dev/null 2>&1; then
        return
    fi
    [ -s "$file.key" ] || new_key "$file.key"
    names=IP:127.0.0.1,DNS:localhost
    for name in "$@"; do names=$names,DNS:$name; done
    {
        echo "subjectAltName = $names"
        echo "basicConstraints = critical, CA:FALSE"
        echo "keyUsage = critical, digitalSignature"
        echo "extendedKeyUsage = serverAuth"
    } >"$work/extensions"
    openssl req -new -key "$file.key" -subj "/CN=$1" -out "$work/request"
    openssl x509 -req -in "$work/request" -CA "$out/ca/ca.pem" -CAkey "$out/ca/ca.key" -set_serial "0x$(openssl rand -hex 16)" \
        -sha256 -days 397 -extfile "$work/extensions" -out "$work/new" 2>"$work/errors" || { cat "$work/errors" >&2; exit 1; }
    keep "$file.pem" 644
}

# The password's hash is all that Redis gets.
access_list() {
    sum=$(tr -d '\n' <"$out/gateway/redis-password" | openssl dgst -sha256 -r | cut -d' ' -f1)
    sed "s/PASSWORD_SHA256/$sum/" "$here/redis/users.acl" >"$work/new"
    cmp -s "$work/new" "$out/redis/users.acl" || keep "$out/redis/users.acl" 600
}

authority
trusted
for gateway in $gateways; do
    certificate "$out/admin/$gateway" "$gateway" "$gateway.gateways.wasmgate.svc"
done
certificate "$out/redis/redis" redis redis.wasmgate.svc
random "$out/gateway/pepper"
random "$out/gateway/record-key"
random "$out/gateway/redis-password"
random "$out/grafana/password"
access_list
# A viewer's, which a running gateway makes: see README.md.
[ -e "$out/prometheus/token" ] || { : >"$work/new" && keep "$out/prometheus/token" 600; }

if [ "$(id -u)" = 0 ]; then
    chown -R 65532:65532 "$out/gateway" "$out/admin"
    chown -R 999 "$out/redis"
    chown -R 65534 "$out/prometheus"
    chown -R 472 "$out/grafana"
else
    echo "not root: the files stay yours. For compose.yml, whose containers have users of their own, run this with sudo" >&2
fi
