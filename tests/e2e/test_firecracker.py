#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""thaw-vmm with Firecracker's API, as its clients use it."""
import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time

from test_lazy import need_userfaultfd
from test_page_handler import HANDLER
from thawlib import BIN, GUEST, ROOT, Skip, UnixConnection, alive, main, need_kvm, wait_until

VMM = os.path.join(BIN, "thaw-vmm")
FRONT = os.path.join(BIN, "thaw-firecracker")
BEFORE = "The requested operation is not supported before starting the microVM."
AFTER = "The requested operation is not supported after starting the microVM."
BOOT = {"kernel_image_path": GUEST, "boot_args": "quiet"}
MACHINE = {"vcpu_count": 1, "mem_size_mib": 32}
NO_LIMIT = {"bandwidth": {"size": 0, "refill_time": 0}}


@contextlib.contextmanager
def folder():
    path = tempfile.mkdtemp(prefix="thaw-fc-")
    try:
        yield path
    finally:
        shutil.rmtree(path)


class Front:
    """One process with its API socket; its console is a terminal, and what it prints a file."""

    def __init__(self, where, name="vm", *args, api=True, program=VMM, tty=True, prefix=()):
        self.where, self.path = where, os.path.join(where, name + ".sock")
        self.out, self.log = os.path.join(where, name + ".out"), os.path.join(where, name + ".log")
        self.said = 0
        self.master, slave = pty.openpty() if tty else (None, None)
        command = [*prefix, program, *(["--api-sock", self.path] if api else []), "--log-path", self.log, *args]
        with open(self.out, "wb") as out:
            self.process = subprocess.Popen(command, stdin=slave if tty else subprocess.DEVNULL, stdout=out,
                                            stderr=out)
        if tty:
            os.close(slave)
        if api:
            wait_until("the API socket", lambda: self.process.poll() is not None or self.answers())

    def answers(self):
        try:
            return self.get("/").status == 200
        except OSError:
            return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()
        if self.master is not None:
            os.close(self.master)

    def end(self, sig=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(15)

    def call(self, method, path, body=None, headers=None):
        con = UnixConnection(self.path)
        try:
            text = body if body is None or isinstance(body, (str, bytes)) else json.dumps(body)
            con.request(method, path, body=text, headers=headers or {})
            r = con.getresponse()
            r.text = r.read()
            r.json = json.loads(r.text) if r.text and r.getheader("Content-Type") == "application/json" else None
            return r
        finally:
            con.close()

    def get(self, path):
        return self.call("GET", path)

    def ok(self, method, path, body=None):
        r = self.call(method, path, body)
        assert (r.status, r.text) == (204, b""), (method, path, r.status, r.text)

    def put(self, path, body):
        self.ok("PUT", path, body)

    def patch(self, path, body):
        self.ok("PATCH", path, body)

    def refused(self, method, path, body, *words):
        r = self.call(method, path, body)
        assert r.status == 400 and r.json and list(r.json) == ["fault_message"], (method, path, body, r.status, r.text)
        for w in words:
            assert w in r.json["fault_message"], (method, path, w, r.text)

    def config(self):
        r = self.get("/vm/config")
        assert r.status == 200, r.text
        return r.json

    def state(self):
        return self.get("/").json["state"]

    def boot(self, **machine):
        self.put("/machine-config", {**MACHINE, **machine})
        self.put("/boot-source", BOOT)
        self.start()

    def start(self):
        self.put("/actions", {"action_type": "InstanceStart"})
        self.expect("READY\n")

    def text(self):
        with open(self.out, encoding="latin-1") as f:
            return f.read()

    def log_text(self):
        with open(self.log, encoding="utf-8") as f:
            return f.read()

    def expect(self, what):
        wait_until(f"{what!r} in {self.text()[self.said:]!r}", lambda: what in self.text()[self.said:])
        at = self.text().index(what, self.said)
        before, self.said = self.text()[self.said:at], at + len(what)
        return before

    def say(self, line):
        os.write(self.master, line.encode() + b"\n")
        return self.expect("\n")

    def pause(self):
        self.patch("/vm", {"state": "Paused"})

    def resume(self):
        self.patch("/vm", {"state": "Resumed"})

    def freeze(self, name="snap", **more):
        """A snapshot's two files, of a VM that is paused for it."""
        state, memory = (os.path.join(self.where, name + x) for x in (".state", ".mem"))
        self.pause()
        self.put("/snapshot/create", {"snapshot_path": state, "mem_file_path": memory, **more})
        return state, memory

    def child(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as f:
            return [int(p) for p in f.read().split()]


def load_body(state, memory, **more):
    return {"snapshot_path": state, "mem_backend": {"backend_type": "File", "backend_path": memory}, **more}


def image(where, name="disk.img", first=b"first", mib=1):
    path = os.path.join(where, name)
    with open(path, "wb") as f:
        f.truncate(mib << 20)
        f.write(first)
    return path


def drive(path, **more):
    return {"drive_id": "root", "path_on_host": path, "is_root_device": True, **more}


def test_the_sequence_of_the_go_sdk():
    need_kvm()
    with folder() as w, Front(w, "vm", "--id", "01-ab", "--no-seccomp") as f:
        r = f.get("/")
        assert r.json == {"id": "01-ab", "state": "Not started", "vmm_version": r.json["vmm_version"],
                          "app_name": "Firecracker"}, r.json
        assert f.get("/version").json == {"firecracker_version": r.json["vmm_version"]}
        assert re.fullmatch(r"1\.17\.0-thaw\.\d+\.\d+\.\d+", r.json["vmm_version"])
        assert f.get("/machine-config").json == {
            "vcpu_count": 1, "mem_size_mib": 128, "smt": False, "track_dirty_pages": False, "huge_pages": "None",
            "cpu_template": "None"}
        f.put("/logger", {"log_path": f"{w}/fc.log", "level": "DEBUG", "show_level": True, "show_log_origin": False})
        f.put("/metrics", {"metrics_path": f"{w}/metrics"})
        f.put("/machine-config", {**MACHINE, "smt": True})
        assert f.get("/machine-config").json["mem_size_mib"] == 32
        f.put("/boot-source", BOOT)
        f.put("/drives/1", {"drive_id": "1", "path_on_host": image(w), "is_root_device": True, "is_read_only": False,
                            "partuuid": "", "cache_type": "Unsafe"} | {"partuuid": "0ab-01"})
        f.put("/vsock", {"guest_cid": 3, "uds_path": f"{w}/v.sock", "vsock_id": "agent"})
        f.start()
        assert f.state() == "Running"
        assert f.say("cmdline").startswith("OK quiet pci=off root=PARTUUID=0ab-01 rw virtio_mmio.device=4K@")
        assert f.say("blk r 0") == "OK first"
        f.pause()
        f.pause()
        assert f.state() == "Paused"
        f.resume()
        f.resume()
        f.put("/actions", {"action_type": "FlushMetrics"})
        with open(f"{w}/metrics", encoding="utf-8") as m:
            line = json.loads(m.read())
        assert line["put_api_requests"]["drive_count"] == 1 and line["put_api_requests"]["drive_fails"] == 0, line
        assert line["get_api_requests"]["machine_cfg_count"] == 2 and line["latencies_us"]["pause_vm"] > 0
        assert line["block_1"]["queue_event_count"] > 0 and line["vsock"], line
        with open(f"{w}/fc.log", encoding="utf-8") as g:
            assert re.search(r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9} \[01-ab:main:INFO\] The API server received a PUT '
                             r'request on "/actions"\.$', g.read(), re.M)
        f.refused("PUT", "/actions", {"action_type": "SendCtrlAltDel"}, "no keyboard driver")
        os.write(f.master, b"exit\n")
        assert f.process.wait(15) == 0 and not os.path.exists(f"{w}/v.sock")
        assert f.text().endswith("OK\n")
        with open(f"{w}/metrics", encoding="utf-8") as m:
            assert len(m.readlines()) == 2


def test_what_the_go_sdk_sent():
    """The requests of firecracker-go-sdk 1.0.0, unmodified, as they were recorded: it starts a VM, changes a drive and
    metadata, takes a snapshot, and loads it in another process. Of answers, what it looks at."""
    need_kvm()
    with folder() as w, contextlib.ExitStack() as fronts:
        image(w, "disk")
        with open(os.path.join(os.path.dirname(__file__), "data/firecracker_go_sdk.jsonl"), encoding="utf-8") as f:
            lines = [json.loads(line.replace("{w}", w).replace("{kernel}", GUEST)) for line in f]
        front, last = None, None
        for line in lines:
            if "start" in line:
                if front:
                    assert front.end() == -signal.SIGTERM
                assert line["start"][0] == "--api-sock", line
                name = os.path.basename(line["start"][1])[:-len(".sock")]
                front = fronts.enter_context(Front(w, name, *line["start"][2:]))
                continue
            r = front.call(*line["request"].split(), line.get("body"), {
                "User-Agent": "Go-http-client/1.1", "Accept": "application/json", "Accept-Encoding": "gzip",
                **({"Content-Type": "application/json"} if "body" in line else {})})
            assert r.status == line["status"], (line, r.status, r.text)
            for key, value in line.get("answer", {}).items():
                assert r.json[key] == value, (line, r.json)
            last = line["request"]
            if line.get("body", {}).get("action_type") == "InstanceStart":
                front.expect("READY\n")  # a guest that does not listen yet is not told of its restore
        assert last == "GET /" and len(lines) == 26
        front.expect("RESTORED\n")


def test_how_a_guest_ends():
    need_kvm()
    for how, status in (("exit", 0), ("reset", 0), ("triple", 0)):
        with folder() as w, Front(w) as f:
            f.boot()
            os.write(f.master, how.encode() + b"\n")
            assert f.process.wait(15) == status, how
            assert os.path.exists(f.path)  # as Firecracker leaves it


def before_requests(w):
    limiter = {"rx_rate_limiter": NO_LIMIT}
    return [("PATCH", "/vm", {"state": "Paused"}), ("PATCH", "/drives/a", {"drive_id": "a"}),
            ("PATCH", "/network-interfaces/a", {"iface_id": "a", **limiter}), ("PATCH", "/pmem/a", {"id": "a"}),
            ("PATCH", "/balloon", {"amount_mib": 1}), ("GET", "/balloon/statistics", None),
            ("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 1}),
            ("PATCH", "/balloon/hinting/start", None), ("PATCH", "/balloon/hinting/stop", None),
            ("GET", "/balloon/hinting/status", None), ("PUT", "/actions", {"action_type": "FlushMetrics"}),
            ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}),
            ("PUT", "/snapshot/create", {"snapshot_path": f"{w}/s", "mem_file_path": f"{w}/m"})]


def after_requests(w):
    return [("PUT", "/machine-config", MACHINE), ("PATCH", "/machine-config", {"vcpu_count": 2}),
            ("PUT", "/boot-source", BOOT), ("PUT", "/cpu-config", {}), ("PUT", "/drives/root", drive(f"{w}/d")),
            ("PUT", "/network-interfaces/a", {"iface_id": "a", "host_dev_name": "t"}),
            ("PUT", "/pmem/a", {"id": "a", "path_on_host": f"{w}/p"}), ("PUT", "/serial", {}), ("PUT", "/entropy", {}),
            ("PUT", "/vsock", {"guest_cid": 3, "uds_path": f"{w}/v"}),
            ("PUT", "/balloon", {"amount_mib": 1, "deflate_on_oom": True}), ("PUT", "/logger", {}),
            ("PUT", "/metrics", {"metrics_path": f"{w}/m"}), ("PUT", "/mmds/config", {"network_interfaces": []}),
            ("PUT", "/actions", {"action_type": "InstanceStart"}),
            ("PUT", "/snapshot/load", load_body(f"{w}/s", f"{w}/m"))]


def test_phases():
    need_kvm()
    with folder() as w, Front(w) as f:
        for method, path, body in before_requests(w):
            f.refused(method, path, body, BEFORE)
        for path in ("/", "/version", "/vm/config", "/machine-config", "/mmds"):
            assert f.get(path).status == 200, path
        f.refused("GET", "/balloon", None, "No balloon")
        f.put("/boot-source", BOOT)
        f.refused("PUT", "/snapshot/load", load_body(f"{w}/s", f"{w}/m"), "not allowed after configuring")
        assert f.process.poll() is None  # what was not tried has not failed
        f.boot()
        for method, path, body in after_requests(w):
            f.refused(method, path, body, AFTER)
        f.refused("PUT", "/snapshot/create", {"snapshot_path": f"{w}/s", "mem_file_path": f"{w}/m"}, "paused")
        for path in ("/", "/version", "/vm/config", "/machine-config", "/mmds"):
            assert f.get(path).status == 200, path


def test_every_refusal_of_a_body():
    need_kvm()
    what = "An error occurred when deserializing the json body of a request: "
    bucket = {"size": 1, "refill_time": 1, "other": 1}
    with folder() as w, Front(w) as f:
        disk = image(w)
        for method, path, body, *words in [
                ("PUT", "/machine-config", "{", what), ("PUT", "/machine-config", "[]", what),
                ("PUT", "/machine-config", '{"vcpu_count":1,"vcpu_count":2,"mem_size_mib":32}', what),
                ("PUT", "/machine-config", {**MACHINE, "ht_enabled": True}, what, "ht_enabled"),
                ("PUT", "/machine-config", {"vcpu_count": 1}, what, "mem_size_mib"),
                ("PUT", "/machine-config", {**MACHINE, "vcpu_count": 33}, "1..32"),
                ("PUT", "/machine-config", {**MACHINE, "vcpu_count": 0}, "1..32"),
                ("PUT", "/machine-config", {**MACHINE, "vcpu_count": 3, "smt": True}, "even"),
                ("PUT", "/machine-config", {**MACHINE, "huge_pages": "none"}, "None"),
                ("PUT", "/machine-config", {**MACHINE, "mem_size_mib": 33, "huge_pages": "2M"}, "2 MiB"),
                ("PUT", "/machine-config", {**MACHINE, "cpu_template": "T2"}, "cpu-config"),
                ("PATCH", "/machine-config", {}, "Empty PATCH"), ("PUT", "/machine-config", None, "Empty PUT"),
                ("PATCH", "/machine-config", {"Vcpu_count": 1}, what),
                ("PUT", "/boot-source", {"kernel_image_path": f"{w}/no"}, "does not exist"),
                ("PUT", "/boot-source", {**BOOT, "initrd_path": f"{w}/no"}, "initrd_path"),
                ("PUT", "/boot-source", {**BOOT, "kernel_image_path": w}, "regular file"),
                ("PUT", "/drives/a", drive(disk), "does not match the id from the body [root]"),
                ("PUT", "/drives/a-b", {**drive(disk), "drive_id": "a-b"}, "letters, digits and '_'"),
                ("PUT", "/drives/", drive(disk), "Invalid request method and/or path"),
                ("PUT", "/drives/a/b", drive(disk), "Invalid request method and/or path"),
                ("PUT", "/drives/root", {"drive_id": "root", "is_root_device": True}, "path_on_host"),
                ("PUT", "/drives/root", drive(disk, socket=f"{w}/v"), "vhost-user"),
                ("PUT", "/drives/root", drive(f"{w}/no"), "does not exist"),
                ("PUT", "/drives/root", drive(disk, cache_type="unsafe"), "Writeback"),
                ("PUT", "/drives/root", drive(disk, io_engine="sync"), "Async"),
                ("PUT", "/drives/root", drive(disk, layer="Ephemeral", is_read_only=True), "layer"),
                ("PUT", "/drives/root", drive(disk, rate_limiter={"bandwidth": {"size": 1}}), "refill_time"),
                ("PUT", "/drives/root", drive(disk, rate_limiter={"iops": bucket}), "iops"),
                ("PUT", "/network-interfaces/a", {"iface_id": "a", "host_dev_name": "thaw-none"}, "thaw-none"),
                ("PUT", "/network-interfaces/a", {"iface_id": "a", "host_dev_name": "a/b"}, "not the name"),
                ("PUT", "/network-interfaces/a", {"iface_id": "a", "host_dev_name": "t", "guest_mac": "x"}, "MAC"),
                ("PUT", "/pmem/a", {"id": "a", "path_on_host": f"{w}/no"}, "does not exist"),
                ("PUT", "/pmem/a", {"id": "a", "path_on_host": disk, "rate_limiter": {"iops": bucket}}, "iops"),
                ("PUT", "/entropy", {"rate_limiter": {"ops": {"size": 5}}}, "refill_time"),
                ("PUT", "/vsock", {"guest_cid": 2, "uds_path": f"{w}/v"}, "guest_cid"),
                ("PUT", "/vsock", {"guest_cid": 3, "uds_path": f"{w}/no/v"}, "does not exist"),
                ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "x" * 100}, "longer"),
                ("PUT", "/vsock", {"guest_cid": 3, "uds_path": disk}, "in use"),
                ("PUT", "/serial", {"serial_out_path": f"{w}/no/s"}, "serial_out_path"),
                ("PUT", "/mmds/config", {"network_interfaces": []}, "empty"),
                ("PUT", "/mmds/config", {"network_interfaces": ["a"], "version": "V1"}, '"a"'),
                ("PUT", "/balloon", {"amount_mib": 1}, "deflate_on_oom"),
                ("PUT", "/balloon", {"amount_mib": 999, "deflate_on_oom": True}, "more than the memory"),
                ("PUT", "/logger", {"level": "Loud"}, "Loud"), ("PUT", "/logger", {"log_path": w}, "log_path"),
                ("PUT", "/logger", {"file": "x"}, what), ("PUT", "/metrics", {"metrics_path": w}, "metrics_path"),
                ("PUT", "/cpu-config", {"cpuid": []}, "cpuid"), ("PUT", "/cpu-config", "[", "line"),
                ("PUT", "/cpu-config", {"kvm_capabilities": ["9999"]}, "does not have 9999"),
                ("PUT", "/cpu-config", {"kvm_capabilities": ["x", 1]}, "not the number"),
                ("PUT", "/cpu-config", {"kvm_capabilities": [7]}, "not the number"),
                ("PUT", "/cpu-config", {"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1"}]}, "not supported"),
                ("PUT", "/cpu-config", cpuid("0x7", "ebx", "0b1xxxxx"), "not added"),
                ("PUT", "/cpu-config", cpuid("0x123", "ebx", "0b0"), "no feature"),
                ("PUT", "/cpu-config", cpuid("0x7", "rbx", "0b0"), "register"),
                ("PUT", "/cpu-config", cpuid("7x", "ebx", "0b0"), "numbers"),
                ("PUT", "/cpu-config", cpuid("0x7", "ebx", "0b" + "x" * 33), "32"),
                ("PUT", "/hotplug/memory", {"total_size_mib": 1}, "not supported"),
                ("GET", "/hotplug/memory", None, "not supported"),
                ("PUT", "/actions", {"action_type": "instanceStart"}, "InstanceStart"),
                ("PUT", "/actions", {"action_type": "InstanceStart"}, "kernel"), ("PUT", "/actions", {}, "action_type"),
                ("PATCH", "/mmds", {"a": 1}, "not initialized"), ("PUT", "/mmds", "{", "line"),
                ("PUT", "/snapshot/load", {"snapshot_path": "s", "mem_file_path": "m", "x": 1}, what),
                ("PUT", "/snapshot/load", {"snapshot_path": "s"}, "must be specified"),
                ("PUT", "/snapshot/load", load_body("s", "m", mem_file_path="m"), "not both"),
                ("PUT", "/snapshot/load", load_body("s", "m", track_dirty_pages=True, enable_diff_snapshots=True),
                 "not both"),
                ("GET", "/machine-config", "{}", "GET request cannot have a body"),
                ("DELETE", "/drives/root", None, "Invalid request method and/or path"),
                ("POST", "/actions", {"action_type": "InstanceStart"}, "Invalid request method and/or path"),
                ("GET", "/none", None, "Invalid request method and/or path"), ("GET", "/vm", None, "Invalid")]:
            f.refused(method, path, body, *words)
        assert {**f.config(), "logger": None} == EMPTY_CONFIG, f.config()
        # What is taken in spite of fields that are not known; null is "not there".
        f.put("/drives/root", drive(disk, rate_limiter={"ops": bucket, "bandwidth": None}, socket=None, partuuid=None))
        f.refused("PUT", "/drives/b", {**drive(disk), "drive_id": "b"}, "already exists")


def cpuid(leaf, register, bitmap):
    return {"cpuid_modifiers": [{"leaf": leaf, "subleaf": "0x0", "flags": 0,
                                 "modifiers": [{"register": register, "bitmap": bitmap}]}]}


EMPTY_CONFIG = {
    "balloon": None, "drives": [], "boot-source": None, "cpu-config": None, "logger": None,
    "machine-config": {"vcpu_count": 1, "mem_size_mib": 128, "smt": False, "track_dirty_pages": False,
                       "huge_pages": "None", "cpu_template": "None"},
    "metrics": None, "mmds-config": None, "network-interfaces": [], "vsock": None, "entropy": None, "serial": None,
    "pmem": [], "memory-hotplug": None}


def exchange(f, data):
    """What comes for these bytes until the other side closes, or says nothing for a while."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        s.connect(f.path)
        s.sendall(data)
        out = b""
        with contextlib.suppress(socket.timeout, ConnectionResetError):
            while more := s.recv(65536):
                out += more
        return out


def test_http():
    need_kvm()
    with folder() as w, Front(w, "vm", "--http-api-max-payload-size", "300") as f:
        con = UnixConnection(f.path)
        for _ in range(3):  # kept alive
            con.request("GET", "/version")
            assert con.getresponse().read()
        con.close()
        assert exchange(f, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.")
        r = f.call("PUT", "/machine-config", {**MACHINE, "cpu_template": "x" * 300})
        assert r.status == 413 and "larger than the limit of 300" in r.json["error"], r.text
        f.put("/machine-config", json.dumps(MACHINE) + " " * (300 - len(json.dumps(MACHINE))))
        for garbage in (b"\0\1\2\3\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"X" * 100000,
                        b"PUT /machine-config HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                        b"PUT /machine-config HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n"):
            out = exchange(f, garbage)
            assert not out.startswith(b"HTTP/1.1 2"), (garbage[:40], out)
        assert f.get("/").status == 200
        # Ten at a time; the next one is told, and there is room again when one has gone.
        held = [UnixConnection(f.path) for _ in range(10)]
        for c in held:
            c.request("GET", "/version")
            assert c.getresponse().read()
        r = f.get("/version")
        assert r.status == 503 and r.json == {"error": "Too many open connections"}, (r.status, r.text)
        held.pop().close()
        wait_until("room for another", lambda: f.get("/version").status == 200)
        for c in held:
            c.close()


def test_config_round_trip():
    need_kvm()
    limiter = {"bandwidth": {"size": 1000000, "one_time_burst": 5, "refill_time": 100},
               "ops": {"size": 100, "one_time_burst": None, "refill_time": 100}}
    with folder() as w:
        pmem = image(w, "pmem.img", mib=2)
        with Front(w, "one") as f:
            f.put("/logger", {"log_path": f"{w}/log", "level": "Warning", "show_level": True})
            f.put("/metrics", {"metrics_path": f"{w}/metrics"})
            f.put("/machine-config", {**MACHINE, "vcpu_count": 2, "track_dirty_pages": True})
            f.patch("/machine-config", {"vcpu_count": 1})
            f.put("/cpu-config", {"cpuid_modifiers": [], "kvm_capabilities": [], "msr_modifiers": []})
            f.put("/boot-source", {**BOOT, "boot_args": "a=1 -- init=2"})
            f.put("/drives/data", {**drive(image(w, "data.img", b"data")), "drive_id": "data", "is_root_device": False,
                                   "rate_limiter": limiter})
            f.put("/drives/root", drive(image(w), is_read_only=True, io_engine="Async", cache_type="Writeback"))
            f.put("/pmem/p", {"id": "p", "path_on_host": pmem, "rate_limiter": limiter})
            f.put("/vsock", {"guest_cid": 7, "uds_path": f"{w}/v"})
            f.put("/vsock", {"guest_cid": 8, "uds_path": f"{w}/v2"})
            assert not os.path.exists(f"{w}/v") and os.path.exists(f"{w}/v2")
            f.put("/entropy", {"rate_limiter": limiter})
            f.put("/serial", {"serial_out_path": f"{w}/serial"})
            f.put("/balloon", {"amount_mib": 4, "deflate_on_oom": False, "stats_polling_interval_s": 1})
            config = f.config()
            assert [d["drive_id"] for d in config["drives"]] == ["root", "data"], config
            assert config["drives"][1]["rate_limiter"] == limiter and config["vsock"]["guest_cid"] == 8
            assert config["entropy"] == {"rate_limiter": limiter}, config
            assert f.end() == -signal.SIGTERM
            assert not os.path.exists(f"{w}/v2")
        file = f"{w}/config.json"
        with open(file, "w", encoding="utf-8") as c:
            json.dump(config, c)
        with Front(w, "two", "--config-file", file) as f:
            assert f.config() == config, (f.config(), config)
            assert f.state() == "Running"
            with open(f"{w}/serial", encoding="utf-8") as s:
                wait_until("READY", lambda: s.read().endswith("READY\n"))
                os.write(f.master, b"cmdline\n")
                wait_until("an answer", lambda: re.search(
                    r"OK a=1 pci=off root=/dev/vda ro( virtio_mmio.device=4K@0x\w+:\d+){6} -- init=2\n", (s.seek(0), s.read())[1]))
            assert f.text() == ""
        # Without an API; what is wrong with a file is its end.
        config["serial"] = None
        config["logger"] = None
        with open(file, "w", encoding="utf-8") as c:
            json.dump(config, c)
        with Front(w, "three", "--no-api", "--config-file", file, api=False) as f:
            f.expect("READY\n")
            assert f.say("blk r 0") == "OK first" and not os.path.exists(f.path)
            os.write(f.master, b"exit\n")
            assert f.process.wait(15) == 0
        for bad in ({**config, "x": 1}, {**config, "boot-source": None}, {k: v for k, v in config.items() if k != "drives"},
                    {**config, "machine-config": {"vcpu_count": 99, "mem_size_mib": 32}}, []):
            with open(file, "w", encoding="utf-8") as c:
                json.dump(bad, c)
            with Front(w, "bad", "--no-api", "--config-file", file, api=False) as f:
                assert f.process.wait(15) == 152, bad


def test_a_failed_start_is_not_the_end():
    need_kvm()
    with folder() as w, Front(w) as f:
        f.put("/machine-config", MACHINE)
        bad = image(w, "kernel", b"no kernel")
        f.put("/boot-source", {"kernel_image_path": bad})
        for _ in range(2):
            f.refused("PUT", "/actions", {"action_type": "InstanceStart"}, "neither an ELF vmlinux nor a bzImage")
            assert f.state() == "Not started"
        f.put("/drives/root", drive(image(w)))
        f.boot()
        assert f.say("blk r 0") == "OK first"


def test_snapshots():
    need_kvm()
    with folder() as w:
        disk = image(w)
        with Front(w, "a") as f:
            f.put("/drives/root", drive(disk, cache_type="Writeback"))
            f.put("/vsock", {"guest_cid": 5, "uds_path": f"{w}/a.v"})
            f.boot(track_dirty_pages=True)
            assert f.say("store one") == "OK"
            state, memory = f.freeze()
            assert os.path.getsize(memory) == 32 << 20
            f.resume()
            assert f.say("store two") == "OK" and f.say("fill 100 50 7") .startswith("OK")
            total = f.say("sum 0 400")
            shutil.copy(memory, f"{w}/diff.mem")
            f.freeze("diff", snapshot_type="Diff")  # over the copy
            f.freeze("sparse", snapshot_type="Diff")  # where there is none: what has changed alone
            assert os.stat(f"{w}/sparse.mem").st_blocks * 512 < 4 << 20 < os.path.getsize(f"{w}/sparse.mem")
        shutil.copy(disk, f"{w}/b.img")
        with Front(w, "b") as f:
            f.put("/logger", {"level": "Info"})  # what a snapshot does not bring along may come before
            f.put("/mmds", {"a": 1})
            f.put("/snapshot/load", load_body(state, memory, resume_vm=True, vsock_override={
                "uds_path": f"{w}/b.v", "guest_cid": 9}, drive_overrides=[{"drive_id": "root", "path_on_host": f"{w}/b.img"}]))
            f.expect("RESTORED\n")
            assert f.say("load") == "OK one" and f.say("blk w 0 mine") == "OK" and f.say("blk r 0") == "OK mine"
            c = f.config()
            assert c["vsock"] == {"guest_cid": 9, "uds_path": f"{w}/b.v", "vsock_id": None}, c
            assert c["drives"][0]["path_on_host"] == f"{w}/b.img" and c["machine-config"]["track_dirty_pages"] is False
            # Two at a time, on one file that stays as it is.
            with Front(w, "c") as g:
                g.put("/snapshot/load", {"snapshot_path": f"{w}/diff.state", "mem_file_path": f"{w}/diff.mem",
                                         "vsock_override": {"uds_path": f"{w}/c.v"}, "enable_diff_snapshots": True,
                                         "drive_overrides": [{"drive_id": "root", "layer": "Ephemeral"}]})
                assert g.state() == "Paused" and g.config()["machine-config"]["track_dirty_pages"] is True
                g.resume()
                g.expect("RESTORED\n")
                assert g.say("load") == "OK two" and g.say("sum 0 400") == total
                assert g.say("blk w 0 layer") == "OK" and g.say("blk r 0") == "OK layer"
                g.pause()
                g.refused("PUT", "/snapshot/create", {"snapshot_path": f"{w}/x", "mem_file_path": f"{w}/y"}, "layer")
        with open(disk, "rb") as d:
            assert d.read(5) == b"first"
        # A load that fails is the end, after the answer.
        for body, words in ((load_body(state, f"{w}/none"), "none"), (load_body(memory, memory), "not"),
                            (load_body(state, memory, network_overrides=[{"iface_id": "x", "host_dev_name": "t"}]), "x"),
                            (load_body(state, memory, drive_overrides=[{"drive_id": "x"}]), "drive_overrides"),
                            (load_body(state, disk), "")):
            with Front(w, "d") as f:
                f.refused("PUT", "/snapshot/load", body, words)
                assert f.process.wait(15) == 1, body
            os.unlink(f.path)
        out = subprocess.run([VMM, "--describe-snapshot", state], capture_output=True, text=True, check=True).stdout
        version = subprocess.run([VMM, "--snapshot-version"], capture_output=True, text=True, check=True).stdout
        assert re.fullmatch(r"v\d+\.\d+\.\d+\n", version) and out.startswith(version), (out, version)


def test_userfaultfd():
    need_kvm()
    need_userfaultfd()
    with folder() as w:
        with Front(w, "a") as f:
            f.boot()
            f.say("fill 0 1000 3")
            f.say("store kept")
            total = f.say("sum 0 1000")
            state, memory = f.freeze()
        path = f"{w}/handler"
        with open(f"{w}/handler.log", "wb") as log:
            handler = subprocess.Popen([HANDLER, path, memory], stderr=log)
        try:
            wait_until("the page handler", lambda: os.path.exists(path))
            with Front(w, "b") as f:
                f.put("/snapshot/load", {"snapshot_path": state, "resume_vm": True,
                                         "mem_backend": {"backend_type": "Uffd", "backend_path": path}})
                f.expect("RESTORED\n")
                assert f.say("load") == "OK kept" and f.say("sum 0 1000") == total
                with open(f"{w}/handler.log", encoding="utf-8") as log:
                    assert f"VM process {f.child()[0]}: connected" in log.read()
        finally:
            handler.terminate()
            handler.wait(10)
        with Front(w, "c") as f:
            f.refused("PUT", "/snapshot/load", {"snapshot_path": state, "mem_backend": {
                "backend_type": "Uffd", "backend_path": path}}, "page handler")
            assert f.process.wait(15) == 1


def ask_while(f, work):
    """Does work in a thread, and asks meanwhile: how long each answer took, in seconds."""
    thread, took = threading.Thread(target=work), []
    thread.start()
    while thread.is_alive():
        before = time.monotonic()
        assert [f.get(p).status for p in ("/", "/vm/config", "/machine-config")] == [200] * 3
        took.append((time.monotonic() - before) / 3)
    thread.join()
    return took


def test_what_waits_holds_no_readers_up():
    need_kvm()
    need_userfaultfd()
    with folder() as w:
        with Front(w, "a") as f:
            f.boot(mem_size_mib=256)
            f.say("fill 0 50000 3")
            total = f.say("sum 0 1000")
            f.pause()
            state, memory = f"{w}/snap.state", f"{w}/snap.mem"
            took = ask_while(f, lambda: f.put("/snapshot/create", {"snapshot_path": state, "mem_file_path": memory}))
            assert len(took) > 5 and statistics.median(took) < 0.02, took
            f.resume()
            took = ask_while(f, lambda: f.freeze("snap", snapshot_type="Diff"))  # copies the old file first
            assert len(took) > 5 and statistics.median(took) < 0.02, took
        path = f"{w}/handler"
        with open(f"{w}/handler.log", "wb") as log:
            handler = subprocess.Popen([HANDLER, path, memory], stderr=log)
        load = {"snapshot_path": state, "resume_vm": True,
                "mem_backend": {"backend_type": "Uffd", "backend_path": path}}
        try:
            wait_until("the page handler", lambda: os.path.exists(path))

            def slowly(f, work):
                """The same with a handler that does nothing for two seconds."""
                handler.send_signal(signal.SIGSTOP)
                wakes = threading.Timer(2, handler.send_signal, [signal.SIGCONT])
                wakes.start()
                before = time.monotonic()
                took = ask_while(f, work)
                assert time.monotonic() - before > 1.9 and statistics.median(took) < 0.02, took
                wakes.join()

            with Front(w, "b") as f:
                other = threading.Thread(target=f.refused, args=("PUT", "/machine-config", MACHINE, AFTER))

                def both():
                    threading.Timer(0.2, other.start).start()
                    f.put("/snapshot/load", load)
                slowly(f, both)
                other.join(10)  # which came while it was loaded, and had its turn afterwards
                f.expect("RESTORED\n")
                os.write(f.master, b"sum 0 1000\n")
                f.pause()
                f.resume()
                assert f.expect("\n").rstrip() == total
                slowly(f, lambda: (f.say("sum 20000 1000"), f.pause()))
                assert f.state() == "Paused"
            # One that never answers does not keep it from ending.
            with Front(w, "c") as f:
                handler.send_signal(signal.SIGSTOP)
                threading.Timer(0.3, f.process.terminate).start()
                f.refused("PUT", "/snapshot/load", load, "has ended")
                assert f.process.wait(10) == -signal.SIGTERM
        finally:
            handler.kill()
            handler.wait(10)


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


def test_mmds_document():
    with folder() as w:
        with open(f"{w}/meta", "w", encoding="utf-8") as m:
            json.dump({"a": {"b": 1, "c": 2}}, m)
        with Front(w, "vm", "--metadata", f"{w}/meta", "--mmds-size-limit", "60") as f:
            assert f.get("/mmds").json == {"a": {"b": 1, "c": 2}}
            f.patch("/mmds", {"a": {"b": None, "d": [1]}, "e": "x"})
            assert f.get("/mmds").json == {"a": {"c": 2, "d": [1]}, "e": "x"}
            f.refused("PUT", "/mmds", {"a": "x" * 60}, "60")
            f.refused("PATCH", "/mmds", {"a": "x" * 60}, "60")
            assert f.get("/mmds").json == {"a": {"c": 2, "d": [1]}, "e": "x"}
            f.put("/mmds", {})
            assert f.get("/mmds").json == {}


def run(*args):
    return subprocess.run([VMM, *args], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL, check=False)


def test_the_command_line():
    with folder() as w:
        for bad in (["--none"], ["--api-sock"], ["--id", "a_b"], ["--id", ""], ["--id", "a" * 65], ["--no-api"],
                    ["--id", "a", "--id", "b"], ["--enable-pci"], ["--seccomp-filter", "f"], ["x"],
                    ["--http-api-max-payload-size", "-1"], ["--start-time-us", "1x"]):
            r = run("--api-sock", f"{w}/s", *bad) if bad != ["--api-sock"] else run(*bad)
            assert r.returncode == 153 and r.stderr, (bad, r)
        os.symlink(VMM, f"{w}/firecracker")
        r = subprocess.run([f"{w}/firecracker", "--version"], capture_output=True, text=True, check=True)
        assert re.match(r"Firecracker v1\.17\.0", r.stdout), r
        assert run("--version").stdout.startswith("thaw-vmm ")
        with Front(w, "vm", program=f"{w}/firecracker") as f:
            assert f.state() == "Not started"
            r = run("--api-sock", f.path)
            assert r.returncode == 1 and "already used" in r.stderr, r
        r = run("--api-sock", f"{w}/t", "--metadata", f"{w}/none")
        assert r.returncode == 152 and "none" in r.stderr, r
        r = run("--api-sock", f"{w}/t", "--level", "loud")
        assert r.returncode == 1 and "loud" in r.stderr, r


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


def test_the_document_has_the_table():
    table = subprocess.run([FRONT, "--api-table"], capture_output=True, text=True, check=True).stdout
    with open(os.path.join(ROOT, "docs/firecracker.md"), encoding="utf-8") as d:
        assert table in d.read(), "docs/firecracker.md: put the output of thaw-firecracker --api-table there"


main(globals())
