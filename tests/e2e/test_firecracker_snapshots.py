#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Firecracker's API: snapshots."""
import os
import re
import shutil
import signal
import statistics
import subprocess
import threading
import time

from fc_front import AFTER, MACHINE, VMM, Front, drive, folder, image, load_body
from test_lazy import need_userfaultfd
from test_page_handler import HANDLER
from thawlib import main, need_kvm, wait_until


def test_snapshots():
    need_kvm()
    with folder() as w:
        disk = image(w)
        with Front(w, "a") as f:
            f.put("/drives/root", drive(disk, cache_type="Writeback"))
            f.put("/vsock", {"guest_cid": 5, "uds_path": f"{w}/a.v"})
            f.boot(track_dirty_pages=True)
            assert f.say("store one") == "OK"
            state, memory = f.freeze()
            assert os.path.getsize(memory) == 32 << 20
            f.resume()
            assert f.say("store two") == "OK" and f.say("fill 100 50 7") .startswith("OK")
            total = f.say("sum 0 400")
            shutil.copy(memory, f"{w}/diff.mem")
            f.freeze("diff", snapshot_type="Diff")  # over the copy
            f.freeze("sparse", snapshot_type="Diff")  # where there is none: what has changed alone
            assert os.stat(f"{w}/sparse.mem").st_blocks * 512 < 4 << 20 < os.path.getsize(f"{w}/sparse.mem")
        shutil.copy(disk, f"{w}/b.img")
        with Front(w, "b") as f:
            f.put("/logger", {"level": "Info"})  # what a snapshot does not bring along may come before
            f.put("/mmds", {"a": 1})
            f.put("/snapshot/load", load_body(state, memory, resume_vm=True, vsock_override={
                "uds_path": f"{w}/b.v", "guest_cid": 9}, drive_overrides=[{"drive_id": "root", "path_on_host": f"{w}/b.img"}]))
            f.expect("RESTORED\n")
            assert f.say("load") == "OK one" and f.say("blk w 0 mine") == "OK" and f.say("blk r 0") == "OK mine"
            c = f.config()
            assert c["vsock"] == {"guest_cid": 9, "uds_path": f"{w}/b.v", "vsock_id": None}, c
            assert c["drives"][0]["path_on_host"] == f"{w}/b.img" and c["machine-config"]["track_dirty_pages"] is False
            # Two at a time, on one file that stays as it is.
            with Front(w, "c") as g:
                g.put("/snapshot/load", {"snapshot_path": f"{w}/diff.state", "mem_file_path": f"{w}/diff.mem",
                                         "vsock_override": {"uds_path": f"{w}/c.v"}, "enable_diff_snapshots": True,
                                         "drive_overrides": [{"drive_id": "root", "layer": "Ephemeral"}]})
                assert g.state() == "Paused" and g.config()["machine-config"]["track_dirty_pages"] is True
                g.resume()
                g.expect("RESTORED\n")
                assert g.say("load") == "OK two" and g.say("sum 0 400") == total
                assert g.say("blk w 0 layer") == "OK" and g.say("blk r 0") == "OK layer"
        with open(disk, "rb") as d:
            assert d.read(5) == b"first"
        # A load that fails is the end, after the answer.
        for body, words in ((load_body(state, f"{w}/none"), "none"), (load_body(memory, memory), "not"),
                            (load_body(state, memory, network_overrides=[{"iface_id": "x", "host_dev_name": "t"}]), "x"),
                            (load_body(state, memory, drive_overrides=[{"drive_id": "x"}]), "drive_overrides"),
                            (load_body(state, disk), "")):
            with Front(w, "d") as f:
                f.refused("PUT", "/snapshot/load", body, words)
                assert f.process.wait(15) == 1, body
            os.unlink(f.path)
        out = subprocess.run([VMM, "--describe-snapshot", state], capture_output=True, text=True, check=True).stdout
        version = subprocess.run([VMM, "--snapshot-version"], capture_output=True, text=True, check=True).stdout
        assert re.fullmatch(r"v\d+\.\d+\.\d+\n", version) and out.startswith(version), (out, version)


def contents(where):
    """Of all files of snapshots."""
    found = {}
    for name in os.listdir(where):
        if name.endswith((".state", ".mem", ".layer")) and os.path.isfile(os.path.join(where, name)):
            with open(os.path.join(where, name), "rb") as f:
                found[name] = f.read()
    return found


def test_layers():
    need_kvm()
    with folder() as w:
        disk = image(w)
        with Front(w, "a") as f:
            f.put("/drives/root", drive(disk, layer="Ephemeral"))
            f.put("/drives/none", drive(image(w, "other"), is_root_device=False) | {"drive_id": "none"})
            f.boot(track_dirty_pages=True)
            assert f.say("blk w 0 one") == "OK" and f.say("store one") == "OK"
            one = f.freeze("one")
            f.resume()
            assert f.say("blk w 9 two") == "OK" and f.say("store two") == "OK"
            shutil.copy(f"{w}/one.mem", f"{w}/two.mem")
            two = f.freeze("two", snapshot_type="Diff")
            f.resume()
            assert f.say("blk r 0") == "OK one" and f.say("blk w 0 more") == "OK"
            for _ in range(20):  # no layer is added, so there is no end to it
                f.freeze("many")
                f.resume()
            many = f.freeze("many")
        assert sorted(n for n in os.listdir(w) if n.endswith(".layer")) == [
            "many.state.root.layer", "one.state.root.layer", "two.state.root.layer"]
        with open(disk, "rb") as d:
            assert d.read(5) == b"first"
        before = contents(w)
        with Front(w, "b") as f, Front(w, "c") as g, Front(w, "d") as h:
            for front, files in ((f, one), (g, two), (h, many)):
                front.put("/snapshot/load", load_body(*files, resume_vm=True, drive_overrides=[
                    {"drive_id": "none", "layer": "Ephemeral"}]))
                front.expect("RESTORED\n")
                assert front.config()["drives"][0]["layer"] == "Ephemeral"
            assert f.say("load") == "OK one" and f.say("blk r 0") == "OK one" and f.say("blk r 9") == "OK "
            assert g.say("load") == "OK two" and g.say("blk r 0") == "OK one" and g.say("blk r 9") == "OK two"
            assert h.say("blk r 0") == "OK more" and h.say("blk r 9") == "OK two"
            # A layer over that of the snapshot, and a snapshot of both.
            assert g.say("blk w 0 three") == "OK" and g.say("blk w 20 four") == "OK"
            again = g.freeze("again")
            assert f.say("blk r 0") == "OK one" and contents(w).items() >= before.items()
        with Front(w, "e") as f:
            f.put("/snapshot/load", load_body(*again, resume_vm=True))
            f.expect("RESTORED\n")
            assert [f.say(f"blk r {n}") for n in (0, 9, 20)] == ["OK three", "OK two", "OK four"]
            f.freeze("one")  # over one that was loaded, and of other content
        with Front(w, "f") as f:
            f.put("/snapshot/load", load_body(*one, resume_vm=True))
            f.expect("RESTORED\n")
            assert [f.say(f"blk r {n}") for n in (0, 9, 20)] == ["OK three", "OK two", "OK four"]


def test_layers_that_do_not_fit():
    need_kvm()
    with folder() as w:
        with Front(w, "a") as f:
            f.put("/drives/root", drive(image(w), layer="Ephemeral"))
            f.boot()
            assert f.say("blk w 0 one") == "OK"
            state, memory = f.freeze()
            f.resume()
            f.freeze("other")
            layer = state + ".root.layer"
            # What can't be published leaves the old ones, and the VM goes on.
            before = contents(w)
            os.mkdir(f"{w}/dir.state.root.layer")
            f.refused("PUT", "/snapshot/create", {"snapshot_path": f"{w}/dir.state", "mem_file_path": f"{w}/m"},
                      "dir.state.root.layer", "regular file")
            f.refused("PUT", "/snapshot/create", {"snapshot_path": f"{w}/m", "mem_file_path": f"{w}/m.root.layer"},
                      "two files")
            f.refused("PUT", "/snapshot/create", {"snapshot_path": state, "mem_file_path": f"{w}/none/m"}, "none/m")
            assert contents(w) == before and not [n for n in os.listdir(w) if n.startswith(".")], os.listdir(w)
            f.resume()
            assert f.say("blk r 0") == "OK one"
        good = before[os.path.basename(layer)]
        cases = [(None, "does not exist"), (good[:-1], "bytes"), (good[:10] + b"x" + good[11:], "damaged"),
                 (good[:0x10010] + b"\1" + good[0x10011:], "damaged"), (b"", "is empty"),
                 (before["other.state.root.layer"], "another snapshot's")]
        for i, (content, words) in enumerate(cases):
            os.unlink(layer)
            if content is not None:
                with open(layer, "wb") as out:
                    out.write(content)
            with Front(w, f"case{i}") as f:
                f.refused("PUT", "/snapshot/load", load_body(state, memory), words, "the layer of drive root")
                assert f.process.wait(15) == 1
            with open(layer, "wb") as out:
                out.write(good)
        with Front(w, "without") as f:
            f.refused("PUT", "/snapshot/load", load_body(state, memory, drive_overrides=[
                {"drive_id": "root", "layer": "None"}]), "can't be without")
        with Front(w, "last") as f:
            f.put("/snapshot/load", load_body(state, memory, resume_vm=True))
            f.expect("RESTORED\n")
            assert f.say("blk r 0") == "OK one"
        assert contents(w) == before


def test_userfaultfd():
    need_kvm()
    need_userfaultfd()
    with folder() as w:
        with Front(w, "a") as f:
            f.boot()
            f.say("fill 0 1000 3")
            f.say("store kept")
            total = f.say("sum 0 1000")
            state, memory = f.freeze()
        path = f"{w}/handler"
        with open(f"{w}/handler.log", "wb") as log:
            handler = subprocess.Popen([HANDLER, path, memory], stderr=log)
        try:
            wait_until("the page handler", lambda: os.path.exists(path))
            with Front(w, "b") as f:
                f.put("/snapshot/load", {"snapshot_path": state, "resume_vm": True,
                                         "mem_backend": {"backend_type": "Uffd", "backend_path": path}})
                f.expect("RESTORED\n")
                assert f.say("load") == "OK kept" and f.say("sum 0 1000") == total
                with open(f"{w}/handler.log", encoding="utf-8") as log:
                    assert f"VM process {f.child()[0]}: connected" in log.read()
        finally:
            handler.terminate()
            handler.wait(10)
        with Front(w, "c") as f:
            f.refused("PUT", "/snapshot/load", {"snapshot_path": state, "mem_backend": {
                "backend_type": "Uffd", "backend_path": path}}, "page handler")
            assert f.process.wait(15) == 1


def ask_while(f, work):
    """Does work in a thread, and asks meanwhile: how long each answer took, in seconds."""
    thread, took = threading.Thread(target=work), []
    thread.start()
    while thread.is_alive():
        before = time.monotonic()
        assert [f.get(p).status for p in ("/", "/vm/config", "/machine-config")] == [200] * 3
        took.append((time.monotonic() - before) / 3)
    thread.join()
    return took


def test_what_waits_holds_no_readers_up():
    need_kvm()
    need_userfaultfd()
    with folder() as w:
        with Front(w, "a") as f:
            f.boot(mem_size_mib=256)
            f.say("fill 0 50000 3")
            total = f.say("sum 0 1000")
            f.pause()
            state, memory = f"{w}/snap.state", f"{w}/snap.mem"
            took = ask_while(f, lambda: f.put("/snapshot/create", {"snapshot_path": state, "mem_file_path": memory}))
            assert len(took) > 5 and statistics.median(took) < 0.02, took
            f.resume()
            took = ask_while(f, lambda: f.freeze("snap", snapshot_type="Diff"))  # copies the old file first
            assert len(took) > 5 and statistics.median(took) < 0.02, took
        path = f"{w}/handler"
        with open(f"{w}/handler.log", "wb") as log:
            handler = subprocess.Popen([HANDLER, path, memory], stderr=log)
        load = {"snapshot_path": state, "resume_vm": True,
                "mem_backend": {"backend_type": "Uffd", "backend_path": path}}
        try:
            wait_until("the page handler", lambda: os.path.exists(path))

            def slowly(f, work):
                """The same with a handler that does nothing for two seconds."""
                handler.send_signal(signal.SIGSTOP)
                wakes = threading.Timer(2, handler.send_signal, [signal.SIGCONT])
                wakes.start()
                before = time.monotonic()
                took = ask_while(f, work)
                assert time.monotonic() - before > 1.9 and statistics.median(took) < 0.02, took
                wakes.join()

            with Front(w, "b") as f:
                other = threading.Thread(target=f.refused, args=("PUT", "/machine-config", MACHINE, AFTER))

                def both():
                    threading.Timer(0.2, other.start).start()
                    f.put("/snapshot/load", load)
                slowly(f, both)
                other.join(10)  # which came while it was loaded, and had its turn afterwards
                f.expect("RESTORED\n")
                os.write(f.master, b"sum 0 1000\n")
                f.pause()
                f.resume()
                assert f.expect("\n").rstrip() == total
                slowly(f, lambda: (f.say("sum 20000 1000"), f.pause()))
                assert f.state() == "Paused"
            # One that never answers does not keep it from ending.
            with Front(w, "c") as f:
                handler.send_signal(signal.SIGSTOP)
                threading.Timer(0.3, f.process.terminate).start()
                f.refused("PUT", "/snapshot/load", load, "has ended")
                assert f.process.wait(10) == -signal.SIGTERM
        finally:
            handler.kill()
            handler.wait(10)


main(globals())
