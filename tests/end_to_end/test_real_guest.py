"""A real guest, backed up while it writes: what it had before is in the restore, clean, and boots."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import wait_for
from tests.guest import Guest, GuestImage, build, domain_xml, make_disks
from tests.guest.disks import check_filesystem, preen_filesystem, read_file
from tests.guest.machine import files_of, wait_ready
from tests.lab import Machine, References, compare
from vbackup.domain.passthrough import Passthrough

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.lab import Lab

DISKS = {"vda": "/data", "vdb": "/log"}  #: where the guest has mounted them


@contextmanager
def running(lab: Lab, xml: str, serial: Path) -> Iterator[Guest]:
    """A guest that lives as long as the block; the lab, which is emptied after each test, does not know of it."""
    machine = lab.start(xml)
    lab.machines.remove(machine)
    with living(machine, serial) as guest:
        yield guest


@contextmanager
def living(machine: Machine, serial: Path) -> Iterator[Guest]:
    """The guest of a domain that was started, until the end of the block."""
    try:
        guest = Guest(machine, serial)
        guest.wait()
        yield guest
    finally:
        machine.destroy()
        machine.handle.domain.undefine()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> GuestImage:
    return build(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def guest(lab: Lab, image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    directory = tmp_path_factory.mktemp("guest")
    serial = directory / "console"
    with running(lab, domain_xml("guest", image, make_disks(directory), serial=serial), serial) as made:
        yield made


class Backups:
    """The command, with what it needs to back up and restore one guest."""

    def __init__(self, command: Command, lab: Lab, repository: Path, guest: Guest) -> None:
        self._command, self._lab, self._repository, self._guest = command, lab, repository, guest

    def backup(self, *options: str, status: int = 0) -> Any:
        name = self._guest.machine.name
        return self._command(
            "-c", self._lab.uri, "backup", name, "-r", self._repository, "--json", *options, status=status
        )  # fmt: skip

    def restore(self, output: Path, *options: str) -> Path:
        argv = ("-c", self._lab.uri, "restore", self._guest.machine.name)
        self._command(*argv, "-r", self._repository, "--output", output, *options)
        return output

    def ids(self) -> list[str]:
        listed = self._command("list", "-r", self._repository, "--json").document
        return [backup["id"] for backup in listed["backups"]]


@pytest.fixture
def backups(command: Command, lab: Lab, repository: Path, guest: Guest) -> Backups:
    return Backups(command, lab, repository, guest)


def number(directory: Path, dev: str) -> int:
    """What the guest had counted to on that disk."""
    return int(read_file(directory / f"{dev}.raw", "/counter") or "-1")


def test_restore_has_the_files_of_that_moment_and_is_clean(guest: Guest, backups: Backups, tmp_path: Path) -> None:
    for mount in DISKS.values():
        guest.agent.write(f"{mount}/files/before", f"before on {mount}".encode())
    done = backups.backup().document
    for mount in DISKS.values():
        guest.agent.write(f"{mount}/files/after", b"after")

    assert (done["level"], done["consistency"]) == ("full", "filesystem")
    assert done["frozen_ms"] > 0
    assert guest.agent.filesystem_status() == "thawed"
    output = backups.restore(tmp_path / "restored", "--format", "raw")
    for dev, mount in DISKS.items():
        raw = output / f"{dev}.raw"
        assert read_file(raw, "/files/before") == f"before on {mount}".encode()
        assert read_file(raw, "/files/after") is None
        checked = check_filesystem(raw)
        assert checked.clean, checked
    # The guest writes each number to vda before it writes it to vdb (tests.guest): both are of one moment.
    assert number(output, "vda") - number(output, "vdb") in (0, 1)
    assert number(output, "vda") > 0


def test_incremental_of_a_writing_guest_is_exact_and_clean(
    guest: Guest, backups: Backups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = backups.backup().document
    guest.agent.write("/data/files/between", b"between two backups")
    references = References(tmp_path / "references")
    with references.taken(monkeypatch):
        done = backups.backup("--level", "incremental", "--quiesce", "required").document
    images = references.finish(guest.machine)

    assert (done["parent"], done["consistency"]) == (full["id"], "filesystem")
    output = backups.restore(tmp_path / "restored", "--format", "raw")
    for disk in done["disks"]:
        raw = output / f"{disk['dev']}.raw"
        compare(raw, images[disk["node_name"]])
        assert check_filesystem(raw).clean
    assert read_file(output / "vda.raw", "/files/between") == b"between two backups"
    before = backups.restore(tmp_path / "before", "--format", "raw", "--backup", full["id"])
    assert read_file(before / "vda.raw", "/files/between") is None
    assert number(before, "vda") < number(output, "vda")


def test_restored_guest_boots_beside_the_original_and_lists_its_files(
    guest: Guest, backups: Backups, lab: Lab, tmp_path: Path
) -> None:
    written = {f"{mount}/files/{name}": f"{name} on {mount}".encode() for mount in DISKS.values() for name in "abc"}
    for path, data in written.items():
        guest.agent.write(path, data)
    backups.backup()
    guest.agent.run("/bin/rm", *written)

    output = backups.restore(tmp_path / "restored", "--name", "restored", "--start")
    (serial,) = output.glob("*.log")
    with living(Machine(lab.host.domain("restored")), serial) as restored:
        said = wait_ready(serial)
        assert guest.agent.filesystem_status() == "thawed", "the original goes on"
        listed = files_of(said)
        for path, data in written.items():
            assert listed[path] == hashlib.sha256(data).hexdigest() == restored.agent.sha256(path)
    # What was frozen needs no journal replayed.
    assert not [line for line in said if "recover" in line]


def test_without_an_agent_a_backup_is_crash_consistent_or_refused(
    guest: Guest, backups: Backups, repository: Path, tmp_path: Path
) -> None:
    guest.obey("killall -KILL qemu-ga")
    try:
        guest.agent.wait_gone()
        outcome = backups.backup()
        before, ids = guest.machine.state(), backups.ids()
        refused = backups.backup("--quiesce", "required", status=5)
    finally:
        guest.obey("run_agent &")
        guest.agent.wait()

    assert (outcome.document["consistency"], outcome.document["frozen_ms"]) == ("crash", 0)
    assert "not frozen" in outcome.stderr
    assert "no guest agent is connected" in outcome.stderr
    assert refused.document["error"] == "QuiesceError"
    assert guest.machine.state() == before
    assert backups.ids() == ids == [outcome.document["id"]]
    assert not list(repository.rglob("*.partial"))
    # A power cut of both disks at one moment: the journals make the filesystems whole, the numbers fit.
    output = backups.restore(tmp_path / "restored", "--format", "raw")
    for dev in DISKS:
        assert not check_filesystem(output / f"{dev}.raw").clean
        assert preen_filesystem(output / f"{dev}.raw")
        assert check_filesystem(output / f"{dev}.raw").clean
    assert number(output, "vda") - number(output, "vdb") in (0, 1)


def test_limit_is_kept_in_vbackup_itself_where_the_driver_is_in_it(
    guest: Guest, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction hangs, and no other process reaches this guest."""
    really = Passthrough.execute
    seen = []

    def execute(monitor: Passthrough, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
        if command == "transaction":
            seen.append(guest.agent.filesystem_status())
            wait_for(lambda: guest.agent.filesystem_status() == "thawed", "the thaw")
        return really(monitor, command, arguments, fd=fd)

    monkeypatch.setattr(Passthrough, "execute", execute)
    outcome = backups.backup("--freeze-limit", "2")
    assert seen == ["frozen"]
    assert outcome.document["consistency"] == "crash"
    assert "the 2 s of --freeze-limit expired" in outcome.stderr


def test_agent_that_does_not_answer_is_not_waited_for(guest: Guest, backups: Backups) -> None:
    guest.obey("killall -STOP qemu-ga")
    try:
        outcome = backups.backup()
    finally:
        guest.obey("killall -CONT qemu-ga")
        guest.agent.wait()
    assert outcome.document["consistency"] == "crash"
    assert "warning" in outcome.stderr
    assert "does not answer" in outcome.stderr
    assert guest.agent.filesystem_status() == "thawed"


def test_pull_session_of_a_frozen_guest_serves_clean_filesystems(
    guest: Guest, command: Command, lab: Lab, sockets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.agent.write("/data/files/pulled", b"before the session")
    session = ("-c", lab.uri, "-q", "session")
    begin = ("begin", guest.machine.name, "--tracker", "acme", "--quiesce", "required", "--freeze-limit", "5")
    references = References(tmp_path / "references")
    before = guest.machine.state()
    with references.taken(monkeypatch):
        begun = command(*session, *begin, "--scratch", tmp_path, "--json").document
    assert guest.agent.filesystem_status() == "thawed"
    guest.agent.write("/data/files/pulled", b"after its moment")
    images = references.finish(guest.machine)

    assert begun["consistency"] == "filesystem"
    assert 0 < begun["frozen_ms"] < 5000
    held = dict(zip(DISKS, images.values()))  # in the order of the transaction
    for disk in begun["disks"]:
        raw = tmp_path / f"{disk['dev']}.raw"
        subprocess.run(["nbdcopy", disk["uri"], raw], check=True)
        compare(raw, held[disk["dev"]])
        assert check_filesystem(raw).clean
    assert read_file(tmp_path / "vda.raw", "/files/pulled") == b"before the session"
    assert number(tmp_path, "vda") - number(tmp_path, "vdb") in (0, 1)
    command(*session, "abort", begun["id"])
    assert guest.machine.state() == before
