#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How requests and interrupts travel, with a real driver on KVM: GET /v1/vms/{name}/devices."""
import json
import os
import re

from thawlib import ARM64, Daemon, main, need_kvm, thaw, wait_until

RNG_PIN = 8 if ARM64 else 5  # of slot 0: a VM without drives, nets and vsock


def devices(d, name="vm"):
    r = d.get(f"/v1/vms/{name}/devices")
    assert r.status == 200, r
    return r.json


def rng(v):
    return v["devices"][-1]["queues"][0]


def grown(before, after):
    """By how much the counters of rng's queue and the vCPU's MMIO exits grew."""
    g = {k: rng(after)[k] - rng(before)[k] for k in rng(after) if isinstance(rng(after)[k], int)}
    # On arm64 the console is memory-mapped as well.
    g["mmio"] = 0 if ARM64 else after["vcpus"][0]["exits"]["mmio"] - before["vcpus"][0]["exits"]["mmio"]
    return g


def events(d, name, how, n, irq):
    before = devices(d, name)
    assert d.say(name, f"events {RNG_PIN} {how} {n}{' irq' if irq else ''}") == f"OK {n}"
    return grown(before, devices(d, name))


def test_kicks_take_no_exit_and_interrupts_are_as_asked_for():
    need_kvm()
    with Daemon() as d:
        d.create("vm")
        d.expect("vm", "READY\n")
        assert devices(d)["devices"][0]["status"] == []
        d.say("vm", "rand 1")  # sets the device up
        for n in (1, 100, 3000):
            for irq in (True, False):
                g = events(d, "vm", "each", n, irq)
                assert g["kicks_by_event"] == g["popped"] == g["used"] == n, (n, irq, g)
                assert g["kicks_by_exit"] == 0 and g["mmio"] == 0, (n, irq, g)
                # One for all n requests, when the driver asked for the last one; the guest slept until it came.
                assert g["interrupts"] == irq and 0 < g["interrupts"] + g["interrupts_suppressed"] <= n, (n, irq, g)
        for irq in (True, False):  # several requests per kick
            g = events(d, "vm", "batch", 160, irq)
            assert g["kicks_by_event"] == 10 and g["used"] == 160 and g["mmio"] == 0, g
            assert g["interrupts"] == irq and g["kicks_by_exit"] == 0, g


def test_over_the_wrap_of_the_indexes():
    need_kvm()
    with Daemon() as d:
        d.create("vm")
        d.expect("vm", "READY\n")
        d.say("vm", "rand 1")
        for _ in range(5):  # 2^16 requests and more
            g = events(d, "vm", "batch", 16000, True)
            assert g["interrupts"] == 1 and g["used"] == 16000 and g["mmio"] == 0, g
        q = rng(devices(d))
        assert q["used"] > 1 << 16 and q["next_used"] == q["used"] % (1 << 16) == q["next_avail"], q


def test_in_clones_and_after_a_pause():
    need_kvm()
    with Daemon() as d:
        d.create("vm")
        d.expect("vm", "READY\n")
        events(d, "vm", "each", 10, True)
        d.post("/v1/vms/vm/pause")
        v = devices(d)
        d.post("/v1/vms/vm/resume")
        assert d.post("/v1/snapshots", {"name": "s", "vm": "vm"}).status == 201
        assert d.post("/v1/snapshots/s/clone", {"count": 1}).status == 201
        assert d.post("/v1/vms/vm/clone", {"count": 1}).status == 201
        for name in ("s-1", "vm-1"):
            d.expect(name, "RESTORED")
            c = devices(d, name)
            assert c["devices"][0]["features"] == v["devices"][0]["features"]
            assert rng(c)["used"] == 0 and rng(c)["next_used"] == rng(v)["next_used"], c
        for name in ("vm", "s-1", "vm-1"):
            g = events(d, name, "each", 200, True)
            assert g["kicks_by_event"] == 200 and g["interrupts"] == 1 and g["mmio"] == 0, (name, g)


def test_a_queue_with_a_thread_of_its_own():
    need_kvm()
    with Daemon() as d:
        disk = os.path.join(d.folder, "disk")
        with open(disk, "wb") as f:
            f.truncate(1 << 20)
        d.create("vm", drives=[{"id": "root", "path": disk, "queues": 2}], vcpus=2)
        d.expect("vm", "READY\n")
        d.say("vm", "blk r 0")
        assert d.say("vm", "blk q 1").startswith("OK"), "the second queue"
        before = devices(d)
        for _ in range(50):
            d.say("vm", "blk r 0")
        after = devices(d)
        q = [after["devices"][0]["queues"][i] for i in (0, 1)]
        assert q[0] == before["devices"][0]["queues"][0], q
        assert q[1]["used"] == q[1]["popped"] == q[1]["kicks_by_event"] == 50 == q[1]["interrupts_suppressed"], q
        assert q[1]["kicks_by_exit"] == q[1]["continued"] == 0 == q[1]["interrupts"], q
        for _ in range(50):  # asking while that thread works
            d.put("/v1/vms/vm/console", "blk r 0\n" * 5)
            used = devices(d)["devices"][0]["queues"][1]["used"]
            assert used >= q[1]["used"], used
            q[1]["used"] = used
        assert d.state("vm") == "running"


def test_what_is_shown():
    need_kvm()
    with Daemon() as d:
        disk = os.path.join(d.folder, "disk")
        with open(disk, "wb") as f:
            f.truncate(1 << 20)
        d.create("vm", drives=[{"id": "root", "path": disk, "read_only": True}], vsock={"cid": 3}, vcpus=2)
        d.expect("vm", "READY\n")
        d.say("vm", "blk r 0")
        v = devices(d)
        assert [(x["slot"], x["type"], x["device_id"]) for x in v["devices"]] == \
            [(0, "blk", 2), (1, "vsock", 19), (2, "rng", 4)]
        assert [len(x["queues"]) for x in v["devices"]][1:] == [3, 1] and len(v["vcpus"]) == 2
        blk = v["devices"][0]
        assert blk["name"] == "drive root" and "driver_ok" in blk["status"]
        assert {"ro", "flush", "version_1"} <= set(blk["features"]["offered"])
        assert set(blk["features"]["acked"]) == {"flush", "version_1"}
        assert int(blk["features"]["acked_mask"], 0) == 1 << 32 | 1 << 9
        assert blk["queues"][0]["used"] == 1 and blk["queues"][0]["interrupts_suppressed"] == 1
        assert not any(re.match("bit-|device-", x) for y in v["devices"]
                       for x in [y["type"], *y["features"]["offered"], *y["status"]])
        m = d.get("/v1/vms/vm/metrics").json
        assert m["kicks"] == 1 == m["requests"] == m["interrupts_suppressed"] and m["interrupts"] == 0, m
        assert m["mmio_exits"] == sum(c["exits"]["mmio"] for c in v["vcpus"]) > 0 and m["kicks_by_exit"] == 0
        r = thaw(d, "devices", "vm")
        assert r.returncode == 0 and re.search(r"drive root \(blk, slot 0\)", r.stdout), r
        assert "vcpu 1: exits" in r.stdout and re.search(r"^  in use +flush version_1$", r.stdout, re.M), r
        shown = json.loads(thaw(d, "devices", "vm", "--json").stdout)
        assert shown["devices"] == v["devices"]
        d.create("none", rng=False)
        assert devices(d, "none")["devices"] == [] and len(devices(d, "none")["vcpus"]) == 1
        assert d.get("/v1/vms/nobody/devices").code == "vm_not_found"
        d.post("/v1/vms/none/stop", {"mode": "kill"})
        wait_until("it has exited", lambda: d.state("none") == "exited")
        assert d.get("/v1/vms/none/devices").code == "wrong_state"


if __name__ == "__main__":
    main(globals())
