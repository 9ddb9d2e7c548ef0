# SPDX-License-Identifier: Apache-2.0
"""Packages of a Debian archive, each byte checked before it is used.

The chain: the archive's keyring on this host -> Release, by its detached signature (gpgv or sqv) -> the package
index, by size and SHA256 in Release -> the package, by size and SHA256 in the index. Release.gpg, not InRelease:
what the verifier has read is then just the file that is parsed, and no clear-signed text has to be taken apart.
Nothing that was fetched is executed on this host."""
import calendar
import email.utils
import gzip
import hashlib
import http.client
import io
import lzma
import os
import re
import tarfile
import time
import urllib.request

from util import Failure, find, run, say, show_bytes

KEYRINGS = ("/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp")
MAX_RELEASE, MAX_INDEX = 16 << 20, 1 << 30  # some hundred KiB, and 50 MiB
TIMEOUT_S = 60
PIECE = 1 << 16


def keyring_of_host(given):
    for path in [given] if given else KEYRINGS:
        if os.path.isfile(path):
            return os.path.abspath(path)
    raise Failure(f"--keyring {given}: there is no such file" if given else
                  "no keys of the Debian archive here, so nothing could be trusted; install debian-archive-keyring "
                  "(Fedora: debian-keyring), or give --keyring FILE")


def download(url, out, limit):
    """Writes what is at url to the file `out`; its size and SHA256. It ends past `limit` bytes."""
    digest, n = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as r:
            while n <= limit and (piece := r.read(min(PIECE, limit + 1 - n))):
                n += len(piece)
                digest.update(piece)
                out.write(piece)
    except (OSError, ValueError, http.client.HTTPException) as e:  # ValueError: no URL at all
        raise Failure(f"{url}: {getattr(e, 'reason', None) or e or type(e).__name__}") from e
    return n, digest.hexdigest()


def checked(url, out, size, sha256, by):
    n, digest = download(url, out, size)
    if n != size:
        raise Failure(f"{url}: {'more than' if n > size else f'{n} bytes, not'} the {size} that {by} says; "
                      "the mirror is out of step or damaged: try again later, or another --mirror")
    if digest != sha256:
        raise Failure(f"{url}: its SHA256 is not the one that {by} says; don't trust it: try another --mirror")


def verify(signed, signature, keyring, home):
    """Says by whom; at least one good signature of the keyring, and no bad one."""
    gpgv, sqv = find("gpgv"), find("sqv")
    if gpgv:
        r = run([gpgv, "--homedir", home, "--weak-digest", "SHA1", "--status-fd", "1", "--keyring", keyring,
                 signature, signed])
        words = [line.split() for line in r.stdout.decode("utf-8", "replace").splitlines()
                 if line.startswith("[GNUPG:] ")]
        # Good is not: expired (EXPSIG, EXPKEYSIG), revoked (REVKEYSIG), of an unknown key (ERRSIG).
        good = [w[2] for w in words if w[1] == "GOODSIG" and len(w) > 2]
        if good and not any(w[1] == "BADSIG" for w in words):
            return good[0]
    elif sqv:
        r = run([sqv, "--keyring", keyring, signature, signed])
        if r.returncode == 0:
            return (r.stdout.decode("utf-8", "replace").split() or ["?"])[0]
    else:
        raise Failure("neither gpgv nor sqv is here to check signatures; install gpgv (Fedora: gnupg2, Arch: gnupg)")
    why = r.stderr.decode("utf-8", "replace").strip().replace("\n", "\n    ")
    raise Failure(f"the archive's signature is not good by {keyring}; don't trust this mirror, or update "
                  f"debian-archive-keyring if it is old:\n    {why}")


def fields(text):
    """One paragraph of "Field: value" lines; further lines of a value begin with a space."""
    found, name = {}, None
    for line in text.splitlines():
        if line[:1] in (" ", "\t"):
            if name:
                found[name] += "\n" + line.strip()
        elif ":" in line:
            name, value = line.split(":", 1)
            found[name] = value.strip()
    return found


class Archive:
    """The verified index of one suite. `folder` is for what is fetched; nobody else writes there."""

    def __init__(self, mirror, suite, arch, keyring, folder):
        if not re.match(r"(https?|file)://", mirror):
            raise Failure(f'--mirror "{mirror}": it takes a URL, e.g. http://deb.debian.org/debian')
        self.mirror, self.suite, self.arch, self.folder = mirror.rstrip("/"), suite, arch, folder
        self.base = f"{self.mirror}/dists/{suite}"
        release = self.release(keyring_of_host(keyring))
        self.index = self.packages(release)

    def path(self, name):
        return os.path.join(self.folder, name)

    def release(self, keyring):
        for name in ("Release", "Release.gpg"):
            with open(self.path(name), "wb") as f:
                if download(f"{self.base}/{name}", f, MAX_RELEASE)[0] > MAX_RELEASE:
                    raise Failure(f"{self.base}/{name}: larger than any such file is; is that a Debian archive?")
        key = verify(self.path("Release"), self.path("Release.gpg"), keyring, self.folder)
        with open(self.path("Release"), encoding="utf-8", errors="replace") as f:
            release = fields(f.read())
        if release.get("Codename") != self.suite:
            raise Failure(f"{self.base}: it is signed, but the release of \"{release.get('Codename')}\"; "
                          "don't trust this mirror")
        until = release.get("Valid-Until")
        if until:
            date = email.utils.parsedate(until)
            if not date or calendar.timegm(date) < time.time():
                raise Failure(f"{self.base}: that was valid until {until}; the mirror is too old, or this host's "
                              "clock is wrong")
        say(f"{self.suite} of {release.get('Date')}, signed by {key}")
        return release

    def packages(self, release):
        listed = {}
        for line in release.get("SHA256", "").splitlines():
            if len(words := line.split()) == 3 and words[1].isdigit():
                listed[words[2]] = (words[0].lower(), int(words[1]))
        for end, unpack in ((".xz", lzma.open), (".gz", gzip.open)):
            name = f"main/binary-{self.arch}/Packages"
            if name + end not in listed:
                continue
            sha256, size = listed[name + end]
            limit = listed.get(name, (None, MAX_INDEX))[1]
            url = f"{self.base}/{name}{end}"
            if release.get("Acquire-By-Hash") == "yes":  # stays right while the mirror is updated
                url = f"{self.base}/{os.path.dirname(name)}/by-hash/SHA256/{sha256}"
            packed = io.BytesIO()
            checked(url, packed, min(size, MAX_INDEX), sha256, "Release")
            packed.seek(0)
            try:
                with unpack(packed) as f:
                    data = f.read(limit + 1)
            except (OSError, EOFError, lzma.LZMAError) as e:
                raise Failure(f"{url}: {e}") from e
            if len(data) > limit:
                raise Failure(f"{url}: unpacked it is larger than Release says")
            return data
        raise Failure(f"{self.base}: Release lists no {name}.xz; has the archive packages of {self.arch}?")

    def package(self, name):
        """The fields of the package's entry."""
        m = re.search(rb"(?:\A|\n\n)(Package: " + re.escape(name.encode()) + rb"\n.*?)(?:\n\n|\Z)", self.index, re.S)
        p = fields(m[1].decode("utf-8", "replace")) if m else {}
        if not m or not all(p.get(k) for k in ("Filename", "Size", "SHA256", "Version")) or not p["Size"].isdigit():
            raise Failure(f"{self.base}: there is no package {name} for {self.arch}")
        return p

    def fetch(self, name):
        """The path of the package's file."""
        p = self.package(name)
        say(f"{name} {p['Version']}, {show_bytes(int(p['Size']))}")
        path = self.path(name + ".deb")
        with open(path, "wb") as f:
            checked(f"{self.mirror}/{p['Filename']}", f, int(p["Size"]), p["SHA256"].lower(), "the package index")
        return path


def contents(path):
    """Each file of a package, as (name, bytes); it has been checked. A .deb is an ar archive of data.tar.*."""
    with open(path, "rb") as f:
        try:
            if f.read(8) != b"!<arch>\n":
                raise ValueError("no ar archive")
            while True:
                head = f.read(60)
                name, size = head[:16].decode("ascii").strip(), int(head[48:58])
                if name.startswith("data.tar"):
                    break
                f.seek(size + size % 2, os.SEEK_CUR)
            with tarfile.open(fileobj=f, mode="r|*") as t:
                for m in t:
                    if m.isreg():
                        yield m.name.lstrip("./"), t.extractfile(m).read()
        except (ValueError, EOFError, lzma.LZMAError, tarfile.TarError) as e:
            raise Failure(f"{os.path.basename(path)}: can't unpack it: {e}") from e
