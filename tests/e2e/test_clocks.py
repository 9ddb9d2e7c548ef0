#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A guest that takes the time from its TSC is not late in its copies, nor early, whenever they start."""
import time

from thawlib import Daemon, main, need_kvm

NEAR_S = 0.1  # a busy host; what this is about are losses of up to a second, or of all the time a copy stood


class Clock:
    """The TSC of a VM on the host's clock, by its speed in the first second."""

    def __init__(self, d, vm):
        self.d = d
        self.start = self.read(vm)
        time.sleep(1)
        now = self.read(vm)
        self.hz = (now[0] - self.start[0]) / (now[1] - self.start[1])

    def read(self, vm):
        """(ticks, when), of the fastest of some tries."""
        tries = []
        for _ in range(5):
            before = time.monotonic()
            ticks = int(self.d.say(vm, "tsc").split()[1])
            after = time.monotonic()
            tries.append((after - before, ticks, (before + after) / 2))
        return min(tries)[1:]

    def ahead_s(self, vm):
        ticks, when = self.read(vm)
        return (ticks - self.start[0]) / self.hz - (when - self.start[1])

    def check(self, *vms):
        apart = {vm: self.ahead_s(vm) for vm in vms}
        print("# ahead by seconds:", apart)
        assert all(abs(s) < NEAR_S for s in apart.values()), apart


def boot(d):
    need_kvm()
    d.create("a")
    d.expect("a", "READY\n")
    return Clock(d, "a")


def clone(d, of, *names, **more):
    r = d.post(f"/v1/{of}/clone", {"clones": [{"name": n} for n in names], **more})
    assert r.status == 201, r


def restored(d, *names):
    for n in names:
        d.expect(n, "RESTORED\n")


def test_copies_made_at_once_and_later():
    with Daemon() as d:
        clock = boot(d)
        for i, wait in enumerate((0, 0.4, 1.5)):
            assert d.post("/v1/snapshots", {"name": f"s{i}", "vm": "a"}).status == 201
            time.sleep(wait)
            clone(d, f"snapshots/s{i}", f"c{i}")
            restored(d, f"c{i}")
            clock.check(f"c{i}", "a")


def test_forks_of_forks():
    with Daemon() as d:
        clock = boot(d)
        for parent, child in ("ab", "bc", "cd"):
            clone(d, f"vms/{parent}", child)
            restored(d, child)
        clock.check(*"abcd")


def test_a_copy_that_stands_before_it_starts():
    with Daemon() as d:
        clock = boot(d)
        assert d.post("/v1/snapshots", {"name": "s", "vm": "a"}).status == 201
        clone(d, "snapshots/s", "c", run=False)
        time.sleep(2)
        assert d.post("/v1/vms/c/resume").status == 200
        restored(d, "c")
        clock.check("c", "a")


def test_claims_of_a_pool():
    with Daemon() as d:
        clock = boot(d)
        assert d.post("/v1/snapshots", {"name": "s", "vm": "a"}).status == 201
        assert d.post("/v1/snapshots/s/prepare", {"pool": {"size": 2}, "wait": True}).status in (200, 202)
        time.sleep(2)
        clone(d, "snapshots/s", "p", "q")
        restored(d, "p", "q")
        clock.check("p", "q", "a")


def test_a_pause_is_not_lost():
    with Daemon() as d:
        clock = boot(d)
        assert d.post("/v1/vms/a/pause").status == 200
        time.sleep(1.5)
        assert d.post("/v1/vms/a/resume").status == 200
        clock.check("a")


if __name__ == "__main__":
    main(globals())
