# SPDX-License-Identifier: Apache-2.0
"""GET /v1/operations: what long work on snapshots has done so far. What is looked at is held up: the writer of a
snapshot by SIGSTOP, an export and an import by a slow client, the others by the one before them."""
import os
import pty
import re
import select
import signal
import socket
import subprocess
import threading

from thawlib import BIN, Daemon, children, main, need_kvm, wait_until

MIB = 1 << 20


def writer_of(pid):
    """The process that writes a snapshot of the VM with this process; None: there is none."""
    for child in children(pid):
        try:
            with open(f"/proc/{child}/comm", encoding="ascii") as f:
                if f.read() == "snapshot\n":
                    return int(child)
        except OSError:
            pass
    return None


def operations(d):
    return d.get("/v1/operations").json["operations"]


def found(d, **wanted):
    return next((o for o in operations(d) if all(o.get(k) == v for k, v in wanted.items())), None)


def big_vm(d):
    """64 MiB of 256 are not zeros."""
    d.create("vm", memory_mib=256)
    d.expect("vm", "READY\n")
    d.say("vm", "touch 16384 w 1")
    return int(d.get("/v1/vms/vm").json["pid"])


class Held:
    """A snapshot that is asked for by act(), with its writer stopped as soon as it is there."""

    def __init__(self, pid, act):
        self.writer, self.seen = None, threading.Event()
        threading.Thread(target=self.hold, args=(pid,), daemon=True).start()
        self.thread = threading.Thread(target=act)
        self.thread.start()
        assert self.seen.wait(30), "no writer was seen"

    def hold(self, pid):
        while not self.writer:
            self.writer = writer_of(pid)
        os.kill(self.writer, signal.SIGSTOP)
        self.seen.set()

    def go_on(self):
        os.kill(self.writer, signal.SIGCONT)
        self.thread.join(60)


def test_none():
    with Daemon() as d:
        assert operations(d) == []


def test_a_snapshot_that_is_written():
    need_kvm()
    with Daemon() as d:
        pid = big_vm(d)
        for kind in ("raw", "lz4"):
            replies = []

            def act(kind=kind, replies=replies):
                replies.append(d.request("POST", "/v1/snapshots", {"name": kind, "vm": "vm", "format": kind},
                                         {"X-Request-Id": "mine"}))
            held = Held(pid, act)
            o = found(d, kind="snapshot", snapshot=kind, vm="vm", request_id="mine")
            assert o and o["step"] in ("waiting", "writing") and 0 <= o["done_bytes"] <= 256 * MIB, o
            assert o["total_bytes"] == (256 * MIB if o["step"] == "writing" else 0), o
            held.go_on()
            assert replies[0].status == 201 and operations(d) == [], replies
        # One whose writer dies leaves nothing in the list.
        held = Held(pid, lambda: replies.append(d.post("/v1/snapshots", {"name": "never", "vm": "vm"})))
        assert len(operations(d)) == 1
        os.kill(held.writer, signal.SIGKILL)
        held.thread.join(60)
        assert replies[-1].status == 500 and operations(d) == [], replies[-1]


def test_steps_of_all_kinds():
    """Each kind is seen at work, and its count never goes beyond its total."""
    need_kvm()
    with Daemon() as d:
        big_vm(d)
        assert d.post("/v1/snapshots", {"name": "a", "vm": "vm", "format": "lz4"}).status == 201
        seen, failed = set(), []
        done = threading.Event()

        def look():
            while not done.is_set():
                for o in operations(d):
                    seen.add((o["kind"], o["step"]))
                    if o["total_bytes"] and o["done_bytes"] > o["total_bytes"]:
                        failed.append(o)
        looker = threading.Thread(target=look)
        looker.start()
        try:
            for i in range(20):
                threads = [threading.Thread(target=d.post, args=(f"/v1/snapshots/a/{verb}", body)) for verb, body in
                           (("flatten", {"format": "raw", "name": f"b{i}"}), ("verify", None), ("verify", None))]
                for t in threads:
                    t.start()
                for t in threads:
                    t.join(60)
                if {("flatten", "writing"), ("flatten", "checking"), ("verify", "waiting"), ("verify", "checking")} <= seen:
                    break
        finally:
            done.set()
            looker.join(60)
        assert not failed, failed[:3]
        assert {("flatten", "writing"), ("flatten", "checking"), ("verify", "waiting"), ("verify", "checking")} <= seen, seen
        assert operations(d) == []


def test_transfers():
    need_kvm()
    with Daemon() as d:
        big_vm(d)
        assert d.post("/v1/snapshots", {"name": "a", "vm": "vm"}).status == 201
        size = sum(f["data_bytes"] for f in d.get("/v1/snapshots/a").json["files"].values())
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(d.socket)
            s.sendall(b"GET /v1/snapshots/a/export HTTP/1.1\r\nHost: x\r\n\r\n")
            part = s.recv(65536)
            assert part.startswith(b"HTTP/1.1 200")
            wait_until("bytes", lambda: (o := found(d, kind="export", snapshot="a")) and o["done_bytes"] > 0)
            o = found(d, kind="export", snapshot="a")
            assert o["step"] == "writing" and o["done_bytes"] < o["total_bytes"] == size, (o, size)
        wait_until("its end", lambda: operations(d) == [])
        whole = d.get("/v1/snapshots/a/export").body
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(d.socket)
            s.sendall(b"PUT /v1/snapshots/c/import HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
                      b"Content-Length: %d\r\n\r\n" % len(whole))
            s.sendall(whole[:len(whole) // 2])
            wait_until("half of it", lambda: (o := found(d, kind="import", snapshot="c"))
                       and o["total_bytes"] == size and o["done_bytes"] > size // 3)
            assert found(d, kind="import")["done_bytes"] < size
        wait_until("its end", lambda: operations(d) == [])


def test_the_client_shows_it():
    need_kvm()
    with Daemon() as d:
        pid = big_vm(d)
        main_fd, terminal = pty.openpty()
        clients = []

        def act():
            clients.append(subprocess.Popen([os.path.join(BIN, "thaw"), "--socket", d.socket, "snapshot", "create", "vm", "s"],
                                            stdout=subprocess.DEVNULL, stderr=terminal, stdin=subprocess.DEVNULL))
            os.close(terminal)
        held = Held(pid, act)
        told = b""
        for _ in range(100):
            if select.select([main_fd], [], [], 0.2)[0]:
                told += os.read(main_fd, 4096)
            if re.search(rb"taking snapshot s: \d+ s, (waiting|writing \d+ of 256 MiB \(\d+ %\))", told):
                break
        else:
            raise AssertionError(told)
        held.go_on()
        assert clients[0].wait(60) == 0
        os.close(main_fd)


if __name__ == "__main__":
    main(globals())
