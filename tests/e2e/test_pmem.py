#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""virtio-pmem: files of the host as memory of guests, and which file a clone may have."""
import os
import shutil
import struct
import time

from test_incremental import clone, take
from thawlib import ARM64, GUEST, Daemon, main, need_kvm, thaw, wait_until

MIB = 1 << 20


def file_of(d, name, word=7, mib=4):
    path = os.path.join(d.folder, name)
    with open(path, "wb") as f:
        f.truncate(mib * MIB)
        f.write(struct.pack("<Q", word))
        f.seek(mib * MIB - 8)
        f.write(struct.pack("<Q", word + 1))
    return path


def word(path, i):
    with open(path, "rb") as f:
        f.seek(8 * i)
        return struct.unpack("<Q", f.read(8))[0]


def boot(d, pmems, name="vm"):
    d.create(name, pmems=pmems)
    d.expect(name, "READY\n")


LAST = 4 * MIB // 8 - 1


def test_a_file_is_memory():
    need_kvm()
    with Daemon() as d:
        path = file_of(d, "data")
        boot(d, [{"id": "data", "path": path}])
        assert d.say("vm", "pmem size") == f"OK {4 * MIB}"
        assert (d.say("vm", "pmem get 0"), d.say("vm", f"pmem get {LAST}")) == ("OK 7", "OK 8")
        assert d.say("vm", "pmem set 5 99") == "OK 99"
        assert d.say("vm", "pmem flush") == "OK 0"
        assert word(path, 5) == 99
        # One that writes, and nobody else.
        for ro in (False, True):
            r = d.post("/v1/vms", {"name": "x", "kernel": d.vm("vm")["config"]["kernel"],
                                   "pmems": [{"id": "data", "path": path, "read_only": ro}]})
            assert r.code == "in_use" and "another VM uses the file" in r.message, r
        # What was written since a snapshot is the file's, not the snapshot's.
        take(d, "vm", "snap")
        assert d.say("vm", "pmem set 5 100") == "OK 100"
        r = d.post("/v1/snapshots/snap/clone", {})
        assert r.code == "in_use", r
        copy = shutil.copy(path, os.path.join(d.folder, "copy"))
        r = d.post("/v1/snapshots/snap/clone", {"clones": [{"name": "c", "pmems": [{"id": "data", "path": copy}]}]})
        assert r.status == 201, r
        d.expect("c", "RESTORED\n")
        assert d.say("c", "pmem get 5") == "OK 100"
        assert d.say("c", "pmem set 6 1") == "OK 1"
        assert (word(path, 6), word(copy, 6)) == (0, 1)
        assert d.say("c", "pmem flush") == "OK 0"
        assert f"pmem:      data {copy}\n" in thaw(d, "show", "c").stdout
        assert d.post("/v1/vms/vm/clone", {}).code == "in_use"


def flushes(d, vm, n):
    """How long n of them take, in seconds."""
    before = time.monotonic()
    for _ in range(n):
        assert d.say(vm, "pmem flush") == "OK 0"
    return time.monotonic() - before


def test_a_limit_of_flushes():
    need_kvm()
    with Daemon() as d:
        limit = {"ops": {"size": 1, "refill_time_ms": 300}}
        boot(d, [{"id": "data", "path": file_of(d, "data"), "rate_limit": limit}])
        config = d.vm("vm")["config"]["pmems"][0]
        assert config["rate_limit"]["ops"]["size"] == 1, config
        assert flushes(d, "vm", 3) >= 0.55
        take(d, "vm", "snap")
        r = d.request("PATCH", "/v1/vms/vm/pmems/data", {"rate_limit": {}})
        assert r.status == 200 and r.json["config"]["pmems"][0].get("rate_limit") is None, r
        assert flushes(d, "vm", 3) < 0.55
        d.delete("/v1/vms/vm")
        clone(d, "snap", "c")
        assert flushes(d, "c", 3) >= 0.55  # it is in the snapshot
        assert thaw(d, "pmem-set", "c", "data", "--limit", "bandwidth=1G/s,iops=2").returncode == 0
        config = d.vm("c")["config"]["pmems"][0]["rate_limit"]
        assert (config["bandwidth"]["size"], config["ops"]["size"]) == (1 << 30, 2), config
        assert thaw(d, "pmem-set", "c", "data", "--limit", "none").returncode == 0
        assert flushes(d, "c", 3) < 0.55
        assert d.request("PATCH", "/v1/vms/c/pmems/no", {}).code == "not_found"
        r = d.request("PATCH", "/v1/vms/c/pmems/data", {"rate_limit": {"ops": {"size": 1}}})
        assert r.status == 400 and "refill_time_ms" in r.message, r
        r = d.request("PATCH", "/v1/vms/c/pmems/data", {"path": "/x"})
        assert r.code == "unknown_field", r


def test_clones_share_a_read_only_file():
    need_kvm()
    with Daemon() as d:
        path = file_of(d, "ro")
        boot(d, [{"id": "ro", "path": path, "read_only": True}])
        assert d.say("vm", "pmem get 0") == "OK 7"
        take(d, "vm", "snap", format="lz4")
        clone(d, "snap", "c")
        assert d.post("/v1/vms/vm/clone", {"clones": [{"name": "f"}]}).status == 201
        d.expect("f", "RESTORED\n")
        r = d.post("/v1/snapshots/snap/prepare", {"pool": {"size": 1}, "wait": True})
        assert r.status == 200, r
        r = d.post("/v1/snapshots/snap/clone", {"clones": [{"name": "p"}]})
        assert r.status == 201 and r.json["clones"][0]["prepared"], r
        for vm in ("vm", "c", "f", "p"):
            wait_until(vm, lambda vm=vm: d.say(vm, f"pmem get {LAST}") == "OK 8")
            assert d.say(vm, "pmem flush") == "OK 0"
        # Writes go nowhere; on arm64 no further than the guest's own memory.
        assert d.say("c", "pmem set 0 5") == ("OK 5" if ARM64 else "OK 7")
        assert word(path, 0) == 7 and d.say("p", "pmem get 0") == "OK 7"
        d.delete("/v1/snapshots/snap/prepare")


def test_another_file_is_refused():
    need_kvm()
    with Daemon() as d:
        path = file_of(d, "ro")
        boot(d, [{"id": "ro", "path": path, "read_only": True}])
        take(d, "vm", "snap")
        d.delete("/v1/vms/vm")
        keep = shutil.copy2(path, os.path.join(d.folder, "same"))
        os.unlink(path)
        r = d.post("/v1/snapshots/snap/clone", {})
        assert r.code == "file_not_found" and "pmem ro" in r.message, r
        file_of(d, "ro")
        r = d.post("/v1/snapshots/snap/clone", {})
        assert r.code == "snapshot_mismatch" and "changed or replaced since the snapshot" in r.message, r
        larger = file_of(d, "larger", mib=6)

        def given(p, name="c"):
            return d.post("/v1/snapshots/snap/clone", {"clones": [{"name": name, "pmems": [{"id": "ro", "path": p}]}]})
        r = given(larger)
        assert r.code == "snapshot_mismatch" and "that of the snapshot had 4194304" in r.message, r
        assert given(keep).status == 201
        d.expect("c", "RESTORED\n")
        assert d.say("c", "pmem get 0") == "OK 7"
        take(d, "c", "second")  # of the copy, which is the right one from now on
        clone(d, "second", "e")
        r = d.post("/v1/snapshots/snap/clone", {"clones": [{"pmems": [{"id": "none", "path": keep}]}]})
        assert r.code == "invalid_value" and "no pmem \"none\"" in r.message, r


def test_errors():
    need_kvm()
    with Daemon() as d:
        odd, good = os.path.join(d.folder, "odd"), file_of(d, "good")
        with open(odd, "wb") as f:
            f.truncate(3 * MIB)
        for pmems, code, text in (
                ([{"id": "a", "path": odd}], "invalid_value", "not a multiple of 2 MiB"),
                ([{"id": "a", "path": "/none"}], "file_not_found", "pmem a"),
                ([{"id": "a", "path": d.folder}], "file_invalid", "pmem a"),
                ([{"id": "a"}], "missing_field", "path"),
                ([{"id": "a", "path": good}, {"id": "a", "path": good}], "invalid_value", "there twice"),
                ([{"id": "a", "path": good}, {"id": "b", "path": good}], "in_use", "another VM"),
                ([{"id": f"p{i}", "path": good} for i in range(5)], "invalid_value", "pmems")):
            r = d.post("/v1/vms", {"name": "x", "kernel": GUEST, "pmems": pmems})
            assert r.code == code and text in r.message, r


if __name__ == "__main__":
    main(globals())
