#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""GET /v1/events: what is told, in which order, to how many, and what happens to those who
do not listen."""
import json
import os
import select
import signal
import socket
import time

from thawlib import SANITIZED, Daemon, UnixConnection, main, need_kvm, thaw, wait_until
from test_lazy import need_userfaultfd, pager_pid


class Stream:
    """A client of the events; read() gives what came until `done` says enough."""

    def __init__(self, d, query=""):
        self.con = UnixConnection(d.socket)
        self.con.request("GET", "/v1/events" + query)
        self.answer = self.con.getresponse()
        assert self.answer.status == 200, self.answer.read()
        assert self.answer.getheader("Content-Type") == "application/x-ndjson"

    def read(self, done, limit=5000):
        out = []
        while not out or not done(out):
            line = self.answer.readline()
            assert line, ("the stream has ended", out[-3:])
            out.append(json.loads(line))
            assert len(out) < limit, "never done"
        return out

    def until(self, kind):
        return self.read(lambda out: out[-1]["type"] == kind)

    def rest(self):
        """To an orderly end."""
        return [json.loads(line) for line in self.answer.read().splitlines()]

    def close(self):
        self.answer.close()
        self.con.close()


def kept(d, query=""):
    return Stream(d, "?follow=false&since=0" + query).rest()


def types(events):
    return [e["type"] for e in events]


def test_the_life_of_a_vm_is_told():
    need_kvm()
    with Daemon() as d:
        s = Stream(d)
        v = d.create("a", start=False)
        d.post("/v1/vms/a/start")
        d.post("/v1/vms/a/pause")
        d.post("/v1/vms/a/resume")
        d.post("/v1/snapshots", {"name": "s", "vm": "a"})
        d.post("/v1/snapshots/s/clone", {"clones": [{"name": "b"}]})
        d.expect("b", "RESTORED\n")
        d.put("/v1/vms/b/console", "exit\n")
        d.wait_state("b", "exited")
        d.delete("/v1/vms/b")
        d.delete("/v1/vms/a")
        d.delete("/v1/snapshots/s")
        out = s.until("snapshot.deleted")
        assert types(out) == [
            "vm.created", "vm.running", "vm.paused", "vm.running", "snapshot.created", "vm.created", "vm.running",
            "vm.exited", "vm.deleted", "vm.exited", "vm.deleted", "snapshot.deleted"], out
        assert [e["seq"] for e in out] == list(range(out[0]["seq"], out[0]["seq"] + len(out))), out
        assert all(a["time"] <= b["time"] for a, b in zip(out, out[1:])), out
        assert out[0]["vm"] == "a" and out[0]["vm_id"] == v["id"] and "snapshot" not in out[0]
        assert (out[4]["vm"], out[4]["snapshot"]) == ("a", "s")
        assert (out[5]["vm"], out[5]["snapshot"]) == ("b", "s") and out[5]["snapshot_id"] == out[4]["snapshot_id"]
        assert (out[7]["vm"], out[7]["reason"]) == ("b", "shutdown") == (out[8]["vm"], out[8]["reason"])
        assert (out[9]["vm"], out[9]["reason"]) == ("a", "killed"), out[9]
        assert out[11]["snapshot"] == "s"


def test_what_failed_to_start_is_not_told():
    need_kvm()
    with Daemon() as d:
        r = d.post("/v1/vms", {"name": "x", "kernel": "/etc/passwd"})
        assert r.status == 422, r
        assert types(kept(d)) == ["daemon.started"]


def test_replay_and_filter():
    need_kvm()
    with Daemon() as d:
        d.create("a")
        d.post("/v1/vms/a/pause")
        d.delete("/v1/vms/a")
        out = kept(d)
        assert types(out) == ["daemon.started", "vm.created", "vm.running", "vm.paused", "vm.exited", "vm.deleted"]
        for i, e in enumerate(out):
            assert Stream(d, f"?follow=false&since={e['seq']}").rest() == out[i + 1:]
        assert types(kept(d, "&types=vm.paused,daemon")) == ["daemon.started", "vm.paused"]
        assert types(kept(d, "&types=vm")) == types(out)[1:]
        assert kept(d, "&types=pool,snapshot") == []
        # And goes on with what comes.
        s = Stream(d, f"?since={out[-2]['seq']}&types=vm.deleted,vm.created")
        d.create("b")
        assert [(e["type"], e["vm"]) for e in s.until("vm.created")] == [("vm.deleted", "a"), ("vm.created", "b")]


def test_bad_queries():
    with Daemon() as d:
        for query, code, text in (("since=-1", "invalid_value", "since"), ("since=x", "invalid_value", "since"),
                                  ("since=99999999999999999999", "invalid_value", "since"),
                                  ("types=", "invalid_value", "types"), ("types=vm.", "invalid_value", "vm."),
                                  ("types=vm,,pool", "invalid_value", "types"),
                                  ("types=vm.create", "invalid_value", "vm.create"),
                                  ("follow=1", "invalid_value", "follow"), ("tail=1", "unknown_field", "tail")):
            r = d.get("/v1/events?" + query)
            assert (r.status, r.code) == (400, code) and text in r.message, (query, r)


def test_the_ring_is_bounded_and_a_gap_is_told():
    need_kvm()
    with Daemon() as d:
        d.create("a")
        first = kept(d)[0]["seq"]
        toggle(d, 1100)
        out = kept(d)
        assert out[0]["type"] == "lost" and out[0]["after"] == first - 1, out[0]
        assert len(out) == 1025 and out[1]["seq"] == out[0]["seq"] + 1, (len(out), out[:2])
        # What is asked for is still there, or just gone.
        s = out[1]["seq"]
        assert Stream(d, f"?follow=false&since={s - 1}").rest() == out[1:]
        assert Stream(d, f"?follow=false&since={s - 2}").rest()[0]["after"] == s - 2


def toggle(d, n):
    """n changes of state of VM a, over one connection."""
    con = UnixConnection(d.socket)
    for i in range(n):
        con.request("POST", "/v1/vms/a/" + ("resume" if i % 2 else "pause"))
        r = con.getresponse()
        r.read()
        assert r.status == 200
    con.close()


def test_numbers_go_on_over_a_restart():
    with Daemon() as d:
        old = kept(d)[-1]["seq"]
        d.stop()
        d.start()
        out = kept(d)
        assert types(out) == ["daemon.started"] and out[0]["seq"] > old, (old, out)
        out = Stream(d, f"?follow=false&since={old}").rest()
        assert types(out) == ["lost", "daemon.started"] and out[0]["after"] == old, out
        # Of a clock that was ahead.
        out = Stream(d, f"?follow=false&since={old + 10**15}").rest()
        assert types(out) == ["lost", "daemon.started"], out


def raw_client(d):
    s = socket.socket(socket.AF_UNIX)
    s.connect(d.socket)
    s.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
    return s


def unchunk(data):
    """Lines of a chunked answer, and whether it has ended as it should."""
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        n = int(size, 16)
        if n == 0:
            return [json.loads(x) for x in body.splitlines()], True
        body, rest = body + rest[:n], rest[n + 2:]
    return [json.loads(x) for x in body.splitlines()], False


def streams(d):
    text = d.get("/v1/metrics").body.decode()
    return int(next(line for line in text.splitlines() if line.startswith("thaw_event_streams ")).split()[1])


def test_fifty_clients_of_which_five_do_not_read():
    need_kvm()
    with Daemon() as d:
        d.create("a")
        d.expect("a", "READY\n")
        slow = [raw_client(d) for _ in range(5)]
        fast = {raw_client(d): bytearray() for _ in range(45)}
        wait_until("50 streams", lambda: streams(d) == 50)
        before = memory(d)
        n, con, longest, begin = 2000, UnixConnection(d.socket), 0.0, time.monotonic()
        poll = select.epoll()
        by_fd = {s.fileno(): s for s in fast}
        for s in fast:
            poll.register(s, select.EPOLLIN)
        for i in range(n):
            start = time.monotonic()
            con.request("POST", "/v1/vms/a/" + ("resume" if i % 2 else "pause"))
            r = con.getresponse()
            r.read()
            assert r.status == 200
            longest = max(longest, time.monotonic() - start)
            for fd, _ in poll.poll(0):
                fast[by_fd[fd]] += by_fd[fd].recv(1 << 16)
        # Those who read have all of it, in order.
        end = time.monotonic() + 60
        while any(b.count(b'"type":"vm.') < n for b in fast.values()):
            assert time.monotonic() < end
            for fd, _ in poll.poll(0.1):
                fast[by_fd[fd]] += by_fd[fd].recv(1 << 16)
        for data in fast.values():
            out, ended = unchunk(bytes(data))
            out = [e for e in out if e["type"] != "heartbeat"]
            assert not ended and len(out) == n, len(out)
            assert [e["seq"] for e in out] == list(range(out[0]["seq"], out[0]["seq"] + n))
        # Those who do not cost neither memory nor time.
        if not SANITIZED:  # which keeps what was freed
            assert memory(d) - before < 16 << 20, (before, memory(d))
        assert longest < 5, longest
        # They have what fitted into their pipe, are told, and the answer ends; but a connection
        # that took nothing for 30 s is closed.
        late = time.monotonic() - begin > 25
        for s in slow:
            s.settimeout(10)
            data = bytearray()
            while not data.endswith(b"\r\n0\r\n\r\n"):
                part = s.recv(1 << 16)
                if not part and late:
                    break
                assert part, (len(data), data[-200:])
                data += part
            if not part:
                continue
            out, ended = unchunk(bytes(data))
            out = [e for e in out if e["type"] != "heartbeat"]
            assert ended and out[-1]["type"] == "lost" and out[-1]["reason"] == "too slow", out[-1]
            told = out[:-1]
            assert [e["seq"] for e in told] == list(range(told[0]["seq"], told[0]["seq"] + len(told)))
            assert out[-1]["after"] == told[-1]["seq"] and len(told) < n, (out[-1], told[-1])
            s.close()
        wait_until("only the others are left", lambda: streams(d) == 45)
        for s in fast:
            s.close()
        wait_until("nobody is left", lambda: streams(d) == 0)


def memory(d):
    with open(f"/proc/{d.process.pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmRSS:"))


def test_too_many_clients_and_those_who_leave_make_room():
    with Daemon() as d:
        fds = d.open_fds()
        clients = [raw_client(d) for _ in range(64)]
        wait_until("64 streams", lambda: streams(d) == 64)
        r = d.get("/v1/events")
        assert (r.status, r.code) == (503, "limit_reached"), r
        # Noticed at once, not with the next event or heartbeat.
        for s in clients[:10]:
            s.close()
        wait_until("room", lambda: streams(d) == 54, 8)
        more = raw_client(d)
        wait_until("one more", lambda: streams(d) == 55)
        for s in [*clients[10:], more]:
            s.close()
        wait_until("descriptors closed", lambda: d.open_fds() <= fds)


def test_the_daemons_end_is_told_and_streams_end_well():
    need_kvm()
    with Daemon() as d:
        clients = [Stream(d, "?types=vm.exited,daemon") for _ in range(8)]
        d.create("a")
        os.kill(d.process.pid, signal.SIGTERM)
        for s in clients:
            out = s.rest()  # http.client complains when it breaks off
            assert types(out) == ["vm.exited", "daemon.stopping"] and out[0]["reason"] == "killed", out
        assert d.process.wait(10) == 0


def test_heartbeats():
    with Daemon() as d:
        s = Stream(d, "?types=vm")
        start = time.monotonic()
        e = s.read(lambda out: True)[0]
        assert e["type"] == "heartbeat" and 14 < time.monotonic() - start < 25, (e, time.monotonic() - start)
        assert e["seq"] == kept(d)[-1]["seq"]


def test_templates_and_the_pager():
    need_userfaultfd()
    with Daemon() as d:
        d.create("src")
        d.expect("src", "READY\n")
        d.post("/v1/snapshots", {"name": "s", "vm": "src", "format": "lz4"})
        s = Stream(d, "?types=template,pager")
        d.post("/v1/snapshots/s/prepare", {"wait": True})
        e = s.until("template.complete")[-1]
        assert e["snapshot"] == "s", e
        d.delete("/v1/snapshots/s/prepare")
        assert s.until("template.dropped")[-1]["snapshot"] == "s"
        d.post("/v1/snapshots/s/prepare", {"fill": False})
        os.kill(pager_pid(d), signal.SIGKILL)
        assert s.until("pager.restarted")[-1]["reason"] == "signal 9"
        d.delete("/v1/snapshots/s?force=true")
        assert s.until("template.dropped")[-1]["snapshot"] == "s"


def test_the_command_line():
    need_kvm()
    with Daemon() as d:
        d.create("web")
        d.post("/v1/snapshots", {"name": "s", "vm": "web"})
        d.post("/v1/vms/web/stop", {"mode": "kill"})
        r = thaw(d, "events")
        lines = r.stdout.splitlines()
        assert r.returncode == 0 and [x.split()[1] for x in lines] == types(kept(d)), r
        assert lines[1].endswith("vm.created          web"), lines
        assert lines[3].endswith("snapshot.created    web -> s"), lines
        assert lines[4].endswith("vm.exited           web killed"), lines
        r = thaw(d, "events", "--json", "--since", str(kept(d)[2]["seq"]), "--types", "vm")
        assert [json.loads(x) for x in r.stdout.splitlines()] == [kept(d)[4]], r
        assert thaw(d, "events", "--since", "x").returncode == 2
        assert thaw(d, "events", "--types", "a b").returncode == 2
        assert thaw(d, "events", "--types", "nothing").returncode == 1


if __name__ == "__main__":
    main(globals())
