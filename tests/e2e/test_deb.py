#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make deb: what is in the packages, lintian, installed by dpkg into a root of its own, used from there, purged."""
import glob
import os
import re
import shutil
import subprocess
import tempfile

from thawlib import B, GUEST, ROOT, SANITIZED, Skip, main, need_kvm, wait_until

PARTS = ("dpkg-buildpackage", "dh", "dpkg")


def run(*args, ok=True, **more):
    r = subprocess.run(args, capture_output=True, text=True, timeout=400, check=False, **more)
    assert not ok or r.returncode == 0, (args, r.stdout[-4000:], r.stderr[-4000:])
    return r


NAMES = ("thaw", "libthaw0", "libthaw-dev")


def packages():
    """Their files, in the order of NAMES; made once."""
    missing = [p for p in PARTS if not shutil.which(p)]
    if missing:
        raise Skip(f"not here: {', '.join(missing)}")
    if SANITIZED:
        raise Skip("nobody packages a build with sanitizers")
    if not hasattr(packages, "paths"):
        run("make", "-s", "deb", f"B={os.path.relpath(B, ROOT)}", cwd=ROOT)
        packages.paths = [p for n in NAMES for p in glob.glob(os.path.join(B, f"deb/{n}_*.deb"))]
        assert len(packages.paths) == len(NAMES) == len(os.listdir(os.path.join(B, "deb"))) - 3, packages.paths
    return packages.paths


def control(field):
    return run("dpkg-deb", "--field", packages()[0], field).stdout.strip()


def test_it_has_what_make_install_installs():
    with tempfile.TemporaryDirectory() as dest, tempfile.TemporaryDirectory() as root:
        run("make", "-s", "install", f"B={os.path.relpath(B, ROOT)}", f"DESTDIR={dest}", "PREFIX=/usr", cwd=ROOT)
        for path in packages():
            run("dpkg-deb", "--extract", path, root)
        def files(top):
            return {os.path.relpath(os.path.join(d, f), top) for d, _, names in os.walk(top) for f in names}

        installed = {f.replace("usr/lib/systemd", "lib/systemd") for f in files(dest)}
        packed = {f.removesuffix(".gz") if "/man/" in f else f for f in files(root)}
        assert {f for f in packed - installed if "/doc/" not in f and "/lintian/" not in f} == set()
        assert installed - packed == set()
        assert {f"usr/share/doc/{n}/{f}" for n in NAMES for f in ("copyright", "changelog.gz")} < packed
        for d, folders, names in os.walk(root):
            for n in folders + names:
                if os.path.islink(os.path.join(d, n)):
                    continue
                mode = os.stat(os.path.join(d, n)).st_mode & 0o777
                assert mode == (0o755 if n in folders or d.endswith("/usr/bin") else 0o644), (d, n, oct(mode))
    with open(os.path.join(ROOT, "Makefile"), encoding="utf-8") as f:
        assert control("Version") == re.search(r"^VERSION := (.*)$", f.read(), re.M)[1]
    assert "libmicrohttpd" in control("Depends") and "passt" in control("Recommends")


def test_lintian():
    paths = packages()
    if not shutil.which("lintian"):
        raise Skip("no lintian here")
    r = run("lintian", "--fail-on", "error,warning", "--allow-root", *paths, ok=False)
    assert r.returncode == 0 and not r.stdout, r.stdout + r.stderr


def tree(root):
    """All but what dpkg, the users' files and systemd's helper keep of every package."""
    found = {os.path.relpath(os.path.join(d, f), root) for d, folders, files in os.walk(root) for f in files + folders}
    own = re.compile(r"var/lib/(dpkg|systemd)(/|$)|etc/(passwd|group|shadow|gshadow|\.pwd\.lock)-?$|"
                     "(etc|var|var/lib|etc/systemd|etc/systemd/system)$")
    return {f for f in found if not own.match(f)}


def test_installed_used_and_purged():
    paths = packages()
    if os.getuid():
        raise Skip("dpkg installs as root")
    with tempfile.TemporaryDirectory() as root:
        for d in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "etc"):
            os.makedirs(os.path.join(root, d))
        for f in ("var/lib/dpkg/status", "var/lib/dpkg/available"):
            with open(os.path.join(root, f), "w", encoding="ascii"):
                pass
        dpkg = ["dpkg", f"--root={root}", "--force-depends", "--force-script-chrootless", "--log=/dev/null"]
        before = tree(root)
        run(*dpkg, "--install", *paths)
        status = run("dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f=${db:Status-Status}", "thaw").stdout
        assert status == "installed"
        if shutil.which("systemd-sysusers"):
            with open(os.path.join(root, "etc/group"), encoding="ascii") as f:
                assert re.search(r"^thaw:", f.read(), re.M)
        if shutil.which("deb-systemd-helper"):
            assert os.path.islink(os.path.join(root, "etc/systemd/system/sockets.target.wants/thawd.socket"))
        use(root)
        run(*dpkg, "--install", *paths)  # an upgrade to itself
        run(*dpkg, "--purge", *NAMES)
        assert tree(root) == before, tree(root) ^ before
        assert not run("dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "thaw", ok=False).stdout


def use(root):
    """The installed programs find each other."""
    programs = {p: os.path.join(root, "usr/bin", p) for p in os.listdir(os.path.join(root, "usr/bin"))}
    assert {"thaw", "thawd", "thaw-vmm", "thaw-pager", "thaw-page-handler"} < set(programs)
    env = {**os.environ, "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    assert not shutil.which("thaw-vmm", path=env["PATH"]), "another thaw is installed"
    with tempfile.TemporaryDirectory() as folder:
        source, image = os.path.join(folder, "x/bin"), os.path.join(folder, "image")
        os.makedirs(source)
        run(programs["thaw"], "guest", "build", os.path.dirname(source), image, env=env)
        assert os.path.getsize(image)
        assert not [f for f in glob.glob(f"{root}/usr/libexec/thaw/guest/**", recursive=True) if "pycache" in f]
        need_kvm()
        sock = os.path.join(folder, "s")
        daemon = subprocess.Popen([programs["thawd"], "--socket", sock, "--state-dir", os.path.join(folder, "state")],
                                  env=env, stderr=subprocess.DEVNULL)
        try:
            wait_until("the daemon", lambda: os.path.exists(sock))
            thaw = [programs["thaw"], "--socket", sock]
            run(*thaw, "create", "web", "--kernel", GUEST, "--discovery", "cmdline", "--cmdline", "thaw.genid=0xfe000",
                "--memory", "128", "--start", env=env)
            run(*thaw, "wait", "web", "--console", "READY", env=env)
            run(*thaw, "snapshot", "create", "web", "warm", "--format", "lz4", env=env)  # loaded by thaw-pager
            run(*thaw, "clone", "warm", "--name", "copy", env=env)
            run(*thaw, "wait", "copy", "--console", "RESTORED", env=env)
        finally:
            daemon.terminate()
            daemon.wait(30)


if __name__ == "__main__":
    main(globals())
