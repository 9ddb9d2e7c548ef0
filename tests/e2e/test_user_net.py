# SPDX-License-Identifier: Apache-2.0
"""Networks without root: passt started by the daemon, and the socket of one that runs."""
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from thawlib import GUEST, Daemon, Skip, alive, main, need_kvm, thaw, wait_until  # noqa: E402

GATEWAY = "10.0.2.2"
GATEWAY_MAC = "9a559a559a55"


def need_passt():
    need_kvm()
    if not shutil.which("passt"):
        raise Skip("passt is not installed")


class Echo:
    """A UDP service on the host's loopback: answers each datagram, in capitals."""

    def __enter__(self):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.seen = []
        threading.Thread(target=self.run, daemon=True).start()
        return self

    def run(self):
        while True:
            try:
                data, who = self.socket.recvfrom(2048)
            except OSError:
                return
            self.seen.append(data)
            if not data:
                return
            self.socket.sendto(data.upper(), who)

    def __exit__(self, *why):
        self.socket.sendto(b"", ("127.0.0.1", self.port))  # ends run()
        self.socket.close()


def passts(d):
    """The passt processes of this daemon."""
    found = []
    for pid in d.vm_processes():
        try:
            with open(f"/proc/{pid}/comm", encoding="ascii") as f:
                if f.read().startswith("passt"):
                    found.append(int(pid))
        except OSError:
            pass
    return found


source_port = itertools.count(20001)


def ask(d, name, echo, text, address=GATEWAY):
    """The answer to a datagram. Each has another source port: passt of 2023 uses the guest's on the
    host as well, where two clones would take each other's answers."""
    return d.say(name, f"net udp {address} {echo.port} {next(source_port)} {text}")


def start_time(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        return int(f.read().rsplit(")", 1)[1].split()[19])


def boot(d, name="vm", **more):
    v = d.create(name, **more)
    d.expect(name, "READY\n")
    return v


def clone(d, path, body):
    """Clones that have said that they were restored."""
    r = d.post(path + "/clone", body)
    assert r.status == 201, r
    for c in r.json["clones"]:
        d.expect(c["name"], "RESTORED")
    return r.json["clones"]


def user_net(loopback=True, **more):
    return [{"id": "eth0", "mac": "02:00:00:00:00:07", "user": {"host_loopback": loopback, **more}}]


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_user_network():
    need_passt()
    with Echo() as echo, Daemon() as d:
        v = boot(d, nets=user_net())
        assert v["config"]["nets"][0]["user"] == {"forward": [], "host_loopback": True}, v
        assert "tap" not in v["config"]["nets"][0], v
        assert len(passts(d)) == 1
        assert d.say("vm", f"net arp {GATEWAY}") == f"OK {GATEWAY_MAC}"
        assert ask(d, "vm", echo, "hello") == "OK HELLO"
        # A paused and resumed VM goes on with the same connection.
        for op in ("pause", "resume"):
            assert d.post(f"/v1/vms/vm/{op}").status == 200
        assert ask(d, "vm", echo, "again") == "OK AGAIN"
        # The host's loopback is out of reach but by the gateway.
        before = len(echo.seen)
        for address in ("127.0.0.1", "0.0.0.0"):
            assert ask(d, "vm", echo, "x", address) == "ERR no answer"
        assert len(echo.seen) == before
        pids = passts(d)
        assert d.delete("/v1/vms/vm").status == 204
        wait_until("passt is gone", lambda: not any(alive(p) for p in pids) and not passts(d))


def test_no_host_loopback_by_default():
    need_passt()
    with Echo() as echo, Daemon() as d:
        boot(d, nets=user_net(loopback=False))
        assert d.say("vm", f"net arp {GATEWAY}") == f"OK {GATEWAY_MAC}"
        assert ask(d, "vm", echo, "hello") == "ERR no answer"
        assert not echo.seen


def test_clones_with_the_same_address():
    need_passt()
    with Echo() as echo, Daemon() as d:
        port = free_port()
        boot(d, nets=user_net(forward=[{"host_port": port, "guest_port": 80}]))
        assert ask(d, "vm", echo, "first") == "OK FIRST"
        assert d.post("/v1/snapshots", {"name": "s", "vm": "vm"}).status == 201
        # Its ports stay with the VM: the clones have none, or there could be only one.
        names = ["vm"] + [c["name"] for c in clone(d, "/v1/snapshots/s", {"count": 3})]
        assert len(passts(d)) == 4
        for n in names[1:]:
            assert d.vm(n)["config"]["nets"][0]["user"]["forward"] == []
        answers = {}

        def talk(name):
            answers[name] = [ask(d, name, echo, f"{name}.{i}") for i in range(5)]

        threads = [threading.Thread(target=talk, args=(n,)) for n in names]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        assert answers == {n: [f"OK {n}.{i}".upper() for i in range(5)] for n in names}, answers
        macs = {d.vm(n)["config"]["nets"][0]["mac"] for n in names}
        assert macs == {"02:00:00:00:00:07"}, macs


def test_pools_and_forks():
    need_passt()
    with Echo() as echo, Daemon() as d:
        boot(d, nets=user_net())
        assert ask(d, "vm", echo, "first") == "OK FIRST"
        # A fork of the running VM has a passt of its own.
        forks = [c["name"] for c in clone(d, "/v1/vms/vm", {"count": 2})]
        for n in [*forks, "vm"]:
            assert ask(d, n, echo, n) == f"OK {n}".upper()
        assert len(passts(d)) == 3
        for n in forks:
            assert d.delete(f"/v1/vms/{n}").status == 204
        # So has each shell; one whose passt dies is replaced before anybody gets it.
        assert d.post("/v1/snapshots", {"name": "s", "vm": "vm"}).status == 201
        r = d.post("/v1/snapshots/s/prepare", {"pool": {"size": 1}, "wait": True})
        assert r.status == 200, r
        wait_until("a shell", lambda: len(passts(d)) == 2)
        before = set(passts(d))
        os.kill(max(before, key=start_time), signal.SIGKILL)
        wait_until("another shell", lambda: len(passts(d)) == 2 and set(passts(d)) != before)

        def replaced():
            pool = d.get("/v1/snapshots/s").json["pool"]
            return pool["failed"] == 1 and pool["ready"] == 1
        wait_until("it is ready", replaced)
        assert clone(d, "/v1/snapshots/s", {"clones": [{"name": "c"}]})[0]["prepared"]
        assert ask(d, "c", echo, "pool") == "OK POOL"
        assert d.say("c", "net link") == "OK up"


def test_forwarded_ports():
    need_passt()
    with Daemon() as d:
        tcp, udp = free_port(), free_port(socket.SOCK_DGRAM)
        boot(d, "a", nets=user_net(forward=[{"host_port": tcp, "guest_port": 80},
                                             {"host_port": udp, "guest_port": 81, "protocol": "udp"}]))
        with socket.socket() as s:  # passt accepts; that the guest answers is the rig's test
            s.settimeout(5)
            s.connect(("127.0.0.1", tcp))
        r = d.post("/v1/vms", {"name": "b", "kernel": d.vm("a")["config"]["kernel"], "memory_mib": 32,
                               "discovery": "cmdline",
                               "nets": user_net(forward=[{"host_port": tcp, "guest_port": 80}])})
        assert r.status == 409 and r.code == "in_use" and str(tcp) in r.message, r
        assert d.get("/v1/vms/b").status == 404
        wait_until("one passt", lambda: len(passts(d)) == 1)
        assert d.post("/v1/snapshots", {"name": "s", "vm": "a"}).status == 201
        other = free_port()
        r = d.post("/v1/snapshots/s/clone", {"clones": [
            {"name": "c", "nets": [{"id": "eth0", "user": {"forward": [
                {"host_port": other, "guest_port": 80, "host_address": "127.0.0.2"}]}}]},
            {"name": "e", "nets": [{"id": "eth0", "user": {"forward": [
                {"host_port": tcp, "guest_port": 80}]}}]}]})
        assert r.status == 207, r
        assert r.json["clones"][1]["error"]["code"] == "in_use", r
        with socket.socket() as s:
            s.settimeout(5)
            s.connect(("127.0.0.2", other))


def test_passt_dies():
    need_passt()
    with Echo() as echo, Daemon() as d:
        boot(d, nets=user_net())
        assert ask(d, "vm", echo, "a") == "OK A"
        assert d.say("vm", "net link") == "OK up"
        os.kill(passts(d)[0], signal.SIGKILL)
        wait_until("the log says so", lambda: "passt ended (signal 9)" in d.log_text())
        wait_until("the link is down", lambda: d.say("vm", "net link") == "OK down")
        assert "link down: the other side has closed the connection (frames: 1 sent" in d.log_text()
        assert ask(d, "vm", echo, "a") == "ERR no answer"
        assert d.state("vm") == "running"
        # A clone gets a connection of its own, and is told that its link is up.
        assert d.post("/v1/snapshots", {"name": "s", "vm": "vm"}).status == 201
        clone(d, "/v1/snapshots/s", {"clones": [{"name": "c"}]})
        assert d.say("c", "net link") == "OK up"
        assert ask(d, "c", echo, "b") == "OK B"


def test_daemon_killed():
    need_passt()
    with Daemon() as d:
        boot(d, nets=user_net())
        pids = [int(p) for p in d.vm_processes()]
        assert len(pids) == 2
        d.stop(signal.SIGKILL)
        wait_until("passt and VM are gone", lambda: not any(alive(p) for p in pids))


def test_not_installed():
    need_kvm()
    with Daemon(prefix=["env", "PATH=/nonexistent"]) as d:
        before = d.open_fds()
        r = d.post("/v1/vms", {"name": "a", "kernel": os.path.abspath(__file__), "nets": user_net()})
        assert r.status == 422 and r.code == "file_not_found" and "package passt" in r.message, r
        assert d.open_fds() <= before + 1
        assert not d.vm_processes()


def fake_passt(d, script):
    """A daemon's PATH that has this as passt."""
    os.makedirs(os.path.join(d, "bin"))
    path = os.path.join(d, "bin", "passt")
    with open(path, "w", encoding="ascii") as f:
        f.write("#!/bin/sh\n" + script)
    os.chmod(path, 0o755)
    return ["env", f"PATH={d}/bin:{os.environ['PATH']}"]


def test_passt_that_can_not_start():
    need_kvm()
    folder = tempfile.mkdtemp(prefix="thaw-passt-")
    try:
        prefix = fake_passt(folder, "echo 'Failed to send 9 bytes to syslog'\necho No \001namespaces >&2\nexit 1\n")
        with Daemon(prefix=prefix) as d:
            r = d.post("/v1/vms", {"name": "a", "kernel": os.path.abspath(__file__), "nets": user_net()})
            assert r.status == 422, r  # a bad kernel and a bad passt: whichever is first
            d.create("b", start=False)
            assert d.post("/v1/vms/b/start").status == 200
            r = d.post("/v1/vms", {"name": "c", "kernel": GUEST, "memory_mib": 32, "discovery": "cmdline",
                                   "nets": user_net()})
            assert r.status == 422 and r.code == "user_net_failed", r
            assert "net eth0: passt could not start: No ?namespaces" in r.message, r
            assert [v["name"] for v in d.get("/v1/vms").json["vms"]] == ["b"]
            wait_until("one process", lambda: len(d.vm_processes()) == 1)
    finally:
        shutil.rmtree(folder)


class Passt:
    """One that an administrator started."""

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="thaw-passt-")
        os.chmod(self.folder, 0o777)
        self.socket = os.path.join(self.folder, "s")
        self.process = subprocess.Popen(
            ["passt", "--foreground", "--quiet", "--socket", self.socket, "--ipv4-only", "--address", "10.0.2.15",
             "--netmask", "24", "--gateway", GATEWAY, "--interface", "lo", "--mac-addr", "9a:55:9a:55:9a:55"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until("passt listens", lambda: os.path.exists(self.socket))
        return self

    def __exit__(self, *why):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)


def test_socket():
    need_passt()
    with Passt() as p, Passt() as q, Echo() as echo, Daemon() as d:
        boot(d, nets=[{"id": "eth0", "socket": p.socket}])
        assert ask(d, "vm", echo, "a") == "OK A"
        assert d.post("/v1/snapshots", {"name": "s", "vm": "vm"}).status == 201
        # A clone by a socket of its own, and one by a user network.
        clone(d, "/v1/snapshots/s", {"clones": [
            {"name": "c", "nets": [{"id": "eth0", "socket": q.socket}]},
            {"name": "e", "nets": [{"id": "eth0", "user": {"host_loopback": True}}]}]})
        for n in ("c", "e", "vm"):
            assert ask(d, n, echo, n) == f"OK {n.upper()}"
        q.process.kill()
        wait_until("the link is down", lambda: d.say("c", "net link") == "OK down")
        assert d.say("vm", "net link") == "OK up"


def test_socket_errors():
    need_kvm()
    with tempfile.TemporaryDirectory() as folder, Daemon() as d:
        stale, datagram, full = (os.path.join(folder, n) for n in ("stale", "datagram", "full"))
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(stale)
        sockets = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX),
                   socket.socket(socket.AF_UNIX)]
        sockets[0].bind(datagram)
        sockets[1].bind(full)
        sockets[1].listen(0)
        sockets[2].connect(full)
        plain = os.path.join(folder, "plain")
        with open(plain, "w", encoding="ascii"):
            pass
        for path, status, code in ((folder + "/none", 422, "file_not_found"), (stale, 422, "file_invalid"),
                                   (plain, 422, "file_invalid"), (datagram, 422, "file_invalid"),
                                   (full, 409, "in_use")):
            r = d.post("/v1/vms", {"name": "a", "kernel": os.path.abspath(__file__),
                                   "nets": [{"id": "eth0", "socket": path}]})
            assert (r.status, r.code) == (status, code) and path in r.message, r
        for s in sockets:
            s.close()


def test_configuration_errors():
    with Daemon() as d:
        for net, code, word in (
                ({}, "invalid_value", "exactly one of tap, socket and user"),
                ({"tap": "t", "user": {}}, "invalid_value", "exactly one"),
                ({"socket": "s"}, "invalid_value", "absolute"),
                ({"user": {"forward": [{"host_port": 0, "guest_port": 1}]}}, "invalid_value", "host_port"),
                ({"user": {"forward": [{"host_port": 1}]}}, "missing_field", "guest_port"),
                ({"user": {"forward": [{"host_port": 1, "guest_port": 1, "protocol": "icmp"}]}},
                 "invalid_value", "tcp"),
                ({"user": {"forward": [{"host_port": 1, "guest_port": 1, "protocol": "udp"}]}},
                 "invalid_value", "host_loopback"),
                ({"user": {"forward": [{"host_port": 1, "guest_port": 1, "host_address": "::1"}]}},
                 "invalid_value", "IPv4"),
                ({"user": {"forward": [{"host_port": 1, "guest_port": 1}] * 17}}, "invalid_value", "16")):
            r = d.post("/v1/vms", {"name": "a", "kernel": "/k", "nets": [{"id": "eth0", **net}]})
            assert r.code == code and word in r.message, (net, r)


def test_command_line():
    need_passt()
    with Daemon() as d:
        port, port2 = free_port(), free_port(socket.SOCK_DGRAM)
        r = thaw(d, "create", "a", "--kernel", GUEST, "--memory", "32", "--discovery", "cmdline", "--net",
                 f"id=eth0,user,loopback,forward={port}:80,forward=127.0.0.2:{port2}:81/udp", "--start")
        assert r.returncode == 0, r
        assert "eth0 user" in thaw(d, "show", "a").stdout
        d.expect("a", "READY\n")
        assert d.say("a", f"net arp {GATEWAY}") == f"OK {GATEWAY_MAC}"
        assert d.vm("a")["config"]["nets"][0]["user"]["forward"] == [
            {"host_port": port, "guest_port": 80, "protocol": "tcp"},
            {"host_port": port2, "guest_port": 81, "protocol": "udp", "host_address": "127.0.0.2"}]
        for bad in ("forward=80", "forward=1:2x", "forward=:1:", "forward=", "user=1", "loopback=1"):
            r = thaw(d, "create", "b", "--kernel", GUEST, "--net", f"id=eth0,{bad}")
            assert r.returncode in (1, 2) and "net" in r.stderr, (bad, r)
        r = thaw(d, "create", "b", "--kernel", GUEST, "--net", "id=eth0,forward=1:2:3:4/tcp")
        assert r.returncode == 1 and "host_address" in r.stderr, r
        r = thaw(d, "doctor", "--json")
        check = [c for c in json.loads(r.stdout)["checks"] if c["name"] == "passt"]
        assert check and check[0]["result"] == "ok", check


main(globals())
