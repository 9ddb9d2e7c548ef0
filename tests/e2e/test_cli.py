#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""thaw: verbs and their other names, run, ps, top, what errors say, and that docs/cli.md has it all."""
import contextlib
import grp
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import tempfile

from thawlib import BIN, GUEST, ROOT, Daemon, Skip, main, need_kvm, thaw, wait_until

RUN = ("run", "--kernel", GUEST, "--discovery", "cmdline", "--memory", "32")


def table():
    r = thaw(None, "help", "--json")
    assert r.returncode == 0, r
    return json.loads(r.stdout)


def ok(d, *args):
    r = thaw(d, *args)
    assert r.returncode == 0, (args, r)
    return r.stdout


@contextlib.contextmanager
def piped(d, *args):
    p = subprocess.Popen([os.path.join(BIN, "thaw"), "--socket", d.socket, *args], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield p
    finally:
        p.kill()  # of a test that failed
        p.wait()


def names(d):
    return [v["name"] for v in d.get("/v1/vms").json["vms"]]


def test_the_table_and_its_document():
    t = table()
    options = {o["name"]: o for o in t["options"]}
    with open(os.path.join(ROOT, "docs/cli.md"), encoding="utf-8") as f:
        text = f.read()
    every = [n for cmd in t["commands"] for n in [cmd["name"], *cmd["aliases"]]]
    assert len(every) == len(set(every)), every
    for cmd in t["commands"]:
        assert f"`{cmd['name']}" in text, cmd["name"]
        for name in (cmd["name"], *cmd["aliases"]):
            r = thaw(None, *name.split(), "--help")
            assert r.returncode == 0 and r.stdout.startswith(f"usage: thaw {cmd['name']}"), (name, r)
        for o in cmd["options"]:
            assert o in options and f"  --{o}" in r.stdout, (cmd["name"], o)
            assert f"--{o}" in text, f"docs/cli.md lacks --{o}"
    for a in (a for cmd in t["commands"] for a in cmd["aliases"]):
        assert f"`{a}`" in text, f"docs/cli.md lacks the alias {a}"
    for s in t["exit_statuses"]:
        assert f"\n| {s['status']} |" in text, s
    listed = thaw(None, "--help").stdout
    assert all(f"\n  {cmd['name']} " in listed for cmd in t["commands"])


def test_wrong_usage_says_what_to_do():
    for args, says in ((("frobnicate",), "thaw --help lists them"), (("snapshot", "show"), "thaw snapshot show --help"),
                       (("ls", "--force"), "ls has no option --force; see thaw ls --help"),
                       (("pause",), "usage: thaw pause VM"), (("pause", "a", "b"), "usage: thaw pause VM"),
                       (("clone", "s", "--count", "-1"), "--count"), (("create", "a"), "give --kernel"),
                       (("run", "--json", "--kernel", "/x"), "create --start"), (("run",), "give --kernel"),
                       (("completion", "tcsh"), "none of bash, zsh and fish"), (("top", "--interval", "0"), "1..3600"),
                       (("top", "--sort", "name"), "none of cpu, memory and faults"),
                       (("create", "a", *["--drive", "id=a,path=/x"] * 9, "--kernel", "/x"), "--drive")):
        r = thaw(None, *args, env={"THAW_SOCKET": "/nonexistent/s"})
        assert r.returncode == 2 and says in r.stderr and not r.stdout, (args, r)
    r = thaw(None, "ls", env={"THAW_SOCKET": "/nonexistent/s"})
    assert r.returncode == 3 and "start thawd" in r.stderr, r


def test_errors_have_a_remedy():
    with Daemon() as d:
        for args, says in ((("show", "nobody"), "thaw ls"), (("snapshot", "show", "nobody"), "thaw snapshot ls"),
                           (("create", "a", "--kernel", __file__), "bzImage for this CPU")):
            r = thaw(d, *args)
            assert r.returncode == 1 and says in r.stderr.splitlines()[1], (args, r)


def test_a_socket_for_others():
    if os.geteuid():
        raise Skip("only root can be somebody else")
    with Daemon(folder=tempfile.mkdtemp(prefix="thaw-")) as d:
        try:
            os.chmod(d.folder, 0o755)
            os.chown(d.socket, 0, grp.getgrnam("daemon").gr_gid)
            r = subprocess.run([os.path.join(BIN, "thaw"), "--socket", d.socket, "ls"], capture_output=True, text=True,
                               timeout=30, check=False, user=65534, group=65534, extra_groups=[])
            assert r.returncode == 3 and "Permission denied" in r.stderr and "usermod -aG daemon" in r.stderr, r
            os.chmod(d.folder, 0o700)
            r = subprocess.run([os.path.join(BIN, "thaw"), "--socket", d.socket, "ls"], capture_output=True, text=True,
                               timeout=30, check=False, user=65534, group=65534, extra_groups=[])
            assert r.returncode == 3 and "give the socket's group to yours" in r.stderr, r
        finally:
            d.stop()
            shutil.rmtree(d.folder)


def test_snapshot_verbs():
    need_kvm()
    with Daemon() as d:
        d.create("vm")
        d.expect("vm", "READY\n")
        ok(d, "snapshot", "create", "vm", "a")
        ok(d, "snapshot", "vm", "b")
        assert ok(d, "snapshot", "ls", "--quiet").split() == ["a", "b"]
        for verb in ("show", "verify"):
            assert json.loads(ok(d, "snapshot", verb, "a", "--json"))["name"] == "a"
            assert ok(d, f"snapshot-{verb}", "a") == ok(d, "snapshot", verb, "a")
        ok(d, "snapshot", "flatten", "a", "--name", "flat")
        for name in ("a", "b"):
            ok(d, *(("prepare",) if name == "a" else ("snapshot", "prepare")), name)
        file = os.path.join(d.folder, "exported")
        ok(d, "snapshot", "export", "b", file)
        ok(d, "snapshot", "import", "copy", file)
        assert ok(d, "snapshots", "--quiet").split() == ["a", "b", "copy", "flat"]
        for name in ("b", "flat"):
            assert ok(d, "snapshot", "rm", name) == f"{name} deleted\n"
        ok(d, "snapshot-delete", "copy")
        assert ok(d, "ls", "--quiet") == "vm\n"
        ok(d, "rm", "vm")
        # A VM called like a verb: its two-word form is another one.
        d.create("show")
        r = thaw(d, "snapshot", "show", "x")
        assert r.returncode == 1 and "snapshot" in r.stderr, r
        ok(d, "snapshot", "create", "show", "x")


def test_run_to_the_guests_end():
    need_kvm()
    with Daemon() as d:
        with piped(d, *RUN) as p:
            p.stdin.write("echo hello\nexit\n")
            p.stdin.flush()
            out, err = p.communicate(timeout=30)
        assert p.returncode == 0 and "READY\n" in out and "OK hello\n" in out and not err, (p.returncode, out, err)
        assert names(d) == []


def test_run_with_a_root_file_system():
    need_kvm()
    with Daemon() as d:
        disk = os.path.join(d.folder, "disk")
        with open(disk, "wb") as f:
            f.truncate(1 << 20)
        with piped(d, *RUN, "--rootfs", disk, "--name", "mine") as p:
            v = None

            def there():
                nonlocal v
                v = d.get("/v1/vms/mine").json
                return v.get("state") == "running"
            wait_until("the VM", there)
            assert v["config"]["cmdline"] == "console=ttyS0 panic=-1 root=/dev/vda rw", v
            drive = v["config"]["drives"][0]
            assert (drive["id"], drive["path"], drive["layer"]) == ("root", disk, "ephemeral"), drive
            r = thaw(d, *RUN, "--name", "mine")
            assert r.returncode == 1 and "named mine already" in r.stderr and names(d) == ["mine"], r
            d.post("/v1/vms/mine/stop", {"mode": "kill"})
            _, err = p.communicate(timeout=30)
        assert p.returncode == 5 and "mine ended: killed" in err, (p.returncode, err)
        assert names(d) == []


def test_run_ends_with_its_process():
    need_kvm()
    with Daemon() as d:
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with piped(d, *RUN) as p:
                assert "READY" in p.stdout.readline()
                p.send_signal(sig)
                p.communicate(timeout=30)
            assert p.returncode == 128 + sig and names(d) == [], (sig, p.returncode)


def test_run_whose_output_nobody_reads():
    need_kvm()
    with Daemon() as d:
        with piped(d, *RUN) as p:
            assert "READY" in p.stdout.readline()
            p.stdout.close()
            p.stdin.write("echo x\n")
            p.stdin.flush()
            assert p.wait(30) == 1 and "can't write" in p.stderr.read()
        assert names(d) == []


def test_run_when_its_vm_or_the_daemon_is_taken_away():
    need_kvm()
    with Daemon() as d:
        with piped(d, *RUN, "--name", "a") as p:
            assert "READY" in p.stdout.readline()
            assert d.delete("/v1/vms/a").status == 204
            _, err = p.communicate(timeout=30)
            assert p.returncode == 1 and err, (p.returncode, err)
        with piped(d, *RUN) as p:
            assert "READY" in p.stdout.readline()
            d.stop()
            _, err = p.communicate(timeout=30)
            assert p.returncode in (1, 3, 5) and err, (p.returncode, err)


def test_run_at_a_terminal():
    need_kvm()
    with Daemon() as d:
        pid, fd = pty.fork()
        if not pid:
            os.execve(os.path.join(BIN, "thaw"), ["thaw", "--socket", d.socket, *RUN], dict(os.environ))
        out = b""

        def read_until(text):
            nonlocal out
            while text not in out:
                assert select.select([fd], [], [], 10)[0], out
                out += os.read(fd, 1000)

        read_until(b"READY")
        os.write(fd, b"echo typed\n")
        read_until(b"OK typed")
        assert len(names(d)) == 1
        os.write(fd, b"\x1d")
        _, status = os.waitpid(pid, 0)
        os.close(fd)
        assert os.waitstatus_to_exitcode(status) == 0 and names(d) == [], out


def test_ps_and_top():
    need_kvm()
    with Daemon() as d:
        d.create("busy")
        d.create("idle", start=False)
        d.expect("busy", "READY\n")
        d.create("gone")
        d.post("/v1/vms/gone/stop", {"mode": "kill"})
        d.wait_state("gone", "exited")
        lines = ok(d, "ps").splitlines()
        assert lines[0].split()[:3] == ["NAME", "STATE", "AGE"], lines
        row = {line.split()[0]: line.split() for line in lines[1:]}
        assert set(row) == {"busy", "idle", "gone"}, lines
        assert re.fullmatch(r"[0-9]+s", row["busy"][2]) and int(row["busy"][5]) > 100, row
        assert row["gone"][-1] == "killed" and row["gone"][5] == "-", row
        v = {r["name"]: r for r in json.loads(ok(d, "ps", "--json"))["vms"]}
        assert v["busy"]["resident_bytes"] > 100000 and v["busy"]["age_s"] < 600 and v["busy"]["vcpus"] == 1, v
        assert "resident_bytes" not in v["gone"], v
        with piped(d, "top", "--once", "--json", "--interval", "1", "--sort", "faults") as p:
            for i in range(20):  # each makes new pages
                d.say("busy", f"touch {100 + i} w {i + 1}")
            out, err = p.communicate(timeout=30)
        v = json.loads(out)["vms"]
        assert p.returncode == 0 and v[0]["name"] == "busy", (v, err)
        assert v[0]["faults_per_s"] >= max(r.get("faults_per_s", 0) for r in v), v
        assert "cpu_percent" in v[0] and "cpu_percent" not in [r for r in v if r["name"] == "gone"][0], v
        lines = ok(d, "top", "--once", "--interval", "1").splitlines()
        assert len(lines) == 4 and "CPU %" in lines[0], lines
        with piped(d, "top", "--interval", "1") as p:  # until nobody reads it
            seen = [p.stdout.readline() for _ in range(8)]
            p.stdout.close()
            assert p.wait(10) != 0 and sum(line.startswith("NAME") for line in seen) == 2, seen


def test_bench():
    need_kvm()
    with Daemon() as d:
        d.create("vm")
        d.expect("vm", "READY\n")
        ok(d, "snapshot", "create", "vm", "warm")
        v = json.loads(ok(d, "bench", "warm", "-n", "7", "--json"))
        assert (v["snapshot"], v["clones"], v["prepared"]) == ("warm", 7, 0), v
        assert {"kvm_ready", "state_loaded", "ordered", "running", "request"} <= set(v["stages"]), v
        for name, s in v["stages"].items():
            assert set(s) == {"p50_us", "p90_us", "p99_us", "max_us", "count"}, s
            assert 0 <= s["p50_us"] <= s["p90_us"] <= s["p99_us"] <= s["max_us"] and 0 < s["count"] <= 7, (name, s)
        assert v["stages"]["request"]["p50_us"] >= v["stages"]["running"]["p50_us"] > 0, v
        assert names(d) == ["vm"] and "pool" not in d.get("/v1/snapshots/warm").json
        v = json.loads(ok(d, "bench", "warm", "--count", "5", "--pool", "size=2", "--json"))
        assert v["prepared"] == v["clones"] == 5, v
        assert d.get("/v1/snapshots/warm").json.get("pool", {}).get("target", 0) == 0
        ok(d, "prepare", "warm", "--pool", "max=3,min=1,idle_s=9", "--wait")
        lines = ok(d, "bench", "warm", "-n", "3", "--pool", "size=2").splitlines()
        assert lines[0].split() == ["STAGE", "P50", "us", "P90", "us", "P99", "us", "MAX", "us", "CLONES"], lines
        assert lines[-1] == "3 of 3 clones were claimed from a pool", lines
        pool = d.get("/v1/snapshots/warm").json["pool"]
        assert (pool["max"], pool["min"], pool["idle_s"]) == (3, 1, 9) and "size" not in pool, pool
        assert thaw(d, "bench", "nothing").returncode == 1 and thaw(d, "bench", "warm", "-n", "0").returncode == 2


def test_done_once():
    need_kvm()
    with Daemon() as d:
        d.create("vm")
        d.expect("vm", "READY\n")
        first = ok(d, "snapshot", "create", "vm", "warm", "--idempotency-key", "a", "--json")
        assert ok(d, "snapshot", "create", "vm", "warm", "--idempotency-key", "a", "--json") == first
        for args in (("clone", "warm"), ("fork", "vm"), ("create", "new", "--kernel", GUEST, "--memory", "32")):
            first = ok(d, *args, "--idempotency-key", args[0], "--json")
            assert ok(d, *args, "--idempotency-key", args[0], "--json") == first
        assert len(names(d)) == 4, names(d)
        r = thaw(d, "clone", "warm", "--count", "2", "--idempotency-key", "clone")
        assert r.returncode == 1 and len(names(d)) == 4, r


def test_progress_is_for_terminals():
    need_kvm()
    with Daemon() as d:
        d.create("vm", memory_mib=128)
        d.expect("vm", "READY\n")
        d.say("vm", "touch 15000 w 1")
        ok(d, "snapshot", "create", "vm", "warm")

        def told_by(*args):
            """What is said on a terminal while the bytes are taken slowly."""
            main_fd, terminal = pty.openpty()
            with subprocess.Popen([os.path.join(BIN, "thaw"), "--socket", d.socket, *args],
                                  stdout=subprocess.PIPE, stderr=terminal, stdin=subprocess.DEVNULL) as p:
                os.close(terminal)
                told = b""
                while p.stdout.read(1 << 20):
                    select.select([], [], [], 0.02)
                assert p.wait(60) == 0
            while select.select([main_fd], [], [], 0.2)[0]:
                try:
                    told += os.read(main_fd, 4096)
                except OSError:  # all of it was read
                    break
            os.close(main_fd)
            return told.decode()

        export = ("snapshot", "export", "warm", "-")
        told = told_by(*export)
        assert re.search(r"exporting warm: \d+ MiB, \d+ MiB/s, \d+ s", told) and told.endswith("\r\033[K"), told
        assert told_by(*export, "--no-progress") == "" and told_by(*export, "--json") == ""
        told = told_by("prepare", "warm", "--wait", "--pool", "size=1000")
        assert re.search(r"preparing warm: \d+ s, \d+ of 1000 in the pool", told) and told.endswith("\r\033[K"), told


def test_configuration_file():
    with Daemon() as d, Daemon() as other:
        d.create("here", start=False)
        path = os.path.join(d.folder, "config")

        def run(text, *args, **env):
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
            e = {k: v for k, v in os.environ.items() if k != "THAW_SOCKET"}
            e.update({"THAW_CONFIG": path, **env})
            return subprocess.run([os.path.join(BIN, "thaw"), *args], capture_output=True, text=True, timeout=30, env=e,
                                  stdin=subprocess.DEVNULL, check=False)

        r = run(f"# mine\n\n socket =  {d.socket} \r\nmemory=64\nno-progress = true\n", "ls", "--quiet")
        assert (r.returncode, r.stdout) == (0, "here\n"), r
        assert run(f"socket = {d.socket}\n", "ls", "--quiet", THAW_SOCKET=other.socket).stdout == ""
        assert run(f"socket = {other.socket}\n", "--socket", d.socket, "ls", "--quiet").stdout == "here\n"
        kernel = f"socket = {d.socket}\nkernel = {GUEST}\nmemory = 48\nvcpus = 2\n"
        r = run(kernel, "create", "made", "--vcpus", "1", "--json")
        assert r.returncode == 0 and json.loads(r.stdout)["config"]["memory_mib"] == 48, r
        assert json.loads(r.stdout)["config"]["vcpus"] == 1
        for text, says in (("frob = 1\n", ":1: frob: there is no such setting"), ("\nforce = true\n", ":2: force: there is no"),
                           ("vcpus = two\n", ":1: vcpus: that value won't do"), ("json\n", ":1: json: a line is: key = value"),
                           ("no-progress = yes\n", ":1: no-progress: it takes true or false"), ("kernel =\n", "won't do"), ("# \0\n", "NUL byte")):
            r = run(text, "ls")
            assert r.returncode == 2 and says in r.stderr and not r.stdout, (text, r)
        assert run("", "ls", THAW_SOCKET=d.socket).returncode == run("\n#", "ls", THAW_SOCKET=d.socket).returncode == 0
        assert run("frob = 1\n", "help").returncode == 0
        assert run("frob = 1\n", "ls", THAW_CONFIG="", THAW_SOCKET=d.socket).returncode == 0
        r = run("", "ls", THAW_CONFIG=path + "x")
        assert r.returncode == 2 and "No such file" in r.stderr, r
        os.mkdir(os.path.join(d.folder, "thaw"))
        os.rename(path, os.path.join(d.folder, "thaw/config"))
        with open(os.path.join(d.folder, "thaw/config"), "w", encoding="ascii") as f:
            f.write(f"socket = {d.socket}\n")
        e = {k: v for k, v in os.environ.items() if k not in ("THAW_SOCKET", "THAW_CONFIG")}
        r = subprocess.run([os.path.join(BIN, "thaw"), "ls", "--quiet"], capture_output=True, text=True, timeout=30,
                           env=dict(e, XDG_CONFIG_HOME=d.folder), stdin=subprocess.DEVNULL, check=False)
        assert r.stdout == "here\nmade\n", r


def test_configuration_file_of_thawd():
    with Daemon() as d:
        path = os.path.join(d.folder, "conf")

        def says(text, *args):
            with open(path, "w", encoding="ascii") as f:
                f.write(text)
            return subprocess.run([os.path.join(BIN, "thawd"), "--config", path, *args], capture_output=True, text=True,
                                  timeout=30, check=False)

        for text, what in (("frob = 1\n", "conf:1: frob: there is no such setting"), ("\nspares = 65\n", "conf:2: spares: that"),
                           ("config = /x\n", "no such setting"), ("help = true\n", "no such setting"), ("kvm\n", "key = value"),
                           ("no-userfaultfd = 1\n", "true or false"), ("log-level = loud\n", "won't do")):
            r = says(text)
            assert r.returncode == 2 and what in r.stderr, (text, r)
        assert says("frob = 1\n", "--version").returncode == 0
        r = says("", "--config", path + "x")
        assert r.returncode == 2 and "No such file" in r.stderr, r
        with open(path, "w", encoding="ascii") as f:
            f.write("# as the command line has it\nspares = 0\norphan-timeout = 5\nsocket = /nonexistent/s\n")
        with Daemon(["--config", path]) as of_file, Daemon(["--config", path, "--spares", "1"]) as of_both:
            assert of_file.get("/v1/info").json["spare_pids"] == []
            wait_until("a spare", lambda: len(of_both.get("/v1/info").json["spare_pids"]) == 1)


# --- what scripts rely on ---
def test_exit_statuses():
    need_kvm()
    with Daemon() as d:
        d.create("vm")
        d.expect("vm", "READY\n")
        told = {s["status"] for s in table()["exit_statuses"]}
        seen = {"0": thaw(d, "info"), "1": thaw(d, "pause", "nobody"), "2": thaw(d, "ls", "x"),
                "3": thaw(None, "ls", env={"THAW_SOCKET": "/nonexistent/s"}),
                "4": thaw(d, "wait", "vm", "--console", "never said", "--timeout", "1")}
        for status, r in seen.items():
            assert r.returncode == int(status) and bool(r.stderr) == (status != "0"), (status, r)
        with piped(d, *RUN, "--name", "mine") as p:
            assert "READY" in p.stdout.readline()
            d.post("/v1/vms/mine/stop", {"mode": "kill"})
            assert p.wait(30) == 5
        with piped(d, "console", "vm") as p:
            assert "READY" in p.stdout.readline()
            p.send_signal(signal.SIGTERM)
            assert p.wait(30) == 128 + signal.SIGTERM
        assert told == {*seen, "5", "128+N"}, told
        r = thaw(d, "pause", "nobody", "--json")
        assert r.returncode == 1 and json.loads(r.stdout)["error"]["code"] == "vm_not_found" and "thaw ls" in r.stderr, r


def test_tables_and_json():
    """The headings; and of what is not the daemon's own answer, each key."""
    need_kvm()
    with Daemon() as d:
        d.create("vm")
        d.expect("vm", "READY\n")
        ok(d, "snapshot", "create", "vm", "warm")
        headings = {("ls",): "NAME STATE VCPUS MIB PID SNAPSHOT EXIT",
                    ("ps",): "NAME STATE AGE VCPUS MIB RESIDENT KIB PRIVATE KIB CPU s SNAPSHOT EXIT",
                    ("top", "--once", "--interval", "1"):
                        "NAME STATE AGE CPU % RESIDENT KIB PRIVATE KIB FAULTS/s FROM DISK",
                    ("snapshot", "ls"): "NAME VM VCPUS MIB KIB ON DISK CHAIN CREATED",
                    ("clone", "warm"): "NAME STATE PROCESS us KVM us LOADED us RUNNING us VSOCK"}
        for args, heading in headings.items():
            assert ok(d, *args).splitlines()[0].split() == heading.split(), args
        labels = [line.split(":")[0] for line in ok(d, "show", "vm").splitlines()]
        assert labels[:4] == ["name", "id", "state", "pid"] and "memory" in labels, labels
        labels = [line.split(":")[0] for line in ok(d, "snapshot", "show", "warm").splitlines()]
        assert labels[:8] == ["name", "id", "vm", "created", "version", "vcpus", "state", "memory"], labels
        v = json.loads(ok(d, "ps", "--json"))
        assert set(v) == {"vms"} and {"name", "id", "state", "vcpus", "memory_mib", "age_s", "cpu_us", "resident_bytes",
                                      "private_bytes", "minor_faults", "major_faults"} == set(v["vms"][0]), v
        v = json.loads(ok(d, "top", "--once", "--interval", "1", "--json"))["vms"][0]
        assert {"cpu_percent", "faults_per_s"} <= set(v), v
        r = thaw(d, "doctor", "--json")
        v = json.loads(r.stdout)
        assert {"ok", "stock_kernel", "stock_kernel_reason", "checks"} == set(v), v
        assert all(set(c) == {"name", "result", "text"} for c in v["checks"]), v
        assert set(table()) == {"version", "commands", "options", "for_all", "configurable", "exit_statuses"}
        for args, path in ((("ls",), "/v1/vms"), (("show", "vm"), "/v1/vms/vm"), (("snapshot", "show", "warm"), "/v1/snapshots/warm")):
            assert set(json.loads(ok(d, *args, "--json"))) == set(d.get(path).json), args  # the daemon's, as it is


# --- completion ---
def shell(command, d, **more):
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=d.folder,
                          env=dict(os.environ, PATH=f"{BIN}:{os.environ['PATH']}", THAW_SOCKET=d.socket, **more))


def in_bash(d, *words):
    script = ('source <(thaw completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _thaw; '
              'printf "%s\\n" "${COMPREPLY[@]}"')
    return shell(["bash", "-c", script, "bash", *words], d)


def in_zsh(d, *words):
    script = ('compdef() { :; }; compadd() { print -l -- $values; }; _files() { print -l -- *; }; '
              'source <(thaw completion zsh); words=("$@"); CURRENT=$#; _thaw')
    return shell(["zsh", "-fc", script, "zsh", *words], d)


def in_fish(d, *words):
    script = "thaw completion fish | source; complete -C (string join ' ' -- $argv)"
    return shell(["fish", "--no-config", "-c", script, "--", *words], d, HOME=d.folder)


def check_completion(name, complete):
    if not shutil.which(name):
        raise Skip(f"no {name} here")
    with Daemon() as d:
        def words(*typed):
            r = complete(d, "thaw", *typed)
            assert r.returncode in (0, 1) and not r.stderr, (typed, r)
            return {line.split("\t")[0] for line in r.stdout.splitlines() if line}

        d.create("web", start=False)
        open(os.path.join(d.folder, "kernel file"), "w", encoding="ascii").close()
        assert words("st") == {"start", "stop"}
        assert words("snapshot", "") >= {"create", "ls", "show", "verify", "rm", "flatten", "export", "import"}
        assert words("snapshot", "e") == {"export"}
        assert words("pause", "") == {"web"} and words("snapshot", "create", "w") == {"web"}
        assert words("pause", "x") == set() and words("pause", "web", "") == set()
        assert words("stop", "web", "--mode", "") == {"power-button", "ctrl-alt-del", "kill"}
        assert words("stop", "--m") == {"--mode"} and words("snapshot-delete", "--fo") == {"--force"}
        assert words("completion", "") == {"bash", "zsh", "fish"}
        assert {w.replace("\\", "") for w in words("run", "--kernel", "ker")} >= {"kernel file"}
        assert "__complete" not in words("")


def test_completion_of_bash():
    check_completion("bash", in_bash)


def test_completion_of_zsh():
    check_completion("zsh", in_zsh)


def test_completion_of_fish():
    check_completion("fish", in_fish)


def test_completion_without_a_daemon():
    r = thaw(None, "__complete", "--", "pause", "", env={"THAW_SOCKET": "/nonexistent/s"})
    assert r.returncode == 0 and not r.stdout, r
    with Daemon() as d:
        d.create("other", start=False)
        r = thaw(None, "__complete", "--", "--socket", "=", d.socket, "show", "")
        assert r.stdout == "other\tcreated\n", r
        assert thaw(None, "__complete", "--", *["x"] * 300).returncode == 0


if __name__ == "__main__":
    main(globals())
