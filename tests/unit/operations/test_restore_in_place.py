"""What a restore in place says of the rest of the machine; tests/end_to_end/test_rollback.py restores in place."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import UUID, Recorder, backup, commit
from vbackup.errors import DomainNotFoundError, LinkLostError, RemoteError, StorageDaemonGoneError
from vbackup.model import MachineFile, MachineKind
from vbackup.operations import restore_in_place, rollback
from vbackup.operations.in_place_there import There
from vbackup.operations.restore_in_place import InPlaceRequest
from vbackup.operations.rollback import Rollback, RollbackRequest
from vbackup.repository.choice import Choice
from vbackup.repository.chosen import Chosen
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

DIGEST = "sha256:" + "2" * 64
TPM_XML = "<domain><devices><tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>"


def warnings(*kinds: MachineKind) -> list[str]:
    made = backup(1, machine=tuple(MachineFile(kind, 9, DIGEST, "/original") for kind in kinds))
    assert restore_in_place.machine_untouched(made) == tuple(one for one in kinds if one is not MachineKind.KERNEL)
    point = Chosen(Choice(made, {"vda": made}, (), ()), {})
    recorder, handle = Recorder(), SimpleNamespace(name="web")
    restore_in_place._warn(point, (), as_handle(handle), recorder, is_asked=False)
    return recorder.warnings


def as_handle(stub: Any) -> Any:
    return stub


def test_state_beside_the_disks_stays_with_a_warning() -> None:
    [said] = warnings(MachineKind.NVRAM, MachineKind.TPM, MachineKind.KERNEL)
    assert "keeps its UEFI variables and state of the TPM as now" in said
    assert f"'vbackup restore web {backup(1).id} --output=DIR' gives those" in said


def test_machine_without_state_gets_no_warning() -> None:
    assert warnings() == warnings(MachineKind.KERNEL) == []


def test_namesake_with_another_uuid_is_told(repo: Repository) -> None:
    commit(repo, backup(1))
    repo.remember_name(UUID, "web")
    other = "11111111-2222-4333-8444-555555555555"
    there = SimpleNamespace(command=lambda words: words)
    for name, said in (
        ("web", f"another domain of that name, with the UUID {UUID}, .*restore {UUID} -r .* --define --name=NEW'"),
        ("db", "lists the domains that have backups"),
    ):
        host = SimpleNamespace(domain=lambda _wanted, name=name: SimpleNamespace(name=name, uuid=other, host=there))
        with pytest.raises(DomainNotFoundError, match=rf"No domain '{name} \({other}\)' in .*{said}"):
            restore_in_place.run(
                InPlaceRequest("web"), host=as_handle(host), repository=repo, reporter=Recorder(), stop=Stop()
            )
    assert not (repo.path / other).exists()


def rolled_back(err: BaseException, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what is said of a rollback that ends in the middle with this error."""
    recorder = Recorder()
    domain = SimpleNamespace(reporter=recorder, source=SimpleNamespace(domain=SimpleNamespace(name="web")))
    disk = SimpleNamespace(dev="vda", backup=backup(1))

    def fail(*_: object, **__: object) -> None:
        raise err

    monkeypatch.setattr(rollback.rollback, "begin", lambda *_args, **_more: {})
    monkeypatch.setattr(rollback.rollback, "carry_out", fail)
    ready = Rollback(
        as_handle([disk]),
        {},
        RollbackRequest(False),
        as_handle(domain),
        point=as_handle(None),
        lists=as_handle(None),
        store=lambda _layer: None,
        untouched=(),
        reach=None,
    )
    with pytest.raises(type(err)):
        ready.run()
    [said] = recorder.warnings
    return said


def test_interrupted_rollback_says_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = StorageDaemonGoneError("was killed", "")
    said = rolled_back(gone, monkeypatch)
    assert said.endswith("Do not start domain web; run the same command again, which restores them in full.")


@pytest.mark.parametrize(
    ("uid", "number", "warns"),
    [(0, errno.ENOSPC, True), (0, 0, True), (0, errno.EACCES, False), (1000, errno.EROFS, False)],
)
def test_record_that_cannot_be_written_on_another_host_is_a_warning_as_on_this_one(
    uid: int, number: int, warns: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RemoteError("root@hv2", "write it", "No space left", errno=number)

    link = SimpleNamespace(host="root@hv2", hello={"uid": uid}, run=fail, read_file=fail)
    host = SimpleNamespace(real_uri="qemu+ssh://root@hv2/system", link=lambda **_: link)
    recorder = Recorder()
    place = There(as_handle(SimpleNamespace(name="web", uuid=UUID, host=host)), stop=Stop())
    place.half_restored(["vda"], command="vbackup restore", reporter=recorder)
    said = (
        f"/var/lib/vbackup/half-restored/{UUID} on root@hv2 cannot be written (No space left): if the restore is"
        " interrupted, libvirt's hook script will not keep domain web from starting."
    )
    assert recorder.warnings == ([said] if warns else [])


def test_disk_of_another_host_that_gets_no_new_image_can_be_restored_elsewhere_there() -> None:
    uri = "qemu+ssh://root@hv2/system"
    host = SimpleNamespace(real_uri=uri, link=lambda **_: SimpleNamespace(host="root@hv2"))
    definitions = iter(("<domain/>", TPM_XML))
    domain = SimpleNamespace(name="web", uuid=UUID, host=host, definition_xml=lambda: next(definitions))
    host.is_local = False
    place = There(as_handle(domain), stop=Stop())
    there = "Run vbackup on that host, or restore to a new directory DIR there: "
    commands = (
        f"run 'virsh -c {uri} undefine web --keep-nvram', and then 'vbackup restore web --backup ID --define -c {uri}"
        " --output DIR'."
    )
    assert place.elsewhere("ID", option=" --disk=vda=/dev/x") == there + commands
    state = f"/var/lib/libvirt/swtpm/{UUID}/tpm2, the state of its emulated TPM, which undefining deletes"
    assert place.elsewhere("ID", option="") == f"{there}save a copy of {state}; then {commands}"


def test_link_that_is_lost_when_all_disks_are_restored_is_a_warning() -> None:
    def lose(_devs: object) -> None:
        raise LinkLostError("root@hv2", "broke")

    place = as_handle(SimpleNamespace(on_host=" on root@hv2", whole=lose))
    restore_in_place._whole(
        ["vda", "vdb"], as_handle(SimpleNamespace(name="web", uuid=UUID)), place, recorder := Recorder()
    )
    [said] = recorder.warnings
    assert "All disks are restored, but then the SSH connection to root@hv2 broke" in said
    record = f"/var/lib/vbackup/half-restored/{UUID}"
    assert said.endswith(f"Remove {record} on root@hv2, unless it names other disks than vda, vdb.")
