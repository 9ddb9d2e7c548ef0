#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Incremental snapshots: what clones of any of a chain see, what parents are protected from, what
flatten makes of them, and what happens when something is killed, missing or damaged."""
import errno
import filecmp
import os
import signal
import threading

from test_lazy import flip, has_userfaultfd, index_of, need_userfaultfd, pager_pid
from test_store import FaultyDaemon, names, sweep
from thawlib import Daemon, main, need_kvm, thaw, wait_until

PAGES = 600  # that the guest uses, of 16,384
PARENT, PATCH = 3, 4


def take(d, vm, name, **how):
    r = d.post("/v1/snapshots", {"name": name, "vm": vm, **how})
    assert r.status == 201, r
    return r.json


def take_incremental(d, vm, name):
    return take(d, vm, name, incremental=True)


def clone(d, snapshot, name):
    r = d.post(f"/v1/snapshots/{snapshot}/clone", {"clones": [{"name": name}]})
    assert r.status == 201, r
    d.expect(name, "RESTORED\n")


def total(d, vm):
    return d.say(vm, f"sum 0 {PAGES}")


def source(d, name="base", fmt="raw", **more):
    """A snapshot of a VM whose first 500 pages hold something; the guest's sum."""
    d.create("src", memory_mib=64, **more)
    d.expect("src", "READY\n")
    assert d.say("src", "fill 0 500 7") == "OK 500"
    d.say("src", f"store {name}")
    s = total(d, "src")
    take(d, "src", name, format=fmt)
    d.delete("/v1/vms/src")
    return s


def change(d, vm, i):
    """Some pages of old chunks, some new ones, and one of each earlier turn."""
    for first, n in ((i * 40, 30), (i, 2), (480 + i, 20)):
        assert d.say(vm, f"fill {first} {n} {1000 + i}") == f"OK {n}"
    d.say(vm, f"store turn {i}")


def chain(d, depth, fmt="raw"):
    """base <- s1 <- ... <- s<depth>, each of a clone of the one before; the sums by name."""
    sums = {"base": source(d, fmt=fmt)}
    last = "base"
    for i in range(1, depth + 1):
        clone(d, last, "c")
        change(d, "c", i)
        v = take_incremental(d, "c", f"s{i}")
        assert (v["needs_parent"], v["parent_snapshot"], v["chain_length"]) == (True, last, i + 1), v
        last = f"s{i}"
        sums[last] = total(d, "c")
        assert d.delete("/v1/vms/c").status == 204
    return sums


def check_all(d, sums, daemon=""):
    for i, (name, s) in enumerate(sums.items()):
        vm = f"check{daemon}{i}"
        clone(d, name, vm)
        assert total(d, vm) == s, name
        assert d.say(vm, "load") == ("OK turn " + name[1:] if name[0] == "s" else f"OK {name}")
        assert d.delete(f"/v1/vms/{vm}").status == 204


def memory_of(d, name):
    return f"{d.state_dir}/snapshots/{name}/memory"


def test_five_deep_over_either_base():
    need_userfaultfd()
    for fmt in ("raw", "lz4"):
        with Daemon() as d:
            sums = chain(d, 5, fmt)
            check_all(d, sums)
            for n in sums:
                assert d.post(f"/v1/snapshots/{n}/verify").json["verified"]
            # Small, and only what changed.
            for i in range(1, 6):
                kinds = [k for _, _, k in index_of(memory_of(d, f"s{i}"))]
                assert kinds.count(PARENT) > len(kinds) * 9 / 10 and PATCH in kinds, kinds
            listed = {s["name"]: s for s in d.get("/v1/snapshots").json["snapshots"]}
            assert [listed[n]["chain_length"] for n in sums] == [1, 2, 3, 4, 5, 6]
            assert d.get("/v1/snapshots/s3").json["chain_length"] == 4
            # Another run of the daemon finds all of it.
            d.stop()
            d.start()
            check_all(d, sums, "again")


def test_without_userfaultfd():
    need_kvm()
    with Daemon(args=["--no-userfaultfd"]) as d:
        sums = chain(d, 2)
        check_all(d, sums)
        clone(d, "s2", "a")
        assert not has_userfaultfd(d, "a")


def test_several_of_one_clone():
    need_userfaultfd()
    with Daemon() as d:
        source(d)
        clone(d, "base", "c")
        sums = {}
        for i in range(1, 4):  # a clone knows what it changed since it was made
            change(d, "c", i)
            v = take_incremental(d, "c", f"s{i}")
            assert (v["parent_snapshot"], v["chain_length"]) == ("base", 2), v
            sums[f"s{i}"] = total(d, "c")
        check_all(d, sums)


def test_flattened_is_the_same_as_a_full_one():
    need_userfaultfd()
    for fmt in ("raw", "lz4"):
        with Daemon() as d:
            chain(d, 3, fmt)
            clone(d, "s3", "c")
            change(d, "c", 4)
            assert d.post("/v1/vms/c/pause").status == 200
            take(d, "c", "full", format="raw")
            take_incremental(d, "c", "inc")
            for how in ({"format": "raw", "name": "flat"}, {"format": "lz4"}, {"format": "raw"}):
                r = d.post("/v1/snapshots/inc/flatten", how)
                assert r.status == (201 if "name" in how else 200) and r.json["changed"], r
                assert not r.json["needs_parent"] and r.json["chain_length"] == 1, r
                name = how.get("name", "inc")
                assert r.json["files"]["memory"]["format"] == how["format"]
                assert d.post(f"/v1/snapshots/{name}/verify").json["verified"]
            for name in ("flat", "inc"):
                assert filecmp.cmp(memory_of(d, name), memory_of(d, "full"), shallow=False), name
            d.post("/v1/vms/c/resume")
            s = total(d, "c")
            clone(d, "inc", "x")
            assert total(d, "x") == s


def test_flatten_in_place_disturbs_nobody():
    need_userfaultfd()
    with Daemon() as d:
        sums = chain(d, 4)
        before = d.get("/v1/snapshots/s2").json
        assert d.post("/v1/snapshots/s3/prepare", {"fill": False}).status == 200
        for n in ("s2", "s3"):  # they run while s2 changes below them
            d.post(f"/v1/snapshots/{n}/prepare", {"fill": False})
            clone(d, n, f"of-{n}")
        r = d.post("/v1/snapshots/s2/flatten", {})
        assert r.status == 200 and r.json["changed"], r
        assert (r.json["id"], r.json["created"]) == (before["id"], before["created"]), r
        assert d.get("/v1/snapshots/s4").json["chain_length"] == 3
        for n in ("s2", "s3"):
            assert total(d, f"of-{n}") == sums[n]
        # Nothing needs base and s1 any more.
        assert d.delete("/v1/snapshots/s1").status == 204
        assert d.delete("/v1/snapshots/base?force=true").status == 204
        assert names(d) == ["s2", "s3", "s4"]
        rest = {n: s for n, s in sums.items() if n in ("s2", "s3", "s4")}
        check_all(d, rest)
        for n in rest:
            assert d.post(f"/v1/snapshots/{n}/verify").json["verified"]
        # It is complete: nothing to do, but a copy or another format.
        r = d.post("/v1/snapshots/s2/flatten", {})
        assert r.status == 200 and not r.json["changed"], r
        r = d.post("/v1/snapshots/s2/flatten", {"name": "copy"})
        assert r.status == 201 and r.json["id"] != before["id"], r
        assert os.stat(memory_of(d, "copy")).st_ino == os.stat(memory_of(d, "s2")).st_ino
        check_all(d, rest)
        clone(d, "copy", "of-copy")
        assert total(d, "of-copy") == sums["s2"]
        for body, status, code in (({"name": "s4"}, 409, "snapshot_exists"), ({"format": "zip"}, 400, "invalid_value"),
                                   ({"name": "a/b"}, 400, "invalid_value"), ({"x": 1}, 400, "unknown_field")):
            r = d.post("/v1/snapshots/s3/flatten", body)
            assert (r.status, r.code) == (status, code), r
        r = d.post("/v1/snapshots/none/flatten", {})
        assert (r.status, r.code) == (404, "snapshot_not_found"), r
        assert d.leftovers() == []


def test_a_compressed_one_becomes_raw_while_clones_use_its_template():
    need_userfaultfd()
    with Daemon() as d:
        s = source(d, fmt="lz4")
        assert d.post("/v1/snapshots/base/prepare", {"fill": False}).status == 200
        clone(d, "base", "a")
        assert d.post("/v1/snapshots/base/flatten", {"format": "raw"}).json["changed"]
        clone(d, "base", "b")
        assert total(d, "a") == s and total(d, "b") == s
        assert has_userfaultfd(d, "a") and not has_userfaultfd(d, "b")
        assert "template" not in d.get("/v1/snapshots/base").json
        before = d.open_fds()
        assert d.delete("/v1/vms/a").status == 204
        wait_until("the template's end", lambda: d.open_fds() < before)


def test_pools_and_forks():
    need_userfaultfd()
    with Daemon() as d:
        sums = chain(d, 2)
        r = d.post("/v1/snapshots/s2/prepare", {"pool": {"size": 2}, "wait": True})
        assert r.status == 200 and r.json["pool"]["ready"] == 2 and r.json["chain_length"] == 3, r
        # The same snapshot, also when it lies in a new folder.
        for i, how in enumerate((None, {}, {"format": "raw"})):
            if how is not None:
                assert d.post("/v1/snapshots/s2/flatten", how).json["changed"]
            r = d.post("/v1/snapshots/s2/clone", {"clones": [{"name": f"p{i}"}]})
            assert r.status == 201 and r.json["clones"][0]["prepared"], r
            d.expect(f"p{i}", "RESTORED\n")
            assert total(d, f"p{i}") == sums["s2"]
            wait_until("the refill", lambda: d.get("/v1/snapshots/s2").json["pool"]["ready"] == 2)
        change(d, "p0", 3)
        assert take_incremental(d, "p0", "s3")["chain_length"] == 2
        sums["s3"] = total(d, "p0")
        # A fork is no clone of a snapshot: it begins with a full one, if it notes what it writes.
        assert d.post("/v1/vms/p0/clone", {"clones": [{"name": "f"}]}).status == 201
        d.expect("f", "RESTORED\n")
        r = d.post("/v1/snapshots", {"name": "x", "vm": "f", "incremental": True})
        assert (r.status, r.code) == (409, "wrong_state"), r
        d.create("t", memory_mib=32, track_dirty=True)
        d.expect("t", "READY\n")
        take(d, "t", "t0")
        assert d.post("/v1/vms/t/clone", {"clones": [{"name": "tf"}]}).status == 201
        d.expect("tf", "RESTORED\n")
        r = d.post("/v1/snapshots", {"name": "x", "vm": "tf", "incremental": True})
        assert (r.status, r.code) == (409, "wrong_state") and "full one first" in r.message, r
        take(d, "tf", "tf0")
        d.say("tf", "fill 5 40 9")
        assert take_incremental(d, "tf", "tf1")["parent_snapshot"] == "tf0"
        clone(d, "tf1", "again")
        assert total(d, "again") == total(d, "tf")
        check_all(d, sums)


def test_children_protect_their_parents():
    need_userfaultfd()
    with Daemon() as d:
        sums = chain(d, 3)
        for n in ("base", "s1", "s2"):
            r = d.delete(f"/v1/snapshots/{n}")
            assert (r.status, r.code) == (409, "in_use") and "can't be restored without it" in r.message, r
        clone(d, "s3", "c")
        assert d.delete("/v1/snapshots/s1?force=true").status == 204
        assert names(d) == ["base"]
        assert total(d, "c") == sums["s3"]
        # Its parent is gone, and so is what it was cloned from.
        r = d.post("/v1/snapshots", {"name": "x", "vm": "c", "incremental": True})
        assert (r.status, r.code) == (409, "wrong_state") and "s3" in r.message and "not here" in r.message, r
        assert take(d, "c", "full")["chain_length"] == 1
        assert d.leftovers() == []


def test_what_has_no_base():
    need_kvm()
    with Daemon() as d:
        d.create("vm")
        d.expect("vm", "READY\n")
        r = d.post("/v1/snapshots", {"name": "x", "vm": "vm", "incremental": True})
        assert (r.status, r.code) == (409, "wrong_state") and "track_dirty" in r.message, r
        take(d, "vm", "base")
        clone(d, "base", "c")
        r = d.post("/v1/snapshots", {"name": "x", "vm": "c", "incremental": True, "format": "raw"})
        assert (r.status, r.code) == (400, "invalid_value") and "flatten" in r.message, r
        r = d.post("/v1/snapshots", {"name": "x", "vm": "c", "incremental": 1})
        assert (r.status, r.code) == (400, "wrong_type"), r
        # Another one of the same name is not it.
        assert d.delete("/v1/snapshots/base?force=true").status == 204
        take(d, "vm", "base")
        r = d.post("/v1/snapshots", {"name": "x", "vm": "c", "incremental": True})
        assert (r.status, r.code) == (409, "wrong_state") and "the one of that name is another" in r.message, r
        assert names(d) == ["base"] and d.leftovers() == []


def test_the_base_goes_while_the_snapshot_is_taken():
    need_kvm()
    with Daemon() as d:
        source(d)
        clone(d, "base", "c")
        s = total(d, "c")
        pid = d.vm("c")["pid"]
        os.kill(pid, signal.SIGSTOP)
        answer = []
        t = threading.Thread(target=lambda: answer.append(
            d.post("/v1/snapshots", {"name": "x", "vm": "c", "incremental": True})))
        t.start()
        wait_until("the request", lambda: any(f.endswith("/state") for f in d.leftovers()))
        assert d.delete("/v1/snapshots/base?force=true").status == 204
        os.kill(pid, signal.SIGCONT)
        t.join(20)
        assert (answer[0].status, answer[0].code) == (404, "snapshot_not_found"), answer
        assert "needs its parent snapshot base" in answer[0].message
        assert names(d) == [] and d.leftovers() == []
        assert total(d, "c") == s


def test_a_vm_that_tracks_what_it_writes():
    need_userfaultfd()
    with FaultyDaemon() as d:
        d.create("vm", memory_mib=64, track_dirty=True)
        d.expect("vm", "READY\n")
        r = d.post("/v1/snapshots", {"name": "x", "vm": "vm", "incremental": True})
        assert (r.status, r.code) == (409, "wrong_state") and "full one first" in r.message, r
        d.say("vm", "fill 0 500 7")
        d.say("vm", "store base")
        sums = {"base": total(d, "vm")}
        assert not take(d, "vm", "base").get("needs_parent")
        for i in range(1, 4):
            change(d, "vm", i)
            v = take_incremental(d, "vm", f"s{i}")
            assert (v["parent_snapshot"], v["chain_length"]) == ("base" if i == 1 else f"s{i - 1}", i + 1), v
            assert d.vm("vm")["base_snapshot"] == f"s{i}"
            sums[f"s{i}"] = total(d, "vm")
        # One that the VM took and the daemon could not publish: the next one has its pages as well.
        change(d, "vm", 4)
        d.arm("fsync", 1, errno.EIO)
        r = d.post("/v1/snapshots", {"name": "lost", "vm": "vm", "incremental": True})
        assert d.disarm() and r.status >= 500, r
        assert d.vm("vm")["base_snapshot"] == "s3" and "lost" not in names(d)
        assert d.say("vm", "fill 300 5 99") == "OK 5"
        d.say("vm", "store turn 5")
        assert take_incremental(d, "vm", "s5")["parent_snapshot"] == "s3"
        sums["s5"] = total(d, "vm")
        # A full one is the next base, and a clone goes on from what it was made of.
        assert take(d, "vm", "full", format="lz4")["chain_length"] == 1
        change(d, "vm", 6)
        assert take_incremental(d, "vm", "s6")["parent_snapshot"] == "full"
        sums["s6"] = total(d, "vm")
        clone(d, "s6", "c")
        change(d, "c", 7)
        assert take_incremental(d, "c", "s7")["parent_snapshot"] == "s6"
        sums["s7"] = total(d, "c")
        change(d, "c", 8)
        v = take_incremental(d, "c", "s8")
        assert (v["parent_snapshot"], v["chain_length"]) == ("s7", 4), v
        sums["s8"] = total(d, "c")
        check_all(d, sums)
        assert d.delete("/v1/snapshots/s7?force=true").status == 204
        r = d.post("/v1/snapshots", {"name": "x", "vm": "c", "incremental": True})
        assert (r.status, r.code) == (409, "wrong_state") and "s8" in r.message, r


def test_export_and_import():
    need_userfaultfd()
    with Daemon() as d:
        sums = chain(d, 2)
        files = {n: d.get(f"/v1/snapshots/{n}/export").body for n in sums}
        assert len(files["s2"]) < len(files["base"]) / 2
        assert d.delete("/v1/snapshots/base?force=true").status == 204
        for n in ("s2", "s1"):
            r = d.put(f"/v1/snapshots/{n}/import", files[n])
            assert (r.status, r.code) == (422, "import_invalid") and "needs its parent" in r.message, r
        # Parents are known by their ids.
        for n, to in (("base", "root"), ("s1", "middle"), ("s2", "s2")):
            r = d.put(f"/v1/snapshots/{to}/import", files[n])
            assert r.status == 201, r
        assert d.get("/v1/snapshots/s2").json["chain_length"] == 3
        clone(d, "s2", "c")
        assert total(d, "c") == sums["s2"]
        r = d.delete("/v1/snapshots/root")
        assert (r.status, r.code) == (409, "in_use") and "middle" in r.message, r
        change(d, "c", 3)
        assert take_incremental(d, "c", "s3")["chain_length"] == 4


def test_damage_is_found_where_it_is():
    need_userfaultfd()
    with Daemon() as d:
        sums = chain(d, 3, "lz4")
        offset, n, _ = [e for e in index_of(memory_of(d, "s1")) if e[2] == PATCH][-1]  # of the heap
        flip(memory_of(d, "s1"), offset + n // 2)
        r = d.post("/v1/snapshots/s3/verify")
        assert (r.status, r.code) == (422, "snapshot_corrupt") and "s3" in r.message and "s1" in r.message, r
        assert d.post("/v1/snapshots/base/verify").status == 200
        # A clone that needs the chunk ends, with the reason; others live.
        d.post("/v1/snapshots/s3/prepare", {"fill": False})
        clone(d, "s3", "bad")
        d.put("/v1/vms/bad/console", f"sum 0 {PAGES}\n")
        v = d.wait_state("bad", "exited")
        assert v["exit"]["reason"] == "snapshot-corrupt", v
        clone(d, "base", "good")
        assert total(d, "good") == sums["base"]
        for body in ({}, {"format": "raw"}, {"name": "x"}):
            r = d.post("/v1/snapshots/s3/flatten", body)
            assert (r.status, r.code) == (422, "snapshot_corrupt") and "damaged" in r.message, r
        assert names(d) == ["base", "s1", "s2", "s3"] and d.leftovers() == []
        flip(memory_of(d, "s1"), offset + n // 2)
        # A damaged index or a missing parent is found before there is a clone.
        flip(memory_of(d, "s1"), os.path.getsize(memory_of(d, "s1")) - 5)
        d.delete("/v1/snapshots/s3/prepare")
        for what in ("prepare", "clone"):
            r = d.post(f"/v1/snapshots/s3/{what}")
            assert (r.status, r.code) == (422, "snapshot_corrupt") and "file 3 of 4" in r.message, r
        flip(memory_of(d, "s1"), os.path.getsize(memory_of(d, "s1")) - 5)
        os.rename(f"{d.state_dir}/snapshots/s1", f"{d.folder}/s1")
        r = d.post("/v1/snapshots/s3/clone")
        assert (r.status, r.code) == (422, "snapshot_corrupt") and "parent snapshot s1" in r.message, r
        assert "chain_length" not in d.get("/v1/snapshots/s3").json
        listed = {s["name"]: s for s in d.get("/v1/snapshots").json["snapshots"]}
        assert "chain_length" not in listed["s3"] and listed["base"]["chain_length"] == 1
        os.rename(f"{d.folder}/s1", f"{d.state_dir}/snapshots/s1")
        check_all(d, sums)


def test_a_killed_pager_is_replaced():
    need_userfaultfd()
    with Daemon() as d:
        s = chain(d, 4)["s4"]
        for turn in range(8):
            assert d.delete("/v1/snapshots/s4/prepare").status == 204
            assert d.post("/v1/snapshots/s4/prepare", {"fill": turn % 2 == 0}).status == 200
            vm = f"k{turn}"
            clone(d, "s4", vm)
            _, mark = d.console(vm)
            wait_until("a pager", lambda: pager_pid(d))
            pid = pager_pid(d)
            if turn < 4:  # while the guest waits for it; else at some point of its work
                os.kill(pid, signal.SIGSTOP)
            d.put(f"/v1/vms/{vm}/console", f"sum 0 {PAGES}\n")
            os.kill(pid, signal.SIGKILL)
            assert d.expect(vm, "\n", mark)[0].strip() == s
            assert d.delete(f"/v1/vms/{vm}").status == 204


def test_faults_in_a_flatten():
    need_userfaultfd()
    with FaultyDaemon() as d:
        sums = chain(d, 2)
        exported = d.get("/v1/snapshots/s2/export").body

        def prepare():
            if not d.get("/v1/snapshots/s2").json["needs_parent"]:
                assert d.delete("/v1/snapshots/s2").status == 204
                assert d.put("/v1/snapshots/s2/import", exported).status == 201
            if "x" in names(d):
                assert d.delete("/v1/snapshots/x").status == 204

        for body in ({}, {"format": "raw"}, {"name": "x"}):
            for action in ("kill", errno.EIO, errno.ENOSPC):
                outcomes = []

                def check(_, r, body=body, action=action, outcomes=outcomes):
                    flat = not d.get("/v1/snapshots/s2").json["needs_parent"]
                    made = "x" in names(d)
                    outcomes.append(flat or made)
                    assert not (made and flat) and made <= ("name" in body)
                    if r is not None:
                        assert (r.status < 300) == (flat or made), r
                        if r.status >= 400 and action == errno.ENOSPC:
                            assert (r.status, r.code) == (507, "no_space"), r
                        if r.status >= 400 and action == errno.EIO:
                            assert (r.status, r.code) == (500, "internal"), r
                    for n in names(d):
                        assert d.post(f"/v1/snapshots/{n}/verify").status == 200

                n = sweep(d, "any", action, prepare, lambda body=body: d.post("/v1/snapshots/s2/flatten", body), check)
                print(f"# {body} {action}: {n} steps, {sum(outcomes)} done")
                assert n >= 10, n
        prepare()
        check_all(d, sums)


def test_the_command_line():
    need_userfaultfd()
    with Daemon() as d:
        source(d)
        clone(d, "base", "c")
        change(d, "c", 1)
        r = thaw(d, "snapshot", "c", "s1", "--incremental")
        assert r.returncode == 0 and "parent:   base, needed" in r.stdout and "of 2 snapshots" in r.stdout, r
        r = thaw(d, "snapshot", "c", "x", "--incremental", "--format", "raw")
        assert r.returncode == 1 and "flatten" in r.stderr, r
        r = thaw(d, "snapshots")
        assert r.returncode == 0 and "CHAIN" in r.stdout, r
        row = next(line.split() for line in r.stdout.splitlines() if line.startswith("s1 "))
        assert row[5] == "2", row
        r = thaw(d, "snapshot-flatten", "s1", "--name", "s1-flat", "--format", "raw")
        assert r.returncode == 0 and "s1-flat" in r.stdout, r
        r = thaw(d, "snapshot-flatten", "s1", "--json")
        assert r.returncode == 0 and '"changed": true' in r.stdout, r
        assert thaw(d, "snapshot-delete", "base", "--force").returncode == 0
        assert names(d) == ["s1", "s1-flat"]
        assert thaw(d, "snapshot-flatten", "../s1").returncode == 2


def test_high_compression():
    with Daemon() as d:
        need_kvm()
        want = source(d, "fast", fmt="lz4")
        size = d.get("/v1/snapshots/fast").json["files"]["memory"]["size_bytes"]
        r = d.post("/v1/snapshots/fast/flatten", {"format": "lz4-high", "name": "high"})
        assert r.status == 201 and r.json["changed"], r
        m = r.json["files"]["memory"]
        assert m["format"] == "lz4" and m["size_bytes"] <= size, (m, size)
        clone(d, "high", "c")
        assert total(d, "c") == want
        take(d, "c", "again", format="lz4-high")
        clone(d, "again", "cc")
        assert total(d, "cc") == want
        r = d.post("/v1/snapshots", {"vm": "c", "name": "x", "format": "lz5"})
        assert r.status == 400 and "lz4-high" in r.message, r


if __name__ == "__main__":
    main(globals())
