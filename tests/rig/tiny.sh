#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The tiny guest on a real KVM: golden snapshots, the demo, end-to-end tests by Python (tiny.py says which). Runs in
# L1, by run.sh -t. GOLDEN=1.0 takes golden snapshots of that format instead, into /out; BENCH="restore pool" runs
# these parts of the bench, in short, whose figures are an emulation's.
export CMOCKA_MESSAGE_OUTPUT=TAP THAW_VMM=bin/thaw-vmm THAW_GUEST=tests/guest/tiny
DIR=$PWD/tiny
. ./l1-lib.sh
round='tiny guest'
mkdir -p "$DIR"
if [ -n "${GOLDEN:-}" ]; then
	./test_golden --make "tests/golden/$GOLDEN" && cp -r tests/golden /out/
	exit
fi
if [ -n "${BENCH:-}" ]; then
	for part in $BENCH; do
		check "bench: $part" ./bench --quick --bin "$PWD/bin" --guest "$THAW_GUEST" --out /out --only "$part"
		sed 's/^/# /' "$DIR/last"
	done
	[ "$failed" = 0 ]
	exit
fi
python() { PYTHONHOME=$PWD/python/usr LD_LIBRARY_PATH=$PWD/python/lib "$PWD/python/usr/bin/python" "$@"; }
ran_all() { ./test_golden | tee "$DIR/golden" && ! grep 'not run' "$DIR/golden"; }

check "golden snapshots load, and run" ran_all
check "the demo" env CLONES="${CLONES:-3}" sh ./demo-tiny.sh
python tests/rig/tiny.py . || failed=1
[ "$failed" = 0 ]
