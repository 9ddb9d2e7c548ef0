#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Firecracker's API: what the guest sees of its CPU."""
from fc_front import BOOT, MACHINE, Front, cpuid, folder
from thawlib import main, need_kvm


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
            f.patch("/machine-config", {"vcpu_count": 1})
            assert f.get("/machine-config").json["cpu_template"] == (template or "None")
            r = f.call("PUT", "/actions", {"action_type": "InstanceStart"})
            assert r.status == 204 or refusal in r.json["fault_message"], r.text


main(globals())
