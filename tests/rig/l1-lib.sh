# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh disable=SC2034
# What the tests in L1 share; sourced by the scripts that run.sh starts, in the job's folder. They set DIR,
# where the daemon's socket, its state and each VM's socket VM.vsock are, and `round`, the name of what is tested.
# Each command here has a time limit, and none waits for what cannot come.

TOP=$PWD
LIMIT=120 # seconds for a thaw command or a guest command
BOOT=${BOOT:-300}  # seconds to user space
tests=0 failed=0 daemon='' round='' CGROUP=''

note() { echo "# $*"; }
result() { # STATUS TEXT
	tests=$((tests + 1))
	if [ "$1" = 0 ]; then
		echo "ok $tests - $round: $2"
	else
		failed=$((failed + 1))
		echo "not ok $tests - $round: $2"
		[ ! -s "$DIR/last" ] || tail -c 2000 "$DIR/last" | awk '{ print "#   " $0 }'
	fi
	return "$1"
}
# check TEXT COMMAND...: the command must succeed. Its output is shown if not.
check() {
	text=$1
	shift
	"$@" >"$DIR/last" 2>&1 </dev/null
	result $? "$text"
}
# same TEXT WANTED COMMAND...: the command must print just that.
same() {
	text=$1 wanted=$2
	shift 2
	got=$("$@" 2>"$DIR/err" </dev/null)
	rc=$?
	{ echo "wanted '$wanted', got '$got' (status $rc)"; cat "$DIR/err"; } >"$DIR/last"
	[ "$got" = "$wanted" ]
	result $? "$text"
}
t() { timeout "$LIMIT" thaw --socket "$DIR/thawd.sock" "$@"; }
# guest VM COMMAND: runs a shell command in the guest.
guest() {
	vm=$1
	shift
	vsock-call -t "$LIMIT" "$DIR/$vm.vsock" "sh $*"
}
has() { # WORD COMMAND...: the output contains the word
	word=$1
	shift
	"$@" >"$DIR/has" 2>&1
	cat "$DIR/has"
	grep -q "$word" "$DIR/has"
}
seconds() { cut -d. -f1 /proc/uptime; }
# until_ok COMMAND...: five times a second, for LIMIT
until_ok() {
	end=$(($(seconds) + LIMIT))
	until "$@"; do
		[ "$(seconds)" -lt $end ] || return 1
		sleep 0.2
	done
}
tap() { # N
	[ -e "/sys/class/net/t$1" ] && return
	tunctl -t "t$1" >/dev/null && tap_up "$1"
}
tap_up() { ip addr add "10.0.$1.1/24" dev "t$1" && ip link set "t$1" up; } # N
start_daemon() {
	thawd --socket "$DIR/thawd.sock" --state-dir "$DIR/state" --vmm "$TOP/bin/thaw-vmm" $CGROUP \
		>>"$DIR/thawd.log" 2>&1 &
	daemon=$!
	until_ok t ls
}
stop_daemon() {
	kill "$daemon" 2>/dev/null
	wait "$daemon"
	daemon=''
}
show_logs() {
	note "console of $1:"
	t console "$1" --read 2>&1 | tail -n 25 | sed 's/^/#   /'
	note "daemon:"
	tail -n 15 "$DIR/thawd.log" | sed 's/^/#   /'
}
# But those that are to be the next VMs.
no_vmm_left() {
	spares=$(t info --json | tr -d ' \n' | sed 's/.*"spare_pids":\[\([0-9,]*\)\].*/\1/' | tr , ' ')
	for p in $(pidof thaw-vmm); do
		case " $spares " in *" $p "*) ;; *) return 1 ;; esac
	done
}
set_address() { # VM N
	guest "$1" "ip addr flush dev eth0; ip addr add 10.0.$2.2/24 dev eth0; ip link set eth0 up"
}
ping_guest() { ping -c 1 -W 10 "10.0.$1.2" && guest "$2" "ping -c 1 -W 10 10.0.$1.1"; }
