# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Shared parts of rig-x86.sh, rig-arm64.sh and rig-kernel.sh; sourced, not run.

RIG_CACHE=${RIG_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/microvm-rig}
RIG_LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Modules put into the test machine (those that the kernel has as modules);
# their dependencies come along by themselves.
RIG_MODULES="virtio_pci virtio_blk virtio_console virtio_net virtio-rng
	virtio_balloon virtio_mmio virtio_mem virtio_pmem virtiofs kvm-amd tun tap
	macvtap bridge veth dummy vhost_net vhost_vsock vsock_loopback
	vmw_vsock_virtio_transport loop overlay squashfs erofs nbd dm-mod
	af_packet sch_ingress cls_u32 act_mirred nf_tables nft_chain_nat
	nft_masq ptp_kvm ext4 crc32c_generic ${RIG_MODULES_EXTRA:-}"

say() { printf 'rig: %s\n' "$*" >&2; }
die() { say "$*"; exit 125; }

# rig_need COMMAND PACKAGE...: pairs; installs the packages of missing commands.
rig_need() {
	local missing=()
	while [ $# -gt 1 ]; do
		command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing+=("$2")
		shift 2
	done
	[ ${#missing[@]} -eq 0 ] && return 0
	[ "$(id -u)" = 0 ] || die "please install: ${missing[*]}"
	say "installing ${missing[*]}"
	{
		apt-get update &&
		DEBIAN_FRONTEND=noninteractive apt-get install -y \
			--no-install-recommends "${missing[@]}"
	} >"$RIG_CACHE/apt.log" 2>&1 || die "apt-get failed, see $RIG_CACHE/apt.log"
}

# rig_apt ARCH TOOL ARG...: apt-get or apt-cache for ARCH with lists of its own;
# needs no root and leaves the system's architectures and lists alone.
rig_apt() {
	local arch=$1 tool=$2 s=$RIG_CACHE/apt-$1
	shift 2
	if [ ! -s "$s/updated" ] || [ -n "$(find "$s/updated" -mtime +0)" ]; then
		mkdir -p "$s/lists/partial" "$s/cache/archives/partial"
		: >"$s/status"
		rig_apt_raw apt-get -qq update >&2 && date >"$s/updated"
	fi
	rig_apt_raw "$tool" "$@"
}
rig_apt_raw() {
	local tool=$1
	shift
	"$tool" -o APT::Architecture="$arch" -o APT::Architectures="$arch" \
		-o Dir::State="$s" -o Dir::State::lists="$s/lists" \
		-o Dir::State::status="$s/status" -o Dir::Cache="$s/cache" \
		-o APT::Sandbox::User=root "$@"
}

# rig_deb ARCH PACKAGE: unpacks the package once, prints its folder.
rig_deb() {
	local d=$RIG_CACHE/deb/$1/$2 t
	if [ ! -d "$d" ]; then
		mkdir -p "$RIG_CACHE/deb/$1"
		t=$(mktemp -d "$RIG_CACHE/deb/$1/.tmp.XXXXXX") || return 1
		(
			cd "$t" || exit
			rig_apt "$1" apt-get -qq download "$2" >&2 || {
				rm -f "$RIG_CACHE/apt-$1/updated" # lists too old?
				rig_apt "$1" apt-get -qq download "$2" >&2
			} && dpkg -x ./*.deb x
		) || { rm -rf "$t"; return 1; }
		mv "$t/x" "$d" 2>/dev/null
		rm -rf "$t"
	fi
	[ -d "$d" ] && echo "$d"
}

# rig_kernel ARCH NAME: fetches a stock kernel and prints the folder that then
# holds vmlinuz, vmlinux (amd64), config, version and modules/. NAME is 6.1,
# 6.12 or the name of a linux-image package; the newest of a series is looked
# up once and then kept ($RIG_CACHE/kernel/ARCH/NAME: remove it to renew).
rig_kernel() {
	local arch=$1 name=$2 pkg d=$RIG_CACHE/kernel/$1/$2 t x
	if [ ! -d "$d" ]; then
		case $name in
		6.1) pkg=linux-image-cloud-$arch ;;
		linux-image-*) pkg=$name ;;
		*) pkg=linux-image-$name-cloud-$arch ;;
		esac
		# A meta-package names the real one.
		x=$(rig_apt "$arch" apt-cache show --no-all-versions "$pkg" |
			sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p')
		x=$(rig_deb "$arch" "${x:-$pkg}") || return 1
		mkdir -p "$RIG_CACHE/kernel/$arch"
		t=$(mktemp -d "$RIG_CACHE/kernel/$arch/.tmp.XXXXXX") || return 1
		cp "$x"/boot/vmlinuz-* "$t/vmlinuz"
		cp "$x"/boot/config-* "$t/config"
		# shellcheck disable=SC2012
		ls "$x/lib/modules" 2>/dev/null | head -1 >"$t/version"
		[ -s "$t/version" ] || ls "$x/usr/lib/modules" >"$t/version"
		cp -r "$x"/lib/modules/* "$t/modules" 2>/dev/null ||
			cp -r "$x"/usr/lib/modules/* "$t/modules"
		find "$t/modules" -name '*.xz' -exec xz -d {} +
		[ "$arch" = amd64 ] && rig_vmlinux "$t/vmlinuz" "$t/vmlinux"
		chmod 755 "$t"
		mv "$t" "$d" 2>/dev/null || rm -rf "$t"
	fi
	echo "$d"
}

# rig_vmlinux BZIMAGE OUT: the uncompressed kernel inside a bzImage. The setup
# header gives its place (payload_offset 0x248, payload_length 0x24c); the last
# 4 bytes are only its length.
rig_vmlinux() {
	local setup off len
	u32() { od -An -tu4 -j "$(($2))" -N 4 "$1" | tr -d ' '; }
	setup=$(od -An -tu1 -j 497 -N 1 "$1" | tr -d ' ')
	off=$(($(u32 "$1" 0x248) + (setup + 1) * 512))
	len=$(u32 "$1" 0x24c)
	tail -c "+$((off + 1))" "$1" | head -c "$((len - 4))" >"$2.z"
	case $(od -An -tx1 -N 4 "$2.z" | tr -d ' ') in
	02214c18) lz4 -dcq "$2.z" >"$2" ;;
	28b52ffd) zstd -dcq "$2.z" >"$2" ;;
	fd377a58) xz -dc "$2.z" >"$2" ;;
	1f8b*) gzip -dc "$2.z" >"$2" ;;
	*) cp "$2.z" "$2" ;;
	esac
	rm -f "$2.z"
}

# rig_fio: builds a static fio of this Debian release's source package once, prints it. The binary package
# wants 75 MB of libraries, for storage that no guest here has.
rig_fio() {
	local f=$RIG_CACHE/fio/fio s=$RIG_CACHE/apt-source t
	local apt=(apt-get -qq -o Dir::State="$s" -o Dir::State::lists="$s/lists" -o Dir::State::status="$s/status"
		-o Dir::Cache="$s/cache" -o Dir::Etc::sourcelist="$s/list" -o Dir::Etc::sourceparts=-
		-o APT::Sandbox::User=root)
	if [ ! -x "$f" ]; then
		mkdir -p "$RIG_CACHE/fio" "$s/lists/partial" "$s/cache/archives/partial"
		: >"$s/status"
		echo "deb-src http://deb.debian.org/debian $(. /etc/os-release && echo "$VERSION_CODENAME") main" >"$s/list"
		t=$(mktemp -d "$RIG_CACHE/fio/.tmp.XXXXXX") || return 1
		(
			cd "$t" && "${apt[@]}" update && "${apt[@]}" --download-only source fio &&
				tar -xf fio_*.orig.tar.?z --strip-components=1 &&
				./configure --build-static --disable-native --disable-numa --disable-rdma --disable-rados \
					--disable-rbd --disable-http --disable-gfapi --disable-libnfs --disable-xnvme \
					--disable-pmem --disable-shm && make -j"$(nproc)" fio && strip fio
		) >"$RIG_CACHE/fio/log" 2>&1 || { say "cannot build fio, see $RIG_CACHE/fio/log"; rm -rf "$t"; return 1; }
		mv "$t/fio" "$f"
		rm -rf "$t"
	fi
	echo "$f"
}

# rig_cpio DIR: writes DIR as a newc archive to the standard output.
rig_cpio() { (cd "$1" && find . | cpio -o -H newc --quiet -R 0:0); }

# rig_base ARCH KERNELDIR: builds the test machine's initramfs once, prints it.
rig_base() {
	local arch=$1 k=$2 v t b host f key
	v=$(cat "$k/version")
	key=$(cat "$RIG_LIB/l1-init" "$RIG_LIB/rig-common.sh" | cksum | cut -d' ' -f1)
	f=$RIG_CACHE/base/$arch-$v-$key-$(echo "$RIG_MODULES" | cksum | cut -d' ' -f1).cpio
	[ -s "$f" ] && { echo "$f"; return; }
	host=$(rig_deb "$(dpkg --print-architecture)" busybox-static) || return 1
	b=$(rig_deb "$arch" busybox-static) || return 1
	mkdir -p "$RIG_CACHE/base"
	t=$(mktemp -d "$RIG_CACHE/base/.tmp.XXXXXX") || return 1
	mkdir -p "$t/bin" "$t/etc" "$t/dev" "$t/proc" "$t/sys" "$t/lib/modules/$v"
	cp "$(find "$b" -path '*/bin/busybox')" "$t/bin/busybox"
	host=$(find "$host" -path '*/bin/busybox')
	for a in $("$host" --list); do
		[ "$a" = busybox ] || ln -s busybox "$t/bin/$a"
	done
	cp "$RIG_LIB/l1-init" "$t/init"
	chmod 755 "$t/init" "$t/bin/busybox"
	echo 'root:x:0:0:root:/root:/bin/sh' >"$t/etc/passwd"
	echo 'root:x:0:' >"$t/etc/group"
	# shellcheck disable=SC2086
	rig_modules "$k" "$t/lib/modules/$v" $RIG_MODULES
	"$host" depmod -b "$t" "$v"
	rig_cpio "$t" >"$f.$$" && mv "$f.$$" "$f"
	rm -rf "$t"
	echo "$f"
}

# rig_modules KERNELDIR OUT NAME...: copies modules and what they depend on.
rig_modules() {
	local k=$1 out=$2 m f deps
	shift 2
	for m; do
		m=$(echo "$m" | tr _ -)
		f=$(find "$k/modules" -name '*.ko' | awk -F/ -v m="$m.ko" \
			'{ n = $NF; gsub("_", "-", n); if (n == m) print }' | head -1)
		if [ -z "$f" ] || [ -e "$out/${f##*/}" ]; then continue; fi
		cp "$f" "$out/"
		deps=$(tr '\0' '\n' <"$f" | sed -n 's/^depends=//p' | tr , ' ')
		# shellcheck disable=SC2086
		rig_modules "$k" "$out" $deps
	done
}

# rig_foreign_libs PROGRAM SYSROOT OUT: copies the shared libraries that a program of another architecture needs, and
# those that they need, from the sysroot into OUT/lib. Static programs need none.
rig_foreign_libs() {
	local todo=("$1") f name lib
	mkdir -p "$3/lib"
	while [ ${#todo[@]} != 0 ]; do
		f=${todo[0]} todo=("${todo[@]:1}")
		for name in $(readelf -d "$f" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
			[ ! -e "$3/lib/$name" ] || continue
			lib=$(find "$2/lib" "$2/usr/lib" -name "$name" | head -n 1)
			[ -n "$lib" ] || { say "no $name in $2"; return 1; }
			cp -L "$lib" "$3/lib/$name"
			todo+=("$lib")
		done
	done
}
