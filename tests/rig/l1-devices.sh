# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh disable=SC2154
# A stock kernel's drivers and what thaw's devices offer them; part of scenario.sh, in one round of each series.

# devices: the balloon and console ports of a stock kernel's drivers.
devices() {
	truncate -s 32M "$DIR/data.img"
	dd if=/dev/urandom of="$DIR/ro.img" bs=64k count=32 2>/dev/null
	check "a VM with balloon, ports and pmem" t create dev --kernel "$KERNEL" --initrd "$INITRD-devices" \
		--cmdline "console=ttyS0 quiet panic=-1 reboot=k$CMDLINE" --vcpus "$VCPUS" --memory 256 \
		--balloon free_page_reporting,deflate_on_oom,stats_interval_s=1 \
		--port "id=agent,path=$DIR/agent.sock" --port "id=term,tty" \
		--pmem "id=data,path=$DIR/data.img" --pmem "id=ro,path=$DIR/ro.img,ro" --vsock "cid=3,path=$DIR/dev.vsock" --start &&
		check "boots to user space" timeout "$BOOT" \
			thaw --socket "$DIR/thawd.sock" wait dev --console GUEST-READY --timeout "$BOOT" &&
		check "answers over vsock" until_ok guest dev true && pmem && balloon && ports
	for v in dev d; do t delete $v >/dev/null 2>&1; done
	check "no VM process left" until_ok no_vmm_left
}
balloon_is() { has "actual: *$2 MiB" t balloon "$1"; } # VM MIB
freed() { # VM MIB: at least
	mib=$(t balloon "$1" --json | tr -d ' ",' | sed -n 's/^freed_mib://p')
	echo "$mib MiB given back"
	[ "$mib" -ge "$2" ]
}
# 40 MiB that are no zeros; the emulated CPU makes random bytes slowly.
FILL='dd if=/dev/urandom of=/run/a bs=64k count=16 2>/dev/null; for i in $(seq 40); do cat /run/a; done >/run/much; rm /run/a'
balloon() {
	check "a balloon of 32 MiB is asked for" t balloon dev --target 32
	check "it gets there" until_ok balloon_is dev 32
	check "the guest gives statistics" until_ok has free_bytes t balloon dev
	check "it is let go" t balloon dev --target 0
	check "it gets there" until_ok balloon_is dev 0
	check "40 MiB are in use" guest dev "$FILL"
	check "snapshot" t snapshot dev much || return 1
	mib=$(t balloon dev --json | tr -d ' ",' | sed -n 's/^freed_mib://p')
	check "they are free" guest dev "rm /run/much"
	check "they are given back" until_ok freed dev $((mib + 24))
	check "snapshot" t snapshot dev less || return 1
	a=$(($(du -k "$DIR/state/snapshots/much/memory" | cut -f1))) b=$(($(du -k "$DIR/state/snapshots/less/memory" | cut -f1)))
	note "$round: a raw snapshot of $a KiB, and $b when 40 MiB were free"
	echo "$a KiB, then $b" >"$DIR/last"
	[ $((a - b)) -ge 16384 ]
	result $? "the snapshot is 16 MiB smaller"
	t snapshot-delete much >/dev/null
	check "it lives" guest dev true
}
pmem() {
	check "pmem: a file of 32 MiB as memory" guest dev 'test $(cat /sys/block/pmem0/size) = 65536'
	same "a read-only one has its content" "$(md5sum_of "$DIR/ro.img")" guest dev "md5sum </dev/pmem1"
	check "a file system on it" guest dev "mke2fs -b 4096 /dev/pmem0 >/dev/null && mkdir -p /run/pm"
	check "mounted with DAX" guest dev "mount -t ext4 -o dax /dev/pmem0 /run/pm && grep -q 'pmem0.*dax' /proc/mounts"
	check "a word in it" guest dev "echo $NONCE >/run/pm/word && sync"
	check "the host has it in the file" grep -q "$NONCE" "$DIR/data.img"
	check "the read-only one can't be written" guest dev "! dd if=/dev/zero of=/dev/pmem1 bs=4096 count=1 conv=fsync; test \"\$(md5sum </dev/pmem1)\" = \"$(md5sum_of "$DIR/ro.img")\""
	same "nor is its file" "$(md5sum_of "$DIR/ro.img")" md5sum_of "$DIR/ro.img"
}
# What the agent does on vsock, done once by a shell at a port, until the host has gone.
SERVE='exec 3<>/dev/$(basename $(dirname $(grep -lx agent /sys/class/virtio-ports/*/name))); until read a <&3; do usleep 100000; done; echo OK 1 >&3; read c <&3; echo "got $c" >&3; echo .0 >&3; while read a <&3; do :; done'
port_talks() { # VM SOCKET; Linux lets one program open a port, so until that has ended
	guest "$1" "rm -f /run/served; { ($SERVE); touch /run/served; } </dev/null >/dev/null 2>&1 &"
	has "got hello $1" vsock-call -t "$LIMIT" "$2" "hello $1" && until_ok guest "$1" test -e /run/served
}
ports() {
	check "a terminal" guest dev "test -c /dev/hvc0"
	check "a port, both ways" port_talks dev "$DIR/agent.sock"
	check "once more" port_talks dev "$DIR/agent.sock"
	cp "$DIR/data.img" "$DIR/d-data.img"
	check "clone" t clone less --name d --pmem "id=data,path=$DIR/d-data.img" --port "id=agent,path=$DIR/d-agent.sock" --vsock "path=$DIR/d.vsock" || return 1
	check "it answers" until_ok guest d true || return 1
	same "it has the word in its own file" "$NONCE" guest d cat /run/pm/word
	same "and the file that both share" "$(md5sum_of "$DIR/ro.img")" guest d "md5sum </dev/pmem1"
	check "its port, both ways" port_talks d "$DIR/d-agent.sock"
	check "a balloon of 16 MiB" t balloon d --target 16
	check "it gets there" until_ok balloon_is d 16
	check "what it frees is given back" guest d "$FILL; rm /run/much"
	check "by the clone, too" until_ok freed d 40
	check "incremental snapshot" t snapshot d next --incremental --format lz4
	check "it counts on" counts d
	for s in next less; do t snapshot-delete $s --force >/dev/null; done
}
