#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clones whose memory comes from a page handler (Firecracker's protocol): thaw-page-handler with
raw and compressed memory files, and handlers written here that check the protocol, refuse and die."""
import array
import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time

from test_lazy import PAGES, freeze, has_userfaultfd, need_userfaultfd, pager_pid, status_of
from thawlib import BIN, Daemon, Skip, alive, main, thaw, wait_until

HANDLER = os.path.join(BIN, "thaw-page-handler")
UFFDIO_COPY, PAGEFAULT = 0xC028AA03, 0x12
MIB = 1 << 20


def memory_file(d):
    return f"{d.state_dir}/snapshots/snap/memory"


class Handler:
    """thaw-page-handler on d's snapshot, listening at .path."""

    def __init__(self, d, name="handler", memory=None):
        self.path, self.log = os.path.join(d.folder, name), os.path.join(d.folder, name + ".log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([HANDLER, self.path, memory or memory_file(d)], stderr=log)
        wait_until("the page handler", lambda: "listens on" in self.text())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def text(self):
        with open(self.log, encoding="utf-8") as f:
            return f.read()

    def end(self, sig=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(10)

    def fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def clone(d, path, *names, **more):
    return d.post("/v1/snapshots/snap/clone", {"page_handler": path, "clones": [{"name": n} for n in names], **more})


def good_clone(d, path, *names, **more):
    r = clone(d, path, *names, **more)
    assert r.status == 201, r
    for n in names:
        d.expect(n, "RESTORED\n")


def nothing_left(d):
    assert d.get("/v1/vms").json["vms"] == [] and d.vm_processes() == [], d.vm_processes()


@contextlib.contextmanager
def listener(d, name="own", backlog=8):
    path = os.path.join(d.folder, name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.bind(path)
        s.listen(backlog)
        s.settimeout(20)
        yield s, path


def test_raw_and_compressed_memory_files():
    need_userfaultfd()
    for fmt in ("raw", "lz4"):
        with Daemon() as d:
            total = freeze(d, fmt)
            with Handler(d) as h:
                os.unlink(memory_file(d))  # the handler has it; the daemon does not look
                good_clone(d, h.path, "a", "b")
                assert has_userfaultfd(d, "a") and pager_pid(d) is None
                assert d.vm("a")["page_handler"] == h.path
                for n in ("a", "b"):
                    assert d.say(n, "load") == "OK frozen"
                    assert d.say(n, f"sum 0 {PAGES}") == total
                # Each has its own copy.
                assert d.say("a", f"touch {PAGES} w 9") == f"OK {PAGES}"
                assert d.say("b", f"sum 0 {PAGES}") == total
                assert d.post("/v1/snapshots/snap/clone").status == 422  # without a handler: no memory
                good_clone(d, h.path, "c")
                assert d.say("c", f"sum 0 {PAGES}") == total
                assert d.delete("/v1/vms/a").status == 204
                wait_until("the end of a noticed", lambda: h.text().count(": ended;") == 1)
                assert f"VM process {d.vm('b')['pid']}: connected, user {os.getuid()}," in h.text()
                assert h.end() == 0 and not os.path.exists(h.path)


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
        return [int(p) for p in f.read().split()]


def test_it_is_confined():
    need_userfaultfd()
    with Daemon() as d:
        total = freeze(d)
        for sig in (signal.SIGTERM, signal.SIGKILL):
            with Handler(d) as h:
                if "no system call filter" in h.text():
                    raise Skip("the handler is built with a sanitizer")
                good_clone(d, h.path, f"s{sig}")
                assert d.say(f"s{sig}", f"sum 0 {PAGES}") == total
                status = status_of(h.process.pid)
                assert status["Threads"] == "1" and status["Seccomp"] == "2" and status["NoNewPrivs"] == "1", status
                assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0, status
                remover, = children(h.process.pid)  # of its socket
                h.end(sig)
                wait_until("the end of its child", lambda: not alive(remover))
                assert os.path.exists(h.path) == (sig == signal.SIGKILL)


def test_the_protocol():
    """One message, every field, the VM's own process, a userfaultfd; no reply is wanted."""
    need_userfaultfd()
    with Daemon() as d, listener(d) as (s, path):
        total = freeze(d, "raw")
        got = {}

        def serve():
            con, _ = s.accept()
            with con, open(memory_file(d), "rb") as memory:
                data, fds, _, _ = socket.recv_fds(con, 65536, 4)
                got.update(data=data, fds=len(fds), pid=struct.unpack("iII", con.getsockopt(
                    socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
                got["target"] = os.readlink(f"/proc/self/fd/{fds[0]}")
                got["nonblock"] = os.get_blocking(fds[0]) is False
                with contextlib.suppress(OSError):
                    con.sendall(b"garbage that nobody reads" * 100)
                try:
                    got["more"] = con.recv(1)
                except ConnectionResetError:  # the end, with the garbage unread; nothing else
                    got["more"] = b""
                region = json.loads(data)[0]
                while not got.get("stop"):
                    try:
                        event = os.read(fds[0], 32)
                    except BlockingIOError:
                        time.sleep(0.001)
                        continue
                    if event[0] != PAGEFAULT:
                        got["other"] = event
                        continue
                    at = struct.unpack_from("<Q", event, 16)[0] & ~4095
                    page = os.pread(memory.fileno(), 4096, at - region["base_host_virt_addr"] + region["offset"])
                    source = ctypes.create_string_buffer(page, 4096)
                    fcntl.ioctl(fds[0], UFFDIO_COPY,
                                struct.pack("<QQQQq", at, ctypes.addressof(source), 4096, 0, 0))
                os.close(fds[0])

        t = threading.Thread(target=serve)
        t.start()
        good_clone(d, path, "a")
        assert d.say("a", f"sum 0 {PAGES}") == total
        pid = d.vm("a")["pid"]
        assert d.delete("/v1/vms/a").status == 204
        got["stop"] = True
        t.join(10)
        regions = json.loads(got["data"])
        assert len(regions) == 1 and regions[0].pop("base_host_virt_addr") % 4096 == 0
        assert regions[0] == {"size": 64 * MIB, "offset": 0, "page_size": 4096, "page_size_kib": 4096}, regions
        assert got["fds"] == 1 and got["target"] == "anon_inode:[userfaultfd]" and got["nonblock"], got
        assert got["pid"] == pid and got["more"] == b"" and "other" not in got, got


def test_memory_beyond_the_hole_below_4_gib():
    need_userfaultfd()
    with Daemon() as d, listener(d) as (s, path):
        d.create("src", memory_mib=4096)
        d.expect("src", "READY\n")
        assert d.post("/v1/snapshots", {"name": "snap", "vm": "src"}).status == 201
        d.delete("/v1/vms/src")
        got = []

        def relay():  # to thaw-page-handler; the message is looked at on its way
            con, _ = s.accept()
            data, fds, _, _ = socket.recv_fds(con, 65536, 4)
            got.append(json.loads(data))
            with con, socket.socket(socket.AF_UNIX) as to:
                to.connect(h.path)
                socket.send_fds(to, [data], fds)
                time.sleep(0.5)  # the handler takes this process for the VM
            os.close(fds[0])

        with Handler(d) as h:
            t = threading.Thread(target=relay)
            t.start()
            good_clone(d, path, "a")
            t.join(10)
        assert [(r["size"], r["offset"]) for r in got[0]] == [(3072 * MIB, 0), (1024 * MIB, 3072 * MIB)], got


def test_a_socket_that_is_none_or_that_nobody_serves():
    need_userfaultfd()
    with Daemon() as d:
        freeze(d)
        before = d.open_fds()
        plain, stale = os.path.join(d.folder, "plain"), os.path.join(d.folder, "stale")
        with open(plain, "w", encoding="ascii"):
            pass
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(stale)
        for path, status, code, word in ((d.folder + "/none", 422, "file_not_found", "start the page handler"),
                                         (plain, 422, "file_invalid", "not a Unix socket"),
                                         (d.folder, 422, "file_invalid", "not a Unix socket"),
                                         (stale, 422, "page_handler_failed", "nobody listens"),
                                         ("relative", 400, "invalid_value", "absolute"),
                                         ("/" + "x" * 2000, 400, "invalid_value", "page_handler")):
            r = clone(d, path, "a")
            assert (r.status, r.code) == (status, code) and word in r.message, (path, r)
            nothing_left(d)
        assert d.open_fds() <= before + 2  # nothing but a pager
        # One of two; and one with, one without.
        with Handler(d) as h:
            r = d.post("/v1/snapshots/snap/clone", {"page_handler": h.path, "clones": [
                {"name": "a"}, {"name": "b", "page_handler": stale}]})
            assert r.status == 207 and r.json["clones"][1]["error"]["code"] == "page_handler_failed", r
            r = d.post("/v1/snapshots/snap/clone", {"clones": [{"name": "c", "page_handler": h.path}, {"name": "d"}]})
            assert r.status == 201 and pager_pid(d) is not None, r
            assert "page_handler" not in d.vm("d") and d.vm("c")["page_handler"] == h.path


def test_without_userfaultfd():
    need_userfaultfd()
    with Daemon(args=["--no-userfaultfd"]) as d:
        freeze(d)
        with Handler(d) as h:
            r = clone(d, h.path, "a")
            assert (r.status, r.code) == (503, "no_userfaultfd"), r
            nothing_left(d)


def test_the_state_is_checked_as_ever():
    need_userfaultfd()
    with Daemon() as d:
        freeze(d, "raw")
        path = f"{d.state_dir}/snapshots/snap/state"
        os.chmod(path, 0o600)
        with Handler(d) as h, open(path, "r+b") as f:
            f.seek(200)
            b = f.read(1)
            f.seek(200)
            f.write(bytes([b[0] ^ 1]))
            f.flush()
            r = clone(d, h.path, "a")
            assert (r.status, r.code) == (422, "snapshot_corrupt"), r


def test_a_handler_that_dies():
    """The guest hangs; the VM can be deleted at once, and dies with the daemon."""
    need_userfaultfd()
    with Daemon() as d:
        freeze(d)
        with Handler(d) as h:
            good_clone(d, h.path, "a", "b", "c")
            h.end(signal.SIGKILL)
        assert os.path.exists(h.path)  # as after a crash; the next one replaces it
        for n in ("a", "b", "c"):
            d.put(f"/v1/vms/{n}/console", f"sum 0 {PAGES}\n")
        time.sleep(0.3)
        assert all(d.state(n) == "running" for n in ("a", "b", "c"))
        start = time.monotonic()
        assert d.delete("/v1/vms/a").status == 204
        assert time.monotonic() - start < 10
        # Newer kernels let a signal interrupt KVM where it waits for a page; else this times out.
        r = d.post("/v1/vms/b/pause")
        assert r.status == 200 or (r.status, r.code) == (504, "vm_timeout"), r
        assert d.state("b") == ("paused" if r.status == 200 else "exited")
        start = time.monotonic()
        assert d.delete("/v1/vms/b").status == 204
        assert time.monotonic() - start < 10
        with Handler(d) as h:
            good_clone(d, h.path, "e")
        pids = [int(p) for p in d.vm_processes()]
        assert len(pids) == 2
        d.stop(signal.SIGKILL)
        wait_until("their end", lambda: not any(alive(p) for p in pids))


def test_handlers_that_do_not_serve():
    """Closed at once, a full queue, or no answer ever: the clone fails and leaves nothing."""
    need_userfaultfd()
    with Daemon() as d, listener(d, "closes") as (closes, p1), listener(d, "full", 0) as (_, p2), \
            listener(d, "silent") as (_, p3):
        freeze(d)
        answers = {}
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                s = stack.enter_context(socket.socket(socket.AF_UNIX))
                s.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    s.connect(p2)
            threads = [threading.Thread(target=lambda p=p, n=n: answers.update({p: clone(d, p, n)}))
                       for p, n in ((p1, "closes"), (p2, "full"), (p3, "silent"))]
            for t in threads:
                t.start()
            closes.accept()[0].close()
            for t in threads:
                t.join(45)
        assert (answers[p2].status, answers[p2].code) == (422, "page_handler_failed"), answers
        assert (answers[p3].status, answers[p3].code) == (504, "vm_timeout"), answers
        assert answers[p1].code in ("page_handler_failed", "vm_timeout"), answers
        nothing_left(d)
        assert d.leftovers() == []


def test_a_snapshot_has_all_of_the_memory():
    need_userfaultfd()
    with Daemon() as d:
        total = freeze(d)
        with Handler(d) as h:
            good_clone(d, h.path, "a")
            for fmt in ("raw", "lz4"):
                r = d.post("/v1/snapshots", {"name": fmt, "vm": "a", "format": fmt})
                assert r.status == 201, r
            assert d.say("a", f"sum 0 {PAGES}") == total
        for fmt in ("raw", "lz4"):
            r = d.post(f"/v1/snapshots/{fmt}/clone", {"clones": [{"name": f"of-{fmt}"}]})
            assert r.status == 201, r
            d.expect(f"of-{fmt}", "RESTORED\n")
            assert d.say(f"of-{fmt}", "load") == "OK frozen"
            assert d.say(f"of-{fmt}", f"sum 0 {PAGES}") == total


def test_pools_and_forks():
    """A clone with a handler is none of the pool's; a fork has the VM's memory, and all of it."""
    need_userfaultfd()
    with Daemon() as d:
        total = freeze(d)
        assert d.post("/v1/snapshots/snap/prepare", {"pool": {"size": 1}, "wait": True}).status == 200
        with Handler(d) as h:
            r = clone(d, h.path, "a")
            assert r.status == 201 and r.json["clones"][0]["prepared"] is False, r
            d.expect("a", "RESTORED\n")
            r = d.post("/v1/vms/a/clone", {"page_handler": h.path})
            assert (r.status, r.code) == (400, "invalid_value") and "fork" in r.message, r
            r = d.post("/v1/vms/a/clone", {"clones": [{"name": "f"}]})
            assert r.status == 201, r
        d.expect("f", "RESTORED\n")  # without the handler
        assert d.say("f", f"sum 0 {PAGES}") == total and "page_handler" not in d.vm("f")
        assert d.say("a", f"sum 0 {PAGES}") == total


def userfaultfd():
    fd = ctypes.CDLL(None).syscall(323, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise Skip("userfaultfd(2) is not allowed here")
    return fd


def test_hostile_messages():
    need_userfaultfd()
    with Daemon() as d:
        total = freeze(d)
        region = {"base_host_virt_addr": 1 << 40, "size": MIB, "offset": 0, "page_size": 4096, "page_size_kib": 4096}
        uffd, null = userfaultfd(), os.open("/dev/null", os.O_RDONLY)

        def with_(**more):
            return json.dumps([{**region, **more}]).encode()

        good = with_()
        cases = ((b"", [], "sent nothing"), (good, [], "no descriptors"), (good, [uffd, uffd], "several"),
                 (good, [uffd] * 10, "several"), (good, [null], "not a userfaultfd"),
                 (b"[", [uffd], "bad message"), (b"{}", [uffd], "not an array"), (b"[]", [uffd], "not an array"),
                 (b"[1]", [uffd], "lacks"), (b"\xff\x00" * 900, [uffd], "bad message"),
                 (b"[" * 9000, [uffd], "bad message"), (good + b" " * 20000, [uffd], "bad message"),
                 (json.dumps([region] * 17).encode(), [uffd], "not an array of 1 to 16"),
                 (json.dumps([region] * 2).encode(), [uffd], "overlap"),
                 (with_(size=-1), [uffd], "lacks"), (with_(size="x"), [uffd], "lacks"),
                 (with_(size=1 << 62), [uffd], "beyond"), (with_(offset=64 * MIB), [uffd], "beyond"),
                 (with_(base_host_virt_addr=1 << 64), [uffd], "bad message"),
                 (with_(base_host_virt_addr=4097), [uffd], "whole pages"),
                 (with_(page_size=2 * MIB), [uffd], "only this host's, of 4096"))
        with Handler(d) as h:
            before = h.fds()
            quiet = socket.socket(socket.AF_UNIX)
            quiet.connect(h.path)  # says nothing, and is no trouble
            for data, fds, word in cases:
                mark = len(h.text())
                with socket.socket(socket.AF_UNIX) as s:
                    s.connect(h.path)
                    if data:
                        s.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
                wait_until(f"{word}: refused", lambda: ": refused;" in h.text()[mark:])
                assert word in h.text()[mark:], (word, h.text()[mark:])
            quiet.close()
            wait_until("all closed", lambda: h.fds() <= before)
            good_clone(d, h.path, "a")
            assert d.say("a", f"sum 0 {PAGES}") == total
        os.close(uffd)
        os.close(null)


def test_the_command_lines():
    need_userfaultfd()
    with Daemon() as d:
        total = freeze(d)
        with Handler(d) as h:
            r = thaw(d, "clone", "snap", "--name", "x", "--page-handler", os.path.relpath(h.path))
            assert r.returncode == 0, r
            d.expect("x", "RESTORED\n")
            assert d.say("x", f"sum 0 {PAGES}") == total
            r = subprocess.run([HANDLER, h.path, memory_file(d)], capture_output=True, text=True, timeout=10, check=False)
            assert r.returncode == 1 and "listens there" in r.stderr, r
        assert not os.path.exists(h.path)
        for args, status, word in (((), 2, "usage"), (("--help",), 0, "usage"), (("--version",), 0, "thaw-page-handler"),
                                   ((h.path, "/none"), 1, "No such file"), ((h.path, HANDLER), 1, "memory file")):
            r = subprocess.run([HANDLER, *args], capture_output=True, text=True, timeout=10, check=False)
            assert r.returncode == status and word in r.stdout + r.stderr, (args, r)


if __name__ == "__main__":
    main(globals())
