#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What `thaw guest fetch` and `thaw guest build` made, booted: run.sh's script for `run.sh -G -x guest.sh`.
#
#   guest.sh SERIES KIND VCPUS...
#
# By `thaw run`, as its printed command has it; by `thaw create` with a network, to ready, frozen and cloned; and
# the container's image. No VM has cx16: see README.md. The tap "tN" has 10.0.N.1 in L1, where udhcpd gives 10.0.1.77.
# ONLY=container: just the last of these.
export PATH=$PWD/bin:$PATH
# shellcheck source=tests/rig/l1-lib.sh
. ./l1-lib.sh

says() { grep -q "$1" "$DIR/out"; }
# run_to_end TEXT COMMANDS OPTION...: thaw run; when it has said TEXT, types the COMMANDS, of which the last one ends it.
run_to_end() {
	wait_for=$1 commands=$2
	shift 2
	rm -f "$DIR/in"
	mkfifo "$DIR/in"
	: >"$DIR/out"
	timeout "$BOOT" thaw --socket "$DIR/thawd.sock" run --cpu disable=cx16 "$@" <"$DIR/in" >"$DIR/out" 2>&1 &
	running=$!
	exec 4>"$DIR/in"
	until_ok says "$wait_for" && [ -n "$commands" ] && printf '%s\n' "$commands" >&4
	wait $running
	status=$?
	exec 4>&-
	cp "$DIR/out" "/out/console-$tests.log"
	tail -n 20 "$DIR/out"
	return $status
}

fetched() {
	set -- --kernel "$G/vmlinuz" --initrd "$G/initrd" --rootfs "$G/rootfs.ext4"
	sum=$(md5sum <"$G/rootfs.ext4")
	check "thaw run: boots, and its poweroff ends it" run_to_end GUEST-READY \
		'echo S=$(uname -r) I=$(readlink /proc/1/exe) $(grep " / " /proc/mounts); touch /root/x; sync; dmesg | grep -c "EXT4-fs error"; hostname; poweroff' "$@"
	check "its kernel" says "S=$SERIES"
	check "its init" says I=/bin/busybox
	check "its root is mounted read-write, by ext4" says "/dev/vda / ext4 rw"
	check "its name" says "^guest"
	check "no error of ext4" says "^0"
	same "no oops" "" grep Oops "$DIR/out"
	same "the image is as it was" "$sum" md5sum_of "$G/rootfs.ext4"

	tap 1
	printf 'interface t1\nstart 10.0.1.77\nend 10.0.1.77\nopt router 10.0.1.1\nopt dns 10.0.1.9\nopt subnet 255.255.255.0\nlease_file %s\n' \
		"$DIR/leases" >"$DIR/udhcpd.conf"
	: >"$DIR/leases"
	busybox udhcpd -f "$DIR/udhcpd.conf" >"$DIR/udhcpd.log" 2>&1 &
	dhcp=$!
	cmdline="console=ttyS0 quiet panic=-1 root=/dev/vda rw"
	check "created with a network" t create web --kernel "$G/vmlinuz" --initrd "$G/initrd" --cmdline "$cmdline" \
		--drive "id=root,path=$G/rootfs.ext4,layer=ephemeral" --net id=eth0,tap=t1 --vsock cid=3 \
		--ready-when console=GUEST-READY --vcpus "$VCPUS" --cpu disable=cx16 --start
	check "ready" t wait web --ready --timeout "$BOOT"
	check "it has the address that DHCP gave" ping -c 1 -W 10 10.0.1.77
	kill $dhcp
	t console web --write 'cat /etc/resolv.conf; ip route; lsmod | grep vsock; echo warm >/run/state'
	check "its resolver and route" until_ok console_has web "nameserver 10.0.1.9" "default via 10.0.1.1" ^vmw_vsock_virtio_transport
	check "snapshot" t snapshot create web warm
	check "its power button ends it" t stop web --timeout "$LIMIT"
	same "with shutdown" '"reason": "shutdown"' reason web
	check "delete" t delete web
	check "clone" t clone warm --name copy --net id=eth0,tap=t1
	t console copy --write 'echo copy-$(cat /run/state)'
	check "the clone has its memory, and a shell" until_ok console_has copy copy-warm
	check "delete the clone" t delete copy
	check "ip= by hand" run_to_end GUEST-READY 'ip addr show eth0; cat /etc/resolv.conf; poweroff' "$@" --net id=eth0,tap=t1 \
		--cmdline "$cmdline ip=10.0.1.33::10.0.1.1:255.255.0.0::eth0:off:10.0.1.8"
	check "it has that address" says "inet 10.0.1.33/16"
	check "and that resolver" says "nameserver 10.0.1.8"
	check "no such root: it says so, and ends" run_to_end "no root device /dev/vdz" "" --kernel "$G/vmlinuz" --initrd "$G/initrd" \
		--cmdline "console=ttyS0 quiet panic=-1 root=/dev/vdz"
}
console_has() { # VM TEXT...
	vm=$1
	shift
	t console "$vm" --read >"$DIR/console"
	for word; do grep -q "$word" "$DIR/console" || return 1; done
}
reason() { t show "$1" --json | grep -o '"reason": "[a-z]*"'; }
md5sum_of() { md5sum <"$1"; }

container() {
	check "a container's image boots to its shell" run_to_end '^/ # ' \
		'cd /; stat -c "%n %u:%g %a %h" srv/file srv/other "with space"; cat srv/other; busybox poweroff -f' \
		--kernel "$G/vmlinuz" --initrd "$G/initrd" --rootfs "$G/container.ext4"
	check "owner, mode and links are the archive's" says "srv/file 1000:70000 6751 2"
	check "of a hard link" says "srv/other 1000:70000 6751 2"
	check "of a folder with a space" says "with space 1000:70000 6751 2"
	check "its content" says "^of the container"
}

while [ $# -ge 3 ]; do
	SERIES=$1 VCPUS=$3 round="$1 fetched"
	G=$TOP/$SERIES/fetched
	shift 3
	DIR=$(mktemp -d) || exit 1
	check "daemon" start_daemon && {
		[ "${ONLY:-}" = container ] || fetched
		container
	}
	stop_daemon
	rm -rf "$DIR"
done
echo "1..$tests"
[ $failed = 0 ]
