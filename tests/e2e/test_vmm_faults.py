#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Faults inside VM processes, by tests/faults/shim.c in a variant of thaw-vmm: every write of a
snapshot fails, is short, or is the last thing that the writing child or the VM process does; and
a VM process or the pager is killed, or a call fails, at each step of a clone."""
import errno
import os

from test_disks import drive, make_base
from test_lazy import need_userfaultfd, pager_pid
from thawlib import B, SANITIZED, Daemon, Skip, main, need_kvm, wait_until

VMM = os.path.join(B, "tests/faults/thaw-vmm")
PAGES = 300


class FaultyVms(Daemon):
    serial = 0

    def __init__(self):
        if not os.path.exists(VMM):
            raise Skip(f"{VMM} is not built")
        if SANITIZED:
            raise Skip("a sanitizer's own calls would count")
        super().__init__(vmm=VMM)
        self.plan = os.path.join(self.folder, "plan")
        self.prefix = ["env", f"THAW_FAULTS={self.plan}"]

    def arm(self, op, n, action):
        FaultyVms.serial += 1
        if os.path.exists(self.plan + ".fired"):
            os.unlink(self.plan + ".fired")
        with open(self.plan + ".new", "w", encoding="ascii") as f:
            f.write(f"{FaultyVms.serial} {op} {n} {action}")
        os.rename(self.plan + ".new", self.plan)

    def disarm(self):
        """Did it happen?"""
        os.unlink(self.plan)
        return os.path.exists(self.plan + ".fired")

    def source(self, **more):
        self.create("src", **more)
        self.expect("src", "READY\n")
        assert self.say("src", f"touch {PAGES} w 7") == f"OK {PAGES}"
        self.total = self.say("src", f"sum 0 {PAGES}")

    def snapshots(self):
        return [s["name"] for s in self.get("/v1/snapshots").json["snapshots"]]

    def clean(self):
        """Nothing of an unfinished snapshot, before and after a collection; nothing half published."""
        assert self.leftovers() == [], self.leftovers()
        assert self.post("/v1/gc").json["removed"] == []
        for name in self.snapshots():
            assert self.post(f"/v1/snapshots/{name}/verify").status == 200, name

    def snapshot(self, name, fmt):
        return self.post("/v1/snapshots", {"name": name, "vm": "src", "format": fmt})


def runs_on(d, n):
    """The source answers, its memory and disk are right, and its next snapshot is good."""
    assert d.state("src") == "running"
    assert d.say("src", f"store turn-{n}") == "OK" and d.say("src", "load") == f"OK turn-{n}"
    assert d.say("src", f"sum 0 {PAGES}") == d.total
    if d.vm("src")["config"]["drives"]:
        assert d.say("src", f"blk w 8 turn-{n}") == "OK" and d.say("src", "blk r 8") == f"OK turn-{n}"
        assert d.say("src", "blk r 9") == "OK base-9"


def next_is_good(d, n, fmt):
    r = d.snapshot("next", fmt)
    assert r.status == 201, r
    assert d.post("/v1/snapshots/next/clone", {"clones": [{"name": "c"}]}).status == 201
    d.expect("c", "RESTORED\n")
    assert d.say("c", "load") == f"OK turn-{n}" and d.say("c", f"sum 0 {PAGES}") == d.total
    if d.vm("c")["config"]["drives"]:
        assert d.say("c", "blk r 8") == f"OK turn-{n}"
    assert d.delete("/v1/vms/c").status == 204
    assert d.delete("/v1/snapshots/next?force=true").status == 204


def sweep(d, fmt, action, make_source, fresh=False):
    """The fault at the 1st, 2nd... write of a snapshot until there is none left; how many there were."""
    for n in range(1, 100):
        if d.get("/v1/vms/src").status == 404:
            make_source()
        pid = d.vm("src")["pid"]
        d.arm("any", n, action.replace("VM", str(pid)) if isinstance(action, str) else action)
        r = d.snapshot("x", fmt)
        fired = d.disarm()
        if not fired or action == "short":
            assert r.status == 201, (n, r)
        elif action == errno.ENOSPC:
            assert (r.status, r.code) == (507, "no_space"), (n, r)
        elif d.state("src") == "exited":
            assert action in ("kill", "kill=VM") and (r.status, r.code) == (500, "vm_crashed"), (n, r)
            assert d.vm("src")["exit"]["signal"] == 9
        else:
            assert (r.status, r.code) == (500, "vm_failed") and action != "kill=VM", (n, r)
            assert action != "kill" or "died" in r.message, (n, r)
        assert d.snapshots() == (["x"] if r.status == 201 else []), (n, r)
        d.clean()
        if r.status == 201:
            assert d.delete("/v1/snapshots/x").status == 204
        if d.state("src") == "exited":
            assert d.delete("/v1/vms/src").status == 204
        else:
            runs_on(d, n)
            next_is_good(d, n, fmt)
            if fresh:  # each snapshot adds a layer, and 16 are possible
                assert d.delete("/v1/vms/src").status == 204
        if not fired:
            return n - 1
    raise AssertionError("no end of writes")


ACTIONS = (errno.EIO, errno.ENOSPC, "short", "kill", "kill=VM")


def test_every_write_of_a_snapshot():
    need_kvm()
    for fmt in ("raw", "lz4"):
        with FaultyVms() as d:
            for action in ACTIONS:
                n = sweep(d, fmt, action, d.source)
                print(f"# {fmt}, {action}: {n} writes")
                assert n >= 4, n  # state: one or more; memory: its length, content, an index


def test_every_write_when_layers_are_frozen():
    need_kvm()
    for layer in ("ephemeral", "kept"):
        with FaultyVms() as d:
            base, turn = make_base(d), iter(range(1000))

            def make_source(d=d, base=base, layer=layer, turn=turn):
                more = {"layer_path": f"{d.folder}/layer-{next(turn)}"} if layer == "kept" else {}
                d.source(drives=[drive(base, layer=layer, **more)])
                assert d.say("src", "blk w 8 first") == "OK"

            for action in ACTIONS:
                n = sweep(d, "raw", action, make_source, fresh=True)
                print(f"# {layer}, {action}: {n} writes")
                assert n >= 5, n


# --- clones ---------------------------------------------------------------------------------
def gone(d, fds):
    """Of the clone: no process but the pager, no socket, no layer, no descriptor."""
    wait_until("no VM process", lambda: d.vm_processes() in ([], [str(pager_pid(d))]))
    assert d.leftovers() == [] and os.listdir(os.path.join(d.state_dir, "layers")) == []
    wait_until("descriptors closed", lambda: d.open_fds() <= fds)


def settled(d):
    """The clone runs, or has ended; which."""
    wait_until("a clone that runs or ends", lambda: d.state("c") == "exited" or b"RESTORED\n" in d.console("c")[0])
    return d.state("c")


def clone(d):
    return d.post("/v1/snapshots/snap/clone", {"clones": [{"name": "c", "vsock": {}}]})


def good_clone(d):
    r = clone(d)
    assert r.status == 201, r
    d.expect("c", "RESTORED\n")
    assert d.say("c", f"sum 0 {PAGES}") == d.total
    assert d.delete("/v1/vms/c").status == 204


def frozen(d, fmt):
    d.source(drives=[drive(make_base(d), layer="ephemeral")], vsock={"cid": 3})
    assert d.snapshot("snap", fmt).status == 201
    assert d.delete("/v1/vms/src").status == 204
    good_clone(d)


def test_every_step_of_a_clone():
    """The VM process is killed at, or an error comes from, each ioctl until the guest runs."""
    need_kvm()
    for fmt in ("raw", "lz4"):
        with FaultyVms() as d:
            frozen(d, fmt)
            fds = d.open_fds()
            for action in ("kill", errno.EIO, errno.ENOMEM):
                refused = 0
                for n in range(1, 300):
                    d.arm("ioctl", n, action)
                    r = clone(d)
                    state = settled(d) if r.status == 201 else None
                    assert d.disarm(), n
                    if r.status != 201:
                        refused += 1
                        assert r.code == "vm_crashed" if action == "kill" else r.code != "vm_timeout", (n, r)
                        assert d.get("/v1/vms").json["vms"] == []
                    else:
                        assert d.delete("/v1/vms/c").status == 204
                    gone(d, fds)
                    if state == "exited":  # it was the guest's run
                        break
                print(f"# {fmt}, {action}: {refused} of {n} steps end the clone")
                assert state == "exited" and refused > 20, (n, refused)
                good_clone(d)


def test_the_pager_dies_at_steps_of_a_clone():
    need_userfaultfd()
    for first in (1, 3, 5):
        with FaultyVms() as d:
            frozen(d, "lz4")
            for n in range(first, 72, 6):  # 20 deaths in 10 s is where the daemon gives up
                assert d.delete("/v1/snapshots/snap/prepare").status == 204
                assert d.post("/v1/snapshots/snap/prepare", {"fill": False}).status == 200
                d.arm("ioctl", n, f"kill={pager_pid(d)}")
                good_clone(d)
                assert d.disarm(), n
                wait_until("a pager", lambda d=d: pager_pid(d))


if __name__ == "__main__":
    main(globals())
