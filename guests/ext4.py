# SPDX-License-Identifier: Apache-2.0
"""An ext4 image of a Tree, without root: mke2fs makes it empty, debugfs fills it, e2fsck has the last word.

Why debugfs: it is part of e2fsprogs, gives any owner, mode, device and attribute to anybody, and takes each name as
text, so none is ever looked up on this host. mke2fs -d takes owners from a folder, which needs root or fakeroot;
from a tar archive only from 1.47.1 on, where it was built with libarchive."""
import os
import stat

from tree import show
from util import Failure, need, run, show_bytes

BLOCK = 4096
MAX_LINE = 8000  # debugfs reads lines of 8191
LETTERS = {stat.S_IFCHR: b"c", stat.S_IFBLK: b"b"}


def quoted(name):
    return b'"' + name.replace(b'"', b'""') + b'"'


class Script:
    """debugfs commands. Those that make something go by name in the current folder, all others by full path."""

    def __init__(self, spool):
        self.lines, self.spool, self.used, self.inodes = [], spool, 0, 0
        self.links = {}  # of nodes that were written: [path, number]

    def line(self, *words):
        text = b" ".join(words)
        if len(text) > MAX_LINE:
            raise Failure(f"a path or link is too long: {show(text)[:100]}...")
        self.lines.append(text)

    def attributes(self, path, node):
        p = quoted(path)
        if node.kind != stat.S_IFLNK:
            self.line(b"sif", p, b"mode", b"0%o" % (node.kind | node.mode))
        for field, value in ((b"uid", node.uid), (b"gid", node.gid)):
            if value:
                self.line(b"sif", p, field, b"%d" % value)
        self.line(b"sif", p, b"mtime", b"@%d" % node.mtime)
        for name, value in sorted(node.xattrs.items()):
            if "\n" in name or "\r" in name:
                raise Failure(f"{show(path)}: an attribute's name has a line break")
            self.spool.n += 1
            with open(os.path.join(self.spool.folder, str(self.spool.n)), "wb") as f:
                f.write(value)
            self.line(b"ea_set", b"-f", b"%d" % self.spool.n, p, quoted(os.fsencode(name)))

    def make(self, path, name, node):
        self.inodes += 1
        n = quoted(name)
        if node.kind == stat.S_IFDIR:
            self.line(b"mkdir", n)
        elif node.kind == stat.S_IFREG:
            if b"\n" in node.source or b"\r" in node.source:
                raise Failure(f"{show(node.source)}: a path with a line break can't be read")
            self.line(b"write", quoted(node.source), n)
            self.used += -(-node.used // BLOCK)
        elif node.kind == stat.S_IFLNK:
            if not node.target or len(node.target) >= BLOCK or b"\n" in node.target or b"\r" in node.target:
                raise Failure(f"{show(path)}: a link to nothing, or to a name that is too long or has a line break")
            self.line(b"symlink", n, quoted(node.target))
            self.used += len(node.target) >= 60
        elif node.kind in LETTERS:
            self.line(b"mknod", n, LETTERS[node.kind], b"%d" % node.rdev[0], b"%d" % node.rdev[1])
        else:
            self.line(b"mknod", n, b"p")
        self.attributes(path, node)

    def folder(self, path, node):
        """What is in it, then, one after the other, the folders below: any depth."""
        todo = [(path, node)]
        while todo:
            path, node = todo.pop()
            self.used += 1 + sum(8 + (len(name) + 3) // 4 * 4 for name in node.children) // (BLOCK // 2)
            self.line(b"cd", quoted(path or b"/"))
            hard = []
            for name, child in sorted(node.children.items()):
                where = path + b"/" + name
                if id(child) in self.links:
                    hard.append((where, child))
                    continue
                self.make(where, name, child)
                if child.kind == stat.S_IFDIR:
                    todo.append((where, child))
                else:
                    self.links[id(child)] = [where, 1]
            # ln takes a name only where there is room for it.
            for _ in range(-(-sum(12 + len(where) - len(path) for where, _ in hard) // (BLOCK // 2))):
                self.line(b"expand_dir", quoted(path or b"/"))
            for where, child in hard:
                first = self.links[id(child)]
                first[1] += 1
                self.line(b"ln", quoted(first[0]), quoted(where))
        for path, n in self.links.values():
            if n > 1:
                self.line(b"sif", quoted(path), b"links_count", b"%d" % n)


def tool(args, what, **more):
    r = run(args, **more)
    if r.returncode:
        raise Failure(f"{what} failed: " + (r.stderr or r.stdout).decode("utf-8", "replace").strip()[-2000:])
    return r


def make(image, tree, spool, size):
    """Writes the new file `image`; size None: as large as it has to be, and room. Returns its size."""
    mke2fs, debugfs, e2fsck = (need(p, "e2fsprogs") for p in ("mke2fs", "debugfs", "e2fsck"))
    script = Script(spool)
    script.folder(b"", tree.root)
    script.attributes(b"/", tree.root)
    inodes = script.inodes + script.inodes // 4 + 4096
    content = script.used * BLOCK
    if size is None:  # inode tables, a journal of up to 64 MiB; a quarter and 64 MiB more for what the guest writes
        size = content + content // 4 + inodes * 256 + (128 << 20)
    size = size // BLOCK * BLOCK
    if content + inodes * 256 > size:
        raise Failure(f"it takes {show_bytes(content + inodes * 256)} and does not fit into --size")
    with open(image, "xb") as f:
        f.truncate(size)
    # The file is all zeros: nothing has to be overwritten with them.
    tool([mke2fs, "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-m", "0", "-N", str(max(inodes, size >> 14)), "-E",
          "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard", image], "mke2fs")
    name = os.path.join(spool.folder, "script")
    with open(name, "wb") as f:
        f.write(b"\n".join(script.lines) + b"\n")
    r = tool([debugfs, "-w", "-f", name, os.path.abspath(image)], "debugfs", cwd=spool.folder)
    # It goes on after an error and ends with 0; without one it says nothing here but its version.
    said = [line for line in r.stderr.decode("utf-8", "replace").splitlines()
            if line.strip() and not line.startswith("debugfs ")]
    if any("allocate block" in line or "No free" in line for line in said):
        raise Failure(f"it does not fit into {show_bytes(size)}; give a larger --size")
    if said:
        raise Failure("debugfs: " + "; ".join(said[:5]))
    tool([e2fsck, "-f", "-n", image], "e2fsck, the check of the new image,")
    return size
