#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints the folder of a stock Debian kernel (vmlinuz, vmlinux, config, version,
# modules/), fetching it first if need be: rig-kernel.sh amd64|arm64 [6.1|6.12|PACKAGE]
. "$(dirname "$0")/rig-common.sh"
mkdir -p "$RIG_CACHE" || exit 125
rig_need lz4 lz4 xz xz-utils zstd zstd
rig_kernel "${1:?amd64 or arm64}" "${2:-6.1}"
