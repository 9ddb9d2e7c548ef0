#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# How many instructions a restore takes: runs in L1 where QEMU counts them (run.sh -I: one instruction, user's or kernel's,
# is one nanosecond of the machine's clock, and it has one CPU), so thaw's own times are numbers of instructions.
#
#   insns.sh SERIES KIND VCPUS
#
# ROUNDS (default 21) clones of one snapshot, one after another; medians in thousands, from the request's arrival in thaw-vmm
# to the first KVM_RUN: VM, memory and vCPUs are there; state is loaded; it runs. Each once the spare process is there again,
# then from a pool.

export PATH=$PWD/bin:$PATH
# shellcheck source=tests/rig/l1-lib.sh
. ./l1-lib.sh
ROUNDS=${ROUNDS:-21}

us() { # VM FIELD
	t show "$1" --json | tr -d ' \n' | sed -n "s/.*\"timing_us\":{[^}]*\"$2\":\([0-9]*\).*/\1/p"
}
ran() { t show "$1" --json | grep -q first_exit; }
spare() { t info --json | tr -d ' \n' | grep -q '"spare_pids":\[[0-9]'; }
median() { sort -n "$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

one() { # NAME: of how it came about
	until_ok ran c || return 1
	for f in kvm_ready loaded running; do
		v=$(us c $f) at=$(us c ordered)
		[ -z "$v" ] || [ -z "$at" ] || [ "$v" -lt "$at" ] || echo $((v - at)) >>"$DIR/$1.$f"
	done
	t delete c
}
cold() { until_ok spare && sleep 1 && t clone s --name c --vsock "path=$DIR/c.vsock" && one cold; }
pooled() { t snapshot-prepare s --pool size=1 --wait && sleep 1 && t clone s --name c --vsock "path=$DIR/c.vsock" && one pool; }
repeat() { # N COMMAND...
	n=$1
	shift
	while [ "$n" -gt 0 ]; do
		"$@" || return 1
		n=$((n - 1))
	done
}

DIR=$(mktemp -d) || exit 1
round="$1 $2 $3 vCPU"
kernel=$1/vmlinux
[ "$2" = vmlinux ] || kernel=$1/vmlinuz
truncate -s 16M "$DIR/base.img"
check "daemon" start_daemon || exit 1
check "a guest boots" t create a --kernel "$kernel" --initrd "$1/initrd" --vcpus "$3" --memory 128 \
	--cmdline "console=ttyS0 quiet panic=-1" --drive "id=layered,path=$DIR/base.img,layer=ephemeral" \
	--vsock "cid=3,path=$DIR/a.vsock" --start
check "it is ready" t wait a --console GUEST-READY --timeout "$BOOT"
check "vsock reaches it" until_ok guest a true
check "a snapshot of it" t snapshot a s
check "$ROUNDS clones" repeat "$ROUNDS" cold
check "$ROUNDS clones of a pool" repeat "$ROUNDS" pooled
for f in "$DIR"/cold.* "$DIR"/pool.*; do
	name=${f##*/}
	echo "insns $(uname -m) ${name%.*} ${name#*.} $(median "$f") $(sort -n "$f" | tr '\n' ' ')"
done
[ $failed = 0 ] || show_logs a
stop_daemon
echo "1..$tests"
[ $failed = 0 ]
