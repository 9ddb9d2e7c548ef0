# SPDX-License-Identifier: Apache-2.0
"""What holds for all routes beyond their bodies: names of requests, keys against doing things twice,
versions, pages, limits of connections and headers."""
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from thawlib import GUEST, Daemon, Reply, Skip, UnixConnection, main, need_kvm, wait_until

ID = "X-Request-Id"


class UnixClient:
    """Many requests by one connection."""

    def __init__(self, d):
        self.con = UnixConnection(d.socket)

    def __enter__(self):
        return self

    def __exit__(self, *why):
        self.con.close()

    def ask(self, method, path, body=None, headers=None):
        self.con.request(method, path, body=body, headers=headers or {})
        r = self.con.getresponse()
        return Reply(r.status, dict(r.getheaders()), r.read())

    def post(self, path, body, headers):
        return self.ask("POST", path, body, headers)


def vm_body(name):
    return {"name": name, "kernel": GUEST, "discovery": "cmdline", "memory_mib": 32}


# --- names of requests --------------------------------------------------------------------
def test_request_id_is_made_or_taken_over():
    with Daemon() as d:
        made = [d.get("/v1/info").headers[ID] for _ in range(3)]
        assert len(set(made)) == 3 and all(re.fullmatch(r"[0-9a-f]{16}-\d+", m) for m in made), made
        for own in ("a", "x" * 64, "AZaz09._:=+/-"):
            for method, path, status in (("GET", "/v1/info", 200), ("GET", "/v1/vms/none", 404),
                                         ("PUT", "/v1/snapshots/s/import", 422), ("PUT", "/v1/info", 405)):
                r = d.request(method, path, headers={ID: own})
                assert (r.status, r.headers[ID]) == (status, own), r
                assert own not in r.body.decode() or own == "a", r


def test_request_id_that_is_none():
    with Daemon() as d:
        for bad in ("", "x" * 65, "a b", "a\"b", "a\tb", "\xe9", "a;b"):
            r = d.request("GET", "/v1/info", headers={ID: bad})
            assert r.status == 400 and r.code == "invalid_value" and ID in r.message, (bad, r)
            assert r.headers[ID] != bad, r
            assert d.request("PUT", "/v1/snapshots/s/import", b"x" * 100, {ID: bad}).code == "invalid_value"
        assert d.get("/v1/info").status == 200


def test_request_id_is_in_the_log():
    """Answered at once, and when a process has ended."""
    need_kvm()
    for args, code in ((["--kvm", "/none"], "no_kvm"), (["--vmm", "/bin/false"], "vm_crashed")):
        with Daemon(["--log-level", "debug", "--spares", "0", *args]) as d:
            r = d.request("POST", "/v1/vms", vm_body("a"), {ID: "of-this-test"})
            assert r.code == code, r
            assert d.get("/v1/info").status == 200
            log = d.log_text()
            lines = [line for line in log.splitlines() if "/v1/vms" in line]
            assert len(lines) == 2 and all("]: [of-this-test] POST" in line for line in lines), log
            assert log.count("[of-this-test]") == 2 + log.count("[of-this-test] vm "), log


# --- keys against doing things twice ---------------------------------------------------------
KEY, REPLAYED = "Idempotency-Key", "Idempotent-Replayed"


def keyed(d, key, path, body, method="POST"):
    return d.request(method, path, body, {KEY: key})


def names(d):
    return [v["name"] for v in d.get("/v1/vms").json["vms"]]


def frozen(d):
    """A snapshot named s, of a VM that is gone."""
    d.create("source")
    assert d.post("/v1/snapshots", {"name": "s", "vm": "source"}).status == 201
    assert d.delete("/v1/vms/source").status == 204


def test_key_repeats_the_answer():
    need_kvm()
    with Daemon() as d:
        frozen(d)
        first = keyed(d, "k1", "/v1/snapshots/s/clone", {"count": 2})
        assert first.status == 201 and REPLAYED not in first.headers, first
        again = keyed(d, "k1", "/v1/snapshots/s/clone", {"count": 2})
        assert (again.status, again.body, again.headers[REPLAYED]) == (201, first.body, "true"), again
        assert first.headers[ID] != again.headers[ID] and len(names(d)) == 2, names(d)
        one = keyed(d, "k2", "/v1/vms", vm_body("a"))
        two = keyed(d, "k2", "/v1/vms", vm_body("a"))
        assert (one.status, two.status, one.body) == (201, 201, two.body) and REPLAYED in two.headers, two
        assert d.post("/v1/vms/a/start").status == 200
        for path, body in (("/v1/vms/a/clone", {"clones": [{"name": "f"}]}),
                           ("/v1/snapshots", {"name": "t", "vm": "a"})):
            one, two = (keyed(d, path, path, body) for _ in range(2))
            assert one.status == two.status == 201 and one.body == two.body, (one, two)
            assert REPLAYED not in one.headers and two.headers[REPLAYED] == "true", two
        # A refusal for good is kept, too; what is not a POST knows no keys.
        one, two = (keyed(d, "k3", "/v1/vms", {"name": "b"}) for _ in range(2))
        assert one.status == 400 and one.body == two.body and REPLAYED in two.headers, two
        assert keyed(d, "k4", "/v1/vms/f", None, "DELETE").status == 204
        assert keyed(d, "k4", "/v1/vms/f", None, "DELETE").code == "vm_not_found"


def test_key_of_another_request():
    with Daemon() as d:
        assert keyed(d, "k", "/v1/gc", "{}").status == 200
        for path, body in (("/v1/gc", "{} "), ("/v1/gc", None), ("/v1/vms", "{}"), ("/v1/vms/a/stop", "{}")):
            r = keyed(d, "k", path, body)
            assert (r.status, r.code) == (422, "idempotency_mismatch") and "/v1/gc" in r.message, r
        assert keyed(d, "k", "/v1/gc", "{}").headers[REPLAYED] == "true"
        for bad in ("", "x" * 129, "a b", "\xe9"):
            assert keyed(d, bad, "/v1/gc", "{}").code == "invalid_value", bad
        assert keyed(d, "~" * 128, "/v1/gc", "{}").status == 200


def test_key_of_a_failure_that_passes():
    need_kvm()
    with Daemon(["--kvm", "/none"]) as d:
        for _ in range(2):  # 503
            r = keyed(d, "k", "/v1/vms", vm_body("a"))
            assert r.code == "no_kvm" and REPLAYED not in r.headers, r
    with Daemon() as d:
        d.create("a", start=False)
        assert keyed(d, "k", "/v1/vms", vm_body("a")).code == "vm_exists"
        assert d.delete("/v1/vms/a").status == 204
        r = keyed(d, "k", "/v1/vms", vm_body("a"))
        assert r.status == 201 and REPLAYED not in r.headers, r


def send(d, method, path, body, *headers):
    """Sends a request and returns the connection."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(d.socket)
    head = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    s.sendall("\r\n".join([*head, "", body]).encode())
    return s


def in_flight(d):
    """Requests without an answer; this one is one."""
    return int(re.search(r"^thaw_http_requests_in_flight (\d+)$", d.get("/v1/metrics").body.decode(), re.M)[1])


def test_key_of_a_client_that_hung_up():
    """What it asked for is done once, and whoever comes again gets the answer: while it is in progress, and
    later. One that leaves before its request was read may not have been heard."""
    need_kvm()
    for heard in (True, False):
        with Daemon() as d:
            frozen(d)
            body = json.dumps({"count": 20})
            gone = send(d, "POST", "/v1/snapshots/s/clone", body, f"{KEY}: k")
            if heard:
                wait_until("it is begun", lambda: in_flight(d) > 1 or names(d))
            gone.close()
            with ThreadPoolExecutor(4) as pool:
                got = list(pool.map(lambda _: keyed(d, "k", "/v1/snapshots/s/clone", body), range(4)))
            got.append(keyed(d, "k", "/v1/snapshots/s/clone", body))
            assert all(r.status == 201 and r.body == got[0].body for r in got), got
            assert sum(REPLAYED in r.headers for r in got) >= 5 - (not heard), got
            assert len(names(d)) == 20, names(d)
            assert sorted(c["name"] for c in got[0].json["clones"]) == sorted(names(d))


def test_key_while_the_first_is_in_progress():
    """A process that does not answer: all that wait get its failure, which is not kept."""
    need_kvm()
    with Daemon() as d:
        d.create("a")
        os.kill(d.vm("a")["pid"], signal.SIGSTOP)
        body = json.dumps({"name": "t", "vm": "a"})
        waiting = [send(d, "POST", "/v1/snapshots", body, f"{KEY}: k") for _ in range(3)]
        wait_until("three wait", lambda: in_flight(d) == 4)
        assert d.post("/v1/vms/a/pause").code == "busy"  # so it was begun, once
        assert keyed(d, "k", "/v1/snapshots", body + " ").code == "idempotency_mismatch"
        assert d.delete("/v1/vms/a").status == 204
        for s in waiting:
            answer = s.recv(65536)
            assert answer.startswith(b"HTTP/1.1 409") and b"vm_gone" in answer, answer
            s.close()
        assert keyed(d, "k", "/v1/snapshots", body).code == "vm_not_found"


def test_keys_are_bounded():
    with Daemon() as d:
        with UnixClient(d) as c:
            for i in range(1025):  # one more than are kept
                assert c.post("/v1/gc", "{}", {KEY: f"k{i}"}).status == 200
            assert REPLAYED not in c.post("/v1/gc", "{}", {KEY: "k0"}).headers
            assert REPLAYED in c.post("/v1/gc", "{}", {KEY: "k1024"}).headers
            assert REPLAYED in c.post("/v1/gc", "{}", {KEY: "k900"}).headers
            for i in range(17):  # 16 MiB of requests
                assert c.post("/v1/gc", b" " * (1 << 20), {KEY: f"m{i}"}).status == 400
            assert REPLAYED not in c.post("/v1/gc", "{}", {KEY: "k1024"}).headers
            assert REPLAYED in c.post("/v1/gc", b" " * (1 << 20), {KEY: "m16"}).headers


def test_keys_are_kept_for_a_time():
    with Daemon(["--idempotency-time", "1"]) as d:
        assert REPLAYED not in keyed(d, "k", "/v1/gc", None).headers
        assert REPLAYED in keyed(d, "k", "/v1/gc", None).headers
        wait_until("it is forgotten", lambda: REPLAYED not in keyed(d, "k", "/v1/gc", None).headers)
    with Daemon() as d:
        for bad in ("x", "-1", "86401"):
            r = subprocess.run([*d.command(), "--idempotency-time", bad], capture_output=True, check=False)
            assert r.returncode == 2, r


# --- versions ---------------------------------------------------------------------------------
def tag(d, path):
    r = d.get(path)
    assert r.status == 200 and re.fullmatch(r'"[0-9a-f]{16}"', r.headers["ETag"]), r
    return r.headers["ETag"]


def none_match(d, path, *tags):
    return d.request("GET", path, headers={"If-None-Match": ", ".join(tags)})


def if_match(d, method, path, tags, body=None):
    return d.request(method, path, body, {"If-Match": tags})


def test_version_changes_with_the_vm():
    """Each step makes a new one; thawlib holds all that is seen with one version against each other."""
    need_kvm()
    with Daemon() as d:
        made = d.post("/v1/vms", dict(vm_body("a"), track_dirty=True, balloon={},
                                      ready={"console": "ready"}, vcpus=1))
        assert made.status == 201 and made.headers["ETag"] == tag(d, "/v1/vms/a"), made
        seen = [made.headers["ETag"]]
        for method, path, body, status in (
                ("POST", "/v1/vms/a/start", None, 200), ("POST", "/v1/vms/a/pause", None, 200),
                ("POST", "/v1/snapshots", {"name": "s", "vm": "a"}, 201),
                ("POST", "/v1/vms/a/resume", None, 200),
                ("POST", "/v1/vms/a/stop", {"mode": "kill"}, 200)):
            r = d.request(method, path, json.dumps(body) if body else None)
            assert r.status == status, r
            now = tag(d, "/v1/vms/a")
            assert now not in seen, (path, seen, now)
            seen.append(now)
        r = none_match(d, "/v1/vms/a", *seen)
        assert (r.status, r.body, r.headers["ETag"]) == (304, b"", seen[-1]), r
        assert d.delete("/v1/vms/a").status == 204
        assert none_match(d, "/v1/vms/a", *seen).code == "vm_not_found"
        d.create("a", start=False)  # another one of this name
        assert tag(d, "/v1/vms/a") not in seen


def test_version_changes_with_the_snapshot():
    need_kvm()
    with Daemon() as d:
        frozen(d)
        one = tag(d, "/v1/snapshots/s")
        assert none_match(d, "/v1/snapshots/s", one).status == 304
        assert d.post("/v1/snapshots/s/clone", {"clones": [{"name": "c"}]}).status == 201
        assert none_match(d, "/v1/snapshots/s", one).status == 304  # a clone changes nothing
        assert d.post("/v1/snapshots/s/flatten", {"format": "lz4"}).status == 200
        two = tag(d, "/v1/snapshots/s")
        assert two != one
        assert if_match(d, "DELETE", "/v1/snapshots/s?force=true", one).code == "precondition_failed"
        assert if_match(d, "POST", "/v1/snapshots/s/clone", one).code == "precondition_failed"
        assert if_match(d, "POST", "/v1/snapshots/s/clone", two, '{"clones":[{"name":"e"}]}').status == 201
        assert if_match(d, "PUT", "/v1/snapshots/s/import", two, b"").code == "precondition_failed"
        with open(os.path.join(d.state_dir, "snapshots", "s", "manifest"), "r+b") as f:
            f.write(b"x")
        assert if_match(d, "DELETE", "/v1/snapshots/s?force=true", "*").code == "precondition_failed"
        assert if_match(d, "DELETE", "/v1/snapshots/none", two).code == "snapshot_not_found"


def test_if_match():
    need_kvm()
    with Daemon() as d:
        d.create("a", start=False, vsock={"cid": 3})
        v = tag(d, "/v1/vms/a")
        for wrong in ('"0000000000000000"', f"W/{v}", v[1:-1], v[:-1], "", ",", f"x {v}", f'"" x, {v}'):
            r = if_match(d, "POST", "/v1/vms/a/start", wrong)
            assert (r.status, r.code) == (412, "precondition_failed") and d.state("a") == "created", (wrong, r)
        assert tag(d, "/v1/vms/a") == v
        for right in ('"x", {}', 'W/"x",,{} ', '"a,b" , {},"y"'):
            v = tag(d, "/v1/vms/a")
            r = if_match(d, "PUT", "/v1/vms/a/metadata", right.format(v), "{}")
            assert r.status == 204, (right, r)
            assert if_match(d, "DELETE", "/v1/vms/a", v).code == "precondition_failed"  # it let one through
        assert if_match(d, "POST", "/v1/vms/a/start", "*").status == 200
        wait_until("nothing more happens by itself", lambda: "first_io" in d.vm("a")["timing_us"])
        for method, path in (("POST", "/v1/vms"), ("GET", "/v1/info"), ("POST", "/v1/gc"), ("GET", "/v1/vms/a")):
            assert if_match(d, method, path, "*").code == "precondition_failed", path
        assert if_match(d, "DELETE", "/v1/vms/b", "*").code == "vm_not_found"
        assert none_match(d, "/v1/vms/a", "*").status == 304
        assert none_match(d, "/v1/vms/a", "W/" + tag(d, "/v1/vms/a")).status == 304
        assert none_match(d, "/v1/vms/a", '"x"').status == 200
        # A refusal by version is not kept: the same key goes on with another one.
        for tags, status in (('"x"', 412), (tag(d, "/v1/vms/a"), 200)):
            r = d.request("POST", "/v1/vms/a/pause", None, {KEY: "k", "If-Match": tags})
            assert r.status == status and REPLAYED not in r.headers, r
        r = d.request("POST", "/v1/vms/a/pause", None, {KEY: "k", "If-Match": tags})
        assert r.status == 200 and REPLAYED in r.headers, r


def test_if_match_lets_one_of_many_through():
    need_kvm()
    with Daemon() as d:
        d.create("a", start=False, vsock={"cid": 3})
        for _ in range(5):
            v = tag(d, "/v1/vms/a")
            with ThreadPoolExecutor(6) as pool:
                got = list(pool.map(lambda i, v=v: if_match(d, "PUT", "/v1/vms/a/metadata", v, json.dumps({"i": i})),
                                    range(6)))
            assert sorted(r.status for r in got) == [204] + [412] * 5, got


# --- pages ------------------------------------------------------------------------------------
def pages(d, what, limit, after=None):
    """All pages from there on, as lists of names; none but the last is short."""
    got = []
    while True:
        r = d.get(f"/v1/{what}?limit={limit}" + (f"&after={after}" if after else ""))
        assert r.status == 200, r
        got.append([v["name"] for v in r.json[what]])
        after = r.json.get("next")
        assert len(got) < 100
        if not after:
            return got
        proper = [n for n in got[-1] if "?" not in n]
        assert after == proper[-1] and len(proper) == limit, got


def test_pages_of_vms():
    need_kvm()
    with Daemon() as d:
        assert pages(d, "vms", 1) == [[]] and pages(d, "vms", 1000, "z") == [[]]
        all_names = sorted(["a", "a-1", "a.1", "B", "c" * 64, "a_1", "Z9"])
        for n in all_names:
            d.create(n, start=False)
        assert names(d) == all_names and "next" not in d.get("/v1/vms").json
        for limit in (1, 2, 3, 6, 7, 8, 1000):
            got = pages(d, "vms", limit)
            assert sum(got, []) == all_names and len(got) == -(-7 // limit), got
        assert sum(pages(d, "vms", 2, "a-2"), []) == all_names[all_names.index("a-1") + 1:]
        assert [v["name"] for v in d.get("/v1/vms?after=a").json["vms"]] == all_names[3:]
        # The page goes on where it was, whatever comes and goes.
        first = d.get("/v1/vms?limit=3").json
        for n in all_names[:3]:
            assert d.delete(f"/v1/vms/{n}").status == 204
        d.create("A", start=False)
        assert sum(pages(d, "vms", 3, first["next"]), []) == all_names[3:]


def test_pages_of_snapshots():
    need_kvm()
    with Daemon() as d:
        frozen(d)
        assert d.post("/v1/snapshots/s/clone", {"clones": [{"name": "c"}]}).status == 201
        assert d.post("/v1/snapshots", {"name": "a", "vm": "c", "incremental": True}).status == 201
        assert d.post("/v1/snapshots", {"name": "t", "vm": "c"}).status == 201
        os.mkdir(os.path.join(d.state_dir, "snapshots", "a b"))  # no name: beside a
        os.mkdir(os.path.join(d.state_dir, "snapshots", "m"))
        whole = d.get("/v1/snapshots").json
        listed = [v["name"] for v in whole["snapshots"]]
        assert listed == ["a", "a?b", "m", "s", "t"], listed
        assert pages(d, "snapshots", 1) == [["a", "a?b"], ["m"], ["s"], ["t"]]
        assert pages(d, "snapshots", 3) == [["a", "a?b", "m", "s"], ["t"]]
        assert pages(d, "snapshots", 2, "a") == [["m", "s"], ["t"]]
        r = d.get("/v1/snapshots?limit=1").json
        assert r["snapshots"] == whole["snapshots"][:2] and r["storage"] == whole["storage"], r
        assert r["snapshots"][0]["chain_length"] == 2  # its parent is on another page


def test_pages_that_are_none():
    with Daemon() as d:
        for what in ("vms", "snapshots"):
            for query in ("limit=0", "limit=1001", "limit=-1", "limit=x", "limit=", "limit", "after=", "after=a%2Fb",
                          "after=" + "x" * 65, "limit=18446744073709551617"):
                r = d.get(f"/v1/{what}?{query}")
                assert r.status == 400 and r.code == "invalid_value", (what, query, r)
            assert d.get(f"/v1/{what}?before=a").code == "unknown_field"


# --- limits -----------------------------------------------------------------------------------
def open_files(n):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < n:
        raise Skip(f"at most {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, n), hard))


def connect(d, data=b""):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(d.socket)
    s.sendall(data)
    return s


def connections(client):
    return json.loads(client.ask("GET", "/v1/info").body)["connections"]


def test_too_many_connections():
    """The next one is told so, those that are there go on, and when one goes there is room."""
    open_files(2000)
    with Daemon(["--spares", "0"]) as d, UnixClient(d) as good:
        idle = [connect(d) for _ in range(1000 - connections(good))]
        wait_until("all are there", lambda: connections(good) == 1000)
        for _ in range(3):
            r = d.get("/v1/vms")
            assert (r.status, r.code, r.headers["Connection"]) == (503, "limit_reached", "close"), r
            assert d.request("PUT", "/v1/snapshots/s/import", b"x").code == "limit_reached"
        assert good.ask("GET", "/v1/vms").status == 200
        idle.pop().close()
        wait_until("there is room", lambda: connections(good) == 999)
        assert d.get("/v1/vms").status == 200
        # Some say nothing then: who comes later waits, and is served.
        idle += [connect(d) for _ in range(1 + 64)]
        wait_until("all are there", lambda: connections(good) == 1064)
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(d.get, "/v1/vms")
            assert good.ask("GET", "/v1/vms").status == 200
            for s in idle:
                s.close()
            assert later.result(30).status in (200, 503)
        wait_until("they are gone", lambda: connections(good) == 1)
        assert d.get("/v1/vms").status == 200


def test_lines_and_fields_that_are_too_long():
    with Daemon() as d:
        path = "/v1/vms?after="
        assert d.get(path + "x" * (4096 - len(path))).code == "invalid_value"
        for n in (4097, 8000, 16000):
            r = d.get("/v1/vms?after=" + "x" * (n - len(path)))
            assert (r.status, r.code) == (414, "uri_too_long"), (n, r)
        for n, status in ((7000, 200), (8193, 431), (16000, 431)):
            r = d.request("GET", "/v1/vms", headers={"X": "x" * n})
            assert r.status == status and r.code == (None if status == 200 else "fields_too_large"), (n, r)
        r = d.request("GET", "/v1/vms", headers={f"X-{i}": "x" * 80 for i in range(100)})
        assert r.code == "fields_too_large", r
        for data, status in ((b"GET /" + b"x" * 100000 + b" HTTP/1.1\r\n\r\n", (413, 414, 431)),
                             (b"GET / HTTP/1.1\r\nX: " + b"x" * 100000 + b"\r\n\r\n", (413, 431))):
            s = socket.socket(socket.AF_UNIX)  # the library's own answers
            s.settimeout(60)
            s.connect(d.socket)
            try:
                s.sendall(data)
            except BrokenPipeError:
                pass
            assert int(s.recv(100).split()[1]) in status
            s.close()
        assert d.get("/v1/info").status == 200


def test_bad_clients_slow_nobody():
    """Hundreds that say nothing, half a header or nonsense. The bound is coarse: a stall would be seconds."""
    open_files(2000)
    noise = random.Random(1)
    with Daemon(["--spares", "0"]) as d, UnixClient(d) as good:
        half = b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Le"
        bad = [connect(d, data) for _ in range(100) for data in (
            b"", half, b"POST /v1/gc HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
            b"\x16\x03\x01" + noise.randbytes(60), noise.randbytes(60) + b"\r\n\r\n")]
        times = []
        for i in range(500):
            if i % 5 == 0:  # they go on: a byte of a header, more nonsense, another one
                bad[i].send(half[:1])
                bad[(i + 3) % 500].close()
                bad[(i + 3) % 500] = connect(d, noise.randbytes(20) + b"\n")
            t = time.monotonic()
            assert good.ask("GET", "/v1/info").status == 200
            times.append(time.monotonic() - t)
        times.sort()
        print(f"# p50 {times[250] * 1e6:.0f} us, p99 {times[495] * 1e6:.0f} us")
        assert times[495] < 0.25, times[-10:]
        for s in bad:
            s.close()
        wait_until("they are gone", lambda: connections(good) == 1)
        assert len(os.listdir(f"/proc/{d.process.pid}/fd")) < 60


if __name__ == "__main__":
    main(globals())
