#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A stock kernel by Firecracker's API and curl: boot, a disk and a tap, pause, snapshot, load. Runs in L1, by
# run.sh -b /usr/bin/curl -x firecracker.sh:
#
#   firecracker.sh SERIES KIND VCPUS...

export PATH=$PWD/bin:$PATH
# shellcheck source=tests/rig/l1-lib.sh
. ./l1-lib.sh
ln -sf "$TOP/bin/thaw-vmm" "$TOP/bin/firecracker"

# front NAME: starts one; api NAME METHOD PATH [BODY]: prints the body, then the status.
front() {
	firecracker --api-sock "$DIR/$1.sock" --id "$1" --log-path "$DIR/$1.log" >"$DIR/$1.console" 2>&1 </dev/null &
	eval "pid_$1=$!"
	until_ok test -S "$DIR/$1.sock"
}
api() {
	curl -s -m "$LIMIT" --unix-socket "$DIR/$1.sock" -o "$DIR/body" -w '%{http_code}' -X "$2" "http://x$3" ${4:+-d "$4"} \
		>"$DIR/status"
	cat "$DIR/body" "$DIR/status" 2>/dev/null
	rm -f "$DIR/body"
}
ends() { # NAME STATUS
	pid=''
	eval "pid=\$pid_$1"
	wait "$pid"
	[ $? = "$2" ]
}
root() { printf '{"drive_id":"d","is_root_device":false,"cache_type":"Writeback","path_on_host":"%s"}' "$1"; }

while [ $# -ge 3 ]; do
	series=$1 kind=$2 cpus=$3
	shift 3
	round="$kind$cpus $series"
	DIR=$(mktemp -d)
	kernel=$TOP/$series/vmlinux
	[ "$kind" = vmlinux ] || kernel=$TOP/$series/vmlinuz
	truncate -s 16M "$DIR/disk"
	tap 1
	front a
	same "machine" 204 api a PUT /machine-config "{\"vcpu_count\":$cpus,\"mem_size_mib\":256,\"track_dirty_pages\":true}"
	# Of CPUID a bit that KVM does not support (rdpru) and one less (sse4a); an MSR that Linux shows.
	same "CPU" 204 api a PUT /cpu-config '{"cpuid_modifiers":[
		{"leaf":"0x80000008","subleaf":"0x0","flags":0,"modifiers":[{"register":"ebx","bitmap":"0b1xxxx"}]},
		{"leaf":"0x80000001","subleaf":"0x0","flags":0,"modifiers":[{"register":"ecx","bitmap":"0b0xxxxxx"}]}],
		"msr_modifiers":[{"addr":"0x8b","bitmap":"0b00000000000000000101111011101101"}]}'
	same "kernel" 204 api a PUT /boot-source \
		"{\"kernel_image_path\":\"$kernel\",\"initrd_path\":\"$TOP/$series/initrd\",\"boot_args\":\"console=ttyS0 quiet panic=-1 reboot=k\"}"
	same "drive" 204 api a PUT /drives/d "$(root "$DIR/disk")"
	same "tap" 204 api a PUT /network-interfaces/1 '{"iface_id":"1","host_dev_name":"t1","guest_mac":"02:00:00:00:00:01"}'
	same "metadata service" 204 api a PUT /mmds/config '{"network_interfaces":["1"],"version":"V1"}'
	same "metadata" 204 api a PUT /mmds '{"name":"from-mmds"}'
	same "vsock" 204 api a PUT /vsock "{\"guest_cid\":3,\"uds_path\":\"$DIR/a.vsock\"}"
	same "entropy" 204 api a PUT /entropy '{}'
	same "start" 204 api a PUT /actions '{"action_type":"InstanceStart"}'
	[ -z "${SHOW:-}" ] || tail -f "$DIR/a.console" & # run.sh -e SHOW=1
	LIMIT=$BOOT
	check "user space" until_ok grep -q GUEST-READY "$DIR/a.console"
	LIMIT=120
	check "the command line has what is appended" guest a "grep pci=off /proc/cmdline"
	check "the CPU has what was set" guest a "grep -w rdpru /proc/cpuinfo && ! grep -w sse4a /proc/cpuinfo"
	same "the MSR has what was set, in all CPUs" "$cpus" guest a "grep -c 'microcode.*: 0x5eed' /proc/cpuinfo"
	check "a file in memory" guest a "echo warm >/run/state"
	check "a write to the disk" guest a "echo before >/dev/vda; sync"
	guest a "ifconfig eth0 10.0.1.2 up" >/dev/null 2>&1
	check "the network" until_ok guest a "ping -c 1 -w 20 10.0.1.1" # the first packet may go before the link is up
	check "the metadata service" has from-mmds guest a "route add -host 169.254.169.254 eth0; wget -q -O - http://169.254.169.254/name"
	same "pause" 204 api a PATCH /vm '{"state":"Paused"}'
	same "snapshot" 204 api a PUT /snapshot/create "{\"snapshot_path\":\"$DIR/snap\",\"mem_file_path\":\"$DIR/mem\"}"
	cp "$DIR/disk" "$DIR/disk2"
	same "resume" 204 api a PATCH /vm '{"state":"Resumed"}'
	check "it goes on" guest a "echo later >/run/state; echo after >/dev/vda; sync"
	same "pause again" 204 api a PATCH /vm '{"state":"Paused"}'
	cp "$DIR/mem" "$DIR/mem2"
	same "what changed, over a copy" 204 api a PUT /snapshot/create \
		"{\"snapshot_path\":\"$DIR/snap2\",\"mem_file_path\":\"$DIR/mem2\",\"snapshot_type\":\"Diff\"}"
	eval "kill \$pid_a"
	check "its end by a signal" ends a 143
	for n in '' 2; do
		vm=b$n
		[ -n "$n" ] && before=later || before=warm
		[ -n "$n" ] && disk=$DIR/disk || disk=$DIR/disk2
		[ -n "$n" ] && content=after || content=before
		front "$vm"
		same "load $vm" 204 api "$vm" PUT /snapshot/load \
			"{\"snapshot_path\":\"$DIR/snap$n\",\"mem_backend\":{\"backend_type\":\"File\",\"backend_path\":\"$DIR/mem$n\"},\"resume_vm\":true,\"vsock_override\":{\"uds_path\":\"$DIR/$vm.vsock\"},\"drive_overrides\":[{\"drive_id\":\"d\",\"path_on_host\":\"$disk\"}]}"
		same "memory of $vm" "$before" guest "$vm" "cat /run/state"
		check "disk of $vm" has "$content" guest "$vm" "echo 3 >/proc/sys/vm/drop_caches; head -n 1 /dev/vda"
		check "network of $vm" guest "$vm" "ping -c 1 -w 20 10.0.1.1"
		check "no trouble in $vm" guest "$vm" "! dmesg | grep -E 'BUG:|Oops|I/O error'"
		guest "$vm" "poweroff -f >/dev/null 2>&1 &" >/dev/null 2>&1
		check "power-off of $vm" ends "$vm" 0
	done
	[ $failed = 0 ] || tail -n 20 "$DIR"/*.console "$DIR"/*.log | sed 's/^/# /'
	rm -rf "$DIR"
done
echo "1..$tests"
[ $failed = 0 ]
