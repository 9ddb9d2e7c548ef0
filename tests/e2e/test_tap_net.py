# SPDX-License-Identifier: Apache-2.0
"""Taps, in a network namespace of the test's own: MTU, queues, link, rate limits."""
import contextlib
import os
import signal
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from thawlib import Daemon, Skip, main, need_kvm, thaw, wait_until  # noqa: E402

NS = f"thaw-{os.getpid()}"
HOST = "10.0.2.2"


def ip(*args):
    return subprocess.run(["ip", *args], capture_output=True, text=True, check=False)


def add_tap(name, *options, mtu=1500):
    r = ip("-n", NS, "tuntap", "add", name, "mode", "tap", "vnet_hdr", *options)
    if r.returncode:
        raise Skip(f"can't make taps: {r.stderr.strip()}")
    assert ip("-n", NS, "link", "set", name, "mtu", str(mtu), "up").returncode == 0


@contextlib.contextmanager
def namespace(**daemon):
    need_kvm()
    r = ip("netns", "add", NS)
    if r.returncode:
        raise Skip(f"can't make a network namespace: {r.stderr.strip()}")
    try:
        # Unlike `ip netns exec` this leaves /sys as it is, without the namespace's interfaces.
        with Daemon(prefix=["nsenter", f"--net=/run/netns/{NS}"], **daemon) as d:
            yield d
    finally:
        ip("netns", "del", NS)


def answers(d, name, tap):
    """Does the host answer the guest on this tap?"""
    assert ip("-n", NS, "addr", "replace", HOST + "/24", "dev", tap).returncode == 0
    mac = [w for w in ip("-n", NS, "-o", "link", "show", tap).stdout.split() if w.count(":") == 5][0]
    said = d.say(name, f"net arp {HOST}")
    ip("-n", NS, "addr", "del", HOST + "/24", "dev", tap)
    return said == "OK " + mac.replace(":", "")


def net(d, name="vm"):
    return d.vm(name)["config"]["nets"][0]


def patch(d, body, name="vm", nic="n"):
    return d.request("PATCH", f"/v1/vms/{name}/nets/{nic}", body)


def test_mtu():
    with namespace() as d:
        add_tap("t0", mtu=9000)
        add_tap("t1")
        d.create("vm", nets=[{"id": "n", "tap": "t0"}])
        assert net(d)["mtu"] == 9000, net(d)
        d.create("vm1", nets=[{"id": "n", "tap": "t1"}])
        assert "mtu" not in net(d, "vm1"), net(d, "vm1")
        for name, tap in (("vm", "t0"), ("vm1", "t1")):
            d.expect(name, "READY\n")
            assert answers(d, name, tap)
        for nic, why in (({"tap": "t", "mtu": 67}, "mtu"), ({"tap": "t", "queues": 9}, "queues"),
                         ({"user": {}, "queues": 2}, "with a tap only"), ({"user": {}, "mtu": 1400}, "1500"),
                         ({"tap": "t", "rx_rate_limit": {"ops": {"size": 5}}}, "refill_time_ms")):
            r = d.post("/v1/vms", {"name": "x", "kernel": "/k", "nets": [{"id": "n", **nic}]})
            assert r.status == 400 and why in r.message, r


def net_threads(d, name):
    return d.threads(name).count("net-queue")


def test_queues():
    with namespace() as d:
        add_tap("t0")
        add_tap("m0", "multi_queue")
        add_tap("m1", "multi_queue")
        r = d.post("/v1/vms", {"name": "x", "kernel": "/dev/null", "nets": [{"id": "n", "tap": "t0", "queues": 2}]})
        assert r.status in (400, 422), r
        two = [{"id": "n", "tap": "m0", "queues": 2}]
        d.create("vm", nets=two)
        d.expect("vm", "READY\n")
        assert net_threads(d, "vm") == 0 and answers(d, "vm", "m0")
        assert d.say("vm", "net pairs 2") == "OK"
        assert net_threads(d, "vm") == 1 and answers(d, "vm", "m0")
        for _ in range(5):
            assert d.post("/v1/vms/vm/pause").status == 200
            assert d.post("/v1/vms/vm/resume").status == 200
            assert answers(d, "vm", "m0")
        slow = {"ops": {"size": 100, "refill_time_ms": 100}}
        assert patch(d, {"tx_rate_limit": slow, "rx_rate_limit": slow}).status == 200
        assert answers(d, "vm", "m0")
        assert patch(d, {"link_up": False}).status == 200 and patch(d, {"link_up": True}).status == 200
        assert answers(d, "vm", "m0")
        # The kernel lets anybody have more queues of such a tap; another VM must not.
        for queues in (1, 2, 4):
            body = {"name": "y", "kernel": d.vm("vm")["config"]["kernel"], "memory_mib": 32,
                    "nets": [{"id": "n", "tap": "m0", "queues": queues}]}
            r = d.post("/v1/vms", body)
            assert (r.status, r.code) == (409, "in_use"), r
        body["nets"][0].update(tap="t0", queues=2)
        r = d.post("/v1/vms", body)
        assert (r.status, r.code) == (422, "tap_invalid") and "multi_queue" in r.message, r
        assert ip("-n", NS, "tuntap", "add", "u0", "mode", "tun").returncode == 0
        body["nets"] = [{"id": "n", "tap": "u0"}]
        r = d.post("/v1/vms", body)
        assert (r.status, r.code) == (422, "tap_invalid") and "not a tap" in r.message, r
        # Restored with as many, also from a pool; a tap with several queues may serve one.
        assert d.post("/v1/snapshots", {"name": "s", "vm": "vm"}).status == 201
        there = {"clones": [{"nets": [{"id": "n", "tap": "m1"}]}]}
        for pool in (False, True):
            if pool:
                r = d.post("/v1/snapshots/s/prepare", {"pool": {"size": 1}, "wait": True})
                assert r.status == 200, r
            r = d.post("/v1/snapshots/s/clone", there)
            assert r.status == 201, r
            name = r.json["clones"][0]["name"]
            d.expect(name, "RESTORED")
            assert net_threads(d, name) == 1 and answers(d, name, "m1")
            assert d.say(name, "net pairs 1") == "OK" and answers(d, name, "m1")
            assert d.delete(f"/v1/vms/{name}").status == 204
        r = d.post("/v1/vms/vm/clone", there)  # a fork of the running VM
        assert r.status == 201, r
        name = r.json["clones"][0]["name"]
        d.expect(name, "RESTORED")
        assert net_threads(d, name) == 1 and answers(d, name, "m1") and answers(d, "vm", "m0")
        assert d.delete(f"/v1/vms/{name}").status == 204
        r = d.post("/v1/snapshots/s/clone", {"clones": [{"nets": [{"id": "n", "tap": "t0"}]}]})
        assert (r.status, r.code) == (422, "tap_invalid"), r
        d.create("one", nets=[{"id": "n", "tap": "m1"}])
        d.expect("one", "READY\n")
        assert d.say("one", "net pairs 2").startswith("ERR ") and net_threads(d, "one") == 0
        assert answers(d, "one", "m1")


def test_link_and_limits():
    with namespace() as d:
        for tap in ("t0", "t1", "t2"):
            add_tap(tap)
        limit = {"bandwidth": {"size": 1 << 20, "refill_time_ms": 100}}
        d.create("vm", nets=[{"id": "n", "tap": "t0", "tx_rate_limit": limit}])
        d.expect("vm", "READY\n")
        assert net(d)["tx_rate_limit"] == limit and "rx_rate_limit" not in net(d), net(d)
        assert answers(d, "vm", "t0") and d.say("vm", "net link") == "OK up"
        r = patch(d, {"link_up": False, "rx_rate_limit": {"ops": {"size": 1000, "refill_time_ms": 1000}}})
        assert r.status == 200 and r.json["links_down"] == ["n"], r
        assert r.json["config"]["nets"][0]["rx_rate_limit"]["ops"]["size"] == 1000, r
        assert d.say("vm", "net link") == "OK down"
        assert "NO-CARRIER" in ip("-n", NS, "link", "show", "t0").stdout
        # Limits are the configuration's, and a clone's; the link is this VM's.
        assert d.post("/v1/snapshots", {"name": "s", "vm": "vm"}).status == 201
        r = d.post("/v1/snapshots/s/clone", {"clones": [
            {"name": "c1", "nets": [{"id": "n", "tap": "t1"}]},
            {"name": "c2", "nets": [{"id": "n", "tap": "t2", "tx_rate_limit": {}}]}]})
        assert r.status == 201, r
        for name, tap in (("c1", "t1"), ("c2", "t2")):
            d.expect(name, "RESTORED")
            assert "links_down" not in d.vm(name)
            assert d.say(name, "net link") == "OK up" and answers(d, name, tap)
            assert net(d, name)["rx_rate_limit"]["ops"]["size"] == 1000
            assert ("tx_rate_limit" in net(d, name)) == (name == "c1"), net(d, name)
        # The next daemon knows what this one changed.
        d.stop(signal.SIGHUP)
        d.start()
        wait_until("found again", lambda: len(d.get("/v1/vms").json["vms"]) == 3)
        assert d.vm("vm")["links_down"] == ["n"] and "rx_rate_limit" in net(d)
        r = thaw(d, "net-set", "vm", "n", "--link", "up", "--rx-limit", "none", "--tx-limit",
                 "bandwidth=2M/s,iops=50")
        assert r.returncode == 0, r
        assert "links_down" not in d.vm("vm") and "rx_rate_limit" not in net(d), d.vm("vm")
        assert net(d)["tx_rate_limit"] == {"bandwidth": {"size": 2 << 20, "refill_time_ms": 1000},
                                           "ops": {"size": 50, "refill_time_ms": 1000}}, net(d)
        assert d.say("vm", "net link") == "OK up" and answers(d, "vm", "t0")
        for body, status, code in (({"rx_rate_limit": {"ops": {"size": 5}}}, 400, "missing_field"),
                                   ({"link_up": "yes"}, 400, "wrong_type"), ({"link": True}, 400, "unknown_field")):
            r = patch(d, body)
            assert (r.status, r.code) == (status, code), r
        assert patch(d, {}, nic="x").code == "not_found" and patch(d, {}, name="x").status == 404
        for args in ((), ("--link", "sideways"), ("--rx-limit", "bandwidth=fast")):
            assert thaw(d, "net-set", "vm", "n", *args).returncode == 2, args


main(globals())
