#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# thaw's devices beside those of QEMU's microvm machine: the same kernel, initramfs and disk size, both on
# virtio-mmio, in L1, in turns. Started by `make bench-rig`; ROUNDS (3) and SECONDS_EACH (3) from the environment.
#
#   bench-qemu.sh SERIES KIND VCPUS
#
# QEMU has what makes it equal: io_uring, the host's page cache, the tap without vhost-net; its vsock is the
# kernel's (vhost-vsock), the only one it has. CPU is that of all threads but the vCPUs', the kernel's for vhost
# among them. Prints TAP, leaves /out/bench-qemu.json.

export PATH=$PWD/bin:$PATH
# shellcheck source=tests/rig/l1-lib.sh
. ./l1-lib.sh
export LIMIT=240
ROUNDS=${ROUNDS:-3} SECONDS_EACH=${SECONDS_EACH:-3}
TAB=$(printf '\t')

guest() { # VM COMMAND
	vm=$1
	shift
	case $vm in
	thaw) set -- "$DIR/thaw.vsock" "sh $*" ;;
	qemu) set -- vsock:4 "sh $*" ;;
	esac
	vsock-call -t "$LIMIT" "$@"
}

start_qemu() {
	tap 2
	qemu-system-x86_64 -L "$TOP" -nodefaults -no-user-config -display none -name bench,debug-threads=on -cpu host -smp "$VCPUS" -m 192 \
		-M microvm,accel=kvm,pit=off,pic=off,rtc=off,isa-serial=on -global virtio-mmio.force-legacy=false \
		-kernel "$KERNEL" -initrd "$INITRD" -append "console=ttyS0 quiet panic=-1" -serial "file:$DIR/qemu.console" \
		-drive "file=$DIR/qemu.img,format=raw,if=none,id=disk,cache=writeback,aio=io_uring" \
		-device virtio-blk-device,drive=disk -netdev tap,id=net,ifname=t2,script=no,downscript=no,vhost=off \
		-device virtio-net-device,netdev=net,mac=02:00:00:00:00:02 -device vhost-vsock-device,guest-cid=4 \
		-object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-device,rng=rng >"$DIR/qemu.log" 2>&1 &
	qemu=$!
	until_ok grep -q GUEST-READY "$DIR/qemu.console" || {
		tail -n 5 "$DIR/qemu.log" "$DIR/qemu.console"
		return 1
	}
}
start_thaw() {
	tap 1
	t create thaw --kernel "$KERNEL" --initrd "$INITRD" --cmdline "console=ttyS0 quiet panic=-1" --vcpus "$VCPUS" \
		--memory 192 --drive "id=disk,path=$DIR/thaw.img" --net id=net0,tap=t1,mac=02:00:00:00:00:01 \
		--vsock "cid=3,path=$DIR/thaw.vsock" --start &&
		timeout "$BOOT" thaw --socket "$DIR/thawd.sock" wait thaw --console GUEST-READY --timeout "$BOOT" &&
		thaw=$(t show thaw --json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p') && [ -n "$thaw" ]
}

# cpu VM: nanoseconds on a CPU of all its threads but the vCPUs', the kernel's vhost threads among them.
cpu() {
	total=0 pid=''
	eval "pid=\$$1"
	for d in "/proc/$pid/task/"* $(grep -lx "vhost-$pid" /proc/[0-9]*/comm 2>/dev/null | sed 's,/comm,,'); do
		case $(cat "$d/comm" 2>/dev/null) in
		vcpu* | CPU*) ;;
		*) read -r ns _ 2>/dev/null <"$d/schedstat" && total=$((total + ns)) ;;
		esac
	done
	echo "$total"
}
# measured VM SERIES UNIT COMMAND...: it prints a rate and the number of operations.
measured() {
	vm=$1 series=$2 unit=$3
	shift 3
	a=$(cpu "$vm")
	"$@" >"$DIR/last" 2>&1 || { tests=$((tests - 1)); result 1 "$vm, $series"; return 1; }
	b=$(cpu "$vm")
	read -r rate ops <"$DIR/last"
	echo "$series$TAB$unit$TAB$vm$TAB$rate$TAB$(awk -v ns=$((b - a)) -v n="$ops" 'BEGIN { if (n + 0 > 0) print ns / 1000 / n; else print 0 }')" \
		>>"$DIR/values"
}
# terse version 3: error is the fifth field, of reads kB, kB/s, IOPS and ms begin at 6, of writes at 47.
disk() { # VM WHAT BLOCK DEPTH
	sync # what the one before wrote is not this one's to wait for
	guest "$1" "fio --name=x --filename=/dev/vda --direct=1 --ioengine=io_uring --rw=$2 --bs=$3 --iodepth=$4 --time_based \
		--runtime=$SECONDS_EACH --minimal --terse-version=3" >"$DIR/fio" 2>&1 &&
		awk -F';' -v bs="$3" '$1 == 3 { if ($5) exit 1; n = ($8 * $9 + $49 * $50) / 1000
			printf "%.1f %d\n", bs == "1m" ? ($7 + $48) / 1024 : $8 + $49, n; ok = 1 } END { exit !ok }' "$DIR/fio" ||
		{ cat "$DIR/fio"; return 1; }
}
address() { # VM tcp|vsock
	case $1.$2 in
	thaw.tcp) echo tcp:10.0.1.2:5001 ;;
	qemu.tcp) echo tcp:10.0.2.2:5001 ;;
	thaw.vsock) echo "unix:$DIR/thaw.vsock:6001" ;;
	qemu.vsock) echo vsock:4:6001 ;;
	esac
}
# MiB/s, and MiB as operations; round trips: per second, and their number.
stream() { # VM tcp|vsock up|down
	flow "$3" -s "$SECONDS_EACH" "$(address "$1" "$2")" >"$DIR/flow" 2>&1 &&
		awk '{ mib = $8 / 1048576; printf "%.2f %.2f\n", mib * 1000000 / $10, mib }' "$DIR/flow" || { cat "$DIR/flow"; return 1; }
}
round_trips() { # VM tcp|vsock
	flow echo -b 64 -s "$SECONDS_EACH" "$(address "$1" "$2")" >"$DIR/flow" 2>&1 &&
		awk '{ printf "%.1f %d\n", $4 * 1000000 / $10, $4 }' "$DIR/flow" || { cat "$DIR/flow"; return 1; }
}

one_round() { # VM...: in this order
	ok=0
	for op in randread randwrite; do
		for depth in 1 32; do
			for v; do measured "$v" "blk_${op}_4k_qd$depth" ops/s disk "$v" $op 4k $depth || ok=1; done
		done
	done
	for op in read write; do
		for depth in 1 32; do
			for v; do measured "$v" "blk_${op}_1m_qd$depth" MiB/s disk "$v" $op 1m $depth || ok=1; done
		done
	done
	for kind in tcp vsock; do
		for way in up down; do
			for v; do measured "$v" "${kind}_to_$([ $way = up ] && echo guest || echo host)" MiB/s stream "$v" $kind $way || ok=1; done
		done
		for v; do measured "$v" "${kind}_round_trips" ops/s round_trips "$v" $kind || ok=1; done
	done
	return $ok
}

# From series, unit, VM, rate, CPU per operation: medians and best rounds as JSON, and as notes. On a busy machine
# the best rounds say more: whatever else runs only takes away.
summary() {
	sort -t "$TAB" -k 1,1 -k 3,3 "$DIR/values" | awk -F'\t' -v rounds="$ROUNDS" -v about="$1" '
		function sorted(a, n, i, j, x) {
			for (i = 2; i <= n; i++) {
				x = a[i]
				for (j = i - 1; j && a[j] + 0 > x + 0; j--) a[j + 1] = a[j]
				a[j + 1] = x
			}
			return n % 2 ? a[(n + 1) / 2] : (a[n / 2] + a[n / 2 + 1]) / 2
		}
		function ratio(a, b) { return b + 0 > 0 ? a / b : 0 }
		function vm_done() {
			if (!n) return
			median[vm] = sorted(rate, n); best[vm] = rate[n]
			sorted(cpu, n); least[vm] = cpu[1]; n = 0
		}
		function series_done() {
			if (series == "") return
			vm_done()
			printf "%s\n  {\"name\": \"%s\", \"unit\": \"%s\"", sep, series, unit; sep = ","
			printf ", \"median\": {\"thaw\": %.2f, \"qemu\": %.2f, \"ratio\": %.2f}",
				median["thaw"], median["qemu"], ratio(median["thaw"], median["qemu"])
			printf ", \"best\": {\"thaw\": %.2f, \"qemu\": %.2f, \"ratio\": %.2f}",
				best["thaw"], best["qemu"], ratio(best["thaw"], best["qemu"])
			printf ", \"least_cpu_us_per_op\": {\"thaw\": %.1f, \"qemu\": %.1f, \"ratio\": %.2f}}",
				least["thaw"], least["qemu"], ratio(least["thaw"], least["qemu"])
			printf "# %-22s median %8.2f, QEMU %8.2f %-5s %5.2f  best %8.2f, %8.2f %5.2f  CPU us %9.0f, %9.0f %5.2f\n",
				series, median["thaw"], median["qemu"], unit, ratio(median["thaw"], median["qemu"]),
				best["thaw"], best["qemu"], ratio(best["thaw"], best["qemu"]),
				least["thaw"], least["qemu"], ratio(least["thaw"], least["qemu"]) >"/dev/stderr"
		}
		BEGIN { printf "{\"about\": \"%s\", \"rounds\": %d, \"series\": [", about, rounds }
		{
			if ($1 != series) { series_done(); series = $1; unit = $2; vm = "" }
			if ($3 != vm) { vm_done(); vm = $3 }
			n++; rate[n] = $4; cpu[n] = $5
		}
		END { series_done(); print "\n]}" }' >"$2"
}

bench() { # SERIES KIND VCPUS
	VCPUS=$3 round="bench, $1 $2, $3 vCPU"
	DIR=$TOP/run-bench INITRD=$TOP/$1/initrd KERNEL=$TOP/$1/vmlinux
	[ "$2" = vmlinux ] || KERNEL=$TOP/$1/vmlinuz
	mkdir -p "$DIR" /out
	for v in thaw qemu; do dd if=/dev/urandom of="$DIR/$v.img" bs=1M count=32 2>/dev/null; done
	qemu=''
	if check "the daemon starts" start_daemon && check "thaw's guest is ready" start_thaw &&
		check "QEMU's guest is ready" start_qemu; then
		for v in thaw qemu; do
			check "$v answers" until_ok guest $v true
			check "$v has an address" set_address $v "$([ $v = thaw ] && echo 1 || echo 2)"
			check "$v has servers" guest $v "for a in vsock:0:6001 tcp:0.0.0.0:5001; do flow serve \$a </dev/null >/dev/null 2>&1 & done"
			check "$v takes streams" until_ok flow echo -s 0 "$(address $v tcp)"
		done
		for r in $(seq "$ROUNDS"); do
			order="thaw qemu"
			[ $((r % 2)) = 1 ] || order="qemu thaw"
			# shellcheck disable=SC2086
			one_round $order
			result $? "round $r"
		done
		summary "$round, $SECONDS_EACH s each, emulated CPU" /out/bench-qemu.json
	else
		show_logs thaw
	fi
	[ -z "$qemu" ] || kill "$qemu" 2>/dev/null
	t delete thaw >/dev/null 2>&1
	stop_daemon
	cp "$DIR/values" /out/bench-qemu.tsv
	cd "$TOP" && rm -rf "$DIR"
}

bench "$1" "$2" "$3"
echo "1..$tests"
[ $failed = 0 ]
