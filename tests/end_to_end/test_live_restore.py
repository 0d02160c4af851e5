"""``vbackup restore --live`` with a guest that writes all the time: every kind of death in the middle, every byte home.

A libvirtd for the tests alone runs QEMU without privileges. vbackup is a separate process, which can be killed. This is
the test of operations live_restore, live_files, live_pull, live_resume and live_abort, and of what only they use:
lifecycle, live_backing, live_point.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

import libvirt
import pytest

from tests.busy import FIRST_BYTE, LENGTH_BYTES, BusyDisk
from tests.daemon import Daemon, wait_for
from tests.end_to_end import whole
from tests.lab import HEEDING_SIGNALS, DiskSpec, Machine, compare, domain_xml
from vbackup import archive
from vbackup.domain import defining, live_xml
from vbackup.domain.host import UNDEFINE_FLAGS, DomainHandle, library_version
from vbackup.errors import MonitorError
from vbackup.hooks import half_restored
from vbackup.operations import live_pull
from vbackup.operations.restored_machine import TPM_SOURCE_SINCE
from vbackup.repository import live_state, readers
from vbackup.repository.live_state import LiveState

if TYPE_CHECKING:
    from tests.conftest import Command

UUID = "77777777-2222-3333-4444-555555555555"
NAME = "live"
MIB = 1 << 20
#: Keeps the data of a disk away from home for more than ten seconds.
SLOW = ("--speed", "1M")
SLOT_BYTES = 8192


@dataclass(frozen=True)
class Kept:
    """A repository with a chain of two points of a busy guest, and the newest one as it is."""

    repository: Path
    points: dict[str, bytes]  #: by dev

    def files(self) -> dict[str, tuple[str, int, int, int]]:
        """Content, owner, group and mode of everything but the record of restored checkpoints."""
        return {
            str(path.relative_to(self.repository)): (
                sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
                path.stat().st_uid,
                path.stat().st_gid,
                path.stat().st_mode,
            )
            for path in self.repository.rglob("*")
            if path.name != "restored.json"
        }


def xml(directory: Path) -> str:
    """The domain: a boot disk with an iothread, and one on SCSI."""
    disks = [disk.xml() for disk in specs(directory)]
    serial = f"<serial type='file'><source path={quoteattr(str(directory / 'serial'))}/></serial>"
    return domain_xml(NAME, disks, devices=serial, top=f"<uuid>{UUID}</uuid><iothreads>1</iothreads>")


def specs(directory: Path) -> list[DiskSpec]:
    return [
        BusyDisk(directory / "a.qcow2", size="16M", driver="iothread='1' discard='unmap'"),
        DiskSpec(directory / "b.qcow2", dev="sda", bus="scsi", size="16M", driver="cache='none'"),
    ]


def vbackup(*words: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    argv = [*HEEDING_SIGNALS, sys.executable, "-m", "vbackup", *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def kept(_daemon: Daemon) -> Iterator[Kept]:
    """Backups of the domain while it is off."""
    directory = Path(tempfile.mkdtemp(prefix="vb-kept-", dir="/tmp"))
    directory.chmod(0o711)
    repository = directory / "repository"
    vbackup("init", "-r", repository)
    for spec in specs(directory):
        spec.create()
    domain = _daemon.host.connection.defineXML(xml(directory))
    for commands in (("write -P 1 8M 4M", "write -P 2 12M 1M"), ("write -P 3 9M 1M", "write -z 10M 1M")):
        for spec in specs(directory):
            words = [word for command in commands for word in ("-c", command)]
            subprocess.run(["qemu-io", *words, str(spec.path)], check=True, stdout=subprocess.DEVNULL)
        vbackup("-c", _daemon.uri, "backup", NAME, "-r", repository, "-q")
    domain.undefine()
    points = {}
    for spec in specs(directory):
        raw = directory / "raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(spec.path), str(raw)], check=True)
        points[spec.dev] = raw.read_bytes()
        spec.path.unlink()
    yield Kept(repository, points)
    shutil.rmtree(directory)


class Live:
    """A live restore of the newest point to a directory."""

    def __init__(self, daemon: Daemon, kept: Kept, place: Path) -> None:
        self.daemon, self.kept = daemon, kept
        self.domain, self.uuid = NAME, UUID
        self.output = place / "restored"
        self.images = {dev: self.output / f"{dev}.qcow2" for dev in ("vda", "sda")}
        self.serial = self.output / "serial0.log"
        self.processes: list[subprocess.Popen[str]] = []

    def words(self, *options: str) -> list[str]:
        argv = [*HEEDING_SIGNALS, sys.executable, "-m", "vbackup", "-c", self.daemon.uri, "restore", self.domain]
        return [*argv, "-r", str(self.kept.repository), "--live", "--output", str(self.output), "--json", *options]

    def start(self, *options: str) -> subprocess.Popen[str]:
        argv = self.words(*options)
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.processes.append(process)
        return process

    def run(self, *options: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.words(*options), capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == status, done.stderr + Path("/var/log/libvirt/qemu/live.log").read_text()[-1500:]
        assert "Traceback" not in done.stderr
        return done

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        return process.returncode, out, err

    @property
    def machine(self) -> Machine:
        return Machine(self.daemon.host.domain(self.uuid))

    def said(self) -> bytes:
        return self.serial.read_bytes() if self.serial.exists() else b""

    def works(self, rounds: int = 5) -> None:
        """Wait until the guest has written, and read back, that many times from now on."""
        before = self.said().count(b".")
        wait_for(lambda: self.said().count(b".") >= before + rounds, f"guest's work; it said {self.said()[-20:]!r}")

    def hurry(self, dev: str = "vda") -> None:
        """Its pull goes as fast as it can, if it runs."""
        with suppress(libvirt.libvirtError):
            self.machine.handle.domain.blockJobSetSpeed(dev, 0)

    def hurry_home(self, process: subprocess.Popen[str]) -> None:
        """All pulls that the process starts do."""

        def is_over() -> bool:
            for dev in self.away():
                self.hurry(dev)
            return process.poll() is not None

        wait_for(is_over, "the end of the live restore")

    def away(self) -> list[str]:
        """The disks that still have the backup below them."""
        return list(live_xml.pending(self.machine.handle.live_xml(), str(self.output / "live.sock")))

    def server(self) -> int:
        """The storage daemon's pid."""
        (pid,) = storage_daemons(self.kept.repository)
        return pid

    def qemu(self) -> int:
        return int(next(Path("/run/libvirt/qemu").glob(f"{self.machine.handle.name}.pid")).read_text())

    def is_home(self) -> None:
        """All is as if the domain had been there all the time, and every byte is right."""
        self.works()
        machine = self.machine
        assert not [word for word in (b"E", b"X") if word in self.said()], self.said()
        for text in (machine.handle.live_xml(), machine.handle.definition_xml()):
            assert "nbd" not in text
            assert str(self.kept.repository) not in text
        definition = machine.handle.definition_xml()
        assert "error_policy" not in definition
        assert "backingStore" not in definition
        nodes = [node["node-name"] for node in machine.execute("query-named-block-nodes", flat=True)]
        assert not [name for name in nodes if name.startswith("vbackup")]
        assert machine.execute("query-jobs") == []
        machine.handle.domain.destroy()
        here = {path.name for path in self.images.values() if path.parent == self.output}
        assert {path.name for path in self.output.iterdir()} == {*here, "domain.xml", "serial0.log"}
        assert storage_daemons(self.kept.repository) == []
        for dev, point in self.kept.points.items():
            raw = self.output.parent / "raw"
            subprocess.run(["qemu-img", "convert", "-O", "raw", str(self.images[dev]), str(raw)], check=True)
            check(raw.read_bytes(), point, is_busy=dev == "vda", rounds=self.said().count(b"."))


def check(data: bytes, point: bytes, *, is_busy: bool, rounds: int) -> None:
    """Assert that a disk is as at the point, but for what the guest has written in whole rounds."""
    if not is_busy:
        assert data == point
        return
    end = FIRST_BYTE + LENGTH_BYTES
    assert data[:FIRST_BYTE] == point[:FIRST_BYTE]
    assert data[end:] == point[end:]
    written = 0
    for slot in range(LENGTH_BYTES // SLOT_BYTES):
        at = FIRST_BYTE + slot * SLOT_BYTES
        now = data[at : at + SLOT_BYTES]
        if now != point[at : at + SLOT_BYTES]:
            word = now[:4]
            assert now == word * (SLOT_BYTES // 4), f"slot {slot} is torn"
            assert int.from_bytes(word, "little") % 512 == slot
            written += 1
    assert written >= min(rounds, 512) // 2 > 0  # a guest that starts again counts from one again


def storage_daemons(repository: Path) -> list[int]:
    """Storage daemons that work in the repository."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words, directory = line.read_bytes().split(b"\0"), (line.parent / "cwd").readlink()
        except OSError:
            continue
        if words[0].endswith(b"qemu-storage-daemon") and repository in directory.parents:
            found.append(int(line.parent.name))
    return found


@pytest.fixture
def live(daemon: Daemon, kept: Kept, images: Path) -> Iterator[Live]:
    before = kept.files()
    made = Live(daemon, kept, images)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()
    for pid in storage_daemons(kept.repository):
        os.kill(pid, signal.SIGKILL)
    if not daemon.host.is_alive():
        daemon.host.reopen()
    for domain in daemon.host.connection.listAllDomains():
        if domain.isActive():
            domain.destroy()
        domain.undefine()
    for path in kept.repository.rglob("protected"):
        path.unlink()
    assert kept.files() == before


def test_guest_runs_at_once_and_all_comes_home(live: Live) -> None:
    before = live.kept.files()
    done = json.loads(live.run().stdout)
    assert (done["schema"], done["state"]) == ("vbackup.liverestore/1", "home")
    assert {disk["dev"]: disk["file"] for disk in done["disks"]} == {
        dev: str(live.output / f"{dev}.qcow2") for dev in ("vda", "sda")
    }
    assert all(disk["checkpoint"] for disk in done["disks"])
    assert live.kept.files() == before
    live.is_home()


def test_next_backup_has_what_the_guest_has_written_and_no_more(live: Live) -> None:
    """From its first write on, while the data came home, and afterwards: compared byte for byte."""
    repository = live.output.parent / "repository"
    shutil.copytree(live.kept.repository, repository)
    live.kept = replace(live.kept, repository=repository)
    newest = max(path.name for path in (repository / UUID).glob("*Z-*"))
    live.run()
    live.works()
    live.machine.handle.domain.suspend()
    words = ("backup", NAME, "-r", repository, "--level", "incremental", "--json")
    done = json.loads(vbackup("-c", live.daemon.uri, *words).stdout)
    disks = {disk["dev"]: disk for disk in done["disks"]}
    assert [disk["base"] for disk in disks.values()] == [newest] * 2
    live.machine.destroy()
    held = {dev: held_bytes(repository / UUID / done["id"] / f"{dev}.qcow2") for dev in disks}
    assert 0 < held["vda"] <= LENGTH_BYTES
    assert held["sda"] == 0
    again = live.output.parent / "again"
    vbackup("restore", NAME, "-r", repository, "--output", again, "-q")
    for dev, image in live.images.items():
        compare(image, again / f"{dev}.qcow2")


def held_bytes(image: Path) -> int:
    """How much of a disk the image itself has, but for the last granule, which every incremental copies."""
    argv = ["qemu-img", "map", "-f", "qcow2", "--output=json", str(image)]
    extents = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    end = max(one["start"] + one["length"] for one in extents) - 65536
    return sum(max(0, min(one["length"], end - one["start"])) for one in extents if one["depth"] == 0)


def test_new_domain_has_an_identity_and_places_of_its_own(live: Live) -> None:
    """Beside the original, in a pool and at a path: aborted, done again, killed and resumed by its name."""
    daemon, place = live.daemon, live.output.parent
    original = daemon.define(domain_xml(NAME, [], top=f"<uuid>{UUID}</uuid>"))
    (place / "pool").mkdir()
    pool = daemon.host.connection.storagePoolCreateXML(
        f"<pool type='dir'><name>live pool</name><target><path>{place / 'pool'}</path></target></pool>"
    )
    live.images = {"vda": place / "elsewhere.qcow2", "sda": place / "pool" / "new-sda.qcow2"}
    begin = ("--name", "new", "--pool", "live pool", "--disk", f"vda={live.images['vda']}", "sda", *SLOW)
    assert "give sda to --disk, too" in live.run("--disk", f"vda={live.images['vda']}", status=2).stderr
    for is_aborted in (True, False):
        live.domain = NAME
        process = live.start(*begin)
        live.uuid = "new"
        live.works()
        assert pool.listVolumes() == ["new-sda.qcow2"]
        process.kill()
        process.communicate()
        assert f"is of domain new ({live.machine.handle.uuid}), not {NAME}" in live.run("--resume", status=2).stderr
        live.domain = "new"
        if is_aborted:
            removed = json.loads(live.run("--abort", "--yes").stdout)["removed"]
            assert {str(path) for path in live.images.values()} < {*removed}
            assert not [path for path in (live.output, *live.images.values()) if path.exists()]
            assert pool.listVolumes() == []
            assert [one.name for one in daemon.host.domains()] == [NAME]
    os.kill(live.qemu(), signal.SIGKILL)
    wait_for(lambda: not live.machine.handle.is_active(), "the end of the domain")
    live.domain = live.machine.handle.uuid
    done = json.loads(live.run("--resume").stdout)
    assert done["domain"]["uuid"] not in ("", UUID)
    assert {disk["dev"]: (disk["file"], disk["checkpoint"]) for disk in done["disks"]} == {
        dev: (str(path), False) for dev, path in live.images.items()
    }
    assert original.handle.uuid == UUID
    live.is_home()
    for path in live.images.values():
        argv = ["qemu-img", "info", "--output=json", str(path)]
        info = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
        assert "bitmaps" not in info["format-specific"]["data"]
    live.machine.handle.domain.undefine()


# deaths in the middle


def test_storage_daemon_and_libvirtd_that_die_change_nothing(live: Live) -> None:
    process = live.start(*SLOW)
    live.works()
    dead = live.server()
    os.kill(dead, signal.SIGKILL)
    wait_for(lambda: storage_daemons(live.kept.repository) not in ([], [dead]), "another storage daemon")
    live.works()
    live.daemon.kill()
    live.works()
    live.daemon.restart()
    live.daemon.host.reopen()
    live.works()
    assert live.away() == ["vda", "sda"]
    live.hurry_home(process)
    status, _, err = live.end(process)
    assert status == 0, err
    assert "another one serves the backup now" in err
    live.is_home()


def test_guest_goes_on_without_vbackup_and_waits_without_anybody(live: Live) -> None:
    process = live.start(*SLOW)
    live.works()
    process.kill()
    live.works(60)
    assert live.away()
    assert all(readers.is_in_use(path) for path in (live.kept.repository / UUID).glob("*Z-*"))
    os.kill(live.server(), signal.SIGKILL)
    process = live.start("--resume")
    status, out, err = live.end(process)
    assert status == 0, err
    assert [disk["checkpoint"] for disk in json.loads(out)["disks"]] == [True, True]
    live.is_home()


def test_data_that_only_qemu_knew_is_pulled_again(live: Live) -> None:
    """When a pull ends, QEMU takes the backing file away before the image's tables are on storage."""
    process = live.start(*SLOW)
    live.works()
    process.send_signal(signal.SIGSTOP)
    live.hurry()
    wait_for(lambda: live.away() == ["sda"], "the end of the pull of vda")
    os.kill(live.qemu(), signal.SIGKILL)
    process.send_signal(signal.SIGCONT)
    status, _, err = live.end(process)
    assert status == 1, err
    assert "has ended before all of its data was at home" in err
    assert storage_daemons(live.kept.repository) == []
    record = half_restored.DIRECTORY / UUID  # for the hook script: virsh would start the guest with holes
    command = f"vbackup restore {UUID} --live --resume --output={live.output} -r {live.kept.repository}"
    assert json.loads(record.read_text())["command"] == command
    live.run("--resume")
    assert not record.exists()
    live.is_home()


def test_signal_pauses_the_guest_and_what_is_home_stays(live: Live) -> None:
    process = live.start(*SLOW)
    live.works()
    live.hurry()
    wait_for(lambda: live_state.read(live.output).away == ("sda",), "the data of vda to be at home")
    process.send_signal(signal.SIGINT)
    status, _, err = live.end(process)
    assert status == 128 + signal.SIGINT
    assert "is paused" in err
    assert "--resume" in err
    assert live.machine.handle.halted() == "paused"
    assert storage_daemons(live.kept.repository) == []
    os.kill(live.qemu(), signal.SIGKILL)
    wait_for(lambda: not live.machine.handle.is_active(), "the end of the domain")
    done = json.loads(live.run("--resume").stdout)
    assert [disk["checkpoint"] for disk in done["disks"]] == [False, False]  # QEMU has not stored its bitmaps
    live.is_home()


#: vbackup where neither a pull can be followed nor the guest be paused.
UNABLE = """
from vbackup.cli import command
from vbackup.domain import lifecycle
from vbackup.errors import MonitorError
from vbackup.operations import live_pull

def fail(*_words):
    raise MonitorError("That is enough.")

live_pull._Pulls.follow = lifecycle.suspend = fail
command()
"""


def test_guest_that_cannot_be_paused_keeps_its_server(live: Live) -> None:
    argv = [word if word != "-m" else "-c" for word in live.words()]
    argv[argv.index("vbackup")] = UNABLE
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    assert "Its backup is still served" in done.stderr
    live.works()
    assert live.server()
    live.run("--resume")
    live.is_home()


# what ends it for good, and what it does not begin


def test_abort_leaves_the_backup_and_nothing_else(live: Live) -> None:
    before = live.kept.files()
    process = live.start(*SLOW)
    live.works()
    assert "Another vbackup works on" in live.run("--abort", "--yes", status=8).stderr
    process.kill()
    said = live.run("--abort", status=2).stderr
    assert str(live.output / "sda.qcow2") in said
    assert "--yes" in said
    live.works()
    done = json.loads(live.run("--abort", "--yes").stdout)
    assert done["state"] == "aborted"
    assert str(live.output / "vda.qcow2") in done["removed"]
    assert live.daemon.host.connection.listAllDomains() == []
    assert not live.output.exists()
    assert storage_daemons(live.kept.repository) == []
    assert live.kept.files() == before
    assert "No live restore to" in live.run("--resume", status=7).stderr


def test_what_cannot_be_started_leaves_nothing(live: Live) -> None:
    live.output.mkdir()
    (live.output / "domain.xml").touch()
    assert "already exists" in live.run(status=7).stderr
    (live.output / "domain.xml").unlink()
    live.output.chmod(0o700)
    assert f"chmod o+x {live.output}" in live.run(status=7).stderr
    live.output.chmod(0o711)
    other = live.daemon.define(domain_xml(NAME, []))
    said = live.run(status=5).stderr
    assert other.handle.uuid in said
    other.handle.domain.undefine()
    live.daemon._defined.remove(NAME)
    live.output.rmdir()
    live.output.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(live.output)], check=True)
    try:
        assert "has room for" in live.run(status=7).stderr
        assert list(live.output.iterdir()) == []
    finally:
        subprocess.run(["umount", str(live.output)], check=True)
    live.output = Path("/" + "a" * 60) / ("b" * 60)
    assert "too long for a socket" in live.run(status=2).stderr


def test_directory_that_gets_full_pauses_the_guest_until_there_is_room(live: Live) -> None:
    live.output.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m,mode=711", "none", str(live.output)], check=True)
    try:
        process = live.start(*SLOW)
        live.works()
        with suppress(OSError), (live.output / "ballast").open("wb") as ballast:
            ballast.write(bytes(40 * MIB))
        live.hurry_home(process)
        status, _, err = live.end(process)
        assert status == 7, err
        assert "no space left" in err
        assert live.machine.handle.halted() == "paused"
        (live.output / "ballast").unlink()
        live.run("--resume")
        live.is_home()
    finally:
        if live.machine.handle.is_active():
            live.machine.destroy()
        subprocess.run(["umount", "-l", str(live.output)], check=True)


def test_start_that_fails_leaves_nothing(live: Live) -> None:
    before = live.kept.files()
    log = Path("/var/log/libvirt/qemu/live.log")
    log.unlink(missing_ok=True)
    log.mkdir()
    try:
        assert "start domain live" in live.run(status=1).stderr
    finally:
        log.rmdir()
    assert list(live.output.parent.iterdir()) == []
    assert live.kept.files() == before
    assert live.daemon.host.connection.listAllDomains() == []
    assert storage_daemons(live.kept.repository) == []


def lost_machine(daemon: Daemon, command: Command, repository: Path, images: Path) -> DiskSpec:
    """A backup of a domain with UEFI variables and a TPM, which the host has lost but for its files."""
    machine, spec = whole.backed_up(daemon, command, repository, images)
    daemon._defined.remove("web")
    defining.undefine(machine.handle)
    return spec


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")
def test_whole_machine_comes_and_goes(
    daemon: Daemon, command: Command, repository: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UEFI variables, the state of the TPM, and that the domain starts with the host, also when it was undefined."""
    spec = lost_machine(daemon, command, repository, images)
    (saved,) = repository.glob(f"{whole.UUID}/*/tpm.tar")
    known = archive.unpack(saved.read_bytes())["tpm2-00.permall"]
    output, has_source = images / "out", library_version() >= TPM_SOURCE_SINCE
    state = output / "tpm" if has_source else Path("/var/lib/libvirt/swtpm", whole.UUID, "tpm2")
    assert not state.exists()
    seen: list[bytes] = []
    start = live_pull.start

    def started(handle: DomainHandle, of: LiveState) -> live_pull.Overlays:
        seen.append((state / "tpm2-00.permall").read_bytes())  # the firmware writes to it
        return start(handle, of)

    def interrupted(*_words: object) -> None:
        raise MonitorError("That is enough.")

    argv = ("-c", daemon.uri, "restore", "web", "-r", repository, "--live", "--json", "--output", output)
    monkeypatch.setattr(live_pull, "start", started)
    with monkeypatch.context() as broken:
        broken.setattr(live_pull._Pulls, "follow", interrupted)
        assert "That is enough." in command(*argv, status=1).stderr
        assert seen == [known]
        assert (output / "nvram").read_bytes() == (images / "vars.fd").read_bytes()
        command(*argv, "--abort", "--yes")
        assert not output.exists()
        assert not state.parent.exists()
        assert daemon.host.domains() == []
        command(*argv, status=1)
    again = daemon.defined("web")
    again.destroy()
    again.handle.domain.undefineFlags(UNDEFINE_FLAGS[0])
    if not has_source:  # killed before libvirt had the domain
        shutil.rmtree(output / "tpm", ignore_errors=True)
        shutil.copytree(state, output / "tpm")
        shutil.rmtree(state.parent)
    before = ((output / "tpm" if not has_source else state) / "tpm2-00.permall").read_bytes()
    command(*argv, "--resume")
    assert seen[1:] == [known, before]
    assert again.handle.is_active()
    assert again.handle.domain.autostart() == 1
    again.destroy()
    compare(spec.path, output / "vda.qcow2")
    left = {"vda.qcow2", "domain.xml", "nvram", *({"tpm"} if has_source else ())}
    assert {path.name for path in output.iterdir()} == left


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")
def test_machine_of_a_new_domain_is_beside_that_of_the_original(
    daemon: Daemon, command: Command, repository: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, _ = whole.backed_up(daemon, command, repository, images)
    output = images / "out"
    argv = ("-c", daemon.uri, "restore", "-r", repository, "--live", "--output", output)

    def interrupted(*_words: object) -> None:
        raise MonitorError("That is enough.")

    monkeypatch.setattr(live_pull._Pulls, "follow", interrupted)
    assert "That is enough." in command(*argv, "web", "--name", "new", status=1).stderr
    new = daemon.host.domain("new")
    assert new.halted() == "paused"
    assert new.domain.autostart() == 0
    text = new.definition_xml()
    assert f">{output / 'nvram'}</nvram>" in text
    assert str(images / "vars.fd") not in text
    states = Path("/var/lib/libvirt/swtpm")
    state = output / "tpm" if library_version() >= TPM_SOURCE_SINCE else states / new.uuid / "tpm2"
    assert (state / "tpm2-00.permall").exists()
    command(*argv, "new", "--abort", "--yes")
    assert not (states / new.uuid).exists()
    assert [one.uuid for one in daemon.host.domains()] == [original.handle.uuid]
    assert (images / "vars.fd").read_bytes() == b"variable" * 64 * 1024
    assert (states / whole.UUID / "tpm2" / "tpm2-00.permall").exists()
