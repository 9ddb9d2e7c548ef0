#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What `thaw guest` makes, for the rig: guest-fetch.sh BUILD SERIES prints a folder with vmlinuz, initrd and
# rootfs.ext4 of the Debian release with that kernel series, and container.ext4, built of a tar archive with a
# container's odd owners and modes. Made once for each state of guests/ and kept in $RIG_CACHE.
set -e
. "$(dirname "$0")/rig-common.sh"
thaw=$(cd "$1" && pwd)/bin/thaw
case ${2:?6.1 or 6.12} in
6.1) suite=bookworm ;;
6.12) suite=trixie ;;
*) die "no Debian release has $2" ;;
esac
key=$(cat "$RIG_LIB"/../../guests/* "$0" | cksum | cut -d' ' -f1)
d=$RIG_CACHE/guest/$suite-$key
if [ ! -d "$d" ]; then
	mkdir -p "$RIG_CACHE/guest"
	t=$(mktemp -d "$RIG_CACHE/guest/.tmp.XXXXXX")
	trap 'rm -rf "$t"' EXIT
	"$thaw" guest fetch --suite "$suite" --dir "$t/made" >&2
	busybox=$(find "$(rig_deb amd64 busybox-static)" -path '*/bin/busybox')
	mkdir -p "$t/c"/{bin,etc,srv,proc,'with space'}
	cp "$busybox" "$t/c/bin/busybox"
	ln -s busybox "$t/c/bin/sh"
	echo 'of the container' >"$t/c/srv/file"
	ln "$t/c/srv/file" "$t/c/srv/other"
	tar -C "$t/c" --owner=1000 --group=70000 --mode=6751 -cf "$t/c.tar" srv 'with space'
	tar -C "$t/c" --owner=0 --group=0 -rf "$t/c.tar" bin etc proc
	"$thaw" guest build - "$t/made/container.ext4" <"$t/c.tar" >&2
	rm -rf "$RIG_CACHE/guest/$suite-"*
	mv "$t/made" "$d"
fi
echo "$d"
