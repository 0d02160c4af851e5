"""What a dead restore in place has left is ended, and no image is lost that is not as the journal has it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import Recorder
from vbackup.errors import LinkLostError, UnsuitableError
from vbackup.images.replacement import Replacement
from vbackup.operations import full_in_place, in_place_end
from vbackup.operations.full_in_place import RestoredInFull
from vbackup.operations.in_place_host import Here
from vbackup.repository import in_place_journal
from vbackup.repository.in_place_journal import Replaced, Seen, Step
from vbackup.repository.repository import Repository

ID = "20261123T101500Z-full"
UUID = "6f1b2b3c-0000-4000-8000-000000000001"


class Dead:
    """A restore that was killed: vda had to get a new image, vdb to be rolled back."""

    def __init__(self, repo: Repository, tmp_path: Path) -> None:
        self.repo, self.directory, self.recorder = repo, repo.path / UUID, Recorder()
        self.directory.mkdir(exist_ok=True)
        self.names = Replacement(tmp_path / "vda.qcow2", ID)
        self.names.path.write_text("old")
        self.names.new.write_text("new")
        xml = (
            f"<domain type='qemu'><name>web</name><uuid>{UUID}</uuid><devices><disk type='file' device='disk'>"
            f"<driver name='qemu' type='qcow2'/><source file='{self.names.path}'/><target dev='vda' bus='virtio'/>"
            "</disk></devices></domain>"
        )
        self.handle: Any = SimpleNamespace(
            name="web",
            uuid=UUID,
            host=SimpleNamespace(is_local=True),
            live_xml=lambda: xml,
            is_active=lambda: False,
            has_managed_save=lambda: False,
        )

    def record(self, step: Step, *, is_kept: bool = False, rolled: tuple[str, ...] = ()) -> None:
        made = Replaced("vda", self.names.path, ID, is_kept, Seen.of(self.names.path), Seen.of(self.names.new))
        in_place_journal.write(self.directory, step, backup=ID, disks=[made], rolled=rolled)

    def settle(self, *devs: str, keep_old: bool = False, place: Here | None = None) -> bool:
        self.settled = in_place_end.settle(
            self.handle,
            devs or ("vda", "vdb"),
            place or Here(self.handle),
            keep_old=keep_old,
            repository=self.repo,
            reporter=self.recorder,
        )
        return self.settled.is_resumed

    def contents(self) -> dict[str, str]:
        one = self.names
        places = {"path": one.path, "kept": one.kept, "new": one.new}
        return {name: path.read_text() for name, path in places.items() if path.exists()}

    @property
    def is_pending(self) -> bool:
        return in_place_journal.read(self.directory) is not None


@pytest.fixture
def dead(repo: Repository, tmp_path: Path) -> Dead:
    return Dead(repo, tmp_path)


@pytest.mark.parametrize("keep_old", [False, True])
def test_exchange_is_finished_and_the_old_image_kept_if_that_is_asked(dead: Dead, keep_old: bool) -> None:
    dead.record(Step.EXCHANGING)
    assert not dead.settle(keep_old=keep_old)
    assert dead.contents() == {"path": "new", **({"kept": "old"} if keep_old else {})}
    assert not dead.is_pending


@pytest.mark.parametrize("keep_old", [False, True])
def test_disk_that_was_finished_is_not_restored_again(dead: Dead, keep_old: bool) -> None:
    """With --keep-old there would be no name for its old image: the one that it would get is there."""
    dead.record(Step.EXCHANGING)
    dead.names.put()  # the last that the dead run did
    dead.settle(keep_old=keep_old)

    def ended(backup: str = ID) -> list[RestoredInFull]:
        point: Any = SimpleNamespace(
            choice=SimpleNamespace(disks=dict.fromkeys(("vda", "vdb"), SimpleNamespace(id=backup)))
        )
        reasons = {"vda": "it is raw", "vdb": "it is raw"}
        place = Here(dead.handle)
        return full_in_place.ended(dead.settled.finished, reasons, place, point, keep_old=keep_old)

    path = dead.names.path
    kept = dead.names.kept if keep_old else None
    size_bytes = path.stat().st_blocks * 512
    assert ended() == [RestoredInFull("vda", ID, "it is raw", path, size_bytes, kept)]
    assert ended("20261124T101500Z-full") == []  # to another backup
    done = Replaced("vda", path, ID, False, None, Seen.of(path))
    in_place_journal.write(dead.directory, Step.EXCHANGING, backup=ID, disks=[done])
    path.write_text("new, and what the guest wrote")
    dead.settle(keep_old=keep_old)
    assert ended() == []


def test_what_was_written_since_is_kept(dead: Dead) -> None:
    """The domain was started after the kill."""
    dead.record(Step.EXCHANGING)
    dead.names.path.write_text("old, and what the guest wrote")
    assert not dead.settle()
    assert dead.contents() == {"path": "new", "kept": "old, and what the guest wrote"}
    assert f"{dead.names.kept} stays" in dead.recorder.warnings[0]


def test_image_that_an_earlier_run_has_kept_is_not_removed(dead: Dead) -> None:
    """The journal of a hostile repository, or an old one, names it."""
    dead.record(Step.EXCHANGING)
    dead.names.new.replace(dead.names.path)
    dead.names.kept.write_text("theirs")
    assert not dead.settle()
    assert dead.contents() == {"path": "new", "kept": "theirs"}
    assert f"{dead.names.kept} stays" in dead.recorder.warnings[0]


def test_restore_whose_new_image_is_gone_is_not_finished(dead: Dead) -> None:
    """Somebody has cleaned up, or taken the directory from a snapshot."""
    dead.record(Step.EXCHANGING)
    dead.names.new.unlink()
    with pytest.raises(UnsuitableError, match=f"new image of disk vda is gone.* remove {dead.directory}/in-place.json"):
        dead.settle()
    assert dead.contents() == {"path": "old"}
    assert dead.is_pending
    assert not dead.recorder.steps


def test_new_image_that_was_changed_takes_no_place(dead: Dead) -> None:
    dead.record(Step.EXCHANGING)
    dead.names.new.write_text("something else")
    with pytest.raises(UnsuitableError, match="is not as the restore in place has made it"):
        dead.settle()
    assert dead.contents() == {"path": "old", "new": "something else"}
    assert dead.is_pending


def test_restore_that_has_changed_a_disk_is_run_again_with_all_of_them(dead: Dead) -> None:
    dead.record(Step.ROLLING, rolled=("vdb",))
    with pytest.raises(UnsuitableError, match="Restore all of them, vdb too"):
        dead.settle("vda")
    assert dead.contents() == {"path": "old", "new": "new"}
    assert dead.settle()
    assert dead.contents() == {"path": "old"}
    assert dead.is_pending
    dead.names.new.write_text("something else")
    assert dead.settle()
    assert dead.contents() == {"path": "old", "new": "something else"}
    assert "so it stays" in dead.recorder.warnings[0]


def test_restore_that_has_changed_no_disk_is_undone(dead: Dead) -> None:
    made = Replaced("vda", dead.names.path, ID, False, Seen.of(dead.names.path))
    in_place_journal.write(dead.directory, Step.WRITING, backup=ID, disks=[made])
    assert not dead.settle("vda")
    assert dead.contents() == {"path": "old"}
    assert not dead.is_pending
    assert "no disk was changed yet" in dead.recorder.steps[0]


@pytest.mark.parametrize("step", [Step.ROLLING, Step.EXCHANGING])
def test_only_the_host_that_began_ends_it(dead: Dead, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    dead.record(step)
    entry = in_place_journal.read(dead.directory)
    assert entry is not None
    monkeypatch.setattr(in_place_journal, "read", lambda _directory: replace(entry, inode=1))
    with pytest.raises(UnsuitableError, match="Run it again there"):
        dead.settle()


@pytest.mark.parametrize("step", Step)
def test_images_of_another_host_are_left_alone(dead: Dead, step: Step) -> None:
    """A standby has the UUID of its original, and often the same paths."""
    made = Replaced("vda", dead.names.path, ID, False, Seen.of(dead.names.path), Seen.of(dead.names.new))
    uri = "qemu+ssh://root@hv2/system"
    in_place_journal.write(dead.directory, step, backup=ID, disks=[made], host="hv2", uri=uri)
    if step is Step.WRITING:
        assert not dead.settle()
        assert f"if there is a file {dead.names.new}, remove it" in dead.recorder.warnings[0]
    else:
        with pytest.raises(UnsuitableError, match=f"domain on hv2 to .* for that host, with -c {re.escape(uri)}"):
            dead.settle()
    assert dead.contents() == {"path": "old", "new": "new"}
    assert dead.is_pending == (step is not Step.WRITING)


@pytest.mark.parametrize("step", [Step.ROLLING, Step.EXCHANGING])
def test_images_of_another_host_of_the_same_name_are_left_alone(dead: Dead, step: Step) -> None:
    """A host calls itself what it likes, and many are localhost.localdomain."""
    made = Replaced("vda", dead.names.path, ID, False, Seen.of(dead.names.path), Seen.of(dead.names.new))
    uri, host = "qemu+ssh://root@hv1/system", "localhost.localdomain"
    in_place_journal.write(dead.directory, step, backup=ID, disks=[made], host=host, uri=uri)
    place: Any = Here(dead.handle)
    place.host, place.uri = host, "qemu+ssh://root@hv2/system"
    with pytest.raises(UnsuitableError, match=f"for that host, with -c {re.escape(uri)}"):
        dead.settle(place=place)
    assert dead.contents() == {"path": "old", "new": "new"}
    place.uri = uri
    dead.settle(place=place)
    assert dead.contents() == {"path": "new" if step is Step.EXCHANGING else "old"}


def test_journal_stays_until_the_hook_script_knows(dead: Dead) -> None:
    """The link to the host of the images is lost in the last step."""
    dead.record(Step.EXCHANGING)
    place: Any = Here(dead.handle)

    def lose(_devs: object) -> None:
        raise LinkLostError("root@hv1", "broke")

    place.whole = lose
    with pytest.raises(LinkLostError):
        dead.settle(place=place)
    assert dead.is_pending
    assert not dead.settle()
    assert dead.contents() == {"path": "new"}
    assert not dead.is_pending
