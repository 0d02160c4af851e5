"""What a restore in place says of the rest of the machine; tests/end_to_end/test_rollback.py restores in place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import UUID, Recorder, backup, commit
from vbackup.errors import DomainNotFoundError
from vbackup.model import MachineFile, MachineKind
from vbackup.operations import restore_in_place
from vbackup.operations.restore_in_place import InPlaceRequest
from vbackup.repository.choice import Choice
from vbackup.repository.chosen import Chosen
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

DIGEST = "sha256:" + "2" * 64


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
    for name, said in (
        ("web", f"another domain of that name, with the UUID {UUID}, .*restore {UUID} -r .* --define --name=NEW'"),
        ("db", "lists the domains that have backups"),
    ):
        host = SimpleNamespace(domain=lambda _wanted, name=name: SimpleNamespace(name=name, uuid=other))
        with pytest.raises(DomainNotFoundError, match=rf"No domain '{name} \({other}\)' in .*{said}"):
            restore_in_place.run(
                InPlaceRequest("web"), host=as_handle(host), repository=repo, reporter=Recorder(), stop=Stop()
            )
    assert not (repo.path / other).exists()
