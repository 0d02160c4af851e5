"""Everything that a planned backup needs in QEMU is there before its moment, and goes if the backup fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fake_qemu import FakeDisk, FakeQemu
from tests.unit import builders
from tests.unit.builders import REPOSITORY, Recorder, layer
from tests.unit.engine.plans import SECOND, make, whole
from vbackup.engine import preparation
from vbackup.engine.base import Choice
from vbackup.engine.plan import BackupPlan
from vbackup.engine.unfinished import LockedDomain
from vbackup.errors import QmpError, StorageError
from vbackup.images import creation
from vbackup.model import DiskNode, Level
from vbackup.names import Naming
from vbackup.stop import Stop
from vbackup.undo import Undo

NAMING = Naming(REPOSITORY)


@pytest.fixture
def qemu() -> Iterator[FakeQemu]:
    disks = [FakeDisk("virtio-disk0"), FakeDisk("virtio-disk1", path="/images/vdb.qcow2")]
    with FakeQemu(disks) as made:
        yield made


@pytest.fixture
def stage(tmp_path: Path) -> Any:
    return SimpleNamespace(path=tmp_path)


def plan_of(*disks: tuple[DiskNode, Choice]) -> BackupPlan:
    return make(disks or [(builders.node(layer(), dev=dev), whole()) for dev in ("vda", "vdb")], Level.AUTO)


def prepare(qemu: FakeQemu, plan: BackupPlan, stage: Any, undo: Undo) -> None:
    source: Any = SimpleNamespace(monitor=qemu)
    repository: Any = SimpleNamespace(naming=NAMING)
    domain = LockedDomain(source, repository, Recorder(), Stop())
    creation.reserve(preparation.new_images(plan, stage))
    preparation.prepare(plan, stage, domain, fleecing_area=None, undo=undo)


def test_images_to_make_are_those_of_the_plan(stage: Any) -> None:
    base = Choice(Level.INCREMENTAL, SECOND, (), "changes")
    new = preparation.new_images(plan_of((builders.node(), base), (builders.node(dev="vdb"), whole())), stage)
    assert [(one.target.path, one.target.node_name) for one in new] == [
        (stage.path / f"{dev}.qcow2", NAMING.target_node(dev)) for dev in ("vda", "vdb")
    ]
    assert [one.backing_rpath for one in new] == [f"../{SECOND.id}/vda.qcow2", None]
    assert {one.size_bytes for one in new} == {builders.SIZE_BYTES}


def test_targets_and_scratch_nodes_are_open_until_they_are_undone(
    qemu: FakeQemu, stage: Any, recorder: Recorder
) -> None:
    before, plan = qemu.state(), plan_of()
    with Undo(recorder) as undo:
        prepare(qemu, plan, stage, undo)
        nodes = {name for name in qemu.state()["nodes"] if name.startswith("vbackup-")}
        assert nodes >= {*(NAMING.target_node(dev) for dev in ("vda", "vdb")), *plan.scratch_sizes}
        assert len(plan.scratch_sizes) == 1
        assert qemu.state()["jobs"] == []
    assert qemu.state() == before
    assert recorder.warnings == []


@pytest.mark.parametrize(("nth", "error"), [(1, StorageError), (2, StorageError), (3, QmpError), (5, QmpError)])
def test_whatever_node_is_refused_nothing_stays_open(
    qemu: FakeQemu, stage: Any, recorder: Recorder, nth: int, error: type[Exception]
) -> None:
    """The first two are the images, the next ones the scratch nodes."""
    before = qemu.state()
    qemu.refuse("blockdev-add", "refused for the test", nth=nth)
    with pytest.raises(error), Undo(recorder) as undo:
        prepare(qemu, plan_of(), stage, undo)
    assert qemu.state() == before


def test_copy_needs_no_scratch_node(qemu: FakeQemu, stage: Any, recorder: Recorder) -> None:
    plan = make([(builders.node(layer()), whole(Level.COPY))], Level.COPY)
    with Undo(recorder) as undo:
        prepare(qemu, plan, stage, undo)
        assert [name for name in qemu.state()["nodes"] if name.startswith("vbackup-")][:1] == [
            NAMING.target_node("vda")
        ]
    assert not any(sent.command == "blockdev-backup" for sent in qemu.sent)
