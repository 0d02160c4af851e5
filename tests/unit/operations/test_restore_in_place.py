"""What a restore in place says of the rest of the machine; tests/end_to_end/test_rollback.py restores in place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.unit.builders import Recorder, backup
from vbackup.model import MachineFile, MachineKind
from vbackup.operations import restore_in_place
from vbackup.repository.choice import Choice
from vbackup.repository.chosen import Chosen

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
