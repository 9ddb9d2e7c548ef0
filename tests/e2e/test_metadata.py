# SPDX-License-Identifier: Apache-2.0
"""The document that a VM's guest reads over vsock."""
import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from thawlib import GUEST, Daemon, main, need_kvm, thaw  # noqa: E402

PORT = 0x7468
VSOCK = {"cid": 3}


def read(d, name):
    """What the guest reads."""
    out = d.say(name, f"vsock {PORT}")
    assert out.startswith("OK "), out[:200]
    return json.loads(out[3:].encode("latin-1"))


def boot(d, name="vm", **more):
    d.create(name, vsock=VSOCK, **more)
    d.expect(name, "READY\n")


def clone(d, path, body):
    r = d.post(path + "/clone", body)
    assert r.status == 201, r
    for c in r.json["clones"]:
        d.expect(c["name"], "RESTORED")
    return [c["name"] for c in r.json["clones"]]


def test_of_a_new_vm():
    need_kvm()
    with Daemon() as d:
        boot(d, metadata={"a": [1, {"b": "\u00e4"}], "empty": {}})
        assert read(d, "vm") == {"a": [1, {"b": "\u00e4"}], "empty": {}}
        r = d.get("/v1/vms/vm/metadata")
        assert r.status == 200 and r.json == {"a": [1, {"b": "\u00e4"}], "empty": {}}, r
        boot(d, "none")
        assert read(d, "none") == {}
        assert d.get("/v1/vms/none/metadata").json == {}


def test_replaced():
    need_kvm()
    with Daemon() as d:
        boot(d)
        for doc in ({"x": 1}, {"y": "z" * 1000}, {}):
            assert d.put("/v1/vms/vm/metadata", json.dumps(doc)).status == 204
            assert read(d, "vm") == doc
            assert d.get("/v1/vms/vm/metadata").json == doc
        # Also while it stands still.
        assert d.post("/v1/vms/vm/pause").status == 200
        assert d.put("/v1/vms/vm/metadata", '{"p": true}').status == 204
        assert d.post("/v1/vms/vm/resume").status == 200
        assert read(d, "vm") == {"p": True}


def test_of_each_clone():
    need_kvm()
    with Daemon() as d:
        boot(d, metadata={"secret": "of the source"})
        assert read(d, "vm") == {"secret": "of the source"}
        assert d.post("/v1/snapshots", {"name": "s", "vm": "vm"}).status == 201
        specs = {"clones": [{"name": "a", "metadata": {"me": "a"}}, {"name": "b", "metadata": {"me": "b"}},
                            {"name": "c"}]}
        clone(d, "/v1/snapshots/s", specs)
        assert [read(d, n) for n in "abc"] == [{"me": "a"}, {"me": "b"}, {}]
        # It is no part of the snapshot (but of the guest's memory, when the guest has read it).
        folder = os.path.join(d.state_dir, "snapshots", "s")
        for f in ("state", "manifest"):
            with open(os.path.join(folder, f), "rb") as file:
                assert b"of the source" not in file.read()
        # Of shells, and of forks.
        assert d.post("/v1/snapshots/s/prepare", {"pool": {"size": 2}, "wait": True}).status == 200
        r = d.post("/v1/snapshots/s/clone", {"clones": [{"name": "p", "metadata": {"me": "p"}}, {"name": "q"}]})
        assert r.status == 201 and all(c["prepared"] for c in r.json["clones"]), r
        for n in "pq":
            d.expect(n, "RESTORED")
        assert read(d, "p") == {"me": "p"} and read(d, "q") == {}
        clone(d, "/v1/vms/vm", {"clones": [{"name": "f", "metadata": {"me": "f"}}, {"name": "g"}]})
        assert read(d, "f") == {"me": "f"} and read(d, "g") == {}


def test_largest():
    need_kvm()
    with Daemon() as d:
        boot(d)
        doc = {"k": "v" * (65535 - len('{"k":""}'))}
        assert d.put("/v1/vms/vm/metadata", json.dumps(doc)).status == 204
        assert len(json.dumps(doc, separators=(",", ":"))) == 65535
        out, _ = d.console("vm")
        d.put("/v1/vms/vm/console", f"vsock {PORT}\n")
        out, _ = d.expect("vm", "\n", len(out), timeout=60)
        assert json.loads(out[3:]) == doc
        doc["k"] += "v"
        r = d.put("/v1/vms/vm/metadata", json.dumps(doc))
        assert r.status == 400 and r.code == "invalid_value" and "65535" in r.message, r
        r = d.post("/v1/snapshots", {"name": "s", "vm": "vm"})
        doc["k"] = doc["k"][1:]
        clone(d, "/v1/snapshots/s", {"clones": [{"name": "c", "metadata": doc}]})
        assert d.get("/v1/vms/c/metadata").json == doc


def test_errors():
    need_kvm()
    with Daemon() as d:
        boot(d)
        d.create("plain")
        for body, code in (("", None), ("[1]", "wrong_type"), ("{", "invalid_json"), ('{"a":1,"a":2}', "invalid_json"),
                           ("1", "wrong_type"), ('{"a":1}x', "invalid_json"), ('"text"', "wrong_type")):
            r = d.put("/v1/vms/vm/metadata", body)
            assert r.code == code if code else r.status == 204, (body, r)
        assert d.put("/v1/vms/none/metadata", "{}").code == "vm_not_found"
        assert d.get("/v1/vms/none/metadata").code == "vm_not_found"
        assert d.put("/v1/vms/plain/metadata", "{}").code == "invalid_value"
        r = d.post("/v1/vms", {"name": "x", "kernel": GUEST, "metadata": {}})
        assert r.code == "invalid_value" and "vsock" in r.message, r
        r = d.post("/v1/vms", {"name": "x", "kernel": GUEST, "vsock": VSOCK, "metadata": []})
        assert r.code == "wrong_type" and "metadata" in r.message, r
        assert d.post("/v1/snapshots", {"name": "p", "vm": "plain"}).status == 201
        r = d.post("/v1/snapshots/p/clone", {"clones": [{"name": "y", "metadata": {}}]})
        assert r.code == "invalid_value" and "vsock" in r.message, r
        assert d.get("/v1/vms/y").status == 404
        d.post("/v1/vms/vm/stop", {"mode": "kill"})
        assert d.put("/v1/vms/vm/metadata", "{}").code == "vm_gone"


def test_command_line():
    need_kvm()
    with Daemon() as d, tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "m.json")
        with open(path, "w", encoding="ascii") as f:
            f.write('{ "from": "a file" }\n')
        args = ["--kernel", GUEST, "--memory", "32", "--discovery", "cmdline", "--vsock", "cid=3"]
        assert thaw(d, "create", "a", *args, "--metadata", path, "--start").returncode == 0
        d.expect("a", "READY\n")
        assert read(d, "a") == {"from": "a file"}
        assert json.loads(thaw(d, "metadata", "a").stdout) == {"from": "a file"}
        with open(path, "w", encoding="ascii") as f:
            f.write('{"n": 2}')
        r = thaw(d, "metadata", "a", "--set", path)
        assert r.returncode == 0, r
        assert read(d, "a") == {"n": 2}
        assert thaw(d, "snapshot", "a", "s").returncode == 0
        assert thaw(d, "clone", "s", "--name", "b", "--metadata", path).returncode == 0
        d.expect("b", "RESTORED")
        assert read(d, "b") == {"n": 2}
        for bad in ("/nonexistent", "/dev/null", "/"):
            r = thaw(d, "metadata", "a", "--set", bad)
            assert r.returncode == 2 and bad in r.stderr, r


main(globals())
