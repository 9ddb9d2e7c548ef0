#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Firecracker's API: what a VM does while it runs, its devices, and its end."""
import os
import signal
import socket
import subprocess
import threading
import time

from fc_front import BOOT, MACHINE, NO_LIMIT, VMM, Front, drive, folder, image, load_body
from thawlib import Skip, alive, main, need_kvm, wait_until


def test_its_name():
    with folder() as w:
        os.symlink(VMM, f"{w}/firecracker")
        with Front(w, program=f"{w}/firecracker") as f, open(f"/proc/{f.process.pid}/comm", encoding="ascii") as c:
            assert c.read() == "firecracker\n"


def test_how_a_guest_ends():
    need_kvm()
    for how, status in (("exit", 0), ("reset", 0), ("triple", 0)):
        with folder() as w, Front(w) as f:
            f.boot()
            os.write(f.master, how.encode() + b"\n")
            assert f.process.wait(15) == status, how
            assert os.path.exists(f.path)  # as Firecracker leaves it


def test_what_changes_while_it_runs():
    need_kvm()
    with folder() as w, Front(w) as f:
        f.put("/drives/root", drive(image(w), rate_limiter={"ops": {"size": 10, "refill_time": 100}}))
        f.put("/pmem/p", {"id": "p", "path_on_host": image(w, "pmem.img", mib=2)})
        f.put("/balloon", {"amount_mib": 1, "deflate_on_oom": True, "stats_polling_interval_s": 1})
        f.boot()
        assert f.say("blk r 0") == "OK first"
        other = image(w, "other.img", b"other", mib=2)
        f.patch("/drives/root", {"drive_id": "root", "path_on_host": other})
        assert f.say("blk r 0") == "OK other" and f.say("blk w 0 new") == "OK"
        with open(other, "rb") as d:
            assert d.read(3) == b"new"
        with open(other, "ab") as d:
            d.truncate(3 << 20)
        f.patch("/drives/root", {"drive_id": "root", "path_on_host": other})  # the same, with another size
        f.patch("/drives/root", {"drive_id": "root", "rate_limiter": NO_LIMIT})
        d = f.config()["drives"][0]
        assert d["path_on_host"] == other and d["rate_limiter"]["ops"]["size"] == 10, d
        assert d["rate_limiter"]["bandwidth"]["size"] == 0, d
        # One flush, and the next one in half a second at the earliest.
        f.patch("/pmem/p", {"id": "p", "rate_limiter": {"ops": {"size": 1, "refill_time": 500}}})
        before = time.monotonic()
        assert f.say("pmem flush") == "OK 0" and f.say("pmem flush") == "OK 0"
        assert time.monotonic() - before > 0.45
        f.patch("/pmem/p", {"id": "p"})
        assert f.config()["pmem"][0]["rate_limiter"]["ops"]["size"] == 1, f.config()["pmem"]
        f.refused("PATCH", "/pmem/none", {"id": "none"}, "none")
        f.refused("PATCH", "/drives/none", {"drive_id": "none"}, "none")
        f.refused("PATCH", "/drives/root", {"drive_id": "root", "path_on_host": f"{w}/no"}, "does not exist")
        f.refused("PATCH", "/network-interfaces/none", {"iface_id": "none"}, "none")
        assert f.say("blk r 0").startswith("OK new")
        f.patch("/balloon", {"amount_mib": 2})
        assert f.get("/balloon").json["amount_mib"] == 2
        f.refused("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 0}, "enabled or disabled")
        f.patch("/balloon/statistics", {"stats_polling_interval_s": 2})
        s = f.get("/balloon/statistics").json
        assert s["target_mib"] == 2 and s["target_pages"] == 512 and s["actual_pages"] == 0, s
        f.refused("PATCH", "/balloon/hinting/start", {}, "free_page_hinting")


def test_hinting():
    need_kvm()
    with folder() as w, Front(w) as f:
        f.put("/balloon", {"amount_mib": 0, "deflate_on_oom": True, "free_page_hinting": True})
        f.boot()
        assert f.say("balloon command") == "OK 0"
        assert f.get("/balloon/hinting/status").json == {"host_cmd": 0, "guest_cmd": None}
        f.ok("PATCH", "/balloon/hinting/start")
        status = f.get("/balloon/hinting/status").json
        assert status["host_cmd"] >= 2 and status["guest_cmd"] is None, status
        f.refused("PATCH", "/balloon/hinting/start", {}, "under way")
        f.ok("PATCH", "/balloon/hinting/stop")
        assert f.get("/balloon/hinting/status").json == {"host_cmd": 1, "guest_cmd": None}
        assert f.say("balloon stop") == "OK"
        f.ok("PATCH", "/balloon/hinting/start")
        assert f.say("balloon hint 2000 5") == "OK" and f.say("balloon stop") == "OK"
        wait_until("the round's end", lambda: f.get("/balloon/hinting/status").json == {"host_cmd": 1, "guest_cmd": 0})
        f.ok("PATCH", "/balloon/hinting/stop")


def test_networks():
    """In a network namespace of its own; the metadata service of a guest is tests/e2e/test_metadata_service.py's."""
    need_kvm()
    ns = f"thaw-fc-{os.getpid()}"

    def ip(*args):
        return subprocess.run(["ip", *args], capture_output=True, text=True, check=False)

    if ip("netns", "add", ns).returncode:
        raise Skip("can't make a network namespace")
    prefix = ["nsenter", f"--net=/run/netns/{ns}"]
    limiter = {"bandwidth": {"size": 1 << 20, "refill_time": 100}}
    try:
        for tap in ("t0", "t1"):
            if ip("-n", ns, "tuntap", "add", tap, "mode", "tap", "vnet_hdr").returncode:
                raise Skip("can't make taps")
            assert ip("-n", ns, "link", "set", tap, "up").returncode == 0
        with folder() as w:
            with Front(w, "a", prefix=prefix) as f:
                nic = {"iface_id": "1", "host_dev_name": "t0", "guest_mac": "02:00:00:00:00:07", "mtu": 1400}
                f.put("/network-interfaces/1", {**nic, "guest_mac": None})
                f.put("/network-interfaces/1", {**nic, "tx_rate_limiter": limiter})
                f.refused("PUT", "/network-interfaces/2", {**nic, "iface_id": "2", "guest_mac": None}, "used by another")
                f.refused("PUT", "/network-interfaces/2", {"iface_id": "2", "host_dev_name": "t1",
                                                           "guest_mac": nic["guest_mac"]}, "already in use")
                config = {"network_interfaces": ["1"], "version": "V2", "ipv4_address": "169.254.170.2"}
                f.refused("PUT", "/mmds/config", {**config, "ipv4_address": "10.0.0.1"}, "link local")
                f.refused("PUT", "/mmds/config", {**config, "network_interfaces": ["2"]}, '"2"')
                f.put("/mmds/config", config)
                f.put("/mmds", {"name": "x"})
                f.boot()
                f.patch("/network-interfaces/1", {"iface_id": "1", "rx_rate_limiter": limiter, "tx_rate_limiter": NO_LIMIT})
                c = f.config()
                assert c["mmds-config"] == {**config, "imds_compat": False}, c
                n = c["network-interfaces"][0]
                assert n["rx_rate_limiter"]["bandwidth"]["size"] == 1 << 20, n
                assert n["tx_rate_limiter"]["bandwidth"]["size"] == 0 and n["mtu"] == 1400, n
                assert arp(f, ip, ns, "t0")
                state, memory = f.freeze()
            with Front(w, "b", prefix=prefix) as f:
                f.put("/mmds", {"name": "y"})
                f.put("/snapshot/load", load_body(state, memory, resume_vm=True, network_overrides=[
                    {"iface_id": "1", "host_dev_name": "t1", "guest_mac": "02:00:00:00:00:08"}]))
                f.expect("RESTORED\n")
                n = f.config()["network-interfaces"][0]
                assert n["host_dev_name"] == "t1" and n["guest_mac"] == "02:00:00:00:00:08", n
                assert f.config()["mmds-config"] == {**config, "imds_compat": False}
                assert arp(f, ip, ns, "t1")
    finally:
        ip("netns", "del", ns)


def arp(f, ip, ns, tap):
    """Does the host answer the guest on this tap?"""
    assert ip("-n", ns, "addr", "replace", "10.0.2.2/24", "dev", tap).returncode == 0
    mac = [w for w in ip("-n", ns, "-o", "link", "show", tap).stdout.split() if w.count(":") == 5][0]
    said = f.say("net arp 10.0.2.2")
    ip("-n", ns, "addr", "del", "10.0.2.2/24", "dev", tap)
    return said == "OK " + mac.replace(":", "")


def test_vsock():
    need_kvm()
    with folder() as w, Front(w) as f, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as host:
        f.put("/vsock", {"guest_cid": 3, "uds_path": f"{w}/v"})
        host.bind(f"{w}/v_52")
        host.listen(1)
        f.boot()

        def answer():
            c, _ = host.accept()
            c.sendall(b"from the host\n")
            c.close()
        t = threading.Thread(target=answer)
        t.start()
        assert f.say("vsock 52") == "OK from the host"
        t.join(10)
        f.put("/mmds", {"k": "v"})


def test_neither_process_outlives_the_other():
    need_kvm()
    for phase in (False, True):
        with folder() as w, Front(w) as f:
            if phase:
                f.boot()
            child = f.child()[0]
            os.kill(f.process.pid, signal.SIGKILL)
            f.process.wait(10)
            wait_until("the VM process's end", lambda: not alive(child))
        with folder() as w, Front(w) as f:
            if phase:
                f.boot()
            os.kill(f.child()[0], signal.SIGKILL)
            assert f.process.wait(10) == 1 and "by signal 9" in f.log_text()


def test_nobody_reads_its_output():
    """A guest's output that nobody takes keeps neither the API nor the guest."""
    need_kvm()
    with folder() as w:
        os.mkfifo(f"{w}/fifo")
        with Front(w) as f:
            f.put("/serial", {"serial_out_path": f"{w}/fifo"})
            f.put("/machine-config", MACHINE)
            f.put("/boot-source", BOOT)
            f.put("/actions", {"action_type": "InstanceStart"})
            os.write(f.master, b"chatter 300000\n")
            for _ in range(100):
                f.pause()
                f.resume()
            with open(f"{w}/fifo", "rb", buffering=0) as r:
                assert b"READY" in r.read(4096)
            assert f.state() == "Running"


main(globals())
