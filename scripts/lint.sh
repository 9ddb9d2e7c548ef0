#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything about the sources that needs no build: `make lint`, and part of `make check`.
# Prints TAP; what a check complains about follows its "not ok" as comments.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

n=0 failed=0
# check NAME COMMAND...: passes when the command succeeds.
check() {
	local name=$1 out
	shift
	n=$((n + 1))
	if out=$("$@" 2>&1); then
		echo "ok $n - $name"
	else
		echo "not ok $n - $name"
		printf '%s\n' "${out:-(no output)}" | head -n 60 | sed 's/^/# /'
		failed=1
	fi
}

# The files that git knows or would add; all of them where there is no git.
files() {
	git ls-files -co --exclude-standard -- "$@" 2>/dev/null | while IFS= read -r f; do
		[ ! -f "$f" ] || echo "$f"
	done
}
mapfile -t c_files < <(files '*.c' '*.h')
mapfile -t sources < <(files '*.c' '*.h' '*.S' '*.sh' '*.py' '*.mk' '*.asl' Makefile .ci/run)
mapfile -t scripts < <(files '*.sh' .ci/run)
if [ ${#c_files[@]} = 0 ]; then
	echo "1..0 # SKIP not a git checkout"
	exit 0
fi

spdx() {
	local f bad=0
	for f in "${sources[@]}"; do
		head -n 2 "$f" | grep -q 'SPDX-License-Identifier: Apache-2.0' && continue
		echo "$f: no SPDX line at its top"
		bad=1
	done
	return "$bad"
}

width() {
	local f bad=0
	for f in "${c_files[@]}"; do
		expand -t8 "$f" | awk -v f="$f" 'length > 110 { print f ":" NR ": " length " columns"; bad = 1 }
			END { exit bad }' || bad=1
	done
	return "$bad"
}

format() {
	local f bad=0
	for f in "${c_files[@]}"; do
		clang-format "$f" | cmp -s - "$f" && continue
		echo "$f: make format changes it"
		bad=1
	done
	return "$bad"
}

# Three sizes of pages have names (docs/architecture.md); nothing else is 4,096 in the folders that map memory.
pages() {
	! grep -nE '\b(4096|0xfff|0x1000)u?\b|(>>|<<) 12\b|sysconf\(_SC_PAGE|getpagesize' microvm/*.[ch] microvm/base/{gmem,discard,scratch}.[ch] \
		snapshot/*.[ch] devices/{balloon,pmem}.[ch] | grep -vE '#define|^[^:]*:[0-9]*:[[:space:]]*(//|[A-Z_]+ = 4096)|enum \{|LAZY_EXACT'
}

# What is off, and why: leaks are judged wrongly with __attribute__((cleanup)); readdir is
# thread-safe per stream; accept4 does take NULL. The macros of sys/queue.h have to be known to parse their uses.
cpp_check() {
	local queue
	queue=$(cc -E -x c -include sys/queue.h /dev/null | sed -n 's|^# 1 "\(/.*/sys/queue.h\)".*|\1|p' | head -n 1)
	cppcheck -q -j2 --std=c11 --language=c -I. -Imicrovm/arch/x86_64 -D__linux__ -D_GNU_SOURCE --error-exitcode=1 \
		--inline-suppr --enable=warning,portability,performance --library=posix --library=gnu \
		--suppress=missingInclude --suppress=missingIncludeSystem --suppress=resourceLeak \
		--suppress=memleak --suppress=readdirCalled --suppress=nullPointer:devices/vsock_conn.c --suppress=nullPointer:api/page_handler.c ${queue:+--include="$queue"} \
		--template='{file}:{line}: {id}: {message}' lib microvm devices snapshot api
}

check "includes go one way" scripts/check-includes.sh
check "at least 85 % of the code is of no architecture" scripts/arch_share.sh 85
check "each file names its license" spdx
check "pages have names" pages
check "lines of at most 110 columns" width
check "clang-format" format
check "cppcheck" cpp_check
check "shellcheck" shellcheck -S warning -x -P SCRIPTDIR "${scripts[@]}"
echo "1..$n"
exit $failed
