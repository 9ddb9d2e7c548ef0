# SPDX-License-Identifier: Apache-2.0
"""A tiny Debian archive on loopback for test_guest.py: packages made with dpkg-deb, an index, a Release signed by
a key of its own. Everything in it can be spoiled."""
import contextlib
import hashlib
import http.server
import lzma
import os
import shutil
import subprocess
import threading

KERNEL = "linux-image-9.9-cloud-amd64"
VMLINUZ, BUSYBOX = b"no kernel, but one file\n" * 99, b"no busybox, but one file\n" * 999


def run(*args, **more):
    return subprocess.run(args, capture_output=True, timeout=60, check=True, stdin=subprocess.DEVNULL, **more)


def module(*depends):
    """What is read of a kernel module."""
    return b"\x7fELF" + bytes(60) + b"license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=x\0" + bytes(99)


class Key:
    """A signing key; `now`: the time at which it is made, for one that has expired since."""

    def __init__(self, folder, name, now=None, expires="never"):
        self.home = os.path.join(folder, name)
        os.mkdir(self.home, 0o700)
        self.gpg = ["gpg", "--homedir", self.home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "",
                    *(["--faked-system-time", now] if now else [])]
        self.keyring = os.path.join(self.home, "public.gpg")
        run(*self.gpg, "--quick-gen-key", f"{name}@example.com", "ed25519", "sign", expires)
        with open(self.keyring, "wb") as f:
            f.write(run(*self.gpg, "--export").stdout)

    def sign(self, path):
        return run(*self.gpg, "--armor", "--detach-sign", "--output", "-", path).stdout

    def close(self):
        subprocess.run(["gpgconf", "--homedir", self.home, "--kill", "all"], check=False, capture_output=True)


class Server(http.server.ThreadingHTTPServer):
    """Files of a folder on loopback. cut: paths of which half comes; hold: those that never end; to_file: those
    that are said to have moved to a file: URL; garbage: those answered with no HTTP."""
    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.cut, self.hold, self.to_file, self.asked = folder, set(), {}, set(), []
        self.garbage = set()
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def close(self):
        self.released.set()
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        s, path = self.server, self.path.split("?")[0].lstrip("/")
        s.asked.append(path)
        try:
            with open(os.path.join(s.folder, path), "rb") as f:
                data = f.read()
        except OSError:
            self.send_error(404)
            return
        if path in s.garbage:
            self.wfile.write(b"\xff\xfe nothing\r\n\r\n")
            return
        if path in s.to_file:
            self.send_response(302)
            self.send_header("Location", "file://" + os.path.join(s.folder, path))
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if path in s.hold:
            self.wfile.write(data[:10])
            s.hold[path].set()
            s.released.wait(60)
            return
        with contextlib.suppress(OSError):  # who has read enough goes away
            self.wfile.write(data[:len(data) // 2] if path in s.cut else data)

    def log_message(self, *_):
        pass


class Archive:
    def __init__(self, folder, suite="trixie"):
        self.folder, self.suite = folder, suite
        self.dists, self.pool = os.path.join(folder, "dists", suite), os.path.join(folder, "pool")
        self.binary = os.path.join(self.dists, "main/binary-amd64")
        os.makedirs(self.binary)
        os.makedirs(self.pool)
        self.index = {}
        lib = f"lib/modules/{KERNEL[12:]}"
        modules = {n: module() for n in ("virtio_ring", "virtio_blk", "failover", "virtio-rng", "unwanted")}
        modules |= {"virtio": module("virtio_ring"), "virtio_mmio": module("virtio", "virtio_ring"),
                    "net_failover": module("failover"), "virtio_net": module("net-failover", "virtio")}
        files = {f"{lib}/kernel/drivers/{n}.ko.xz": lzma.compress(d) for n, d in modules.items() if n != "virtio_blk"}
        files[f"{lib}/kernel/drivers/virtio_blk.ko"] = modules["virtio_blk"]
        files[f"{lib}/modules.builtin"] = b"kernel/fs/ext4/ext4.ko\n"
        files[f"boot/vmlinuz-{KERNEL[12:]}"] = VMLINUZ
        self.modules = modules
        self.package("linux-image-cloud-amd64", {}, f"{KERNEL} (= 1)")
        self.package(KERNEL, files)
        self.package("busybox-static", {"bin/busybox": BUSYBOX})

    def package(self, name, files, depends=""):
        top = os.path.join(self.folder, "x")
        for path, data in [*files.items(), ("DEBIAN/control", (
                f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody <nobody@example.com>\n"
                f"{'Depends: ' + depends + chr(10) if depends else ''}Description: for a test\n").encode())]:
            os.makedirs(os.path.dirname(os.path.join(top, path)), exist_ok=True)
            with open(os.path.join(top, path), "wb") as f:
                f.write(data)
        deb = os.path.join(self.pool, name + ".deb")
        run("dpkg-deb", "--root-owner-group", "-Zxz", "-z0", "--build", top, deb)
        shutil.rmtree(top)
        with open(deb, "rb") as f:
            data = f.read()
        self.index[name] = {"Package": name, "Version": "1", "Depends": depends, "Filename": f"pool/{name}.deb",
                            "Size": str(len(data)), "SHA256": hashlib.sha256(data).hexdigest()}

    def publish(self, key, **more):
        """Index, Release and signature as the packages are; `more`: fields of Release."""
        text = "\n\n".join("\n".join(f"{k}: {v}" for k, v in p.items() if v) for p in self.index.values()) + "\n"
        data = {"Packages": text.encode(), "Packages.xz": lzma.compress(text.encode())}
        lines = []
        for name, d in data.items():
            digest = hashlib.sha256(d).hexdigest()
            lines.append(f" {digest} {len(d)} main/binary-amd64/{name}")
            by_hash = os.path.join(self.binary, "by-hash/SHA256")
            os.makedirs(by_hash, exist_ok=True)
            for path in (os.path.join(self.binary, name), os.path.join(by_hash, digest)):
                with open(path, "wb") as f:
                    f.write(d)
        head = {"Suite": "stable", "Codename": self.suite, "Date": "Sat, 12 Sep 2026 07:55:41 UTC", **more}
        self.release = os.path.join(self.dists, "Release")
        with open(self.release, "w", encoding="ascii") as f:
            f.write("".join(f"{k.replace('_', '-')}: {v}\n" for k, v in head.items()) + "SHA256:\n")
            f.write("\n".join(lines) + "\n")
        self.signature = os.path.join(self.dists, "Release.gpg")
        with open(self.signature, "wb") as f:
            f.write(key.sign(self.release))
