"""Files below are read only where a base depends on it, or where later backups could not compare otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit import builders
from tests.unit.builders import REPOSITORY, TOKEN, Recorder, backup, bitmap, image, incremental, layer
from vbackup import names
from vbackup.domain import file_contents
from vbackup.engine import proof
from vbackup.engine.base import Choice
from vbackup.engine.unfinished import LockedDomain
from vbackup.layers import ChainState, FileState, LayerState
from vbackup.model import BlockDriver, DiskNode, Level
from vbackup.names import Naming
from vbackup.repository.history import History

FILE = FileState("/images/base", 1, 2, size_bytes=3, mtime_ns=4, ctime_ns=5)
TOP = LayerState("libvirt-1-format", FileState("/images/vda.qcow2"))
A, B = "sha256-qcow2:aa", "sha256-qcow2:bb"
TOUCHED = replace(FILE, ctime_ns=6)


def chain(file: FileState) -> ChainState:
    return ChainState((TOP, LayerState("below", file)))


ONE = backup(1, image(chain=chain(replace(FILE, digest=A))))


def node(file: FileState, *, driver: str = "qcow2") -> DiskNode:
    checkpoint = bitmap(names.Naming(REPOSITORY).bitmap(ONE.id, "vda", TOKEN))
    below = layer(node_name="below", driver=BlockDriver(driver), filename="/images/base")
    return replace(builders.node(layer(checkpoint), below), looked_at=chain(file))


@dataclass
class Contents:
    """Stands for the files: what is read, and how."""

    digests: dict[str, str | None]
    read: list[tuple[str, bool]] = field(default_factory=list)

    def digest(
        self, file: FileState, *, is_qcow2: bool, check: Callable[[], None], progress: Callable[[int, int], None]
    ) -> str | None:
        check()
        self.read.append((file.path, is_qcow2))
        if self.digests[file.path] is not None:
            progress(0, 100)
            progress(100, 100)
        return self.digests[file.path]


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> Contents:
    made = Contents({"/images/base": A})
    monkeypatch.setattr(file_contents, "digest", made.digest)
    return made


@pytest.fixture
def domain(recorder: Recorder) -> LockedDomain:
    made: Any = SimpleNamespace(naming=Naming(REPOSITORY), reporter=recorder, stop=SimpleNamespace(check=lambda: None))
    return cast(LockedDomain, made)


def below(one: DiskNode) -> FileState:
    return one.chain.layers[1].file


def test_what_decides_is_read(contents: Contents, domain: LockedDomain) -> None:
    (compared,) = proof.compared(Level.AUTO, [node(TOUCHED)], History([ONE]), domain)
    assert below(compared) == replace(TOUCHED, digest=A)
    assert contents.read == [("/images/base", True)]


@pytest.mark.parametrize(("level", "file"), [(Level.AUTO, FILE), (Level.FULL, TOUCHED), (Level.COPY, TOUCHED)])
def test_what_does_not_decide_is_not_read(
    contents: Contents, domain: LockedDomain, level: Level, file: FileState
) -> None:
    (compared,) = proof.compared(level, [node(file)], History([ONE]), domain)
    assert (below(compared), contents.read) == (file, [])


def test_raw_layer_is_read_as_it_is(contents: Contents, domain: LockedDomain) -> None:
    proof.compared(Level.AUTO, [node(TOUCHED, driver="raw")], History([ONE]), domain)
    assert contents.read == [("/images/base", False)]


def record(one: DiskNode, choice: Choice, history: History, domain: LockedDomain) -> FileState:
    ((recorded, same),) = proof.recorded([(one, choice)], history, domain)
    assert same is choice
    return below(recorded)


INCREMENTAL = Choice(Level.INCREMENTAL, ONE, (), "")
FULL = Choice(Level.FULL, None, (), "")


def test_first_backup_reads_and_later_ones_carry_over(contents: Contents, domain: LockedDomain) -> None:
    assert record(node(FILE), FULL, History([]), domain) == replace(FILE, digest=A)
    assert contents.read == [("/images/base", True)]
    for choice, file in ((INCREMENTAL, FILE), (INCREMENTAL, TOUCHED), (FULL, FILE)):
        assert record(node(file), choice, History([ONE]), domain) == replace(FILE, digest=A)
    assert len(contents.read) == 1
    # A full copies what is there now: nothing shows that it is that of then.
    contents.digests["/images/base"] = B
    assert record(node(TOUCHED), FULL, History([ONE]), domain) == replace(TOUCHED, digest=B)
    assert len(contents.read) == 2


def test_increment_of_an_older_base_takes_what_the_newest_recorded(contents: Contents, domain: LockedDomain) -> None:
    old = backup(1, image(chain=None))
    newer = incremental(2, old)
    newer = replace(newer, disks=(replace(newer.disks[0], chain=chain(replace(FILE, digest=A))),))
    choice = Choice(Level.DIFFERENTIAL, old, (), "")
    assert record(node(FILE), choice, History([old, newer]), domain) == replace(FILE, digest=A)
    assert contents.read == []


def test_copy_and_what_nothing_can_start_from_record_nothing(contents: Contents, domain: LockedDomain) -> None:
    only_read = replace(node(FILE), read_only_reason="its image is open elsewhere")
    for one, choice in ((node(FILE), Choice(Level.COPY, None, (), "")), (only_read, FULL)):
        assert record(one, choice, History([]), domain) == FILE
    assert contents.read == []


@pytest.mark.parametrize("is_denied", [True, False])
def test_file_that_may_not_be_read_is_recorded_without_ctime(
    contents: Contents, domain: LockedDomain, recorder: Recorder, is_denied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that its size and time of modification have to do. One that could not be read this time keeps its ctime."""
    monkeypatch.setattr(file_contents, "is_denied", lambda _file: is_denied)
    contents.digests["/images/base"] = None
    recorded = record(node(FILE), FULL, History([]), domain)
    assert recorded == (replace(FILE, ctime_ns=None) if is_denied else FILE)
    (step,) = recorder.steps
    assert step.startswith("Disk vda: the content of /images/base, which is below it, cannot be read to record it")


def test_progress_is_told(
    contents: Contents, domain: LockedDomain, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "REPORT_S", 0)
    record(node(FILE), FULL, History([]), domain)
    assert recorder.steps == ["Disk vda: /images/base, which is below it, is read to record its content."]
    assert recorder.told == {"vda": [(100, 100)]}
