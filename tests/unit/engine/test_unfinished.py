"""What an unfinished backup has in QEMU follows from its draft, and each part can be undone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fake_qemu import MIB, FakeBitmap, FakeDisk, FakeQemu, qcow2_header
from tests.unit import builders
from tests.unit.builders import FOREIGN, TOKEN, Recorder, backup, backup_id, image
from vbackup.engine.unfinished import LockedDomain, Unfinished
from vbackup.images import targets
from vbackup.images.targets import Target
from vbackup.model import Backup, Level, NodeBitmap
from vbackup.names import Naming
from vbackup.repository.repository import Repository
from vbackup.stop import Stop
from vbackup.undo import Undo

ID = backup_id(2, Level.INCREMENTAL)


class Source:
    """An open domain; its guest notes when it is asked to go on."""

    def __init__(self, qemu: FakeQemu) -> None:
        self.monitor = qemu
        self.domain = builders.domain("vda", "vdb")
        self.resumed: list[tuple[bool, list[str]]] = []

    def resume(self, _reporter: object, *, guest_was_stopped: bool) -> None:
        self.resumed.append((guest_was_stopped, self.monitor.state()["jobs"]))


@pytest.fixture
def qemu() -> Iterator[FakeQemu]:
    disks = [FakeDisk("virtio-disk0"), FakeDisk("virtio-disk1", path="/images/vdb.qcow2")]
    with FakeQemu(disks) as made:
        yield made


def draft(repo: Repository, qemu: FakeQemu, **changes: Any) -> Backup:
    """An incremental of vda and a full of vdb."""
    naming = Naming(repo.id)
    tops = {"vda": qemu.top("virtio-disk0"), "vdb": qemu.top("virtio-disk1")}
    bitmaps = {dev: naming.bitmap(ID, dev, TOKEN) for dev in tops}
    bitmaps.update(changes)
    levels: dict[str, dict[str, Any]] = {
        "vda": {"level": Level.INCREMENTAL, "base": backup_id(1)},
        "vdb": {"level": Level.FULL},
    }
    images = (image(dev, node_name=tops[dev], bitmap=bitmaps[dev], **levels[dev]) for dev in tops)
    return backup(2, *images, level=Level.INCREMENTAL)


def unfinished(repo: Repository, qemu: FakeQemu, stage: Path, **changes: Any) -> Unfinished:
    domain = LockedDomain(Source(qemu), repo, Recorder(), Stop())  # type: ignore[arg-type]
    marks = changes.pop("new_marks", ())
    place: Any = SimpleNamespace(path=stage)
    return Unfinished(domain, draft(repo, qemu, **changes), place, new_marks=marks)


def test_names_follow_from_the_draft(repo: Repository, qemu: FakeQemu, tmp_path: Path) -> None:
    one, naming = unfinished(repo, qemu, tmp_path), Naming(repo.id)
    assert one.devs == {naming.job(ID, "vda"): "vda", naming.job(ID, "vdb"): "vdb"}
    assert one.images == {naming.job(ID, dev): tmp_path / f"{dev}.qcow2" for dev in ("vda", "vdb")}
    more = {job(ID, dev) for job in (naming.fleecing_job, naming.allocation_job) for dev in ("vda", "vdb")}
    assert set(one.job_ids) == {*one.devs, *more, naming.scratch_job}
    assert one.target_nodes == [naming.target_node("vda"), naming.target_node("vdb")]


def test_bitmaps_that_only_this_backup_needs(repo: Repository, qemu: FakeQemu, tmp_path: Path) -> None:
    """A full may have some too: of what is allocated (vbackup.engine.allocation)."""
    naming = Naming(repo.id)
    assert unfinished(repo, qemu, tmp_path).working_bitmaps == [
        NodeBitmap(qemu.top("virtio-disk0"), naming.working_bitmap(ID, "vda")),
        NodeBitmap(qemu.top("virtio-disk1"), naming.working_bitmap(ID, "vdb")),
        NodeBitmap(qemu.top("virtio-disk1"), naming.allocation_bitmap(ID, "vdb")),
    ]


@pytest.mark.parametrize("foreign", ["theirs", "of another repository", "of another backup", None])
def test_bitmap_that_this_backup_cannot_have_made_is_not_its_own(
    repo: Repository, qemu: FakeQemu, tmp_path: Path, foreign: str | None
) -> None:
    """The draft may come from a damaged journal."""
    name = {
        "of another repository": Naming(FOREIGN).bitmap(ID, "vda", TOKEN),
        "of another backup": Naming(repo.id).bitmap(backup_id(1), "vda", TOKEN),
    }.get(foreign or "", foreign)
    one = unfinished(repo, qemu, tmp_path, vda=name)
    assert [bitmap.node_name for bitmap in one.bitmaps] == [qemu.top("virtio-disk1")]


def test_new_bitmaps_and_marks_go_and_all_others_stay(repo: Repository, qemu: FakeQemu, tmp_path: Path) -> None:
    top, naming = qemu.top("virtio-disk0"), Naming(repo.id)
    mark = naming.end_mark("vda", 16 * MIB)
    one = unfinished(repo, qemu, tmp_path, new_marks=(NodeBitmap(top, mark),))
    base = naming.bitmap(backup_id(1), "vda", TOKEN)
    for place in (*one.bitmaps, *one.working_bitmaps, NodeBitmap(top, mark), NodeBitmap(top, base)):
        qemu.bitmaps(place.node_name)[place.bitmap] = FakeBitmap(place.bitmap)
    recorder = Recorder()
    with Undo(recorder) as undo:
        one.push_undo_of_bitmaps(undo)
    assert qemu.state()["bitmaps"] == {top: [base]}
    assert recorder.warnings == []


def test_end_marks_of_a_dead_run_stay(repo: Repository, qemu: FakeQemu, tmp_path: Path) -> None:
    top, mark = qemu.top("virtio-disk0"), Naming(repo.id).end_mark("vda", 16 * MIB)
    qemu.bitmaps(top)[mark] = FakeBitmap(mark)
    with Undo(Recorder()) as undo:
        unfinished(repo, qemu, tmp_path).push_undo_of_bitmaps(undo)
    assert qemu.state()["bitmaps"] == {top: [mark]}


def test_jobs_end_before_the_guest_goes_on_and_nodes_are_closed_last(
    repo: Repository, qemu: FakeQemu, tmp_path: Path
) -> None:
    before, one = qemu.state(), unfinished(repo, qemu, tmp_path)
    with Undo(Recorder()) as undo:
        one.push_undo_of_nodes(undo)
        one.push_undo_of_jobs(undo, guest_was_stopped=True)
        for (job_id, path), node, source in zip(
            one.images.items(), one.target_nodes, (qemu.top("virtio-disk0"), qemu.top("virtio-disk1"))
        ):
            path.write_bytes(qcow2_header(16 * MIB))
            with Undo(Recorder()) as opening:
                targets.open_in_qemu(qemu, [Target(path, node)], undo=opening)
                opening.release()
            data = {"job-id": job_id, "device": source, "target": node, "sync": "full"}
            qemu.execute("transaction", {"actions": [{"type": "blockdev-backup", "data": data}]})
    assert one.domain.source.resumed == [(True, [])]  # type: ignore[attr-defined]
    assert qemu.state() == before


@pytest.mark.parametrize("what", ["allocation", "scratch"])
def test_dead_run_that_was_preparing_leaves_no_job_that_keeps_nodes_and_bitmaps_busy(
    repo: Repository, qemu: FakeQemu, tmp_path: Path, what: str
) -> None:
    """One that asks what a layer has allocated goes on until somebody ends it."""
    before, one, naming, top = qemu.state(), unfinished(repo, qemu, tmp_path), Naming(repo.id), qemu.top("virtio-disk1")
    recorder = Recorder()
    with Undo(recorder) as undo:
        one.push_undo_of_bitmaps(undo)
        one.push_undo_of_nodes(undo)
        one.push_undo_of_jobs(undo, guest_was_stopped=False)
        sink, job_id = {
            "allocation": (naming.allocation_sink, naming.allocation_job(ID, "vdb")),
            "scratch": (naming.scratch_node(0), naming.scratch_job),
        }[what]
        qemu.execute("blockdev-add", {"driver": "null-co", "node-name": sink, "size": 16 * MIB, "read-zeroes": True})
        asked = {"node": top, "name": naming.allocation_bitmap(ID, "vdb")}
        job = {"job-id": job_id, "device": top, "target": sink, "sync": "top"}
        if what == "allocation":
            qemu.execute("block-dirty-bitmap-add", asked)
            qemu.bitmaps(top)[asked["name"]].mark(0, 16 * MIB)
            job.update({"bitmap": asked["name"], "bitmap-mode": "always"})
        qemu.execute("transaction", {"actions": [{"type": "blockdev-backup", "data": job}]})
    assert recorder.warnings == []
    assert qemu.state() == before


def test_domain_is_what_every_step_works_with(repo: Repository, qemu: FakeQemu, tmp_path: Path) -> None:
    domain = unfinished(repo, qemu, tmp_path).domain
    assert (domain.uuid, domain.naming.repository_id) == (builders.UUID, repo.id)
    assert domain.monitor is qemu  # type: ignore[comparison-overlap]
