#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Everything in examples/ does what it says, and the README names it. clone.c is built in test_lib.py."""
import json
import os
import re
import shutil
import subprocess

from thawlib import BIN, ROOT, Daemon, Skip, main, need_kvm

EXAMPLES = os.path.join(ROOT, "examples")


def snapshot(d):
    need_kvm()
    d.create("vm", vsock={"cid": 3})
    d.expect("vm", "READY\n")
    assert d.post("/v1/snapshots", {"vm": "vm", "name": "warm"}).status == 201


def run(d, name, *args, stdin=""):
    env = dict(os.environ, THAW_SOCKET=d.socket, PATH=f"{BIN}:{os.environ['PATH']}")
    return subprocess.run([os.path.join(EXAMPLES, name), *args], input=stdin, capture_output=True, text=True, timeout=120,
                          env=env, check=False)


def names(d):
    return [v["name"] for v in d.get("/v1/vms").json["vms"]]


def test_named_in_the_readme():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:
        text = f.read()
    assert sorted(re.findall(r"\(examples/([a-z.]+)\)", text)) == sorted(os.listdir(EXAMPLES))


def test_curl():
    if not shutil.which("curl"):
        raise Skip("no curl here")
    with Daemon() as d:
        snapshot(d)
        r = run(d, "clone.sh", "warm", "3")
        assert r.returncode == 0 and not r.stderr, r
        assert [c["name"] for c in json.loads(r.stdout)["clones"]] == ["warm-1", "warm-2", "warm-3"], r
        assert names(d) == ["vm"]
        r = run(d, "clone.sh", "nothing", "3")
        assert r.returncode == 1 and "snapshot_not_found" in r.stderr, r


def test_python():
    with Daemon() as d:
        snapshot(d)
        r = run(d, "clone.py", "warm", "3")
        assert re.fullmatch(r"(warm-\d runs after \d+ us\n){3}3 deleted, as the events say\n", r.stdout), r
        assert r.returncode == 0 and names(d) == ["vm"]
        r = run(d, "clone.py", "nothing", "1")
        assert r.returncode == 1 and "nothing" in r.stderr and "Traceback" not in r.stderr, r


def test_requests_served_by_clones():
    with Daemon() as d:
        snapshot(d)
        asked = ["first", 'with "quotes" and \\ backslash', "third"]
        r = run(d, "serve.sh", "warm", stdin="".join(a + "\n" for a in asked))
        assert r.returncode == 0, r
        assert [json.loads(line) for line in r.stdout.splitlines()] == [{"request": a} for a in asked], r
        assert names(d) == ["vm"]
        seen = d.get("/v1/events?follow=false&since=0&types=vm.created").body.decode()
        assert len(set(re.findall(r'"vm":"(serve-\d+-\d)"', seen))) == 3, seen
        r = run(d, "serve.sh", "nothing", stdin="x\n")
        assert r.returncode == 1 and "nothing" in r.stderr, r


if __name__ == "__main__":
    main(globals())
