#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""thaw guest: fetch from an archive that is right, and from all kinds that are not; build from folders and tars,
also hostile ones. What is made is looked at with debugfs; nothing is left of what failed."""
import contextlib
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tarfile
import tempfile
import threading

import debian_archive
from debian_archive import BUSYBOX, KERNEL, VMLINUZ
from thawlib import BIN, Skip, main

THAW = os.path.join(BIN, "thaw")
ENV = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "LC_ALL": "C"}
for variable in ("THAW_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy"):
    ENV.pop(variable, None)


def need(*programs):
    missing = [p for p in programs if not shutil.which(p, path=ENV["PATH"])]
    if missing:
        raise Skip(f"not here: {', '.join(missing)}")


def thaw(*args, env=None, **more):
    more.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([THAW, "guest", *args], capture_output=True, text=True, timeout=120, check=False,
                          env={**ENV, **(env or {})}, **more)


@contextlib.contextmanager
def folder():
    with tempfile.TemporaryDirectory(prefix="thaw-") as path:
        os.chmod(path, 0o755)
        yield path


def debugfs(image, command):
    r = subprocess.run(["debugfs", "-R", command, image], capture_output=True, text=True, check=True, env=ENV,
                       timeout=60, errors="surrogateescape")
    errors = [line for line in r.stderr.splitlines() if not line.startswith("debugfs ")]
    assert not errors, (command, errors)
    return r.stdout


class Seen:
    """A file of an image."""

    def __init__(self, image, path):
        self.image, self.path = image, path
        text = debugfs(image, f'stat "{path}"')
        self.kind = re.search(r"Type: (\w+)", text)[1]
        self.mode = int(re.search(r"Mode: +(\d+)", text)[1], 8)
        self.owner = tuple(int(n) % (1 << 32) for n in re.search(r"User: +(-?\d+) +Group: +(-?\d+)", text).groups())
        self.links, self.size = int(re.search(r"Links: (\d+)", text)[1]), int(re.search(r"Size: (\d+)", text)[1])
        self.blocks = int(re.search(r"Blockcount: (\d+)", text)[1])
        self.mtime = int(re.search(r" mtime: (0x[0-9a-f]+)", text)[1], 16)
        self.inode = int(re.search(r"Inode: (\d+)", text)[1])
        m = re.search(r'Fast link dest: "(.*)"', text)
        self.target = m and m[1]
        m = re.search(r"Device major/minor number: (\d+):(\d+)", text)
        self.device = m and (int(m[1]), int(m[2]))

    def text(self):
        return debugfs(self.image, f'cat "{self.path}"')


def names(image, path):
    return {line.split("/")[5] for line in debugfs(image, f'ls -p "{path}"').splitlines() if line.count("/") == 7} - {
        ".", "..", ""}  # "": room for names


def clean(image):
    r = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False, env=ENV, timeout=60)
    assert r.returncode == 0, r


# --- fetch ---
@contextlib.contextmanager
def archive():
    need("gpg", "gpgv", "dpkg-deb", "mke2fs", "debugfs", "e2fsck")
    with folder() as top, contextlib.ExitStack() as stack:
        key = debian_archive.Key(top, "key")
        stack.callback(key.close)
        a = debian_archive.Archive(os.path.join(top, "archive"))
        a.publish(key)
        server = debian_archive.Server(a.folder)
        stack.callback(server.close)
        a.top, a.key, a.server, a.out = top, key, server, os.path.join(top, "out")
        os.mkdir(a.out)
        yield a


def fetch(a, *more, env=None, **kwargs):
    return thaw("fetch", "--mirror", a.server.url, "--keyring", a.key.keyring, "--dir", os.path.join(a.out, "g"), *more,
                env=env, **kwargs)


def refused(a, says, *more, **kwargs):
    r = fetch(a, *more, **kwargs)
    assert r.returncode == 1 and says in r.stderr and "Traceback" not in r.stderr and not r.stdout, (says, r)
    assert os.listdir(a.out) == [], os.listdir(a.out)
    return r


def cpio_files(path):
    with open(path, "rb") as f:
        data = f.read()
    at, files = 0, {}
    while True:
        assert data[at:at + 6] == b"070701"
        field = [int(data[at + 6 + 8 * i:at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110:at + 110 + field[11] - 1].decode()
        start = (at + 110 + field[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return files
        files[name] = (field[1], data[start:start + field[6]])
        at = (start + field[6] + 3) // 4 * 4


def check_fetched(a, path):
    with open(os.path.join(path, "vmlinuz"), "rb") as f:
        assert f.read() == VMLINUZ
    files = cpio_files(os.path.join(path, "initrd"))
    order = files["etc/modules"][1].decode().split()
    assert set(order) == {"virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "failover", "net_failover", "virtio_net",
                          "virtio_rng"}
    for first, then in (("virtio_ring", "virtio"), ("virtio", "virtio_mmio"), ("failover", "net_failover"),
                        ("net_failover", "virtio_net")):
        assert order.index(first) < order.index(then), order
    assert all(files[f"lib/{n}.ko"][1] == a.modules.get(n, a.modules.get(n.replace("_", "-"))) for n in order)
    assert files["bin/busybox"] == (0o100755, BUSYBOX) and files["init"][0] == 0o100755
    image = os.path.join(path, "rootfs.ext4")
    clean(image)
    assert os.stat(image).st_size == 1 << 30 and os.stat(image).st_blocks * 512 < 64 << 20
    assert Seen(image, "/sbin/init").target == "/bin/busybox"
    busybox = Seen(image, "/bin/busybox")
    assert (busybox.mode, busybox.owner, busybox.size) == (0o755, (0, 0), len(BUSYBOX))
    assert "GUEST-READY" in Seen(image, "/etc/rc").text() and Seen(image, "/tmp").mode == 0o1777
    assert {stat.S_IMODE(os.stat(os.path.join(path, n)).st_mode) for n in os.listdir(path)} == {0o644}
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755


def test_fetch_from_a_good_archive():
    with archive() as a:
        r = fetch(a)
        path = os.path.join(a.out, "g")
        assert r.returncode == 0, r
        assert r.stdout == (f"thaw run --kernel {path}/vmlinuz --initrd {path}/initrd --rootfs {path}/rootfs.ext4\n"), r
        check_fetched(a, path)
        assert os.listdir(a.out) == ["g"]
        r = fetch(a)
        assert r.returncode == 1 and "is there already" in r.stderr, r
        check_fetched(a, path)
        # What comes by hash, from the environment's mirror, said as JSON, into a folder with a space.
        a.publish(a.key, Acquire_By_Hash="yes")
        a.server.asked.clear()
        os.remove(os.path.join(a.binary, "Packages.xz"))
        r = thaw("fetch", "--keyring", a.key.keyring, "--dir", "two words", "--json", cwd=a.out,
                 env={"THAW_MIRROR": a.server.url + "/"})
        assert r.returncode == 0, r
        made, path = json.loads(r.stdout), os.path.realpath(a.out) + "/two words"
        assert f"'{path}/vmlinuz'" in made["command"] and made["kernel"] == path + "/vmlinuz", made
        check_fetched(a, path)
        assert any("/by-hash/" in p for p in a.server.asked), a.server.asked
        # A mirror in a folder.
        path = os.path.join(a.out, "f")
        r = thaw("fetch", "--mirror", "file://" + a.folder, "--keyring", a.key.keyring, "--dir", path)
        assert r.returncode == 0, r
        check_fetched(a, path)


def test_fetch_takes_no_wrong_signature():
    with archive() as a:
        other = debian_archive.Key(a.top, "other")
        expired = debian_archive.Key(a.top, "expired", now="20200101T000000", expires="2021-01-01")
        try:
            with open(a.signature, "rb") as f:
                good = f.read()
            for signature in (other.sign(a.release), expired.sign(a.release), b"", b"garbage\n", good[:len(good) // 2],
                              b"-----BEGIN PGP SIGNATURE-----\n\n-----END PGP SIGNATURE-----\n"):
                with open(a.signature, "wb") as f:
                    f.write(signature)
                refused(a, "signature is not good")
            # Two signatures, one of an unknown key: what a host with an older keyring sees.
            with open(a.signature, "wb") as f:
                f.write(dearmored(good) + dearmored(other.sign(a.release)))
            r = fetch(a)
            assert r.returncode == 0, r
            shutil.rmtree(os.path.join(a.out, "g"))
            # The expired key is one of the keyring, and its signature still does not do.
            with open(a.signature, "wb") as f:
                f.write(expired.sign(a.release))
            refused(a, "signature is not good", "--keyring", expired.keyring)
            with open(a.signature, "wb") as f:
                f.write(good)
            with open(a.release, "a", encoding="ascii") as f:
                f.write("X: y\n")
            refused(a, "signature is not good")
            os.remove(a.signature)
            refused(a, "/Release.gpg: ")
            refused(a, "there is no such file", "--keyring", os.path.join(a.top, "none"))
        finally:
            other.close()
            expired.close()


def dearmored(data):
    return subprocess.run(["gpg", "--dearmor"], input=data, capture_output=True, check=True, timeout=30).stdout


def test_fetch_checks_with_gpgv_or_sqv_or_not_at_all():
    need("sqv")
    with archive() as a:
        tools = os.path.join(a.top, "tools")
        os.mkdir(tools)
        for program in ("python3", "mke2fs", "debugfs", "e2fsck"):
            os.symlink(shutil.which(program, path=ENV["PATH"]), os.path.join(tools, program))
        if any(os.path.exists(f"{d}/{p}") for d in ("/usr/sbin", "/sbin") for p in ("gpgv", "sqv")):
            raise Skip("programs in sbin can't be hidden from it")
        refused(a, "neither gpgv nor sqv", env={"PATH": tools})
        os.symlink(shutil.which("sqv"), os.path.join(tools, "sqv"))
        r = fetch(a, env={"PATH": tools})
        assert r.returncode == 0, r
        shutil.rmtree(os.path.join(a.out, "g"))
        with open(a.release, "a", encoding="ascii") as f:
            f.write("X: y\n")
        refused(a, "signature is not good", env={"PATH": tools})


def test_fetch_takes_no_wrong_file():
    with archive() as a:
        index = os.path.join(a.binary, "Packages.xz")
        deb, busybox = (os.path.join(a.pool, n + ".deb") for n in (KERNEL, "busybox-static"))
        for path, by in ((index, "Release"), (deb, "the package index"), (busybox, "the package index")):
            with open(path, "rb") as f:
                good = f.read()
            middle = len(good) // 2
            flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1:]
            for data, says in ((flipped, "its SHA256 is not the one that " + by),
                               (good[:-1], f"{len(good) - 1} bytes, not the {len(good)} that {by}"),
                               (good + b"x", f"more than the {len(good)} that {by}"), (b"", "0 bytes, not")):
                with open(path, "wb") as f:
                    f.write(data)
                refused(a, says)
            with open(path, "wb") as f:
                f.write(good)
            name = os.path.relpath(path, a.folder)
            a.server.cut.add(name)  # the server goes away in the middle
            refused(a, "the mirror")
            a.server.cut.clear()
            a.server.to_file.add(name)
            refused(a, name)
            a.server.to_file.clear()
            a.server.garbage.add(name)
            refused(a, name)
            a.server.garbage.clear()
            os.remove(path)
            refused(a, name)
            with open(path, "wb") as f:
                f.write(good)
        assert fetch(a).returncode == 0


def test_fetch_takes_no_other_release():
    with archive() as a:
        a.publish(a.key, Codename="bookworm")
        refused(a, 'the release of "bookworm"')
        a.publish(a.key, Valid_Until="Sat, 12 Sep 2020 07:55:41 UTC")
        refused(a, "valid until Sat, 12 Sep 2020")
        a.publish(a.key, Valid_Until="some day")
        refused(a, "valid until some day")
        a.publish(a.key, Valid_Until="Sat, 12 Sep 2099 07:55:41 UTC")
        kernel = a.index.pop(KERNEL)
        a.publish(a.key)
        refused(a, f"no package {KERNEL} for amd64")
        a.index[KERNEL] = kernel
        a.package(KERNEL, {f"boot/vmlinuz-{KERNEL[12:]}": VMLINUZ})
        a.publish(a.key)
        refused(a, "the kernel has no virtio_ring")
        a.package(KERNEL, {"boot/config": b""})
        a.publish(a.key)
        refused(a, "there is no kernel in it")
        # Signed, and right by its hash, but no package.
        deb = os.path.join(a.pool, KERNEL + ".deb")
        for data in (b"", b"!<arch>\n", b"!<arch>\n" + b"data.tar.xz".ljust(48) + b"10        `\n" + b"x" * 10):
            with open(deb, "wb") as f:
                f.write(data)
            a.index[KERNEL] |= {"Size": str(len(data)), "SHA256": debian_archive.hashlib.sha256(data).hexdigest()}
            a.publish(a.key)
            refused(a, "can't unpack it")


def test_fetch_says_what_is_wrong_with_options():
    with archive() as a:
        refused(a, "none of bookworm, trixie", "--suite", "sid")
        refused(a, "none of amd64", "--arch", "vax")
        refused(a, "it takes a URL", "--mirror", "deb.debian.org")
        refused(a, "Connection refused", "--mirror", "http://127.0.0.1:9")
        refused(a, "dists/bookworm", "--suite", "bookworm")
        r = thaw("fetch", "--mirror", a.server.url, "--keyring", a.key.keyring, "--dir", "/nonexistent/g")
        assert r.returncode == 1 and "can't write beside /nonexistent/g" in r.stderr, r
        assert thaw("fetch", "x").returncode == 2


def ends_clean(p, number, out):
    p.send_signal(number)
    _, err = p.communicate(timeout=60)
    assert p.returncode in (128 + number, -number), (p.returncode, err)
    assert os.listdir(out) == [], os.listdir(out)


def test_a_signal_leaves_nothing():
    with archive() as a:
        held = a.server.hold[f"pool/{KERNEL}.deb"] = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            held.clear()
            with subprocess.Popen([THAW, "guest", "fetch", "--mirror", a.server.url, "--keyring", a.key.keyring, "--dir",
                                   os.path.join(a.out, "g")], env=ENV, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as p:
                assert held.wait(60)
                assert [n for n in os.listdir(a.out) if n.startswith(".thaw-guest-")]
                ends_clean(p, number, a.out)


# --- build ---
def entry(name, data=None, **fields):
    m = tarfile.TarInfo(name)
    m.mode, m.type = (0o644, tarfile.REGTYPE) if data is not None else (0o755, tarfile.DIRTYPE)
    for k, v in fields.items():
        setattr(m, k, v)
    m.size = len(data or b"")
    return m, data


def pack(*entries, mode="w"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.PAX_FORMAT) as t:
        for m, data in entries:
            t.addfile(m, io.BytesIO(data) if data is not None else None)
    return out.getvalue()


def build(top, data, *more, name="image", **kwargs):
    """From standard input."""
    with tempfile.TemporaryFile() as f:
        f.write(data)
        f.seek(0)
        return thaw("build", "-", os.path.join(top, name), *more, stdin=f, **kwargs)


SH = entry("bin/sh", b"#!\n", mode=0o755)
CAP = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"


def test_build_keeps_what_a_tar_says():
    need("mke2fs", "debugfs", "e2fsck")
    many = [entry(f"many/file-of-a-long-name-{i:05}", b"%d" % i) for i in range(3000)]
    links = [entry(f"links/hard-link-number-{i:05}", b"", type=tarfile.LNKTYPE, linkname="etc/pass") for i in range(1000)]
    entries = [
        SH, entry("etc", mode=0o751, uid=7, gid=8, mtime=981173106), entry("etc/pass", b"secret\n", mode=0, uid=1, gid=2),
        entry("/abs/./file", b"x", mtime=1e99), entry("bin/su", b"su", mode=0o4755, uid=4294967294, gid=70000),
        entry("bin/ping", b"ping", mode=0o755, pax_headers={"SCHILY.xattr.security.capability": CAP.decode("latin-1"),
                                                           "SCHILY.xattr.user.note": "hello", "mtime": "nan"}),
        entry("lib", b"", type=tarfile.SYMTYPE, linkname="usr/lib"),
        entry("up", b"", type=tarfile.SYMTYPE, linkname="../../x"),
        entry("far", b"", type=tarfile.SYMTYPE, linkname="y" * 2000),
        entry("dev/null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        entry("dev/big", b"", type=tarfile.BLKTYPE, devmajor=259, devminor=60000, uid=0, gid=6),
        entry("run/pipe", b"", type=tarfile.FIFOTYPE, mode=0o600), entry("empty", b""), entry("tmp", mode=0o1777),
        entry('odd "quoted" name', b"q"), entry("<2>", b"i", mode=0o640), entry("-f", b"-"), entry("sif", b"#"),
        entry("twice", b"first"), entry("twice", b"second", uid=9), entry("n" * 255, b"n"),
        entry("zeros", bytes(20 << 20)), entry("mixed", b"a" + bytes(8 << 20) + b"z"), *many, *links,
        entry("p/" * 200 + "deep", b"d"), entry(b"caf\xe9".decode("utf-8", "surrogateescape"), b"8")]
    with folder() as top:
        image = os.path.join(top, "image")
        everybody = {} if os.getuid() else {"user": 65534, "group": 65534, "extra_groups": []}  # it needs no root
        os.chmod(top, 0o777)
        r = build(top, pack(*entries), **everybody)
        assert r.returncode == 0 and not r.stderr, r
        assert os.listdir(top) == ["image"]
        clean(image)
        def seen(path):
            s = Seen(image, path)
            return s.kind, s.mode, s.owner

        assert seen("/etc") == ("directory", 0o751, (7, 8)) and Seen(image, "/etc").mtime == 981173106
        assert seen("/etc/pass") == ("regular", 0, (1, 2)) and Seen(image, "/etc/pass").text() == "secret\n"
        assert seen("/abs/file") == ("regular", 0o644, (0, 0)) and Seen(image, "/abs/file").mtime == (1 << 31) - 1
        assert seen("/bin/su") == ("regular", 0o4755, (4294967294, 70000)) and seen("/bin/ping")[1] == 0o755
        assert re.search(r"security.capability \(20\) = 01 00 00 02 00 20", debugfs(image, "ea_list /bin/ping"))
        assert 'user.note (5) = "hello"' in debugfs(image, "ea_list /bin/ping")
        assert Seen(image, "/lib").target == "usr/lib" and Seen(image, "/up").target == "../../x"
        assert Seen(image, "/far").size == 2000
        assert seen("/dev/null")[:2] == ("character", 0o666) and Seen(image, "/dev/null").device == (1, 3)
        assert Seen(image, "/dev/big").device == (259, 60000) and seen("/run/pipe") == ("FIFO", 0o600, (0, 0))
        assert Seen(image, "/empty").size == 0 and seen("/tmp")[1] == 0o1777
        assert Seen(image, '/odd ""quoted"" name').text() == "q"
        assert Seen(image, "/<2>").mode == 0o640 and Seen(image, "/-f").text() == "-" and seen("/")[1] == 0o755
        assert Seen(image, "/twice").text() == "second" and Seen(image, "/twice").owner == (9, 0)
        assert Seen(image, "/zeros").size == 20 << 20 and Seen(image, "/zeros").blocks == 0
        assert Seen(image, "/mixed").size == (8 << 20) + 2 and Seen(image, "/mixed").blocks < 8192
        assert len(names(image, "/many")) == 3000 and Seen(image, "/many/file-of-a-long-name-02999").text() == "2999"
        assert len(names(image, "/links")) == 1000 and Seen(image, "/etc/pass").links == 1001
        assert Seen(image, "/links/hard-link-number-00999").inode == Seen(image, "/etc/pass").inode
        assert Seen(image, "/" + "p/" * 200 + "deep").text() == "d" and Seen(image, "/" + "n" * 255).text() == "n"
        assert b"caf\xe9".decode("utf-8", "surrogateescape") in names(image, "/")


def test_build_from_a_folder():
    need("mke2fs", "debugfs", "e2fsck")
    with folder() as top:
        source, image = os.path.join(top, "src"), os.path.join(top, "image")
        os.makedirs(os.path.join(source, "bin"))
        for name, mode in (("bin/sh", 0o755), ("bin/tool", 0o4711), ("plain", 0o600)):
            with open(os.path.join(source, name), "w", encoding="ascii") as f:
                f.write(name)
            os.chmod(f.name, mode)
        os.link(os.path.join(source, "plain"), os.path.join(source, "bin/same"))
        os.symlink("/etc/shadow", os.path.join(source, "link"))
        os.symlink(source, os.path.join(source, "bin/self"))
        os.mkfifo(os.path.join(source, "pipe"))
        with open(os.path.join(source, "holes"), "wb") as f:
            f.truncate(1 << 30)
        if not os.getuid():
            os.chown(os.path.join(source, "plain"), 12, 13)
            os.mknod(os.path.join(source, "null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
        r = thaw("build", source, image, "--json", cwd=top)
        assert r.returncode == 0, r
        assert json.loads(r.stdout) == {"image": os.path.realpath(image), "size_bytes": os.stat(image).st_size}
        clean(image)
        assert names(image, "/") == set(os.listdir(source)) | {"lost+found"}
        assert Seen(image, "/bin/tool").mode == 0o4711 and Seen(image, "/link").target == "/etc/shadow"
        assert Seen(image, "/bin/same").inode == Seen(image, "/plain").inode and Seen(image, "/plain").links == 2
        assert Seen(image, "/holes").size == 1 << 30 and Seen(image, "/holes").blocks == 0
        assert Seen(image, "/pipe").kind == "FIFO" and os.stat(image).st_size < 1 << 30
        if not os.getuid():
            assert Seen(image, "/plain").owner == (12, 13) and Seen(image, "/null").device == (1, 3)
        r = thaw("build", source, os.path.join(source, "image"))
        assert r.returncode == 1 and "is inside" in r.stderr and "image" not in os.listdir(source), r
        os.remove(image)
        if not os.getuid():
            os.chmod(top, 0o777)
            r = thaw("build", source, image, user=65534, group=65534, extra_groups=[])
            assert r.returncode == 1 and ": Permission denied; all of the folder must be readable" in r.stderr, r
        os.chmod(top, 0o755)
        assert os.listdir(top) == ["src"]


def test_build_takes_packed_tars():
    need("mke2fs", "debugfs", "e2fsck")
    with folder() as top:
        for mode in ("w", "w:gz", "w:xz", "w:bz2"):
            data = pack(SH, entry("f", os.urandom(100000)), mode=mode)
            path = os.path.join(top, "x.tar")
            with open(path, "wb") as f:
                f.write(data)
            image = os.path.join(top, "image")
            for r in (thaw("build", path, image), build(top, data, name="second")):
                assert r.returncode == 0 and re.fullmatch(r".*: [\d.]+ MiB, of which [\d.]+ MiB are in use\n", r.stdout), r
            assert Seen(image, "/bin/sh").mode == 0o755
            assert os.stat(image).st_size == os.stat(os.path.join(top, "second")).st_size
            os.remove(image)
            os.remove(os.path.join(top, "second"))
            for n in (len(data) * 2 // 3, len(data) - 4) if mode != "w" else ():
                r = build(top, data[:n])
                assert r.returncode == 1 and "tar archive" in r.stderr and os.listdir(top) == ["x.tar"], (mode, n, r)
            if mode == "w:gz":  # of which tarfile checks no sum
                r = build(top, data[:-8] + bytes(8))
                assert r.returncode == 1 and "CRC" in r.stderr and os.listdir(top) == ["x.tar"], r


def test_build_with_an_init_and_a_size():
    need("mke2fs", "debugfs", "e2fsck")
    with folder() as top:
        init, image = os.path.join(top, "my-init"), os.path.join(top, "image")
        with open(init, "w", encoding="ascii") as f:
            f.write("#!/bin/sh\n")
        r = build(top, pack(SH), "--init", init, "--size", "96M")
        assert r.returncode == 0 and os.stat(image).st_size == 96 << 20, r
        assert Seen(image, "/sbin/init").mode == 0o755 and Seen(image, "/sbin/init").text() == "#!/bin/sh\n"
        os.remove(image)
        # Where /sbin is a link, absolute or not, it is what the guest takes it for.
        for target in ("usr/sbin", "/usr/sbin", "/usr/./bin/../sbin"):
            r = build(top, pack(SH, entry("usr/bin"), entry("usr/sbin"), entry("usr/sbin/init", b"old"),
                                entry("sbin", b"", type=tarfile.SYMTYPE, linkname=target)), "--init", init)
            assert r.returncode == 0, r
            assert Seen(image, "/sbin").target == target and Seen(image, "/usr/sbin/init").text() == "#!/bin/sh\n"
            os.remove(image)
        r = build(top, pack(entry("app", b"x")))
        assert r.returncode == 0 and "give --init FILE" in r.stderr, r
        r = build(top, pack(SH))
        assert r.returncode == 1 and "is there already" in r.stderr, r
        os.remove(image)
        loop = entry("sbin", b"", type=tarfile.SYMTYPE, linkname="sbin")
        for args, says in (((pack(SH), "--init", "/nonexistent"), "--init /nonexistent: No such file"),
                           ((pack(SH, loop), "--init", init), "circle of links"),
                           ((pack(SH, entry("sbin/init")), "--init", init), "/sbin/init is a folder"),
                           ((pack(SH, entry("sbin", b"")), "--init", init), "which is no folder"),
                           ((pack(SH), "--size", "lots"), '"lots" won\'t do'), ((pack(SH), "--size", "0"), "won't do"),
                           ((pack(SH, entry("f", os.urandom(1 << 20))), "--size", "1000K"), "give --size for a larger"),
                           ((pack(SH, *(entry(f"{i}", os.urandom(1 << 20)) for i in range(40))), "--size", "41M"),
                            "does not fit into"),
                           ((pack(SH), "--size", "1M"), "does not fit into")):
            r = build(top, *args)
            assert r.returncode == 1 and says in r.stderr and "Traceback" not in r.stderr, (says, r)
            assert os.listdir(top) == ["my-init"], os.listdir(top)


def bad_header(**fields):
    """One file's header with fields that tarfile would not write; its checksum is right."""
    m, data = entry("f", b"x")
    raw = bytearray(m.tobuf(tarfile.USTAR_FORMAT))
    for at, value in fields.values():
        raw[at:at + len(value)] = value
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw) + data.ljust(512, b"\0") + bytes(1024)


def big(n, at):
    return at, b"\x80" + n.to_bytes(11 if at == 124 else 7, "big")


def test_build_takes_no_hostile_tar():
    need("mke2fs", "debugfs", "e2fsck")
    good = pack(SH, entry("etc/a", b"a" * 5000), entry("etc/b", b"b"))
    link = entry("out", b"", type=tarfile.SYMTYPE, linkname="/tmp")
    with folder() as top:
        canary = os.path.join(top, "canary")
        os.mkdir(canary)
        with open(os.path.join(canary, "f"), "w", encoding="ascii") as f:
            f.write("untouched")
        to_canary = entry("out", b"", type=tarfile.SYMTYPE, linkname=canary)

        def hard(name, to):
            return entry(name, b"", type=tarfile.LNKTYPE, linkname=to)

        for data, says in (
                (pack(entry("../x", b"x")), "leads out of the image"), (pack(entry("a/../../x", b"x")), "leads out"),
                (pack(entry("/../x")), "leads out"), (pack(to_canary, entry("out/f", b"x")), "which is no folder"),
                (pack(to_canary, entry("out")), ""), (pack(link, entry("out/x/y")), "which is no folder"),
                (pack(hard("h", canary + "/f")), "no file before it"), (pack(hard("h", "../f")), "leads out"),
                (pack(to_canary, hard("h", "out")), "no file before it"), (pack(hard("h", "h")), "no file before it"),
                (pack(entry("d"), hard("h", "d")), "no file before it"),
                (pack(entry("d"), entry("d", b"")), "then something else"),
                (pack(entry("a\nb", b"")), "line break"), (pack(entry("a\rb")), "line break"),
                (pack(entry("l", b"", type=tarfile.SYMTYPE, linkname="a\nb")), "line break"),
                (pack(entry("l", b"", type=tarfile.SYMTYPE, linkname="")), "link to nothing"),
                (pack(entry("l", b"", type=tarfile.SYMTYPE, linkname="x" * 5000)), "too long"),
                (pack(entry("n" * 256, b"")), "longer than 255"), (pack(entry("p/" * 3000 + "x", b"")), "longer than"),
                (bad_header(uid=big(1 << 40, 108)), "out of range"), (bad_header(size=big(1 << 60, 124)), "give --size"),
                (bad_header(size=(124, b"\xff" * 12)), ""), (bad_header(kind=(156, b"V")), ""),
                (bad_header(kind=(156, b"3"), minor=big(1 << 30, 337)), "out of range"),
                (pack(entry("d", b"", type=tarfile.CHRTYPE, devmajor=5000)), "out of range"),
                (pack(entry("d", b"", type=tarfile.CHRTYPE, devminor=65536)), "out of range"),
                (b"", "tar archive"), (b"no tar at all" * 99, "tar archive"), (bytes(10240), "is empty"),
                (good[:1000], "tar archive"), (good[:512], "tar archive"), (good[:2560], "tar archive"),
                (good[:1024] + b"\x55" * 512 + good[1536:], "tar archive"),
                (pack(entry("manifest.json", b"[]"), entry("abc/layer.tar", b"")), "docker export"),
                (sparse_bomb(), "give --size")):
            with open(os.path.join(top, "x.tar"), "wb") as f:
                f.write(data)
            r = thaw("build", f.name, os.path.join(top, "image"))
            os.remove(f.name)
            assert "Traceback" not in r.stderr, r
            if says:
                assert r.returncode == 1 and says in r.stderr, (says, r, data[:200])
                assert os.listdir(top) == ["canary"], os.listdir(top)
            elif r.returncode == 0:
                clean(os.path.join(top, "image"))
                os.remove(os.path.join(top, "image"))
            with open(os.path.join(canary, "f"), encoding="ascii") as f:
                assert f.read() == "untouched" and os.listdir(canary) == ["f"]


def sparse_bomb():
    """An old GNU sparse file: no bytes, and 2^60 of zeros."""
    def number(n):
        return b"\x80" + n.to_bytes(11, "big")
    return bad_header(kind=(156, b"S"), magic=(257, b"ustar  \0"), size=(124, b"00000000000\0"),
                      map=(386, number(1 << 60) + number(0)), real=(483, number(1 << 60)))


def test_build_has_a_limit_of_memory():
    need("mke2fs")
    head = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    head[156:157], head[124:136] = b"L", b"\x80" + (64 << 30).to_bytes(11, "big")  # a name of 64 GiB
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    with folder() as top:
        with subprocess.Popen([THAW, "guest", "build", "-", os.path.join(top, "image")], env=ENV, stdin=subprocess.PIPE,
                              stderr=subprocess.PIPE, stdout=subprocess.PIPE) as p:
            piece = b"A" * (1 << 20)
            sent = 0
            with contextlib.suppress(BrokenPipeError):
                p.stdin.write(head)
                while sent < 8 << 30:
                    sent += p.stdin.write(piece)
            with contextlib.suppress(BrokenPipeError):
                p.stdin.close()
            err = p.stderr.read().decode()
            assert p.wait(60) == 1 and "need more memory" in err and sent < 8 << 30, (p.returncode, err, sent)
        assert os.listdir(top) == []


def test_build_ended_by_a_signal_leaves_nothing():
    with folder() as top:
        for number in (signal.SIGTERM, signal.SIGINT):
            with subprocess.Popen([THAW, "guest", "build", "-", os.path.join(top, "image")], env=ENV, stdin=subprocess.PIPE,
                                  stderr=subprocess.PIPE, stdout=subprocess.PIPE) as p:
                p.stdin.write(pack(SH, entry("f", b"x" * 500000))[:400000])
                p.stdin.flush()
                for _ in range(3000):  # it has begun
                    if os.listdir(top) or p.poll() is not None:
                        break
                    threading.Event().wait(0.01)
                assert os.listdir(top)
                p.send_signal(number)
                p.wait(60)
                assert p.returncode in (128 + number, -number), p.stderr.read()
            assert os.listdir(top) == []


def test_without_its_parts_it_says_so():
    with folder() as top:
        os.makedirs(os.path.join(top, "bin"))
        shutil.copy(THAW, os.path.join(top, "bin/thaw"))
        r = subprocess.run([os.path.join(top, "bin/thaw"), "guest", "fetch"], capture_output=True, text=True, check=False,
                           timeout=30)
        assert r.returncode == 1 and f"{os.path.realpath(top)}/libexec/thaw/guest/main.py: No such file" in r.stderr, r
        r = thaw("build", "/nonexistent", os.path.join(top, "image"))
        assert r.returncode == 1 and "/nonexistent: No such file" in r.stderr, r
        r = thaw("build", "x", "y", env={"PATH": top})
        assert r.returncode == 1 and "thaw guest needs Python" in r.stderr, r


if __name__ == "__main__":
    main(globals())
