#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Parking with a stock Linux guest, which has timers of its own and a clock to get wrong. Runs in L1 as scenario.sh
# does, by run.sh -x park.sh:
#
#   park.sh SERIES KIND VCPUS...
#
# A guest that has nothing to do is left alone for SECONDS_ALONE (default 40): what share of them was it parked, does vsock
# reach it then, is its clock right, and what does its kernel say?

export PATH=$PWD/bin:$PATH
# shellcheck source=tests/rig/l1-lib.sh
. ./l1-lib.sh
SECONDS_ALONE=${SECONDS_ALONE:-40}
IDLE_MS=${IDLE_MS:-100}

parking() { # FIELD
	t show a --json | tr -d ' \n' | sed "s/.*\"$1\":\([0-9a-z]*\).*/\1/"
}
parked() { [ "$(parking parked)" = true ]; }
# Its agent counts ten times a second, for other tests: the process that is neither this shell's nor its parent.
be_quiet() {
	# shellcheck disable=SC2016 # the guest's shell expands them
	guest a 'for p in $(pidof agent); do [ $p = $PPID ] || [ $p = $(cut -d" " -f4 /proc/$PPID/stat) ] || kill -STOP $p; done'
}
# How far the guest's clock is ahead of ours.
ahead() {
	there=$(guest a date +%s)
	echo $((there - $(date +%s)))
}
clock_kept() { # BEFORE: all CPUs are one emulated CPU here, so seconds may pass between the two readings
	now=$(ahead)
	echo "before $1 s ahead, now $now"
	[ $((now - $1)) -ge -3 ] && [ $((now - $1)) -le 3 ]
}
uptime_moved() { # BEFORE SECONDS
	now=$(guest a cut -d. -f1 /proc/uptime)
	echo "$1, now $now, at least $2 s later"
	[ "$now" -ge $(($1 + $2)) ] && [ "$now" -le $(($1 + $2 + 60)) ]
}
no_complaints() { # UPTIME: since then; the boot of an emulated machine has some
	guest a dmesg | tr -d '[' | awk -v since="$1" '$1 + 0 > since' >"$DIR/dmesg" && ! grep -iE \
		"unstable|stall|soft lockup|hung_task|blocked for more|BUG:|WARNING:|went backwards" "$DIR/dmesg"
}

park() { # SERIES KIND VCPUS
	DIR=$(mktemp -d) || exit 1
	round="$1 $2 $3 vCPU"
	kernel=$1/vmlinux
	[ "$2" = vmlinux ] || kernel=$1/vmlinuz
	check "daemon" start_daemon || exit 1
	check "a guest boots" t create a --kernel "$kernel" --initrd "$1/initrd" --vcpus "$3" --memory 128 \
		--cmdline "console=ttyS0 quiet panic=-1" --vsock "cid=3,path=$DIR/a.vsock" --start --idle-park "$IDLE_MS"
	check "it is ready" t wait a --console GUEST-READY --timeout "$BOOT"
	check "vsock reaches it" guest a true
	idle_since=$(guest a cut -d. -f1 /proc/uptime)
	check "it has nothing to do" be_quiet
	check "it is parked" until_ok parked || note "$(t show a --json | tr -d '\n' | grep -o '"parking".*}')"
	lead=$(ahead)
	up=$(guest a cut -d. -f1 /proc/uptime)
	before=$(parking parked_ms) began=$(seconds) parks=$(parking parks)
	sleep "$SECONDS_ALONE"
	check "vsock reaches it after $SECONDS_ALONE s" guest a true
	after=$(parking parked_ms) took=$(($(seconds) - began))
	note "parked $(((after - before) / (10 * took))) % of $took s, $(($(parking parks) - parks)) times;" \
		"woken by timer $(parking timer), device $(parking device), request $(parking request)" \
		"times; a wake takes up to $(parking wake_max_us) us here"
	check "it was parked most of that time" [ $((after - before)) -gt $((took * 300)) ]
	check "its clock is as right as before" clock_kept "$lead"
	check "its uptime is" uptime_moved "$up" "$SECONDS_ALONE"
	check "its clock source is as before" guest a "grep -qx kvm-clock /sys/devices/system/clocksource/clocksource0/current_clocksource"
	n=0
	while [ $n -lt 20 ] && same "call $n" "$n" guest a echo $n; do n=$((n + 1)); done
	check "a snapshot of it" t snapshot a s
	check "a clone of that" t clone s --name b --vsock "cid=4,path=$DIR/b.vsock" --idle-park "$IDLE_MS"
	check "the clone answers" guest b true
	sleep 10
	check "and again" guest b true
	check "no complaint of its kernel" no_complaints "$idle_since"
	check "the power button ends it" t stop a --timeout "$LIMIT"
	[ $failed = 0 ] || show_logs a
	stop_daemon
	rm -rf "$DIR"
}

while [ $# -ge 3 ]; do
	park "$1" "$2" "$3"
	shift 3
done
echo "1..$tests"
[ $failed = 0 ]
