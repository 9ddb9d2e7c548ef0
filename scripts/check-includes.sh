#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The direction of includes (docs/architecture.md): microvm -> {devices, snapshot} -> base,
# api -> snapshot/store -> base; lib stands alone, the command line uses lib/thaw.h; one includer per third-party header; KVM and per-architecture
# code in their places; every header compiles alone. Tests and bench may include anything.
# Prints each violation; the exit status is 1 when there is one.
set -euo pipefail
cd "$(dirname "$0")/.."

CC=${CC:-cc}
bad=0
violation() { echo "$*"; bad=1; }

# What the files of a folder may include of ours, as patterns of paths.
allowed() {
	case $1 in
	lib/*) echo 'lib/*' ;; # what is installed stands alone
	microvm/base/*) echo 'microvm/base/*' ;;
	microvm/*) echo 'microvm/* devices/* snapshot/*' ;;
	devices/*) echo 'devices/* microvm/base/*' ;;
	snapshot/*) echo 'snapshot/* microvm/base/*' ;;
	api/doctor.c) echo 'api/* microvm/kvm_probe.h microvm/base/*' ;; # thaw doctor asks KVM itself
	api/ops_snapshot.[ch] | api/prepare.[ch]) # the daemon compares CPUs itself, once per snapshot
		echo 'api/* microvm/cpu_report.h snapshot/store.h snapshot/store_chain.h snapshot/manifest.h snapshot/working_set.h microvm/base/*' ;;
	api/vmrec.c | api/etag.c) echo 'api/* snapshot/store.h snapshot/manifest.h snapshot/format.h microvm/base/*' ;; # a container; a hash
	api/fc/snapfile.[ch] | api/fc/layers.h) echo 'api/* microvm/cpu_report.h microvm/sections.h snapshot/memory_map.h snapshot/format.h microvm/base/*' ;; # a container; the CPU
	api/fc/outfile.c) echo 'api/* snapshot/format.h microvm/base/*' ;; # holes
	api/page_handler.c) echo 'api/* snapshot/page_handler.h snapshot/sandbox.h microvm/base/*' ;; # a program of its own
	api/cli*.[ch] | api/thaw.c) echo 'api/* lib/thaw.h microvm/base/*' ;; # the daemon: by libthaw alone
	api/fc/cpu.c) echo 'api/* microvm/cpu_report.h microvm/kvm.h microvm/base/*' ;; # names of features; what KVM has
	api/fc/*) echo 'api/* snapshot/manifest.h microvm/base/*' ;;
	api/*) echo 'api/* snapshot/store.h snapshot/store_chain.h snapshot/manifest.h snapshot/index.h snapshot/transfer.h snapshot/pager.h snapshot/working_set.h microvm/base/*' ;;
	esac
}

# Who may include a header that is not ours; nothing: anybody.
includers() {
	case $1 in
	liburing.h) echo 'microvm/base/ring.c' ;;
	xxhash.h) echo 'snapshot/format.c' ;;
	lz4*.h) echo 'snapshot/codec.c' ;;
	jansson.h) echo 'api/json.c api/json.h lib/reply.c' ;;
	microhttpd.h) echo 'api/http.c' ;;
	curl/*) echo 'lib/http.c' ;;
	seccomp.h) echo 'microvm/sandbox.c snapshot/sandbox.c' ;;
	libfdt.h) echo 'microvm/arch/aarch64/fdt.c' ;;
	zlib.h) echo 'microvm/arch/aarch64/kernel.c' ;;
	linux/userfaultfd.h) echo 'snapshot/pager.c snapshot/page_handler.c snapshot/uffd.c snapshot/sandbox.c microvm/lazy.c' ;;
	linux/kvm.h) echo 'microvm/kvm*.c microvm/kvm*.h microvm/arch/*' ;;
	esac
}

# matches PATH PATTERNS...
matches() {
	local path=$1 pattern
	shift
	for pattern; do
		# shellcheck disable=SC2254
		case $path in $pattern) return 0 ;; esac
	done
	return 1
}

set -f # the patterns above are for `case`, not for the file system
while IFS=: read -r file line text; do
	where="$file:$line"
	case $text in
	*\"*)
		name=${text#*\"} name=${name%%\"*}
		# shellcheck disable=SC2046
		if [ -f "$name" ]; then
			matches "$name" $(allowed "$file") || violation "$where: $name is not for $(dirname "$file")/"
		else # make chooses the architecture's folder
			matches "$file" 'microvm/arch/*' || violation "$where: $name: write the path from the top folder"
		fi
		;;
	*\<*)
		name=${text#*<} name=${name%%>*}
		who=$(includers "$name")
		# shellcheck disable=SC2086
		[ -z "$who" ] || matches "$file" $who || violation "$where: $name is only for $who"
		;;
	esac
done < <(grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*["<]' --include='*.[ch]' lib microvm devices snapshot api)

while IFS=: read -r file line _; do
	matches "$file" 'microvm/arch/*' 'tests/guest/*/*' ||
		violation "$file:$line: per-architecture code belongs to microvm/arch/, the tiny guest's to tests/guest/ARCH/"
done < <(grep -rnE '__(x86_64|amd64|i386|aarch64|arm)__' --include='*.[ch]' lib microvm devices snapshot api tests/guest)

# A header of another architecture's folder by the cross compiler for it.
while IFS= read -r header; do
	arch=${ARCH:-$(uname -m)} cc=$CC
	case $header in
	microvm/arch/"$arch"/*) ;;
	microvm/arch/*/*) arch=${header#microvm/arch/} arch=${arch%%/*} cc=$arch-linux-gnu-gcc ;;
	esac
	"$cc" -std=gnu11 -D_GNU_SOURCE -I. -Imicrovm/arch/"$arch" -fsyntax-only -Wall -Wextra -Werror -x c - <<<"#include \"$header\"" ||
		violation "$header: does not compile alone"
done < <(find lib microvm devices snapshot api bench tests -name '*.h' -not -path 'tests/guest/*' -not -path 'tests/rig/*' | sort)

exit $bad
