# SPDX-License-Identifier: Apache-2.0
"""thaw guest: what `thaw guest fetch` and `thaw guest build` run. Both make something new, whole or not at all.

Exit status: 0, 1 with a sentence on standard error, or 128 + a signal's number."""
import argparse
import json
import os
import resource
import shlex
import stat
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import boot  # noqa: E402
import debian  # noqa: E402
import ext4  # noqa: E402
import tree as trees  # noqa: E402
from util import Failure, ends_on_signals, say, show_bytes, size_bytes, sync, workplace  # noqa: E402

SUITES = ("bookworm", "trixie")
ARCHS = ("amd64",)
MIRROR = "http://deb.debian.org/debian"  # what it says is checked; how it comes does not matter
ROOT_SIZE = 1 << 30  # sparse
MAX_MEMORY = 2 << 30  # of this process: what a hostile archive makes it take


def one_of(option, value, known):
    if value not in known:
        raise Failure(f'--{option}: "{value}" is none of {", ".join(known)}')


def fetch(a):
    one_of("suite", a.suite, SUITES)
    one_of("arch", a.arch, ARCHS)
    folder = os.path.abspath(a.dir or f"guest-{a.suite}")
    if os.path.lexists(folder):
        raise Failure(f"{folder} is there already; remove it, or give another --dir")
    with workplace(folder) as work:
        made, spool = os.path.join(work, "guest"), trees.Spool(os.path.join(work, "spool"))
        os.mkdir(made, 0o755)
        os.mkdir(spool.folder)
        archive = debian.Archive(a.mirror or os.environ.get("THAW_MIRROR") or MIRROR, a.suite, a.arch, a.keyring, work)
        meta = archive.package(f"linux-image-cloud-{a.arch}")
        names = [d.split()[0] for d in meta.get("Depends", "").split(",") if d.strip().startswith("linux-image-")]
        if not names:
            raise Failure(f"linux-image-cloud-{a.arch} of {a.suite} names no kernel")
        kernel = boot.Kernel(archive.fetch(names[0]))
        busybox = next((data for name, data in debian.contents(archive.fetch("busybox-static"))
                        if name in ("bin/busybox", "usr/bin/busybox")), None)
        if not busybox:
            raise Failure("busybox-static: there is no busybox in it")
        for name, data in (("vmlinuz", kernel.image), ("initrd", boot.initrd(kernel, busybox))):
            with open(os.path.join(made, name), "xb") as f:
                f.write(data)
        ext4.make(os.path.join(made, "rootfs.ext4"), boot.root(spool, busybox), spool, ROOT_SIZE)
        for name in os.listdir(made):
            sync(os.path.join(made, name))
        os.rename(made, folder)
    paths = {k: os.path.join(folder, v) for k, v in (("kernel", "vmlinuz"), ("initrd", "initrd"),
                                                     ("rootfs", "rootfs.ext4"))}
    command = " ".join(["thaw run", *(f"--{k} {shlex.quote(v)}" for k, v in paths.items())])
    if a.json:
        print(json.dumps({**paths, "command": command}, indent=2))
    else:
        say("to boot it (Ctrl-] ends it; with a network: --net id=eth0,user):")
        print(command)


def add_init(tree, spool, path):
    try:
        with open(path, "rb") as f:
            data = f.read()
    except OSError as e:
        raise Failure(f"--init {path}: {e.strerror}") from e
    at = tree.resolve(b"sbin/init")
    if at is None:
        raise Failure("its /sbin is a circle of links")
    old = tree.get(at)
    if old and old.kind == stat.S_IFDIR:
        raise Failure("its /sbin/init is a folder")
    tree.file(at, spool, data, 0o755, int(os.stat(path).st_mtime))


def read_source(source, spool, size, image):
    limit = size or trees.MAX_CONTENT
    if source == "-":
        return trees.from_tar(sys.stdin.buffer, spool, limit)
    if os.path.isdir(source):
        if (os.path.realpath(image) + "/").startswith(os.path.realpath(source).rstrip("/") + "/"):
            raise Failure(f"{image} is inside {source}, which it is made of")
        return trees.from_dir(source)
    try:
        with open(source, "rb") as f:
            return trees.from_tar(f, spool, limit)
    except OSError as e:
        raise Failure(f"{source}: {e.strerror}") from e


def build(a):
    size = size_bytes(a.size) if a.size else None
    if os.path.lexists(a.image):
        raise Failure(f"{a.image} is there already; remove it, or give another name")
    with workplace(a.image) as work:
        spool = trees.Spool(os.path.join(work, "spool"))
        os.mkdir(spool.folder)
        tree = read_source(a.source, spool, size, a.image)
        if not tree.root.children:
            raise Failure(f"{a.source} is empty")
        if a.init:
            add_init(tree, spool, a.init)
        if not any(tree.has(p) for p in (b"sbin/init", b"etc/init", b"bin/init", b"bin/sh")):
            say("note: it has neither /sbin/init nor /bin/sh; give --init FILE, or boot it with init=PROGRAM in "
                "--cmdline")
        made = os.path.join(work, "image")
        size = ext4.make(made, tree, spool, size)
        sync(made)
        try:
            os.link(made, a.image)  # not over one that somebody else has made meanwhile
        except OSError as e:
            raise Failure(f"{a.image}: {e.strerror}") from e
    if a.json:
        print(json.dumps({"image": os.path.abspath(a.image), "size_bytes": size}, indent=2))
    else:
        print(f"{a.image}: {show_bytes(size)}, of which {show_bytes(os.stat(a.image).st_blocks * 512)} are in use")


def arguments():
    p = argparse.ArgumentParser(prog="thaw guest", allow_abbrev=False)
    verbs = p.add_subparsers(dest="verb", required=True)
    f = verbs.add_parser("fetch")
    f.add_argument("--suite", default="trixie")
    f.add_argument("--arch", default="amd64")
    for option in ("--dir", "--mirror", "--keyring"):
        f.add_argument(option)
    b = verbs.add_parser("build")
    b.add_argument("source")
    b.add_argument("image")
    b.add_argument("--size")
    b.add_argument("--init")
    for v in (f, b):
        v.add_argument("--json", action="store_true")
    return p.parse_args()


def main():
    a = arguments()
    ends_on_signals()
    os.umask(0o022)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = MAX_MEMORY if hard == resource.RLIM_INFINITY else min(MAX_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        (fetch if a.verb == "fetch" else build)(a)
    except Failure as e:
        sys.exit(f"thaw: {e}")
    except MemoryError:
        sys.exit(f"thaw: it needs more than {show_bytes(most)} of memory")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as e:  # of the file system that the result goes to
        sys.exit(f"thaw: {e.filename or 'writing'}: {e.strerror}")


if __name__ == "__main__":
    main()
