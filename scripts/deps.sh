#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that building, testing and the nested rig need.
# Non-interactive; as root, or with sudo. With --missing-only it is silent and does
# nothing when all are there.
set -euo pipefail

packages="build-essential pkg-config liburing-dev liblz4-dev libfdt-dev libcmocka-dev
	libmicrohttpd-dev libcurl4-openssl-dev libjansson-dev libseccomp-dev libxxhash-dev acpica-tools
	python3 curl socat iproute2 passt qemu-system-x86 cpio e2fsprogs kmod util-linux xz-utils lz4 zstd
	gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-system-arm qemu-user-static device-tree-compiler zlib1g-dev
	debhelper lintian gpg gpgv sqv debian-archive-keyring
	clang clang-format clang-tidy cppcheck shellcheck spin zsh fish mandoc"

missing=
for p in $packages; do
	dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing="$missing $p"
done
# libFuzzer, packaged under the version of clang.
fuzz_rt() { apt-cache depends clang | sed -n 's/.*Depends: clang-\([0-9]*\)$/libclang-rt-\1-dev/p' | head -n 1; }
dpkg-query -W -f='${db:Status-Status}\n' 'libclang-rt-*-dev' 2>/dev/null | grep -qx installed ||
	missing="$missing (libclang-rt)"
if [ -z "$missing" ]; then
	[ "${1:-}" = --missing-only ] || echo "all packages are there"
	exit 0
fi
run=
[ "$(id -u)" = 0 ] || run="sudo -n"
echo "installing:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
{
	$run apt-get -qq update
	case $missing in *"(libclang-rt)") missing="${missing% *} $(fuzz_rt)" ;; esac
	$run apt-get -qq install -y --no-install-recommends $missing
} >&2 || { echo "deps: apt-get failed; install by hand:$missing" >&2; exit 1; }
