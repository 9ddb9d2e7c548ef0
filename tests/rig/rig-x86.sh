#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2034 # read by rig-run.sh
# Runs a command on an emulated x86-64 machine that has a real /dev/kvm.
ARCH=amd64
QEMU=qemu-system-x86_64 QEMU_PACKAGE=qemu-system-x86
MACHINE="-M q35 -accel ${RIG_ACCEL:-tcg} -cpu ${RIG_CPU:-max,-erms}"
TTY=ttyS0
LOAD="kvm-amd tun vhost_net vhost_vsock"
. "$(dirname "$0")/rig-run.sh"
