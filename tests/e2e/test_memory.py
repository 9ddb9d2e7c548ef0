#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What clones share, what they own, and that no clone changes its snapshot."""
import glob
import hashlib
import os

from thawlib import SANITIZED, Daemon, Skip, main, need_kvm, wait_until

PAGE_KIB = os.sysconf("SC_PAGESIZE") // 1024


def digests(d, name):
    out = {}
    for path in glob.glob(f"{d.state_dir}/snapshots/{name}/*"):
        with open(path, "rb") as f:
            out[os.path.basename(path)] = hashlib.sha256(f.read()).hexdigest()
    assert set(out) == {"manifest", "state", "memory"}, out
    return out


def memory_kib(d, name, *fields):
    """The sum of these lines of the VM process's smaps_rollup."""
    with open(f"/proc/{d.vm(name)['pid']}/smaps_rollup", encoding="ascii") as f:
        lines = dict(line.split(":", 1) for line in f if ":" in line)
    return sum(int(lines[k].split()[0]) for k in fields)


def daemon_kib(d):
    with open(f"/proc/{d.process.pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


def snapshot_with_pending_timer(d, vm, name, ms=400):
    """The timer has not fired when the snapshot is taken."""
    for _ in range(5):
        _, offset = d.console(vm)
        assert d.say(vm, f"timer {ms}") == "OK"
        assert d.post(f"/v1/vms/{vm}/pause").status == 200
        if "TIMER" not in d.console(vm, offset)[0].decode("latin-1"):
            assert d.post("/v1/snapshots", {"name": name, "vm": vm}).status == 201
            assert d.post(f"/v1/vms/{vm}/resume").status == 200
            d.expect(vm, "TIMER\n", offset)
            return
        d.post(f"/v1/vms/{vm}/resume")
        ms *= 2
    raise AssertionError("the timer always fires before the VM is paused")


def test_a_thousand_restores_leave_the_snapshot_as_it_was():
    """Nor do they hang, lose the guest's pending timer, or leak descriptors, processes or memory."""
    need_kvm()
    with Daemon() as d:
        d.create("src")
        d.expect("src", "READY\n")
        d.say("src", "store thousand")
        d.say("src", "touch 500 w 3")
        total = d.say("src", "sum 0 500")
        snapshot_with_pending_timer(d, "src", "snap")
        d.delete("/v1/vms/src")
        before = digests(d, "snap")
        fds = memory = None
        for turn in range(20):
            r = d.post("/v1/snapshots/snap/clone", {"count": 50, "name_prefix": "c"})
            assert r.status == 201 and len(r.json["clones"]) == 50, r
            names = [c["name"] for c in r.json["clones"]]
            for n in names:
                d.expect(n, "RESTORED\n")
                d.expect(n, "TIMER\n")
            # One of each turn is looked at closely, and overwrites everything it has.
            n = names[turn]
            assert d.say(n, "load") == "OK thousand"
            assert d.say(n, "sum 0 500") == total
            assert d.say(n, "touch 500 w 9") == "OK 500"
            for n in names:
                assert d.delete(f"/v1/vms/{n}").status == 204
            wait_until("the last VM process is gone", lambda: not d.vm_processes())
            if turn == 1:  # all caches are warm
                fds, memory = d.open_fds(), daemon_kib(d)
        wait_until("descriptors closed", lambda: d.open_fds() <= fds)  # of connections that end
        assert SANITIZED or daemon_kib(d) - memory < 2048, (memory, daemon_kib(d))
        assert digests(d, "snap") == before
        assert not d.leftovers()


def test_four_vcpus_restored_many_times():
    need_kvm()
    with Daemon() as d:
        d.create("src", vcpus=4)
        d.expect("src", "READY\n")
        d.say("src", "store four")
        snapshot_with_pending_timer(d, "src", "snap")
        for _ in range(10):
            r = d.post("/v1/snapshots/snap/clone", {"count": 10, "name_prefix": "c"})
            assert r.status == 201, r
            names = [c["name"] for c in r.json["clones"]]
            for n in names:
                d.expect(n, "RESTORED\n")
                d.expect(n, "TIMER\n")
                assert d.say(n, "load") == "OK four"
                assert d.delete(f"/v1/vms/{n}").status == 204


def test_a_clone_owns_only_what_it_writes():
    need_kvm()
    if SANITIZED:
        raise Skip("a sanitizer's own memory would count")
    with Daemon() as d:
        d.create("src", memory_mib=128)
        d.expect("src", "READY\n")
        d.say("src", "touch 4000 w 7")  # data that clones share: 16 MiB
        assert d.post("/v1/snapshots", {"name": "snap", "vm": "src"}).status == 201
        assert d.post("/v1/snapshots/snap/clone", {"count": 2}).status == 201
        for n in ("snap-1", "snap-2"):
            d.expect(n, "RESTORED\n")
        idle = memory_kib(d, "snap-1", "Private_Dirty")
        # what is in it: docs/architecture.md, "What an idle clone costs"
        assert idle < 200, idle
        # Reading: pages of the file, shared by both.
        for n in ("snap-1", "snap-2"):
            assert d.say(n, "touch 4000 r") == "OK 4000"
        assert memory_kib(d, "snap-1", "Private_Dirty") < idle + 200
        shared = memory_kib(d, "snap-1", "Shared_Clean", "Shared_Dirty")
        assert shared >= 4000 * PAGE_KIB, shared
        # Writing 1,000 pages: just those become its own; the other one's stay as they were.
        other = memory_kib(d, "snap-2", "Private_Dirty")
        assert d.say("snap-1", "touch 1000 w 5") == "OK 1000"
        grown = memory_kib(d, "snap-1", "Private_Dirty") - idle
        assert 1000 * PAGE_KIB <= grown <= 1000 * PAGE_KIB + 300, grown
        assert abs(memory_kib(d, "snap-2", "Private_Dirty") - other) < 300
        assert d.say("snap-1", "sum 0 1000") != d.say("snap-2", "sum 0 1000")


if __name__ == "__main__":
    main(globals())
