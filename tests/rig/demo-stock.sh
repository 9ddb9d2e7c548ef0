#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The part of `make demo` with a stock Debian kernel: boot, freeze, three clones, each
# answering for itself. Called by run.sh -x in a folder with bin/ and SERIES/, in the rig or
# on the host: demo-stock.sh SERIES KIND VCPUS
set -u
PATH=$PWD/bin:$PATH
dir=$(mktemp -d) || exit 1
THAW_SOCKET=$dir/thaw.sock
export PATH THAW_SOCKET
daemon=
trap '[ -z "$daemon" ] || { kill "$daemon"; wait "$daemon"; } 2>/dev/null; rm -rf "$dir"' EXIT
kernel=$1/vmlinux
[ "$2" = vmlinux ] || kernel=$1/vmlinuz

fail() { echo "demo: $*" >&2; exit 1; }
run() { printf '$ %s\n' "$*"; "$@" || fail "that failed"; }
in_guest() { # VM COMMAND
	printf '[%s] $ %s\n' "$1" "$2"
	vsock-call -t 60 "$dir/$1.vsock" "sh $2" || fail "no answer from $1"
}

thawd --state-dir "$dir/state" --log-level warn &
daemon=$!
n=0
until thaw info >/dev/null 2>&1; do
	n=$((n + 1))
	[ $n -lt 60 ] || fail "the daemon did not start"
	sleep 1
done
truncate -s 16M "$dir/disk.img"
run thaw create web --kernel "$kernel" --initrd "$1/initrd" --vcpus "$3" --memory 256 \
	--cmdline "console=ttyS0 quiet panic=-1 reboot=k" \
	--drive "id=disk,path=$dir/disk.img" --vsock "cid=3,path=$dir/web.vsock" --start
run thaw wait web --console GUEST-READY --timeout 180
in_guest web "uname -sr"
in_guest web "echo 'warmed up' >/run/state; cat /run/state"
run thaw pause web
run thaw snapshot create web warm
for n in 1 2 3; do cp "$dir/disk.img" "$dir/disk-$n.img"; done
run thaw resume web
run thaw clone warm --count 3 --name c --drive "id=disk,path=$dir/disk-{n}.img" \
	--vsock "path=$dir/c-{n}.vsock"
for n in 1 2 3; do
	in_guest c-$n "cat /run/state; head -c 256 /dev/hwrng | tail -c 8 | od -An -tx1; echo 'I am $n' >/dev/vda; head -c 6 /dev/vda; echo"
done
run thaw ls
run thaw stop c-1 --mode power-button
run thaw wait c-1 --state exited --timeout 60
run thaw show c-1
