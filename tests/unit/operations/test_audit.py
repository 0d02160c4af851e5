"""What an audit has found is kept at once: nothing that happens later takes it back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import NOON, UUID, Recorder, backup, commit, image, node
from vbackup.engine import audit_copy, leftovers
from vbackup.errors import (
    ChainError,
    ConnectionLostError,
    DomainGoneError,
    InterruptedBySignalError,
    NoSpaceError,
    StorageError,
    VbackupError,
)
from vbackup.model import NodeBitmap
from vbackup.operations import audit
from vbackup.operations.audit import Audit, AuditRequest, DiskAudit
from vbackup.repository import audited
from vbackup.repository.audit_comparison import Compared, Range
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

ONE = backup(1, image("vda"), image("vdb"))
MISSED = Compared(wrong=1, ranges=[Range(65536, 65536, ONE.id)])
GOOD = Compared()


@dataclass
class Story:
    """An audit of two disks, without a domain: what is found of each, or raised, and what removing bitmaps raises."""

    repository: Repository
    recorder: Recorder
    found: dict[str, Compared | VbackupError] = field(default_factory=lambda: {"vda": MISSED, "vdb": GOOD})
    refusal: VbackupError | None = None
    removals: int = 0

    def run(self) -> Audit:
        host: Any = SimpleNamespace(domain=lambda _: SimpleNamespace(name="web", uuid=UUID))
        request = AuditRequest("web")
        return audit.run(request, host=host, repository=self.repository, reporter=self.recorder, stop=Stop())

    def compared(self, task: Any, *_: object) -> DiskAudit:
        found = self.found[task.dev]
        if isinstance(found, VbackupError):
            raise found
        return DiskAudit(task.dev, ONE.id, 1 << 20, is_partial=False, compared=found)

    def remove(self, _monitor: object, _bitmaps: Sequence[NodeBitmap]) -> None:
        self.removals += 1
        if self.refusal is not None:
            raise self.refusal

    def reason(self, dev: str = "vda") -> str | None:
        """Why the next backup of the disk does not start from the only one."""
        return self.repository.catalogue(UUID).history.distrust(ONE.id, dev)


@pytest.fixture
def story(repo: Repository, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Story:
    told = Story(repo, recorder)
    commit(repo, ONE)
    tasks = [SimpleNamespace(dev=dev, node=node(dev=dev), choice=None, sample=None) for dev in ("vda", "vdb")]
    opened = SimpleNamespace(
        monitor=None,
        domain=SimpleNamespace(name="web", uuid=UUID),
        is_running=True,
        handle=SimpleNamespace(host=SimpleNamespace(is_local=True)),
    )

    @contextmanager
    def open_source(*_: object, **__: object) -> Iterator[Any]:
        yield opened

    @contextmanager
    def taken(*_: object, **__: object) -> Iterator[Any]:
        yield NOON, [None, None]

    monkeypatch.setattr(audit.source, "open_source", open_source)
    monkeypatch.setattr(audit.recovery, "recover", lambda *_, **__: None)
    monkeypatch.setattr(audit, "_tasks", lambda *_: (tasks, []))
    monkeypatch.setattr(audit_copy, "taken", taken)
    monkeypatch.setattr(audit, "_compared", told.compared)
    monkeypatch.setattr(leftovers, "remove_bitmaps", told.remove)
    return told


def test_missed_change_costs_a_full_by_the_note_and_by_the_bitmaps(story: Story) -> None:
    assert not story.run().is_good
    assert (story.removals, len(story.recorder.warnings)) == (1, 1)
    assert "an audit at " in (story.reason() or "")
    assert story.reason("vdb") is None
    assert [one.is_good for one in audited.read(story.repository.path / UUID).values()] == [False, True]


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (DomainGoneError("web"), "was not removed: QEMU has ended."),
        (ConnectionLostError("The connection broke."), "was not removed: The connection broke."),
    ],
)
def test_domain_that_ends_after_it_was_read_takes_no_result_back(
    story: Story, refusal: VbackupError, reason: str
) -> None:
    """Its bitmaps are still in the images then."""
    story.refusal = refusal
    assert not story.run().is_good
    assert story.recorder.warnings[1].endswith(reason)
    assert "an audit at " in (story.reason() or "")


def test_repository_that_cannot_be_written_keeps_no_bitmap(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(*_: object) -> None:
        raise StorageError("It is read-only.")

    monkeypatch.setattr(audited, "add", add)
    with pytest.raises(StorageError, match="read-only"):
        story.run()
    assert story.removals == 1
    story.refusal = DomainGoneError("web")
    with pytest.raises(StorageError, match="read-only"):
        story.run()
    assert story.recorder.warnings[-1].endswith("Make the next backup with --level full.")


@pytest.mark.parametrize(
    "error",
    [InterruptedBySignalError(15), ChainError("A block list is damaged."), StorageError("QEMU could not store it.")],
)
def test_miss_is_kept_although_a_later_disk_fails(story: Story, error: VbackupError) -> None:
    story.found["vdb"] = error
    with pytest.raises(type(error)):
        story.run()
    assert "Disk vda: 65536 bytes have changed" in story.recorder.warnings[0]
    assert story.removals == 1
    assert "an audit at " in (story.reason() or "")


def test_all_disks_are_told_though_nothing_can_be_written(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(*_: object) -> None:
        raise NoSpaceError("It is full.")

    monkeypatch.setattr(audited, "add", add)
    story.found["vdb"] = MISSED
    with pytest.raises(NoSpaceError):
        story.run()
    assert [one[:9] for one in story.recorder.warnings] == ["Disk vda:", "Disk vdb:"]
    assert story.removals == 2


def test_later_good_audit_gives_no_trust_back(story: Story) -> None:
    """The older checkpoint may still have its bitmap, and is the newest again once the later backup is removed."""
    story.run()
    later = backup(2, image("vda"), image("vdb"))
    commit(story.repository, later)
    story.found["vda"] = GOOD
    assert story.run().is_good
    kept = audited.read(story.repository.path / UUID)
    assert [(one.is_good, list(one.distrusted)) for one in kept.values()] == [(True, [ONE.id]), (True, [])]
    assert (story.reason() or "").startswith("an audit before ")
    assert story.repository.catalogue(UUID).history.distrust(later.id, "vda") is None
    story.found["vda"] = MISSED
    story.run()
    assert set(audited.read(story.repository.path / UUID)["vda"].distrusted) == {ONE.id, later.id}
