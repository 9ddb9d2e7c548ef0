#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The main job with a stock Linux guest, end to end: boot, freeze, clone, over the
# daemon. Runs as root in the rig's machine (run.sh starts it), in a folder with
# bin/{thawd,thaw,thaw-vmm,thaw-pager,vsock-call} and SERIES/{vmlinux,vmlinuz,initrd}:
#
#   scenario.sh SERIES KIND VCPUS [SERIES KIND VCPUS]...
#
# SERIES is the guest's kernel, 6.1 or 6.12, KIND is vmlinux or bzImage; on arm64 Image or gzip. Prints TAP.
# Each step has a time limit; a failed boot skips the rest of its round. ONLY=devices: nothing but the devices; ONLY=users:
# but user networks.
#
# Network: tap "tN" has 10.0.N.1, the guest behind it 10.0.N.2. The source is N = 1,
# the clones of one request 10 and up (10 + their number), the last restore 2.
# The disk's sector 8 holds a nonce; sector 64 is written all the time. The second disk has
# an ephemeral layer over a base that all VMs share, and needs no override for a clone.

export PATH=$PWD/bin:$PATH
# passt becomes nobody.
grep -qs ^nobody: /etc/passwd || echo 'nobody:x:65534:65534::/:/bin/false' >>/etc/passwd
MACHINE=$(uname -m)
LIMITED=bzImage1 # the round of each series in which limits are tried
DEVICES=vmlinux2 # and that of all devices (l1-devices.sh)
STORED=20     # MiB: the most that the compressed memory of the 128 MiB guest takes
NONCE=nonce-$$-7f3a
[ "$MACHINE" = x86_64 ] || LIMITED=Image1 DEVICES='' # arm64: the devices' part on demand, by ONLY=devices
# shellcheck source=tests/rig/l1-lib.sh
. ./l1-lib.sh
# shellcheck source=tests/rig/l1-devices.sh
. ./l1-devices.sh

counts() { # VM: the counter in the guest goes on
	a=$(guest "$1" cat /run/counter) && until_ok counted_past "$1" "$a"
}
counted_past() { # VM N
	b=$(guest "$1" cat /run/counter)
	echo "counter $2, then $b"
	[ "$b" -gt "$2" ]
}
# first_time VM: how late its clock is from its boot, where a kernel counts ticks and a busy host makes it lose some.
# right_time VM: no more than that in its copies: the wall clock to a second, what passed since the boot to 0.3 s more
# than it takes to ask.
ticks() { tr -d . </proc/uptime | cut -d ' ' -f 1; } # hundredths of a second
lead_of() { # VM: our uptime's lead on the guest's, at least LEAST and at most MOST
	before=$(ticks)
	guest_up=$(guest "$1" "tr -d . </proc/uptime") || return 1
	MOST=$(($(ticks) - ${guest_up%% *})) LEAST=$((before - ${guest_up%% *}))
}
first_time() {
	a=$(guest "$1" date +%s) || return 1
	late=$(($(date +%s) - a))
	echo "late by $late s at most"
	[ $late -ge -1 ] && lead_of "$1" && first_least=$LEAST first_most=$MOST
}
right_time() {
	b=$(date +%s)
	a=$(guest "$1" date +%s) && lead_of "$1" || return 1
	c=$(date +%s)
	echo "guest $a, here $b to $c, late by $late s from its boot"
	echo "its uptime lags by $LEAST to $MOST hundredths, by $first_least to $first_most from its boot"
	[ "$a" -ge $((b - late - 1)) ] && [ "$a" -le $((c + 1)) ] &&
		[ "$LEAST" -le $((first_most + 30)) ] && [ "$MOST" -ge $((first_least - 30)) ]
}
write_nonce() { # VM TEXT: to the disk's sector 8, past the page cache
	guest "$1" "echo $2 | dd of=/dev/vda bs=512 seek=8 conv=sync,fsync,notrunc 2>/dev/null"
}
read_nonce() { # VM: from the disk, not from the page cache
	guest "$1" "sync; echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=512 skip=8 count=1 2>/dev/null | head -n 1"
}
md5sum_of() { md5sum <"$1"; }
image_nonce() { # FILE: what the host sees
	dd if="$1" bs=512 skip=8 count=1 2>/dev/null | head -n 1
}
layer_write() { # VM TEXT: to the second disk's sector 8
	guest "$1" "echo $2 | dd of=/dev/vdb bs=512 seek=8 conv=sync,fsync,notrunc 2>/dev/null"
}
layer_read() { # VM SECTOR
	guest "$1" "sync; echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vdb bs=512 skip=$2 count=1 2>/dev/null | head -n 1"
}
dial_out() { # VM: the guest connects to the host
	vsock-call -t "$LIMIT" -l "$DIR/$1.vsock_6000" >"$DIR/dialled" &
	listener=$!
	until_ok [ -S "$DIR/$1.vsock_6000" ] &&
		vsock-call -t "$LIMIT" "$DIR/$1.vsock" "dial 6000 from-$1" &&
		wait $listener && grep -qx "from-$1" "$DIR/dialled"
}
rebind_mac() { # VM: the MAC that a freshly bound driver finds
	guest "$1" 'd=$(basename $(readlink /sys/class/net/eth0/device)); cd /sys/bus/virtio/drivers/virtio_net; echo $d >unbind; echo $d >bind; cat /sys/class/net/*0/address'
}
# draw VM: notes random bytes of it; drawn_apart N: N VMs drew, each others. Linux keeps up to 128 bytes of
# the entropy device that it has drawn in advance: these may be the same in all copies.
draw() {
	check "$1 draws random bytes" guest "$1" "dd if=$RANDOM_DEV bs=64 count=4 iflag=fullblock 2>/dev/null | tail -c 16 | od -An -tx1"
	cat "$DIR/last" >>"$DIR/random"
}
drawn_apart() {
	{ echo "$RANDOM_DEV:"; cat "$DIR/random"; } >"$DIR/last"
	[ "$(grep -c . "$DIR/random")" = "$1" ] && [ "$(sort -u "$DIR/random" | grep -c .)" = "$1" ]
	result $? "different random bytes from $RANDOM_DEV"
}
ended() { # VM WORD: exited with that reason
	t wait "$1" --state exited --timeout "$LIMIT" && has "$2" t show "$1" --json
}

# What the guest's drivers took of each device, "ID MASK", by the guest and by the daemon.
features_in_guest() {
	guest "$1" 'for d in /sys/bus/virtio/devices/virtio*; do echo $(cat $d/device) $(cat $d/features); done' |
		while read -r id bits; do
			mask=$(echo "$bits" | awk '{
				for (i = 61; i > 0; i -= 4)
					printf "%x", substr($0, i, 1) + 2 * substr($0, i + 1, 1) + 4 * substr($0, i + 2, 1) + 8 * substr($0, i + 3, 1)
			}')
			echo "$((id)) 0x$mask"
		done
}
features_by_daemon() {
	t devices "$1" --json | tr -d ' ",' | awk -F: '
		$1 == "device_id" { id = $2 }
		$1 == "acked_mask" { print id, $2 }'
}
features_agree() { # VM N: of its N devices
	features_in_guest "$1" >"$DIR/features.guest"
	features_by_daemon "$1" >"$DIR/features.daemon"
	cat "$DIR/features.guest"
	echo daemon:
	cat "$DIR/features.daemon"
	[ "$(wc -l <"$DIR/features.guest")" = "$2" ] && cmp "$DIR/features.guest" "$DIR/features.daemon"
}
kicks_take_no_exit() { # VM: kicks there were, none by an exit
	t devices "$1" --json | tr -d ' ",' | awk -F: '
		$1 == "kicks_by_event" { event += $2 }
		$1 == "kicks_by_exit" { exit_ += $2 }
		END { print event " kicks by ioeventfd, " exit_ " by an exit"; exit !(event > 0 && exit_ == 0) }'
}

# boot: from nothing to user space, all devices seen.
boot() {
	tap 1
	truncate -s 16M "$DIR/src.img" "$DIR/base.img"
	echo "base-$NONCE" | dd of="$DIR/base.img" bs=512 seek=9 conv=sync,notrunc 2>/dev/null
	chmod 444 "$DIR/base.img"
	base_sum=$(md5sum <"$DIR/base.img")
	check "created and started" t create src --kernel "$KERNEL" --initrd "$INITRD" \
		--cmdline "console=ttyS0 quiet panic=-1 reboot=k$CMDLINE" --vcpus "$VCPUS" --memory 128 \
		--drive "id=disk,path=$DIR/src.img" --net id=net0,tap=t1,mac=02:00:00:00:00:01 \
		--drive "id=layered,path=$DIR/base.img,layer=ephemeral" \
		--vsock "cid=3,path=$DIR/src.vsock" ${MASK:+--cpu "disable=$MASK"} --start || return 1
	check "boots to user space" \
		timeout "$BOOT" thaw --socket "$DIR/thawd.sock" wait src --console GUEST-READY --timeout "$BOOT" ||
		return 1
	check "answers over vsock" until_ok guest src true || return 1
	case $SERIES in
	6.*) same "kernel is of series $SERIES" "$SERIES" guest src "uname -r | cut -d. -f1,2" ;;
	esac
	[ -z "$MASK" ] || check "the CPU feature that is masked is not there, others are" \
		guest src "grep -qw sse4_1 /proc/cpuinfo && ! grep -qw sse4_2 /proc/cpuinfo"
	same "$VCPUS vCPUs at work" "$VCPUS" guest src "grep -c ^processor /proc/cpuinfo"
	[ "$MACHINE" = aarch64 ] || same "in one socket" 0 guest src "sort -u /sys/devices/system/cpu/cpu*/topology/physical_package_id"
	same "its clock source" "$CLOCK" guest src \
		cat /sys/devices/system/clocksource/clocksource0/current_clocksource
	check "blk: disk of 16 MiB" guest src 'test $(cat /sys/block/vda/size) = 32768'
	same "net: its MAC" 02:00:00:00:00:01 guest src cat /sys/class/net/eth0/address
	same "rng: 16 bytes" 16 guest src "head -c 16 /dev/hwrng | wc -c"
	check "features: in the guest as the daemon says" features_agree src 5
	t devices src | grep -E '^[^ ]|not taken' | sed "s/^/# $round: /"
	check "kicks take no exit" kicks_take_no_exit src
	check "counter counts" counts src
	check "it has the time" first_time src
	check "address set" set_address src 1
	check "ping both ways" ping_guest 1 src
	check "vsock from the guest out" dial_out src
	return 0 # what failed here need not end the round
}

# freeze: nonces, a load on the disk, an open connection; pause, snapshot, resume.
freeze() {
	check "nonce in a RAM file" guest src "echo $NONCE >/run/nonce"
	check "nonce on the disk" write_nonce src "$NONCE"
	same "nonce seen by the host" "$NONCE" image_nonce "$DIR/src.img"
	check "nonce into the second disk's layer" layer_write src "$NONCE"
	check "a load on the disk" guest src \
		'(while :; do dd if=/run/counter of=/dev/vda bs=512 seek=64 count=1 conv=fsync,notrunc; sleep 0.2; done) </dev/null >/dev/null 2>&1 &'
	vsock-call -t 600 "$DIR/src.vsock" "sh until [ -e /run/go ]; do sleep 1; done; echo held" \
		>"$DIR/held" 2>&1 &
	held=$!
	check "snapshot of the running VM" t snapshot src live || return 1
	check "the source runs on" counts src
	check "a timer is started" guest src \
		'(sleep 30; touch /run/slept) </dev/null >/dev/null 2>&1 & sleep 1; test ! -e /run/slept'
	check "pause" t pause src || return 1
	check "shown as paused" has paused t show src --json
	check "snapshot" t snapshot src snap || return 1
	check "snapshot is listed" has snap t snapshots
	check "snapshot is shown" t snapshot-show snap --json
	check "this host can run it" has "this host can run it" t snapshot-show snap
	for n in 0 1 2 3 9; do cp "$DIR/src.img" "$DIR/c-$n.img"; done
	check "resume" t resume src || return 1
	check "the source's counter goes on" counts src
	check "the source's timer fires" until_ok guest src test -e /run/slept
	check "the source has its nonce" guest src "grep -qx $NONCE /run/nonce"
	check "the source's connection is asked to end" guest src "touch /run/go"
	wait $held
	check "the source's open connection lived on" grep -qx held "$DIR/held"
	return 0
}

# clones: three of them, each itself.
clones() {
	for n in 0 1 2 3; do tap 1$n; done
	check "three clones in one request" t clone snap --count 3 --name c \
		--drive "id=disk,path=$DIR/c-{n}.img" --net "id=net0,tap=t1{n},mac=02:00:00:00:01:0{n}" \
		--vsock "path=$DIR/c-{n}.vsock" || return 1
	# Named by the daemon: c-1, c-2, c-3.
	names=$(cd "$DIR" && for s in c-*.vsock; do echo "${s%.vsock}"; done)
	t ls | sed 's/^/# /'
	same "three vsock paths" 3 sh -c "echo '$names' | wc -l"
	: >"$DIR/random"
	for c in $names; do
		n=${c#c-}
		check "$c answers over a new vsock connection" until_ok guest "$c" true || continue
		draw "$c"
		same "$c has the nonce in RAM" "$NONCE" guest "$c" cat /run/nonce
		same "$c has the nonce on its disk" "$NONCE" read_nonce "$c"
		check "$c counts on" counts "$c"
		check "$c: the timer that was pending fires" until_ok guest "$c" test -e /run/slept
		check "$c writes its disk" write_nonce "$c" "mine-$c"
		same "$c has the nonce in its layer" "$NONCE" layer_read "$c" 8
		same "$c reads the base below" "base-$NONCE" layer_read "$c" 9
		check "$c writes its layer" layer_write "$c" "mine-$c"
		check "$c has its own address" set_address "$c" "1$n"
		check "$c ping both ways" ping_guest "1$n" "$c"
		check "$c vsock from the guest out" dial_out "$c"
	done
	for c in $names; do
		same "$c reads its own write" "mine-$c" read_nonce "$c"
		same "$c wrote its own image" "mine-$c" image_nonce "$DIR/$c.img"
		same "$c reads its own layer" "mine-$c" layer_read "$c" 8
	done
	same "the source's disk kept its nonce" "$NONCE" image_nonce "$DIR/src.img"
	same "the source's layer kept its nonce" "$NONCE" layer_read src 8
	same "the base is unchanged" "$base_sum" md5sum_of "$DIR/base.img"
	drawn_apart 3
	set -- $names
	same "$1 has its own MAC when its driver binds anew" "02:00:00:00:01:0${1#c-}" rebind_mac "$1"
	check "kill $1" t stop "$1" --mode kill
	check "delete $1" t delete "$1"
	check "$2 lives" counts "$2"
	check "$3 lives" counts "$3"
	check "the source lives" counts src
}

# end_it VM TEXT MODE: from outside; where the machine has no such thing it says so, and the guest does it.
end_it() {
	if [ "$MACHINE" = x86_64 ]; then
		check "$2" t stop "$1" --mode "$3"
		return
	fi
	case $3 in ctrl-alt-del) does=reboot why="the arm64 machine has no" ;; *) does=poweroff why="the guest does not listen" ;; esac
	check "$2: it has none" refused "$why" t stop "$1" --mode "$3"
	guest "$1" "(sleep 1; $does -f) >/dev/null 2>&1 &"
}
refused() { # WORD COMMAND...: fails with the word
	word=$1
	shift
	! "$@" >"$DIR/refused" 2>&1 && grep "$word" "$DIR/refused"
}
# ends: each way for a guest to end has its word.
ends() {
	set -- $names
	guest "$2" "(sleep 1; poweroff -f) >/dev/null 2>&1 &"
	check "poweroff ends $2 with shutdown" ended "$2" shutdown
	guest "$3" "(sleep 1; reboot -f) >/dev/null 2>&1 &"
	check "reboot ends $3 with reset" ended "$3" reset
	end_it src "power button" power-button
	check "that ends src with shutdown" ended src shutdown
	for v in "$2" "$3" src; do check "delete $v" t delete "$v"; done
	check "no VM process left" until_ok no_vmm_left
}

# stored NAME: the compressed memory file is small.
stored() {
	kib=$(($(wc -c <"$DIR/state/snapshots/$1/memory") / 1024)) || return 1
	note "$round: 128 MiB of memory are stored in $kib KiB"
	echo "$kib KiB, at most $((STORED * 1024))" >"$DIR/last"
	[ $kib -le $((STORED * 1024)) ]
	result $? "its memory is stored in at most $STORED MiB"
}

# lazy: the restored VM is frozen compressed, and goes on as a clone that loads on demand.
lazy() {
	check "compressed snapshot" t snapshot again snapz --format lz4-high || return 1
	stored snapz
	check "delete its source" t delete again
	check "every chunk is good" t snapshot-verify snapz
	check "lazy clone" t clone snapz --name lazy --drive "id=disk,path=$DIR/c-0.img" \
		--net id=net0,tap=t2 --vsock "path=$DIR/lazy.vsock" || return 1
	check "it answers" until_ok guest lazy true || return 1
	same "it has the nonce in RAM" "$NONCE" guest lazy cat /run/nonce
	check "it counts on" counts lazy
	check "its template is whole" t snapshot-prepare snapz --wait
}

# again: the snapshot outlives the daemon.
again() {
	stop_daemon
	check "the daemon starts again" start_daemon || return 1
	check "the snapshot is still there" has snap t snapshots
	tap 2
	check "restored again by name" t clone snap --name again --drive "id=disk,path=$DIR/c-9.img" \
		--net id=net0,tap=t2 --vsock "path=$DIR/again.vsock" || return 1
	check "it answers" until_ok guest again true || return 1
	check "its wall clock is right" right_time again
	same "it has the nonce in RAM" "$NONCE" guest again cat /run/nonce
	same "it has the nonce on its disk" "$NONCE" read_nonce again
	same "it has the nonce in its layer" "$NONCE" layer_read again 8
	end_it again "Ctrl-Alt-Del" ctrl-alt-del
	check "that ends it with reset" ended again reset
	check "delete it" t delete again
	check "delete the snapshot" t snapshot-delete snap
	# The one that was taken while the VM ran, its disk under load.
	check "restored from the live snapshot" t clone live --name again \
		--drive "id=disk,path=$DIR/c-0.img" --net id=net0,tap=t2 --vsock "path=$DIR/again.vsock" || return 1
	check "it answers" until_ok guest again true || return 1
	same "it has the nonce in RAM" "$NONCE" guest again cat /run/nonce
	check "it counts on" counts again
	same "it has the nonce in its layer" "$NONCE" layer_read again 8
	lazy || return 1
	guest lazy "(sleep 1; poweroff -f) >/dev/null 2>&1 &"
	check "it powers off" ended lazy shutdown
	check "delete it" t delete lazy
	check "delete the live snapshot" t snapshot-delete live
	check "no VM process left" until_ok no_vmm_left
}

# copies: incremental snapshots, live forks and a pool.
copies() {
	check "a VM that tracks what it writes" t create warm --kernel "$KERNEL" --initrd "$INITRD" \
		--cmdline "console=ttyS0 quiet panic=-1 reboot=k$CMDLINE" --vcpus "$VCPUS" --memory 128 --track-dirty \
		--drive "id=layered,path=$DIR/base.img,layer=ephemeral" \
		--vsock "cid=3,path=$DIR/warm.vsock" --start &&
		check "boots to user space" timeout "$BOOT" \
			thaw --socket "$DIR/thawd.sock" wait warm --console GUEST-READY --timeout "$BOOT" &&
		check "answers over vsock" until_ok guest warm true && chain && limited && forks && pooled
	for v in warm w-1 w-2 lim f-1 f-2 g p-1 p-2; do t delete "$v" >/dev/null 2>&1; done
	check "no VM process left" until_ok no_vmm_left
}
# What each link of the chain has written is there in the next.
chain() {
	check "it has the time" first_time warm
	check "it has a nonce in RAM" guest warm "echo $NONCE >/run/nonce"
	check "full snapshot" t snapshot warm w0 --format lz4 || return 1
	check "it writes" guest warm "echo later >/run/later; dd if=/dev/urandom of=/run/bytes bs=64k count=16; md5sum </run/bytes >/run/sum"
	check "incremental snapshot" t snapshot warm w1 --incremental || return 1
	note "$round: full $(($(wc -c <"$DIR/state/snapshots/w0/memory") / 1024)) KiB, then $(($(wc -c <"$DIR/state/snapshots/w1/memory") / 1024))"
	check "clone of it" t clone w1 --name w-1 --vsock "path=$DIR/w-1.vsock" || return 1
	check "it answers" until_ok guest w-1 true || return 1
	same "it has what was written since" later guest w-1 cat /run/later
	check "byte for byte" guest w-1 'test "$(md5sum </run/bytes)" = "$(cat /run/sum)"'
	check "its wall clock is right" right_time w-1
	check "it writes, too" guest w-1 "echo third >/run/third"
	check "a third one" t snapshot w-1 w2 --incremental || return 1
	check "flattened" t snapshot-flatten w2
	for v in w1 w0; do check "delete $v" t snapshot-delete $v --force; done
	check "every byte of it is good" t snapshot-verify w2
	check "clone of the flattened one" t clone w2 --name w-2 --vsock "path=$DIR/w-2.vsock" || return 1
	check "it answers" until_ok guest w-2 true || return 1
	same "it has all three" "$NONCE later third" guest w-2 'echo $(cat /run/nonce /run/later /run/third)'
	check "byte for byte" guest w-2 'test "$(md5sum </run/bytes)" = "$(cat /run/sum)"'
	check "it counts on" counts w-2
}
# limited: a clone in a cgroup of its own, which ends when it uses more than it may; w-2 is its sibling.
limited() {
	[ -n "$CGROUP" ] || return 0
	check "clone with limits" t clone w2 --name lim --vsock "path=$DIR/lim.vsock" \
		--limit memory_mib=48,cpu_percent=100,pids=20 || return 1
	group=$LIMITS/vm-$(t show lim --json | sed -n 's/^ *"id": *"\(.*\)".*/\1/p' | head -n 1)
	pid=$(t show lim --json | sed -n 's/^ *"pid": *\([0-9]*\).*/\1/p')
	check "it is in its cgroup" grep -qx "$pid" "$group/cgroup.procs" # KVM may have a thread there, too
	same "its memory" $((48 << 20)) cat "$group/memory.max"
	same "its CPU time" "100000 100000" cat "$group/cpu.max"
	same "its processes" 20 cat "$group/pids.max"
	check "it answers" until_ok guest lim true || return 1
	same "it has all three" "$NONCE later third" guest lim 'echo $(cat /run/nonce /run/later /run/third)'
	guest lim "dd if=/dev/urandom of=/run/big bs=1M count=90" >/dev/null 2>&1 &
	check "it ends when it uses more" ended lim out-of-memory
	wait $!
	check "its cgroup is gone" until_ok [ ! -e "$group" ]
	check "w-2 counts on" counts w-2
}
forks() {
	check "two forks of the running VM" t fork warm --count 2 --name f --vsock "path=$DIR/f-{n}.vsock" || return 1
	: >"$DIR/random"
	for v in f-1 f-2; do
		check "$v answers" until_ok guest $v true || return 1
		draw $v
		same "$v has the nonce in RAM" "$NONCE" guest $v cat /run/nonce
		check "$v counts on" counts $v
		check "$v: its wall clock is right" right_time $v
	done
	drawn_apart 2
	check "the parent counts on" counts warm
	check "fork of a fork" t fork f-1 --name g --vsock "path=$DIR/g.vsock" || return 1
	for v in warm f-1; do check "delete $v" t delete $v; done
	check "it answers without them" until_ok guest g true || return 1
	same "it has the nonce in RAM" "$NONCE" guest g cat /run/nonce
	check "f-2 counts on" counts f-2
}
pooled() {
	check "a pool of two" has "2 of 2 ready" t snapshot-prepare w2 --pool size=2 --wait || return 1
	: >"$DIR/random"
	for v in p-1 p-2; do
		check "$v is claimed" has '"prepared": true' t clone w2 --name $v --vsock "path=$DIR/$v.vsock" --json || return 1
		check "$v answers" until_ok guest $v true || return 1
		draw $v
		same "$v has all three" "$NONCE later third" guest $v 'echo $(cat /run/nonce /run/later /run/third)'
		check "$v counts on" counts $v
		check "$v: its wall clock is right" right_time $v
	done
	drawn_apart 2
	check "the pool goes" t snapshot-delete w2 --force
}

fetch_metadata() { vsock-call -t "$LIMIT" "$DIR/$1.vsock" "fetch 29800"; } # VM
# get ADDRESS PORT: the last line of a page. busybox's wget, linked statically, does not work without name
# services; and passt of 2023 passes no end on to who has closed his direction first: it waits for an answer.
GET='get() { rm -f /tmp/got; { printf "GET / HTTP/1.0\r\n\r\n"; i=0; while [ $i -lt 200 ] && [ ! -s /tmp/got ]; do sleep 0.2; i=$((i + 1)); done; sleep 1; } | timeout 45 nc $1 $2 >/tmp/got; tail -n 1 /tmp/got; }'
eval "$GET"
web_page() { get 127.0.0.1 "$1" 2>/dev/null; } # PORT: what the guest behind it serves
ask_host() { guest "$1" "exec 2>/dev/null; mkdir -p /tmp; $GET; get 10.0.2.2 7070"; } # VM: by its gateway
no_passt_left() { ! pidof passt passt.avx2 >/dev/null; }

# user_net: networks by passt, all with the same addresses; metadata over vsock.
user_net() {
	if ! command -v passt >/dev/null; then
		tests=$((tests + 1))
		echo "ok $tests - $round: user networks # SKIP passt is not installed on the host"
		return
	fi
	mkdir -p "$DIR/www"
	echo "from the host" >"$DIR/www/index.html"
	httpd -f -p 127.0.0.1:7070 -h "$DIR/www" &
	web=$!
	echo '{ "name": "user" }' >"$DIR/meta"
	check "doctor says that passt works" has "^ok *passt" t doctor
	check "a VM with a user network" t create user --kernel "$KERNEL" --initrd "$INITRD" \
		--cmdline "console=ttyS0 quiet panic=-1 reboot=k$CMDLINE" --vcpus "$VCPUS" --memory 256 \
		--net id=net0,user,loopback,forward=8080:80,mac=02:00:00:00:00:07 \
		--vsock "cid=3,path=$DIR/user.vsock" --metadata "$DIR/meta" --start &&
		check "boots to user space" timeout "$BOOT" \
			thaw --socket "$DIR/thawd.sock" wait user --console GUEST-READY --timeout "$BOOT" &&
		check "answers over vsock" until_ok guest user true && user_net_clones
	kill $web
	for v in user u-1 u-2; do t delete "$v" >/dev/null 2>&1; done
	check "no passt left" until_ok no_passt_left
	check "no VM process left" until_ok no_vmm_left
}

user_net_clones() {
	check "its address" guest user "ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up; ip route add default via 10.0.2.2"
	same "TCP from the guest to the host" "from the host" ask_host user
	check "a server in the guest" guest user "mkdir /run/www; echo web-user >/run/www/index.html; httpd -p 80 -h /run/www"
	same "TCP from the host to the guest" web-user web_page 8080
	same "its metadata" '{"name":"user"}' fetch_metadata user
	check "pause" t pause user
	check "snapshot" t snapshot user usersnap || return 1
	check "resume" t resume user
	for n in 1 2; do
		echo "{\"name\":\"u-$n\"}" >"$DIR/meta"
		check "clone u-$n" t clone usersnap --name "u-$n" --metadata "$DIR/meta" --vsock "path=$DIR/u-$n.vsock" \
			--net "id=net0,user,loopback,forward=808$n:80" || return 1
	done
	# First from outside: the guests have sent nothing since.
	same "u-1 is reached by its port" web-user web_page 8081
	same "u-2 is reached by its own" web-user web_page 8082
	for v in u-1 u-2 user; do
		check "$v answers over vsock" until_ok guest "$v" true || return 1
		same "$v has the address that all have" 10.0.2.15/24 guest "$v" "ip -o -4 addr show eth0 | tr -s ' ' | cut -d' ' -f4"
		same "$v reaches the host" "from the host" ask_host "$v"
		same "$v has its own metadata" "{\"name\":\"$v\"}" fetch_metadata "$v"
	done
	echo '{"new":1}' >"$DIR/meta"
	check "other metadata for u-1" t metadata u-1 --set "$DIR/meta"
	same "u-1 reads it" '{"new":1}' fetch_metadata u-1
	same "its link is up" 1 guest u-2 cat /sys/class/net/eth0/carrier
	check "u-2 loses its passt" kill "$(pidof passt passt.avx2 | tr ' ' '\n' | sort -n | tail -n 1)"
	check "it sees its link go down" until_ok guest u-2 "grep -qx 0 /sys/class/net/eth0/carrier"
	same "u-1 does not" "from the host" ask_host u-1
}

scenario() { # SERIES KIND VCPUS
	SERIES=$1 VCPUS=$3 round="$1 $2, $3 vCPU"
	DIR=$TOP/run-$1-$2-$3
	INITRD=$TOP/$1/initrd
	KERNEL=$TOP/$1/vmlinuz
	case $2 in vmlinux) KERNEL=$TOP/$1/vmlinux ;; gzip) KERNEL=$TOP/$1/vmlinuz.gz ;; esac
	# A guest on a host with an invariant TSC takes the time from it; here it has to be told.
	# A bzImage's packed image stays in free memory: init_on_free, or the snapshot has it.
	CLOCK=kvm-clock CMDLINE='' MASK=sse4_2
	[ "$2" = vmlinux ] || CLOCK=tsc CMDLINE=' clocksource=tsc tsc=reliable init_on_free=1'
	[ "$MACHINE" = x86_64 ] || CLOCK=arch_sys_counter CMDLINE='' MASK=''
	# 6.1 has no VMGENID driver: there the monitor's entropy device must differ.
	RANDOM_DEV=/dev/urandom
	[ "$1" != 6.1 ] || RANDOM_DEV=/dev/hwrng
	mkdir -p "$DIR"
	# Where limits are tried, all VMs of the daemon are in cgroups.
	CGROUP='' LIMITS=/sys/fs/cgroup/thaw
	if [ "$2$3" = "$LIMITED" ]; then
		echo "+memory +cpu +pids" >/sys/fs/cgroup/cgroup.subtree_control && mkdir -p $LIMITS
		CGROUP="--cgroup $LIMITS"
	fi
	note "$round"
	up=$(seconds)
	if check "the daemon starts" start_daemon; then
		check "doctor" t doctor
		if [ "$ONLY" = devices ]; then
			devices
		elif [ "$ONLY" = users ]; then
			user_net
		elif boot && freeze; then
			clones && ends && again && copies && user_net
			[ "$2$3" != "$DEVICES" ] || devices
		else
			show_logs src
		fi
	else
		sed 's/^/# /' "$DIR/thawd.log"
	fi
	stop_daemon
	killall -9 thaw-vmm vsock-call 2>/dev/null
	note "$round took $(($(seconds) - up)) s"
	mkdir -p /out
	cp "$DIR/thawd.log" "/out/thawd-$1-$2-$3.log"
	cd "$TOP" && rm -rf "$DIR"
}

while [ $# -ge 3 ]; do
	scenario "$1" "$2" "$3"
	shift 3
done
echo "1..$tests"
[ $failed = 0 ]
