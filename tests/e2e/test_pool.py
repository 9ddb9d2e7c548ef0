#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Pools of clones restored in advance, with the tiny guest: what a claimed clone is, what can't be
claimed, shells that die, sizes by number and by rate, and that nothing stays behind."""
import glob
import os
import signal
import subprocess
import threading
import time

from thawlib import BIN, SANITIZED, Daemon, Skip, UnixConnection, alive, main, need_kvm, thaw, wait_until


def freeze(d, fmt="raw", **more):
    need_kvm()
    d.create("source", cmdline="thaw.genid=0xfe000", **more)
    d.expect("source", "READY\n")
    r = d.post("/v1/snapshots", {"name": "snap", "vm": "source", "format": fmt})
    assert r.status == 201, r


def prepare(d, wait=True, **pool):
    r = d.post("/v1/snapshots/snap/prepare", {"pool": pool, "wait": wait})
    assert r.status == 200, r
    return r.json["pool"]


def pool(d):
    r = d.get("/v1/snapshots/snap")
    assert r.status == 200, r
    return r.json.get("pool")


def clone(d, prepared, **spec):
    r = d.post("/v1/snapshots/snap/clone", {"clones": [spec]})
    assert r.status == 201, r
    c = r.json["clones"][0]
    assert c["prepared"] is prepared, c
    d.expect(c["name"], "RESTORED\n")
    return c


def test_a_claimed_clone_is_one_of_its_own():
    with Daemon() as d:
        freeze(d, vsock={"cid": 5})
        assert pool(d) is None
        p = prepare(d, size=3)
        assert (p["size"], p["ready"], p["hits"]) == (3, 3, 0), p
        assert p["shell_bytes"] > 0
        a, b = clone(d, True), clone(d, True, name="mine")
        assert a["name"] == "snap-1" and b["name"] == "mine"
        assert a["id"] != b["id"] and a["vsock_path"] != b["vsock_path"]
        assert os.path.exists(a["vsock_path"]) and os.path.exists(b["vsock_path"])
        ids = {d.say(n, "genid") for n in ("source", "snap-1", "mine")}
        assert len(ids) == 3, ids
        assert d.say("snap-1", "rand 16") != d.say("mine", "rand 16")
        v = d.vm("mine")
        assert v["state"] == "running" and v["from_snapshot"] == "snap" and v["config"]["name"] == "mine"
        assert "kvm_ready" not in v["timing_us"], "what was done before the request counts as of before it"
        assert v["timing_us"]["first_io"] >= v["timing_us"]["running"] > 0
        wait_until("full again", lambda: pool(d)["ready"] == 3)
        assert pool(d)["hits"] == 2
        # a claimed clone can be frozen, and dies like any other
        r = d.post("/v1/snapshots", {"name": "again", "vm": "mine"})
        assert r.status == 201 and r.json["parent_snapshot"] == "snap", r
        assert d.delete("/v1/vms/mine").status == 204
        assert not os.path.exists(b["vsock_path"])


def test_what_is_not_claimed_is_started():
    with Daemon() as d:
        base = os.path.join(d.folder, "disk")
        with open(base, "wb") as f:
            f.truncate(1 << 20)
        freeze(d, vsock={"cid": 5}, drives=[{"id": "root", "path": base, "layer": "ephemeral"}])
        prepare(d, size=2)
        # each shell has a layer of its own
        one, two = clone(d, True)["name"], clone(d, True)["name"]
        d.say(one, "blk w 8 one")
        assert d.say(two, "blk r 8") != d.say(one, "blk r 8")
        wait_until("full again", lambda: pool(d)["ready"] == 2)
        other = os.path.join(d.folder, "other")
        with open(other, "wb") as f:
            f.truncate(1 << 20)
        clone(d, False, drives=[{"id": "root", "path": other, "layer": "none"}])
        assert pool(d)["misses"] == 1
        path = os.path.join(d.folder, "v")
        c = clone(d, True, vsock={"path": path, "cid": 77})
        assert c["vsock_path"] == path and os.path.exists(path)
        assert d.vm(c["name"])["config"]["vsock"]["cid"] == 77
        own = [f for f in os.listdir(os.path.join(d.state_dir, "vsock")) if c["id"] in f]
        assert not own, "the shell's first socket is gone"
        r = d.post("/v1/snapshots/snap/clone", {"clones": [{"vsock": {"path": path}}]})
        assert r.status == 409 and r.code == "in_use", r
        r = d.post("/v1/snapshots/snap/clone", {"clones": [{"name": one}]})
        assert r.status == 409 and r.code == "vm_exists", r
        wait_until("full again", lambda: pool(d)["ready"] == 2)
        r = d.post("/v1/snapshots/snap/clone", {"count": 2, "run": False})
        assert r.status == 201 and all(c["state"] == "paused" and c["prepared"] for c in r.json["clones"]), r
        name = r.json["clones"][0]["name"]
        assert d.post(f"/v1/vms/{name}/resume").status == 200
        d.expect(name, "RESTORED\n")


def test_cpus_are_kept_awake_for_pools():
    """With --cpu-latency, while there is a pool."""
    device = "/dev/cpu_dma_latency"
    if not os.access(device, os.W_OK):
        raise Skip(f"{device} can't be written")

    def held(d):
        found = 0
        for fd in os.listdir(f"/proc/{d.process.pid}/fd"):
            try:
                found += os.readlink(f"/proc/{d.process.pid}/fd/{fd}") == device
            except FileNotFoundError:  # closed since it was listed
                pass
        return found

    with Daemon(["--cpu-latency", "20"]) as d:
        freeze(d)
        assert held(d) == 0
        prepare(d, size=1)
        assert held(d) == 1
        prepare(d, size=2)
        assert held(d) == 1
        assert d.delete("/v1/snapshots/snap/prepare").status == 204
        assert held(d) == 0
    for value in ("x", "-1", ""):
        r = subprocess.run([os.path.join(BIN, "thawd"), "--cpu-latency", value], capture_output=True, check=False,
                           timeout=10)
        assert r.returncode == 2, r


def test_shells_that_die_are_replaced():
    with Daemon() as d:
        freeze(d)
        known = set(d.vm_processes())
        prepare(d, size=2)
        shells = set(d.vm_processes()) - known
        assert len(shells) == 2
        for pid in shells:
            os.kill(int(pid), signal.SIGKILL)
        wait_until("told", lambda: pool(d)["failed"] == 2)
        clone(d, False)
        wait_until("full again", lambda: pool(d)["ready"] == 2)
        # stopped, so that it is claimed and then dies: the clone is started instead
        shells = set(d.vm_processes()) - known - {str(d.vm("snap-1")["pid"])}
        for pid in shells:
            os.kill(int(pid), signal.SIGSTOP)
        answer = []
        t = threading.Thread(target=lambda: answer.append(clone(d, False)))
        t.start()
        wait_until("claimed", lambda: pool(d)["hits"] == 1)
        for pid in shells:
            os.kill(int(pid), signal.SIGKILL)
        t.join(30)
        assert answer and d.state(answer[0]["name"]) == "running"


def test_settings():
    with Daemon() as d:
        freeze(d)
        for bad in ({}, {"size": 1, "max": 2}, {"size": 1, "min": 1}, {"min": 3, "max": 2},
                    {"size": 5000}, {"max": 0}, {"size": -1}, {"sise": 1}):
            r = d.post("/v1/snapshots/snap/prepare", {"pool": bad})
            assert r.status == 400, (bad, r)
            assert pool(d) is None
        prepare(d, size=3)
        assert prepare(d, size=1)["ready"] == 1
        r = d.post("/v1/snapshots/snap/prepare", {"wait": True})
        assert r.json["pool"]["size"] == 1, "unchanged"
        r = d.post("/v1/snapshots/snap/prepare", {"pool": {"size": 0}})
        assert r.status == 200 and "pool" not in r.json
        prepare(d, size=1)
        assert d.delete("/v1/snapshots/snap/prepare").status == 204
        assert pool(d) is None
        clone(d, False)


def test_dropped_while_somebody_waits_for_it():
    with Daemon() as d:
        freeze(d)
        for _ in range(5):
            answers = []
            waiting = threading.Thread(target=lambda: answers.append(
                d.post("/v1/snapshots/snap/prepare", {"pool": {"size": 64}, "wait": True})))
            waiting.start()
            wait_until("being made", lambda: pool(d) and pool(d)["starting"])
            assert d.delete("/v1/snapshots/snap/prepare").status == 204
            waiting.join(10)
            assert not waiting.is_alive(), "it would wait for ever"
            assert answers[0].status == 200 and "pool" not in answers[0].json, answers
        wait_until("just the source", lambda: len(d.vm_processes()) == 1)


def test_by_rate_and_drained_when_idle():
    with Daemon() as d:
        freeze(d)
        p = prepare(d, max=6, idle_s=2)
        assert (p["min"], p["max"], p["target"], p["ready"]) == (0, 6, 1, 1), p
        for _ in range(20):
            r = d.post("/v1/snapshots/snap/clone", {})
            assert r.status == 201, r
            assert d.delete("/v1/vms/" + r.json["clones"][0]["name"]).status == 204
        wait_until("grown", lambda: pool(d)["target"] == 6)
        wait_until("filled", lambda: pool(d)["ready"] == 6)
        wait_until("drained", lambda: pool(d)["ready"] == 0)
        assert pool(d)["target"] == 0
        clone(d, False)
        wait_until("back", lambda: pool(d)["ready"] >= 1)


def test_bounded_by_memory():
    with Daemon(args=["--pool-memory", "3"]) as d:
        freeze(d)
        p = prepare(d, size=100)
        assert 1 <= p["ready"] < 10 and "--pool-memory" in p["error"], p
        assert SANITIZED or p["ready"] * p["shell_bytes"] <= 3 << 20, p  # one is always made


def test_of_a_compressed_snapshot():
    with Daemon() as d:
        freeze(d, "lz4")
        prepare(d, size=2)
        assert d.get("/v1/snapshots/snap").json["template"]["complete"]
        a = clone(d, True)["name"]
        assert d.say(a, "sum 0 100") == d.say("source", "sum 0 100")


def test_goes_with_its_snapshot():
    with Daemon() as d:
        freeze(d)
        known = set(d.vm_processes())
        prepare(d, size=3)
        r = d.delete("/v1/snapshots/snap")
        assert r.status == 204, "shells are no reason to keep it"
        wait_until("no shells", lambda: set(d.vm_processes()) == known)
        # another one of the same name has no pool
        assert d.post("/v1/snapshots", {"name": "snap", "vm": "source"}).status == 201
        assert pool(d) is None
        clone(d, False)


def test_many_cycles_leave_nothing():
    with Daemon() as d:
        freeze(d, vsock={"cid": 5})
        prepare(d, size=4)
        clone(d, True)
        assert d.delete("/v1/vms/snap-1").status == 204

        def cycle(n):
            for i in range(n):
                r = d.post("/v1/snapshots/snap/clone", {"clones": [{"name": f"c{i}"}]})
                assert r.status == 201, r
                assert d.delete(f"/v1/vms/c{i}").status == 204
            wait_until("full", lambda: pool(d)["ready"] == 4)
            d.settle()
        cycle(10)
        fds, processes, files = d.open_fds(), len(d.vm_processes()), len(d.leftovers())
        cycle(150)
        wait_until("no more than before", lambda: (len(d.vm_processes()), len(d.leftovers())) == (processes, files))
        wait_until("descriptors closed", lambda: d.open_fds() <= fds + 1)  # of a connection that ends
        p = pool(d)
        assert p["failed"] == 0 and p["hits"] + p["misses"] == 161, p
        assert d.stop() == 0
        assert not d.leftovers()


def resident_kib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS:"))


def test_thousands_of_cycles_do_not_grow():
    """2,000 here; THAW_SOAK=20000 for more."""
    total, hands = int(os.environ.get("THAW_SOAK", "2000")), 4
    with Daemon() as d:
        freeze(d, vsock={"cid": 5})
        prepare(d, size=8)
        errors = []

        def work(k, n):
            con = UnixConnection(d.socket)

            def ask(method, path, body=None):
                con.request(method, path, body=body)
                r = con.getresponse()
                r.read()
                return r.status
            for _ in range(n):
                if (ask("POST", "/v1/snapshots/snap/clone", f'{{"clones":[{{"name":"c{k}"}}]}}'),
                        ask("DELETE", f"/v1/vms/c{k}")) != (201, 204):
                    errors.append(k)
                    return

        def cycles(n):
            threads = [threading.Thread(target=work, args=(k, n // hands)) for k in range(hands)]
            for t in threads:
                t.start()
            for t in threads:
                t.join(600)
            assert not errors, errors
            wait_until("full", lambda: pool(d)["ready"] == 8)
            d.settle()

        def sizes():
            files = sum(len(f) for _, _, f in os.walk(d.state_dir))
            return (len(d.vm_processes()), len(os.listdir(f"/proc/{d.process.pid}/task")), files)
        cycles(200)
        before, fds, kib = sizes(), d.open_fds(), resident_kib(d.process.pid)
        cycles(total)
        wait_until("no more than before", lambda: sizes() == before)
        wait_until("descriptors closed", lambda: d.open_fds() <= fds + 1)
        grown = resident_kib(d.process.pid) - kib
        print(f"# {total} cycles: the daemon's memory grew by {grown} KiB")
        assert SANITIZED or grown < 2048, grown  # a sanitizer keeps what was freed


def test_requests_from_many_connections():
    with Daemon() as d:
        freeze(d)
        prepare(d, size=10)
        errors = []

        def work(k):
            for i in range(10):
                r = d.post("/v1/snapshots/snap/clone", {"clones": [{"name": f"c{k}-{i}"}]})
                if r.status != 201 or d.delete(f"/v1/vms/c{k}-{i}").status != 204:
                    errors.append(r)
        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(120)
        assert not errors, errors
        p = pool(d)
        assert p["hits"] + p["misses"] == 80 and p["hits"] > 10, p


def test_time_goes_on_in_a_shell():
    with Daemon() as d:
        need_kvm()
        d.create("source", cmdline="thaw.genid=0xfe000")
        d.expect("source", "READY\n")
        d.say("source", "timer 1500")
        assert d.post("/v1/snapshots", {"name": "snap", "vm": "source"}).status == 201
        prepare(d, size=2)
        # before it is due, and long after
        for wait, at_most in ((0, 15), (2, 1.4)):
            time.sleep(wait)
            r = d.post("/v1/snapshots/snap/clone", {})
            assert r.json["clones"][0]["prepared"], r
            start = time.monotonic()
            d.expect(r.json["clones"][0]["name"], "TIMER")
            assert time.monotonic() - start < at_most


def test_spares():
    with Daemon(args=["--spares", "3"]) as d:
        def spares():
            return d.get("/v1/info").json["spare_pids"]
        freeze(d)
        wait_until("three", lambda: len(spares()) == 3)
        before = spares()
        clone(d, False)
        assert d.vm("snap-1")["pid"] in before
        assert "process_ready" not in d.vm("snap-1")["timing_us"]
        wait_until("three again", lambda: len(spares()) == 3)
        # those that died are not handed out, and are replaced
        dead = spares()
        for pid in dead:
            os.kill(pid, signal.SIGKILL)
        # with all their threads: their KVM VM may end last
        wait_until("dead", lambda: not any(alive(p) or len(glob.glob(f"/proc/{p}/task/*")) > 1 for p in dead))
        clone(d, False)
        wait_until("three others", lambda: len(spares()) == 3 and not set(spares()) & set(dead))
        wait_until("no zombies", lambda: not any(os.path.exists(f"/proc/{p}") for p in dead))
        pids = spares()
        assert d.stop() == 0
        wait_until("gone", lambda: not any(os.path.exists(f"/proc/{p}") for p in pids))
    with Daemon(args=["--spares", "0"]) as d:
        freeze(d)
        assert not d.get("/v1/info").json["spare_pids"]
        clone(d, False)
        assert "process_ready" in d.vm("snap-1")["timing_us"]


def test_the_command_line():
    with Daemon() as d:
        freeze(d)
        r = thaw(d, "snapshot-prepare", "snap", "--pool", "size=2", "--wait")
        assert r.returncode == 0 and "2 of 2 ready" in r.stdout, r
        assert pool(d)["ready"] == 2
        r = thaw(d, "snapshot-prepare", "snap", "--pool", "max=4", "--wait")
        assert r.returncode == 0 and pool(d)["max"] == 4, r
        r = thaw(d, "snapshot-prepare", "snap", "--pool", "many")
        assert r.returncode == 2, r


if __name__ == "__main__":
    main(globals())
