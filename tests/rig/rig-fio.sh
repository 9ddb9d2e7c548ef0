#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints the path of a static fio for the rig's guests, building it first if need be.
. "$(dirname "$0")/rig-common.sh"
mkdir -p "$RIG_CACHE" || exit 125
rig_need make build-essential strip binutils
rig_fio
