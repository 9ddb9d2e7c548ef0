#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2034 # read by rig-run.sh
# Runs a command on an emulated arm64 machine that has a real /dev/kvm. GICv3; with RIG_GIC=2 a GICv2.
ARCH=arm64
QEMU=qemu-system-aarch64 QEMU_PACKAGE=qemu-system-arm
MACHINE="-M virt,accel=tcg,virtualization=on,gic-version=${RIG_GIC:-3} -cpu ${RIG_CPU:-max,pauth-impdef=on,lpa2=off}"
# No LPA2: for a guest's page table that has no stage-2 entry, as all have none after a restore or a fork, QEMU 7.2
# tells the level of the guest's own walk; a 6.12 guest's begins at level -1, which KVM then takes for nonsense.
TTY=ttyAMA0
LOAD="tun vhost_net vhost_vsock"
. "$(dirname "$0")/rig-run.sh"
