# SPDX-License-Identifier: Apache-2.0
"""Kernel, initrd and root file system of a guest, from files of Debian's packages."""
import lzma
import os
import re

import debian
from tree import Tree
from util import Failure, say

# In the order in which they are loaded. virtio_ring first: "virtio" needs it in some kernels.
REQUIRED = ("virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "virtio_net", "ext4")
OPTIONAL = ("virtio_rng", "vmw_vsock_virtio_transport", "virtio_balloon", "virtio_console", "nd_pmem",
            "virtio_pmem", "af_packet", "overlay", "evdev", "button")
HERE = os.path.dirname(os.path.abspath(__file__))
FOLDERS = (b"bin", b"dev", b"etc", b"home", b"lib", b"mnt", b"proc", b"root", b"run", b"sbin", b"sys", b"tmp", b"usr",
           b"usr/bin", b"usr/sbin", b"var", b"var/log")
ETC = {
    b"passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    b"group": b"root:x:0:\nnogroup:x:65534:\n",
    b"hosts": b"127.0.0.1 localhost\n::1 localhost\n",
    b"hostname": b"guest\n",
    b"profile": b"export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
    b"inittab": b"::sysinit:/bin/busybox sh /etc/rc\nttyS0::respawn:-/bin/sh\n"
                b"::ctrlaltdel:/sbin/reboot\n::shutdown:/bin/umount -a -r\n",
}
POWER_BUTTON = b"#!/bin/sh\nexec /sbin/poweroff\n"


def own(name):
    with open(os.path.join(HERE, name), "rb") as f:
        return f.read()


class Kernel:
    """The kernel's package, read once: image, and modules with their dependencies."""

    def __init__(self, deb):
        self.image, self.modules, self.builtin = None, {}, set()
        for name, data in debian.contents(deb):
            m = re.search(r"/([^/]+)\.ko(\.xz)?$", name)
            if re.match(r"boot/vmlinuz-", name):
                self.image = data
            elif m:
                self.modules[m[1].replace("-", "_")] = lzma.decompress(data) if m[2] else data
            elif name.endswith("/modules.builtin"):
                self.builtin = {os.path.basename(p)[:-3].replace("-", "_") for p in data.decode().split()}
        if not self.image:
            raise Failure(f"{os.path.basename(deb)}: there is no kernel in it")

    def load_order(self):
        """(name, bytes) of all that the guest loads, each behind what it depends on."""
        order = {}

        def visit(name):
            if name in order:
                return
            data = self.modules[name]
            m = re.search(rb"\0depends=([^\0]*)\0", data)
            for d in (m[1].decode("ascii", "replace").split(",") if m else ()):
                d = d.replace("-", "_")
                if d in self.modules:
                    visit(d)
            order[name] = data
        for name in REQUIRED + OPTIONAL:
            if name in self.modules:
                visit(name)
            elif name in REQUIRED and name not in self.builtin:
                raise Failure(f"the kernel has no {name}; thaw can't give it devices")
        return order.items()


def cpio(files):
    """A newc archive of (name, mode, bytes); folders have S_IFDIR in their mode."""
    out = []
    for n, (name, mode, data) in enumerate([*files, ("TRAILER!!!", 0, b"")]):
        raw = name.encode() + b"\0"
        numbers = (n + 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        head = b"070701" + b"".join(b"%08x" % x for x in numbers) + raw
        out += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]
    return b"".join(out)


def initrd(kernel, busybox):
    modules = list(kernel.load_order())
    say(f"modules: {' '.join(name for name, _ in modules)}")
    files = [(d, 0o40755, b"") for d in ("bin", "dev", "etc", "lib", "newroot", "proc", "run", "sys")]
    files += [("init", 0o100755, own("initrd-init")), ("bin/busybox", 0o100755, busybox),
              ("etc/udhcpc", 0o100755, own("udhcpc-script")),
              ("etc/modules", 0o100644, "".join(n + "\n" for n, _ in modules).encode())]
    return cpio(files + [(f"lib/{name}.ko", 0o100644, data) for name, data in modules])


def root(spool, busybox):
    tree = Tree()
    tree.folders(*FOLDERS, b"etc/acpi", b"etc/acpi/PWRF")
    tree.file(b"bin/busybox", spool, busybox, 0o755)
    tree.link(b"sbin/init", b"/bin/busybox")
    for name, data in ETC.items():
        tree.file(b"etc/" + name, spool, data)
    tree.file(b"etc/rc", spool, own("rc"), 0o755)
    tree.file(b"etc/acpi/PWRF/00000080", spool, POWER_BUTTON, 0o755)
    return tree
