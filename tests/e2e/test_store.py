#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The store: parents and deletion, export and import, garbage collection, sizes, and what is
left when the daemon is killed or a call fails at any step."""
import errno
import http.client
import json
import os
import shutil
import socket
import subprocess
import time

from thawlib import B, BIN, SANITIZED, Daemon, Skip, UnixConnection, main, need_kvm, thaw, wait_until

SHIM = os.path.join(B, "tests/faults/shim.so")


def source(d, pages=0, name="src", **more):
    d.create(name, **more)
    d.expect(name, "READY\n")
    d.say(name, "store nonce")
    if pages:
        d.say(name, f"touch {pages} w 3")


def take(d, name="s", vm="src"):
    r = d.post("/v1/snapshots", {"name": name, "vm": vm})
    assert r.status == 201, r
    return r.json


def names(d):
    return [s["name"] for s in d.get("/v1/snapshots").json["snapshots"]]


def export(d, name="s"):
    r = d.get(f"/v1/snapshots/{name}/export")
    assert r.status == 200 and r.headers["Content-Type"] == "application/octet-stream", r
    return r.body


def ok(d, *args):
    r = thaw(d, *args)
    assert r.returncode == 0, r
    return r.stdout


# --- parents, deletion --------------------------------------------------------------------
def test_parents_make_a_tree():
    need_kvm()
    with Daemon() as d:
        source(d)
        assert "parent_snapshot" not in take(d, "base")
        base = d.get("/v1/snapshots/base").json
        assert d.post("/v1/snapshots/base/clone", {"count": 2}).status == 201
        s = take(d, "mid", "base-1")
        assert (s["parent_snapshot"], s["parent_snapshot_id"], s["needs_parent"]) == ("base", base["id"], False)
        take(d, "other", "base-2")
        assert d.post("/v1/snapshots/mid/clone").status == 201
        assert take(d, "top", "mid-1")["parent_snapshot"] == "mid"
        assert ok(d, "snapshots", "--tree") == "base\n  mid\n    top\n  other\n"
        assert d.delete("/v1/snapshots/base?force=true").status == 204
        assert ok(d, "snapshots", "--tree") == "mid\n  top\nother\n"  # a plain child needs no parent
        assert "parent:   base\n" in ok(d, "snapshot-show", "mid")


def test_running_clones_keep_their_snapshot():
    need_kvm()
    with Daemon() as d:
        source(d, 2000)
        total = d.say("src", "sum 0 2000")
        take(d)
        assert d.post("/v1/snapshots/s/clone", {"count": 5}).status == 201
        for i in range(1, 6):
            d.expect(f"s-{i}", "RESTORED\n")
        r = d.delete("/v1/snapshots/s")
        assert (r.status, r.code) == (409, "in_use") and "s-1, VM" not in r.message, r
        assert "VM s-1, s-2, s-3 and others" in r.message and "force=true" in r.message, r
        assert names(d) == ["s"]
        assert "s-1" in thaw(d, "snapshot-delete", "s").stderr
        assert d.delete("/v1/snapshots/s?force=maybe").code == "invalid_value"
        assert d.delete("/v1/snapshots/s?forse=true").code == "unknown_field"
        for i in range(3, 6):
            d.delete(f"/v1/vms/s-{i}")
        assert ok(d, "snapshot-delete", "s", "--force") == "s deleted\n"
        assert names(d) == [] and os.listdir(f"{d.state_dir}/incoming") == []
        # What they have not touched yet comes out of files that have no name any more.
        for n in ("s-1", "s-2"):
            assert d.say(n, "sum 0 2000") == total
            assert d.say(n, "load") == "OK nonce"
        # A new snapshot of that name is another one: they do not keep it.
        take(d)
        assert d.delete("/v1/snapshots/s").status == 204
        # Nor does a clone that has ended.
        take(d)
        assert d.post("/v1/snapshots/s/clone", {"clones": [{"name": "c"}]}).status == 201
        assert d.post("/v1/vms/c/stop", {"mode": "kill"}).status == 200
        assert d.delete("/v1/snapshots/s").status == 204


# --- sizes, counts ------------------------------------------------------------------------
def test_sizes_and_counts():
    need_kvm()
    with Daemon() as d:
        source(d, 1000)
        take(d, "a")
        take(d, "b")
        listed = d.get("/v1/snapshots").json
        for s in listed["snapshots"]:
            files = [os.stat(f"{d.state_dir}/snapshots/{s['name']}/{f}") for f in ("manifest", "state", "memory")]
            assert s["storage"] == {"apparent_bytes": sum(f.st_size for f in files),
                                    "disk_bytes": sum(f.st_blocks * 512 for f in files)}, s
            assert 4_000_000 < s["storage"]["disk_bytes"] < 8_000_000, s
        info = d.get("/v1/info").json
        assert info["snapshots"] == 2 and info["storage"] == listed["storage"], info
        assert d.delete("/v1/snapshots/a").status == 204
        info = d.get("/v1/info").json
        assert info["snapshots"] == 1 and info["storage"] == d.get("/v1/snapshots/b").json["storage"], info
        assert "1 snapshots, " in ok(d, "snapshots")


def test_hundreds_of_snapshots():
    need_kvm()
    with Daemon() as d:
        source(d)
        take(d)
        data = export(d)
        for i in range(300):
            r = d.put(f"/v1/snapshots/n-{i}/import", data)
            assert r.status == 201, r
        start = time.monotonic()
        assert len(d.get("/v1/snapshots").json["snapshots"]) == 301
        listed = time.monotonic() - start
        time.sleep(0.2)  # time stamps settle
        d.get("/v1/info")
        took = []
        for _ in range(100):
            start = time.monotonic()
            assert d.get("/v1/info").json["snapshots"] == 301
            took.append(time.monotonic() - start)
        info = sorted(took)[50]
        print(f"# list {listed * 1000:.1f} ms, info {info * 1000:.2f} ms")
        assert info < listed / 3 and listed < 10, (info, listed)
        assert len({s["id"] for s in d.get("/v1/snapshots").json["snapshots"]}) == 301


# --- export and import ----------------------------------------------------------------------
def test_export_and_import():
    need_kvm()
    with Daemon() as d, Daemon() as other:
        source(d, 9000, memory_mib=64)  # more than 16 MiB of data
        total = d.say("src", "sum 0 9000")
        s = take(d)
        file = f"{d.folder}/export"
        ok(d, "snapshot-export", "s", file)
        assert 36_000_000 < os.path.getsize(file) < 40_000_000
        assert "exists" in thaw(d, "snapshot-export", "s", file).stderr
        assert thaw(d, "snapshot-export", "none", f"{file}2").returncode == 1 and not os.path.exists(f"{file}2")
        # From a file, and through a pipe into another daemon.
        assert json.loads(ok(other, "snapshot-import", "copy", file, "--json"))["id"] == s["id"]
        pipe = (f"'{BIN}/thaw' --socket {d.socket} snapshot-export s - | "
                f"'{BIN}/thaw' --socket {other.socket} snapshot-import piped -")
        assert subprocess.run(pipe, shell=True, check=False, stdout=subprocess.DEVNULL).returncode == 0
        got = {v["name"]: v for v in other.get("/v1/snapshots").json["snapshots"]}
        assert got["copy"]["files"] == s["files"] and got["piped"]["config"] == s["config"], got
        assert got["piped"]["id"] != s["id"]
        for n in ("copy", "piped"):
            assert other.post(f"/v1/snapshots/{n}/verify").status == 200
            assert other.post(f"/v1/snapshots/{n}/clone").status == 201
            other.expect(f"{n}-1", "RESTORED\n")
            assert other.say(f"{n}-1", "sum 0 9000") == total
            assert other.say(f"{n}-1", "load") == "OK nonce"
        # Any client: with and without a length, with and without Expect.
        for i, options in enumerate((["-T", file], ["-T", "-"], ["-T", file, "-H", "Expect:"])):
            with open(file, "rb") as f:
                r = subprocess.run(["curl", "-sS", "--unix-socket", other.socket, *options,
                                    f"http://x/v1/snapshots/curl{i}/import"], stdin=f, capture_output=True, check=False)
            assert r.returncode == 0 and json.loads(r.stdout)["name"] == f"curl{i}", r
            with open(file, "rb") as f:  # taken: the answer comes, however much was to be sent
                r = subprocess.run(["curl", "-sS", "--unix-socket", other.socket, *options,
                                    f"http://x/v1/snapshots/curl{i}/import"], stdin=f, capture_output=True, check=False)
            assert json.loads(r.stdout)["error"]["code"] == "snapshot_exists", r
        assert thaw(other, "snapshot-import", "copy", file).stderr.startswith("thaw: snapshot copy: there is one")
        assert other.leftovers() == [] and d.leftovers() == []


def test_import_refuses_what_is_not_whole():
    need_kvm()
    with Daemon() as d:
        source(d, 500)
        take(d)
        data = export(d)
        fds = d.open_fds()

        def refused(body, word, name="t"):
            r = d.put(f"/v1/snapshots/{name}/import", body)
            assert (r.status, r.code) == (422, "import_invalid") and word in r.message, r

        refused(b"", "not an exported snapshot")
        refused(b"{}", "not an exported snapshot")
        refused(os.urandom(3_000_000), "not an exported snapshot")
        refused(data[:-1], "cut off")
        refused(data[:len(data) // 2], "cut off")
        refused(data + b"x", "bytes behind")
        refused(data[:1_000_000] + bytes([data[1_000_000] ^ 1]) + data[1_000_001:], "checksum wrong")
        assert d.put("/v1/snapshots/-t/import", data).code == "invalid_value"
        assert d.put("/v1/snapshots/s/import", data).code == "snapshot_exists"
        assert d.request("POST", "/v1/snapshots/t/import", b"").status == 405
        assert d.get("/v1/snapshots/none/export").code == "snapshot_not_found"
        assert d.put("/v1/snapshots/t/import?x=1", data).code == "unknown_field"
        # Clients that go away in the middle.
        for n in (0, 10, 5000, 1_500_000):
            s = socket.socket(socket.AF_UNIX)
            s.connect(d.socket)
            s.sendall(b"PUT /v1/snapshots/t/import HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data))
            s.sendall(data[:n])
            s.close()
        wait_until("no draft", lambda: d.leftovers() == [])
        assert names(d) == ["s"]
        wait_until("no descriptor", lambda: d.open_fds() <= fds + 2)  # the transfers' threads have two each
        assert d.put("/v1/snapshots/t/import", data).status == 201
        # Damage that happened before the export is found by whoever imports.
        path = f"{d.state_dir}/snapshots/t/memory"
        os.chmod(path, 0o600)
        with open(path, "r+b") as f:
            f.seek(123456)
            f.write(b"damage")
        refused(export(d, "t"), "memory: checksum wrong", "u")
        assert d.leftovers() == []


def stalled_import(d, name, data):
    s = socket.socket(socket.AF_UNIX)
    s.connect(d.socket)
    s.sendall(b"PUT /v1/snapshots/%s/import HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
              % (name.encode(), len(data)))
    s.sendall(data[:100_000])
    return s


def stalled_export(d):
    con = UnixConnection(d.socket)
    con.request("GET", "/v1/snapshots/s/export")
    return con


def test_slow_clients_hold_up_nobody():
    need_kvm()
    with Daemon() as d:
        source(d, 4000)
        take(d)
        data = export(d)
        held = [stalled_import(d, "a", data), stalled_import(d, "b", data), stalled_export(d), stalled_export(d)]
        wait_until("two drafts", lambda: len(os.listdir(f"{d.state_dir}/incoming")) == 2)
        r = d.put("/v1/snapshots/c/import", data)
        assert (r.status, r.code) == (503, "limit_reached"), r
        start = time.monotonic()
        assert d.post("/v1/snapshots/s/clone").status == 201
        take(d, "s2")
        # gc takes no draft away from under its writer.
        assert d.post("/v1/gc").json == {"removed": [], "freed_bytes": 0, "kept": 0}
        assert d.delete("/v1/snapshots/s?force=true").status == 204
        assert time.monotonic() - start < 20
        held[1].close()
        held[3].close()
        held[0].sendall(data[100_000:])
        r = held[0].recv(65536)
        assert r.startswith(b"HTTP/1.1 201 "), r
        r = held[2].getresponse()
        assert r.read() == data  # of a snapshot that is gone by now
        wait_until("b's draft is gone", lambda: d.leftovers() == [])
        assert names(d) == ["a", "s2"]
        # The end of the daemon waits for none of them.
        again = [stalled_import(d, "c", data), stalled_export_of(d, "a")]
        wait_until("a draft", lambda: os.listdir(f"{d.state_dir}/incoming"))
        start = time.monotonic()
        assert d.stop() == 0
        assert time.monotonic() - start < 10
        assert d.leftovers() == []
        for s in held[:1] + again:
            s.close()


def stalled_export_of(d, name):
    con = UnixConnection(d.socket)
    con.request("GET", f"/v1/snapshots/{name}/export")
    return con


# --- faults ---------------------------------------------------------------------------------
class FaultyDaemon(Daemon):
    """With tests/faults/shim.c inside."""
    serial = 0

    def __init__(self):
        if not os.path.exists(SHIM):
            raise Skip(f"{SHIM} is not built")
        if SANITIZED:
            raise Skip("a sanitizer's own calls would count")
        super().__init__()
        self.plan = os.path.join(self.folder, "plan")
        self.prefix = ["env", f"LD_PRELOAD={SHIM}", f"THAW_FAULTS={self.plan}"]

    def arm(self, op, n, action):
        FaultyDaemon.serial += 1
        if os.path.exists(self.plan + ".fired"):
            os.unlink(self.plan + ".fired")
        with open(self.plan + ".new", "w", encoding="ascii") as f:
            f.write(f"{FaultyDaemon.serial} {op} {n} {action}")
        os.rename(self.plan + ".new", self.plan)

    def disarm(self):
        """Did it happen?"""
        os.unlink(self.plan)
        return os.path.exists(self.plan + ".fired")


def sweep(d, op, action, prepare, act, check):
    """The fault at the 1st, 2nd... call until none is left. Returns how many there were."""
    for n in range(1, 200):
        prepare()
        d.arm(op, n, action)
        try:
            r = act()
        except (OSError, http.client.HTTPException):  # killed
            r = None
        if not d.disarm():
            assert r is not None and r.status < 300, r
            return n - 1
        if action == "kill":
            d.process.wait(10)
            d.start()
        else:
            assert d.post("/v1/gc").json["kept"] == 0
        assert d.leftovers() == [], (n, d.leftovers())
        check(n, r)
    raise AssertionError("no end of calls")


def whole_or_not_at_all(d, name, r, action):
    """name is there and good, or not there; returns which. r: the answer, None: killed."""
    there = d.post(f"/v1/snapshots/{name}/verify")
    assert there.status == 200 or there.code == "snapshot_not_found", there
    assert names(d) == sorted(["keep"] + ([name] if there.status == 200 else [])), names(d)
    assert d.get("/v1/info").json["snapshots"] == len(names(d))
    if r is not None and r.status >= 400 and action == errno.ENOSPC:
        assert (r.status, r.code) == (507, "no_space"), r
    return there.status == 200


def make_keep(d):
    """The snapshot that no fault may touch; returns its export."""
    source(d, 100)
    take(d, "keep")
    return export(d, "keep")


ACTIONS = ("kill", errno.EIO, errno.ENOSPC)


def test_faults_in_an_import():
    need_kvm()
    with FaultyDaemon() as d:
        data = make_keep(d)

        for action in ACTIONS:
            outcomes = []

            def check(_, r, action=action, outcomes=outcomes):
                there = whole_or_not_at_all(d, "x", r, action)
                outcomes.append(there)
                if r is not None:
                    assert there == (r.status == 201), r
                if there:
                    assert d.delete("/v1/snapshots/x").status == 204

            n = sweep(d, "any", action, lambda: None, lambda: d.put("/v1/snapshots/x/import", data), check)
            print(f"# {action}: {n} steps, {sum(outcomes)} with the snapshot there")
            assert n >= 14, n
            assert d.delete("/v1/snapshots/x").status == 204

        def still_right(_, r):
            assert r.status == 201 and whole_or_not_at_all(d, "x", r, "short"), r
            assert d.delete("/v1/snapshots/x").status == 204

        assert sweep(d, "write", "short", lambda: None, lambda: d.put("/v1/snapshots/x/import", data), still_right) >= 4


def test_faults_in_a_delete():
    need_kvm()
    with FaultyDaemon() as d:
        data = make_keep(d)

        def prepare():
            r = d.put("/v1/snapshots/x/import", data)
            assert r.status == 201 or r.code == "snapshot_exists", r

        for action in ACTIONS:
            def check(_, r, action=action):
                there = whole_or_not_at_all(d, "x", r, action)
                assert r is None or there == (r.status != 204), r

            n = sweep(d, "any", action, prepare, lambda: d.delete("/v1/snapshots/x"), check)
            print(f"# {action}: {n} steps")
            assert n >= 5, n  # rename, fsync, three files, a folder


def test_faults_in_a_snapshot():
    need_kvm()
    with FaultyDaemon() as d:
        make_keep(d)

        def prepare():
            if d.get("/v1/vms/src").status == 404:
                source(d, 100)

        for action in ACTIONS:
            def check(_, r, action=action):
                there = whole_or_not_at_all(d, "x", r, action)
                if r is not None:
                    assert there == (r.status == 201), r
                    assert d.state("src") == "running"
                if there:
                    assert d.delete("/v1/snapshots/x").status == 204

            n = sweep(d, "any", action, prepare, lambda: d.post("/v1/snapshots", {"name": "x", "vm": "src"}), check)
            print(f"# {action}: {n} steps")
            assert n >= 10, n
            assert d.delete("/v1/snapshots/x").status == 204


def test_gc_reports_what_it_removes():
    with Daemon() as d:
        incoming = f"{d.state_dir}/incoming"
        for name, size in (("draft-1", 100_000), ("gone-2", 5000)):
            os.mkdir(f"{incoming}/{name}")
            with open(f"{incoming}/{name}/memory", "wb") as f:
                f.write(b"x" * size)
                os.fsync(f.fileno())
        os.makedirs(f"{incoming}/mine/too")
        r = d.post("/v1/gc").json
        assert {(e["entry"], e["was"]) for e in r["removed"]} == {("draft-1", "unfinished snapshot"),
                                                                 ("gone-2", "deleted snapshot")}, r
        assert r["freed_bytes"] == sum(e["disk_bytes"] for e in r["removed"]) >= 105_000 and r["kept"] == 1, r
        assert ok(d, "gc") == "0 removed, 0 KiB freed, 1 can't be removed\n"
        os.rmdir(f"{incoming}/mine/too")
        assert ok(d, "gc") == "mine (foreign): 0 KiB\n1 removed, 0 KiB freed\n"
        assert d.post("/v1/gc", {"x": 1}).code == "unknown_field"
        os.mkdir(f"{incoming}/draft-3")
        d.stop()
        d.start()
        assert d.leftovers() == [] and "leftovers of unfinished work: 1 removed" in d.log_text()


def test_two_daemons_on_one_store():
    with Daemon() as d:
        second = subprocess.run([f"{BIN}/thawd", "--socket", f"{d.folder}/other", "--state-dir", d.state_dir],
                                capture_output=True, text=True, timeout=10, check=False)
        assert second.returncode == 1 and "another daemon uses it" in second.stderr, second
        assert not os.path.exists(f"{d.folder}/other")
        assert d.get("/v1/info").status == 200
        assert d.stop() == 0  # and then it may
        with Daemon(folder=d.folder) as again:
            assert again.get("/v1/snapshots").json["snapshots"] == []


def test_a_store_edited_by_hand():
    need_kvm()
    with Daemon() as d:
        source(d)
        take(d)
        data = export(d)
        for n in ("copied", "cut", "empty", "extra", "good", "linked", "renamed"):
            assert d.put(f"/v1/snapshots/{n}/import", data).status == 201
        store = f"{d.state_dir}/snapshots"
        os.rename(f"{store}/renamed", f"{store}/moved")
        shutil.copytree(f"{store}/good", f"{store}/copy")
        os.unlink(f"{store}/cut/memory")
        for f in os.listdir(f"{store}/empty"):
            os.unlink(f"{store}/empty/{f}")
        with open(f"{store}/extra/notes", "w", encoding="ascii") as f:
            f.write("mine")
        shutil.rmtree(f"{store}/linked")
        os.symlink("good", f"{store}/linked")
        with open(f"{store}/file", "w", encoding="ascii"):
            pass
        listed = {s["name"]: "damaged" in s for s in d.get("/v1/snapshots").json["snapshots"]}
        assert listed == {"copied": False, "copy": True, "cut": False, "empty": True, "extra": False, "file": True,
                          "good": False, "linked": True, "moved": True, "s": False}, listed
        assert d.get("/v1/info").json["snapshots"] == len(listed)
        for n in ("copy", "cut", "empty", "file", "linked", "moved"):
            assert d.post(f"/v1/snapshots/{n}/verify").code == "snapshot_corrupt", n
            assert d.post(f"/v1/snapshots/{n}/clone").code == "snapshot_corrupt", n
            assert d.get(f"/v1/snapshots/{n}/export").code == "snapshot_corrupt", n
            assert d.put(f"/v1/snapshots/{n}/import", data).code == "snapshot_exists", n
        assert ok(d, "snapshots", "--tree").count("DAMAGED") == 5
        r = d.delete("/v1/snapshots/extra")
        assert r.status == 500 and "notes" in r.message, r
        assert d.post("/v1/gc").json["removed"] == []  # published ones are not gc's to judge
        for n in ("copy", "cut", "empty", "moved", "copied"):
            assert d.delete(f"/v1/snapshots/{n}").status == 204, n
        for n in ("extra", "good", "s"):
            assert d.post(f"/v1/snapshots/{n}/verify").status == 200, n
        assert d.leftovers() == []


if __name__ == "__main__":
    main(globals())
