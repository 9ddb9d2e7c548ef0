#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Idle VMs give their KVM VM back, and are woken by what would wake them (microvm/park.h)."""
import os
import re
import resource
import signal
import time

from thawlib import SANITIZED, Daemon, main, need_kvm, recorded, thaw, wait_until


def is_parked(pid):
    """A parked VM has no vCPU threads and no descriptor of a KVM VM."""
    if len(os.listdir(f"/proc/{pid}/task")) > 1:
        return False
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except FileNotFoundError:  # that changed just now
        return False
    return not any("kvm-v" in x for x in links)


def wait_parked(d, name):
    pid = d.vm(name)["pid"]
    wait_until(f"{name} is parked", lambda: is_parked(pid), 60)
    return pid


def parking(d, name, said):
    """What the daemon knows, when it knows that; it hears of it once a second."""
    wait_until(f"{name}: parking", lambda: said(d.vm(name)["parking"]))
    return d.vm(name)["parking"]


def boot(d, name="a", **more):
    d.create(name, idle_park_ms=50, **more)
    d.expect(name, "READY\n")


def test_it_parks_and_a_line_on_its_console_wakes_it():
    need_kvm()
    with Daemon() as d:
        boot(d)
        assert d.say("a", "fill 0 200 7") == "OK 200"
        digest = d.say("a", "sum 0 200")
        for _ in range(3):
            wait_parked(d, "a")
            assert d.state("a") == "running"
            assert d.say("a", "sum 0 200") == digest
        wait_parked(d, "a")
        p = parking(d, "a", lambda p: p["parked"] and p["parks"] >= 4)
        assert p["wakes"]["device"] >= 3 and p["wakes"]["request"] == 0, p
        assert 0 < p["wake_last_us"] <= p["wake_max_us"] and "error" not in p, p
        assert d.vm("a")["lifetime"] == {"idle_park_ms": 50}
        text = d.get("/v1/metrics").body.decode()
        assert "\nthaw_vms_parked 1\n" in text, text
        assert int(re.search(r"\nthaw_vm_parks_total (\d+)", text)[1]) >= 4
        assert "parking:   parked; after 50 ms" in thaw(d, "show", "a").stdout


def test_what_is_not_given_or_not_allowed():
    need_kvm()
    with Daemon() as d:
        for bad in (0, 19, 86400001, "x", -1, 1.5):
            r = d.post("/v1/vms", {"name": "b", "kernel": "/nowhere", "memory_mib": 32, "idle_park_ms": bad})
            assert r.status == 400 and "idle_park_ms" in r.message, r
        d.create("a")
        d.expect("a", "READY\n")
        time.sleep(0.5)
        assert not is_parked(d.vm("a")["pid"]) and "parking" not in d.vm("a")


def test_its_own_timer_wakes_it_in_time():
    need_kvm()
    with Daemon() as d:
        boot(d)
        _, offset = d.console("a")
        start = time.monotonic()
        assert d.say("a", "timer 3000") == "OK"
        wait_parked(d, "a")
        d.expect("a", "TIMER\n", offset)
        took = time.monotonic() - start
        assert 2.99 < took < (6 if SANITIZED else 4), took
        p = parking(d, "a", lambda p: p["parks"] >= 2)
        assert p["wakes"]["timer"] == 1, p


def test_its_tsc_goes_on_as_the_hosts():
    need_kvm()
    with Daemon() as d:
        boot(d)

        def ticks():  # and between which moments they were read
            before = time.monotonic()
            return before, int(d.say("a", "tsc").split()[1]), time.monotonic()

        (b0, c0, a0), _, (b1, c1, a1) = ticks(), time.sleep(1), ticks()
        slowest, fastest = (c1 - c0) / (a1 - b0), (c1 - c0) / (b1 - a0)
        for _ in range(5):
            wait_parked(d, "a")
            time.sleep(0.5)
            b2, c2, a2 = ticks()
            assert slowest * (b2 - a1) * 0.99 < c2 - c1 < fastest * (a2 - b1) * 1.01, (c2 - c1, slowest, fastest)


def test_a_changed_balloon_wakes_it():
    need_kvm()
    with Daemon() as d:
        boot(d, balloon={})
        assert d.say("a", "balloon target") == "OK 0"  # the driver is there
        wait_parked(d, "a")
        before = parking(d, "a", lambda p: p["parked"])
        assert d.request("PATCH", "/v1/vms/a/balloon", {"target_mib": 2}).status == 200
        after = parking(d, "a", lambda p: p["parks"] > before["parks"])
        assert after["wakes"]["device"] > before["wakes"]["device"], after
        assert d.say("a", "balloon target") == "OK 512"


def test_looking_at_it_does_not_wake_it():
    need_kvm()
    with Daemon() as d:
        boot(d)
        wait_parked(d, "a")
        before = parking(d, "a", lambda p: p["parked"])
        assert d.get("/v1/vms/a/devices").json["vcpus"], "counters are kept"
        for path in ("", "/metrics", "/console"):
            assert d.get("/v1/vms/a" + path).status == 200, path
        assert d.get("/v1/metrics?per_vm=true").status == 200
        time.sleep(1.2)
        assert d.vm("a")["parking"] == before


def test_pause_and_resume_of_a_parked_vm():
    need_kvm()
    with Daemon() as d:
        boot(d)
        wait_parked(d, "a")
        before = parking(d, "a", lambda p: p["parked"])
        assert d.post("/v1/vms/a/pause").json["state"] == "paused"
        assert d.put("/v1/vms/a/console", "echo later\n").status == 204
        time.sleep(0.3)
        assert is_parked(d.vm("a")["pid"])
        _, offset = d.console("a")
        assert d.post("/v1/vms/a/resume").json["state"] == "running"
        d.expect("a", "OK later\n", offset)
        # And with nothing to do: it stays parked.
        wait_parked(d, "a")
        p = parking(d, "a", lambda p: p["parked"] and p["parks"] > before["parks"])
        for _ in range(20):
            assert d.post("/v1/vms/a/pause").status == d.post("/v1/vms/a/resume").status == 200
        time.sleep(1.2)
        assert d.vm("a")["parking"] == p
        assert d.say("a", "echo x") == "OK x"


def test_a_paused_vm_is_parked_and_goes_on_where_it_was():
    need_kvm()
    with Daemon() as d:
        boot(d)
        _, offset = d.console("a")
        assert d.say("a", "loop") == "OK"  # never waits
        time.sleep(0.3)
        assert not is_parked(d.vm("a")["pid"])
        assert d.post("/v1/vms/a/pause").status == 200
        wait_parked(d, "a")
        assert d.post("/v1/vms/a/resume").status == 200
        assert not is_parked(d.vm("a")["pid"])
        p = parking(d, "a", lambda p: p["wakes"]["request"] == 1)
        assert p["parks"] >= 1 and d.state("a") == "running", p
        assert d.delete("/v1/vms/a").status == 204


def test_a_snapshot_of_a_parked_vm_and_its_clones():
    need_kvm()
    with Daemon() as d:
        boot(d)
        d.say("a", "store before")
        digest = d.say("a", "sum 0 50")
        wait_parked(d, "a")
        before = parking(d, "a", lambda p: p["parked"])
        assert d.post("/v1/snapshots", {"name": "s", "vm": "a"}).status == 201
        r = d.post("/v1/vms/a/clone", {"clones": [{"name": "f", "idle_park_ms": 50}]})
        assert r.status == 201, r
        time.sleep(1.2)
        assert d.vm("a")["parking"] == before, "taken without waking it"
        r = d.post("/v1/snapshots/s/clone", {"clones": [{"name": "c", "idle_park_ms": 50}, {"name": "n"}]})
        assert r.status == 201, r
        for name in "cnf":
            d.expect(name, "RESTORED\n")
            if name != "n":
                wait_parked(d, name)
            assert d.say(name, "load") == "OK before" and d.say(name, "sum 0 50") == digest
            out, _ = d.console(name)
            assert out.count(b"RESTORED") == 1, out  # a wake is no restore
        assert not is_parked(d.vm("n")["pid"])
        assert d.say("a", "load") == "OK before"
        assert b"RESTORED" not in d.console("a")[0]


def test_clones_of_a_pool():
    need_kvm()
    with Daemon() as d:
        d.create("src")
        d.expect("src", "READY\n")
        assert d.post("/v1/snapshots", {"name": "s", "vm": "src"}).status == 201
        assert d.post("/v1/snapshots/s/prepare", {"pool": {"size": 2}, "wait": True}).status in (200, 202)
        r = d.post("/v1/snapshots/s/clone", {"count": 2, "idle_park_ms": 50})
        assert r.status == 201, r
        for c in r.json["clones"]:
            assert c.get("claimed", c.get("from_pool", True)), c
            wait_parked(d, c["name"])
            assert d.say(c["name"], "echo x") == "OK x"


def test_incremental_snapshots_know_what_was_written_before_it_was_parked():
    need_kvm()
    with Daemon() as d:
        boot(d, track_dirty=True)
        assert d.say("a", "fill 0 100 1") == "OK 100"
        r = d.post("/v1/snapshots", {"name": "s0", "vm": "a", "format": "lz4"})
        assert r.status == 201, r
        sums = {}
        for i in range(1, 4):
            assert d.say("a", f"fill {10 * i} 10 {i + 5}") == "OK 10"
            wait_parked(d, "a")
            if i == 2:  # and what was written after that
                d.say("a", "fill 90 5 99")
                wait_parked(d, "a")
            sums[i] = d.say("a", "sum 0 100")
            r = d.post("/v1/snapshots", {"name": f"s{i}", "vm": "a", "format": "lz4", "incremental": True})
            assert r.status == 201, r
        for i, digest in sums.items():
            r = d.post(f"/v1/snapshots/s{i}/clone", {"clones": [{"name": f"c{i}"}]})
            assert r.status == 201, r
            d.expect(f"c{i}", "RESTORED\n")
            assert d.say(f"c{i}", "sum 0 100") == digest


def test_two_vcpus():
    need_kvm()
    with Daemon() as d:
        boot(d, vcpus=2)
        for i in range(5):
            wait_parked(d, "a")
            assert d.say("a", f"echo {i}") == f"OK {i}"


def test_its_ends():
    need_kvm()
    with Daemon() as d:
        for name, end in (("button", lambda: d.post("/v1/vms/button/stop", {"wait_ms": 10000})),
                          ("kill", lambda: d.post("/v1/vms/kill/stop", {"mode": "kill"})),
                          ("exit", lambda: d.put("/v1/vms/exit/console", "exit\n")),
                          ("delete", lambda: d.delete("/v1/vms/delete"))):
            boot(d, name)
            wait_parked(d, name)
            r = end()
            assert r.status in (200, 202, 204), (name, r)
            if name != "delete":
                v = d.wait_state(name, "exited")
                assert v["exit"]["reason"] == ("killed" if name == "kill" else "shutdown"), v
                assert not v["parking"]["parked"], v
        boot(d, "ttl", ttl_ms=1500)
        boot(d, "idle", idle_timeout_ms=1000)
        wait_parked(d, "ttl")
        wait_parked(d, "idle")
        assert d.wait_state("ttl", "exited")["exit"]["reason"] == "ttl"
        assert d.wait_state("idle", "exited")["exit"]["reason"] == "idle"


def test_one_that_can_not_be_woken_ends():
    need_kvm()
    with Daemon() as d:
        boot(d)
        pid = wait_parked(d, "a")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 3))
        d.put("/v1/vms/a/console", "echo x\n")
        v = d.wait_state("a", "exited")
        assert v["exit"]["reason"] == "kvm-error" and "parked and can't be woken" in v["exit"]["detail"], v


def test_another_daemon_finds_it_parked():
    need_kvm()
    with Daemon() as d:
        boot(d)
        d.say("a", "store kept")
        recorded(d, "a")
        pid = wait_parked(d, "a")
        parks = parking(d, "a", lambda p: p["parked"])["parks"]
        for _ in range(2):
            d.stop(signal.SIGKILL)
            time.sleep(0.3)
            assert is_parked(pid)
            d.start()
            wait_until("adopted", lambda: d.get("/v1/vms/a").status == 200)
            v = d.wait_state("a", "running")
            assert v["pid"] == pid and v["lifetime"] == {"idle_park_ms": 50}, v
            assert parking(d, "a", lambda p: p["parked"])["parks"] == parks
        assert d.say("a", "load") == "OK kept"
        wait_parked(d, "a")
        assert parking(d, "a", lambda p: p["parked"] and p["parks"] > parks)


def test_a_thousand_times_and_nothing_grows():
    need_kvm()
    rounds = 60 if SANITIZED else 1000
    with Daemon() as d:
        d.create("a", idle_park_ms=20)
        d.expect("a", "READY\n")
        assert d.say("a", "fill 0 100 3") == "OK 100"
        digest = d.say("a", "sum 0 100")
        seen = []
        for i in range(rounds):
            pid = wait_parked(d, "a")
            if i % (rounds // 4) == rounds // 8:
                rss = int(re.search(r"RssAnon:\s+(\d+)", open(f"/proc/{pid}/status", encoding="ascii").read())[1])
                seen.append((len(os.listdir(f"/proc/{pid}/fd")), rss))
            assert d.say("a", "sum 0 100" if i % 10 == 0 else f"echo {i}") == (digest if i % 10 == 0 else f"OK {i}")
        assert len({fds for fds, _ in seen}) == 1, seen
        if not SANITIZED:
            assert seen[-1][1] <= seen[0][1] + 32, seen
        assert d.say("a", "count") == f"OK {rounds + 3}"
        wait_parked(d, "a")
        assert parking(d, "a", lambda p: p["parked"] and p["parks"] >= rounds)


main(globals())
