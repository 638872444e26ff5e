#!/bin/sh
# The Dockerfile's base image where no registry can be reached: Debian 12 with its own Python 3.11, from Debian's
# mirror, under the name of the official image. It is not that image: its Python is /usr/bin/python3, Debian's 3.11.2.
# Needs root, debootstrap (Debian: apt install debootstrap) and an engine: `make docker-base`.
set -eu
base=$(sed -n 's/^FROM \([^ ]*\) AS build$/\1/p' "$(dirname "$0")/Dockerfile")
if docker image inspect "$base" >/dev/null 2>&1; then
    echo "$base is here"
    exit 0
fi
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3-venv bookworm "$root" "$@" >/dev/null
ln -s python3 "$root/usr/bin/python"
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/log/* \
    "$root"/usr/share/doc "$root"/usr/share/locale "$root"/usr/share/man
tar -C "$root" -c . | docker import --change 'LABEL kvstore.base=debootstrap' - "$base"
