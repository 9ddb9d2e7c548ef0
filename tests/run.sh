#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All tests: `make check`, or `tests/run.sh BUILD_DIR [WORD...]` for those whose names
# contain one of the words (e.g. `tests/run.sh build snapshot/`).
#
# One after another, each with a time limit: lint, the models, every cmocka program, the fuzz targets
# for some seconds, every tests/e2e/test_*.py, the rig. All print TAP; the output of one
# that fails is shown, all outputs stay in BUILD_DIR/tests/log/. Each skipped test is named
# with its reason; with CI=true a skip for want of KVM, userfaultfd or the rig fails.
set -uo pipefail

[ $# -ge 1 ] || { echo "usage: tests/run.sh BUILD_DIR [WORD...]" >&2; exit 2; }
cd "$(dirname "$0")/.." || exit
B=$1
shift
words=("$@")
log_dir=$B/tests/log
mkdir -p "$log_dir"
export CMOCKA_MESSAGE_OUTPUT=TAP BUILD=$B THAW_VMM=$B/bin/thaw-vmm THAW_GUEST=$B/tests/guest/tiny
# Of SAN=tsan builds: the child that writes a compressed snapshot starts threads, and so does a forked VM.
export TSAN_OPTIONS=${TSAN_OPTIONS-die_after_fork=0}
# What is too large to be had is an answer of malloc() there, too.
# And a page that could not be had is a signal that the VM process tells of.
export ASAN_OPTIONS=${ASAN_OPTIONS-allocator_may_return_null=1:handle_sigbus=0}
passed=0 failed=0 skipped=0
failures=()

# Reads TAP; prints "passed failed skipped", then one line per skipped test. cmocka 1.1
# prints a skip as "not ok N # SKIP name", and the test its reason as "# SKIP reason" before.
read_tap() {
	awk -v ci="${CI:-}" '
		function flush() { reason = "" }
		/^1\.\.0/ { whole = $0; sub(/^1\.\.0[ #]*(SKIP)? */, "", whole); skip("all of it", whole); next }
		/^1\.\.[0-9]+/ { plan = substr($1, 4) + 0; next }
		/^# SKIP/ { reason = substr($0, 8); next }
		/^(not )?ok .*# SKIP/ {
			name = $0
			if (/^not ok/) { sub(/.*# SKIP */, "", name) }
			else { if (reason == "") { reason = name; sub(/.*# SKIP */, "", reason) }
				sub(/ *# SKIP.*/, "", name); sub(/^ok [0-9]* *-* */, "", name) }
			skip(name, reason); flush(); next
		}
		/^ok / { p++; flush(); next }
		/^not ok / { f++; flush(); next }
		function skip(name, why) {
			if (why == "") why = "no reason given"
			if (ci == "true" && why ~ /KVM|kvm|userfaultfd|rig|QEMU|qemu/) { f++; why = why " (a failure with CI=true)" }
			else s++
			lines = lines "skipped: " name ": " why "\n"
			done_skip++
		}
		END {
			missing = plan - p - f - s
			if (plan && missing > 0) f += missing # it ended before its plan
			printf "%d %d %d\n%s", p, f, s, lines
		}'
}

wanted() {
	local w
	[ ${#words[@]} -gt 0 ] || return 0
	for w in "${words[@]}"; do [[ $1 == *"$w"* ]] && return 0; done
	return 1
}

# run NAME SECONDS COMMAND...
run() {
	local name=$1 limit=$2 log status start p f s lines counts
	shift 2
	wanted "$name" || return 0
	log=$log_dir/${name//\//-}.log
	start=${EPOCHREALTIME/./}
	{ timeout -k 10 "$limit" "$@" >"$log" 2>&1 </dev/null; } 2>/dev/null # bash's own "Segmentation fault"
	status=$?
	{ read -r p f s; lines=$(cat); } < <(read_tap <"$log")
	if [ $status = 77 ] && [ $((p + f + s)) = 0 ]; then # the customary "cannot run here"
		{ read -r p f s; lines=$(cat); } < <(echo "1..0 # SKIP $(tail -n 1 "$log")" | read_tap)
	elif [ $status != 0 ] && [ "$f" = 0 ]; then
		f=1
	elif [ $status = 0 ] && [ $((p + f + s)) = 0 ]; then
		p=1 # prints no TAP
	fi
	case $status in
	0 | 1 | 77) ;;
	124) echo "# no end after $limit s" >>"$log" ;;
	*) echo "# exit status $status" >>"$log" ;;
	esac
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	counts="$p passed"
	[ "$f" = 0 ] || counts+=", $f failed"
	[ "$s" = 0 ] || counts+=", $s skipped"
	local us=$((${EPOCHREALTIME/./} - start)) word=ok
	[ "$p" != 0 ] || word=skip
	[ "$f" = 0 ] || word=FAILED
	printf '%-6s %-28s %-34s %4d.%d s\n' $word "$name" "$counts" $((us / 1000000)) $((us / 100000 % 10))
	[ -z "$lines" ] || printf '%s\n' "$lines" | sed 's/^/         /'
	if [ "$f" != 0 ]; then
		failures+=("$name: $log")
		# Each failed test with what it says; then the end of the rest.
		awk '/^(not )?ok / { on = /^not / } on' "$log" | head -n 100 | sed 's/^/       | /'
		grep -v '^ok ' "$log" | tail -n 40 | sed 's/^/       : /'
	fi
}

# none NAME REASON: counts as one skipped test.
none() { run "$1" 5 echo "1..0 # SKIP $2"; }

run lint 120 scripts/lint.sh
run model 600 tests/model/check.sh
for src in tests/{base,devices,snapshot,microvm,api}/test_*.c; do
	[ -e "$src" ] || continue
	name=${src#tests/}
	run "${name%.c}" 300 "$B/${src%.c}"
done

# arm64's own and its golden snapshots, by user-mode emulation.
for src in tests/microvm/aarch64/test_*.c tests/microvm/test_golden.c; do
	name=microvm/aarch64/${src##*/} program=$B/aarch64/${src%.c}
	if [ -x "$program" ] && command -v qemu-aarch64-static >/dev/null; then
		run "${name%.c}" 300 qemu-aarch64-static -L "$B/aarch64/sysroot" "$program"
	else
		none "${name%.c}" "make ARCH=aarch64 arch-tests was not run for this build, or there is no qemu-user"
	fi
done

for src in tests/fuzz/fuzz_*.c; do
	[ -e "$src" ] || continue
	name=${src#tests/} program=$B/${src%.c}
	if [ -x "$program" ]; then
		run "${name%.c}" 120 "$program" -seed=1 -max_total_time="${FUZZ_SECONDS:-3}" \
			-artifact_prefix="$log_dir/"
	else
		none "${name%.c}" "not built: clang has no libFuzzer here"
	fi
done

for test in tests/e2e/test_*.py; do
	[ -e "$test" ] || continue
	name=${test#tests/}
	run "${name%.py}" 600 python3 "$test" "$B"
done

# Runs of one CPU each that go on while another one does: `meanwhile NAME SECONDS COMMAND...` adds one to the row,
# `collect NAME` is its run.
beside=$log_dir/beside
read -r one other < <(python3 -c 'import os; c = sorted(os.sched_getaffinity(0)); print(c[0], c[-1])')
meanwhile() {
	local at=$beside/${1//\//-}
	wanted "$1" || return 0
	printf 'timeout -k 10 %s >%q.tap 2>&1 </dev/null; echo $? >%q.rc\n' "$(printf '%q ' "${@:2}")" "$at" "$at" \
		>>"$beside/todo"
}
collect() {
	# shellcheck disable=SC2016 # for the shell that waits
	run "$1" 5400 bash -c 'until [ -e "$1.rc" ]; do sleep 0.5; done; cat "$1.tap"; exit "$(cat "$1.rc")"' _ \
		"$beside/${1//\//-}"
}
if [ -x tests/rig/run.sh ]; then
	# Each kernel, kind and number of vCPUs once; RIG_OPTIONS= (empty): all combinations.
	# shellcheck disable=SC2086
	run rig 5400 tests/rig/run.sh ${RIG_OPTIONS--q} "$B"
	rm -rf "$beside"
	mkdir -p "$beside"
	: >"$beside/todo"
	# A guest by thaw guest fetch, from the real archive; a stock kernel by Firecracker's API and curl; the demo as it
	# runs where there is no KVM, also the tiny guest on a real KVM; the machine's state there.
	meanwhile rig/guest 1300 env RIG_SECONDS=1200 tests/rig/run.sh -o "$B/tests/rig/guest" \
		-G -s 6.12 -k bzImage -c 1 -x guest.sh "$B"
	meanwhile rig/firecracker 700 env RIG_SECONDS=600 tests/rig/run.sh -o "$B/tests/rig/firecracker" \
		-b /usr/bin/curl -s 6.12 -k vmlinux -c 1 -x firecracker.sh "$B"
	meanwhile rig/demo 300 env CLONES=3 tests/rig/run.sh -o "$B/tests/rig/demo" \
		-s 6.1 -k vmlinux -c 1 -x demo-tiny.sh "$B"
	meanwhile rig/arch 300 env RIG_SECONDS=200 tests/rig/run.sh -o "$B/tests/rig/arch" \
		-b "$B/tests/microvm/test_arch" -a "$B/tests/microvm/test_arch" -s 6.1 -k vmlinux -c 1 -x arch.sh "$B"
	# The scenario on arm64, and the tiny guest behind it.
	if [ -x "$B/aarch64/bin/thaw-vmm" ]; then
		meanwhile rig/arm64 1000 env RIG_SECONDS=900 tests/rig/run.sh -o "$B/tests/rig/arm64" \
			-A arm64 -t -s 6.12 -k Image -c 2 "$B/aarch64"
	else
		none rig/arm64 "make ARCH=aarch64 was not run for this build"
	fi
	taskset -c "$other" bash "$beside/todo" &
	# Snapshots, forks and clones under load.
	run rig/load 1500 env RIG_SECONDS=1400 taskset -c "$one" tests/rig/run.sh \
		-g -s 6.12 -k bzImage -c 2 -x load.sh "$B"
	for name in rig/guest rig/firecracker rig/demo rig/arch; do collect $name; done
	[ ! -x "$B/aarch64/bin/thaw-vmm" ] || collect rig/arm64
	wait
else
	none rig "there is no tests/rig/run.sh"
fi

for f in "${failures[@]}"; do echo "FAILED $f"; done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
