#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the scenario with a stock Linux guest in the rig: run.sh [OPTION...] BUILD
#   -s SERIES   guest kernels, default "6.1 6.12"
#   -A ARCH     amd64 or arm64, default amd64; BUILD is of that architecture
#   -k KINDS    default "vmlinux bzImage", of arm64 "Image gzip"
#   -c VCPUS    default "1 2"
#   -q          quick: each series, kind and number once instead of all combinations
#   -x SCRIPT   what to run instead of scenario.sh, with the same arguments
#   -g          guests have fio and flow (load.sh, bench-qemu.sh)
#   -G          and what thaw guest makes: SERIES/fetched/ (guest.sh)
#   -t          tiny.sh behind it, in the same machine
#   -b PROG     a program of this host, with its libraries, for the script
#   -a FILE     another file for its folder
#   -e N=V      an environment variable for it
#   -m MIB      the machine's memory, default 1536
#   -K NAME     the machine's own kernel (rig-kernel.sh), default 6.1; linux-image-6.12-arm64-16k: pages of 16 KiB
#   -I          QEMU counts instructions, and the machine's clock is their number: insns.sh
#   -H          run it on this host's KVM, not in the rig
#   -j N        rigs at the same time, each on a CPU of its own; default: all CPUs
#   -o OUT      where logs go, default BUILD/tests/rig/out
# BUILD holds bin/{thawd,thaw,thaw-vmm,thaw-pager,thaw-firecracker}. Prints TAP; 0 = all passed, 77 = the rig
# cannot run here (no QEMU, no kernel to be had).
set -u
RIG_SECONDS=${RIG_SECONDS:-800} # at most, a round; some 250 where nothing else runs
here=$(cd "$(dirname "$0")" && pwd)
series="6.1 6.12" arch=amd64 kinds='' vcpus="1 2" quick='' out='' script=scenario.sh on_host='' jobs='' fetched='' tiny=''
mem=1536 guest_progs=() progs=() files=() machine_options=()
while getopts A:s:k:c:o:x:j:b:a:e:m:K:gGqtHI opt; do
	case $opt in
	A) arch=$OPTARG ;;
	s) series=$OPTARG ;;
	k) kinds=$OPTARG ;;
	c) vcpus=$OPTARG ;;
	o) out=$OPTARG ;;
	x) script=$OPTARG ;;
	j) jobs=$OPTARG ;;
	b) progs+=(-b "$OPTARG") ;;
	a) files+=("$OPTARG") ;;
	e) progs+=(-e "$OPTARG") ;;
	m) mem=$OPTARG ;;
	g) guest_progs=("$here/guest-load") ;;
	G) fetched=1 ;;
	t) tiny=1 ;;
	q) quick=1 ;;
	K) machine_options+=(-k "$OPTARG") ;;
	H) on_host=1 ;;
	I) machine_options+=(-q -icount -q "shift=0,sleep=off") ;;
	*) exit 125 ;;
	esac
done
shift $((OPTIND - 1))
[ $# = 1 ] || { echo "usage: ${0##*/} [-A ARCH] [-s SERIES] [-k KINDS] [-c VCPUS] [-j N] [-o OUT] [-x SCRIPT] [-K NAME] [-gGqtHI] BUILD" >&2; exit 125; }
build=$(cd "$1" && pwd) || exit 125
out=${out:-$build/tests/rig/out}
export GUEST_ARCH=$arch
if [ "$arch" = arm64 ]; then
	kinds=${kinds:-Image gzip} machine=rig-arm64.sh
	export CC=aarch64-linux-gnu-gcc RIG_SYSROOT=$build/sysroot
else
	kinds=${kinds:-vmlinux bzImage} machine=rig-x86.sh
fi

# A build folder in small: bin/, tests/guest/tiny, and the guest kernels by series.
job=$(mktemp -d "${TMPDIR:-/tmp}/thaw-rig.XXXXXX") || exit 125
trap 'rm -rf "$job"' EXIT
mkdir -p "$job/bin" "$build/tests/rig"
for p in thawd thaw thaw-vmm thaw-pager thaw-firecracker; do
	cp "$build/bin/$p" "$job/bin/" || exit 125
	progs+=(-b "$build/bin/$p") # for the libraries
done
# The user networks' passt, and its AVX2 build, if they are installed here; arm64's is among the cross build's packages.
passt=$(command -v passt)
if [ "$arch" = arm64 ]; then
	passt=$build/sysroot/usr/bin/passt
	cp "$passt" "$job/bin/" || exit 125
fi
[ -z "$passt" ] || for p in "$passt" "$passt.avx2"; do [ ! -x "$p" ] || progs+=(-b "$p"); done
for p in agent vsock-call flow probe; do
	${CC:-cc} -static -O2 -o "$build/tests/rig/$p.$$" "$here/$p.c" || exit 125
	mv "$build/tests/rig/$p.$$" "$build/tests/rig/$p" # another of us may be reading it
done
cp "$build/tests/rig/"{vsock-call,flow,probe} "$job/bin/"
cp "$here/$script" "$here"/l1-{lib,devices}.sh "${files[@]}" "$job/"
if [ ${#guest_progs[@]} != 0 ]; then
	fio=$("$here/rig-fio.sh") || { echo "1..0 # SKIP the rig's guest has no fio: its source cannot be had"; exit 77; }
	guest_progs+=("$fio" "$build/tests/rig/flow")
fi
behind=''
[ -z "$tiny" ] || behind='sh ./tiny.sh || r=$?;'
if [ -n "$tiny" ] || [ "$script" = tiny.sh ]; then
	python=$("$here/rig-python.sh" "$arch") || { echo "1..0 # SKIP the rig has no Python: its packages cannot be had"; exit 77; }
	mkdir -p "$job/tests/rig" "$job/tests/golden"
	cp -r "$python" "$job/python"
	cp -r "$here/../e2e" "$job/tests/"
	cp -r "$here/../golden/"[0-9]* "$job/tests/golden/"
	cp "$here/tiny.py" "$job/tests/rig/"
	cp "$here/tiny.sh" "$here/demo-tiny.sh" "$build/tests/microvm/test_golden" "$job/"
	cp "$build/bin/thaw-page-handler" "$job/bin/"
	progs+=(-b "$build/tests/microvm/test_golden")
fi
[ ! -e "$build/tests/guest/tiny" ] || install -D "$build/tests/guest/tiny" "$job/tests/guest/tiny"

rounds=() n=0
for s in $series; do
	k=$("$here/rig-kernel.sh" $arch "$s") || { echo "1..0 # SKIP no guest kernel $s"; exit 77; }
	mkdir -p "$job/$s"
	cp "$k/vmlinuz" "$job/$s/"
	case $kinds in *vmlinux*) cp "$k/vmlinux" "$job/$s/" ;; esac
	case $kinds in *gzip*) gzip -1 <"$k/vmlinuz" >"$job/$s/vmlinuz.gz" ;; esac
	"$here/guest-image.sh" "$s" "$build/tests/rig/agent" "$job/$s/initrd" "${guest_progs[@]}" || exit 125
	MODULES="virtio_balloon virtio_console nd_pmem virtio_pmem ext4" \
		"$here/guest-image.sh" "$s" "$build/tests/rig/agent" "$job/$s/initrd-devices" \
		"$build/tests/rig/"{flow,probe} || exit 125
	if [ -n "$fetched" ]; then
		g=$("$here/guest-fetch.sh" "$build" "$s") || { echo "1..0 # SKIP thaw guest fetch made nothing"; exit 77; }
		cp -r --sparse=always "$g" "$job/$s/fetched"
	fi
	for kind in $kinds; do
		for c in $vcpus; do
			# Quick: the diagonal in one series, the other one in the next.
			n=$((n + 1))
			case $quick$n in 12 | 13 | 15 | 18) continue ;; esac
			rounds+=("$s" "$kind" "$c")
		done
	done
done
if [ -n "$on_host" ]; then
	cd "$job" && sh "./$script" "${rounds[@]}"
	exit
fi

# One rig per CPU, each with every Nth round; the first one's output comes as it goes.
# shellcheck disable=SC2207
cpus=($(taskset -cp $$ | sed 's/.*: //' | tr , '\n' | while IFS=- read -r a b; do
	seq "$a" "${b:-$a}"
done))
first=$((RANDOM % ${#cpus[@]})) # several of us may run at the same time
n=$((${#rounds[@]} / 3))
jobs=${jobs:-${#cpus[@]}}
[ "$jobs" -le $n ] || jobs=$n
rig() { # J: runs the Jth share
	local mine=() i
	for ((i = $1; i < n; i += jobs)); do mine+=("${rounds[@]:i*3:3}"); done
	taskset -c "${cpus[($1 + first) % ${#cpus[@]}]}" "$here/$machine" -m "$mem" ${CLONES:+-e CLONES="$CLONES"} \
		-t $((RIG_SECONDS * ${#mine[@]} / 3)) -o "$out" "${machine_options[@]}" "${progs[@]}" "$job" \
		sh -c "sh ./$script \"\$@\"; r=\$?; $behind exit \$r" sh "${mine[@]}"
}
(
	status=0 pids=()
	for ((j = 1; j < jobs; j++)); do
		rig "$j" >"$build/tests/rig/rig.$j" 2>&1 &
		pids+=($!)
	done
	rig 0 2>&1 || status=$?
	for ((j = 1; j < jobs; j++)); do
		wait "${pids[j - 1]}" || status=$?
		cat "$build/tests/rig/rig.$j"
		rm -f "$build/tests/rig/rig.$j"
	done
	exit $status
) | {
	n=0
	while IFS= read -r line; do # not awk: mawk waits for 4 KiB
		case $line in
		1..[1-9]*) continue ;;
		"ok "* | "not ok "*) line="${line%%ok *}ok $((n += 1)) ${line#*ok * }" ;;
		esac
		printf '%s\n' "$line"
	done
	[ $n = 0 ] || echo "1..$n"
}
exit "${PIPESTATUS[0]}"
