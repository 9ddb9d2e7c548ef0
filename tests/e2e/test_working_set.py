#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Working sets: recorded by a clone, kept beside the snapshot, used by later clones, and never
more than a hint."""
import os
import signal
import time

from test_lazy import PAGES, flip, freeze, index_of, need_userfaultfd, pager_pid, prepare, template
from thawlib import SANITIZED, Daemon, main, need_kvm, thaw, wait_until

READS, WRITES = 300, 60
WORK = f"work 5 {READS} {WRITES} {PAGES}"
READY = {"console": "OK "}


def path(d):
    return f"{d.state_dir}/snapshots/snap/working-set"


def start(d, name, **spec):
    spec = {"name": name, "ready": READY, **spec}
    r = d.post("/v1/snapshots/snap/clone", {"clones": [spec]})
    assert r.status == 201, r
    return r.json["clones"][0]


def work(d, name):
    """The guest's work, up to its being ready; its answer."""
    d.expect(name, "RESTORED\n")
    out = d.say(name, WORK)
    assert d.get(f"/v1/vms/{name}?wait=ready").status == 200
    return out


def recorded(d, name):
    wait_until("the record", lambda: not d.vm(name)["recording"])
    v = d.vm(name)
    assert "record_error" not in v, v
    return d.get("/v1/snapshots/snap").json["working_set"]


def record(d, name="rec", **spec):
    assert start(d, name, record={}, **spec)["recording"] is True
    out = work(d, name)
    s = recorded(d, name)
    # Exactly what was touched: fault-around would make it 16 times as much.
    assert WRITES * 0.9 <= s["written_pages"] <= WRITES + 40, s
    assert READS * 0.7 <= s["read_pages"] <= READS + 60, s
    assert d.delete(f"/v1/vms/{name}").status == 204
    return out, s


def guest_faults(d, name):
    """Minor faults of the vCPU's thread: those that the guest waited for."""
    folder = f"/proc/{d.vm(name)['pid']}/task"
    total = 0
    for tid in os.listdir(folder):
        if tid != os.path.basename(os.path.dirname(folder)):
            with open(f"{folder}/{tid}/stat", encoding="ascii") as f:
                total += int(f.read().rsplit(")", 1)[1].split()[7])
    return total


def unprepare(d):
    assert d.delete("/v1/snapshots/snap/prepare").status == 204


def use(d, fmt):
    total = freeze(d, fmt)
    out, s = record(d)
    assert s == d.get("/v1/snapshots/snap").json["working_set"]
    # Without, and with: the same answers, far fewer faults.
    faults = {}
    for name, spec in (("without", {"populate": False}), ("with", {})):
        unprepare(d)
        if fmt == "lz4":
            prepare(d, fill=False)
        before = template(d)["faults"] if fmt == "lz4" else 0
        start(d, name, **spec)
        assert work(d, name) == out
        after = template(d)["faults"] if fmt == "lz4" else 0
        faults[name] = after - before + guest_faults(d, name)
        # A guest that goes other ways finds all that it looks for.
        fresh = f"again-{name}"
        start(d, fresh, **spec)
        d.expect(fresh, "RESTORED\n")
        assert d.say(fresh, f"sum 0 {PAGES}") == total
        assert d.delete(f"/v1/vms/{fresh}").status == 204
    assert d.say("with", f"sum 0 {PAGES}") == d.say("without", f"sum 0 {PAGES}") != total
    print(f"# {fmt}: faults {faults}")
    assert SANITIZED or faults["with"] < faults["without"] / 5, faults  # it has pages of its own to touch


def test_a_raw_snapshot():
    need_kvm()
    with Daemon() as d:
        use(d, "raw")


def test_a_compressed_snapshot():
    need_userfaultfd()
    with Daemon() as d:
        use(d, "lz4")
        t = template(d)
        assert t["prefills"] > READS / 4, t


def test_recorded_from_a_complete_template():
    need_userfaultfd()
    with Daemon() as d:
        freeze(d)
        prepare(d, wait=True)
        record(d)


def test_without_userfaultfd_neighbours_count():
    need_kvm()
    with Daemon(args=["--no-userfaultfd"]) as d:
        freeze(d)
        start(d, "rec", record={})
        out = work(d, "rec")
        s = recorded(d, "rec")
        assert s["written_pages"] >= WRITES * 0.9 and s["read_pages"] >= READS * 0.7, s
        start(d, "a")
        assert work(d, "a") == out


def test_zeros_of_the_set_cost_no_faults():
    need_userfaultfd()
    with Daemon() as d:
        freeze(d)
        line = f"work 9 400 400 {PAGES * 4}"  # three quarters of it was never touched
        start(d, "rec", record={})
        d.expect("rec", "RESTORED\n")
        out = d.say("rec", line)
        s = recorded(d, "rec")
        assert s["written_pages"] > 350, s
        d.delete("/v1/vms/rec")
        unprepare(d)
        prepare(d, fill=False)
        before = template(d)["zero_faults"]
        start(d, "a")
        d.expect("a", "RESTORED\n")
        assert d.say("a", line) == out
        # One per chunk at most, of those that the VM came to before the pager.
        assert template(d)["zero_faults"] - before < 40, template(d)


def test_by_the_time_limit_and_replaced():
    need_kvm()
    with Daemon() as d:
        freeze(d, "raw")
        start(d, "rec", record={"limit_ms": 300}, ready={})
        d.expect("rec", "RESTORED\n")
        d.say("rec", "touch 100 w 3")
        first = recorded(d, "rec")
        assert first["written_pages"] >= 100, first
        inode = os.stat(path(d)).st_ino
        out, second = record(d, "again")
        assert second["recorded"] > first["recorded"] and os.stat(path(d)).st_ino != inode
        for limit in (0, 600001, "1", None):
            r = d.post("/v1/snapshots/snap/clone", {"clones": [{"record": {"limit_ms": limit}}]})
            assert r.status == 400, r


def test_a_vm_that_ends_first_records_nothing():
    need_kvm()
    with Daemon() as d:
        freeze(d, "raw")
        for how in ("exit", "kill", "delete"):
            start(d, how, record={})
            d.expect(how, "RESTORED\n")
            if how == "exit":
                d.put("/v1/vms/exit/console", "exit\n")
            elif how == "kill":
                os.kill(d.vm("kill")["pid"], signal.SIGKILL)
            else:
                d.delete("/v1/vms/delete")
        for how in ("exit", "kill"):
            v = d.wait_state(how, "exited")
            assert v["recording"] is False and "ended" in v["record_error"], v
        assert "working_set" not in d.get("/v1/snapshots/snap").json and not os.path.exists(path(d))


def test_the_snapshot_goes_while_it_is_recorded():
    need_kvm()
    with Daemon() as d:
        freeze(d, "raw")
        start(d, "rec", record={})
        assert d.delete("/v1/snapshots/snap?force=true").status == 204
        freeze(d, "raw")  # another one of that name
        work(d, "rec")
        wait_until("the end", lambda: not d.vm("rec")["recording"])
        assert "another one" in d.vm("rec")["record_error"]
        assert not os.path.exists(path(d))


def test_a_damaged_set_is_ignored():
    need_userfaultfd()
    for fmt in ("raw", "lz4"):
        with Daemon() as d:
            freeze(d, fmt)
            out, _ = record(d)
            size = os.path.getsize(path(d))
            for turn, at in enumerate((0, 20, 40, 100, size - 3)):
                flip(path(d), at)
                unprepare(d)
                start(d, f"a{turn}")
                assert work(d, f"a{turn}") == out
                assert "working_set" not in d.get("/v1/snapshots/snap").json
                flip(path(d), at)
            assert "working set" in d.log_text() and "as the guest touches it" in d.log_text()
            for turn, size in enumerate((0, 10, size - 8)):
                os.truncate(path(d), size)
                unprepare(d)
                start(d, f"b{turn}")
                assert work(d, f"b{turn}") == out
            os.unlink(path(d))
            os.mkfifo(path(d))
            unprepare(d)
            start(d, "c")
            assert work(d, "c") == out


def test_a_damaged_chunk_of_the_set():
    need_userfaultfd()
    with Daemon() as d:
        freeze(d)
        record(d)
        unprepare(d)
        memory = f"{d.state_dir}/snapshots/snap/memory"
        stored = [e for e in index_of(memory) if e[2]]
        offset, n, _ = stored[len(stored) // 2]
        flip(memory, offset + n // 2)
        r = d.post("/v1/snapshots/snap/clone", {"clones": [{"name": "a"}]})
        assert r.status == 422 and r.code == "snapshot_corrupt", r
        assert template(d)["damaged"] == 1 and d.get("/v1/vms/a").status == 404
        clone_spec = {"clones": [{"name": "b", "populate": False}]}
        assert d.post("/v1/snapshots/snap/clone", clone_spec).status == 201
        d.expect("b", "RESTORED\n")
        assert d.say("b", "load") == "OK frozen"


def test_with_a_pool_and_of_a_fork():
    need_kvm()
    with Daemon() as d:
        freeze(d, "raw")
        assert d.post("/v1/snapshots/snap/prepare", {"wait": True, "pool": {"size": 1}}).status == 200
        r = d.post("/v1/snapshots/snap/clone", {"clones": [{"name": "rec", "ready": READY, "record": {}}]})
        assert r.status == 201 and r.json["clones"][0]["prepared"] is False, r
        out = work(d, "rec")
        assert recorded(d, "rec")["read_pages"] > READS * 0.7
        r = d.post("/v1/snapshots/snap/clone", {"clones": [{"name": "a"}]})
        assert r.status == 201 and r.json["clones"][0]["prepared"] is True, r
        d.expect("a", "RESTORED\n")
        assert d.say("a", WORK) == out
        r = d.post("/v1/vms/a/clone", {"clones": [{"record": {}}]})
        assert r.status == 400 and r.code == "invalid_value", r


def test_of_another_snapshot():
    need_kvm()
    with Daemon() as d:
        freeze(d, "raw")
        out, _ = record(d)
        with open(path(d), "rb") as f:
            old = f.read()
        assert d.delete("/v1/snapshots/snap").status == 204
        freeze(d, "raw")
        with open(path(d), "wb") as f:
            f.write(old)
        start(d, "a")
        assert work(d, "a") == out and "another snapshot" in d.log_text()


def test_forgotten_deleted_and_counted():
    need_kvm()
    with Daemon() as d:
        freeze(d, "raw")
        plain = d.get("/v1/snapshots/snap").json["storage"]["apparent_bytes"]
        record(d)
        with_set = d.get("/v1/snapshots/snap").json["storage"]["apparent_bytes"]
        assert with_set == plain + os.path.getsize(path(d)), (plain, with_set)
        assert d.get("/v1/info").json["storage"]["apparent_bytes"] == with_set
        assert d.post("/v1/snapshots/snap/verify").status == 200
        assert d.delete("/v1/snapshots/snap/working-set").status == 204
        assert not os.path.exists(path(d)) and "working_set" not in d.get("/v1/snapshots/snap").json
        assert d.get("/v1/info").json["storage"]["apparent_bytes"] == plain
        assert d.delete("/v1/snapshots/snap/working-set").status == 204
        assert d.delete("/v1/snapshots/none/working-set").code == "snapshot_not_found"
        record(d)
        with open(path(d) + ".new", "wb") as f:  # of a crash
            f.write(b"half")
        record(d, "again")
        assert not os.path.exists(path(d) + ".new")
        with open(path(d) + ".new", "wb") as f:
            f.write(b"half")
        assert d.delete("/v1/snapshots/snap").status == 204
        assert not d.leftovers() and not os.listdir(f"{d.state_dir}/snapshots")


def test_the_pager_is_killed():
    need_userfaultfd()
    with Daemon() as d:
        freeze(d)
        # While it is recorded.
        start(d, "rec", record={})
        d.expect("rec", "RESTORED\n")
        os.kill(pager_pid(d), signal.SIGKILL)
        out = d.say("rec", WORK)
        recorded(d, "rec")
        d.delete("/v1/vms/rec")
        # While the set is loaded, and while a clone populates its memory.
        for turn in range(12):
            unprepare(d)
            if turn % 2:
                prepare(d, fill=False)
            old = pager_pid(d)
            os.kill(old, signal.SIGSTOP)
            pid = os.fork()
            if not pid:
                time.sleep(0.0005 * turn)
                os.kill(old, signal.SIGKILL)
                os._exit(0)
            start(d, f"a{turn}")
            os.waitpid(pid, 0)
            assert work(d, f"a{turn}") == out
            d.delete(f"/v1/vms/a{turn}")


def test_the_daemon_is_killed_while_it_is_recorded():
    need_userfaultfd()
    d = Daemon()
    with d:
        freeze(d)
        start(d, "rec", record={})
        d.expect("rec", "RESTORED\n")
        pids = d.vm_processes()
        d.stop(signal.SIGKILL)
        wait_until("their end", lambda: not any(os.path.exists(f"/proc/{p}/fd/0") for p in pids))
        d.start()
        assert "working_set" not in d.get("/v1/snapshots/snap").json
        record(d)


def test_the_command_line():
    need_kvm()
    with Daemon() as d:
        freeze(d, "raw")
        assert thaw(d, "clone", "snap", "--name", "rec", "--record").returncode == 0
        assert d.vm("rec")["recording"] is True
        assert thaw(d, "clone", "snap", "--count", "2", "--no-populate").returncode == 0
        assert d.vm("snap-1").get("recording") is None


if __name__ == "__main__":
    main(globals())
