# SPDX-License-Identifier: Apache-2.0
"""Helpers of the end-to-end tests: a daemon in a folder of its own, HTTP over its Unix
socket, TAP output. Standard library only."""
import functools
import glob
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

import openapi

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# The build folder: the first argument, or $BUILD; further arguments select tests.
_args = sys.argv[1:]
B = os.path.join(ROOT, _args.pop(0) if _args and os.path.isdir(_args[0]) else os.environ.get("BUILD", "build"))
BIN = os.path.join(B, "bin")
GUEST = os.path.join(B, "tests/guest/tiny")
ARM64 = os.uname().machine == "aarch64"
# How a guest finds its devices: arm64 has one way, the device tree.
DISCOVERY = {} if ARM64 else {"discovery": "cmdline"}
SANITIZED = os.path.basename(os.path.normpath(B)) in ("asan", "tsan")  # the Makefile's SAN=


class Skip(Exception):
    """The test can't run here; the reason is shown."""


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout=60):
        super().__init__("thaw", timeout=timeout)
        self.unix_path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.unix_path)


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        """The error code, or None."""
        try:
            return self.json["error"]["code"]
        except (ValueError, KeyError, TypeError):
            return None

    @property
    def message(self):
        return self.json["error"]["message"]

    def __repr__(self):
        return f"<{self.status} {self.body[:400]!r}>"


def steady(v):
    """A VM or snapshot without what moves by itself, which its ETag does not stand for."""
    v = {k: x for k, x in v.items() if k not in ("storage", "template", "pool", "cpu")}
    v.get("lifetime", {}).pop("ttl_left_ms", None)
    return v


@functools.lru_cache(None)
def document():
    """What all requests and answers are held against."""
    return openapi.Document(os.path.join(BIN, "thawd"))


class Daemon:
    """thawd in a temporary folder; `with Daemon() as d:` ends and removes it."""

    def __init__(self, args=(), prefix=(), folder=None, vmm=None):
        self.own_folder = folder is None
        self.folder = folder or tempfile.mkdtemp(prefix="thaw-")
        self.socket = os.path.join(self.folder, "s")
        self.state_dir = os.path.join(self.folder, "state")
        self.log = os.path.join(self.folder, "log")
        self.args, self.prefix, self.vmm = list(args), list(prefix), vmm
        self.tagged = {}  # what was seen with an ETag: it must look the same each time
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *why):
        self.stop()
        for pid in self.vms_alive():  # of a daemon that was killed
            os.kill(pid, signal.SIGKILL)
        if why[0] and os.environ.get("V"):
            sys.stderr.write(self.log_text())
        if self.own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def command(self):
        vmm = ["--vmm", self.vmm] if self.vmm else []
        return [*self.prefix, os.path.join(BIN, "thawd"), "--socket", self.socket,
                "--state-dir", self.state_dir, *vmm, *self.args]

    def start(self):
        log = open(self.log, "ab")
        self.process = subprocess.Popen(self.command(), stderr=log, stdout=log, stdin=subprocess.DEVNULL)
        log.close()
        for _ in range(500):
            if self.process.poll() is not None:
                raise AssertionError(f"thawd ended with {self.process.returncode}: {self.log_text()}")
            try:
                if self.get("/v1/info").status == 200:
                    return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("thawd does not answer")

    def stop(self, sig=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(sig)
            self.process.wait(15)
        return self.process.returncode

    def log_text(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()

    # --- HTTP ---
    def request(self, method, path, body=None, headers=None, timeout=60):
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        con = UnixConnection(self.socket, timeout)
        try:
            con.request(method, path, body=body, headers=headers or {})
            r = con.getresponse()
            reply = Reply(r.status, dict(r.getheaders()), r.read())
        finally:
            con.close()
        if method == "GET" and reply.status == 200 and "ETag" in reply.headers:
            seen = self.tagged.setdefault((path.split("?")[0], reply.headers["ETag"]), steady(reply.json))
            assert seen == steady(reply.json), (path, reply.headers["ETag"], seen, reply.json)
        document().check_answer(method, path, reply.status, reply.headers, reply.body)
        document().check_request(method, path, reply.status, reply.code if reply.status >= 400 else "", body)
        return reply

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, body=None):
        return self.request("POST", path, body)

    def put(self, path, body):
        return self.request("PUT", path, body)

    def delete(self, path):
        return self.request("DELETE", path)

    # --- VMs ---
    def create(self, name="vm", start=True, **more):
        body = {"name": name, "kernel": GUEST, "memory_mib": 32, "start": start, **DISCOVERY}
        body.update(more)
        r = self.post("/v1/vms", body)
        assert r.status == 201, r
        return r.json

    def vm(self, name):
        r = self.get(f"/v1/vms/{name}")
        assert r.status == 200, r
        return r.json

    def state(self, name):
        return self.vm(name)["state"]

    def console(self, name, offset=0):
        """All output from offset on, and the offset behind it."""
        out = b""
        while True:
            r = self.get(f"/v1/vms/{name}/console?offset={offset}")
            assert r.status == 200, r
            offset = int(r.headers["Thaw-Console-Next"])
            if not r.body:
                return out, offset
            out += r.body

    def expect(self, name, text, offset=0, timeout=30):
        """Waits until text was said behind offset; returns what was said and the offset behind it."""
        text = text.encode() if isinstance(text, str) else text
        out, end = b"", time.monotonic() + timeout
        while time.monotonic() < end:
            r = self.get(f"/v1/vms/{name}/console?offset={offset}&wait_ms=500")
            assert r.status == 200, r
            offset = int(r.headers["Thaw-Console-Next"])
            out += r.body
            if text in out and (out.endswith(b"\n") or b"\n" not in text):
                return out.decode("latin-1"), offset
        raise AssertionError(f"{name}: {text!r} was not said, but {out!r}")

    def say(self, name, line):
        """Sends one line to the guest; returns its answer without the newline."""
        _, offset = self.console(name)
        r = self.put(f"/v1/vms/{name}/console", line + "\n")
        assert r.status == 204, r
        out, _ = self.expect(name, "\n", offset)
        return out.strip("\n")

    def wait_state(self, name, state, timeout=30):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            v = self.vm(name)
            if v["state"] == state:
                return v
            time.sleep(0.02)
        raise AssertionError(f"{name} is {v}, not {state}")

    def threads(self, name):
        """The names of a VM's threads."""
        tasks = f"/proc/{self.vm(name)['pid']}/task"
        names = []
        for t in os.listdir(tasks):
            with open(f"{tasks}/{t}/comm", encoding="utf-8") as f:
                names.append(f.read().rstrip("\n"))
        return names

    # --- what must not be left behind ---
    def vm_processes(self):
        """Children of the daemon, but those that are nobody's VM yet."""
        for _ in range(100):  # one that is being started is not told of yet; without KVM there are none
            if len(self.get("/v1/info").json["spare_pids"]) == self.spares():
                break
            time.sleep(0.02)
        for _ in range(100):  # one that ended is released by a thread, a moment after that was said
            found = children(self.process.pid)
            if not any(map(is_zombie, found)):
                break
            time.sleep(0.02)
        spares = self.get("/v1/info").json["spare_pids"]
        return [c for c in found if int(c) not in spares]

    def spares(self):
        """How many processes the daemon keeps for the next VMs."""
        return int(self.args[self.args.index("--spares") + 1]) if "--spares" in self.args else 2

    def settle(self):
        """Waits until the processes kept for the next VMs are there again."""
        wait_until("spares", lambda: len(self.get("/v1/info").json["spare_pids"]) == self.spares())

    def vms_alive(self):
        """All VM processes that hold a socket in <state>/vms, whoever's children they are."""
        folder = os.path.join(self.state_dir, "vms")
        with open("/proc/net/unix", encoding="utf-8", errors="replace") as f:
            inodes = {w[6] for w in map(str.split, f) if len(w) > 7 and w[7].startswith(folder)}
        pids = set()
        for pid in filter(str.isdigit, os.listdir("/proc")) if inodes else ():
            try:
                links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            except OSError:
                continue
            if int(pid) != self.process.pid and any(i[8:-1] in inodes for i in links if i.startswith("socket:[")):
                pids.add(int(pid))
        return pids

    def open_fds(self):
        """Descriptors of the daemon, those of all its spare processes among them."""
        if self.spares():
            self.settle()
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def leftovers(self):
        """Sockets and unfinished snapshots in the state directory."""
        return [os.path.join(d, f) for sub in ("vsock", "incoming")
                for d, dirs, files in os.walk(os.path.join(self.state_dir, sub)) for f in files + dirs]


def thaw(d, *args, timeout=60, env=None):
    """Runs the command-line client."""
    e = dict(os.environ, THAW_SOCKET=d.socket) if d else dict(os.environ)
    e.update(env or {})
    return subprocess.run([os.path.join(BIN, "thaw"), *args], capture_output=True, text=True,
                          timeout=timeout, env=e, stdin=subprocess.DEVNULL, check=False)


def children(pid):
    """Those of all its threads."""
    found = []
    for task in glob.glob(f"/proc/{pid}/task/*/children"):
        with open(task, encoding="ascii") as f:
            found += f.read().split()
    return found


def is_zombie(pid):
    """Or was, until a moment ago."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def need_kvm():
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as e:
        raise Skip(f"/dev/kvm: {e.strerror}") from e
    if not os.path.exists(GUEST):
        raise Skip(f"{GUEST} is not built")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(what, condition, timeout=30):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.02)


def record(d, name):
    """The file that another daemon finds the VM by."""
    return os.path.join(d.state_dir, "vms", d.vm(name)["id"])


def listening(path):
    """A Unix socket on which somebody listens: proc(5), __SO_ACCEPTCON."""
    with open("/proc/net/unix", encoding="ascii", errors="replace") as f:
        return any(line.split()[3] == "00010000" and line.split()[-1] == path for line in f)


def recorded(d, *names):
    """From here on they live without a daemon: the socket listens after the record is there."""
    wait_until("records", lambda: all(os.path.exists(record(d, n)) and listening(record(d, n) + ".sock")
                                      for n in names))


def main(namespace):
    """Runs every function test_* of a module, in order; prints TAP."""
    tests = [(n, f) for n, f in namespace.items() if n.startswith("test_") and callable(f)]
    tests = [(n, f) for n, f in tests if not _args or any(a in n for a in _args)]
    failed = 0
    for i, (n, f) in enumerate(tests, 1):
        name = n[5:].replace("_", " ")
        try:
            f()
            print(f"ok {i} - {name}", flush=True)
        except Skip as s:
            print(f"ok {i} - {name} # SKIP {s}", flush=True)
        except Exception:  # pylint: disable=broad-except
            failed += 1
            for line in traceback.format_exc().splitlines():
                print(f"# {line}")
            print(f"not ok {i} - {name}", flush=True)
    print(f"1..{len(tests)}", flush=True)
    sys.exit(1 if failed else 0)
