#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""GET /v1/metrics: the format, strictly, and that the numbers are those of the work done."""
import json
import os
import re
import signal
import threading
import time

from thawlib import ROOT, Daemon, main, need_kvm, wait_until
from test_lazy import freeze, need_userfaultfd, pager_pid

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (\S+)")


def number(text):
    assert re.fullmatch(r"[0-9]+(\.[0-9]+)?", text), text
    return float(text)


def parse(body):
    """{(name, labels): value}; every rule of the text format 0.0.4 that we use, and none broken."""
    text = body.decode("ascii")
    assert text.endswith("\n") and "\r" not in text and "\n\n" not in text
    out, kinds, helped, family, closed = {}, {}, set(), None, set()
    for line in text.splitlines():
        m = re.fullmatch(rf"# (HELP|TYPE) ({NAME}) (.+)", line)
        if m and m[1] == "HELP":
            assert m[2] not in helped, f"{m[2]}: described twice"
            helped.add(m[2])
            closed.add(family)
            family = m[2]
            assert family not in closed, f"{family}: in two places"
            continue
        if m:
            assert m[2] == family and m[2] not in kinds and m[3] in ("counter", "gauge", "histogram"), line
            kinds[m[2]] = m[3]
            continue
        m = SAMPLE.fullmatch(line)
        assert m, f"not a sample: {line}"
        base = m[1]
        if kinds.get(family) == "histogram":
            base = re.sub(r"_(bucket|sum|count)$", "", m[1])
            assert base != m[1], line
        assert base == family and family in kinds, f"not below its TYPE: {line}"
        labels = tuple(sorted(tuple(x.split("=", 1)) for x in re.findall(LABEL, m[2] or "")))
        assert len(labels) == len({k for k, _ in labels}), line
        assert (m[1], labels) not in out, f"twice: {line}"
        out[m[1], labels] = number(m[3])
    for name, kind in kinds.items():
        if kind == "histogram":
            check_histogram(name, out)
    return out, kinds


def check_histogram(name, samples):
    buckets = [(k[1][0][1].strip('"'), v) for k, v in samples.items() if k[0] == name + "_bucket"]
    bounds = [float("inf") if b == "+Inf" else float(b) for b, _ in buckets]
    counts = [v for _, v in buckets]
    assert bounds == sorted(set(bounds)) and bounds[-1] == float("inf"), name
    assert counts == sorted(counts) and counts[-1] == samples[name + "_count", ()], name
    total = samples[name + "_sum", ()]
    least = sum((c - p) * b for c, p, b in zip(counts[1:], counts, bounds))  # all at their bucket's lower end
    assert total >= least * 0.999 and (counts[-1] or not total), (name, total, least)


class Metrics:
    def __init__(self, d, query=""):
        r = d.get("/v1/metrics" + query)
        assert r.status == 200 and r.headers["Content-Type"] == "text/plain; version=0.0.4", r
        self.samples, self.kinds = parse(r.body)

    def __call__(self, name, **labels):
        return self.samples[name, tuple(sorted((k, f'"{v}"') for k, v in labels.items()))]


def test_the_format_and_the_documentation():
    need_kvm()
    with Daemon() as d:
        d.create("a")
        m = Metrics(d, "?per_vm=true")
        with open(os.path.join(ROOT, "docs/api.md"), encoding="utf-8") as f:
            rows = dict(re.findall(r"^\| `((?:thaw|process)_\w+)` \| (counter|gauge|histogram) \|", f.read(), re.M))
        assert m.kinds == rows, set(m.kinds.items()) ^ set(rows.items())
        r = d.get("/v1/metrics?per_vm=yes")
        assert (r.status, r.code) == (400, "invalid_value"), r


def test_the_parser_is_strict():
    good = b"# HELP a b\n# TYPE a counter\na 1\n"
    parse(good)
    for bad in (b"a 1\n", good[:-1], good + b"a 1\n", good.replace(b"a 1", b"b 1"), good.replace(b"a 1", b'a{x=1} 1'),
                good.replace(b" 1", b" -"), good + good, good.replace(b"counter", b"thing"),
                good.replace(b"a 1", b'a{x="1",x="2"} 1'), good + b"\n"):
        try:
            parse(bad)
        except AssertionError:
            continue
        raise Exception(f"taken: {bad}")


def test_counters_are_the_work_done():
    need_kvm()
    with Daemon() as d:
        zero = Metrics(d)
        assert zero("thaw_clones_total") == zero("thaw_boots_total") == zero("thaw_vms", state="running") == 0
        d.create("src")
        d.expect("src", "READY\n")
        d.create("second", start=False)
        assert d.post("/v1/vms", {"name": "bad", "kernel": "/nowhere"}).status == 422
        r = d.post("/v1/snapshots", {"name": "s", "vm": "src"})
        assert r.status == 201
        pause_s = r.json["pause_us"] / 1e6
        written = sum(f["data_bytes"] for f in r.json["files"].values())
        assert d.post("/v1/snapshots", {"name": "s", "vm": "src"}).status == 409
        for n in (1, 4, 12):
            assert d.post("/v1/snapshots/s/clone", {"count": n}).status == 201
        assert d.post("/v1/snapshots/s/clone", {"run": False}).status == 201
        r = d.post("/v1/snapshots/s/clone", {"clones": [{"name": "src"}, {"name": "x"}, {"name": "x"}]})
        assert r.status == 207, r
        assert d.post("/v1/snapshots/none/clone", {"count": 5}).status == 404
        for i in range(1, 18):
            d.expect(f"s-{i}", "RESTORED\n")
        d.post("/v1/vms/s-3/pause")
        d.post("/v1/vms/s-4/stop", {"mode": "kill"})
        d.put("/v1/vms/s-5/console", "exit\n")
        d.wait_state("s-5", "exited")
        m = Metrics(d)
        assert m("thaw_boots_total") == 2 and m("thaw_boot_failures_total", code="file_not_found") == 1
        assert m("thaw_clones_total") == 1 + 4 + 12 + 1 + 1
        assert m("thaw_clone_failures_total", code="vm_exists") == 2
        assert m("thaw_clone_failures_total", code="snapshot_not_found") == 5
        assert m("thaw_clone_failures_total", code="internal") == 0
        # The paused one is in no histogram.
        assert m("thaw_clone_cold_seconds_count") == 18 and m("thaw_clone_claim_seconds_count") == 0
        assert m("thaw_clone_first_io_seconds_count") == 18
        stages = [m("thaw_clone_stage_seconds_total", stage=s)
                  for s in ("process_ready", "kvm_ready", "state_loaded", "running")]
        assert 0 < stages[0] < stages[1] < stages[2], stages
        assert abs(stages[3] - m("thaw_clone_cold_seconds_sum")) < 1e-6, stages
        assert m("thaw_clone_first_io_seconds_sum") > m("thaw_clone_cold_seconds_sum")
        assert m("thaw_snapshots_written_total") == 1 == m("thaw_snapshot_write_seconds_count")
        assert m("thaw_snapshot_failures_total", code="snapshot_exists") == 1
        assert m("thaw_snapshot_written_bytes_total") == written
        assert abs(m("thaw_snapshot_pause_seconds_sum") - pause_s) < 2e-6
        assert m("thaw_vms", state="created") == 1 and m("thaw_vms", state="paused") == 2
        assert m("thaw_vms", state="exited") == 2 and m("thaw_vms", state="running") == 16
        assert m("thaw_vm_processes") == 19 and m("thaw_snapshots") == 1
        assert m("thaw_vm_exits_total", reason="killed") == 1 == m("thaw_vm_exits_total", reason="shutdown")


def test_pools_are_counted():
    need_kvm()
    with Daemon() as d:
        d.create("src")
        d.expect("src", "READY\n")
        d.post("/v1/snapshots", {"name": "s", "vm": "src"})
        r = d.post("/v1/snapshots/s/prepare", {"pool": {"size": 3}, "wait": True})
        assert r.status == 200, r
        m = Metrics(d)
        assert m("thaw_pool_size") == 3 and m("thaw_vm_processes") == 4 and m("thaw_vms", state="running") == 1
        assert m("thaw_pool_hits_total") == m("thaw_pool_misses_total") == m("thaw_clones_total") == 0
        r = d.post("/v1/snapshots/s/clone", {"count": 12})
        assert r.status == 201, r
        hits = sum(c["prepared"] for c in r.json["clones"])
        m = Metrics(d)
        assert hits >= 3 and m("thaw_pool_hits_total") == hits and m("thaw_pool_misses_total") == 12 - hits
        assert m("thaw_clone_claim_seconds_count") == hits and m("thaw_clone_cold_seconds_count") == 12 - hits
        assert m("thaw_clones_total") == 12
        d.post("/v1/vms/src/clone", {"count": 2})
        assert Metrics(d)("thaw_clones_total") == 14
        d.delete("/v1/snapshots/s/prepare")
        wait_until("its shells are gone", lambda: Metrics(d)("thaw_pool_size") == 0)
        told = [json.loads(x) for x in d.get("/v1/events?follow=false&since=0&types=pool").body.splitlines()]
        assert [(e["reason"], e.get("count")) for e in told] == [("set", 3), ("dropped", None)], told


def test_http_is_counted():
    with Daemon() as d:
        d.settle()  # the descriptors of spares
        start = Metrics(d)
        for _ in range(7):
            d.get("/v1/vms")
        d.get("/v1/vms/none")
        d.get("/nothing")
        d.request("PUT", "/v1/vms")
        d.post("/v1/vms", "{")
        m = Metrics(d)
        count = lambda method, route, status: m("thaw_http_requests_total", method=method, route=route, status=status)
        assert count("GET", "/v1/vms", 200) == 7 and count("GET", "/v1/vms/{name}", 404) == 1
        assert count("", "none", 404) == 1 and count("", "none", 405) == 1 and count("POST", "/v1/vms", 400) == 1
        assert count("GET", "/v1/metrics", 200) == 1  # the first one; this one's answer was not there yet
        before, after = (x("thaw_http_request_seconds_count") for x in (start, m))
        assert after - before == 12, (before, after)
        assert m("thaw_http_requests_in_flight") == 1  # itself
        assert abs(m("process_open_fds") - d.open_fds()) <= 1  # a connection that is just closed
        assert 1 << 20 < m("process_resident_memory_bytes") < 1 << 28


def test_what_waits_is_in_flight():
    need_kvm()
    with Daemon() as d:
        d.create("a")
        _, end = d.expect("a", "READY\n")
        readers = [threading.Thread(target=d.get, args=(f"/v1/vms/a/console?offset={end}&wait_ms=5000",))
                   for _ in range(4)]
        for t in readers:
            t.start()
        wait_until("4 and itself", lambda: Metrics(d)("thaw_http_requests_in_flight") == 5)
        d.put("/v1/vms/a/console", "echo x\n")
        for t in readers:
            t.join(10)
        assert Metrics(d)("thaw_http_requests_in_flight") == 1


def test_the_pager():
    need_userfaultfd()
    with Daemon() as d:
        freeze(d)
        r = d.post("/v1/snapshots/snap/prepare", {"fill": False})
        assert r.status == 200, r
        assert Metrics(d)("thaw_templates", state="filling") == 1
        d.post("/v1/snapshots/snap/clone", {"clones": [{"name": "a"}]})
        d.expect("a", "RESTORED\n")
        d.say("a", "touch 2000 r")
        t = d.get("/v1/snapshots/snap").json["template"]
        assert d.get("/v1/vms/a/metrics").json["template"] == t
        m = Metrics(d)
        assert m("thaw_pager_faults_total") == t["faults"] > 0 and m("thaw_pager_fills_total") == t["fills"] > 0
        assert m("thaw_pager_zero_faults_total") == t["zero_faults"]
        assert m("thaw_pager_filled_bytes_total") == t["fills"] * t["chunk_bytes"]
        os.kill(pager_pid(d), signal.SIGKILL)
        wait_until("it is counted", lambda: Metrics(d)("thaw_pager_restarts_total") == 1)
        d.post("/v1/snapshots/snap/prepare", {"wait": True})
        m = Metrics(d)
        assert m("thaw_templates", state="complete") == 1 and m("thaw_templates", state="filling") == 0
        # Counters never go back, also when the template does.
        d.delete("/v1/snapshots/snap/prepare")
        assert Metrics(d)("thaw_templates", state="dropped") == 1
        d.delete("/v1/vms/a")
        after = Metrics(d)
        assert sum(after("thaw_templates", state=s) for s in ("filling", "complete", "dropped")) == 0
        for name in ("faults_total", "fills_total", "background_fills_total", "filled_bytes_total"):
            assert after("thaw_pager_" + name) == m("thaw_pager_" + name), name


def test_what_a_vm_uses():
    need_kvm()
    with Daemon() as d:
        d.create("a", memory_mib=64)
        d.expect("a", "READY\n")
        before = d.get("/v1/vms/a/metrics").json
        assert before["measured"] and before["name"] == "a" and before["state"] == "running", before
        assert "template" not in before
        d.say("a", "touch 4000 w 5")
        after = d.get("/v1/vms/a/metrics").json
        grown = after["private_bytes"] - before["private_bytes"]
        assert 4000 * 4096 * 0.9 <= grown < 4000 * 4096 * 1.5, (before, after)
        assert after["resident_bytes"] >= after["proportional_bytes"] >= after["private_bytes"], after
        assert after["minor_faults"] > before["minor_faults"] and after["threads"] >= 2
        # What /proc says.
        pid = d.vm("a")["pid"]
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
            pss = next(int(line.split()[1]) * 1024 for line in f if line.startswith("Pss:"))
        assert abs(after["proportional_bytes"] - pss) < 1 << 20, (after, pss)
        # CPU time grows with work.
        d.put("/v1/vms/a/console", "spin 100000\n")
        wait_until("it has worked", lambda: d.get("/v1/vms/a/metrics").json["cpu_us"] >= after["cpu_us"] + 100000)
        r = d.get("/v1/vms/a/metrics?format=prometheus")
        assert r.headers["Content-Type"] == "text/plain; version=0.0.4"
        samples, kinds = parse(r.body)
        labels = (("id", f'"{d.vm("a")["id"]}"'), ("vm", '"a"'))
        assert samples["thaw_vm_private_bytes", labels] >= after["private_bytes"] * 0.9
        assert len(kinds) == 16 + 8
        r = d.get("/v1/vms/a/metrics?format=xml")
        assert (r.status, r.code) == (400, "invalid_value"), r
        assert d.get("/v1/vms/b/metrics").status == 404
        d.post("/v1/vms/a/stop", {"mode": "kill"})
        v = d.get("/v1/vms/a/metrics").json
        assert v["state"] == "exited" and not v["measured"] and "private_bytes" not in v, v


def test_per_vm_series_only_when_asked_for():
    need_kvm()
    with Daemon() as d:
        names = [f"v{i}" for i in range(5)]
        for n in names:
            d.create(n)
        d.create("gone")
        d.post("/v1/vms/gone/stop", {"mode": "kill"})
        assert not any(k.startswith("thaw_vm_res") for k in Metrics(d).kinds)
        m = Metrics(d, "?per_vm=true")
        assert [dict(k[1])["vm"] for k in m.samples if k[0] == "thaw_vm_resident_bytes"] == [f'"{n}"' for n in names]
        # While VMs come and go.
        stop = threading.Event()

        def churn():
            while not stop.is_set():
                d.create("x")
                d.delete("/v1/vms/x")

        t = threading.Thread(target=churn)
        t.start()
        end = time.monotonic() + 2
        try:
            while time.monotonic() < end:
                Metrics(d, "?per_vm=true")
        finally:
            stop.set()
            t.join(20)


def test_asking_is_cheap():
    need_kvm()
    with Daemon() as d:
        took = []
        for _ in range(50):
            start = time.monotonic()
            Metrics(d)
            took.append(time.monotonic() - start)
        assert sorted(took)[25] < 0.05, sorted(took)[25]
        fds = d.open_fds()
        for _ in range(50):
            d.get("/v1/metrics?per_vm=true")
        wait_until("an eventfd of its thread, and no more", lambda: d.open_fds() <= fds + 1)


if __name__ == "__main__":
    main(globals())
