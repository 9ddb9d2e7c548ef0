#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The part of `make demo` with the tiny guest: boot, freeze, thaw many copies, latency
# table. Runs in a folder with bin/ and tests/guest/tiny (a build folder, or the rig's);
# CLONES says how many copies (default 100).
set -u
PATH=$PWD/bin:$PATH
dir=$(mktemp -d) || exit 1
THAW_SOCKET=$dir/thaw.sock
export PATH THAW_SOCKET
daemon=
trap '[ -z "$daemon" ] || { kill "$daemon"; wait "$daemon"; } 2>/dev/null; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
N=${CLONES:-100}

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@" || { echo "demo: that failed" >&2; exit 1; }; }

# N requests; the table is made of the clones' own timing.
one_by_one() {
	i=0
	while [ $i -lt "$N" ]; do
		i=$((i + 1))
		thaw clone warm --json >"$dir/reply" || exit 1
		tr -d ' \n' <"$dir/reply" | sed 's/.*"timing_us":{\([^}]*\)}.*/\1/' | tr ',' '\n' |
			tr -d '"' >>"$dir/times"
		echo >>"$dir/times"
	done
	printf '%-16s %10s %10s %10s %10s\n' "us from request" p50 p90 p99 max
	for stage in ordered kvm_ready state_loaded running; do
		sed -n "s/^$stage://p" "$dir/times" | sort -n | awk -v s=$stage '
			{ v[NR] = $1 }
			function p(q) { i = int((NR * q + 99) / 100); return v[i < 1 ? 1 : i] }
			END { printf "%-16s %10d %10d %10d %10d\n", s, p(50), p(90), p(99), v[NR] }'
	done
}

thawd --state-dir "$dir/state" --log-level warn &
daemon=$!
n=0
until thaw info >/dev/null 2>&1; do
	n=$((n + 1))
	[ $n -lt 60 ] || { echo "demo: the daemon did not start" >&2; exit 1; }
	sleep 0.2
done

say "Boot a tiny guest, and wait until it says READY"
run thaw create web --kernel "tests/guest/tiny" \
	--cmdline thaw.genid=0xfe000 --memory 128 --start
run thaw wait web --console READY
run thaw console web --write "store 42 is the answer"
run thaw wait web --console "OK"
say "Freeze it; it goes on running"
run thaw snapshot create web warm
say "Thaw one copy (cold: a new process, a new VM, everything), and ask it"
run thaw clone warm --name one
run thaw wait one --console RESTORED
run thaw console one --write load
run thaw wait one --console "42 is the answer"
run thaw console one --read
say "Thaw $N with one request: latency from the request's arrival"
run thaw clone warm --count "$N" --name many
say "... and $N one by one"
one_by_one
run thaw info
