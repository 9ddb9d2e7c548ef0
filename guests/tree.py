# SPDX-License-Identifier: Apache-2.0
"""A file tree in memory: what goes into an image, from a folder or a tar archive.

A tar is hostile. Its names never become names of this host: contents go to files that are numbered, all else
stays in memory until debugfs (ext4.py) writes it into the image. So there is nothing that a name or a link
could escape to; what can't be meant ("..", a file below a link) is refused all the same."""
import bz2
import errno
import gzip
import lzma
import os
import stat
import tarfile
import zlib

from util import Failure

MAX_NODES = 1 << 20
MAX_PATH = 3900  # two of them are a line for debugfs
MAX_CONTENT = 64 << 30  # unless --size says more: where a few bytes unpack to ever more, it ends here
MAX_TIME = (1 << 31) - 1
MAX_ID = (1 << 32) - 2
MAX_REST = 64 << 20  # tar pads to 10 KiB
PIECE = 1 << 20
ZEROS = bytes(PIECE)


class Node:
    """kind: one of the S_IF constants. source: whose bytes a file has, a path or a number below the spool."""
    __slots__ = ("kind", "mode", "uid", "gid", "mtime", "children", "source", "used", "target", "rdev", "xattrs")

    def __init__(self, kind, mode, uid=0, gid=0, mtime=0, **more):
        self.kind, self.mode, self.uid, self.gid, self.mtime = kind, mode, uid, gid, mtime
        self.children, self.source, self.used, self.target, self.rdev = {}, b"", 0, b"", (0, 0)
        self.xattrs = {}
        for name, value in more.items():
            setattr(self, name, value)


def show(path):
    return path.decode("utf-8", "backslashreplace")


class Tree:
    def __init__(self):
        self.root = Node(stat.S_IFDIR, 0o755)
        self.nodes = 1

    def parts(self, path):
        if len(path) > MAX_PATH:
            raise Failure(f'the name "{show(path)[:100]}..." is longer than {MAX_PATH} bytes; such an image is not '
                          "made")
        parts = [p for p in path.split(b"/") if p not in (b"", b".")]
        for p in parts:
            if p == b".." or len(p) > 255 or b"\n" in p or b"\r" in p or b"\0" in p:
                why = "leads out of the image" if p == b".." else "is longer than 255 bytes" if len(p) > 255 else \
                    "has a line break or a NUL"
                raise Failure(f'the name "{show(path)[:200]}" {why}; such an image is not made')
        return parts

    def get(self, path):
        """What is at the path, links not followed; or None."""
        node = self.root
        for p in self.parts(path):
            node = node.children.get(p) if node else None
        return node

    def resolve(self, path):
        """The path with links followed as the guest would, all but the last part's; None: too many of them."""
        left, done, links = self.parts(path), [], 0
        while len(left) > 1:
            p = left.pop(0)
            if p == b"..":
                done = done[:-1]
                continue
            node = self.get(b"/".join(done + [p]))
            if node is None or node.kind != stat.S_IFLNK:
                done.append(p)
                continue
            links += 1
            if links > 40:
                return None
            if node.target.startswith(b"/"):
                done = []
            left = [x for x in node.target.split(b"/") if x not in (b"", b".")] + left
        return b"/".join(done + left)

    def has(self, path):
        at = self.resolve(path)
        return at is not None and self.get(at) is not None

    def add(self, path, node):
        """A later entry replaces an earlier one, as with tar; a folder stays what it is."""
        parts = self.parts(path)
        at = self.root
        for p in parts[:-1]:
            if p not in at.children:
                at.children[p] = Node(stat.S_IFDIR, 0o755)
                self.nodes += 1
            at = at.children[p]
            if at.kind != stat.S_IFDIR:
                raise Failure(f'"{show(path)}" lies below "{show(p)}", which is no folder')
        old = at.children.get(parts[-1]) if parts else self.root
        if old and old.kind == stat.S_IFDIR:
            if node.kind != stat.S_IFDIR:
                raise Failure(f'"{show(path)}" is a folder and then something else')
            node.children = old.children
        if parts:
            at.children[parts[-1]] = node
        else:
            self.root = node
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise Failure(f"more than {MAX_NODES} files; such an image is not made")

    def file(self, path, spool, data, mode=0o644, mtime=0):
        self.add(path, spool.keep(Node(stat.S_IFREG, mode, mtime=mtime), [data]))

    def folders(self, *paths):
        for p in paths:
            self.add(p, Node(stat.S_IFDIR, 0o1777 if p == b"tmp" else 0o755))

    def link(self, path, target):
        self.add(path, Node(stat.S_IFLNK, 0o777, target=target))


class Spool:
    """Contents, in files whose names are numbers."""

    def __init__(self, folder):
        self.folder, self.n = folder, 0

    def keep(self, node, pieces):
        self.n += 1
        node.source = b"%d" % self.n
        with open(os.path.join(os.fsencode(self.folder), node.source), "wb") as f:
            for piece in pieces:
                if piece == ZEROS[:len(piece)]:
                    f.seek(len(piece), os.SEEK_CUR)  # a hole
                else:
                    f.write(piece)
            f.truncate()
            f.flush()
            node.used = os.fstat(f.fileno()).st_blocks * 512
        return node


def wanted_xattr(name):
    return name == "security.capability" or name.startswith("user.")


class Header(tarfile.TarInfo):
    """tarfile takes garbage, or a file that just ends, for the end of the archive."""
    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as e:
            raise Failure("it is no tar archive" if not archive.offset else
                          f"the tar archive is damaged or cut off: {e}") from e


def node_of(m):
    """What a member is, but for its content. mtime is text of the archive's, and may be no number."""
    kinds = ((m.isdir, stat.S_IFDIR), (m.issym, stat.S_IFLNK), (m.ischr, stat.S_IFCHR), (m.isblk, stat.S_IFBLK),
             (m.isfifo, stat.S_IFIFO), (m.isreg, stat.S_IFREG))
    kind = next((k for test, k in kinds if test()), None)
    if kind is None:
        raise Failure(f'"{m.name}": an entry of type {m.type!r}, which an image can\'t have')
    if not (0 <= m.uid <= MAX_ID and 0 <= m.gid <= MAX_ID and 0 <= m.devmajor < 4096 and 0 <= m.devminor < 1 << 16):
        raise Failure(f'"{m.name}": its owner or device number is out of range')
    try:
        mtime = min(max(int(m.mtime), 0), MAX_TIME)
    except (ValueError, OverflowError):
        mtime = 0
    node = Node(kind, m.mode & 0o7777, m.uid, m.gid, mtime, rdev=(m.devmajor, m.devminor))
    node.target = m.linkname.encode("utf-8", "surrogateescape") if m.issym() else b""
    for key, value in m.pax_headers.items():
        name = key[len("SCHILY.xattr."):]
        if key.startswith("SCHILY.xattr.") and wanted_xattr(name):
            node.xattrs[name] = value.encode("utf-8", "surrogateescape")
    return node


def unpacked(stream):
    """A buffered stream of what is in it. tarfile would do the same and not check gzip's sums."""
    magic = stream.peek(6)
    for start, module in ((b"\x1f\x8b", gzip), (b"\xfd7zXZ\0", lzma), (b"BZh", bz2)):
        if magic.startswith(start):
            return module.open(stream)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        raise Failure("it is packed by zstd; unpack it first: zstd -dc FILE | thaw guest build - IMAGE")
    return stream


def from_tar(stream, spool, limit):
    try:
        return read_tar(unpacked(stream), spool, limit)
    except (tarfile.TarError, EOFError, OSError, ValueError, ArithmeticError, lzma.LZMAError, zlib.error) as e:
        raise Failure(f"can't read the tar archive: {e}") from e
    except MemoryError:
        pass  # here what it held is free again
    raise Failure("the tar archive's headers need more memory than any good archive's")


def read_tar(stream, spool, limit):
    tree, total = Tree(), 0
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=Header, encoding="utf-8",
                      errors="surrogateescape") as t:
        for m in t:
            name = m.name.encode("utf-8", "surrogateescape")
            if m.islnk():
                node = tree.get(m.linkname.encode("utf-8", "surrogateescape"))
                if node is None or node.kind in (stat.S_IFDIR, stat.S_IFLNK):
                    raise Failure(f'"{m.name}" is a hard link to "{m.linkname}", which is no file before it')
            else:
                node = node_of(m)
                if node.kind == stat.S_IFREG:
                    total += m.size
                    if m.size < 0 or total > limit:
                        raise Failure(f"its files have more than {limit} bytes; give --size for a larger image")
                    f = t.extractfile(m)
                    spool.keep(node, iter(lambda: f.read(PIECE), b""))
            tree.add(name, node)
    rest = 0  # the unpacker's check is at the very end
    while piece := stream.read(PIECE):
        rest += len(piece)
        if rest > MAX_REST:
            raise Failure("the tar archive goes on behind its end; what is that?")
    if tree.get(b"manifest.json") and not tree.get(b"etc") and not tree.get(b"bin"):
        raise Failure("that is an image of layers (docker save); use docker export, of a container made of it")
    return tree


def attributes_of(path):
    try:
        return {a: os.getxattr(path, a) for a in os.listxattr(path) if wanted_xattr(a)}
    except OSError as e:
        if e.errno == errno.ENOTSUP:
            return {}
        raise


def from_dir(top):
    """What is on other file systems is left out (/proc, for one), and sockets; owners are as they are there."""
    tree, seen = Tree(), {}
    top = os.path.abspath(os.fsencode(top))
    todo = [(top, b"")]
    try:
        device = os.lstat(top).st_dev
        while todo:
            path, name = todo.pop()
            st = os.lstat(path)
            kind, key = stat.S_IFMT(st.st_mode), (st.st_dev, st.st_ino)
            if kind == stat.S_IFSOCK:
                continue
            if kind != stat.S_IFDIR and key in seen:
                tree.add(name, seen[key])
                continue
            node = Node(kind, stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, min(max(int(st.st_mtime), 0), MAX_TIME),
                        rdev=(os.major(st.st_rdev), os.minor(st.st_rdev)))
            if kind == stat.S_IFLNK:
                node.target = os.readlink(path)
            elif kind == stat.S_IFREG:
                os.close(os.open(path, os.O_RDONLY))  # debugfs says less of why
                node.source, node.used = path, min(st.st_blocks * 512, st.st_size)
            if kind in (stat.S_IFREG, stat.S_IFDIR):
                node.xattrs = attributes_of(path)
            seen[key] = node
            tree.add(name, node)
            if kind == stat.S_IFDIR and st.st_dev == device:
                todo += [(path + b"/" + e, name + b"/" + e) for e in sorted(os.listdir(path), reverse=True)]
    except OSError as e:
        name = show(os.fsencode(e.filename or top))
        raise Failure(f"{name}: {e.strerror}; all of the folder must be readable") from e
    return tree
