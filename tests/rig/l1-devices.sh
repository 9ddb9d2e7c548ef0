# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh disable=SC2154
# A stock kernel's drivers and what thaw's devices offer them; part of scenario.sh, in one round of each series.
# Behind it: l1-lib.sh's commands, and probe.c and flow.c on both sides. The VM is called dev, its clone d.
#
# Bounds on time hold on any machine: a limit has to take at least so long, and what is compared to it was measured
# just before. The tap t20 has 10.0.20.1 and dev 10.0.20.2; the clone is behind t21.

# devices: one VM with all of them, then a clone.
devices() {
	truncate -s 32M "$DIR/data.img"
	dd if=/dev/urandom of="$DIR/ro.img" bs=64k count=32 2>/dev/null
	cat "$DIR/ro.img" "$DIR/ro.img" "$DIR/ro.img" "$DIR/ro.img" >"$DIR/disk.img"
	truncate -s 4M "$DIR/slow.img"
	for n in 20 21; do probe tap t$n && tap_up $n; done
	printf '{"name":"dev","latest":{"meta-data":{"id":"i-1"}},"large":"%060000d"}' 7 >"$DIR/dev.json"
	check "a VM with all devices" t create dev --kernel "$KERNEL" --initrd "$INITRD-devices" \
		--cmdline "console=ttyS0 quiet panic=-1 reboot=k$CMDLINE" --vcpus "$VCPUS" --memory 256 \
		--balloon free_page_reporting,deflate_on_oom,stats_interval_s=1 \
		--port "id=agent,path=$DIR/agent.sock" --port "id=term,tty" \
		--drive "id=disk,path=$DIR/disk.img,queues=2,serial=$SERIAL" \
		--drive "id=slow,path=$DIR/slow.img,block_size=4096,bandwidth=1M/s" \
		--net "id=net0,tap=t20,mac=02:00:00:00:00:20,mtu=$MTU,queues=2" \
		--metadata-service version=v1 --metadata "$DIR/dev.json" \
		--pmem "id=data,path=$DIR/data.img" --pmem "id=ro,path=$DIR/ro.img,ro" --vsock "cid=3,path=$DIR/dev.vsock" --start &&
		check "boots to user space" timeout "$BOOT" \
			thaw --socket "$DIR/thawd.sock" wait dev --console GUEST-READY --timeout "$BOOT" &&
		check "answers over vsock" until_ok guest dev true &&
		check "features: in the guest as the daemon says" features_agree dev 9 &&
		vmclock && pmem && drives && net && balloon && ports
	for v in dev d; do t delete $v >/dev/null 2>&1; done
	hints
	for v in h hc; do t delete $v >/dev/null 2>&1; done
	check "no VM process left" until_ok no_vmm_left
}

vmclock() {
	if [ "$MACHINE" = aarch64 ]; then
		same "VMCLOCK is there" amazon,vmclock guest dev "tr -d '\\0' </proc/device-tree/ptp@40010000/compatible; echo"
		return
	fi
	same "VMCLOCK is there" AMZNC10C guest dev "cat /sys/bus/acpi/devices/AMZNC10C:00/hid"
}
# measured TEXT COMMAND...: a check whose figures, the last line, are shown in any case.
measured() {
	check "$@"
	note "$round: $(tail -n 1 "$DIR/last")"
}
# used VM DEVICE: requests that each of its queues has returned. DEVICE is its name without spaces.
used() {
	t devices "$1" --json | tr -d ' ",' |
		awk -F: -v d="$2" '$1 == "name" { on = $2 == d } on && $1 == "used" { printf "%s ", $2 }'
}
# each_queue N VM DEVICE COMMAND...: which moves at least 10 requests through each of the first N queues.
each_queue() {
	n_queues=$1 vm_of=$2 device=$3
	shift 3
	a=$(used "$vm_of" "$device")
	"$@"
	b=$(used "$vm_of" "$device")
	echo "used: $a, then $b"
	echo "$a $b" | awk -v n="$n_queues" '{ for (i = 1; i <= n; i++) if ($(NF / 2 + i) - $i < 10) exit 1 }'
}
both_cpus() { guest "$1" "taskset 1 $2 & taskset 2 $2; wait"; } # VM COMMAND
at_least() { # N COMMAND...: it prints no less
	least=$1
	shift
	got=$("$@") || return
	echo "$got, at least $least wanted"
	[ "$got" -ge "$least" ]
}
at_most() {
	most=$1
	shift
	got=$("$@") || return
	echo "$got, at most $most wanted"
	[ "$got" -le "$most" ]
}

SERIAL=serial-of-20-letters
MIB=1048576
block() { guest dev "cd /sys/block/$1; echo \$(cat $2)"; } # DISK FILE...
# reads DISK SIZE COUNT: hundredths of a second that it takes the guest
reads() {
	guest dev "read a x </proc/uptime; dd if=/dev/$1 of=/dev/null bs=$2 count=$3 iflag=direct 2>/dev/null || exit; read b x </proc/uptime; echo \$((\${b%.*}\${b#*.} - \${a%.*}\${a#*.}))"
}
# writes: that the disk below the images has done; Linux' Documentation/block/stat.rst
writes() { awk '{ print $5 }' "/sys/block/$(awk '$2 == "/job" { print substr($1, 6) }' /proc/mounts)/stat"; }
each_write_is_flushed() { # by the host, as the guest has no cache to flush; 8 writes would be one, or wait
	sync
	a=$(writes)
	guest dev "dd if=/dev/pmem1 of=/dev/vda bs=4096 count=8 oflag=direct conv=notrunc 2>/dev/null" || return
	b=$(writes)
	echo "writes: $a, then $b"
	[ $((b - a)) -ge 8 ]
}
disk_kib() { du -k "$DIR/disk.img" | cut -f1; }
smaller_by() { # KIB COMMAND...: that makes holes in the disk's file
	a=$(disk_kib) less=$1
	shift
	"$@" || return
	b=$(disk_kib)
	echo "$a KiB, then $b"
	[ $((a - b)) -ge "$less" ]
}
zero_in() { dd if=/dev/zero of="$1" bs=$MIB seek="$2" count="$3" conv=notrunc 2>/dev/null; } # FILE MIB MIB

drives() {
	own=$(stat -c %o "$DIR/disk.img") # bytes of the file system's blocks
	same "blk: its serial number" "$SERIAL" block vda serial
	same "two queues" "0 1" guest dev 'echo $(ls /sys/block/vda/mq)'
	measured "both at work" each_queue 2 dev drivedisk both_cpus dev "dd if=/dev/vda of=/dev/null bs=4096 count=30 iflag=direct"
	q="queue/logical_block_size queue/physical_block_size queue/minimum_io_size"
	same "its blocks: logical, physical, best" "512 $own $own" block vda "$q"
	same "those of the other one" "4096 4096 4096" block vdb "$q"
	same "pieces of a request, unit of a discard" "254 $own" block vda "queue/max_segments queue/discard_granularity"

	same "a cache that is written back" "write back write back" block vda "cache_type queue/write_cache"
	check "switched off" guest dev 'echo "write through" >/sys/block/vda/cache_type'
	same "it is off" "write through write through" block vda "cache_type queue/write_cache"
	grep -q ' /job ' /proc/mounts && check "each write is flushed" each_write_is_flushed
	check "on again" guest dev 'echo "write back" >/sys/block/vda/cache_type; grep -qx "write back" /sys/block/vda/cache_type'

	check "its file grows, as the guest sees" t drive-set dev disk --size $((12 * MIB))
	check "without a reboot" until_ok guest dev "grep -qx $((12 * MIB / 512)) /sys/block/vda/size"
	check "its new end can be written" guest dev "dd if=/dev/pmem1 of=/dev/vda bs=$MIB seek=10 count=2 conv=fsync,notrunc 2>/dev/null"
	cp "$DIR/disk.img" "$DIR/wanted.img"
	zero_in "$DIR/wanted.img" 1 4
	zero_in "$DIR/wanted.img" 6 1
	check "a discard makes a hole in its file" smaller_by 4000 guest dev "blkdiscard -o $MIB -l $((4 * MIB)) /dev/vda"
	check "so does a write of zeros" smaller_by 1000 guest dev "probe punch /dev/vda $((6 * MIB)) $MIB"
	wanted_sum=$(md5sum_of "$DIR/wanted.img")
	same "both read as zeros, all else as before" "$wanted_sum" guest dev "echo 3 >/proc/sys/vm/drop_caches; md5sum </dev/vda"

	# The bucket is full at first, and the last request need not wait for its own bytes.
	measured "limit of its configuration: 4 MiB at 1 MiB/s" at_least 200 reads vdb 256k 16
	check "lifted" t drive-set dev slow --limit none
	measured "faster" until_ok at_most 200 reads vdb 256k 16
	check "another one" t drive-set dev slow --limit iops=10
	measured "40 requests at 10/s" at_least 200 reads vdb 4096 40
	t drive-set dev slow --limit none >/dev/null
}

MTU=1400
OFFLOADS="tx-checksum-ip-generic tx-tcp-segmentation tx-tcp6-segmentation tx-tcp-ecn-segmentation rx-checksum rx-gro-hw"
offloads_on() { # VM
	guest "$1" "probe features eth0" >"$DIR/offloads"
	for f in $OFFLOADS; do grep -x "$f on" "$DIR/offloads" || return; done
}
acked() { # VM DEVICE FEATURE...: by its driver
	took=$(t devices "$1" --json | tr -d ' \n"' | sed "s/.*name:$2,//; s/acked_mask.*//; s/.*acked:\[//; s/\].*//")
	shift 2
	echo "$took"
	for f; do case ,$took, in *,"$f",*) ;; *) echo "not $f"; return 1 ;; esac done
}
# to_guest VM N: N seconds of TCP; from_guest: the other way. They print bytes per second.
per_second() { awk '{ print int($8 * 1000000 / $10) }'; }
to_guest() { guest "$1" "flow down -s $2 tcp:10.0.20.1:5001" | per_second; }
from_guest() { flow down -s "$2" tcp:10.0.20.2:5001 | per_second; }
count_of() { cat "/sys/class/net/t20/statistics/$1"; }
# frames rx|tx COMMAND...: average bytes of the frames that the tap t20 got from the guest, or gave it.
frames() {
	way=$1
	shift
	a=$(count_of "${way}_bytes") b=$(count_of "${way}_packets")
	"$@" >"$DIR/speed" || return
	a=$(($(count_of "${way}_bytes") - a)) b=$(($(count_of "${way}_packets") - b))
	echo $((a / (b + (b == 0))))
}
carrier_is() { # 0|1: on both sides
	guest dev "grep -qx $1 /sys/class/net/eth0/carrier" && grep -qx "$1" /sys/class/net/t20/carrier
}
# slower rx|tx COMMAND: in 2 s at 16 KiB/s come at most a full bucket, what it gets in that time, and a frame.
# Nothing may come, too: the tap still has large frames of the stream before, which use up the tokens of seconds.
slower() {
	most=$(((3 * 16384 + 65536) / 2))
	until_ok at_least $((most + 1)) "$2" dev 2 || return
	t net-set dev net0 "--$1-limit" bandwidth=16K/s >/dev/null && b=$("$2" dev 2) || return
	t net-set dev net0 "--$1-limit" none >/dev/null
	until_ok at_least $((most + 1)) "$2" dev 2
	r=$?
	echo "$b bytes/s with the limit, at most $most wanted"
	[ $r = 0 ] && [ "$b" -le $most ]
}

META=169.254.169.254
meta() { guest "$1" "wget -qO- $3 http://$META$2; echo"; } # VM PATH [OPTION...]
many_at_once() { guest dev "for i in \$(seq 40); do wget -qO- http://$META/large | md5sum & done | sort | uniq -c"; }
metadata_v1() {
	check "metadata: a route to it" guest dev "ip route replace $META dev eth0"
	same "metadata: a text" i-1 meta dev /latest/meta-data/id
	same "a list" "name latest/ large" guest dev "echo \$(wget -qO- http://$META/)"
	same "as JSON" '{"meta-data":{"id":"i-1"}}' meta dev /latest "--header 'Accept: application/json'"
	same "60,000 bytes, 40 times at once" "40 $(printf %060000d 7 | md5sum | tr -s " ")" squeeze many_at_once
	check "another document" sh -c "echo '{\"name\":\"new\"}' | thaw --socket '$DIR/thawd.sock' metadata dev --set -"
	same "at once" new meta dev /name
	check "nobody at another port" guest dev "! nc -w 5 $META 81 </dev/null"
}
squeeze() { "$@" | tr -s ' ' | sed 's/^ //'; }
# A VM whose net is the service's alone, version 2.
status_of() { guest "$1" "printf 'GET $2 HTTP/1.0\\r\\n$3\\r\\n' | nc $META 80 | head -n 1 | cut -d ' ' -f 2"; } # VM PATH HEADERS
token_of() { guest "$1" "printf 'PUT /latest/api/token HTTP/1.1\\r\\nX-metadata-token-ttl-seconds: 600\\r\\nConnection: close\\r\\n\\r\\n' | nc $META 80 | tail -n 1; echo"; }
metadata_v2() { # VM NAME
	same "metadata: none without a token" 401 status_of "$1" /name
	token=$(token_of "$1")
	same "with a token" "$2" meta "$1" /name "--header 'X-metadata-token: $token'"
}

net() {
	flow serve tcp:0.0.0.0:5001 &
	server=$!
	check "net: what the driver took" acked dev networknet0 csum guest_csum ctrl_guest_offloads guest_tso4 guest_tso6 host_tso4 host_tso6 \
		host_ecn mrg_rxbuf status mtu mq ctrl_vq guest_announce
	check "offloads in force" offloads_on dev
	same "its MTU" $MTU guest dev cat /sys/class/net/eth0/mtu
	same "two pairs of queues" "2 of 2" guest dev probe queues eth0
	check "address set" set_address dev 20
	check "ping both ways" ping_guest 20 dev
	metadata_v1
	measured "both pairs at work" each_queue 4 dev networknet0 both_cpus dev "flow echo -b 64 -s 2 tcp:10.0.20.1:5001"
	check "one pair from now on" guest dev "probe queues eth0 1"
	check "ping both ways" ping_guest 20 dev
	check "two again" guest dev "probe queues eth0 2"
	check "a server in the guest" guest dev "flow serve tcp:0.0.0.0:5001 </dev/null >/dev/null 2>&1 &"
	measured "frames from the guest are larger than the MTU" at_least $((MTU + 200)) frames rx from_guest dev 2
	measured "frames to the guest, too" at_least $((MTU + 200)) frames tx to_guest dev 2
	check "receive offload switched off by the guest" guest dev "probe feature eth0 rx-gro-hw off"
	measured "frames to the guest fit the MTU" at_most $((MTU + 14)) frames tx to_guest dev 1
	check "on again" guest dev "probe feature eth0 rx-gro-hw on"
	measured "they are larger again" at_least $((MTU + 200)) frames tx to_guest dev 1
	measured "a limit from the guest, and none again" slower tx from_guest
	measured "a limit to the guest, and none again" slower rx to_guest
	check "its link is cut" t net-set dev net0 --link down
	check "both sides see it" until_ok carrier_is 0
	check "it is joined again" t net-set dev net0 --link up
	check "both sides see it" until_ok carrier_is 1
	check "ping both ways" ping_guest 20 dev
	kill $server
}

PIECES='echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory' # Linux reports and hints only whole blocks of 4 MiB
balloon_is() { has "actual: *$2 MiB" t balloon "$1"; } # VM MIB
freed() { # VM MIB: at least
	mib=$(t balloon "$1" --json | tr -d ' ",' | sed -n 's/^freed_mib://p')
	echo "$mib MiB given back"
	[ "$mib" -ge "$2" ]
}
# MiB that are no zeros; the emulated CPU makes random bytes slowly.
fill() { echo "dd if=/dev/urandom of=/run/a bs=64k count=16 2>/dev/null; for i in \$(seq $1); do cat /run/a; done >/run/much; rm /run/a"; }
FILL=$(fill 40)
balloon() {
	check "a balloon of 32 MiB is asked for" t balloon dev --target 32
	check "it gets there" until_ok balloon_is dev 32
	check "the guest gives statistics" until_ok has free_bytes t balloon dev
	check "it is let go" t balloon dev --target 0
	check "it gets there" until_ok balloon_is dev 0
	check "40 MiB are in use" guest dev "$FILL"
	check "snapshot" t snapshot dev much || return 1
	mib=$(t balloon dev --json | tr -d ' ",' | sed -n 's/^freed_mib://p')
	check "they are free" guest dev "rm /run/much; $PIECES"
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
hinted() { # VM: MiB that a round of hints gives back
	t balloon "$1" --hint --json | tr -d ' ",' | sed -n 's/^hinted_mib://p'
}
# The guest writes 96 MiB twice and reads them again.
REUSE='dd if=/dev/urandom of=/run/a bs=64k count=16 2>/dev/null; w=$(for i in $(seq 96); do cat /run/a; done | md5sum); for k in 1 2; do for i in $(seq 96); do cat /run/a; done >/run/much; [ "$(md5sum </run/much)" = "$w" ] || exit 1; rm /run/much; done'
# Rounds of hints while a guest takes and frees memory: no page is discarded that it uses.
hints_meanwhile() { # VM
	rm -f "$DIR/wrote" "$DIR/rounds"
	{ guest "$1" "$REUSE" && echo well >"$DIR/wrote" || echo badly >"$DIR/wrote"; } &
	n=0
	until [ -e "$DIR/wrote" ] || [ $n = 500 ]; do
		hinted "$1" >>"$DIR/rounds" || return
		n=$((n + 1))
	done
	wait $!
	echo "$n rounds, of MiB: $(head -n 30 "$DIR/rounds" | tr '\n' ' ')"
	[ $n -ge 2 ] && grep -q well "$DIR/wrote"
}
kib_of() { du -k "$DIR/state/snapshots/$1/memory" | cut -f1; }
# One VM without reporting, which would give the same back some seconds later.
hints() {
	echo '{"name":"source"}' >"$DIR/h.json"
	echo '{"name":"clone"}' >"$DIR/hc.json"
	check "hints: a VM with them" t create h --kernel "$KERNEL" --initrd "$INITRD-devices" \
		--cmdline "console=ttyS0 quiet panic=-1 reboot=k$CMDLINE" --vcpus "$VCPUS" --memory 256 \
		--balloon free_page_hinting --vsock "cid=4,path=$DIR/h.vsock" \
		--net id=meta --metadata-service version=v2 --metadata "$DIR/h.json" --start &&
		check "boots to user space" timeout "$BOOT" \
			thaw --socket "$DIR/thawd.sock" wait h --console GUEST-READY --timeout "$BOOT" &&
		check "answers over vsock" until_ok guest h true || return
	check "its driver took them" acked h balloon free_page_hint stats_vq
	check "features: in the guest as the daemon says" features_agree h 4
	check "metadata: an address" guest h "ip addr add 169.254.1.5/16 dev eth0; ip link set eth0 up"
	metadata_v2 h source
	old_token=$token
	check "96 MiB are in use" guest h "$(fill 96)"
	check "snapshot" t snapshot h used || return
	check "they are free, in large pieces" guest h "rm /run/much; $PIECES"
	measured "MiB it gives back when it is asked" at_least 64 hinted h
	check "snapshot" t snapshot h hinted || return
	a=$(kib_of used) b=$(kib_of hinted)
	note "$round: a raw snapshot of $a KiB, and $b behind a round of hints"
	echo "$a KiB, then $b" >"$DIR/last"
	[ $((a - b)) -ge 49152 ]
	result $? "the snapshot is 48 MiB smaller"
	measured "rounds while it writes 96 MiB twice" hints_meanwhile h
	check "clone" t clone hinted --name hc --vsock "path=$DIR/hc.vsock" --metadata "$DIR/hc.json" || return
	check "it answers" until_ok guest hc true || return
	same "metadata: its source's token is none" 401 status_of hc /name "X-metadata-token: $old_token\\r\\n"
	metadata_v2 hc clone
	check "96 MiB are used, and free" guest hc "$(fill 96); rm /run/much; $PIECES"
	measured "MiB the clone gives back" at_least 64 hinted hc
	measured "rounds while the clone writes" hints_meanwhile hc
	for s in used hinted; do t snapshot-delete $s --force >/dev/null; done
}
pmem() {
	check "pmem: a file of 32 MiB as memory" guest dev 'test $(cat /sys/block/pmem0/size) = 65536'
	same "a read-only one has its content" "$(md5sum_of "$DIR/ro.img")" guest dev "md5sum </dev/pmem1"
	check "a file system on it" guest dev "mke2fs -b 4096 /dev/pmem0 >/dev/null && mkdir -p /run/pm"
	check "mounted with DAX" guest dev "mount -t ext4 -o dax /dev/pmem0 /run/pm && grep -q 'pmem0.*dax' /proc/mounts"
	check "a word in it" guest dev "echo $NONCE >/run/pm/word && sync"
	check "the host has it in the file" grep -q "$NONCE" "$DIR/data.img"
	# An arm64 guest writes to pages of its own.
	[ "$MACHINE" != aarch64 ] || check "what it writes to the read-only one is its own" guest dev "dd if=/dev/zero of=/dev/pmem1 bs=4096 count=1 conv=fsync && cmp -n 4096 /dev/pmem1 /dev/zero"
	[ "$MACHINE" = aarch64 ] || check "the read-only one can't be written" guest dev "! dd if=/dev/zero of=/dev/pmem1 bs=4096 count=1 conv=fsync; test \"\$(md5sum </dev/pmem1)\" = \"$(md5sum_of "$DIR/ro.img")\""
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
	cp "$DIR/disk.img" "$DIR/d-disk.img"
	cp "$DIR/slow.img" "$DIR/d-slow.img"
	probe announced t21 $LIMIT >"$DIR/announced" 2>&1 &
	watcher=$!
	check "who watches the tap of a clone" until_ok grep -q listening "$DIR/announced"
	check "clone" t clone less --name d --pmem "id=data,path=$DIR/d-data.img" --port "id=agent,path=$DIR/d-agent.sock" --vsock "path=$DIR/d.vsock" \
		--drive "id=disk,path=$DIR/d-disk.img" --drive "id=slow,path=$DIR/d-slow.img" --net id=net0,tap=t21 || return 1
	check "it answers" until_ok guest d true || return 1
	wait $watcher
	same "its guest announces where its address is now" "10.0.20.2 02:00:00:00:00:20" tail -n 1 "$DIR/announced"
	check "offloads in force" offloads_on d
	same "two pairs of queues" "2 of 2" guest d probe queues eth0
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
