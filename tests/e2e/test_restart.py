#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A daemon that starts anew finds the VMs of the one before: after kill -9 at any moment, after SIGHUP, with
records and processes that are not what they should be; and nothing stays behind."""
import ctypes
import http.client
import os
import shutil
import signal
import socket
import struct
import threading
import time

from thawlib import Daemon, alive, listening, main, need_kvm, record, recorded, wait_until


def start(d, name="a", **more):
    need_kvm()
    d.create(name, cmdline="thaw.genid=0xfe000", **more)
    d.expect(name, "READY\n")


def restart(d, sig=signal.SIGKILL):
    d.stop(sig)
    d.start()


def files(d):
    return sorted(os.listdir(os.path.join(d.state_dir, "vms")))


def names_of(d):
    return [v["name"] for v in d.get("/v1/vms").json["vms"]]


def nothing_left(d):
    """Of VMs: files, processes and descriptors."""
    wait_until("no process is left", lambda: not d.vms_alive())
    assert files(d) == [] and d.leftovers() == [] and os.listdir(os.path.join(d.state_dir, "layers")) == []


def delete_all(d):
    for n in names_of(d):
        assert d.delete(f"/v1/vms/{n}").status == 204


def base_disk(d):
    path = os.path.join(d.folder, "disk")
    with open(path, "wb") as f:
        f.write(b"base" * 512 * 64)
    return path


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(5)
    s.connect(path)
    return s


def gone_with(d, condition, during, cycles=5):
    """Kills the daemon some time after `during` was begun in a thread, several times; the next one
    must be consistent."""
    for k in range(cycles):
        def begin():
            try:
                during(k)
            except (OSError, http.client.HTTPException):
                pass  # the daemon went
        t = threading.Thread(target=begin)
        t.start()
        time.sleep(0.003 + 0.012 * k)
        d.stop(signal.SIGKILL)
        t.join(60)
        d.start()
        condition(k)


def test_all_kinds_are_found_again():
    with Daemon() as d:
        own = os.path.join(d.folder, "v")
        start(d, vsock={"cid": 5})
        start(d, "paused", vsock={"cid": 5, "path": own})
        d.say("a", "fill 0 200 7")
        assert d.post("/v1/snapshots", {"name": "s", "vm": "a"}).status == 201
        assert d.post("/v1/snapshots/s/prepare", {"pool": {"size": 2}, "wait": True}).status == 200
        r = d.post("/v1/snapshots/s/clone", {"clones": [{"name": "pooled"}]})
        assert r.status == 201 and r.json["clones"][0]["prepared"], r
        assert d.post("/v1/vms/a/clone", {"clones": [{"name": "fork"}]}).status == 201
        assert d.post("/v1/vms/paused/pause").status == 200
        d.create("created", start=False)
        names = ["a", "created", "fork", "paused", "pooled"]
        recorded(d, *names)
        for n in ("fork", "pooled"):
            d.expect(n, "RESTORED\n")
        d.say("a", "echo before")
        before = {n: d.vm(n) for n in names}
        console = d.console("a")
        for k in range(3):
            restart(d, signal.SIGHUP if k == 1 else signal.SIGKILL)
            assert names_of(d) == names
            for n in names:
                assert d.vm(n) == before[n], (d.vm(n), before[n])
            wait_until("no shells", lambda: len(d.vms_alive()) == len(names))
            assert len(files(d)) == 2 * len(names), files(d)
            assert d.console("a") == console
        for n in ("a", "paused", "pooled", "fork"):
            connect(d.vm(n)["config"]["vsock"]["path"]).close()
        sums = {d.say(n, "sum 0 200") for n in ("a", "fork", "pooled")}
        assert len(sums) == 1, sums
        # and all can be done with them
        assert d.post("/v1/vms/paused/resume").status == 200
        assert d.say("paused", "echo x") == "OK x"
        assert d.post("/v1/vms/created/start").status == 200
        d.expect("created", "READY\n")
        assert d.post("/v1/snapshots", {"name": "s2", "vm": "pooled"}).json["parent_snapshot"] == "s"
        assert d.post("/v1/snapshots/s2/clone", {"clones": [{"name": "c2"}]}).status == 201
        assert d.post("/v1/vms/fork/clone", {"clones": [{"name": "fork2"}]}).status == 201
        d.expect("fork2", "RESTORED\n")
        assert d.say("fork2", "sum 0 200") in sums and d.vm("fork2")["forked_from"] == "fork"
        assert d.post("/v1/vms/a/clone", {"clones": [{"name": "a"}]}).code == "vm_exists"
        r = d.delete("/v1/snapshots/s")
        assert r.code == "in_use" and "pooled" in r.message, r
        # how each ends is told, although they are not this daemon's children
        d.put("/v1/vms/created/console", "exit\n")
        v = d.wait_state("created", "exited")
        assert v["exit"]["reason"] == "shutdown", v
        os.kill(before["paused"]["pid"], signal.SIGKILL)
        assert d.wait_state("paused", "exited")["exit"]["reason"] == "crashed"
        r = d.post("/v1/vms/a/stop", {"mode": "kill", "wait_ms": 5000})
        assert r.status == 200 and r.json["exit"]["reason"] == "killed", r
        delete_all(d)
        nothing_left(d)
        assert not os.path.exists(own)


def test_disks():
    with Daemon() as d:
        base, kept = base_disk(d), os.path.join(d.folder, "kept")
        start(d, "e", drives=[{"id": "root", "path": base, "layer": "ephemeral"}])
        start(d, "k", drives=[{"id": "root", "path": base, "layer": "kept", "layer_path": kept}])
        for n in "ek":
            d.say(n, f"blk w 8 one-{n}")
            assert d.post("/v1/snapshots", {"name": f"s{n}", "vm": n}).status == 201
            d.say(n, f"blk w 16 two-{n}")
        said = {(n, at): d.say(n, f"blk r {at}") for n in "ek" for at in (8, 16)}
        assert len(set(said.values())) == 4
        recorded(d, "e", "k")
        # what the daemon made for a snapshot that never was
        folder = os.path.join(d.state_dir, "layers", d.vm("e")["id"] + ".0")
        d.stop(signal.SIGKILL)
        assert sorted(os.listdir(folder)) == ["0", "1"]
        for f in (folder, kept):
            with open(os.path.join(f, "2"), "wb"):
                pass
        d.start()
        assert sorted(os.listdir(folder)) == sorted(os.listdir(kept)) == ["0", "1"]
        for (n, at), text in said.items():
            assert d.say(n, f"blk r {at}") == text
        for n in "ek":
            d.say(n, f"blk w 24 new-{n}")
            assert d.post("/v1/snapshots", {"name": f"t{n}", "vm": n}).status == 201
            assert d.post(f"/v1/snapshots/t{n}/clone", {"clones": [
                {"name": f"c{n}", "drives": [{"id": "root", "layer": "ephemeral"}]}]}).status == 201
            d.expect(f"c{n}", "RESTORED\n")
            for at in (8, 16, 24):
                assert d.say(f"c{n}", f"blk r {at}") == d.say(n, f"blk r {at}")
        restart(d)
        assert d.say("ce", "blk r 16") == said["e", 16]
        delete_all(d)
        nothing_left(d)
        assert sorted(os.listdir(kept)) == ["0", "1", "2"]


def test_killed_in_the_middle():
    with Daemon() as d:
        start(d, drives=[{"id": "root", "path": base_disk(d), "layer": "ephemeral"}])
        d.say("a", "fill 0 5000 3")
        total = d.say("a", "sum 0 5000")
        d.say("a", "blk w 8 disk")
        sector = d.say("a", "blk r 8")
        recorded(d, "a")
        pid = d.vm("a")["pid"]

        def as_it_was(_):
            assert d.vm("a")["pid"] == pid
            assert d.say("a", "sum 0 5000") == total and d.say("a", "blk r 8") == sector
            # whoever was not answered for is there as a whole, or not at all
            for n in names_of(d):
                assert d.state(n) == "running"
                if n not in ("a", "new"):
                    d.expect(n, "RESTORED\n")
                assert n == "new" or d.say(n, "blk r 8") == sector
                if n != "a":
                    assert d.delete(f"/v1/vms/{n}").status == 204
            wait_until("only a", lambda: d.vms_alive() == {pid})
            assert len(files(d)) == 2, files(d)
            assert len(os.listdir(os.path.join(d.state_dir, "layers"))) == 1 and not d.leftovers()
        gone_with(d, as_it_was, lambda k: d.post("/v1/snapshots", {"name": f"s{k}", "vm": "a"}))
        assert d.post("/v1/snapshots", {"name": "whole", "vm": "a"}).status == 201
        assert d.post("/v1/snapshots/whole/verify").status == 200
        gone_with(d, as_it_was, lambda k: d.post("/v1/snapshots/whole/clone", {"count": 20}))
        gone_with(d, as_it_was, lambda k: d.post("/v1/vms/a/clone", {"count": 20}))
        assert d.post("/v1/snapshots/whole/prepare", {"pool": {"size": 8}, "wait": True}).status == 200
        gone_with(d, as_it_was, lambda k: d.post("/v1/snapshots/whole/clone", {"count": 20}), 2)
        gone_with(d, as_it_was, lambda k: d.create("new", drives=[]), 4)
        delete_all(d)
        nothing_left(d)


def test_hangup_answers_who_waits():
    with Daemon() as d:
        start(d)
        _, end = d.console("a")
        got = []
        t = threading.Thread(target=lambda: got.append(d.get(f"/v1/vms/a/console?offset={end}&wait_ms=30000")))
        t.start()
        time.sleep(0.2)
        assert d.stop(signal.SIGHUP) == 0
        t.join(10)
        assert not t.is_alive() and got[0].status in (200, 503), got
        assert "they go on" in d.log_text() and not os.path.exists(d.socket)
        assert len(d.vms_alive()) == 1
        d.start()
        for k, what in enumerate(("snapshots", "vms/a/clone", "snapshots", "vms/a/clone")):
            def begin(path=f"/v1/{what}", body={"name": f"s{k}", "vm": "a"} if what == "snapshots" else {"count": 9}):
                try:
                    got.append(d.post(path, body))
                except (OSError, http.client.HTTPException):
                    pass
            t = threading.Thread(target=begin)
            t.start()
            time.sleep(0.004 * k)
            assert d.stop(signal.SIGHUP) == 0
            t.join(30)
            d.start()
            assert d.say("a", "echo x") == "OK x"
            assert all(d.state(n) == "running" for n in names_of(d))
        assert d.stop() == 0
        assert not d.vms_alive() and files(d) == []


def test_died_meanwhile():
    with Daemon() as d:
        own = os.path.join(d.folder, "v")
        start(d, vsock={"cid": 5}, drives=[{"id": "root", "path": base_disk(d), "layer": "ephemeral"}])
        start(d, "b", vsock={"cid": 5, "path": own})
        recorded(d, "a", "b")
        pids = [d.vm(n)["pid"] for n in "ab"]
        d.stop(signal.SIGKILL)
        assert len(files(d)) == 4 and all(alive(p) for p in pids)
        for p in pids:
            os.kill(p, signal.SIGKILL)
        wait_until("dead", lambda: not any(alive(p) for p in pids))
        d.start()
        # A process whose last thread is still ending holds its socket, and is listed until it is gone.
        wait_until("found to be gone", lambda: names_of(d) == [] and not os.path.exists(own))
        nothing_left(d)
        start(d)  # its name is free
        # a guest that powers off when nobody looks
        recorded(d, "a")
        pid = d.vm("a")["pid"]
        d.put("/v1/vms/a/console", "timer 300\n")
        d.stop(signal.SIGKILL)
        time.sleep(0.5)
        d.start()
        d.expect("a", "TIMER\n")
        assert d.vm("a")["pid"] == pid


def test_one_that_hangs():
    with Daemon() as d:
        start(d)
        start(d, "b")
        recorded(d, "a", "b")
        pid = d.vm("a")["pid"]
        os.kill(pid, signal.SIGSTOP)
        d.stop(signal.SIGKILL)  # the kernel lets its stopped children go on
        os.kill(pid, signal.SIGSTOP)
        begin = time.monotonic()
        d.start()
        took = time.monotonic() - begin
        assert 1.5 < took < 10, took
        assert d.state("a") == "unknown" and d.state("b") == "running"
        r = d.post("/v1/vms/a/pause")
        assert r.status == 409 and r.code == "busy", r
        os.kill(pid, signal.SIGCONT)
        d.wait_state("a", "running")
        assert d.say("a", "echo x") == "OK x"
        # again; this time it is deleted
        os.kill(pid, signal.SIGSTOP)
        restart(d)
        assert d.state("a") == "unknown"
        assert d.delete("/v1/vms/a").status == 204
        wait_until("dead", lambda: not alive(pid))
        # without a record: the start does not wait, and it ends when it goes on
        pid = d.vm("b")["pid"]
        os.unlink(record(d, "b"))
        d.stop(signal.SIGKILL)
        os.kill(pid, signal.SIGSTOP)
        begin = time.monotonic()
        d.start()
        assert time.monotonic() - begin < 1.5 and names_of(d) == [] and files(d) == []
        os.kill(pid, signal.SIGCONT)
        wait_until("dead", lambda: not alive(pid))
        assert "told to end" in d.log_text()


def test_bad_records():
    with Daemon() as d, Daemon() as other:
        start(d)
        start(d, "b")
        start(other, "x", vsock={"cid": 3})
        recorded(d, "a", "b")
        recorded(other, "x")
        good = open(record(d, "a"), "rb").read()
        path, vms = record(d, "a"), os.path.join(d.state_dir, "vms")
        pids = {n: d.vm(n)["pid"] for n in "ab"}
        foreign = record(other, "x")

        def with_record(data, lives):
            d.stop(signal.SIGKILL)
            with open(path, "wb") as f:
                f.write(data)
            d.start()
            assert names_of(d) == (["a", "b"] if lives else ["b"]), d.log_text()[-2000:]
            assert d.vm("b")["pid"] == pids["b"] and d.say("b", "echo x") == "OK x"
            if not lives:
                wait_until("it was told to end", lambda: not alive(pids["a"]))
                assert len(files(d)) == 2
        with_record(good, True)
        # every byte counts
        with_record(good[:60] + bytes([good[60] ^ 1]) + good[61:], False)
        for bad in (b"", good[:20], good[:-1], good + b"x", os.urandom(500), b"THAWVMRC" + bytes(24)):
            with_record(bad, False)
        # records of others: a copy of b's under another name, and of another daemon's VM
        shutil.copy(record(d, "b"), path)
        with_record(open(path, "rb").read(), False)
        d.stop(signal.SIGKILL)
        shutil.copy(foreign, vms)
        os.mkfifo(os.path.join(vms, "0" * 36))
        with open(os.path.join(vms, "README"), "w", encoding="ascii") as f:
            f.write("not ours")
        d.start()
        assert names_of(d) == ["b"] and len(files(d)) == 3, files(d)
        connect(other.vm("x")["config"]["vsock"]["path"]).close()
        restart(other)
        assert other.say("x", "echo x") == "OK x"
        # a process that has the number now, and is none of thaw's
        d.stop(signal.SIGKILL)
        os.kill(pids["b"], signal.SIGKILL)
        wait_until("dead", lambda: not alive(pids["b"]))
        d.start()
        assert names_of(d) == []


def container(version, data):
    """The record with another version in its head, and a checksum that is right."""
    data = data[:24] + data[32:]
    data = data[:24] + struct.pack("<I", version) + data[28:]
    xxh3 = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
    xxh3.restype, xxh3.argtypes = ctypes.c_uint64, [ctypes.c_char_p, ctypes.c_size_t]
    return data[:24] + struct.pack("<Q", xxh3(data, len(data))) + data[24:]


def test_another_version_is_left_alone():
    with Daemon() as d:
        start(d, vsock={"cid": 4}, drives=[{"id": "root", "path": base_disk(d), "layer": "ephemeral"}])
        recorded(d, "a")
        d.say("a", "blk w 8 disk")
        sector, path, pid = d.say("a", "blk r 8"), record(d, "a"), d.vm("a")["pid"]
        vsock = d.vm("a")["config"]["vsock"]["path"]
        good = open(path, "rb").read()
        d.stop(signal.SIGKILL)
        own = struct.unpack_from("<I", good, 32)[0]
        assert container(own, good) == good
        with open(path, "wb") as f:
            f.write(container(own + 6, good))
        d.start()
        assert names_of(d) == [] and alive(pid) and f"messages {own + 6}, not {own}" in d.log_text()
        connect(vsock).close()
        d.stop()
        assert alive(pid) and len(files(d)) == 2
        with open(path, "wb") as f:  # its own version again
            f.write(good)
        d.start()
        assert d.say("a", "blk r 8") == sector
        d.stop(signal.SIGKILL)
        with open(path, "wb") as f:
            f.write(container(own + 6, good))
        os.kill(pid, signal.SIGKILL)
        wait_until("dead", lambda: not alive(pid))
        d.start()
        nothing_left(d)


def test_orphan_timeout():
    with Daemon(["--orphan-timeout", "1"]) as d:
        start(d)
        start(d, "b")
        recorded(d, "a", "b")
        pids = [d.vm(n)["pid"] for n in "ab"]
        d.stop(signal.SIGKILL)
        assert all(alive(p) for p in pids)
        wait_until("they ended", lambda: not any(alive(p) for p in pids))
        d.start()
        assert names_of(d) == [] and "no daemon came" in d.log_text()
        start(d)
        recorded(d, "a")
        restart(d)
        time.sleep(1.5)  # the time is over for who has no daemon
        assert d.say("a", "echo x") == "OK x"
    with Daemon(["--orphan-timeout", "0"]) as d:
        start(d)
        pid = d.vm("a")["pid"]
        assert files(d) == []
        d.stop(signal.SIGKILL)
        wait_until("it ended", lambda: not alive(pid))
        d.start()
        start(d)
        pid = d.vm("a")["pid"]
        assert d.stop(signal.SIGHUP) == 0 and not alive(pid)


def test_lifetimes_go_on():
    with Daemon() as d:
        start(d, ttl_ms=4000, auto_delete=True)
        first = time.monotonic()
        recorded(d, "a")
        restart(d)
        assert d.state("a") == "running"
        wait_until("its time is over", lambda: names_of(d) == [])
        assert 2.5 < time.monotonic() - first < 6
        nothing_left(d)


def test_clients_of_the_socket():
    """What is not a daemon gets nothing, and does not lock daemons out."""
    with Daemon() as d:
        start(d)
        recorded(d, "a")
        path = record(d, "a") + ".sock"
        assert os.stat(path).st_mode & 0o777 == 0o600
        early = []
        for _ in range(3):
            s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            s.connect(path)  # waits: there is a daemon
            early.append(s)
        early[0].send(b"nonsense")
        for s in early[:2]:
            s.close()
        del early[:2]
        d.stop(signal.SIGKILL)
        early.pop().close()
        d.start()
        assert d.say("a", "echo x") == "OK x"


def test_many_restarts_leave_nothing():
    with Daemon() as d:
        start(d)
        recorded(d, "a")
        pid = d.vm("a")["pid"]
        restart(d)
        d.settle()

        def fds(p):
            return len(os.listdir(f"/proc/{p}/fd"))
        before = fds(pid), d.open_fds(), len(files(d))
        for k in range(20):
            restart(d, signal.SIGHUP if k % 2 else signal.SIGKILL)
            assert d.vm("a")["pid"] == pid
        assert d.say("a", "echo x") == "OK x"
        d.settle()
        wait_until("the VM has no more descriptors", lambda: fds(pid) <= before[0])
        wait_until("nor has the daemon", lambda: d.open_fds() <= before[1] + 1)  # of a connection that ends
        wait_until("nor are there more files", lambda: len(files(d)) <= before[2])
        assert d.delete("/v1/vms/a").status == 204
        nothing_left(d)


if __name__ == "__main__":
    main(globals())
