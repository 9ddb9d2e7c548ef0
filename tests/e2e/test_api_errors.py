#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every kind of bad input has its own clear error and leaves nothing behind: no process,
no file, no socket, no descriptor."""
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time

from thawlib import BIN, GUEST, B, Daemon, Skip, UnixConnection, main, need_kvm, thaw, wait_until

D = None  # one daemon for most tests


def daemon():
    global D
    if D is None:
        D = Daemon()
        D.start()
    return D


def check(method, path, body, status, code, *in_message):
    """One bad request: the right error, and nothing left behind."""
    d = daemon()
    d.settle()
    fds, processes = d.open_fds(), d.vm_processes()
    r = d.request(method, path, body)
    assert (r.status, r.code) == (status, code), r
    for text in in_message:
        assert text in r.message, r
    assert d.vm_processes() == processes, d.vm_processes()
    assert d.leftovers() == [], d.leftovers()
    wait_until("descriptors closed", lambda: d.open_fds() <= fds)
    return r


def config(**more):
    c = {"name": "bad", "kernel": GUEST, "discovery": "cmdline", "memory_mib": 32}
    c.update(more)
    return {k: v for k, v in c.items() if v is not None}


def create(status, code, *in_message, **more):
    r = check("POST", "/v1/vms", config(**more), status, code, *in_message)
    assert daemon().get("/v1/vms/bad").status == 404
    return r


@contextlib.contextmanager
def temp_file(content=b"", name="file"):
    folder = tempfile.mkdtemp(prefix="thaw-")
    path = os.path.join(folder, name)
    with open(path, "wb") as f:
        f.write(content)
    try:
        yield path
    finally:
        shutil.rmtree(folder)


# --- HTTP and JSON ---
def test_malformed_json():
    for text in ("{", "nope", '{"name":}', "[1,2", '{"a":1} trailing', '{"name":"\\u0000"}', "{'a':1}",
                 '{"name":"\xff"}'.encode("latin-1")):
        check("POST", "/v1/vms", text, 400, "invalid_json", "line 1")


def test_duplicate_key():
    check("POST", "/v1/vms", '{"name":"a","name":"b"}', 400, "invalid_json", "duplicate")


def test_not_an_object():
    for text in ("[]", "1", '"x"', "null"):
        check("POST", "/v1/vms", text, 400, "wrong_type", "body")


def test_deep_nesting():
    check("POST", "/v1/vms", "[" * 100000, 400, "invalid_json")


def test_unknown_field():
    create(400, "unknown_field", "kernal", "known are", kernal="x")
    create(400, "unknown_field", "drives[0].pfad", drives=[{"id": "a", "path": "/x", "pfad": 1}])
    check("POST", "/v1/snapshots", {"name": "s", "vm": "v", "x": 1}, 400, "unknown_field")
    check("GET", "/v1/vms?verbose=1", None, 400, "unknown_field", "verbose")


def test_wrong_type():
    create(400, "wrong_type", "vcpus", "an integer", "a string", vcpus="1")
    create(400, "wrong_type", "memory_mib", "a real number", memory_mib=1.5)
    create(400, "wrong_type", "start", "true or false", start=1)
    create(400, "wrong_type", "drives", "an array", drives={})
    create(400, "wrong_type", "drives[0]", "an object", drives=[1])
    create(400, "wrong_type", "vsock", vsock=[])
    create(400, "wrong_type", "cmdline", "a string", cmdline=False)


def test_null_is_a_wrong_type():
    check("POST", "/v1/vms", '{"name":"bad","kernel":"/x","vcpus":null}', 400, "wrong_type", "vcpus", "null")


def test_missing_field():
    create(400, "missing_field", "kernel", kernel=None)
    create(400, "missing_field", "name", name=None)
    create(400, "missing_field", "drives[0].path", drives=[{"id": "a"}])
    create(400, "missing_field", "vsock.cid", vsock={})


def test_zero_or_too_much_memory_or_cpus():
    for n in (0, -1, 3, 1 << 21, 1 << 62):
        create(400, "invalid_value", "memory_mib", memory_mib=n)
    for n in (0, -1, 33, 1000000):
        create(400, "invalid_value", "vcpus", vcpus=n)
    check("POST", "/v1/vms", '{"name":"bad","kernel":"/x","vcpus":99999999999999999999}', 400, "invalid_json")


def test_more_memory_than_the_host_has():
    create(422, "host_too_small", "MiB of this host", memory_mib=1 << 20)


def test_bad_values():
    create(400, "invalid_value", "name", name="../etc")
    create(400, "invalid_value", "name", name="")
    create(400, "invalid_value", "name", name="x" * 65)
    create(400, "invalid_value", "absolute", kernel="vmlinux")
    create(400, "invalid_value", "kernel", kernel="/" + "x" * 2000)
    create(400, "invalid_value", "control character", cmdline="a\nb")
    create(400, "invalid_value", "cmdline", cmdline="x" * 3000)
    create(400, "invalid_value", "discovery", "acpi", discovery="dt")
    create(400, "invalid_value", "cid", vsock={"cid": 2})
    create(400, "invalid_value", "serial", drives=[{"id": "a", "path": "/x", "serial": "s" * 21}])
    create(400, "invalid_value", "twice", drives=[{"id": "a", "path": "/x"}, {"id": "a", "path": "/y"}])
    create(400, "invalid_value", "at most 8", drives=[{"id": f"d{i}", "path": "/x"} for i in range(9)])
    for mac in ("", "1", "00:00:00:00:00:00", "01:00:00:00:00:01", "02:00:00:00:00:0g", "02-00-00-00-00-01"):
        create(400, "invalid_value", "mac", nets=[{"id": "n", "tap": "t", "mac": mac}])


def test_body_too_large():
    r = check("POST", "/v1/vms", b"x" * (1024 * 1024 + 1), 413, "body_too_large")
    assert r.status == 413


def test_body_too_large_chunked():
    d = daemon()
    con = UnixConnection(d.socket)
    con.request("POST", "/v1/vms", body=(b"x" * 65536 for _ in range(20)), encode_chunked=True,
                headers={"Transfer-Encoding": "chunked"})
    assert con.getresponse().status == 413
    con.close()


def test_no_such_route():
    for path in ("/", "/v1", "/v1/", "/v2/vms", "/v1/vms/", "/v1/vms/a/b/c", "/v1/vms/a/fly", "/v1/vms/%00",
                 "/v1/snapshots/../vms"):
        check("GET", path, None, 404, "not_found")


def test_wrong_method_tells_the_right_ones():
    r = check("PUT", "/v1/vms", "{}", 405, "method_not_allowed")
    assert set(r.headers["Allow"].replace(" ", "").split(",")) == {"GET", "POST"}, r.headers
    r = check("GET", "/v1/vms/x/start", None, 405, "method_not_allowed")
    assert r.headers["Allow"] == "POST"


def test_unknown_vm_and_snapshot():
    for path in ("start", "pause", "resume", "stop"):
        check("POST", f"/v1/vms/nope/{path}", None, 404, "vm_not_found", "nope")
    check("GET", "/v1/vms/nope", None, 404, "vm_not_found")
    check("DELETE", "/v1/vms/nope", None, 404, "vm_not_found")
    check("GET", "/v1/vms/nope/console", None, 404, "vm_not_found")
    check("PUT", "/v1/vms/nope/console", "x", 404, "vm_not_found")
    check("POST", "/v1/snapshots", {"name": "s", "vm": "nope"}, 404, "vm_not_found")
    check("GET", "/v1/snapshots/nope", None, 404, "snapshot_not_found")
    check("DELETE", "/v1/snapshots/nope", None, 404, "snapshot_not_found")
    check("POST", "/v1/snapshots/nope/verify", None, 404, "snapshot_not_found")
    check("POST", "/v1/snapshots/nope/clone", {}, 404, "snapshot_not_found")
    for name in ("..", "%2e%2e", ".hidden", "a%20b"):
        check("GET", f"/v1/snapshots/{name}", None, 404, "snapshot_not_found")
        check("DELETE", f"/v1/snapshots/{name}", None, 404, "snapshot_not_found")
        check("POST", f"/v1/snapshots/{name}/clone", {}, 404, "snapshot_not_found")


def test_garbage_on_the_socket():
    d = daemon()
    for bytes_ in (b"\0\xff" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"X" * 100000,
                   b"POST /v1/vms HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                   b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n"):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(5)
        s.connect(d.socket)
        with contextlib.suppress(OSError):
            s.sendall(bytes_)
            s.recv(4096)
        s.close()
    assert d.get("/v1/info").status == 200


def test_slow_and_half_open_clients_do_not_hold_others_up():
    d = daemon()
    held = []
    for i in range(300):
        s = socket.socket(socket.AF_UNIX)
        s.connect(d.socket)
        s.sendall(b"GET /v1/info HTT"[: i % 16] if i % 2 else
                  b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        held.append(s)
    start = time.monotonic()
    assert d.get("/v1/info").status == 200
    assert time.monotonic() - start < 5
    for s in held:
        s.close()
    wait_until("connections closed", lambda: d.get("/v1/info").json["connections"] < 10)


# --- files ---
def test_missing_files():
    create(422, "file_not_found", "kernel", "/nonexistent", kernel="/nonexistent")
    create(422, "file_not_found", "initrd", initrd="/nonexistent")
    create(422, "file_not_found", "drive root", drives=[{"id": "root", "path": "/nonexistent"}])
    create(422, "file_not_found", "drive root", drives=[{"id": "root", "path": "/etc/passwd/x"}])


def test_files_of_the_wrong_kind():
    with tempfile.TemporaryDirectory() as folder:
        fifo = os.path.join(folder, "fifo")
        os.mkfifo(fifo)
        for path in (folder, fifo, "/dev/null"):
            create(422, "file_invalid", "kernel", kernel=path)
            create(422, "file_invalid", "drive d", drives=[{"id": "d", "path": path}])
    with temp_file() as empty:
        create(422, "file_invalid", "empty", kernel=empty)
        create(422, "file_invalid", "empty", drives=[{"id": "d", "path": empty}])


def test_wrong_kernels():
    need_kvm()
    with open(GUEST, "rb") as f:
        good = f.read()
    for bad in (b"not a kernel", b"\x7fELF" + b"\xff" * 100, b"\x7fELF", good[:64], good[:200], os.urandom(100000)):
        with temp_file(bad) as path:
            create(422, "kernel_invalid", "VM bad", kernel=path)


def test_initrd_larger_than_memory():
    need_kvm()
    with temp_file() as path:
        os.truncate(path, 64 << 20)
        create(422, "kernel_invalid", initrd=path)


def test_no_rights_to_files():
    need_kvm()
    if os.geteuid():
        raise Skip("needs root to become somebody else")
    folder = tempfile.mkdtemp(prefix="thaw-")
    os.chown(folder, 65534, 65534)
    with Daemon(prefix=nobody(), folder=folder) as d, temp_file(b"x" * 1024) as path:
        os.chmod(os.path.dirname(path), 0o755)
        os.chmod(path, 0o600)
        mode = stat.S_IMODE(os.stat("/dev/kvm").st_mode)
        os.chmod("/dev/kvm", 0o666)
        try:
            r = d.post("/v1/vms", config(kernel=path))
            assert (r.status, r.code) == (422, "file_denied"), r
            os.chmod(path, 0o444)
            r = d.post("/v1/vms", config(kernel=path, drives=[{"id": "d", "path": path}]))
            assert (r.status, r.code) == (422, "file_denied") and "read_only" in r.message, r
        finally:
            os.chmod("/dev/kvm", mode)
        assert d.vm_processes() == []
    shutil.rmtree(folder)


# --- devices ---
def test_missing_tap_is_not_made():
    need_kvm()
    create(422, "tap_not_found", "thawnope0", "ip tuntap", nets=[{"id": "n", "tap": "thawnope0"}])
    assert not os.path.exists("/sys/class/net/thawnope0")


def test_interface_that_is_no_tap():
    need_kvm()
    create(422, "tap_invalid", "not a tap", nets=[{"id": "n", "tap": "lo"}])


def test_vsock_path_in_use():
    need_kvm()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "v")
        s = socket.socket(socket.AF_UNIX)
        s.bind(path)
        s.listen()
        create(409, "in_use", path, vsock={"cid": 3, "path": path})
        s.close()  # stale now: is replaced, and removed with the VM
        d = daemon()
        d.create("v", vsock={"cid": 3, "path": path})
        assert stat.S_ISSOCK(os.stat(path).st_mode) and stat.S_IMODE(os.stat(path).st_mode) == 0o660
        assert d.delete("/v1/vms/v").status == 204
        assert not os.path.exists(path)
        with open(path, "w", encoding="ascii") as f:
            f.write("precious")
        create(409, "in_use", path, vsock={"cid": 3, "path": path})
        assert os.path.getsize(path) == 8
        create(422, "file_not_found", "vsock", vsock={"cid": 3, "path": folder + "/no/v"})


def test_vsock_path_leaves_room_for_the_port():
    need_kvm()
    create(400, "invalid_value", "96 bytes", vsock={"cid": 3, "path": "/" + "x" * 96})
    # As long as allowed: only the folder is missing.
    create(422, "file_not_found", "vsock", vsock={"cid": 3, "path": "/no/" + "x" * 92})


def test_failed_create_removes_its_vsock_socket():
    need_kvm()
    with temp_file(b"not a kernel") as path:
        create(422, "kernel_invalid", kernel=path, vsock={"cid": 3})
        mine = os.path.dirname(path) + "/v"
        create(422, "kernel_invalid", kernel=path, vsock={"cid": 3, "path": mine})
        assert not os.path.exists(mine)


def test_writable_disk_in_use():
    need_kvm()
    d = daemon()
    with temp_file(b"\0" * 65536) as disk:
        d.create("one", drives=[{"id": "d", "path": disk}])
        r = check("POST", "/v1/vms", config(drives=[{"id": "d", "path": disk}]), 409, "in_use")
        assert disk in r.message or "drive" in r.message, r
        assert d.delete("/v1/vms/one").status == 204


# --- states ---
def test_second_vm_of_the_same_name():
    need_kvm()
    d = daemon()
    d.create("twin")
    check("POST", "/v1/vms", config(name="twin"), 409, "vm_exists", "twin")
    assert d.state("twin") == "running"
    d.delete("/v1/vms/twin")


def test_wrong_states():
    need_kvm()
    d = daemon()
    d.create("w", start=False)
    for verb in ("pause", "resume"):
        check("POST", f"/v1/vms/w/{verb}", None, 409, "wrong_state", "created")
    check("POST", "/v1/vms/w/stop", {}, 409, "wrong_state")
    check("POST", "/v1/snapshots", {"name": "s", "vm": "w"}, 409, "wrong_state")
    assert d.post("/v1/vms/w/start").status == 200
    check("POST", "/v1/vms/w/start", None, 409, "wrong_state", "running")
    check("POST", "/v1/vms/w/resume", None, 409, "wrong_state", "running")
    assert d.post("/v1/vms/w/pause").status == 200
    check("POST", "/v1/vms/w/pause", None, 409, "wrong_state", "paused")
    check("POST", "/v1/vms/w/start", None, 409, "wrong_state", "use resume")
    assert d.post("/v1/vms/w/stop", {"mode": "kill"}).json["exit"]["reason"] == "killed"
    for verb in ("start", "pause", "resume", "stop"):
        check("POST", f"/v1/vms/w/{verb}", None, 409, "wrong_state", "exited")
    check("PUT", "/v1/vms/w/console", "x", 409, "wrong_state")
    check("POST", "/v1/snapshots", {"name": "s", "vm": "w"}, 409, "wrong_state")
    assert d.delete("/v1/vms/w").status == 204


def test_bad_arguments_of_verbs():
    need_kvm()
    d = daemon()
    d.create("v")
    check("POST", "/v1/vms/v/pause", {"x": 1}, 400, "unknown_field")
    check("POST", "/v1/vms/v/stop", {"mode": "please"}, 400, "invalid_value", "power-button")
    check("POST", "/v1/vms/v/stop", {"wait_ms": 600001}, 400, "invalid_value")
    for query in ("offset=-1", "offset=x", "wait_ms=60001", "offset=99999999999999999999", "offset="):
        check("GET", f"/v1/vms/v/console?{query}", None, 400, "invalid_value")
    check("PUT", "/v1/vms/v/console", b"x" * 40000, 400, "invalid_value")
    d.delete("/v1/vms/v")


# --- snapshots ---
def with_snapshot(name="s"):
    d = daemon()
    if d.get(f"/v1/snapshots/{name}").status != 200:
        d.create("src")
        d.expect("src", "READY\n")
        assert d.post("/v1/snapshots", {"name": name, "vm": "src"}).status == 201
        d.delete("/v1/vms/src")
    return d


def test_snapshot_name_taken_or_bad():
    need_kvm()
    d = with_snapshot()
    d.create("src")
    check("POST", "/v1/snapshots", {"name": "s", "vm": "src"}, 409, "snapshot_exists")
    check("POST", "/v1/snapshots", {"name": "../s", "vm": "src"}, 400, "invalid_value")
    assert d.state("src") == "running"
    d.delete("/v1/vms/src")


def test_bad_clone_requests():
    need_kvm()
    with_snapshot()
    path = "/v1/snapshots/s/clone"
    for body in ({"count": 0}, {"count": 5000}, {"clones": []}, {"count": 1, "clones": [{}]},
                 {"clones": [{"name": "a/b"}]}, {"name_prefix": "-"}):
        check("POST", path, body, 400, "invalid_value")
    for body in ({"clones": [{"nets": [{"id": "x", "tap": "t"}]}]}, {"clones": [{"drives": [{"id": "x"}]}]},
                 {"clones": [{"vsock": {"cid": 5}}]}):
        check("POST", path, body, 400, "invalid_value", "the snapshot has no")
    check("POST", path, {"clones": [{"nam": "a"}]}, 400, "unknown_field", "clones[0].nam")
    check("POST", path, {"run": "yes"}, 400, "wrong_type", "run")
    assert daemon().get("/v1/vms").json["vms"] == []


def test_partial_failure_of_clones():
    need_kvm()
    d = with_snapshot()
    r = d.post("/v1/snapshots/s/clone", {"clones": [{"name": "a"}, {"name": "a"}, {"name": "b"}]})
    assert r.status == 207, r
    one, two, three = r.json["clones"]
    assert one["state"] == three["state"] == "running", r
    assert two["error"]["code"] == "vm_exists", r
    assert len(d.vm_processes()) == 2
    for name in "ab":
        assert d.delete(f"/v1/vms/{name}").status == 204
    assert d.vm_processes() == []


def damage(make_bad, code="snapshot_corrupt", verify_too=True):
    """A copy of the snapshot, damaged; every way to use it must say so."""
    d = with_snapshot()
    base = os.path.join(d.state_dir, "snapshots")
    bad = os.path.join(base, "bad")
    d.delete("/v1/snapshots/bad")
    shutil.rmtree(bad, ignore_errors=True)
    # Made by the daemon, so that only what make_bad() does is wrong.
    assert d.post("/v1/snapshots/s/clone", {"clones": [{"name": "src"}]}).status == 201
    assert d.post("/v1/snapshots", {"name": "bad", "vm": "src"}).status == 201
    d.delete("/v1/vms/src")
    for f in os.listdir(bad):
        os.chmod(os.path.join(bad, f), 0o600)
    make_bad(bad)
    check("POST", "/v1/snapshots/bad/clone", {}, 422, code, "bad")
    if verify_too:
        check("POST", "/v1/snapshots/bad/verify", None, 422, code)
    r = d.get("/v1/snapshots")
    assert r.status == 200 and "s" in [x["name"] for x in r.json["snapshots"]], r
    shutil.rmtree(bad)


def flip(path, where):
    with open(path, "r+b") as f:
        f.seek(where)
        byte = f.read(1)
        f.seek(where)
        f.write(bytes([byte[0] ^ 1]))


def cut(path, by=1):
    os.truncate(path, os.path.getsize(path) - by)


def test_damaged_snapshots():
    need_kvm()
    for name in ("manifest", "state"):
        damage(lambda bad, n=name: flip(f"{bad}/{n}", os.path.getsize(f"{bad}/{n}") // 2))
        damage(lambda bad, n=name: flip(f"{bad}/{n}", 0))
        damage(lambda bad, n=name: cut(f"{bad}/{n}"))
        damage(lambda bad, n=name: os.truncate(f"{bad}/{n}", 0))
        damage(lambda bad, n=name: os.unlink(f"{bad}/{n}"))
    damage(lambda bad: flip(f"{bad}/memory", 0x100000))
    damage(lambda bad: cut(f"{bad}/memory", 4096))
    damage(lambda bad: os.unlink(f"{bad}/memory"))


def test_foreign_snapshot():
    need_kvm()

    def foreign(bad):
        shutil.copy(os.path.join(os.path.dirname(bad), "s", "manifest"), f"{bad}/manifest")

    damage(foreign)


def test_memory_changed_after_it_was_verified():
    need_kvm()
    d = with_snapshot()
    d.create("src")
    assert d.post("/v1/snapshots", {"name": "later", "vm": "src"}).status == 201
    d.delete("/v1/vms/src")
    r = d.post("/v1/snapshots/later/clone", {"clones": [{"name": "c"}]})
    assert r.status == 201, r
    d.delete("/v1/vms/c")
    memory = f"{d.state_dir}/snapshots/later/memory"
    os.chmod(memory, 0o600)
    flip(memory, 0x200000)
    check("POST", "/v1/snapshots/later/clone", {}, 422, "snapshot_corrupt")
    assert d.delete("/v1/snapshots/later").status == 204


# --- KVM ---
def nobody():
    if os.geteuid() or not shutil.which("setpriv"):
        raise Skip("needs root and setpriv")
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]


def test_no_dev_kvm():
    with Daemon(["--kvm", "/nonexistent/kvm"]) as d:
        r = d.post("/v1/vms", config(vsock={"cid": 3}))
        assert (r.status, r.code) == (503, "no_kvm") and "doctor" in r.message, r
        assert d.vm_processes() == [] and d.leftovers() == []
        assert d.get("/v1/vms").json["vms"] == []


def test_no_rights_to_dev_kvm():
    prefix = nobody()
    if not os.path.exists("/dev/kvm"):
        raise Skip("no /dev/kvm")
    folder = tempfile.mkdtemp(prefix="thaw-")
    os.chown(folder, 65534, 65534)
    try:
        with Daemon(prefix=prefix, folder=folder) as d:
            r = d.post("/v1/vms", config())
            assert (r.status, r.code) == (503, "kvm_denied") and "kvm" in r.message, r
            assert d.vm_processes() == [] and d.leftovers() == []
    finally:
        shutil.rmtree(folder)


def test_file_that_is_not_kvm():
    with Daemon(["--kvm", "/dev/null"]) as d:
        r = d.post("/v1/vms", config())
        assert r.status in (500, 503) and r.code in ("no_kvm", "vm_failed"), r
        assert d.vm_processes() == []


# --- a VM process that lies, dies or sleeps ---
def fake_vmm(folder, script):
    path = os.path.join(folder, "vmm")
    with open(path, "w", encoding="ascii") as f:
        f.write("#!/usr/bin/env python3\n" + script)
    os.chmod(path, 0o755)
    return path


def test_vm_process_that_lies_or_dies():
    need_kvm()
    lies = "import socket,os;s=socket.socket(fileno=3);s.recvmsg(200000,1000);"
    for script, code in (
            ("import sys;sys.exit(3)", "vm_crashed"),
            ("import os;os.kill(os.getpid(),11)", "vm_crashed"),
            (lies + "s.send(b'garbage');s.recv(1)", "vm_crashed"),
            (lies + "s.send(b'HTAW'+b'\\0'*60);s.recv(1)", "vm_crashed"),
            (lies + "s.close();import time;time.sleep(1)", "vm_crashed"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            with Daemon(vmm=fake_vmm(folder, script)) as d:
                r = d.post("/v1/vms", config(vsock={"cid": 3}))
                assert r.status >= 500 and r.code == code, (script, r)
                assert d.leftovers() == [], d.leftovers()
                # A spare is such a process, too: now and then one is being tried.
                wait_until("no process", lambda: d.vm_processes() == [])


def test_vmm_that_can_not_be_started():
    need_kvm()
    with tempfile.TemporaryDirectory() as folder:
        path = fake_vmm(folder, "")
        with Daemon(vmm=path, args=["--spares", "0"]) as d:
            os.unlink(path)
            r = d.post("/v1/vms", config())
            assert (r.status, r.code) == (500, "internal"), r
            assert d.vm_processes() == []


# --- the daemon itself ---
def refuses(*args, env=None):
    r = subprocess.run([os.path.join(BIN, "thawd"), *args], capture_output=True, text=True, timeout=10,
                       env=dict(os.environ, **(env or {})), check=False)
    return r.returncode, r.stderr


def test_socket_path_in_use():
    d = daemon()
    with tempfile.TemporaryDirectory() as folder:
        status, text = refuses("--socket", d.socket, "--state-dir", folder + "/state")
        assert status == 1 and "another daemon listens" in text, text
        assert d.get("/v1/info").status == 200
        precious = folder + "/file"
        with open(precious, "w", encoding="ascii") as f:
            f.write("x")
        status, text = refuses("--socket", precious, "--state-dir", folder + "/state")
        assert status == 1 and "not a socket" in text and os.path.getsize(precious) == 1, text


def test_state_dir_in_use():
    d = daemon()
    with tempfile.TemporaryDirectory() as folder:
        status, text = refuses("--socket", folder + "/s", "--state-dir", d.state_dir)
        assert status == 1 and "another daemon" in text, text
        assert not os.path.exists(folder + "/s")


def test_daemon_options():
    assert refuses("--nope")[0] == 2
    assert refuses("stray")[0] == 2
    assert refuses("--log-level", "loud")[0] == 2
    for bad in ("", "-1", "10s", "99999999"):
        assert refuses("--orphan-timeout", bad)[0] == 2
    status, text = refuses("--socket", "/tmp/" + "x" * 200, "--state-dir", "/tmp/thaw-nope")
    assert status == 1 and "longer than" in text, text
    shutil.rmtree("/tmp/thaw-nope", ignore_errors=True)
    status, text = refuses("--vmm", "/nonexistent")
    assert status == 1 and "/nonexistent" in text, text


def test_stale_socket_is_replaced_and_mode():
    with tempfile.TemporaryDirectory() as folder:
        d = Daemon(folder=folder)
        d.start()
        assert stat.S_IMODE(os.stat(d.socket).st_mode) == 0o660
        d.stop(signal.SIGKILL)
        assert os.path.exists(d.socket)
        d.start()
        assert d.stop() == 0
        assert not os.path.exists(d.socket)


# --- the client ---
def test_client_exit_statuses():
    d = daemon()
    assert thaw(d, "ls").returncode == 0
    r = thaw(d, "show", "nope")
    assert r.returncode == 1 and "nope" in r.stderr, r
    assert thaw(d, "show").returncode == 2
    assert thaw(d, "fly").returncode == 2
    assert thaw(d, "ls", "--kernel", "x").returncode == 2
    assert thaw(d, "show", "a/b").returncode == 2
    assert thaw(d, "create", "x").returncode == 2
    r = thaw(d, "ls", env={"THAW_SOCKET": "/nonexistent/s"})
    assert r.returncode == 3 and "start thawd" in r.stderr, r
    r = thaw(d, "ls", env={"THAW_SOCKET": "/" + "x" * 110})
    assert r.returncode == 1 and "longer than 107 bytes" in r.stderr, r
    r = thaw(d, "clone", "s", "--count", "4097")
    assert r.returncode == 2 and "1..4096" in r.stderr, r
    r = thaw(d, "stop", "v", "--timeout", "601")
    assert r.returncode == 2 and "0..600" in r.stderr, r
    r = thaw(d, "show", "nope", "--json")
    assert r.returncode == 1 and json.loads(r.stdout)["error"]["code"] == "vm_not_found", r


def test_nothing_is_left_at_the_end():
    d = daemon()
    assert d.get("/v1/vms").json["vms"] == []
    assert d.vm_processes() == [] and d.leftovers() == []
    assert d.stop() == 0
    assert not os.path.exists(d.socket)
    shutil.rmtree(d.folder)


assert B
if __name__ == "__main__":
    main(globals())
