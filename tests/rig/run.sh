#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the scenario with a stock Linux guest in the rig: run.sh [OPTION...] BUILD
#   -s SERIES   guest kernels, default "6.1 6.12"
#   -k KINDS    default "vmlinux bzImage"
#   -c VCPUS    default "1 2"
#   -q          quick: each series, kind and number once instead of all combinations
#   -o OUT      where logs go, default BUILD/tests/rig/out
# BUILD holds bin/{thawd,thaw,thaw-vmm}. Prints TAP; 0 = all passed, 77 = the rig
# cannot run here (no QEMU, no kernel to be had).
set -u
here=$(cd "$(dirname "$0")" && pwd)
series="6.1 6.12" kinds="vmlinux bzImage" vcpus="1 2" quick='' out=''
while getopts s:k:c:o:q opt; do
	case $opt in
	s) series=$OPTARG ;;
	k) kinds=$OPTARG ;;
	c) vcpus=$OPTARG ;;
	o) out=$OPTARG ;;
	q) quick=1 ;;
	*) exit 125 ;;
	esac
done
shift $((OPTIND - 1))
[ $# = 1 ] || { echo "usage: ${0##*/} [-s SERIES] [-k KINDS] [-c VCPUS] [-o OUT] [-q] BUILD" >&2; exit 125; }
build=$(cd "$1" && pwd) || exit 125
out=${out:-$build/tests/rig/out}

job=$(mktemp -d "${TMPDIR:-/tmp}/thaw-rig.XXXXXX") || exit 125
trap 'rm -rf "$job"' EXIT
mkdir -p "$job/bin" "$build/tests/rig"
progs=()
for p in thawd thaw thaw-vmm; do
	cp "$build/bin/$p" "$job/bin/" || exit 125
	progs+=(-b "$build/bin/$p") # for the libraries
done
for p in agent vsock-call; do
	${CC:-cc} -static -O2 -o "$build/tests/rig/$p" "$here/$p.c" || exit 125
done
cp "$build/tests/rig/vsock-call" "$job/bin/"
cp "$here/scenario.sh" "$job/"

rounds=() n=0
for s in $series; do
	k=$("$here/rig-kernel.sh" amd64 "$s") || { echo "1..0 # SKIP no guest kernel $s"; exit 77; }
	mkdir -p "$job/$s"
	cp "$k/vmlinux" "$k/vmlinuz" "$job/$s/"
	"$here/guest-image.sh" "$s" "$build/tests/rig/agent" "$job/$s/initrd" || exit 125
	for kind in $kinds; do
		for c in $vcpus; do
			# Quick: the diagonal in one series, the other one in the next.
			n=$((n + 1))
			case $quick$n in 12 | 13 | 15 | 18) continue ;; esac
			rounds+=("$s" "$kind" "$c")
		done
	done
done
"$here/rig-x86.sh" -m 1536 -t $((400 * ${#rounds[@]} / 3)) -o "$out" "${progs[@]}" "$job" \
	sh ./scenario.sh "${rounds[@]}"
