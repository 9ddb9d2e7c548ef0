#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""thaw-snapshot-editor, on files as Firecracker's API leaves them."""
import gzip
import mmap
import os
import subprocess
import tempfile

from thawlib import BIN, ROOT, main

PAGE, PAGES = 4096, 600
GOLDEN = os.path.join(ROOT, "tests/golden/firecracker-1.0/snapshot.gz")


def editor(*args, status=0):
    r = subprocess.run([os.path.join(BIN, "thaw-snapshot-editor"), *args], capture_output=True, text=True, timeout=60,
                       check=False)
    assert r.returncode == status, (args, r)
    return r.stderr if status else r.stdout


def sparse(path, pages):
    with open(path, "wb") as f:
        f.truncate(PAGE * PAGES)
        for i, byte in pages.items():
            f.seek(i * PAGE)
            f.write(bytes([byte]) * PAGE)


def test_rebase():
    with tempfile.TemporaryDirectory() as d:
        memory, diff = os.path.join(d, "memory"), os.path.join(d, "diff")
        old = {i: 1 for i in range(0, PAGES, 3)}
        new = {i: 0 if i % 2 else 2 for i in range(0, PAGES, 5)}
        sparse(memory, old)
        sparse(diff, new)
        with open(memory, "rb") as f, mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as vm:
            editor("edit-memory", "rebase", "--diff-path", diff, "--memory-path", memory)
            assert all(vm[i * PAGE] == old.get(i, 0) for i in range(PAGES))
        with open(memory, "rb") as f:
            content = f.read()
        merged = {**old, **new}
        assert content == b"".join(bytes([merged.get(i, 0)]) * PAGE for i in range(PAGES))
        assert sorted(os.listdir(d)) == ["diff", "memory"]
        os.truncate(diff, PAGE)
        said = editor("edit-memory", "rebase", "--memory-path", memory, "--diff-path", diff, status=1)
        assert "no memory file of 4096 bytes" in said, said


def test_info():
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "vmstate")
        with gzip.open(GOLDEN) as f, open(path, "wb") as out:
            out.write(f.read())
        assert editor("info-vmstate", "version", "--vmstate-path", path) == "v1.0.0\n"
        lines = editor("info-vmstate", "vm-state", "--vmstate-path", path).splitlines()
        assert lines[0] == "v1.0.0" and "vm: golden, 2 vCPUs, 4 MiB of memory" in lines, lines
        with open(path, "r+b") as f:
            f.seek(500)
            byte = f.read(1)[0]
            f.seek(500)
            f.write(bytes([byte ^ 4]))
        said = editor("info-vmstate", "version", "--vmstate-path", path, status=1)
        assert "checksum wrong" in said and path in said, said
        assert "No such file" in editor("info-vmstate", "version", "--vmstate-path", path + "x", status=1)


def test_usage():
    assert editor("--help").startswith("usage: ")
    assert editor("--version").startswith("thaw-snapshot-editor ")
    for args in ((), ("edit-memory",), ("edit-memory", "rebase", "--memory-path", "a", "--memory-path", "b"),
                 ("edit-memory", "rebase", "--memory-path", "a"), ("info-vmstate", "vcpus", "--vmstate-path", "a"),
                 ("info-vmstate", "version", "--path", "a")):
        assert editor(*args, status=2).startswith("usage: "), args


if __name__ == "__main__":
    main(globals())
