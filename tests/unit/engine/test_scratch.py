"""Bitmaps in which only the last granule is set are prepared on scratch nodes, and nothing else is left."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.fake_qemu import FakeQemu
from tests.unit.builders import REPOSITORY, Recorder
from tests.unit.fake_domain import FakeDomain, run
from vbackup import names
from vbackup.engine import scratch
from vbackup.errors import ConnectionLostError, UnsuitableError
from vbackup.names import Naming
from vbackup.repository.repository import Repository
from vbackup.stop import Stop
from vbackup.undo import Undo

GRANULE_BYTES = 65536
ALIGNED_BYTES, ODD_BYTES = 16 * GRANULE_BYTES, 3 * GRANULE_BYTES + 512
NAMING = Naming(REPOSITORY)


def test_failed_job_of_an_end_mark_is_told_and_leaves_nothing(domain: FakeDomain, repo: Repository) -> None:
    before = domain.qemu.state()
    domain.qemu.fail_job(names.Naming(repo.id).scratch_window, "Input/output error")
    with pytest.raises(UnsuitableError, match="cannot make the end mark of a disk: its job failed: Input/output error"):
        run(domain, repo)
    assert domain.qemu.state() == before


def prepare(qemu: FakeQemu, sizes: dict[str, int], undo: Undo) -> None:
    scratch.prepare(qemu, sizes, naming=NAMING, undo=undo, stop=Stop())


def test_only_the_last_granule_is_set_whatever_the_size(qemu: FakeQemu, recorder: Recorder) -> None:
    sizes = {NAMING.scratch_node(0): ALIGNED_BYTES, NAMING.scratch_node(1): ODD_BYTES, NAMING.scratch_node(2): 512}
    with Undo(recorder) as undo:
        prepare(qemu, sizes, undo)
        assert [sorted(qemu.bitmaps(node)[NAMING.scratch_job].dirty) for node in sizes] == [[15], [3], [0]]
        assert [name for name in qemu.state()["nodes"] if name.startswith("vbackup-")] == sorted(sizes)
        assert qemu.state()["jobs"] == []
    assert qemu.state()["nodes"] == []
    assert recorder.warnings == []


def test_without_sizes_nothing_is_done(qemu: FakeQemu, recorder: Recorder) -> None:
    with Undo(recorder) as undo:
        prepare(qemu, {}, undo)
    assert qemu.sent == []


@pytest.mark.parametrize("carried_out", [False, True], ids=["not sent", "reply lost"])
def test_whatever_command_fails_nothing_stays(recorder: Recorder, carried_out: bool) -> None:
    with FakeQemu() as counted, Undo(recorder) as undo:
        prepare(counted, {NAMING.scratch_node(0): ODD_BYTES}, undo)
        commands = len(counted.sent)
    assert commands > 5
    for nth in range(1, commands + 1):
        with FakeQemu() as qemu:
            qemu.lose_connection(nth=nth, carried_out=carried_out)
            with suppress(ConnectionLostError), Undo(recorder) as undo:
                prepare(qemu, {NAMING.scratch_node(0): ODD_BYTES}, undo)
            state = qemu.state()
            assert (state["nodes"], state["jobs"]) == ([], []), f"at command {nth}"
