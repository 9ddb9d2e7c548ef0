#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""VMs that end by themselves: time to live, idleness, auto_delete; and limits."""
import json
import os
import signal
import threading
import time

from thawlib import GUEST, Daemon, Skip, main, need_kvm, thaw, wait_until


def events(d, query=""):
    return [json.loads(x) for x in d.get("/v1/events?follow=false&since=0" + query).body.splitlines()]


def ended(d, name, reason, timeout=10):
    v = d.wait_state(name, "exited", timeout)
    assert v["exit"]["reason"] == reason and "pid" not in v, v
    return v


def snapshot(d, **more):
    d.create("src", **more)
    d.expect("src", "READY\n")
    r = d.post("/v1/snapshots", {"name": "s", "vm": "src"})
    assert r.status == 201, r
    return r


def clone(d, **body):
    r = d.post("/v1/snapshots/s/clone", body)
    assert r.status == 201, r
    return r.json["clones"]


def test_ttl_counts_from_the_first_run():
    need_kvm()
    with Daemon() as d:
        v = d.create("a", start=False, ttl_ms=500)
        assert v["lifetime"] == {"ttl_ms": 500}, v
        time.sleep(0.7)
        assert d.state("a") == "created"
        start = time.monotonic()
        v = d.post("/v1/vms/a/start").json
        assert 0 < v["lifetime"]["ttl_left_ms"] <= 500, v
        ended(d, "a", "ttl")
        assert 0.45 < time.monotonic() - start < 3
        assert "ttl_left_ms" not in d.vm("a")["lifetime"]
        assert events(d)[-1]["reason"] == "ttl"


def test_ttl_goes_on_in_a_pause():
    need_kvm()
    with Daemon() as d:
        d.create("a", ttl_ms=600)
        d.post("/v1/vms/a/pause")
        start = time.monotonic()
        ended(d, "a", "ttl")
        assert time.monotonic() - start < 3


def test_what_waits_for_a_vm_is_answered_at_its_ttl():
    need_kvm()
    with Daemon() as d:
        d.create("a", ttl_ms=600)
        _, offset = d.expect("a", "READY\n")
        got = []
        t = threading.Thread(target=lambda: got.append(d.get(f"/v1/vms/a/console?offset={offset}&wait_ms=30000")))
        t.start()
        ended(d, "a", "ttl")
        t.join(5)
        assert got and got[0].status == 200 and got[0].body == b"", got


def test_a_clone_has_only_what_it_was_given():
    need_kvm()
    with Daemon() as d:
        snapshot(d, ttl_ms=60000, idle_timeout_ms=50000, auto_delete=True)
        r = d.get("/v1/snapshots/s").json
        assert not {"ttl_ms", "idle_timeout_ms", "auto_delete", "limits", "lifetime"} & set(r["config"]), r
        names = [c["name"] for c in clone(d, count=1)]
        assert d.vm(names[0])["lifetime"] == {}
        clone(d, ttl_ms=70000, auto_delete=True,
              clones=[{"name": "x"}, {"name": "y", "ttl_ms": 80000, "idle_timeout_ms": 1000, "auto_delete": False}])
        x, y = d.vm("x")["lifetime"], d.vm("y")["lifetime"]
        assert 60000 < x.pop("ttl_left_ms") <= 70000 < y.pop("ttl_left_ms") <= 80000
        assert x == {"ttl_ms": 70000, "auto_delete": True}, x
        assert y == {"ttl_ms": 80000, "idle_timeout_ms": 1000, "auto_delete": False}, y


def test_a_paused_clone_has_not_run():
    need_kvm()
    with Daemon() as d:
        snapshot(d)
        clone(d, clones=[{"name": "c", "ttl_ms": 300}], run=False)
        time.sleep(0.6)
        assert d.state("c") == "paused"
        d.post("/v1/vms/c/resume")
        ended(d, "c", "ttl")


def test_many_end_in_their_order():
    need_kvm()
    with Daemon() as d:
        snapshot(d)
        ttl = {f"c{i}": 600 + (i * 7919) % 40 * 50 for i in range(40)}  # 600 to 2,550, mixed
        clone(d, clones=[{"name": n, "ttl_ms": t, "auto_delete": True} for n, t in ttl.items()])
        started = {e["vm"]: e for e in events(d, "&types=vm.running")}
        fds = d.open_fds()
        d.delete("/v1/vms/c3")  # one of them early: out of the heap
        wait_until("only the source is left", lambda: len(d.get("/v1/vms").json["vms"]) == 1)
        seconds = lambda e: float(e["time"][17:19]) + float(e["time"][19:23]) + 60 * float(e["time"][14:16])
        gone = [e for e in events(d, "&types=vm.deleted") if e["vm"] != "c3"]
        assert len(gone) == 39 and all(e["reason"] == "ttl" for e in gone), gone
        for e in gone:
            lived = (seconds(e) - seconds(started[e["vm"]])) % 3600
            assert ttl[e["vm"]] / 1000 - 0.1 < lived < ttl[e["vm"]] / 1000 + 1, (e, lived)
        assert d.open_fds() < fds  # and no timer per VM: 2 descriptors of each process


def test_idleness():
    need_kvm()
    with Daemon() as d:
        snapshot(d)
        start = time.monotonic()
        clone(d, clones=[{"name": "idle", "idle_timeout_ms": 800}, {"name": "asked", "idle_timeout_ms": 800},
                         {"name": "says", "idle_timeout_ms": 800}, {"name": "watched", "idle_timeout_ms": 800},
                         {"name": "paused", "idle_timeout_ms": 800}])
        d.post("/v1/vms/paused/pause")
        d.put("/v1/vms/says/console", "chatter\n")  # prints for ever, nobody reads
        while time.monotonic() < start + 3:
            assert d.say("asked", "echo x") == "OK x"
            d.get("/v1/vms")  # looking keeps nobody alive
            d.get("/v1/vms/idle")
            d.get("/v1/vms/idle/metrics")
            assert d.get("/v1/vms/watched/console?offset=1000000&wait_ms=10").status == 200
            time.sleep(0.1)
        lived = [e for e in events(d) if e["type"] in ("vm.running", "vm.exited") and e["vm"] == "idle"]
        assert [e["type"] for e in lived] == ["vm.running", "vm.exited"] and lived[1]["reason"] == "idle", lived
        for name, state in (("asked", "running"), ("says", "running"), ("watched", "running"), ("paused", "paused")):
            assert d.state(name) == state, name
        ended(d, "asked", "idle", 3)
        assert d.state("says") == "running"
        d.post("/v1/vms/paused/resume")
        assert d.state("paused") == "running"
        start = time.monotonic()
        ended(d, "paused", "idle", 4)
        assert 0.7 < time.monotonic() - start  # not the time of the pause


def test_idle_time_is_kept_to():
    need_kvm()
    with Daemon() as d:
        snapshot(d)
        for timeout in (0.4, 1.2):
            start = time.monotonic()
            clone(d, clones=[{"name": f"c{timeout}", "idle_timeout_ms": int(timeout * 1000)}])
            v = ended(d, f"c{timeout}", "idle", 5)
            assert timeout * 0.98 <= time.monotonic() - start < timeout * 1.25 + 1, v


def test_auto_delete():
    need_kvm()
    with Daemon() as d:
        before = d.open_fds()
        for how in ("exit", "kill", "crash", "stop"):
            d.create("a", auto_delete=True, vsock={"cid": 3})  # the same name again and again
            d.expect("a", "READY\n")
            if how == "exit":
                d.put("/v1/vms/a/console", "exit\n")
            elif how == "kill":
                r = d.post("/v1/vms/a/stop", {"mode": "kill"})
                assert r.status == 200 and r.json["state"] == "exited", r
            elif how == "crash":
                os.kill(d.vm("a")["pid"], signal.SIGSEGV)
            else:
                assert d.delete("/v1/vms/a").status == 204
            wait_until("it is forgotten", lambda: d.get("/v1/vms/a").status == 404)
            last = events(d)[-2:]
            reason = {"exit": "shutdown", "crash": "crashed"}.get(how, "killed")
            assert [(e["type"], e["reason"]) for e in last] == [("vm.exited", reason), ("vm.deleted", reason)], last
        assert d.leftovers() == [] and d.get("/v1/info").json["vms"]["total"] == 0
        wait_until("descriptors closed", lambda: d.open_fds() <= before)


def test_auto_delete_while_a_snapshot_is_taken():
    need_kvm()
    with Daemon() as d:
        d.create("a", auto_delete=True, memory_mib=256)
        d.expect("a", "READY\n")
        d.say("a", "touch 30000 w 5")
        got = []
        t = threading.Thread(target=lambda: got.append(d.post("/v1/snapshots", {"name": "s", "vm": "a"})))
        t.start()
        time.sleep(0.03)
        os.kill(d.vm("a")["pid"], signal.SIGKILL)
        t.join(20)
        assert got and got[0].status in (201, 409, 500), got
        wait_until("it is forgotten", lambda: d.get("/v1/vms").json["vms"] == [])
        assert d.get("/v1/info").status == 200


def test_clones_of_a_pool_and_forks():
    need_kvm()
    with Daemon() as d:
        snapshot(d)
        r = d.post("/v1/snapshots/s/prepare", {"pool": {"size": 2}, "wait": True})
        assert r.status == 200, r
        time.sleep(0.7)  # a shell's waiting is not part of its life
        (c,) = clone(d, clones=[{"name": "claimed", "ttl_ms": 700, "idle_timeout_ms": 60000, "auto_delete": True}])
        start = time.monotonic()
        assert c["prepared"] and d.vm("claimed")["lifetime"]["ttl_left_ms"] > 300, c
        wait_until("it is gone", lambda: d.get("/v1/vms/claimed").status == 404)
        assert 0.5 < time.monotonic() - start < 3
        (c,) = clone(d, clones=[{"name": "idle", "idle_timeout_ms": 400}])
        assert c["prepared"], c
        ended(d, "idle", "idle", 4)
        r = d.post("/v1/vms/src/clone", {"clones": [{"name": "fork", "ttl_ms": 300}, {"name": "kept"}]})
        assert r.status == 201, r
        ended(d, "fork", "ttl")
        assert d.vm("kept")["lifetime"] == {}
        told = [e for e in events(d, "&types=vm.created") if e["vm"] == "fork"]
        assert told[0]["detail"] == "forked from src", told
        # Neither a shell nor a fork can have limits: it has started long ago.
        r = d.post("/v1/vms/src/clone", {"limits": {"pids": 20}})
        assert (r.status, r.code) == (422, "limits_unavailable") and "fork" in r.message, r
        r = d.post("/v1/snapshots/s/clone", {"clones": [{"name": "limited", "limits": {"pids": 20}}]})
        if r.status == 201:
            assert not r.json["clones"][0]["prepared"], r
        else:
            assert r.code == "limits_unavailable", r
        assert d.state("src") == "running"


def test_bad_values():
    with Daemon() as d:
        for more, code, text in (
                ({"ttl_ms": 0}, "invalid_value", "ttl_ms"), ({"ttl_ms": -1}, "invalid_value", "ttl_ms"),
                ({"ttl_ms": 31536000001}, "invalid_value", "ttl_ms"), ({"ttl_ms": "1"}, "wrong_type", "ttl_ms"),
                ({"idle_timeout_ms": 99}, "invalid_value", "idle_timeout_ms"),
                ({"auto_delete": 1}, "wrong_type", "auto_delete"),
                ({"limits": {"memory_mib": 0}}, "invalid_value", "limits.memory_mib"),
                ({"limits": {"cpu_percent": 3201}}, "invalid_value", "limits.cpu_percent"),
                ({"limits": {"pids": 0}}, "invalid_value", "limits.pids"),
                ({"limits": {"io": 1}}, "unknown_field", "limits.io"), ({"limits": 1}, "wrong_type", "limits")):
            r = d.post("/v1/vms", {"name": "a", "kernel": GUEST, **more})
            assert (r.status, r.code) == (400, code) and text in r.message, (more, r)
            r = d.post("/v1/snapshots/s/clone", {"clones": [more]})
            assert (r.status, r.code) == (400, code) and text in r.message, (more, r)


def test_limits_are_never_ignored():
    need_kvm()
    with Daemon() as d:
        r = d.post("/v1/vms", {"name": "a", "kernel": GUEST, "discovery": "cmdline", "vsock": {"cid": 3},
                               "limits": {"memory_mib": 64, "cpu_percent": 50, "pids": 20}})
        if r.status == 201:
            raise Skip("the daemon's cgroup is delegated here")
        assert (r.status, r.code) == (422, "limits_unavailable") and "cgroup" in r.message, r
        assert d.vm_processes() == [] and d.leftovers() == [] and d.get("/v1/vms").json["vms"] == []
        snapshot(d)
        r = d.post("/v1/snapshots/s/clone", {"count": 2, "limits": {"pids": 9}})
        assert (r.status, r.code) == (422, "limits_unavailable"), r
        assert len(d.vm_processes()) == 1 and d.leftovers() == []
        assert "cgroup" in thaw(d, "doctor").stdout


def test_a_cgroup_that_is_none_is_refused_at_the_start():
    d = Daemon(args=["--cgroup", "/tmp"])
    try:
        d.start()
        raise AssertionError("it started")
    except AssertionError as e:
        assert "--cgroup /tmp: it is no cgroup v2" in str(e), e
    finally:
        d.__exit__(None, None, None)


def cgroup_parent():
    """A fresh cgroup v2 with the memory, cpu and pids controllers, or a reason to skip."""
    for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        try:
            with open(f"{mount}/cgroup.subtree_control", encoding="ascii") as f:
                there = f.read().split()
        except OSError:
            continue
        if not {"memory", "cpu", "pids"} <= set(there):
            raise Skip(f"no limits here: {mount} gives only {there} to its children, the others are in cgroup v1")
        path = f"{mount}/thaw-test-{os.getpid()}"
        try:
            os.mkdir(path)
        except OSError as e:
            raise Skip(f"no limits here: {path}: {e.strerror}") from e
        return path
    raise Skip("no limits here: there is no cgroup v2")


def test_limits_hold():
    need_kvm()
    parent = cgroup_parent()
    try:
        with Daemon(args=["--cgroup", parent]) as d:
            snapshot(d)
            clone(d, clones=[{"name": "c", "limits": {"memory_mib": 12, "cpu_percent": 150, "pids": 20}}])
            v = d.vm("c")
            folder = f"{parent}/vm-{v['id']}"
            with open(f"{folder}/cgroup.procs", encoding="ascii") as f:
                assert f.read().split() == [str(v["pid"])]
            for name, text in (("memory.max", f"{12 << 20}"), ("cpu.max", "150000 100000"), ("pids.max", "20")):
                with open(f"{folder}/{name}", encoding="ascii") as f:
                    assert f.read().strip() == text, name
            d.put("/v1/vms/c/console", "touch 6000 w 5\n")  # 24 MiB
            v = ended(d, "c", "out-of-memory")
            assert "12 MiB" in v["exit"]["detail"], v
            wait_until("its cgroup is gone", lambda: not os.path.exists(folder))
            assert d.say("src", "echo x") == "OK x"
    finally:
        os.rmdir(parent)


def test_the_command_line():
    need_kvm()
    with Daemon() as d:
        r = thaw(d, "create", "a", "--kernel", GUEST, "--memory", "32", "--discovery", "cmdline", "--start",
                 "--ttl", "60", "--idle-timeout", "50", "--auto-delete")
        assert r.returncode == 0, r
        v = d.vm("a")["lifetime"]
        assert v.pop("ttl_left_ms") and v == {"ttl_ms": 60000, "idle_timeout_ms": 50000, "auto_delete": True}, v
        assert "ttl:       60000 ms" in thaw(d, "show", "a").stdout
        d.expect("a", "READY\n")
        assert thaw(d, "snapshot", "a", "s").returncode == 0
        assert thaw(d, "clone", "s", "--count", "2", "--ttl", "1", "--auto-delete").returncode == 0
        assert thaw(d, "clone", "s", "--name", "n", "--ttl", "1").returncode == 0
        ended(d, "n", "ttl")
        assert [v["name"] for v in d.get("/v1/vms").json["vms"]] == ["a", "n"]
        r = thaw(d, "clone", "s", "--limit", "memory_mib=64,cpu_percent=50")
        assert r.returncode in (0, 1) and (r.returncode == 0 or "limits" in r.stderr), r
        for wrong in ("memory=1", "pids", "pids=x"):
            assert thaw(d, "clone", "s", "--limit", wrong).returncode == 2


if __name__ == "__main__":
    main(globals())
