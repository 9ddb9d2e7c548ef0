#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make man and make install; the installed thawd started as systemd starts it: a socket, READY=1."""
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile

from thawlib import B, BIN, ROOT, SANITIZED, Skip, UnixConnection, alive, children, main, wait_until

PAGES = ("man1/thaw.1", "man3/libthaw.3", "man8/thawd.8", "man8/thaw-vmm.8", "man8/thaw-firecracker.8",
         "man8/thaw-page-handler.8")
# Becomes its command, with the socket argv[1] as descriptor 3 and its own pid as LISTEN_PID.
LAUNCH = """import os, sys
os.dup2(int(sys.argv[1]), 3)
if sys.argv[1] == "3": os.set_inheritable(3, True)
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[2]))
os.execv(sys.argv[3], sys.argv[3:])"""


def install(target="install", **variables):
    build = [f"B={os.path.relpath(B, ROOT)}", *([f"SAN={os.path.basename(B)}"] if SANITIZED else [])]
    r = subprocess.run(["make", "-s", target, *build, *(f"{k}={v}" for k, v in variables.items())], cwd=ROOT,
                       capture_output=True, text=True, timeout=300, check=False)
    assert r.returncode == 0, r.stdout + r.stderr


def run(*args, **more):
    return subprocess.run(args, capture_output=True, text=True, timeout=60, check=False, **more)


def test_files_and_their_modes():
    with tempfile.TemporaryDirectory() as dest:
        install(DESTDIR=dest, PREFIX="/usr")
        assert os.listdir(dest) == ["usr"]
        found = {os.path.relpath(os.path.join(d, f), dest) for d, _, files in os.walk(dest) for f in files}
        programs = {"usr/bin/" + p for p in ("thaw", "thawd", "thaw-vmm", "thaw-firecracker", "thaw-pager", "thaw-page-handler",
                                             "thaw-snapshot-editor")}
        others = {"usr/share/bash-completion/completions/thaw", "usr/share/zsh/site-functions/_thaw",
                  "usr/share/fish/vendor_completions.d/thaw.fish", "usr/lib/systemd/system/thawd.service",
                  "usr/lib/systemd/system/thawd.socket", "usr/lib/sysusers.d/thaw.conf",
                  "usr/include/thaw.h", "usr/lib/libthaw.a", "usr/lib/libthaw.so.0.1.0", "usr/lib/pkgconfig/libthaw.pc",
                  *("usr/share/man/" + p for p in PAGES),
                  *("usr/libexec/thaw/guest/" + p for p in os.listdir(os.path.join(ROOT, "guests")) if p != "__pycache__")}
        links = {"usr/lib/libthaw.so", "usr/lib/libthaw.so.0"}
        assert found == programs | others | links, found ^ (programs | others | links)
        for f in links:
            assert os.readlink(os.path.join(dest, f)) == "libthaw.so.0.1.0"
        for f in found:
            mode = stat.S_IMODE(os.stat(os.path.join(dest, f)).st_mode)
            assert mode == (0o755 if f in programs else 0o644), (f, oct(mode))
        with open(os.path.join(dest, "usr/lib/systemd/system/thawd.service"), encoding="ascii") as f:
            unit = f.read()
        assert "\nExecStart=/usr/bin/thawd\n" in unit and "\nDelegate=yes\n" in unit and "@" not in unit, unit
        # What a user has made there stays, and so do the folders that others may use.
        kept = os.path.join(dest, "usr/bin/mine")
        with open(kept, "w", encoding="ascii"):
            pass
        install("uninstall", DESTDIR=dest, PREFIX="/usr")
        assert [os.path.join(d, f) for d, _, files in os.walk(dest) for f in files] == [kept]
        assert not os.path.exists(os.path.join(dest, "usr/libexec/thaw"))


def test_units_by_systemd():
    if not shutil.which("systemd-analyze"):
        raise Skip("no systemd-analyze here")
    with tempfile.TemporaryDirectory() as prefix:
        install(PREFIX=prefix)
        units = os.path.join(prefix, "lib/systemd/system")
        for unit in ("thawd.service", "thawd.socket"):
            r = run("systemd-analyze", "verify", "--man=no", os.path.join(units, unit))
            ours = [line for line in r.stderr.splitlines() if "thaw" in line]
            assert not ours and (r.returncode == 0 or r.stderr), r
        with open(os.path.join(units, "thawd.service"), "a", encoding="ascii") as f:
            f.write("[Service]\nNoSuchThing=1\n")
        assert "NoSuchThing" in run("systemd-analyze", "verify", os.path.join(units, "thawd.service")).stderr


def test_man_pages():
    help_of = {p: run(os.path.join(BIN, p), "--help").stdout for p in ("thawd", "thaw-vmm", "thaw-page-handler")}
    with tempfile.TemporaryDirectory() as folder:
        r = run(sys.executable, os.path.join(ROOT, "scripts/man.py"), BIN, folder)
        assert r.returncode == 0, r
        for page in map(os.path.basename, PAGES):
            path = os.path.join(folder, page)
            checked = False
            if shutil.which("mandoc"):
                r = run("mandoc", "-Tlint", path)
                assert r.returncode == 0 and not r.stdout, r.stdout
                checked = True
            if shutil.which("man") and shutil.which("groff"):
                r = run("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", path)
                assert r.returncode == 0 and not r.stderr, r.stderr
                checked = True
            if not checked:
                raise Skip("neither mandoc nor man and groff here")
            with open(path, encoding="ascii") as f:
                text = f.read().replace("\\-", "-").replace("\\:", "")
            name = page.split(".", maxsplit=1)[0]
            for option in re.findall(r"--[a-z-]+", help_of.get(name, "--json --socket --kernel --since --once" if name == "thaw" else "")):
                assert option in text, (page, option)
            assert ".SH \"NAME\"" in text and ".SH \"SEE ALSO\"" in text
            if name == "thaw":
                assert '.SS "snapshot create VM NAME"' in text and "128+N" in text


class Activated:
    """The installed thawd, given a socket."""

    def __init__(self, folder, sock, *args, pid_offset=0, **env):
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify_path = os.path.join(folder, "notify")
        self.notify.bind(self.notify_path)
        self.notify.settimeout(20)
        e = dict(os.environ, LISTEN_FDS="1", NOTIFY_SOCKET=self.notify_path)
        e.pop("THAW_SOCKET", None)
        e.update(env)
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(sock.fileno()), str(pid_offset), os.path.join(folder, "p/bin/thawd"),
             "--state-dir", os.path.join(folder, "state"), *args],
            pass_fds=(sock.fileno(),), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=e)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.notify.close()
        os.unlink(self.notify_path)


def listener(path, kind=socket.SOCK_STREAM):
    s = socket.socket(socket.AF_UNIX, kind)
    s.bind(path)
    if kind == socket.SOCK_STREAM:
        s.listen(16)
    return s


def test_socket_activation():
    with tempfile.TemporaryDirectory() as folder:
        install(PREFIX=os.path.join(folder, "p"))
        path = os.path.join(folder, "s")
        with listener(path) as sock:
            early = UnixConnection(path)  # before anybody serves it
            early.request("GET", "/v1/info")
            for _ in range(2):
                with Activated(folder, sock) as a:
                    assert a.notify.recv(100) == b"READY=1"
                    if early:
                        assert early.getresponse().status == 200
                        early.close()
                        early = None
                    r = run(os.path.join(folder, "p/bin/thaw"), "--socket", path, "info", "--json")
                    assert r.returncode == 0 and f'"pid": {a.process.pid}' in r.stdout, r
                    wait_until("spares", lambda: children(a.process.pid))
                    spares = children(a.process.pid)
                    for pid in spares:  # what was meant for thawd is not handed on
                        with open(f"/proc/{pid}/environ", "rb") as f:
                            assert b"LISTEN_" not in (text := f.read()) and b"NOTIFY_SOCKET" not in text, text
                    a.process.send_signal(signal.SIGTERM)
                    assert a.notify.recv(100) == b"STOPPING=1"
                    assert a.process.wait(20) == 0
                    assert stat.S_ISSOCK(os.stat(path).st_mode)  # it is not thawd's to remove
                    assert not any(alive(int(pid)) for pid in spares)


def test_wrong_sockets_are_refused():
    with tempfile.TemporaryDirectory() as folder:
        install(PREFIX=os.path.join(folder, "p"))
        good, other = os.path.join(folder, "s"), os.path.join(folder, "other")

        def refused(sock, says, *args, **env):
            with Activated(folder, sock, *args, **env) as a:
                assert a.process.wait(20) == 1
                text = a.process.stderr.read()
                assert says in text, text

        with listener(good) as sock:
            refused(sock, "exactly one socket", LISTEN_FDS="2")
            refused(sock, "exactly one socket", LISTEN_FDS="1x")
            refused(sock, "give one of them", "--socket", other)
            refused(sock, "NOTIFY_SOCKET", NOTIFY_SOCKET="relative")
            with Activated(folder, sock, "--socket", other, pid_offset=1) as a:  # it is meant for somebody else
                assert a.notify.recv(100) == b"READY=1" and os.path.exists(other)
        with listener(os.path.join(folder, "d"), socket.SOCK_DGRAM) as sock:
            refused(sock, "no listening Unix stream socket")
        with socket.socket(socket.AF_UNIX) as sock:
            refused(sock, "no listening Unix stream socket")
        with socket.socket() as sock:
            sock.listen()
            refused(sock, "no listening Unix stream socket")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind("\0thaw-test-" + os.path.basename(folder))
            sock.listen()
            refused(sock, "has no path")


if __name__ == "__main__":
    main(globals())
