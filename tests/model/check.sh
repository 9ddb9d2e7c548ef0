#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Checks the models here with spin: each has to hold, and must not any more without each of the things that its
# WITHOUT_... leave out. Prints TAP; 77: there is no spin.
set -u
cd "$(dirname "$0")" || exit
command -v spin >/dev/null || { echo "spin is not installed"; exit 77; }
work=$(mktemp -d "${TMPDIR:-/tmp}/thaw-model.XXXXXX") || exit
trap 'rm -rf "$work"' EXIT
n=0 status=0

# errors FILE [OPTION...]: how many the checks of safety, and of the ltl claims, find; all they print is in $work/log.
errors() {
	local file=$1 sum=0 claim k
	shift
	: >"$work/log"
	for claim in '' $(sed -n 's/^ltl \([a-z_]*\) .*/\1/p' "$file"); do
		local how=(-safety -noclaim)
		[ -z "$claim" ] || how=(-a -f -ltl "$claim")
		(cd "$work" && timeout 60 spin "$@" -run "${how[@]}" -m200000 "$OLDPWD/$file") >>"$work/log" 2>&1
		k=$(sed -n 's/^State-vector.* errors: \([0-9]*\)$/\1/p' "$work/log" | tail -n 1)
		grep -q "search depth too small\|out of memory" "$work/log" && k=''
		[ -n "$k" ] || { echo "not checked"; return; }
		sum=$((sum + k))
	done
	echo "$sum"
}

# expect NAME FOUND GOOD: the pattern GOOD fits what was found.
expect() {
	local name=$1 found=$2
	n=$((n + 1))
	# shellcheck disable=SC2053 # a pattern
	if [[ $found == $3 ]]; then
		echo "ok $n - $name"
	else
		status=1
		echo "not ok $n - $name: $found errors"
		tail -n 30 "$work/log" | sed 's/^/# /'
	fi
}

for model in *.pml; do
	expect "$model holds" "$(errors "$model")" 0
	for without in $(grep -o 'WITHOUT_[A-Z_]*[A-Z]' "$model" | sort -u); do
		expect "$model does not ${without,,}" "$(errors "$model" "-D$without")" "[1-9]*"
	done
done
echo "1..$n"
exit $status
