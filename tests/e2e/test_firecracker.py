#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""thaw-vmm with Firecracker's API, as its clients use it: requests, phases, bodies, the command line."""
import contextlib
import json
import os
import re
import signal
import socket
import subprocess

from fc_front import AFTER, BEFORE, BOOT, FRONT, MACHINE, NO_LIMIT, VMM, Front, cpuid, drive, folder, image, load_body
from thawlib import GUEST, ROOT, UnixConnection, main, need_kvm, wait_until


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
                ("PUT", "/machine-config", {**MACHINE, "cpu_template": "T3"}, "T2CL"),
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
                ("PUT", "/cpu-config", [], "not an object"), ("PUT", "/cpu-config", {"msr_modifiers": {}}, "not a list"),
                ("PUT", "/cpu-config", {"msr_modifiers": [7]}, "not an object"),
                ("PUT", "/cpu-config", {"msr_modifiers": [{"addr": "0x10a", "bits": "0b1"}]}, "bits"),
                ("PUT", "/cpu-config", {"msr_modifiers": [{"addr": 266, "bitmap": "0b1"}]}, "addr"),
                ("PUT", "/cpu-config", {"msr_modifiers": [{"addr": "0x1_0", "bitmap": "0b1"}]}, "addr"),
                ("PUT", "/cpu-config", {"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b" + "0" * 65}]}, "64"),
                ("PUT", "/cpu-config", {"msr_modifiers": 2 * [{"addr": "0x10a", "bitmap": "0b1"}]}, "twice"),
                ("PUT", "/cpu-config", {"msr_modifiers": [{"addr": str(i), "bitmap": "0b1"} for i in range(17)]}, "16"),
                ("PUT", "/cpu-config", {"cpuid_modifiers": 65 * cpuid("0x7", "ebx", "0b1")["cpuid_modifiers"]}, "64"),
                ("PUT", "/cpu-config", cpuid("0x7", "ebx", "1"), "0b"), ("PUT", "/cpu-config", cpuid("0x7", "ebx", "0b2"), "0b2"),
                ("PUT", "/cpu-config", cpuid("0x7", "ebx", "0b"), "0b"), ("PUT", "/cpu-config", cpuid("0b2", "ebx", "0b1"), "numbers"),
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


def test_the_document_has_the_table():
    table = subprocess.run([FRONT, "--api-table"], capture_output=True, text=True, check=True).stdout
    with open(os.path.join(ROOT, "docs/firecracker.md"), encoding="utf-8") as d:
        assert table in d.read(), "docs/firecracker.md: put the output of thaw-firecracker --api-table there"


main(globals())
