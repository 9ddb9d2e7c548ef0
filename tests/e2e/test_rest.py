# SPDX-License-Identifier: Apache-2.0
"""What holds for all routes beyond their bodies: names of requests, keys against doing things twice,
versions, pages, limits of connections and headers."""
import re

from thawlib import GUEST, Daemon, main, need_kvm

ID = "X-Request-Id"


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


if __name__ == "__main__":
    main(globals())
