#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""VMCLOCK, as the guest reads its page: the numbers change with each restore and fork, and only then."""
import struct

from test_incremental import clone, take
from thawlib import Daemon, main, need_kvm

PAGE = 0xff000
# Of struct vmclock_abi, 16 bytes each: where, their layout, and what they are after n restores.
PARTS = {
    "head": (0, "<IIHBBI", lambda n: (0x4b4c4356, 4096, 1, 0xff, 2, 2 * n)),
    "marker": (16, "<QQ", lambda n: (n, 0x300)),
    "generation": (96, "<QQ", lambda n: (0, n)),
}


def check(d, vm, part, n):
    _, layout, wanted = PARTS[part]
    got = struct.unpack(layout, bytes.fromhex(d.say(vm, "genid").split()[1]))
    assert got == wanted(n), (vm, part, n, got)


def test_each_restore_is_told():
    need_kvm()
    with Daemon() as d:
        for part, (offset, _, _) in PARTS.items():
            vm = f"vm-{part}"
            d.create(vm, cmdline=f"thaw.genid={PAGE + offset:#x}", track_dirty=True)
            d.expect(vm, "READY\n")
            check(d, vm, part, 0)
            take(d, vm, f"{part}-1", format="lz4")
            assert d.post(f"/v1/vms/{vm}/pause").status == 200
            assert d.post(f"/v1/vms/{vm}/resume").status == 200
            check(d, vm, part, 0)  # it is where it was
            for i in (1, 2):
                clone(d, f"{part}-1", f"c{i}-{part}")
                check(d, f"c{i}-{part}", part, 1)
            take(d, f"c1-{part}", f"{part}-2", incremental=True)
            clone(d, f"{part}-2", f"e-{part}")
            check(d, f"e-{part}", part, 2)
            r = d.post(f"/v1/vms/e-{part}/clone", {"clones": [{"name": f"f-{part}"}]})
            assert r.status == 201, r
            d.expect(f"f-{part}", "RESTORED\n")  # by the interrupt that the notification comes by
            check(d, f"f-{part}", part, 3)
            check(d, f"e-{part}", part, 2)
            check(d, vm, part, 0)


if __name__ == "__main__":
    main(globals())
