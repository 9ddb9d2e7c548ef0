#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Serves requests, the lines of standard input, each from a fresh clone: examples/serve.sh SNAPSHOT <requests
# The request goes to the clone's guest over vsock, as its metadata; the answer is what the guest says to its console
# then. Here the guest is that of tests/guest, which is told to read vsock and repeats what it got; a guest of yours,
# frozen while it waits for work, would do so by itself (docs/api.md, "Metadata"). `thaw prepare SNAPSHOT --pool size=4`
# first, and each clone is there in less than a millisecond.
set -eu
[ $# = 1 ] || { echo "usage: serve.sh SNAPSHOT" >&2; exit 2; }

request=$(mktemp)
name=
trap 'rm -f "$request"; [ -z "$name" ] || thaw delete "$name" >/dev/null' EXIT
n=0
while IFS= read -r line; do
	n=$((n + 1))
	printf '{"request": "%s"}' "$(printf %s "$line" | sed 's/[\\"]/\\&/g')" >"$request"
	name=serve-$$-$n
	thaw clone "$1" --name "$name" --metadata "$request" --ttl 60 >/dev/null
	thaw console "$name" --write "vsock 29800"
	thaw wait "$name" --console "OK " --timeout 10
	thaw console "$name" --read | sed -n 's/^OK //p'
	thaw delete "$name" >/dev/null
	name=
done
