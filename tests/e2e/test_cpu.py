#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A snapshot of another CPU is refused with what is missing; CPU masks."""
import ctypes
import ctypes.util
import json
import os
import struct

from thawlib import GUEST, Daemon, Skip, main, need_kvm, thaw

HEADER = 32  # of a container, snapshot/format.h
VCPU = 2  # microvm/sections.h
CPUID_TAG = 10  # vcpu_state.c
LEAF = "<10I"  # struct kvm_cpuid_entry2


def xxh3(data):
    name = ctypes.util.find_library("xxhash")
    if not name:
        raise Skip("no libxxhash")
    f = ctypes.CDLL(name).XXH3_64bits
    f.restype, f.argtypes = ctypes.c_uint64, (ctypes.c_char_p, ctypes.c_size_t)
    return f(bytes(data), len(data))


def rewrite(path, change):
    """Changes a container's payload, then makes its checksum right. Returns the whole file."""
    with open(path, "rb") as f:
        b = bytearray(f.read())
    change(b)
    b[24:32] = struct.pack("<Q", xxh3(b[:24] + b[HEADER:]))
    os.chmod(path, 0o600)
    with open(path, "wb") as f:
        f.write(b)
    return b


def edit_cpuid(d, name, edit):
    """edit(leaf, index, regs) changes regs = [eax, ebx, ecx, edx] of each CPUID entry."""
    folder = f"{d.state_dir}/snapshots/{name}"

    def change(b):
        at = HEADER
        while at < len(b):
            kind, _, length, _ = struct.unpack_from("<4I", b, at)
            at, end = at + 16, at + 16 + length
            while kind == VCPU and at < end:
                tag, _, n = struct.unpack_from("<HHI", b, at)
                for e in range(at + 8, at + 8 + n, 40) if tag == CPUID_TAG else ():
                    leaf, index, flags, *rest = struct.unpack_from(LEAF, b, e)
                    regs = rest[:4]
                    edit(leaf, index, regs)
                    struct.pack_into(LEAF, b, e, leaf, index, flags, *regs, *rest[4:])
                at += 8 + n
            at = end

    with open(f"{folder}/state", "rb") as f:
        old = struct.pack("<Q", hash_of_file(f.read()))
    new = struct.pack("<Q", hash_of_file(rewrite(f"{folder}/state", change)))

    def fix(b):
        assert b.count(old) == 1
        b[:] = b.replace(old, new)

    rewrite(f"{folder}/manifest", fix)


def hash_of_file(b):
    """snap_xxh3_file() of a file without holes."""
    chunks = [bytes(b[i:i + 65536]) for i in range(0, len(b), 65536)]
    return xxh3(b"".join(struct.pack("<Q", xxh3(c)) for c in chunks))


def snapshot(d, name="snap"):
    if d.get("/v1/vms/src").status != 200:
        d.create("src")
        d.expect("src", "READY\n")
    assert d.post("/v1/snapshots", {"name": name, "vm": "src"}).status == 201


def test_a_cpu_that_lacks_something_is_refused():
    need_kvm()
    with Daemon() as d:
        snapshot(d)
        good = d.get("/v1/snapshots/snap").json["cpu"]
        assert good["missing"] == [] and "sse2" in good["features"], good

        def more(leaf, index, regs):
            if (leaf, index) == (7, 0):
                regs[3] |= 1 << 24 | 1 << 25 | 1 << 6  # amx_tile, amx_int8, unknown
            if leaf == 0x40000001:
                regs[0] |= 1 << 30

        edit_cpuid(d, "snap", more)
        want = ["leaf 0x7 edx bit 6", "amx_tile", "amx_int8", "leaf 0x40000001 eax bit 30"]
        assert d.get("/v1/snapshots/snap").json["cpu"]["missing"] == want
        for _ in range(2):  # a refusal is not remembered as a success
            r = d.post("/v1/snapshots/snap/clone", {})
            assert (r.status, r.code) == (422, "cpu_incompatible"), r
            assert r.json["error"]["missing"] == want, r
            assert "amx_tile" in r.message
        assert d.post("/v1/snapshots/snap/verify").status == 200  # it is whole, only not for here
        p = thaw(d, "snapshot-show", "snap")
        assert p.returncode == 0 and "missing:  leaf 0x7 edx bit 6, amx_tile" in p.stdout, p
        assert "AuthenticAMD" in p.stdout or "GenuineIntel" in p.stdout or "HygonGenuine" in p.stdout, p
        d.delete("/v1/vms/src")
        assert not d.vm_processes() and not d.leftovers()


def test_a_cpu_of_another_vendor_is_refused():
    need_kvm()
    with Daemon() as d:
        snapshot(d)

        def vendor(leaf, index, regs):
            if leaf == 0:
                regs[1], regs[3], regs[2] = struct.unpack("<3I", b"Transmeta386")

        edit_cpuid(d, "snap", vendor)
        r = d.post("/v1/snapshots/snap/clone", {"count": 3})
        assert r.code == "cpu_incompatible" and "vendor Transmeta386" in r.message, r


def test_a_cpu_with_less_is_fine():
    need_kvm()
    with Daemon() as d:
        snapshot(d)

        def less(leaf, index, regs):
            if (leaf, index) == (7, 0):
                regs[1] &= ~(1 << 18)  # rdseed

        edit_cpuid(d, "snap", less)
        r = d.post("/v1/snapshots/snap/clone", {})
        assert r.status == 201, r
        d.expect("snap-1", "RESTORED\n")


def test_masks():
    need_kvm()
    with Daemon() as d:
        body = {"name": "m", "kernel": "/nonexistent"}
        r = d.post("/v1/vms", dict(body, cpu={"template": "pentium"}))
        assert r.code == "invalid_value" and "x86-64-v2" in r.message, r
        body = {"name": "m", "kernel": GUEST}
        for feature, said in (("sse9", "no feature"), ("lm", "without lm")):
            r = d.post("/v1/vms", dict(body, cpu={"disable": [feature]}))
            assert r.code == "invalid_value" and said in r.message, r
        assert not d.vm_processes()
        p = thaw(d, "create", "m", "--kernel", body["kernel"], "--cpu", "template=x86-64-v2,disable=popcnt",
                 "--start", "--json", "--discovery", "cmdline")
        r = json.loads(p.stdout)
        if p.returncode:  # a KVM that can't hide features
            assert r["error"]["code"] == "cpu_incompatible", r
            raise Skip("here guests see the bare CPU, whatever they are told")
        assert r["config"]["cpu"] == {"template": "x86-64-v2", "disable": ["popcnt"]}, r
        d.expect("m", "READY\n")
        assert d.post("/v1/snapshots", {"name": "s", "vm": "m"}).status == 201
        features = d.get("/v1/snapshots/s").json["cpu"]["features"]
        assert "sse4_2" in features and not {"popcnt", "avx", "xsave", "aes"} & set(features), features
        assert d.post("/v1/snapshots/s/clone", {}).status == 201
        d.expect("s-1", "RESTORED\n")


def test_bits_by_number():
    need_kvm()
    with Daemon() as d:
        body = {"name": "src", "kernel": GUEST}
        for cpu, said in (({"cpuid": [{"leaf": "7"}]}, "cpu.cpuid[0].leaf: must be a text of 0x"),
                          ({"cpuid": [{"leaf": "0x123456789"}]}, "8 hexadecimal digits"),
                          ({"cpuid": [{"leaf": "0x1", "register": "rax"}]}, "eax"),
                          ({"cpuid": [{"leaf": "0x1", "set": "0x3", "clear": "0x2"}]}, "0 and 1"),
                          ({"msrs": [{"index": "0x8b"}, {"index": "0x8B"}]}, "twice"),
                          ({"msrs": [{"index": "0x9999"}]}, "does not have MSR 0x9999"),
                          ({"cpuid": [{"leaf": "0x123"}]}, "does not have CPUID leaf 0x123")):
            r = d.post("/v1/vms", dict(body, cpu=cpu))
            assert 400 <= r.status < 500 and said in r.message, r
        has = []

        def look(leaf, _, regs):
            if leaf == 0x80000008:
                has.append(regs[1])

        snapshot(d, "plain")
        edit_cpuid(d, "plain", look)
        d.delete("/v1/vms/src")
        bit = next(b for b in reversed(range(32)) if not has[0] >> b & 1)
        cpu = {"cpuid": [{"leaf": "0x80000008", "subleaf": "0x0", "register": "ebx", "clear": "0x0",
                          "set": hex(1 << bit)}],
               "msrs": [{"index": "0x8b", "clear": "0x7fffffffffffffff", "set": "0x8000000000000000"}]}
        d.create("src", cpu=cpu)
        d.expect("src", "READY\n")
        got = d.get("/v1/vms/src").json["config"]["cpu"]
        assert {k: got[k] for k in cpu} == cpu, got
        snapshot(d)
        assert d.get("/v1/snapshots/snap").json["cpu"]["missing"] == []
        r = d.post("/v1/snapshots/snap/clone", {})  # the host lacks what was set by hand, which is no obstacle
        assert r.status == 201, r
        d.expect("snap-1", "RESTORED\n")


if __name__ == "__main__":
    main(globals())
