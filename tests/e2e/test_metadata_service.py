# SPDX-License-Identifier: Apache-2.0
"""The document that a VM's guest reads by HTTP from its network device."""
import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from thawlib import GUEST, Daemon, main, need_kvm, thaw  # noqa: E402

ADDRESS = "169.254.169.254"
NETS = [{"id": "net0"}]
TTL = "X-metadata-token-ttl-seconds: 600"


def http(d, name, path, method="GET", header="", address=ADDRESS):
    out = d.say(name, f"net http {address} {method} {path} {header}".rstrip())
    assert out.startswith("OK"), out
    return out[3:]


def with_token(d, name, path):
    token = http(d, name, "/latest/api/token", "PUT", TTL)
    assert len(token) == 48, token
    return http(d, name, path, header=f"X-metadata-token: {token}"), token


def boot(d, name="vm", service=None, **more):
    d.create(name, nets=more.pop("nets", NETS), metadata_service=service or {}, **more)
    d.expect(name, "READY\n")


def test_version_1():
    need_kvm()
    with Daemon() as d:
        boot(d, service={"version": "v1"}, metadata={"who": "vm", "a": {"b": [1, {"c": "x"}]}})
        config = d.get("/v1/vms/vm").json["config"]["metadata_service"]
        assert config == {"address": ADDRESS, "version": "v1", "imds_compat": False, "nets": []}, config
        assert http(d, "vm", "/who") == "vm"
        assert http(d, "vm", "/a", header="Accept: application/json") == '{"b":[1,{"c":"x"}]}'
        assert http(d, "vm", "/a/b/1/c") == "x"
        assert http(d, "vm", "/nothing") == "Resource not found: /nothing."
        assert with_token(d, "vm", "/who")[0] == "vm"
        assert d.put("/v1/vms/vm/metadata", '{"who": "new"}').status == 204
        assert http(d, "vm", "/who") == "new"
        assert d.post("/v1/vms/vm/pause").status == 200
        assert d.put("/v1/vms/vm/metadata", '{"who": "third"}').status == 204
        assert d.post("/v1/vms/vm/resume").status == 200
        assert http(d, "vm", "/who") == "third"
        assert d.say("vm", f"net arp {ADDRESS}") == "OK 067468617701"


def test_of_each_clone():
    """A snapshot, clones, shells and forks: each has its own document and its own tokens."""
    need_kvm()
    with Daemon() as d:
        boot(d, metadata={"who": "source"})
        assert http(d, "vm", "/who").startswith("No MMDS token provided.")
        assert http(d, "vm", "/who", header="X-metadata-token: 1") == "MMDS token not valid."
        who, token = with_token(d, "vm", "/who")
        assert who == "source"
        old = f"X-metadata-token: {token}"
        assert http(d, "vm", "/who", header=old) == "source"
        assert d.post("/v1/snapshots", {"name": "s", "vm": "vm"}).status == 201
        folder = os.path.join(d.state_dir, "snapshots", "s")
        for f in ("state", "manifest"):
            with open(os.path.join(folder, f), "rb") as file:
                assert b'"source"' not in file.read()

        def check(path, names, prepared=False):
            specs = [{"name": n, "metadata": {"who": n}} for n in names[:-1]] + [{"name": names[-1]}]
            r = d.post(path + "/clone", {"clones": specs})
            assert r.status == 201, r
            for c in r.json["clones"]:
                assert not prepared or c["prepared"], r
                d.expect(c["name"], "RESTORED")
            for n in names:
                assert http(d, n, "/who", header=old) == "MMDS token not valid."
            assert [with_token(d, n, "/who")[0] for n in names[:-1]] == list(names[:-1])
            assert with_token(d, names[-1], "/who")[0] == "Resource not found: /who."

        check("/v1/snapshots/s", "abc")
        assert d.post("/v1/snapshots/s/prepare", {"pool": {"size": 2}, "wait": True}).status == 200
        check("/v1/snapshots/s", "pq", prepared=True)
        check("/v1/vms/vm", "fg")
        assert http(d, "vm", "/who", header=old) == "source"


def test_which_nets():
    need_kvm()
    with Daemon() as d:
        # The tiny guest uses the first net only.
        boot(d, nets=[{"id": "a"}, {"id": "b"}], service={"version": "v1", "address": "169.254.42.1",
                                                          "nets": ["a", "b"], "imds_compat": True},
             metadata={"who": "vm"})
        assert http(d, "vm", "/who", header="Accept: application/json", address="169.254.42.1") == "vm"
        assert d.say("vm", f"net arp {ADDRESS}") == "ERR no answer"


def test_errors():
    with Daemon() as d:
        def refused(word, **more):
            body = {"name": "x", "kernel": GUEST, "nets": NETS, "metadata_service": {}}
            body.update(more)
            r = d.post("/v1/vms", body)
            assert r.status == 400 and word in r.message, r

        refused("no net \"x\"", metadata_service={"nets": ["x"]})
        refused("169.254.1.0 to", metadata_service={"address": "10.0.0.1"})
        refused("version", metadata_service={"version": "v3"})
        refused("colour", metadata_service={"colour": 1})
        refused("has no net", nets=[])
        refused("exactly one of", nets=[{"id": "a"}, {"id": "b"}], metadata_service={"nets": ["a"]})
        refused("exactly one of", metadata_service={}, nets=[{"id": "a", "tap": "t", "socket": "/s"}])


def test_command_line():
    need_kvm()
    with Daemon() as d, tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "m.json")
        with open(path, "w", encoding="ascii") as f:
            json.dump({"who": "a"}, f)
        r = thaw(d, "create", "a", "--kernel", GUEST, "--memory", "32", "--discovery", "cmdline", "--net", "id=n",
                 "--metadata-service", "version=v1,net=n,address=169.254.1.1,imds_compat", "--metadata", path, "--start")
        assert r.returncode == 0, r
        d.expect("a", "READY\n")
        assert d.get("/v1/vms/a").json["config"]["metadata_service"] == {
            "address": "169.254.1.1", "version": "v1", "imds_compat": True, "nets": ["n"]}
        assert http(d, "a", "/who", address="169.254.1.1") == "a"
        assert "metadata only" in thaw(d, "show", "a").stdout
        r = thaw(d, "create", "b", "--kernel", GUEST, "--metadata-service", "v2")
        assert r.returncode == 2 and "none of: address version imds_compat net" in r.stderr, r


main(globals())
