#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The life of VMs with the tiny guest: create, run, console, pause, snapshot, clones,
ends of every kind, and what survives the end of others."""
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

from thawlib import ARM64, BIN, Daemon, Skip, alive, main, need_kvm, recorded, thaw, wait_until


def test_create_start_and_talk():
    need_kvm()
    with Daemon() as d:
        v = d.create("a", start=False)
        assert v["state"] == "created" and v["config"]["memory_mib"] == 32, v
        assert d.console("a")[0] == b""
        v = d.post("/v1/vms/a/start").json
        assert v["state"] == "running", v
        d.expect("a", "READY\n")
        assert d.say("a", "echo hello there") == "OK hello there"
        assert d.vm(v["id"])["name"] == "a"  # by id
        assert [x["name"] for x in d.get("/v1/vms").json["vms"]] == ["a"]
        t = d.vm("a")["timing_us"]
        assert t["ordered"] <= t["kvm_ready"] <= t["loaded"] <= t["running"] <= t["first_io"], t
        info = d.get("/v1/info").json
        assert info["vms"] == {"total": 1, "created": 0, "running": 1, "paused": 0, "exited": 0}, info


def test_console_waits_and_offsets():
    need_kvm()
    with Daemon() as d:
        d.create("a")
        _, end = d.expect("a", "READY\n")
        start = time.monotonic()
        r = d.get(f"/v1/vms/a/console?offset={end}&wait_ms=300")
        assert r.body == b"" and int(r.headers["Thaw-Console-Next"]) == end
        assert 0.25 < time.monotonic() - start < 15
        got = []
        t = threading.Thread(target=lambda: got.append(d.get(f"/v1/vms/a/console?offset={end}&wait_ms=9000")))
        t.start()
        time.sleep(0.2)
        d.put("/v1/vms/a/console", "echo x\n")
        t.join(5)
        assert got and got[0].body == b"OK x\n", got
        assert d.get("/v1/vms/a/console?offset=2").body == b"ADY\nOK x\n"


def test_readers_that_go_away_make_room():
    need_kvm()
    with Daemon() as d:
        d.create("a")
        _, end = d.expect("a", "READY\n")

        def reader():
            s = socket.socket(socket.AF_UNIX)
            s.connect(d.socket)
            s.sendall(f"GET /v1/vms/a/console?offset={end}&wait_ms=60000 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return s

        readers = [reader() for _ in range(8)]
        time.sleep(0.2)
        r = d.get(f"/v1/vms/a/console?offset={end}&wait_ms=100")
        assert (r.status, r.code) == (503, "limit_reached"), r
        for s in readers:
            s.close()
        time.sleep(1.5)
        assert d.get(f"/v1/vms/a/console?offset={end}&wait_ms=100").status == 200


def counter_moves(d, name, seconds=0.3):
    """Does the guest answer in this time?"""
    _, offset = d.console(name)
    d.put(f"/v1/vms/{name}/console", "echo tick\n")
    r = d.get(f"/v1/vms/{name}/console?offset={offset}&wait_ms={int(seconds * 1000)}")
    return r.body != b""


def test_pause_and_resume():
    need_kvm()
    with Daemon() as d:
        d.create("a")
        d.expect("a", "READY\n")
        assert counter_moves(d, "a")
        assert d.post("/v1/vms/a/pause").json["state"] == "paused"
        assert not counter_moves(d, "a")
        assert d.post("/v1/vms/a/resume").json["state"] == "running"
        d.expect("a", "OK tick\nOK tick\n")  # what was typed meanwhile is answered now


def test_snapshot_and_clones():
    need_kvm()
    with Daemon() as d:
        d.create("src")
        d.expect("src", "READY\n")
        d.say("src", "store nonce-1234")
        r = d.post("/v1/snapshots", {"name": "snap", "vm": "src"})
        assert r.status == 201 and r.json["pause_us"] >= 0 and r.json["vm"] == "src", r
        assert r.json["files"]["memory"]["size_bytes"] == 32 << 20
        assert d.vm("src")["state"] == "running"
        assert d.say("src", "echo still here") == "OK still here"
        d.say("src", "store changed")
        r = d.post("/v1/snapshots/snap/clone", {"count": 3})
        assert r.status == 201, r
        names = [c["name"] for c in r.json["clones"]]
        assert names == ["snap-1", "snap-2", "snap-3"], names
        for c in r.json["clones"]:
            t = c["timing_us"]
            assert 0 == t["accepted"] <= t["ordered"] <= t["kvm_ready"] <= t["state_loaded"] <= t["running"], t
        randoms = set()
        for n in names:
            d.expect(n, "RESTORED\n")
            assert d.say(n, "load") == "OK nonce-1234"
            randoms.add(d.say(n, "rand 16"))
            d.say(n, f"store {n}")
        assert len(randoms) == 3, randoms
        for n in names:
            assert d.say(n, "load") == f"OK {n}"
            assert d.vm(n)["from_snapshot"] == "snap"
        assert d.say("src", "load") == "OK changed"
        # More, with a prefix; a taken name is skipped.
        r = d.post("/v1/snapshots/snap/clone", {"count": 2, "name_prefix": "web"})
        assert [c["name"] for c in r.json["clones"]] == ["web-1", "web-2"], r
        r = d.post("/v1/snapshots/snap/clone", {"name_prefix": "web"})
        assert [c["name"] for c in r.json["clones"]] == ["web-3"], r


def test_paused_vm_stays_paused_over_a_snapshot():
    need_kvm()
    with Daemon() as d:
        d.create("src")
        d.expect("src", "READY\n")
        d.post("/v1/vms/src/pause")
        assert d.post("/v1/snapshots", {"name": "s", "vm": "src"}).status == 201
        assert d.vm("src")["state"] == "paused"
        r = d.post("/v1/snapshots/s/clone", {"run": False})
        assert r.json["clones"][0]["state"] == "paused", r
        assert not counter_moves(d, "s-1")
        assert d.post("/v1/vms/s-1/resume").status == 200
        d.expect("s-1", "RESTORED\n")
        # A snapshot of a clone, cloned.
        assert d.post("/v1/snapshots", {"name": "s2", "vm": "s-1"}).status == 201
        assert d.post("/v1/snapshots/s2/clone").status == 201
        d.expect("s2-1", "RESTORED\n")
        assert [s["name"] for s in d.get("/v1/snapshots").json["snapshots"]] == ["s", "s2"]


def test_many_clones_in_one_call():
    need_kvm()
    with Daemon() as d:
        d.create("src")
        d.expect("src", "READY\n")
        d.post("/v1/snapshots", {"name": "s", "vm": "src"})
        r = d.post("/v1/snapshots/s/clone", {"count": 50})
        assert r.status == 201 and len({c["id"] for c in r.json["clones"]}) == 50, r
        for c in r.json["clones"]:
            d.expect(c["name"], "RESTORED\n")
        fds = d.open_fds()
        for c in r.json["clones"]:
            assert d.delete(f"/v1/vms/{c['name']}").status == 204
        assert len(d.vm_processes()) == 1
        wait_until("descriptors closed", lambda: d.open_fds() <= fds - 100)


def test_clone_overrides():
    need_kvm()
    with Daemon() as d, tempfile.TemporaryDirectory() as folder:
        disks = [os.path.join(folder, f"disk{i}") for i in range(3)]
        for p in disks:
            with open(p, "wb") as f:
                f.truncate(1 << 20)
        d.create("src", drives=[{"id": "d", "path": disks[0]}], vsock={"cid": 5})
        d.expect("src", "READY\n")
        d.post("/v1/snapshots", {"name": "s", "vm": "src"})
        r = d.post("/v1/snapshots/s/clone")  # the source has the disk
        assert (r.status, r.code) == (409, "in_use"), r
        assert len(d.vm_processes()) == 1
        socket_path = os.path.join(folder, "v")
        r = d.post("/v1/snapshots/s/clone", {"clones": [
            {"name": "c1", "drives": [{"id": "d", "path": disks[1]}]},
            {"name": "c2", "drives": [{"id": "d", "path": disks[2]}], "vsock": {"path": socket_path, "cid": 6}}]})
        assert r.status == 201, r
        one, two = r.json["clones"]
        assert two["vsock_path"] == socket_path and one["vsock_path"].startswith(d.state_dir), r
        assert one["id"] in one["vsock_path"]
        cfg = d.vm("c2")["config"]
        assert cfg["drives"][0]["path"] == disks[2] and cfg["vsock"]["cid"] == 6, cfg
        for c in (one, two):
            s = socket.socket(socket.AF_UNIX)
            s.connect(c["vsock_path"])
            s.close()
        d.delete("/v1/vms/c1")
        d.delete("/v1/vms/c2")
        assert not os.path.exists(one["vsock_path"]) and not os.path.exists(socket_path)


def test_clone_to_other_taps():
    need_kvm()
    taps = [f"th{os.getpid()}{c}" for c in "ab"]
    for t in taps:
        r = subprocess.run(["ip", "tuntap", "add", t, "mode", "tap", "vnet_hdr"], capture_output=True, text=True,
                           check=False)
        if r.returncode:
            raise Skip(f"can't make taps: {r.stderr.strip()}")
    try:
        with Daemon() as d:
            d.create("src", nets=[{"id": "n", "tap": taps[0]}])
            d.expect("src", "READY\n")
            mac = d.vm("src")["config"]["nets"][0]["mac"]
            d.post("/v1/snapshots", {"name": "s", "vm": "src"})
            r = d.post("/v1/snapshots/s/clone")
            assert (r.status, r.code) == (409, "in_use") and taps[0] in r.message, r
            r = d.post("/v1/snapshots/s/clone", {"clones": [
                {"nets": [{"id": "n", "tap": taps[1], "mac": "02:00:00:00:00:07"}]}]})
            assert r.status == 201, r
            net = d.vm(r.json["clones"][0]["name"])["config"]["nets"][0]
            assert net == {"id": "n", "tap": taps[1], "mac": "02:00:00:00:00:07"} and mac != net["mac"], net
            assert d.delete("/v1/vms/" + r.json["clones"][0]["name"]).status == 204
            # made in advance: the tap comes with the claim
            r = d.post("/v1/snapshots/s/prepare", {"pool": {"size": 2}, "wait": True})
            assert r.status == 200 and r.json["pool"]["ready"] == 2, r
            r = d.post("/v1/snapshots/s/clone")
            assert (r.status, r.code) == (409, "in_use"), r
            assert d.get("/v1/snapshots/s").json["pool"]["ready"] == 2, "no shell is spent on it"
            r = d.post("/v1/snapshots/s/clone", {"clones": [{"nets": [{"id": "n", "tap": taps[1]}]}]})
            assert r.status == 201 and r.json["clones"][0]["prepared"], r
            name = r.json["clones"][0]["name"]
            d.expect(name, "RESTORED\n")
            assert d.vm(name)["config"]["nets"][0] == {"id": "n", "tap": taps[1], "mac": mac}
            r = d.post("/v1/snapshots/s/clone", {"clones": [{"nets": [{"id": "x", "tap": taps[1]}]}]})
            assert (r.status, r.code) == (400, "invalid_value"), r
    finally:
        for t in taps:
            subprocess.run(["ip", "tuntap", "del", t, "mode", "tap"], check=False)


def test_ends_of_a_guest():
    need_kvm()
    with Daemon() as d:
        for line, reason in ("exit", "shutdown"), ("reset", "reset"), ("triple", "triple-fault"):
            if ARM64 and line == "triple":
                continue  # there is nothing of the kind
            d.create("g")
            d.expect("g", "READY\n")
            d.say("g", "echo last words")
            d.put("/v1/vms/g/console", line + "\n")
            v = d.wait_state("g", "exited")
            assert v["exit"]["reason"] == reason and "pid" not in v, v
            assert d.vm_processes() == []
            out, end = d.console("g")  # what it said stays readable
            assert b"READY\nOK last words\n" in out, out
            assert d.get(f"/v1/vms/g/console?offset={end}&wait_ms=5000").body == b""
            assert d.delete("/v1/vms/g").status == 204


def test_stop():
    need_kvm()
    with Daemon() as d:
        d.create("a")
        d.expect("a", "READY\n")
        r = d.post("/v1/vms/a/stop", {"mode": "kill"})
        assert r.status == 200 and r.json["state"] == "exited" and r.json["exit"]["reason"] == "killed", r
        d.create("b")
        d.expect("b", "READY\n")
        r = d.post("/v1/vms/b/stop", {"mode": "ctrl-alt-del"})  # the tiny guest has no keyboard driver
        assert (r.status, r.code) == (409, "wrong_state") and "power-button" in r.message, r
        r = d.post("/v1/vms/b/stop", {"wait_ms": 5000})
        assert r.status == 200 and r.json["exit"]["reason"] == "shutdown", r
        d.delete("/v1/vms/b")


def test_crash_of_one_leaves_the_others():
    need_kvm()
    with Daemon() as d:
        d.create("src")
        d.expect("src", "READY\n")
        d.post("/v1/snapshots", {"name": "s", "vm": "src"})
        clones = d.post("/v1/snapshots/s/clone", {"count": 3}).json["clones"]
        victim = clones[1]["name"]
        pid = d.vm(victim)["pid"]
        _, end = d.console(victim)
        got = []
        t = threading.Thread(target=lambda: got.append(d.get(f"/v1/vms/{victim}/console?offset={end + 100}&wait_ms=9000")))
        t.start()
        time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        v = d.wait_state(victim, "exited")
        assert v["exit"]["reason"] == "crashed" and v["exit"]["signal"] == 9, v
        t.join(5)
        assert got and got[0].status == 200, got  # the reader was let go
        for n in ("src", clones[0]["name"], clones[2]["name"]):
            assert d.say(n, "echo alive") == "OK alive"
        assert not alive(pid)
        assert d.delete(f"/v1/vms/{victim}").status == 204


def test_hung_vm_process_can_be_deleted():
    need_kvm()
    with Daemon() as d:
        pid = d.create("a")["pid"]
        os.kill(pid, signal.SIGSTOP)
        got = []
        t = threading.Thread(target=lambda: got.append(d.post("/v1/vms/a/pause")))
        t.start()
        time.sleep(0.5)
        assert d.post("/v1/vms/a/pause").code == "busy"
        assert d.delete("/v1/vms/a").status == 204
        t.join(5)
        assert got[0].code == "vm_gone", got
        assert not alive(pid)


def test_daemon_restart_and_restore_by_name():
    need_kvm()
    with Daemon() as d:
        pid = d.create("src")["pid"]
        d.expect("src", "READY\n")
        d.say("src", "store kept")
        assert d.post("/v1/snapshots", {"name": "s", "vm": "src"}).status == 201
        assert d.stop() == 0
        wait_until("VM process gone", lambda: not alive(pid))
        assert not os.path.exists(d.socket)
        d.start()
        assert d.get("/v1/vms").json["vms"] == []
        assert d.post("/v1/snapshots/s/verify").json["verified"] is True
        assert d.post("/v1/snapshots/s/clone", {"clones": [{"name": "again"}]}).status == 201
        d.expect("again", "RESTORED")
        assert d.say("again", "load") == "OK kept"


def test_killed_with_its_vms():  # one that outlives the daemon: test_restart.py
    need_kvm()
    with Daemon() as d:
        pid = d.create("a", vsock={"cid": 3})["pid"]
        recorded(d, "a")
        d.stop(signal.SIGKILL)
        assert alive(pid)
        os.kill(pid, signal.SIGKILL)
        wait_until("VM process gone", lambda: not alive(pid))
        assert d.leftovers() != []  # the socket file
        d.start()
        assert d.leftovers() == [], d.leftovers()
        d.create("a", vsock={"cid": 3})


def test_end_with_requests_in_progress():
    need_kvm()
    with Daemon() as d:
        d.create("a")
        _, end = d.expect("a", "READY\n")
        got = []
        t = threading.Thread(target=lambda: got.append(d.get(f"/v1/vms/a/console?offset={end}&wait_ms=30000")))
        t.start()
        time.sleep(0.2)
        assert d.stop() == 0
        t.join(5)
        assert got and got[0].status in (200, 409), got


def test_keep_alive_and_pipelining():
    with Daemon() as d:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(5)
        s.connect(d.socket)
        s.sendall(b"GET /v1/info HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
        data = b""
        while data.count(b"HTTP/1.1 200") < 10:
            piece = s.recv(65536)
            assert piece, data
            data += piece
        s.close()


def test_no_growth_over_create_and_delete():
    need_kvm()
    with Daemon() as d:
        for i in range(3):
            d.create("warm")
            d.delete("/v1/vms/warm")
        wait_until("quiet", lambda: d.get("/v1/info").json["connections"] == 1)
        before = d.open_fds()
        for i in range(30):
            d.create(f"x{i % 3}", start=i % 2 == 0, vsock={"cid": 3})
            d.delete(f"/v1/vms/x{i % 3}")
        wait_until("descriptors", lambda: d.open_fds() <= before)
        assert d.vm_processes() == [] and d.leftovers() == []


# --- the client ---
def test_console_of_a_vm_that_ends():
    """Whoever reads while it ends gets what is left, not an error."""
    need_kvm()
    with Daemon() as d:
        for _ in range(8):
            d.create("vm")
            d.expect("vm", "READY\n")
            t = threading.Thread(target=lambda: d.post("/v1/vms/vm/stop", {"mode": "kill"}))
            t.start()
            while d.state("vm") == "running":
                r = d.get("/v1/vms/vm/console?offset=0&wait_ms=0")
                assert r.status == 200, r
            t.join()
            assert d.delete("/v1/vms/vm").status == 204


def test_client_commands():
    need_kvm()
    from thawlib import GUEST  # pylint: disable=import-outside-toplevel
    with Daemon() as d, tempfile.TemporaryDirectory() as folder:
        def ok(*args):
            r = thaw(d, *args)
            assert r.returncode == 0, (args, r)
            return r.stdout

        disk = os.path.join(folder, "disk")
        for n in ("", "1", "2", "3"):
            with open(disk + n, "wb") as f:
                f.truncate(1 << 20)
        ok("create", "a", "--kernel", GUEST, "--discovery", "cmdline", "--memory", "32", "--vcpus", "1",
           "--drive", f"id=d,path={disk}", "--vsock", "cid=7", "--cmdline", "quiet")
        ok("start", "a")
        ok("wait", "a", "--console", "READY")
        ok("console", "a", "--write", "echo hi")
        ok("wait", "a", "--console", "OK hi")
        assert ok("console", "a", "--read") == "READY\nOK hi\n"
        ok("pause", "a")
        assert "paused" in ok("ls")
        ok("wait", "a", "--state", "paused")
        ok("snapshot", "a", "s")
        ok("resume", "a")
        assert "s " in ok("snapshots")
        assert json.loads(ok("snapshot-show", "s", "--json"))["vm"] == "a"
        ok("snapshot-verify", "s")
        v = json.loads(ok("clone", "s", "--count", "2", "--name", "c", "--json",
                          "--drive", f"id=d,path={disk}{{n}}", "--vsock", f"path={folder}/v{{n}},cid=9"))
        assert [c["name"] for c in v["clones"]] == ["c-1", "c-2"], v
        assert [c["vsock_path"] for c in v["clones"]] == [f"{folder}/v1", f"{folder}/v2"], v
        ok("wait", "c-2", "--console", "RESTORED")
        assert "vsock" in ok("show", "c-1")
        r = thaw(d, "clone", "s", "--drive", f"id=d,path={disk}3,ro", "--json")
        assert r.returncode == 1 and json.loads(r.stdout)["error"]["code"] == "snapshot_mismatch", r
        ok("clone", "s", "--paused", "--name", "p", "--drive", f"id=d,path={disk}3")
        assert d.state("p") == "paused"
        r = thaw(d, "wait", "c-1", "--console", "never said", "--timeout", "1")
        assert r.returncode == 4, r
        r = thaw(d, "wait", "c-1", "--state", "paused", "--timeout", "0")
        assert r.returncode == 4, r
        assert "killed" in thaw(d, "stop", "c-1", "--mode", "kill", "--json").stdout
        ok("delete", "c-1")
        follow = subprocess.Popen([os.path.join(BIN, "thaw"), "console", "c-2", "--follow"], text=True,
                                  stdout=subprocess.PIPE, env=dict(os.environ, THAW_SOCKET=d.socket))
        ok("console", "c-2", "--write", "exit")
        out, _ = follow.communicate(timeout=30)
        assert follow.returncode == 0 and "RESTORED" in out, out
        assert json.loads(ok("show", "c-2", "--json"))["exit"]["reason"] == "shutdown"
        for name in ("a", "c-2", "p"):
            ok("delete", name)
        ok("snapshot-delete", "s")
        assert json.loads(ok("info", "--json"))["snapshots"] == 0
        ok("info")


def test_client_terminal():
    need_kvm()
    with Daemon() as d:
        d.create("a")
        d.expect("a", "READY\n")
        pid, fd = pty.fork()
        if not pid:
            os.execve(os.path.join(BIN, "thaw"), ["thaw", "--socket", d.socket, "console", "a"], dict(os.environ))
        out = b""

        def read_until(text):
            nonlocal out
            while text not in out:
                assert select.select([fd], [], [], 10)[0], out
                out += os.read(fd, 1000)

        read_until(b"READY")
        os.write(fd, b"echo typed\n")
        read_until(b"OK typed")
        os.write(fd, b"\x1d")  # Ctrl-]
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(fd)
        assert d.vm("a")["state"] == "running"


def test_doctor():
    r = thaw(None, "doctor", "--json")
    v = json.loads(r.stdout)
    assert isinstance(v["stock_kernel"], bool) and v["stock_kernel_reason"], v
    assert r.returncode == (0 if v["ok"] else 1), r
    assert {c["name"] for c in v["checks"]} >= {"kernel", "cpu", "kvm", "io_uring", "userfaultfd", "tun"}, v
    assert "kvm" in thaw(None, "doctor").stdout
    if not os.geteuid() and shutil.which("setpriv"):
        r = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--",
                            os.path.join(BIN, "thaw"), "doctor"], capture_output=True, text=True, check=False)
        assert r.returncode == (1 if "no rights" in r.stdout else 0), r


if __name__ == "__main__":
    main(globals())
