#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""arm64, as far as another host can tell: the device tree that the cross built thaw-vmm gives (run by qemu-user, read by
dtc, which checks it), and snapshots of the other architecture: shown and verified, but not run. The rest is
tests/rig/run.sh -A arm64."""
import gzip
import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from thawlib import ROOT, Daemon, Skip, main, need_kvm, thaw  # noqa: E402

VMM = os.path.join(ROOT, "build/aarch64/bin/thaw-vmm")


def vmm(*args):
    for tool in "qemu-aarch64-static", "dtc":
        if not shutil.which(tool):
            raise Skip(f"there is no {tool}")
    if not os.path.exists(VMM):
        raise Skip("build/aarch64 is not built: make ARCH=aarch64")
    return subprocess.run(["qemu-aarch64-static", VMM, "--device-tree", *map(str, args)], capture_output=True,
                          timeout=60, check=False)


def tree(*args):
    """The tree as text; dtc must have nothing to complain of."""
    blob = vmm(*args)
    assert blob.returncode == 0, blob
    # As the kernel's builds have it: the binding of the PL061 allows no #address-cells.
    r = subprocess.run(["dtc", "-I", "dtb", "-O", "dts", "-Wno-interrupt_provider"], input=blob.stdout,
                       capture_output=True, timeout=60, check=False)
    assert r.returncode == 0 and r.stderr == b"", r
    return r.stdout.decode()


def node(text, name):
    m = re.search(r"\n\t+" + re.escape(name) + r" \{(.*?)\n\t+\};", text, re.S)
    assert m, (name, text)
    return m[1]


def cells(body, prop):
    m = re.search(r"\b" + re.escape(prop) + r" = <([^>]*)>", body)
    assert m, (prop, body)
    return [int(c, 16) for c in m[1].split()]


def test_device_tree():
    text = tree(2, 512, 3)
    assert cells(node(text, "memory@40200000"), "reg") == [0, 0x40200000, 0, 510 << 20]
    assert text.count('enable-method = "psci"') == 2 and cells(node(text, "cpu@1"), "reg") == [0, 1]
    gic = node(text, "interrupt-controller@8000000")
    assert '"arm,gic-v3"' in gic and cells(gic, "reg")[4:] == [0, 0x80A0000, 0, 2 * 0x20000]
    for i in range(3):
        dev = node(text, f"virtio_mmio@a00{i}000")
        assert cells(dev, "interrupts") == [0, 8 + i, 1] and "dma-coherent" in dev
    assert text.count("virtio_mmio@") == 3
    assert '"ns16550a"' in node(text, "serial@9000000") and '"microsoft,vmgenid"' in node(text, "rng@40000000")
    clock = node(text, "ptp@40010000")
    assert '"amazon,vmclock"' in clock and cells(clock, "reg") == [0, 0x40010000, 0, 0x10000]
    assert cells(clock, "interrupts") == [0, 2, 1]
    gpio, key = node(text, "gpio@9020000"), node(text, "power")
    assert '"arm,pl061\\0arm,primecell"' in gpio and cells(gpio, "interrupts") == [0, 3, 1]
    assert cells(key, "gpios") == cells(gpio, "phandle") + [3, 0] and cells(key, "linux,code") == [116]


def test_caches_of_this_host():
    """The program reads /sys, which is this host's, whatever its architecture."""
    top = "/sys/devices/system/cpu/cpu0/cache"
    names = sorted(os.listdir(top)) if os.path.isdir(top) else []
    seen = [{f: open(f"{top}/{n}/{f}").read().strip() for f in ("level", "type", "size")}
            for n in names if n.startswith("index") and os.path.exists(f"{top}/{n}/size")]
    if not seen:
        raise Skip("this host tells no caches")
    text = tree(2, 512, 0)
    for c in seen:
        level, size = int(c["level"]), int(c["size"][:-1]) << (10 if c["size"].endswith("K") else 20)
        prefix = {"Data": "d-", "Instruction": "i-", "Unified": ""}[c["type"]]
        where = [node(text, "cpu@0"), node(text, "cpu@1")] if level == 1 else [node(text, f"l{level}-cache")]
        assert all(cells(w, f"{prefix}cache-size") == [size] for w in where), (c, where)
        assert level == 1 or cells(where[0], "cache-level") == [level]
    phandles = re.findall(r"\bphandle = <(.*?)>", text)
    assert len(set(phandles)) == len(phandles)
    assert set(re.findall(r"next-level-cache = <(.*?)>", text)) <= set(phandles)


def test_device_tree_with_gicv2():
    text = tree(3, 128, 0, 2)
    assert '"arm,cortex-a15-gic"' in node(text, "interrupt-controller@8000000")
    assert cells(node(text, "timer"), "interrupts")[2] == 0x708  # three CPUs, active low
    assert "virtio_mmio@" not in text


def test_largest_and_smallest_machine():
    text = tree(32, 512 * 1024, 16)
    assert cells(node(text, "cpu@10f"), "reg") == [0, 0x10F]  # 16 CPUs to a cluster, as KVM numbers them
    # 64-bit cells: 512 GiB less the first 2 MiB
    reg = cells(node(text, "memory@40200000"), "reg")
    assert reg[2] << 32 | reg[3] == (512 << 30) - (2 << 20)
    tree(1, 4, 0)


def test_numbers_out_of_range():
    for args in (0, 128, 1), (33, 128, 1), (1, 3, 1), (1, 128, 17), (1, 128, 1, 4), ("x", 128, 1), (1, "128M", 1):
        r = vmm(*args)
        assert r.returncode == 2 and b"is not a number from" in r.stderr and not r.stdout, (args, r)


def golden(d, arch, name):
    """Puts a golden snapshot into the store of a daemon that does not run."""
    folder = os.path.join(d.state_dir, "snapshots", name)
    os.mkdir(folder, 0o700)
    for file in "manifest", "state", "memory":
        path = os.path.join(ROOT, "tests/golden/1.0", "" if arch == "x86_64" else arch, name, file + ".gz")
        with gzip.open(path) as f, open(os.path.join(folder, file), "xb") as to:
            to.write(f.read())


def test_snapshots_of_the_other_architecture():
    need_kvm()
    here = os.uname().machine
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[here]
    with Daemon() as d:
        d.stop()
        for name in "plain", "net", "devices":
            golden(d, other, name)
        d.start()
        for name, vcpus in ("plain", 2), ("net", 1), ("devices", 4):
            s = d.get(f"/v1/snapshots/{name}").json
            assert (s["arch"], s["config"]["vcpus"], s["config"]["memory_mib"]) == (other, vcpus, 4), s
            r = d.post(f"/v1/snapshots/{name}/verify")
            assert r.status == 200, r
            for what, body in ("clone", None), ("prepare", {"pool": {"size": 1}}):
                r = d.post(f"/v1/snapshots/{name}/{what}", body)
                assert (r.status, r.code) == (422, "cpu_incompatible"), (what, r)
                assert r.json["error"]["missing"] == [f"the architecture {other}"] and other in r.message, r
        assert d.get("/v1/vms").json["vms"] == []
        r = thaw(d, "snapshot", "show", "devices")
        assert r.returncode == 0 and other in r.stdout, r


if __name__ == "__main__":
    main(globals())
