"""vbackup forget: one repository's bitmaps go, on every layer where they can, and nobody else's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.lab import DiskSpec, Lab, domain_xml, qemu_img_info
from vbackup import names
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome

DEVS = ("vda", "vdb")


class Place:
    """A domain with two repositories, a checkpoint of libvirt's and a bitmap of somebody else's."""

    def __init__(self, command: Command, lab: Lab, tmp_path: Path) -> None:
        self._command, self.uri, self._tmp_path = command, lab.uri, tmp_path
        self.ours, self.other = tmp_path / "ours", tmp_path / "other"
        for path in (self.ours, self.other):
            command("init", "-r", path)
        self.machine = lab.boot("claims", [DiskSpec(tmp_path / f"{dev}.qcow2", dev=dev, size="8M") for dev in DEVS])
        command("-c", lab.uri, "bitmap", "add", "claims", "foreign", "--persistent")
        self.machine.handle.domain.checkpointCreateXML("<domaincheckpoint><name>theirs</name></domaincheckpoint>", 0)
        for path in (self.ours, self.other, self.ours):
            self.backup(path)

    def backup(self, repository: Path) -> list[str]:
        argv = ("-c", self.uri, "-q", "backup", "claims", "-r", repository, "--json")
        return [disk["level"] for disk in self._command(*argv).document["disks"]]

    def forget(self, *options: str | Path, status: int = 0) -> Outcome:
        return self._command("-c", self.uri, "forget", "claims", *options, "--json", status=status)

    def bitmaps(self) -> list[tuple[str, int, str, str]]:
        """Disk, layer, owner (the repository's id for ours) and state of each."""
        listed = self._command("-c", self.uri, "bitmap", "list", "claims", "--json").document["bitmaps"]
        return [(one["dev"], one["layer"], one["repository"] or one["owner"], one["state"]) for one in listed]

    def snapshot(self) -> None:
        disks = "".join(
            f"<disk name='{dev}' snapshot='external'><source file='{self._tmp_path}/{dev}-overlay.qcow2'/></disk>"
            for dev in DEVS
        )
        self.machine.handle.domain.snapshotCreateXML(
            f"<domainsnapshot><name>s</name><disks>{disks}</disks></domainsnapshot>",
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
        )

    def stored(self, name: str) -> dict[str, Any]:
        """The bitmaps that an image has stored while the domain is off, with their flags."""
        data = qemu_img_info(self._tmp_path / f"{name}.qcow2")["format-specific"]["data"]
        return {one["name"]: one["flags"] for one in data.get("bitmaps", [])}


@pytest.fixture
def place(command: Command, lab: Lab, tmp_path: Path) -> Place:
    return Place(command, lab, tmp_path)


def without(bitmaps: list[tuple[str, int, str, str]], owner: str) -> list[tuple[str, int, str, str]]:
    left = [one for one in bitmaps if one[2] != owner]
    assert left != bitmaps
    return left


@pytest.mark.parametrize("is_off", [False, True], ids=["running", "off"])
def test_one_repositorys_claim_goes_and_the_others_stay(place: Place, is_off: bool) -> None:
    if is_off:
        place.machine.destroy()
    before = place.bitmaps()
    repository = Repository.open(place.ours)
    document = place.forget("-r", place.ours).document
    assert [(one["dev"], (one["checkpoint"] or "end mark")[-4:]) for one in document["removed"]] == [
        ("vda", "full"),
        ("vda", "ntal"),
        ("vda", "mark"),
        ("vdb", "full"),
        ("vdb", "ntal"),
        ("vdb", "mark"),
    ]
    assert (document["kept"], document["unopened"]) == ([], [])
    assert place.bitmaps() == without(before, repository.id)
    assert {one.getName() for one in place.machine.handle.domain.listAllCheckpoints()} == {"theirs"}
    assert place.backup(place.ours) == ["full", "full"]
    assert place.backup(place.other) == ["incremental", "incremental"]
    assert len(repository.catalogue(place.machine.handle.uuid).history.backups) == 3


def test_layers_below_go_when_the_domain_is_off(place: Place, lab: Lab, tmp_path: Path) -> None:
    """A running QEMU has them read-only; they are named with what to do, and then that works."""
    place.snapshot()
    before, state = place.bitmaps(), place.machine.state()
    ours = Repository.open(place.ours).id
    planned = place.forget("-r", place.ours, "--dry-run").document
    assert place.machine.state() == state
    done = place.forget("-r", place.ours)
    assert [planned[key] for key in ("removed", "kept")] == [done.document[key] for key in ("removed", "kept")]
    assert len(done.document["kept"]) == 6
    assert {Path(one["file"]).name for one in done.document["kept"]} == {"vda.qcow2", "vdb.qcow2"}
    assert {one["reason"] for one in done.document["kept"]} == {"its layer is read-only"}
    assert done.stderr.count("when the domain is off, or when the layers above are committed") == 2
    assert place.bitmaps() == [one for one in before if one[1] == 1 or one[2] != ours]
    place.machine.destroy()
    stored = place.stored("vda")
    foreign = {name: flags for name, flags in stored.items() if ours not in name}
    assert len(foreign) == 4
    # One of the layers is part of another domain's disk as well.
    twin = DiskSpec(tmp_path / "twin.qcow2", size="8M", backing=tmp_path / "vda.qcow2")
    twin.create()
    other = lab.start(domain_xml("twin", [twin.xml()]))
    done = place.forget("-r", place.ours)
    assert {one["dev"] for one in done.document["removed"]} == {"vdb"}
    assert {one["dev"] for one in done.document["kept"]} == {"vda"}
    assert "lock" in done.document["kept"][0]["reason"]
    assert "run the same command again when nothing else uses the image" in done.stderr
    assert place.stored("vda") == stored
    other.destroy()
    again = place.forget("-r", place.ours)
    assert ({one["dev"] for one in again.document["removed"]}, again.document["kept"]) == ({"vda"}, [])
    assert "warning" not in again.stderr
    assert place.stored("vda") == foreign
    assert place.backup(place.ours) == ["full", "full"]
    assert place.backup(place.other) == ["incremental", "incremental"]


def test_repository_that_is_gone_is_forgotten_by_its_id(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Repository.open(place.ours).id
    before = place.bitmaps()
    shutil.rmtree(place.ours)
    monkeypatch.setenv("VBACKUP_REPOSITORY", str(place.ours))
    place.forget("-r", place.ours, status=7)
    assert len(place.forget("--repository-id", ours).document["removed"]) == 6
    assert place.bitmaps() == without(before, ours)
    assert place.forget("--repository-id", ours).document["removed"] == []


def test_domain_that_is_being_backed_up_is_busy(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository's lock counts also where only its id is given; without a repository, a job in QEMU does."""
    repository = Repository.open(place.ours)
    machine = place.machine
    before = machine.state()
    with monkeypatch.context() as patch, repository.lock(machine.handle.uuid):
        patch.setenv("VBACKUP_REPOSITORY", str(place.ours))
        for which in (("-r", str(place.ours)), ("--repository-id", repository.id, "--force")):
            assert "Another vbackup is working" in place.forget(*which, status=8).stderr
    assert machine.state() == before
    target = names.Naming(repository.id).target_node("vda")
    job_id = names.Naming(repository.id).job("20200101T000000Z-full", "vda")
    machine.execute("blockdev-add", driver="null-co", node_name=target, size=8 << 20)
    how = {"sync": "full", "speed": 65536, "auto_dismiss": False, "auto_finalize": False}
    machine.execute("blockdev-backup", job_id=job_id, device=next(iter(machine.bitmaps())), target=target, **how)
    refused = place.forget("--repository-id", repository.id, status=8)
    assert f"its job {job_id} is in QEMU" in refused.stderr
    assert len(place.forget("--repository-id", repository.id, "--force").document["removed"]) == 6
    after = machine.state()
    assert (after["nodes"], after["jobs"]) == (before["nodes"], [])


def test_disk_that_cannot_be_opened_keeps_no_other(place: Place, tmp_path: Path) -> None:
    place.machine.destroy()
    (tmp_path / "vda.qcow2").rename(tmp_path / "away.qcow2")
    done = place.forget("-r", place.ours, status=5)
    assert [one["dev"] for one in done.document["removed"]] == ["vdb"] * 3
    assert [one["dev"] for one in done.document["unopened"]] == ["vda"]
    assert "vda.qcow2 cannot be accessed" in done.stderr
    (tmp_path / "away.qcow2").rename(tmp_path / "vda.qcow2")
    assert [one["dev"] for one in place.forget("-r", place.ours).document["removed"]] == ["vda"] * 3


def test_raw_disks_bitmap_goes_too(command: Command, lab: Lab, repository: Path, tmp_path: Path) -> None:
    lab.boot("raw", [DiskSpec(tmp_path / "vda.raw", format="raw", size="8M")])
    command("-c", lab.uri, "-q", "backup", "raw", "-r", repository)
    said = command("-c", lab.uri, "forget", "raw", "-r", repository).stdout
    assert "Removed 2 bitmaps of repository" in said
    assert "next backup to that repository will be full" in said
    assert command("-c", lab.uri, "bitmap", "list", "raw").stdout == "No bitmaps.\n"
    said = command("-c", lab.uri, "forget", "raw", "-r", repository).stdout
    assert said.startswith("No bitmap of repository")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("claims",), "No repository given"),
        (("claims", "--repository-id", "../x"), "is not the id of a repository"),
        (("claims", "-r", ".", "--force"), "--force needs --repository-id"),
        (("--repository-id", "0123456789ab"), "No domain given"),
    ],
)
def test_wrong_arguments(
    command: Command, repository: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(repository)
    refused = command("-c", "test:///default", "forget", *arguments, status=2)
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_domain_that_libvirt_does_not_know(command: Command, lab: Lab, repository: Path) -> None:
    refused = command("-c", lab.uri, "forget", "none", "-r", repository, "--json", status=4)
    assert json.loads(refused.stdout)["error"] == "DomainNotFoundError"
