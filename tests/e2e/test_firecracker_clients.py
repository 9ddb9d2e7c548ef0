#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What unmodified clients of Firecracker's API sent, as it was recorded, and of answers what they look at."""
import contextlib
import json
import os
import signal
import subprocess

from fc_front import Front, folder, image
from thawlib import GUEST, Skip, main, need_kvm


def replay(name, headers, prefix=()):
    """Returns the number of requests. Each "start" is another process, after the end of the one before."""
    with folder() as w, contextlib.ExitStack() as fronts:
        image(w, "disk")
        with open(os.path.join(os.path.dirname(__file__), "data", name), encoding="utf-8") as f:
            lines = [json.loads(line.replace("{w}", w).replace("{kernel}", GUEST)) for line in f]
        front, requests = None, 0
        for line in lines:
            if "start" in line:
                if front:
                    assert front.end() == -signal.SIGTERM
                assert line["start"][0] == "--api-sock", line
                stem = os.path.basename(line["start"][1])[:-len(".sock")]
                front = fronts.enter_context(Front(w, stem, *line["start"][2:], prefix=prefix))
                continue
            requests += 1
            r = front.call(*line["request"].split(), line.get("body"), {
                **headers, **({"Content-Type": "application/json"} if "body" in line else {})})
            assert r.status == line["status"], (line, r.status, r.text)
            for key, value in line.get("answer", {}).items():
                assert r.json[key] == value, (line, r.json)
            if line.get("body", {}).get("action_type") == "InstanceStart":
                front.expect("READY\n")  # a guest that does not listen yet is not told of its restore
        assert lines[-1]["request"] == "GET /"
        front.expect("RESTORED\n")
        return requests


def test_what_the_go_sdk_sent():
    """firecracker-go-sdk 1.0.0 starts a VM, changes a drive and metadata, takes a snapshot, and loads it."""
    need_kvm()
    assert replay("firecracker_go_sdk.jsonl", {"User-Agent": "Go-http-client/1.1", "Accept": "application/json",
                                               "Accept-Encoding": "gzip"}) == 24


def test_what_firecracker_python_sent():
    """firecracker-python 0.0.5 starts a VM with a tap, MMDS and vsock, pauses it, takes a snapshot, and loads it."""
    need_kvm()
    ns = f"thaw-fcc-{os.getpid()}"

    def ip(*args):
        return subprocess.run(["ip", *args], capture_output=True, check=False).returncode

    if ip("netns", "add", ns):
        raise Skip("can't make a network namespace")
    try:
        if ip("-n", ns, "tuntap", "add", "t0", "mode", "tap") or ip("-n", ns, "tuntap", "add", "t1", "mode", "tap"):
            raise Skip("can't make taps")
        assert replay("firecracker_python.jsonl", {"User-Agent": "python-requests/2.32.3", "Accept": "*/*",
                                                   "Accept-Encoding": "gzip, deflate", "Connection": "keep-alive"},
                      ["nsenter", f"--net=/run/netns/{ns}"]) == 19
    finally:
        ip("netns", "del", ns)


main(globals())
