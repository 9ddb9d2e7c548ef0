#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make demo`: demo.sh BUILD_DIR. The tiny guest on this host's KVM, then a stock Debian
# kernel: on this host's KVM where `thaw doctor` finds that it can run one, else in the rig
# (an emulated machine that has a real KVM). Without KVM here all of it runs in the rig.
set -u
B=${1:?build folder}
cd "$(dirname "$0")/.." || exit 1
export CLONES

say() { printf '\n== %s\n' "$*"; }
in_rig() { tests/rig/run.sh -s 6.1 -k vmlinux -c 1 -x "$@" "$B"; }

say "What can this host do?"
if "$B/bin/thaw" doctor; then
	(cd "$B" && sh "$OLDPWD/tests/rig/demo-tiny.sh") || exit 1
	stock=$("$B/bin/thaw" doctor --json | tr -d ' \n' | grep -o '"stock_kernel":true')
else
	say "No usable KVM here: the tiny guest runs in an emulated machine that has one"
	echo "(times there mean nothing)"
	CLONES=5 in_rig demo-tiny.sh || exit 1
	stock=
fi

if [ -n "$stock" ]; then
	say "A stock Debian kernel on this host's KVM"
	in_rig demo-stock.sh -H || exit 1
else
	say "A stock Debian kernel, in an emulated machine with a real KVM (times there mean nothing)"
	in_rig demo-stock.sh || exit 1
fi
say "Done. Next: README.md, docs/api.md, docs/cli.md"
