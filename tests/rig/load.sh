#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Save and restore under load, with a stock Linux guest. Runs in L1 as scenario.sh does, by run.sh -g -x load.sh:
#
#   load.sh SERIES KIND VCPUS...
#
# The source has a raw disk (vda), one with an ephemeral layer (vdb), a tap and vsock. In it fio writes and verifies,
# 100 vsock streams and 4 TCP streams carry checked bytes (flow.c). It is frozen while all that goes on:
#
#   live    a snapshot of the running VM, the raw disk at rest, since nobody could copy that at the same moment
#   forks   VMs made of it as it runs
#   still   a snapshot with a pause around it and the copies of the raw disk, which is under load as well
#
# Six clones, two at a time; ten with FULL=1 (run.sh -e FULL=1). Each must go on with its own disks where the source was,
# lose the source's vsock streams and have new ones at once, and have a network. The source must not notice.
# Network: tap "tN" has 10.0.N.1, the guest behind it 10.0.N.2: the source is N = 1, clones 11 and 12.

export PATH=$PWD/bin:$PATH
# shellcheck source=tests/rig/l1-lib.sh
. ./l1-lib.sh
export LIMIT=240 # seconds: all CPUs of all VMs here are one emulated CPU; so the loads are paced, or nothing else would run
STREAMS=100

# flows NAME MODE ARGUMENT...: checked streams in the background; NAME.flow has their counters, NAME.end the result.
flows() {
	name=$1
	shift
	flow "$@" -s 3000 -f "$DIR/$name.flow" >"$DIR/$name.end" 2>&1 &
	eval "flow_$name=$!"
}
least() { sed -n 's/.* least \([0-9]*\) .*/\1/p' "$DIR/$1.flow"; }
flow_beyond() { [ "$(least "$1")" -gt "$2" ]; } # NAME ROUNDS
flows_move() { # NAME: each of the streams
	before=$(least "$1") && until_ok flow_beyond "$1" "$before"
}
end_flows() { # NAME
	pid='' # of the shell's children
	eval "pid=\$flow_$1"
	kill -TERM "$pid" 2>/dev/null
	wait "$pid"
	status=$?
	cat "$DIR/$1.end"
	return $status
}
start_load() { # VM NAME DEVICE
	guest "$1" "guest-load $2 $3 256 >/dev/null 2>&1 </dev/null &"
}
runs() { guest "$1" "cat /run/$2.runs 2>/dev/null || echo 0"; } # VM NAME
runs_beyond() { [ "$(runs "$1" "$2")" -gt "$3" ]; }             # VM NAME N
load_ends() {                                                   # VM NAME: with what status
	guest "$1" "touch /run/$2.stop" && until_ok guest "$1" "test -e /run/$2.status" &&
		guest "$1" "cat /run/$2.err /run/$2.status"
}
no_trouble() { # VM: its kernel has seen no error since the load began
	! guest "$1" dmesg | grep -E "I/O error|BUG:|Oops|WARNING: CPU|blocked for more than|is not a head"
}
no_streams() { guest "$1" "grep -q '^open 0 ' /run/vsock.flow"; }
disk_sum() { guest "$1" "sync; echo 3 >/proc/sys/vm/drop_caches; md5sum </dev/vda"; }
image_sum() { md5sum <"$1"; }

boot() {
	tap 1
	truncate -s 8M "$DIR/src.img" "$DIR/base.img"
	chmod 444 "$DIR/base.img"
	check "created and started" t create src --kernel "$KERNEL" --initrd "$INITRD" \
		--cmdline "console=ttyS0 quiet panic=-1" --vcpus "$VCPUS" --memory 192 \
		--drive "id=disk,path=$DIR/src.img" --drive "id=layered,path=$DIR/base.img,layer=ephemeral" \
		--net id=net0,tap=t1,mac=02:00:00:00:00:01 --vsock "cid=3,path=$DIR/src.vsock" --start &&
		check "boots to user space" \
			timeout "$BOOT" thaw --socket "$DIR/thawd.sock" wait src --console GUEST-READY --timeout "$BOOT" &&
		check "answers over vsock" until_ok guest src true &&
		check "address set" set_address src 1
}

# What a clone has to do; NAME N [raw: the raw disk is under load, too].
clone_is_well() {
	c=$1 n=$2 raw=$3
	check "$c answers" until_ok guest "$c" true || return 1
	layer_runs=$(runs "$c" layer)
	[ -z "$raw" ] || raw_runs=$(runs "$c" raw)
	check "$c: new vsock streams" flow echo -n 20 -s 1 "unix:$DIR/$c.vsock:6001"
	check "$c: the source's vsock streams are gone" until_ok no_streams "$c"
	check "$c has its own address" set_address "$c" "1$n"
	check "$c: TCP in" flow up -s 1 "tcp:10.0.1$n.2:5001"
	check "$c: TCP out" flow down -s 1 "tcp:10.0.1$n.2:5001"
	# The run that was frozen ends, and load_ends() waits for the one after it.
	check "$c: fio goes on" until_ok runs_beyond "$c" layer "$layer_runs"
	same "$c: all it wrote to its layer was right" 0 load_ends "$c" layer
	if [ -n "$raw" ]; then
		check "$c: fio on the raw disk goes on" until_ok runs_beyond "$c" raw "$raw_runs"
		same "$c: all it wrote there was right" 0 load_ends "$c" raw
	fi
	check "$c: no error in its kernel's log" no_trouble "$c"
	sum=$(disk_sum "$c")
	same "$c: its raw disk is what the host sees" "$sum" image_sum "$DIR/$c.img"
}

clones() { # NAME N WHAT...: N clones called NAME, by that command
	name=$1 count=$2
	shift 2
	for n in $(seq "$count"); do
		tap "1$n"
		[ -e "$DIR/$name-$n.img" ] || cp "$DIR/src.img" "$DIR/$name-$n.img" || return 1
	done
	check "$count VMs by $*" t "$@" --count "$count" --name "$name" --drive "id=disk,path=$DIR/$name-{n}.img" \
		--net "id=net0,tap=t1{n}" --vsock "path=$DIR/$name-{n}.vsock" || return 1
	for n in $(seq "$count"); do clone_is_well "$name-$n" "$n" "$RAW"; done
	check "the source's vsock streams go on" flows_move vsock
	check "the source's TCP streams go on" flows_move tcp
	for n in $(seq "$count"); do check "delete $name-$n" t delete "$name-$n"; done
	rm -f "$DIR/$name"-*.img
}

under_load() {
	check "the kernel's log is emptied" guest src "dmesg -c >/dev/null" # this CPU's XSAVE is worth a warning at boot
	check "servers" guest src "for a in vsock:0:6001 tcp:0.0.0.0:5001; do flow serve -f /run/\${a%%:*}.flow \$a \
		</dev/null >>/run/flow.log 2>&1 & done" &&
		check "they listen" until_ok guest src "test -e /run/vsock.flow -a -e /run/tcp.flow"
	flows vsock echo -n "$STREAMS" -p 2000 "unix:$DIR/src.vsock:6001"
	flows tcp echo -n 4 -b 65536 -p 1000 tcp:10.0.1.2:5001
	start_load src layer /dev/vdb
	check "fio writes and verifies" until_ok runs_beyond src layer 0 || return 1
	check "$STREAMS vsock streams" until_ok flow_beyond vsock 1 || return 1
	check "TCP streams" until_ok flow_beyond tcp 1 || return 1

	RAW=''
	check "live snapshot" t snapshot src live || return 1
	clones a 2 clone live
	[ -z "$FULL" ] || clones b 2 clone live
	clones f 2 fork src
	RAW=1
	start_load src raw /dev/vda
	check "fio on the raw disk, too" until_ok runs_beyond src raw 0 || return 1
	check "pause" t pause src || return 1
	check "snapshot" t snapshot src still || return 1
	for c in c-1 c-2 ${FULL:+d-1 d-2}; do cp "$DIR/src.img" "$DIR/$c.img"; done
	check "resume" t resume src || return 1
	clones c 2 clone still
	[ -z "$FULL" ] || clones d 2 clone still

	check "every byte of the source's vsock streams came back" end_flows vsock
	sed 's/^/# vsock: /' "$DIR/vsock.end"
	check "every byte of its TCP streams came back" end_flows tcp
	sed 's/^/# TCP: /' "$DIR/tcp.end"
	note "fio: $(runs src layer) runs on the layer, $(runs src raw) on the raw disk"
	same "all it wrote to its layer was right" 0 load_ends src layer
	same "all it wrote to its raw disk was right" 0 load_ends src raw
	check "no error in its kernel's log" no_trouble src
	sum=$(disk_sum src)
	same "its raw disk is what the host sees" "$sum" image_sum "$DIR/src.img"
	check "its servers have seen no wrong byte" guest src "cat /run/flow.log; test ! -s /run/flow.log"
}

load() { # SERIES KIND VCPUS
	VCPUS=$3 round="load, $1 $2, $3 vCPU"
	DIR=$TOP/run-load INITRD=$TOP/$1/initrd KERNEL=$TOP/$1/vmlinux
	[ "$2" = vmlinux ] || KERNEL=$TOP/$1/vmlinuz
	mkdir -p "$DIR"
	up=$(seconds)
	if ! check "the daemon starts" start_daemon; then
		sed 's/^/# /' "$DIR/thawd.log"
	elif ! boot || ! under_load; then
		show_logs src
	fi
	t delete src >/dev/null 2>&1
	check "no VM process left" until_ok no_vmm_left
	stop_daemon
	killall -9 thaw-vmm vsock-call flow 2>/dev/null
	note "$round took $(($(seconds) - up)) s"
	mkdir -p /out
	cp "$DIR/thawd.log" "/out/thawd-load.log"
	cd "$TOP" && rm -rf "$DIR"
}

while [ $# -ge 3 ]; do
	load "$1" "$2" "$3"
	shift 3
done
echo "1..$tests"
[ $failed = 0 ]
