#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Thaws N clones of a snapshot, ends them, and waits until the events say so, with Python's standard library alone:
examples/clone.py SNAPSHOT N"""
import http.client
import json
import os
import socket
import sys


class Thaw(http.client.HTTPConnection):
    """A connection to thawd; it is kept between requests."""

    def __init__(self, path=None):
        super().__init__("thaw")
        self.path = path or os.environ.get("THAW_SOCKET", "/run/thaw/thaw.sock")

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)

    def call(self, method, path, body=None):
        self.request(method, path, None if body is None else json.dumps(body))
        r = self.getresponse()
        answer = r.read()
        if r.status >= 400:
            raise RuntimeError(json.loads(answer)["error"]["message"])
        return json.loads(answer) if answer else None


    def lines(self, path):
        """An answer that goes on, as decoded lines."""
        self.request("GET", path)
        r = self.getresponse()
        while line := r.readline():
            yield json.loads(line)


def main():
    snapshot, n = sys.argv[1], int(sys.argv[2])
    thaw, events = Thaw(), Thaw()
    before = max(e["seq"] for e in events.lines("/v1/events?follow=false&since=0"))
    answer = thaw.call("POST", f"/v1/snapshots/{snapshot}/clone", {"count": n})
    names = {c["name"] for c in answer["clones"] if "error" not in c}
    for c in answer["clones"]:
        print(c["name"], c["error"]["message"] if "error" in c else f"runs after {c['timing_us']['running']} us")
    for name in names:
        thaw.call("DELETE", f"/v1/vms/{name}")
    left = set(names)
    for event in events.lines(f"/v1/events?types=vm.deleted&since={before}"):
        left.discard(event.get("vm"))
        if not left:
            break
    print(f"{len(names)} deleted, as the events say")


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, OSError) as e:
        sys.exit(str(e))
