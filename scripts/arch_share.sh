#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# How much of the code is of no architecture: lines of programs and library without comments and empty ones, as the
# preprocessor sees them. `scripts/arch_share.sh [LEAST]`: fails below that many percent.
set -euo pipefail
cd "$(dirname "$0")/.."
lines() { # FOLDER...: of all its files, also those of architectures that are not built here
	find "$@" -name '*.[ch]' -print0 | while IFS= read -r -d '' f; do cc -fpreprocessed -dD -w -E -P -x c "$f"; done |
		grep -c '[^[:space:]]'
}
all=$(lines microvm devices snapshot api lib) own=0
for a in microvm/arch/*/; do
	n=$(lines "$a")
	own=$((own + n))
	echo "${a#microvm/arch/} $n"
done
share=$((100 * (all - own) / all))
echo "of none $((all - own)), $share % of $all lines"
[ $share -ge "${1:-0}" ]
