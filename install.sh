#!/bin/sh
# Installs the Debian packages that Tapir is built, tested and tried with, if any is missing.
set -eu
want="cmake ninja-build gcc libc6-dev pkg-config libopenmpi-dev openmpi-bin libhdf5-dev libyaml-dev libcjson-dev libpcre2-dev
      libutf8proc-dev libprotobuf-c-dev protobuf-c-compiler librandom123-dev bible-kjv"
[ "${1-}" = --tests ] && want="$want libcmocka-dev g++ locales libxml2-utils procps chromium gdb"
missing=
for p in $want; do
    dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing="$missing $p"
done
[ -z "$missing" ] && exit 0
echo "installing:$missing"
as_root=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "install.sh: run as root, or install:$missing" >&2; exit 1; }
    as_root=sudo
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{ $as_root apt-get update && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; echo "install.sh: apt-get failed" >&2; exit 1; }
