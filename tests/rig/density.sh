#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What an idle and a parked clone take of a host whose KVM has nested paging, beside a VM of KVM alone: run.sh's script for
# `run.sh -s 6.12 -k vmlinux -c 1 -x density.sh -b BUILD/bench/bench -a BUILD/bench/bench BUILD`. The tiny guest.
DIR=$(mktemp -d) || exit 1
echo "# $(uname -r), $(grep -c . /sys/module/kvm_amd/parameters/npt) npt=$(cat /sys/module/kvm_amd/parameters/npt)"
./bench --bin "$PWD/bin" --guest "$PWD/tests/guest/tiny" --out "$DIR" --only idle | sed 's/^/# /'
grep -q parked_clone_all_in "$DIR/results.json" && echo "ok 1 - an idle clone, a parked one and a bare VM"
