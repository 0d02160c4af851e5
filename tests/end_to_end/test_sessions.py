"""A vendor's life with pull sessions: JSON and plain NBD tools only (nbdinfo, nbdcopy, qemu-img).

What is pulled is compared with what QEMU itself copied when the session began. All parts of a session are at work here:
session_begin, session_end, session_offline, session_status, session_recovery, session_daemon and session_watcher (its
__main__ and its process), tracker and checkpoint; session_survey, session_server, session_lock and
session_close.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.certificates import CA_EXTENSIONS
from tests.daemon import Daemon, wait_for
from tests.lab import HEEDING_SIGNALS, DiskSpec, Machine, compare, domain_xml
from vbackup.domain.host import libvirt
from vbackup.qemu import storage_daemon

if TYPE_CHECKING:
    from tests.conftest import Command

#: The second one is on SCSI: such a disk is detached without the help of a guest.
DEVS = ("vda", "sda")


class Vendor:
    """A product that pulls a domain's disks, its copies of them, and references of what they held."""

    def __init__(self, daemon: Daemon, command: Command, directory: Path, name: str) -> None:
        self.daemon, self.command, self.directory, self.name = daemon, command, directory, name
        self.specs = [
            DiskSpec(directory / "vda.qcow2", size="64M"),
            DiskSpec(directory / "sda.raw", dev="sda", bus="scsi", format="raw", size=str(17 * 1024 * 1024 + 512)),
        ]
        for spec in self.specs:
            spec.create()
            spec.path.chmod(0o666)
        self.machine: Machine
        self._references = 0
        self._uuid = str(uuid.uuid4())
        self.defined = daemon.define(self.xml())

    def xml(self) -> str:
        disks = [spec.xml() for spec in self.specs]
        return domain_xml(self.name, disks, top=f"<uuid>{self._uuid}</uuid>")

    def off(self) -> None:
        """Shut the domain down, as QEMU does at its end: bitmaps are stored."""
        self.machine.handle.domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)

    def record(self, session: dict[str, Any]) -> dict[str, Any]:
        """What vbackup has written down of a session."""
        state = Path(os.environ["VBACKUP_SESSIONS"]) / session["domain"]["uuid"]
        record: dict[str, Any] = json.loads((state / f"session-{session['id']}.json").read_text())
        return record

    def start(self) -> None:
        self.defined.handle.domain.create()
        self.machine = self.defined
        self.find_nodes()

    def find_nodes(self) -> None:
        """Find the active layers, which are those of the disks without the filters of sessions."""
        roots = {one.get("qdev"): one["inserted"]["node-name"] for one in self.machine.execute("query-block")}
        self._nodes = {dev: roots[self.machine.qdev(dev)] for dev in DEVS}

    def vbackup(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        done = self.command("-c", self.daemon.uri, "-q", *arguments, "--json", status=status)
        return done.document

    def session(self, step: str, *arguments: str, status: int = 0) -> dict[str, Any]:
        return self.vbackup("session", step, *arguments, status=status)

    def begin(self, *options: str, tracker: str = "acme", status: int = 0) -> dict[str, Any]:
        return self.session(
            "begin", self.name, "--tracker", tracker, "--scratch", str(self.directory), *options, status=status
        )

    def reference(self) -> dict[str, Path]:
        """What the disks hold now, copied by QEMU."""
        self._references += 1
        made = {}
        for spec in self.specs:
            path = self.directory / f"reference-{self._references}-{spec.dev}.qcow2"
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), spec.size], check=True)
            path.chmod(0o666)
            job = f"reference-{spec.dev}"
            file = {"driver": "file", "filename": str(path)}
            self.machine.execute("blockdev-add", driver="qcow2", node_name=job, file=file)
            # The active layer, also below the filters of sessions.
            self.machine.execute("blockdev-backup", device=self._nodes[spec.dev], job_id=job, target=job, sync="full")
            wait_for(lambda job=job: job not in {one["id"] for one in self.machine.execute("query-jobs")}, "the copy")
            self.machine.execute("blockdev-del", node_name=job)
            made[spec.dev] = path
        return made

    def copy(self, dev: str) -> Path:
        """The vendor's copy of a disk."""
        return self.directory / f"copy-{dev}.raw"

    def pull(self, session: dict[str, Any]) -> dict[str, int]:
        """Pull each disk onto its copy: the whole disk, or what has changed; returns the bytes that were pulled."""
        pulled = {}
        for disk in session["disks"]:
            copy = self.copy(disk["dev"])
            if disk["base_context"] is None:
                subprocess.run(["nbdcopy", disk["uri"], str(copy)], check=True)
                os.truncate(copy, disk["size_bytes"])
                pulled[disk["dev"]] = disk["size_bytes"]
                continue
            dirty = [one for one in extents(disk["uri"], disk["base_context"]) if one["type"]]
            for one in dirty:
                pull_range(disk["uri"], copy, one["offset"], one["length"])
            pulled[disk["dev"]] = sum(one["length"] for one in dirty)
        return pulled

    def check(self, references: dict[str, Path]) -> None:
        """The copies are what the disks held."""
        for dev, reference in references.items():
            done = subprocess.run(
                ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", self.copy(dev), reference],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{dev}: {done.stdout}{done.stderr}"


def extents(uri: str, context: str) -> list[dict[str, Any]]:
    done = subprocess.run(["nbdinfo", f"--map={context}", "--json", uri], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def pull_range(uri: str, copy: Path, start: int, length: int) -> None:
    """Copy a range with qemu-img, zeros included."""
    path, _, where = uri.removeprefix("nbd+unix:///").partition("?socket=")
    server = {"driver": "nbd", "export": path, "server": {"type": "unix", "path": where}}
    source = {"driver": "raw", "offset": start, "size": length, "file": server}
    target = {"driver": "raw", "offset": start, "size": length, "file": {"driver": "file", "filename": str(copy)}}
    argv = ["qemu-img", "convert", "-n", f"json:{json.dumps(source)}", f"json:{json.dumps(target)}"]
    subprocess.run(argv, check=True)


@pytest.fixture
def vendor(daemon: Daemon, command: Command, images: Path, sockets: Path) -> Vendor:
    made = Vendor(daemon, command, images, "pulled")
    images.chmod(0o777)  # QEMU, which is not root, makes the references
    made.start()
    return made


def test_life_of_a_vendor(vendor: Vendor) -> None:
    machine = vendor.machine
    machine.write("vda", "write -P 1 0 8M", "write -P 2 20M 1M")
    machine.write("sda", "write -P 3 0 3M", "write -P 4 16M 1M", "write -P 5 17M 512")
    clean = machine.state()
    for turn in range(10):
        held = vendor.reference()
        session = vendor.begin()
        assert session["state"] == "open"
        assert [disk["level"] for disk in session["disks"]] == ["full" if turn == 0 else "incremental"] * 2
        for dev in DEVS:  # the guest goes on
            machine.write(dev, f"write -P {turn + 100} {turn}M 2M", f"write -z {turn + 3}M 1M", "discard 8M 1M")
        machine.write("sda", f"write -P {turn + 6} 17M 512")  # the end, which is no whole cluster
        pulled = vendor.pull(session)
        vendor.check(held)
        assert turn == 0 or sum(pulled.values()) < 16 * 1024 * 1024
        assert vendor.session("commit", session["id"])["state"] == "committed"
        assert vendor.session("commit", session["id"])["state"] == "committed"
    state = machine.state()
    assert (state["nodes"], state["jobs"], state["fdsets"]) == (clean["nodes"], [], [])
    checkpoints = vendor.vbackup("checkpoint", "list", vendor.name)["checkpoints"]
    assert [one["is_base"] for one in checkpoints][-1]
    assert vendor.vbackup("tracker", "list")["trackers"][0]["base"] == checkpoints[-1]["id"]


# what dies


BEGIN = [
    ("vbackup.sessions.store:DomainStore.write", "before", 1),
    ("vbackup.sessions.store:DomainStore.write", "after", 1),
    ("vbackup.engine.session_scratch:open_overlays", "after", 1),
    ("vbackup.engine.session_server:start", "after", 1),
    ("vbackup.operations.session_begin:send", "after", 1),
    ("vbackup.engine.session_server:add_exports", "after", 1),
]
COMMIT = [
    ("vbackup.sessions.store:DomainStore.write_tracker", "before", 1),
    ("vbackup.sessions.store:DomainStore.write_tracker", "after", 1),
    ("vbackup.engine.session_server:remove_exports", "after", 1),
    ("vbackup.engine.session_close:in_qemu", "after", 1),
]
ABORT = [
    ("vbackup.sessions.store:DomainStore.write", "after", 1),
    ("vbackup.engine.session_server:remove_exports", "after", 1),
]


def killed(vendor: Vendor, place: tuple[str, str, int], *arguments: str) -> None:
    where, when, number = place
    argv = [*HEEDING_SIGNALS, sys.executable, "-m", "tests.end_to_end.killed_session", where, when, str(number), "--"]
    done = subprocess.run(
        [*argv, "-c", vendor.daemon.uri, "-q", "session", *arguments, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_vbackup_that_is_killed_leaves_the_base_as_it_was(vendor: Vendor) -> None:
    machine = vendor.machine
    machine.write("vda", "write -P 1 0 4M")
    first = vendor.begin()
    vendor.pull(first)
    vendor.session("commit", first["id"])
    clean = machine.state()
    begin = ["begin", vendor.name, "--tracker", "acme", "--scratch", str(vendor.directory)]
    for turn, place in enumerate(BEGIN):
        killed(vendor, place, *begin)
        machine.write("vda", f"write -P {turn + 10} {turn}M 1M", f"write -z {turn + 20}M 64k")
        held = vendor.reference()
        session = vendor.begin()
        assert session["base_checkpoint"] == first["checkpoint"]
        vendor.pull(session)
        vendor.check(held)
        vendor.session("abort", session["id"])
        assert machine.state() == clean, place
    for place in ABORT:
        session = vendor.begin()
        killed(vendor, place, "abort", session["id"])
        assert vendor.session("abort", session["id"])["state"] == "aborted"
        assert machine.state() == clean, place
    for turn, place in enumerate(COMMIT):
        base = vendor.vbackup("tracker", "list")["trackers"][0]["base"]
        held = vendor.reference()
        session = vendor.begin()
        machine.write("vda", f"write -P {turn + 30} {turn}M 1M")
        vendor.pull(session)
        vendor.check(held)
        killed(vendor, place, "commit", session["id"])
        is_committed = place != COMMIT[0]
        now = vendor.vbackup("tracker", "list")["trackers"][0]["base"]
        assert now == (session["checkpoint"] if is_committed else base)
        assert vendor.session("commit", session["id"])["state"] == "committed"
        state = machine.state()
        assert (state["nodes"], state["jobs"], state["fdsets"]) == (clean["nodes"], [], []), place


def session_daemons() -> list[int]:
    return [pid for pid, mark in storage_daemon.marked() if mark.startswith("session-")]


def test_daemon_of_a_session_whose_begin_was_killed_does_not_stay(vendor: Vendor) -> None:
    """It would lock the images of a domain that is off for ever, and nobody would know of it."""
    vendor.off()
    begin = ["begin", vendor.name, "--tracker", "acme", "--scratch", str(vendor.directory)]
    for place in (("vbackup.sessions.store:DomainStore.write", "before", 2), BEGIN[-1]):
        killed(vendor, place, *begin)
        (pid,) = session_daemons()
        session = vendor.begin()
        assert pid not in session_daemons()
        assert session["disks"][0]["reason_code"] == "no-base"
        vendor.session("abort", session["id"])
    killed(vendor, BEGIN[-1], *begin)
    wait_for(lambda: not session_daemons(), "the watcher")
    vendor.start()


def test_watcher_ends_a_session_whose_begin_was_killed(vendor: Vendor, sockets: Path) -> None:
    """Its scratch images would grow until somebody begins another one."""
    clean = vendor.machine.state()
    killed(vendor, BEGIN[-1], "begin", vendor.name, "--tracker", "acme", "--scratch", str(vendor.directory))
    wait_for(lambda: not list(sockets.glob("2*")), "the watcher")
    (dead,) = vendor.session("list")["sessions"]
    assert (dead["state"], dead["end_reason"]) == ("failed", "vbackup ended while it began the session")
    assert vendor.machine.state() == clean


def test_session_that_nobody_ends_expires(vendor: Vendor, sockets: Path) -> None:
    machine = vendor.machine
    clean = machine.state()
    session = vendor.begin("--ttl", "1s")
    wait_for(lambda: not (sockets / session["id"]).exists(), "the end of the session")
    assert machine.state() == clean
    assert vendor.session("status", session["id"])["state"] == "expired"
    error = vendor.session("commit", session["id"], status=6)
    assert error["retry"] == "begin"
    again = vendor.begin()
    assert [disk["reason_code"] for disk in again["disks"]] == ["no-base"] * 2
    vendor.session("abort", again["id"])


def test_another_session_of_the_tracker_is_refused_and_one_of_another_tracker_is_not(vendor: Vendor) -> None:
    machine = vendor.machine
    machine.write("vda", "write -P 1 0 4M")
    clean = machine.state()
    held = vendor.reference()
    first = vendor.begin()
    error = vendor.begin(status=8)
    assert error["evidence"]["session"] == first["id"]
    machine.write("vda", "write -P 2 0 1M")
    second = vendor.begin(tracker="other")
    assert second["socket"] != first["socket"]
    vendor.pull(first)
    vendor.check(held)
    vendor.session("commit", first["id"])
    held = vendor.reference()
    machine.write("vda", "write -P 3 1M 1M")
    machine.write("vda", "write -P 2 1M 1M")
    third = vendor.begin()
    assert {disk["base_checkpoint"] for disk in third["disks"]} == {first["checkpoint"]}
    vendor.session("commit", second["id"])
    vendor.pull(third)
    vendor.session("commit", third["id"])
    state = machine.state()
    assert (state["nodes"], state["jobs"], state["fdsets"]) == (clean["nodes"], [], [])
    ids = {third["checkpoint"]}
    for count in range(2, 6):  # within one second or two, from which the ids are made
        given_up = vendor.begin()
        vendor.session("abort", given_up["id"])
        ids.add(given_up["checkpoint"])
        assert len(ids) == count
    vendor.vbackup("tracker", "forget", vendor.name, "--tracker", "other")
    vendor.vbackup("tracker", "forget", vendor.name, "--tracker", "acme")
    assert machine.state() == clean


def test_full_scratch_ends_the_session_and_not_the_guest(
    vendor: Vendor, images: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First without a watcher: what could not be saved cannot be read, and the guest notices nothing."""
    scratch = images / "scratch"
    scratch.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(scratch)], check=True)
    try:
        machine = vendor.machine
        machine.write("vda", "write -P 1 0 16M")
        clean = machine.state()
        held = vendor.reference()
        session = vendor.begin("--scratch", str(scratch))
        watcher: int = vendor.record(session)["internal"]["watcher"]["pid"]
        os.kill(watcher, signal.SIGSTOP)
        for start in range(16):
            machine.write("vda", f"write -P 2 {start}M 1M")
        assert machine.execute("query-status")["running"]
        machine.check_content("vda", "-P 2 0 16M")
        failed = subprocess.run(
            ["nbdcopy", session["disks"][0]["uri"], str(vendor.copy("vda"))],
            capture_output=True,
            text=True,
            check=False,
        )
        assert failed.returncode != 0
        readable = 0
        for start in range(0, 64, 4):
            at = start * 1024 * 1024
            try:
                pull_range(session["disks"][0]["uri"], vendor.copy("vda"), at, 4 * 1024 * 1024)
            except subprocess.CalledProcessError:
                continue
            readable += 1
            part = compare_range(vendor.copy("vda"), held["vda"], at, 4 * 1024 * 1024)
            assert part.returncode == 0, (start, part.stdout)
        assert 0 < readable < 16
        os.kill(watcher, signal.SIGCONT)
        wait_for(lambda: not (sockets / session["id"]).exists(), "the end of the session")
        assert vendor.session("status", session["id"])["end_reason"] == "the scratch directory was nearly full"
        assert machine.state() == clean
        machine.check_content("vda", "-P 2 0 16M")
    finally:
        subprocess.run(["umount", "-l", str(scratch)], check=True)


def compare_range(copy: Path, reference: Path, start: int, length: int) -> subprocess.CompletedProcess[str]:
    """Compare a range of a raw copy with that of a qcow2 reference."""
    options = [
        {"driver": "raw", "offset": start, "size": length, "file": {"driver": "file", "filename": str(copy)}},
        {
            "driver": "raw",
            "offset": start,
            "size": length,
            "file": {"driver": "qcow2", "file": {"driver": "file", "filename": str(reference)}},
        },
    ]
    argv = ["qemu-img", "compare", *(f"json:{json.dumps(one)}" for one in options)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


# what becomes of the domain


def test_domain_that_is_off(vendor: Vendor, sockets: Path) -> None:
    """A storage daemon serves it, the domain cannot start meanwhile, and the chain goes on when it runs."""
    machine = vendor.machine
    machine.write("vda", "write -P 1 0 4M")
    machine.write("sda", "write -P 2 0 4M")
    first = vendor.begin()
    vendor.pull(first)
    vendor.session("commit", first["id"])
    machine.write("vda", "write -P 3 1M 1M")
    held = vendor.reference()
    vendor.off()
    before = vendor.specs[0].path.stat()
    session = vendor.begin()
    assert session["consistency"] == "offline"
    levels = {disk["dev"]: (disk["level"], disk["reason_code"]) for disk in session["disks"]}
    assert levels == {"vda": ("incremental", "base-trusted"), "sda": ("full", "disk-without-bitmaps")}
    pulled = vendor.pull(session)
    assert pulled["vda"] <= 1024 * 1024 + 65536
    vendor.check(held)
    with pytest.raises(libvirt.libvirtError, match="lock"):
        vendor.defined.handle.domain.create()
    for spec in vendor.specs:  # the raw one too, which its format does not lock
        words = ["qemu-io", "-f", spec.format, "-c", "write 0 512", str(spec.path)]
        assert "lock" in subprocess.run(words, capture_output=True, text=True, check=False).stderr
    assert vendor.session("abort", session["id"])["state"] == "aborted"
    after = vendor.specs[0].path.stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
    # A vbackup that is killed leaves a daemon, which the next one ends.
    begin = ["begin", vendor.name, "--tracker", "acme"]
    killed(vendor, ("vbackup.engine.session_survey:plan_of", "before", 1), *begin)
    killed(vendor, ("vbackup.engine.session_server:add_exports", "after", 1), *begin)
    # A daemon that dies costs nothing either.
    session = vendor.begin()
    record = vendor.record(session)
    os.kill(record["internal"]["daemon"]["pid"], signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{record['internal']['daemon']['pid']}/fd/0").exists(), "its end")
    error = vendor.session("commit", session["id"], status=6)
    assert (error["evidence"]["state"], error["retry"]) == ("failed", "begin")
    session = vendor.begin()
    assert session["base_checkpoint"] == first["checkpoint"]
    vendor.pull(session)
    vendor.check(held)
    assert vendor.session("commit", session["id"])["state"] == "committed"
    vendor.start()
    vendor.machine.write("vda", "write -P 4 2M 1M")
    held = vendor.reference()
    third = vendor.begin()
    assert third["disks"][0]["base_checkpoint"] == session["checkpoint"]
    assert vendor.pull(third)["vda"] <= 1024 * 1024 + 65536
    vendor.check(held)
    vendor.session("abort", third["id"])
    assert not list(sockets.glob("2*"))


def test_change_of_a_domain_that_is_off_which_no_lock_prevents_fails_the_commit(vendor: Vendor) -> None:
    """As of another host on NFS: it shows in the time of the file, also of a disk that gets no bitmap."""
    vendor.off()
    session = vendor.begin("--disk", "sda")
    with vendor.specs[1].path.open("r+b") as raw:
        raw.write(b"x")
    error = vendor.session("commit", session["id"], status=6)
    assert "sda.raw, of disk sda, was changed since" in error["message"]


def test_disk_that_was_shrunk_while_the_domain_was_off(vendor: Vendor) -> None:
    """Its bitmaps go: those of the checkpoint, and what a session that nobody committed has left."""
    first = vendor.begin("--disk", "vda")
    vendor.session("commit", first["id"])
    vendor.begin("--disk", "vda")
    vendor.off()
    image = vendor.specs[0].path
    subprocess.run(["qemu-img", "resize", "-q", "--shrink", str(image), "32M"], check=True)
    session = vendor.begin("--disk", "vda")
    assert session["disks"][0]["reason_code"] == "disk-resized"
    assert vendor.session("commit", session["id"])["state"] == "committed"
    argv = ["qemu-img", "info", "--output=json", str(image)]
    stored = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)["format-specific"]["data"]
    names = [one["name"] for one in stored["bitmaps"]]
    assert [name for name in names if "-end-" not in name and session["checkpoint"] not in name] == []


def test_domain_that_is_off_has_one_session_at_a_time_and_no_backup_beside_it(vendor: Vendor, tmp_path: Path) -> None:
    """Its images are locked by the session's daemon: others are refused, and come through after its end."""
    repository = tmp_path / "repository"
    vendor.command("init", "-r", repository)
    backup = ("backup", vendor.name, "-r", str(repository))
    vendor.machine.write("vda", "write -P 1 0 4M")
    held = vendor.reference()
    vendor.off()
    for step in ("abort", "commit"):
        session = vendor.begin()
        for error in (vendor.begin(tracker="other", status=8), vendor.vbackup(*backup, status=8)):
            assert (error["code"], error["retry"]) == ("BUSY", "later")
            assert error["message"].startswith(f"Pull session {session['id']} has the disks of domain")
            assert "which is off: commit or abort the session" in error["message"]
        assert vendor.session("status", session["id"])["state"] == "open"
        vendor.pull(session)
        vendor.check(held)
        vendor.session(step, session["id"])
        other = vendor.begin(tracker="other")
        vendor.pull(other)
        vendor.check(held)
        vendor.session(step, other["id"])
        done = vendor.vbackup(*backup)
        vendor.vbackup("restore", vendor.name, "-r", str(repository), "--output", str(tmp_path / step))
        for disk in done["disks"]:
            compare(tmp_path / step / f"{disk['dev']}.qcow2", held[disk["dev"]])


def test_domain_that_is_shut_down_in_the_middle(vendor: Vendor, sockets: Path) -> None:
    vendor.machine.write("vda", "write -P 1 0 4M")
    first = vendor.begin()
    vendor.pull(first)
    vendor.session("commit", first["id"])
    vendor.machine.write("vda", "write -P 2 0 1M")
    before = bitmaps_of(vendor.machine)
    session = vendor.begin()
    lost = bitmaps_of(vendor.machine) - before
    assert lost
    vendor.machine.write("vda", "write -P 3 2M 1M")
    vendor.off()
    # The watcher notices it, without any command.
    wait_for(lambda: vendor.record(session)["internal"]["is_closed"], "the watcher")
    assert vendor.record(session)["end_reason"].startswith("the QEMU that served it has ended")
    watcher: int = vendor.record(session)["internal"]["watcher"]["pid"]
    wait_for(lambda: not Path(f"/proc/{watcher}/cmdline").exists(), "the end of the watcher")
    assert not (sockets / session["id"]).exists()
    error = vendor.session("commit", session["id"], status=6)
    assert error["evidence"]["state"] == "failed"
    vendor.start()
    held = vendor.reference()
    again = vendor.begin()
    assert again["disks"][0]["base_checkpoint"] == first["checkpoint"]
    vendor.pull(again)
    vendor.check(held)
    vendor.session("commit", again["id"])
    assert not bitmaps_of(vendor.machine) & lost


def bitmaps_of(machine: Machine) -> set[str]:
    return {name for names in machine.bitmaps().values() for name in names}


def test_disk_that_is_detached_in_the_middle_is_served_to_the_end(vendor: Vendor) -> None:
    machine = vendor.machine
    machine.write("vda", "write -P 1 0 4M")
    machine.write("sda", "write -P 2 0 4M")
    held = vendor.reference()
    session = vendor.begin()
    machine.write("sda", "write -P 3 0 1M")
    machine.handle.domain.detachDeviceFlags(vendor.specs[1].xml(), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    wait_for(lambda: "'sda'" not in machine.handle.live_xml(), "the end of the detaching")
    vendor.pull(session)
    vendor.check(held)
    assert vendor.session("commit", session["id"])["state"] == "committed"
    nodes = machine.state()["nodes"]
    assert not [name for name in nodes if "sda" in name or name.startswith("vbackup-")]
    machine.handle.domain.attachDeviceFlags(vendor.specs[1].xml(), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    again = vendor.begin()
    assert {disk["dev"]: disk["level"] for disk in again["disks"]} == {"vda": "incremental", "sda": "full"}
    vendor.session("abort", again["id"])


def test_external_snapshot_is_refused_in_the_middle_and_does_no_harm_after_it(vendor: Vendor) -> None:
    """``virsh snapshot-create-as --disk-only``: QEMU takes none of a disk that is another node's backing file."""
    machine = vendor.machine
    machine.write("vda", "write -P 1 0 8M")
    machine.write("sda", "write -P 2 0 4M")
    first = vendor.begin()
    vendor.pull(first)
    vendor.session("commit", first["id"])
    machine.write("vda", "write -P 3 1M 1M", "write -z 3M 1M")
    held = vendor.reference()
    session = vendor.begin()
    machine.write("vda", "write -P 4 0 512k")
    disks = "".join(
        f"<disk name='{spec.dev}' snapshot='external'>"
        f"<source file='{vendor.directory / f'{spec.dev}-overlay.qcow2'}'/></disk>"
        for spec in vendor.specs
    )
    xml = f"<domainsnapshot><disks>{disks}</disks></domainsnapshot>"
    with pytest.raises(libvirt.libvirtError, match="is busy: node is used as backing hd"):
        machine.handle.domain.snapshotCreateXML(xml, 16 | 4)  # DISK_ONLY, NO_METADATA
    machine.write("vda", "write -P 5 1M 2M", "discard 5M 1M", "write -P 6 20M 64k")
    machine.write("sda", "write -P 7 1M 1M")
    vendor.pull(session)
    vendor.check(held)
    assert vendor.session("commit", session["id"])["state"] == "committed"
    machine.handle.domain.snapshotCreateXML(xml, 16 | 4)
    machine.write("vda", "write -P 8 40M 64k", "write -z 2M 64k")
    machine.write("sda", "write -P 9 2M 64k")
    vendor.find_nodes()
    held = vendor.reference()
    third = vendor.begin()
    assert (third["disks"][0]["level"], third["disks"][1]["level"]) == ("incremental", "full"), third["disks"]
    assert vendor.pull(third)["vda"] < 8 * 1024 * 1024
    vendor.check(held)
    vendor.session("commit", third["id"])
    assert not [name for name in machine.state()["nodes"] if name.startswith("vbackup-")]


def test_beside_our_own_backup_and_a_libvirtd_that_is_killed(vendor: Vendor, tmp_path: Path) -> None:
    machine = vendor.machine
    machine.write("vda", "write -P 1 0 4M")
    repository = tmp_path / "repository"
    vendor.command("init", "-r", repository)
    backup = ("backup", vendor.name, "-r", str(repository))
    vendor.vbackup(*backup)
    held = vendor.reference()
    session = vendor.begin()
    machine.write("vda", "write -P 2 1M 1M")
    later = vendor.reference()
    done = vendor.vbackup(*backup)
    assert done["level"] == "incremental"
    vendor.daemon.kill()
    vendor.daemon.restart()
    vendor.pull(session)
    vendor.check(held)
    vendor.daemon.host.reopen()
    assert vendor.session("status", session["id"])["state"] == "open"
    vendor.session("commit", session["id"])
    vendor.vbackup("restore", vendor.name, "-r", str(repository), "--output", str(tmp_path / "out"))
    for dev in DEVS:
        compare(tmp_path / "out" / f"{dev}.qcow2", later[dev])
    owners = {one["owner"] for one in vendor.vbackup("bitmap", "list", vendor.name)["bitmaps"]}
    assert owners == {"vbackup", "tracker"}


def test_session_whose_job_somebody_else_has_ended_cannot_be_committed(vendor: Vendor) -> None:
    """Its disk is still exported, but as it is now."""
    machine = vendor.machine
    machine.write("vda", "write -P 1 0 1M")
    clean = machine.state()
    session = vendor.begin()
    (job,) = [one["id"] for one in machine.execute("query-jobs") if "-vda-" in one["id"]]
    machine.execute("job-cancel", id=job)
    error = vendor.session("commit", session["id"], status=6)
    assert (error["evidence"]["state"], error["retry"]) == ("failed", "begin")
    assert machine.state() == clean


def test_server_of_others_is_left_alone(vendor: Vendor, images: Path) -> None:
    machine = vendor.machine
    clean = machine.state()
    address = {"type": "unix", "data": {"path": str(images / "other.sock")}}
    machine.execute("nbd-server-start", addr=address)
    error = vendor.begin(status=8)
    assert "NBD server" in error["message"]
    assert machine.state() == clean
    assert vendor.session("list")["sessions"] == [], "its watcher has nothing to wait for"
    machine.execute("nbd-server-stop")
    session = vendor.begin()
    address = {"type": "unix", "path": str(images / "vhost.sock")}
    node = machine.execute("query-block")[0]["inserted"]["node-name"]
    machine.execute("block-export-add", type="vhost-user-blk", id="theirs", node_name=node, addr=address)
    vendor.session("abort", session["id"])
    machine.execute("nbd-server-start", addr={"type": "unix", "data": {"path": str(images / "again.sock")}})
    machine.execute("nbd-server-stop")
    machine.execute("block-export-del", id="theirs")


def test_end_of_a_session_is_that_of_its_clients_and_not_of_the_guest(vendor: Vendor) -> None:
    """Clients that do nothing, that are not even connected yet, and one that is reading."""
    machine = vendor.machine
    machine.write("vda", "write -P 1 0 16M")
    clean = machine.state()
    for step, is_met_by_a_stranger in (("abort", True), ("commit", False)):
        session = vendor.begin()
        uri = session["disks"][0]["uri"]
        with (
            socket.socket(socket.AF_UNIX) as stranger,
            qemu_io_on(uri) as idle,
            subprocess.Popen(["nbdcopy", uri, "null:"], stderr=subprocess.DEVNULL) as reading,
        ):
            if is_met_by_a_stranger:  # QEMU drops it after 10 s
                stranger.connect(session["socket"])
            vendor.session(step, session["id"])
            idle.communicate("read 0 4k\n", timeout=30)
            reading.wait(timeout=30)
        assert machine.execute("query-status")["running"]
        state = machine.state()
        assert (state["nodes"], state["jobs"], state["fdsets"]) == (clean["nodes"], [], [])
        machine.write("vda", "write -P 1 0 16M")


@contextmanager
def qemu_io_on(uri: str) -> Iterator[subprocess.Popen[str]]:
    """A client that is connected and does nothing."""
    argv = ["qemu-io", "-r", "-f", "raw", uri]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("read 0 512\n")
        process.stdin.flush()
        assert "read 512" in process.stdout.readline()
        yield process
        process.kill()


def test_network_needs_a_certificate(vendor: Vendor, images: Path) -> None:
    certificates = make_certificates(images / "tls")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machine = vendor.machine
    machine.write("vda", "write -P 1 0 4M")
    clean = machine.state()
    held = vendor.reference()
    error = vendor.begin("--listen", f"127.0.0.1:{port}", "--tls-creds", str(images), status=7)
    assert "cannot use the certificates" in error["message"]
    assert error["code"] == "STORAGE_UNUSABLE"
    assert machine.state() == clean
    session = vendor.begin("--listen", f"127.0.0.1:{port}", "--tls-creds", str(certificates / "server"))
    assert session["socket"] is None
    disk = session["disks"][0]
    assert disk["uri"] == f"nbds://127.0.0.1:{port}/{disk['export']}"
    trusted = f"{disk['uri']}?tls-certificates={certificates / 'client'}"
    subprocess.run(["nbdcopy", trusted, str(vendor.copy("vda"))], check=True)
    vendor.check({"vda": held["vda"]})
    for uri in (disk["uri"].replace("nbds:", "nbd:"), f"{disk['uri']}?tls-certificates={certificates / 'stranger'}"):
        refused = subprocess.run(["nbdcopy", uri, "null:"], capture_output=True, text=True, check=False, timeout=30)
        assert refused.returncode != 0, uri
    assert vendor.begin(tracker="other", status=8)["evidence"] == {}
    vendor.session("abort", session["id"])
    assert machine.state() == clean
    assert [one for one in machine.execute("qom-list", path="/objects") if one["name"].startswith("vbackup-")] == []
    with socket.socket() as again:
        assert again.connect_ex(("127.0.0.1", port)) != 0


def make_certificates(directory: Path) -> Path:
    """An authority, a server's and a client's certificate of it, and a client's of another authority."""

    def openssl(*words: str | Path) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)

    for authority, holders in (("ca", ("server", "client")), ("other", ("stranger",))):
        key, certificate = directory / f"{authority}-key.pem", directory / f"{authority}-cert.pem"
        directory.mkdir(exist_ok=True)
        new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl(
            *("req", "-x509", *new_key, "-keyout", key, "-out", certificate, "-days", "1", "-subj", f"/CN={authority}"),
            *CA_EXTENSIONS,
        )
        for holder in holders:
            place = directory / holder
            place.mkdir()
            role = "server" if holder == "server" else "client"
            request, extensions = place / "request.pem", place / "extensions"
            usage = "serverAuth\nsubjectAltName=IP:127.0.0.1" if role == "server" else "clientAuth"
            extensions.write_text(f"basicConstraints=CA:FALSE\nextendedKeyUsage={usage}\n")
            openssl("req", *new_key, "-keyout", place / f"{role}-key.pem", "-out", request, "-subj", f"/CN={holder}")
            signed = ("-in", request, "-CA", certificate, "-CAkey", key, "-CAcreateserial", "-days", "1")
            openssl("x509", "-req", *signed, "-extfile", extensions, "-out", place / f"{role}-cert.pem")
            (place / "ca-cert.pem").write_bytes((directory / "ca-cert.pem").read_bytes())
            (place / f"{role}-key.pem").chmod(0o644)  # for a QEMU that is not root
    return directory


def test_client_names_its_base_and_what_is_unknown_is_refused(vendor: Vendor) -> None:
    machine = vendor.machine
    machine.write("vda", "write -P 1 0 4M")
    error = vendor.begin("--level", "incremental", status=6)
    assert error["evidence"]["dev"] == "vda"
    copies, made = [], []
    for turn in range(3):
        machine.write("vda", f"write -P {turn + 10} {turn}M 64k")
        session = vendor.begin()
        vendor.pull(session)
        vendor.session("commit", session["id"])
        copies.append(vendor.copy("vda").read_bytes())
        made.append(session["checkpoint"])
    clean = machine.state()
    for arguments in (("--base", "20200101T000000Z-full"), ("--base", "x"), ("--base", made[0], "--disk", "vdz")):
        error = vendor.begin(*arguments, status=5 if "vdz" in arguments else 6)
        assert machine.state() == clean, error
    for words in (
        ("session", "commit", "20200101T000000Z-000000"),
        ("session", "abort", "x"),
        ("tracker", "forget", vendor.name, "--tracker", "nobody"),
        ("checkpoint", "delete", vendor.name, "--tracker", "acme", "--checkpoint", "20200101T000000Z-full"),
    ):
        vendor.vbackup(*words, status=6)
    held = vendor.reference()
    session = vendor.begin("--base", made[0])
    assert {disk["base_checkpoint"] for disk in session["disks"]} == {made[0]}
    assert set(session["disks"][0]["contexts"]) == set(made)
    dirty = [
        one["offset"] for one in extents(session["disks"][0]["uri"], f"qemu:dirty-bitmap:{made[1]}") if one["type"]
    ]
    assert 2 * 1024 * 1024 in dirty
    assert 1024 * 1024 not in dirty
    vendor.copy("vda").write_bytes(copies[0])
    vendor.pull(session)
    vendor.check(held)
    vendor.vbackup("checkpoint", "delete", vendor.name, "--tracker", "acme", "--checkpoint", made[0], status=8)
    vendor.session("abort", session["id"])
    left = vendor.vbackup("checkpoint", "delete", vendor.name, "--tracker", "acme", "--checkpoint", made[2])
    assert [one["id"] for one in left["checkpoints"]] == made[:2]
    assert not [name for names in machine.bitmaps().values() for name in names if made[2] in name]
    session = vendor.begin()
    assert session["base_checkpoint"] == made[1]
    assert vendor.session("renew", session["id"], "--ttl", "3h")["expires"] > session["expires"]
    vendor.session("abort", session["id"])
