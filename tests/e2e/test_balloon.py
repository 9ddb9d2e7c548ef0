#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""virtio-balloon: what the guest gives back leaves the host, in every kind of memory, and is in no snapshot."""
import os
import subprocess
import threading

from test_incremental import clone, take
from test_lazy import need_userfaultfd
from thawlib import BIN, GUEST, SANITIZED, Daemon, main, need_kvm, thaw, wait_until

PAGES = 4000  # of the guest's heap, 15.6 MiB
GIVEN = 3000
BALLOON = {"free_page_reporting": True}


def private_mib(d, vm):
    v = d.get(f"/v1/vms/{vm}/metrics").json
    assert v["measured"], v
    return v["private_bytes"] / 2**20


def boot(d, name="vm", **more):
    d.create(name, **{"memory_mib": 64, "balloon": BALLOON, **more})
    d.expect(name, "READY\n")
    assert d.say(name, f"fill 0 {PAGES} 5") == f"OK {PAGES}"


def zeros(d, vm):
    """The sum of as many pages that nobody ever touched."""
    return d.say(vm, f"sum {PAGES + 1000} {GIVEN}")


def given_back(d, vm, how):
    """The guest gives 3,000 pages back; the others keep their content. MiB that were freed."""
    others = d.say(vm, f"sum {GIVEN} {PAGES - GIVEN}")
    before = private_mib(d, vm)
    assert d.say(vm, f"balloon {how} 0 {GIVEN}") == "OK"
    freed = before - private_mib(d, vm)
    assert d.say(vm, f"sum {GIVEN} {PAGES - GIVEN}") == others
    return freed


def test_a_booted_vm_gives_back():
    need_kvm()
    with Daemon() as d:
        boot(d)
        for how in ("report", "in"):
            freed = given_back(d, "vm", how)
            assert freed > (10 if SANITIZED else 11), freed  # a sanitizer's notes grow meanwhile
            assert d.say("vm", f"sum 0 {GIVEN}") == zeros(d, "vm")
            assert d.say("vm", f"fill 0 {PAGES} 6") == f"OK {PAGES}"  # and uses it again
        b = d.get("/v1/vms/vm/balloon").json
        assert (b["freed_mib"], b["actual_mib"]) == (2 * GIVEN // 256, GIVEN // 256), b
        assert d.say("vm", f"balloon out 0 {GIVEN}") == "OK"
        assert d.get("/v1/vms/vm/balloon").json["actual_mib"] == 0


def test_a_snapshot_has_no_free_pages():
    need_kvm()
    with Daemon() as d:
        boot(d)
        sizes = {}
        for when in ("before", "after"):
            for fmt in ("raw", "lz4"):
                sizes[fmt, when] = take(d, "vm", f"{fmt}-{when}", format=fmt)["files"]["memory"]["data_bytes"]
            assert d.say("vm", f"balloon report 0 {GIVEN}") == "OK"
        for fmt in ("raw", "lz4"):
            saved = (sizes[fmt, "before"] - sizes[fmt, "after"]) / 2**20
            print(f"# {fmt}: {sizes[fmt, 'before'] >> 10} KiB before, {sizes[fmt, 'after'] >> 10} KiB after")
            assert saved > 11, sizes
            clone(d, f"{fmt}-after", fmt)
            assert d.say(fmt, f"sum 0 {GIVEN}") == zeros(d, fmt)


def check_clone(d, snapshot, vm):
    """A clone that uses all pages gives some back: not even the snapshot's content is there then."""
    clone(d, snapshot, vm)
    assert d.say(vm, f"fill 0 {PAGES} 9") == f"OK {PAGES}"
    freed = given_back(d, vm, "report")
    assert freed > 11, freed
    assert d.say(vm, f"sum 0 {GIVEN}") == zeros(d, vm)
    assert d.say(vm, "fill 100 10 1") == "OK 10"
    assert d.say(vm, "balloon report 105 20") == "OK"
    return d.say(vm, f"sum 0 {PAGES}")


def test_clones_give_back_zeros():
    need_kvm()
    with Daemon() as d:
        boot(d)
        for fmt in ("raw", "lz4"):
            take(d, "vm", fmt, format=fmt)
            total = check_clone(d, fmt, f"c-{fmt}")
            for kind, how in (("full", {}), ("lz4", {"format": "lz4"}), ("incremental", {"incremental": True})):
                name = f"{fmt}-{kind}"
                v = take(d, f"c-{fmt}", name, **how)
                assert v["files"]["memory"]["data_bytes"] < 6 << 20, v
                clone(d, name, f"c-{name}")
                assert d.say(f"c-{name}", f"sum 0 {PAGES}") == total, name
            r = d.post(f"/v1/vms/c-{fmt}/clone", {"clones": [{"name": f"f-{fmt}"}]})
            assert r.status == 201, r
            d.expect(f"f-{fmt}", "RESTORED\n")
            assert d.say(f"f-{fmt}", f"sum 0 {PAGES}") == total
            assert given_back(d, f"f-{fmt}", "report") > -1
            assert d.say(f"f-{fmt}", f"sum 0 {GIVEN}") == zeros(d, f"f-{fmt}")
            assert d.say(f"c-{fmt}", f"sum 0 {PAGES}") == total  # not its fork's business


def test_incremental_snapshots_notice():
    need_kvm()
    with Daemon() as d:
        boot(d, track_dirty=True)
        take(d, "vm", "full", format="lz4")
        assert d.say("vm", f"balloon report 0 {GIVEN}") == "OK"
        total = d.say("vm", f"sum 0 {PAGES}")
        take(d, "vm", "next", incremental=True)
        clone(d, "next", "c")
        assert d.say("c", f"sum 0 {PAGES}") == total
        assert d.say("c", f"balloon in {GIVEN} 500") == "OK"
        total = d.say("c", f"sum 0 {PAGES}")
        take(d, "c", "third", incremental=True)
        clone(d, "third", "e")
        assert d.say("e", f"sum 0 {PAGES}") == total


def test_memory_of_a_page_handler():
    need_kvm()
    need_userfaultfd()
    with Daemon() as d:
        boot(d, track_dirty=True)
        take(d, "vm", "snap", format="lz4")
        path = os.path.join(d.folder, "handler")
        with subprocess.Popen([os.path.join(BIN, "thaw-page-handler"), path,
                               os.path.join(d.state_dir, "snapshots/snap/memory")], stderr=subprocess.DEVNULL) as h:
            try:
                wait_until("handler", lambda: os.path.exists(path))
                r = d.post("/v1/snapshots/snap/clone", {"clones": [{"name": "c", "page_handler": path}]})
                assert r.status == 201, r
                d.expect("c", "RESTORED\n")
                freed = given_back(d, "c", "report")
                assert freed < 1, freed  # nothing was loaded, so nothing can be freed
                assert d.say("c", f"sum 0 {GIVEN}") == zeros(d, "c")
                take(d, "c", "full", format="lz4")
                assert d.say("c", f"balloon report {GIVEN} 500") == "OK"
                total = d.say("c", f"sum 0 {PAGES}")
                take(d, "c", "next", incremental=True)
                clone(d, "next", "e")
                assert d.say("e", f"sum 0 {PAGES}") == total
            finally:
                h.terminate()


def begin_hints(d, vm, **body):
    """Asks for free page hints; returns a function that waits for the answer."""
    got = []
    t = threading.Thread(target=lambda: got.append(d.post(f"/v1/vms/{vm}/balloon/hint", body)))
    t.start()

    def end():
        t.join(60)
        assert got, "the request did not end"
        return got[0]
    return end


def hint(d, vm, n=GIVEN, first=0):
    """A whole round. The guest waits for its command."""
    d.say(vm, "balloon command")  # the first time this makes the driver
    end = begin_hints(d, vm)
    assert d.say(vm, f"balloon hint {first} {n}") == "OK"
    assert d.say(vm, "balloon stop") == "OK"
    r = end()
    assert r.status == 200 and r.json["hinted_mib"] == n // 256, r
    assert d.say(vm, "balloon command") == "OK 1"


def test_hints():
    need_kvm()
    with Daemon() as d:
        boot(d, balloon={"free_page_hinting": True}, track_dirty=True)
        full = take(d, "vm", "before", format="lz4")["files"]["memory"]["data_bytes"]
        others = d.say("vm", f"sum {GIVEN} {PAGES - GIVEN}")
        before = private_mib(d, "vm")
        hint(d, "vm")
        assert before - private_mib(d, "vm") > (10 if SANITIZED else 11)
        assert d.say("vm", f"sum 0 {GIVEN}") == zeros(d, "vm")
        assert d.say("vm", f"sum {GIVEN} {PAGES - GIVEN}") == others
        less = take(d, "vm", "after", format="lz4")["files"]["memory"]["data_bytes"]
        assert full - less > 11 << 20, (full, less)
        take(d, "vm", "raw")
        assert d.say("vm", f"fill 0 {PAGES} 6") == f"OK {PAGES}"  # the pages are the guest's again
        hint(d, "vm", 600)
        total = d.say("vm", f"sum 0 {PAGES}")
        take(d, "vm", "next", incremental=True)
        for snapshot in ("next", "after", "raw"):
            clone(d, snapshot, f"c-{snapshot}")
        assert d.say("c-next", f"sum 0 {PAGES}") == total
        for vm in ("c-after", "c-raw"):
            assert d.say(vm, f"sum 0 {GIVEN}") == zeros(d, vm)
            assert d.say(vm, f"fill 0 {PAGES} 9") == f"OK {PAGES}"
            before = private_mib(d, vm)
            hint(d, vm)
            assert before - private_mib(d, vm) > (10 if SANITIZED else 11)
            assert d.say(vm, f"sum 0 {GIVEN}") == zeros(d, vm)
        kicks = [x for x in d.get("/v1/vms/c-raw/devices").json["devices"] if x["type"] == "balloon"][0]["queues"][3]
        assert kicks["kicks_by_event"] == 0 < kicks["kicks_by_exit"], kicks


def test_a_snapshot_between_hints():
    need_kvm()
    with Daemon() as d:
        boot(d, balloon={"free_page_hinting": True})
        assert d.say("vm", "balloon command") == "OK 0"
        end = begin_hints(d, "vm")
        assert d.say("vm", f"balloon hint 0 {GIVEN}") == "OK"
        take(d, "vm", "middle")
        clone(d, "middle", "c")
        r = d.post("/v1/vms/vm/clone", {"clones": [{"name": "f"}]})
        assert r.status == 201, r
        d.expect("f", "RESTORED\n")
        for vm in ("c", "f"):
            assert d.say(vm, "balloon command") == "OK 1"  # all its pages are its own again
            assert d.say(vm, "balloon stop") == "OK"       # of nothing
            assert d.say(vm, f"fill 0 {PAGES} 7") == f"OK {PAGES}"
            hint(d, vm)
        assert d.say("vm", "balloon command") == "OK 2"
        assert d.say("vm", "balloon stop") == "OK"
        assert end().json["hinted_mib"] == GIVEN // 256


def test_errors_of_hints():
    need_kvm()
    with Daemon() as d:
        boot(d, balloon={"free_page_hinting": True})
        url = "/v1/vms/vm/balloon/hint"
        r = d.post(url, {})
        assert r.code == "wrong_state" and "no driver" in r.message, r
        assert d.say("vm", "balloon target") == "OK 0"  # makes the driver
        r = d.post(url, {"timeout_ms": 100})
        assert r.code == "wait_timeout" and "within 100 ms" in r.message, r
        for body, code in (({"timeout_ms": 0}, "invalid_value"), ({"timeout_ms": 600001}, "invalid_value"),
                           ({"wait": 1}, "unknown_field")):
            assert d.post(url, body).code == code, body
        out = thaw(d, "balloon", "vm", "--hint", "--timeout", "1")
        assert out.returncode != 0 and "within 1000 ms" in out.stderr, out
        assert thaw(d, "balloon", "vm", "--hint", "--target", "1").returncode == 2
        assert thaw(d, "balloon", "vm", "--timeout", "1").returncode == 2
        end = begin_hints(d, "vm")
        wait_until("the round", lambda: int(d.say("vm", "balloon command").split()[1]) > 1)
        assert d.post(url, {}).code == "busy"
        assert d.post("/v1/vms/vm/pause").status == 200
        r = d.post(url, {})
        assert r.code == "wrong_state" and "paused" in r.message, r
        assert d.post("/v1/vms/vm/resume").status == 200
        d.post("/v1/vms/vm/stop", {"mode": "kill"})
        assert end().code == "vm_gone"
        d.create("plain", balloon={})
        assert "free_page_hinting" in d.post("/v1/vms/plain/balloon/hint", {}).message


def test_hints_by_command():
    need_kvm()
    with Daemon() as d:
        out = thaw(d, "create", "vm", "--kernel", GUEST, "--discovery", "cmdline", "--memory", "64", "--start",
                   "--balloon", "free_page_hinting")
        assert out.returncode == 0, out
        d.expect("vm", "READY\n")
        assert d.say("vm", "balloon target") == "OK 0"
        with subprocess.Popen([os.path.join(BIN, "thaw"), "--socket", d.socket, "balloon", "vm", "--hint"],
                              stdout=subprocess.PIPE, text=True) as p:
            assert d.say("vm", f"balloon hint 0 {GIVEN}") == "OK"
            assert d.say("vm", "balloon stop") == "OK"
            assert f"{GIVEN // 256} by the last hints" in p.communicate(timeout=30)[0]
        assert p.returncode == 0


def test_target_and_statistics():
    need_kvm()
    with Daemon() as d:
        d.create("vm", memory_mib=64, balloon={"target_mib": 3, "stats_interval_s": 1})
        d.expect("vm", "READY\n")
        assert d.vm("vm")["config"]["balloon"] == {"target_mib": 3, "stats_interval_s": 1, "deflate_on_oom": False,
                                                  "free_page_reporting": False, "free_page_hinting": False}
        assert d.say("vm", "balloon target") == "OK 768"
        r = d.request("PATCH", "/v1/vms/vm/balloon", {"target_mib": 5})
        assert r.status == 200 and r.json["target_mib"] == 5, r
        assert d.say("vm", "balloon target") == "OK 1280"
        assert d.say("vm", "balloon in 0 512") == "OK"
        assert d.say("vm", "balloon stats 1000000") == "OK"
        assert d.say("vm", "balloon stats 2000000") == "OK"  # answered when the device wants them
        wait_until("statistics", lambda: d.vm("vm")["balloon"]["stats"].get("free_bytes") == 2000000)
        assert d.vm("vm")["balloon"]["actual_mib"] == 2
        text = d.get("/v1/vms/vm/metrics?format=prometheus").body.decode()
        for line in ("thaw_vm_balloon_target_bytes", "thaw_vm_balloon_actual_bytes", "thaw_vm_guest_free_bytes"):
            assert f"\n{line}{{vm=\"vm\"" in text, text
        assert "thaw_vm_guest_free_bytes{vm=\"vm\",id=\"" + d.vm("vm")["id"] + "\"} 2000000" in text, text
        # A clone begins with what was set last, and has its own from then on.
        take(d, "vm", "snap")
        clone(d, "snap", "c")
        assert d.say("c", "balloon target") == "OK 1280"
        assert d.vm("c")["config"]["balloon"]["target_mib"] == 5
        out = thaw(d, "balloon", "c", "--target", "1", "--stats-interval", "0")
        assert out.returncode == 0 and "target:    1 MiB\nactual:    2 MiB" in out.stdout, out
        assert d.say("c", "balloon target") == "OK 256"
        assert d.say("vm", "balloon target") == "OK 1280"
        assert "actual:    2 MiB" in thaw(d, "balloon", "c").stdout
        assert "balloon:   2 MiB, to be 1" in thaw(d, "show", "c").stdout


def test_errors():
    need_kvm()
    with Daemon() as d:
        r = d.post("/v1/vms", {"name": "x", "kernel": "/x", "memory_mib": 64, "balloon": {"target_mib": 65}})
        assert r.code == "invalid_value" and "more than the memory of 64 MiB" in r.message, r
        r = d.post("/v1/vms", {"name": "x", "kernel": "/x", "balloon": {"size": 1}})
        assert r.code == "unknown_field", r
        d.create("plain")
        d.create("vm", balloon={})
        for vm, body, code, text in (("plain", {"target_mib": 1}, "invalid_value", "has no balloon"),
                                     ("vm", {}, "invalid_value", "give target_mib"),
                                     ("vm", {"target_mib": 33}, "invalid_value", "more than the memory"),
                                     ("vm", {"stats_interval_s": 3601}, "invalid_value", "stats_interval_s"),
                                     ("none", {"target_mib": 1}, "vm_not_found", "none")):
            r = d.request("PATCH", f"/v1/vms/{vm}/balloon", body)
            assert r.code == code and text in r.message, r
        assert d.get("/v1/vms/plain/balloon").code == "invalid_value"
        assert d.put("/v1/vms/vm/balloon", {}).code == "method_not_allowed"
        assert thaw(d, "balloon", "vm", "--target", "lots").returncode == 2
        assert thaw(d, "create", "y", "--kernel", "/x", "--balloon", "reporting").returncode == 2
        d.post("/v1/vms/vm/stop", {"mode": "kill"})
        assert d.get("/v1/vms/vm/balloon").code == "vm_gone"


if __name__ == "__main__":
    main(globals())
