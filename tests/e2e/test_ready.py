#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A guest says that it is ready, and who waits for it is told."""
import threading
import time

from thawlib import Daemon, main, need_kvm, thaw

MARKER = {"console": "OK done"}


def wait_ready(d, name, ms=10000):
    return d.get(f"/v1/vms/{name}?wait=ready&timeout_ms={ms}")


def answer_of(fn):
    """Calls fn in a thread; returns a function that waits for its value."""
    got = []
    t = threading.Thread(target=lambda: got.append(fn()))
    t.start()

    def join():
        t.join(20)
        assert got, "no answer"
        return got[0]
    return join


def test_a_text_on_the_console():
    need_kvm()
    with Daemon() as d:
        v = d.create("a", ready=MARKER)
        assert v["ready"] is False and v["config"]["ready"] == MARKER, v
        d.expect("a", "READY\n")
        waiting = [answer_of(lambda: wait_ready(d, "a")) for _ in range(3)]
        assert d.say("a", "echo don") == "OK don"
        v = d.vm("a")
        assert v["ready"] is False and "ready" not in v["timing_us"], v
        assert d.say("a", "echo done") == "OK done"
        for w in waiting:
            r = w()
            assert r.status == 200 and r.json["ready"] is True, r
        t = d.vm("a")["timing_us"]
        assert t["ready"] >= t["first_io"], t
        assert d.say("a", "echo done") == "OK done"  # the first one counts
        assert d.vm("a")["timing_us"]["ready"] == t["ready"]
        assert wait_ready(d, "a", 0).status == 200


def test_a_text_in_the_guests_first_output():
    need_kvm()
    with Daemon() as d:
        d.create("a", start=False, ready={"console": "READY"})
        waiting = answer_of(lambda: wait_ready(d, "a"))
        assert d.post("/v1/vms/a/start").status == 200
        assert waiting().json["ready"] is True


def test_it_is_not_ready_in_time_or_ends():
    need_kvm()
    with Daemon() as d:
        d.create("a", ready={"console": "never"})
        d.expect("a", "READY\n")
        start = time.monotonic()
        r = wait_ready(d, "a", 200)
        assert r.status == 408 and r.code == "wait_timeout" and time.monotonic() - start >= 0.2, r
        waiting = answer_of(lambda: wait_ready(d, "a"))
        d.put("/v1/vms/a/console", "exit\n")
        r = waiting()
        assert r.status == 409 and r.code == "vm_gone", r
        assert wait_ready(d, "a").code == "vm_gone"
        d.create("b", ready={"console": "never"})
        waiting = answer_of(lambda: wait_ready(d, "b"))
        assert d.delete("/v1/vms/b").status == 204
        assert waiting().code in ("vm_gone", "vm_not_found")


def test_what_is_refused():
    need_kvm()
    with Daemon() as d:
        d.create("a", start=False)
        for query in ("wait=ready", "wait=never", "wait=ready&timeout_ms=600001", "timeout_ms=x"):
            assert d.get(f"/v1/vms/a?{query}").code == "invalid_value", query
        assert "ready" not in d.vm("a")
        for ready in ({}, {"console": ""}, {"console": "x" * 129}, {"vsock_port": 5}, {"vsock_port": 0}):
            r = d.post("/v1/vms", {"name": "b", "kernel": "/x", "ready": ready})
            assert r.status == 400 and r.code == "invalid_value", (ready, r)
        assert d.get("/v1/vms/b").status == 404


def test_clones_count_anew():
    need_kvm()
    with Daemon() as d:
        d.create("src", ready={"console": "OK done"})
        d.expect("src", "READY\n")
        d.say("src", "echo done")
        assert d.vm("src")["ready"] is True
        assert d.post("/v1/snapshots", {"name": "s", "vm": "src"}).status == 201
        specs = [{"name": "same"}, {"name": "other", "ready": {"console": "RESTORED"}}, {"name": "none", "ready": {}}]
        r = d.post("/v1/snapshots/s/clone", {"clones": specs})
        assert r.status == 201, r
        assert wait_ready(d, "other").json["timing_us"]["ready"] > 0
        d.expect("same", "RESTORED\n")
        assert d.vm("same")["ready"] is False
        d.say("same", "echo done")
        assert wait_ready(d, "same").status == 200
        assert "ready" not in d.vm("none") and wait_ready(d, "none").code == "invalid_value"
        r = d.post("/v1/snapshots/s/clone", {"clones": [{"ready": {"vsock_port": 9}}]})
        assert r.status == 400 and "vsock" in r.message, r


def test_a_stream_to_the_host():
    need_kvm()
    with Daemon() as d:
        d.create("a", vsock={"cid": 5}, ready={"console": "never", "vsock_port": 52})
        d.expect("a", "READY\n")
        d.say("a", "vsock 53")  # another port
        assert d.vm("a")["ready"] is False
        waiting = answer_of(lambda: wait_ready(d, "a"))
        d.say("a", "vsock 52")  # nobody listens: it is reset, and ready
        assert waiting().json["timing_us"]["ready"] > 0


def test_of_a_pool_and_of_a_running_vm():
    need_kvm()
    with Daemon() as d:
        d.create("src", ready={"console": "OK done"})
        d.expect("src", "READY\n")
        d.say("src", "echo done")
        assert d.post("/v1/snapshots", {"name": "s", "vm": "src"}).status == 201
        r = d.post("/v1/snapshots/s/prepare", {"wait": True, "pool": {"size": 2}})
        assert r.status == 200, r
        for spec, prepared in (({"name": "a"}, True), ({"name": "b", "ready": {"console": "RESTORED"}}, False)):
            r = d.post("/v1/snapshots/s/clone", {"clones": [spec]})
            assert r.status == 201 and r.json["clones"][0]["prepared"] is prepared, r
        d.expect("a", "RESTORED\n")
        assert d.vm("a")["ready"] is False and wait_ready(d, "b").status == 200
        d.say("a", "echo done")
        assert wait_ready(d, "a").status == 200
        r = d.post("/v1/vms/a/clone", {"clones": [{"name": "fork"}]})
        assert r.status == 201, r
        d.expect("fork", "RESTORED\n")
        assert d.vm("fork")["ready"] is False
        d.say("fork", "echo done")
        assert wait_ready(d, "fork").status == 200


def test_the_command_line():
    need_kvm()
    with Daemon() as d:
        d.create("a", ready=MARKER)
        d.expect("a", "READY\n")
        assert thaw(d, "wait", "a", "--ready", "--timeout", "0").returncode == 4
        d.put("/v1/vms/a/console", "echo done\n")
        assert thaw(d, "wait", "a", "--ready").returncode == 0
        assert "\nready " in thaw(d, "show", "a").stdout
        assert thaw(d, "wait", "a").returncode == 2
        r = thaw(d, "create", "b", "--kernel", d.vm("a")["config"]["kernel"], "--discovery", "cmdline",
                 "--ready-when", "console=READY", "--start")
        assert r.returncode == 0, r
        assert thaw(d, "wait", "b", "--ready").returncode == 0


if __name__ == "__main__":
    main(globals())
