# SPDX-License-Identifier: Apache-2.0
"""One thaw-vmm with Firecracker's API, for tests of it."""
import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import tempfile

from thawlib import BIN, GUEST, UnixConnection, wait_until

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


def cpuid(leaf, register, bitmap):
    return {"cpuid_modifiers": [{"leaf": leaf, "subleaf": "0x0", "flags": 0,
                                 "modifiers": [{"register": register, "bitmap": bitmap}]}]}
