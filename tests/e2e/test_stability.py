#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What docs/stability.md promises of /v1: nothing of tests/golden/openapi.json is gone or narrower. And that what
would find that does: each kind of change, made to a copy of the document."""
import copy
import json
import os
import subprocess
import sys

from thawlib import BIN, ROOT, main

sys.path.insert(0, os.path.join(ROOT, "scripts"))
import stability  # noqa: E402

with open(stability.GOLDEN, encoding="utf-8") as golden:
    OLD = json.load(golden)


def compare(change):
    new = copy.deepcopy(OLD)
    change(new)
    return stability.Comparison(OLD, new).run()


def of(doc, name):
    return doc["components"]["schemas"][name]


def test_this_version_keeps_the_promise():
    r = subprocess.run([sys.executable, os.path.join(ROOT, "scripts/stability.py"), os.path.join(BIN, "thawd")],
                       capture_output=True, text=True, check=False)
    assert r.returncode == 0 and not r.stdout, r.stdout + r.stderr
    assert len(OLD["paths"]) > 20 and compare(lambda new: None) == []


def test_what_breaks_clients_is_found():
    def op(doc, method="post", path="/v1/vms"):
        return doc["paths"][path][method]

    breaks = {
        "the route is gone": lambda n: n["paths"]["/v1/gc"].pop("post"),
        "another operationId": lambda n: op(n).update(operationId="x"),
        "parameter force is gone": lambda n: op(n, "delete", "/v1/snapshots/{name}").update(parameters=[
            p for p in op(n, "delete", "/v1/snapshots/{name}")["parameters"] if p["name"] != "force"]),
        "parameter now is required now": lambda n: op(n)["parameters"].append(
            {"in": "query", "name": "now", "required": True, "schema": {}}),
        "parameter if-match is gone": lambda n: op(n, "delete", "/v1/vms/{name}").update(parameters=[
            p for p in op(n, "delete", "/v1/vms/{name}")["parameters"] if p["name"] != "If-Match"]),
        "takes no body": lambda n: op(n).pop("requestBody"),
        "status 207 is gone": lambda n: op(n, path="/v1/snapshots/{name}/clone")["responses"].pop("207"),
        "header field ETag is gone": lambda n: op(n)["responses"]["201"]["headers"].pop("ETag"),
        "no application/json any more": lambda n: op(n)["responses"]["201"]["content"].clear(),
        ".boot: the field is gone": lambda n: of(n, "VMCreate")["properties"].pop("boot"),
        ".id: the field is gone": lambda n: of(n, "VM")["properties"].pop("id"),
        ".vcpus: it is required now": lambda n: of(n, "VMCreate")["required"].append("vcpus"),
        ".state: it may be absent now": lambda n: of(n, "VM")["required"].remove("state"),
        "type was integer, is string": lambda n: of(n, "VMCreate")["properties"]["vcpus"].update(type="string"),
        "type was string, is integer": lambda n: of(n, "VM")["properties"]["name"].update(type="integer"),
        "maximum was": lambda n: of(n, "VMCreate")["properties"]["vcpus"].update(maximum=16),
        "minimum was": lambda n: of(n, "VMCreate")["properties"]["vcpus"].update(minimum=2),
        "default was": lambda n: of(n, "VMCreate")["properties"]["vcpus"].update(default=2),
        "'lz4-high' is gone": lambda n: of(n, "SnapshotCreate")["properties"]["format"]["enum"].remove("lz4-high"),
        "'paused' is gone": lambda n: of(n, "VM")["properties"]["state"]["enum"].remove("paused"),
        "only some words": lambda n: of(n, "VMCreate")["properties"]["cmdline"].update(enum=["a"]),
        "pattern was": lambda n: of(n, "VMCreate")["properties"]["name"].update(pattern="^a$"),
        "the schema has no such name": lambda n: n["components"]["schemas"].update(
            Other=n["components"]["schemas"]["GC"]) or n["paths"].update(json.loads(json.dumps(n["paths"]).replace(
                "schemas/GC", "schemas/Other"))) or n["components"]["schemas"].pop("GC"),
        "error vm_not_found: status was 404, is None": lambda n: n.update(
            {"x-error-codes": [c for c in n["x-error-codes"] if c["code"] != "vm_not_found"]}),
        "error busy: status was 409, is 423": lambda n: [c.update(status=423) for c in n["x-error-codes"]
                                                         if c["code"] == "busy"],
    }
    for says, change in breaks.items():
        found = compare(change)
        assert any(says in line for line in found), (says, found)


def test_what_is_new_is_fine():
    def more(new):
        new["paths"]["/v1/new"] = {"get": new["paths"]["/v1/info"]["get"]}
        new["paths"]["/v1/vms"]["post"]["parameters"].append({"in": "query", "name": "x", "schema": {}})
        new["paths"]["/v1/vms"]["post"]["responses"]["202"] = {}
        of(new, "VMCreate")["properties"]["new"] = {"type": "string"}
        of(new, "VMCreate")["properties"]["vcpus"]["maximum"] = 64
        of(new, "VMCreate")["required"].remove("kernel")
        of(new, "SnapshotCreate")["properties"]["format"]["enum"].append("zstd")
        of(new, "VM")["properties"]["new"] = {"type": "string"}
        of(new, "VM")["properties"]["state"]["enum"].append("parked")
        new["components"]["schemas"]["New"] = {}
        new["x-error-codes"].append({"code": "new", "status": 400})

    assert compare(more) == []


if __name__ == "__main__":
    main(globals())
