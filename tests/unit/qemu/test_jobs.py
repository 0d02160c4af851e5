"""All jobs of a backup end together: each is finalised, or each is cancelled."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_qemu import MIB, FakeDisk, FakeQemu, qcow2_header
from tests.unit.builders import Recorder
from vbackup.errors import (
    ConnectionLostError,
    DomainGoneError,
    InterruptedBySignalError,
    JobError,
    JobStalledError,
    MalformedError,
    NoSpaceError,
    QmpError,
    StorageError,
)
from vbackup.qemu import jobs
from vbackup.qemu.jobs import TICK_S, JobStatus
from vbackup.qemu.monitor import Event
from vbackup.stop import Stop

SIZE_BYTES = 16 * MIB
DEVS = {"job-vda": "vda", "job-vdb": "vdb"}


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[FakeQemu]:
    """Two disks, whose jobs have just been started."""
    disks = [FakeDisk("virtio-disk0", SIZE_BYTES), FakeDisk("virtio-disk1", SIZE_BYTES, path="/images/vdb.qcow2")]
    with FakeQemu(disks) as made:
        for dev in DEVS.values():
            path = tmp_path / f"{dev}.qcow2"
            path.write_bytes(qcow2_header(SIZE_BYTES))
            file = {"driver": "file", "filename": str(path)}
            made.execute("blockdev-add", {"driver": "qcow2", "node-name": f"target-{dev}", "file": file})
        start(made)
        yield made


def start(qemu: FakeQemu, **more: Any) -> None:
    actions = [
        {
            "type": "blockdev-backup",
            "data": {
                "job-id": f"job-{dev}",
                "device": qemu.top(alias),
                "target": f"target-{dev}",
                "sync": "full",
                "auto-finalize": False,
                "auto-dismiss": False,
                **more,
            },
        }
        for dev, alias in (("vda", "virtio-disk0"), ("vdb", "virtio-disk1"))
    ]
    qemu.execute("transaction", {"actions": actions})
    qemu.sent.clear()


def run(
    qemu: FakeQemu, *, stop: Stop | None = None, recorder: Recorder | None = None, stall_s: float = 60
) -> dict[str, int]:
    return jobs.run(qemu, DEVS, reporter=recorder or Recorder(), stop=stop or Stop(), stall_s=stall_s)


def statuses(qemu: FakeQemu) -> dict[str, JobStatus]:
    return {job_id: one.status for job_id, one in jobs.query(qemu).items()}


def commands(qemu: FakeQemu, *wanted: str) -> list[tuple[str, str]]:
    return [(sent.command, sent.arguments.get("id", "")) for sent in qemu.sent if sent.command in wanted]


# success


def test_all_jobs_are_finalised_once_all_are_pending(qemu: FakeQemu) -> None:
    assert run(qemu) == {"vda": SIZE_BYTES, "vdb": SIZE_BYTES}
    assert set(commands(qemu, "job-finalize", "job-cancel")) == {
        ("job-finalize", "job-vda"),
        ("job-finalize", "job-vdb"),
    }
    assert statuses(qemu) == {"job-vda": JobStatus.CONCLUDED, "job-vdb": JobStatus.CONCLUDED}


def test_pending_job_waits_for_the_others(qemu: FakeQemu) -> None:
    qemu.stall_job("target-vdb")
    with pytest.raises(JobStalledError):
        run(qemu, stall_s=0)
    for _ in range(10):
        jobs.query(qemu)
    assert statuses(qemu) == {"job-vda": JobStatus.PENDING, "job-vdb": JobStatus.RUNNING}
    assert commands(qemu, "job-finalize") == []


def test_each_job_is_finalised_once(qemu: FakeQemu) -> None:
    run(qemu)
    assert len(commands(qemu, "job-finalize")) == 2


def test_progress_is_told_by_disk(qemu: FakeQemu, recorder: Recorder) -> None:
    run(qemu, recorder=recorder)
    for dev in ("vda", "vdb"):
        done = [done for done, _ in recorder.told[dev]]
        assert done == sorted(done)
        assert recorder.told[dev][-1] == (SIZE_BYTES, SIZE_BYTES)


def test_concluded_jobs_are_still_there_to_be_dismissed(qemu: FakeQemu) -> None:
    run(qemu)
    qemu.sent.clear()
    jobs.cancel(qemu, DEVS)
    # Whether they are gone need not be asked: a dismissal says so, and over a slow link a question takes its time.
    assert [sent.command for sent in qemu.sent] == ["query-jobs", "job-dismiss", "job-dismiss"]
    assert jobs.query(qemu) == {}


def test_job_that_cannot_be_dismissed_is_looked_at_again(qemu: FakeQemu) -> None:
    run(qemu)
    qemu.fault(QmpError("job-dismiss", "GenericError", "no"), command="job-dismiss", nth=1)
    jobs.cancel(qemu, DEVS)
    assert jobs.query(qemu) == {}


def test_jobs_of_others_do_not_matter(qemu: FakeQemu) -> None:
    other = {"job-id": "other", "device": qemu.top("virtio-disk0"), "target": "target-vdb", "sync": "full"}
    jobs.cancel(qemu, ["job-vdb"])
    qemu.execute(
        "transaction",
        {"actions": [{"type": "blockdev-backup", "data": {**other, "auto-finalize": False, "auto-dismiss": False}}]},
    )
    qemu.fail_job("target-vdb", "Input/output error")
    assert jobs.run(qemu, {"job-vda": "vda"}, reporter=Recorder(), stop=Stop()) == {"vda": SIZE_BYTES}
    assert "other" in jobs.query(qemu)


# events


def test_lost_events_delay_and_do_not_matter(qemu: FakeQemu) -> None:
    qemu.loses_events = True
    assert run(qemu) == {"vda": SIZE_BYTES, "vdb": SIZE_BYTES}


def test_burst_of_events_is_one_reason_to_ask(qemu: FakeQemu) -> None:
    run(qemu)
    assert len(commands(qemu, "query-jobs")) < 8


# failure


def test_failure_of_one_is_the_failure_of_all(qemu: FakeQemu) -> None:
    qemu.fail_job("target-vdb", "Input/output error", after_bytes=4096, operation="read")
    with pytest.raises(
        JobError, match=r"Disk vdb: the backup job failed: Input/output error while reading the disk\."
    ) as caught:
        run(qemu)
    assert caught.value.dev == "vdb"
    assert commands(qemu, "job-finalize") == []
    jobs.cancel(qemu, DEVS)
    assert jobs.query(qemu) == {}


def test_target_that_cannot_be_written_is_told_apart(qemu: FakeQemu) -> None:
    qemu.fail_job("target-vdb", "Input/output error", after_bytes=4096)
    with pytest.raises(
        StorageError, match="Disk vdb: QEMU could not write its image to the repository: Input/output error"
    ):
        run(qemu)


def test_failure_whose_event_was_lost_blames_neither_side(qemu: FakeQemu) -> None:
    qemu.loses_events = True
    qemu.fail_job("target-vdb", "Input/output error", after_bytes=4096)
    with pytest.raises(JobError, match=r"Disk vdb: the backup job failed: Input/output error\."):
        run(qemu)


def test_event_that_comes_after_the_answer_is_waited_for(qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[Event] = []
    fetch = qemu.next_event

    def next_event(timeout_s: float) -> Event | None:
        """Those of failures only once nothing else comes."""
        while (event := fetch(timeout_s)) is not None and event.name == "BLOCK_JOB_ERROR":
            late.append(event)
        failed = any(one.error for one in jobs.query(qemu).values())
        return event if event is not None or not failed or timeout_s < TICK_S else late.pop(0)

    monkeypatch.setattr(qemu, "next_event", next_event)
    qemu.fail_job("target-vdb", "Input/output error", after_bytes=4096)
    with pytest.raises(StorageError, match="Disk vdb"):
        run(qemu)


def test_full_target_is_told_apart(qemu: FakeQemu) -> None:
    qemu.fail_job("target-vda", "No space left on device", after_bytes=MIB)
    with pytest.raises(NoSpaceError, match="Disk vda: no space left"):
        run(qemu)


def test_job_that_somebody_cancelled_is_a_failure(qemu: FakeQemu) -> None:
    jobs.query(qemu)
    qemu.execute("job-cancel", {"id": "job-vda"})
    with pytest.raises(JobError, match=r"Disk vda.*Operation canceled"):
        run(qemu)


def test_job_that_somebody_dismissed_is_a_failure(qemu: FakeQemu) -> None:
    jobs.cancel(qemu, ["job-vda"])
    with pytest.raises(JobError, match=r"Disk vda.*another QMP client dismissed the job"):
        run(qemu)


def test_hanging_storage_is_told_after_the_limit(qemu: FakeQemu) -> None:
    for dev in DEVS.values():
        qemu.stall_job(f"target-{dev}", after_bytes=MIB)
    with pytest.raises(JobStalledError, match="No byte was copied for 0 s"):
        run(qemu, stall_s=0)


def test_slow_storage_is_not_hanging_storage(qemu: FakeQemu) -> None:
    """Something was copied at each question, so a limit of no time at all is not passed."""
    jobs.cancel(qemu, DEVS)
    start(qemu, speed=MIB)
    assert run(qemu, stall_s=1e-9) == {"vda": SIZE_BYTES, "vdb": SIZE_BYTES}


def test_slow_rate_makes_the_limit_longer() -> None:
    assert jobs.stall_limit_s(None) == jobs.STALL_S
    assert jobs.stall_limit_s(10**9) == jobs.STALL_S
    assert jobs.stall_limit_s(1024) > 16 * MIB / 1024


# the way to QEMU


@pytest.mark.parametrize("nth", range(1, 8))
@pytest.mark.parametrize("carried_out", [False, True], ids=["not sent", "reply lost"])
def test_wait_goes_on_after_a_lost_connection(qemu: FakeQemu, nth: int, carried_out: bool) -> None:
    qemu.lose_connection(nth=nth, carried_out=carried_out)
    assert run(qemu) == {"vda": SIZE_BYTES, "vdb": SIZE_BYTES}


@pytest.mark.parametrize("carried_out", [False, True], ids=["not sent", "reply lost"])
@pytest.mark.parametrize("nth", [1, 2])
def test_lost_finalize_is_made_up_for(qemu: FakeQemu, nth: int, carried_out: bool) -> None:
    qemu.lose_connection(command="job-finalize", nth=nth, carried_out=carried_out)
    assert run(qemu) == {"vda": SIZE_BYTES, "vdb": SIZE_BYTES}


def test_connection_that_stays_lost_ends_the_wait(qemu: FakeQemu) -> None:
    for nth in range(1, 2000):
        qemu.lose_connection(nth=nth)
    with pytest.raises((ConnectionLostError, JobStalledError)):
        run(qemu, stall_s=0)


def test_refused_finalize_is_tried_again(qemu: FakeQemu) -> None:
    qemu.refuse("job-finalize", "refused for the test")
    assert run(qemu) == {"vda": SIZE_BYTES, "vdb": SIZE_BYTES}


def test_finalize_that_is_refused_for_ever_ends_the_wait(qemu: FakeQemu) -> None:
    for nth in range(1, 1000):
        qemu.refuse("job-finalize", "refused for the test", nth=nth)
    with pytest.raises((JobStalledError, QmpError)):
        run(qemu, stall_s=0)


def test_end_of_the_domain_ends_the_wait(qemu: FakeQemu) -> None:
    qemu.kill(command="query-jobs", nth=3)
    with pytest.raises(DomainGoneError):
        run(qemu)


def test_reply_that_is_none_ends_the_wait(qemu: FakeQemu) -> None:
    class Odd(FakeQemu):
        def execute(self, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
            return [{"id": "job-vda", "type": "backup", "status": "resting"}]

    with pytest.raises(MalformedError, match="resting"):
        jobs.query(Odd())


# a request to stop


def test_signal_ends_the_wait_at_once(qemu: FakeQemu) -> None:
    stop = Stop()
    recorder = Recorder(on_progress=lambda: stop.request(signal.SIGTERM))
    with pytest.raises(InterruptedBySignalError) as caught:
        run(qemu, stop=stop, recorder=recorder)
    assert caught.value.signum == signal.SIGTERM
    assert len(commands(qemu, "query-jobs")) == 1
    assert commands(qemu, "job-finalize") == []


def test_signal_before_the_wait_asks_nothing(qemu: FakeQemu) -> None:
    stop = Stop()
    stop.request(signal.SIGINT)
    with pytest.raises(InterruptedBySignalError):
        run(qemu, stop=stop)
    assert qemu.sent == []


# cancel


def test_running_jobs_are_cancelled_and_dismissed(qemu: FakeQemu) -> None:
    jobs.cancel(qemu, DEVS)
    assert jobs.query(qemu) == {}
    assert {job_id for _, job_id in commands(qemu, "job-cancel")} == set(DEVS)


def test_pending_jobs_are_cancelled_and_dismissed(qemu: FakeQemu) -> None:
    while set(statuses(qemu).values()) != {JobStatus.PENDING}:
        pass
    jobs.cancel(qemu, DEVS)
    assert jobs.query(qemu) == {}


def test_failed_and_running_jobs_are_ended_alike(qemu: FakeQemu) -> None:
    qemu.fail_job("target-vda", "Input/output error")
    jobs.query(qemu)
    jobs.cancel(qemu, DEVS)
    assert jobs.query(qemu) == {}


def test_cancelling_nothing_is_fine(qemu: FakeQemu) -> None:
    jobs.cancel(qemu, ["no-such-job"])
    jobs.cancel(qemu, [])
    assert set(jobs.query(qemu)) == set(DEVS)


def test_jobs_of_others_are_not_cancelled(qemu: FakeQemu) -> None:
    jobs.cancel(qemu, ["job-vda"])
    assert set(jobs.query(qemu)) == {"job-vdb"}


def test_stalled_job_is_cancelled(qemu: FakeQemu) -> None:
    qemu.stall_job("target-vda", after_bytes=MIB)
    jobs.cancel(qemu, DEVS)
    assert jobs.query(qemu) == {}


def test_job_that_cannot_be_cancelled_is_left_after_the_limit(qemu: FakeQemu) -> None:
    """Its request never comes back from the storage."""
    qemu.stall_job("target-vda", after_bytes=MIB, cancellable=False)
    with pytest.raises(JobStalledError):
        jobs.cancel(qemu, DEVS, timeout_s=0)
    assert set(jobs.query(qemu)) >= {"job-vda"}
    qemu.recover("target-vda")
    jobs.cancel(qemu, DEVS)
    assert jobs.query(qemu) == {}


def test_cancel_without_events_ends_too(qemu: FakeQemu) -> None:
    qemu.loses_events = True
    jobs.cancel(qemu, DEVS)
    assert jobs.query(qemu) == {}


def test_job_that_concludes_between_question_and_cancel_is_dismissed(qemu: FakeQemu) -> None:
    qemu.refuse("job-cancel", "Job 'job-vda' in state 'concluded' cannot accept command verb 'cancel'")
    jobs.cancel(qemu, DEVS)
    assert jobs.query(qemu) == {}


@pytest.mark.parametrize("nth", range(1, 6))
@pytest.mark.parametrize("carried_out", [False, True], ids=["not sent", "reply lost"])
def test_jobs_are_cancelled_over_a_connection_that_breaks_once(qemu: FakeQemu, nth: int, carried_out: bool) -> None:
    """libvirtd is restarted while the user stops a backup: no job must stay behind."""
    qemu.lose_connection(nth=nth, carried_out=carried_out)
    try:
        jobs.cancel(qemu, DEVS)
    except ConnectionLostError:
        pytest.fail("gave up at the first loss of the connection")
    assert jobs.query(qemu) == {}


def test_end_of_the_domain_ends_the_cancelling(qemu: FakeQemu) -> None:
    qemu.kill()
    with pytest.raises(DomainGoneError):
        jobs.cancel(qemu, DEVS)


def test_refusal_that_stays_is_no_endless_wait(qemu: FakeQemu) -> None:
    qemu.stall_job("target-vda", cancellable=False)
    for nth in range(1, 50):
        qemu.fault(QmpError("job-cancel", "GenericError", "no"), command="job-cancel", nth=nth)
    with pytest.raises(JobStalledError):
        jobs.cancel(qemu, ["job-vda"], timeout_s=0)


def test_job_that_was_slowed_down_meanwhile_has_more_time(qemu: FakeQemu) -> None:
    """By ``vbackup speed``, of which who waits does not know."""
    qemu.stall_job("target-vdb")
    jobs.set_speed(qemu, "job-vdb", 32 * 1024 * MIB)  # a pause of a millisecond may be the speed's
    with pytest.raises(JobStalledError) as caught:
        run(qemu, stall_s=0)
    assert caught.value.limit_s == 2**-10


def test_call_is_repeated_over_a_lost_connection_but_not_for_ever() -> None:
    qemu = FakeQemu()
    calls: list[int] = []

    def call(losses: int) -> int:
        calls.append(losses)
        if len(calls) <= losses:
            raise ConnectionLostError("gone")
        return 7

    assert jobs.over_losses(qemu, lambda: call(2), stop=Stop()) == 7
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(ConnectionLostError):
        jobs.over_losses(qemu, lambda: call(100), stop=Stop())
