# SPDX-License-Identifier: Apache-2.0
"""Nothing that one client asks for keeps others from being heard: no turn of the daemon's loop is held for more than
1 ms, whatever there is of.

Held is what thaw_loop_held_seconds counts: CPU time, or all of it when the loop slept, so a machine that is busy with
other things does not count. Interrupts, a slow CPU and a lock's holder that has to wait do, so each request comes
in several rounds, of which the best one counts: work that grows with the number of things is in all of them. What
wakes the loop hundreds of times (many clones) may hold it for somewhat more now and then; done at once
it would be 10 to 40 ms."""
import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import threading
import time

from thawlib import GUEST, Daemon, Skip, UnixConnection, alive, main, need_kvm, wait_until

N = 200
CHAIN = 60
ROUNDS = 4
LIMIT, LIMIT_OF_MANY = 0.001, 0.005


def raw(d, method, path, body=None):
    """Without the checks of d.request(), which take longer than the daemon."""
    con = UnixConnection(d.socket)
    con.request(method, path, body=json.dumps(body) if body is not None else None)
    r = con.getresponse()
    text = r.read()
    con.close()
    assert r.status < 300 or r.status == 404, (r.status, text[:300])
    return text


def turns(d):
    """How many turns were held for at most so long."""
    found = {}
    for line in raw(d, "GET", "/v1/metrics").decode().splitlines():
        if line.startswith('thaw_loop_held_seconds_bucket{le="') and "+Inf" not in line:
            key, n = line.split('"} ')
            found[float(key.split('"')[1])] = int(n)
    return found


def held(d, act):
    """The least upper bound of what act() held the loop for in one turn."""
    before = turns(d)
    act()
    after = turns(d)
    total = max(after.values()) - max(before.values())
    assert total > 0
    return next(bound for bound in sorted(after) if after[bound] - before[bound] == total)


class Rounds:
    """What is done in rounds, and what each of them held the loop for."""

    def __init__(self, d):
        self.d, self.found = d, {}

    def measure(self, what, act, limit=LIMIT):
        self.found.setdefault((what, limit), []).append(held(self.d, act))

    def check(self):
        for (what, _), bounds in self.found.items():
            print(f"# {what}: at most {', '.join(f'{1000 * x:g}' for x in bounds)} ms")
        if os.environ.get("V"):
            print("\n".join(f"# {x}" for x in self.d.log_text().splitlines() if "loop: held" in x))
        late = [(what, bounds) for (what, limit), bounds in self.found.items() if min(bounds) > limit]
        assert not late, (late, [x for x in self.d.log_text().splitlines() if "loop: held" in x][-20:])


def clones(d, n, prefix):
    raw(d, "POST", "/v1/snapshots/snap/clone", {"count": n, "name_prefix": prefix})


def fork(d, n, prefix):
    raw(d, "POST", "/v1/vms/source/clone", {"count": n, "name_prefix": prefix})


def at_once(n, act, items):
    """n threads share the items."""
    todo, failed = list(items), []

    def work():
        while todo:
            try:
                act(todo.pop())
            except Exception as e:  # pylint: disable=broad-except
                failed.append(e)
    threads = [threading.Thread(target=work) for _ in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not failed, failed[:3]


def delete(d, names):
    at_once(16, lambda name: raw(d, "DELETE", f"/v1/vms/{name}"), names)


@contextlib.contextmanager
def daemon():
    """One with snapshot "snap" of VM "source", which was cloned before."""
    need_kvm()
    with Daemon(["--log-level", "debug"]) as d:
        d.create("source")
        assert d.post("/v1/snapshots", {"name": "snap", "vm": "source"}).status == 201
        clones(d, 1, "first")
        d.settle()
        yield d


def test_many_vms():
    with daemon() as d:
        rounds = Rounds(d)
        body = {"clones": [{"name": f"x{i}", "metadata": {"a": "b" * 700}} for i in range(1000)]}
        for i in range(ROUNDS):
            names = [f"r{i}-{k}" for k in range(1, N + 1)]
            rounds.measure(f"{N} clones of one call", lambda i=i: clones(d, N, f"r{i}"), LIMIT_OF_MANY)
            rounds.measure("the first list", lambda: raw(d, "GET", "/v1/vms"))
            rounds.measure("the next list", lambda: raw(d, "GET", "/v1/vms"))
            rounds.measure("ten lists at once",
                           lambda: at_once(10, lambda _: raw(d, "GET", "/v1/vms"), range(10)), LIMIT_OF_MANY)
            rounds.measure("metrics of each VM", lambda: raw(d, "GET", "/v1/metrics?per_vm=true"))
            rounds.measure("metrics", lambda: raw(d, "GET", "/v1/metrics"))
            rounds.measure("info", lambda: raw(d, "GET", "/v1/info"))
            rounds.measure("the document", lambda: raw(d, "GET", "/v1/openapi.json"))
            rounds.measure("the last events", lambda: raw(d, "GET", "/v1/events?since=0&follow=false"))
            rounds.measure("a body of 700 KiB", lambda: raw(d, "POST", "/v1/snapshots/none/clone", body))
            rounds.measure(f"{N} deleted by 16 clients", lambda n=names: delete(d, n), LIMIT_OF_MANY)
            rounds.measure("64 forks", lambda i=i: fork(d, 64, f"f{i}"), LIMIT_OF_MANY)
            delete(d, [f"f{i}-{k}" for k in range(1, 65)])
        rounds.check()


def test_many_snapshots():
    with daemon() as d:
        for i in range(N):
            raw(d, "POST", "/v1/snapshots", {"name": f"s{i}", "vm": "source", "format": "lz4"})
        rounds = Rounds(d)
        for i in range(ROUNDS):
            raw(d, "DELETE", f"/v1/snapshots/s{i}")  # so that what is known of them does not hold
            rounds.measure("info", lambda: raw(d, "GET", "/v1/info"))
            rounds.measure("list", lambda: raw(d, "GET", "/v1/snapshots"))
            rounds.measure("one", lambda i=i: raw(d, "GET", f"/v1/snapshots/s{i + ROUNDS}"))
            rounds.measure("metrics", lambda: raw(d, "GET", "/v1/metrics"))
            rounds.measure("gc", lambda: raw(d, "POST", "/v1/gc"))
        assert json.loads(raw(d, "GET", "/v1/info"))["snapshots"] == N + 1 - ROUNDS
        assert len(json.loads(raw(d, "GET", "/v1/snapshots"))["snapshots"]) == N + 1 - ROUNDS
        d.stop()
        d.start()
        rounds.measure("info after a start", lambda: raw(d, "GET", "/v1/info"), LIMIT_OF_MANY)
        rounds.check()


def spread(bytes_wanted, piece):
    return "[" + ",".join([piece] * (bytes_wanted // (len(piece) + 1))) + "]"


def ask(d, method, path, text, headers=None):
    """The text as it is; any status."""
    con = UnixConnection(d.socket)
    con.request(method, path, body=text, headers=headers or {})
    r = con.getresponse()
    answer = r.read().decode()
    con.close()
    return r.status, answer


def test_large_bodies():
    """A megabyte of JSON takes some 30 ms to parse: whatever is in it, and whichever route takes it."""
    size = 1000 * 1000
    unknown = '{"nothing":' + spread(size, "[]") + "}"
    spaces = "{" + " " * size + "}"
    broken = '{"a":' + spread(size, "{}")
    document = '{"metadata":{"a":' + spread(20000, "[]") + f'}},"name":"none","vsock":{{"cid":5}},"memory_mib":32,"discovery":"cmdline","kernel":"{GUEST}"}}'
    with daemon() as d:
        d.create("v", vsock={"cid": 7}, start=False)
        routes = {(m.upper(), path) for path, ops in json.loads(raw(d, "GET", "/v1/openapi.json"))["paths"].items()
                  for m, op in ops.items() if "application/json" in op.get("requestBody", {}).get("content", {})}
        assert len(routes) > 15 and ("POST", "/v1/vms") in routes, routes
        rounds = Rounds(d)
        for _ in range(ROUNDS):
            for method, path in sorted(routes):
                path = re.sub(r"\{(net|drive|pmem)\}", "x", path).replace("{name}", "snap" if "snapshots" in path else "v")
                for what, text in (("unknown field", unknown), ("broken", broken)):
                    def act(text=text):
                        status, answer = ask(d, method, path, text)
                        # A document may be any object; it is too long.
                        assert status in (400, 404, 409, 422) and "error" in answer, (method, path, status, answer[:300])
                    rounds.measure(f"{method} {path}, {what}", act)
            rounds.measure("spaces", lambda: ask(d, "POST", "/v1/gc", spaces))
            assert ask(d, "POST", "/v1/gc", spaces)[0] == 200
            rounds.measure("a document of a VM", lambda: ask(d, "PUT", "/v1/vms/v/metadata", '{"a":' + spread(20000, "[]") + "}"))
            assert ask(d, "PUT", "/v1/vms/v/metadata", '{"a":' + spread(20000, "[]") + "}")[0] == 204
            assert json.loads(raw(d, "GET", "/v1/vms/v/metadata")) == {"a": [[]] * 6666}
            rounds.measure("VM with a document", lambda: ask(d, "POST", "/v1/vms", document))
            assert json.loads(raw(d, "GET", "/v1/vms/none/metadata")) == {"a": [[]] * 6666}
            raw(d, "DELETE", "/v1/vms/none")
            many = json.dumps({"clones": [{"name": f"x{i}"} for i in range(4096)]})
            rounds.measure("4,096 clones of nothing", lambda: ask(d, "POST", "/v1/snapshots/none/clone", many))
        # In the same words as a small one.
        head = '{"name":"n","kernel":"/k","vsock":{"cid":5},"metadata":'
        for large, small in ((unknown, '{"nothing":1}'), (f'{head}"{"x" * 9000}"}}', head + '"x"}'),
                             (f'{head}{{"a":1}}{" " * 9000}}}', head + '{"a":1}}'), (f'[{" " * 9000}]', "[]"),
                             (f'{{"name":{spread(9000, "[]")}}}', '{"name":[]}')):
            assert ask(d, "POST", "/v1/vms", large) == ask(d, "POST", "/v1/vms", small), (large[:99], small)
        status, answer = ask(d, "POST", "/v1/vms", f'{head}{{"a":"{"x" * 70000}"}}}}')
        assert status == 400 and "metadata: 70008 bytes without spaces" in answer, answer
        # With a key: done once, and the same answer.
        for _ in range(2):
            assert ask(d, "POST", "/v1/vms", document, {"Idempotency-Key": "big"})[0] == 201
        rounds.check()


def test_long_chains():
    """What reads all manifests of a chain does not do so on the loop."""
    with daemon() as d:
        d.create("t", track_dirty=True)
        assert d.post("/v1/snapshots", {"name": "k0", "vm": "t"}).status == 201
        for i in range(1, CHAIN):
            raw(d, "POST", "/v1/snapshots", {"name": f"k{i}", "vm": "t", "incremental": True})
        last = f"k{CHAIN - 1}"
        rounds = Rounds(d)
        for i in range(ROUNDS):
            r = d.get(f"/v1/snapshots/{last}")
            assert r.json["chain_length"] == CHAIN + i, r.json
            tag = r.headers["ETag"]
            rounds.measure("show", lambda: raw(d, "GET", f"/v1/snapshots/{last}"))
            rounds.measure("prepare", lambda: raw(d, "POST", f"/v1/snapshots/{last}/prepare"), LIMIT_OF_MANY)

            def match(tag=tag):
                status, answer = ask(d, "DELETE", f"/v1/snapshots/{last}/working-set", "", {"If-Match": tag})
                assert status == 204, (status, answer)
                assert ask(d, "DELETE", f"/v1/snapshots/{last}", "", {"If-Match": '"0"'})[0] == 412
            rounds.measure("If-Match", match)
            new = f"k{CHAIN + i}"
            rounds.measure("incremental snapshot",
                           lambda: raw(d, "POST", "/v1/snapshots", {"name": new, "vm": "t", "incremental": True}))
            last = new
        assert d.post(f"/v1/snapshots/{last}/verify").json["verified"]
        rounds.check()
        raw(d, "DELETE", "/v1/snapshots/k1?force=true")
        r = d.post("/v1/snapshots", {"name": "more", "vm": "t", "incremental": True})
        assert r.status == 409 and r.code == "wrong_state" and "take a full one" in r.body.decode(), r.body
        assert "op" not in d.get("/v1/vms/t").json and d.post("/v1/snapshots", {"name": "full", "vm": "t"}).status == 201


def test_files_of_an_ended_vm():
    """They are gone when it has exited, so that the next one may have them, and nobody waits for that."""
    with daemon() as d:
        path = os.path.join(d.folder, "v.sock")
        disk = os.path.join(d.folder, "disk")
        with open(disk, "wb") as f:
            f.truncate(1 << 20)
        for _ in range(20):
            d.create("v", vsock={"cid": 7, "path": path}, drives=[{"id": "a", "path": disk, "layer": "ephemeral"}])
            assert os.path.exists(path) and os.listdir(os.path.join(d.folder, "state/layers"))
            raw(d, "DELETE", "/v1/vms/v")
            assert not os.path.exists(path) and not os.listdir(os.path.join(d.folder, "state/layers"))
        d.create("v", vsock={"cid": 7, "path": path})
        assert d.stop(signal.SIGTERM) == 0 and not os.path.exists(path)


PTRACE_SEIZE, PTRACE_DETACH, PTRACE_O_TRACEEXIT = 0x4206, 17, 0x40


def test_an_end_on_a_stalled_host():
    """A spare process that takes for ever to die (here: its tracer keeps it from that) does not keep the daemon."""
    libc = ctypes.CDLL(None, use_errno=True)
    with daemon() as d:
        d.settle()
        spares = d.get("/v1/info").json["spare_pids"]
        assert len(spares) == 2
        for pid in spares:
            if libc.ptrace(PTRACE_SEIZE, pid, None, ctypes.c_void_p(PTRACE_O_TRACEEXIT)):
                raise Skip(f"ptrace: {os.strerror(ctypes.get_errno())}")
        before = time.monotonic()
        status = d.stop(signal.SIGTERM)
        took = time.monotonic() - before
        for pid in spares:
            assert alive(pid)
            libc.ptrace(PTRACE_DETACH, pid, None, None)
        assert status == 0 and 4 < took < 8 and "did not go in time" in d.log_text(), (status, took)
        wait_until("their end", lambda: not any(alive(pid) for pid in spares))


def test_a_list_while_vms_come_and_go():
    """Those that stay are in each list once, in order, whatever else comes and goes."""
    with daemon() as d:
        clones(d, 60, "stay")
        stay = {f"stay-{k}" for k in range(1, 61)}
        done = threading.Event()

        def change():
            for i in range(6):
                clones(d, 20, f"m{i}" if i % 2 else f"z{i}")
                delete(d, [f"m{i}-{k}" if i % 2 else f"z{i}-{k}" for k in range(1, 21)])
            done.set()
        t = threading.Thread(target=change)
        t.start()
        lists = 0
        while not done.is_set():
            names = [v["name"] for v in json.loads(raw(d, "GET", "/v1/vms"))["vms"]]
            assert names == sorted(set(names)) and stay <= set(names), names
            lists += 1
        t.join()
        assert lists > 3, lists
        seen, after = [], ""
        while after is not None:
            page = json.loads(raw(d, "GET", f"/v1/vms?limit=7{after}"))
            seen += [v["name"] for v in page["vms"]]
            after = f"&after={page['next']}" if "next" in page else None
        assert seen == sorted(stay | {"source", "snap-1", "first-1"} & set(seen)) and stay <= set(seen), seen


def half_asked(d, method, path, body=""):
    """A connection that has asked, and hangs up before the answer."""
    s = socket.socket(socket.AF_UNIX)
    s.connect(d.socket)
    s.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    return s


def test_clients_that_hang_up():
    """What they asked for is done all the same, and nobody else notices."""
    with daemon() as d:
        gone = [half_asked(d, "POST", "/v1/snapshots/snap/clone", json.dumps({"count": 60, "name_prefix": "c"}))]
        wait_until("a beginning", lambda: len(d.vm_processes()) > 4)
        gone += [half_asked(d, "GET", path) for _ in range(10)
                 for path in ("/v1/vms", "/v1/metrics?per_vm=true", "/v1/snapshots", "/v1/events?since=0")]
        for s in gone:
            s.close()
        wait_until("clones", lambda: sum(v["name"].startswith("c-") for v in d.get("/v1/vms").json["vms"]) == 60)
        wait_until("answers", lambda: b"\nthaw_http_requests_in_flight 1\n" in d.get("/v1/metrics").body)
        wait_until("streams", lambda: b"\nthaw_event_streams 0\n" in d.get("/v1/metrics").body)


def test_keys_of_long_work():
    """The one that asks again with its key while the clones are made waits for the same answer."""
    with daemon() as d:
        replies = []

        def ask(_):
            r = d.request("POST", "/v1/snapshots/snap/clone", {"count": 60, "name_prefix": "k"},
                          {"Idempotency-Key": "k"})
            replies.append((r.status, r.body))
        at_once(4, ask, range(4))
        assert len(replies) == 4 and len(set(replies)) == 1 and replies[0][0] == 201, replies
        assert len(d.get("/v1/vms").json["vms"]) == 62


def test_an_end_in_the_middle():
    """Whoever waits is answered or cut off, nothing is left behind, and it takes no longer than without work."""
    with daemon() as d:
        waits = [half_asked(d, "POST", "/v1/snapshots/snap/clone", json.dumps({"count": 200}))]
        waits += [half_asked(d, "GET", path) for _ in range(20)
                  for path in ("/v1/vms", "/v1/metrics?per_vm=true", "/v1/snapshots", "/v1/info")]
        wait_until("clones", lambda: len(d.vm_processes()) > 10)
        before = time.monotonic()
        assert d.stop(signal.SIGTERM) == 0, d.log_text()[-2000:]
        assert time.monotonic() - before < 5
        for s in waits:
            s.settimeout(5)
            while s.recv(65536):
                pass
            s.close()
        assert "never answered" not in d.log_text() and not d.vms_alive() and not d.leftovers()


if __name__ == "__main__":
    main(globals())
