#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Firecracker's API: what the guest sees of its CPU."""
import struct

from fc_front import BOOT, MACHINE, Front, cpuid, folder, load_body
from test_cpu import CPUID_TAG, HEADER, LEAF, VCPU, rewrite, xxh3
from thawlib import Skip, main, need_kvm

STATE = 2  # a section of the file, api/fc/snapfile.h
MSR_TAG = 11  # vcpu_state.c
UCODE = 0x8b  # MSR_IA32_UCODE_REV, which KVM keeps and has no effect


def sections(b, at, end):
    while at < end:
        kind, _, length, _ = struct.unpack_from("<4I", b, at)
        yield kind, at + 16, at + 16 + length
        at += 16 + length


def tagged(b, tag):
    """Where the field is, in the state of each vCPU of a file at snapshot_path."""
    for kind, at, end in sections(b, HEADER, len(b)):
        for inner, a, e in sections(b, at + HEADER, end) if kind == STATE else ():
            while inner == VCPU and a < e:
                t, _, n = struct.unpack_from("<HHI", b, a)
                if t == tag:
                    yield a + 8, n
                a += 8 + n


def edit(path, change):
    """Changes what is in a snapshot, and makes both checksums right."""
    def inside(b):
        change(b)
        for kind, at, end in sections(b, HEADER, len(b)):
            if kind == STATE:
                b[at + 24:at + 32] = struct.pack("<Q", xxh3(b[at:at + 24] + b[at + HEADER:end]))
    rewrite(path, inside)


def read(path):
    with open(path, "rb") as f:
        return bytearray(f.read())


def msrs(path):
    """Of each vCPU: index -> value."""
    b = read(path)
    return [{i: v for i, _, v in struct.iter_unpack("<IIQ", b[at:at + n])} for at, n in tagged(b, MSR_TAG)]


def registers(path, leaf, subleaf):
    """Of each vCPU: [eax, ebx, ecx, edx]."""
    b = read(path)
    found = [struct.unpack_from(LEAF, b, e) for at, n in tagged(b, CPUID_TAG) for e in range(at, at + n, 40)]
    return [list(e[3:7]) for e in found if e[:2] == (leaf, subleaf)]


def msr(index, bitmap):
    return {"msr_modifiers": [{"addr": hex(index), "bitmap": bitmap}]}


def boot_with(f, config, **machine):
    f.put("/cpu-config", config)
    f.boot(**machine)


def unlisted(where):
    """An MSR that can be changed and that KVM does not list, so that no snapshot has it by itself."""
    with Front(where, "plain") as f:
        f.boot()
        listed = msrs(f.freeze("plain")[0])[0]
    for index in (0xc0010141, 0xc0011029, 0x2a, 0x400):  # OSVW_STATUS, DE_CFG, EBL_CR_POWERON, MC0_CTL
        with Front(where, f"probe{index}") as f:
            f.put("/cpu-config", msr(index, "0b1"))
            f.put("/machine-config", MACHINE)
            f.put("/boot-source", BOOT)
            r = f.call("PUT", "/actions", {"action_type": "InstanceStart"})
            if index not in listed and r.status == 204:
                return index
    raise Skip("this KVM lists all MSRs that it lets be changed")


def test_cpu_config():
    need_kvm()
    # Some KVMs can't hide features, or lack some of a template, and say so.
    for template, refusal in ((None, "does not hide features"), ("x86-64-v2", "host's KVM does not give")):
        with folder() as w, Front(w) as f:
            config = {"kvm_capabilities": ["7", "!56"]}  # KVM_CAP_EXT_CPUID; any
            if not template:
                config |= cpuid("0x7", "ebx", "0b0xxx_x")
            f.put("/cpu-config", config)
            assert f.config()["cpu-config"] == config
            f.put("/boot-source", BOOT)
            f.put("/machine-config", {**MACHINE, "cpu_template": template})
            assert f.config()["cpu-config"] == (None if template else config)  # the last one counts
            f.patch("/machine-config", {"vcpu_count": 1})
            assert f.get("/machine-config").json["cpu_template"] == (template or "None")
            r = f.call("PUT", "/actions", {"action_type": "InstanceStart"})
            assert r.status == 204 or refusal in r.json["fault_message"], r.text
            if r.status != 204:  # what is wrong can be changed
                f.put("/cpu-config", {})
                assert f.get("/machine-config").json["cpu_template"] == "None"
                f.start()


def test_firecrackers_templates():
    """One of them at most is for the CPU of this machine; the others are refused, and it can be started without."""
    need_kvm()
    with folder() as w, Front(w) as f:
        f.put("/boot-source", BOOT)
        for name, vendor in (("C3", "Intel"), ("T2", "Intel"), ("T2S", "Intel"), ("T2CL", "Intel"), ("T2A", "AMD"),
                             ("V1N1", "arm64")):
            f.put("/machine-config", {**MACHINE, "cpu_template": name})
            r = f.call("PUT", "/actions", {"action_type": "InstanceStart"})
            if r.status == 204:
                return
            text = r.json["fault_message"]
            assert r.status == 400 and text.startswith(f"cpu_template: {name}") and vendor in text, text
        f.put("/machine-config", {**MACHINE, "cpu_template": "None"})
        f.start()


def test_msrs():
    need_kvm()
    with folder() as w:
        other = unlisted(w)
        with Front(w) as f:
            f.put("/cpu-config", {"msr_modifiers": [{"addr": hex(UCODE), "bitmap": "0b10" + "x" * 60},
                                                    {"addr": hex(other), "bitmap": "0b1"}]})
            f.boot(vcpu_count=2)
            state, memory = f.freeze()
        found = msrs(state)
        assert len(found) == 2
        for cpu in found:
            assert cpu[UCODE] >> 60 == 2 and cpu[other] & 1, (hex(cpu[UCODE]), hex(cpu[other]))

        def change(b):
            for at, n in tagged(b, MSR_TAG):
                for i in range(at, at + n, 16):
                    if struct.unpack_from("<I", b, i)[0] == UCODE:
                        struct.pack_into("<Q", b, i + 8, 5 << 32)

        edit(state, change)
        with Front(w, "b") as f:  # it goes on with what was saved, and nothing is changed again
            f.put("/snapshot/load", load_body(state, memory, resume_vm=True))
            f.expect("RESTORED\n")
            for cpu in msrs(f.freeze("again")[0]):
                assert cpu[UCODE] == 5 << 32 and cpu[other] & 1, (hex(cpu[UCODE]), hex(cpu[other]))
        with Front(w, "bad") as f:
            f.put("/machine-config", MACHINE)
            f.put("/boot-source", BOOT)
            for bad, words in ((msr(0x9999, "0b1"), "does not have MSR 0x9999"),
                               (msr(0x2ff, "0b1" + "0" * 63), "refuses MSR 0x2ff")):  # a reserved bit
                f.put("/cpu-config", bad)
                f.refused("PUT", "/actions", {"action_type": "InstanceStart"}, words)


def test_cpuid_bits():
    need_kvm()
    with folder() as w:
        with Front(w, "plain") as f:
            f.boot()
            plain = f.freeze("plain")[0]
        has = registers(plain, 0x80000008, 0)[0][1]  # a leaf that even kvm-pvm lets be changed
        bit = next(b for b in reversed(range(32)) if not has >> b & 1)
        with Front(w) as f:
            leaves = [("0x80000008", "0b0", "ebx", "0b1" + "x" * bit),
                      ("1", "0", "eax", "0bxxxx_0000_0000_0011_xx00_0110_1111_0010"), ("0x0", "0x0", "ebx", "0b1")]
            boot_with(f, {"cpuid_modifiers": [
                {"leaf": leaf, "subleaf": sub, "flags": 0, "modifiers": [{"register": reg, "bitmap": bits}]}
                for leaf, sub, reg, bits in leaves]})
            state, memory = f.freeze()
        assert registers(state, 0x80000008, 0)[0][1] == has | 1 << bit
        assert registers(state, 1, 0)[0][0] & 0x0fff3fff == 0x306f2
        assert registers(state, 0, 0) == registers(plain, 0, 0)  # the vendor stays
        with Front(w, "b") as f:  # what was set by hand is not missed; what was not is
            f.put("/snapshot/load", load_body(state, memory, resume_vm=True))
            f.expect("RESTORED\n")
            again = f.freeze("again")[0]
        assert registers(again, 0x80000008, 0) == registers(state, 0x80000008, 0)

        def unknown(b):
            for at, n in tagged(b, CPUID_TAG):
                for e in range(at, at + n, 40):
                    leaf, index, *_ = struct.unpack_from(LEAF, b, e)
                    if (leaf, index) == (7, 0):
                        edx = struct.unpack_from("<I", b, e + 24)[0]
                        struct.pack_into("<I", b, e + 24, edx | 1 << 6)

        edit(state, unknown)
        with Front(w, "c") as f:
            r = f.call("PUT", "/snapshot/load", load_body(state, memory))
            assert r.status == 400 and r.json["fault_message"].endswith("uses: leaf 0x7 edx bit 6"), r.text
        with Front(w, "d") as f:
            f.put("/cpu-config", cpuid("0x123", "eax", "0b1"))
            f.put("/machine-config", MACHINE)
            f.put("/boot-source", BOOT)
            f.refused("PUT", "/actions", {"action_type": "InstanceStart"}, "does not have CPUID leaf 0x123, subleaf 0x0")


main(globals())
