#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""virtio-console: ports of a guest as Unix sockets of the host, through snapshots, clones, forks and daemons."""
import os
import signal
import socket

from test_incremental import clone, take
from thawlib import Daemon, main, need_kvm, recorded, thaw, wait_until

PORTS = [{"id": "log"}, {"id": "shell", "tty": True}]


def path_of(d, vm, port=0):
    return d.vm(vm)["config"]["consoles"][port]["path"]


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    s.connect(path)
    return s


def boot(d, name="vm", **more):
    d.create(name, **{"consoles": PORTS, **more})
    d.expect(name, "READY\n")


def check(d, vm, port=0):
    """Both ways; the guest knows who is there and who is gone."""
    kind = "log port" if port == 0 else "shell tty"
    assert d.say(vm, f"port {port} show") == f"OK {kind} closed"
    with connect(path_of(d, vm, port)) as s:
        wait_until("open", lambda: d.say(vm, f"port {port} show") == f"OK {kind} open")
        assert d.say(vm, f"port {port} write hello from {vm}") == "OK"
        assert s.recv(100) == f"hello from {vm}".encode()
        s.sendall(b"hello guest")
        wait_until("data", lambda: d.say(vm, f"port {port} read") == "OK hello guest")
    wait_until("closed", lambda: d.say(vm, f"port {port} show") == f"OK {kind} closed")


def test_ports():
    need_kvm()
    with Daemon() as d:
        own = os.path.join(d.folder, "own.sock")
        boot(d, consoles=[{"id": "log", "path": own}, PORTS[1]])
        assert path_of(d, "vm") == own and os.stat(own).st_mode & 0o777 == 0o660
        for port in (0, 1):
            check(d, "vm", port)
            check(d, "vm", port)
        assert d.say("vm", "port 0 write nobody is there") == "OK"
        other = path_of(d, "vm", 1)
        assert f"port:      shell {other} (tty)" in thaw(d, "show", "vm").stdout
        d.delete("/v1/vms/vm")
        assert not os.path.exists(own) and not os.path.exists(other)


def test_clones_and_forks():
    need_kvm()
    with Daemon() as d:
        boot(d)
        assert d.say("vm", "port 0 show") == "OK log port closed"
        with connect(path_of(d, "vm")) as s:  # open in the snapshot, so the clones have to be told
            wait_until("open", lambda: d.say("vm", "port 0 show") == "OK log port open")
            take(d, "vm", "snap")
            own = os.path.join(d.folder, "own.sock")
            assert thaw(d, "clone", "snap", "--name", "named", "--port", f"id=log,path={own}").returncode == 0
            d.expect("named", "RESTORED\n")
            assert path_of(d, "named") == own
            clone(d, "snap", "c")
            assert d.post("/v1/vms/vm/clone", {"clones": [{"name": "f"}]}).status == 201
            d.expect("f", "RESTORED\n")
            r = d.post("/v1/snapshots/snap/prepare", {"pool": {"size": 1}, "wait": True})
            assert r.status == 200, r
            r = d.post("/v1/snapshots/snap/clone", {"clones": [{"name": "p"}]})
            assert r.status == 201 and r.json["clones"][0]["prepared"], r
            d.expect("p", "RESTORED\n")
            for vm in ("named", "c", "f", "p"):
                check(d, vm, 0)
                check(d, vm, 1)
            assert d.say("vm", "port 0 write still there") == "OK"
            assert s.recv(100) == b"still there"
        r = d.post("/v1/snapshots/snap/clone", {"clones": [{"consoles": [{"id": "none", "path": "/x"}]}]})
        assert r.code == "invalid_value" and "no port \"none\"" in r.message, r


def test_the_daemon_goes():
    need_kvm()
    with Daemon() as d:
        boot(d)
        paths = [path_of(d, "vm", i) for i in (0, 1)]
        recorded(d, "vm")
        d.stop(signal.SIGKILL)
        d.start()
        check(d, "vm")
        d.delete("/v1/vms/vm")
        assert not any(map(os.path.exists, paths)) and not d.leftovers()


def test_errors():
    need_kvm()
    with Daemon() as d:
        file = os.path.join(d.folder, "file")
        with open(file, "w", encoding="ascii"):
            pass
        here = os.path.join(d.folder, "here.sock")
        for consoles, code, text in (
                ([{"id": "a"}, {"id": "a"}], "invalid_value", "there twice"),
                ([{"id": "a", "path": here}, {"id": "b", "path": here}], "invalid_value", "there twice"),
                ([{"id": "a b"}], "invalid_value", "id"),
                ([{"id": "a", "path": "rel"}], "invalid_value", "absolute"),
                ([{"id": f"p{i}"} for i in range(5)], "invalid_value", "consoles"),
                ([{"id": "a", "path": here}, {"id": "b", "path": file}], "in_use", "console b"),
                ([{"id": "a", "path": here}, {"id": "b", "path": "/none/x"}], "file_not_found", "console b")):
            r = d.post("/v1/vms", {"name": "x", "kernel": os.path.join(d.folder, "log"), "consoles": consoles})
            assert r.code == code and text in r.message, r
            assert not os.path.exists(here)
        boot(d, consoles=[{"id": "a", "path": here}])
        r = d.post("/v1/vms", {"name": "x", "kernel": file, "consoles": [{"id": "b", "path": here}]})
        assert r.code in ("in_use", "file_invalid"), r
        connect(here).close()  # the other one's is still there


if __name__ == "__main__":
    main(globals())
