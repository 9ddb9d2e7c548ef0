# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/api.md, docs/cli.md and README.md: each shell example is run as it stands against a daemon that has what it
talks about, and must succeed; each piece of JSON must be what the OpenAPI document says of it. An example
that is in neither table fails, so a new one is not forgotten."""
import contextlib
import json
import os
import re
import subprocess
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from thawlib import BIN, GUEST, ROOT, Daemon, document, main, need_kvm  # noqa: E402



def blocks(language, doc="api.md"):
    """(heading, text) of each fenced block."""
    with open(os.path.join(ROOT, "docs", doc), encoding="utf-8") as f:
        whole = f.read()
    heading, out = "", []
    for m in re.finditer(r"^#+ ([^\n]*)$|^```(\w+)\n(.*?)^```$", whole, re.M | re.S):
        if m[1]:
            heading = m[1]
        elif m[2] == language:
            out.append((heading, m[3]))
    return out


# What an example's VM `web` is made with, by heading.
USER_NET = {"nets": [{"id": "eth0", "user": {}}]}
WEB = {
    "PATCH /v1/vms/{name}/nets/{net}": USER_NET,
    "PUT /v1/vms/{name}/metadata": {"vsock": {"cid": 3}},
    "PATCH /v1/vms/{name}/balloon": {"balloon": {}, "memory_mib": 128},
    "POST /v1/vms/{name}/balloon/hint": {"balloon": {"free_page_hinting": True}, "memory_mib": 64},
}
# Examples that need what a host may lack: the error that is as good as success.
OR_REFUSED = {
    "Huge pages": "huge_pages_unavailable",
    "Lifetime and limits": "limits_unavailable",
    "POST /v1/vms": "cpu_incompatible",
}
# Left out, with the reason.
NOT_RUN = {
    "The REST interface of thawd": "defines the function that all others use",
    "Versions": "its tag is one of another daemon: test_versions runs it with one of this",
}
INCREMENTAL = {"POST /v1/snapshots/{name}/flatten": "s5"}


def run(d, text, allowed=""):
    """By bash, in the daemon's folder, with the documented function; paths are those of the test."""
    text = text.replace("/boot/vmlinux", GUEST).replace("/run/", d.folder + "/").replace("/img/", d.folder + "/")
    text = re.sub(r"^echo \d+ >/proc/.*$", "", text, flags=re.M)  # a setting of the whole host
    prelude = blocks("sh")[0][1] + "curl() { command curl --fail-with-body --max-time 30 \"$@\"; }\nset -euo pipefail\n"
    r = subprocess.run(["bash", "-c", prelude + text], cwd=d.folder, env=dict(os.environ, THAW_SOCKET=d.socket),
                       capture_output=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    out = r.stdout.decode("latin-1")
    if r.returncode and allowed and f'"{allowed}"' in out:
        return out
    assert r.returncode == 0, f"{r.returncode}: {text}\n{out}\n{r.stderr.decode()}"
    return out


def world(d, heading, text):
    """What the example needs and does not make itself."""
    if re.search(r"/v1/vms -d|/import", text) is None or '"name":"web"' not in text:
        d.create("web", cmdline="nokaslr", **WEB.get(heading, {}))
        d.expect("web", "READY\n")
    if "snapshots/warm" in text:
        d.create("tapped", nets=[{"id": "eth0", "tap": "tap0"}])
        assert d.post("/v1/snapshots", {"name": "warm", "vm": "tapped"}).status == 201
    if "snapshots/base" in text:
        assert d.post("/v1/snapshots", {"name": "base", "vm": "web"}).status == 201
    if "/tools.erofs" in text:
        with open(os.path.join(d.folder, "tools.erofs"), "wb") as f:
            f.write(b"x" * 5000)
    if heading in INCREMENTAL:
        assert d.post("/v1/snapshots", {"name": "s1", "vm": "web", "format": "lz4"}).status == 201
        assert d.post("/v1/snapshots/s1/clone", {"clones": [{"name": "c"}]}).status == 201
        r = d.post("/v1/snapshots", {"name": INCREMENTAL[heading], "vm": "c", "format": "lz4", "incremental": True})
        assert r.status == 201, r


TAPS = ["unshare", "--net", "sh", "-c",
        'for t in tap0 tap1; do ip tuntap add $t mode tap vnet_hdr || exit; done; exec "$@"', "sh"]


def example(heading, text):
    need_kvm()
    with Daemon(prefix=TAPS if '"tap"' in text else ()) as d:
        world(d, heading, text)
        if heading == "PUT /v1/snapshots/{name}/import":
            assert d.post("/v1/snapshots", {"name": "base", "vm": "web"}).status == 201
            run(d, "api http://x/v1/snapshots/base/export -o base.thaw")
        if " -N " in text:  # a stream, which has no end
            text = re.sub(r"^api (.*-N .*)$", r"api --max-time 2 \1 || [ $? = 28 ]", text, flags=re.M)
        if heading == "POST /v1/vms/{name}/balloon/hint":
            with hints(d):
                run(d, text)
            return
        run(d, text, OR_REFUSED.get(heading, ""))


@contextlib.contextmanager
def hints(d):
    """The guest's driver, which answers while the example asks."""
    assert d.say("web", "balloon command").startswith("OK")
    t = threading.Thread(target=lambda: [d.say("web", line) for line in ("balloon hint 0 256", "balloon stop")])
    t.start()
    yield
    t.join(30)


def test_versions():
    need_kvm()
    (text,) = [t for h, t in blocks("sh") if h == "Versions"]
    with Daemon() as d:
        d.create("web")
        d.expect("web", "READY\n")
        tag = d.get("/v1/vms/web").headers["ETag"]
        assert re.search(r'"[0-9a-f]{16}"', text) and re.fullmatch(r'"[0-9a-f]{16}"', tag), (text, tag)
        run(d, text, "precondition_failed")
        assert d.get("/v1/vms/web").status == 200
        run(d, re.sub(r'"[0-9a-f]{16}"', tag, text))
        assert d.get("/v1/vms/web").status == 404


# The other host of an example: a daemon of its own, that ssh reaches.
SSH = 'ssh() { shift; THAW_SOCKET=$OTHER "$@"; }\n'


def cli_example(text):
    need_kvm()
    with Daemon() as d, Daemon() as other:
        for name in ("disk.img", "clone1.img", "clone2.img", "clone3.img"):
            with open(os.path.join(d.folder, name), "wb") as f:
                f.truncate(1 << 20)
        os.symlink(GUEST, os.path.join(d.folder, "vmlinux"))
        if "warm" in text:
            d.create("web")
            d.expect("web", "READY\n")
            assert d.post("/v1/snapshots", {"name": "warm", "vm": "web"}).status == 201
        text = text.replace("'login:'", "READY").replace("/disks/", d.folder + "/")
        text = text.replace("/run/", d.folder + "/").replace("/var/lib/thaw/", d.state_dir + "/")
        # What is started beside it listens before the next line, and ends with the example.
        text = re.sub(r"^(\S+ (\S+) .*) &$", r"\1 & beside=$!\nuntil [ -S \2 ]; do sleep 0.02; done", text, flags=re.M)
        text += "[ -z \"${beside:-}\" ] || kill $beside\n"
        env = dict(os.environ, THAW_SOCKET=d.socket, OTHER=other.socket, PATH=BIN + ":" + os.environ["PATH"])
        r = subprocess.run(["bash", "-c", SSH + "set -euo pipefail\n" + text], cwd=d.folder, env=env, timeout=60,
                           capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        assert r.returncode == 0, f"{text}\n{r.stdout}\n{r.stderr}"
        clones = [v["name"] for v in d.get("/v1/vms").json["vms"] if v["name"] != "web"]
        assert len(clones) in (3, 10), clones
        if "ssh" in text:
            assert other.get("/v1/snapshots/base").status == 200


def test_cli_snapshots_between_hosts():
    (text,) = [t for _, t in blocks("sh", "cli.md") if "ssh" in t]
    cli_example(text)


def test_cli_page_handler():
    (text,) = [t for h, t in blocks("sh", "cli.md") if h == "thaw-page-handler"]
    cli_example(text)


def test_cli_has_no_other_examples():
    assert len(blocks("sh", "cli.md")) == 2


def readme():
    """Its commands, in order, without prompt and comment."""
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:
        found = re.findall(r"^    \$ ((?:.*\\\n)*.*)$", f.read(), re.M)
    return [re.sub(r" {2,}#.*", "", c) for c in found]


# Those that are not run here, by how they begin. Kernels from the archive, a console and systemd: tests/rig/guest.sh,
# test_install.py. What `make` does: the tests themselves.
README_ELSEWHERE = ("make", "sudo", "thawd &", "thaw guest fetch", "thaw run")


def test_readme():
    need_kvm()
    commands = [c for c in readme() if not c.startswith(README_ELSEWHERE)]
    assert commands[0] == "thaw doctor" and commands[1].startswith("thaw create web") and len(commands) >= 10, commands
    with Daemon() as d:
        os.mkdir(os.path.join(d.folder, "guest"))
        os.symlink(GUEST, os.path.join(d.folder, "guest", "vmlinuz"))
        for name in ("initrd", "rootfs.ext4"):
            with open(os.path.join(d.folder, "guest", name), "wb") as f:
                f.write(bytes(1 << 20))
        env = dict(os.environ, THAW_SOCKET=d.socket, PATH=BIN + ":" + os.environ["PATH"])
        for c in commands:
            c = c.replace("GUEST-READY", "READY").replace("/run/thaw/thaw.sock", d.socket)
            c = re.sub("^curl ", "curl --fail-with-body ", c)
            r = subprocess.run(["bash", "-c", c], cwd=d.folder, env=env, timeout=60, capture_output=True, text=True,
                               stdin=subprocess.DEVNULL, check=False)
            assert r.returncode == 0 or c == "thaw doctor", f"{c}: {r.returncode}\n{r.stdout}\n{r.stderr}"
        names = {v["name"] for v in d.get("/v1/vms").json["vms"]}
        assert {"web", "copy-1", "copy-3", "twin-1", "twin-3"} < names and len(names) == 10, names


def make_tests():
    """A test for each shell example, named by its heading."""
    for i, (heading, text) in enumerate(blocks("sh")):
        if heading not in NOT_RUN:
            name = re.sub(r"\W+", "_", heading).strip("_")
            globals()[f"test_{i:02}_{name}"] = lambda h=heading, t=text: example(h, t)


# JSON examples: the schema by heading, in the order in which they stand there. With a property: a piece of an object.
JSON = {
    "The VM object": [("VM", None)],
    "Rate limits": [("VMCreate", ["drives", 0])],
    "GET /v1/vms/{name}/metrics": [("VMUsage", None)],
    "GET /v1/vms/{name}/devices": [("Devices", None)],
    "GET /v1/vms/{name}/balloon": [("Balloon", None)],
    "POST /v1/snapshots": [("SnapshotCreated", None)],
    "GET /v1/snapshots/{name}": [("Snapshot", []), ("Snapshot", ["template"])],
    "POST /v1/snapshots/{name}/clone": [("Clones", None)],
    "Working set": [("Snapshot", [])],
    "GET /v1/info": [("Info", None)],
    "POST /v1/gc": [("GC", None)],
    "GET /v1/operations": [("Operations", None)],
    "GET /v1/events": [("Event", None)],
    "Errors": [("Error", None)],
}


def resolve(schema):
    while "$ref" in schema:
        schema = document().doc["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def test_json():
    """A whole object is checked with what it must have, a piece (a list of where it belongs) without."""
    seen = {}
    for heading, text in blocks("json"):
        n = seen.setdefault(heading, 0)
        seen[heading] = n + 1
        name, where = JSON[heading][n]
        schema = resolve(document().doc["components"]["schemas"][name])
        v = json.loads(text if text.startswith("{") else "{" + text + "}")
        if where is not None:
            for step in where:
                schema = resolve(schema["items"] if step == 0 else schema["properties"][step])
            schema = {k: x for k, x in schema.items() if k != "required"}
        document().check(schema, v, f"{heading}, example {n + 1}")
    assert seen == {h: len(x) for h, x in JSON.items()}, set(seen) ^ set(JSON)


make_tests()
if __name__ == "__main__":
    main(globals())
