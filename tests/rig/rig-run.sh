# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# The command line and the run itself, the same for every architecture; sourced
# by rig-x86.sh and rig-arm64.sh, which set ARCH, QEMU, MACHINE, TTY and LOAD.
. "$(dirname "${BASH_SOURCE[0]}")/rig-common.sh"

usage() {
	cat >&2 <<-EOF
	usage: ${0##*/} [options] DIR COMMAND [ARGUMENT...]
	Boots a machine in software emulation that has a real /dev/kvm, shows it a
	copy of DIR as /job, runs COMMAND there and exits with its exit status.
	  -o OUT   afterwards copy what COMMAND left in /out into the folder OUT
	  -t SEC   time limit of COMMAND in seconds (default 120); past it: exit 124
	  -s N     CPUs (default 1)
	  -m MIB   memory (default 1024)
	  -k NAME  the machine's own kernel: 6.1 (default), 6.12 or a linux-image package
	  -l MODS  kernel modules to load (default: $LOAD)
	  -b PROG  also put PROG of this system and its shared libraries there; of another architecture:
	           libraries of the folder RIG_SYSROOT
	  -e N=V   set environment variable N for COMMAND
	  -w       let QEMU use all CPUs of this system (see README.md before you do)
	  -q ARG   another argument for QEMU
	  -v       show the machine's kernel log and the timings
	Exit status: COMMAND's own; 124 past the limit; 125 if the machine failed.
	EOF
	exit 125
}

out='' limit=120 smp=1 mem=1024 kernel=6.1 wide='' verbose='' progs=() env=() extra=()
while getopts o:t:s:m:k:l:b:e:q:wv opt; do
	case $opt in
	o) out=$OPTARG ;;
	t) limit=$OPTARG ;;
	s) smp=$OPTARG ;;
	m) mem=$OPTARG ;;
	k) kernel=$OPTARG ;;
	l) LOAD=$OPTARG ;;
	b) progs+=("$OPTARG") ;;
	e) env+=("$OPTARG") ;;
	q) extra+=("$OPTARG") ;;
	w) wide=1 ;;
	v) verbose=1 ;;
	*) usage ;;
	esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || usage
dir=$1
shift
[ -d "$dir" ] || die "$dir: no such folder"

mkdir -p "$RIG_CACHE" || exit 125
rig_need "$QEMU" "$QEMU_PACKAGE" taskset util-linux cpio cpio lz4 lz4 xz xz-utils zstd zstd \
	mke2fs e2fsprogs
# shellcheck disable=SC2153
kdir=$(rig_kernel "$ARCH" "$kernel") || die "no kernel $kernel"
base=$(rig_base "$ARCH" "$kdir") || die "cannot build the initramfs"

tmp=$(mktemp -d "${TMPDIR:-/tmp}/rig.XXXXXX") || exit 125
qpid=
trap '[ -z "$qpid" ] || kill "$qpid" 2>/dev/null; rm -rf "$tmp"' EXIT
trap 'exit 125' INT TERM HUP

quote() {
	local a
	for a; do printf " '%s'" "${a//\'/\'\\\'\'}"; done
}

# What is of this run only: a second archive behind the initramfs.
mkdir -p "$tmp/root/rig"
{
	echo "RIG_LIMIT=$limit"
	echo "RIG_LOAD='$LOAD'"
} >"$tmp/root/rig/env"
{
	for e in "${env[@]}"; do printf 'export%s\n' "$(quote "$e")"; done
	printf 'exec%s\n' "$(quote "$@")"
} >"$tmp/root/rig/cmd"
for p in "${progs[@]}"; do
	p=$(command -v "$p") || die "no program $p"
	for f in "$p" $([ -n "${RIG_SYSROOT:-}" ] || ldd "$p" 2>/dev/null | grep -o '/[^ ]*'); do
		mkdir -p "$tmp/root/${f%/*}"
		cp -L "$f" "$tmp/root/$f"
	done
	[ -z "${RIG_SYSROOT:-}" ] || rig_foreign_libs "$p" "$RIG_SYSROOT" "$tmp/root" || die "$p: a library is missing"
done
{ cat "$base"; rig_cpio "$tmp/root"; } >"$tmp/initrd"

# DIR as an ext4 image: as large as DIR and 512 MiB of room, without holes filled.
kib=$(du -sk "$dir" | cut -f1)
inodes=$(($(find "$dir" | wc -l) + 8192))
PATH=$PATH:/usr/sbin mke2fs -q -F -t ext4 -O ^has_journal,^metadata_csum -m 0 \
	-N "$inodes" -E root_owner=0:0,lazy_itable_init=1,nodiscard \
	-d "$dir" "$tmp/job.img" "$((kib + kib / 8 + 524288))k" >/dev/null ||
	die "cannot pack $dir"
drive() {
	extra+=(-drive "file=$2,format=raw,if=none,id=$1,cache=unsafe"
		-device "virtio-blk-pci,drive=$1,serial=$1")
}
drive work "$tmp/job.img"
if [ -n "$out" ]; then
	truncate -s 1G "$tmp/res.img"
	drive res "$tmp/res.img"
fi

# Standard output, standard error and the exit status each have a port.
mkfifo "$tmp/out" "$tmp/err"
: >"$tmp/console"
cat "$tmp/out" &
outpid=$!
cat "$tmp/err" >&2 &
errpid=$!
n=0
for p in out err ctl; do
	n=$((n + 1))
	extra+=(-chardev "file,id=$p,path=$tmp/$p"
		-device "virtserialport,bus=vs.0,nr=$n,chardev=$p,name=$p")
done

# QEMU (before 10.2) sets the interrupt requests of its emulated CPUs without
# atomic operations and so loses one now and then, which hangs a machine that
# runs KVM guests. All its threads on one CPU cannot lose any.
pin=()
if [ -z "$wide" ]; then
	# shellcheck disable=SC2207
	cpus=($(taskset -cp $$ | sed 's/.*: //' | tr , '\n' | while IFS=- read -r a b; do
		seq "$a" "${b:-$a}"
	done))
	pin=(taskset -c "${cpus[RANDOM % ${#cpus[@]}]}")
fi

t0=$(date +%s%N)
# shellcheck disable=SC2086
"${pin[@]}" timeout -k 5 $((limit + 60)) "$QEMU" -nodefaults -no-user-config -display none \
	-no-reboot -monitor none $MACHINE -m "$mem" -smp "$smp" \
	-kernel "$kdir/vmlinuz" -initrd "$tmp/initrd" \
	-append "console=$TTY panic=-1 quiet loglevel=4 tsc=reliable ${RIG_APPEND:-}" \
	-serial "file:$tmp/console" -device virtio-serial-pci,id=vs \
	"${extra[@]}" </dev/null >"$tmp/qemu.log" 2>&1 &
qpid=$!
wait "$qpid"
qrc=$?
qpid=
t1=$(date +%s%N)
# If QEMU never opened the ports, end their readers.
: 3<>"$tmp/out" 4<>"$tmp/err"
wait "$outpid" "$errpid"

if [ -n "$verbose" ]; then
	cat "$tmp/console" "$tmp/qemu.log" >&2
	say "QEMU ran $(((t1 - t0) / 1000000)) ms"
fi

rc=$(sed -n 's/^rc=//p' "$tmp/ctl" 2>/dev/null)
if [ -z "$rc" ]; then
	[ -n "$verbose" ] || tail -n 30 "$tmp/console" "$tmp/qemu.log" >&2
	[ "$qrc" = 124 ] || [ "$qrc" = 137 ] || die "the machine ended by itself ($qrc)"
	say "the machine did not end in time"
	exit 124
fi
[ "$rc" = 124 ] && say "time limit of $limit s passed"
if [ -n "$out" ]; then
	mkdir -p "$out" || exit 125
	tar -C "$out" --no-same-owner --warning=no-timestamp -xf "$tmp/res.img" || die "cannot copy to $out"
fi
exit "$rc"
