#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""huge_pages: the host's pages under guest memory are those that were asked for, in a booted VM and in clones,
and what can't be is refused with a reason. Sets the host's pools of huge pages and puts them back."""
import concurrent.futures
import contextlib
import os
import signal
import time

from thawlib import Daemon, Skip, main, need_kvm, thaw, wait_until

KIB_2M, KIB_1G = 2048, 1 << 20
MIB = 64  # of memory: 32 pages of 2 MiB
PAGES = MIB // 2
TOUCH = 8000  # pages of 4 KiB: 31 MiB
THP = "/sys/kernel/mm/transparent_hugepage/enabled"


def pool_file(kib, name="nr_hugepages"):
    return f"/sys/kernel/mm/hugepages/hugepages-{kib}kB/{name}"


def read(path):
    with open(path, encoding="ascii") as f:
        return f.read()


def write(path, n):
    with open(path, "w", encoding="ascii") as f:
        f.write(str(n))


def free_pages(kib=KIB_2M):
    return int(read(pool_file(kib, "free_hugepages"))) - int(read(pool_file(kib, "resv_hugepages")))


@contextlib.contextmanager
def host_pages(n, kib=KIB_2M):
    """The host has n free huge pages in here, no more."""
    need_kvm()
    path = pool_file(kib)
    try:
        old = int(read(path))
        if old:
            raise Skip(f"{path} is {old} already: its pages may be in use")
        write(path, n)
    except OSError as e:
        raise Skip(f"{path} can't be set: {e.strerror}") from e
    try:
        if int(read(path)) != n:
            raise Skip(f"{path}: the host has no memory in one piece for {n} pages")
        yield
    finally:
        write(path, old)


def need_thp():
    need_kvm()
    if not os.path.exists(THP) or "[never]" in read(THP):
        raise Skip(f"{THP} is never, or not there")


def smaps_kib(d, name, *fields):
    with open(f"/proc/{d.vm(name)['pid']}/smaps_rollup", encoding="ascii") as f:
        lines = dict(line.split(":", 1) for line in f if ":" in line)
    return sum(int(lines[k].split()[0]) for k in fields)


def hugetlb_kib(d, name):
    """Linux 6.18 now and then counts one process's page of 1 GiB as shared."""
    return smaps_kib(d, name, "Private_Hugetlb", "Shared_Hugetlb")


def boot(d, name, kind, mib=MIB, **more):
    vm = d.create(name, memory_mib=mib, huge_pages=kind, **more)
    assert vm["config"]["huge_pages"] == kind, vm
    d.expect(name, "READY\n")


def refused(r, status, code, *words):
    assert (r.status, r.code) == (status, code), r
    for w in words:
        assert w in r.message, (w, r)


def clone(d, snapshot, name, **more):
    return d.post(f"/v1/snapshots/{snapshot}/clone", {"clones": [dict(more, name=name)]})


def cloned(d, snapshot, name, **more):
    r = clone(d, snapshot, name, **more)
    assert r.status == 201, r
    d.expect(name, "RESTORED\n")
    return d.vm(name)["config"]["huge_pages"]


def test_memory_of_2_mib_pages():
    with host_pages(PAGES + 3), Daemon() as d:
        boot(d, "vm", "2M")
        assert hugetlb_kib(d, "vm") == MIB * 1024
        assert free_pages() == 3
        assert d.say("vm", f"touch {TOUCH} w 1") == f"OK {TOUCH}"
        assert smaps_kib(d, "vm", "Private_Dirty") < 4096
        assert d.get("/v1/vms/vm/metrics").json["huge_bytes"] == MIB << 20
        assert d.delete("/v1/vms/vm").status == 204
        assert free_pages() == PAGES + 3
        boot(d, "plain", "none")
        assert free_pages() == PAGES + 3 and hugetlb_kib(d, "plain") == 0


def test_memory_of_a_1_gib_page():
    with host_pages(1, KIB_1G), Daemon() as d:
        boot(d, "vm", "1G", 1024)
        assert hugetlb_kib(d, "vm") == KIB_1G and free_pages(KIB_1G) == 0
        r = d.post("/v1/vms", {"name": "b", "kernel": "/k", "memory_mib": 1026, "huge_pages": "1G"})
        refused(r, 400, "invalid_value", "multiple of 1024")


def test_transparent_huge_pages():
    need_thp()
    with Daemon() as d:
        for kind in ("thp", "none"):
            boot(d, kind, kind)
            assert d.say(kind, f"touch {TOUCH} w 1") == f"OK {TOUCH}"
        huge = smaps_kib(d, "thp", "AnonHugePages")
        assert huge > TOUCH * 4 * 3 // 4, huge  # what was touched, unless memory is in pieces
        assert d.get("/v1/vms/thp/metrics").json["huge_bytes"] == huge << 10
        if "[madvise]" in read(THP):
            assert smaps_kib(d, "none", "AnonHugePages") == 0


def test_snapshots_and_clones():
    """Every kind of clone of every kind of snapshot has the same memory, in the pages asked for."""
    need_thp()
    with host_pages(3 * PAGES), Daemon() as d:
        for kind in ("none", "thp", "2M"):
            boot(d, "src", kind)
            d.say("src", f"touch {TOUCH} w 5")
            want = d.say("src", f"sum 0 {TOUCH}")
            for fmt in ("raw", "lz4"):
                r = d.post("/v1/snapshots", {"name": fmt, "vm": "src", "format": fmt})
                assert r.status == 201, r
                # Huge ones first: of a template that is not complete then.
                for ask in ({}, {"huge_pages": "2M"}, {"huge_pages": "thp"}, {"huge_pages": "none"}):
                    assert cloned(d, fmt, "c", **ask) == ask.get("huge_pages", kind)
                    has = ask.get("huge_pages", kind)
                    if has != "none":  # none may be loaded lazily still
                        assert hugetlb_kib(d, "c") == (MIB * 1024 if has == "2M" else 0), (kind, fmt, ask)
                    assert d.say("c", f"sum 0 {TOUCH}") == want, (kind, fmt, ask)
                    if has == "thp":
                        assert smaps_kib(d, "c", "AnonHugePages") > TOUCH * 4 * 3 // 4
                    if has == "none":
                        assert hugetlb_kib(d, "c") == 0 and smaps_kib(d, "c", "AnonHugePages") == 0
                    d.say("c", f"touch {TOUCH} w 9")
                    assert d.delete("/v1/vms/c").status == 204
                assert d.say("src", f"sum 0 {TOUCH}") == want
            for name in ("raw", "lz4"):
                assert d.delete(f"/v1/snapshots/{name}").status == 204
            d.delete("/v1/vms/src")
        assert free_pages() == 3 * PAGES


def test_a_clone_of_a_clone():
    with host_pages(2 * PAGES), Daemon() as d:
        boot(d, "src", "none")
        d.say("src", f"touch {TOUCH} w 5")
        d.post("/v1/snapshots", {"name": "a", "vm": "src"})
        assert cloned(d, "a", "c", huge_pages="2M") == "2M"
        d.say("c", "touch 100 w 7")
        want = d.say("c", f"sum 0 {TOUCH}")
        assert d.post("/v1/snapshots", {"name": "b", "vm": "c", "format": "lz4"}).status == 201
        assert cloned(d, "b", "g") == "2M"
        assert d.say("g", f"sum 0 {TOUCH}") == want


def test_too_few_pages():
    with host_pages(PAGES + 1), Daemon() as d:
        boot(d, "vm", "2M")
        body = {"name": "b", "kernel": "/k", "memory_mib": MIB, "huge_pages": "2M"}
        refused(d.post("/v1/vms", body), 422, "huge_pages_unavailable", "32 pages of 2M", "1 of the host's 33",
                "nr_hugepages")
        assert d.post("/v1/snapshots", {"name": "s", "vm": "vm"}).status == 201
        refused(clone(d, "s", "c"), 422, "huge_pages_unavailable", "nr_hugepages")
        assert cloned(d, "s", "c", huge_pages="none") == "none"
        # Started together: the daemon's look at the pool or the VM process's refusal, the code is one.
        d.delete("/v1/vms/vm")
        r = d.post("/v1/snapshots/s/clone", {"count": 3, "huge_pages": "2M"})
        assert r.status == 207, r
        bad = [c["error"] for c in r.json["clones"] if "error" in c]
        assert len(bad) == 2 and all(e["code"] == "huge_pages_unavailable" for e in bad), bad
    with host_pages(0), Daemon() as d:
        refused(d.post("/v1/vms", body), 422, "huge_pages_unavailable", "0 of the host's 0", "nr_hugepages")
        assert not d.vm_processes() and not d.leftovers()


def test_thp_switched_off():
    need_thp()
    old = read(THP).split("[")[1].split("]")[0]
    try:
        write(THP, "never")
    except OSError as e:
        raise Skip(f"{THP}: {e.strerror}") from e
    try:
        with Daemon() as d:
            body = {"name": "b", "kernel": "/k", "memory_mib": MIB, "huge_pages": "thp"}
            refused(d.post("/v1/vms", body), 422, "huge_pages_unavailable", "never", "echo madvise")
            assert "transparent ones: never" in thaw(None, "doctor").stdout
    finally:
        write(THP, old)


def test_what_does_not_go_together():
    need_kvm()
    with Daemon() as d:
        def create(**more):
            return d.post("/v1/vms", dict(more, name="b", kernel="/k"))
        refused(create(huge_pages="2M", memory_mib=33), 400, "invalid_value", "33 is not a multiple of 2")
        refused(create(huge_pages="2M", balloon={"target_mib": 1}), 400, "invalid_value", "balloon")
        refused(create(huge_pages="thp", track_dirty=True), 400, "invalid_value", "track_dirty")
        refused(create(huge_pages="4M"), 400, "invalid_value", "huge_pages", "2M")
        boot(d, "src", "none")
        assert d.post("/v1/snapshots", {"name": "s", "vm": "src"}).status == 201
        refused(clone(d, "s", "c", huge_pages="thp", record={}), 400, "invalid_value", "record")
        r = clone(d, "s", "c", huge_pages="thp", page_handler="/nobody")
        refused(r, 400, "invalid_value", "page_handler")
        r = d.post("/v1/vms/src/clone", {"huge_pages": "thp"})
        refused(r, 400, "invalid_value", "huge_pages", "fork")
        assert not d.leftovers() or d.delete("/v1/vms/src").status == 204


def test_forks_and_incremental_snapshots():
    need_thp()
    with host_pages(PAGES), Daemon() as d:
        boot(d, "t", "thp")
        d.say("t", f"touch {TOUCH} w 5")
        want = d.say("t", f"sum 0 {TOUCH}")
        assert d.post("/v1/vms/t/clone", {"count": 2}).status == 201
        for n in ("t-1", "t-2"):
            d.expect(n, "RESTORED\n")
            assert d.say(n, f"touch {TOUCH} w 6") == f"OK {TOUCH}" and d.vm(n)["config"]["huge_pages"] == "thp"
        assert d.say("t", f"sum 0 {TOUCH}") == want
        boot(d, "h", "2M")
        refused(d.post("/v1/vms/h/clone", {}), 422, "huge_pages_unavailable", "snapshot")
        d.delete("/v1/vms/h")
        assert d.post("/v1/snapshots", {"name": "s", "vm": "t"}).status == 201
        assert cloned(d, "s", "c", huge_pages="2M") == "2M"
        r = d.post("/v1/snapshots", {"name": "i", "vm": "c", "incremental": True})
        refused(r, 409, "wrong_state", "huge_pages", "full snapshot")


def snapshot_while_it_writes(d, name, command):
    """The process that writes the snapshot, which takes seconds, is held up until the guest has done the command."""
    pid = d.vm("vm")["pid"]
    children = f"/proc/{pid}/task/{pid}/children"
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        reply = thread.submit(d.post, "/v1/snapshots", {"name": name, "vm": "vm", "format": "lz4-high"})
        end = time.monotonic() + 10
        while not (child := read(children).split()) and time.monotonic() < end:
            pass
        os.kill(int(child[0]), signal.SIGSTOP)
        try:
            assert d.say("vm", command).startswith("OK")
        finally:
            os.kill(int(child[0]), signal.SIGCONT)
        return reply.result()


def test_a_live_snapshot_without_spare_pages():
    """The guest's pages are safe, the snapshot is not: it says so. Paused, or with spare pages, it works."""
    mib, touched = 192, 40000  # 156 MiB
    with host_pages(mib // 2), Daemon() as d:
        boot(d, "vm", "2M", mib)
        assert d.say("vm", f"fill 0 {touched} 3") == f"OK {touched}"
        r = snapshot_while_it_writes(d, "s", f"fill 0 {touched} 4")
        refused(r, 422, "huge_pages_unavailable", "pause the VM", "nr_hugepages")
        want = d.say("vm", f"sum 0 {touched}")
        assert hugetlb_kib(d, "vm") == mib * 1024 and free_pages() == 0
        assert d.post("/v1/vms/vm/pause").status == 200
        assert d.post("/v1/snapshots", {"name": "s", "vm": "vm"}).status == 201
        assert cloned(d, "s", "c", huge_pages="none") == "none"
        assert d.say("c", f"sum 0 {touched}") == want
        d.delete("/v1/vms/c")
        write(pool_file(KIB_2M), mib)  # as many again
        assert d.post("/v1/vms/vm/resume").status == 200
        r = snapshot_while_it_writes(d, "t", f"fill 0 {touched} 5")
        assert r.status == 201, r
        d.delete("/v1/vms/vm")
        assert cloned(d, "t", "c") == "2M"
        assert d.say("c", f"sum 0 {touched}") == want


def test_a_pool_of_shells():
    with host_pages(3 * PAGES), Daemon() as d:
        boot(d, "src", "2M")
        d.say("src", f"touch {TOUCH} w 5")
        want = d.say("src", f"sum 0 {TOUCH}")
        assert d.post("/v1/snapshots", {"name": "s", "vm": "src", "format": "lz4"}).status == 201
        d.delete("/v1/vms/src")
        r = d.post("/v1/snapshots/s/prepare", {"fill": False, "wait": True, "pool": {"size": 2}})
        assert r.status == 200 and r.json["pool"]["ready"] == 2, r
        assert free_pages() == PAGES
        assert d.get("/v1/snapshots/s").json["template"]["clones"] == 0  # they have copied it
        r = clone(d, "s", "a")
        assert r.status == 201 and r.json["clones"][0]["prepared"], r
        d.expect("a", "RESTORED\n")
        assert d.say("a", f"sum 0 {TOUCH}") == want and hugetlb_kib(d, "a") == MIB * 1024
        r = clone(d, "s", "b", huge_pages="none")
        assert r.status == 201 and not r.json["clones"][0]["prepared"], r
        d.expect("b", "RESTORED\n")
        assert d.say("b", f"sum 0 {TOUCH}") == want and hugetlb_kib(d, "b") == 0
        # A pool whose pages are gone says so.
        r = d.post("/v1/snapshots/s/prepare", {"wait": True, "pool": {"size": 4}})
        assert r.status == 200 and r.json["pool"]["ready"] == 2 and "nr_hugepages" in r.json["pool"]["error"], r


def test_the_next_daemon_and_the_command_line():
    with host_pages(PAGES), Daemon() as d:
        guest = os.path.join(os.environ.get("BUILD", "build"), "tests/guest/tiny")
        r = thaw(d, "create", "vm", "--kernel", guest, "--discovery", "cmdline", "--memory", str(MIB),
                 "--huge-pages", "2M", "--start")
        assert r.returncode == 0, r
        d.expect("vm", "READY\n")
        wait_until("record", lambda: os.listdir(os.path.join(d.state_dir, "vms")))
        assert "pages:     2M" in thaw(d, "show", "vm").stdout
        wait_until("socket", lambda: any(f.endswith(".sock") for f in os.listdir(f"{d.state_dir}/vms")))
        d.stop(signal.SIGHUP)
        d.start()
        assert d.vm("vm")["config"]["huge_pages"] == "2M" and d.state("vm") == "running"
        assert thaw(d, "snapshot", "vm", "s").returncode == 0
        assert thaw(d, "clone", "s", "--name", "c", "--huge-pages", "none").returncode == 0
        assert d.vm("c")["config"]["huge_pages"] == "none"
        assert f"2M: 0 of {PAGES} free" in thaw(None, "doctor").stdout


if __name__ == "__main__":
    main(globals())
