#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Live forks of running VMs, with the tiny guest: many at once, forks of forks, with disks, of lazily
loaded memory, parents and copies that die, and that nothing stays behind."""
import os
import signal
import threading
import time

from thawlib import Daemon, alive, main, need_kvm, recorded, thaw, wait_until


def start(d, name="a", **more):
    need_kvm()
    d.create(name, cmdline="thaw.genid=0xfe000", **more)
    d.expect(name, "READY\n")


def fork(d, vm, *names, **more):
    r = d.post(f"/v1/vms/{vm}/clone", {"clones": [{"name": n, **more} for n in names]})
    assert r.status == 201, r
    for n in names:
        d.expect(n, "RESTORED\n")
    return r.json


def processes(d):
    return set(d.vm_processes())


def test_three_deep_and_apart():
    with Daemon() as d:
        start(d, vsock={"cid": 5})
        d.say("a", "fill 0 200 1")
        r = fork(d, "a", "b", "c")
        assert 0 < r["pause_us"] < 1000000
        assert d.vm("b")["forked_from"] == "a"
        sums = {n: d.say(n, "sum 0 200") for n in "abc"}
        assert len(set(sums.values())) == 1, sums
        # what one writes the others don't see, in all directions
        for i, n in enumerate("abc"):
            d.say(n, f"fill {10 * i} 10 {100 + i}")
        sums = {n: d.say(n, "sum 0 200") for n in "abc"}
        assert len(set(sums.values())) == 3, sums
        fork(d, "b", "bb")
        fork(d, "bb", "bbb")
        assert d.say("bbb", "sum 0 200") == sums["b"]
        assert d.say("a", "sum 0 200") == sums["a"]
        names = ("a", "b", "c", "bb", "bbb")
        assert len({d.say(n, "genid") for n in names}) == 5
        assert len({d.say(n, "rand 16") for n in names}) == 5
        assert len({d.vm(n)["config"]["vsock"]["path"] for n in names}) == 5
        # no copy needs those it came from
        for n in ("a", "b", "bb"):
            assert d.delete(f"/v1/vms/{n}").status == 204
        assert d.say("bbb", "sum 0 200") == sums["b"]
        assert d.say("c", "sum 0 200") == sums["c"]
        r = d.post("/v1/snapshots", {"name": "s", "vm": "bbb"})
        assert r.status == 201, r
        assert d.post("/v1/snapshots/s/clone", {"clones": [{"name": "again"}]}).status == 201
        d.expect("again", "RESTORED\n")
        assert d.say("again", "sum 0 200") == sums["b"]
        assert len(processes(d)) == 3


def test_many_at_once_are_of_one_moment():
    with Daemon() as d:
        start(d)
        done = []

        def talk():  # the parent goes on all the time
            while not done:
                d.say("a", "echo x")
        t = threading.Thread(target=talk)
        t.start()
        try:
            r = d.post("/v1/vms/a/clone", {"count": 60, "run": False})
        finally:
            done.append(1)
            t.join(60)
        assert r.status == 201 and len(r.json["clones"]) == 60, r
        names = [c["name"] for c in r.json["clones"]]
        assert names[0] == "a-1" and all(c["state"] == "paused" for c in r.json["clones"])
        counts = set()
        for n in names[:5] + names[-5:]:
            assert d.post(f"/v1/vms/{n}/resume").status == 200
            d.expect(n, "RESTORED\n")
            # The moment may be in the middle of an answer: its rest comes first.
            assert d.put(f"/v1/vms/{n}/console", "echo z\n").status == 204
            d.expect(n, "OK z\n")
            counts.add(d.say(n, "count"))
        assert len(counts) == 1, counts
        assert int(d.say("a", "count").split()[1]) > int(counts.pop().split()[1])
        assert d.get("/v1/info").json["vms"]["total"] == 61


def test_disks():
    with Daemon() as d:
        base = os.path.join(d.folder, "disk")
        with open(base, "wb") as f:
            f.write(b"base" * 512 * 64)
        before = open(base, "rb").read()
        start(d, drives=[{"id": "root", "path": base, "layer": "ephemeral"}])
        d.say("a", "blk w 8 of-a")
        fork(d, "a", "b", "c")
        of_a = d.say("a", "blk r 8")
        assert d.say("b", "blk r 8") == of_a == d.say("c", "blk r 8")
        d.say("b", "blk w 8 of-b")
        d.say("a", "blk w 8 anew")
        assert len({d.say(n, "blk r 8") for n in "abc"}) == 3
        assert d.say("c", "blk r 8") == of_a
        fork(d, "b", "bb")
        assert d.say("bb", "blk r 8") == d.say("b", "blk r 8") != of_a
        assert open(base, "rb").read() == before
        for n in ("a", "b", "c", "bb"):
            assert d.delete(f"/v1/vms/{n}").status == 204
        assert not os.listdir(os.path.join(d.state_dir, "layers"))
        # a file that is written to without a layer can't be shared
        start(d, "w", drives=[{"id": "root", "path": base}])
        r = d.post("/v1/vms/w/clone", {})
        assert r.status == 409 and r.code == "in_use", r
        assert d.state("w") == "running"


def test_of_clones():
    with Daemon() as d:
        start(d)
        d.say("a", "fill 0 2000 5")
        want = d.say("a", "sum 0 2000")
        assert d.post("/v1/snapshots", {"name": "s", "vm": "a", "format": "lz4"}).status == 201
        r = d.post("/v1/snapshots/s/prepare", {"fill": False})
        assert r.status == 200, r
        assert d.post("/v1/snapshots/s/clone", {"clones": [{"name": "lazy"}]}).status == 201
        d.expect("lazy", "RESTORED\n")
        fork(d, "lazy", "f")
        assert d.vm("f")["from_snapshot"] == "s"
        assert d.say("f", "sum 0 2000") == want
        assert d.post("/v1/snapshots/s/prepare", {"pool": {"size": 1}, "wait": True}).status == 200
        assert d.post("/v1/snapshots/s/clone", {"clones": [{"name": "pooled"}]}).json["clones"][0]["prepared"]
        fork(d, "pooled", "g")
        assert d.say("g", "sum 0 2000") == want


def test_paused_and_wrong_states():
    with Daemon() as d:
        start(d)
        assert d.post("/v1/vms/a/pause").status == 200
        fork(d, "a", "b")
        assert d.state("a") == "paused" and d.state("b") == "running"
        assert d.post("/v1/vms/a/resume").status == 200
        for body, status, code in (({"count": 0}, 400, None), ({"clones": []}, 400, None),
                                   ({"clones": [{"name": "b"}]}, 409, "vm_exists"),
                                   ({"clones": [{"drives": [{"id": "x"}]}]}, 400, "invalid_value"),
                                   ({"clones": [{"vsock": {"cid": 9}}]}, 400, "invalid_value")):
            r = d.post("/v1/vms/a/clone", body)
            assert r.status == status and code in (None, r.code), (body, r)
        r = d.post("/v1/vms/a/clone", {"clones": [{"name": "b"}, {"name": "ok"}]})
        assert r.status == 207 and [("error" in c) for c in r.json["clones"]] == [True, False], r
        assert d.post("/v1/vms/none/clone", {}).status == 404
        assert d.post("/v1/vms/b/stop", {"mode": "kill", "wait_ms": 5000}).status == 200
        r = d.post("/v1/vms/b/clone", {})
        assert r.status == 409 and r.code == "wrong_state", r
        d.create("new", start=False)
        assert d.post("/v1/vms/new/clone", {}).code == "wrong_state"
        assert d.say("a", "echo x") == d.say("ok", "echo x")


def test_what_dies_harms_nobody_else():
    with Daemon() as d:
        start(d)
        fork(d, "a", "b", "c")
        os.kill(d.vm("b")["pid"], signal.SIGKILL)
        v = d.wait_state("b", "exited")
        assert v["exit"]["reason"] == "crashed" and v["exit"]["signal"] == 9, v
        os.kill(d.vm("a")["pid"], signal.SIGKILL)
        d.wait_state("a", "exited")
        assert d.say("c", "echo x") == "OK x"
        assert len(processes(d)) == 1
        # killed in the middle of being forked: all are answered for
        for k in range(6):
            start(d, f"p{k}")
            pid = d.vm(f"p{k}")["pid"]
            done = []
            t = threading.Thread(target=lambda n=f"p{k}": done.append(d.post(f"/v1/vms/{n}/clone", {"count": 40})))
            t.start()
            time.sleep(0.002 + 0.01 * k)
            os.kill(pid, signal.SIGKILL)
            t.join(60)
            r = done[0]
            there = [c["name"] for c in r.json.get("clones", []) if "error" not in c]
            for n in there:
                assert d.state(n) == "running"
                assert d.delete(f"/v1/vms/{n}").status == 204
            assert d.delete(f"/v1/vms/p{k}").status == 204
        wait_until("only c", lambda: len(processes(d)) == 1)
        assert not alive(pid)


def test_many_forks_leave_nothing():
    with Daemon() as d:
        start(d, vsock={"cid": 5})

        def cycle(n):
            for i in range(n):
                fork(d, "a", f"x{i}", f"y{i}")
                for k in "xy":
                    assert d.delete(f"/v1/vms/{k}{i}").status == 204
            d.settle()
        cycle(5)
        fds, state = d.open_fds(), (len(processes(d)), len(d.leftovers()))
        fds_of_a = len(os.listdir(f"/proc/{d.vm('a')['pid']}/fd"))
        cycle(40)
        wait_until("no more than before", lambda: (len(processes(d)), len(d.leftovers())) == state)
        wait_until("descriptors closed", lambda: d.open_fds() <= fds + 1)  # of a connection that ends
        assert len(os.listdir(f"/proc/{d.vm('a')['pid']}/fd")) <= fds_of_a
        # a chain: each a fork of the one before, which goes
        name = "a"
        for i in range(20):
            fork(d, name, f"g{i}")
            assert d.delete(f"/v1/vms/{name}").status == 204
            name = f"g{i}"
        assert d.say(name, "echo deep") == "OK deep"
        assert len(processes(d)) == 1
        assert d.stop() == 0 and not d.leftovers()


def test_daemon_that_is_killed_leaves_them_to_the_next():
    with Daemon() as d:
        start(d)
        fork(d, "a", "b", "c")
        pids = {d.vm(n)["pid"] for n in "abc"}
        recorded(d, "a", "b", "c")
        assert d.delete("/v1/vms/a").status == 204
        d.stop(signal.SIGKILL)
        assert len(d.vms_alive()) == 2
        d.start()
        assert {d.vm(n)["pid"] for n in "bc"} < pids and d.say("b", "echo x") == "OK x"
        fork(d, "b", "bb")
        assert d.stop() == 0
        wait_until("gone", lambda: not any(alive(p) for p in pids) and not d.vms_alive())


def test_the_command_line():
    with Daemon() as d:
        start(d)
        r = thaw(d, "fork", "a", "--count", "3")
        assert r.returncode == 0 and "a-3" in r.stdout, r
        r = thaw(d, "fork", "a", "--name", "n", "--paused")
        assert r.returncode == 0 and d.state("n") == "paused", r
        assert "fork of:   a" in thaw(d, "show", "n").stdout
        r = thaw(d, "fork", "none")
        assert r.returncode == 1 and "none" in r.stderr, r


if __name__ == "__main__":
    main(globals())
