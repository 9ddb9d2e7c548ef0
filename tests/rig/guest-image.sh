#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the initramfs of the rig's Linux guest: guest-image.sh SERIES AGENT OUT [PROGRAM...], where
# SERIES is 6.1 or 6.12 (see rig-kernel.sh), AGENT the built agent.c; PROGRAMs, static ones, go to /bin.
# MODULES, in the environment: loaded at the start besides those that every guest has. GUEST_ARCH: amd64 or arm64.
set -e
. "$(dirname "$0")/rig-common.sh"
series=${1:?series} agent=${2:?agent} out=${3:?file}
shift 3
mkdir -p "$RIG_CACHE"
rig_need cpio cpio
arch=${GUEST_ARCH:-amd64}
k=$(rig_kernel "$arch" "$series") || die "no kernel $series"
v=$(cat "$k/version")
busybox=$(find "$(rig_deb "$arch" busybox-static)" -path '*/bin/busybox')
own=$(find "$(rig_deb "$(dpkg --print-architecture)" busybox-static)" -path '*/bin/busybox') # runs here
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
mkdir -p "$t"/{bin,dev,proc,sys,run,tmp,etc/acpi/PWRF,lib/modules/"$v"}
cp "$busybox" "$t/bin/busybox"
for a in $("$own" --list); do
	[ "$a" = busybox ] || ln -s busybox "$t/bin/$a"
done
cp "$agent" "$t/bin/agent"
for p; do install -m 755 "$p" "$t/bin/"; done
cp "$RIG_LIB/guest-init" "$t/init"
printf '#!/bin/sh\nexec /bin/poweroff -f\n' >"$t/etc/acpi/PWRF/00000080"
chmod 755 "$t/init" "$t/bin/agent" "$t/bin/busybox" "$t/etc/acpi/PWRF/00000080"
# shellcheck disable=SC2086 # a list
rig_modules "$k" "$t/lib/modules/$v" virtio_ring virtio virtio_mmio virtio_blk virtio_net \
	virtio-rng vmw_vsock_virtio_transport evdev button gpio_keys ${MODULES:-}
echo "${MODULES:-}" >"$t/etc/modules"
"$own" depmod -b "$t" "$v"
rig_cpio "$t" >"$out"
