#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compressed snapshots: what clones see, what they share, how little is loaded, and what
happens when the pager is killed or the memory file is damaged."""
import os
import signal
import struct
import time

from thawlib import SANITIZED, Daemon, Skip, alive, main, need_kvm, thaw, wait_until

PAGES = 2000  # that the source has written
CHUNK_PAGES = 16


def need_userfaultfd():
    need_kvm()
    try:
        os.close(os.open("/dev/userfaultfd", os.O_RDWR))
    except OSError as e:
        raise Skip(f"no userfaultfd: {e.strerror}") from e


def freeze(d, fmt="lz4", **more):
    """A snapshot "snap" of a VM with PAGES pages of content; returns the guest's sum of them."""
    d.create("src", memory_mib=64, **more)
    d.expect("src", "READY\n")
    d.say("src", f"touch {PAGES} w 7")
    d.say("src", "store frozen")
    total = d.say("src", f"sum 0 {PAGES}")
    r = d.post("/v1/snapshots", {"name": "snap", "vm": "src", "format": fmt})
    assert r.status == 201 and r.json["files"]["memory"]["format"] == fmt, r
    assert d.say("src", f"sum 0 {PAGES}") == total
    d.delete("/v1/vms/src")
    return total


def prepare(d, **how):
    r = d.post("/v1/snapshots/snap/prepare", how)
    assert r.status == 200, r
    return r.json["template"]


def template(d):
    return d.get("/v1/snapshots/snap").json.get("template")


def clone(d, *names):
    r = d.post("/v1/snapshots/snap/clone", {"clones": [{"name": n} for n in names]})
    assert r.status == 201, r
    for n in names:
        d.expect(n, "RESTORED\n")


def pager_pid(d):
    for pid in d.vm_processes():
        try:
            with open(f"/proc/{pid}/comm", encoding="ascii") as f:
                if f.read().strip() == "thaw-pager":
                    return int(pid)
        except FileNotFoundError:  # it has just ended
            pass
    return None


def status_of(task):
    with open(f"/proc/{task}/status", encoding="ascii") as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)


def has_userfaultfd(d, name):
    folder = f"/proc/{d.vm(name)['pid']}/fd"
    return any("userfaultfd" in os.readlink(os.path.join(folder, f)) for f in os.listdir(folder))


def index_of(path):
    """Entries (offset, stored bytes, kind) of a memory file."""
    with open(path, "rb") as f:
        data = f.read()
    n, at = struct.unpack_from("<QQ", data, 24)
    return [struct.unpack_from("<QII", data, at + 24 * i) for i in range(n)]


def flip(path, at):
    os.chmod(path, 0o600)
    with open(path, "r+b") as f:
        f.seek(at)
        b = f.read(1)
        f.seek(at)
        f.write(bytes([b[0] ^ 0x40]))


def test_a_compressed_snapshot_is_small_and_loads_on_demand():
    need_userfaultfd()
    with Daemon() as d:
        freeze(d)
        files = d.get("/v1/snapshots/snap").json["files"]["memory"]
        assert files["size_bytes"] < PAGES * 4096, files
        assert d.post("/v1/snapshots/snap/verify").json["verified"]
        prepare(d, fill=False)
        clone(d, "a")
        assert has_userfaultfd(d, "a")
        assert d.say("a", "load") == "OK frozen"
        # A few faults bring what the guest needs to answer; the rest stays where it is.
        t = template(d)
        assert not t["complete"] and 0 < t["fills"] and t["faults"], t
        assert t["fills"] < t["chunks"] / 4, t
        d.say("a", f"touch {PAGES} r")
        t = template(d)
        assert PAGES / CHUNK_PAGES <= t["fills"] <= PAGES / CHUNK_PAGES + 40, t
        assert t["faults"] < PAGES / 4, t


def test_a_lazy_clone_has_the_memory_of_its_source():
    need_userfaultfd()
    with Daemon() as d:
        total = freeze(d)
        clone(d, "a")
        assert d.say("a", "load") == "OK frozen"
        assert d.say("a", f"sum 0 {PAGES}") == total
        assert d.say("a", f"touch {PAGES} w 9") == f"OK {PAGES}"
        clone(d, "b")
        assert d.say("b", f"sum 0 {PAGES}") == total


def test_a_complete_template_needs_no_userfaultfd():
    need_userfaultfd()
    with Daemon() as d:
        total = freeze(d)
        clone(d, "a")
        assert d.say("a", f"sum 0 {PAGES}") == total
        t = prepare(d, wait=True)
        assert t["complete"] and t["filled"] == t["chunks"] == t["fills"], t
        clone(d, "b")
        assert has_userfaultfd(d, "a") and not has_userfaultfd(d, "b")
        assert d.say("b", f"sum 0 {PAGES}") == total
        after = template(d)
        assert after["fills"] == t["fills"] and after["faults"] == t["faults"], (t, after)
        # The pager drops what nobody can need.
        assert d.delete("/v1/vms/a").status == 204
        assert d.say("b", f"sum 0 {PAGES}") == total


def test_ten_clones_share_one_memory():
    need_userfaultfd()
    with Daemon() as d:
        freeze(d)
        names = [f"c{i}" for i in range(10)]
        clone(d, *names)
        for n in names:
            assert d.say(n, f"touch {PAGES} r") == f"OK {PAGES}"
        pss = 0
        for n in names:
            with open(f"/proc/{d.vm(n)['pid']}/smaps_rollup", encoding="ascii") as f:
                pss += next(int(line.split()[1]) for line in f if line.startswith("Pss:"))
        # Ten copies would be 80 MiB; one copy, and 10 processes of some 500 KiB.
        assert SANITIZED or pss < PAGES * 4 * 2 + 10 * 1024, pss
        t = template(d)
        assert t["fills"] <= t["chunks"], t


def test_a_killed_pager_is_replaced_and_waiting_guests_go_on():
    need_userfaultfd()
    with Daemon() as d:
        total = freeze(d)
        prepare(d, fill=False)
        names = ["a", "b", "c"]
        clone(d, *names)
        first = pager_pid(d)
        marks = {n: d.console(n)[1] for n in names}
        # Stopped, so that all three come to wait for it; then killed.
        os.kill(first, signal.SIGSTOP)
        for n in names:
            d.put(f"/v1/vms/{n}/console", f"sum 0 {PAGES}\n")
        time.sleep(0.2)
        os.kill(first, signal.SIGKILL)
        for n in names:
            assert d.expect(n, "\n", marks[n])[0].strip() == total
        wait_until("another pager", lambda: pager_pid(d) not in (None, first))
        # And in the midst of work, again and again.
        for turn in range(16):  # 20 in 10 s is where the daemon gives up
            assert d.delete("/v1/snapshots/snap/prepare").status == 204
            prepare(d, fill=turn % 2 == 0)
            n = f"k{turn}"
            clone(d, n)
            _, mark = d.console(n)
            d.put(f"/v1/vms/{n}/console", f"sum 0 {PAGES}\n")
            time.sleep(0.0004 * turn)
            wait_until("a pager", lambda: pager_pid(d))
            os.kill(pager_pid(d), signal.SIGKILL)
            assert d.expect(n, "\n", mark)[0].strip() == total
            assert d.delete(f"/v1/vms/{n}").status == 204


def test_the_pager_is_confined():
    need_userfaultfd()
    with Daemon() as d:
        total = freeze(d)
        prepare(d, fill=False)
        clone(d, "a")
        assert d.say("a", f"sum 0 {PAGES}") == total
        if "no system call filter" in d.log_text():
            raise Skip("the pager is built with a sanitizer")
        pid = pager_pid(d)
        tasks = os.listdir(f"/proc/{pid}/task")
        assert len(tasks) == (2 if os.cpu_count() > 1 else 1), tasks
        for task in tasks:
            status = status_of(task)
            assert status["Seccomp"] == "2" and status["NoNewPrivs"] == "1", status
            assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0, status
        # As the filter would end it.
        os.kill(pid, signal.SIGSYS)
        wait_until("another pager", lambda: pager_pid(d) not in (None, pid))
        assert "the pager ended (signal 31: a system call that it may not make)" in d.log_text()


def test_a_damaged_chunk_stops_only_the_clone_that_needs_it():
    need_userfaultfd()
    with Daemon() as d:
        freeze(d)
        path = f"{d.state_dir}/snapshots/snap/memory"
        stored = [e for e in index_of(path) if e[2]]
        assert len(stored) > PAGES / CHUNK_PAGES
        offset, n, _ = stored[len(stored) // 2]  # most are the pages that were touched
        flip(path, offset + n // 2)
        prepare(d, fill=False)
        clone(d, "needs", "other")
        d.put("/v1/vms/needs/console", f"sum 0 {PAGES}\n")
        v = d.wait_state("needs", "exited")
        assert v["exit"]["reason"] == "snapshot-corrupt" and "chunk" in v["exit"]["detail"], v
        assert d.say("other", "load") == "OK frozen"
        assert template(d)["damaged"] == 1
        r = d.post("/v1/snapshots/snap/prepare", {"wait": True})
        assert r.status == 422 and r.code == "snapshot_corrupt", r
        r = d.post("/v1/snapshots/snap/verify")
        assert r.status == 422 and r.code == "snapshot_corrupt", r
        assert d.say("other", "load") == "OK frozen"


def test_a_damaged_index_is_found_when_prepared():
    need_userfaultfd()
    with Daemon() as d:
        freeze(d)
        path = f"{d.state_dir}/snapshots/snap/memory"
        for at in (0, 9, 40, os.path.getsize(path) - 5):
            flip(path, at)
            for what in ("prepare", "clone"):
                r = d.post(f"/v1/snapshots/snap/{what}")
                assert r.status == 422 and r.code == "snapshot_corrupt", (at, r)
            flip(path, at)
        assert template(d) is None
        clone(d, "a")


def test_deleting_a_snapshot_frees_its_template_after_the_last_clone():
    need_userfaultfd()
    with Daemon() as d:
        total = freeze(d)
        before = d.open_fds()
        prepare(d, fill=False)
        clone(d, "a")
        assert d.delete("/v1/snapshots/snap?force=true").status == 204
        assert d.say("a", f"sum 0 {PAGES}") == total
        assert d.delete("/v1/vms/a").status == 204
        # The pager's socket and process descriptor stay.
        wait_until("descriptors closed", lambda: d.open_fds() <= before + 2)


def test_a_clone_of_a_lazy_clone():
    need_userfaultfd()
    with Daemon() as d:
        total = freeze(d)
        prepare(d, fill=False)
        clone(d, "a")
        for fmt in ("raw", "lz4"):
            r = d.post("/v1/snapshots", {"name": fmt, "vm": "a", "format": fmt})
            assert r.status == 201, r
            assert d.post(f"/v1/snapshots/{fmt}/verify").json["verified"]
            assert d.post(f"/v1/snapshots/{fmt}/clone", {"clones": [{"name": f"of-{fmt}"}]}).status == 201
            d.expect(f"of-{fmt}", "RESTORED\n")
            assert d.say(f"of-{fmt}", f"sum 0 {PAGES}") == total
        assert d.say("a", f"sum 0 {PAGES}") == total


def test_without_userfaultfd_all_is_loaded_first():
    need_kvm()
    with Daemon(args=["--no-userfaultfd"]) as d:
        total = freeze(d)
        clone(d, "a")
        assert not has_userfaultfd(d, "a") and template(d)["complete"]
        assert d.say("a", f"sum 0 {PAGES}") == total


def test_raw_snapshots_have_no_template():
    need_kvm()
    with Daemon() as d:
        total = freeze(d, "raw")
        r = d.post("/v1/snapshots/snap/prepare")
        assert r.status == 200 and "template" not in r.json, r
        clone(d, "a")
        assert d.say("a", f"sum 0 {PAGES}") == total and pager_pid(d) is None


def test_nothing_is_left_when_the_daemon_is_killed():
    need_userfaultfd()
    d = Daemon()
    with d:
        freeze(d)
        prepare(d, fill=False)
        clone(d, "a", "b")
        pids = [int(p) for p in d.vm_processes()]
        assert len(pids) == 3
        os.kill(pager_pid(d), signal.SIGSTOP)
        d.put("/v1/vms/a/console", f"sum 0 {PAGES}\n")  # waits for a page when the daemon goes
        time.sleep(0.1)
        d.stop(signal.SIGKILL)
        wait_until("their end", lambda: not any(alive(p) for p in pids))


def test_the_command_line():
    need_userfaultfd()
    with Daemon() as d:
        d.create("src")
        d.expect("src", "READY\n")
        assert thaw(d, "snapshot", "src", "snap", "--format", "lz4").returncode == 0
        r = thaw(d, "snapshot-prepare", "snap", "--wait")
        assert r.returncode == 0 and "template:" in r.stdout and "lz4" in r.stdout, r
        assert thaw(d, "snapshot", "src", "x", "--format", "zip").returncode == 1
        assert thaw(d, "clone", "snap").returncode == 0


if __name__ == "__main__":
    main(globals())
