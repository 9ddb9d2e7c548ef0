#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fills a folder with the libraries that a cross build links, from Debian's packages of another architecture:
#
#   sysroot.sh ARCH FOLDER       ARCH as Debian has it, e.g. arm64
#
# The packages come through lists of their own (tests/rig/rig-common.sh), so the system's architectures stay as they
# are; no root is needed. The C library is that of the cross compiler's package.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/rig/rig-common.sh
. "$here/../tests/rig/rig-common.sh"
arch=${1:?architecture} out=${2:?folder}
dev="liburing-dev liblz4-dev libxxhash-dev libseccomp-dev libfdt-dev zlib1g-dev libjansson-dev libmicrohttpd-dev
	libcurl4-openssl-dev libcmocka-dev"
run="libcurl4 libmicrohttpd12 libjansson4 libcmocka0 passt" # with all that they need; programs for the rig

mkdir -p "$RIG_CACHE"
t=$(mktemp -d "${out%/*}/sysroot.XXXXXX")
trap 'rm -rf "$t"' EXIT
chmod 755 "$t"
for p in $dev; do
	d=$(rig_deb "$arch" "$p") || die "$p: cannot be had for $arch"
	cp -a "$d/." "$t/"
done
# shellcheck disable=SC2086
rig_apt "$arch" apt-get -qq install -y --download-only --no-install-recommends $run >&2 || die "$run: cannot be had for $arch"
for p in "$RIG_CACHE/apt-$arch/cache/archives/"*.deb; do
	dpkg -x "$p" "$t"
done
rm -rf "${t:?}/usr/share" "$out"
mv "$t" "$out"
trap - EXIT
