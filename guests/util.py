# SPDX-License-Identifier: Apache-2.0
"""What the parts of `thaw guest` share: the one error that is shown to people, programs of the host, sizes,
and a result that appears whole or not at all."""
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

SBIN = ":/usr/sbin:/sbin"  # mke2fs is there, and users' PATH may lack it


class Failure(Exception):
    """Says what was wrong with which input, and what to do."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def find(program):
    return shutil.which(program, path=os.environ.get("PATH", os.defpath) + SBIN)


def need(program, package):
    path = find(program)
    if not path:
        raise Failure(f"{program} is not here; install {package}")
    return path


def run(args, **more):
    """The finished process, its outputs as bytes; how it ended is the caller's to judge."""
    return subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, check=False,
                          env={**os.environ, "LC_ALL": "C"}, **more)


def size_bytes(text):
    m = re.fullmatch(r"([0-9]{1,15})([KMGT]?)", text)
    if not m or not int(m[1]):
        raise Failure(f'--size: "{text}" won\'t do; it takes N, or N with K, M, G or T behind it')
    return int(m[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[m[2]]


def show_bytes(n):
    return f"{n / 1048576:.1f} MiB"


def ends_on_signals():
    """SIGTERM and SIGHUP unwind like an error, so that nothing stays."""
    def end(number, _):
        raise SystemExit(128 + number)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)


@contextlib.contextmanager
def workplace(result):
    """A folder beside `result`, so on its file system; it is gone in the end."""
    parent = os.path.dirname(os.path.abspath(result))
    try:
        folder = tempfile.mkdtemp(prefix=".thaw-guest-", dir=parent)
    except OSError as e:
        raise Failure(f"can't write beside {result}: {e.strerror}") from e
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sync(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
