#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document itself. That requests and answers are as it says, thawlib holds in every test."""
import json
import os
import re
import subprocess

from thawlib import BIN, GUEST, ROOT, Daemon, document, main, need_kvm


def walk(v):
    yield v
    for child in v.values() if isinstance(v, dict) else v if isinstance(v, list) else ():
        yield from walk(child)


def test_served_and_printed_alike():
    with Daemon() as d:
        r = d.get("/v1/openapi.json")
        assert r.status == 200 and r.headers["Content-Type"] == "application/json", r
        assert r.json == document().doc
        assert d.post("/v1/openapi.json").code == "method_not_allowed"
    p = subprocess.run([os.path.join(BIN, "thawd"), "--openapi", "--nonsense"], stdout=subprocess.PIPE, check=False)
    assert p.returncode == 0 and json.loads(p.stdout)["openapi"] == "3.1.0"


def test_whole():
    doc = document().doc
    ids, used = set(), set()
    for path, ops in doc["paths"].items():
        for method, op in ops.items():
            assert op["operationId"] not in ids, op["operationId"]
            ids.add(op["operationId"])
            named = re.findall(r"{([a-z]+)}", path)
            assert [p["name"] for p in op["parameters"] if p["in"] == "path"] == named, (method, path)
            assert "default" in op["responses"] and len(op["responses"]) >= 2, (method, path)
            assert op["summary"], (method, path)
    for v in walk(doc):
        if isinstance(v, dict) and "$ref" in v:
            assert v["$ref"].startswith("#/components/schemas/"), v
            used.add(v["$ref"].rsplit("/", 1)[1])
    assert used == set(doc["components"]["schemas"]), used ^ set(doc["components"]["schemas"])


def test_as_in_the_docs():
    with open(os.path.join(ROOT, "docs/api.md"), encoding="utf-8") as f:
        text = f.read()
    routes = {(m.upper(), path) for path, ops in document().doc["paths"].items() for m in ops}
    assert routes == set(re.findall(r"^### ([A-Z]+) (/v1\S+)$", text, re.M))
    for op in (op for ops in document().doc["paths"].values() for op in ops.values()):
        for name in [p["name"] for p in op["parameters"] if p["in"] == "header"] + \
                [name for r in op["responses"].values() for name in r.get("headers", {})]:
            assert f"`{name}`" in text, name
    rows = re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \| (.*) \| (.*) \|$", text, re.M)
    codes = [(c["code"], str(c["status"]), c["cause"], c["remedy"]) for c in document().doc["x-error-codes"]]
    assert set(rows) == set(codes) and len(rows) == len(codes), set(rows) ^ set(codes)


def test_defaults_are_what_a_vm_gets():
    need_kvm()
    schema = document().doc["components"]["schemas"]["VMConfig"]["properties"]
    given = {"name": "a", "kernel": GUEST}
    with Daemon() as d:
        r = d.post("/v1/vms", given)
        assert r.status == 201, r
        config = r.json["config"]
        n = 0
        for name, field in schema.items():
            if "default" in field and name in config:
                assert config[name] == field["default"], (name, config[name], field["default"])
                n += 1
        assert n >= 6, n
        for name, value in config.items():  # what nobody gave has a default in the document, or is empty
            assert name in given or "default" in schema[name] or value in ("", []), (name, value)


def test_limits_are_those_of_the_document():
    """One below and one above each range are refused; the ends are not, for their value."""
    need_kvm()
    with Daemon() as d:
        schema = document().doc["components"]["schemas"]["VMConfig"]["properties"]
        n = 0
        for name, field in schema.items():
            if field.get("type") != "integer":
                continue
            for value in (field["minimum"] - 1, field["maximum"] + 1):
                r = d.post("/v1/vms", {"name": "a", "kernel": GUEST, name: value})
                assert r.status == 400 and name in r.message, (name, value, r)
                n += 1
        assert n >= 4, n
        for name in ("-a", "a/b", "", "x" * 65):
            r = d.post("/v1/vms", {"name": name, "kernel": GUEST})
            assert r.code == "invalid_value", r


if __name__ == "__main__":
    main(globals())
