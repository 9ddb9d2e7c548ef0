#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Drives with copy-on-write layers, with the tiny guest: clones that write the same sector,
chains of snapshots, kept layers over a kill, and what is refused."""
import hashlib
import mmap
import os
import resource
import shutil
import signal
import tempfile
import time

from thawlib import Daemon, alive, main, need_kvm, recorded, thaw, wait_until

MIB = 1 << 20


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def make_base(d, name="base.img", mib=32):
    path = os.path.join(d.folder, name)
    with open(path, "wb") as f:
        f.truncate(mib * MIB)
        for sector in (8, 9, 1000):
            f.seek(sector * 512)
            f.write(b"base-%d\0" % sector)
    os.chmod(path, 0o444)
    return path


def drive(path, **more):
    return {"id": "root", "path": path, **more}


def snapshot(d, vm, name):
    r = d.post("/v1/snapshots", {"name": name, "vm": vm})
    assert r.status == 201, r
    return r.json


def clone(d, name, count=1, **spec):
    body = {"clones": [spec] * count} if spec else {"count": count}
    r = d.post(f"/v1/snapshots/{name}/clone", body)
    assert r.status == 201, r
    names = [c["name"] for c in r.json["clones"]]
    for n in names:
        d.expect(n, "RESTORED\n")
    return names


def layers_left(d):
    return os.listdir(os.path.join(d.state_dir, "layers"))


def test_clones_write_the_same_sector():
    need_kvm()
    with Daemon() as d:
        base = make_base(d)
        before = digest(base)
        v = d.create("src", drives=[drive(base, layer="ephemeral")])
        assert v["config"]["drives"][0]["layer"] == "ephemeral", v
        d.expect("src", "READY\n")
        assert d.say("src", "blk r 8") == "OK base-8"
        assert d.say("src", "blk w 8 from-src") == "OK"
        assert d.say("src", "blk f") == "OK"
        s = snapshot(d, "src", "snap")
        assert s["files"]["layer-0.0"]["size_bytes"] > 32 * MIB, s
        assert s["files"]["layer-0.0"]["data_bytes"] < 1 * MIB, s
        assert d.say("src", "blk w 9 later") == "OK"  # into the fresh layer
        names = clone(d, "snap", 3)
        for n in names:
            assert d.say(n, "blk r 8") == "OK from-src"
            assert d.say(n, "blk r 9") == "OK base-9"
            assert d.say(n, "blk r 1000") == "OK base-1000"
            assert d.say(n, f"blk w 8 {n}") == "OK"
        for n in names:
            assert d.say(n, "blk r 8") == f"OK {n}"
        assert d.say("src", "blk r 8") == "OK from-src"
        assert d.say("src", "blk r 9") == "OK later"
        assert digest(base) == before
        assert d.post("/v1/snapshots/snap/verify").status == 200

        # A snapshot of a clone, and clones of that: two layers below each.
        s2 = snapshot(d, names[1], "snap2")
        assert {"layer-0.0", "layer-0.1"} <= set(s2["files"]), s2
        # Clones of it run, so by force; snap2 has its own links.
        assert d.delete("/v1/snapshots/snap?force=true").status == 204
        for n in clone(d, "snap2", 2):
            assert d.say(n, "blk r 8") == f"OK {names[1]}"
            assert d.say(n, "blk r 1000") == "OK base-1000"
            assert d.say(n, "blk w 8 third") == "OK"
        # The source again, whose older layer the deleted snapshot had, too.
        snapshot(d, "src", "snap3")
        (n,) = clone(d, "snap3")
        assert d.say(n, "blk r 8") == "OK from-src" and d.say(n, "blk r 9") == "OK later"
        assert digest(base) == before
        for v in d.get("/v1/vms").json["vms"]:
            assert d.delete(f"/v1/vms/{v['name']}").status == 204
        assert layers_left(d) == []
        d.stop()
        d.start()
        (n,) = clone(d, "snap3")
        assert d.say(n, "blk r 9") == "OK later"


def test_a_hundred_clones_without_overrides():
    need_kvm()
    with Daemon() as d:
        d.create("src", memory_mib=8, drives=[drive(make_base(d), layer="ephemeral")])
        d.expect("src", "READY\n")
        snapshot(d, "src", "snap")
        fds = d.open_fds()
        r = thaw(d, "clone", "snap", "--count", "100")
        assert r.returncode == 0, r
        for n in ("snap-1", "snap-100"):
            d.expect(n, "RESTORED\n")
        assert d.say("snap-100", "blk w 8 x") == "OK"
        assert d.say("snap-1", "blk r 8") == "OK base-8"
        assert len(layers_left(d)) == 101
        wait_until("records are written", lambda: d.open_fds() <= fds + 100 * 2 + 4)  # pidfd and socket of each
        for i in range(1, 101):
            assert d.delete(f"/v1/vms/snap-{i}").status == 204
        assert len(layers_left(d)) == 1


def test_kept_layer_outlives_a_kill():
    need_kvm()
    with Daemon() as d:
        base = make_base(d)
        before = digest(base)
        kept = os.path.join(d.folder, "kept")

        def start(name):
            d.create(name, drives=[drive(base, layer="kept", layer_path=kept)])
            d.expect(name, "READY\n")

        def kill(name):
            pid = d.vm(name)["pid"]
            os.kill(pid, signal.SIGKILL)
            wait_until("it is gone", lambda: not alive(pid))
            d.wait_state(name, "exited")
            assert d.delete(f"/v1/vms/{name}").status == 204

        start("a")
        assert d.say("a", "blk w 8 flushed") == "OK"
        assert d.say("a", "blk f") == "OK"
        kill("a")
        start("b")
        assert d.say("b", "blk r 8") == "OK flushed"
        assert d.say("b", "blk r 9") == "OK base-9"
        r = d.post("/v1/vms", {"name": "c", "kernel": d.vm("b")["config"]["kernel"], "discovery": "cmdline",
                               "drives": [drive(base, layer="kept", layer_path=kept)]})
        assert (r.status, r.code) == (409, "in_use"), r
        snapshot(d, "b", "snap")  # freezes "0", goes on with "1"
        assert sorted(os.listdir(kept)) == ["0", "1"]
        assert d.say("b", "blk w 9 second") == "OK"
        assert d.say("b", "blk f") == "OK"
        kill("b")
        assert d.delete("/v1/snapshots/snap").status == 204
        d.stop()
        d.start()
        start("e")
        assert d.say("e", "blk r 8") == "OK flushed"
        assert d.say("e", "blk r 9") == "OK second"
        # A clone's layer is ephemeral unless it asks for a kept one.
        snapshot(d, "e", "again")
        (n,) = clone(d, "again")
        assert d.vm(n)["config"]["drives"][0]["layer"] == "ephemeral"
        mine = os.path.join(d.folder, "mine")
        (n,) = clone(d, "again", drives=[{"id": "root", "layer": "kept", "layer_path": mine}])
        assert d.say(n, "blk w 9 third") == "OK" and d.say(n, "blk f") == "OK"
        kill(n)
        d.create("f", drives=[drive(base, layer="kept", layer_path=mine)])
        d.expect("f", "READY\n")
        assert d.say("f", "blk r 8") == "OK flushed" and d.say("f", "blk r 9") == "OK third"
        assert digest(base) == before


def writable_disk(d, name="disk.img", mib=4):
    path = make_base(d, name, mib)
    os.chmod(path, 0o600)
    return path


def direct_sectors(d):
    """Can single sectors of a file be read past the page cache here?"""
    try:
        fd = os.open(writable_disk(d, "direct.img"), os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return False
    try:
        return os.preadv(fd, [memoryview(mmap.mmap(-1, 4096))[:512]], 512) == 512
    except OSError:
        return False
    finally:
        os.close(fd)


def kill_at_once(d, name):
    pid = d.vm(name)["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until("it is gone", lambda: not alive(pid))
    d.wait_state(name, "exited")
    assert d.delete(f"/v1/vms/{name}").status == 204


def test_what_was_flushed_survives_a_kill():
    """Raw and in a layer that is kept; what the host's disk got is checked in tests/devices/test_layer.c."""
    need_kvm()
    with Daemon() as d:
        kept = os.path.join(d.folder, "kept")
        kinds = [{}, {"block_size": 4096}, {"layer": "kept", "layer_path": kept}]
        if direct_sectors(d):
            kinds.append({"direct": True})
        for n, more in enumerate(kinds):
            disk = writable_disk(d, f"disk{n}.img")
            expected = {8: "base-8"}
            for turn in range(4):
                d.create("a", drives=[drive(disk, **more)])
                d.expect("a", "READY\n")
                for sector, text in expected.items():
                    assert d.say("a", f"blk r {sector}") == f"OK {text}"
                for sector in (8, 100 + turn, 5000):
                    expected[sector] = f"{n}-{turn}-{sector}"
                    assert d.say("a", f"blk w {sector} {expected[sector]}") == "OK"
                assert d.say("a", f"blk z {200 + turn} 1") == "OK"
                expected[200 + turn] = ""
                assert d.say("a", "blk f") == "OK"
                kill_at_once(d, "a")
            if "layer" not in more:
                with open(disk, "rb") as f:
                    for sector, text in expected.items():
                        f.seek(sector * 512)
                        assert f.read(512).rstrip(b"\0") == text.encode()


def test_zeros_hide_what_is_below():
    need_kvm()
    with Daemon() as d:
        base = make_base(d)
        before = digest(base)
        d.create("src", drives=[drive(base, layer="ephemeral")])
        d.expect("src", "READY\n")
        assert d.say("src", "blk d 8 1") == "OK" and d.say("src", "blk z 1000 8") == "OK"
        assert d.say("src", "blk r 8") == "OK " and d.say("src", "blk r 9") == "OK base-9"
        snapshot(d, "src", "snap")
        (n,) = clone(d, "snap")
        assert d.say(n, "blk r 1000") == "OK " and d.say(n, "blk r 8") == "OK "
        assert d.say(n, "blk w 8 mine") == "OK" and d.say(n, "blk d 9 1") == "OK"
        assert d.say(n, "blk r 8") == "OK mine" and d.say(n, "blk r 9") == "OK "
        assert d.say("src", "blk r 9") == "OK base-9"
        assert d.say(n, "blk d 65535 2").endswith("virtio-blk failed")  # beyond the end
        assert digest(base) == before


def queue_threads(d, name):
    return d.threads(name).count("blk-queue")


def test_two_queues():
    need_kvm()
    with Daemon() as d:
        disks = [writable_disk(d, f"disk{i}.img") for i in range(3)]
        d.create("src", vcpus=2, drives=[drive(disks[0], queues=2)])
        d.expect("src", "READY\n")
        assert queue_threads(d, "src") == 1
        for q in (1, 0, 1):
            assert d.say("src", f"blk q {q}") == "OK"
            assert d.say("src", f"blk r {8 + q}") == f"OK base-{8 + q}"
            assert d.say("src", f"blk w {20 + q} from-{q}") == "OK" and d.say("src", "blk f") == "OK"
        for i in range(5):
            assert d.post("/v1/vms/src/pause").status == 200
            assert d.post("/v1/vms/src/resume").status == 200
            assert d.say("src", "blk r 21") == "OK from-1"
        snapshot(d, "src", "snap")
        shutil.copyfile(disks[0], disks[1])
        (n,) = clone(d, "snap", drives=[{"id": "root", "path": disks[1]}])
        assert d.say(n, "blk r 20") == "OK from-0" and d.say(n, "blk w 20 clone") == "OK"
        assert d.say(n, "blk q 0") == "OK" and d.say(n, "blk r 20") == "OK clone"
        shutil.copyfile(disks[0], disks[2])
        r = d.post("/v1/vms/src/clone", {"clones": [{"drives": [{"id": "root", "path": disks[2]}]}]})
        assert r.status == 201, r
        f = r.json["clones"][0]["name"]
        d.expect(f, "RESTORED\n")
        assert d.say(f, "blk r 21") == "OK from-1" and d.say(f, "blk w 21 fork") == "OK"
        assert d.say("src", "blk r 21") == "OK from-1" and d.say("src", "blk r 20") == "OK from-0"
        # With layers, too, all by one thread.
        d.create("layered", vcpus=2, drives=[drive(make_base(d), queues=2, layer="ephemeral")])
        d.expect("layered", "READY\n")
        assert queue_threads(d, "layered") == 0
        for q in (0, 1):
            assert d.say("layered", "blk r 8") == "OK base-8"
            assert d.say("layered", f"blk q {q}") == "OK"
            assert d.say("layered", f"blk w 8 base-8") == "OK"
        r = d.post("/v1/vms", {"name": "x", "kernel": disks[0], "drives": [drive(disks[0], queues=2)]})
        assert (r.status, r.code) == (400, "invalid_value") and "vCPUs" in r.message, r


def numbered_disk(d, name, mib=1):
    path = os.path.join(d.folder, name)
    with open(path, "wb") as f:
        for sector in range(mib * MIB // 512):
            f.write(sector.to_bytes(8, "little") + bytes(504))
    return path


def test_four_queues_with_traffic():
    need_kvm()
    with Daemon() as d:
        ours, theirs = numbered_disk(d, "ours"), numbered_disk(d, "theirs")
        os.chmod(theirs, 0o444)
        n_sectors = MIB // 512
        for vm, more in (("writes", {"path": ours}), ("reads", {"path": theirs, "read_only": True})):
            d.create(vm, vcpus=4, drives=[{"id": "root", "queues": 4, **more}])
            d.expect(vm, "READY\n")
            assert queue_threads(d, vm) == 3

        def traffic(vm, how, rounds):
            _, offset = d.console(vm)
            assert d.put(f"/v1/vms/{vm}/console", f"blk t {n_sectors} {rounds} {how}\n").status == 204
            return vm, offset

        limits = ({"bandwidth": {"size": MIB, "refill_time_ms": 50}}, {"ops": {"size": 200, "refill_time_ms": 20}}, {})
        in_time = 0
        for i in range(6):
            running = [traffic("writes", "w", 400), traffic("reads", "r", 800)]
            for vm, _ in running:
                r = d.request("PATCH", f"/v1/vms/{vm}/drives/root", {"rate_limit": limits[i % 3]})
                assert r.status == 200, r
                snapshot(d, vm, f"{vm}-{i}")
            r = d.request("PATCH", "/v1/vms/writes/drives/root", {"size_bytes": (i + 2) * MIB})
            assert r.status == 200, r
            in_time += not any(d.console(*r)[0] for r in running)
            r = d.post("/v1/vms/reads/clone", {"clones": [{"name": f"fork-{i}"}]})
            assert r.status == 201, r
            r = d.post(f"/v1/snapshots/reads-{i}/clone", {"clones": [{"name": f"clone-{i}"}]})
            assert r.status == 201, r
            for vm, offset in running:
                assert d.expect(vm, "\n", offset)[0] == "OK\n"
            # Copies of the middle of it go on to the end.
            for n in (f"fork-{i}", f"clone-{i}"):
                assert "ERR" not in d.expect(n, "RESTORED\n")[0]
                assert d.say(n, f"blk t {n_sectors} 20 r") == "OK" and queue_threads(d, n) == 3
                assert d.delete(f"/v1/vms/{n}").status == 204
        assert in_time, "there was no traffic"
        with open(ours, "rb") as f:
            for sector in range(n_sectors):
                assert int.from_bytes(f.read(512)[:8], "little") == sector
        assert d.say("writes", "blk c") == f"OK {7 * MIB // 512}"


def test_rate_limit():
    need_kvm()
    with Daemon() as d:
        limit = {"ops": {"size": 4, "refill_time_ms": 1000}}
        v = d.create("src", drives=[drive(make_base(d), layer="ephemeral", rate_limit=limit)])
        assert v["config"]["drives"][0]["rate_limit"] == limit, v
        d.expect("src", "READY\n")
        start = time.monotonic()
        for i in range(8):
            assert d.say("src", f"blk w {i} {i}") == "OK"
        assert 0.9 < time.monotonic() - start < 5
        # One more waits in the queue: through a pause, a snapshot, and in the clone, whose bucket is full.
        _, offset = d.console("src")
        assert d.put("/v1/vms/src/console", "blk w 100 throttled\n").status == 204
        assert d.post("/v1/vms/src/pause").status == 200
        snapshot(d, "src", "snap")
        r = d.post("/v1/snapshots/snap/clone", {})
        assert r.status == 201, r
        n = r.json["clones"][0]["name"]
        assert d.post("/v1/vms/src/resume").status == 200
        d.expect("src", "OK", offset)
        assert d.say("src", "blk r 100") == "OK throttled"
        d.expect(n, "OK")
        assert d.say(n, "blk r 100") == "OK throttled"
        assert d.vm(n)["config"]["drives"][0]["rate_limit"] == limit


def test_another_size_and_rate():
    need_kvm()
    with Daemon() as d:
        disk = writable_disk(d)
        d.create("src", drives=[drive(disk), {"id": "two", "path": make_base(d), "layer": "ephemeral"}])
        d.expect("src", "READY\n")
        assert d.say("src", "blk c") == f"OK {4 * MIB // 512}"

        def patch(body, which="root", vm="src"):
            return d.request("PATCH", f"/v1/vms/{vm}/drives/{which}", body)

        assert patch({"size_bytes": 8 * MIB}).status == 200
        assert os.path.getsize(disk) == 8 * MIB
        assert d.say("src", "blk c") == f"OK {8 * MIB // 512}"
        assert d.say("src", f"blk w {8 * MIB // 512 - 1} last") == "OK"
        os.truncate(disk, 10 * MIB)
        assert d.say("src", "blk c") == f"OK {8 * MIB // 512}"
        assert thaw(d, "drive-set", "src", "root", "--reread").returncode == 0
        assert d.say("src", "blk c") == f"OK {10 * MIB // 512}"
        for body, text, which in (({"size_bytes": 1 * MIB}, "nothing is cut off", "root"),
                                  ({"size_bytes": 64 * MIB}, "with a layer", "two"),
                                  ({"size_bytes": 64 * MIB, "reread_size": True}, "not both", "root"),
                                  ({"rate_limit": {"ops": {"size": 1}}}, "refill_time_ms", "root")):
            r = patch(body, which)
            assert r.status == 400 and text in r.message, r
        assert patch({}, "three").status == 404 and patch({}, vm="none").status == 404

        limit = {"ops": {"size": 2, "refill_time_ms": 500}}
        r = patch({"rate_limit": limit})
        assert r.status == 200 and r.json["config"]["drives"][0]["rate_limit"] == limit, r
        start = time.monotonic()
        for i in range(5):
            assert d.say("src", "blk r 8") == "OK base-8"
        assert time.monotonic() - start > 0.7
        # The next daemon hears of it from the VM; snapshots have it, unless the clone gets another.
        recorded(d, "src")
        d.stop(signal.SIGKILL)
        d.start()
        assert d.vm("src")["config"]["drives"][0]["rate_limit"] == limit
        snapshot(d, "src", "snap")
        copies = [os.path.join(d.folder, f"copy{i}") for i in range(2)]
        for c in copies:
            shutil.copyfile(disk, c)
        (a,) = clone(d, "snap", drives=[{"id": "root", "path": copies[0]}])
        assert d.vm(a)["config"]["drives"][0]["rate_limit"] == limit
        assert d.say(a, "blk c") == f"OK {10 * MIB // 512}"
        (b,) = clone(d, "snap", drives=[{"id": "root", "path": copies[1], "rate_limit": {}}])
        assert "rate_limit" not in d.vm(b)["config"]["drives"][0]
        assert d.delete(f"/v1/vms/{b}").status == 204
        r = thaw(d, "clone", "snap", "--name", "slow", "--drive", f"id=root,path={copies[1]},iops=9")
        assert r.returncode == 0, r
        assert d.vm("slow")["config"]["drives"][0]["rate_limit"]["ops"]["size"] == 9
        assert thaw(d, "drive-set", "src", "root", "--limit", "bandwidth=1M/s,iops=2K").returncode == 0
        got = d.vm("src")["config"]["drives"][0]["rate_limit"]
        assert got == {"bandwidth": {"size": MIB, "refill_time_ms": 1000},
                       "ops": {"size": 2048, "refill_time_ms": 1000}}, got
        assert thaw(d, "drive-set", "src", "root", "--limit", "none").returncode == 0
        assert "rate_limit" not in d.vm("src")["config"]["drives"][0]
        assert d.delete("/v1/vms/src").status == 204


def test_overrides():
    need_kvm()
    with Daemon() as d:
        base = make_base(d)
        d.create("src", drives=[drive(base, layer="ephemeral")])
        d.expect("src", "READY\n")
        d.say("src", "blk w 8 mine")
        snapshot(d, "src", "snap")
        moved = os.path.join(d.folder, "moved.img")
        os.rename(base, moved)
        r = d.post("/v1/snapshots/snap/clone", {})
        assert (r.status, r.code) == (422, "file_not_found"), r
        (n,) = clone(d, "snap", drives=[{"id": "root", "path": moved}])
        assert d.say(n, "blk r 8") == "OK mine"
        whole = os.path.join(d.folder, "whole.img")
        shutil.copyfile(moved, whole)
        (n,) = clone(d, "snap", drives=[{"id": "root", "path": whole, "layer": "none"}])
        assert d.say(n, "blk r 8") == "OK base-8"
        assert d.say(n, "blk w 8 direct") == "OK" and d.say(n, "blk f") == "OK"
        with open(whole, "rb") as f:
            f.seek(8 * 512)
            assert f.read(6) == b"direct"
        r = d.post("/v1/snapshots/snap/clone", {"clones": [{"drives": [{"id": "root", "layer": "none"}]}]})
        assert (r.status, r.code) == (400, "invalid_value") and "path" in r.message, r


def test_what_is_refused():
    need_kvm()
    with Daemon() as d, tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        base = make_base(d)

        def refused(status, code, text, **more):
            r = d.post("/v1/vms", {"name": "x", "kernel": base, "drives": [drive(base, **more)]})
            assert (r.status, r.code) == (status, code) and text in r.message, r
            assert layers_left(d) == [] and d.vm_processes() == []

        refused(400, "invalid_value", "ephemeral", layer="other")
        refused(400, "invalid_value", "read-only", layer="ephemeral", read_only=True)
        refused(400, "invalid_value", "layer_path", layer="kept")
        refused(400, "invalid_value", "kept only", layer="ephemeral", layer_path="/x")
        refused(422, "kernel_invalid", "", layer="ephemeral")
        refused(422, "file_invalid", "", layer="kept", layer_path=base)
        refused(422, "file_not_found", "", layer="kept", layer_path=os.path.join(d.folder, "no/where"))
        if os.stat(elsewhere).st_dev != os.stat(d.folder).st_dev:
            refused(422, "file_invalid", "file system", layer="kept", layer_path=elsewhere)
        junk = os.path.join(d.folder, "junk")
        os.mkdir(junk)
        with open(os.path.join(junk, "0"), "wb") as f:
            f.write(b"x" * 5000)
        r = d.post("/v1/vms", {"name": "x", "kernel": os.path.join(d.folder, "base.img"), "drives": [
            drive(base, layer="kept", layer_path=junk)]})
        assert r.status == 422 or "layer" in r.message, r
        assert os.listdir(junk) == ["0"]


def test_snapshots_until_there_are_too_many_layers():
    need_kvm()
    with Daemon() as d:
        d.create("src", memory_mib=8, drives=[drive(make_base(d), layer="ephemeral")])
        d.expect("src", "READY\n")
        for i in range(15):
            assert d.say("src", f"blk w {i} layer-{i}") == "OK"
            snapshot(d, "src", f"s{i}")
        r = d.post("/v1/snapshots", {"name": "s15", "vm": "src"})
        assert (r.status, r.code) == (503, "limit_reached") and "16 layers" in r.message, r
        assert d.leftovers() == []
        (n,) = clone(d, "s14")
        for i in range(15):
            assert d.say(n, f"blk r {i}") == f"OK layer-{i}"
        (n,) = clone(d, "s7")
        assert d.say(n, "blk r 7") == "OK layer-7" and d.say(n, "blk r 8") == "OK base-8"


def test_snapshots_that_fail_lose_nothing():
    need_kvm()
    with Daemon() as d:
        d.create("src", memory_mib=64, drives=[drive(make_base(d, mib=8), layer="ephemeral")])
        d.expect("src", "READY\n")
        pid = d.vm("src")["pid"]
        assert d.say("src", "blk w 8 first") == "OK"
        # No file may be that large: first the memory file can't be made, when the layers are
        # frozen already; then the fresh layer can't be made.
        for limit in (16 * MIB, 4 * MIB):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            r = d.post("/v1/snapshots", {"name": "bad", "vm": "src"})
            assert r.status >= 500, r
            assert d.leftovers() == []
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert d.say("src", f"blk w 9 after-{limit}") == "OK"
            assert d.say("src", "blk r 8") == "OK first"
            snapshot(d, "src", f"good-{limit}")
            (n,) = clone(d, f"good-{limit}")
            assert d.say(n, "blk r 8") == "OK first" and d.say(n, "blk r 9") == f"OK after-{limit}"
        (folder,) = [f for f in layers_left(d) if f.startswith(d.vm("src")["id"])]
        # One for the first failure and one for each good snapshot, and the one it writes to.
        assert sorted(os.listdir(os.path.join(d.state_dir, "layers", folder))) == ["0", "1", "2", "3"]


def test_damaged_layers():
    need_kvm()
    with Daemon() as d:
        d.create("src", drives=[drive(make_base(d), layer="ephemeral")])
        d.expect("src", "READY\n")
        d.say("src", "blk w 8 mine")
        snapshot(d, "src", "snap")
        layer = os.path.join(d.state_dir, "snapshots/snap/layer-0.0")
        assert os.stat(layer).st_mode & 0o777 == 0o400
        os.chmod(layer, 0o600)
        with open(layer, "r+b") as f:
            f.seek(os.path.getsize(layer) - 32 * MIB + 8 * 512)
            assert f.read(4) == b"mine"
            f.seek(-1, os.SEEK_CUR)
            f.write(b"X")
        r = d.post("/v1/snapshots/snap/clone", {})
        assert (r.status, r.code) == (422, "snapshot_corrupt") and "layer-0.0" in r.message, r
        assert len(layers_left(d)) == 1  # the source's
        os.truncate(layer, 5000)
        r = d.post("/v1/snapshots/snap/clone", {})
        assert (r.status, r.code) == (422, "snapshot_corrupt"), r
        os.unlink(layer)
        assert d.post("/v1/snapshots/snap/verify").code == "snapshot_corrupt"
        assert d.delete("/v1/snapshots/snap").status == 204


def test_killed_daemon_leaves_nothing_for_the_next():
    need_kvm()
    with Daemon() as d:
        d.create("src", drives=[drive(make_base(d), layer="ephemeral")])
        d.expect("src", "READY\n")
        pid = d.vm("src")["pid"]
        assert len(layers_left(d)) == 1
        recorded(d, "src")
        d.stop(signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)  # else the next daemon keeps both: test_restart.py
        wait_until("the VM is gone, too", lambda: not alive(pid))
        d.start()
        assert layers_left(d) == []


if __name__ == "__main__":
    main(globals())
