#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prints a folder with Python for the test machine, made of Debian's packages once: usr/bin/python, its library,
# and lib/ with the shared libraries that programs of thaw do not bring. Of this system's version, whose byte code
# it reads: rig-python.sh amd64|arm64
. "$(dirname "$0")/rig-common.sh"
arch=${1:?amd64 or arm64}
v=python$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit 125
d=$RIG_CACHE/python/$arch-$v
if [ ! -d "$d" ]; then
	mkdir -p "$RIG_CACHE/python"
	t=$(mktemp -d "$RIG_CACHE/python/.tmp.XXXXXX") || exit 125
	trap 'rm -rf "$t"' EXIT
	for p in "$v-minimal" "lib$v-minimal" "lib$v-stdlib" libexpat1 libffi8 zlib1g libbz2-1.0 liblzma5; do
		x=$(rig_deb "$arch" "$p") || die "$p: cannot be had for $arch"
		cp -a "$x/." "$t/"
	done
	mkdir -p "$t/d/usr/bin" "$t/d/usr/lib" "$t/d/lib"
	cp "$t/usr/bin/$v" "$t/d/usr/bin/python"
	rm -rf "$t/usr/lib/$v/"{lib2to3,unittest,distutils,idlelib,pydoc_data,ensurepip}
	cp -r "$t/usr/lib/$v" "$t/d/usr/lib/"
	find "$t/lib" "$t/usr/lib" -name 'lib*.so.*' -exec cp -L {} "$t/d/lib/" \;
	x=$(rig_deb "$arch" libc6) || die "libc6: cannot be had for $arch"
	find "$x/lib" -name libm.so.6 -exec cp -L {} "$t/d/lib/" \;
	"$v" -m compileall -q "$t/d/usr/lib/$v" -s "$t/d/usr/lib" --invalidation-mode unchecked-hash || exit 125
	mv "$t/d" "$d" 2>/dev/null
fi
echo "$d"
