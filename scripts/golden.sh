#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Takes golden snapshots of today's format that are not there yet: scripts/golden.sh 1.1 [BUILD_DIR]. Once for
# each format (snapshot/format.h), when it is released; then add it to `formats` in
# tests/microvm/test_golden.c and commit it. What is there stays: it is never replaced.
# Needs /dev/kvm and the right to make a tap (root). ARCH=aarch64: takes those of arm64, in its rig.
set -euo pipefail
cd "$(dirname "$0")/.."

format=${1:?usage: [ARCH=aarch64] scripts/golden.sh MAJOR.MINOR [BUILD_DIR]} B=${2:-build}
folder=tests/golden/$format
if [ "${ARCH:-}" = aarch64 ] && [ "$(uname -m)" != aarch64 ]; then
	make --no-print-directory ARCH=aarch64 programs guest arch-tests
	out=$(mktemp -d)
	trap 'rm -rf "$out"' EXIT
	tests/rig/run.sh -A arm64 -s 6.12 -k Image -c 1 -e GOLDEN="$format" -o "$out" -x tiny.sh "$B/aarch64"
	cp -rn "$out/golden/$format" tests/golden/
	exit
fi
make --no-print-directory B="$B" programs guest "$B/tests/microvm/test_golden"
THAW_VMM=$B/bin/thaw-vmm THAW_GUEST=$B/tests/guest/tiny "$B/tests/microvm/test_golden" --make "$folder"
du -ab "$folder"
