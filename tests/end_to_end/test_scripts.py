"""The user's scripts around real backups: a guest that is flushed, frozen and thawed; groups; restores in place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.end_to_end import test_batch, test_watchdog
from tests.end_to_end.chains import Chain
from tests.end_to_end.test_batch import Fleet, by_name
from tests.end_to_end.test_offline import write
from tests.guest import Guest
from tests.lab import compare
from tests.unit.scripts.test_examples import EXAMPLES
from vbackup.scripts.runner import DomainScripts

if TYPE_CHECKING:
    from tests.conftest import Command

image, guest, uri, fleet = test_watchdog.image, test_watchdog.guest, test_watchdog.uri, test_batch.fleet

Write = Callable[[str, str], Path]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "scripts.d"
    made.mkdir(mode=0o755)
    return made


@pytest.fixture
def script(directory: Path) -> Write:
    def written(rpath: str, text: str) -> Path:
        path = directory / rpath
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return written


# a guest; "_daemon: Daemon" is in test_watchdog's fixtures


@pytest.fixture
def in_guest(guest: Guest) -> Iterator[Callable[[], list[str]]]:
    """A program in the guest that notes its phase; what it has noted."""
    guest.agent.write(
        "/run/flush", b"#!/bin/sh\necho flushing $1\necho $1 >> /run/flushed\n[ ! -e /run/no ] || exit 7\n"
    )
    guest.agent.run("/bin/chmod", "755", "/run/flush")
    guest.agent.write("/run/flushed", b"")
    yield lambda: guest.agent.read("/run/flushed").decode().split()
    guest.agent.run("/bin/rm", "-f", "/run/no")


def test_guest_is_flushed_before_the_freeze_and_after_the_thaw(
    uri: str,
    guest: Guest,
    in_guest: Callable[[], list[str]],
    command: Command,
    repository: Path,
    directory: Path,
    script: Write,
) -> None:
    for phase in ("pre-backup", "post-thaw", "on-failure"):
        place = directory / "domains" / guest.machine.name / f"{phase}.d"
        place.mkdir(mode=0o755, parents=True)
        (place / "50-flush").symlink_to(EXAMPLES / "guest-flush")
    (directory / "domains" / guest.machine.name / ".guest-flush").write_text("/run/flush\n")
    script("post-freeze.d/50-look", f"virsh -c '{uri}' qemu-agent-command $VBACKUP_UUID "
           """'{"execute": "guest-fsfreeze-status"}'""")  # fmt: skip
    arguments = ("-c", uri, "backup", guest.machine.name, "-r", repository, "--scripts", directory, "--json")
    done = command(*arguments)
    assert in_guest() == ["pre-backup", "post-thaw"]
    assert "pre-backup script 50-flush: flushing pre-backup" in done.stderr
    assert 'post-freeze script 50-look: {"return":"frozen"}' in done.stderr
    assert done.document["consistency"] == "filesystem"
    assert [(one["phase"], one["status"]) for one in done.document["scripts"]] == [
        ("pre-backup", 0),
        ("post-freeze", 0),
        ("post-thaw", 0),
    ]
    guest.agent.write("/run/no", b"")
    refused = command(*arguments, status=9)
    assert refused.document["error"] == "ScriptError"
    assert "ended with exit status 7" in refused.stderr
    assert in_guest()[2:] == ["pre-backup", "on-failure"]
    assert len(command("list", "-r", repository, "--json").document["backups"]) == 1
    assert guest.agent.filesystem_status() == "thawed"


def test_late_script_leaves_the_guest_frozen_no_longer(
    uri: str, guest: Guest, command: Command, repository: Path, directory: Path, script: Write
) -> None:
    script("post-freeze.d/50-late", "trap '' TERM; while :; do sleep 100; done")
    script("post-freeze.d/60-never", "echo never")
    done = command(
        *("-c", uri, "backup", guest.machine.name, "-r", repository, "--scripts", directory, "--json"),
        *("--quiesce", "required", "--freeze-limit", "8"),
    )
    document = done.document
    assert document["consistency"] == "filesystem"
    assert 4000 <= document["frozen_ms"] < 8000
    assert guest.agent.filesystem_status() == "thawed"
    late, never = document["scripts"]
    assert "had not ended in the time that scripts may take while the guest is frozen" in late["failure"]
    assert "no time was left" in never["failure"]
    assert done.stderr.count("warning: ") == 2


# several domains


def test_scripts_run_for_each_domain_and_a_group_stands_together(fleet: Fleet, directory: Path, script: Write) -> None:
    fleet.boot("one", "two")
    for phase in ("pre-backup", "post-backup", "on-failure"):
        script(f"{phase}.d/50-note", f"echo $VBACKUP_PHASE >> {fleet.tmp_path}/$VBACKUP_DOMAIN")
    options = ("--scripts", directory)
    document = fleet.backup("one", "two", *options).document
    assert {name: [one["phase"] for one in entry["scripts"]] for name, entry in by_name(document).items()} == {
        name: ["pre-backup", "post-backup"] for name in ("one", "two")
    }
    # It fails when that of the other domain has run, which the failure would otherwise stop.
    others = f"$(grep -c pre-backup {fleet.tmp_path}/one)"
    script("domains/two/pre-backup.d/60-no", f'while [ "{others}" -lt 2 ]; do sleep 0.05; done; exit 1')
    before = fleet.entries()
    states = fleet.states()
    document = fleet.backup("one", "two", "--group", *options, status=9).document
    failed = {name: entry["error"]["error"] for name, entry in by_name(document).items()}
    assert failed == {"one": "GroupError", "two": "ScriptError"}
    assert fleet.entries() == before
    assert fleet.states() == states
    document = fleet.backup("one", "two", *options, status=3).document
    assert {name: "error" in entry for name, entry in by_name(document).items()} == {"one": False, "two": True}
    noted = {name: (fleet.tmp_path / name).read_text().split() for name in ("one", "two")}
    assert noted == {
        "one": ["pre-backup", "post-backup", "pre-backup", "on-failure", "pre-backup", "post-backup"],
        "two": ["pre-backup", "post-backup", "pre-backup", "on-failure", "pre-backup", "on-failure"],
    }


def test_scripts_that_others_may_write_stop_all(fleet: Fleet, directory: Path, script: Write) -> None:
    fleet.boot("one")
    script("post-backup.d/50-x", "exit 0").chmod(0o775)
    for words in (("one",), ("one", "two*"), ("one", "--group")):
        refused = fleet.backup(*words, "--scripts", directory, status=7).document
        assert refused["error"] == "UnsafeScriptError"
    assert fleet.entries() == []
    fleet.backup("one", "--scripts", directory, "--dry-run")
    fleet.backup("one", "--no-scripts")


def test_snapshot_while_scripts_run_is_noticed(
    chain: Chain, directory: Path, script: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan has the node below by then, which QEMU copies without an error."""
    script("pre-backup.d/50-x", "exit 0")
    before = DomainScripts.before

    def with_snapshot(self: DomainScripts, *given: Any) -> None:
        before(self, *given)
        snapshot = f"<domainsnapshot><disks><disk name='vda'><source file='{chain.tmp_path}/new.qcow2'/></disk></disks>"
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        chain.machine.handle.domain.snapshotCreateXML(f"{snapshot}</domainsnapshot>", flags)

    monkeypatch.setattr(DomainScripts, "before", with_snapshot)
    refused = chain.run("--scripts", directory, status=8).document
    assert "Disk vda has other images than when the backup was planned" in refused["message"]
    assert chain.machine.state()["jobs"] == []
    monkeypatch.undo()
    chain.backup("--scripts", directory)


# restores


def test_restore_has_its_scripts_and_the_first_can_stop_it(
    chain: Chain, command: Command, directory: Path, script: Write
) -> None:
    spec, name = chain.specs[0], chain.machine.name
    chain.machine.destroy()
    write(spec.path, "write -P 1 0 2M")
    first = chain.run().document
    before = chain.tmp_path / "before.qcow2"
    before.write_bytes(spec.path.read_bytes())
    write(spec.path, "write -P 2 1M 64k")
    script("pre-restore.d/50-note", f"cat > {chain.tmp_path}/plan")
    script("post-restore.d/50-note", f"cat > {chain.tmp_path}/result; exit 3")
    arguments: tuple[Any, ...] = ("restore", name, "-r", chain.repository, "--backup", first["id"])
    done = command("-c", chain.lab.uri, *arguments, "--in-place", "--scripts", directory, "--json")
    plan, result = (json.loads((chain.tmp_path / one).read_text()) for one in ("plan", "result"))
    assert (plan["schema"], plan["way"], plan["id"]) == ("vbackup.restoreplan/1", "in-place", first["id"])
    assert {**result, "scripts": done.document["scripts"]} == done.document
    assert [one["status"] for one in done.document["scripts"]] == [0, 3]
    assert "post-restore.d/50-note ended with exit status 3" in done.stderr
    compare(spec.path, before)
    script("pre-restore.d/60-no", "exit 1")
    output = chain.tmp_path / "out"
    refused = command(*arguments, "--output", output, "--scripts", directory, status=9)
    assert "Nothing was restored or changed." in refused.stderr
    assert not output.exists()
