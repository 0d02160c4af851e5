"""The plan of a backup is printed as text and as a document, with all that QEMU would be asked to do."""

from __future__ import annotations

import json

import pytest

from tests.unit import builders
from tests.unit.builders import end_mark, layer
from tests.unit.cli.test_output import stdout_on_a_terminal
from tests.unit.engine.plans import make, whole
from vbackup.cli import plans
from vbackup.engine.plan import BackupPlan, FleecingAbilities


def made(*, fleecing: FleecingAbilities | None = None) -> BackupPlan:
    disks = [(builders.node(layer(end_mark(dev)), dev=dev), whole()) for dev in ("vda", "vdb")]
    return make(disks, fleecing=fleecing)


def test_plan_has_a_line_for_each_disk_and_each_action(capsys: pytest.CaptureFixture[str]) -> None:
    plan = made()
    plans.print_plan(plan)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Plan of backup {plan.id} of domain web (checked by QEMU; nothing was kept)"
    assert [line.split()[:3] for line in lines[2:4]] == [[dev, "full", "libvirt-1-format"] for dev in ("vda", "vdb")]
    assert lines[4:6] == ["Left out: hda (cdrom)", "Transaction:"]
    assert [json.loads(line) for line in lines[6:]] == plan.transaction()


def test_actions_are_folded_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = made()
    with stdout_on_a_terminal(monkeypatch, columns=80) as lines:
        plans.print_plan(plan)
    assert [line for line in lines if len(line) > 90] == []  # escape codes, and names that no line can hold
    begin = lines.index("Transaction:")
    text = " ".join(line.strip() for line in lines[begin + 1 :])
    assert text.split() == " ".join(map(json.dumps, plan.transaction())).split()


def test_copies_through_a_fleecing_area_come_after_the_transaction(capsys: pytest.CaptureFixture[str]) -> None:
    plan = made(fleecing=FleecingAbilities(spares_guest=False, tells_zeros=False))
    plans.print_plan(plan)
    lines = capsys.readouterr().out.splitlines()
    begin = lines.index("Then, to copy the disks through the fleecing area:")
    assert [json.loads(line) for line in lines[begin + 1 :]] == plan.copies()
    assert len(plan.copies()) == 2
