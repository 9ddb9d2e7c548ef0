#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""libthaw as it is installed: what it exports, programs built by pkg-config against it, daemons that misbehave."""
import functools
import os
import re
import socket
import subprocess
import tempfile
import threading

from thawlib import B, GUEST, ROOT, SANITIZED, Daemon, Skip, document, main, need_kvm

HEADER = os.path.join(ROOT, "lib/thaw.h")
PREFIX = os.path.join(B, "tests/lib/installed")


def run(*args, **more):
    return subprocess.run(args, capture_output=True, text=True, timeout=120, check=False, **more)


@functools.lru_cache(None)
def installed():
    if SANITIZED:
        raise Skip("a program without sanitizers can't link a library with them")
    r = run("make", "-s", "install", f"B={os.path.relpath(B, ROOT)}", f"PREFIX={PREFIX}", cwd=ROOT)
    assert r.returncode == 0, r
    return dict(os.environ, PKG_CONFIG_PATH=f"{PREFIX}/lib/pkgconfig", LD_LIBRARY_PATH=f"{PREFIX}/lib")


def build(source, name, static=False):
    env = installed()
    out = os.path.join(B, "tests/lib", name)
    # The static libthaw with a shared libcurl: Debian's libcurl.a needs what its package does not depend on.
    what = run("pkg-config", "--cflags", "--libs", "libthaw", *(["libcurl", "jansson"] if static else []), env=env)
    assert what.returncode == 0, what
    libs = what.stdout.replace("-lthaw", f"{PREFIX}/lib/libthaw.a") if static else what.stdout
    r = run("cc", "-std=c11", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror", os.path.join(ROOT, source), "-o", out,
            *libs.split())
    assert r.returncode == 0, r.stderr
    return out, env


def declared():
    with open(HEADER, encoding="ascii") as f:
        text = f.read()
    names = re.findall(r"THAW_API [^;]*?\b(thaw_[a-z_]+)\(", text)
    assert len(names) == len(set(names)) and len(names) > 50, names
    return set(names)


def test_exports_are_the_header():
    installed()
    for file, *flags in (("libthaw.so", "-D", "--defined-only"), ("libthaw.a", "-g", "--defined-only")):
        out = run("nm", *flags, os.path.join(PREFIX, "lib", file)).stdout
        symbols = {line.split()[2].split("@")[0] for line in out.splitlines() if len(line.split()) == 3}
        assert symbols - {"THAW_0"} == declared(), (file, symbols ^ declared())
    versions = run("nm", "-D", "--defined-only", "--with-symbol-versions", os.path.join(PREFIX, "lib/libthaw.so")).stdout
    assert "thaw_clone@@THAW_0" in versions, versions
    needed = run("objdump", "-p", os.path.join(PREFIX, "lib/libthaw.so")).stdout
    assert "SONAME               libthaw.so.0\n" in needed, needed


def test_every_route_has_a_function():
    with open(HEADER, encoding="ascii") as f:
        text = " ".join(line.strip().removeprefix("//") for line in f)
    routes = {(m.upper(), p) for p, ops in document().doc["paths"].items() for m in ops}
    told = {(m, p) for ms, p in re.findall(r"((?:GET|POST|PUT|PATCH|DELETE)(?: and (?:PUT|PATCH|DELETE))?) +(/v1/[a-z./{}-]*[a-z}])",
                                           re.sub(r" +", " ", text)) for m in ms.split(" and ")}
    assert routes == told, routes ^ told
    with open(os.path.join(ROOT, "tests/lib/all.c"), encoding="ascii") as f:
        used = f.read()
    assert not [n for n in declared() if not re.search(rf"\b{n}\(", used)]


def test_the_header_in_cxx():
    r = run("c++", "-std=c++11", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-x", "c++", "-", input=f'#include "{HEADER}"\n'
            "static struct thaw_request q = THAW_REQUEST_INIT; static struct thaw_attach a = THAW_ATTACH_INIT;\n"
            "int main() { return q.method != nullptr || a.in_fd != 0 || a.out_fd != 1; }\n")
    assert r.returncode == 0, r.stderr


def test_every_function():
    need_kvm()
    for static in (False, True):
        program, env = build("tests/lib/all.c", "all", static)
        linked = run("ldd", program, env=env).stdout
        assert ("libthaw.so.0" in linked) != static, linked
        with Daemon() as d:
            r = run(program, GUEST, d.folder, env=dict(env, THAW_SOCKET=d.socket))
            assert r.returncode == 0 and not r.stdout and not r.stderr, r
            assert d.get("/v1/vms").json["vms"] == []


def test_example():
    need_kvm()
    program, env = build("examples/clone.c", "clone")
    with Daemon() as d:
        d.create("vm")
        d.expect("vm", "READY\n")
        assert d.post("/v1/snapshots", {"vm": "vm", "name": "warm"}).status == 201
        r = run(program, "warm", "3", env=dict(env, THAW_SOCKET=d.socket))
        assert r.returncode == 0 and re.fullmatch(r"(warm-\d runs after \d+ us\n){3}", r.stdout), r
        assert [v["name"] for v in d.get("/v1/vms").json["vms"]] == ["vm"]
        r = run(program, "nothing", "3", env=dict(env, THAW_SOCKET=d.socket))
        assert r.returncode == 1 and "nothing" in r.stderr, r


PROBE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <thaw.h>
int main(int argc, char **argv)
{
	struct thaw_client *c = NULL;
	struct thaw_reply *r = NULL;
	int e = thaw_open(argv[1], &c);
	if (e)
		return printf("open %s\n", strerror(-e)), 0;
	thaw_set_timeout_ms(c, argc > 2 ? (unsigned)atoi(argv[2]) : 10000);
	e = thaw_info(c, &r);
	printf("%s|%u|%s|%s\n", e ? strerror(-e) : "fine", thaw_last_error(c)->status, thaw_last_error(c)->code,
	       thaw_last_error(c)->message);
	thaw_reply_free(r);
	thaw_close(c);
}
"""


def test_daemons_that_are_not_there_or_misbehave():
    with tempfile.TemporaryDirectory() as folder:
        source, path = os.path.join(folder, "probe.c"), os.path.join(folder, "s")
        with open(source, "w", encoding="ascii") as f:
            f.write(PROBE)
        program, env = build(source, "probe")

        def says(*args):
            return run(program, *args, env=env).stdout

        assert says(path).startswith("No such file or directory|0||no daemon can be reached on "), says(path)
        assert says("/" + "x" * 120) == "open File name too long\n"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        assert says(path).startswith("Connection refused|0||no daemon answers on ")
        listener.listen(8)

        def serve(*pieces):
            """One connection: its answer, then its end."""
            def work():
                s, _ = listener.accept()
                s.recv(4096)
                for p in pieces:
                    s.sendall(p)
                s.close()
            t = threading.Thread(target=work, daemon=True)
            t.start()
            return t

        t = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        assert says(path) == "fine|0||nothing has failed\n"
        t.join()
        for answer in (b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}"):
            t = serve(answer)
            assert says(path).startswith("Input/output error|0||talking to the daemon on "), answer
            t.join()
        t = serve(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 110000)  # a limit of libcurl's
        assert says(path).startswith("Cannot allocate memory|0||"), "a long header"
        t.join()
        t = serve(b"HTTP/1.1 500 no\r\nContent-Length: 9\r\n\r\n<html>no!")
        assert says(path) == "Remote I/O error|500||the daemon's answer makes no sense\n"
        t.join()
        t = serve(b'HTTP/1.1 404 no\r\nX-Request-Id: 7\r\nContent-Length: 46\r\n\r\n{"error":{"code":"not_found","message":"a\\u0001"}}'[:-1])
        assert says(path).startswith("Remote I/O error|404|"), "cut in the middle of JSON"
        t.join()
        assert says(path, "200") == "Connection timed out|0||no answer within 200 ms\n"
        listener.close()
        if os.geteuid():
            os.chmod(path, 0)
            assert says(path).startswith("Permission denied|")


if __name__ == "__main__":
    main(globals())
