#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Thaws N clones of a snapshot by curl, shows what they are, and ends them: examples/clone.sh SNAPSHOT N
# Repeating it with the same KEY in the environment makes them once.
set -eu
[ $# = 2 ] || { echo "usage: clone.sh SNAPSHOT N" >&2; exit 2; }
socket=${THAW_SOCKET:-/run/thaw/thaw.sock}

api() { curl -sS --fail-with-body --unix-socket "$socket" "$@"; }

answer=$(api "http://thaw/v1/snapshots/$1/clone" -H "Idempotency-Key: ${KEY:-$(date +%s%N)-$$}" -d "{\"count\": $2}") ||
	{ echo "$answer" >&2; exit 1; }
echo "$answer"
# The names, without a JSON parser: "clones" is a list of objects that begin with "name".
for name in $(echo "$answer" | grep -o '"name":"[^"]*"' | cut -d'"' -f4); do
	api "http://thaw/v1/vms/$name" -X DELETE
done
