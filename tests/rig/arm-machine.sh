#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2154
# What only the arm64 machine has, on a host whose KVM lets identification registers be written; in L1:
#   run.sh -K 6.12 -A arm64 -x arm-machine.sh -s "6.12 linux-image-6.12-arm64-16k" -k Image -c 2 BUILD
# The second guest has pages of 16 KiB and gpio-keys. Without -K the host has Linux 6.1, which refuses masks.
#
# CPU masks and templates, and what a guest's /proc/cpuinfo makes of them; caches; VMCLOCK's page, which has no driver
# in these kernels, by /dev/mem; a file as memory that is read-only; the power button. Behind it: l1-lib.sh's commands.
export PATH=$PWD/bin:$PATH
# shellcheck source=tests/rig/l1-lib.sh
. ./l1-lib.sh
DIR=/run/thaw
VMCLOCK=0x40010000

boot() { # VM OPTION...
	vm=$1
	shift
	check "$vm boots" t create "$vm" --kernel "$KERNEL" --initrd "$INITRD" --cmdline "console=ttyS0 quiet panic=-1" \
		--vcpus "$VCPUS" --memory 128 --vsock "cid=3,path=$DIR/$vm.vsock" "$@" --start &&
		check "to user space" timeout "$BOOT" \
			thaw --socket "$DIR/thawd.sock" wait "$vm" --console GUEST-READY --timeout "$BOOT" &&
		check "it answers" until_ok guest "$vm" true
}
caps() { guest "$1" "grep -m 1 ^Features /proc/cpuinfo"; }
lacks() { # VM NAME...: but has aes
	caps_of=$(caps "$1") || return
	shift
	echo "$caps_of"
	case " $caps_of " in *" aes "*) ;; *) return 1 ;; esac
	for name; do case " $caps_of " in *" $name "*) return 1 ;; esac done
}
words() { guest "$1" "devmem $(($2)) 64; devmem $(($2 + 16)) 64; devmem $(($2 + 104)) 64" | tr '\n' ' '; } # VM ADDRESS
refused() { # WORDS COMMAND...: fails with them
	said=$1
	shift
	! "$@" >"$DIR/refused" 2>&1 && grep "$said" "$DIR/refused"
	status=$?
	cat "$DIR/refused"
	return $status
}
# A host's caches, since the emulated machine tells no sizes of its own: level type size line sets ways shared.
caches() {
	mkdir -p "$DIR/cache" && mount -t tmpfs cache "$DIR/cache"
	n=0
	while read -r level type size line sets ways shared; do
		mkdir "$DIR/cache/index$n"
		for f in "level $level" "type $type" "size $size" "coherency_line_size $line" "number_of_sets $sets" \
			"ways_of_associativity $ways" "shared_cpu_list $shared"; do
			echo "${f#* }" >"$DIR/cache/index$n/${f%% *}"
		done
		n=$((n + 1))
	done <<-EOF
	1 Data 64K 64 256 4 0
	1 Instruction 32K 64 128 4 0
	2 Unified 1024K 64 2048 8 0
	3 Unified 32768K 64 32768 16 0-7
	EOF
	mount -o bind "$DIR/cache" /sys/devices/system/cpu/cpu0/cache
}
masks() {
	boot masked --cpu disable=sha1,disable=atomics,disable=flagm || return
	check "it has not what was taken away, nor what needs it" lacks masked sha1 sha2 sha512 sha3 atomics flagm flagm2
	check "snapshot" t snapshot masked m
	check "clone" t clone m --name mc --vsock "path=$DIR/mc.vsock"
	check "it answers" until_ok guest mc true
	check "it has no more" lacks mc sha1 sha3 atomics flagm2
	check "the snapshot's CPU has no such feature" refused_in m atomics
	boot level --cpu template=armv8.2-a || return
	same "a template's features" "atomics asimdrdm crc32 dcpop" in_caps level atomics asimdrdm crc32 dcpop aes sha1 jscvt fcma flagm rng
	for v in masked mc level; do t delete $v >/dev/null 2>&1; done
	t snapshot-delete m >/dev/null
	for c in "disable=asimdhp can't hide fphp, asimdhp" "disable=nosuch there is no feature" "disable=fp no arm64 kernel" "template=x86-64-v2 is for x86-64"; do
		check "refused: ${c%% *}" refused "${c#* }" t create no --kernel "$KERNEL" --cpu "${c%% *}" --start
		t delete no >/dev/null 2>&1
	done
}
refused_in() { ! t snapshot-show "$1" --json | grep '"features"' | grep -w "$2"; }
in_caps() { # VM NAME...: those that it has
	caps_of=$(caps "$1")
	shift
	found=''
	for name; do case " $caps_of " in *" $name "*) found="$found $name" ;; esac done
	echo $found
}
vmclock() {
	boot clock --pmem "id=ro,path=$DIR/ro.img,ro" || return
	same "caches, as the host's" "1 Data 64K 64 0/1 Instruction 32K 64 0/2 Unified 1024K 64 0/3 Unified 32768K 64 $1/" guest clock \
		'cd /sys/devices/system/cpu/cpu0/cache; echo $(for i in index*; do cd $i; echo $(cat level type size coherency_line_size shared_cpu_list)/; cd ..; done) | sed "s:/ :/:g"'
	same "VMCLOCK: magic and size, marker, generation" "0x000100004B4C4356 0x0000000000000000 0x0000000000000000 " words clock $VMCLOCK
	check "snapshot" t snapshot clock c
	check "clone" t clone c --name cc --vsock "path=$DIR/cc.vsock"
	check "it answers" until_ok guest cc true
	same "VMCLOCK counts" "0x000100004B4C4356 0x0000000000000001 0x0000000000000001 " words cc $VMCLOCK
	same "and not in its source" "0x000100004B4C4356 0x0000000000000000 0x0000000000000000 " words clock $VMCLOCK
}
power() {
	case $SERIES in
	linux-image-*) # not a cloud's: it has gpio-keys
		check "the power button ends its copy" t stop cc --mode power-button --timeout $LIMIT
		check "and it" t stop clock --mode power-button --timeout $LIMIT
		;;
	*) check "a power button that nobody listens to" refused "does not listen" t stop clock --mode power-button ;;
	esac
}
read_only_file() {
	check "modules" guest clock "modprobe nd_pmem; modprobe virtio_pmem; test -b /dev/pmem0"
	check "it writes to a file that is read-only" guest clock "dd if=/dev/zero of=/dev/pmem0 bs=1M count=2 conv=fsync && cmp -n 2097152 /dev/pmem0 /dev/zero"
	same "which is what it was" "$ro_sum" md5sum_of "$DIR/ro.img"
	same "for its copy, too" "$ro_sum" guest cc "modprobe nd_pmem; modprobe virtio_pmem; md5sum </dev/pmem0"
}
md5sum_of() { md5sum <"$1"; }
round() {
	KERNEL=$TOP/$SERIES/vmlinuz INITRD=$TOP/$SERIES/initrd-devices
	round="$SERIES, $VCPUS vCPU"
	case $(uname -r) in
	6.1.*)
		check "no masks on this host" refused "needs Linux 6.7" t create no --kernel "$KERNEL" --cpu disable=aes --start
		t delete no >/dev/null 2>&1
		return
		;;
	esac
	masks
	case $VCPUS in 1) vmclock 0 ;; *) vmclock "0-$((VCPUS - 1))" ;; esac
	read_only_file
	power
	for v in clock cc; do t delete $v >/dev/null 2>&1; done
	t snapshot-delete c >/dev/null
	check "no VM process left" until_ok no_vmm_left
}
mkdir -p $DIR/state
dd if=/dev/urandom of=$DIR/ro.img bs=64k count=32 2>/dev/null
ro_sum=$(md5sum_of $DIR/ro.img)
caches
start_daemon || echo "Bail out! no daemon"
while [ $# -gt 0 ]; do
	SERIES=$1 VCPUS=$3
	round
	shift 3
done
show_logs clock >/out/log 2>&1
stop_daemon
echo "1..$tests"
[ $failed = 0 ]
